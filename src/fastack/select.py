"""Which frames are stacked, which one is the reference, and how much each counts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastack.options import SelectOptions
from fastack.types import PSF, Array, FrameRecord

_LIMIT = re.compile(r"^\s*([+-]?\d+(?:\.\d*)?|\.\d+)\s*(px|pix|pixels?|\"|''|arcsec|as|%|k|sigma)?\s*$", re.IGNORECASE)
_KINDS = {"": "absolute", "px": "absolute", "pix": "absolute", "pixel": "absolute", "pixels": "absolute"}
_KINDS |= {'"': "arcsec", "''": "arcsec", "arcsec": "arcsec", "as": "arcsec", "%": "percent", "k": "sigma"}
_KINDS |= {"sigma": "sigma"}


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper limit as the user writes it.

    Attributes
    ----------
    value : float
        The number.
    kind : {"absolute", "arcsec", "percent", "sigma"}
        ``5.0`` is absolute, ``4"`` arcseconds, ``50%`` the best half, ``2.5k`` robust standard deviations above the
        median.
    """

    value: float
    kind: Literal["absolute", "arcsec", "percent", "sigma"]

    @classmethod
    def parse(cls, text: str | float) -> Limit:
        """Read a limit.

        Raises
        ------
        ValueError
            If it is no limit; the message lists the forms.
        """
        match = _LIMIT.match(str(text))
        if not match:
            raise ValueError(
                f'{text!r} is no limit; write 5.0 (pixels), 4" (arcsec), 50% (the best half) or 2.5k (sigma)'
            )
        value, kind = float(match.group(1)), _KINDS[(match.group(2) or "").lower()]
        if value <= 0 or (kind == "percent" and value > 100):
            raise ValueError(f"{text!r} is out of range")
        return cls(value, kind)  # type: ignore[arg-type]

    def __str__(self) -> str:
        unit = {"absolute": "", "arcsec": '"', "percent": "%", "sigma": "k"}[self.kind]
        return f"{self.value:g}{unit}"

    def keep(self, values: Array, *, scale: Array | float | None = None) -> Array:
        """Which values lie below the limit.

        Parameters
        ----------
        values : (n,) ndarray
            Figure of each frame; NaN never passes.
        scale : (n,) ndarray or float, optional
            Arcseconds per unit of `values`, for a limit in arcseconds.

        Returns
        -------
        (n,) bool ndarray
            True where the frame stays.

        Raises
        ------
        ValueError
            If the limit is in arcseconds and `scale` is unknown.
        """
        values = np.asarray(values, float)
        known = np.isfinite(values)
        if self.kind == "arcsec":
            scales = np.broadcast_to(np.nan if scale is None else np.asarray(scale, float), values.shape)
            if not np.isfinite(scales[known]).all():
                raise ValueError("a limit in arcsec needs the pixel scale, which no header gives: use --pixel-scale")
            return np.asarray(known & (values * scales < self.value))
        if self.kind == "percent":
            count = math.ceil(known.sum() * self.value / 100)
            best = np.argsort(np.where(known, values, np.inf), kind="stable")[:count]
            keep = np.zeros(len(values), bool)
            keep[best] = True
            return np.asarray(keep & known)
        if self.kind == "sigma":
            median = np.median(values[known]) if known.any() else np.nan
            sigma = 1.4826 * np.median(np.abs(values[known] - median)) if known.any() else np.nan
            return np.asarray(known & (values <= median + self.value * sigma))
        return np.asarray(known & (values < self.value))


