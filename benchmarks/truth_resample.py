"""Resampling against the truth, in full; prints a table and exits 1 where a target is missed.

``python benchmarks/truth_resample.py [--cases 200] [--seed 1]``: random maps (any rotation, mirrored or not,
scale 0.5 to 2, half of them with cubic distortion) for the weights, these and one night's for the flux, 1000
stars of random phase for the width, white noise for the pixel's sigma.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference import resample as twin

from fastack.options import ResampleOptions
from fastack.render import moffat, render_stars
from fastack.resample import autocorrelation, resample, resample_tile
from fastack.types import Transform


def random_map(rng: np.random.Generator) -> Transform:
    """Rotate by anything, or by little, about the middle of a 60 x 60 frame."""
    t = np.deg2rad(rng.choice([rng.uniform(-180, 180), rng.normal(0, 1.5), 90 * rng.integers(4) + rng.normal()]))
    scale = rng.choice([1.0, 1 + rng.normal(0, 1e-3), rng.uniform(0.5, 2)])
    m = scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag([rng.choice([-1, 1]), 1])
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
        resample_tile(image, (0, 0), image.shape, transform, tile, out=out, options=ResampleOptions(kernel=kernel))
        exact, _, _ = twin.resample(image, transform.shifted(x, y), out.shape, kernel)
        xy = np.argwhere(np.ones(out.shape))[:, ::-1] + [x, y]
        jacobian = np.abs(np.linalg.det(transform.jacobian(xy))).reshape(out.shape)
        error = np.abs(out - exact) / jacobian
        worst = max(worst, float(np.nanmax(error))) if np.isfinite(error).any() else worst
    return worst


def gentle_map(rng: np.random.Generator, degrees: float, stretch: float) -> Transform:
    """Rotate and scale a little, with 0.1 pixel of distortion at 1000 pixels."""
    t, scale = np.deg2rad(rng.uniform(-degrees, degrees)), 1 + rng.uniform(-stretch, stretch)
    m = 1000 * scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    bend = rng.uniform(-0.1, 0.1, (2, 7))
    start = 30 + rng.uniform(-1, 1, 2)
    cx, cy = (np.array([start[k], *m[k], *bend[k]]) for k in range(2))
    return Transform(cx=cx, cy=cy, order=3, origin=(30.0, 30.0), scale=1000.0)


def flux_errors(draw: Callable[[np.random.Generator], Transform], cases: int, seed: int) -> np.ndarray:
    """Return errors of the fluxes of stars of FWHM 5 output pixels or more, within 4 FWHM."""
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(cases):
        transform = draw(rng)
        fwhm = 5 * max(1.0, transform.magnification)
        frame = render_stars(
            (160, 160), transform([[30.0, 30.0]]) + 50, 1e4, fwhm=fwhm, beta=6, pixel="sampled", radius=75
        )
        cx, cy = transform.cx.copy(), transform.cy.copy()
        cx[0] += 50
        cy[0] += 50
        moved = Transform(cx=cx, cy=cy, order=3, origin=(80.0, 80.0), scale=transform.scale)
        out = resample(frame, moved, shape=(160, 160))
        xy = np.argwhere(np.ones(out.shape))[:, ::-1]
        near = xy[np.hypot(*(xy - 80).T) < 4 * fwhm / transform.magnification]
        dx, dy = (moved(near) - moved([[80.0, 80.0]])).T
        truth = 1e4 * moffat(dx, dy, fwhm=fwhm, beta=6) * np.abs(np.linalg.det(moved.jacobian(near)))
        errors.append(float(np.sum(out[near[:, 1], near[:, 0]]) / truth.sum() - 1))
    return np.array(errors)


def scatter_of_mean(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


def width(kernel: str, fwhm: float, seed: int, n: int = 1000) -> tuple[float, float]:
    """Return the mean growth of the FWHM over random phases and its standard error."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(25)), -1).reshape(-1, 2)[:n] * 40 + 40
    xy = grid + rng.random((n, 2))
    image = render_stars((1080, 1680), xy, 1.0, fwhm=fwhm, beta=4, pixel="sampled", radius=18)
    # Turned by 0.3 degree about the middle: every star at another phase of the grid.
    transform = Transform.affine([[1.0, 0.005, -2.6], [-0.005, 1.0, 4.4]])
    out = resample(image, transform, options=ResampleOptions(kernel=kernel))
    after = np.array([moment(out, at) for at in transform.inverse(xy)])
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
        target(f"largest error of a weight, {kernel}", worst_weight(kernel, options.cases, options.seed), 1e-4)
    # The phase drifts by |step - 1| a pixel, and Lanczos-3 then gains or loses 0.124 |step - 1| per axis.
    cases = min(options.cases, 100)
    for degrees, stretch, limit in ((1.0, 2e-4, 1e-4), (2.0, 1e-3, 2 * 0.124 * 1.6e-3 + 5e-5)):
        draw = functools.partial(gentle_map, degrees=degrees, stretch=stretch)
        worst = np.abs(flux_errors(draw, cases, options.seed)).max()
        target(f"error of a flux, to {degrees} degree, {stretch:.0e} in scale", worst, limit)
    anything = flux_errors(random_map, cases, options.seed)
    target("mean error of a flux, any map", abs(anything.mean()), 1e-4 + 3 * scatter_of_mean(anything))
    target("largest error of a flux, any map", np.abs(anything).max(), 5e-3)
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
        theory = np.mean([autocorrelation(kernel, p, 0.0).max() for p in phases])  # rms over both axes' phases
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
