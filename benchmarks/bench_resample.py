"""Resampling beside OpenCV, scikit-image and scipy: one thread, each answer checked before it is timed.

``pytest benchmarks/bench_resample.py`` times them; run as a script it prints a table of CPU time, with the
multiply-adds a second of a matrix product measured just before each row.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import pytest
from reference import resample as twin

from fastack.options import ResampleOptions
from fastack.resample import resample_tile
from fastack.types import Transform

N = 2048
ANGLES = (0.0, 0.2, 2.0, 17.0, 45.0, 180.0, 90.0)


def turned(degrees: float, mirrored: bool = False) -> Transform:
    t = np.deg2rad(degrees)
    matrix = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    middle = np.full(2, N / 2)
    return Transform.affine(np.c_[matrix, middle - matrix @ middle + [0.3, 0.4]])


def frame(missing: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    image = rng.normal(1000, 10, (N, N)).astype(np.float32)
    image[rng.random(image.shape) < missing] = np.nan
    return image


def fastack(kernel: str, image: np.ndarray, transform: Transform):
    """Pass 2's own call: pixels and variance factors of a frame, in tiles of 256 rows."""
    out, factor = np.empty_like(image), np.empty(image.shape, np.uint8)
    options = ResampleOptions(kernel=kernel)

    def run() -> np.ndarray:
        for y in range(0, N, 256):
            rows = slice(y, y + 256)
            tile = (y, y + 256, 0, N)
            values = {"out": out[rows], "factor": factor[rows], "sky": 1000.0, "offset": 1000.0}
            resample_tile(image, (0, 0), image.shape, transform, tile, options=options, **values)
        return out

    return run


def opencv(flag: str, image: np.ndarray, transform: Transform):
    cv2 = pytest.importorskip("cv2")
    cv2.setNumThreads(1)
    matrix = np.c_[transform.matrix, transform([[0, 0]])[0]]
    return lambda: cv2.warpAffine(image, matrix, (N, N), flags=getattr(cv2, flag) | cv2.WARP_INVERSE_MAP)


def skimage(image: np.ndarray, transform: Transform):
    warp = pytest.importorskip("skimage.transform")
    matrix = np.vstack([np.c_[transform.matrix, transform([[0, 0]])[0]], [0, 0, 1]])
    return lambda: warp.warp(image, matrix, order=3, preserve_range=True, mode="constant")


def scipy(image: np.ndarray, transform: Transform):
    ndimage = pytest.importorskip("scipy.ndimage")
    matrix, shift = transform.matrix[::-1, ::-1], transform([[0, 0]])[0][::-1]
    return lambda: ndimage.affine_transform(image, matrix, shift, order=3, output=np.float32)


PEERS = {
    "fastack lanczos3": lambda i, t: fastack("lanczos3", i, t),
    "fastack bicubic": lambda i, t: fastack("bicubic", i, t),
    "fastack lanczos4": lambda i, t: fastack("lanczos4", i, t),
    "opencv cubic": lambda i, t: opencv("INTER_CUBIC", i, t),
    "opencv lanczos4": lambda i, t: opencv("INTER_LANCZOS4", i, t),
    "scikit-image order 3": skimage,
    "scipy order 3": scipy,
}


def check(name: str, out: np.ndarray, image: np.ndarray, transform: Transform) -> None:
    """Compare a hundred pixels with the twin, to 1e-4 in a weight; the peers with the sky alone."""
    rng = np.random.default_rng(2)
    for x, y in rng.integers(700, 1300, (100, 2)):
        if not name.startswith("fastack"):
            assert abs(out[y, x] - 1000) < 100
            continue
        ys, xs, k = twin.weights(name.split()[1], transform, x, y)
        assert abs(out[y, x] - (k * image[ys[:, None], xs]).sum()) < 1e-4 * 5 * 10 * 8


@pytest.mark.parametrize("degrees", [0.2, 2.0])
@pytest.mark.parametrize("name", PEERS)
def bench_resample(benchmark, name: str, degrees: float) -> None:
    image, transform = frame(), turned(degrees)
    benchmark.group = f"{N}x{N}, {degrees} degree"
    run = PEERS[name](image, transform)
    check(name, run(), image, transform)
    benchmark.pedantic(run, rounds=3, iterations=1)


def cpu(run, rounds: int = 12) -> float:
    """Least CPU time of this thread, ns a pixel."""
    best = np.inf
    for _ in range(rounds):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
    return best / N**2 * 1e9


def multiply_adds() -> float:
    """G multiply-adds a second of a single-precision matrix product, one thread."""
    a = np.ones((1024, 1024), np.float32)
    return 1024**3 / (cpu(lambda: a @ a) * N**2)


def table() -> None:
    print("CPU time; G: multiply-adds a second of a matrix product just before; cost: their product")
    print("kernel               degree   ns/pixel   Mpixel/s          G       cost")
    for name, make in PEERS.items():
        for degrees in ANGLES if name.startswith("fastack") else (2.0,):
            image, transform = frame(), turned(degrees)
            run = make(image, transform)
            check(name, run(), image, transform)
            peak = multiply_adds()
            ns = cpu(run)
            print(f"{name:20s} {degrees:6.1f} {ns:10.2f} {1e3 / ns:10.0f} {peak:10.1f} {ns * peak:10.1f}")
    for missing in (1e-4, 1e-3):
        ns = cpu(fastack("lanczos3", frame(missing), turned(2.0)))
        print(f"lanczos3, 2 degrees, {missing:.0e} of the pixels missing: {ns:.2f} ns/pixel")
    mirrored = cpu(fastack("lanczos3", frame(), turned(0.2, mirrored=True)))
    print(f"lanczos3, 0.2 degree, mirrored: {mirrored:.2f} ns/pixel")
    for degrees in (0.2, 2.0):
        print(f"lanczos3, {degrees} degree, a tile in cache: {in_cache(turned(degrees)):.2f} ns/pixel")


def in_cache(transform: Transform) -> float:
    """Return the time of one tile again and again, which leaves out the traffic to memory."""
    image, tile = frame(), (896, 1024, 768, 1024)
    out, factor = np.empty((128, 256), np.float32), np.empty((128, 256), np.uint8)

    def run() -> None:
        for _ in range(N * N // out.size):
            resample_tile(image, (0, 0), image.shape, transform, tile, out=out, factor=factor, sky=1000.0)

    return cpu(run)


if __name__ == "__main__":
    table()
