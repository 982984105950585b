# make demo and make test are all a newcomer needs; each makes .venv first.
#   make install: what runs the product.  make dev: its tests, linters and site too.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: the tests and the demo start several ranks on the same cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= true

# lm-evaluation-harness in an environment of its own, which sees the packages of the other one:
# transformers imports scikit-learn and accelerate wherever they are, and every rank of every test
# would wait for that.
HARNESS := $(VENV)/harness

# Against hanging only: nothing fails because a machine is slow.
HOUR := timeout 3600
# The tests start Python often, and each start would compile the package where PYTHONDONTWRITEBYTECODE is set.
SOURCES = $(BIN)/python -m compileall -qq --workers 0 megatron_ultralong tests tools
# Files go to whichever process is free, in the order of tests/order.py; of some each test (tests/spread.py).
PYTEST = $(SOURCES) && $(HOUR) $(BIN)/python -m pytest -q --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 20

# Index of torch; empty: pip's own, whose build for Linux brings CUDA. Without a GPU:
# make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# Where this clone came from, for the site's link to it, without a name or password; a path is no link.
ifndef REPOSITORY_URL
REPOSITORY_URL := $(shell git config --get remote.origin.url 2>/dev/null | \
    sed -nE 's,^(git@|ssh://git@)([^:/]+)[:/],https://\2/,; s,^https://[^/]*@,https://,; s,\.git$$,,; /^https:/p')
endif
export REPOSITORY_URL

# Legs of tools/version_matrix/leg.py; empty: all. Interpreters to try before python3.10 ... of the path.
LEGS ?=
MATRIX_PYTHON ?=
# Pythons that make wheel tries; empty: all.
WHEEL_PYTHON ?=

