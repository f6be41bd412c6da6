"""World coordinate systems in headers: read what can be believed, write one representation."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastack.errors import FrameError

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

WCS_CARD = re.compile(
    r"^(WCSAXES|WCSNAME|CTYPE\d|CRVAL\d|CRPIX\d|CUNIT\d|CDELT\d|CROTA\d|CD\d_\d|PC\d_\d|PC00\d00\d|PV\d_\d+|"
    r"(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|LONPOLE|LATPOLE|RADE?C?SYS|EQUINOX|EPOCH|CRDER\d|CSYER\d|LTV\d|LTM\d_\d|"
    r"CRDELT\d|CFINT\d|MJDREF\w?|DATEREF|PLTRAH|XPIXELSZ|AMD[XY]\d+)$"
)
_MORE_WCS = re.compile(
    r"^(((WCSAXES|WCSNAME|RADESYS|EQUINOX|(LON|LAT)POLE|CTYPE\d|CUNIT\d|CRVAL\d|CRPIX\d|CDELT\d|(CD|PC)\d_\d"
    r"|P[VS]\d_\d+|(CRDER|CSYER)\d)[A-Z])|PS\d_\d+|WCSDIM|WAT\d_\d{3}|ASTRRMS\d|ASTRERR|ASTRNUM|ASTRCAT|ASTREPOC|ASTRODDS)$"
)


def strip_wcs(header: fits.Header) -> fits.Header:
    """Copy of a header without any card of a world coordinate system: alternates, TNX and earlier solutions included.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Any header.

    Returns
    -------
    astropy.io.fits.Header
        A copy, so that one representation can be written and no other is left over.
    """
    return without(header, WCS_CARD, _MORE_WCS)


def without(header: fits.Header, *patterns: re.Pattern[str]) -> fits.Header:
    """Copy of a header less the cards whose keyword matches a pattern, and less those that cannot be read."""
    from astropy.io import fits

    kept = fits.Header()
    for card in header.cards:
        try:
            keyword = card.keyword
            if any(p.match(keyword) for p in patterns) or keyword in ("CONTINUE",):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                card.verify("silentfix")
                # through its image, so that an over-long comment is cut here and not at each later writing
                kept.append(fits.Card.fromstring(fits.Card(keyword, card.value, card.comment).image), end=True)
        except (fits.VerifyError, ValueError):
            continue
    return kept


def read_wcs(header: fits.Header) -> WCS | None:
    """Celestial coordinates of a frame, as far as its header can be believed.

    Cards that hold numbers as strings are read as numbers, CDELT with CROTA is understood, and a TAN projection
    with PV terms up to the seventh order and more is taken as TPV.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Of a frame.

    Returns
    -------
    astropy.wcs.WCS or None
        None where there is no celestial WCS.
    """
    from astropy.io import fits

    cards = fits.Header()
    for card in header.cards:
        try:
            keyword, value = card.keyword, card.value
        except (fits.VerifyError, ValueError):
            continue
        if not WCS_CARD.match(keyword) or keyword.startswith(("LTV", "LTM", "DATEREF", "MJDREF")):
            continue
        if isinstance(value, str) and not keyword.startswith(("CTYPE", "CUNIT", "RAD", "WCSNAME")):
            try:
                value = float(value)
            except ValueError:
                continue
            if keyword.endswith(("_ORDER", "WCSAXES")):
                value = int(value)
        cards[keyword] = value
    types = [str(cards.get(f"CTYPE{i}", "")).strip().upper() for i in (1, 2)]
    if not (any(t.startswith("RA") for t in types) and any(t.startswith("DEC") for t in types)):
        return None
    if not all(f"CRVAL{i}" in cards and f"CRPIX{i}" in cards for i in (1, 2)):
        return None
    if all(t.endswith("TAN") for t in types) and any(k.startswith("PV") for k in cards):
        for i, t in enumerate(types, 1):
            cards[f"CTYPE{i}"] = t[:-3] + "TPV"
    if "CD1_1" in cards:
        for key in [k for k in cards if re.match(r"^(CDELT|CROTA|PC)\d", k)]:
            del cards[key]
    from astropy.wcs import WCS  # most frames have none, and it is slow to start

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(cards, naxis=2)
            wcs.wcs.set()
            if not wcs.has_celestial or not np.isfinite(wcs.all_pix2world([[0.0, 0.0]], 0)).all():
                return None
    except Exception:  # wcslib raises a dozen kinds for a header that makes no sense
        return None
    return wcs


def wcs_cards(wcs: WCS, origin: tuple[float, float] = (0.0, 0.0)) -> fits.Header:
    """Cards of a WCS in one representation: the CD matrix.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Of the reference frame.
    origin : tuple of float, pixel
        (x, y) of the reference that the output's pixel (0, 0) falls on.

    Returns
    -------
    astropy.io.fits.Header
        CTYPE, CRVAL, CRPIX, CD and distortion terms; no PC, CDELT or CROTA.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moved = wcs.deepcopy()
        moved.wcs.crpix = np.asarray(wcs.wcs.crpix) - origin
        if moved.sip is not None:
            moved.sip = type(moved.sip)(
                moved.sip.a, moved.sip.b, moved.sip.ap, moved.sip.bp, np.asarray(wcs.sip.crpix) - origin
            )
        cards = moved.to_header(relax=True)
    matrix = wcs.pixel_scale_matrix
    for key in list(cards):
        if re.match(r"^(PC\d_\d|CDELT\d|CROTA\d|CD\d_\d|MJDREF\w*|DATEREF|DATE-\w+|MJD-\w+|TIMESYS|WCSAXES)$", key):
            del cards[key]
    for i in (0, 1):
        for j in (0, 1):
            cards[f"CD{i + 1}_{j + 1}"] = (float(matrix[i, j]), "[deg] linear transformation matrix")
    return cards


def read_grid(source: str) -> tuple[WCS, tuple[int, int]]:
    """Pixel grid that a file describes.

    Parameters
    ----------
    source : str
        A FITS file, or a text file of header cards as SWarp's ``.head`` files are.

    Returns
    -------
    wcs : astropy.wcs.WCS
        Of the grid.
    shape : tuple of int
        (ny, nx).

    Raises
    ------
    FrameError
        If there is no celestial WCS or no size in it.
    """
    from astropy.io import fits

    path = Path(source)
    try:
        with path.open("rb") as file:
            start = file.read(10)
        if start.startswith(b"SIMPLE"):
            with fits.open(path) as hdus:
                header = next((h.header for h in hdus if h.header.get("NAXIS") == 2 and h.is_image), hdus[0].header)
        else:
            header = fits.Header.fromstring(path.read_text(), sep="\n")
    except OSError as error:
        raise FrameError(f"{path}: cannot be read as a grid ({error.strerror or error})") from error
    wcs = read_wcs(header)
    if wcs is None:
        raise FrameError(f"{path}: no celestial WCS; --grid wants a FITS file or header text with one")
    try:
        shape = int(header["NAXIS2"]), int(header["NAXIS1"])
    except KeyError as error:
        raise FrameError(f"{path}: {error.args[0]}; --grid needs NAXIS1 and NAXIS2") from error
    return wcs, shape
