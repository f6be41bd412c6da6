"""The astrometry's targets, case by case, with their intervals; exits with 1 where one is missed.

    PYTHONPATH=src:tests python benchmarks/truth_astrometry.py [class ...] [--cases N] [--first SEED] [--data DIR]

Classes: fields, elsewhere, bent, few, cpu, ucac4, gaia.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
from reference import astrometry as ref
from scipy.stats import beta

from fastack.astrometry import solve
from fastack.errors import SolveError
from fastack.guess import Guess
from fastack.positions import proper_motion
from fastack.solution import Solution


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
    worst, sigma = np.array(errors), np.array(expected)
    print(f"25 to 100 detections, distortion up to 8 px at the edge, seeds {first} to {first + cases - 1}:")
    share("refused", refused, cases)
    share("wrong by more than 2 px somewhere", int((worst > 2).sum()), cases)
    share("off by more than 4 times what ASTRERR says", int((worst > 4 * sigma).sum()), cases)
    ratio = worst / sigma
    print(
        f"  worst error {worst.max():.1f} px; error over its expected sigma: median {np.median(ratio):.2f},"
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    every = ("fields", "elsewhere", "bent", "few", "cpu", "ucac4", "gaia")
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
        else:
            met = run_gaia(args.data, args.cases or 10)
        print(f"  {'met' if met else 'MISSED'}", flush=True)
        good &= met
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
