# make race: a real race of real optimizers; make test: all tests. Both need Python 3.11+ and nothing else.
PYTHON ?= python3
OUT ?= race-$(shell date +%Y%m%d-%H%M%S)
BIN = .venv/bin

.PHONY: race test lint bench clean

race: .venv/installed
	$(BIN)/steepest race digits --out $(OUT)

test: .venv/installed
	$(BIN)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/steepest bench

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
		--constraint constraints.txt --editable '.[race,test]'
	touch $@

clean:
	rm -rf .venv
