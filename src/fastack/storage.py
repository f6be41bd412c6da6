"""Stored pixels: where they lie in a file and how the bytes of a window are read.

Pixels are handed out as the big-endian bytes that the file holds; `calibrate` turns them into numbers.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from fastack.errors import FrameError, OutputError

Bytes = NDArray[np.uint8]
Window = tuple[int, int, int, int]

_CHUNK = 1 << 19  # bytes read and decoded at once: they stay in the second-level cache


class Rows(Protocol):
    """Something that hands out the stored bytes of image rows."""

    def rows(self, window: Window) -> Iterator[tuple[int, Bytes]]:
        """Chunks of a window."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One stored image of a file: where its pixels lie and how they are encoded.

    Physical value = stored value * `bscale` + `bzero`; the stored value `blank` is a missing pixel.
    """

    path: Path
    hdu: int  #: number of the HDU, the primary being 0
    name: str  #: EXTNAME, "" where there is none
    shape: tuple[int, int]  #: (ny, nx) as stored
    bitpix: int
    bscale: float = 1.0
    bzero: float = 0.0
    blank: int | None = None
    offset: int = 0  #: first byte of the pixels in the (for gzip: decompressed) file
    compression: str = ""  #: "", "gzip" (whole file) or "tile" (fpack)
    size: int = 0  #: of the file, byte
    mtime_ns: int = 0

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row."""
        return self.shape[1] * abs(self.bitpix) // 8

    @property
    def nbytes(self) -> int:
        """Stored bytes of the image, decompressed."""
        return self.shape[0] * self.row_bytes

    def rows(self, window: Window) -> Iterator[tuple[int, Bytes]]:
        """Read the stored bytes of a window, a chunk of rows at a time.

        Parameters
        ----------
        window : (y0, y1, x0, x1)
            In stored pixels.

        Yields
        ------
        y : int
            First row of the chunk.
        raw : (rows, bytes) ndarray of uint8
            Big-endian pixels x0 to x1. The next chunk may overwrite it.

        Raises
        ------
        FrameError
            If the file vanished, changed since it was opened, or ends before the window does.
        """
        if self.compression:
            yield window[0], cut(self.load(window[:2]), self.bitpix, (0, window[1] - window[0], *window[2:]))
            return
        with opened(self.path) as file:
            self._check(os.fstat(file.fileno()))
            yield from _pread_rows(file.fileno(), self, self.offset, window)

    def load(self, rows: tuple[int, int] | None = None) -> Bytes:
        """Read the stored bytes of whole rows, decompressed where they have to be.

        Parameters
        ----------
        rows : (y0, y1), optional
            Default: all.

        Returns
        -------
        (rows, row_bytes) ndarray of uint8
            Big-endian pixels.
        """
        y0, y1 = rows or (0, self.shape[0])
        if self.compression == "tile":
            return self._load_tiles(y0, y1)
        if self.compression == "gzip":
            data = self._inflate(self.offset + y0 * self.row_bytes, (y1 - y0) * self.row_bytes)
            return np.frombuffer(data, np.uint8).reshape(y1 - y0, self.row_bytes)
        out = np.empty((y1 - y0, self.row_bytes), np.uint8)
        for y, chunk in self.rows((y0, y1, 0, self.shape[1])):
            out[y - y0 : y - y0 + len(chunk)] = chunk
        return out

    def keep(self, *, memory: int, scratch: str | Path | None = None) -> Rows:
        """Decompress once, so that sections can be read many times.

        Parameters
        ----------
        memory : int
            Bytes up to which the stored pixels stay in memory; larger ones go to a scratch file without a
            name.
        scratch : str or Path, optional
            Directory of the scratch file; default the system's.

        Returns
        -------
        Rows
            Of the same pixels. An uncompressed plane returns itself. When it is sent to another process it
            becomes the plane again, and is decompressed there.
        """
        if not self.compression:
            return self
        raw = self.load()
        return Loaded(self, raw) if raw.nbytes <= memory else Scratch(self, raw, scratch)

    def check_unchanged(self) -> None:
        """Raise `FrameError` if the file vanished or changed since it was opened."""
        try:
            self._check(os.stat(self.path))
        except OSError as error:
            raise unreadable(self.path, error) from None

    def _check(self, status: os.stat_result) -> None:
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise FrameError(
                f"{self.path}: changed while it was used ({self.size} bytes before, {status.st_size} now); "
                "start again when nothing writes to it any more"
            )

    def _inflate(self, start: int, count: int) -> bytes:
        self.check_unchanged()
        try:
            with gzip.open(self.path) as file:
                file.seek(start)
                data = file.read(count)
        except (OSError, EOFError, zlib.error) as error:
            raise FrameError(f"{self.path}: damaged or truncated gzip file ({error}); fetch it again") from None
        if len(data) < count:
            raise truncated(self.path, start + len(data), start + count)
        return data

    def _load_tiles(self, y0: int, y1: int) -> Bytes:
        self.check_unchanged()
        try:
            with fits.open(self.path, do_not_scale_image_data=True, memmap=True) as file:
                hdu = file[self.hdu]
                whole = (y0, y1) == (0, self.shape[0])
                pixels = hdu.data if whole else hdu.section[y0:y1]
                pixels = np.asarray(pixels).reshape(y1 - y0, self.shape[1])
        except Exception as error:  # astropy raises whatever its decoders do
            raise FrameError(f"{self.path}: tiles cannot be decompressed ({error}); fetch it again") from None
        kind = "f" if self.bitpix < 0 else "iu"[self.bitpix == 8]
        stored = np.ascontiguousarray(pixels, dtype=f">{kind}{abs(self.bitpix) // 8}")
        return stored.view(np.uint8).reshape(y1 - y0, self.row_bytes)


