"""Stores on disk: cells of the sky, interrupted writers, parallel processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st
from starlists import around, same, sky

from fastack import store as stores
from fastack.errors import CatalogueError
from fastack.positions import within
from fastack.sphere import distance
from fastack.store import Store, covering_radius, describe


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 360),
    dec=st.one_of(st.floats(-90, 90), st.sampled_from([90.0, -90.0, 89.95, -89.99])),
    radius=st.floats(0.001, 2.0),
    seed=st.integers(0, 1000),
)
def test_cells_hold_every_star_of_the_circle_and_no_other_is_whole(ra, dec, radius, seed):
    stars = around(ra, dec, radius, 200, seed)
    touched = set(stores._cells(ra, dec, radius))
    homes = {tuple(int(v) for v in row) for row in stores._cell_of(stars.ra, stars.dec)}
    assert homes <= touched
    # cells said to lie within: none of their places is further away
    rng = np.random.default_rng(seed)
    for zone, cell in list(stores._cells(ra, dec, radius, whole=True))[:5]:
        width = 360 / stores._zone_cells(zone)
        a = (cell + rng.uniform(0, 1, 50)) * width
        d = (zone + rng.uniform(0, 1, 50)) * stores.CELL - 90
        assert (distance(a, d, ra, dec) <= radius + 1e-9).all()
    reach = covering_radius(ra, dec, radius)
    assert touched <= set(stores._cells(ra, dec, reach, whole=True))
    assert reach < radius + 0.6


def test_distances_from_a_cell_are_those_of_many_points():
    rng = np.random.default_rng(3)
    for _ in range(40):
        zone = int(rng.choice([0, 1, 2, 150, 359, 360, 500, 717, 718, 719]))
        count = stores._zone_cells(zone)
        cell = int(rng.integers(count))
        ra, dec = rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-1, 1)))
        if rng.random() < 0.5:  # near the cell
            ra, dec = (cell + rng.uniform(-1, 2)) * 360 / count, np.clip(zone * 0.25 - 90 + rng.normal(0, 0.4), -90, 90)
        a, d = np.meshgrid((cell + np.linspace(0, 1, 201)) * 360 / count, (zone + np.linspace(0, 1, 101)) * 0.25 - 90)
        reached = distance(a, d, ra, dec)
        index = np.array([cell])
        # the net's step is 0.25/100 degree in declination, and less than 0.6/200 along it
        assert stores._nearest(zone, index, ra, dec)[0] == pytest.approx(reached.min(), abs=0.003)
        assert stores._farthest(zone, index, ra, dec)[0] == pytest.approx(reached.max(), abs=0.003)


# --- store


@pytest.mark.parametrize(("ra", "dec"), [(120.0, 30.0), (0.0, -10.0), (359.999, 60.0), (77.0, 90.0), (200.0, -89.9)])
def test_store_gives_back_what_it_got(tmp_path, ra, dec):
    reach = covering_radius(ra, dec, 0.8)
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
        patch.setattr(stores.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.add(stars, region=(50, 10, 1.0))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    store.add(stars, region=(50, 10, 1.0))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.npz")}
    with monkeypatch.context() as patch:
        patch.setattr(stores.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.add(stars, region=(50, 10, 1.0))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_damaged_pieces_count_as_missing(tmp_path):
    store = Store(tmp_path)
    stars = around(50, 10, 1.0, 500)
    store.add(stars, region=(50, 10, 1.0))
    piece = store._piece("ucac4", tuple(int(v) for v in stores._cell_of(np.array([50.0]), np.array([10.0]))[0]))
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
    assert len(got) == sum(int(within(s, 50, 10, 0.4, None).sum()) for s in every)
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
