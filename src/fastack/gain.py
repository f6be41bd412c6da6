"""The gain of a camera, from the noise of its own frames.

Variance against level, over frames whose sky changes: the photon transfer curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastack import background
from fastack.errors import StackError
from fastack.files import find_frames
from fastack.frames import Frame, open_frame
from fastack.load_calibration import load_calibration
from fastack.options import BackgroundOptions, CalibrateOptions
from fastack.types import Array, FloatImage

_LEAST_ERROR = 0.02  # of an estimate, relative
_MOST_FRAMES = 10  # frames that a gain is estimated from
_MOST_SIDE = 1024  # of the part of a frame that is read for it, pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class GainEstimate:
    """Gain by the slope of variance against level."""

    gain: float  #: e-/ADU
    error: float  #: one sigma; see `estimate_gain`
    spread: float  #: part of `error` that leaving out pairs of frames tells
    contrast: float  #: part of `error` by which unmasked stars change the gain
    variance: float  #: at level 0, ADU^2: read noise, and what a pedestal in the levels takes from it
    levels: tuple[float, float]  #: lowest and highest of the cells, ADU
    pairs: int  #: of frames

    @property
    def usable(self) -> bool:
        """Whether it says more than nothing: positive, and known to 10 %."""
        return self.gain > 0 and self.error < 0.1 * self.gain

    @property
    def reason(self) -> str:
        """Why it is not usable; empty where it is."""
        if self.usable:
            return ""
        low, high = self.levels
        if not self.gain > 0:
            return f"the noise does not rise with the sky, {low:.0f} to {high:.0f} adu"
        spread, contrast = (100 * value / self.gain for value in (self.spread, self.contrast))
        if contrast > spread:
            return f"masking the stars changes it by {contrast:.0f} %, so that their light decides and not the sky's"
        return f"the sky changes too little, {low:.0f} to {high:.0f} adu, and leaves it uncertain by {spread:.0f} %"


def estimate_gain(images: Sequence[Any], *, options: BackgroundOptions = BackgroundOptions(cell=32)) -> GainEstimate:
    """Gain of a camera from light frames whose sky changes.

    Parameters
    ----------
    images : sequence of (ny, nx) float32 ndarray
        At least three frames of one camera and exposure, in ADU, not divided by a flat; NaN is missing.
    options : BackgroundOptions
        Cells in which variance and level are taken.

    Returns
    -------
    GainEstimate
        Look at `error`: a sky that hardly changes tells nothing.

    Raises
    ------
    StackError
        With fewer than three frames, or where nothing can be measured.

    Notes
    -----
    Photon transfer [1]_ on the sky: frames are sorted by level and neighbours subtracted, so that what is fixed in
    the detector goes; half the clipped variance of the difference in each cell is ``level/g + const``. Stars are
    masked: their light moves between pixels from frame to frame by more than its photon noise. The line is fitted
    with weights that follow from it, without cells beyond three robust sigmas. The error is the quadratic sum of
    three: leaving out one pair at a time, the change where stars are not masked, and 2 %.

    References
    ----------
    .. [1] Janesick 2007, Photon Transfer, SPIE, chapter 5
    """
    if len(images) < 3:
        raise StackError(f"a gain cannot be estimated from {len(images)} frames: at least three are needed")
    plain = [np.asarray(image, np.float32) for image in images]
    with_stars = _transfer_curve(plain, options)
    level, variance = _transfer_curve(
        [np.where(_starlight(image), np.float32("nan"), image) for image in plain], options
    )
    slope, zero = _line(level.ravel(), variance.ravel())
    n = len(level)
    some = np.array([_line(np.delete(level, k, 0).ravel(), np.delete(variance, k, 0).ravel())[0] for k in range(n)])
    contrast = slope - _line(with_stars[0].ravel(), with_stars[1].ravel())[0]
    spread = float(np.sqrt((n - 1) / n * np.sum((some - some.mean()) ** 2)))
    good = slope > 0
    unit = 1 / slope**2 if good else float("inf")
    return GainEstimate(
        gain=1 / slope if good else float("nan"),
        error=float(np.hypot(np.hypot(spread, contrast), _LEAST_ERROR * slope)) * unit,
        spread=spread * unit,
        contrast=abs(contrast) * unit,
        variance=zero,
        levels=(float(np.nanmin(level)), float(np.nanmax(level))),
        pairs=n,
    )


def _transfer_curve(images: Sequence[FloatImage], options: BackgroundOptions) -> tuple[Array, Array]:
    """(pairs, cells) level and variance of one frame's pixels, from differences of frames of neighbouring levels."""
    levels = [background.estimate(image, options=options).level.astype(float).ravel() for image in images]
    order = np.argsort([np.nanmedian(level) for level in levels], kind="stable")
    x, y = [], []
    for i, j in pairwise(order):
        difference = images[i] - images[j]
        even = background.subtract(difference, background.estimate(difference))
        x.append(0.5 * (levels[i] + levels[j]))
        y.append(0.5 * background.estimate(even, options=options).noise.astype(float).ravel() ** 2)
    return np.array(x), np.array(y)


