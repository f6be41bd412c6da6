"""Directions and projections, against astropy."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st
from reference import astrometry as ref

from fastack.sphere import deproject, distance, local_frame, project, radec, spiral, unit_vectors

RA, DEC = st.floats(0, 360), st.floats(-90, 90)


@given(RA, DEC, RA, DEC)
def test_distances_are_astropys(ra: float, dec: float, ra0: float, dec0: float) -> None:
    there = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(ra0, dec0, unit="deg")).deg
    assert float(distance(ra, dec, ra0, dec0)) == pytest.approx(there, abs=2e-6)


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (83.0, -5.0), (359.9, 89.9), (10.0, -90.0)])
def test_the_projection_is_astropys_and_comes_back(ra: float, dec: float) -> None:
    wcs = ref.true_wcs(ra, dec, 3600.0, 0.0, 1, (1, 1))  # a degree a pixel, +x to the west
    rng = np.random.default_rng(1)
    plane = rng.uniform(-0.3, 0.3, (50, 2))
    vectors = deproject(plane, ra, dec)
    xy = np.degrees(plane) * [-1, 1]
    expected = unit_vectors(*wcs.wcs_pix2world(xy, 0).T)
    np.testing.assert_allclose(vectors / np.linalg.norm(vectors, axis=1)[:, None], expected, atol=1e-12)
    np.testing.assert_allclose(project(vectors, ra, dec), plane, atol=1e-12)
    assert np.isnan(project(-vectors, ra, dec)).all()


@given(RA, st.floats(-89.9, 89.9))
def test_positions_and_vectors(ra: float, dec: float) -> None:
    there = radec(3 * unit_vectors(ra, dec))
    assert there[1] == pytest.approx(dec, abs=1e-9)
    assert (there[0] - ra + 180) % 360 - 180 == pytest.approx(0, abs=1e-9 / np.cos(np.radians(dec)))


def test_a_spiral_leaves_no_hole() -> None:
    """1000 directions within the radius: none is further than spacing / sqrt(3) from the net, but for the curvature."""
    spacing, radius = 0.02, 0.15
    net = spiral(local_frame(40.0, 70.0), spacing, radius)
    ra, dec = ref.around(40.0, 70.0, np.degrees(radius), 1000, np.random.default_rng(2))
    nearest = np.arccos(np.clip((unit_vectors(ra, dec) @ net.T).max(axis=1), -1, 1))
    assert nearest.max() < 1.02 * spacing / np.sqrt(3)
    from_middle = np.arccos(np.clip(net @ unit_vectors(40.0, 70.0), -1, 1))
    assert from_middle[0] < 1e-7
    assert (np.diff(from_middle) > -1e-7).all()
