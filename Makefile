# `make demo` and `make test` need nothing but Python 3.10 or newer; `make venv` makes what both use.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

.PHONY: venv test demo

venv: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2

demo: venv
	$(BIN)/python tools/make_demo_data.py $(DEMO)/data
