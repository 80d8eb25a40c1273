# parure: `make demo` and `make test` set up everything they need on a fresh Debian or Ubuntu machine.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test soak lint golden fullsize clean

help: ## Say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(READY) ## Export, serve with Triton, and put ornaments onto real pictures: out/demo/contact_sheet.png
	$(BIN)/parure demo --out out/demo

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

soak: $(READY) ## Run the long forms of the promises' tests (docs/promises.md)
	$(BIN)/python -m pytest -m soak

lint: $(READY) ## ruff and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(READY) ## Write the golden configurations and deployment files anew; look at the difference before you commit
	$(BIN)/python -m pytest -q tests/triton_repo/sd15/test_golden.py --renew-golden

fullsize: $(READY) ## Measure export and engines at SD 1.5 size (30 GB of disk, 12 GB of memory)
	$(BIN)/python -m parure_bench.fullsize

clean: ## Remove the virtual environment and what was made
	rm -rf $(VENV) out

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "parure needs Python 3.11 or newer; $(PYTHON) is older. Say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module; run: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export,tensorrt-rtx,serve,batch,ray,bench,openvino,dev]'
	@touch $@
