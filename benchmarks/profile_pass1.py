"""Processor time of pass 1 by stage: ``python benchmarks/profile_pass1.py FRAMES... [--runs N]``.

One thread, files in the page cache; the least of the runs. The stages are timed inside one whole run, so what is left
over is other Python.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastack import background, calibrate, pipeline
from fastack.options import StackOptions

STAGES = (
    (pipeline, "open_frames"),
    (pipeline, "load_calibration"),
    (calibrate.Calibration, "read"),
    (background, "estimate"),
    (background, "pixel_noise"),
    (pipeline, "survey"),
    (pipeline, "measure"),
    (pipeline, "find_artefacts"),
)


@contextlib.contextmanager
def timed(owner: Any, name: str, spent: Counter[str]) -> Iterator[None]:
    """Add the processor time of a function's calls to `spent`, without that of timed functions inside."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start, before = time.process_time(), spent.total()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.process_time() - start - (spent.total() - before)

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        setattr(owner, name, function)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args(argv)
    options, spent = StackOptions.of(threads=1), Counter[str]()
    with contextlib.ExitStack() as stack:
        for owner, name in STAGES:
            stack.enter_context(timed(owner, name, spent))
        results = []
        for _ in range(given.runs):
            spent.clear()
            start = time.process_time()
            records, _ = pipeline.measure_frames(given.frames, options)
            results.append((time.process_time() - start, spent.copy()))
    total, best = min(results, key=lambda result: result[0])
    pixels = sum(r.frame.shape[0] * r.frame.shape[1] for r in records)
    print(f"{1e3 * total / len(records):.2f} ms a frame, {1e9 * total / pixels:.2f} ns a pixel")
    for name, seconds in best.most_common():
        print(f"  {name:16} {1e3 * seconds / len(records):6.2f} ms")


if __name__ == "__main__":
    main()