.PHONY: asked-PYTHON asked-TORCH_INDEX help install dev harness wheel width picture quick test test-all test-gpu test-faults test-families test-slurm test-matrix lint docs format demo own-model mock smollm2 bench bench-plan clean engines

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# requirements/*.txt name every file by its hash (tools/lock_requirements.py). torch comes after what it
# needs, by its version alone: its builds, one for each CUDA and one for none, are of many hashes.
# pip compiles one file after the other; COMPILE does it on all cores. Without it every start would compile
# what it imports where PYTHONDONTWRITEBYTECODE is set. Some packages have templates that are not Python.
PIP := $(BIN)/python -m pip install --quiet --no-compile
COMPILE := $(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib || true
LOCKED := --no-deps --no-build-isolation --require-hashes --requirement

STARTS = $(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	    { echo "PYTHON '$(PYTHON)' is not a Python 3.10-3.13 that starts: name one with make $(MAKECMDGOALS) PYTHON=..." >&2; exit 2; }

$(VENV)/installed: setup.py requirements/constraints.txt requirements/build.txt requirements/lock.txt
	@$(STARTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(LOCKED) requirements/build.txt
	$(PIP) $(LOCKED) requirements/lock.txt
	$(PIP) --constraint requirements/constraints.txt $(TORCH_INDEX:%=--index-url %) torch
	$(PIP) --no-deps --no-build-isolation --editable .
	$(COMPILE)
	$(BIN)/python -m pip check
	echo '$(TORCH_INDEX)' >$(VENV)/torch_index
	touch $@

# Nothing in $(VENV) is replaced by what a command line asks for: it is compared with what is there.
ASKED := $(foreach name,PYTHON TORCH_INDEX,$(if $(filter command,$(origin $(name))),$(name)))
ifneq ($(ASKED),)
$(VENV)/installed: | $(addprefix asked-,$(ASKED))
endif
ANOTHER = remove it (rm -r $(VENV)), or name another one with VENV=

asked-PYTHON:
	@$(STARTS); [ -x $(BIN)/python ] || exit 0; \
	print='import platform, sys; print(platform.python_version(), "in", sys.base_prefix)'; \
	has=$$($(BIN)/python -c "$$print" 2>/dev/null) || has='one that does not start'; \
	asked=$$($(PYTHON) -c "$$print"); \
	name=.venv$$($(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])'); \
	[ "$$name" != "$(VENV)" ] || name=$$name-2; \
	[ "$$has" = "$$asked" ] || \
	    { echo "$(VENV) is Python $$has, PYTHON=$(PYTHON) is $$asked: $(ANOTHER)$$name" >&2; exit 2; }

asked-TORCH_INDEX:
	@[ -f $(VENV)/torch_index ] || exit 0; \
	has=$$(cat $(VENV)/torch_index); asked='$(TORCH_INDEX)'; \
	name=.venv-torch; [ "$$name" != "$(VENV)" ] || name=$$name-2; \
	[ "$$has" = "$$asked" ] || \
	    { echo "$(VENV) has torch of $${has:-pip's own index}, TORCH_INDEX is $${asked:-pip's own}: $(ANOTHER)$$name" >&2; exit 2; }

$(VENV)/developing: $(VENV)/installed requirements/dev.txt
	$(PIP) $(LOCKED) requirements/dev.txt
	$(COMPILE)
	$(BIN)/python -m pip check
	touch $@

install: $(VENV)/installed  ## make .venv with what runs the product; TORCH_INDEX=URL: torch from there
	@$(if $(filter install,$(MAKECMDGOALS)),echo 'now: source $(VENV)/bin/activate; ultralong doctor')

dev: $(VENV)/developing  ## add what tests, lints and builds it

$(HARNESS)/installed: $(VENV)/developing requirements/harness.txt
	rm -rf $(HARNESS)
	$(BIN)/python -m venv --without-pip $(HARNESS)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	    >$$($(HARNESS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/parent.pth
	$(BIN)/python -m pip --python $(HARNESS)/bin/python install --quiet --no-compile \
	    $(LOCKED) requirements/harness.txt
	touch $@

harness: $(HARNESS)/installed  ## lm-evaluation-harness, in an environment of its own

test: dev harness  ## the tests, seven minutes on two cores
	$(PYTEST)

quick: dev  ## unit and property tests and one training on two ranks, in about two minutes
	$(PYTEST) --quick

test-all: dev harness  ## those and what is heavier: every layout, faults at full length, pages that train
	$(PYTEST) --numprocesses 5 -m "not slurm and not families"  # two more: what is heavier waits for time-outs

test-gpu:  ## tests on one, two and four GPUs, by $(PYTHON) as it is: a torch with CUDA, Transformer Engine if it is there
	$(HOUR) $(PYTHON) -m pytest -q -m "gpu or multi_gpu" --timeout 600

test-faults: dev  ## kills, signals, hangs, full disks, damage at full length; says how long each took
	$(HOUR) $(BIN)/python -m pytest -m "faults or not faults" --timeout 600 --log-cli-level INFO \
	    $(addprefix tests/training/test_,kills.py torchrun.py faults.py damage.py resharding.py)

test-families: dev  ## every family of models at every shape and layout, beside transformers
	$(PYTEST) -m "families or not families" tests/families

test-slurm: dev  ## examples/slurm on a real SLURM of this machine (root, and Debian's packages of it)
	$(PYTEST) -m "slurm or not slurm" tests/slurm

test-matrix:  ## the tests on Python 3.10-3.13 with Megatron-Core 0.16-0.19; an hour, downloads 3 GB
	$(PYTHON) tools/run_matrix.py $(LEGS) $(MATRIX_PYTHON:%=--python %)

width: dev  ## the site and the report pages that are there, in a real browser: none is wider than its screen
	$(BIN)/mkdocs build --quiet --strict
	$(BIN)/python tools/check_page_width.py build/site $(wildcard demo-output/report smollm2-output/report)

lint: dev  ## format, lint, types, layers, words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_words.py
	$(BIN)/shellcheck --external-sources $$(git ls-files '*.sh' '*.sbatch')
	$(BIN)/hadolint Dockerfile Dockerfile.cpu
	$(BIN)/mkdocs build --quiet --strict

wheel: dev  ## build wheel and sdist into dist; install and use it on Python 3.10-3.13; downloads torch for each
	$(BIN)/python tools/try_wheel.py --keep dist $(WHEEL_PYTHON:%=--python %)

docs: dev  ## the site, at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: install  ## attention's balance and speed, as ratios; leave the machine alone meanwhile
	$(BIN)/python tools/benchmark_attention.py balance
	$(BIN)/python tools/benchmark_attention.py cpu

bench-plan: install  ## the plan's memory beside live tensors of real training steps, in ten minutes or so
	$(BIN)/python -W ignore tools/benchmark_plan.py layouts
	$(BIN)/python -W ignore tools/benchmark_plan.py slope

picture: dev  ## docs/house.svg, the package's folders and imports, made from the code
	$(BIN)/python tools/draw_house.py docs/house.svg

format: dev  ## rewrite the files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: install  ## extend the small model 8x on two CPU ranks, and show that it worked
	$(BIN)/python examples/demo/run_demo.py --output demo-output

own-model: install  ## the six commands of docs/your-own-model.md for a laptop, and their verdict
	$(BIN)/python tools/own_model.py --output own-model-output

mock: install  ## examples/llama3.1-8b from weights to an answer, on the demo's small model
	PATH="$(abspath $(BIN)):$$PATH" WORK="$(CURDIR)/mock-output" bash examples/llama3.1-8b/run_all.sh --mock 1m

# Not empty: vLLM too, 3.5 GB.
HEAVY ?=

engines: install  ## exports in transformers, mlx-lm, llama.cpp and the rope code of others; HEAVY=1: vLLM too
	$(BIN)/python -m tools.engine_conformance table .venv-engines $(if $(HEAVY),--heavy)
	$(BIN)/python -m tools.engine_conformance matrix .venv-engines $(if $(HEAVY),--heavy)

smollm2: install  ## examples/smollm2 with short values on a CPU: a real model, from its weights to an answer; downloads 130 MB
	PATH="$(abspath $(BIN)):$$PATH" WORK="$(CURDIR)/smollm2-output" CACHE="$(CURDIR)/.smollm2-cache" \
	    bash examples/smollm2/run_all.sh --cpu

clean:  ## remove what make made
	rm -rf $(VENV) dist .venv-matrix .venv-exports .venv-engines demo-output own-model-output mock-output smollm2-output .smollm2-cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache
