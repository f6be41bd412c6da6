"""What a command takes, measured from a small process: a child's peak memory counts that of its parent at first.

    python benchmarks/watch.py LOG COMMAND...

runs the command with its output in LOG and prints a line of JSON: wall (s), cpu (s), peak (bytes, resident size of the
largest process) and code (exit code).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def watch(command: Sequence[str], log: Path, cwd: Path) -> dict[str, Any]:
    """Run a command from a process of its own; keys as this file prints them."""
    watcher = [sys.executable, __file__, str(log), *map(str, command)]
    return json.loads(subprocess.run(watcher, cwd=cwd, stdout=subprocess.PIPE, check=True).stdout)


def main(log: str, *command: str) -> None:
    with open(log, "wb") as sink:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * unit
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak, "code": process.returncode}))


if __name__ == "__main__":
    main(*sys.argv[1:])
