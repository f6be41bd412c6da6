"""Catalogues: real files, stores on disk, and servers on loopback that astroquery itself asks."""

from __future__ import annotations

import gc
import gzip
import io
import multiprocessing
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import Distance, SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Servers, archive_votable, gaia_tables, ucac4_table

from fastack import catalogue as cat
from fastack.catalogue import (
    Store,
    describe,
    fetch,
    fetch_into,
    load,
    magnitude_limit,
    proper_motion,
    read_file,
    resolve,
    typical_motion,
)
from fastack.errors import CatalogueError, FastackWarning
from fastack.options import CatalogueOptions
from fastack.types import CatalogueStars

CYGNUS = 299.59, 35.20  # of the UCAC4 rows
GEMINI = 110.212, 24.0  # of the Gaia rows


def sky(stars):
    return SkyCoord(stars.ra, stars.dec, unit="deg")


def same(a, b):
    assert len(a) == len(b)
    for key in cat._COLUMNS:
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


# --- real files


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "rows", "title", "epoch", "band", "moving"),
    [
        ("gaia_dr2_chunk_03687.fits", 897, "Gaia DR2", 2015.5, "G", 815),
        ("gaia_dr2_chunk_05483.fits", 884, "Gaia DR2", 2015.5, "G", 775),
        ("gaia_G7_pm_j2016.csv", 19115, "Gaia DR3", 2016.0, "G", 19115),
        ("ucac4_vizier_cygx1.csv", 1607, "UCAC4", 2000.0, "UCAC f", 1493),
        ("gaiadr3_G10_hatp32.csv", 88, "Gaia DR3", 2016.0, "G", 87),
        ("gaiadr3_G10_m27.csv", 42, "Gaia DR3", 2016.0, "G", 39),
        ("gaiadr3_G10_cygx1_ucac4.csv", 28, "Gaia DR3", 2016.0, "G", 28),
        ("gaiadr3_G10_lowell5945.csv", 9, "Gaia DR3", 2016.0, "G", 9),
        ("tycho2_hatp32.csv", 291, "Tycho-2", 2000.0, "VT", 0),
        ("tycho2_m27.csv", 111, "Tycho-2", 2000.0, "VT", 0),
        ("tycho2_cygx1_ucac4.csv", 53, "Tycho-2", 2000.0, "VT", 0),
        ("tycho2_lowell5945.csv", 42, "Tycho-2", 2000.0, "VT", 0),
    ],
)
def test_real_files(data_root, name, rows, title, epoch, band, moving):
    stars = read_file(data_root / "catalogues" / name)
    assert (len(stars), stars.name, stars.epoch, stars.band) == (rows, title, epoch, band)
    assert (np.isfinite(stars.pm_ra) & np.isfinite(stars.pm_dec)).sum() == moving
    assert np.isfinite(stars.ra).all()
    assert np.isfinite(stars.mag).all()


@pytest.mark.real
def test_real_columns_come_through(data_root):
    path = data_root / "catalogues" / "gaia_dr2_chunk_03687.fits"
    stars, table = read_file(path), fits.getdata(path)
    columns = {"ra": "ra", "dec": "dec", "ra_err": "ra_error", "dec_err": "dec_error", "pm_ra": "pmra"}
    columns |= {"pm_dec": "pmdec", "pm_ra_err": "pmra_error", "parallax": "parallax", "mag": "phot_g_mean_mag"}
    for ours, theirs in columns.items():
        np.testing.assert_array_equal(getattr(stars, ours), table[theirs].astype(float), err_msg=ours)
    ucac = data_root / "catalogues" / "ucac4_vizier_cygx1.csv"
    stars, table = read_file(ucac), Table.read(ucac, format="ascii.csv")
    # the position itself, not the rounded one that VizieR computes
    np.testing.assert_array_equal(stars.ra, table["RAJ2000"])
    np.testing.assert_array_equal(stars.mag, table["f.mag"])
    np.testing.assert_array_equal(stars.ra_epoch, table["EpRA"])


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
    stars = cat._stars(table, "UCAC4")
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


@pytest.mark.real
def test_magnitude_limits_follow_the_star_counts(data_root):
    bright = read_file(data_root / "catalogues" / "gaia_G7_pm_j2016.csv")
    # the whole sky to G = 7: the limit that asks for as many stars as there are is 7, but 8 is the least
    assert magnitude_limit("gaia", len(bright), 41253, margin=1.0) == 8.0
    assert magnitude_limit("gaia", int((bright.mag < 7).sum() * 10**0.45), 41253, margin=1.0) == pytest.approx(
        8, abs=0.3
    )
    for name in ("gaia_dr2_chunk_03687.fits", "gaia_dr2_chunk_05483.fits"):
        stars = read_file(data_root / "catalogues" / name)
        for limit in (14, 16, 18):
            n = int((stars.mag < limit).sum())
            # half a magnitude is 0.17 dex of the counts; single fields differ more than that, these do not
            assert magnitude_limit("gaia", n, 0.05246, margin=1.0) == pytest.approx(limit, abs=0.6)


