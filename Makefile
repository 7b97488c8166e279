PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test lint bench figures clean

setup: $(STAMP)

# Made once; made again only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3.11 setup"; exit 1; }
	@echo "Setting up .venv (once): PyTorch with its CUDA libraries and the rest, about 6 GB and some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)
	@echo "Done: the command is $(BIN)/vision."

demo: setup
	@$(BIN)/python -m scripts.demo

# Two files at a time, the longest first: the quick demo (python -m scripts.demo --quick).
test: setup
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/scripts/test_demo.py tests

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m scripts.bench.pages --check

# Every system, measured in full (well over an hour); then the pages' figures.
bench: setup
	@$(BIN)/vision bench --out benchmarks

# The figures of the README and of docs/, from the results in benchmarks/.
figures: setup
	@$(BIN)/python -m scripts.bench.pages

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
