# `make demo` and `make test` do all of their own set-up; a second run finds it done.
# Needs Python 3.11, 3.12 or 3.13 with its venv module. Choose one with PYTHON=/path/to/python3.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
FITS := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-all gpu check format setup stubs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: setup ## a real model reads a document; a small one finds a fact in a longer one
	@$(BIN)/runtime demo

test: check ## lint, types, import rules, and every test but the slow ones
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

test-all: check ## the same with the slow tests
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile

gpu: ## measure this host's GPU in eight minutes; installs nothing
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON) python3) deploy/benchmarks/gpu.py

check: setup ## lint, format, import rules and types, without the tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYTHONPATH=.types $(BIN)/lint-imports
	@$(BIN)/mypy

format: setup ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

setup: $(VENV)/.installed $(VENV)/.stubs ## the virtual environment with everything in it

stubs: $(VENV)/.locked ## write the gRPC stubs anew from proto/
	@$(BIN)/python proto/generate.py

lock: ## pin in requirements.lock what .venv holds now
	@$(BIN)/python .ci/lock.py > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(VENV)/.locked $(VENV)/.installed $(VENV)/.stubs

clean: ## remove the virtual environment and every cache
	@rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c "$(FITS)" 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$candidate" --version)"; \
	    exec "$$candidate" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "Moorage needs Python 3.11, 3.12 or 3.13 with its venv module; tried: $(CANDIDATES)." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.locked: requirements.lock | $(BIN)/python
	@echo "Installing the pinned packages of requirements.lock; minutes the first time"
	@# Python compiles a module when it is first imported; compiling all of them doubles the time of this step.
	@$(BIN)/pip install -q --no-compile -r requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.stubs: $(VENV)/.locked proto/generate.py $(wildcard proto/v1/*.proto)
	@$(MAKE) --no-print-directory stubs > /dev/null
	@touch $@
