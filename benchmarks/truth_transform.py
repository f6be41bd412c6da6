"""The transform fit against truth: corner errors beside the Cramer-Rao bound, and the choice of model.

    python benchmarks/truth_transform.py [--cases 1000] [--seed 1]

Marks the rows whose error is more than 1.2 times the bound, and exits non-zero where there are any.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from reference import transform as reference

from fastack.transform import fit

TARGET = 1.2  # error over bound


def run(model: str, cases: int, seed: int, fewest: int = 20, **how: float) -> bool:
    """Print one row; whether the targets are met."""
    rng = np.random.default_rng([seed, reference.MODELS.index(model), *(int(100 * v) for v in how.values())])
    errors, bounds, low, high, elapsed = [], [], 0, 0, 0.0
    for _ in range(cases):
        n = how.get("n") or int(np.exp(rng.uniform(np.log(fewest), np.log(500))))
        case = reference.case(model, rng, **{**how, "n": n})
        start = time.process_time()
        found = fit(case.a, case.b, reference_err=case.reference_err, frame_err=case.frame_err)
        elapsed += time.process_time() - start
        errors.append(reference.corner_error(case, found))
        bounds.append(case.bound)
        step = reference.MODELS.index(found.model) - reference.MODELS.index(model)
        low, high = low + (step < 0), high + (step > 0)
    errors, bounds = np.array(errors), np.array(bounds)
    # over cases of unlike depth the mean square of error over bound is what should be 1
    ratios = errors / bounds
    ratio = np.sqrt(np.mean(ratios**2))
    again = np.random.default_rng(seed)
    draws = [np.sqrt(np.mean(again.choice(ratios, cases) ** 2)) for _ in range(400)]
    met = bool(ratio <= TARGET)
    label = f"{model}, " + ", ".join(f"{k} {v:g}" for k, v in how.items())
    print(
        f"{label:45s} {ratio:6.3f}  {np.quantile(draws, 0.025):.3f}-{np.quantile(draws, 0.975):.3f}"
        f"  {np.sqrt(np.mean(errors**2)):9.4f} {np.quantile(errors, 0.99):9.4f}"
        f"  {100 * low / cases:6.1f} % {100 * high / cases:6.1f} %  {1e3 * elapsed / cases:6.2f}"
        + ("" if met else "  MISSED"),
        flush=True,
    )
    return met


def main() -> int:
    """Run all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{args.cases} cases a row, seed {args.seed}; 20 to 500 stars where n is not given")
    print(f"{'true model':45s} error/bound (95 %)  rms px   99 % px    too low  too high   ms")
    good = []
    for model in reference.MODELS:
        for outliers in (0.0, 0.1):
            for strength in (10.0, 3.0) if model in ("affine", "quadratic", "cubic") else (10.0,):
                # twenty parameters, twenty stars and two outliers leave nothing to find them by
                fewest = 40 if outliers and model in ("quadratic", "cubic") else 20
                good.append(run(model, args.cases, args.seed, fewest, strength=strength, outliers=outliers))
    good.append(run("affine", args.cases, args.seed, n=100, snr=50, strength=10.0))
    good.append(run("affine", args.cases, args.seed, side=16384.0, strength=10.0))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
