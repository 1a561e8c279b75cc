# Holdfast's commands. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Where it is set, as in many images, each of the hundreds of processes that tests start would compile all of Holdfast.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

#: Test processes side by side; each has servers of its own. They wait for others more than they work.
N ?= 4
#: More arguments for demo, test, up, bench and chaos, as in `make test ARGS="-k lease"`.
ARGS ?=
#: Not empty: `make demo` lets everything go on afterwards, with the console, until Ctrl-C.
KEEP ?=
#: The seed of `make chaos`; empty: a new one, which the tests print.
SEED ?=
#: `make lock` keeps the versions it can; `--upgrade` takes the newest.
UPGRADE ?=

COMPILE := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

.PHONY: help install demo up test check fmt chaos bench lock

help:  ## List these commands
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

install: $(STAMP)  ## Make .venv with the locked dependencies and this tree in it
	@:

# A .venv that is there and sound is kept. The stamp is the last thing written, so a broken-off install is taken up again.
$(STAMP): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "make: Python 3.11 to 3.14 is needed and was not found" >&2; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing the locked dependencies"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Push thousands of jobs through every entrance, break Redis and workers meanwhile, count what is lost (KEEP=1 goes on, with the console)
	@$(BIN)/holdfast demo $(if $(KEEP),--keep) $(ARGS)

up: $(STAMP)  ## Run everything in this terminal, servers included; Ctrl-C ends it
	@$(BIN)/holdfast up $(ARGS)

# A file goes to one process whole: what its tests share is started once. tests/turns.py has the order.
test: $(STAMP)  ## Run every test, the chaos tests at small size (N=processes, ARGS=for pytest)
	@$(BIN)/python -m tests.browser
	@$(BIN)/python -m pytest -n $(N) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP)  ## Lint, types, import contracts and unit tests: a minute, no servers
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q -n $(N) tests/unit

fmt: $(STAMP)  ## Sort imports and mend what ruff can mend
	@$(BIN)/ruff check --fix .

chaos: $(STAMP)  ## Run the chaos tests at full size (SEED=n repeats a run)
	@CHAOS_FULL=1 CHAOS_SEED="$(SEED)" $(BIN)/python -m pytest --timeout 900 tests/chaos $(ARGS)

bench: $(STAMP)  ## Measure everything that has a benchmark, beside what others do
	@$(BIN)/python -m benchmarks.throughput $(ARGS)
	@$(BIN)/python -m benchmarks.survival $(ARGS)
	@$(BIN)/python -m benchmarks.history $(ARGS)
	@$(BIN)/python -m benchmarks.cache $(ARGS)
	@$(BIN)/python -m benchmarks.limits $(ARGS)
	@$(BIN)/python -m benchmarks.locks $(ARGS)
	@$(BIN)/python -m benchmarks.intake $(ARGS)
	@$(BIN)/python -m benchmarks.sql_door $(ARGS)
	@$(BIN)/python -m benchmarks.importing $(ARGS)
	@$(BIN)/python -m benchmarks.gateway $(ARGS)
	@$(BIN)/python -m benchmarks.doctor $(ARGS)
	@$(BIN)/python -m benchmarks.hearing $(ARGS)
	@$(BIN)/python -m benchmarks.live $(ARGS)
	@$(BIN)/python -m benchmarks.console $(ARGS)

lock: ALL := Everything: Holdfast with all its extras. `make install` uses it.
lock: RUNTIME := What a container needs: Holdfast without its extras, and what builds it. The Dockerfile uses it.
lock:  ## Pin the dependencies anew (needs uv)
	@$(call pin,requirements.lock,$(ALL),--all-extras)
	@$(call pin,requirements-runtime.lock,$(RUNTIME),--extra build --constraint requirements.lock)

# The old file is read for the versions to keep, so it is replaced only when the new one is whole.
define pin
	cp $(1) $(1).new 2>/dev/null || true
	$(COMPILE) $(UPGRADE) $(3) --output-file $(1).new >/dev/null
	{ printf '# %s\n' '$(2)' 'Hashes are for Linux and macOS, Python 3.11 to 3.14. Made by `make lock`, not edited by hand.'; cat $(1).new; } >$(1)
	rm $(1).new
endef
