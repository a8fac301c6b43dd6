# Everything a person or CI does with a checkout. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup train test lint bench ui docs site clean lock audit

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY) ## the environment alone: .venv with the locked versions

# The stamp is younger than what it was made from, so that a second `make` does no set-up work.
# Every file has a digest in the lock, but for torch: its builds (CPU, CUDA, ROCm) lie on several indexes, each with other
# files, and which one a machine takes is decided by its pip configuration. What torch needs is in the lock, too, except
# for the CUDA libraries that its builds name with their exact versions.
$(READY): requirements.lock requirements.in pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hpcexp needs Python 3.11 or newer; this is $$($(PYTHON) --version). Fix: make PYTHON=python3.12 setup"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r requirements.lock
	$(PIP) -r requirements.in
	$(PIP) --no-deps --no-build-isolation --editable .
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

docs: $(READY) ## rewrite docs/config/ from the schema and conf/
	$(BIN)/python -m hpcexp.config_reference docs/config

site: docs ## build the documentation site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open build/site/index.html"

clean: ## remove the environment and everything built; runs/ stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch and its CUDA libraries are taken out: see `setup`. `make lock UPGRADE=--upgrade` takes newer versions.
lock: $(READY) ## resolve requirements.lock anew
	$(PIP) uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --quiet \
	  --constraint requirements.in --no-header --generate-hashes $(UPGRADE) --output-file requirements.lock
	awk 'BEGIN { print "# Pinned versions and their digests for `make`; written by `make lock`. Do not edit." } \
	  /^[a-z0-9]/ { left = /^(torch|triton|(nvidia-(cu|nccl|nvjitlink|nvshmem|nvtx)|cuda-)[^ ]*)==/ } \
	  /^[^#]/ && !left' requirements.lock > requirements.lock.new
	mv requirements.lock.new requirements.lock

# From an environment of its own: what audits is not audited.
audit: $(READY) ## look for known vulnerabilities of the locked versions
	$(PIP) uv
	$(BIN)/uv tool run --quiet pip-audit --strict --disable-pip --require-hashes -r requirements.lock
