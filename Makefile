# `make demo` and `make test` are all you need. Each target installs its requirements, only into .venv and .uv.

SHELL := /bin/bash
# Use uv from PATH if available; otherwise install it into .uv/, which needs no venv and works with an externally managed Python.
export UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.uv/bin/uv)
RUN := $(UV) run --no-sync
# Compile bytecode once; otherwise every process compiles it again at import.
export UV_COMPILE_BYTECODE := 1

.PHONY: help demo test test-slow test-real lint format bench bench-gpu sync clean

help:        ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: sync   ## run the main job of every system, end to end, on a CPU, without downloading weights
	@$(RUN) bash scripts/demo.sh

test: sync   ## run the tests
	$(RUN) pytest -n 2 --dist loadfile

test-slow: sync  ## run the slow tests: learning, kill and resume at scale, whole environments
	$(RUN) pytest -m slow

test-real: sync  ## run the tests on real weights and images; those without their files are skipped, with a reason
	$(RUN) pytest -m real

lint: sync   ## run ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: sync ## let ruff fix and format the code
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: sync  ## measure every claim of the README (results/benchmarks/)
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(RUN) python $$script || exit 1; done

bench-gpu: sync  ## run the tests and measurements that need a CUDA device; without one they say so
	$(RUN) pytest -m gpu
	$(RUN) python benchmarks/gpu.py

sync: $(UV)
	@$(UV) sync --quiet --all-packages --all-extras --all-groups

$(CURDIR)/.uv/bin/uv:
	@echo "installing uv into .uv/"
	@python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target .uv uv

clean:       ## remove caches, environments, runs and results; your own files stay
	rm -rf .venv .uv uv.lock runs results .pytest_cache .mypy_cache .ruff_cache .hypothesis
