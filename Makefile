# Two commands do everything on a machine with Python 3.11 or newer and make:
#   make train                                          demo on synthetic slices, minutes on two cores
#   make train CONFIG=dice DATA=/path/to/kaggle_3m      the real thing
#   make test                                           installs what tests need and runs the default suite
#   make docs                                           builds the documentation into site/

PYTHON ?= python3.11
VENV ?= .venv
CONFIG ?= demo
DATA ?=
RUN_DIR ?=
ARGS ?=

# Two workers, a file each: most tests wait for a compiler that uses one core.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
# A DATA= that was given and is empty is an error of the program, never the synthetic set.
OPTIONS := --config='$(CONFIG)' $(if $(filter-out file,$(origin DATA)),--data.root='$(DATA)') \
  $(if $(RUN_DIR),--run_dir='$(RUN_DIR)') $(ARGS)

.PHONY: train test test-all lint docs

train: $(VENV)/.installed
	@$(BIN)/python -m experiments.workflow $(OPTIONS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/.installed-dev
	XLA_FLAGS=--xla_backend_optimization_level=3 $(BIN)/python -m pytest $(PARALLEL) -m ""

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

# A virtual environment made with another Python is refused rather than mixed.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; name another with make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(VENV)/.installed $@
