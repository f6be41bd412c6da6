"""Servers on loopback with all their bad days, asked by astroquery itself."""

from __future__ import annotations

import gc
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from servers import CYGNUS, GEMINI, gaia_tables, ucac4_table
from starlists import same, sky

from fastack import network
from fastack.catalogue import fetch_into, load
from fastack.errors import CatalogueError
from fastack.network import fetch, resolve
from fastack.positions import COLUMNS
from fastack.tables import read_file

PLACES = {"ucac4": CYGNUS, "gaia": GEMINI}


@pytest.fixture
def options(catalogue_options):
    return catalogue_options


@pytest.fixture
def real_rows(servers, data_root):
    """The servers answer from the real files."""
    folder = data_root / "catalogues"
    servers.tables["I/322A/out"] = ucac4_table(folder / "ucac4_vizier_cygx1.csv")
    source, vizier = gaia_tables(folder / "gaia_dr2_chunk_03687.fits")
    servers.tables |= {"gaiadr3.gaia_source": source, "I/355/gaiadr3": vizier}


def impatient(options, mood):
    """A time-out that passes soon where the mood lets it pass, and never on a busy machine elsewhere."""
    return replace(options, timeout=2.0) if mood == "slow" else options


def ask(name, options, radius=0.1, **kwargs):
    return fetch(name, *PLACES[name], radius, options=options, **kwargs)


@pytest.mark.real
def test_ucac4_from_vizier(servers, options, real_rows, data_root):
    stars = ask("ucac4", options)
    table = read_file(data_root / "catalogues" / "ucac4_vizier_cygx1.csv")
    expected = table[sky(table).separation(SkyCoord(*CYGNUS, unit="deg")) <= 0.1 * u.deg]
    assert len(stars) > 150
    assert (stars.name, stars.epoch, stars.band) == ("UCAC4", 2000.0, "UCAC f")
    for key in COLUMNS:  # motions, epochs and magnitudes travel as 32-bit numbers
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
def test_gaia_from_its_archive(servers, options, real_rows, data_root):
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


@pytest.mark.parametrize("mood", ["500", "400", "slow", "cut", "short", "html", "error"])
def test_vizier_stands_in_for_the_gaia_archive(servers, options, mood):
    whole = ask("gaia", options)
    servers.asked.clear()
    servers.script = [mood] * (1 if mood == "400" else 2) + ["ok"]
    stars = ask("gaia", impatient(options, mood))
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
    "noise": "something else than a VOTable (\\(|;)",
    "error": "reports an error: The database is not|ended the job with 'ERROR' Message: Cannot parse",
    "wrong": "something else than",
}


@pytest.mark.parametrize("name", ["ucac4", "gaia"])
@pytest.mark.parametrize("mood", BAD)
def test_bad_answers_are_one_line_and_no_half_catalogue(servers, options, tmp_path, name, mood):
    servers.script = [mood]
    start = time.monotonic()
    with pytest.raises(CatalogueError, match=BAD[mood]) as caught:
        load(name, ra=PLACES[name][0], dec=PLACES[name][1], radius=0.1, options=impatient(options, mood))
    message = str(caught.value)
    assert "\n" not in message
    assert "127.0.0.1" in message
    assert message.endswith("try again later, or use a local file, or a store filled by 'fastack catalogue fetch'")
    # asked again once, each of them, and given up
    assert len(servers.asked) == (2 if name == "ucac4" else 4)
    assert time.monotonic() - start < 30
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("name", ["ucac4", "gaia"])
@pytest.mark.parametrize("mood", ["500", "503", "slow", "cut", "short", "html", "noise", "error"])
def test_a_second_attempt_mends_it(servers, options, name, mood):
    whole = ask(name, options)
    servers.asked.clear()
    servers.script = [mood, "ok"]
    same(ask(name, impatient(options, mood)), whole)
    assert [r["service"] for r in servers.asked] == 2 * ["vizier" if name == "ucac4" else "gaia"]


def test_pauses_double(servers, options, monkeypatch):
    pauses = []
    monkeypatch.setattr(network.time, "sleep", pauses.append)
    servers.script = ["500"]
    with pytest.raises(CatalogueError, match="4 attempts"):
        ask("ucac4", replace(options, retries=3, backoff=2.0))
    assert pauses == [2.0, 4.0, 8.0]