def keep_majority(records: Sequence[FrameRecord], options: SelectOptions) -> None:
    """Leave out frames of another size, binning, filter or target than most.

    Parameters
    ----------
    records : sequence of FrameRecord
        Those still in are judged; the reason is written into those that go.
    options : SelectOptions
        ``filter`` and ``object`` name what is wanted in place of the majority.
    """

    def settle(name: str, key: Callable[[Any], Hashable], wanted: str | None = None) -> None:
        live = [r for r in records if r.reason is None and r.frame is not None]
        values = {id(r): key(r.frame) for r in live}
        known = Counter(v for v in values.values() if v is not None)
        if wanted is not None:
            target: Hashable = _norm(wanted)
        elif len(known) > 1 or (known and name in ("size", "binning")):
            top = max(known.values())
            target = next(v for v in values.values() if v is not None and known[v] == top)
        else:
            return
        for r in live:
            value = values[id(r)]
            if value != target and (value is not None or wanted is not None):
                r.reason = f"{name} {_show(value)}, not {_show(target)}"

    settle("size", lambda f: f.shape)
    settle("binning", lambda f: f.binning)
    settle("filter", lambda f: _norm(f.filter), options.filter)
    settle("object", lambda f: _norm(f.object), options.object)


def _norm(text: str | None) -> str | None:
    return " ".join(text.upper().split()) if text and text.strip() else None


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(str(v) for v in reversed(value))
    return "unknown" if value is None else str(value)


def apply_limits(records: Sequence[FrameRecord], options: SelectOptions) -> None:
    """Leave out frames beyond the limits; each gets the limit and its own figure as its reason.

    Parameters
    ----------
    records : sequence of FrameRecord
        With ``quality`` measured.
    options : SelectOptions
        The limits.
    """
    live = [r for r in records if r.reason is None and r.quality is not None]
    figures = {
        "FWHM": (options.fwhm_limit, [r.quality.fwhm for r in live if r.quality], "px"),
        "ellipticity": (options.ellipticity_limit, [r.quality.ellipticity for r in live if r.quality], ""),
        "sky": (options.sky_limit, [r.quality.sky for r in live if r.quality], "ADU"),
    }
    scales = np.array([_scale(r, options) for r in live], float)
    for name, (text, values, unit) in figures.items():
        if text is None:
            continue
        limit = Limit.parse(text)
        keep = limit.keep(np.array(values, float), scale=scales if name == "FWHM" else None)
        for r, value, scale, good in zip(live, values, scales, keep, strict=True):
            if not good and r.reason is None:
                r.reason = _beyond(name, value, unit, limit, scale)
    if options.min_stars is not None:
        for r in live:
            if r.reason is None and r.quality and r.quality.n_stars < options.min_stars:
                r.reason = f"{r.quality.n_stars} stars, limit {options.min_stars}"


def _beyond(name: str, value: float, unit: str, limit: Limit, scale: float) -> str:
    if not np.isfinite(value):
        return f"{name} could not be measured"
    shown = f"{value * scale:.2f} arcsec" if limit.kind == "arcsec" else f"{value:.3g} {unit}".strip()
    return f"{name} {shown}, limit {limit}"


def _scale(record: FrameRecord, options: SelectOptions) -> float:
    if options.pixel_scale is not None:
        return options.pixel_scale
    scale = record.frame.pixel_scale if record.frame is not None else None
    return float("nan") if scale is None else float(scale)


def apply_transparency(records: Sequence[FrameRecord], options: SelectOptions) -> None:
    """Leave out frames whose stars are fainter than `options.min_transparency` times the brightest frame's."""
    live = [r for r in records if r.reason is None]
    if options.min_transparency is None or not live:
        return
    best = min(r.scale for r in live)
    for r in live:
        r_transparency = best / r.scale
        if r_transparency < options.min_transparency:
            r.reason = f"transparency {r_transparency:.2f}, limit {options.min_transparency:g}"


