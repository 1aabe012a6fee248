# Two commands do all the set-up: `make demo` and `make test`. Both create .venv first.
PYTHON ?=
TORCH ?= auto
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin

.PHONY: venv clients demo test test-slow lint format bench dist proto map clean

# PYTHON: the interpreter, else the first of python3.11, 3.12, 3.13 that works. TORCH: auto takes a CPU build on Linux
# without an NVIDIA driver; cpu, cuda. TORCH_CPU_INDEX: where CPU builds are looked for after the configured index.
venv:
	@PYTHON='$(PYTHON)' TORCH='$(TORCH)' TORCH_CPU_INDEX='$(TORCH_CPU_INDEX)' .ci/venv

demo: venv
	$(BIN)/python -m cluster.demo

test: lint
	$(BIN)/python -m pytest -q

# Clients of other projects, for the tests that use them: some 50 packages, which nothing else needs. Where they can't
# be had, those tests are skipped.
clients: venv
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,conformance]'

test-slow: clients
	$(BIN)/python -m pytest -q -m slow --timeout=1200

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv
	$(BIN)/tokenyard bench throughput --batch 1 --batch 8 --batch 32 --input-len 128 --output-len 64

# build: setuptools packs what an earlier build left there, deleted files too.
dist: venv
	rm -rf dist build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# The checked-in stubs are what this prints; a test compares them.
proto: venv
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. router_svc/proto/tokenyard.proto
	$(BIN)/python -m router_svc.make_arguments

# docs/map.md; a test compares.
map: venv
	$(BIN)/python .ci/map

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
