"""Depth of a stack for each choice of weights, beside the prediction of `--dry-run`.

    python benchmarks/truth_select.py [DATA] [--seeds 2]

Simulated nights of 12 frames: seeing from 2 to 5 px, sky brighter by up to a factor of four, transparency falling by
30 %. The point-spread function of each stack is that of its error-free twin; filtering the residual of both with it
gives the flux error of a faint star, from thousands of places. With DATA, the folder of real frames, the half stacks
of the even and the odd frames of lowell_night (sky from 1100 to 7100 ADU) are filtered in the same way with the profile
that was fitted to the stars of the stack: half the scatter of their difference is the error of the whole stack.
Gradients of twilight and moon, which differ between the halves, are subtracted with a local sky first.

Exits non-zero where a stack's depth is more than 3 % off the prediction.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.table import Table
from scipy import ndimage
from scipy.signal import fftconvolve
from scipy.spatial import cKDTree
from truth_stack import Stacked, clean, hard

import fastack
from fastack.render import render_stars
from fastack.select import WEIGHTS, predict_depth
from fastack.types import StarFlag, Stars

LIMIT = 0.03
HALF = 20  # pixels of the filter on either side
_UNLIKE = StarFlag.SATURATED | StarFlag.EXTENDED | StarFlag.SHARP | StarFlag.EDGE  # other profiles than a star's


def scatter(image: np.ndarray, psf: np.ndarray, use: np.ndarray) -> tuple[float, float]:
    """Standard deviation of the best flux estimate at the pixels `use`, and its relative error."""
    known = np.isfinite(image) & use
    flux = fftconvolve(np.where(known, image, 0), psf[::-1, ::-1], mode="same") / (psf**2).sum()
    # what is masked adds no noise
    part = fftconvolve(known, psf[::-1, ::-1] ** 2, mode="same") / (psf**2).sum()
    inner = part > 0.7
    flux /= np.sqrt(np.where(inner, part, 1))
    inner[:HALF] = inner[-HALF:] = inner[:, :HALF] = inner[:, -HALF:] = False
    flux = flux[inner]
    spread = 1.4826 * np.median(np.abs(flux - np.median(flux)))
    flux = flux[np.abs(flux - np.median(flux)) < 5 * spread]
    return float(flux.std()), float(1 / np.sqrt(2 * inner.sum() * (psf**2).sum()))


def level(image: np.ndarray, use: np.ndarray, sigma: float = 12.0) -> np.ndarray:
    """Smooth sky under `use`, as photometry with local skies subtracts it; takes 1 % of a star's noise along."""
    weight = ndimage.gaussian_filter(use.astype(float), sigma)
    return ndimage.gaussian_filter(np.where(use, image, 0), sigma) / np.maximum(weight, 1e-3)


def simulated(seed: int) -> Iterator[tuple[str, float, float, float]]:
    fwhm = np.geomspace(2.0, 5.0, 12)
    np.random.default_rng(seed).shuffle(fwhm)
    options = replace(
        clean(hard(12, seed)), fwhm=tuple(fwhm), sky_spread=0.6, transparency_spread=0.3, flipped=0.0, n_stars=90
    )
    for weights in WEIGHTS:
        s = Stacked(options, weights=weights)
        predicted = predict_depth(s.result.records, weights).limit
        truth, _ = s.expected()
        light = truth - np.nanmedian(truth)
        dark = light < 0.2 * np.nanmedian(s.result.uncertainty)
        value, error = scatter(s.result.data - truth, profile(s, light), dark)
        yield weights, predicted, 5 * value, error


def profile(s: Stacked, light: np.ndarray) -> np.ndarray:
    """Point-spread function of an error-free stack, the median of its brightest stars."""
    flux = s.night.truth.flux * s.reference.transparency / s.night.options.gain
    stamps = []
    for i in np.argsort(-flux)[:40]:
        place = s.places()[i]
        x, y = np.rint(place).astype(int)
        if HALF <= x < light.shape[1] - HALF and HALF <= y < light.shape[0] - HALF:
            stamp = light[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1] / flux[i]
            stamps.append(ndimage.shift(stamp, np.rint(place)[::-1] - place[::-1]))
    return np.asarray(np.median(stamps, axis=0))


