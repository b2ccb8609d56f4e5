# `make mini` and `make test` work on a fresh machine: they make .venv and install what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= test,dev
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
WORKDIR ?= runs/mini
CONFIG ?= configs/mini.py

# CPU targets say so: an installed TPU or GPU plug-in would otherwise be started.
CPU := JAX_PLATFORMS=cpu

.PHONY: mini test proof lint golden clean

mini: $(STAMP)
	$(CPU) $(BIN)/python -m experiments.run --config=$(CONFIG) --workdir=$(WORKDIR)

test: $(STAMP) lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proof: $(STAMP)
	$(BIN)/python -m pytest --proof tests/proofs tests

golden: $(STAMP)
	$(BIN)/python -m pytest --regenerate-golden tests/configs tests/data

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf runs .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
