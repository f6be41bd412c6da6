"""What a header tells of an image's place on the sky before it is solved."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastack.cards import parse_number
from fastack.wcs import read_wcs

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

SCALES = (0.1, 60.0)  # arcsec per pixel: what an unknown scale may be
SCALE_FACTOR = 1.25  # either way, of a scale taken from a header


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What is known of an image's place before it is solved."""

    ra: float | None = None  #: of the image's centre, degree
    dec: float | None = None  #: degree
    radius: float = 1.0  #: how far off the centre may be, degree
    scale: float | None = None  #: arcsec per pixel
    scale_range: tuple[float, float] = SCALES  #: limits of the scale, arcsec per pixel
    parity: int | None = None  #: +1 as on the sky, -1 mirrored, None: either
    source: str = ""  #: where it comes from, in words


_POSITIONS = (
    ("RA", "DEC"),
    ("OBJCTRA", "OBJCTDEC"),
    ("TELRA", "TELDEC"),
    ("OBJRA", "OBJDEC"),
    ("RA_OBJ", "DEC_OBJ"),
    ("CRVAL1", "CRVAL2"),
)
_SCALES = ("SECPIX", "SECPIX1", "SECPIXX", "PIXSCALE", "PIXSCAL", "PIXSCAL1", "IM_SCALE", "SCALE", "CCDSCALE")


def first_guess(
    header: Any,
    *,
    centre: tuple[Any, Any] | None = None,
    pixel_scale: float | None = None,
    shape: tuple[int, int] | None = None,
) -> Guess:
    """What a header tells of the image's place on the sky.

    Position: `centre`, else the header's WCS, else RA/DEC, OBJCTRA/OBJCTDEC, TELRA/TELDEC, CRVAL1/2 in degrees or
    sexagesimal (hours for the right ascension). Scale: `pixel_scale`, else WCS, pixel size times binning over focal
    length, SECPIX and its kin. Nothing in a header is believed to be exact: the radius is 1.5 widths of the
    field, at least 0.3 degree, a scale may be wrong by a quarter, and the parity is never taken from it.

    Parameters
    ----------
    header : astropy.io.fits.Header or mapping
        Cards may be strings where they should be numbers.
    centre : pair of float or str, optional
        Right ascension and declination in degrees, or as sexagesimal strings.
    pixel_scale : float, optional, arcsec per pixel
    shape : tuple of int, optional
        (ny, nx); by default NAXIS2, NAXIS1.

    Returns
    -------
    Guess
        Without a position (`ra` is None) where there is none.

    Raises
    ------
    ValueError
        If `centre` is no position on the sky or `pixel_scale` is not positive.
    """
    header = _as_header(header)
    if shape is None:
        naxis = _number(header.get("NAXIS1")), _number(header.get("NAXIS2"))
        shape = (int(naxis[1]), int(naxis[0])) if naxis[0] and naxis[1] else None
    wcs = _plausible_wcs(header)
    place = None
    words = []
    if centre is not None:
        place = _position(_angle(centre[0], hours=True), _angle(centre[1], hours=False))
        if place is None:
            raise ValueError(f"centre {centre!r} is no right ascension and declination")
        words.append("given centre")
    elif wcs is not None:
        middle = [[(shape[1] - 1) / 2, (shape[0] - 1) / 2]] if shape else [list(wcs.wcs.crpix - 1)]
        lon, lat = (float(v) for v in wcs.all_pix2world(middle, 0)[0])
        place = _position(lon, lat, header)
        words += ["header WCS"] if place else []
    if place is None:
        for key_ra, key_dec in _POSITIONS:
            ra = _angle(header.get(key_ra), hours=True, comment=_comment(header, key_ra))
            dec = _angle(header.get(key_dec), hours=False)
            # zero and zero is what a mount says that does not know
            if (ra or dec) and (place := _position(ra, dec, header)):
                words.append(key_ra)
                break
    if pixel_scale is not None:
        if not (np.isfinite(pixel_scale) and pixel_scale > 0):
            raise ValueError(f"pixel_scale is {pixel_scale}, not a positive number of arcsec per pixel")
        scale: float | None = float(pixel_scale)
        words.append("given scale")
    else:
        scale, how = _header_scale(header, wcs)
        words += [how] if how else []
    width = max(shape) * scale / 3600 if scale and shape else 0.5
    return Guess(
        ra=place[0] if place else None,
        dec=place[1] if place else None,
        radius=max(0.3, 1.5 * width),
        scale=scale,
        scale_range=(scale / SCALE_FACTOR, scale * SCALE_FACTOR) if scale else SCALES,
        source=", ".join(words) if words else "nothing",
    )