def test_magnitude_limits_are_bounded_and_rise():
    limits = [magnitude_limit("gaia", n, 0.1) for n in (0, 10, 100, 1000, 10_000, 10**7)]
    assert limits == sorted(limits)
    assert limits[-1] == 21.5
    assert magnitude_limit("ucac4", 10_000, 0.1) == 17.0
    assert magnitude_limit("my.fits", 10**6, 0.1) == 21.5
    assert magnitude_limit("gaia", 20, 100.0) == 8.0  # a wide and shallow image does not fetch a million stars
    with pytest.raises(ValueError, match="area"):
        magnitude_limit("gaia", 10, 0.0)


# --- formats

NAMES = {"ra": "ra", "dec": "dec", "ra_err": "ra_error", "pm_ra": "pmra", "pm_dec": "pmdec", "mag": "phot_g_mean_mag"}


@pytest.fixture(scope="module")
def plain():
    stars = around(30.0, -20.0, 0.3, 50, pm_dec=np.linspace(-9, 9, 50), ra_err=np.linspace(0.1, 2, 50))
    table = Table({theirs: np.array(getattr(stars, ours)) for ours, theirs in NAMES.items()})
    table["ref_epoch"] = 2016.0
    return stars, table


@pytest.mark.parametrize(
    "name", ["s.csv", "s.csv.gz", "s.ecsv", "s.fits", "s.fits.gz", "s.vot", "s.xml", "s.tsv", "s.dat"]
)
def test_formats(plain, tmp_path, name):
    stars, table = plain
    path = tmp_path / name
    kind = {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "fits": "fits", "vot": "votable", "xml": "votable"}
    kind |= {"tsv": "ascii.tab", "dat": "ascii.basic"}
    table.write(tmp_path / name.removesuffix(".gz"), format=kind[name.split(".")[1]])
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress((tmp_path / name[:-3]).read_bytes()))
    got = read_file(path)
    assert (got.epoch, got.name, got.band) == (2016.0, "Gaia DR3", "G")
    for key in NAMES:
        np.testing.assert_allclose(getattr(got, key), getattr(stars, key), rtol=1e-12)


def test_parquet(plain, tmp_path):
    path = tmp_path / "s.parquet"
    if find_spec("pyarrow") is None:
        path.write_bytes(b"PAR1")
        with pytest.raises(CatalogueError, match=r"pyarrow.*FITS"):
            read_file(path)
    else:
        plain[1].write(path)
        np.testing.assert_array_equal(read_file(path).ra, plain[0].ra)


def test_units_are_honoured(tmp_path):
    table = Table({"RA": [1.5, 2.0], "DEC": [10.0, -11.0], "ra_error": [0.02, 0.03], "pmra": [0.1, -0.2]})
    table["pmdec"] = [1.0, 2.0]
    table["RA"].unit, table["DEC"].unit, table["ra_error"].unit = "hourangle", "deg", "arcsec"
    table["pmra"].unit = "arcsec/yr"
    table.write(tmp_path / "units.ecsv")
    stars = read_file(tmp_path / "units.ecsv")
    np.testing.assert_allclose(stars.ra, [22.5, 30.0])
    np.testing.assert_allclose(stars.ra_err, [20, 30])
    np.testing.assert_allclose(stars.pm_ra, [100, -200])
    np.testing.assert_allclose(stars.pm_dec, [1, 2])
    # in the name, and none
    (tmp_path / "a.csv").write_text("ra_hours,dec_deg,pmra_arcsecyr,pmdec\n1.5,10,0.1,7\n")
    stars = read_file(tmp_path / "a.csv")
    np.testing.assert_allclose([stars.ra[0], stars.pm_ra[0], stars.pm_dec[0]], [22.5, 100, 7])
    table["pmra"].unit = "Jy"
    table.write(tmp_path / "bad.ecsv")
    with pytest.raises(CatalogueError, match=r"bad\.ecsv.*'pmra'.*Jy"):
        read_file(tmp_path / "bad.ecsv")


