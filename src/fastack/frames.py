"""FITS files as they occur: where the pixels lie, and what the header says of them.

`open_frame` parses the headers of one file once and keeps no file open. Pixels are handed out as the
big-endian bytes that the file holds; `calibrate` turns them into numbers. Cards that no FITS reader should
meet (decimal commas, numbers stored as text, values without quotes, bytes that are no ASCII) are mended
before astropy sees them, so that no access to `Frame.header` ever raises; whatever was mended or guessed is
told in `Frame.assumptions`.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import gzip
import io
import math
import os
import re
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from .errors import FrameError, OutputError
from .options import CalibrateOptions

Bytes = NDArray[np.uint8]
Window = tuple[int, int, int, int]

SUFFIXES = (".fits", ".fit", ".fts", ".fz", ".fits.gz", ".fit.gz", ".fts.gz")
#: What fastack and its predecessors write; never taken for a frame unless it is named one by one.
PRODUCTS = ("mosaic.fits*", "amosaic_*.fits*", "ad*.fits*", "master_*.fits*")
_COMPANIONS = {"mask": ("mask", "bpm"), "weight": ("weight",), "variance": ("var",)}

_BLOCK = 2880
_CHUNK = 1 << 19  # bytes read and decoded at once: they stay in the second-level cache
_RAW_LIMIT = {8: 255.0, 16: 32767.0}


class Rows(Protocol):
    """Something that hands out the stored bytes of image rows."""

    def rows(self, window: Window) -> Iterator[tuple[int, Bytes]]:
        """Chunks of a window."""
        ...


# ---- pixels


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
        with _opened(self.path) as file:
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
            raise _unreadable(self.path, error) from None

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
            raise _truncated(self.path, start + len(data), start + count)
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
            raise _unreadable(path, error) from None
        if count == 0:
            raise _truncated(path, offset, offset + len(view))
        view, offset = view[count:], offset + count


# ---- frames


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One image file: what its header says and where its pixels lie. Holds no open file.

    ``None`` stands for what neither the header nor an option tells.
    """

    path: Path
    name: str  #: file name, with the extension's name or number in brackets where one was asked for
    cards: str = field(repr=False)  #: text of `header`, 80 characters a card
    plane: Plane = field(repr=False)  #: the stored pixels
    mask: Plane | None = field(repr=False)  #: non-zero where a pixel is bad
    weight: Plane | None = field(repr=False)  #: zero where a pixel is bad
    variance: Plane | None = field(repr=False)  #: of each pixel, ADU^2
    trim: Window  #: (y0, y1, x0, x1) of the light area in stored pixels
    overscan: Window | None  #: (y0, y1, x0, x1) of BIASSEC in stored pixels
    gain: float | None  #: e-/ADU
    rdnoise: float | None  #: e-
    saturation: float | None  #: stored level (scaled by BSCALE, BZERO) from which a pixel is saturated, ADU
    saturation_guessed: bool  #: from the range of the integers alone
    exposure: float | None  #: s
    filter: str | None
    object: str | None
    binning: tuple[int, int] | None  #: (x, y)
    image_type: str  #: light, bias, dark, flat or unknown
    instrument: str | None
    temperature: float | None  #: of the detector, degree Celsius
    pixel_scale: float | None  #: arcsec per pixel
    bayer: str | None  #: colour pattern of the stored image, as RGGB
    ncombine: int  #: exposures behind the image
    assumptions: tuple[str, ...]  #: every guess that was made, in words

    @property
    def header(self) -> fits.Header:
        """Primary and image header merged, every card readable; copy it before changing anything."""
        return _parsed(self.cards)

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of the light area."""
        return self.trim[1] - self.trim[0], self.trim[3] - self.trim[2]

    @property
    def raw_shape(self) -> tuple[int, int]:
        """(ny, nx) of the stored image."""
        return self.plane.shape

    @property
    def bitpix(self) -> int:
        """BITPIX of the stored image."""
        return self.plane.bitpix

    @property
    def bscale(self) -> float:
        """BSCALE of the stored image."""
        return self.plane.bscale

    @property
    def bzero(self) -> float:
        """BZERO of the stored image."""
        return self.plane.bzero

    @property
    def blank(self) -> int | None:
        """BLANK of the stored image."""
        return self.plane.blank

    @property
    def hdu(self) -> int:
        """Number of the image's HDU."""
        return self.plane.hdu

    @property
    def data_offset(self) -> int | None:
        """First byte of the pixels in the file; None where the file is compressed."""
        return None if self.plane.compression else self.plane.offset

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self.plane.size

    @property
    def mtime_ns(self) -> int:
        """Modification time of the file when it was opened."""
        return self.plane.mtime_ns

    def check_unchanged(self) -> None:
        """Raise `FrameError` if the file vanished or changed since it was opened."""
        self.plane.check_unchanged()

    def read_raw(self, y0: int, y1: int) -> Bytes:
        """Read stored rows y0 to y1 of the whole image, overscan included.

        Parameters
        ----------
        y0, y1 : int
            Rows of the stored image.

        Returns
        -------
        (y1 - y0, row_bytes) ndarray of uint8
            Big-endian pixels, for `fastack.decode`.

        Raises
        ------
        FrameError
            If the file vanished, changed, or is damaged.
        """
        if not 0 <= y0 <= y1 <= self.raw_shape[0]:
            raise ValueError(f"rows {y0} to {y1} of an image with {self.raw_shape[0]} rows")
        return self.plane.load((y0, y1))


