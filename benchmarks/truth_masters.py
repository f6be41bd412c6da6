"""Masters and their noise against truth, on simulated raw nights.

    python benchmarks/truth_masters.py [--nights 4]

Raw bias, dark and flat frames are drawn with a known level, response, hot pixels, cold pixels and a dead column, and
go through `fastack.masters.make`. Then light frames of the same camera are stacked with them, everything redrawn for
each night: the scatter of the stack about its error-free twin (the run's own transforms), in units of UNCERT, off the
stars and on them, once as it is and once without the masters' part, which is what N frames of independent noise
would have.

Exits non-zero where the noise of a master is more than 3 % off its UNCERT plane, a bad pixel is missed or invented, or
the scatter of a stack is more than 3 % off its UNCERT plane.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

import fastack
from fastack import coadd, masters
from fastack.options import CalibrateOptions
from fastack.simulate import NightOptions, simulate_night

BIAS, GAIN, RDNOISE, EXPOSURE, DARK = 300.0, 1.5, 9.0, 60.0, 0.4
SHAPE = (320, 340)
LIMIT = 0.03


def camera(rng: np.random.Generator, *, bad: bool = True) -> dict[str, np.ndarray]:
    """Response and dark current (e-/s) of a detector, and its bad pixels."""
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    flat = (1 - 0.3 * (x * x + y * y) / 2) * (1 + 0.01 * rng.standard_normal(SHAPE))
    dark = np.full(SHAPE, DARK)
    cold, column, hot = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    if bad:
        cold.flat[rng.choice(flat.size, 25, replace=False)] = True
        hot.flat[rng.choice(flat.size, 40, replace=False)] = True
        column[:, 200] = True
    flat[cold] *= 0.4
    flat[column] *= 0.05
    dark[hot] += 30
    return {"flat": flat / np.median(flat), "dark": dark, "hot": hot, "cold": cold, "column": column}


def raw(kind: str, n: int, sensor: dict[str, np.ndarray], level: float, path: Path, rng: np.random.Generator) -> None:
    """Write n raw frames of a kind."""
    path.mkdir()
    for k in range(n):
        light = {"bias": 0.0, "dark": sensor["dark"] * EXPOSURE, "flat": sensor["flat"] * level * (1 + 0.1 * k)}[kind]
        electrons = rng.poisson(np.broadcast_to(light, SHAPE)) + RDNOISE * rng.standard_normal(SHAPE)
        header = fits.Header({"IMAGETYP": kind, "EXPTIME": EXPOSURE if kind == "dark" else 0.0, "FILTER": "V"})
        pixels = np.clip(np.rint(BIAS + electrons / GAIN), 0, 65535).astype(np.uint16)
        fits.writeto(path / f"{kind}{k}.fits", pixels, header)


def making(night: int) -> Iterator[tuple[str, float, float, int, int]]:
    """Of each master: its name, scatter / UNCERT, its standard error, bad pixels missed and invented."""
    rng = np.random.default_rng([1, night])
    sensor = camera(rng)
    for n in (3, 5, 10, 30):
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            for kind in ("bias", "dark", "flat"):
                raw(kind, n, sensor, 20_000.0, root / kind, rng)
            made: dict[str, masters.MasterFile] = {}
            for kind, given in (("bias", ()), ("dark", ("bias",)), ("flat", ("bias",))):
                options = CalibrateOptions(**{name: str(root / f"{name}.fits") for name in given})
                made[kind] = masters.make(kind, [root / kind], root / f"{kind}.fits", options=options)
        bias = made["bias"].master.pixels
        # what is subtracted from darks and flats is the master bias itself, noise and all
        truth = {
            "bias": np.full(SHAPE, BIAS),
            "dark": BIAS + sensor["dark"] * EXPOSURE / GAIN - bias,
            "flat": sensor["flat"],
        }
        expected = {"dark": sensor["hot"], "flat": sensor["cold"] | sensor["column"]}
        for kind, one in made.items():
            master, bad = one.master, one.bad
            use = ~(sensor["hot"] | sensor["cold"] | sensor["column"])
            pull = ((master.pixels - truth[kind]) / np.sqrt(master.variance))[use]
            pull -= np.median(pull)
            missed = invented = 0
            if bad is not None:
                missed = int((expected[kind] & (bad == 0)).sum())
                invented = int((~expected[kind] & (bad > 0)).sum())
            yield f"{kind} of {n}", float(pull.std()), float(1 / np.sqrt(2 * pull.size)), missed, invented


@dataclass(frozen=True)
class Case:
    lights: int
    bias: int
    darks: int
    flats: int
    level: float  # e- in a flat
    sky: float  # e-
    dither: float  # px
    kernel: str = "lanczos3"


CASES = (
    Case(20, 3, 0, 0, 0.0, 20.0, 0.0),
    Case(20, 3, 3, 0, 0.0, 20.0, 0.0),
    Case(20, 10, 0, 2, 5_000.0, 4_000.0, 0.0),
    Case(20, 3, 0, 2, 5_000.0, 1_000.0, 0.3),
    Case(20, 3, 0, 2, 5_000.0, 1_000.0, 0.3, "bilinear"),
    Case(20, 3, 3, 2, 5_000.0, 1_000.0, 5.0),
)


def stacking(case: Case, nights: int) -> tuple[float, float, float, float, float]:
    """Scatter over UNCERT on the sky, its standard error, on stars, its error, and on the sky without the masters."""
    sky, stars, plain = [], [], []
    for seed in range(nights):
        rng = np.random.default_rng([2, seed])
        sensor = camera(rng, bad=False)
        night = simulate_night(
            NightOptions(
                n_frames=case.lights, shape=SHAPE, seed=seed + 1, n_stars=60, flux=(3e3, 3e5), fwhm=3.5,
                fwhm_spread=0.0,
                dither=case.dither, transparency_spread=0.0, sky=case.sky, sky_spread=0.0, gain=GAIN, rdnoise=RDNOISE,
                bias=BIAS, exposure=EXPOSURE,
            )
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            (root / "light").mkdir()
            ideal = {}
            for k in range(case.lights):
                light = (night.expected(k) - BIAS) * GAIN
                electrons = light * sensor["flat"] + (sensor["dark"] * EXPOSURE if case.darks else 0)
                drawn = rng.poisson(electrons) + RDNOISE * rng.standard_normal(SHAPE)
                pixels = np.clip(np.rint(BIAS + drawn / GAIN), 0, 65535).astype(np.uint16)
                fits.writeto(root / "light" / f"d{k:04d}.fits", pixels, night[k].header)
                ideal[f"d{k:04d}.fits"] = (light / GAIN).astype(np.float32)
            settings: dict[str, Any] = {"register": "none"} if case.dither == 0 else {}
            for kind, n in (("bias", case.bias), ("dark", case.darks), ("flat", case.flats)):
                if n:
                    raw(kind, n, sensor, case.level, root / kind, rng)
                    settings[kind] = str(root / kind)
            if not case.flats:
                night_flat = sensor["flat"].astype(np.float32)
                header = fits.Header({"IMAGETYP": "flat", "FILTER": "V", "NCOMBINE": 9})
                fits.writeto(root / "true_flat.fits", night_flat, header)
                settings["flat"] = str(root / "true_flat.fits")
            settings |= {"reject": "none", "framing": "intersection", "kernel": case.kernel}
            result = fastack.stack(root / "light", **settings)
            hook, coadd._shared_noise = coadd._shared_noise, lambda *_: None
            without = fastack.stack(root / "light", **settings)
            coadd._shared_noise = hook
        ny, nx = result.shape
        truth = np.zeros((ny, nx))
        for r in result.used:
            to_frame = r.transform.shifted(*result.grid.origin)
            one = ideal[r.name] * r.scale
            truth += fastack.resample(one, to_frame, shape=(ny, nx), options=result.options.resample) / len(result.used)
        known = np.isfinite(result.data) & (result.plane("NCOMB") == case.lights)
        known[:6] = known[-6:] = known[:, :6] = known[:, -6:] = False
        residual = result.data - truth
        light = truth - np.median(truth[known])
        noise = np.median(result.uncertainty[known])
        dark, bright = known & (light < 0.2 * noise), known & (light > 40 * noise)
        residual -= np.median(residual[dark])
        sky.append(np.mean((residual / result.uncertainty)[dark] ** 2))
        plain.append(np.mean((residual / without.uncertainty)[dark] ** 2))
        stars.append((residual / result.uncertainty)[bright] ** 2)
    several = np.concatenate(stars)
    error = np.std(sky) / np.sqrt(nights) / 2
    return (
        float(np.sqrt(np.mean(sky))), float(max(error, 1e-3)), float(np.sqrt(several.mean())),
        float(several.std() / np.sqrt(several.size) / 2), float(np.sqrt(np.mean(plain))),
    )  # fmt: skip


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=4)
    args = parser.parse_args()
    missed = 0
    print("master       scatter / UNCERT   bad pixels missed, invented")
    for name, value, error, lost, invented in making(1):
        bad = abs(value - 1) > LIMIT or lost or invented
        missed += bool(bad)
        print(
            f"{name:12s} {value:.3f} +- {1.96 * error:.3f}    {lost} {invented}{'  MISSED' if bad else ''}", flush=True
        )
    print(
        "lights bias darks flats (level)  sky dither kernel    scatter / UNCERT: sky, stars; without the masters' part"
    )
    for case in CASES:
        sky, sky_error, star, star_error, plain = stacking(case, args.nights)
        bad = abs(sky - 1) > LIMIT + 2 * sky_error
        missed += bad
        print(
            f"{case.lights:6d} {case.bias:4d} {case.darks:5d} {case.flats:5d} {case.level:7.0f} {case.sky:5.0f}"
            f" {case.dither:6.1f} {case.kernel:9s}  {sky:.3f} +- {2 * sky_error:.3f}"
            f"  {star:.3f} +- {2 * star_error:.3f}  {plain:.3f}{'  MISSED' if bad else ''}",
            flush=True,
        )
    print(f"{missed} missed" if missed else "all met")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