def test_sexagesimal_text(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("RAJ2000,DEJ2000,Vmag\n02 04 10.25,+46 41 16.1,11.3\n23:59:59.9,-00:00:30,12\n")
    stars = read_file(path)
    np.testing.assert_allclose(stars.ra, [31.0427083, 359.9995833], atol=1e-7)
    np.testing.assert_allclose(stars.dec, [46.6878056, -30 / 3600], atol=1e-7)
    assert stars.band == "V"


def test_vizier_tab_separated_with_units(tmp_path):
    path = tmp_path / "asu.tsv"
    path.write_text(
        "#RESOURCE=yCat\n#Name: I/322A/out\n\nRAJ2000\tDEJ2000\te_RAJ2000\tpmRA\tpmDE\tf.mag\n"
        "deg\tdeg\tarcsec\tmas/yr\tmas/yr\tmag\n-----------\t-----------\t---\t----\t----\t-----\n"
        "299.2947462\t+34.9738000\t0.047\t  -5.9\t -10.6\t15.088\n"
        "299.3008448\t+34.9658656\t0.050\t      \t      \t15.825\n\n"
    )
    stars = read_file(path)
    np.testing.assert_allclose(stars.ra_err, [47, 50])
    np.testing.assert_allclose(stars.pm_ra, [-5.9, np.nan])
    assert stars.epoch == 2000.0


def test_columns_can_be_mapped(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("star,alpha_h,dd,R,sig,y\n1,1.5,10,12.5,0.02,2010.5\n2,1.6,11,13,0.03,2010.5\n")
    with pytest.raises(CatalogueError, match=r"star, alpha_h, dd.*map"):
        read_file(path)
    columns = {"ra": "alpha_h[hourangle]", "dec": "dd", "mag": "R", "ra_err": "sig[arcsec]", "epoch": "y"}
    stars = read_file(path, columns=columns)
    np.testing.assert_allclose(stars.ra, [22.5, 24])
    np.testing.assert_allclose(stars.ra_err, [20, 30])
    assert (stars.epoch, stars.band, stars.name) == (2010.5, "R", "own.csv")
    assert read_file(path, columns=columns | {"epoch": "J1991.25"}).epoch == 1991.25
    with pytest.raises(CatalogueError, match="no column 'rr'"):
        read_file(path, columns=columns | {"mag": "rr"})
    with pytest.raises(CatalogueError, match="'magnitude' is no field"):
        read_file(path, columns={"magnitude": "R"})


@pytest.mark.parametrize(
    ("name", "header", "epoch"),
    [
        ("a.csv", "ra_j2015.5,dec_j2015.5,mag", 2015.5),
        ("stars_j1991.25.csv", "ra,dec,mag", 1991.25),
        ("a.csv", "ra,dec,phot_g_mean_mag", 2016.0),
        ("a.csv", "RA_ICRS,DE_ICRS,mag", 2000.0),
        ("a.csv", "RAmdeg,DEmdeg,VTmag", 2000.0),
    ],
)
def test_epoch_where_no_column_states_it(tmp_path, name, header, epoch):
    (tmp_path / name).write_text(header + "\n10.5,20.5,9\n")
    assert read_file(tmp_path / name).epoch == epoch


def test_epochs_of_single_rows_become_one(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text("ra,dec,pmra,pmdec,ref_epoch\n10,0,0,3600,2016\n11,0,0,3600,2006\n12,0,0,3600,2016\n13,0,0,0,\n")
    stars = read_file(path)
    assert stars.epoch == 2016.0
    np.testing.assert_allclose(stars.ra, [10, 11, 12, 13])
    # ten years of 3600 mas/yr are 0.01 degree; the row without an epoch is at the catalogue's own, J2000
    np.testing.assert_allclose(stars.dec, [0, 0.01, 0, 0], atol=1e-7)


def test_magnitude_columns_keep_their_case(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("RAJ2000,DEJ2000,gmag,f.mag,a.mag,Gmag\n10,20,19,15,14,1\n11,20,19,,14,1\n")
    stars = read_file(path)
    np.testing.assert_allclose(stars.mag, [15, 14])
    assert stars.band == "UCAC f"


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.csv", b"ra,dec\n", "no rows"),
        ("a.csv", b"x,y\n1,2\n", "x, y"),
        ("a.csv", b"ra,dec\nhello,1\n", "cannot be read"),
        ("a.fits", b"SIMPLE  =  T", "cannot be read"),
        ("a.vot", b"<?xml version='1.0'?><VOTABLE><RESOURCE><TABLE>", "cut"),
        ("a.vot", b"<html>\n</html>\n", "right ascension"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00garbage", "cannot be read"),
    ],
)
def test_files_that_are_no_catalogue(tmp_path, name, data, match):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CatalogueError, match=match) as caught:
        read_file(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_names_what_there_is():
    with pytest.raises(CatalogueError, match=r"nowhere\.csv: no such file.*gaia, ucac4"):
        load("nowhere.csv", ra=1, dec=2, radius=1)
    with pytest.raises(CatalogueError, match="nowhere"):
        read_file("nowhere.csv")


def test_load_cuts_a_file_to_the_circle_and_carries_it(plain, tmp_path):
    stars, table = plain
    table.write(tmp_path / "s.fits")
    got = load(tmp_path / "s.fits", ra=30.1, dec=-20.0, radius=0.2, max_mag=14, epoch=2020.0)
    inside = sky(stars).separation(SkyCoord(30.1, -20.0, unit="deg")) <= 0.2 * u.deg
    assert 0 < len(got) == (inside & (stars.mag <= 14)).sum()
    assert got.epoch == 2020.0
    for bad in ({"radius": 0}, {"dec": 91}, {"ra": np.nan}):
        with pytest.raises(ValueError, match="no circle"):
            load(tmp_path / "s.fits", **({"ra": 30, "dec": -20, "radius": 0.2} | bad))


# --- cells of a store


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 360),
    dec=st.one_of(st.floats(-90, 90), st.sampled_from([90.0, -90.0, 89.95, -89.99])),
    radius=st.floats(0.001, 2.0),
    seed=st.integers(0, 1000),
)
def test_cells_hold_every_star_of_the_circle_and_no_other_is_whole(ra, dec, radius, seed):
    stars = around(ra, dec, radius, 200, seed)
    touched = set(cat._cells(ra, dec, radius))
    homes = {tuple(int(v) for v in row) for row in cat._cell_of(stars.ra, stars.dec)}
    assert homes <= touched
    # cells said to lie within: none of their places is further away
    rng = np.random.default_rng(seed)
    for zone, cell in list(cat._cells(ra, dec, radius, whole=True))[:5]:
        width = 360 / cat._zone_cells(zone)
        a = (cell + rng.uniform(0, 1, 50)) * width
        d = (zone + rng.uniform(0, 1, 50)) * cat.CELL - 90
        assert (cat._distance(a, d, ra, dec) <= radius + 1e-9).all()
    reach = cat.covering_radius(ra, dec, radius)
    assert touched <= set(cat._cells(ra, dec, reach, whole=True))
    assert reach < radius + 0.6


def test_distances_from_a_cell_are_those_of_many_points():
    rng = np.random.default_rng(3)
    for _ in range(40):
        zone = int(rng.choice([0, 1, 2, 150, 359, 360, 500, 717, 718, 719]))
        count = cat._zone_cells(zone)
        cell = int(rng.integers(count))
        ra, dec = rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-1, 1)))
        if rng.random() < 0.5:  # near the cell
            ra, dec = (cell + rng.uniform(-1, 2)) * 360 / count, np.clip(zone * 0.25 - 90 + rng.normal(0, 0.4), -90, 90)
        a, d = np.meshgrid((cell + np.linspace(0, 1, 201)) * 360 / count, (zone + np.linspace(0, 1, 101)) * 0.25 - 90)
        distance = cat._distance(a, d, ra, dec)
        index = np.array([cell])
        # the net's step is 0.25/100 degree in declination, and less than 0.6/200 along it
        assert cat._nearest(zone, index, ra, dec)[0] == pytest.approx(distance.min(), abs=0.003)
        assert cat._farthest(zone, index, ra, dec)[0] == pytest.approx(distance.max(), abs=0.003)


