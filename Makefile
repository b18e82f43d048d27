# Every command a person or CI needs; `make` alone lists them. Works with GNU make 3.81 (macOS) and newer.
# Each target prepares .venv by itself, from the hash-locked ops/locks/dev.txt, and does so again only when that file or
# pyproject.toml has changed.

# The interpreter for a new .venv; empty: the first of python3, python3.14 … python3.11 that is suitable.
PYTHON ?=
# Processes that share the tests; each has a Postgres and a Valkey of its own. 0: one process, as a debugger likes it.
TEST_WORKERS ?= 2
# Arguments for pytest: make test ARGS='-k fence -x'
ARGS ?=
# make lock UPGRADE=1 moves every package to its newest release; without it only what pyproject.toml asks for moves.
UPGRADE ?=
# What make bench measures: all, or some of throughput latency flat capacity sse api upkeep profile. Its sizes are options
# too (make bench WHAT=throughput RUNS=100 REPEATS=1), see Options in each module of tests/bench; SIZE=miniature: tiny.
WHAT ?= all
SIZES := RUNS STEPS INFLIGHT REPEATS FINISHED HOLD SETTLE PAUSED RATE SECONDS WATCHERS SLOW EVENTS CREATIONS READS LONG \
	RESIDENTS PASSIVE IDLE TTL SWEEP TOP LOAD STALL SPARE SIZE OUT
# make sim SEEDS=500 plays seeds 0..499; SEEDS=417..417 plays that one again.
SEEDS ?= 500
# make chaos SEED=7 repeats a storm (empty: a new one); MINUTES: about how long all of it takes; RUNS: how many runs, 204.
SEED ?=
MINUTES ?= 2

UV := uv==0.13.9
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready
LOG := $(VENV)/install.log
CHECKS := check-format check-lint check-types check-imports check-tidy

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without compiled code, which is kept once it was used (see --no-compile), each start takes a second longer.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Run

.PHONY: demo
demo: $(READY) ## Run an example workflow on embedded servers, live in the terminal
	@exec $(BIN)/runwarden demo

.PHONY: dev
dev: $(READY) ## Keep the same stack running on 127.0.0.1:8080, data in .data/; Ctrl-C ends it
	@exec $(BIN)/runwarden dev

##@ Verify

.PHONY: test
test: $(READY) ## Run the whole test suite (ARGS='-k name', TEST_WORKERS=0)
	@exec $(PY) -m pytest -n $(TEST_WORKERS) --dist worksteal --max-worker-restart 0 $(ARGS)

.PHONY: sim
sim: $(READY) ## Play simulated universes, two at a time (SEEDS=500, SEEDS=40..80)
	@exec $(PY) -m tests.sim $(SEEDS)

.PHONY: check
check: $(READY) ## Run all the checks below side by side; under a minute
	@$(MAKE) --no-print-directory --keep-going --jobs $(words $(CHECKS)) $(CHECKS)

.PHONY: check-format
check-format: $(READY) ## Is every file formatted?
	$(call quietly,$(PY) -m ruff format --check .)

.PHONY: check-lint
check-lint: $(READY) ## Does ruff find a fault?
	$(call quietly,$(PY) -m ruff check .)

.PHONY: check-types
check-types: $(READY) ## Does mypy, strict, find a fault?
	$(call quietly,$(PY) -m mypy)

.PHONY: check-imports
check-imports: $(READY) ## Do imports keep the contracts of pyproject.toml?
	$(call quietly,$(BIN)/lint-imports)

.PHONY: check-tidy
check-tidy: $(READY) ## Are the rules of taste kept (tests/test_tidy.py)?
	$(call quietly,$(PY) -m pytest -q -p no:cacheprovider tests/test_tidy.py)

.PHONY: bench
bench: $(READY) ## Measure all, or WHAT=throughput|latency|flat|capacity|sse|api|upkeep|profile
	@exec $(PY) -m tests.bench $(WHAT) $(foreach name,$(SIZES),$(if $($(name)),$(name)='$($(name))'))

.PHONY: chaos
chaos: $(READY) ## Kill, stop and restart real processes under many runs (SEED=, MINUTES=2, RUNS=204)
	@exec $(PY) -m tests.chaos $(if $(SEED),--seed $(SEED)) --minutes $(MINUTES) --runs $(or $(RUNS),204)

##@ Change

.PHONY: format
format: $(READY) ## Format the code and repair what ruff can repair
	@$(PY) -m ruff check --quiet --fix-only . && $(PY) -m ruff format .

