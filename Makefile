# Everything from a clean clone. Each line below is all that its job takes; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
NAME ?= digits-classifier
PORT ?= 5001
# The locked files name every package, so nothing is resolved (--no-deps), and pip need not know extras.
# uv, where a person has it, installs the same locked files in a tenth of the time.
INSTALL := $(if $(shell command -v uv),uv pip install -q --python $(BIN)/python,$(BIN)/python -m pip install -q --disable-pip-version-check)

.DEFAULT_GOAL := help
.PHONY: help setup sweep ui promote serve test test-long test-system faults faults-registry lint bench bench-serving bench-scale bench-scaling bench-drift bench-gpu lock

help:         ## List the jobs.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: $(BIN)/.ready  ## Make .venv with the locked dependencies and Podium itself.

sweep: $(BIN)/.ready  ## Search all four architectures on the digits; ARGS="--trials 5" goes on to the program.
	$(BIN)/python -m experiments.sweep $(ARGS)

ui: $(BIN)/.ready     ## Open the tracking server and its UI until Ctrl-C.
	$(BIN)/python -m mlops.server $(ARGS)

promote: $(BIN)/.ready  ## Make the best candidate of NAME (digits-classifier) the champion.
	$(BIN)/python -m registry.promote $(NAME) $(ARGS)

serve: $(BIN)/.ready  ## Serve NAME's champion on PORT (5001), and follow its alias; ARGS go on to the program.
	$(BIN)/python -m registry.serve $(NAME) --port $(PORT) $(ARGS)

test: $(BIN)/.dev     ## Run the tests that need nothing but Python.
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder -m "not system and not long" $(ARGS)

test-system: $(BIN)/.dev  ## Run the tests that need a system program (a browser, HAProxy).
	@$(BIN)/python tests/system_programs.py
	$(BIN)/python -m pytest -q -m system $(ARGS)

faults: $(BIN)/.dev   ## Harm sweeps in every way there is, and count what that cost; ARGS="--seeds 5" for fewer.
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.faults $(ARGS)

faults-registry: $(BIN)/.dev  ## Kill promotions and rollbacks at every step, and have them meet, with SEEDS (20) seeds.
	PODIUM_TEST_SEEDS=$(or $(SEEDS),20) $(BIN)/python -m pytest -q --timeout 3600 tests/registry/test_killed.py tests/registry/test_at.py $(ARGS)

test-long: $(BIN)/.dev  ## Run the tests that take minutes each, on TensorFlow and JAX; they need nothing but Python.
	PODIUM_TEST_POPULATIONS="dnn cnn rnn vae" $(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder --timeout 1800 -m long $(ARGS)

lint: $(BIN)/.dev     ## Check style, types and the direction of imports.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

bench: $(BIN)/.dev    ## Run the benchmarks and print their tables.
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -c 'for one in sweep threads tracking baselines promotion explanations; do python -m benchmarks.$$one || exit 1; done'

bench-serving: $(BIN)/.dev  ## Measure serving: servers side by side, alias moves and faults, ten minutes of load (needs wrk).
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -c 'for one in serving rollover soak; do python -m benchmarks.$$one || exit 1; done'

bench-scale: $(BIN)/.dev  ## Run 10,000 trials of a millisecond and print what they cost; ARGS="--trials 1000" for fewer.
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks.scale $(ARGS)

bench-scaling: $(BIN)/.dev  ## Measure trials an hour on 1, 2 and 4 workers, here and on simulated hosts; ARGS="--homes own".
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks.scaling $(ARGS)

bench-drift: $(BIN)/.dev  ## Measure a watcher: false alarms, and what it sees of corrupted digits.
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks.drift $(ARGS)

bench-gpu: $(BIN)/.dev  ## Train a small network in every way there is, on a GPU; ARGS="--small" for a CPU.
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks.gpu $(ARGS)

# botocore, which the team's S3 store needs, wants python-dateutil below 3: one version for all three.
COMPILE := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

lock:         ## Resolve the dependencies anew (needs uv).
	printf 'attrs<24\npython-dateutil<3\n' | $(COMPILE) -c - pyproject.toml -o requirements.lock
	$(COMPILE) --extra team -c requirements.lock pyproject.toml -o requirements-team.lock
	$(COMPILE) --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { echo "Python 3.11 to 3.13 is needed; say which: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }

$(BIN)/.ready: requirements.lock pyproject.toml | $(BIN)/python
	$(INSTALL) --require-hashes --no-deps -r requirements.lock
	$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(BIN)/.dev: requirements-dev.lock $(BIN)/.ready
	$(INSTALL) --require-hashes --no-deps -r requirements-dev.lock
	@touch $@
