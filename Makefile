# Everything a person needs: `make demo` and `make test`. Each target installs what it needs, into .venv and .uv, nowhere else.

SHELL := /bin/bash
# uv from PATH where there is one, else bootstrapped into .uv/ (works on an externally managed Python and without venv)
export UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.uv/bin/uv)
RUN := $(UV) run --no-sync
# compile once what every process would otherwise compile again at import
export UV_COMPILE_BYTECODE := 1

.PHONY: help demo test test-slow test-real lint format bench sync clean

help:        ## what there is
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: sync   ## the main job of the systems, end to end, on CPU, no downloads of weights
	@$(RUN) bash scripts/demo.sh

test: sync   ## the tests
	$(RUN) pytest -n 2 --dist loadfile

test-slow: sync  ## the long ones: learning, kill and resume at scale, whole environments
	$(RUN) pytest -m slow

test-real: sync  ## with real weights and images where they are; skips with a reason where they are not
	$(RUN) pytest -m real

lint: sync   ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: sync ## let ruff rewrite
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: sync  ## every claim of the README, measured here (results/benchmarks/)
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(RUN) python $$script || exit 1; done

sync: $(UV)
	@$(UV) sync --quiet --all-packages --all-extras --all-groups

$(CURDIR)/.uv/bin/uv:
	@echo "installing uv into .uv/"
	@python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target .uv uv

clean:       ## caches, environments and results; keeps what you wrote
	rm -rf .venv .uv uv.lock runs results .pytest_cache .mypy_cache .ruff_cache .hypothesis
