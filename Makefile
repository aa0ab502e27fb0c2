# Two commands need nothing but Python 3.11+ and make: `make demo` and `make test`. Both build .venv when it is missing
# or older than pyproject.toml or constraints.txt; nothing outside the repository is written.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread per process: on small machines two test workers that each start a pool of threads slow each other down.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: help test lint types fast slow demo bench venv clean

help:
	@echo "make test    lint, strict types and the fast test suite"
	@echo "make demo    train CQL on a dataset made on the spot, evaluate it, print scores and draw a learning curve"
	@echo "make slow    the learning tests (an hour or more)"
	@echo "make bench   the benchmarks"
	@echo "make venv    only build $(VENV)"
	@echo "make clean   remove build outputs and caches; runs/ and $(VENV) stay"

test: lint types fast

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(READY)
	$(BIN)/mypy

fast: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 --dist worksteal

slow: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 -m slow

demo: $(READY)
	$(BIN)/python examples/demo.py

bench: $(READY)
	@mkdir -p build
	$(BIN)/python benchmarks/d3rlpy_speed.py
	$(BIN)/python benchmarks/fqe_ranking.py pendulum --out build/fqe_ranking.json

venv: $(READY)

# --no-compile: Python compiles what is used when it is used, which is half a minute less on two cores.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"herdbook needs Python 3.11 or newer, and $(PYTHON) is {v}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . \( -path './.venv*' -o -path ./.git -o -path ./runs \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
