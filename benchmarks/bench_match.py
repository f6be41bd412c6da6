"""Matching two lists of which 40 % are common; correctness first, then times, beside astroalign.

Run with ``python -m pytest benchmarks/bench_match.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference import match as reference

from fastack.match import match
from fastack.types import Transform


def lists(n: int, seed: int = 1, common: float = 0.4) -> reference.Case:
    """Draw lists of n stars on 2048 x 2048 pixels, turned about the centre, errors of 0.2 px and 0.3 mag."""
    rng = np.random.default_rng(seed)
    k, side = int(common * n), 2048
    angle = rng.uniform(0, 2 * np.pi)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([side / 2, side / 2]) @ (np.eye(2) - linear.T)
    sky = rng.uniform(0, side, (k, 2))
    a = np.concatenate([sky, rng.uniform(0, side, (n - k, 2))])
    b = np.concatenate([sky @ linear.T + shift, rng.uniform(0, side, (n - k, 2))])
    magnitude = -rng.exponential(1, (2, n))
    magnitude[1, :k] = magnitude[0, :k]
    rank = np.argsort(magnitude + rng.normal(0, 0.3, (2, n)), axis=1)
    pairs = np.argsort(rank, axis=1)[:, :k].T
    corners = np.array([(0, 0), (side, 0), (0, side), (side, side)])
    truth = np.column_stack([linear, shift])
    a, b = a + rng.normal(0, 0.2, a.shape), b + rng.normal(0, 0.2, b.shape)
    return reference.Case(a[rank[0]], b[rank[1]], pairs, truth, corners)


@pytest.mark.benchmark(group="match")
@pytest.mark.parametrize("n", [50, 500, 5000])
def bench_match(benchmark, n: int) -> None:
    cases = [lists(n, seed) for seed in range(10)]
    for case in cases:
        assert reference.verdict(case, match(case.a, case.b).index) == "solved"
    benchmark.extra_info["fields"] = len(cases)
    benchmark(lambda: [match(case.a, case.b) for case in cases])


@pytest.mark.benchmark(group="match")
@pytest.mark.parametrize("n", [500, 5000])
def bench_match_with_guess(benchmark, n: int) -> None:
    cases = [lists(n, seed) for seed in range(10)]
    guesses = [Transform.affine(case.truth + np.array([[0, 0, 2.0], [0, 0, -1.0]])) for case in cases]
    for case, guess in zip(cases, guesses, strict=True):
        assert reference.verdict(case, match(case.a, case.b, guess=guess).index) == "solved"
    benchmark(lambda: [match(c.a, c.b, guess=g) for c, g in zip(cases, guesses, strict=True)])


@pytest.mark.benchmark(group="match, 80 % common, 200 stars")
@pytest.mark.parametrize("who", ["fastack", "astroalign"])
def bench_beside_astroalign(benchmark, who: str) -> None:
    """Time an easy field, which both solve: astroalign looks at the 50 brightest stars."""
    cases = [lists(200, seed, common=0.8) for seed in range(10)]

    def ours(case: reference.Case) -> np.ndarray:
        return match(case.a, case.b).index

    def theirs(case: reference.Case) -> np.ndarray:
        from scipy.spatial import cKDTree

        found, _ = pytest.importorskip("astroalign").find_transform(case.a, case.b)
        distance, j = cKDTree(case.b).query(found(case.a))
        near = distance < 2
        return np.stack([np.flatnonzero(near), j[near]], axis=1)

    run = ours if who == "fastack" else theirs
    for case in cases:
        assert reference.verdict(case, run(case)) == "solved"
    benchmark(lambda: [run(case) for case in cases])
