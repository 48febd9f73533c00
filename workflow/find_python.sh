#!/usr/bin/env bash
# Prints a Python 3.11 or 3.12 that can make virtual environments. Candidates are run, not only
# found: a shim may be there without the version it stands for.
#
#   find_python.sh [PYTHON]     PYTHON, if given, is the only candidate
set -u

check='import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))'
candidates=("$@")
[ $# -gt 0 ] || candidates=(python3.12 python3.11 python3 python
    /usr/bin/python3.12 /usr/bin/python3.11 /usr/local/bin/python3.12 /usr/local/bin/python3.11
    "$HOME"/.pyenv/versions/3.1[12].*/bin/python)

for candidate in "${candidates[@]}"; do
    if "$candidate" -c "$check" 2>/dev/null; then
        command -v "$candidate"
        exit 0
    fi
done
echo "no Python 3.11 or 3.12 with the venv module among: ${candidates[*]}" >&2
echo "  to do: install one (on Debian: apt-get install python3 python3-venv), or use conda as" >&2
echo "  the head of environment.yml tells, or say make PYTHON=/path/to/python3.12" >&2
exit 1
