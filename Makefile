# Everything happens in .venv; nothing is installed elsewhere. `make` alone lists the targets.

PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
TESTS ?=
# Files of tests run side by side; they wait more than they compute.
TEST_WORKERS ?= 3
# They end processes, never the machine, so what they write need not reach a disk where memory has room for it.
ifndef TMPDIR
TEST_TMPDIR := $(shell test "$$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $$4 }')" -gt 4000000 2>/dev/null \
	&& awk '/MemAvailable/ { exit $$2 < 6000000 }' /proc/meminfo && echo /dev/shm)
endif

# Never fetch an interpreter: the one in .venv is the one to use.
export UV_PYTHON_DOWNLOADS := never
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The goal as it was typed: make does not look for variables in it, and the shell finds it in the environment.
ifdef GOAL
override GOAL := $(value GOAL)
export GOAL
endif

# An editable install without a build: the checkout on the interpreter's path, and the command.
define PUT_ON_PATH
pwd > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/planwave.pth" \
	&& printf '#!/bin/sh\nexec "%s/$(BIN)/python" -P -m app.cli "$$@"\n' "$$(pwd)" > $(BIN)/planwave \
	&& chmod +x $(BIN)/planwave
endef

COMPILE := $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header --extra postgres --extra mcp

COMPILE_PEER := $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header --constraints benchmarks/compare/peers

# uv installs in seconds; pip does the same from the same hashes where uv cannot be had or does not reach the packages
# (it does not read pip's configuration).
INSTALL = $(BIN)/python -m uv --quiet pip install --compile-bytecode --python $(BIN)/python --require-hashes -r $(1) \
	|| $(BIN)/python -m pip install --quiet --require-hashes -r $(1)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo serve test lint types architecture check soak mutants bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.development ## set up .venv with everything, for working on Planwave

demo: $(VENV)/.runtime ## a goal through a fresh service, its waves live: make demo GOAL="..."
	@$(BIN)/planwave demo $${GOAL:+-- "$$GOAL"}

serve: $(VENV)/.runtime ## the service on http://127.0.0.1:8000, with /docs, until Ctrl-C
	@$(BIN)/planwave serve

test: $(VENV)/.development ## every test, on SQLite and PostgreSQL; some of them: make test TESTS=tests/domain
	$(if $(TEST_TMPDIR),TMPDIR=$(TEST_TMPDIR)) $(BIN)/pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(VENV)/.development ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.development ## mypy --strict
	$(BIN)/mypy

architecture: $(VENV)/.development ## import-linter: imports point down
	$(BIN)/lint-imports

check: lint types architecture test ## what CI runs

soak: $(VENV)/.development ## longer runs of the same tests
	$(BIN)/pytest -q -m soak --timeout 7200 $(TESTS)

mutants: $(VENV)/.development ## small faults in the hottest statements, each of which a test must notice
	for module in dispatch writing steering resume; do $(BIN)/python -m tests.mutation $$module || exit 1; done

bench: $(VENV)/.development ## Planwave beside its peers and the floors, interleaved; benchmarks/ has more
	$(BIN)/python -m benchmarks.compare

lock: $(VENV)/.uv ## write the locks anew from pyproject.toml
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --group dev --constraints requirements.lock --output-file requirements-dev.lock pyproject.toml
	for name in floors langgraph procrastinate dbos; do \
		$(COMPILE_PEER)/sdk.txt --output-file benchmarks/compare/peers/$$name.lock benchmarks/compare/peers/$$name.in || exit 1; \
	done

clean: ## remove .venv and what tools have left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist
	find app tests benchmarks migrations -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.uv: Makefile
	@$(PYTHON) -c 'import sys; sys.exit("Planwave needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv==$(UV_VERSION) || echo "uv cannot be installed; pip does its work, slowly."
	@touch $@

$(VENV)/.runtime: $(VENV)/.uv requirements.lock
	@echo "Setting up $(VENV) ..."
	@$(call INSTALL,requirements.lock)
	@$(PUT_ON_PATH)
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements-dev.lock
	@echo "Adding the development tools to $(VENV) ..."
	@$(call INSTALL,requirements-dev.lock)
	@touch $@
