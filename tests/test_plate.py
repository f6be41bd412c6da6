"""The map of a camera: fits that give back what was put in, and errors that are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from fastack.plate import OFF_AXIS, Plate, exponents, fit_plate
from fastack.sphere import ARCSEC, deproject, project

SHAPE = (1000, 1200)
ORIGIN = ((SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2)
HALF = max(SHAPE) / 2
SCALE = 1.3 * ARCSEC
CORNERS = np.array([[0.0, 0.0], [1199.0, 0.0], [0.0, 999.0], [1199.0, 999.0], ORIGIN])


def plate(order: int, bend: dict[tuple[int, int], tuple[float, float]], **more: object) -> Plate:
    """A turned, mirrored camera at a high declination with further terms given in pixels at the edge."""
    turn = np.array([[0.8, 0.6], [0.6, -0.8]]) * SCALE * HALF
    rows = exponents(max(order, 1))
    coefficients = np.zeros((len(rows), 2))
    coefficients[1:3] = turn
    for power, value in bend.items():
        coefficients[rows.index(power)] += np.asarray(value) @ turn / HALF
    covariance = np.zeros((len(rows), len(rows)))
    return Plate(
        ra=50.0,
        dec=70.0,
        origin=ORIGIN,
        half=HALF,
        order=order,
        coefficients=coefficients,
        covariance=covariance,
        **more,
    )


def error_at(found: Plate, true: Plate, xy: np.ndarray) -> np.ndarray:
    """(n, 2) difference of two maps, pixel."""
    there = project(deproject(found.plane(xy), found.ra, found.dec), true.ra, true.dec)
    return (there - true.plane(xy)) / SCALE


def refit(true: Plate, n: int, noise: float, rng: np.random.Generator, order: int, radial: bool = False) -> Plate:
    """Fit of `n` stars with `noise` (pixel) from a straight beginning some pixels off."""
    xy = rng.uniform(0, SHAPE[::-1], (n, 2))
    vectors = deproject(true.plane(xy), true.ra, true.dec)
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    start = plate(0, {(0, 0): (3.0, -2.0)})
    seen = xy + rng.normal(0, 1, xy.shape) * noise
    errors = np.full(n, max(noise, 0.01)), np.zeros((n, 2))
    return fit_plate(start, seen, vectors, *errors, order=order, radial=radial, clip=4.0)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_a_map_without_noise_is_given_back(order: int) -> None:
    rng = np.random.default_rng(order)
    bend = {power: tuple(rng.uniform(-4, 4, 2)) for power in exponents(order) if sum(power) > 1} if order else {}
    true = plate(order, bend)
    found = refit(true, 150, 0.0, rng, order)
    assert np.abs(error_at(found, true, CORNERS)).max() < 1e-5
    assert found.extra == 0


def test_a_lens_without_noise_is_given_back() -> None:
    """The radial term alone: what holds the quadratic ones has nothing to hold."""
    true = plate(3, {(3, 0): (8, 0), (1, 2): (8, 0), (2, 1): (0, 8), (0, 3): (0, 8)})
    found = refit(true, 30, 0.0, np.random.default_rng(4), 3, radial=True)
    assert np.abs(error_at(found, true, CORNERS)).max() < 1e-3


@pytest.mark.parametrize(("order", "radial", "n"), [(0, False, 12), (1, False, 15), (3, False, 60), (3, True, 15)])
def test_errors_of_a_map_are_what_they_say(order: int, radial: bool, n: int) -> None:
    """300 draws: mean square of error over expected error at the corners, 1 within 0.25 (its own error is about 0.06).

    The lens of each draw has an optical axis elsewhere, as far off as the fit expects.
    """
    rng = np.random.default_rng(10 + order + radial)
    ratios = []
    for _ in range(300):
        bend: dict[tuple[int, int], tuple[float, float]] = {}
        if radial:
            bend = {(3, 0): (6, 0), (1, 2): (6, 0), (2, 1): (0, 6), (0, 3): (0, 6)}
            bend |= {p: tuple(rng.normal(0, OFF_AXIS * 6, 2)) for p in ((2, 0), (1, 1), (0, 2))}
        true = plate(3 if radial else order, bend)
        found = refit(true, n, 0.2, rng, order, radial)
        off = error_at(found, true, CORNERS)
        ratios.append(((off**2).sum(axis=1) / 2 / found.error(CORNERS) ** 2).mean())
    assert np.mean(ratios) == pytest.approx(1, abs=0.25)


def test_the_extra_scatter_is_found() -> None:
    """Stars that scatter by 0.5 px while 0.2 px are stated; 400 of them tell it to 5 %."""
    rng = np.random.default_rng(3)
    true = plate(1, {})
    xy = rng.uniform(0, SHAPE[::-1], (400, 2))
    vectors = deproject(true.plane(xy), true.ra, true.dec)
    seen = xy + rng.normal(0, 0.5, xy.shape)
    found = fit_plate(true, seen, vectors, np.full(400, 0.2), np.zeros((400, 2)), order=1, radial=False, clip=4.0)
    assert found.extra / SCALE == pytest.approx(np.sqrt(0.5**2 - 0.2**2), rel=0.15)