class Loaded:
    """The stored pixels of a plane in memory."""

    def __init__(self, plane: Plane, raw: Bytes) -> None:
        self.plane = plane
        self.raw = raw

    def rows(self, window: Window) -> Iterator[tuple[int, Bytes]]:
        """Read a window; see `Plane.rows`."""
        yield window[0], cut(self.raw, self.plane.bitpix, window)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.plane,)


class Scratch:
    """The stored pixels of a plane in a file that has no name and vanishes with this object."""

    def __init__(self, plane: Plane, raw: Bytes, directory: str | Path | None = None) -> None:
        self.plane = plane
        try:
            self._fd, name = tempfile.mkstemp(prefix="fastack-", dir=directory)
            weakref.finalize(self, os.close, self._fd)
            os.unlink(name)
            view = raw.data.cast("B")
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            where = directory or tempfile.gettempdir()
            raise OutputError(
                f"{where}: no scratch file of {raw.nbytes} bytes ({error.strerror}); "
                "give another directory with --scratch or more --memory"
            ) from None

    def rows(self, window: Window) -> Iterator[tuple[int, Bytes]]:
        """Read a window; see `Plane.rows`."""
        yield from _pread_rows(self._fd, self.plane, 0, window)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.plane,)


def _same(plane: Plane) -> Plane:
    return plane


def cut(raw: Bytes, bitpix: int, window: Window) -> Bytes:
    """View of a window of stored rows."""
    y0, y1, x0, x1 = window
    size = abs(bitpix) // 8
    return raw[y0:y1, x0 * size : x1 * size]


def _pread_rows(fd: int, plane: Plane, offset: int, window: Window) -> Iterator[tuple[int, Bytes]]:
    """Chunks of a window from the plain bytes of an open file."""
    y0, y1, x0, x1 = window
    size = abs(plane.bitpix) // 8
    width = (x1 - x0) * size
    if y1 <= y0 or width <= 0:
        return
    # Whole rows in one read, unless that fetches far more than is wanted.
    narrow = width >= 4096 and width * 4 < plane.row_bytes
    row_bytes = width if narrow else plane.row_bytes
    step = max(1, _CHUNK // row_bytes)
    buffer = np.empty((min(step, y1 - y0), row_bytes), np.uint8)
    for y in range(y0, y1, step):
        chunk = buffer[: min(step, y1 - y)]
        if narrow:
            for i, row in enumerate(chunk):
                _pread(fd, row, offset + (y + i) * plane.row_bytes + x0 * size, plane.path)
            yield y, chunk
        else:
            _pread(fd, chunk, offset + y * plane.row_bytes, plane.path)
            yield y, chunk[:, x0 * size : x1 * size]


def _pread(fd: int, target: Bytes, offset: int, path: Path) -> None:
    """Fill `target` from the file."""
    view = target.data.cast("B")
    while view:
        try:
            count = os.preadv(fd, [view], offset)
        except OSError as error:
            raise unreadable(path, error) from None
        if count == 0:
            raise truncated(path, offset, offset + len(view))
        view, offset = view[count:], offset + count


def opened(path: Path) -> io.BufferedReader:
    """Open the file for reading."""
    try:
        return open(path, "rb", buffering=0)  # type: ignore[return-value]
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> FrameError:
    """The error for a file that the system does not let be read."""
    if isinstance(error, FileNotFoundError):
        return FrameError(f"{path}: no such file (any more); check the name")
    if isinstance(error, IsADirectoryError):
        return FrameError(f"{path}: is a directory; name the files in it, or use find_frames")
    if isinstance(error, PermissionError):
        return FrameError(f"{path}: may not be read; ask its owner for read permission")
    return FrameError(f"{path}: cannot be read ({error.strerror or error}); copy it to another disk or leave it out")


def truncated(path: Path, have: int, need: int) -> FrameError:
    """The error for a file that ends too early."""
    return FrameError(
        f"{path}: truncated: {have} of {need} bytes are there ({100 * have / need:.0f} %); "
        "fetch it again or leave it out"
    )