.PHONY: docs
docs: $(READY) ## Write docs/settings.md from daemon/config.py, docs/weather.md from daemon/dev/weather.py
	@mkdir -p docs && $(PY) -m daemon.config > $(VENV)/settings.md && mv $(VENV)/settings.md docs/settings.md
	@$(PY) -m daemon.dev.weather > $(VENV)/weather.md && mv $(VENV)/weather.md docs/weather.md

.PHONY: lock
lock: $(PY) ## Remake ops/locks/ from pyproject.toml (UPGRADE=1: newest releases)
	@$(call logged,$(PY) -m pip install --quiet '$(UV)')
	@$(call compile,--extra dev --extra test pyproject.toml,dev)
	@$(call compile,--constraint ops/locks/dev.txt pyproject.toml,runtime)
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		> $(VENV)/build.in
	@$(call compile,--no-annotate --constraint ops/locks/dev.txt $(VENV)/build.in,build)

.PHONY: clean
clean: ## Remove .venv, caches and build output; .data/ stays
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.data/*' -prune -exec rm -rf {} +

.PHONY: help
help: ## List these commands
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# $(call quietly,command): one line when it succeeds, everything it said when it fails.
define quietly
@out=$$(mktemp) && begun=$$(date +%s) && status=0 && \
{ $(1) > "$$out" 2>&1 || status=$$?; } && \
if [ $$status -eq 0 ]; then \
	printf '%-14s ok      %2s s\n' $@ $$(($$(date +%s) - begun)); \
else \
	{ printf '%-14s FAILED  %2s s\n' $@ $$(($$(date +%s) - begun)); cat "$$out"; } >&2; \
fi; rm -f "$$out"; exit $$status
endef

# $(call logged,command): silence when it succeeds, the end of what it said when it fails.
logged = $(1) > $(LOG) 2>&1 || { tail -n 30 $(LOG); echo "The whole story: $(LOG)"; exit 1; } >&2

# $(call compile,what,name): one universal lock of ops/locks/, with hashes and without any address.
define compile
$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade) $(1) --output-file ops/locks/$(2).txt && \
	echo "ops/locks/$(2).txt: $$(grep -c '==' ops/locks/$(2).txt) packages"
endef

# The environment, in three steps, so that each is repeated only when it must be: interpreter, packages, this project.
# Where the interpreter has gone (an upgrade of Python) or the folder was moved (scripts name it), .venv is made anew.
$(shell test -x $(PY) && { ! test -e $(READY) || grep -qxF '$(CURDIR)' $(READY); } || rm -f $(PY) $(LOCKED) $(READY))

$(PY):
	@set -e; found=; bare=; \
	for name in $(if $(PYTHON),'$(PYTHON)',python3 python3.14 python3.13 python3.12 python3.11); do \
		"$$name" -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) or v > $(if $(PYTHON),(3, 99),(3, 14)))' \
			2>/dev/null || continue; \
		if "$$name" -c 'import ensurepip, venv' 2>/dev/null; then found=$$name; break; fi; \
		bare=$${bare:-$$name}; \
	done; \
	if [ -z "$$found" ]; then \
		if [ -n "$$bare" ]; then \
			echo "$$bare has no venv module. On Debian or Ubuntu: apt-get install python3-venv"; \
		else \
			echo "Runwarden needs Python 3.11, 3.12, 3.13 or 3.14$(if $(PYTHON),; $(PYTHON) is none of them)."; \
			echo "  Debian, Ubuntu   apt-get install python3 python3-venv"; \
			echo "  Fedora           dnf install python3.13"; \
			echo "  macOS            brew install python@3.13"; \
			echo "Or name one: make PYTHON=/path/to/python3"; \
		fi >&2; exit 1; \
	fi; \
	echo "Preparing $(VENV) with $$("$$found" --version): about a minute, once."; \
	"$$found" -m venv --clear $(VENV)

# --no-deps: the lock is complete. --no-compile: Python compiles what is used when it is used, which is less.
$(LOCKED): ops/locks/dev.txt | $(PY)
	@$(call logged,$(PY) -m pip install --quiet --no-deps --no-compile --require-hashes --only-binary :all: -r $<)
	@touch $@

$(READY): pyproject.toml $(LOCKED)
	@$(call logged,$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .)
	@$(PY) -m pip check > $(LOG) || { cat $(LOG); echo "pyproject.toml asks for more than the locks have: make lock"; exit 1; } >&2
	@echo '$(CURDIR)' > $@
