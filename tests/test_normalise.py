"""Flux scale from common stars, sky level from common area."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import normalise as twins

from fastack import _levels, normalise
from fastack.errors import MatchError
from fastack.types import Background, FrameQuality, FrameRecord, StarFlag, Stars, Transform


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


def quality(noise: float) -> FrameQuality:
    unknown = {f.name: 0 for f in fields(FrameQuality)}
    return FrameQuality(**unknown | {"noise": noise})


def night_of(slopes: np.ndarray, sky: np.ndarray | None = None, noise: float = 10.0) -> tuple[list[FrameRecord], list]:
    """Frames of 640 x 640 px, drifting by 7 px, whose sky is a common one and a plane of their own."""
    records, to_frame = [], []
    centres = (np.arange(10) + 0.5) * 64 - 0.5
    x, y = np.meshgrid(centres, centres)
    for k, (a, b) in enumerate(slopes):
        shift = 7.0 * k
        level = 500.0 + a * (x - 320) / 640 + b * (y - 320) / 640
        if sky is not None:
            level = level + np.sin((x + shift) / 150) * sky.mean() + sky
        record = FrameRecord(path=Path(f"d{k}.fits"), name=f"d{k}.fits")
        record.background, record.sky, record.weight = mesh(level), 500.0, 1.0 + 0.2 * k
        record.quality = quality(noise)
        records.append(record)
        to_frame.append(Transform.affine([[1, 0, -shift], [0, 1, 0]]))
    return records, to_frame


def test_planes_are_told_from_the_common_sky() -> None:
    slopes = np.random.default_rng(4).normal(0, 40, (6, 2))
    records, to_frame = night_of(slopes)
    surfaces = normalise.sky_surfaces(records, to_frame, (0, 640, 0, 640))
    assert surfaces is not None
    weight = np.array([r.weight for r in records])
    mean = weight @ slopes / weight.sum()
    rows = []
    for k in range(6):
        window = surfaces.at(k, (100, 540, 100, 540))
        rows.append([np.diff(window, axis=1).mean() * 640, np.diff(window, axis=0).mean() * 640])
    # the meshes are planes without noise: what is left is their rounding to float32, 3e-5 over 440 px
    np.testing.assert_allclose(rows, slopes - mean, atol=0.01)


def test_surfaces_have_no_mean_and_depend_on_no_window() -> None:
    rng = np.random.default_rng(5)
    records, to_frame = night_of(rng.normal(0, 40, (5, 2)), sky=rng.normal(0, 5, (10, 10)))
    surfaces = normalise.sky_surfaces(records, to_frame, (0, 640, 0, 640))
    assert surfaces is not None
    every = [surfaces.at(k, (64, 576, 64, 576)) for k in range(5)]
    mean = np.average(every, axis=0, weights=[r.weight for r in records])
    assert np.abs(mean).max() < 1e-4 * np.abs(every).max()
    np.testing.assert_array_equal(surfaces.at(2, (-3, 70, 300, 420))[67:], every[2][:6, 236:356])


def test_alike_skies_need_no_surface() -> None:
    common = np.zeros((6, 2))
    records, to_frame = night_of(common, noise=10.0)
    assert normalise.sky_surfaces(records, to_frame, (0, 640, 0, 640)) is None
    records, to_frame = night_of(common + [[20.0, 0]] + np.arange(6)[:, None], noise=1000.0)
    assert normalise.sky_surfaces(records, to_frame, (0, 640, 0, 640)) is None
    assert normalise.sky_surfaces(records[:1], to_frame[:1], (0, 640, 0, 640)) is None
    records, to_frame = night_of(np.array([[300.0, 0], [-300.0, 0]]))
    assert normalise.sky_surfaces(records, to_frame, (0, 640, 0, 640), "level") is None
    assert normalise.sky_surfaces(records, to_frame, (0, 640, 0, 640), "plane") is not None


# ---- the loops against their twins


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 80), st.integers(0, 2**32))
@settings(deadline=None)
def test_mesh_is_that_of_its_twin(my: int, mx: int, reach: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, cell = (my * 64, mx * 60), (64.0, 60.0)
    level = rng.normal(1000, 50, (my, mx))
    xy = rng.uniform(-100, 640, (50, 2))
    xy[:4] = [(-0.5, -0.5), (shape[1] - 0.5, shape[0] - 0.5), (31.5, 29.5), (np.nan, 3)]
    found = _levels.mesh_values(level, *cell, *shape, xy, reach)
    np.testing.assert_allclose(found, twins.mesh_values(level, cell, shape, np.nan_to_num(xy, nan=-1e9), reach))


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), max_size=40), st.booleans())
def test_clipped_mean_is_that_of_its_twin(values: list[float], outlier: bool) -> None:
    array = np.array([*values, *([1e9] if outlier else [])], float)
    np.testing.assert_allclose(_levels.clipped_mean(array), twins.clipped_mean(array), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [3, 4, 5, 20, 300])
@pytest.mark.parametrize("scatter", [0.5, 1.0, 4.0])
def test_robust_mean_is_that_of_its_twin(n: int, scatter: float) -> None:
    rng = np.random.default_rng(n)
    for _ in range(50):
        variance = rng.uniform(0.001, 0.1, n) ** 2
        values = 0.3 + scatter * np.sqrt(variance) * rng.standard_t(2, n)
        order = np.argsort(values)
        found, expected = _levels.robust_mean(values[order], variance[order]), twins.robust_mean(values, variance)
        assert found == pytest.approx(expected, rel=1e-9)


def test_medians_are_those_of_their_twin() -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(size=(40, 31))
    chosen = rng.random(values.shape) < np.linspace(0, 1, 40)[:, None]
    np.testing.assert_array_equal(_levels.medians(values, chosen), twins.medians(values, chosen))