# --- store


@pytest.mark.parametrize(("ra", "dec"), [(120.0, 30.0), (0.0, -10.0), (359.999, 60.0), (77.0, 90.0), (200.0, -89.9)])
def test_store_gives_back_what_it_got(tmp_path, ra, dec):
    reach = cat.covering_radius(ra, dec, 0.8)
    stars = around(ra, dec, reach, 3000)
    store = Store(tmp_path)
    assert store.add(stars, region=(ra, dec, reach)) >= 1
    # larger than a piece, smaller than one, and beside the centre
    for a, d, radius in ((ra, dec, 0.8), (ra, dec, 0.01), (ra + 0.3, dec - np.sign(dec) * 0.3, 0.2)):
        got = store.cone(a, d, radius)
        keep = sky(stars).separation(SkyCoord(a, d, unit="deg")) <= radius * u.deg
        assert len(got) == keep.sum()
        order, expected = np.lexsort((got.dec, got.ra)), stars[keep]
        same(got[order], expected[np.lexsort((expected.dec, expected.ra))])
        assert (got.epoch, got.name, got.band) == (2000.0, "UCAC4", "UCAC f")
        assert store.covers(a, d, radius)
    assert not store.covers(ra, dec - np.sign(dec) * 5, 0.2)
    with pytest.raises(CatalogueError, match=r"ucac4 covers 0 of \d+ cells"):
        store.cone(ra, dec - np.sign(dec) * 5, 0.2)


def test_store_is_content_with_a_part_only_if_asked(tmp_path):
    store = Store(tmp_path)
    store.add(around(50, 10, 1.0, 500), region=(50, 10, 1.0))
    with pytest.raises(CatalogueError, match="fastack catalogue fetch"):
        store.cone(50, 10, 2.0)
    assert len(store.cone(50, 10, 2.0, partial=True)) > 300
    with pytest.raises(CatalogueError):  # the centre itself is not there
        store.cone(53, 10, 2.5, partial=True)


def test_store_knows_how_deep_it_is(tmp_path):
    store = Store(tmp_path)
    stars = around(50, 10, 1.0, 500)
    store.add(stars[stars.mag < 12], region=(50, 10, 1.0), limit=12.0)
    assert store.covers(50, 10, 0.3, max_mag=11.5)
    assert not store.covers(50, 10, 0.3, max_mag=13)
    assert not store.covers(50, 10, 0.3)
    with pytest.raises(CatalogueError):
        store.cone(50, 10, 0.3, max_mag=13)
    shallow = store.cone(50, 10, 0.3, max_mag=11)
    assert len(shallow) == (store.cone(50, 10, 0.3, max_mag=12).mag <= 11).sum()
    store.add(stars, region=(50, 10, 1.0))
    assert store.covers(50, 10, 0.3)
    # a shallower answer does not take the place of a deeper one
    store.add(stars[stars.mag < 10], region=(50, 10, 1.0), limit=10.0)
    assert store.covers(50, 10, 0.3)


def test_files_of_neighbouring_fields_join_in_one_piece(tmp_path):
    store = Store(tmp_path)
    stars = around(50.1, 10.1, 0.3, 400)
    east, west = stars[stars.ra > 50.1], stars[stars.ra <= 50.12]
    store.add(east)
    store.add(west)  # the strip in common comes twice
    got = store.cone(50.1, 10.1, 0.3, partial=True)
    assert len(got) == len(stars)
    assert store.cone(50.1, 10.1, 0.05).epoch == 2000.0


