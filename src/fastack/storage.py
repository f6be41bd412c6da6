"""Stored pixels: where they lie in a file and how the bytes of a window are read.

Pixels are handed out as the big-endian bytes that the file holds; `calibrate` turns them into numbers.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from fastack import _pixels
from fastack.errors import FrameError, OutputError
from fastack.rice import Bytes, RiceTiles

Window = tuple[int, int, int, int]
Stored = Bytes | _pixels.RowFile  #: rows of big-endian pixels, in memory or in an open file

_INFLATED = 1 << 22  # bytes inflated by one call
_TILE = (128, 128)  # rows and columns that lie together in the scratch file


class Rows(Protocol):
    """Something that hands out the stored bytes of image rows."""

    def rows(self, window: Window) -> Iterator[tuple[int, Stored]]:
        """Chunks of a window."""
        ...

    def ahead(self, window: Window) -> None:
        """Hear that a window will soon be read."""
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
    rice: RiceTiles | None = None  #: the tiles, where they hold Rice-coded integers
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

    def rows(self, window: Window) -> Iterator[tuple[int, Stored]]:
        """Stored bytes of a window, some rows at a time.

        Parameters
        ----------
        window : (y0, y1, x0, x1)
            In stored pixels.

        Yields
        ------
        y : int
            First row of the chunk.
        raw : (rows, bytes) ndarray of uint8, or `_pixels.RowFile`
            Big-endian pixels x0 to x1; a file is open until the next chunk is asked for.

        Raises
        ------
        FrameError
            If the file vanished, changed since it was opened, or ends before the window does.
        """
        if self.compression:
            yield window[0], cut(self.load(window[:2]), self.bitpix, (0, window[1] - window[0], *window[2:]))
            return
        with opened(self.path) as file:
            self.check(os.fstat(file.fileno()))
            yield window[0], _rows_of(file.fileno(), self, window)

    def ahead(self, window: Window) -> None:
        """Do nothing: the file is not open."""

    def prefetch(self) -> None:
        """Tell the system that the whole file will soon be read."""
        with contextlib.suppress(FrameError), opened(self.path) as file:  # who reads it will say what is wrong
            _will_need(file.fileno(), 0, 0)

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
            return data.reshape(y1 - y0, self.row_bytes)
        out = np.empty((y1 - y0, self.row_bytes), np.uint8)
        with opened(self.path) as file:
            self.check(os.fstat(file.fileno()))
            _pread(file.fileno(), out, self.offset + y0 * self.row_bytes, self.path)
        return out

    def check_unchanged(self) -> None:
        """Raise `FrameError` if the file vanished or changed since it was opened."""
        try:
            self.check(os.stat(self.path))
        except OSError as error:
            raise unreadable(self.path, error) from None

    def check(self, status: os.stat_result) -> None:
        """Raise `FrameError` if a file's status is not what it was when the frame was opened."""
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise FrameError(
                f"{self.path}: changed while it was used ({self.size} bytes before, {status.st_size} now); "
                "start again when nothing writes to it any more"
            )

    def _inflate(self, start: int, count: int) -> Bytes:
        """Bytes of the decompressed file."""
        self.check_unchanged()
        out = np.empty(count, np.uint8)
        done = 0
        try:
            for data in _inflated(self.path):
                part = data[start : start + count - done]
                out[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done, start = done + len(part), max(0, start - len(data))
                if done == count:
                    return out
        except (OSError, zlib.error) as error:
            raise FrameError(f"{self.path}: damaged or truncated gzip file ({error}); fetch it again") from None
        raise truncated(self.path, self.offset + done, self.offset + self.nbytes)

    def _load_tiles(self, y0: int, y1: int) -> Bytes:
        self.check_unchanged()
        if self.rice is not None and (raw := self._load_rice(self.rice, y0, y1)) is not None:
            return raw
        from astropy.io import fits  # slow to start

        try:
            with fits.open(self.path, do_not_scale_image_data=True, memmap=True) as file:
                hdu = file[self.hdu]
                whole = (y0, y1) == (0, self.shape[0])
                pixels = hdu.data if whole else hdu.section[y0:y1]
                pixels = np.asarray(pixels).reshape(y1 - y0, self.shape[1])
        except Exception as error:  # astropy raises whatever its decoders do
            raise self._damaged(error) from None
        kind = "f" if self.bitpix < 0 else "iu"[self.bitpix == 8]
        stored = np.ascontiguousarray(pixels, dtype=f">{kind}{abs(self.bitpix) // 8}")
        return stored.view(np.uint8).reshape(y1 - y0, self.row_bytes)

    def _load_rice(self, tiles: RiceTiles, y0: int, y1: int) -> Bytes | None:
        try:
            with opened(self.path) as file:
                return tiles.load(lambda target, offset: _pread(file.fileno(), target, offset, self.path), y0, y1)
        except (ValueError, MemoryError) as error:  # lengths that no file has
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> FrameError:
        return FrameError(f"{self.path}: tiles cannot be decompressed ({error}); fetch it again")


def _inflated(path: Path) -> Iterator[bytes]:
    """Contents of a gzip file in large pieces: other threads run while one of them is inflated."""
    with opened(path) as file:
        packed = file.read()
    while packed:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            data = member.decompress(packed, _INFLATED)
            packed = member.unconsumed_tail
            if not data and not packed and not member.eof:
                return
            yield data
        packed = member.unused_data.lstrip(b"\0")


# ---- between the passes


def unpack(plane: Plane) -> Rows:
    """Decompress what is compressed, into memory; plain planes are read from their files."""
    return Loaded(plane, plane.load()) if plane.compression else plane


class Store:
    """Where the stored pixels of a run's frames stay between the passes.

    In memory as far as that goes. Compressed ones that find no room there go to one scratch file without a name,
    plain ones stay in their files, of which no more than `most_open` wait open for their next section.

    Parameters
    ----------
    memory : int
        Bytes of stored pixels that may stay in memory.
    scratch : str or Path, optional
        Directory of the scratch file; default the system's.
    most_open : int, optional
        Default: a quarter of what the system lets this process open.

    Notes
    -----
    What `keep` returns becomes the plane again when it is sent to another process, and is read or decompressed there; a
    store itself becomes None.
    """

    def __init__(
        self,
        memory: int = 0,
        *,
        scratch: str | Path | None = None,
        most_open: int | None = None,
    ) -> None:
        self.memory = memory
        self.used = 0  # bytes
        self._plain = False
        self._lock = threading.Lock()
        self._directory = scratch
        self._file: int | None = None
        self._end = 0
        self.most_open = most_open or max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._open: OrderedDict[Path, int] = OrderedDict()  # waiting, the longest unused first

    def expect(self, nbytes: int) -> None:
        """Hear how many bytes of pixels a run has: only if all find room in memory, plain files are kept there too."""
        self._plain = nbytes <= self.memory - self.used

    def keep(self, plane: Plane) -> Rows:
        """See to it that sections of a plane can be read many times.

        Parameters
        ----------
        plane : Plane
            Of a frame, a mask, a weight or a variance.

        Returns
        -------
        Rows
            Of the same pixels.

        Raises
        ------
        FrameError
            If the file cannot be read.
        OutputError
            If there is no room for the scratch file.
        """
        wanted = bool(plane.compression) or self._plain
        if wanted and self._claim(plane.nbytes):
            return Loaded(plane, plane.load())
        return Scratch(plane, plane.load(), self) if plane.compression else Held(plane, self)

    def tile(self, plane: Plane) -> Rows:
        """See to it that narrow windows of a plane can be read; parameters, result and errors as those of `keep`."""
        raw = plane.load()
        return Loaded(plane, raw) if self._claim(plane.nbytes) else Scratch(plane, raw, self)

    def _claim(self, nbytes: int) -> bool:
        """Take memory where there is enough."""
        with self._lock:
            room = nbytes <= self.memory - self.used
            self.used += nbytes if room else 0
        return room

    def take(self, path: Path) -> int:
        """An open file, for one reader at a time.

        Raises
        ------
        FrameError
            If it cannot be opened.
        """
        with self._lock:
            fd = self._open.pop(path, None)
        try:
            return os.open(path, os.O_RDONLY) if fd is None else fd
        except OSError as error:
            raise unreadable(path, error) from None

    def give(self, path: Path, fd: int) -> None:
        """Hand an open file back."""
        with self._lock:
            extra = [self._open.pop(path)] if path in self._open else []
            self._open[path] = fd
            while len(self._open) > self.most_open:
                extra.append(self._open.popitem(last=False)[1])
        for each in extra:
            os.close(each)

    def write(self, parts: Iterable[Bytes], nbytes: int) -> int:
        """Append to the scratch file.

        Parameters
        ----------
        parts : iterable of ndarray
            Written one after the other.
        nbytes : int
            Of all of them.

        Returns
        -------
        int
            Where the bytes begin.

        Raises
        ------
        OutputError
            If there is no room.
        """
        import tempfile  # slow to start, and few runs need it

        try:
            with self._lock:
                if self._file is None:
                    self._file, name = tempfile.mkstemp(prefix="fastack-", dir=self._directory)
                    os.unlink(name)
                fd, start = self._file, self._end
                self._end += nbytes
            at = start
            for part in parts:
                view = part.data.cast("B")
                while view:
                    count = os.pwrite(fd, view, at)
                    view, at = view[count:], at + count
        except OSError as error:
            raise OutputError(
                f"{self._directory or tempfile.gettempdir()}: no scratch file of {self._end} bytes "
                f"({error.strerror}); give another directory with --scratch or more --memory"
            ) from None
        return start

    def close(self) -> None:
        """Close all files; the scratch file vanishes."""
        with self._lock:
            self.most_open = 0
            for fd in [*self._open.values(), *([] if self._file is None else [self._file])]:
                os.close(fd)
            self._open.clear()
            self._file = None

    def read(self, target: Bytes, offset: int, path: Path) -> None:
        """Fill `target` from the scratch file."""
        if self._file is None:
            raise FrameError(f"{path}: its pixels went with the store that held them; prepare the frame again")
        _pread(self._file, target, offset, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class _Kept:
    """A plane whose rows are read from elsewhere."""

    plane: Plane

    def ahead(self, window: Window) -> None:
        """Tell the system that a window will soon be read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.plane,)


class Loaded(_Kept):
    """The stored pixels of a plane in memory."""

    def __init__(self, plane: Plane, raw: Bytes) -> None:
        self.plane = plane
        self.raw = raw

    def rows(self, window: Window) -> Iterator[tuple[int, Stored]]:
        """Read a window; see `Plane.rows`."""
        yield window[0], cut(self.raw, self.plane.bitpix, window)


class Held(_Kept):
    """A plane in its own plain file, which may stay open from one section to the next."""

    def __init__(self, plane: Plane, store: Store) -> None:
        self.plane = plane
        self._store = store

    def rows(self, window: Window) -> Iterator[tuple[int, Stored]]:
        """Read a window; see `Plane.rows`."""
        self.plane.check_unchanged()
        fd = self._store.take(self.plane.path)
        try:
            yield window[0], _rows_of(fd, self.plane, window)
        finally:
            self._store.give(self.plane.path, fd)

    def ahead(self, window: Window) -> None:
        """Tell the system that a window will soon be read."""
        fd = self._store.take(self.plane.path)
        start, count = window[0] * self.plane.row_bytes, (window[1] - window[0]) * self.plane.row_bytes
        _will_need(fd, self.plane.offset + start, count)
        self._store.give(self.plane.path, fd)


class Scratch(_Kept):
    """The stored pixels of a plane in the scratch file of a store, in tiles: what is near lies together."""

    def __init__(self, plane: Plane, raw: Bytes, store: Store) -> None:
        self.plane = plane
        self._store = store
        width = self._width = _TILE[1] * abs(plane.bitpix) // 8
        bands = (raw[y : y + _TILE[0]] for y in range(0, plane.shape[0], _TILE[0]))
        tiles = (band[:, x : x + width].ravel() for band in bands for x in range(0, plane.row_bytes, width))
        self._offset = store.write(tiles, raw.nbytes)

    def rows(self, window: Window) -> Iterator[tuple[int, Stored]]:
        """Read a window; see `Plane.rows`."""
        y0, y1, x0, x1 = window
        size = abs(self.plane.bitpix) // 8
        left, right = x0 * size, x1 * size
        for top in range(y0 - y0 % _TILE[0], y1 if y0 < y1 and x0 < x1 else 0, _TILE[0]):
            high = min(_TILE[0], self.plane.shape[0] - top)
            a, b = max(y0, top), min(y1, top + high)
            out = np.empty((b - a, right - left), np.uint8)
            for x in range(left - left % self._width, right, self._width):
                wide = min(self._width, self.plane.row_bytes - x)
                tile = np.empty((b - a, wide), np.uint8)
                start = top * self.plane.row_bytes + x * high + (a - top) * wide
                self._store.read(tile, self._offset + start, self.plane.path)
                c, d = max(left, x), min(right, x + wide)
                out[:, c - left : d - left] = tile[:, c - x : d - x]
            yield a, out


def _same(plane: Plane) -> Plane:
    return plane


def cut(raw: Bytes, bitpix: int, window: Window) -> Bytes:
    """View of a window of stored rows."""
    y0, y1, x0, x1 = window
    size = abs(bitpix) // 8
    return raw[y0:y1, x0 * size : x1 * size]


def _rows_of(fd: int, plane: Plane, window: Window) -> _pixels.RowFile:
    """A window of the plain bytes of an open file."""
    y0, y1, x0, x1 = window
    size = abs(plane.bitpix) // 8
    return _pixels.RowFile(
        fd, plane.offset + y0 * plane.row_bytes + x0 * size, plane.row_bytes, y1 - y0, (x1 - x0) * size
    )


def _will_need(fd: int, offset: int, count: int) -> None:
    """Have a part of a file read ahead where the system can do so; 0 bytes: to its end."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)


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


def failed(path: Path, error: OSError | EOFError) -> FrameError:
    """The error for rows of a file that could not be read; see `_pixels.calibrate`."""
    return truncated(path, *error.args) if isinstance(error, EOFError) else unreadable(path, error)


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
