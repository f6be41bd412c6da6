"""Stars by a matched filter; hot pixels and cosmic rays by what no point-spread function can make."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastack import _pixels
from fastack import background as _background
from fastack.errors import DetectionError
from fastack.options import DetectOptions
from fastack.types import Background, FloatImage, Stars

_WIDER = 1.25  # the final width over the first one up to which the hits need no other pass over the image
_DEFAULT_FWHM = 3.0  # pixel, where the image has no sources to take it from


def detect(image: Any, *, background: Background | None = None, options: DetectOptions = DetectOptions()) -> Stars:
    """Find stars, and what looks like one but is too sharp.

    Parameters
    ----------
    image : (ny, nx) array_like, ADU
        NaN and infinite pixels count as missing.
    background : Background, optional
        Of this image; default: estimated here.
    options : DetectOptions
        Threshold, width of the filter, saturation.

    Returns
    -------
    Stars
        Brightest first (then by y and x), with `xy` (good to about 0.1 pixel), `flux` and `flux_err` of the
        matched filter, `peak`, `sky`, `sharpness` and `flags`; empty where nothing exceeds the threshold.
        Hot pixels and cosmic rays stay in the list, flagged ``SHARP``. `flux_err` holds the background's
        noise alone.

    Raises
    ------
    DetectionError
        If no pixel of the image is finite.
    ValueError
        If a shape or an option does not make sense.

    Notes
    -----
    The signal-to-noise ratio is that of a Gaussian of the point-spread function's width, ``sum(k d / s) /
    sqrt(sum(k^2))``, with d the pixel above the sky and s its noise, over the pixels that are there; a
    detection is a maximum of it. Pairs that the filter cannot resolve are sought in a less smoothed image.
    Sharpness is the middle pixel over what the filter predicts for it.
    """
    return survey(image, background=background, options=options)[0]


class Traces(NamedTuple):
    """What the pass over the image that finds stars leaves for finding artefacts."""

    bright: NDArray[np.void]  #: pixels above 6 sigma from which hits are found: x, y, sky, noise
    roundness: float  #: FWHM along the shorter axis over the mean one
    widest: float  #: FWHM along the shorter axis up to which no hit is missing from them, pixel


def survey(
    image: Any, *, background: Background | None = None, options: DetectOptions = DetectOptions()
) -> tuple[Stars, Traces]:
    """`detect`, and what `find_artefacts` needs so as not to look at the whole image again.

    Parameters
    ----------
    image, background, options
        See `detect`.

    Returns
    -------
    Stars
        See `detect`.
    Traces
        For `find_artefacts` on the same image with the same background.
    """
    pixels, sky = _prepare(image, background)
    if not options.threshold > 0:
        raise ValueError(f"threshold is {options.threshold}, not a positive number")
    saturation = np.nan if options.saturation is None else options.saturation
    if options.fwhm is not None:
        _check_fwhm(options.fwhm)
    mean, narrow = _widths(pixels, sky, saturation, options.fwhm)
    widest = _WIDER * narrow
    table, bright = _pixels.detect(pixels, sky.level, sky.noise, mean, narrow, options.threshold, saturation, widest)
    table = table[: options.max_stars]
    names = ("flux", "flux_err", "peak", "sky", "sharpness", "flags")
    stars = Stars.make(table[:, :2], **dict(zip(names, table[:, 2:].T, strict=True)))
    return stars, Traces(bright, narrow / mean, widest)


def find_artefacts(
    image: Any,
    *,
    background: Background | None = None,
    fwhm: float,
    options: DetectOptions = DetectOptions(),
    gain: float | None = None,
    traces: Traces | None = None,
) -> NDArray[np.int32]:
    """Pixels of hot pixels and cosmic rays, with the wings of each hit.

    Parameters
    ----------
    image : (ny, nx) array_like, ADU
        NaN and infinite pixels count as missing and are not reported.
    background : Background, optional
        Of this image; default: estimated here.
    fwhm : float, pixel
        Of the point-spread function. The stars' elongation is found from the image; the
        test allows for stars 10 % narrower than that.
    options : DetectOptions
        Its `saturation` is used.
    gain : float, optional, e-/ADU
        For the photon noise of the light above the sky; default: as if the sky's noise were photon noise
        alone.
    traces : Traces, optional
        What `survey` left of this image; saves a pass over it.

    Returns
    -------
    (k, 2) int32 ndarray
        x and y of each pixel, by rows.

    Raises
    ------
    DetectionError
        If no pixel of the image is finite.
    ValueError
        If a shape or an option does not make sense.

    Notes
    -----
    As in L.A.Cosmic (van Dokkum 2001, PASP 113, 1420) edges decide that are steeper than the point-spread
    function's, but against that function itself: the mean of a pixel's two neighbours on an axis is at least
    exp(-1/(2 sigma^2)) of the pixel, wherever the star's centre falls; that of the two pixels beside a pair
    at least exp(-1/sigma^2) of the pair's.
    """
    pixels, sky = _prepare(image, background)
    _check_fwhm(fwhm)
    if gain is not None and not gain > 0:
        raise ValueError(f"gain is {gain}, not a positive number of electrons per ADU")
    saturation = np.nan if options.saturation is None else options.saturation
    shot = np.nan if gain is None else 1 / gain
    narrow = _widths(pixels, sky, saturation, fwhm)[1] if traces is None else fwhm * traces.roundness
    if traces is None or narrow > traces.widest:
        bright = _pixels.detect_bright(pixels, sky.level, sky.noise)
    else:
        bright = traces.bright
    return _pixels.detect_hits(pixels, bright, narrow, saturation, shot)


def _check_fwhm(fwhm: float) -> None:
    if not (np.isfinite(fwhm) and fwhm > 0):
        raise ValueError(f"fwhm is {fwhm}, not a positive number of pixels")


def _widths(pixels: FloatImage, sky: Background, saturation: float, fwhm: float | None) -> tuple[float, float]:
    """FWHM, where it is not given, and that along the shorter axis of the point-spread function."""
    mean, narrow = _pixels.detect_widths(pixels, sky.level, sky.noise, saturation)
    if not np.isfinite(mean):
        mean = narrow = _DEFAULT_FWHM if fwhm is None else fwhm
    # A trailed star is as narrow as an untrailed one across its trail.
    return (mean, narrow) if fwhm is None else (fwhm, min(fwhm, fwhm * narrow / mean))


def _prepare(image: Any, background: Background | None) -> tuple[FloatImage, Background]:
    """Pixels and background as the kernels take them."""
    pixels = _background.as_pixels(image)
    sky = _background.estimate(pixels) if background is None else background
    if sky.shape != pixels.shape:
        raise ValueError(f"the image has shape {pixels.shape}, its background {sky.shape}")
    if not np.isfinite(sky.level).all():
        raise DetectionError("the image has no finite pixel: nothing can be looked for on it")
    return pixels, sky
