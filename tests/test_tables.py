"""Tables of stars: real files, formats, and the VOTables that servers send."""

from __future__ import annotations

import gzip
import io
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from servers import archive_votable
from starlists import around

from fastack.errors import CatalogueError
from fastack.surveys import SURVEYS
from fastack.tables import read_file, read_votable, stars_of


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


@pytest.mark.parametrize("writer", ["astropy", "pyarrow"])
def test_parquet(plain, tmp_path, writer):
    """Values, units, gaps and texts, whoever wrote the file."""
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    stars, table = plain
    path = tmp_path / "s.parquet"
    table = table.copy()
    table["pmra"] = MaskedColumn(table["pmra"], mask=np.arange(len(table)) % 5 == 0)
    table["designation"] = [f"Gaia DR3 {k}" for k in range(len(table))]
    if writer == "astropy":
        table["ra_error"] /= 1000
        table["ra_error"].unit = "arcsec"
        table.write(path)
    else:
        columns = {name: table[name].tolist() for name in table.colnames}  # None where there is nothing
        columns["designation"][3] = None
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    got = read_file(path)
    assert (got.epoch, got.name, got.band) == (2016.0, "Gaia DR3", "G")
    for key in set(NAMES) - {"pm_ra"}:
        np.testing.assert_allclose(getattr(got, key), getattr(stars, key), rtol=1e-12, err_msg=key)
    np.testing.assert_array_equal(got.pm_ra, np.where(np.arange(len(stars)) % 5 == 0, np.nan, stars.pm_ra))


def test_parquet_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    with pytest.raises(CatalogueError, match=r"s\.parquet.*pip install pyarrow.*FITS"):
        read_file(tmp_path / "s.parquet")


def test_parquet_cut_off(plain, tmp_path):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    plain[1].write(tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-100])
    with pytest.raises(CatalogueError, match=r"cut\.parquet cannot be read as a catalogue"):
        read_file(tmp_path / "cut.parquet")


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


def test_the_columns_of_source_extractor_are_known(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("NUMBER,ALPHA_J2000,DELTA_J2000,MAG_AUTO\n1,22.5,10,12.5\n2,24,11,13\n")
    stars = read_file(path)
    np.testing.assert_allclose(stars.ra, [22.5, 24])
    np.testing.assert_allclose(stars.dec, [10, 11])
    np.testing.assert_allclose(stars.mag, [12.5, 13])
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


@pytest.mark.real
def test_recorded_answers(data_root):
    """What VizieR and the archive really sent."""
    folder = data_root / "vo_responses"
    read = {p.name: p.read_bytes() for p in folder.rglob("*.vot")} | {
        p.name: p.read_bytes() for p in folder.rglob("*.xml")
    }
    stars = stars_of(read_votable(read["1710099405832VAL-result.vot"]), "gaia", survey=SURVEYS["gaia"])
    assert (len(stars), stars.epoch, stars.band) == (2, 2016.0, "G")
    with pytest.raises(CatalogueError, match="reports an error: "):
        read_votable(read["no_server_error.xml"])
    with pytest.raises(CatalogueError, match="left rows out"):
        read_votable(read["overflowstatus.xml"])
    with pytest.raises(CatalogueError, match="reports an error"):
        read_votable(read["errorstatus.xml"])
    assert len(read_votable(read["kang2010.xml"])) == 50


def test_every_cut_of_an_answer_is_noticed():
    table = Table({"ra": np.linspace(10, 11, 40), "dec": np.linspace(20, 21, 40), "phot_g_mean_mag": np.full(40, 12.0)})
    data = archive_votable(table)
    assert len(read_votable(data)) == 40
    for end in range(0, len(data.rstrip()) - 1, 97):
        with pytest.raises(CatalogueError):
            read_votable(data[:end])
    packed = gzip.compress(data)
    for end in range(2, len(packed) - 1, 41):
        with pytest.raises(CatalogueError):
            read_votable(packed[:end])


def test_text_in_the_place_of_a_number_is_noticed():
    buffer = io.BytesIO()
    Table({"ra": [10.5], "dec": [20.5], "pmra": [3.25]}).write(buffer, format="votable", tabledata_format="tabledata")
    data = buffer.getvalue()
    assert len(read_votable(data)) == 1
    with pytest.raises(CatalogueError, match="malformed"):
        read_votable(data.replace(b"3.25", b"3,25"))
