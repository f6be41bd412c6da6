"""Motions and errors of catalogue stars, against astropy and real catalogues."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import Distance, SkyCoord
from astropy.table import Table
from astropy.time import Time
from starlists import around, sky

from fastack.positions import proper_motion, typical_motion
from fastack.tables import read_file, stars_of
from fastack.types import CatalogueStars


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:ERFA function")
@pytest.mark.parametrize("name", ["ucac4_vizier_cygx1.csv", "gaia_dr2_chunk_03687.fits", "gaia_G7_pm_j2016.csv"])
def test_ten_years_as_astropy_carries_them(data_root, name):
    stars = read_file(data_root / "catalogues" / name)
    later = proper_motion(stars, stars.epoch + 10)
    known = np.isfinite(stars.pm_ra)
    parallax = np.where(np.nan_to_num(stars.parallax) > 1, stars.parallax, 0.1)[known]
    expected = SkyCoord(
        stars.ra[known] * u.deg,
        stars.dec[known] * u.deg,
        Distance(parallax=parallax * u.mas),
        pm_ra_cosdec=stars.pm_ra[known] * u.mas / u.yr,
        pm_dec=stars.pm_dec[known] * u.mas / u.yr,
        obstime=Time(stars.epoch, format="jyear"),
    ).apply_space_motion(dt=10 * 365.25 * u.day)
    assert sky(later[known]).separation(expected).to_value(u.mas).max() < 0.01
    moved = sky(stars[known]).separation(sky(later[known])).to_value(u.mas)
    np.testing.assert_allclose(moved, 10 * np.hypot(stars.pm_ra, stars.pm_dec)[known], rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(later.ra[~known], stars.ra[~known])


@pytest.mark.real
def test_ucac4_errors_are_those_of_independent_epochs(data_root):
    path = data_root / "catalogues" / "ucac4_vizier_cygx1.csv"
    stars, table = read_file(path), Table.read(path, format="ascii.csv")
    at_year = proper_motion(stars, 2019.1)
    moving = np.isfinite(stars.pm_ra)
    for axis, name in (("ra", "RA"), ("dec", "DE")):
        error = np.asarray(table[f"e_{name}J2000"], float)
        mean = np.asarray(table[f"Ep{name}"], float)
        rate = np.ma.filled(table[f"e_pm{name}"].astype(float), np.nan)
        rate = np.where(moving, rate, typical_motion(stars.mag))
        # the definition in the catalogue: position at the mean epoch and motion have independent errors
        np.testing.assert_allclose(getattr(stars, f"{axis}_err"), np.hypot(error, rate * (2000 - mean)))
        np.testing.assert_allclose(getattr(at_year, f"{axis}_err"), np.hypot(error, rate * (2019.1 - mean)))
        if axis == "ra":  # the difference to errors that are taken as uncorrelated at J2000
            naive = np.hypot(stars.ra_err, rate * 19.1)[moving] / at_year.ra_err[moving]
            np.testing.assert_allclose(np.percentile(naive, [5, 95]), [0.83, 1.15], atol=0.01)
    # there and back gives the same
    back = proper_motion(at_year, 2000.0)
    np.testing.assert_allclose(back.ra_err, stars.ra_err)
    assert (at_year.ra_err[~moving] > typical_motion(stars.mag[~moving]) * 15).all()


def test_residuals_after_decades_have_the_errors_width():
    """20 000 stars whose positions at their mean epochs and motions are drawn with their errors."""
    rng = np.random.default_rng(4)
    n = 20_000
    truth = around(50.0, 20.0, 1.0, n)
    mean, error, rate = rng.uniform(1975, 2003, n), rng.uniform(15, 80, n), rng.uniform(1, 9, n)
    motion = rng.normal(0, 10, n)
    wrong_motion = motion + rng.normal(0, rate)
    # true declination is exact in 2000; what a catalogue says of 2000 follows from its mean epoch
    dec = truth.dec + (motion * (mean - 2000) + rng.normal(0, error) - wrong_motion * (mean - 2000)) / 3.6e6
    table = Table({"RAJ2000": truth.ra, "DEJ2000": dec, "e_RAJ2000": error, "e_DEJ2000": error})
    table["EpRA"], table["EpDE"], table["pmRA"], table["pmDE"] = mean, mean, np.zeros(n), wrong_motion
    table["e_pmRA"], table["e_pmDE"], table["f.mag"] = rate, rate, np.full(n, 12.0)
    stars = stars_of(table, "UCAC4")
    for year in (1990.0, 2000.0, 2019.0, 2035.0):
        there = proper_motion(stars, year)
        residual = (there.dec - truth.dec) * 3.6e6 - motion * (year - 2000)
        width = np.sqrt(np.mean((residual / there.dec_err) ** 2))
        # standard error of a standard deviation
        assert abs(width - 1) < 4 / np.sqrt(2 * n) + 1e-3, (year, width)


# --- proper motion


def test_proper_motion_is_rigorous_and_errors_grow():
    catalogue = CatalogueStars.make(
        [269.452, 10.0, 100.0],
        [4.6933, 89.9, 20.0],
        ra_err=[1.0, 1.0, 50.0],
        dec_err=[1.0, np.nan, 50.0],
        pm_ra=[-802.8, 1000.0, np.nan],
        pm_dec=[10362.5, 0.0, np.nan],
        pm_ra_err=[0.1, np.nan, np.nan],
        pm_dec_err=[0.2, 0.0, np.nan],
        epoch=2016.0,
        mag=[9.5, 10, np.nan],
        name="x",
    )
    later = proper_motion(catalogue, 2026.0)
    assert later.epoch == 2026.0
    before, after = (sky(c) for c in (catalogue, later))
    # 10 years along a great circle
    np.testing.assert_allclose(before.separation(after).arcsec, [103.936, 10.0, 0.0], atol=5e-3)
    # 0.1 degree from the pole a great circle leaves its parallel: straight ahead, not along the circle of declination
    expected = before[1].directional_offset_by(90 * u.deg, 10 * u.arcsec)
    assert after[1].separation(expected).arcsec < 1e-3
    np.testing.assert_allclose(later.ra_err, [np.hypot(1, 1), np.hypot(1, 20), np.hypot(50, 100)])
    np.testing.assert_allclose(later.dec_err, [np.hypot(1, 2), 100.0, np.hypot(50, 100)])
    assert proper_motion(catalogue, 2016.0) is catalogue
    back = proper_motion(later, 2016.0)
    np.testing.assert_allclose(back.ra, catalogue.ra, atol=1e-7)
    np.testing.assert_allclose(back.dec, catalogue.dec, atol=1e-9)
    np.testing.assert_allclose(back.ra_err, catalogue.ra_err)
    assert proper_motion(catalogue[[]], 2026.0).epoch == 2026.0


@pytest.mark.real
def test_typical_motions_hold_nine_in_ten(data_root):
    """Of the bright stars, and of the faint ones where the fields are: fractions by binomial errors and 0.03."""
    for name, low, high in (("gaia_G7_pm_j2016.csv", 5, 7), ("gaia_dr2_chunk_05483.fits", 10, 21)):
        stars = read_file(data_root / "catalogues" / name)
        stars = stars[np.isfinite(stars.pm_ra) & (stars.mag > low) & (stars.mag < high)]
        inside = np.abs(np.r_[stars.pm_ra, stars.pm_dec]) < 1.645 * np.tile(typical_motion(stars.mag), 2)
        assert abs(inside.mean() - 0.90) < 0.03 + 3 * np.sqrt(0.09 / len(inside)), (name, inside.mean())
