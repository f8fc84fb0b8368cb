# Set-up and checks. `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint format docs clean

# PyTorch's CPU build has to be named before anything that depends on it is resolved.
KERNELS := $(wildcard src/largebatch/optim/kernels/cpu*.cpp src/largebatch/optim/kernels/cpu*.h)
$(STAMP): pyproject.toml setup.py constraints.txt $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: '$(PYTHON)' is no Python 3.11 or newer; name one with make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# A peer in the tests of the optimizers; the torchvision that it asks for has no build beside this PyTorch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $$(grep '^timm==' constraints.txt)
	touch $@

demo: $(STAMP)
	$(BIN)/largebatch prepare --out corpora/pydocs
	$(BIN)/largebatch train bert-demo --corpus corpora/pydocs --out $$($(BIN)/python -c "import time; print('runs/demo-' + time.strftime('%Y%m%d-%H%M%S'))")

# Two test processes of one thread each: tests are small, and PyTorch's threads would fight for the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" $(PYTEST_WORDS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow $(PYTEST_WORDS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist docs/_build src/*.egg-info .pytest_cache .ruff_cache
