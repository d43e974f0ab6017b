# Everything runs inside .venv, which uv builds from uv.lock. A working uv on PATH is used if
# there is one; otherwise a private one goes to .uv/.
UV = $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
# Jericho is built from C (about 80 s). Without a compiler its games, and TextWorld's, are missing.
LESS = $(shell command -v gcc >/dev/null 2>&1 || echo --no-install-package jericho)
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

LAWS = tests/agent/test_act.py tests/agent/test_stages.py tests/run/test_resume.py

.PHONY: help setup quickstart test test-fast test-as-compiled lint

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/installed  ## install everything into .venv

.venv/installed: pyproject.toml uv.lock
	@uv --version >/dev/null 2>&1 || [ -x .uv/bin/uv ] || \
	  { echo "No working uv found: putting one into .uv/"; python3 -m venv .uv && .uv/bin/pip install --quiet uv; }
	$(UV) sync --locked --extra dev $(LESS)
	@touch $@

quickstart: setup  ## train one model on five unlike tasks
	.venv/bin/scalezero train --preset quickstart

test: setup  ## run the whole suite
	.venv/bin/pytest -n 2 --dist loadfile

test-fast: setup  ## run the suite without the slow tests
	.venv/bin/pytest -n 2 --dist loadfile -m "not slow"

test-as-compiled: setup  ## run laws of single bits once more, as optimised as users run them
	XLA_FLAGS= .venv/bin/pytest -n 2 $(LAWS)

lint: setup  ## format check, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath .venv/bin/python
