# make demo and make test are all a newcomer needs; each makes .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: the tests and the demo start several ranks on the same cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= true

# lm-evaluation-harness in an environment of its own, which sees the packages of the other one:
# transformers imports scikit-learn and accelerate wherever they are, and every rank of every test
# would wait for that. --no-compile: of its 300 MB few files are ever imported.
HARNESS := $(VENV)/harness

# The newer releases of Megatron-Core need Python 3.12. One environment holds everything; each release
# stands in a folder of its own, first on the path.
MATRIX := .venv-matrix
MATRIX_PYTHON ?= python3.12
MATRIX_VERSIONS ?= 0.17.1 0.18.2 0.19.2
MATRIX_TESTS ?= tests/checkpoint/test_torch_dist.py tests/checkpoint/test_megatron_lm.py tests/checkpoint/test_logits.py tests/dropin

.PHONY: help install harness test test-gpu test-faults test-matrix lint docs format demo mock bench bench-plan clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(VENV)/installed: setup.py requirements/constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: name a Python 3.10-3.13 with make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable ".[test,dev,docs]"
	touch $@

install: $(VENV)/installed  ## make .venv and install everything into it

$(HARNESS)/installed: $(VENV)/installed
	rm -rf $(HARNESS)
	$(BIN)/python -m venv --without-pip $(HARNESS)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	    >$$($(HARNESS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/parent.pth
	$(BIN)/python -m pip --python $(HARNESS)/bin/python install --quiet --no-compile \
	    --constraint requirements/constraints.txt "megatron-ultralong[harness]"
	touch $@

harness: $(HARNESS)/installed  ## lm-evaluation-harness, in an environment of its own

test: install harness  ## the tests, at most ten minutes on two cores
	timeout 900 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile

test-gpu:  ## tests on one and on two GPUs, by $(PYTHON) as it is: a torch with CUDA, Transformer Engine if it is there
	timeout 1800 $(PYTHON) -m pytest -q -m "gpu or multi_gpu" --timeout 600

test-faults: install  ## kills, signals, hangs, full disks, damage at full length; says how long each took
	timeout 1800 $(BIN)/python -m pytest -m "faults or not faults" --timeout 600 --log-cli-level INFO \
	    $(addprefix tests/training/test_,kills.py torchrun.py faults.py damage.py resharding.py) tests/slurm

$(MATRIX)/installed: setup.py requirements/constraints.txt
	command -v $(MATRIX_PYTHON) >/dev/null || { echo "$(MATRIX_PYTHON) is not there: name a Python 3.12 or 3.13 with make test-matrix MATRIX_PYTHON=..."; exit 2; }
	$(MATRIX_PYTHON) -m venv $(MATRIX)
	$(MATRIX)/bin/python -m pip install --quiet --constraint requirements/constraints.txt torch
	$(MATRIX)/bin/python -m pip install --quiet --constraint requirements/constraints.txt --editable ".[test]"
	touch $@

$(MATRIX)/megatron-core-%: $(MATRIX)/installed
	$(MATRIX)/bin/python -m pip install --quiet --upgrade --no-deps --target $@ megatron-core==$*
	touch $@

test-matrix: $(MATRIX_VERSIONS:%=$(MATRIX)/megatron-core-%)  ## checkpoints and Megatron-LM's own loop with Megatron-Core 0.17-0.19; downloads 3 GB
	set -e; for release in $^; do export PYTHONPATH=$$(realpath $$release):$(CURDIR); \
	    $(MATRIX)/bin/python -c "import megatron.core as m; print('Megatron-Core', m.__version__, flush=True)"; \
	    timeout 900 $(MATRIX)/bin/python -m pytest -q $(MATRIX_TESTS); \
	done

lint: install  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck --external-sources $$(git ls-files '*.sh' '*.sbatch')
	$(BIN)/hadolint Dockerfile Dockerfile.cpu
	$(BIN)/mkdocs build --quiet --strict

docs: install  ## the site, at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: install  ## attention's balance and speed, as ratios; leave the machine alone meanwhile
	$(BIN)/python tools/benchmark_attention.py balance
	$(BIN)/python tools/benchmark_attention.py cpu

bench-plan: install  ## the plan's memory beside live tensors of real training steps, in ten minutes or so
	$(BIN)/python -W ignore tools/benchmark_plan.py layouts
	$(BIN)/python -W ignore tools/benchmark_plan.py slope

format: install  ## rewrite the files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: install  ## extend the small model 8x on two CPU ranks, and show that it worked
	$(BIN)/python examples/demo/run_demo.py --output demo-output

mock: install  ## examples/llama3.1-8b from weights to an answer, on the demo's small model
	PATH=$(abspath $(BIN)):$$PATH WORK=$(CURDIR)/mock-output bash examples/llama3.1-8b/run_all.sh --mock 1m

clean:  ## remove what make made
	rm -rf $(VENV) $(MATRIX) demo-output mock-output build *.egg-info .mypy_cache .ruff_cache .pytest_cache