def test_several_catalogues_in_one_store(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(CatalogueError, match="nothing in it"):
        store.cone(50, 10, 0.1)
    store.add(around(50, 10, 1.0, 500))
    store.add(around(50, 10, 1.0, 300), catalogue="gaia")
    with pytest.raises(CatalogueError, match="gaia, ucac4"):
        store.cone(50, 10, 0.1)
    assert len(store.cone(50, 10, 0.5, catalogue="gaia")) < len(store.cone(50, 10, 0.5, catalogue="ucac4"))


def test_list_and_describe(tmp_path):
    store = Store(tmp_path / "s")
    assert describe(store) == f"{tmp_path / 's'}: empty"
    assert len(store.list()) == 0
    store.add(around(50, 10, 1.0, 500), region=(50, 10, 1.0))
    store.add(around(0, 60, 1.0, 200), region=(0, 60, 1.0), limit=12.0)
    table = store.list()
    assert set(table["catalogue"]) == {"ucac4"}
    # cells wholly within two circles of 1 degree: less than 2 pi square degrees, more than half of it
    assert np.pi < table["area"].sum() < 2 * np.pi
    assert ((table["ra"] > 357) | (table["ra"] < 52)).all()
    text = describe(store)
    lines = text.splitlines()
    assert len(lines) == 4  # place and size, the catalogue, two patches
    assert "to 12.0 mag" in text
    assert "complete" in text
    patch = next(line for line in lines if "complete" in line).split()
    assert float(patch[1]) == pytest.approx(50, abs=0.2)
    assert float(patch[2]) == pytest.approx(10, abs=0.2)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    stars = around(50, 10, 1.0, 500)

    def interrupted(file, *args, **kwargs):
        file.write(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cat.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.add(stars, region=(50, 10, 1.0))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    store.add(stars, region=(50, 10, 1.0))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.npz")}
    with monkeypatch.context() as patch:
        patch.setattr(cat.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.add(stars, region=(50, 10, 1.0))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_damaged_pieces_count_as_missing(tmp_path):
    store = Store(tmp_path)
    stars = around(50, 10, 1.0, 500)
    store.add(stars, region=(50, 10, 1.0))
    piece = store._piece("ucac4", tuple(int(v) for v in cat._cell_of(np.array([50.0]), np.array([10.0]))[0]))
    for damage in (b"", piece.read_bytes()[:-300], piece.read_bytes()[:500], b"garbage" * 1000):
        piece.write_bytes(damage)
        with pytest.raises(CatalogueError):
            store.cone(50, 10, 0.05)
        store.add(stars, region=(50, 10, 1.0))
        assert store.covers(50, 10, 0.05)


def _killed(path):
    store = Store(path)
    replace = os.replace

    def slowly(*args):
        Path(path, "reached").touch()
        time.sleep(60)
        replace(*args)

    os.replace = slowly
    store.add(around(50, 10, 0.5, 100))


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    process.start()
    while not (tmp_path / "reached").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (tmp_path / "reached").unlink()
    store = Store(tmp_path)
    left = list(tmp_path.rglob(".*.tmp"))
    assert len(left) == 1
    assert len(store.list()) == 0
    # its lock died with it, and what it left goes when it is old enough
    os.utime(left[0], (0, 0))
    assert store.add(around(50, 10, 0.5, 100)) > 5
    assert not list(tmp_path.rglob(".*.tmp"))


def _write(path, seed, merge):
    stars = around(50, 10, 0.7, 300, 1 if not merge else seed)
    store = Store(path)
    for _ in range(3):
        store.add(stars, region=None if merge else (50, 10, 0.7))
        store.cone(50, 10, 0.2, partial=True)


@pytest.mark.parametrize("merge", [False, True])
def test_parallel_processes(tmp_path, merge):
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=_write, args=(tmp_path, seed, merge)) for seed in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0, 0, 0, 0]
    got = Store(tmp_path).cone(50, 10, 0.4, partial=True)
    # merged: nothing that any of the four wrote is lost
    every = [around(50, 10, 0.7, 300, seed) for seed in (range(4) if merge else [1])]
    assert len(got) == sum(int(cat._within(s, 50, 10, 0.4, None).sum()) for s in every)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_cache_stays_below_its_size_and_forgets_the_oldest(tmp_path):
    probe = Store(tmp_path / "probe")
    probe.add(around(50, 10, 0.6, 300), region=(50, 10, 0.6))
    one = sum(p.stat().st_size for p in tmp_path.rglob("*.npz"))
    store = Store(tmp_path / "cache", max_size=int(2.5 * one))
    for k, ra in enumerate((50, 60)):
        store.add(around(ra, 10, 0.6, 300), region=(ra, 10, 0.6))
        for path in (tmp_path / "cache").rglob("*.npz"):  # as if hours had passed
            info = path.stat()
            os.utime(path, (info.st_mtime - 5000 * (k + 1),) * 2)
    assert store.covers(50, 10, 0.15)
    store.cone(50, 10, 0.6, partial=True)  # used again: now the other field is the older
    store.add(around(70, 10, 0.6, 300), region=(70, 10, 0.6))
    assert sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.npz")) <= 2.5 * one
    assert store.covers(70, 10, 0.15)
    assert store.covers(50, 10, 0.15)
    assert not store.covers(60, 10, 0.15)


# --- servers


@pytest.fixture
def servers(data_root):
    server = Servers()
    folder = data_root / "catalogues"
    server.tables["I/322A/out"] = ucac4_table(folder / "ucac4_vizier_cygx1.csv")
    source, vizier = gaia_tables(folder / "gaia_dr2_chunk_03687.fits")
    server.tables |= {"gaiadr3.gaia_source": source, "I/355/gaiadr3": vizier}
    yield server
    server.close()


@pytest.fixture
def options(servers, tmp_path, monkeypatch):
    monkeypatch.delenv("FASTACK_CATALOGUES", raising=False)
    return CatalogueOptions(
        vizier_server=servers.url,
        gaia_server=f"{servers.url}/tap-server/tap",
        sesame_server=f"{servers.url}/sesame/",
        cache_path=str(tmp_path / "cache"),
        timeout=2.0,
        job_timeout=15.0,
        retries=1,
        backoff=0.01,
    )


PLACES = {"ucac4": CYGNUS, "gaia": GEMINI}


def ask(name, options, radius=0.1, **kwargs):
    return fetch(name, *PLACES[name], radius, options=options, **kwargs)


@pytest.mark.real
def test_ucac4_from_vizier(servers, options, data_root):
    stars = ask("ucac4", options)
    table = read_file(data_root / "catalogues" / "ucac4_vizier_cygx1.csv")
    expected = table[sky(table).separation(SkyCoord(*CYGNUS, unit="deg")) <= 0.1 * u.deg]
    assert len(stars) > 150
    assert (stars.name, stars.epoch, stars.band) == ("UCAC4", 2000.0, "UCAC f")
    for key in cat._COLUMNS:  # motions, epochs and magnitudes travel as 32-bit numbers
        np.testing.assert_allclose(getattr(stars, key), getattr(expected, key), rtol=2e-5, err_msg=key)
    np.testing.assert_array_equal(stars.ra, expected.ra)
    # it was astroquery that asked, once, for I/322A
    assert servers.asked[0]["-source"] == "I/322A/out"
    assert len(servers.asked) == 1
    assert "astroquery" in servers.agents[0]
    bright = ask("ucac4", options, max_mag=14.0)
    assert 0 < len(bright) == (stars.mag <= 14).sum()
    assert servers.asked[1]["f.mag"] == "<=14.000"
    ask("ucac4", options, max_mag=18.0)  # beyond the catalogue's end there is nothing to leave out
    assert "f.mag" not in servers.asked[2]


@pytest.mark.real
def test_gaia_from_its_archive(servers, options, data_root):
    servers.polls = 2
    stars = ask("gaia", options, max_mag=19.0)
    table = read_file(data_root / "catalogues" / "gaia_dr2_chunk_03687.fits")
    inside = sky(table).separation(SkyCoord(*GEMINI, unit="deg")) <= 0.1 * u.deg
    expected = table[inside & (table.mag <= 19.0)]
    assert (stars.name, stars.epoch, stars.band) == ("Gaia DR3", 2016.0, "G")
    for key in ("ra", "dec", "ra_err", "dec_err", "pm_ra", "pm_dec", "pm_ra_err", "pm_dec_err", "parallax", "mag"):
        np.testing.assert_array_equal(getattr(stars, key), getattr(expected, key), err_msg=key)
    assert [request["service"] for request in servers.asked] == ["gaia"]
    assert "astroquery" in servers.agents[0]
    assert "gaiadr3.gaia_source" in servers.asked[0]["QUERY"]


@pytest.mark.real
@pytest.mark.parametrize("mood", ["500", "400", "slow", "cut", "short", "html", "error"])
def test_vizier_stands_in_for_the_gaia_archive(servers, options, mood):
    whole = ask("gaia", options)
    servers.asked.clear()
    servers.script = [mood] * (1 if mood == "400" else 2) + ["ok"]
    stars = ask("gaia", options)
    assert [request["service"] for request in servers.asked][-1] == "vizier"
    assert (stars.name, stars.epoch, stars.band) == ("Gaia DR3", 2016.0, "G")
    np.testing.assert_array_equal(stars.ra, whole.ra)
    np.testing.assert_allclose(stars.pm_ra, whole.pm_ra, rtol=1e-6)
    np.testing.assert_allclose(stars.ra_err, whole.ra_err, rtol=1e-6)


BAD = {
    "slow": "did not answer in time",
    "cut": "cut the answer off",
    "short": "cut the answer off",
    "500": "500 Internal Server Error",
    "503": "503 Service Unavailable",
    "html": "something else than a VOTable: 'Bad Gateway",
    "noise": "something else than a VOTable",
    "error": "reports an error: The database is not|ended the job with 'ERROR' Message: Cannot parse",
    "wrong": "something else than",
}


@pytest.mark.real
@pytest.mark.parametrize("name", ["ucac4", "gaia"])
@pytest.mark.parametrize("mood", BAD)
def test_bad_answers_are_one_line_and_no_half_catalogue(servers, options, tmp_path, name, mood):
    servers.script = [mood]
    start = time.monotonic()
    with pytest.raises(CatalogueError, match=BAD[mood]) as caught:
        load(name, ra=PLACES[name][0], dec=PLACES[name][1], radius=0.1, options=options)
    message = str(caught.value)
    assert "\n" not in message
    assert "127.0.0.1" in message
    # asked again once, each of them, and given up
    assert len(servers.asked) == (2 if name == "ucac4" else 4)
    assert time.monotonic() - start < 10
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.real
@pytest.mark.parametrize("name", ["ucac4", "gaia"])
@pytest.mark.parametrize("mood", ["500", "503", "slow", "cut", "short", "html", "noise", "error"])
def test_a_second_attempt_mends_it(servers, options, name, mood):
    whole = ask(name, options)
    servers.asked.clear()
    servers.script = [mood, "ok"]
    same(ask(name, options), whole)
    assert [r["service"] for r in servers.asked] == 2 * ["vizier" if name == "ucac4" else "gaia"]


@pytest.mark.real
def test_pauses_double(servers, options, monkeypatch):
    from dataclasses import replace

    pauses = []
    monkeypatch.setattr(cat.time, "sleep", pauses.append)
    servers.script = ["500"]
    with pytest.raises(CatalogueError, match="4 attempts"):
        ask("ucac4", replace(options, retries=3, backoff=2.0))
    assert pauses == [2.0, 4.0, 8.0]


@pytest.mark.real
def test_a_refused_request_is_not_repeated(servers, options):
    servers.script = ["400"]
    with pytest.raises(CatalogueError, match="refuses the request: 400 Bad Request"):
        ask("ucac4", options)
    assert len(servers.asked) == 1


@pytest.mark.real
@pytest.mark.parametrize("name", ["ucac4", "gaia"])
def test_row_limits_are_noticed(servers, options, name):
    from dataclasses import replace

    n = len(ask(name, options))
    # the margin around the circle brings a few more than it holds
    assert len(ask(name, replace(options, row_limit=n + 10))) == n
    servers.asked.clear()
    with pytest.raises(CatalogueError, match=rf"more than {n - 1} stars .*brighter"):
        ask(name, replace(options, row_limit=n - 1))
    servers.script = ["overflow"]
    with pytest.raises(CatalogueError, match="left rows out"):
        ask(name, options)
    assert len(servers.asked) == 2  # neither repeated nor asked elsewhere


@pytest.mark.real
@pytest.mark.parametrize("mood", ["empty", "none"])
@pytest.mark.parametrize("name", ["ucac4", "gaia"])
def test_an_empty_answer_is_no_error_but_not_remembered(servers, options, tmp_path, name, mood):
    servers.script = [mood]
    ra, dec = PLACES[name]
    stars = load(name, ra=ra, dec=dec, radius=0.05, epoch=2020.0, options=options)
    assert len(stars) == 0
    assert stars.epoch == 2020.0
    assert not list(tmp_path.rglob("*.npz"))
    with pytest.raises(CatalogueError, match="has no star within"):
        fetch_into(tmp_path / "store", name, ra, dec, 0.05, options=options)


@pytest.mark.real
@pytest.mark.parametrize("mood", ["bad", "hole"])
def test_rows_that_are_no_numbers_are_no_stars(servers, options, mood):
    servers.script = [mood]
    with pytest.raises(CatalogueError, match=r"malformed|without a position"):
        ask("ucac4", options)


@pytest.mark.real
def test_a_job_that_does_not_end(servers, options):
    from dataclasses import replace

    servers.polls = 10**6
    stars = ask("gaia", replace(options, job_timeout=0.5, retries=0))
    assert [r["service"] for r in servers.asked] == ["gaia", "vizier"]
    assert len(stars) > 100


@pytest.mark.real
@pytest.mark.parametrize("name", ["ucac4", "gaia"])
def test_offline_is_one_clear_line_at_once(servers, options, name):
    servers.close()  # the port refuses from now on
    start = time.monotonic()
    with pytest.raises(CatalogueError, match=r"cannot be reached.*no network.*fastack catalogue fetch") as caught:
        ask(name, options)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)