def lowell(data: Path) -> Iterator[tuple[str, float, float, float]]:
    base = data / "lowell_night"
    files = sorted((base / "light").iterdir())
    masters = {"bias": str(base / "bias"), "flat": str(base / "flat")}
    for weights in WEIGHTS:
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "whole.fits"
            whole = fastack.stack(files, output_path=target, framing="intersection", weights=weights, **masters)
            predicted = predict_depth(whole.records, weights)
            # the halves with the weights and the scale of the whole
            table = Table({"name": [r.name for r in whole.used], "weight": [r.weight for r in whole.used]})
            table.write(Path(directory) / "weights.ecsv")
            more = {"grid": str(target), "weights": "weight", "weight_table": str(Path(directory) / "weights.ecsv")}
            halves = [fastack.stack(files[k::2], reference=files[k].name, **masters, **more) for k in (0, 1)]
            data, stars = whole.data, whole.stars
        scale = {r.name: r.scale for r in whole.used}
        total = [sum(r.weight for r in whole.used if r.path in files[k::2]) for k in (0, 1)]
        parts = [h.data * scale[h.reference] for h in halves]
        share = np.array(total) / sum(total)
        # of noise alone: the same variance as that of the weighted mean of both
        difference = share[0] * parts[0] - share[1] * parts[1]
        ny, nx = whole.shape
        inner = np.zeros(whole.shape, bool)
        inner[ny // 4 : -ny // 4, nx // 4 : -nx // 4] = True
        sky = ndimage.median_filter(data[::8, ::8], 15).repeat(8, axis=0).repeat(8, axis=1)[:ny, :nx]
        smooth = ndimage.gaussian_filter(np.nan_to_num(data - sky), 1.5)
        noise = 1.4826 * np.nanmedian(np.abs(smooth[inner]))
        dark = inner & ~ndimage.binary_dilation(smooth > 4 * noise, iterations=5) & np.isfinite(data)
        difference -= level(difference, dark)
        psf = render_stars((2 * HALF + 1,) * 2, [(HALF, HALF)], [1.0], fwhm=whole.quality.fwhm, beta=whole.quality.beta)
        value, error = scatter(difference, psf, dark)
        # the noise through that filter, but the area of the stars themselves: these are undersampled
        area, unsure = star_area(data, stars)
        measured = 5 * value * np.sqrt((psf**2).sum() * area)
        yield weights, predicted.limit, measured, float(np.hypot(error, unsure / 2))


def star_area(image: np.ndarray, stars: Stars, radius: float = 8.0) -> tuple[float, float]:
    """Noise-equivalent area of single stars that are whole, from the pixels within `radius`, and its relative error."""
    tree, found = cKDTree(stars.xy), []
    y, x = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    for (u, v), flux, snr, bad in zip(stars.xy, stars.flux, stars.snr, stars.has(_UNLIKE), strict=True):
        near = [k for k in tree.query_ball_point((u, v), radius + 2) if stars.flux[k] > 0.01 * flux]
        i, j = round(u), round(v)
        inside = HALF <= i < image.shape[1] - HALF and HALF <= j < image.shape[0] - HALF
        if bad or len(near) > 1 or snr < 50 or not inside:
            continue
        stamp = image[j - HALF : j + HALF + 1, i - HALF : i + HALF + 1].astype(float)
        r = np.hypot(x + i - u, y + j - v)
        sky = stamp[r > 1.5 * radius]
        star, noise = (stamp - np.nanmedian(sky))[r < radius], 1.4826 * np.nanmedian(np.abs(sky - np.nanmedian(sky)))
        if np.isfinite(star).all():
            found.append(((star**2).sum() - star.size * noise**2) / star.sum() ** 2)
    middle = float(np.median(found))
    spread = 1.4826 * float(np.median(np.abs(np.array(found) - middle)))
    return 1 / middle, 1.2533 * spread / middle / np.sqrt(len(found))  # a median's error


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    missed = 0
    print("night                weights    predicted/adu  measured/adu  measured/predicted")
    nights = [(f"simulated, seed {seed}", simulated(seed)) for seed in range(1, 1 + args.seeds)]
    if args.data is not None:
        nights.append(("lowell_night", lowell(args.data)))
    for name, rows in nights:
        for weights, predicted, measured, error in rows:
            ratio = measured / predicted
            bad = abs(ratio - 1) > LIMIT
            missed += bad
            print(
                f"{name:20s} {weights:10s} {predicted:13.3f} {measured:13.3f}  {ratio:.3f}"
                f" +- {1.96 * ratio * error:.3f}{'  MISSED' if bad else ''}",
                flush=True,
            )
    print(f"{missed} missed" if missed else "all met")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
