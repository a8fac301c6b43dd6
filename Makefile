# Everything a person or CI does with a checkout. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test lint bench ui docs clean lock

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY) ## the environment alone: .venv with the locked versions

# The stamp is younger than what it was made from, so that a second `make` does no set-up work.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hpcexp needs Python 3.11 or newer; this is $$($(PYTHON) --version). Fix: make PYTHON=python3.12 setup"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

train: $(READY) ## train the default experiment, then say where to look
	$(BIN)/hpcexp train
	@echo
	@echo "Look at it:  make ui      Change it:  $(BIN)/hpcexp train optimizer.lr=0.001 seed=2"

# By files: those of a module share what it has set up.
test: lint ## lint, types, layers, tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(READY) ## the benchmarks, each against the raw thing or a peer in one run
	$(BIN)/python -m benchmarks

ui: $(READY) ## MLflow's interface on runs/
	$(BIN)/hpcexp ui

docs: $(READY) ## write docs/config/ anew from the schema and conf/
	$(BIN)/python -m hpcexp.docs docs/config

clean: ## remove the environment and everything built; runs/ stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch's CUDA parts are left to torch: a CPU build of it wants none of them.
lock: $(READY) ## resolve requirements.lock anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate \
	  --constraint requirements.in --no-header --output-file requirements.lock
	sed -i '1i # Pinned versions for `make`; written by `make lock`. Do not edit.' requirements.lock
	sed -i -E '/^(nvidia-(cu|nccl|nvjitlink|nvshmem|nvtx)|cuda-|triton==)/d' requirements.lock