@pytest.mark.real
def test_the_cache_answers_the_second_time(servers, options, tmp_path):
    where = {"ra": CYGNUS[0], "dec": CYGNUS[1], "options": options}
    first = load("ucac4", radius=0.15, max_mag=15.0, epoch=2019.1, **where)
    assert len(servers.asked) == 1
    # around the field, so that whole cells could be kept
    assert float(servers.asked[0]["-c.rd"]) > 0.15
    again = load("UCAC4", radius=0.15, max_mag=15.0, epoch=2019.1, **where)
    assert len(load("ucac4", radius=0.1, max_mag=14.0, **where)) < len(first)
    assert len(servers.asked) == 1
    order = np.argsort(first.ra)
    same(again[np.argsort(again.ra)], first[order])
    assert first.epoch == 2019.1
    load("ucac4", radius=0.15, max_mag=16.0, **where)  # deeper: asked for again
    assert len(servers.asked) == 2
    # offline, the cache still serves
    servers.close()
    assert len(load("ucac4", radius=0.15, max_mag=16.0, **where)) > len(first)
    # and a part of the field is better than none, with a word about it
    with pytest.warns(FastackWarning, match=r"cannot be reached.*covers a part"):
        assert len(load("ucac4", radius=0.5, **where)) > len(first)
    with pytest.raises(CatalogueError, match="cannot be reached"):
        load("ucac4", ra=10, dec=10, radius=0.1, options=options)


