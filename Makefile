# make demo and make test are all a newcomer needs; each makes .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: the tests and the demo start several ranks on the same cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help install test lint format demo bench clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(VENV)/installed: setup.py requirements/constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: name a Python 3.10-3.13 with make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable ".[test,dev]"
	touch $@

install: $(VENV)/installed  ## make .venv and install everything into it

test: install  ## the tests, at most ten minutes on two cores
	timeout 900 $(BIN)/python -m pytest -q

lint: install  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## attention's balance and speed, as ratios; leave the machine alone meanwhile
	$(BIN)/python tools/benchmark_attention.py balance
	$(BIN)/python tools/benchmark_attention.py cpu

format: install  ## rewrite the files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: install  ## extend the small model 8x on two CPU ranks, and show that it worked
	$(BIN)/python examples/demo/run_demo.py --output demo-output

clean:  ## remove what make made
	rm -rf $(VENV) demo-output build *.egg-info .mypy_cache .ruff_cache .pytest_cache
