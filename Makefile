# make demo: select on the built-in laboratory.   make test: lint, types, tests.   Both set everything up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint table clean

demo: $(READY)
	$(BIN)/tamis demo

test: $(READY) lint
	$(BIN)/pytest -n auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(READY)

table: $(READY)
	$(BIN)/python -m tamis.cli.methods README.md

clean:
	rm -rf $(VENV) .tamis demo-out
