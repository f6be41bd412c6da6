"""What the cards mean: sections, gain, saturation, exposure and the other constants of the detector."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fastack.cards import Cards
from fastack.storage import Plane, Window

_RAW_LIMIT = {8: 255.0, 16: 32767.0}


def read_sections(cards: Cards, shape: tuple[int, int]) -> tuple[Window, Window | None]:
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


def _section(cards: Cards, keywords: Sequence[str], shape: tuple[int, int]) -> Window | None:
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


def _amplifiers(cards: Cards) -> list[str]:
    """Numbers of the amplifiers that read the chip."""
    return [n for n in (f"{i:02d}" for i in range(1, 17)) if cards.get(f"AAMP_{n}") == 1]


_CMOS = re.compile(r"zwo|\basi ?\d|qhy|toup|sv ?bony|player ?one|altair|omegon|touptek|uranus|neptune|cmos", re.I)


def read_electrons(cards: Cards) -> tuple[float | None, float | None]:
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


def _plain_gain(cards: Cards) -> tuple[str, float] | None:
    """GAIN, unless it is the setting of a camera and not electrons per ADU."""
    found = cards.number("GAIN")
    if found is None:
        return None
    comment = cards.comment("GAIN")
    if re.search(r"e-?/|electron|photo", comment) and found[1] > 0:
        return found
    camera = " ".join(str(cards.get(k)) for k in ("INSTRUME", "CAMERA", "SWCREATE", "SWOWNER"))
    whole = found[1] == round(found[1])
    if found[1] <= 0 or found[1] >= 30 or (whole and (_CMOS.search(camera) or "OFFSET" in cards)):
        cards.notes.append(
            f"GAIN {found[1]:g} is taken for a setting of the camera, not for e-/ADU: gain unknown "
            "(give it as EGAIN in the header or with --gain)"
        )
        return None
    return found


def read_saturation(cards: Cards, plane: Plane) -> tuple[float | None, bool]:
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


def read_exposure(cards: Cards) -> float | None:
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


def read_binning(cards: Cards) -> tuple[int, int] | None:
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


def read_image_type(cards: Cards) -> str:
    """Light, bias, dark, flat or unknown."""
    found = cards.text("IMAGETYP", "IMAGETYPE", "OBSTYPE", "FRAME", "FRAMETYP", "PICTTYPE", "EXPTYPE")
    text = found[1].lower() if found else ""
    for kind, words in _IMAGE_TYPES.items():
        if any(word in text for word in words):
            return kind
    return "unknown"


def read_temperature(cards: Cards) -> float | None:
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


def read_pixel_scale(cards: Cards, binning: tuple[int, int] | None) -> float | None:
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


def _wcs_scale(cards: Cards) -> float | None:
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
