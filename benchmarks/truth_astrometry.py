"""The astrometry's targets, case by case, with their intervals; exits with 1 where one is missed.

    python benchmarks/truth_astrometry.py [class ...] [--cases N] [--first SEED] [--data DIR]

Classes: fields, elsewhere, bent, few, cpu, ucac4, gaia, pixels. All but the last begin with lists of stars whose errors
are what they say; `pixels` renders the real catalogues' stars and goes the way of `fastack solve`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.time import Time
from scipy.spatial import cKDTree
from scipy.stats import beta

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from reference import astrometry as ref

from fastack.astrometry import solve
from fastack.errors import SolveError
from fastack.guess import Guess
from fastack.platesolve import SolvedFile, solve_file
from fastack.positions import proper_motion
from fastack.render import render_stars
from fastack.solution import Solution
from fastack.tables import read_file


def interval(k: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson, 95 %."""
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return float(low), float(high)


def share(label: str, k: int, n: int) -> None:
    low, high = interval(k, n)
    print(f"  {label}: {k} of {n} = {100 * k / n:.2f} % (95 %: {100 * low:.2f} to {100 * high:.2f})")


def guess_of(f: ref.Field, rng: np.random.Generator, cover: float = 1.5) -> Guess:
    """Pointing wrong by up to `cover` widths, scale by 10 %, parity unknown."""
    scale = f.scale * rng.uniform(0.9, 1.1)
    limits = scale / 1.15, scale * 1.15
    return Guess(ra=f.pointing[0], dec=f.pointing[1], radius=cover * f.width, scale=scale, scale_range=limits)


def timed(f: ref.Field, guess: Guess) -> tuple[Solution | None, float]:
    start = time.process_time()
    try:
        solution = solve(f.stars, f.catalogue, f.shape, guess=guess)
    except SolveError:
        solution = None
    return solution, time.process_time() - start


def run_fields(first: int, cases: int, distortion: float = 0.0) -> bool:
    solved = wrong = 0
    seconds, lost = [], []
    for seed in range(first, first + cases):
        rng = np.random.default_rng(seed)
        n = int(np.exp(rng.uniform(np.log(200), np.log(2000)))) if distortion else None
        f = ref.field(rng, n_stars=n, distortion=distortion * rng.uniform(0, 1))
        solution, cpu = timed(f, guess_of(f, rng))
        seconds.append(cpu)
        if solution is None:
            lost.append(seed)
            continue
        solved += 1
        error = ref.separation(solution.wcs, f.wcs, f.shape).max() / f.scale
        if error > 2:
            wrong += 1
            print(f"  seed {seed}: {error:.1f} px off, {solution.n} stars of {len(f.stars)}, order {solution.order}")
    print(f"fields, distortion up to {distortion} px at the edge, seeds {first} to {first + cases - 1}:")
    share("solved", solved, cases)
    share("wrong by more than 2 px somewhere", wrong, cases)
    print(f"  CPU median {np.median(seconds):.3f} s, 95 % below {np.quantile(seconds, 0.95):.3f} s; not solved: {lost}")
    return solved >= 0.995 * cases and not wrong


def run_few(first: int, cases: int) -> bool:
    """Strong distortion with so few stars that they may not tell it: refused is right, wrong is not."""
    refused, errors, expected = 0, [], []
    for seed in range(first, first + cases):
        rng = np.random.default_rng(seed)
        f = ref.field(rng, n_stars=int(np.exp(rng.uniform(np.log(25), np.log(100)))), distortion=8 * rng.uniform(0, 1))
        solution, _ = timed(f, guess_of(f, rng))
        if solution is None:
            refused += 1
            continue
        errors.append(ref.separation(solution.wcs, f.wcs, f.shape).max() / f.scale)
        expected.append(solution.map_error / f.scale)
        if errors[-1] > 2:
            print(
                f"  seed {seed}: {errors[-1]:.1f} px off, {expected[-1]:.2f} expected, {solution.n} stars,"
                f" order {solution.order}"
            )
    worst, sigma = np.array(errors), np.array(expected)
    print(f"25 to 100 detections, distortion up to 8 px at the edge, seeds {first} to {first + cases - 1}:")
    share("refused", refused, cases)
    share("wrong by more than 2 px somewhere", int((worst > 2).sum()), cases)
    share("off by more than 4 times what ASTRERR says", int((worst > 4 * sigma).sum()), cases)
    ratio = worst / sigma
    print(
        f"  worst error {worst.max():.1f} px; error over the expected one: median {np.median(ratio):.2f},"
        f" 99 % below {np.quantile(ratio, 0.99):.1f}"
    )
    return bool((worst > 2).sum() <= 0.02 * cases and worst.max() < 3 and (ratio > 4).sum() <= 0.01 * cases)


