# `make test` and `make quickstart` set up all they need in .venv; nothing outside this folder is touched.
#
# PYTHON       which Python makes .venv              (default: the first Python >= 3.11 found)
# TORCH_INDEX  an extra package index for pip, such as PyTorch's index of CPU wheels
# WORKERS      test processes, one thread each       (default: 2)

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
CONSTRAINTS := constraints/cpu.txt
INPUTS := pyproject.toml $(CONSTRAINTS)

# A machine with an NVIDIA GPU gets the newest CUDA build of torch; any other gets the version that is tested on CPU.
CPU_ONLY := $(shell nvidia-smi -L >/dev/null 2>&1 || echo yes)
PIP := $(PY) -m pip install --quiet --progress-bar off --disable-pip-version-check \
	$(if $(CPU_ONLY),-c $(CONSTRAINTS)) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
FLAVOUR := $(if $(CPU_ONLY),CPU,CUDA)

# One thread per process: two processes with two threads each on two cores are several times slower than this.
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS)

unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test lint slow quickstart docs bench hooks clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 20

test: $(VENV)/.test lint  ## check style, types, imports and run the tests
	@echo "test: pytest, $(WORKERS) processes"
	@$(TEST)

lint: $(VENV)/.test  ## check style, types and which room imports which
	@echo "lint: ruff"
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet . || { echo "lint: run '$(PY) -m ruff format .'" >&2; exit 1; }
	@echo "lint: pyright"
	@$(PY) -m pyright
	@echo "lint: import rules"
	@$(BIN)/lint-imports

slow: $(VENV)/.test  ## run the slow tests
	@echo "slow: pytest -m slow, $(WORKERS) processes"
	@$(TEST) -m slow

quickstart: $(VENV)/.runtime  ## a small real study on this machine, with its report
	@echo "quickstart: crossover study studies/quickstart.yaml"
	@$(BIN)/crossover study studies/quickstart.yaml

docs: $(VENV)/.docs  ## build the documentation into site/
	@echo "docs: mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

bench: $(VENV)/.runtime  ## run every script in benchmarks/ that measures speed
	@for script in $(filter-out $(addprefix benchmarks/,table.py reference.py adopt.py chaos.py fuzz.py prepare.py),$(wildcard benchmarks/*.py)); do \
		echo "bench: $$script"; $(PY) $$script || exit 1; done

hooks: $(VENV)/.test  ## check every commit with pre-commit
	@$(PIP) pre-commit && $(BIN)/pre-commit install

clean:  ## remove .venv and everything that was built, but no run
	@rm -rf $(VENV) site dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: done (runs/ is left as it is)"

# Stamps: an environment is renewed when what it was installed from changes. `.test` includes `.runtime`.

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "set-up: needs Python 3.11 or newer; none found." \
		"Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "set-up: $(VENV) with $$($(PYTHON) --version)" && \
		$(PYTHON) -m venv $(VENV) || { echo "set-up: '$(PYTHON) -m venv' failed;" \
		"on Debian and Ubuntu it needs the package python3-venv" >&2; exit 1; }; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.made $(INPUTS)
	@echo "set-up: installing crossover ($(FLAVOUR); a first time takes minutes)"
	@$(PIP) -e .
	@$(call check_torch)
	@touch $@

$(VENV)/.test: $(VENV)/.made $(INPUTS)
	@echo "set-up: installing crossover with its test tools ($(FLAVOUR); a first time takes minutes)"
	@$(PIP) -e '.[test]'
	@$(call check_torch)
	@touch $(VENV)/.runtime $@

$(VENV)/.docs: $(VENV)/.made $(INPUTS)
	@echo "set-up: installing crossover with its documentation tools ($(FLAVOUR))"
	@$(PIP) -e '.[docs]'
	@touch $(VENV)/.runtime $@

define check_torch
if test -n "$(CPU_ONLY)"; then \
	$(PY) -c 'import sys, torch; sys.exit(3 if torch.version.cuda else 0)'; \
	case $$? in 0) ;; 3) \
		echo "set-up: note: this machine has no NVIDIA GPU, but torch came with CUDA: gigabytes that are never used."; \
		echo "set-up: it works; for the small build: make clean, then" \
			"make $(firstword $(MAKECMDGOALS)) TORCH_INDEX=<PyTorch's index of CPU wheels>";; \
	*) echo "set-up: torch was installed but cannot be imported, see above" >&2; exit 1;; esac; fi
endef
