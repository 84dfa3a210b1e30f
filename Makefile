# `make test` and `make demo` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint install clean

demo: install
	$(BIN)/p2d demo

# A worker of pytest-xdist has died without a word in two of about ten full runs, each time in another test that passes by
# itself. A test whose worker died is run once more, in a new one; a test that fails is not.
test: install lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not gpu" --reruns 1 --only-rerun '^worker .* crashed'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info

# Renew the pinned versions; review the change before committing it.
.PHONY: constraints
constraints: install
	head -1 constraints.txt > constraints.new
	$(BIN)/uv pip compile --quiet --upgrade --no-header --no-annotate --universal --python-version 3.11 \
		--extra test --extra trt-rtx --extra openvino --extra peers pyproject.toml >> constraints.new
	grep '^uv==' constraints.txt >> constraints.new
	mv constraints.new constraints.txt
