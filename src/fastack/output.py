"""A stack into a FITS file: tile by tile, all or nothing.

Planes are written straight into a temporary file beside the target, which takes the target's name only when it is
complete. CHECKSUM and DATASUM follow the FITS Standard 4.0, section 4.4.2.7 and appendix J.
"""

from __future__ import annotations

import errno
import io
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from fastack.errors import OutputError
from fastack.types import FloatImage

if TYPE_CHECKING:
    from astropy.io import fits

_BLOCK = 2880
_RESERVE = 12  #: blank cards kept for figures that are known only at the end


@dataclass(frozen=True, slots=True)
class Plane:
    """One image of the file."""

    name: str  #: EXTNAME; "" for the primary HDU
    dtype: str  #: NumPy code: f4, u2 or u1
    comment: str = ""
    cards: tuple[tuple[str, Any, str], ...] = ()


PRIMARY = Plane("", "f4")
UNCERT = Plane("UNCERT", "f4", "one sigma of each pixel", (("UTYPE", "StdDevUncertainty", "for astropy CCDData"),))
NCOMB = Plane("NCOMB", "u2", "samples kept in each pixel")
WEIGHT = Plane("WEIGHT", "f4", "inverse variance of the background")
FLAGS = Plane("FLAGS", "u1", "1 saturated 2 interpolated 4 rejected 8 partial")
REJLOW = Plane("REJLOW", "u2", "samples rejected below")
REJHIGH = Plane("REJHIGH", "u2", "samples rejected above")


class Sink(Protocol):
    """What takes the tiles of a stack."""

    def write(self, name: str, y: int, x: int, block: np.ndarray) -> None:
        """Store a block of plane `name` with its first pixel at [y, x]; from any thread."""

    def read(self, name: str, y0: int, y1: int, room: FloatImage | None = None) -> np.ndarray:
        """Rows of a plane, native byte order; those of a plane of floats may be put into `room`."""


class MemorySink:
    """Planes in memory, for callers from Python.

    Parameters
    ----------
    shape : tuple of int
        (ny, nx).
    planes : sequence of Plane
        What is kept.
    """

    def __init__(self, shape: tuple[int, int], planes: Sequence[Plane]) -> None:
        self.planes = {p.name: np.zeros(shape, p.dtype) for p in planes}

    def write(self, name: str, y: int, x: int, block: np.ndarray) -> None:
        """Store a block; see `Sink`."""
        self.planes[name][y : y + block.shape[0], x : x + block.shape[1]] = block

    def read(self, name: str, y0: int, y1: int, room: FloatImage | None = None) -> np.ndarray:
        """Rows of a plane; `room` is not needed."""
        return self.planes[name][y0:y1]


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot be written, before any work is done.

    Parameters
    ----------
    path : Path
        Of the file to be.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        With the way out.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a directory: name a file with -o")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: use --overwrite to replace it, or another name with -o")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} does not exist: make it first, or use another path with -o")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent} is not writable: use another path with -o")