def open_frame(path: str | Path, *, options: CalibrateOptions | None = None) -> Frame:
    """Read the headers of one file.

    Parameters
    ----------
    path : str or Path
        A FITS file, plain, gzip-compressed or tile-compressed (fpack). The first two-dimensional image
        counts, or the one that is asked for as ``file.fits[SCI]`` or ``file.fits[2]``.
    options : CalibrateOptions, optional
        Its `gain`, `rdnoise` and `saturation` count before the header's.

    Returns
    -------
    Frame
        Without an open file.

    Raises
    ------
    FrameError
        If there is no such file, it cannot be read, is empty, truncated, no FITS file, or holds no
        two-dimensional image. The message names the file, the cause and the way out.
    """
    path, wanted = _split_extension(path)
    try:
        with _opened(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise FrameError(f"{path}: is empty; leave it out or fetch it again")
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            images, primary = _walk(path, stream, None if packed else status.st_size, first=wanted is None)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FrameError(f"{path}: damaged or truncated gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    notes: list[str] = []
    image = _choose(path, images, wanted, notes)
    cards, repairs = _merge(primary, image)
    notes += repairs
    planes = [_plane(path, unit, packed, status) for unit in images if unit.is_image]
    by_hdu = {plane.hdu: plane for plane in planes}
    return _frame(path, wanted, cards, by_hdu[image.number], by_hdu, options or CalibrateOptions(), notes)


def find_frames(
    sources: Sequence[str | Path] | None = None, *, directory: str | Path = ".", default: str = "d*.fits"
) -> list[Path]:
    """Files behind a list of names.

    Parameters
    ----------
    sources : sequence of str or Path, optional
        Files, glob patterns, directories (all FITS files in them) and ``@list.txt`` (one source a line,
        relative to the list; blank lines and ``#`` comments are skipped). Default: the pattern `default`.
    directory : str or Path
        What relative names refer to.
    default : str
        Pattern that is used without sources.

    Returns
    -------
    list of Path
        Sorted, each file once. Products of earlier runs (mosaic.fits, amosaic_*.fits, adNNNN.fits,
        master_*.fits) and the masks, weights and variances beside a frame are left out unless they are named
        one by one.

    Raises
    ------
    FrameError
        If a source leads to no file.
    """
    base = Path(directory)
    if isinstance(sources, (str, Path)):
        sources = [sources]
    found: list[Path] = []
    asked = [default] if not sources else list(sources)
    for source in asked:
        files = _expand(base, str(source), ())
        if not files:
            raise FrameError(f"no frames: looked for {source} in {base.resolve()}")
        found += files
    unique = {os.path.realpath(_split_extension(path)[0]) + _bracket(path): path for path in reversed(found)}
    return sorted(unique.values(), key=lambda path: _natural(str(path)))


def _expand(base: Path, source: str, lists: tuple[Path, ...]) -> list[Path]:
    """Files behind one source."""
    if source.startswith("@"):
        return _read_list(base / os.path.expanduser(source[1:]), lists)
    path = base / os.path.expanduser(source)
    if path.is_dir():
        names = (entry.path for entry in os.scandir(path) if entry.is_file())
        found = [Path(name) for name in names if name.lower().endswith(SUFFIXES)]
        return _without_products(found)
    plain, wanted = _split_extension(path)
    if plain.exists() or (wanted is None and not glob.has_magic(source)):
        if not plain.exists():
            raise FrameError(f"{plain}: no such file; looked for {source!r} in {base.resolve()}")
        return [path]
    return _without_products([Path(name) for name in glob.glob(str(path)) if os.path.isfile(name)])


def _read_list(path: Path, lists: tuple[Path, ...]) -> list[Path]:
    """Files behind the lines of a list."""
    if path in lists:
        raise FrameError(f"{path}: the list names itself")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise _unreadable(path, error) from None
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    found = [file for line in lines if line for file in _expand(path.parent, line, (*lists, path))]
    if not found:
        raise FrameError(f"{path}: the list names no frame")
    return found


def _without_products(paths: list[Path]) -> list[Path]:
    """Drop products of earlier runs and companions of frames."""
    stems = {_stem(path.name) for path in paths}
    return [path for path in paths if not is_product(path) and not _is_companion(path.name, stems)]


def is_product(path: str | Path) -> bool:
    """Whether a file bears the name of something that fastack writes."""
    return any(fnmatch.fnmatch(Path(path).name, pattern) for pattern in PRODUCTS)


def _stem(name: str) -> str:
    """Name of a file without the suffixes of FITS and of compression."""
    return re.sub(r"(\.(fits|fit|fts))?(\.(gz|fz))?$", "", name, flags=re.I)


def _is_companion(name: str, stems: set[str]) -> bool:
    """Whether a file is the mask, weight or variance of another."""
    match = re.fullmatch(r"(.+)[._](?:mask|bpm|weight|var)", _stem(name))
    return match is not None and match[1] in stems


def _natural(text: str) -> list[Any]:
    """Sorting key under which d9 stands before d10."""
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text)]


