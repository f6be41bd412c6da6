"""The header of a stack: gain, read noise, dates, errors and provenance, on the base of the reference's.

Keywords follow the FITS Standard 4.0 and the habits of this field where the standard is silent: NCOMBINE and
IMCMBnnn (IRAF), EGAIN (e-/ADU), SATURATE.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastack import __version__, uncertainty
from fastack.cards import Cards
from fastack.combine import median_noise_ratios
from fastack.dates import date_cards
from fastack.options import StackOptions
from fastack.types import FrameQuality, FrameRecord, Grid, Transform
from fastack.wcs import strip_wcs, wcs_cards, without

if TYPE_CHECKING:
    from astropy.io import fits


def effective_gain(weights: Any, scale: Any, gain: Any) -> float:
    """Electrons per ADU of a weighted average.

    Parameters
    ----------
    weights, scale, gain : (n,) array_like
        Weight w, flux scale s and gain g (e-/ADU) of each frame.

    Returns
    -------
    float
        ``(sum w)^2 / sum(w^2 s / g)``: N g for N equal frames.
    """
    w, s, g = (np.asarray(a, float) for a in (weights, scale, gain))
    return float(w.sum() ** 2 / np.sum(w * w * s / g))


def effective_rdnoise(weights: Any, scale: Any, gain: Any, rdnoise: Any) -> float:
    """Read noise, in electrons of the stack, of a weighted average.

    Parameters
    ----------
    weights, scale, gain, rdnoise : (n,) array_like
        Weight, flux scale, gain (e-/ADU) and read noise (e-) of each frame.

    Returns
    -------
    float
        ``G sqrt(sum w^2 s^2 r^2 / g^2) / sum(w)``: sqrt(N) r for N equal frames.
    """
    w, s, g, r = (np.asarray(a, float) for a in (weights, scale, gain, rdnoise))
    return effective_gain(w, s, g) * float(np.sqrt(np.sum((w * s * r / g) ** 2)) / w.sum())


_DROPPED = re.compile(
    r"^(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|EXTNAME|"
    r"EXTVER|INHERIT|TRIMSEC|BIASSEC|TRIM\d+|BIAS\d+|DATASEC|CCDSEC|Z[A-Z]+\d*|DATAMIN|DATAMAX|CBLACK|CWHITE|PEDESTAL|"
    r"SWCREATE|DATE|TFIELDS|TTYPE\d+|TFORM\d+|THEAP|END)$"
)
_TIMES = re.compile(
    r"^(DATE[-_]\w+|DATEOBS|MJD[-_]?\w*|JD[-_]?\w*|MIDTIMJD|HJD\w*|BJD\w*|TIME[-_]\w+|UT|UTC|UT[-_]\w+|UTC[-_]\w+|UTSTART|"
    r"UTCSTART|UTEND|UTCEND|UTDATE|UTSHUT|LST|LST[-_]\w+|ST|HA|TELAPSE|TIMESYS|XPOSURE|EXPOSURE|EXPTIME|NCOMBINE|GAIN|EGAIN|"
    r"RDNOISE|READNOIS|AIRMASS|SATURATE|IMCMB\d+)$"
)


def base_cards(reference: fits.Header, gain: float | None = None) -> fits.Header:
    """What of the reference's header stays true of a stack.

    Parameters
    ----------
    reference : astropy.io.fits.Header
        Of the reference frame.
    gain : float, optional, e-/ADU
        Of the reference frame, where it is known; a GAIN card that says something else is a camera setting.

    Returns
    -------
    astropy.io.fits.Header
        Without structure, scaling, times, WCS and calibration sections.
    """
    kept = strip_wcs(without(reference, _DROPPED, _TIMES))
    camera = reference.get("GAIN")
    if isinstance(camera, (int, float)) and not isinstance(camera, bool) and camera != gain:
        kept["CAMGAIN"] = (camera, "GAIN as the camera wrote it: a setting")
    return kept


def history(lines: Iterable[str]) -> list[str]:
    """HISTORY values of at most 70 characters each, long lines continued.

    Parameters
    ----------
    lines : iterable of str
        Free text; characters outside ASCII are replaced.

    Returns
    -------
    list of str
        In order.
    """
    import textwrap

    out: list[str] = []
    for line in lines:
        ascii_line = line.encode("ascii", "replace").decode()
        out += textwrap.wrap(ascii_line, 70, subsequent_indent="  ", break_on_hyphens=False) or [""]
    return out


def stack_header(
    used: Sequence[FrameRecord],
    reference: FrameRecord,
    out: Grid,
    transforms: Sequence[Transform],
    options: StackOptions,
    command: str | None,
    notes: Sequence[str] = (),
) -> fits.Header:
    """Primary header of the stack.

    Parameters
    ----------
    used : sequence of FrameRecord
        Frames of the stack.
    reference : FrameRecord
        Whose header is the base.
    out : Grid
        Of the output.
    transforms : sequence of Transform
        Output pixels to the pixels of each frame.
    options : StackOptions
        For the HISTORY.
    command : str, optional
        Command line.
    notes : sequence of str
        Of the calibration.

    Returns
    -------
    astropy.io.fits.Header
        Without structural cards.
    """
    cards = base_cards(reference.frame.header, reference.frame.gain)
    weights = [r.weight for r in used]
    n = sum(r.frame.ncombine for r in used)
    cards["BUNIT"] = ("adu", "of the reference frame")
    cards["NCOMBINE"] = (n, "frames combined")
    for keyword, value, comment in date_cards([r.exposure for r in used], weights):
        cards[keyword] = (value, comment)
    known = [(float(r.frame.exposure), r.frame.ncombine, _total_exposure(r)) for r in used if r.frame.exposure]
    if known:
        scaled = options.normalise and reference.frame.exposure
        each, count, total = np.array(known).T
        typical = float(reference.frame.exposure) if scaled else float(np.average(each, weights=count))
        cards["EXPTIME"] = (typical, "[s] so that counts/EXPTIME is a rate")
        cards["XPOSURE"] = (float(total.sum()), "[s] total exposure")
    _noise_cards(cards, used, options)
    _error_cards(cards, used, reference, out, transforms, options)
    airmass = [(_number(Cards(r.frame.cards).get("AIRMASS")), r.frame.ncombine) for r in used]
    if some := [(value, count) for value, count in airmass if value]:
        value, count = np.array(some).T
        cards["AIRMASS"] = (round(float(np.average(value, weights=count)), 4), f"mean of {count.sum():.0f} frames")
    levels = [
        (r.frame.saturation - r.sky) * r.scale + (0.0 if options.subtract_sky else reference.sky)
        for r in used
        if r.frame.saturation
    ]
    if levels:
        cards["SATURATE"] = (float(min(levels)), "[adu] lowest of the frames, scaled")
    cards["FASTREF"] = (reference.name, "reference frame")
    if out.wcs is not None:
        for card in wcs_cards(out.wcs, out.origin).cards:
            cards[card.keyword] = (card.value, card.comment)
    cards["LTV1"], cards["LTV2"] = -out.origin[0], -out.origin[1]
    for k, r in enumerate(used[:999], 1):
        cards[f"IMCMB{k:03d}"] = r.name[:68]
    lines = [f"fastack {__version__}"]
    if command:
        lines.append(command)
    lines.append(f"options: {_changed(options)}")
    lines += [*notes, *(note for note in dict.fromkeys(f"{note}" for r in used for note in r.notes))][:40]
    for line in history(lines):
        cards.add_history(line)
    return cards


def _total_exposure(record: FrameRecord) -> float:
    """Seconds of light in a frame: of a stack, those of all its frames."""
    total = _number(Cards(record.frame.cards).get("XPOSURE")) if record.frame.ncombine > 1 else None
    return total or float(record.frame.exposure or 0.0)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _noise_cards(cards: fits.Header, used: Sequence[FrameRecord], options: StackOptions) -> None:
    if used[0].scatter is not None:
        cards["STARSCAT"] = (used[0].scatter.floor, "relative scatter of bright stars in the frames")
    gains = [r.frame.gain for r in used]
    if not all(gains):
        return
    weights, scales = [r.weight for r in used], [r.scale for r in used]
    gain = effective_gain(weights, scales, gains)
    ratio = float(median_noise_ratios(len(used))[-1]) if options.combine.combine == "median" else 1.0
    cards["GAIN"] = (gain / ratio, "[e-/adu] effective, of the stack")
    cards["EGAIN"] = (gain / ratio, "[e-/adu] effective, of the stack")
    if used[0].gain_err:
        error = gain / ratio * used[0].gain_err / used[0].frame.gain
        cards["GAINERR"] = (error, "[e-/adu] GAIN was estimated from noise")
    noises = [r.frame.rdnoise for r in used]
    if all(value is not None for value in noises):
        rdnoise = effective_rdnoise(weights, scales, gains, noises)
        cards["RDNOISE"] = (rdnoise / np.sqrt(ratio), "[e-] effective, of the stack")


def _error_cards(
    cards: fits.Header,
    used: Sequence[FrameRecord],
    reference: FrameRecord,
    out: Grid,
    transforms: Sequence[Transform],
    options: StackOptions,
) -> None:
    """NOISCORR and the bias level of photon statistics, for `fastack errors`."""
    weight, scale = np.array([r.weight for r in used]), np.array([r.scale for r in used])
    area = np.array([t.magnification**2 for t in transforms])
    noise = np.array([r.quality.noise if r.quality else np.nan for r in used])
    share = (weight * scale * area * noise) ** 2
    widths = [r.quality.fwhm / np.sqrt(a) for r, a in zip(used, area, strict=True) if r.quality]
    typical = float(np.median(widths)) if np.isfinite(widths).all() else None
    correlation = uncertainty.noise_correlation(
        transforms, out.shape, share, options.resample, combine=options.combine, fwhm=typical
    )
    for keyword, value, comment in correlation.cards():
        cards[keyword] = (value, comment)
    gains = [r.frame.gain for r in used]
    if all(gains) and np.isfinite(noise).all():
        pedestal = 0.0 if options.subtract_sky or reference.background is None else reference.background.sky
        level = uncertainty.bias_level(pedestal, weight, scale, gains, noise, area)
        cards["BIASLEV"] = (round(level, 4), "[adu] (sky - BIASLEV)/GAIN is the variance")


def _changed(options: StackOptions) -> str:
    """Options that differ from their defaults."""
    default = StackOptions()
    parts = []
    for item in dataclasses.fields(options):
        value, usual = getattr(options, item.name), getattr(default, item.name)
        if dataclasses.is_dataclass(value):
            parts += [
                f"{sub.name}={getattr(value, sub.name)!r}"
                for sub in dataclasses.fields(value)
                if getattr(value, sub.name) != getattr(usual, sub.name)
            ]
        elif value != usual and item.name not in ("threads", "memory", "scheduler"):
            parts.append(f"{item.name}={value!r}")
    return ", ".join(parts) or "defaults"


def quality_cards(cards: fits.Header, quality: FrameQuality | None) -> None:
    """Write what was measured on the stack itself.

    Parameters
    ----------
    cards : astropy.io.fits.Header
        Header of the stack, changed in place.
    quality : FrameQuality, optional
        Without it, or without a FWHM, nothing is written.
    """
    if quality is None or not np.isfinite(quality.fwhm):
        return
    cards["FWHM"] = (round(quality.fwhm, 4), "[pixel] of the stack's stars")
    cards["ELLIPTIC"] = (round(quality.ellipticity, 4), "1 - minor/major axis of the mean PSF")
    cards["SKYLEVEL"] = (float(quality.sky), "[adu] median background")
    cards["SKYNOISE"] = (float(quality.noise), "[adu] background noise in one pixel")
