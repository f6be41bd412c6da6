"""Flux scale from common stars, sky level from common area."""

from __future__ import annotations

import numpy as np
import pytest

from fastack import normalise
from fastack.errors import MatchError
from fastack.types import Background, StarFlag, Stars, Transform


def lists(n: int, scale: float, seed: int, snr: float = 50.0) -> tuple[Stars, Stars]:
    rng = np.random.default_rng(seed)
    truth = 1000 * rng.pareto(1.5, n) + 500
    error = truth / snr
    xy = rng.uniform(0, 100, (n, 2))
    first = truth + rng.normal(0, error)
    second = truth / scale + rng.normal(0, error / scale)
    return (
        Stars.make(xy, flux=first, flux_err=error),
        Stars.make(xy, flux=second, flux_err=error / scale),
    )


def test_scale_and_its_error_are_right() -> None:
    pulls = []
    for seed in range(200):
        scale, error = normalise.flux_scale(*lists(60, 1.3, seed))
        pulls.append((scale - 1.3) / error)
    # 200 draws: the mean of a unit normal is known to 0.07, its scatter to 5 %
    assert abs(np.mean(pulls)) < 0.3
    assert 0.8 < np.std(pulls) < 1.25


def test_variables_and_saturated_stars_do_not_count() -> None:
    first, second = lists(60, 0.7, 3)
    flux = np.array(second.flux)
    flux[:8] *= 3.0
    flags = np.zeros(60)
    flags[8:12] = int(StarFlag.SATURATED)
    flux[8:12] *= 0.2
    changed = Stars.make(second.xy, flux=flux, flux_err=second.flux_err, flags=flags)
    scale, error = normalise.flux_scale(first, changed)
    assert abs(scale - 0.7) < 5 * error


def test_a_meaningless_scale_is_refused() -> None:
    first, second = lists(2, 1.0, 1)
    with pytest.raises(MatchError, match="need 3"):
        normalise.flux_scale(first, second)


def mesh(level: np.ndarray) -> Background:
    return Background(
        level=level.astype(np.float32), noise=np.ones(level.shape, np.float32), shape=(640, 640), cell=(64.0, 64.0)
    )


def test_an_extended_object_keeps_its_light() -> None:
    rng = np.random.default_rng(2)
    nebula = np.zeros((10, 10))
    nebula[3:7, 3:7] = 400.0  # covers a sixth of the field
    reference = mesh(1000 + nebula + rng.normal(0, 0.1, (10, 10)))
    scale = 1.25
    frame = mesh(700 + nebula / scale + rng.normal(0, 0.1, (10, 10)))
    level = normalise.sky_level(reference, frame, Transform.identity(), scale)
    assert level == pytest.approx(700, abs=0.2)


def test_sky_is_compared_where_both_look() -> None:
    slope = np.add.outer(np.zeros(10), 10.0 * np.arange(10))  # 10 ADU for each 64 px along x
    reference = mesh(1000 + slope - slope.mean())
    shifted = Transform.affine([[1, 0, -128], [0, 1, 0]])  # the frame looks 128 px further along x
    frame = mesh(500 + slope - slope.mean() + 20)
    assert normalise.sky_level(reference, frame, shifted, 1.0) == pytest.approx(500, abs=0.6)