def run_elsewhere(first: int, cases: int) -> bool:
    solved, seconds = 0, []
    for seed in range(first, first + cases):
        rng = np.random.default_rng(seed)
        f = ref.field(rng)
        other = ref.field(rng, n_stars=len(f.stars), shape=f.shape, scale=f.scale)
        f.pointing, f.catalogue = other.pointing, other.catalogue
        solution, cpu = timed(f, guess_of(f, rng))
        seconds.append(cpu)
        solved += solution is not None
    print(f"the catalogue of a different place, seeds {first} to {first + cases - 1}:")
    share("solved", solved, cases)
    print(f"  CPU median {np.median(seconds):.2f} s, 95 % below {np.quantile(seconds, 0.95):.2f} s")
    return not solved


def run_cpu(first: int, cases: int) -> bool:
    seconds, sizes = [], []
    for seed in range(first, first + cases):
        rng = np.random.default_rng(seed)
        f = ref.field(rng, n_stars=500, shape=(1500, 1500), cover=0.58)
        sizes.append(len(f.catalogue))
        seconds.append(timed(f, guess_of(f, rng, 0.58))[1])
    median, high = np.median(seconds), np.quantile(seconds, 0.95)
    print(f"500 detections, {np.median(sizes):.0f} catalogue stars, {cases} fields from seed {first}:")
    print(f"  CPU median {median:.3f} s, 95 % below {high:.3f} s")
    return bool(median < 0.3)


def run_ucac4(data: Path, cases: int) -> bool:
    catalogue = ref.ucac4(data / "catalogues" / "ucac4_vizier_cygx1.csv")
    rows = [ref.ucac4_case(catalogue, seed, solve, Guess) for seed in range(cases)]
    ratio, worst, n = np.array(rows).T
    print(f"UCAC4 rows, 20' at 0.7 arcsec/px, {cases} draws, {np.median(n):.0f} stars:")
    print(f"  residuals / predicted: {ratio.min():.3f} to {ratio.max():.3f}, median {np.median(ratio):.3f}")
    print(f"  worst error of the solution: {worst.max():.4f} arcsec")
    return bool(np.abs(ratio - 1).max() < 0.1 and worst.max() < 0.03)


def run_gaia(data: Path, cases: int) -> bool:
    good = True
    for path in sorted((data / "catalogues").glob("gaia_dr2_chunk_*.fits")):
        for words, carry in (("carried", proper_motion), ("left at their epoch", lambda c, _: c)):
            rows = [ref.gaia_case(path, seed, solve, Guess, carry) for seed in range(cases)]
            ratio, worst, n = np.array(rows).T
            print(
                f"Gaia {path.stem[-5:]}, 10 years on, {words}, {cases} draws, {np.median(n):.0f} stars of SNR >= 100:"
            )
            print(f"  rms / Cramer-Rao bound: {ratio.min():.3f} to {ratio.max():.3f}")
            print(f"  worst error of the solution: {1000 * worst.max():.2f} mas")
            met = bool(ratio.max() < 1.2 and worst.max() < 0.003)
            good &= met if words == "carried" else not met
    return good


