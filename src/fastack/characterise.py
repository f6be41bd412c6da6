"""What no card tells of the detector, seen in the frames: its saturation level and edges that do not show the sky.

What the cards do tell stands in `detector`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastack.calibrate import Calibration
from fastack.errors import CalibrationError, FrameError
from fastack.frames import Frame
from fastack.types import Array, FloatImage

Start = Callable[..., Callable[[], Any]]  #: begins a call, as `Executor.start` does

_SAMPLED = 3  # frames in which the saturation level and bad edges are looked for
_AT_ONCE = 1 << 18  # pixels of a frame that are looked at together
_STRIP = 64  # lines at each side in which a bad edge is looked for
_ALIKE = 6  # lines over which stars make levels alike
_EDGE = 24  # lines that a bad edge may have; the others tell the sky


def find_saturation(frames: Sequence[Frame], start: Start) -> float | None:
    """Level at which pixels pile up, in frames whose header does not tell it.

    A converter of 12 bits in a file of 16 saturates at 4095, which no card says. The level is believed where
    the highest value is the same in all sampled frames, with at least three pixels at it in each.

    Parameters
    ----------
    frames : sequence of Frame
        Of one camera; some of them, from the first to the last, are read.
    start : callable
        Begins a call, as `Executor.start` does.

    Returns
    -------
    float or None
        ADU as stored; None where frames tell it, or none is found.
    """
    guessed = [frame for frame in frames if frame.saturation_guessed and frame.bitpix > 0]
    if not guessed:
        return None
    looking = [start(_highest, frame) for frame in _sampled(guessed)]
    found = [peak for look in looking if (peak := look()) is not None]
    highest, counts = [top for top, _ in found], [count for _, count in found]
    if not highest or min(highest) != max(highest) or not math.isfinite(highest[0]):
        return None
    enough = min(counts) >= 3 if len(counts) > 1 else counts[0] >= 10
    return highest[0] if enough and highest[0] != guessed[0].saturation else None


def _highest(frame: Frame) -> tuple[float, int] | None:
    """Highest stored level of a frame and how many pixels have it, a few rows at a time."""
    raw = Calibration(use_overscan=False)
    ny, nx = frame.shape
    top, count = -math.inf, 0
    step = max(1, _AT_ONCE // nx)
    try:
        ready = raw.prepare(frame)
        for y in range(0, ny, step):
            pixels = raw.read(frame, (y, min(y + step, ny), 0, nx), ready).pixels
            here = float(np.fmax.reduce(pixels, axis=None, initial=-np.inf))
            if here > top:
                top, count = here, 0
            if here == top:
                count += int(np.count_nonzero(pixels == here))
    except FrameError:  # the frame is left out, with its reason, when its turn comes
        return None
    return top, count


def find_edges(frames: Sequence[Frame], calibration: Calibration, start: Start) -> tuple[int, int, int, int]:
    """Rows below and above, columns left and right, whose level departs from the sky next to them.

    The first rows that are read out, and strips that the light does not reach, stand off by many sigmas of the noise
    within a few pixels; gradients and vignetting go on far inwards and are followed by a parabola.

    Parameters
    ----------
    frames : sequence of Frame
        Of one shape; some of them, from the first to the last, are read.
    calibration : Calibration
        Without edges.
    start : callable
        Begins a call, as `Executor.start` does.

    Returns
    -------
    tuple of int
        Rows below and above, columns left and right.
    """
    if min(frames[0].shape) < 4 * _STRIP:
        return 0, 0, 0, 0
    looking = [start(_profiles, frame, calibration) for frame in _sampled(frames)]
    known = [profiles for look in looking if (profiles := look()) is not None]
    a, b, c, d = (_bad_lines([profiles[side] for profiles in known]) for side in range(4))
    return a, b, c, d


def _profiles(frame: Frame, calibration: Calibration) -> list[Array | None] | None:
    """`_profile` of the rows from below and above, of the columns from the left and the right."""
    ny, nx = frame.shape
    (y0, y1), (x0, x1) = ((max(0, n // 2 - 256), min(n, n // 2 + 256)) for n in (ny, nx))
    windows = (0, _STRIP, x0, x1), (ny - _STRIP, ny, x0, x1), (y0, y1, 0, _STRIP), (y0, y1, nx - _STRIP, nx)
    try:
        ready = calibration.prepare(frame)
        below, above, left, right = (calibration.read(frame, window, ready).pixels for window in windows)
    except (CalibrationError, FrameError):  # the frame is left out, with its reason, when its turn comes
        return None
    return [_profile(strip) for strip in (below, above[::-1], left.T, right.T[::-1])]


def _profile(strip: FloatImage) -> Array | None:
    """Level of each line above that of the inner ones, in sigmas of a pixel; infinite where lines are missing."""
    finite = np.isfinite(strip)
    known = finite[_EDGE:].all(axis=0)
    if np.count_nonzero(known) < 32:
        return None
    some = strip if finite.all() else np.where(finite, strip, np.float32(np.inf))[:, known]
    steps = np.sort(np.abs(np.diff(some[_EDGE:], axis=1)), axis=None)
    noise = 1.4826 * float(steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2 / math.sqrt(2)
    # the mean of the middle half: stars hardly move it, and it has no steps where the pixels are integers
    quarter = some.shape[1] // 4
    level = np.sort(some, axis=1)[:, quarter:-quarter].mean(axis=1, dtype=float)
    return (level - level[_EDGE:].mean()) / noise if noise > 0 else None


def _bad_lines(profiles: Sequence[Array | None]) -> int:
    """Number of lines, from the first on, whose level is off the smooth continuation of the inner ones."""
    known = [profile for profile in profiles if profile is not None]
    if not known:
        return 0
    level: Array = np.mean(known, axis=0)
    design = np.vander(np.arange(len(level)) / len(level), 3)
    solve = np.linalg.pinv(design[_EDGE:])
    fitted = design @ (solve @ level[_EDGE:])
    # stars move the level of a line more than noise does: what the inner lines scatter counts, carried outwards
    left = level[_EDGE:] - fitted[_EDGE:]
    scatter = float(np.std(left))
    carried = np.sum((design @ solve) ** 2, axis=1)
    error = scatter * np.sqrt(1 + carried)
    off = np.abs(level - fitted)
    bad = off > 0.5 + 3 * error
    # a star moves several lines alike: so many fewer of them tell the parabola that the first line is held against
    lags = [float(np.mean(left[k:] * left[:-k])) / scatter**2 for k in range(1, _ALIKE + 1)] if scatter else []
    alike = 1 + 2 * sum(max(lag, 0.0) for lag in lags)
    sure = off[0] > 3 + 5 * scatter * np.sqrt(1 + alike * carried[0])
    # what hardly stands off, or has no end, is no edge
    return int(np.argmin(bad)) if sure and not bad[:_EDGE].all() else 0


def _sampled(frames: Sequence[Frame]) -> list[Frame]:
    """Some frames, from the first to the last."""
    return [frames[i] for i in sorted({round(k * (len(frames) - 1) / (_SAMPLED - 1)) for k in range(_SAMPLED)})]