def write_hdus(path: Path, hdus: fits.HDUList, *, overwrite: bool = False, verify: str = "exception") -> None:
    """Write a FITS file, all or nothing.

    Parameters
    ----------
    path : Path
        Target.
    hdus : astropy.io.fits.HDUList
        What is written, with checksums.
    overwrite : bool
        Whether an existing file may be replaced.
    verify : str
        What astropy does about cards that are not standard.

    Raises
    ------
    OutputError
        If it cannot be written; an older file of that name stays as it is.
    """
    check_target(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            hdus.writeto(file, checksum=True, output_verify=verify)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


class FitsSink:
    """Planes in a FITS file that appears under its name only when it is whole.

    Used as a context manager; leaving it without `finish` removes what was written and leaves an older file of that
    name untouched.

    Parameters
    ----------
    path : Path
        Target.
    shape : tuple of int
        (ny, nx).
    planes : sequence of Plane
        The first one is the primary HDU.
    header : astropy.io.fits.Header
        Of the primary HDU, without structure; may gain a few cards in `finish`.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        If the file cannot be made or the disk has not enough room.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        planes: Sequence[Plane],
        header: fits.Header,
        *,
        overwrite: bool = False,
    ) -> None:
        check_target(path, overwrite=overwrite)
        self.path, self.shape, self.header = path, shape, header
        self._planes = {p.name: p for p in planes}
        self._at: dict[str, tuple[int, int]] = {}  # header start, data start
        end = 0
        for plane in planes:
            size = len(self._head(plane, reserve=plane.name == ""))
            self._at[plane.name] = end, end + size
            end += size + _padded(np.dtype(plane.dtype).itemsize * shape[0] * shape[1])
        self._end = end
        self._sums: dict[str, int] = {}
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
        # before the file is there: whenever an interrupt comes, from here to the end of the `with`, it is removed
        self._discard = weakref.finalize(self, self._temporary.unlink, missing_ok=True)
        try:
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise OutputError(f"{path}: cannot write here ({error.strerror})") from error
        self._open = True
        try:
            self._reserve(end)
        except BaseException:
            self.abort()
            raise

    def _reserve(self, size: int) -> None:
        try:
            os.posix_fallocate(self._fd, 0, size)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._error(error) from error
            os.ftruncate(self._fd, size)

    def _error(self, error: BaseException) -> OutputError:
        text = getattr(error, "strerror", None) or str(error)
        return OutputError(f"{self.path}: cannot be written ({text}); what stood there before is untouched")

    def write(self, name: str, y: int, x: int, block: np.ndarray) -> None:
        """Store a block of a plane; see `Sink`."""
        plane = self._planes[name]
        if plane.dtype == "u2":
            data = (np.ascontiguousarray(block, np.uint16) ^ np.uint16(0x8000)).astype(">u2")
        else:
            data = np.ascontiguousarray(block, ">" + plane.dtype)
        row = self.shape[1] * data.itemsize
        at = self._at[name][1] + y * row + x * data.itemsize
        try:
            if data.shape[1] == self.shape[1]:
                _pwrite(self._fd, data.tobytes(), at)
            else:
                for k in range(data.shape[0]):
                    _pwrite(self._fd, data[k].tobytes(), at + k * row)
        except OSError as error:
            raise self._error(error) from error

    def read(self, name: str, y0: int, y1: int, room: FloatImage | None = None) -> np.ndarray:
        """Rows of a plane; see `Sink`."""
        dtype = np.dtype(">" + self._planes[name].dtype)
        if room is None or dtype.kind != "f":
            room = np.empty((y1 - y0, self.shape[1]), dtype)
        _pread(self._fd, room, self._at[name][1] + y0 * self.shape[1] * dtype.itemsize)
        data = room.view(dtype)
        if dtype.kind == "u" and dtype.itemsize == 2:
            return data.astype(np.uint16) ^ np.uint16(0x8000)
        native = data.dtype.newbyteorder("=")
        return data if data.dtype == native else data.byteswap(inplace=True).view(native)

    def add_up(self) -> None:
        """Sum the planes for DATASUM, once all tiles are written; `finish` does it where nobody has."""
        for plane in self._planes.values():
            size = np.dtype(plane.dtype).itemsize * self.shape[0] * self.shape[1]
            try:
                self._sums[plane.name] = self._sum(self._at[plane.name][1], _padded(size))
            except OSError as error:
                raise self._error(error) from error

    def append(self, table: fits.BinTableHDU) -> None:
        """Write a table after the planes, and all that is there to the disk.

        Parameters
        ----------
        table : astropy.io.fits.BinTableHDU
            With its header.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        from astropy.io import fits

        buffer = io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(buffer, checksum=True)
        try:
            self._end += _pwrite(self._fd, buffer.getvalue()[_BLOCK:], self._end)
            os.fsync(self._fd)
        except OSError as error:
            raise self._error(error) from error

    def finish(self) -> None:
        """Write headers and checksums, and give the file its name.

        Raises
        ------
        OutputError
            If anything cannot be written; an older file of that name stays as it is.
        """
        try:
            if not self._sums:
                self.add_up()
            for plane in self._planes.values():
                start, data = self._at[plane.name]
                head = self._head(plane, datasum=self._sums[plane.name], size=data - start)
                _pwrite(self._fd, head, start)
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
            self._open = False
            os.close(self._fd)
            os.replace(self._temporary, self.path)
            self._discard.detach()
        except OSError as error:
            self.abort()
            raise self._error(error) from error

    def abort(self) -> None:
        """Remove what was written."""
        if self._open:
            self._open = False
            os.close(self._fd)
        self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()  # nothing is left to do after `finish`

    def _head(
        self, plane: Plane, *, reserve: bool = False, datasum: int | None = None, size: int | None = None
    ) -> bytes:
        """Header block of a plane; with `datasum`, its checksum cards are right, and it has `size` bytes."""
        from astropy.io import fits

        header = fits.Header()
        if plane.name:
            header["XTENSION"] = ("IMAGE", "image extension")
        else:
            header["SIMPLE"] = (True, "conforms to FITS standard")
        header["BITPIX"] = {"f4": -32, "u2": 16, "u1": 8}[plane.dtype]
        header["NAXIS"] = 2
        header["NAXIS1"], header["NAXIS2"] = self.shape[1], self.shape[0]
        if plane.name:
            header["PCOUNT"], header["GCOUNT"] = 0, 1
        else:
            header["EXTEND"] = True
        if plane.dtype == "u2":
            header["BSCALE"], header["BZERO"] = 1, 32768
        if plane.name:
            header["EXTNAME"] = (plane.name, plane.comment)
            for keyword, value, comment in plane.cards:
                header[keyword] = (value, comment)
            for card in self.header.cards:
                shared = card.keyword in ("RADESYS", "EQUINOX") or card.keyword[:5] in _WCS_STARTS
                if shared or (card.keyword == "BUNIT" and plane.name == "UNCERT"):
                    header.append(card, end=True)
        else:
            header.extend(self.header, strip=False, end=True)
        header["CHECKSUM"] = ("0" * 16, "HDU checksum")
        header["DATASUM"] = ("0" * 10 if datasum is None else str(datasum), "data unit checksum")
        text = header.tostring(endcard=False, padding=False)
        blank = _RESERVE if reserve else 0
        length = size or _padded(len(text) + 80 * (blank + 1))
        if len(text) + 80 > length:
            raise ValueError("the header has grown beyond its reserve")
        block: bytes = (text.ljust(length - 80) + "END".ljust(80)).encode("ascii")
        if size is not None:
            # END must be in the last block; the blanks before it are blank cards, which the standard allows
            total = _checksum(np.frombuffer(block, ">u4"), datasum or 0)
            block = block.replace(b"CHECKSUM= '" + b"0" * 16, b"CHECKSUM= '" + _encode(~total & 0xFFFFFFFF), 1)
        return block

    def _sum(self, at: int, size: int) -> int:
        total, room = 0, np.empty(min(1 << 18, size // 4), ">u4")
        for start in range(0, size, room.nbytes):
            words = room[: (size - start) // 4]
            _pread(self._fd, words, at + start)
            total = _checksum(words, total)
        return total


_WCS_STARTS = ("CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD1_1", "CD1_2", "CD2_1", "CD2_2", "LONPO", "LATPO")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _pwrite(fd: int, data: bytes, at: int) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], at + done)
    return done


def _pread(fd: int, target: np.ndarray, at: int) -> None:
    view = target.reshape(-1).view(np.uint8).data
    while view:
        count = os.preadv(fd, [view], at)
        if not count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, at = view[count:], at + count


def _checksum(words: np.ndarray, start: int = 0) -> int:
    """Ones'-complement sum of 32-bit words."""
    total = int(words.sum(dtype=np.uint64)) + start
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _encode(value: int) -> bytes:
    """ASCII encoding of a checksum (FITS Standard 4.0, appendix J)."""
    exclude = {*range(0x3A, 0x41), *range(0x5B, 0x61)}
    columns = []
    for byte in value.to_bytes(4, "big"):
        quotient, remainder = divmod(byte, 4)
        four = [quotient + remainder + 0x30, quotient + 0x30, quotient + 0x30, quotient + 0x30]
        while any(c in exclude for c in four):
            for i in (0, 2):
                if four[i] in exclude or four[i + 1] in exclude:
                    four[i] += 1
                    four[i + 1] -= 1
        columns.append(four)
    ascii_codes = [columns[j][i] for i in range(4) for j in range(4)]
    return bytes(ascii_codes[-1:] + ascii_codes[:-1])