def _bracket(path: str | Path) -> str:
    wanted = _split_extension(path)[1]
    return "" if wanted is None else f"[{wanted}]"


def _split_extension(path: str | Path) -> tuple[Path, str | None]:
    """``file.fits[SCI]`` to the file and the extension that is asked for."""
    match = re.fullmatch(r"(.+)\[([\w.\- ]+)\]", str(path))
    if match is None or os.path.exists(path):
        return Path(path), None
    return Path(match[1]), match[2]


# ---- headers


class _Unit(NamedTuple):
    """One header-data unit as it was found."""

    number: int
    cards: list[tuple[str, str]]  # keyword and 80-character image, CONTINUE cards joined to theirs
    repairs: list[str]
    values: dict[str, str]  # first value of the structural keywords
    offset: int  # of the data
    compressed: bool  # a tile-compressed image

    @property
    def name(self) -> str:
        return self.values.get("EXTNAME", "").strip("' ").strip()

    @property
    def axes(self) -> list[int]:
        z = "Z" if self.compressed else ""
        return [self.integer(f"{z}NAXIS{i + 1}") for i in range(self.integer(f"{z}NAXIS"))]

    @property
    def is_image(self) -> bool:
        """Whether it holds one plane of pixels."""
        if self.number and not self.compressed and self.values.get("XTENSION", "").strip("' ") != "IMAGE":
            return False
        axes = self.axes
        return len(axes) >= 2 and min(axes) > 0 and all(n == 1 for n in axes[2:])

    def integer(self, keyword: str, default: int = 0) -> int:
        try:
            return int(float(self.values.get(keyword, default)))
        except (ValueError, OverflowError):
            return default

    def data_bytes(self) -> int:
        """Bytes of the data that follow the header, without padding."""
        axes = [self.integer(f"NAXIS{i + 1}") for i in range(self.integer("NAXIS"))]
        if not axes:
            return 0
        pixels = math.prod(axes)
        size = abs(self.integer("BITPIX")) // 8
        return size * self.integer("GCOUNT", 1) * (self.integer("PCOUNT") + pixels)


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[ED][+-]?\d+)?"
_KEYWORD = re.compile(r"[A-Z0-9_-]{1,8}")
# What may stand after "= ": a closed string, a logical, a number, a complex one or nothing; then a comment.
_VALUE = re.compile(rf" *(?:'(?:[^']|'')*'|[TF]|{_NUMBER}|\( *{_NUMBER} *, *{_NUMBER} *\)|) *(?:/.*)?", re.DOTALL)
_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|Z?NAXIS\d*|PCOUNT|GCOUNT|EXTNAME|ZIMAGE|ZBITPIX|B(?:SCALE|ZERO|LANK)|ZBLANK"
)
_COMMENTARY = ("COMMENT", "HISTORY", "")
# Printable ASCII stays, everything else becomes "?".
_PRINTABLE = bytes(c if 32 <= c < 127 else ord("?") for c in range(256))


