"""Where a request for stars goes: file, store, cache, network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from servers import CYGNUS
from starlists import around, same, sky

from fastack.catalogue import cache, fetch_into, load
from fastack.errors import CatalogueError, FastackWarning
from fastack.network import fetch
from fastack.options import CatalogueOptions
from fastack.store import Store, describe
from fastack.tables import read_file


@pytest.fixture
def options(catalogue_options):
    return catalogue_options


def test_missing_file_names_what_there_is():
    with pytest.raises(CatalogueError, match=r"nowhere\.csv: no such file.*gaia, ucac4"):
        load("nowhere.csv", ra=1, dec=2, radius=1)
    with pytest.raises(CatalogueError, match="nowhere"):
        read_file("nowhere.csv")


def test_load_cuts_a_file_to_the_circle_and_carries_it(tmp_path):
    stars = around(30.0, -20.0, 0.3, 50)
    Table({key: np.array(getattr(stars, key)) for key in ("ra", "dec", "mag")}).write(tmp_path / "s.fits")
    got = load(tmp_path / "s.fits", ra=30.1, dec=-20.0, radius=0.2, max_mag=14, epoch=2020.0)
    inside = sky(stars).separation(SkyCoord(30.1, -20.0, unit="deg")) <= 0.2 * u.deg
    assert 0 < len(got) == (inside & (stars.mag <= 14)).sum()
    assert got.epoch == 2020.0
    for bad in ({"radius": 0}, {"dec": 91}, {"ra": np.nan}):
        with pytest.raises(ValueError, match="no circle"):
            load(tmp_path / "s.fits", **({"ra": 30, "dec": -20, "radius": 0.2} | bad))


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


def test_an_observatorys_own_store_comes_first(servers, options, tmp_path, monkeypatch):
    store = Store(tmp_path / "own")
    n = fetch_into(store, "ucac4", *CYGNUS, 0.1, options=options)
    assert n == len(fetch("ucac4", *CYGNUS, 0.1, options=options))
    assert "ucac4" in describe(store)
    servers.close()
    monkeypatch.setenv("FASTACK_CATALOGUES", str(tmp_path / "own"))
    assert len(load("ucac4", ra=CYGNUS[0], dec=CYGNUS[1], radius=0.1, options=options)) == n
    assert len(load(tmp_path / "own", ra=CYGNUS[0], dec=CYGNUS[1], radius=0.1)) == n
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_does_not_matter(servers, options, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the directory")
    with pytest.warns(FastackWarning, match="cannot be written"):
        stars = load("ucac4", ra=CYGNUS[0], dec=CYGNUS[1], radius=0.1, options=options)
    assert len(stars) > 150


def test_cache_directory_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTACK_CACHE", str(tmp_path))
    assert cache().path == tmp_path / "catalogues"
    assert cache(CatalogueOptions(cache_path="/elsewhere")).path == Path("/elsewhere/catalogues")
    monkeypatch.delenv("FASTACK_CACHE")
    assert "fastack" in str(cache().path)
