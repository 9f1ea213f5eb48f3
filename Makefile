# Two commands for a new user: `make run` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run demo test check docs bench soak format clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(STAMP)  ## create .venv with everything pinned (idempotent)

$(STAMP): requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Farebox needs Python 3.11 or newer; say make PYTHON=python3.x" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . --editable client
	@touch $(STAMP)

run: setup  ## run the proxy on SQLite with the sandbox provider and a local chain (or with farebox.toml)
	@exec $(BIN)/farebox serve --devnet

demo: setup  ## the whole life of a payment channel on a local chain, step by step
	@$(BIN)/python -m app.devnet.demo

# Files stay whole and in their order: what is slow is not left for the end, where one worker would wait for the other.
test: setup  ## all tests, on SQLite and a real PostgreSQL, in WORKERS processes (default 2)
	$(BIN)/python -m pytest -q -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

check: setup  ## lint, types, import layers, migrations, contract artifacts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m migrations.check
	$(BIN)/python -m contracts.check

docs: setup  ## make docs/payments.md and the plots of docs/routing.md again
	$(BIN)/python -m docs.make_payments
	$(BIN)/python -m bench.routing_simulator --plots docs/images

bench: setup  ## measure against a bare pass-through (BENCH="--peer litellm" adds LiteLLM)
	$(BIN)/python -m bench $(BENCH)
	$(BIN)/python -m bench.channels
	$(BIN)/python -m bench.routing

soak: setup  ## kill and restart the server at random for SOAK_MINUTES (default 10)
	PYTEST_DEBUG_TEMPROOT=$(or $(TMPDIR),/tmp) SOAK_MINUTES=$(or $(SOAK_MINUTES),10) $(BIN)/python -m pytest -q -m soak -s tests/faults

format: setup  ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove what setup and the tests made
	rm -rf $(VENV) client/src/*.egg-info build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
