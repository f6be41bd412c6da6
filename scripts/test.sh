#!/usr/bin/env bash
# Set up an environment and pass the tests: bash scripts/test.sh [pytest arguments].
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
"$venv/bin/python" -m pip install --quiet --group test .
"$venv/bin/python" -m pytest -q -n auto "${@:-tests}"