def _walk(path: Path, file: Any, size: int | None, *, first: bool) -> tuple[list[_Unit], _Unit]:
    """All header-data units of a file that may hold images, and the primary one."""
    units: list[_Unit] = []
    position = 0
    while size is None or position < size:
        text, offset = _read_header(path, file, position, first=not units)
        if text is None:
            break
        unit = _parse(len(units), text, offset)
        units.append(unit)
        length = unit.data_bytes()
        if size is not None and offset + length > size:
            raise _truncated(path, size, offset + length)
        position = offset + -(-length // _BLOCK) * _BLOCK
        if size is None and first and unit.is_image:
            break  # a gzip file is not inflated to its end only to see what follows
    if not units:
        raise FrameError(f"{path}: is empty; leave it out or fetch it again")
    return units, units[0]


def _read_header(path: Path, file: Any, position: int, *, first: bool) -> tuple[str | None, int]:
    """Text of the header at `position` without END, and the offset of what follows it."""
    file.seek(position)
    data = b""
    while True:
        block = file.read(8 * _BLOCK if not data else 32 * _BLOCK)
        if not data:
            if first and not block.startswith(b"SIMPLE"):
                kind = _kind(block)
                raise FrameError(f"{path}: is not a FITS file{kind}; leave it out or convert it")
            if not first and not block.startswith(b"XTENSION"):
                return None, position  # padding or a foreign trailer
        start = max(0, len(data) - 80)
        data += block
        while (start := data.find(b"END", start)) >= 0:
            if start % 80 == 0 and not data[start + 3 : start + 80].strip(b" \0"):
                end = position + -(-(start + 80) // _BLOCK) * _BLOCK
                return data[:start].translate(_PRINTABLE).decode("ascii"), end
            start += 1
        if not block:
            raise FrameError(f"{path}: the header has no END card: the file is truncated or damaged; fetch it again")
        if len(data) > 1 << 24:
            raise FrameError(f"{path}: no END card in the first 16 MiB: no FITS header; leave it out")


_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"II*": "TIFF",
    b"MM\0*": "TIFF",
    b"<": "HTML or XML",
    b"XISF": "XISF",
}


def _kind(block: bytes) -> str:
    """Guess the format of a file that is no FITS file."""
    for magic, kind in _MAGIC.items():
        if block.startswith(magic):
            return f" but looks like {kind}"
    return ""


def _parse(number: int, text: str, offset: int) -> _Unit:
    """Cards of one header, mended where astropy could not read them."""
    cards: list[tuple[str, str]] = []
    repairs: list[str] = []
    values: dict[str, str] = {}
    for start in range(0, len(text), 80):
        image = text[start : start + 80]
        keyword = image[:8].rstrip()
        if keyword == "CONTINUE" and cards:
            cards[-1] = (cards[-1][0], cards[-1][1] + image)
            continue
        if keyword in _COMMENTARY:
            if image.strip():
                cards.append((keyword, image))
            continue
        good = _KEYWORD.fullmatch(keyword) and image[8:10] == "= " and _VALUE.fullmatch(image, 10)
        if not good and not (keyword == "HIERARCH" and _good_hierarch(image)):
            keyword, image, repair = _mend(image)
            repairs.append(repair)
        cards.append((keyword, image))
        if _STRUCTURE.fullmatch(keyword):
            values.setdefault(keyword, _strip_comment(image[10:]))
    compressed = values.get("ZIMAGE") == "T"
    return _Unit(number, cards, repairs, values, offset, compressed)


def _good_hierarch(image: str) -> bool:
    name, equals, value = image[9:].partition("=")
    return bool(equals and re.fullmatch(r"[A-Za-z0-9_\- ]+", name) and _VALUE.fullmatch(value))


def _strip_comment(value: str) -> str:
    """Strip the comment from a value field."""
    match = re.match(r" *('(?:[^']|'')*')", value)
    return match[1] if match else value.partition("/")[0].strip()


def _mend(image: str) -> tuple[str, str, str]:
    """Turn a card that astropy cannot read into one that it can, and say what was done."""
    name, equals, rest = image.partition("=")
    keyword = name.strip().upper()
    if not equals or not _KEYWORD.fullmatch(keyword):
        text = image.rstrip()
        return "COMMENT", f"COMMENT {text[:72]:<72}", f"card {text[:30]!r} is no FITS card: kept as a comment"
    value, slash, comment = rest.partition("/")
    if _VALUE.fullmatch(value.upper()) and "'" not in value:  # a small e in an exponent, a small t or f
        rest = value.upper() + slash + comment
    if _VALUE.fullmatch(rest):
        mended = f"{keyword:<8}= {rest.strip()}"
        return keyword, f"{mended[:80]:<80}", f"{keyword}: card was not in the standard's form"
    value = value.strip().strip("'").rstrip().replace("'", "''")[:66]
    value = value if value.count("''") * 2 == value.count("'") else value.replace("'", "")
    mended = f"{keyword:<8}= '{value:<8}'"
    if slash:
        mended += f" / {comment.strip()}"
    return keyword, f"{mended[:80]:<80}", f"{keyword} {value!r} is no FITS value: kept as text"


_TABLE_ONLY = re.compile(
    r"XTENSION|SIMPLE|EXTEND|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|T(?:TYPE|FORM|UNIT|DISP|NULL|SCAL|ZERO|DIM)\d+|THEAP"
    r"|Z(?:IMAGE|SIMPLE|EXTEND|TENSION|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|MASKCMP|QUANTIZ|DITHER0|PCOUNT"
    r"|GCOUNT|BLOCKED|HECKSUM|DATASUM|SCALE|ZERO|BLANK)|CHECKSUM|DATASUM|INHERIT"
)


def _merge(primary: _Unit, image: _Unit) -> tuple[str, list[str]]:
    """Text of one readable header of both units, the image's cards before the primary's."""
    shape = image.axes
    bitpix = image.integer("ZBITPIX" if image.compressed else "BITPIX")
    structure = {"SIMPLE": "T", "BITPIX": bitpix, "NAXIS": 2, "NAXIS1": shape[0], "NAXIS2": shape[1]}
    text = [f"{keyword:<8}= {value:>20}".ljust(80) for keyword, value in structure.items()]
    own = {keyword for keyword, _ in image.cards}
    units = [image] if image is primary else [primary, image]
    repairs: list[str] = []
    for unit in units:
        for keyword, card in unit.cards:
            if _TABLE_ONLY.fullmatch(keyword) or (
                keyword == "EXTNAME" and unit.compressed and "COMPRESSED_IMAGE" in card
            ):
                continue
            if unit is image or keyword in _COMMENTARY or keyword not in own:
                text.append(card)
        repairs += unit.repairs
    return "".join(text), repairs


@functools.lru_cache(maxsize=32)
def _parsed(cards: str) -> fits.Header:
    """Header of a text: the text of a thousand frames is small, their headers would not be."""
    return fits.Header.fromstring(cards)


_MASKS = ("MASK", "BPM", "DQ", "BADPIX", "BADPIXMASK")
_WEIGHTS = ("WEIGHT", "WHT", "IVAR")
_VARIANCES = ("VAR", "VARIANCE")


def _choose(path: Path, units: list[_Unit], wanted: str | None, notes: list[str]) -> _Unit:
    """Find the unit whose image is used."""
    if wanted is not None:
        found = [u for u in units if str(u.number) == wanted or u.name.upper() == wanted.upper()]
        if not found:
            names = ", ".join(f"{u.number}{f' {u.name}' if u.name else ''}" for u in units)
            raise FrameError(f"{path}: has no extension {wanted!r}; it holds {names}")
        if not found[0].is_image:
            raise _no_image(path, found, f"extension {wanted!r}")
        return found[0]
    other = (*_MASKS, *_WEIGHTS, *_VARIANCES)
    images = [u for u in units if u.is_image and u.name.upper() not in other]
    cubes = [u for u in units if len(u.axes) > 2 and not u.is_image and (u.number == 0 or u.compressed)]
    if not images or (cubes and cubes[0].number < images[0].number):
        raise _no_image(path, cubes, "the file")
    chosen = images[0]
    if len(images) > 1:
        names = ", ".join(str(u.name or u.number) for u in images[1:])
        notes.append(
            f"image of HDU {chosen.number}{f' ({chosen.name})' if chosen.name else ''} used; ask for another "
            f"({names}) as {path.name}[{images[1].name or images[1].number}]"
        )
    return chosen


def _no_image(path: Path, units: list[_Unit], what: str) -> FrameError:
    """Word the error for a file without a plane of pixels."""
    axes = units[0].axes if units else []
    if len(axes) > 2:
        shape = " x ".join(map(str, axes))
        if 3 in (axes[0], axes[-1]):
            return FrameError(f"{path}: {what} is a colour image ({shape}); split its planes into one file each")
        return FrameError(f"{path}: {what} is a cube ({shape}), not an image; split it into one file a plane")
    return FrameError(f"{path}: {what} holds no two-dimensional image; leave it out")


def _plane(path: Path, unit: _Unit, packed: bool, status: os.stat_result) -> Plane:
    """Describe the stored image of a unit."""
    axes = unit.axes

    def number(keyword: str, default: float) -> float:
        try:
            return float(unit.values[keyword].strip("' ").replace("D", "E").replace(",", "."))
        except (KeyError, ValueError):
            return default

    bitpix = unit.integer("ZBITPIX" if unit.compressed else "BITPIX")
    if bitpix not in (8, 16, 32, 64, -32, -64):
        raise FrameError(f"{path}: BITPIX is {bitpix}, which FITS does not know; the header is damaged")
    blank = unit.values.get("BLANK", unit.values.get("ZBLANK"))
    return Plane(
        path=path,
        hdu=unit.number,
        name=unit.name,
        shape=(axes[1], axes[0]),
        bitpix=bitpix,
        bscale=number("BSCALE", 1.0),
        bzero=number("BZERO", 0.0),
        blank=int(number("BLANK" if "BLANK" in unit.values else "ZBLANK", 0)) if blank and bitpix > 0 else None,
        offset=unit.offset,
        compression="tile" if unit.compressed else "gzip" if packed else "",
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


# ---- what the cards mean


class _Cards:
    """Values of a header, with notes on what had to be assumed."""

    def __init__(self, header: fits.Header, notes: list[str]) -> None:
        self.header = header
        self.keywords = set(header)  # a look-up that misses is slow in astropy
        self.notes = notes

    def get(self, keyword: str) -> Any:
        """Value of a card, or an empty text."""
        value = self.header[keyword] if keyword in self.keywords else ""
        return "" if isinstance(value, fits.card.Undefined) else value

    def text(self, *keywords: str) -> tuple[str, str] | None:
        """First keyword with a text that says something, and the text."""
        for keyword in keywords:
            value = str(self.get(keyword)).strip()
            if value and value.lower() not in ("unknown", "n/a", "none", "undefined", "null"):
                return keyword, value
        return None

    def number(self, *keywords: str, quiet: bool = False) -> tuple[str, float] | None:
        """First keyword with a finite number, and the number."""
        for keyword in keywords:
            value = self.get(keyword)
            if isinstance(value, bool) or value == "":
                continue
            if isinstance(value, str):
                parsed = parse_number(value)
                if parsed is None:
                    continue
                if not quiet:
                    comma = " with a decimal comma" if "," in value else ""
                    self.notes.append(f"{keyword} {value.strip()!r} read as the number {parsed:g}{comma}")
                value = parsed
            try:
                value = float(value)
            except (TypeError, ValueError):
                continue
            if math.isfinite(value):
                return keyword, value
        return None

    def comment(self, keyword: str) -> str:
        return str(self.header.comments[keyword]).lower() if keyword in self.keywords else ""


def parse_number(text: str) -> float | None:
    """Read a number from a text card.

    Parameters
    ----------
    text : str
        Fortran exponents and a decimal comma are understood.

    Returns
    -------
    float or None
        None where the text is no finite number.
    """
    match = re.fullmatch(r"\s*([+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[EeDd][+-]?\d+)?)\s*", text)
    if match is None:
        return None
    value = float(match[1].replace(",", ".").replace("D", "E").replace("d", "e"))
    return value if math.isfinite(value) else None


def _frame(
    path: Path,
    wanted: str | None,
    text: str,
    plane: Plane,
    planes: dict[int, Plane],
    options: CalibrateOptions,
    notes: list[str],
) -> Frame:
    """Make the frame that the headers describe."""
    cards = _Cards(_parsed(text), notes)
    trim, overscan = _sections(cards, plane.shape)
    gain, rdnoise = _electrons(cards)
    saturation, guessed = _saturation(cards, plane)
    temperature = _temperature(cards)
    binning = _binning(cards)
    named = {other.name.upper(): other for other in reversed(planes.values())}
    companions = _companions(path, plane, named, notes)
    ncombine = cards.number("NCOMBINE", "STACKCNT")
    instrument = cards.text("INSTRUME", "CAMERA", "DETECTOR")
    filter_ = cards.text("FILTER", "FILTNAME", "FILTERS", "FILTER1", "INSFLNAM", "FILTERID", "FILT")
    target = cards.text("OBJECT", "OBJNAME", "TARGET")
    bayer = cards.text("BAYERPAT", "COLORTYP", "CFA_PAT")
    return Frame(
        path=path,
        name=path.name if wanted is None else f"{path.name}[{wanted}]",
        cards=text,
        plane=plane,
        mask=companions.get("mask"),
        weight=companions.get("weight"),
        variance=companions.get("variance"),
        trim=trim,
        overscan=overscan,
        gain=gain if options.gain is None else options.gain,
        rdnoise=rdnoise if options.rdnoise is None else options.rdnoise,
        saturation=saturation if options.saturation is None else options.saturation,
        saturation_guessed=guessed and options.saturation is None,
        exposure=_exposure(cards),
        filter=filter_[1] if filter_ else None,
        object=target[1] if target else None,
        binning=binning,
        image_type=_image_type(cards),
        instrument=instrument[1] if instrument else None,
        temperature=temperature,
        pixel_scale=_pixel_scale(cards, binning),
        bayer=bayer[1].upper() if bayer and re.fullmatch("[RGB]{4}", bayer[1].upper()) else None,
        ncombine=max(1, round(ncombine[1])) if ncombine else 1,
        assumptions=tuple(dict.fromkeys(notes)),
    )


def _sections(cards: _Cards, shape: tuple[int, int]) -> tuple[Window, Window | None]:
    """Light area and overscan."""
    whole = (0, shape[0], 0, shape[1])
    trim, overscan = _section(cards, ("TRIMSEC", "DATASEC"), shape), _section(cards, ("BIASSEC",), shape)
    if overscan and trim is None and overscan != whole:
        cards.notes.append("BIASSEC without TRIMSEC: the whole image is taken for light")
    trim = trim or whole
    if overscan:
        rows = min(overscan[1], trim[1]) - max(overscan[0], trim[0])
        columns = min(overscan[3], trim[3]) - max(overscan[2], trim[2])
        if rows > 0 and columns > 0:
            if trim != whole:
                cards.notes.append("BIASSEC lies in the light area: overscan not used")
            overscan = None
    return trim, overscan


def _section(cards: _Cards, keywords: Sequence[str], shape: tuple[int, int]) -> Window | None:
    """Section of the image, ``[x0:x1,y0:y1]`` counted from 1, both ends included."""
    found = cards.text(*keywords)
    if found is None:
        return None
    match = re.fullmatch(r"\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]", found[1])
    if match:
        x0, x1, y0, y1 = (int(part) for part in match.groups())
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        if x0 >= 1 and y0 >= 1 and x1 <= shape[1] and y1 <= shape[0]:
            return y0 - 1, y1, x0 - 1, x1
        if x1 == 0 or y1 == 0:
            return None
    cards.notes.append(f"{found[0]} {found[1]!r} does not fit an image of {shape[1]} x {shape[0]}: not used")
    return None


def _amplifiers(cards: _Cards) -> list[str]:
    """Numbers of the amplifiers that read the chip."""
    return [n for n in (f"{i:02d}" for i in range(1, 17)) if cards.get(f"AAMP_{n}") == 1]


_CMOS = re.compile(r"zwo|\basi ?\d|qhy|toup|sv ?bony|player ?one|altair|omegon|touptek|uranus|neptune|cmos", re.I)


def _electrons(cards: _Cards) -> tuple[float | None, float | None]:
    """Gain and read noise."""
    rdnoise = cards.number("RDNOISE", "READNOIS", "READNOISE", "RON", "ENOISE", "RDNOIS", "ESO DET OUT1 RON")
    gain = cards.number("EGAIN", "CCDGAIN", "ESO DET OUT1 CONAD")
    if gain is None:
        gain = _plain_gain(cards)
    amplifiers = _amplifiers(cards)
    if gain is None or rdnoise is None:
        for amplifier in amplifiers[:1]:
            mine = cards.number(f"AGAIN_{amplifier}"), cards.number(f"ARDNS_{amplifier}")
            gain, rdnoise = gain or mine[0], rdnoise or mine[1]
        if len(amplifiers) > 1:
            cards.notes.append(f"{len(amplifiers)} amplifiers in use: gain and read noise of number {amplifiers[0]}")
    for found, low, high, what in ((gain, 0.0, 1e4, "gain"), (rdnoise, 0.0, 1e4, "read noise")):
        if found and found[0] not in ("GAIN", "RDNOISE", "EGAIN"):
            cards.notes.append(f"{what} from {found[0]}")
        if found and not low < found[1] < high and not (what == "read noise" and found[1] == 0):
            cards.notes.append(f"{found[0]} {found[1]:g} cannot be a {what}: not used")
    usable_gain = gain[1] if gain and 0 < gain[1] < 1e4 else None
    return usable_gain, rdnoise[1] if rdnoise and 0 <= rdnoise[1] < 1e4 else None


def _plain_gain(cards: _Cards) -> tuple[str, float] | None:
    """GAIN, unless it is the setting of a camera and not electrons per ADU."""
    found = cards.number("GAIN")
    if found is None:
        return None
    comment = cards.comment("GAIN")
    if re.search(r"e-?/|electron|photo", comment) and found[1] > 0:
        return found
    camera = " ".join(str(cards.get(k)) for k in ("INSTRUME", "CAMERA", "SWCREATE", "SWOWNER"))
    whole = found[1] == round(found[1])
    if found[1] <= 0 or found[1] >= 30 or (whole and (_CMOS.search(camera) or "OFFSET" in cards.keywords)):
        cards.notes.append(
            f"GAIN {found[1]:g} is taken for a setting of the camera, not for e-/ADU: gain unknown "
            "(give it as EGAIN in the header or with --gain)"
        )
        return None
    return found


def _saturation(cards: _Cards, plane: Plane) -> tuple[float | None, bool]:
    """Saturation level, and whether it is a guess from the range of the integers."""
    found = cards.number("SATURATE", "SATLEVEL", "SATURAT", "SATUR", "MAXLIN", "DATAMAX", "MAXADU")
    if found and found[1] > 0:
        if found[0] != "SATURATE":
            cards.notes.append(f"saturation level {found[1]:g} from {found[0]}")
        return found[1], False
    if plane.bitpix not in _RAW_LIMIT:
        return None, True
    limit = _RAW_LIMIT[plane.bitpix] * plane.bscale + plane.bzero
    cards.notes.append(f"saturation level {limit:g} from the range of the stored integers")
    return limit, True


def _exposure(cards: _Cards) -> float | None:
    """Exposure time in seconds."""
    found = cards.number("EXPTIME", "EXPOSURE", "EXP_TIME", "EXPOS", "EXPO", "ITIME", "INTTIME", "TEXPTIME", "XPOSURE")
    if found is None and (micro := cards.number("EXPOINUS")) is not None:
        found = micro[0], micro[1] * 1e-6
    if found is None:
        cards.notes.append("no exposure time in the header")
        return None
    if found[0] != "EXPTIME":
        cards.notes.append(f"exposure time {found[1]:g} s from {found[0]}")
    if found[1] < 0:
        cards.notes.append(f"{found[0]} {found[1]:g} cannot be an exposure time: not used")
        return None
    return found[1]


def _binning(cards: _Cards) -> tuple[int, int] | None:
    """Binning in x and y."""
    for keyword in ("CCDSUM", "BINNING", "CCDBIN"):
        match = re.fullmatch(r"\s*(\d+)\s*[ xX,*]\s*(\d+)\s*", str(cards.get(keyword)))
        if match:
            return int(match[1]), int(match[2])
    for x, y in (("XBINNING", "YBINNING"), ("CCDXBIN", "CCDYBIN"), ("BINX", "BINY"), ("CCDBIN1", "CCDBIN2")):
        first, second = cards.number(x), cards.number(y)
        if first and first[1] >= 1:
            return round(first[1]), round(second[1] if second and second[1] >= 1 else first[1])
    return None


_IMAGE_TYPES = {
    "flat": ("flat",),
    "bias": ("bias", "zero", "offset"),
    "dark": ("dark",),
    "light": ("light", "object", "science", "target", "expose", "standard"),
}


def _image_type(cards: _Cards) -> str:
    """Light, bias, dark, flat or unknown."""
    found = cards.text("IMAGETYP", "IMAGETYPE", "OBSTYPE", "FRAME", "FRAMETYP", "PICTTYPE", "EXPTYPE")
    text = found[1].lower() if found else ""
    for kind, words in _IMAGE_TYPES.items():
        if any(word in text for word in words):
            return kind
    return "unknown"


def _temperature(cards: _Cards) -> float | None:
    """Temperature of the detector in degree Celsius."""
    found = cards.number("CCD-TEMP", "CCDTEMP", "DETTEMP", "CAMTEMP", "DET-TEMP", "SET-TEMP")
    if found is None:
        return None
    if "kelvin" in cards.comment(found[0]) or found[1] > 100:
        if found[1] <= 0:
            return None
        cards.notes.append(f"{found[0]} {found[1]:g} taken for kelvin")
        return found[1] - 273.15
    return found[1]


def _pixel_scale(cards: _Cards, binning: tuple[int, int] | None) -> float | None:
    """Arcsec per pixel: from the WCS, else a card, else pixel size and focal length."""
    scale = _wcs_scale(cards)
    if scale is not None:
        return scale
    for keyword in ("SECPIX", "SECPIX1", "SECPIXX", "PIXSCALE", "IM_SCALE", "PLTSCALE", "PIXSCAL", "SCALE"):
        found = cards.number(keyword, quiet=True)
        if found and 1e-3 < abs(found[1]) < 1e3:
            cards.notes.append(f"pixel scale {abs(found[1]):g} arcsec from {keyword}")
            return abs(found[1])
    pixel = cards.number("XPIXSZ", "PIXSIZE1", "PIXSIZE", "XPIXELSZ")
    focal = cards.number("FOCALLEN", "FOCAL")
    if not pixel or not focal or pixel[1] <= 0 or focal[1] <= 0:
        return None
    # SBIG's convention has the binned size in XPIXSZ; the others give the physical pixel.
    factor = binning[0] if binning and pixel[0] != "XPIXSZ" else 1
    cards.notes.append(f"pixel scale from {pixel[0]}, {focal[0]} and {factor}-fold binning")
    return math.degrees(pixel[1] * factor * 1e-3 / focal[1]) * 3600


def _wcs_scale(cards: _Cards) -> float | None:
    """Scale of a celestial WCS whose cards are numbers or can be read as such."""
    if not re.match(r"RA|DEC|GL|EL", str(cards.get("CTYPE1")).upper()):
        return None
    as_text = [k for k in ("CRVAL1", "CD1_1", "CD2_2", "CDELT1") if isinstance(cards.get(k), str) and cards.get(k)]

    def value(keyword: str, default: float = 0.0) -> float:
        found = cards.number(keyword, quiet=True)
        return found[1] if found else default

    cd = [[value(f"CD{i}_{j}") for j in (1, 2)] for i in (1, 2)]
    determinant = cd[0][0] * cd[1][1] - cd[0][1] * cd[1][0]
    if determinant == 0:
        pc = [[value(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)]
        determinant = (pc[0][0] * pc[1][1] - pc[0][1] * pc[1][0]) * value("CDELT1") * value("CDELT2")
    scale = math.sqrt(abs(determinant)) * 3600
    if not 1e-3 < scale < 1e3:
        return None
    if as_text:
        cards.notes.append(f"WCS cards stored as text ({', '.join(as_text)}, ...) read as numbers")
    return scale


def _companions(path: Path, plane: Plane, named: dict[str, Plane], notes: list[str]) -> dict[str, Plane]:
    """Mask, weight and variance of an image: extensions of the same file, or files beside it."""
    found: dict[str, Plane] = {}
    for kind, names in (("mask", _MASKS), ("weight", _WEIGHTS), ("variance", _VARIANCES)):
        for name in names:
            if kind not in found and name in named and named[name] is not plane:
                found[kind] = named[name]
                notes.append(f"{kind} from extension {name}")
    beside = _listing(str(path.parent), _mtime(path.parent))
    for kind, words in _COMPANIONS.items():
        for stem in (f"{_stem(path.name)}{mark}{word}" for word in words for mark in "._"):
            if kind not in found and stem in beside:
                found[kind] = open_frame(path.with_name(beside[stem])).plane
                notes.append(f"{kind} from {beside[stem]}")
    for kind, other in list(found.items()):
        if other.shape != plane.shape:
            notes.append(f"{kind} of {other.shape[1]} x {other.shape[0]} does not fit the image: not used")
            del found[kind]
    return found


def _mtime(directory: Path) -> int:
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=64)
def _listing(directory: str, mtime_ns: int) -> dict[str, str]:
    """Stems and names of files that look like companions; read again when the directory changes."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return {}
    return {_stem(name): name for name in names if re.search(r"[._](?:mask|bpm|weight|var)$", _stem(name))}


# ---- errors


def _opened(path: Path) -> io.BufferedReader:
    """Open the file for reading."""
    try:
        return open(path, "rb", buffering=0)  # type: ignore[return-value]
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> FrameError:
    if isinstance(error, FileNotFoundError):
        return FrameError(f"{path}: no such file (any more); check the name")
    if isinstance(error, IsADirectoryError):
        return FrameError(f"{path}: is a directory; name the files in it, or use find_frames")
    if isinstance(error, PermissionError):
        return FrameError(f"{path}: may not be read; ask its owner for read permission")
    return FrameError(f"{path}: cannot be read ({error.strerror or error}); copy it to another disk or leave it out")


def _truncated(path: Path, have: int, need: int) -> FrameError:
    return FrameError(
        f"{path}: truncated: {have} of {need} bytes are there ({100 * have / need:.0f} %); "
        "fetch it again or leave it out"
    )
