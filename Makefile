# `make run` and `make test` are all a fresh clone needs.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PLAN_STAMP := $(VENV)/.installed-plan

.PHONY: run test lint types unit bench packages guests linux-guest docs acceptance plan-demo clean

run: $(STAMP)
	$(BIN)/memvirt run

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(PLAN_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --editable '.[plan]'
	touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# Debian packages the tests use: gcc to rebuild the guests, QEMU to compare with.
packages:
	./tests/install_packages.sh

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV_STAMP)
	$(BIN)/mypy

unit: $(DEV_STAMP)
	$(BIN)/pytest

test: packages lint types unit

acceptance: packages $(DEV_STAMP)
	$(BIN)/pytest -m acceptance --timeout 0

# One plan and one analysis on generated data, with their reports in build/plan-demo.
plan-demo: $(PLAN_STAMP)
	$(BIN)/python -m memvirt.plan.demo build/plan-demo
	-$(BIN)/memvirt plan build/plan-demo/fleet.csv --host 352G --what-if memory=+64G \
	    --what-if sharing=on --workers 1 --html build/plan-demo/plan.html
	$(BIN)/memvirt analyze build/plan-demo/dumps --workers 1 --html build/plan-demo/analysis.html

bench: linux-guest $(DEV_STAMP)
	$(BIN)/python -m bench

guests:
	$(MAKE) -C guests/bundled install
	$(MAKE) -C guests/multiboot32 install

# The generated documents, and the plots of the bundled scenarios.
docs: $(DEV_STAMP)
	$(BIN)/python docs/make_docs.py
	$(BIN)/python docs/make_plots.py

# The Linux test guest, from Debian's kernel and busybox packages, in build/linux-guest.
linux-guest: packages
	./guests/linux/build.sh

clean:
	rm -rf $(VENV) build dist
