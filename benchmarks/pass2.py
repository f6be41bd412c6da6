"""What a sample costs on its way to the cube of pass 2, by step, and what a second thread gains.

    python benchmarks/pass2.py FRAMES [--rounds 3]

Measures and registers the frames of a directory (the sets of `bench_stack.py --keep`), then runs pass 2 without the
combination over the whole output: CPU time in ns for each pixel of the output and frame by step, of the frames' files
and of frames kept in memory; and the wall time of one thread over that of two, by turns. What other work on the
machine takes from a second thread shows in the control, long calls that hold no lock, and in the load.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastack import calibrate, coadd, grid, pipeline, registration, select
from fastack.executor import Executor
from fastack.normalise import match_levels
from fastack.options import StackOptions
from fastack.report import Reporter
from fastack.storage import Store

STEPS = (
    (calibrate, "_decode"),
    (calibrate.Calibration, "read"),
    (coadd, "resample_tile"),
)


def job_of(directory: Path, store: Store) -> coadd.Job:
    """All of a run up to pass 2."""
    options = StackOptions()
    with Executor() as executor:
        records, calibration = pipeline.measure_frames(directory, options, Reporter(), executor, store=store)
    select.apply_limits(records, options.select)
    reference = select.choose_reference(records, options.reference)
    registration.register(records, reference, options, Reporter())
    match_levels(records, reference)
    select.weigh(records, options.weights, options.weight_table)
    used = [r for r in records if r.used]
    out, transforms = pipeline.output_grid(used, reference, options, calibration.edges)
    return coadd.Job.of(used, reference, transforms, out, calibration, options, False)


def timed(spent: dict[str, float], owner: Any, name: str) -> Callable[[], None]:
    """Count the CPU time of a function; what is returned undoes it."""
    plain = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        start = time.thread_time()
        try:
            return plain(*args, **options)
        finally:
            spent[name] += time.thread_time() - start

    setattr(owner, name, counted)
    return lambda: setattr(owner, name, plain)


def run(job: coadd.Job, threads: int) -> float:
    """Wall time of pass 2 up to the cube."""
    rotation = max(abs((t.rotation + 45) % 90 - 45) for t in job.transforms)
    budget = job.options.memory // (2 * threads)
    size = grid.tile_shape(len(job.frames), job.shape, budget, rotation, threads)
    start = time.perf_counter()
    with Executor(threads) as executor:
        for _ in executor.map(
            functools.partial(coadd.stack_strip, job=job), grid.strips(len(job.frames), job.shape, size, threads)
        ):
            pass
    return time.perf_counter() - start


def control(threads: int) -> float:
    """Wall time of calls that hold no lock."""
    data = bytes(1 << 26)
    start = time.perf_counter()
    with Executor(threads) as executor:
        for _ in executor.map(zlib.crc32, [data] * 64):
            pass
    return time.perf_counter() - start


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("frames", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    coadd.combine_tile = lambda *_, **__: None  # type: ignore[assignment]
    for name, memory in (("files", 0), ("memory", 1 << 40)):
        with Store(memory) as store:
            job = job_of(options.frames, store)
            run(job, 1)  # fills the page cache and touches the cube's memory
            samples = len(job.frames) * job.shape[0] * job.shape[1]
            spent: dict[str, float] = defaultdict(float)
            undo = [timed(spent, *step) for step in STEPS]
            start = time.thread_time()
            run(job, 1)
            spent["all"] = time.thread_time() - start
            for each in undo:
                each()
            print(f"{name:7s}", *(f"{step} {1e9 * t / samples:.2f}" for step, t in spent.items()), "ns a sample")
            for what, work in (("pass 2", functools.partial(run, job)), ("control", control)):
                gains = [work(1) / work(2) for _ in range(options.rounds)]
                spread = f"{np.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
                print(f"{name:7s} {what}: one thread takes {spread} times as long as two")
    print(f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
