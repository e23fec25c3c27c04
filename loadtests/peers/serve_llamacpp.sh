#!/usr/bin/env bash
# llama.cpp's server on loopback, in the foreground: serve_llamacpp.sh FOLDER PORT [N_ADAPTERS]
# FOLDER is setup.sh's. Adapters are off (scale 0) until a request names one by its number.
set -euo pipefail
LAB=$1 PORT=$2 N=${3:-0} SLOTS=32
options=(-m "$LAB/smol-bf16.gguf" --host 127.0.0.1 --port "$PORT" -t "$(nproc)" -tb "$(nproc)" -np "$SLOTS"
  -c $((SLOTS * 160)) --no-webui --alias base --cache-ram 0 --slot-prompt-similarity 0 -lv 1)
if [ "$N" -gt 0 ]; then
  adapters=
  for adapter in $(ls "$LAB/gguf" | head -n "$N"); do adapters=$adapters,$LAB/gguf/$adapter:0; done
  options+=(--lora-scaled "${adapters#,}")
fi
exec "$LAB/lcpp/bin/llama-server" "${options[@]}"