def solve_rendered(
    path: Path,
    radec: tuple[np.ndarray, np.ndarray],
    flux: np.ndarray,
    wcs: object,
    *,
    fwhm: float,
    variance: float,
    year: float,
    rng: np.random.Generator,
) -> tuple[SolvedFile, float]:
    """Stars rendered into an image of electrons, written as FITS, solved as a file; and the largest error in arcsec."""
    shape = wcs.array_shape
    xy = np.column_stack(wcs.all_world2pix(*radec, 0))
    inside = ((xy > -30) & (xy < np.array(shape[::-1]) + 30)).all(axis=1)
    light = render_stars(shape, xy[inside], flux[inside], fwhm=fwhm).astype(float) + variance
    scale = 3600 * np.sqrt(abs(np.linalg.det(wcs.wcs.cd)))
    header = fits.Header({"GAIN": 1.0, "RDNOISE": 0.0, "EXPTIME": 1.0, "SECPIX": round(1.03 * scale, 3)})
    header["DATE-OBS"] = Time(year, format="jyear", scale="utc").isot
    header["RA"], header["DEC"] = wcs.wcs.crval[0] + 0.05, wcs.wcs.crval[1] - 0.05
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "image.fits"
        fits.writeto(image, rng.poisson(light).astype(np.float32), header)
        solved = solve_file(image, str(path), image.with_name("solved.fits"))
    return solved, float(ref.separation(solved.solution.wcs, wcs, shape).max())


def centroid_bound(flux: float, at: np.ndarray, fwhm: float, variance: float) -> tuple[float, float]:
    """Cramer-Rao bound of a position per axis (pixel) and signal-to-noise ratio of a rendered star."""
    middle, step = 20 + at % 1, 0.05
    light, left, right = (
        render_stars((41, 41), [middle + np.array([dx, 0])], flux, fwhm=fwhm).astype(float) for dx in (0.0, -step, step)
    )
    noise2 = light + variance
    slope = (right - left) / (2 * step)
    return float(1 / np.sqrt((slope**2 / noise2).sum())), float(np.sqrt((light**2 / noise2).sum()))


