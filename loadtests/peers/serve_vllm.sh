#!/usr/bin/env bash
# vLLM on loopback, in the foreground: serve_vllm.sh FOLDER PORT [N_ADAPTERS [N_SLOTS]]
# FOLDER is setup.sh's. Without N_ADAPTERS, or with 0, LoRA is off; otherwise every adapter has a slot (--max-loras),
# unless N_SLOTS says how many there are.
set -euo pipefail
LAB=$1 PORT=$2 N=${3:-0} SLOTS=${4:-${3:-0}}
. "$(dirname "$0")/vllm_env.sh" "$LAB"
options=(--model "$LAB/model" --served-model-name base --host 127.0.0.1 --port "$PORT"
  --dtype bfloat16 --max-model-len 1024 --max-num-seqs 32)
if [ "$N" -gt 0 ]; then
  modules=()
  for adapter in $(ls "$LAB/adapters" | head -n "$N"); do modules+=("$adapter=$LAB/adapters/$adapter"); done
  options+=(--enable-lora --max-loras "$SLOTS" --max-lora-rank 16 --max-cpu-loras "$N" --lora-modules "${modules[@]}")
fi
exec "$LAB/vv/bin/python" -m vllm.entrypoints.openai.api_server "${options[@]}"
