#!/usr/bin/env bash
# onebasis in front of vLLM on loopback, on the terms that serve_vllm.sh gives vLLM: serve_onebasis_vllm.sh FOLDER PORT BASIS
# FOLDER is setup.sh's. Needs `make vllm`, and takes the environment that PYTHON names instead where it is set.
set -euo pipefail
LAB=$1 PORT=$2 BASIS=$3
. "$(dirname "$0")/vllm_env.sh" "$LAB"
exec "${PYTHON:-.venv-vllm/bin/python}" -m onebasis.cli serve --engine vllm --model "$LAB/model" --served-model-name base \
  --basis "$BASIS" --port "$PORT" --kv-cache-mib 1024 --max-model-len 1024 --max-running 32 \
  --store "sqlite:///$LAB/onebasis-vllm.db" --log-level warning
