"""Where the stored pixels stay between the passes: memory, one scratch file, few open files."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from fastack import _pixels
from fastack.errors import FrameError
from fastack.frames import open_frame
from fastack.storage import Held, Loaded, Plane, Rows, Scratch, Store

SHAPE = (150, 1100)  # more than two tiles of the scratch file in y and x


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> list[Plane]:
    """Frames of every depth, each plain and packed."""
    path = tmp_path_factory.mktemp("planes")
    rng = np.random.default_rng(1)
    found = []
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64):
        data = rng.integers(0, 255, SHAPE).astype(dtype)
        plain = path / f"{np.dtype(dtype).name}.fits"
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, name="SCI")]).writeto(plain)
        packed = plain.with_suffix(".fits.gz")
        packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
        found += [open_frame(plain).plane, open_frame(packed).plane]
    return found


def window_of(rows: Rows, plane: Plane, window: tuple[int, int, int, int]) -> np.ndarray:
    """All bytes of a window, each row once and in order."""
    y0, y1, x0, x1 = window
    out = np.zeros((y1 - y0, (x1 - x0) * abs(plane.bitpix) // 8), np.uint8)
    at = y0
    for y, chunk in rows.rows(window):
        assert y == at
        part = np.empty((len(chunk), out.shape[1]), np.float32)
        _pixels.calibrate(part, chunk, bitpix=8)  # also of an open file
        out[y - y0 : y - y0 + len(chunk)] = part
        at += len(chunk)
    assert at == y1 or not out.size
    return out


@pytest.mark.parametrize("memory", [0, 10**9])
def test_windows_are_the_file_s_bytes(planes: list[Plane], memory: int) -> None:
    """Random windows (seed 2) of every depth; in memory, in the scratch file, in the plain file."""
    rng = np.random.default_rng(2)
    with Store(memory) as store:
        store.expect(sum(plane.nbytes for plane in planes))
        for plane in planes:
            rows, whole = store.keep(plane), plane.load()
            assert isinstance(rows, Loaded if memory else Scratch if plane.compression else Held)
            size = abs(plane.bitpix) // 8
            windows = [
                (0, SHAPE[0], 0, SHAPE[1]),
                (63, 65, 511, 513),
                (149, 150, 1099, 1100),
                (5, 5, 0, 9),
                (3, 9, 7, 7),
            ]
            windows += [(*sorted(rng.integers(0, 151, 2)), *sorted(rng.integers(0, 1101, 2))) for _ in range(20)]
            for window in windows:
                y0, y1, x0, x1 = window
                rows.ahead(window)
                got = window_of(rows, plane, window)
                np.testing.assert_array_equal(got, whole[y0:y1, x0 * size : x1 * size], err_msg=str(window))
        assert store.used == (sum(plane.nbytes for plane in planes) if memory else 0)


def test_plain_files_are_kept_only_if_all_fit(planes: list[Plane]) -> None:
    plain = [plane for plane in planes if not plane.compression]
    total = sum(plane.nbytes for plane in plain)
    for memory, kind in ((total, Loaded), (total - 1, Held)):
        with Store(memory) as store:
            store.expect(total)
            assert all(isinstance(store.keep(plane), kind) for plane in plain)


def test_packed_files_take_what_room_there_is(planes: list[Plane]) -> None:
    packed = [plane for plane in planes if plane.compression]
    with Store(packed[0].nbytes + packed[1].nbytes) as store:
        store.expect(sum(plane.nbytes for plane in packed))
        kinds = [type(store.keep(plane)) for plane in packed]
    assert kinds[:2] == [Loaded, Loaded]
    assert set(kinds[2:]) == {Scratch}


def test_threads_share_a_store(planes: list[Plane]) -> None:
    windows = [(y, y + 30, x, x + 400) for y in range(0, 120, 40) for x in range(0, 700, 300)]
    with Store() as store, ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(store.keep, planes))
        tasks = [(rows, plane, window) for window in windows for rows, plane in zip(kept, planes, strict=True)]
        parts = list(pool.map(lambda task: window_of(*task), tasks))
    for (_, plane, (y0, y1, x0, x1)), part in zip(tasks, parts, strict=True):
        size = abs(plane.bitpix) // 8
        np.testing.assert_array_equal(part, plane.load()[y0:y1, x0 * size : x1 * size])


def test_what_is_sent_is_the_plane(planes: list[Plane]) -> None:
    with Store() as store:
        for plane in planes:
            assert pickle.loads(pickle.dumps(store.keep(plane))) == plane
        assert pickle.loads(pickle.dumps(store)) is None


def test_a_closed_store_leaves_nothing_open_and_says_so(planes: list[Plane], tmp_path: Path) -> None:
    store = Store(scratch=tmp_path)
    kept = [store.keep(plane) for plane in planes]
    whole = (0, SHAPE[0], 0, SHAPE[1])
    for rows in kept:
        list(rows.rows(whole))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    assert not list(tmp_path.iterdir())  # the scratch file has no name
    store.close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before - len(planes) // 2 - 1
    list(kept[0].rows(whole))  # a plain file opens again
    with pytest.raises(FrameError, match="prepare the frame again"):
        list(kept[1].rows(whole))


def test_a_file_that_changes_is_noticed_though_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.zeros((20, 30), np.int16)).writeto(path)
    with Store() as store:
        rows = store.keep(open_frame(path).plane)
        list(rows.rows((0, 20, 0, 30)))
        os.utime(path, ns=(1, 1))
        with pytest.raises(FrameError, match="changed while it was used"):
            list(rows.rows((0, 20, 0, 30)))
        path.unlink()
        with pytest.raises(FrameError, match="no such file"):
            list(rows.rows((0, 20, 0, 30)))


def test_gzip_files_of_several_members_and_damaged_ones(tmp_path: Path) -> None:
    plain = tmp_path / "a.fits"
    data = np.random.default_rng(3).integers(0, 60000, (300, 200)).astype(np.uint16)
    fits.PrimaryHDU(data).writeto(plain)
    content = plain.read_bytes()
    packed = tmp_path / "b.fits.gz"
    packed.write_bytes(gzip.compress(content[:50_000]) + gzip.compress(content[50_000:]) + bytes(100))
    expected = open_frame(plain).plane.load()
    np.testing.assert_array_equal(open_frame(packed).plane.load(), expected)
    np.testing.assert_array_equal(open_frame(packed).plane.load((200, 300)), expected[200:])
    whole = gzip.compress(content)
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FrameError, match=r"truncated: .* of"):
        open_frame(packed).plane.load()
    packed.write_bytes(whole[:70_000] + b"\xff" * 200 + whole[70_200:])
    with pytest.raises(FrameError, match=r"damaged or truncated"):
        open_frame(packed).plane.load()


FEW = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
import fastack
result = fastack.stack(sys.argv[1:], register="none", threads=3, normalise=False, memory=20_000_000)
assert len(result.used) == len(sys.argv) - 1, [r.reason for r in result.records if r.reason][:3]
"""


def test_more_frames_than_files_may_be_open(tmp_path: Path) -> None:
    """A hundred frames, half of them packed, where a process may open 48 files."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:96, :96]
    stars = sum(3000 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 5) for a, b in ((20, 30), (60, 70), (75, 25), (30, 75)))
    paths = []
    for k in range(100):
        data = rng.normal(500 + stars, 10).round().astype(np.uint16)
        paths.append(tmp_path / f"d{k:03d}.fits{'.gz' * (k % 2)}")
        fits.PrimaryHDU(data, fits.Header({"EXPTIME": 10.0, "GAIN": 1.5})).writeto(paths[-1])
    command = [sys.executable, "-c", FEW, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
