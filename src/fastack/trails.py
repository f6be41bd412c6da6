"""Trails of satellites and aircraft: lines that cross a frame, each pixel too faint to be rejected, all of them not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastack.background import as_pixels
from fastack.types import Array, Background, FloatImage, Transform

_BIN = 8  # pixels on a side of the bins in which lines are looked for
_LARGE = 4096  # pixels on a side; larger images are looked at in parts
_BAND = 64  # rows of bins that are summed at once
_LIT = 3.0  # sigmas of a bin
_MOST_LIT = 0.3  # part of the bins; in denser fields only the brightest count
_SCORE = 5.0  # sigmas by which a line holds more lit bins than chance
_CLUMPS = 4.0  # lit bins come in clumps (stars), which scatter so many times more than single ones
_TURNS = 1 << 18  # lit bins times angles that are counted at once
_CANDIDATES = 8  # lines of a frame that are looked at
_SEGMENT = 32  # pixels along a line whose median is taken: what stars leave free tells
_SEEN = 3.0  # sigmas of a segment
_PART = 0.7  # of the segments of a trail that must show it
_SHORTEST = 6  # segments
_GAP = 3  # segments without light that still belong to one trail
_SIDE = 6  # outermost pixels of a strip, on either side, that tell the level beside a trail
_FAINT = 0.1  # sigmas of a pixel down to which a trail's wings are followed
_BETA = 3.0  # of the Moffat profile whose wings they are
_AGAIN = 3.0  # pixels beyond its reach within which another frame's trail is the same


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trail:
    """A straight trail in one frame."""

    start: Array  #: (2,) x, y of its first pixel
    end: Array  #: (2,) x, y of its last pixel
    reach: float  #: pixels to either side of the line in which its light counts
    peak: float  #: light on the line, sigmas of a pixel

    def points(self) -> Array:
        """(n, 2) places along its line."""
        return np.asarray(self.start + np.linspace(0, 1, 33)[:, None] * (self.end - self.start))

    def pixels(self, shape: tuple[int, int]) -> NDArray[np.int32]:
        """All pixels of the trail.

        Parameters
        ----------
        shape : tuple of int
            (ny, nx) of the frame.

        Returns
        -------
        (k, 2) int32 ndarray
            x and y.
        """
        along = int(abs(self.end[1] - self.start[1]) >= abs(self.end[0] - self.start[0]))  # the axis it runs along
        first, last = sorted((self.start, self.end), key=lambda p: float(p[along]))
        step = (last - first) / max(float(last[along] - first[along]), 1e-9)
        half = self.reach * float(np.hypot(*step))
        size = np.array(shape[::-1])
        on = np.arange(max(0, np.ceil(first[along])), min(size[along] - 1, np.floor(last[along])) + 1)
        middle = first[1 - along] + step[1 - along] * (on - first[along])
        off = np.arange(-np.ceil(half), np.ceil(half) + 1)
        across = np.rint(middle)[:, None] + off
        inside = (np.abs(across - middle[:, None]) <= half) & (across >= 0) & (across < size[1 - along])
        out = np.empty((np.count_nonzero(inside), 2), np.int32)
        out[:, along] = np.broadcast_to(on[:, None], inside.shape)[inside]
        out[:, 1 - along] = across[inside]
        return out


def find_trails(image: Any, *, background: Background, fwhm: float) -> tuple[Trail, ...]:
    """Find straight trails.

    Parameters
    ----------
    image : (ny, nx) array_like, ADU
        NaN is missing.
    background : Background
        Of this image.
    fwhm : float, pixel
        Of the stars; a trail is at least as wide.

    Returns
    -------
    tuple of Trail
        The brightest first. Some 200 pixels of it must be in the frame.

    Notes
    -----
    Lines that cross more lit bins than chance would have it (Hough transform: Duda & Hart 1972, Comm. ACM 15, 11) are
    looked at in the image: medians along short segments, which single stars do not change, tell where across the line
    its light is, a straight line is laid through these places, and most segments must show light on it.
    """
    pixels = as_pixels(image)
    trails: list[Trail] = []
    for rows in _parts(pixels.shape[0]):
        for columns in _parts(pixels.shape[1]):
            corner = np.array([columns.start, rows.start])
            found = _find_in(pixels[rows, columns], background, corner, fwhm)
            trails += [replace(t, start=t.start + corner, end=t.end + corner) for t in found]
    return tuple(sorted(trails, key=lambda t: -t.peak))


def _parts(side: int) -> list[slice]:
    """Parts of a large image's side, each looked at for itself."""
    n = -(-side // _LARGE) or 1
    return [slice(side * k // n, side * (k + 1) // n) for k in range(n)]


def _find_in(pixels: FloatImage, background: Background, corner: Array, fwhm: float) -> list[Trail]:
    """Trails of a part of an image, whose first pixel is at `corner` (x, y); places in pixels of the part."""
    shape = (pixels.shape[0] // _BIN, pixels.shape[1] // _BIN)
    if min(shape) < _SHORTEST:
        return []
    y, x = np.nonzero(_lit(pixels, background, corner, shape))
    occupied = len(x) / (shape[0] * shape[1])
    x, y = x - 0.5 * (shape[1] - 1), y - 0.5 * (shape[0] - 1)  # about the middle, in bins
    trails: list[Trail] = []
    for _ in range(_CANDIDATES):
        line = _best_line(x, y, shape, occupied)
        if line is None:
            break
        angle, rho = line
        found = _trace(pixels, angle, _BIN * rho, fwhm)
        if found is not None:
            trails.append(found)
        width = 2.0 if found is None else found.reach / _BIN + 1.0
        left = np.abs(x * np.cos(angle) + y * np.sin(angle) - rho) > width
        x, y = x[left], y[left]
    return trails


def passing(trails: Sequence[Sequence[Trail]], transforms: Sequence[Transform]) -> list[tuple[Trail, ...]]:
    """Trails that no other frame has: what stays on the sky or on the detector is no satellite.

    Parameters
    ----------
    trails : sequence of sequences of Trail
        Of each frame.
    transforms : sequence of Transform
        From one common grid to the pixels of each frame.

    Returns
    -------
    list of tuple of Trail
        Of each frame, without galaxies seen edge-on, diffraction spikes and bright columns.
    """
    some = [k for k, found in enumerate(trails) if found]
    out: list[tuple[Trail, ...]] = [() for _ in trails]
    for k in some:
        others = [(j, other) for j in some if j != k for other in trails[j]]
        out[k] = tuple(
            one
            for one in trails[k]
            if not any(
                _covers(other, points)
                for j, other in others
                for points in (one.points(), transforms[j](transforms[k].inverse(one.points())))
            )
        )
    return out


def _covers(trail: Trail, points: Array) -> bool:
    """Whether most of the points lie on a trail."""
    along = trail.end - trail.start
    length = float(np.hypot(*along))
    across = (points - trail.start) @ np.array([-along[1], along[0]]) / length
    part = (points - trail.start) @ along / length**2
    on = (np.abs(across) < trail.reach + _AGAIN) & (part > 0) & (part < 1)
    return bool(on.mean() > 0.5)


def _lit(pixels: FloatImage, background: Background, corner: Array, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Bins that hold more light than the sky."""
    by, bx = shape
    light = -_at_bins(background, corner, shape)
    for first in range(0, by, _BAND):
        band = pixels[first * _BIN : min(first + _BAND, by) * _BIN]
        rows = band.reshape(-1, _BIN, pixels.shape[1])[:, ::2].sum(axis=1)  # half of the rows will do
        light[first : first + _BAND] += rows[:, : bx * _BIN].reshape(len(rows), bx, _BIN).sum(axis=2) / (
            _BIN * _BIN / 2
        )
    known = light[np.isfinite(light)]
    if not len(known):
        return np.zeros(shape, bool)
    low, middle, most = np.quantile(known, (0.1587, 0.5, 1 - _MOST_LIT))
    with np.errstate(invalid="ignore"):
        return np.asarray(light > max(middle + _LIT * (middle - low), most))


def _at_bins(background: Background, corner: Array, shape: tuple[int, int]) -> FloatImage:
    """Sky level in the middles of the bins."""
    rows, columns = (
        _between((first + (np.arange(n) + 0.5) * _BIN) / cell - 0.5, m)
        for first, n, cell, m in zip(corner[::-1], shape, background.cell, background.level.shape, strict=True)
    )
    (first, second, part) = rows
    level = background.level[first] * (1 - part)[:, None] + background.level[second] * part[:, None]
    (first, second, part) = columns
    return np.asarray(level[:, first] * (1 - part) + level[:, second] * part, np.float32)


def _between(at: NDArray[np.floating[Any]], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatImage]:
    """The two of n places around each, and the way between them."""
    at = np.clip(at, 0, n - 1)
    first = np.minimum(at.astype(np.int64), max(n - 2, 0))
    return first, np.minimum(first + 1, n - 1), (at - first).astype(np.float32)


@lru_cache(maxsize=4)
def _lines(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Angles of the normals of lines across so many bins, and the length of each line by angle and distance."""
    by, bx = shape
    angles = np.arange(0, np.pi, 2 / max(shape))
    reach = int(np.ceil(np.hypot(by, bx) / 2)) + 1
    rho = np.arange(-reach, reach + 1)
    length = np.empty((len(angles), len(rho)))
    for angle, lengths in zip(angles, length, strict=True):
        low, high = -np.inf, np.inf
        # the points rho (cos, sin) + t (-sin, cos) that lie within half a side of the middle
        for along, slope, half in ((np.cos(angle), -np.sin(angle), bx / 2), (np.sin(angle), np.cos(angle), by / 2)):
            slope = slope if abs(slope) >= 1e-9 else 1e-9
            ends = np.sort([(-half - rho * along) / slope, (half - rho * along) / slope], axis=0)
            low, high = np.maximum(low, ends[0]), np.minimum(high, ends[1])
        np.maximum(high - low, 0.0, out=lengths)
    for array in (angles, length):
        array.setflags(write=False)
    return angles, length


def _best_line(x: Array, y: Array, shape: tuple[int, int], occupied: float) -> tuple[float, float] | None:
    """Angle of the normal and distance from the middle, bins, of the line that exceeds chance most."""
    angles, length = _lines(shape)
    if len(x) < _SHORTEST * _SEGMENT / _BIN:
        return None
    reach, width = length.shape[1] // 2, length.shape[1]
    across, up = x.astype(np.float32), y.astype(np.float32)
    some = max(1, _TURNS // max(len(x), width))
    best, line = _SCORE, None
    for first in range(0, len(angles), some):
        cos, sin = (f(angles[first : first + some])[:, None].astype(np.float32) for f in (np.cos, np.sin))
        rho = cos * across
        rho += sin * up
        rho += np.arange(len(cos), dtype=np.float32)[:, None] * width + (reach + 0.5)
        counts = np.bincount(rho.ravel().astype(np.int32), minlength=len(cos) * width).reshape(-1, width)
        chance = occupied * length[first : first + some]
        score = (counts - chance) / np.sqrt(_CLUMPS * (chance * (1 - occupied) + 1))
        score[counts - chance < 0.5 * _SHORTEST * _SEGMENT / _BIN] = 0
        k, j = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[k, j] > best:
            best, line = float(score[k, j]), (float(angles[first + k]), float(j - reach))
    return line


def _trace(pixels: FloatImage, angle: float, rho: float, fwhm: float) -> Trail | None:
    """What is on a line, if it is a trail; distances in pixels from the middle of the image."""
    width = max(fwhm, 2.0)
    half = int(np.ceil(3 * width)) + _BIN
    for _ in range(2):  # the first line is good to a bin
        strip = _Strip.along(pixels, angle, rho, half)
        if strip is None:
            return None
        near = strip.light(width)[half - _BIN - 2 : half + _BIN + 3]
        good = near.max(axis=0) > _SEEN * strip.error(width)
        if np.count_nonzero(good) < _SHORTEST:
            return None
        shift, slope = _straight(strip.middles[good], near[:, good].argmax(axis=0) - _BIN - 2.0, 0.5 * width)
        rho = (rho + shift) * np.cos(np.arctan(slope))
        angle -= np.arctan(slope)
    strip = _Strip.along(pixels, angle, rho, half)
    part = None if strip is None else _lit_part(strip.light(width)[half] / strip.error(width))
    if strip is None or part is None:
        return None
    core = strip.excess[half - int(2 * width) : half + int(2 * width) + 1, part]
    whole = np.isfinite(core).all(axis=0)
    if not whole.any():
        return None
    profile = np.median(core[:, whole], axis=1)
    wide = max(width, float(np.count_nonzero(profile > 0.5 * profile.max())))
    peak = float(max(profile.max(), np.quantile(strip.light(width)[half, part], 0.9)))
    exponent = 1 / (_BETA - 0.5)  # a Moffat profile integrated along the line
    wings = 0.5 * wide / np.sqrt(2**exponent - 1) * np.sqrt(max((peak / _FAINT) ** exponent - 1, 0.0))
    ends = strip.middles[part][[0, -1]] + np.array([-1.5, 1.5]) * _SEGMENT
    middle, (normal, along) = 0.5 * (np.array(pixels.shape[::-1]) - 1), _axes(angle)
    start, end = (middle + rho * normal + t * along for t in ends)
    return Trail(start=start, end=end, reach=float(max(wings, width)) + 1.0, peak=peak)


def _axes(angle: float) -> tuple[Array, Array]:
    """Unit vectors across a line and along it."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c, s]), np.array([-s, c])


def _straight(t: Array, offset: Array, reach: float) -> tuple[float, float]:
    """Line through most of the points: its value at 0 and its slope."""
    i, j = np.triu_indices(len(t), 1)
    slope = (offset[j] - offset[i]) / (t[j] - t[i])
    level = offset[i] - slope * t[i]
    near = np.abs(offset - level[:, None] - slope[:, None] * t) <= reach
    use = near[near.sum(axis=1).argmax()]
    mean_t, mean_o = t[use].mean(), offset[use].mean()
    best = float(((t[use] - mean_t) * (offset[use] - mean_o)).sum() / ((t[use] - mean_t) ** 2).sum())
    return float(mean_o - best * mean_t), best


def _lit_part(sigmas: Array) -> slice | None:
    """The longest part of the segments that shows light without long gaps."""
    lit = np.flatnonzero(sigmas > _SEEN)
    if not len(lit):
        return None
    runs = np.split(lit, np.flatnonzero(np.diff(lit) > _GAP + 1) + 1)
    run = max(runs, key=len)
    part = slice(int(run[0]), int(run[-1]) + 1)
    return part if len(run) >= max(_SHORTEST, _PART * (part.stop - part.start)) else None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Strip:
    """Medians along short segments of a line, by the distance from it."""

    t: Array  #: (k,) places along the line, pixel
    middles: Array  #: (s,) of the segments
    excess: Array  #: (2 half + 1, s) over the level on both sides, sigmas of a pixel

    @classmethod
    def along(cls, pixels: FloatImage, angle: float, rho: float, half: int) -> _Strip | None:
        """None where too little of the line is in the image."""
        size = np.array(pixels.shape[::-1])
        normal, direction = _axes(angle)
        long = int(np.hypot(*size))
        t = np.arange(-long // 2, long // 2 + 1, dtype=float)
        line = 0.5 * (size - 1) + rho * normal + t[:, None] * direction
        t = t[((line > -0.5) & (line < size - 0.5)).all(axis=1)]
        t = t[: len(t) // _SEGMENT * _SEGMENT]
        if len(t) < _SHORTEST * _SEGMENT:
            return None
        off = np.arange(-half, half + 1)
        at = 0.5 * (size - 1) + rho * normal + t[:, None] * direction
        x, y = (np.rint(at[:, i] + off[:, None] * normal[i]).astype(np.int64) for i in (0, 1))
        inside = (x >= 0) & (y >= 0) & (x < size[0]) & (y < size[1])
        values = np.where(inside, pixels[np.clip(y, 0, size[1] - 1), np.clip(x, 0, size[0] - 1)], np.nan)
        segments = np.sort(values.reshape(len(off), -1, _SEGMENT), axis=2)  # NaN last
        count = np.isfinite(segments).sum(axis=2)
        middle = np.take_along_axis(segments, (np.maximum(count, 1)[..., None] - 1) // 2, axis=2)[..., 0]
        medians = np.where(count > _SEGMENT // 2, middle, np.nan)
        outer = np.concatenate([segments[:_SIDE], segments[-_SIDE:]]).swapaxes(0, 1).reshape(segments.shape[1], -1)
        known = np.isfinite(outer).sum(axis=1) > _SEGMENT
        if not known.any():
            return None
        sides = np.full(len(outer), np.nan)
        sides[known] = np.nanmedian(outer[known], axis=1)
        noise = 1.4826 * float(np.nanmedian(np.abs(outer[known] - sides[known, None])))
        if not noise > 0:
            return None
        return cls(t=t, middles=t.reshape(-1, _SEGMENT).mean(axis=1), excess=(medians - sides) / noise)

    def light(self, width: float) -> Array:
        """(2 half + 1, s) mean over the width of a star about each distance, sigmas of a pixel."""
        size = 2 * int(width / 2) + 1
        padded = np.pad(np.nan_to_num(self.excess), ((size // 2 + 1, size // 2), (0, 0)))
        sums = np.cumsum(padded, axis=0)
        return np.asarray((sums[size:] - sums[:-size]) / size)

    @staticmethod
    def error(width: float) -> float:
        """Of `light`: that of medians of normal deviates."""
        return float(np.sqrt(np.pi / 2 / _SEGMENT / (2 * int(width / 2) + 1)))
