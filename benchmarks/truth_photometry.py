"""Errors end to end: the scatter of stars' fluxes about their ensemble over what UNCERT and NOISCORR give.

    python benchmarks/truth_photometry.py [--nights N] [--seed N] [--only WORD ...]

The same stars are observed in many nights, of other noise and other shifts, and stacked with nothing given:
transforms, flux scales, noise and stars are the pipeline's own. Stars lie 32 px apart, their fluxes evenly in the
logarithm. Of each stack, photutils sums apertures of 1, 1.5 and 2.5 FWHM (of the stack) at the true places; a flux over
its true value, divided by the ensemble's weighted mean of the same night, differs from its mean over the nights by
noise. Printed is the predicted error over the scatter with its 95 % interval (jackknife over nights), for stars in
three classes of brightness by their predicted error. The bilinear kernel changes a star of FWHM 2 with its place
between pixels, and the nearest pixel moves it: their shifts are the same in all nights, and the stars of the latter
faint.

Exits non-zero where the interval does not reach into 0.97 to 1.03.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from astropy.io import fits
from photutils.aperture import CircularAperture, aperture_photometry
from truth_uncertainty import HIGH, LOW, SQUARED

import fastack
from fastack.simulate import NightOptions, simulate_night
from fastack.uncertainty import NoiseCorrelation, aperture_error

SIDE, STEP = 640, 32
RADII = (1.0, 1.5, 2.5)  # FWHM
CLASSES = (0.0, 0.005, 0.02, 0.1)  # predicted relative error


@dataclass(frozen=True)
class Case:
    name: str
    night: dict[str, object]
    flux: tuple[float, float] = (1e3, 2e5)  # e- in a frame
    stack: dict[str, object] = field(default_factory=dict)


WIDE = tuple(np.geomspace(2, 6, 10))
CLOUDS = tuple(np.random.default_rng(5).uniform(0.5, 1, 10))
SHIFTS = tuple(map(tuple, np.random.default_rng(6).normal(0, 2, (10, 2))))
CASES = [
    Case("N = 3, FWHM 3, sky 400", {"n_frames": 3}),
    Case("N = 10, FWHM 2 to 6, moon, 1.5 degree", {"n_frames": 10, "fwhm": WIDE, "sky": 3000.0, "rotation": 1.5}),
    Case(
        "N = 10, FWHM 4, dark, gain 5, 15 e-",
        {"n_frames": 10, "fwhm": 4.0, "sky": 20.0, "gain": 5.0, "rdnoise": 15.0},
    ),
    Case(
        "N = 10, gain 0.5, 2 e-, a quarter turned",
        {"n_frames": 10, "gain": 0.5, "rdnoise": 2.0, "flipped": 0.25},
        (1e3, 1e5),
    ),
    Case(
        "N = 10, FWHM 2, bilinear, clouds",
        {"n_frames": 10, "fwhm": 2.0, "transparency": CLOUDS, "shifts": SHIFTS},
        (1e3, 1e5),
        {"kernel": "bilinear"},
    ),
    Case(
        "N = 10, FWHM 4, nearest, 1 degree",
        {"n_frames": 10, "fwhm": 4.0, "rotation": 1.0, "shifts": SHIFTS},
        (1e3, 1e4),
        {"kernel": "nearest"},
    ),
    Case(
        "N = 10, FWHM 2 to 6, clouds, by depth",
        {"n_frames": 10, "fwhm": WIDE, "transparency": CLOUDS},
        stack={"weights": "depth"},
    ),
    Case("N = 50, FWHM 2.5, 1.5 degree", {"n_frames": 50, "fwhm": 2.5, "rotation": 1.5}, (1e3, 1e5)),
    Case("N = 200, FWHM 3, 1 degree", {"n_frames": 200, "rotation": 1.0}),
]


def night(case: Case, field_seed: int, seed: int) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Each star's flux relative to the ensemble and its predicted error, by radius; NaN near the edges."""
    rng = np.random.default_rng(field_seed)
    x, y = np.meshgrid(np.arange(40, SIDE - 40, STEP), np.arange(40, SIDE - 40, STEP))
    stars = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.5, 0.5, (x.size, 2))
    light = np.exp(rng.permutation(np.linspace(*np.log(case.flux), x.size)))
    settings = {"shape": (SIDE, SIDE), "seed": seed, "fwhm_spread": 0.0, "transparency_spread": 0.0} | case.night
    made = simulate_night(NightOptions(**settings), catalogue={"x": stars[:, 0], "y": stars[:, 1], "flux": light})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        made.write(path)
        settings = {"framing": "reference", "reference": "d0001.fits"} | case.stack
        result = fastack.stack(path, output_path=path / "m.fits", **settings)
        fwhm = result.quality.fwhm
        with fits.open(path / "m.fits") as file:
            data, uncert, weight, counts = (file[k].data.astype(float) for k in (0, "UNCERT", "WEIGHT", "NCOMB"))
            factor = NoiseCorrelation.read(file[0].header)
    least = made.options.n_frames / 2
    whole = np.array([counts[int(b) - 16 : int(b) + 17, int(a) - 16 : int(a) + 17].min() >= least for a, b in stars])
    above = np.nan_to_num(data - np.nanmedian(data))
    out = {}
    for radius in RADII:
        at = CircularAperture(stars, radius * fwhm)
        error = aperture_error(uncert, 1 / weight, factor, radius * fwhm, squared=SQUARED)
        table = aperture_photometry(above, at, error=np.nan_to_num(error))
        ratio = np.where(whole, table["aperture_sum"], np.nan) / light
        predicted = np.where(whole, table["aperture_sum_err"], np.nan) / light
        mean = np.average(ratio[whole], weights=predicted[whole] ** -2.0)
        out[radius] = ratio / mean, predicted / mean
    return out


