"""Lists of catalogue stars for the tests."""

from __future__ import annotations

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord

from fastack.positions import COLUMNS
from fastack.types import CatalogueStars


def sky(stars):
    return SkyCoord(stars.ra, stars.dec, unit="deg")


def same(a, b):
    assert len(a) == len(b)
    for key in COLUMNS:
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key), err_msg=key)


def around(ra, dec, radius, n, seed=1, **columns):
    """Stars uniform in a circle."""
    rng = np.random.default_rng(seed)
    z = 1 - rng.uniform(0, 1, n) * (1 - np.cos(np.radians(radius)))
    there = SkyCoord(ra * u.deg, dec * u.deg).directional_offset_by(
        rng.uniform(0, 360, n) * u.deg, np.degrees(np.arccos(z)) * u.deg
    )
    columns = {"mag": rng.uniform(8, 16, n), "pm_ra": rng.normal(0, 5, n)} | columns
    return CatalogueStars.make(there.ra.deg, there.dec.deg, name="UCAC4", band="UCAC f", epoch=2000.0, **columns)
