# `make demo` and `make test` do all their own set-up: they need Python 3.11 or later, git and make.
SHELL := /bin/sh
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
BIN := .venv/bin
TEMPLATE := {{cookiecutter.project_slug}}
export UV_LINK_MODE ?= copy
export UV_COMPILE_BYTECODE ?= 1

.PHONY: help demo test test-all test-fast bench bench-serving check clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.ready ## bake the default project into scratch/demo, install it, run its seven steps
	rm -rf scratch/demo
	$(BIN)/cookiecutter --no-input --output-dir scratch/demo .
	$(MAKE) -C scratch/demo/fraud-detection run UV="$(abspath $(UV))"
	@echo
	@echo "Look at it: scratch/demo/fraud-detection/reports/index.html"

test: .venv/.ready ## the tests of the template and of what it generates, but for the longest
	PATH="$(dir $(abspath $(UV))):$$PATH" $(BIN)/python -m pytest -n 2 --dist worksteal -m "not all"

test-all: .venv/.ready ## the longest: every two choices together at work, installs from nothing, orchestrators, remotes, updates, a narrowed template
	PATH="$(dir $(abspath $(UV))):$$PATH" $(BIN)/python -m pytest -n 2 --dist worksteal -m all

test-fast: .venv/.ready ## the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow and not all"

bench: .venv/.ready ## how long baking, running and testing take, as ratios
	$(BIN)/python tests/bench.py

bench-serving: .venv/.ready ## the service beside mlflow, a data frame in FastAPI and an empty endpoint, as ratios
	$(BIN)/python tests/bench_serving.py

check: .venv/.ready ## lint and types of the template's own code
	$(BIN)/ruff check hooks tests
	$(BIN)/ruff format --check hooks tests
	$(BIN)/mypy hooks tests

clean: ## remove what these targets made
	rm -rf .venv .uv scratch .pytest_cache .mypy_cache .ruff_cache

.venv/.ready: pyproject.toml cookiecutter.json $(TEMPLATE)/pyproject.toml
	@command -v git >/dev/null || { echo "git is missing: install it first"; exit 1; }
	@test -x "$(UV)" || { $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	"$(UV)" venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	"$(UV)" pip install --quiet --python $(BIN)/python --group dev
	rm -rf scratch/setup && $(BIN)/cookiecutter --no-input --output-dir scratch/setup . >/dev/null
	cd scratch/setup/fraud-detection && "$(abspath $(UV))" pip install --quiet --python ../../../$(BIN)/python -r pyproject.toml --all-extras --group dev
	touch $@
