#!/usr/bin/env bash
# Set up an environment and run the main job on a simulated night: bash scripts/demo.sh [fastack demo arguments].
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$here/.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
"$venv/bin/python" -m pip install --quiet "$here"
"$venv/bin/fastack" demo "$@"
