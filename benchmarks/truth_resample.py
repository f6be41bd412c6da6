"""Resampling against the truth, in full; prints a table and exits 1 where a target is missed.

``python benchmarks/truth_resample.py [--cases 200] [--seed 1]``: random maps (any rotation, mirrored or not,
scale 0.5 to 2, half of them with cubic distortion) for weights and flux, 1000 stars of random phase for the
width, white noise for the pixel's sigma.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference import resample as twin

from fastack.options import ResampleOptions
from fastack.resample import autocorrelation, resample, resample_tile
from fastack.simulate import moffat, render_stars
from fastack.types import Transform


def random_map(rng: np.random.Generator) -> Transform:
    """Rotate by anything, or by little, about the middle of a 60 x 60 frame."""
    t = np.deg2rad(
        rng.choice([rng.uniform(-180, 180), rng.normal(0, 1.5), 90 * rng.integers(4) + rng.normal()])
    )
    scale = rng.choice([1.0, 1 + rng.normal(0, 1e-3), rng.uniform(0.5, 2)])
    m = (
        scale
        * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
        @ np.diag([rng.choice([-1, 1]), 1])
    )
    bend = rng.normal(0, rng.choice([1e-4, 0.05]), (2, 7)) * rng.integers(2)
    linear = 20 * m
    cx = [30 + rng.uniform(-1, 1), *linear[0], *bend[0]]
    cy = [30 + rng.uniform(-1, 1), *linear[1], *bend[1]]
    return Transform(cx=np.array(cx), cy=np.array(cy), order=3, origin=(30.0, 30.0), scale=20.0)


def worst_weight(kernel: str, cases: int, seed: int) -> float:
    """Return the largest error of any weight, read off as the images of single pixels."""
    rng = np.random.default_rng(seed)
    image = np.zeros((60, 60), np.float32)
    image[4::9, 4::9] = 1
    worst = 0.0
    for _ in range(cases):
        transform = random_map(rng)
        x, y = rng.integers(4, 40, 2)
        tile = (int(y), int(y) + 8, int(x), int(x) + 16)
        out = np.empty((8, 16), np.float32)
        resample_tile(
            image, (0, 0), image.shape, transform, tile, out=out, options=ResampleOptions(kernel=kernel)
        )
        exact, _, _ = twin.resample(image, transform.shifted(x, y), out.shape, kernel)
        xy = np.argwhere(np.ones(out.shape))[:, ::-1] + [x, y]
        jacobian = np.abs(np.linalg.det(transform.jacobian(xy))).reshape(out.shape)
        error = np.abs(out - exact) / jacobian
        worst = max(worst, float(np.nanmax(error))) if np.isfinite(error).any() else worst
    return worst


def worst_flux(cases: int, seed: int) -> float:
    """Return the largest relative error of the flux of stars of FWHM 5 output pixels or more."""
    rng = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(cases):
        transform = random_map(rng)
        fwhm = 5 * max(1.0, transform.magnification)
        middle = transform([[30.0, 30.0]])
        frame = render_stars((160, 160), middle + 50, 1e4, fwhm=fwhm, beta=6, pixel="sampled", radius=75)
        cx, cy = transform.cx.copy(), transform.cy.copy()
        cx[0] += 50
        cy[0] += 50
        moved = Transform(cx=cx, cy=cy, order=3, origin=(80.0, 80.0), scale=20.0)
        out = resample(frame, moved, shape=(160, 160))
        radius = min(45, 30 / transform.magnification * 1.5)
        xy = np.argwhere(np.ones(out.shape))[:, ::-1]
        near = np.hypot(*(xy - 80).T) < radius
        dx, dy = (moved(xy[near]) - moved([[80.0, 80.0]])).T
        truth = 1e4 * moffat(dx, dy, fwhm=fwhm, beta=6) * np.abs(np.linalg.det(moved.jacobian(xy[near])))
        worst = max(worst, abs(float(np.sum(out[xy[near, 1], xy[near, 0]]) / truth.sum() - 1)))
    return worst


def width(kernel: str, fwhm: float, seed: int, n: int = 1000) -> tuple[float, float]:
    """Return the mean growth of the FWHM over random phases and its standard error."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(25)), -1).reshape(-1, 2)[:n] * 40 + 30
    xy = grid + rng.random((n, 2))
    image = render_stars((1060, 1660), xy, 1.0, fwhm=fwhm, beta=4, pixel="sampled", radius=18)
    shift = rng.random(2)
    out = resample(image, [[1, 0, shift[0]], [0, 1, shift[1]]], options=ResampleOptions(kernel=kernel))
    after = np.array([moment(out, at - shift) for at in xy])
    before = np.array([moment(image, at) for at in xy])
    growth = after / before - 1
    return float(growth.mean()), float(growth.std() / np.sqrt(n))


def moment(image: np.ndarray, at: np.ndarray) -> float:
    x, y = np.round(at).astype(int)
    dy, dx = np.mgrid[-15:16, -15:16]
    stamp = image[y - 15 : y + 16, x - 15 : x + 16].astype(float)
    r2 = (dx - (at[0] - x)) ** 2 + (dy - (at[1] - y)) ** 2
    weight = np.exp(-0.5 * r2 / 4)
    second = (weight * stamp * r2).sum() / (weight * stamp).sum() / 2
    return 1 / np.sqrt(1 / second - 1 / 4)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows: list[tuple[str, float, float, bool]] = []

    def target(name: str, value: float, limit: float) -> None:
        rows.append((name, value, limit, value <= limit))

    for kernel in ("bilinear", "bicubic", "lanczos2", "lanczos3", "lanczos4"):
        target(
            f"largest error of a weight, {kernel}", worst_weight(kernel, options.cases, options.seed), 1e-4
        )
    target("largest relative error of a star's flux", worst_flux(min(options.cases, 100), options.seed), 1e-4)
    for fwhm in (2.5, 3.0, 4.0):
        growth, error = width("lanczos3", fwhm, options.seed)
        target(f"growth of FWHM {fwhm}, lanczos3 (+- {error:.1e})", growth, 0.03)
    expected = {
        "nearest": 1,
        "bilinear": 0.667,
        "bicubic": 0.814,
        "lanczos2": 0.818,
        "lanczos3": 0.893,
        "lanczos4": 0.914,
    }
    image = np.random.default_rng(options.seed).normal(size=(2000, 2000)).astype(np.float32)
    for kernel, sigma in expected.items():
        out = resample(image, [[1, 0.00618, 0.1], [-0.00618, 1, 14]], options=ResampleOptions(kernel=kernel))
        phases = (np.arange(64) + 0.5) / 64
        theory = np.mean(
            [autocorrelation(kernel, p, 0.0).max() for p in phases]
        )  # rms over both axes' phases
        target(
            f"|sigma of a pixel / theory - 1|, {kernel}",
            abs(np.nanstd(out[20:-20, 20:-20]) / theory - 1),
            0.003,
        )
        target(f"|theory - {sigma}|, {kernel}", abs(theory - sigma), 1e-3)
    for name, value, limit, good in rows:
        print(f"{name:55s} {value:12.3e} {limit:10.1e}  {'ok' if good else 'MISSED'}")
    print(f"{options.cases} cases, seed {options.seed}")
    return 0 if all(row[3] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
