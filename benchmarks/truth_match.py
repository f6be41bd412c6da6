"""The matcher against truth: classes of random cases, none wrong and 99 % solved.

    python benchmarks/truth_match.py [--cases 1000] [--seed 1] [CLASS ...]

Exits non-zero where a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import beta

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from reference import match as reference

from fastack.errors import MatchError
from fastack.match import match


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a proportion."""
    tail = (1 - level) / 2
    low = beta.ppf(tail, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(1 - tail, hits + 1, n - hits) if hits < n else 1.0
    return float(low), float(high)


def run(kind: str, cases: int, seed: int) -> bool:
    """Print one row of the table; whether the target is met."""
    rng = np.random.default_rng([seed, reference.CLASSES.index(kind)])
    count = {"solved": 0, "noisy": 0, "wrong": 0, "unsolved": 0}
    times = []
    for _ in range(cases):
        case = reference.case(kind, rng)
        start = time.process_time()
        try:
            pairs = match(case.a, case.b).index
        except MatchError:
            pairs = None
        times.append(1e3 * (time.process_time() - start))
        count[reference.verdict(case, pairs)] += 1
    solved = count["solved"] + count["noisy"]
    low, high = clopper_pearson(solved, cases)
    most_wrong = clopper_pearson(count["wrong"], cases)[1]
    print(
        f"{kind:45s} {solved:6d} {count['noisy']:6d} {count['unsolved']:9d} {count['wrong']:6d}"
        f"   {100 * low:6.2f}-{100 * high:6.2f} %   < {100 * most_wrong:.2f} %"
        f"   {np.mean(times):7.2f} {np.quantile(times, 0.95):7.2f}",
        flush=True,
    )
    enough = kind.startswith("unrelated") or solved >= 0.99 * cases
    return enough and not count["wrong"]


def main() -> int:
    """Run the classes asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classes", nargs="*", metavar="CLASS", help=", ".join(reference.CLASSES).replace("%", "%%"))
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{args.cases} cases a class, seed {args.seed}")
    print("noisy: right pairs, whose position errors alone leave more than 1 px at an edge; counted as solved")
    print(f"{'class':45s} solved (noisy) unsolved  wrong   95 % interval       wrong       mean ms  95 % ms")
    good = [run(kind, args.cases, args.seed) for kind in args.classes or reference.CLASSES]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
