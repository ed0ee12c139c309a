# The README's commands. `make demo` and `make test` need Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
# On Linux: memory in huge pages, with which training steps on a CPU are quicker.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python -m regseg_jax.main --config=configs/synthetic.py --workdir=runs/demo

test: .venv/installed-dev
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), \
	  "Python 3.11 to 3.13 is needed; run make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -r requirements-dev.txt
	touch .venv/installed $@

clean:
	rm -rf .venv .cache
