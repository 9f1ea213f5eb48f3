# Two commands for a new user: `make run` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench soak format clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(STAMP)  ## create .venv with everything pinned (idempotent)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Farebox needs Python 3.11 or newer; say make PYTHON=python3.x" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

run: setup  ## run the proxy on SQLite with the sandbox provider (or with farebox.toml)
	@exec $(BIN)/farebox serve

test: setup  ## all tests, on SQLite and a real PostgreSQL
	$(BIN)/python -m pytest -q

check: setup  ## lint, types, import layers, migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m migrations.check

bench: setup  ## measure against a bare pass-through (BENCH="--peer litellm" adds LiteLLM)
	$(BIN)/python -m bench $(BENCH)

soak: setup  ## kill and restart the server at random for SOAK_MINUTES (default 10)
	SOAK_MINUTES=$(or $(SOAK_MINUTES),10) $(BIN)/python -m pytest -q -m soak -s tests/faults

format: setup  ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove what setup and the tests made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
