# Everything a person or CI does with a checkout. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup train test crowded lint bench ui docs site hooks clean lock audit

help: ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY) ## create .venv with the locked versions

# The stamp is newer than the files below, so that a second `make` does no set-up work.
# Every file has a digest in the lock except torch's: its builds (CPU, CUDA, ROCm) are on several indexes with different
# files, and the machine's pip configuration chooses one. The lock also holds what torch needs, except for the CUDA
# libraries, which its builds name with exact versions.
$(READY): requirements.lock requirements.in pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hpcexp needs Python 3.11 or newer; this is $$($(PYTHON) --version). Fix: make PYTHON=python3.12 setup"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r requirements.lock
	$(PIP) -r requirements.in
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

train: $(READY) ## train the default experiment; creates .venv first
	$(BIN)/hpcexp train
	@echo
	@echo "Look at it:  make ui      Change it:  $(BIN)/hpcexp train optimizer.lr=0.001 seed=2"

# By files: the tests of a module share what it sets up.
test: lint ## lint and all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

crowded: $(READY) ## a part of the tests on a machine that others use: no free core, Slurm's client, settings of a user
	.ci/crowded $(BIN)/python

lint: $(READY) ## ruff, mypy, import-linter: code, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

hooks: $(READY) ## run the checks of lint before each commit of this checkout
	$(BIN)/pre-commit install

bench: $(READY) ## run the benchmarks: ratios to plain code or to a peer
	$(BIN)/python -m benchmarks

ui: $(READY) ## open MLflow on runs/
	$(BIN)/hpcexp ui

docs: $(READY) ## rewrite docs/config/ from the schema and conf/
	$(BIN)/python -m hpcexp.cli.shared.config_reference docs/config

site: docs ## build the documentation site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open build/site/index.html"

clean: ## remove .venv and everything built; keeps runs/
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Leaves torch and its CUDA libraries out: see `setup`.
lock: $(READY) ## resolve requirements.lock again; UPGRADE=--upgrade for newer versions
	$(PIP) uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --quiet \
	  --constraint requirements.in --no-header --generate-hashes $(UPGRADE) --output-file requirements.lock
	awk 'BEGIN { print "# Pinned versions and their digests for `make`; written by `make lock`. Do not edit." } \
	  /^[a-z0-9]/ { left = /^(torch|triton|(nvidia-(cu|nccl|nvjitlink|nvshmem|nvtx)|cuda-)[^ ]*)==/ } \
	  /^[^#]/ && !left' requirements.lock > requirements.lock.new
	mv requirements.lock.new requirements.lock

# In a separate environment, so that the auditor is not audited.
audit: $(READY) ## look up known vulnerabilities of the locked versions
	$(PIP) uv
	$(BIN)/uv tool run --quiet pip-audit --strict --disable-pip --require-hashes -r requirements.lock