@pytest.mark.parametrize(("name", "services"), [("ucac4", ["vizier"]), ("gaia", ["gaia", "vizier"])])
def test_a_refused_request_is_not_repeated(servers, options, name, services):
    servers.script = ["400"]
    with pytest.raises(CatalogueError, match="refuses the request: 400 Bad Request"):
        ask(name, options)
    assert [request["service"] for request in servers.asked] == services


@pytest.mark.parametrize("name", ["ucac4", "gaia"])
def test_row_limits_are_noticed(servers, options, name):
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


@pytest.mark.parametrize("name", ["ucac4", "gaia"])
@pytest.mark.parametrize("mood", ["bad", "hole"])
def test_rows_that_are_no_numbers_are_no_stars(servers, options, name, mood):
    servers.script = [mood]
    with pytest.raises(CatalogueError, match=r"malformed|without a position"):
        ask(name, options)


def test_a_job_that_does_not_end(servers, options):
    servers.polls = 10**6
    stars = ask("gaia", replace(options, timeout=10.0, job_timeout=3.0))
    assert [r["service"] for r in servers.asked] == ["gaia", "vizier"]
    assert len(stars) > 100


@pytest.mark.parametrize(("name", "services"), [("ucac4", ["vizier"]), ("gaia", ["gaia", "vizier"])])
def test_a_server_that_sends_a_byte_at_a_time_has_a_deadline(servers, options, tmp_path, name, services):
    """A socket's time-out never passes: there is always a byte in time."""
    servers.script = ["drip"]
    patient = replace(options, timeout=10.0, job_timeout=1.5)
    start = time.monotonic()
    with pytest.raises(CatalogueError, match=r"had not sent the whole answer after 1.5 s \(--job-timeout\)") as caught:
        load(name, ra=PLACES[name][0], dec=PLACES[name][1], radius=0.1, options=patient)
    assert time.monotonic() - start < 9
    assert "\n" not in str(caught.value)
    assert [r["service"] for r in servers.asked] == services  # a server this slow is not asked twice
    assert not list(tmp_path.rglob("*.npz"))


def test_an_answer_that_drips_in_in_time_is_one(servers, options, monkeypatch):
    whole = ask("ucac4", options)
    monkeypatch.setattr(servers.stop, "wait", lambda seconds: False)  # byte by byte, but quickly
    servers.script = ["drip"]
    same(ask("ucac4", options), whole)


@pytest.mark.parametrize("name", ["ucac4", "gaia"])
def test_offline_is_one_clear_line_at_once(servers, options, name):
    servers.close()  # the port refuses from now on
    start = time.monotonic()
    with pytest.raises(CatalogueError, match=r"cannot be reached.*no network.*fastack catalogue fetch") as caught:
        ask(name, options)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # urllib's HTTPError keeps its socket
def test_names_are_resolved_in_time_or_not_at_all(servers, options):
    assert resolve("M27", options=options) == pytest.approx((299.901417, 22.721361))
    assert resolve("no such thing", options=options) is None
    assert resolve("", options=options) is None
    for mood in ("500", "cut", "html", "noise"):
        servers.script = [mood]
        assert resolve("M27", options=options) is None, mood
    for mood in ("slow", "drip"):
        servers.script = [mood]
        start = time.monotonic()
        assert resolve("M27", options=replace(options, timeout=1.0)) is None
        assert time.monotonic() - start < 10
    servers.close()
    assert resolve("M27", options=options) is None
    gc.collect()  # here, where the filter holds


def test_importing_the_module_does_not_import_astroquery():
    import subprocess
    import sys

    code = "import sys, fastack.catalogue; assert not [m for m in sys.modules if m.startswith('astroquery')]"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    folder = Path(network.__file__).parent
    users = [p.name for p in folder.glob("*.py") if re.search(r"^\s*(from|import) astroquery", p.read_text(), re.M)]
    assert users == ["network.py"]
    # importing astroquery.gaia would ask the archive
    assert "astroquery.gaia import" not in (folder / "network.py").read_text()
