"""Rice-coded images against astropy's decoder."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from fastack.errors import FrameError
from fastack.frames import open_frame
from fastack.storage import Plane

SHAPE = (70, 203)


def image(kind: str, dtype: type) -> np.ndarray:
    """Pixels that take each branch of the code: even ones, small and large differences, jumps, any number."""
    rng = np.random.default_rng(5)
    info = np.iinfo(dtype)
    if kind == "noise":
        return rng.integers(info.min, info.max, SHAPE, dtype=dtype, endpoint=True)
    middle = (int(info.max) + int(info.min)) // 2
    data = np.full(SHAPE, middle, np.int64)
    if kind == "steps":  # few split bits and a far jump: more zeros in a row than a word has bits
        data[:, 100:] += min(3000, int(info.max) - middle)
        data[:, ::7] += 1
    if kind == "sky":
        data += np.rint(rng.normal(0, 10, SHAPE)).astype(np.int64)
        data[20:30, 40:90] = middle  # blocks without any difference
        data[rng.random(SHAPE) < 0.01] = info.max
        data[rng.random(SHAPE) < 0.01] = info.min
    return np.clip(data, info.min, info.max).astype(dtype)


def packed(path: Path, data: np.ndarray, tile: tuple[int, int] | None = None, code: str = "RICE_1") -> Plane:
    hdu = fits.CompImageHDU(data, compression_type=code, tile_shape=tile)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return open_frame(path).plane


@pytest.mark.parametrize("tile", [None, (16, 32), (70, 203), (3, 203)])
@pytest.mark.parametrize("kind", ["sky", "noise", "even", "steps"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_same_pixels_as_astropy(tmp_path: Path, dtype: type, kind: str, tile: tuple[int, int] | None) -> None:
    data = image(kind, dtype)
    plane = packed(tmp_path / "a.fits.fz", data, tile)
    assert plane.rice is not None
    ours, theirs = plane.load(), replace(plane, rice=None).load()
    np.testing.assert_array_equal(ours, theirs)
    for y0, y1 in ((0, 1), (69, 70), (15, 33), (16, 16), (5, 64)):
        np.testing.assert_array_equal(plane.load((y0, y1)), theirs[y0:y1])


def test_what_is_packed_otherwise_is_left_to_astropy(tmp_path: Path) -> None:
    data = image("sky", np.int16)
    gzip = packed(tmp_path / "g.fits.fz", data, code="GZIP_1")
    floats = packed(tmp_path / "f.fits.fz", data.astype(np.float32))
    assert gzip.rice is None and floats.rice is None
    np.testing.assert_array_equal(gzip.load().view(">i2"), data)


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_told_or_harmless(tmp_path: Path, seed: int) -> None:
    """Bytes of table and heap changed at random: the decoder stays within its arrays or refuses."""
    path = tmp_path / "a.fits.fz"
    plane = packed(path, image("sky", np.uint16), (16, 32))
    assert plane.rice is not None
    raw = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    begin = plane.rice.table if seed % 2 else plane.rice.heap
    for place in rng.integers(begin, plane.rice.heap + 2000, 5):
        raw[place] = int(rng.integers(256))
    path.write_bytes(raw)
    plane = open_frame(path).plane
    with contextlib.suppress(FrameError):
        assert plane.load().shape == (70, 406)


def test_a_tile_that_ends_too_early_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.fits.fz"
    plane = packed(path, image("noise", np.uint16))
    assert plane.rice is not None
    raw = bytearray(path.read_bytes())
    raw[plane.rice.table : plane.rice.table + 4] = (8).to_bytes(4, "big")  # bytes of the first tile
    path.write_bytes(raw)
    with pytest.raises(FrameError, match=r"a\.fits\.fz: tiles cannot be decompressed \(tile 1 is damaged\)"):
        open_frame(path).plane.load()


@pytest.mark.real
def test_real_frames_are_read_without_astropy(data_root: Path) -> None:
    for path in sorted((data_root / "lowell_night").rglob("*.fz")):
        plane = open_frame(path).plane
        assert plane.rice is not None
        np.testing.assert_array_equal(plane.load(), replace(plane, rice=None).load(), err_msg=path.name)
