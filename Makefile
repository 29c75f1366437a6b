# `make demo` and `make test` need Python >= 3.11 and make, and set up the rest themselves.

PYTHON ?= python3
PYTHON_NEWEST ?= $(shell .ci/newest_python)
ARGS ?=

VENV := .venv
NEWEST := .venv-newest
AOT := .venv-gpu-aot
BIN := $(VENV)/bin
PYTEST := -m pytest -n 2 -q
SOURCES := jaxprune tests docs conftest.py $(wildcard experiments)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export JAX_PLATFORMS ?= cpu
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help install demo test slow test-newest test-gpu-aot quick format lint docs figures golden clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install: $(VENV)/installed  ## make .venv, on the oldest supported versions

demo: install  ## the main job: train sparse on real images (ARGS="--seeds 3")
	$(BIN)/python -m experiments.quickstart $(ARGS)

# Most of a test's time is compilation: this one leaves it plain, the others as users have it.
test: lint docs  ## every gate, in order of speed; CI runs this
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" \
	  $(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

slow: install  ## the tests that `make test` leaves out: every transform with every optimizer, kills
	$(BIN)/python $(PYTEST) -m slow $(ARGS)

test-newest: $(NEWEST)/installed  ## tests and doctests on the newest Python and jax
	$(NEWEST)/bin/python $(PYTEST) -m "not slow" $(ARGS)

test-gpu-aot: $(AOT)/installed  ## compile GPU kernels for the H100 without one (2.6 GB of packages)
	JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 \
	  $(AOT)/bin/python -m pytest -q -s tests/kernels/aot_gpu_*.py $(ARGS)

quick: install  ## the tests that take no data and no time
	$(BIN)/python $(PYTEST) -m "not slow and not real" $(ARGS)

format: install  ## rewrite the sources in the house's format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint: install  ## format, lint, types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: install  ## docs/_build/html, warnings as errors
	JAX_PLATFORMS=cpu $(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

figures: install  ## draw the docs' figures anew
	JAX_PLATFORMS=cpu $(BIN)/python -m docs.figures

golden: install  ## store the public surface anew, after an intended change
	$(BIN)/python -m tests.habits.surface

clean:  ## remove what make has made
	rm -rf $(VENV) $(NEWEST) $(AOT) docs/_build build dist

# The stamps are younger than what they were made from, or made anew.
$(VENV)/installed: pyproject.toml constraints/oldest.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info < (3, 11) and sys.exit( \
	  f"jaxprune needs Python 3.11 or later, but $(PYTHON) is {v}; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints/oldest.txt -e '.[test,lint,docs]'
	@touch $@

$(NEWEST)/installed: pyproject.toml constraints/newest.txt
	@test -n "$(PYTHON_NEWEST)"
	"$(PYTHON_NEWEST)" -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install -q -c constraints/newest.txt -e '.[test]'
	@touch $@

$(AOT)/installed: pyproject.toml tests/kernels/requirements-aot-gpu.txt
	@test -n "$(PYTHON_NEWEST)"
	"$(PYTHON_NEWEST)" -m venv $(AOT)
	$(AOT)/bin/python -m pip install -q jax==0.11.2 jaxlib==0.11.2 -e '.[test]'
	$(AOT)/bin/python -m pip install -q --no-deps -r tests/kernels/requirements-aot-gpu.txt
	@touch $@
