"""FITS files as they occur: what one file holds.

`open_frame` parses the headers of one file once and keeps no file open. `storage` hands out the pixels, `cards`
mends the header, `detector` says what it means; whatever was mended or guessed is told in `Frame.assumptions`.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastack import detector
from fastack.cards import Cards, Unit, merge, parsed, walk
from fastack.errors import FrameError
from fastack.files import split_extension, stem
from fastack.options import CalibrateOptions
from fastack.rice import Bytes, RiceTiles
from fastack.storage import Plane, Window, opened, unreadable

if TYPE_CHECKING:
    from astropy.io import fits

_COMPANIONS = {"mask": ("mask", "bpm"), "weight": ("weight",), "variance": ("var",)}


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
        return parsed(self.cards)

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
    path, wanted = split_extension(path)
    try:
        with opened(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise FrameError(f"{path}: is empty; leave it out or fetch it again")
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            images, primary = walk(path, stream, None if packed else status.st_size, first=wanted is None)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FrameError(f"{path}: damaged or truncated gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    notes: list[str] = []
    image = _choose(path, images, wanted, notes)
    cards, repairs = merge(primary, image)
    notes += repairs
    planes = [_plane(path, unit, packed, status) for unit in images if unit.is_image]
    by_hdu = {plane.hdu: plane for plane in planes}
    return _frame(path, wanted, cards, by_hdu[image.number], by_hdu, options or CalibrateOptions(), notes)


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
    cards = Cards(text, notes)
    trim, overscan = detector.read_sections(cards, plane.shape)
    gain, rdnoise = detector.read_electrons(cards)
    saturation, guessed = detector.read_saturation(cards, plane)
    temperature = detector.read_temperature(cards)
    binning = detector.read_binning(cards)
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
        exposure=detector.read_exposure(cards),
        filter=filter_[1] if filter_ else None,
        object=target[1] if target else None,
        binning=binning,
        image_type=detector.read_image_type(cards),
        instrument=instrument[1] if instrument else None,
        temperature=temperature,
        pixel_scale=detector.read_pixel_scale(cards, binning),
        bayer=bayer[1].upper() if bayer and re.fullmatch("[RGB]{4}", bayer[1].upper()) else None,
        ncombine=max(1, round(ncombine[1])) if ncombine else 1,
        assumptions=tuple(dict.fromkeys(notes)),
    )


_MASKS = ("MASK", "BPM", "DQ", "BADPIX", "BADPIXMASK")
_WEIGHTS = ("WEIGHT", "WHT", "IVAR")
_VARIANCES = ("VAR", "VARIANCE")


def _choose(path: Path, units: list[Unit], wanted: str | None, notes: list[str]) -> Unit:
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


def _no_image(path: Path, units: list[Unit], what: str) -> FrameError:
    """Word the error for a file without a plane of pixels."""
    axes = units[0].axes if units else []
    if len(axes) > 2:
        shape = " x ".join(map(str, axes))
        if 3 in (axes[0], axes[-1]):
            return FrameError(f"{path}: {what} is a colour image ({shape}); split its planes into one file each")
        return FrameError(f"{path}: {what} is a cube ({shape}), not an image; split it into one file a plane")
    return FrameError(f"{path}: {what} holds no two-dimensional image; leave it out")


def _plane(path: Path, unit: Unit, packed: bool, status: os.stat_result) -> Plane:
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
        rice=RiceTiles.described(unit.table, (axes[1], axes[0]), unit.offset)
        if unit.compressed and not packed
        else None,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _companions(path: Path, plane: Plane, named: dict[str, Plane], notes: list[str]) -> dict[str, Plane]:
    """Mask, weight and variance of an image: extensions of the same file, or files beside it."""
    found: dict[str, Plane] = {}
    for kind, names in (("mask", _MASKS), ("weight", _WEIGHTS), ("variance", _VARIANCES)):
        for name in names:
            if kind not in found and name in named and named[name] is not plane:
                found[kind] = named[name]
                notes.append(f"{kind} from extension {name}")
    beside = _listing(str(path.parent), _mtime(path.parent))
    own = stem(path.name)
    for kind, words in _COMPANIONS.items() if beside else ():
        for name in (f"{own}{mark}{word}" for word in words for mark in "._"):
            if kind not in found and name in beside:
                found[kind] = open_frame(path.with_name(beside[name])).plane
                notes.append(f"{kind} from {beside[name]}")
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
    return {stem(name): name for name in names if re.search(r"[._](?:mask|bpm|weight|var)$", stem(name))}
