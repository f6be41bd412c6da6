"""Processor time of pass 1 by stage: ``python benchmarks/profile_pass1.py FRAMES... [--runs N]``.

One thread, files in the page cache; the least of the runs. The stages are timed inside one whole run, so what is left
over is headers and other Python.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import Counter
from typing import Any

from fastack import background, calibrate, pipeline
from fastack.options import StackOptions

STAGES = (
    (calibrate.Calibration, "read"),
    (background, "estimate"),
    (background, "pixel_noise"),
    (pipeline, "survey"),
    (pipeline, "measure"),
    (pipeline, "find_artefacts"),
)


def timed(owner: Any, name: str, spent: Counter[str]) -> None:
    """Add the processor time of a function's calls to `spent`."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.process_time() - start

    setattr(owner, name, wrapper)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    options, spent = StackOptions(), Counter[str]()
    records = pipeline.open_frames(given.frames, options)
    calibration = calibrate.load_calibration([r.frame for r in records], options.calibrate)
    for owner, name in STAGES:
        timed(owner, name, spent)
    best: tuple[float, Counter[str]] | None = None
    for _ in range(given.runs):
        spent.clear()
        start = time.process_time()
        for record in records:
            pipeline._measure_one(record.frame, calibration=calibration, store=None, options=options)
        total = time.process_time() - start
        best = min(best or (total, spent.copy()), (total, spent.copy()), key=lambda result: result[0])
    assert best is not None
    pixels = sum(r.frame.shape[0] * r.frame.shape[1] for r in records)
    print(f"{1e3 * best[0] / len(records):.2f} ms a frame, {1e9 * best[0] / pixels:.2f} ns a pixel")
    for name, seconds in best[1].most_common():
        print(f"  {name:16} {1e3 * seconds / len(records):6.2f} ms")


if __name__ == "__main__":
    main()