def _plausible_wcs(header: fits.Header) -> WCS | None:
    """The header's WCS where its scale is one that a camera can have."""
    wcs = read_wcs(header)
    if wcs is None or not 1e-3 < _wcs_scale(wcs) < 3600:
        return None
    return wcs if np.isfinite(wcs.all_pix2world([wcs.wcs.crpix - 1], 0)).all() else None


def _wcs_scale(wcs: WCS) -> float:
    """Arcsec per pixel, geometric mean of the axes."""
    return float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600)


def _header_scale(header: Any, wcs: WCS | None) -> tuple[float | None, str]:
    """Pixel scale that the header states, and in which words."""
    if wcs is not None:
        return _wcs_scale(wcs), "WCS scale"
    focal = _number(header.get("FOCALLEN"))
    for key in ("XPIXSZ", "PIXSIZE1", "PIXSIZE", "XPIXELSZ"):
        size = _number(header.get(key))
        if size and focal and size > 0 and focal > 0:
            # XPIXSZ is the size of the binned pixel already (MaxIm DL's definition)
            binning = 1.0 if key == "XPIXSZ" else _number(header.get("XBINNING")) or 1.0
            return 206.265 * size * binning / focal, f"{key} and FOCALLEN"
    for key in _SCALES:
        scale = _number(header.get(key))
        if scale is not None and 0.01 < abs(scale) < 600:
            return abs(scale), key
    return None, ""


def _as_header(header: Any) -> fits.Header:
    """A header, from a mapping too; an empty one for None."""
    from astropy.io import fits

    return header if isinstance(header, fits.Header) else fits.Header(dict(header or {}))


def _comment(header: fits.Header, key: str) -> str:
    return str(header.comments[key]) if key in header else ""


def _number(value: Any) -> float | None:
    """A card's value as a number, from strings and with a decimal comma too; None where it is none."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, (int, float, np.number)):
        plain = float(value)
        return plain if np.isfinite(plain) else None
    return parse_number(str(value))


def _angle(value: Any, *, hours: bool, comment: str = "") -> float | None:
    """Degrees from decimal degrees or from a sexagesimal text (hours where `hours` is set)."""
    number = _number(value)
    if number is not None:
        return number * 15 if hours and "hour" in comment.lower() else number
    if value is None:
        return None
    text = str(value).strip().lower()
    parts = [p for p in re.split(r"[\s:hdms°'\"′″]+", text.lstrip("+-").replace(",", ".")) if p]
    if not 2 <= len(parts) <= 3 or any(_number(p) is None for p in parts):
        return None
    fields = [float(p) for p in parts]
    if any(f >= 60 for f in fields[1:]):
        return None
    angle = sum(f / scale for f, scale in zip(fields, (1.0, 60.0, 3600.0), strict=False))
    angle = -angle if text.startswith("-") else angle
    return angle * 15 if hours and fields[0] < 24 and "d" not in text and "°" not in text else angle


def _position(ra: float | None, dec: float | None, header: Any = None) -> tuple[float, float] | None:
    """ICRS position of one in the header's system (only an equinox matters to a guess); None where it is none."""
    if ra is None or dec is None or not (-360 <= ra <= 360 and -90 <= dec <= 90):
        return None
    ra %= 360
    if header is None:
        return ra, dec
    equinox = _number(header.get("EQUINOX")) or _number(header.get("EPOCH")) or 2000.0
    if not 1850 < equinox < 2100 or abs(equinox - 2000) < 0.01:
        return ra, dec
    from astropy.coordinates import FK4, FK5, SkyCoord

    frame = FK4(equinox=f"B{equinox}") if equinox < 1980 else FK5(equinox=f"J{equinox}")
    there = SkyCoord(ra, dec, unit="deg", frame=frame).icrs
    return float(there.ra.deg), float(there.dec.deg)
