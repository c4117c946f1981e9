# `make run` and `make test` are all a fresh clone needs.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PLAN_STAMP := $(VENV)/.installed-plan
ENGINE_STAMP := $(VENV)/.engine
# Tests insist on our build of the engine; ENGINE= takes what there is.
ENGINE ?= own
# How long make fuzz runs.
SECONDS ?= 60
# What shows that memvirt also runs on the engine as the package index has it.
FALLBACK_TESTS := tests/cpu tests/engine tests/guests/test_differential.py tests/guests/test_bundled_image.py

.PHONY: run test lint types unit fuzz checked fallback engine bench packages guests linux-guest docs acceptance plan-demo live-demo clean

run: $(ENGINE_STAMP)
	$(BIN)/memvirt run

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[web]'
	touch $@

# Unicorn with our changes, in the user's cache (docs/engine.md); without a compiler: a line that says
# so, and memvirt runs on the package index's build.
$(ENGINE_STAMP): $(STAMP) engine/build.py $(wildcard engine/changes/*.toml engine/source/*)
	$(BIN)/python engine/build.py --if-possible
	touch $@

engine: $(STAMP)
	$(BIN)/python engine/build.py

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

unit: $(DEV_STAMP) $(ENGINE_STAMP)
	$(BIN)/memvirt warm
	MEMVIRT_ENGINE=$(ENGINE) $(BIN)/python -m pytest

# Inputs and guests that nobody would write, from a seed: make fuzz SECONDS=600 SEED=1
fuzz: $(DEV_STAMP) $(ENGINE_STAMP)
	MEMVIRT_ENGINE=$(ENGINE) $(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# A part of the suites again, on the package index's build of the engine.
fallback: $(DEV_STAMP)
	MEMVIRT_ENGINE=wheel $(BIN)/python -m pytest $(FALLBACK_TESTS)

# The small suites with every raw access and every array index checked, then without compiled code.
checked: $(DEV_STAMP) $(ENGINE_STAMP)
	MEMVIRT_CHECKED=1 NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest --capture=sys -q \
		tests/machine tests/mmu tests/vmm tests/test_checked_build.py tests/guests/test_differential.py
	MEMVIRT_CHECKED=1 NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q \
		tests/mmu/test_guest_walk.py tests/mmu/test_nested_walk.py tests/vmm/test_large_pages.py \
		tests/machine/test_content.py

test: packages lint types checked fallback unit

acceptance: packages $(DEV_STAMP) $(ENGINE_STAMP)
	$(BIN)/pytest -m acceptance --timeout 0

# One plan (the answer is no: status 1) and one analysis on generated data; reports in build/plan-demo.
plan-demo: $(PLAN_STAMP)
	$(BIN)/python -m memvirt.plan.demo build/plan-demo
	$(BIN)/memvirt plan build/plan-demo/fleet.csv --host 352G --what-if memory=+64G \
	    --what-if sharing=on --workers 1 --html build/plan-demo/plan.html || [ $$? -eq 1 ]
	$(BIN)/memvirt analyze build/plan-demo/dumps --workers 1 --html build/plan-demo/analysis.html

# Three VMs of QEMU: watched, forecast, managed under pressure, verified, restored. Needs root.
live-demo: linux-guest $(DEV_STAMP)
	$(BIN)/python -m tests.live.demo

bench: linux-guest $(DEV_STAMP) $(ENGINE_STAMP)
	$(BIN)/python -m bench

guests:
	$(MAKE) -C guests/bundled install
	$(MAKE) -C guests/multiboot32 install

# The generated documents, the README's transcripts, and the plots of the bundled scenarios.
docs: $(DEV_STAMP) $(ENGINE_STAMP)
	$(BIN)/python docs/make_docs.py
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/transcripts.py
	$(BIN)/python docs/make_plots.py

# The Linux test guest, from Debian's kernel and busybox packages, in build/linux-guest. KERNEL=6.12 takes
# that version from backports, FLAVOUR=generic, rt, 686 or 686-pae another kernel: in a folder of its own.
linux-guest: packages
	KERNEL='$(KERNEL)' FLAVOUR='$(FLAVOUR)' SUITE='$(SUITE)' ./guests/linux/build.sh

clean:
	rm -rf $(VENV) build dist
