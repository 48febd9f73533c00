# make                            set up .venv and run the default study; says where the report is
# make study STUDY=config/x.yaml  another study
# make test                       the fast tests;  make slow-test: those that train
# make lint                       style and types of code, workflow and studies
# make bench                      speed against the peers, to results/benchmarks
# make adopt                      after `dvc pull`: take the default study's files for up to date
# make clean                      remove .venv, logs and caches; data, results and progress stay
#
# ARGS="-n" goes to snakemake. PYTHON=/path/to/python3.12 picks the Python (3.11, 3.12) of .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := study
.PHONY: study test slow-test lint bench adopt clean

STUDY ?= config/digits.yaml
ARGS ?=
export PATH := $(CURDIR)/.venv/bin:$(PATH)
READY := .venv/.ready

# With ARGS it may be a plan only, or another study: Snakemake itself then says where the report is.
study: $(READY)
	snakemake $(ARGS) --configfile $(STUDY)
	$(if $(ARGS),,@python -c 'from eqadapt.study import load_study; print("report:", load_study("$(STUDY)").results_dir / "report.html")')

test: $(READY)
	python -m pytest

slow-test: $(READY)
	python -m pytest -m slow

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check -l 100 Snakefile workflow
	snakemake --lint

bench: .venv/peers/.ready
	PYTHONPATH=.venv/peers python -W ignore -m benchmarks $(ARGS)

# The peers lie beside the environment, not in it: they bring packages named tests and utils.
.venv/peers/.ready: requirements-benchmarks.lock $(READY)
	rm -rf .venv/peers
	.venv/bin/uv pip install --quiet --python .venv/bin/python --target .venv/peers --no-deps --require-hashes -r requirements-benchmarks.lock
	@touch $@

adopt: $(READY)
	@code=0; dvc status -q || code=$$?; case $$code in 0) ;; \
	  1) echo "files differ from dvc.lock (see dvc status): dvc pull first" >&2; exit 1 ;; \
	  *) echo "dvc status failed: see what it says" >&2; exit 1 ;; esac
	snakemake --configfile config/digits.yaml --touch --forceall --cores 1 --quiet all

# The lock names every package with its hashes, so nothing is resolved (--no-deps), and the package
# itself is built with the setuptools of the lock (--no-build-isolation), without a network. An
# environment in which pip cannot find pip was left half made, and is made anew.
$(READY): requirements.lock pyproject.toml workflow/find_python.sh
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index pip &>/dev/null \
	  || "$$(bash workflow/find_python.sh $(PYTHON))" -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --require-hashes -r requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv logs .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