def _starlight(image: FloatImage) -> NDArray[np.bool_]:
    """Pixels near anything that stands out of the noise in means of 5 x 5."""
    from scipy.ndimage import maximum_filter, uniform_filter

    sky = background.estimate(image)
    excess = np.nan_to_num(background.subtract(image, sky), posinf=0.0, neginf=0.0)
    return np.asarray(maximum_filter(uniform_filter(excess, 5), 7) > 4 * float(np.nanmedian(sky.noise)) / 5)


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Slope and zero of a line whose points scatter in proportion to its value, outliers left out."""
    keep = np.isfinite(x) & np.isfinite(y) & (y > 0)
    if keep.sum() < 10:
        raise StackError("a gain cannot be estimated: the frames have too few cells with values")
    model = np.full(len(x), np.median(y[keep]))
    slope, zero = 0.0, 0.0
    for _ in range(10):
        slope, zero = np.polyfit(x[keep], y[keep], 1, w=1 / model[keep])
        model = np.maximum(slope * x + zero, 1e-3 * np.median(y[keep]))
        pull = y / model - 1
        sigma = 1.4826 * np.nanmedian(np.abs(pull[keep] - np.nanmedian(pull[keep])))
        keep = np.abs(pull) < 3 * max(sigma, 1e-6)
    return float(slope), float(zero)


def camera_gain(frames: Sequence[Frame], options: CalibrateOptions = CalibrateOptions()) -> GainEstimate:
    """Estimate the gain of a camera from its light frames.

    Parameters
    ----------
    frames : sequence of Frame
        Raw light frames; of many, 10 spread evenly over them are read, of large ones the middle.
    options : CalibrateOptions
        Of the calibration. The flat is not applied: it changes the noise of a level.

    Returns
    -------
    GainEstimate
        See `estimate_gain`.

    Raises
    ------
    FrameError
        If a file cannot be read.
    StackError
        With fewer than three frames, or where nothing can be measured.
    """
    chosen = [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).astype(int))]
    if len(chosen) < 3:
        raise StackError(f"a gain cannot be estimated from {len(chosen)} frames: at least three are needed")
    calibration = load_calibration(chosen, replace(options, flat=None, no_flat=True, keep_edges=True))
    return estimate_gain([calibration.read(f, _middle(f.shape)).pixels for f in chosen])


def _middle(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Window in the middle of a frame."""
    (y0, y1), (x0, x1) = ((max(0, n // 2 - _MOST_SIDE // 2), min(n, n // 2 + _MOST_SIDE // 2)) for n in shape)
    return y0, y1, x0, x1


def gain_text(sources: Sequence[str | Path], options: CalibrateOptions = CalibrateOptions()) -> str:
    """Estimate the gain of a camera from its light frames and say how sure that is.

    Parameters
    ----------
    sources : sequence of str or Path
        Raw light frames.
    options : CalibrateOptions
        Of the calibration.

    Returns
    -------
    str
        One or two lines.

    Raises
    ------
    FrameError
        If a file cannot be read.
    StackError
        With fewer than three frames.
    """
    frames = [open_frame(path, options=options) for path in find_frames(list(sources))]
    estimate = camera_gain(frames, options)
    low, high = estimate.levels
    text = f"gain estimated from {estimate.pairs + 1} frames, levels {low:.0f} to {high:.0f} adu:"
    if not estimate.usable:
        return f"{text} nothing: {estimate.reason}\nuse flats of different levels, or the camera's manual"
    text += f" {estimate.gain:.3g} +- {estimate.error:.2g} e-/adu"
    known = [f.gain for f in frames if f.gain]
    if known and abs(known[0] - estimate.gain) > max(3 * estimate.error, 0.1 * estimate.gain):
        text += f"\nthe headers say {known[0]:g}, which does not fit the noise of the frames"
    return f"{text}\nto use it: fastack stack --gain {estimate.gain:.3g}"
