# Everything runs in .venv, which is set up on first use from the pinned versions in constraints.txt.

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEPLOY_READY := $(VENV)/.deploy-ready
TOOLS := .tools
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

.PHONY: demo test vllm vllm-test deploy-test deploy-render serve check bench scores pack format clean

demo: $(READY)  ## main job: demo server on the embedded model (ONCE=1: exit after the table)
	@PORT=$(PORT) $(BIN)/onebasis demo run $(if $(ONCE),--once)

test: $(READY)  ## all tests
	$(BIN)/python -m pytest $(ARGS)

vllm: $(VLLM_READY)  ## an environment with vLLM for CPUs beside this project

vllm-test: $(VLLM_READY)  ## what runs inside vLLM, and the API's tests on the engine over it
	$(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)
	$(VLLM_VENV)/bin/python -m pytest --engine vllm tests/api tests/contract $(ARGS)

deploy-test: $(DEPLOY_READY)  ## chart, overlays, image, alerts, dashboards, gateway; fetches helm, kubectl and promtool
	$(BIN)/python deploy/tools.py $(TOOLS)
	PATH="$(CURDIR)/$(BIN):$(CURDIR)/$(TOOLS):$$PATH" $(BIN)/python -m pytest tests/deploy $(ARGS)

deploy-render: $(DEPLOY_READY)  ## write what the kustomize overlays stand on, from the chart
	$(BIN)/python deploy/tools.py $(TOOLS)
	$(TOOLS)/helm template onebasis deploy/helm/onebasis --namespace onebasis --skip-tests \
		--values deploy/kustomize/base/values.yaml > deploy/kustomize/base/onebasis.yaml

serve: $(READY)  ## make serve ARGS="--model DIR --basis FILE"
	$(BIN)/onebasis serve $(ARGS)

check: $(READY)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict loadtests
	$(BIN)/mypy --strict clients/python
	$(BIN)/mypy --strict deploy/tools.py
	$(BIN)/mypy --strict deploy/gateway/picker
	$(BIN)/lint-imports

bench: $(READY)  ## the README's table: bare, 1, 32 and 1000 tasks at concurrency 1, 8, 32; others: loadtests/README.md
	$(BIN)/python -m loadtests.server $(ARGS)

scores: $(READY)  ## every shipped task's score, measured through HTTP, beside the one in its file
	$(BIN)/onebasis demo score $(ARGS)

pack: $(READY)  ## train the demo pack anew into build/pack; about an hour
	$(BIN)/onebasis demo build-pack build/pack $(ARGS)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(TOOLS) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(READY): pyproject.toml clients/python/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "needs Python 3.11 or newer: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,postgres,otel,report]' --editable 'clients/python[cli]'
	@touch $@

$(DEPLOY_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[deploy]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --force-reinstall --no-deps opentelemetry-proto  # xds-protos puts old files of it in their place
	@touch $@

$(VLLM_READY): pyproject.toml clients/python/pyproject.toml constraints.txt tests/vllm/setup.sh
	tests/vllm/setup.sh $(VLLM_VENV)
	@touch $@
