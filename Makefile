# Two commands matter: `make run` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup run test lint bench load capacity truth chaos attack clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Pulsegate needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: setup
	$(BIN)/pulsegate run $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup lint
	scripts/install-test-tools
	$(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

bench: setup
	scripts/install-test-tools
	$(BIN)/python -m loadtest.bench $(ARGS)

load: setup
	$(BIN)/python -m loadtest.load $(ARGS)

capacity: setup
	$(BIN)/python -m loadtest.capacity $(ARGS)

truth: setup
	$(BIN)/python -m loadtest.truth --json .pulsegate/truth/truth.json --html .pulsegate/truth/truth.html $(ARGS)

chaos: setup
	$(BIN)/python -m tests.chaos $(ARGS)

attack: setup
	$(BIN)/python -m loadtest.attack $(ARGS)

clean:
	rm -rf $(VENV) .pulsegate build *.egg-info
