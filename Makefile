# Each target sets up .venv by itself. Python is chosen with PYTHON=…, more for a command with ARGS=….

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo serve test system lint format bench clean

help: ## Say what there is.
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16

setup: $(READY) ## Install everything into .venv.

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV), once; this takes a minute or two." >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@# Without what it depends on: it is here already, but for an anthropic SDK that is newer than any-llm says it wants.
	@$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt any-llm-sdk openresponses-types
	@touch $@

demo: $(READY) ## Show the whole loop on the order desk, in a few minutes.
	@$(BIN)/doorstep demo $(ARGS)

serve: $(READY) ## Serve the gateway on http://127.0.0.1:8000.
	@$(BIN)/doorstep serve $(ARGS)

lint: $(READY) ## Check style, layers and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint system ## Check all of that, and run every test with its coverage.
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

system:
	@sh tools/system_packages.sh

format: $(READY) ## Format the code.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## Measure the engine, the training service and the gateway beside their peers.
	$(BIN)/python benchmarks/engine training
	$(BIN)/python benchmarks/engine sampling
	$(BIN)/python benchmarks/tinker/run.py
	$(BIN)/python benchmarks/gateway/run.py $(ARGS)

clean: ## Remove .venv and what tools left; records in .doorstep stay.
	rm -rf $(VENV) dist build .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