@pytest.mark.real
def test_an_observatorys_own_store_comes_first(servers, options, tmp_path, monkeypatch):
    store = Store(tmp_path / "own")
    n = fetch_into(store, "ucac4", *CYGNUS, 0.1, options=options)
    assert n == len(ask("ucac4", options))
    assert "ucac4" in describe(store)
    servers.close()
    monkeypatch.setenv("FASTACK_CATALOGUES", str(tmp_path / "own"))
    assert len(load("ucac4", ra=CYGNUS[0], dec=CYGNUS[1], radius=0.1, options=options)) == n
    assert len(load(tmp_path / "own", ra=CYGNUS[0], dec=CYGNUS[1], radius=0.1)) == n
    assert not (tmp_path / "cache").exists()


@pytest.mark.real
def test_a_cache_that_cannot_be_written_does_not_matter(servers, options, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the directory")
    with pytest.warns(FastackWarning, match="cannot be written"):
        stars = load("ucac4", ra=CYGNUS[0], dec=CYGNUS[1], radius=0.1, options=options)
    assert len(stars) > 150


def test_cache_directory_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTACK_CACHE", str(tmp_path))
    assert cat.cache().path == tmp_path / "catalogues"
    assert cat.cache(CatalogueOptions(cache_path="/elsewhere")).path == Path("/elsewhere/catalogues")
    monkeypatch.delenv("FASTACK_CACHE")
    assert "fastack" in str(cat.cache().path)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # urllib's HTTPError keeps its socket
def test_names_are_resolved_in_time_or_not_at_all(servers, options):
    assert resolve("M27", options=options) == pytest.approx((299.901417, 22.721361))
    assert resolve("no such thing", options=options) is None
    assert resolve("", options=options) is None
    for mood in ("500", "cut", "html", "noise"):
        servers.script = [mood]
        assert resolve("M27", options=options) is None, mood
    servers.script = ["slow"]
    start = time.monotonic()
    assert resolve("M27", options=options) is None
    assert time.monotonic() - start < 5
    servers.close()
    assert resolve("M27", options=options) is None
    gc.collect()  # here, where the filter holds


@pytest.mark.real
def test_recorded_answers(data_root):
    """What VizieR and the archive really sent."""
    folder = data_root / "vo_responses"
    read = {p.name: p.read_bytes() for p in folder.rglob("*.vot")} | {
        p.name: p.read_bytes() for p in folder.rglob("*.xml")
    }
    stars = cat._stars(cat._votable(read["1710099405832VAL-result.vot"]), "gaia", served=cat._SERVED["gaia"])
    assert (len(stars), stars.epoch, stars.band) == (2, 2016.0, "G")
    with pytest.raises(CatalogueError, match="reports an error: "):
        cat._votable(read["no_server_error.xml"])
    with pytest.raises(CatalogueError, match="left rows out"):
        cat._votable(read["overflowstatus.xml"])
    with pytest.raises(CatalogueError, match="reports an error"):
        cat._votable(read["errorstatus.xml"])
    assert len(cat._votable(read["kang2010.xml"])) == 50


def test_every_cut_of_an_answer_is_noticed():
    table = Table({"ra": np.linspace(10, 11, 40), "dec": np.linspace(20, 21, 40), "phot_g_mean_mag": np.full(40, 12.0)})
    data = archive_votable(table)
    assert len(cat._votable(data)) == 40
    for end in range(0, len(data.rstrip()) - 1, 97):
        with pytest.raises(CatalogueError):
            cat._votable(data[:end])
    packed = gzip.compress(data)
    for end in range(2, len(packed) - 1, 41):
        with pytest.raises(CatalogueError):
            cat._votable(packed[:end])


def test_text_in_the_place_of_a_number_is_noticed():
    buffer = io.BytesIO()
    Table({"ra": [10.5], "dec": [20.5], "pmra": [3.25]}).write(buffer, format="votable", tabledata_format="tabledata")
    data = buffer.getvalue()
    assert len(cat._votable(data)) == 1
    with pytest.raises(CatalogueError, match="malformed"):
        cat._votable(data.replace(b"3.25", b"3,25"))


def test_importing_the_module_does_not_import_astroquery():
    import subprocess
    import sys

    code = "import sys, fastack.catalogue; assert not [m for m in sys.modules if m.startswith('astroquery')]"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    source = Path(cat.__file__).parent
    users = [p.name for p in source.glob("*.py") if "astroquery" in p.read_text() and p.name != "catalogue.py"]
    assert not [name for name in users if "import astroquery" in (source / name).read_text()]
    # importing astroquery.gaia would ask the archive
    assert "astroquery.gaia import" not in (source / "catalogue.py").read_text()
