"""What one core does while the others wait: start-up, the meeting between the passes, the end.

    python benchmarks/serial.py [--runs 7] [--frames 100]

Prints wall and CPU time, each the least of the runs: of interpreters that do this and that, from the start of the
process; then of the serial parts of a stack of `--frames` simulated frames of 512x512 with 500 stars, in one process.
The pixels of these frames are few, so that the parts that do not go with them stand out.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# where a frame's pixels would be read, the process ends
FIRST_PIXEL = """
import os, sys
from fastack import calibrate
calibrate.Calibration.read = lambda *_: os._exit(0)
sys.argv = ["fastack", "stack", "--threads", "1", "--quiet", "-o", os.devnull + ".fits", "--dry-run", {night!r}]
from fastack.cli import main
main()
"""


def processes(night: Path) -> dict[str, list[str]]:
    """Name and arguments of each interpreter that is timed."""
    return {
        "python -c pass": ["-c", "pass"],
        "import numpy": ["-c", "import numpy"],
        "fastack --version": ["-m", "fastack", "--version"],
        "import fastack.pipeline": ["-c", "import fastack.pipeline"],
        "fastack stack, to the first pixel": ["-c", FIRST_PIXEL.format(night=str(night))],
        "import astropy.io.fits": ["-c", "import astropy.io.fits"],
    }


def run(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a fresh interpreter, with compiled modules allowed."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parts() -> list[tuple[Any, str]]:
    """Functions of a stack that run on one core."""
    from fastack import header, normalise, pipeline, registration, report, select

    return [
        (pipeline, "open_frames"),
        (select, "keep_majority"),
        (select, "apply_limits"),
        (registration, "register"),
        (normalise, "match_levels"),
        (pipeline, "output_grid"),
        (header, "stack_header"),
        (normalise, "sky_surfaces"),
        (pipeline, "_measure_stack"),
        (report, "frames_hdu"),
    ]


def timed(module: Any, name: str, times: dict[str, list[tuple[float, float]]]) -> None:
    """Wrap a function so that it notes what it takes."""
    function = getattr(module, name)

    def wrapped(*arguments: Any, **settings: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return function(*arguments, **settings)
        finally:
            times[name].append((time.perf_counter() - wall, time.thread_time() - cpu))

    setattr(module, name, wrapped)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--frames", type=int, default=100)
    args = parser.parse_args()
    from fastack import stack
    from fastack.simulate import NightOptions, simulate_night

    with tempfile.TemporaryDirectory() as directory:
        options = NightOptions(n_frames=args.frames, shape=(512, 512), n_stars=500, drift=(20.0, 15.0), rotation=0.3)
        simulate_night(options).write(Path(directory) / "night")
        night = Path(directory) / "night"
        print(f"{'':36s} wall s  CPU s")
        for name, arguments in processes(night).items():
            run(arguments)
            wall, cpu = (min(figures) for figures in zip(*(run(arguments) for _ in range(args.runs)), strict=True))
            print(f"{name:36s} {wall:6.3f} {cpu:6.3f}", flush=True)
        times: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
        for module, name in parts():
            timed(module, name, times)
        for _ in range(args.runs):
            stack([night], output_path=Path(directory) / "mosaic.fits", overwrite=True)
    print(f"\n{args.frames} frames of 512x512")
    for name, figures in times.items():
        print(f"{name:36s} {min(w for w, _ in figures):6.3f} {min(c for _, c in figures):6.3f}")


if __name__ == "__main__":
    main()
