#!/usr/bin/env bash
# Fills the environment that Snakemake has made of environment.yml (--sdm conda).
#
# Snakemake runs a copy of this file, with that environment active, in its working folder; so the
# lock is looked for there, not beside the file. The environment is made anew when this file or
# environment.yml changes, not when the lock does: remove .snakemake/conda then.
set -euo pipefail

if [ ! -f requirements.lock ] || [ ! -f pyproject.toml ]; then
    echo "no requirements.lock and pyproject.toml in $PWD" >&2
    echo "  to do: start Snakemake in the root of the repository" >&2
    exit 1
fi
python -m pip install --no-deps --require-hashes -r requirements.lock
python -m pip install --no-deps --no-build-isolation -e .
