"""Where each kernel stands against the memory wall and the multiply-add limit of one thread.

    python benchmarks/roofline.py

The limits are measured in the same run: bytes a second by copying arrays that no cache holds, multiply-adds a second
by a float32 matrix product (OpenBLAS). Every kernel runs on pixels of its own kind; beside its time stands the least
time that its bytes and its multiply-adds would take, and the larger of both over the measured time is its part of the
roof. Least bytes: what must come from and go to memory once, with all that is used again held in the cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from fastack import background
from fastack.calibrate import decode
from fastack.combine import NoiseModel, combine
from fastack.detect import survey
from fastack.options import CombineOptions, ResampleOptions
from fastack.resample import resample_tile
from fastack.types import Transform

SIDE = 2048
FRAMES = 100


@dataclass(frozen=True)
class Row:
    """One kernel on `pixels` pixels (or samples)."""

    name: str
    run: Callable[[], object]
    pixels: int
    bytes: float  #: least traffic with memory, a pixel
    fma: float  #: multiply-adds, a pixel


def seconds(run: Callable[[], object], times: int = 7) -> float:
    """Least CPU time of a few calls, after one that warms up."""
    run()
    taken = []
    for _ in range(times):
        start = time.thread_time()
        run()
        taken.append(time.thread_time() - start)
    return min(taken)


def limits() -> tuple[float, float]:
    """Bytes and multiply-adds a second of one thread."""
    source, target = np.ones(1 << 26, np.float32), np.empty(1 << 26, np.float32)
    n = 1024
    a = np.ones((n, n), np.float32)
    # a copy reads the target's lines before it writes them
    return 3 * source.nbytes / seconds(lambda: np.copyto(target, source)), n**3 / seconds(lambda: a @ a)


def turned(degrees: float) -> Transform:
    t = np.deg2rad(degrees)
    matrix = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    middle = np.full(2, SIDE / 2)
    return Transform.affine(np.c_[matrix, middle - matrix @ middle + [0.3, 0.4]])


def resampling(image: np.ndarray, degrees: float, kernel: str) -> Callable[[], object]:
    out, factor = np.empty_like(image), np.empty(image.shape, np.uint8)
    options, to_frame = ResampleOptions(kernel=kernel), turned(degrees)

    def run() -> None:
        for y in range(0, SIDE, 256):
            rows = slice(y, y + 256)
            tile = (y, y + 256, 0, SIDE)
            resample_tile(
                image, (0, 0), image.shape, to_frame, tile, out=out[rows], factor=factor[rows], options=options
            )

    return run


def kernels() -> Iterator[Row]:
    """Every kernel that sees all pixels."""
    rng = np.random.default_rng(1)
    raw = rng.normal(1000, 30, (SIDE, SIDE)).astype(">u2")
    image = raw.astype(np.float32)
    sky = background.estimate(image)
    whole = image.size
    yield Row("decode uint16", lambda: decode(raw.view(np.uint8), 16, bzero=32768.0), whole, 2 + 8, 1)
    yield Row("background mesh", lambda: background.estimate(image), whole, 4, 8)
    yield Row("detect (filter 7 + 7, maxima)", lambda: survey(image, background=sky), whole, 4, 14 + 2)
    for degrees in (0.0, 0.2, 2.0, 180.0, 90.0, 30.0):
        name = f"Lanczos-3, {degrees:g} degrees"
        yield Row(name, resampling(image, degrees, "lanczos3"), whole, 4 + 8 + 2, 36)
    yield Row("bicubic, 0.2 degrees", resampling(image, 0.2, "bicubic"), whole, 4 + 8 + 2, 16)
    yield Row("bilinear, 0.2 degrees", resampling(image, 0.2, "bilinear"), whole, 4 + 8 + 2, 4)
    cube = rng.normal(1000, 30, (FRAMES, 128, 256)).astype(np.float32)
    cube[rng.random(cube.shape) < 1e-4] += 3000
    model = NoiseModel.make(FRAMES, noise=30.0, sky=1000.0, gain=1000 / 900)
    for reject, fma in (("noise", 12.0), ("sigma", 12.0), ("none", 4.0)):
        options = CombineOptions(reject=reject)
        yield Row(
            f"combine {FRAMES}, {reject}", lambda o=options: combine(cube, noise=model, options=o), cube.size, 5, fma
        )
    median = CombineOptions(reject="none", combine="median")
    yield Row(f"median of {FRAMES}", lambda: combine(cube, noise=model, options=median), cube.size, 5, 0)


def main() -> None:
    """Print the table."""
    bandwidth, peak = limits()
    print(f"one thread: {bandwidth / 1e9:.1f} GB/s, {peak / 1e9:.1f} G multiply-adds/s (float32 matrix product)\n")
    print("| kernel | ns/pixel | least by memory | least by multiply-adds | bound | part of the roof |")
    print("|---|---:|---:|---:|---|---:|")
    for row in kernels():
        taken = 1e9 * seconds(row.run) / row.pixels
        memory, arithmetic = 1e9 * row.bytes / bandwidth, 1e9 * row.fma / peak
        bound = "memory" if memory > arithmetic else "multiply-adds"
        part = 100 * max(memory, arithmetic) / taken
        print(f"| {row.name} | {taken:.2f} | {memory:.2f} | {arithmetic:.2f} | {bound} | {part:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
