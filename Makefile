# Needs only python3 (3.11 or later, with venv) and make. Everything else goes into .venv, at the versions and hashes
# of the lock files; nothing is installed outside this folder but by test-vllm, test-recipe and test-browser, which say so.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 $(BIN)/python -m pip -qq

# pip compiles on one core, tests of other packages included: leaving that to compileall halves the time and the space
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib

# What `make demo` runs after installing; e.g. make demo DEMO="sweep --launcher sim --capture 16 --scenario math"
DEMO ?= sweep --launcher sim --capture 16,32,64 --scenario math,multilingual --concurrency 2,8,32 --output-tokens 8-16 --port 18000 --out results
# three workers, since the tests of processes wait for a third of their time; these come first and are stolen from each
# other, or one worker would end alone
TESTS := --numprocesses 3 --dist worksteal tests/integration tests/unit
PYTEST_ARGS ?=
COVERAGE_FLOOR := 92

.DEFAULT_GOAL := help
.PHONY: help demo test lint typecheck unit coverage install dev test-wheel test-faults test-docker test-browser test-vllm test-servers test-recipe test-cluster bench bench-client lock clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: install ## install, sweep three capture sizes over a simulated vLLM server, write a report (2 minutes)
	@echo "Sweeping 3 capture sizes x 6 load points over a SIMULATED vLLM server: under 2 minutes, no GPU needed."
	$(BIN)/qwenbench $(DEMO)

test: lint typecheck unit ## install, ruff, mypy --strict, unit and integration tests

lint: dev
	@$(BIN)/ruff check --no-cache --quiet src tests bench recipes
	@$(BIN)/ruff format --quiet --check src tests bench recipes

typecheck: dev
	@$(BIN)/mypy --no-error-summary --config-file tests/mypy.ini --cache-dir .mypy_cache/tests tests bench & \
	  $(BIN)/mypy --no-error-summary; package=$$?; wait $$! && exit $$package

unit: dev
	$(BIN)/python -m pytest $(TESTS) $(PYTEST_ARGS)

coverage: dev ## the same tests with coverage of child processes too; fails under the floor
	$(BIN)/python -m pytest --cov --cov-report= $(TESTS) $(PYTEST_ARGS)
	$(BIN)/coverage report --fail-under $(COVERAGE_FLOOR)

test-wheel: dev ## the wheel, built and installed in an environment of its own and run outside the repository
	tests/wheel.sh

test-docker: dev ## the docker launcher against a real Docker engine (root; no GPU needed)
	tests/docker/run.sh

test-faults: dev ## damaged runs, hostile servers and kills: each a sentence, nothing lost
	$(BIN)/python -m pytest --numprocesses 3 --timeout 300 tests/faults $(PYTEST_ARGS)

test-browser: dev ## the HTML report in headless Chromium
	tests/browser/run.sh

test-vllm: dev ## a sweep over real vLLM servers on the CPU (installs vLLM under ~/.cache/qwenbench, 3.4 GB)
	tests/vllm/run.sh $(VLLM_ARGS)

test-servers: dev ## servers that are not vLLM: llama.cpp, LiteLLM, transformers (installs them under ~/.cache/qwenbench, 1 GB)
	tests/servers/run.sh

test-cluster: dev ## sweeps over a real Ray cluster of simulated cards on this machine (installs Ray under ~/.cache/qwenbench, 900 MB)
	tests/cluster/run.sh $(PYTEST_ARGS)

test-recipe: dev ## the NVFP4 recipe on a tiny hybrid (installs llm-compressor under ~/.cache/qwenbench, 1.5 GB)
	tests/recipe/run.sh

bench: dev ## qwenbench's own costs as one table: installing, demo, sweep overhead, SSE, tables
	$(BIN)/python bench/table.py $(DEMO)

bench-client: dev ## the load client beside its peers on one truth server
	$(BIN)/python bench/client/run.py
	$(BIN)/python bench/client/accuracy_page.py

install: $(VENV)/.installed ## the command .venv/bin/qwenbench
dev: $(VENV)/.installed-dev ## the same with the tools for developers

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qwenbench needs Python 3.11 or later; $(PYTHON) is older. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making a Python environment in $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.installed: $(VENV)/.python requirements.lock pyproject.toml
	@echo "Installing qwenbench and the $$(grep -c '^[a-z].*==' requirements.lock) packages that it needs into $(VENV) ..."
	@$(PIP) install --no-compile --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@echo "Compiling them, so that the first run is as fast as the next ..."
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@echo "Installing the developers' tools into $(VENV) ..."
	@$(PIP) install --no-compile --require-hashes -r requirements-dev.lock
	@$(COMPILE)
	@touch $@

LOCK = $(VENV)/lock/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-annotate --no-header $(LOCK_ARGS) pyproject.toml -

lock: $(VENV)/.python ## remake the lock files (LOCK_ARGS=--upgrade for newer versions)
	@test -x $(VENV)/lock/bin/uv || { $(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/python -m pip -qq install uv; }
	@printf 'hatchling\neditables\n' | $(LOCK) --output-file requirements.lock
	@printf 'hatchling\neditables\n' | $(LOCK) --group dev --group browser --constraint requirements.lock --output-file requirements-dev.lock

clean: ## remove .venv and caches; runs in results/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