def run_pixels(data: Path, first: int, cases: int) -> bool:
    """The real UCAC4 at 0.7 arcsec/px and the real Gaia at 0.6 arcsec/px and FWHM 1.5 arcsec, from pixels."""
    good = True
    path = data / "catalogues" / "ucac4_vizier_cygx1.csv"
    rows = []
    for seed in range(first, first + cases):
        rng = np.random.default_rng(seed)
        there = proper_motion(read_file(path), 2019.08)
        errors = np.column_stack([there.ra_err, there.dec_err]) * rng.normal(0, 1, (len(there), 2)) / 3.6e6
        radec = there.ra + errors[:, 0] / np.cos(np.radians(there.dec)), there.dec + errors[:, 1]
        wcs = ref.true_wcs(299.59, 35.20, 0.7, rng.uniform(0, 360), int(rng.choice([-1, 1])), (1714, 1714))
        wcs.array_shape = 1714, 1714
        flux = 10 ** (-0.4 * (np.nan_to_num(there.mag, nan=17.0) - 25))
        solved, worst = solve_rendered(path, radec, flux, wcs, fwhm=3.0, variance=200.0, year=2019.08, rng=rng)
        s = solved.solution
        ours, theirs = s.pairs.T
        stated = np.column_stack([s.catalogue.ra_err, s.catalogue.dec_err])[theirs] / 1000
        expected = np.hypot(stated, (solved.stars.xy_err[ours] * 0.7)[:, None])
        # of a star without a known motion the error only bounds it
        known = np.isfinite(s.catalogue.pm_ra[theirs])
        z2 = ((s.residuals[known] / expected[known]) ** 2).sum(axis=1)
        rows.append((np.sqrt((z2 / 2).mean()), np.sqrt(np.median(z2) / (2 * np.log(2))), worst, s.n))
    ratio, middle, worst, n = np.array(rows).T
    print(f"UCAC4 rendered, 20' at 0.7 arcsec/px, epoch 2019.08, {cases} draws, {np.median(n):.0f} stars:")
    print(f"  rms of residuals / predicted: {ratio.min():.3f} to {ratio.max():.3f}, median {np.median(ratio):.3f}")
    print(f"  median of residuals / predicted: {middle.min():.3f} to {middle.max():.3f}")
    print(f"  worst error of the solution: {worst.max():.4f} arcsec")
    good &= bool(np.abs(ratio - 1).max() < 0.1 and worst.max() < 0.03)
    for path in sorted((data / "catalogues").glob("gaia_dr2_chunk_*.fits")):
        rows = []
        for seed in range(first, first + cases):
            rng = np.random.default_rng(seed)
            catalogue = ref.gaia(path)
            radec = ref.moved(catalogue, 10.0, rng)
            place = float(np.median(catalogue.ra)), float(np.median(catalogue.dec))
            wcs = ref.true_wcs(*place, 0.6, rng.uniform(0, 360), int(rng.choice([-1, 1])), (1200, 1200))
            wcs.array_shape = 1200, 1200
            flux = 2e4 * 10 ** (-0.4 * (catalogue.mag - 19))
            kind = {"fwhm": 2.5, "variance": 1800.0}  # SNR 100 at G = 19, mostly the sky's noise
            solved, worst = solve_rendered(path, radec, flux, wcs, year=2025.5, rng=rng, **kind)
            s = solved.solution
            ours, theirs = s.pairs.T
            bound, snr = np.array(
                [
                    centroid_bound(2e4 * 10 ** (-0.4 * (s.catalogue.mag[j] - 19)), solved.stars.xy[i], **kind)
                    for i, j in zip(ours, theirs, strict=True)
                ]
            ).T
            moving = (snr >= 100) & np.isfinite(s.catalogue.pm_ra[theirs])
            # the bound is that of one star whose light is all there
            xy = np.column_stack(wcs.all_world2pix(*radec, 0))
            alone = cKDTree(xy).query(s.xy, 2)[0][:, 1] > 2 * kind["fwhm"]
            whole = (np.abs(s.xy - 599.5) < 600 - 2 * kind["fwhm"]).all(axis=1)
            r2, b2 = (s.residuals**2).mean(axis=1), (0.6 * bound) ** 2
            bright = moving & alone & whole
            every = np.sqrt(r2[moving].mean() / b2[moving].mean())
            row = np.sqrt(r2[bright].mean() / b2[bright].mean()), every, np.sqrt(r2[bright].mean()), worst
            rows.append((*row, bright.sum(), moving.sum()))
        ratio, every, rms, worst, n, total = np.array(rows).T
        print(
            f"Gaia {path.stem[-5:]} rendered, ten years on, {cases} draws, {np.median(total):.0f} stars of SNR >= 100:"
        )
        print(
            f"  {np.median(n):.0f} stars of SNR >= 100, alone within 2 FWHM and not at the edge: rms / Cramer-Rao bound"
            f" {ratio.min():.3f} to {ratio.max():.3f}, rms {1000 * np.median(rms):.1f} mas"
        )
        print(f"  all {np.median(total):.0f}, blends too: rms / bound {every.min():.2f} to {every.max():.2f}")
        print(f"  worst error of the solution: {1000 * worst.max():.2f} mas")
        good &= bool(ratio.max() < 1.2 and worst.max() < 0.003)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    every = ("fields", "elsewhere", "bent", "few", "cpu", "ucac4", "gaia", "pixels")
    parser.add_argument("classes", nargs="*", help="default: all")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--first", type=int, default=0)
    default = os.environ.get("FASTACK_TEST_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    args = parser.parse_args()
    if unknown := set(args.classes) - set(every):
        parser.error(f"unknown classes {sorted(unknown)}")
    good = True
    for name in args.classes or every:
        if name == "fields":
            met = run_fields(args.first, args.cases or 1000)
        elif name == "bent":
            met = run_fields(args.first, args.cases or 300, 8.0)
        elif name == "few":
            met = run_few(args.first, args.cases or 300)
        elif name == "elsewhere":
            met = run_elsewhere(args.first, args.cases or 1000)
        elif name == "cpu":
            met = run_cpu(args.first, args.cases or 100)
        elif name == "ucac4":
            met = run_ucac4(args.data, args.cases or 20)
        elif name == "pixels":
            met = run_pixels(args.data, args.first, args.cases or 10)
        else:
            met = run_gaia(args.data, args.cases or 10)
        print(f"  {'met' if met else 'MISSED'}", flush=True)
        good &= met
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
