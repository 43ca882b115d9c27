# Everything a user or a developer does here, by name. `make` alone lists it.
# Each target sets up what it needs: a fresh machine with Python 3.11, Java 17 and make is enough.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: retrain up down trainer test test-compose test-kubernetes lint format bench docs docs-links lock dist sbom audit clean help
.NOTPARALLEL:
# Compiled files are what makes the hundredth start of a process cheap.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3.11
MODEL ?= flight_delay
BENCHMARKS ?= $(wildcard benchmarks/*.py)

# Which tests: those that a change has to pass within half an hour. MARKS= runs all, as before a release; MARKS=slow the rest.
MARKS ?= not slow

# Which engines: those of this machine, the servers of docker-compose.yaml, or a cluster (docs/guides/deploy.md).
STACK ?= embedded

BIN := .venv/bin
READY := .venv/.ready
TRAINER := .trainer/.ready
# Installs the environment in a fraction of pip's time; pip alone does it too. The pip of this Python brings it, where
# there is one: the environment's own, which is among the locked packages, would first take three seconds.
UV := uv==0.13.9
QUIET := --quiet --disable-pip-version-check
ENSURE_PIP = { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --default-pip >/dev/null; }
RESOLVE := $(BIN)/uv pip compile --python-version 3.11 --no-annotate --no-header
# All packages; those of the image of the servers; those of the trainer's.
LOCKS := requirements.txt deploy/requirements.txt trainer/requirements.txt

ifeq ($(STACK),embedded)
EVERGREEN := $(BIN)/evergreen
ENVIRONMENT := $(READY)
else ifeq ($(STACK),kubernetes)
EVERGREEN := deploy/cluster
else ifeq ($(STACK),compose)
EVERGREEN := deploy/compose
else
$(error STACK is embedded, compose or kubernetes, not '$(STACK)')
endif

retrain: $(ENVIRONMENT) ## from raw days to a promoted champion, a week further at each call (MODEL=flight_delay)
	@$(EVERGREEN) retrain $(MODEL)

up: $(ENVIRONMENT) ## start Airflow, MLflow and Spark on this machine; on real servers with STACK=compose
	@$(EVERGREEN) up

down: ## stop them, and keep all data
	@if [ -x $(EVERGREEN) ]; then $(EVERGREEN) down; else echo "nothing is up"; fi

trainer: $(TRAINER) ## the environment with PyTorch, which trains neural networks on this machine

# Files side by side, and each engine with few threads: they share the cores. One process has the stacks of Airflow, one
# after the other, which mostly wait.
test: lint $(TRAINER) ## lint, then tests on this machine, half an hour; with MARKS= the slow ones too, two hours
	@$(BIN)/python -m pytest tests/unit tests/dag -q -n 2 -m "$(MARKS)"
	@.trainer/bin/python -m pytest tests/trainer -q
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration -q -n 3 -m "$(MARKS)" --dist loadfile --no-loadscope-reorder --durations=20

test-compose: $(READY) ## test the stack of docker-compose.yaml, which must not be running (docs/guides/deploy.md)
	@$(BIN)/python -m pytest tests/compose -q -rs --durations=10

test-kubernetes: $(READY) ## test training in pods, on the cluster that KUBECONFIG names (docs/guides/kubernetes.md)
	@$(BIN)/python -m pytest tests/kubernetes -q -rs --durations=10 -n 3 -m "$(MARKS)" --dist loadscope

lint: $(READY) ## style, types, and which package may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## fix what the formatter and the linter can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## print the figures of docs/performance.md
	@for benchmark in $(BENCHMARKS); do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

docs: $(READY) ## build the site of docs/, in docs/_build/html
	@$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

docs-links: $(READY) ## check the external links of the docs; needs the network
	@$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

lock: $(READY) ## resolve all dependencies again, and write the lock files
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	@$(RESOLVE) pyproject.toml --upgrade --all-extras $(addprefix --group ,test lint docs release image) \
		--output-file requirements.txt
	@$(RESOLVE) pyproject.toml --upgrade --all-extras --group image \
		--constraint requirements.txt --output-file deploy/requirements.txt
	@$(RESOLVE) trainer/requirements.in --upgrade \
		--constraint requirements.txt --excludes trainer/without-cuda.txt --output-file trainer/requirements.txt

dist: $(READY) ## build the wheel and the source distribution: the same bytes from the same files
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation
	@$(BIN)/twine check --strict dist/*

sbom: $(READY) ## write a bill of materials (CycloneDX) of each lock file
	@mkdir -p dist/sbom
	@$(foreach lock,$(LOCKS),PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --output-reproducible --output-format JSON \
		--pyproject pyproject.toml --output-file dist/sbom/$(subst /,-,$(lock:requirements.txt=sbom.cdx.json)) $(lock);)

audit: $(READY) ## look for known vulnerabilities of the locked packages; needs the network
	@$(foreach lock,$(LOCKS),$(BIN)/pip-audit --no-deps --disable-pip --requirement $(lock);)

clean: down ## stop, and remove everything that was created: data, environments, caches
	@rm -rf .evergreen .venv .trainer .ruff_cache .mypy_cache .hypothesis dist

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment. A half-made one is mended by the next call: the stamp is written last.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "Evergreen needs Python 3.11, and '$(PYTHON)' is not that: apt-get install python3.11 python3.11-venv," \
			"or brew install python@3.11, or name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "This Python has no venv module: apt-get install python3.11-venv" >&2; exit 1; }
	@echo "making .venv"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --without-pip .venv
	@$(PYTHON) -m pip --python $(BIN)/python install $(QUIET) $(UV) 2>/dev/null || { $(ENSURE_PIP) && \
		$(BIN)/python -m pip install $(QUIET) $(UV); } || true
	@echo "installing $$(grep -c == requirements.txt) packages"
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps -r requirements.txt 2>&1 \
		| grep --line-buffered -v '^ + ' || { \
		echo "uv could not (see above): pip does it, which takes minutes longer"; $(ENSURE_PIP); \
		$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-deps -r requirements.txt; }
	@$(BIN)/python -m pip install $(QUIET) --no-deps --no-build-isolation -e .
	@touch $@

# PyTorch's own index has wheels without CUDA, a tenth of the size: TORCH_INDEX names it, as an address for pip.
$(TRAINER): trainer/requirements.txt $(READY)
	@echo "making .trainer, with PyTorch"
	@[ -x .trainer/bin/python ] || $(PYTHON) -m venv .trainer
	@.trainer/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r trainer/requirements.txt -c requirements.txt pytest pytest-timeout
	@touch $@