def choose_reference(records: Sequence[FrameRecord], name: str | None = None) -> FrameRecord:
    """The frame that the others are registered to.

    Parameters
    ----------
    records : sequence of FrameRecord
        Those still in are candidates.
    name : str, optional
        File name (or ``first``, ``last``) that the user asks for; by default the sharpest of those frames in the
        middle half of the set that show at least half as many stars as the richest.

    Returns
    -------
    FrameRecord
        The reference.

    Raises
    ------
    ValueError
        If `name` is not among the frames that are still in.
    """
    live = [r for r in records if r.reason is None]
    if name is not None:
        if name in ("first", "last"):
            return live[0 if name == "first" else -1]
        named = [r for r in live if name in (r.name, r.path.stem, str(r.path))]
        if named:
            return named[0]
        out = [r for r in records if name in (r.name, r.path.stem, str(r.path))]
        why = f"it was left out: {out[0].reason}" if out else "no such frame in the set"
        raise ValueError(f"reference {name!r} cannot be used: {why}")
    n = len(live)
    middle = live[n // 4 : n - n // 4] or live
    most = max((r.quality.n_stars for r in middle if r.quality), default=0)
    rich = [r for r in middle if r.quality and 2 * r.quality.n_stars >= most] or middle

    def score(r: FrameRecord) -> float:
        quality = r.quality
        if quality is None or not np.isfinite(quality.fwhm):
            return float("inf")
        return quality.fwhm * (1 + quality.ellipticity) * math.sqrt(max(quality.noise, 1e-9))

    return min(rich, key=score)


WEIGHTS = ("equal", "variance", "exposure", "depth")


def weigh(records: Sequence[FrameRecord], how: str, table: str | None = None) -> None:
    """Set the weight of each frame that is in, relative to the mean.

    Parameters
    ----------
    records : sequence of FrameRecord
        With scale and quality.
    how : str
        ``equal``; ``variance``: 1 / (s sigma)^2 of the sky; ``exposure``; ``depth``: 1 / (s sigma FWHM)^2, best for
        point sources; or a column of `table`.
    table : str, optional
        File with a column of file names (``name`` or ``file``) and the column `how`.

    Raises
    ------
    ValueError
        If a weight is missing, negative or not finite.
    """
    live = [r for r in records if r.reason is None]
    for r, w in zip(live, _weights(live, how, table), strict=True):
        r.weight = float(w)


def _weights(live: Sequence[FrameRecord], how: str, table: str | None = None) -> Array:
    """Weights of mean 1."""
    if table is not None:
        weights = _weights_from_table(live, how, table)
    elif how == "equal":
        weights = np.ones(len(live))
    elif how == "variance":
        weights = np.array([1 / (r.scale * r.quality.noise) ** 2 if r.quality else np.nan for r in live])
    elif how == "depth":
        weights = np.array(
            [1 / (r.scale * r.quality.noise * r.quality.fwhm) ** 2 if r.quality else np.nan for r in live]
        )
    elif how == "exposure":
        weights = np.array([r.frame.exposure or np.nan if r.frame is not None else np.nan for r in live], float)
    else:
        raise ValueError(f"weights {how!r}: choose {', '.join(WEIGHTS)}, or a column of --weight-table")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        bad = next((r.name for r, w in zip(live, weights, strict=True) if not (np.isfinite(w) and w >= 0)), "all")
        raise ValueError(f"weights {how!r}: no usable weight for {bad}")
    return np.asarray(weights / weights.mean())


@dataclass(frozen=True, slots=True)
class Depth:
    """What a choice of weights gives; see `predict_depth`."""

    weights: str
    noise: float  #: standard deviation of the sky per pixel, without the smoothing of a kernel, ADU of the reference
    area: float  #: noise-equivalent area of the stack's PSF, pixel
    limit: float  #: flux of a point source of 5 sigma, ADU of the reference


def predict_depth(records: Sequence[FrameRecord], how: str, table: str | None = None) -> Depth:
    """Predict the depth of a stack.

    Parameters
    ----------
    records : sequence of FrameRecord
        With scale and quality.
    how, table : str
        Weights; see `weigh`.

    Returns
    -------
    Depth
        Where all frames cover the sky.

    Raises
    ------
    ValueError
        If a weight is missing, or a frame has no measured PSF.

    Notes
    -----
    Sources fainter than the sky through the best filter, the PSF P itself: ``limit = 5 sigma sqrt(A)`` with
    ``1/A = sum(P^2)`` (King 1983, PASP 95, 163), ``sigma^2 = sum(w^2 s^2 sigma_i^2) / (sum w)^2`` and P the weighted
    mean of the frames' profiles, the pixel's response included. Neither the frames' magnification nor the
    kernel matter.
    """
    live = [r for r in records if r.reason is None]
    weights = _weights(live, how, table)
    part = weights / weights.sum()
    noise = np.array([r.scale * r.quality.noise if r.quality else np.nan for r in live])
    psfs = [r.quality.psf if r.quality else PSF(fwhm=np.nan) for r in live]
    for r, psf, sky in zip(live, psfs, noise, strict=True):
        if not np.isfinite(psf.fwhm * psf.beta * sky):
            raise ValueError(f"no depth can be predicted: {r.name} has no measured PSF")
    sigma = float(np.sqrt(np.sum((part * noise) ** 2)))
    area = noise_area(psfs, part)
    return Depth(weights=how, noise=sigma, area=area, limit=5 * sigma * math.sqrt(area))


def noise_area(psfs: Sequence[PSF], share: ArrayLike = 1.0) -> float:
    """Noise-equivalent area of a mean of profiles.

    Parameters
    ----------
    psfs : sequence of PSF
        They are taken for round.
    share : (n,) array_like
        Of each profile in the mean; together 1.

    Returns
    -------
    float
        ``(sum P)^2 / sum(P^2)``, square pixel; ``pi alpha^2 (2 beta - 1) / (beta - 1)^2`` for a single Moffat profile.
    """
    step = 0.05  # of ln(radius): good to 3e-7
    radius = max(p.fwhm for p in psfs) * np.exp(np.arange(-7, 5, step))
    parts = np.broadcast_to(np.asarray(share, float), len(psfs))
    profile = sum(part * p.profile(radius) for part, p in zip(parts, psfs, strict=True))
    return float(1 / np.sum(profile**2 * 2 * np.pi * radius**2 * step))


def _weights_from_table(live: Sequence[FrameRecord], column: str, path: str) -> Array:
    from astropy.table import Table

    table = Table.read(path)
    names = next((c for c in ("name", "file", "FILE", "NAME") if c in table.colnames), None)
    if names is None or column not in table.colnames:
        raise ValueError(f"{path}: needs the columns 'name' and {column!r}; it has {table.colnames}")
    values = {str(row[names]).strip(): float(row[column]) for row in table}
    return np.array([values.get(r.name, float("nan")) for r in live])


@dataclass(frozen=True, slots=True)
class LimitRow:
    """What a FWHM limit would give; see `limit_table`."""

    fwhm_limit: float  #: pixel
    frames: int
    fwhm: float  #: of their mean, pixel
    depth: float  #: gain in point-source depth against all frames, magnitude


def limit_table(records: Sequence[FrameRecord], steps: int = 8) -> list[LimitRow]:
    """How depth and seeing change with the FWHM limit.

    Parameters
    ----------
    records : sequence of FrameRecord
        Those with a measured FWHM count, whatever the limits said of them.
    steps : int
        Number of limits, at quantiles of the FWHM.

    Returns
    -------
    list of LimitRow
        From the strictest limit to all frames. Depth is that of an equal-weight average on a noise-limited sky:
        noise per frame sigma, area of the mean PSF ~ FWHM^2.
    """
    known = sorted((r.quality.fwhm, r.quality.noise) for r in records if r.quality and np.isfinite(r.quality.fwhm))
    if not known:
        return []
    fwhm, noise = (np.array(column) for column in zip(*known, strict=True))

    def depth(n: int) -> float:
        return -2.5 * math.log10(float(np.sqrt(np.sum(noise[:n] ** 2)) / n * np.sqrt(np.mean(fwhm[:n] ** 2))))

    counts = sorted({max(1, round(len(fwhm) * (k + 1) / steps)) for k in range(steps)})
    whole = depth(len(fwhm))
    return [
        LimitRow(float(np.nextafter(fwhm[n - 1], np.inf)), n, float(np.sqrt(np.mean(fwhm[:n] ** 2))), depth(n) - whole)
        for n in counts
    ]