def ratios(case: Case, nights: int, seed: int) -> list[tuple[float, float]]:
    """Predicted error over scatter and its 95 % interval, NaN where stars are few; for each radius each class."""
    made = [night(case, seed, 1000 * seed + k) for k in range(nights)]
    out = []
    for radius in RADII:
        ratio, predicted = np.array([m[radius] for m in made]).transpose(1, 0, 2)
        seen = np.isfinite(ratio).sum(axis=0)
        often = seen > nights / 2
        ratio, predicted, seen = ratio[:, often], predicted[:, often], seen[often]
        distance = (ratio - np.nanmean(ratio, axis=0)) * np.sqrt(seen / (seen - 1))
        typical = np.sqrt(np.nanmean(predicted**2, axis=0))
        for low, high in pairwise(CLASSES):
            some = (typical >= low) & (typical < high)
            if some.sum() < 30:
                out.append((np.nan, np.nan))
                continue
            squares = np.nanmean((distance / predicted)[:, some] ** 2, axis=1)
            others = ((squares.sum() - squares) / (nights - 1)) ** -0.5
            reach = 1.96 * np.sqrt((nights - 1) / nights * ((others - others.mean()) ** 2).sum())
            out.append((float(squares.mean() ** -0.5), float(reach)))
    return out


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="cases whose names hold one of these")
    args = parser.parse_args()
    began, missed = time.perf_counter(), 0
    print(f"error / scatter at {', '.join(map(str, RADII))} FWHM, each for stars better than 0.5, 2 and 10 %")
    for case in CASES:
        if args.only and not any(word in case.name for word in args.only):
            continue
        nights = max(4, args.nights // 5) if case.night["n_frames"] == 200 else args.nights  # type: ignore[operator]
        text = ""
        for value, reach in ratios(case, nights, args.seed):
            good = not (value - reach > HIGH or value + reach < LOW)
            missed += not good
            text += f" {value:.3f}+-{reach:.3f}{' ' if good else '*'} " if value == value else f"{'-':>13s}  "
        print(f"{case.name:42s}{text}", flush=True)
    print(f"{missed} outside of their limits; {time.perf_counter() - began:.0f} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
