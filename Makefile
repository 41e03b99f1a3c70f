# make demo | test | check | audit | faults | bench | bench-gpu | bench-scaler | lock | clean
# Each target does its own set-up: it needs Python 3.11 and make, nothing else.
#   make test ARGS='tests/unit -k scheduling'     arguments for pytest
#   make bench ARGS='--help'                      arguments for the benchmarks

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test check check-format check-lint check-types check-imports audit format proto bench bench-gpu bench-scaler lock clean

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile

venv: $(VENV)/.installed

# The pinned packages, again whenever the lock changes.
$(VENV)/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "batchyard needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	@touch $@

# The five packages of this checkout, editable, again whenever their metadata changes.
$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: venv
	$(BIN)/batchyard demo $(ARGS)

test: venv
	$(BIN)/python -m pytest $(ARGS)

check: check-format check-lint check-types check-imports audit

check-format: venv
	$(BIN)/ruff format --check .

check-lint: venv
	$(BIN)/ruff check .

check-types: venv
	$(BIN)/mypy

check-imports: venv
	$(BIN)/lint-imports --no-logo

# What is pinned: declared, installed, acceptable, and without known vulnerability where a database can be asked.
# make audit ARGS=--strict fails where none can.
audit: venv
	$(BIN)/python -m pip check --disable-pip-version-check
	$(BIN)/python -m tests.audit $(ARGS)

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What breaks, and who holds: every combination of database and broker, then the mutants that the checker must catch.
faults: venv
	$(BIN)/python -m tests.faults $(ARGS)

# A million jobs; interrupted, it goes on where it was when called again. Its parts are in build/faults-long.
faults-long: venv
	$(BIN)/python -m tests.faults --long $(ARGS)

bench: venv
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-gpu: venv
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

bench-scaler: venv
	$(BIN)/python -m tests.benchmarks.scaler $(ARGS)

# What is generated from the proto file that KEDA's external scaler is published by.
EXTERNAL := scaler/batchyard_scaler/external
proto: venv
	$(BIN)/python -m grpc_tools.protoc -I$(EXTERNAL) --python_out=$(EXTERNAL) --pyi_out=$(EXTERNAL) externalscaler.proto

# Resolves the lock anew for every platform, upgrading what the ranges allow. Excluded are pip, which is there, and CUDA
# libraries: where torch's build wants them it brings them by its own metadata.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --disable-pip-version-check --quiet uv
	$(VENV)-lock/bin/uv pip compile --universal --python-version 3.11 --upgrade --quiet \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	  --excludes requirements.excludes.txt --extra all --extra demo --extra dev \
	  pyproject.toml requirements.in --output-file requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
