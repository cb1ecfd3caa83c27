# Everything that a person or CI does here. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
NAMES ?= kube kwok coredns minio dapr helm

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo up up-distributed test test-faults testbed lint chart-lint format bench docs clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stepway needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/made locks/run.txt locks/demo.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/demo.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed locks/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/dev.txt
	@touch $@

install: $(VENV)/installed ## Install the locked dependencies into .venv

install-dev: $(VENV)/installed-dev ## The same, with what tests and lint need

demo: $(VENV)/installed ## A real model through the wizards to a live endpoint (ARGS=--exit ends by itself)
	@$(BIN)/stepway demo $(ARGS)

up: $(VENV)/installed ## Run Stepway (ARGS="--port 8400 --data-dir …")
	@$(BIN)/stepway up $(ARGS)

up-distributed: $(VENV)/installed-dev ## Run Stepway as services over Dapr, from the test bed's binaries (ARGS="--replicas 2")
	@$(BIN)/python -m tests.testbed.distributed $(ARGS)

test: $(VENV)/installed-dev ## Run the tests, with a seeded sample of the fault matrices
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-faults: $(VENV)/installed-dev ## Run the whole fault matrices
	STEPWAY_FAULTS=all $(BIN)/python -m pytest -m faults $(ARGS)

testbed: $(VENV)/installed-dev ## Build the servers and images that tests on real clusters need (NAMES="minio …" for others)
	-@bash tests/testbed/packages.sh
	$(BIN)/python -m tests.testbed.images
	$(BIN)/python -m tests.testbed.build $(NAMES)
	$(BIN)/python -m tests.testbed.images

lint: $(VENV)/installed-dev ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chart-lint: $(VENV)/installed-dev ## Check the chart, the Dockerfile and the compose file (the test bed's helm)
	$(BIN)/python -m pytest -q tests/charts/test_template.py tests/deploy $(ARGS)

format: $(VENV)/installed-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev ## Measure against floors and peers; prints a table, writes bench-results/
	$(BIN)/python -m tests.bench $(ARGS)

lock: ## Renew the locks from pyproject.toml and locks/*.in (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml -o locks/run.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c locks/run.txt locks/build.in -o locks/build.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c locks/run.txt pyproject.toml locks/dev.in -o locks/dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-deps locks/demo.in -o locks/demo.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate locks/bench.in -o locks/bench.txt
	for service in app model cluster gateway flow; do uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c locks/run.txt --group pyproject.toml:$$service -o locks/$$service.txt || exit 1; done

clean: ## Remove what was installed and built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results
