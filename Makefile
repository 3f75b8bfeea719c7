# Every target makes its own environment in $(VENV) first, once; stamp files remember what is installed there.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
TORCH ?= torch==2.13.0
JOBS ?= 2
MINUTES ?= 20

PY := $(abspath $(VENV))/bin/python
# Without --no-compile pip spends half of its time on byte code of modules that nobody imports.
PIP := $(PY) -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test test-all attacks fuzz lint docs bench cards clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      train SASRec + PRISM beside the bare SASRec on the bundled data"
	@echo "make test      the test suite"
	@echo "make test-all  the test suite, its slow part and the other supported stacks (legs/run.sh)"
	@echo "make attacks   what docs/safety.md promises, tried for half an hour"
	@echo "make fuzz      the property-based tests with new examples, for MINUTES (default 20)"
	@echo "make lint      ruff, the rooms' contracts, mypy, and every import as an editor resolves it"
	@echo "make docs      the documentation, with its gallery executed, in docs/_build/html"
	@echo "make bench     time and memory of a step, side by side with the bare backbone"
	@echo "make cards     train what the reproduction cards pin, and compare (hours; ARGS='NAME --data_path DIR')"
	@echo "make clean     remove what was built (not $(VENV), not runs/)"
	@echo "VENV=DIR uses another environment; PYTHON=... makes it with another interpreter"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(VENV)/bin/python
	@$(PY) -c 'import torch' 2>/dev/null || { echo "installing $(TORCH)"; $(PIP) $(TORCH); }
	@touch $@

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo "installing recplug"
	@$(PIP) -e .
	@touch $@

# The extras' installations include the core one, so that its stamp is written too.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo "installing recplug[dev]"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.core $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo "installing recplug[docs]"
	@$(PIP) -e '.[docs]'
	@touch $(VENV)/.core $@

demo: $(VENV)/.core
	$(abspath $(VENV))/bin/run_recbole --model SASRec --plugin prism --baseline true

test: $(VENV)/.dev
	$(ONE_THREAD) $(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-all: $(VENV)/.dev
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadfile
	PYTHON=$(PYTHON) bash legs/run.sh

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(abspath $(VENV))/bin/lint-imports --no-logo
	MYPYPATH=src $(PY) -m mypy src/recplug
	$(abspath $(VENV))/bin/basedpyright --pythonpath $(PY)

attacks: $(VENV)/.dev
	$(ONE_THREAD) $(PY) -m pytest tests/attacks -n $(JOBS) --dist load

# New random examples for MINUTES; what fails is kept in tests/failures, and every later test run begins with it.
fuzz: $(VENV)/.dev
	@end=$$(( $$(date +%s) + 60 * $(MINUTES) )); while [ $$(date +%s) -lt $$end ]; do \
	  $(ONE_THREAD) $(PY) -m pytest -q -m hypothesis -n $(JOBS) --hypothesis-profile fuzz \
	    --hypothesis-seed $$(od -An -N4 -tu4 /dev/urandom) || exit 1; done

docs: $(VENV)/.docs
	$(ONE_THREAD) $(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.core
	$(PY) benchmarks/step_overhead.py

cards: $(VENV)/.core
	$(PY) benchmarks/cards.py $(ARGS)

clean:
	rm -rf build dist docs/_build docs/gallery docs/sg_execution_times.rst .pytest_cache .mypy_cache .ruff_cache
