# make reproduce   set up, fetch the data, run the notebooks (full with a GPU, else standard)
# make test        set up, fetch the data, run the tests, the notebooks at profile smoke among them
# make test-slow   the tests that take a minute or more each
# make lint        check style, format and types
# make lines       code lines of each part of the library
# make book        install what the book needs, build it into build/book/html (no notebook is run)
# make clean       remove what was built and cached; data and results stay
#
# PYTHON=python3.12 chooses the interpreter of a new .venv; PIP_ARGS="..." goes to pip install; WORKERS=1 runs the
# tests one after the other.

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= auto
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PACKAGES := --constraint constraints.txt --editable ".[notebooks,test,bench,dev,data]"

# Compiled modules are kept, whatever the user's setting: else each of the many kernels would compile torch again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: reproduce test test-slow lint lines book clean data
.DELETE_ON_ERROR:

reproduce: data
	$(RUN) -m reprolib run --profile auto

test: data
	$(RUN) -m pytest --numprocesses=$(WORKERS) --maxprocesses=4 --no-loadscope-reorder

test-slow: data
	$(RUN) -m pytest -m slow tests

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

lines:
	@$(PYTHON) tests/tools/code_lines.py

data: $(STAMP)
	$(RUN) -m reprolib fetch mnist orl

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; choose one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS) $(PACKAGES)
	touch $@

book: $(VENV)/.book
	$(RUN) -m book.build

$(VENV)/.book: $(STAMP)
	$(RUN) -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS) --constraint constraints.txt --editable ".[book]"
	touch $@

clean:
	rm -rf $(VENV) .cache build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
