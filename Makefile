# Each command does its own set-up on a fresh machine with Python and make:
#   make run     the main job: evidence of a regression of the diabetes data
#   make check   lint, types and the quick tests, in under three minutes
#   make test    lint, types, doctests and tests
#   make docs    the documentation, in docs/_build

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run check test test-slow docs lint

run: $(VENV)/.installed-examples
	$(BIN)/python examples/diabetes.py

check: lint
	$(BIN)/python -m pytest -q -n 2 -m quick

test: lint
	$(BIN)/python -m pytest -q -n 2

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n 2 -m slow

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[$*]"
	touch $@
