"""How much stars scatter between registered frames of a camera whose gain nobody knows, so that errors tell it.

The background's noise says nothing of a bright star's then; the star's own scatter, frame by frame, does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastack.calibrate import Calibration
from fastack.errors import StackError
from fastack.types import PSF, Array, FloatImage, FrameRecord, StarFlag

_MOST_FRAMES = 150  # whose stars are summed
_MOST_SIDE = 4096  # of the part of a frame that is read, pixel
_LEAST_FRAMES = 5
_LEAST_STARS = 30
_SNR = 20.0  # of stars in the reference
_SUM = 1.5  # radius of the aperture, FWHM
_RING = (3.5, 6.0)  # radii of the sky around it
_SEEN = 0.7  # part of the frames in which a star must be whole
_OUTLIER = 4.0  # sigmas
_STRIPS = 8  # of a pixel at the rim of an aperture
_GROUPS = 20  # of stars, each left out in turn
_USELESS = StarFlag.SATURATED | StarFlag.EDGE | StarFlag.NO_FIT | StarFlag.SHARP | StarFlag.EXTENDED | StarFlag.BLENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class StarScatter:
    """Relative variance of a star of flux F from frame to frame: ``slope / F + floor^2``, beside the sky's.

    The slope is the photon noise's, 1 / gain, and whatever else scatters so: it tells errors, not the gain.
    """

    slope: float  #: ADU
    slope_err: float
    floor: float  #: of a bright star: response of the pixels, clouds, focus; relative
    floor_err: float
    stars: int
    frames: int

    def text(self) -> str:
        """One sentence for notes."""
        photons = f", faint ones as photons at {1 / self.slope:.3g} e-/adu would" if self.slope > 0 else ""
        return (
            f"stars scatter by {100 * self.floor:.2g} % from frame to frame{photons}: UNCERT counts it"
            f" ({self.stars} stars, {self.frames} frames)"
        )


def fit_scatter(flux: Array, noise: Array, xy: Array) -> StarScatter:
    """Scatter of stars, and how it falls with their flux, from fluxes of the same stars in many frames.

    Parameters
    ----------
    flux : (n, m) ndarray, ADU
        Of m stars in n frames, nearly on one scale; NaN is missing.
    noise : (n, m) ndarray, ADU
        Error of each by the noise of the sky alone.
    xy : (m, 2) ndarray, pixel
        Places of the stars in one frame.

    Returns
    -------
    StarScatter
        Per unit of `flux`.

    Raises
    ------
    StackError
        With fewer than 5 frames or 30 stars.

    Notes
    -----
    Photon transfer (Janesick 2007, Photon Transfer, chapter 5) with the light of stars in place of a lamp's: each frame
    is freed of a quadratic trend over the field, which transparency and seeing make; the variance of what is left,
    star by star without outliers, is ``a / F + b + c s^2 / F^2``, with the noise s of the sky and none of the three
    negative (Lawson & Hanson 1974). Errors are those of leaving out a twentieth of the stars in turn.
    """
    seen = np.isfinite(flux) & (flux > 0)
    whole = seen.sum(axis=0) >= max(_SEEN * len(flux), 3)
    flux, noise, seen = flux[:, whole], noise[:, whole], seen[:, whole]
    n, m = flux.shape
    _require(m, n)
    flux = np.where(seen, flux, np.nan)
    mean = np.nanmedian(flux, axis=0)
    sky = np.nanmean(np.where(seen, noise, np.nan) ** 2, axis=0) / mean**2
    place = (xy[whole] - xy[whole].mean(axis=0)) / np.maximum(xy[whole].std(axis=0), 1.0)
    x, y = place.T
    trend = np.column_stack([np.ones(m), x, y, x * x, x * y, y * y])
    ratio = np.log(flux / mean)
    model = sky + 1e-4
    for _ in range(3):
        left = _without_trend(ratio, trend, 1 / np.sqrt(model))
        variance = _variance(left) / (1 - _leverage(trend, 1 / np.sqrt(model)))
        model = _model(_fit(mean, sky, variance), mean, sky)
    found = _fit(mean, sky, variance)
    group = np.argsort(np.argsort(mean, kind="stable")) % _GROUPS  # each of all brightnesses
    some = np.array([_fit(mean[group != k], sky[group != k], variance[group != k]) for k in range(_GROUPS)])
    error = np.sqrt((_GROUPS - 1) / _GROUPS * ((some - some.mean(axis=0)) ** 2).sum(axis=0))
    floor = float(np.sqrt(found[1]))
    return StarScatter(
        slope=float(found[0]),
        slope_err=float(error[0]),
        floor=floor,
        floor_err=float(error[1] / (2 * floor)) if floor > 0 else float(np.sqrt(error[1])),
        stars=m,
        frames=n,
    )


def _require(stars: int, frames: int) -> None:
    if stars < _LEAST_STARS or frames < _LEAST_FRAMES:
        raise StackError(
            f"{stars} stars in {frames} frames are too few: {_LEAST_STARS} in {_LEAST_FRAMES} tell something"
        )


def _without_trend(ratio: Array, trend: Array, weight: Array) -> Array:
    """What a weighted quadratic over the field, fitted to each frame without outliers, leaves."""
    out = np.empty_like(ratio)
    for k, row in enumerate(ratio):
        good = np.isfinite(row)
        for _ in range(4):
            fit = np.linalg.lstsq(trend[good] * weight[good, None], (row * weight)[good], rcond=None)[0]
            out[k] = row - trend @ fit
            good = np.abs(out[k] * weight) < 4
    return out


def _leverage(trend: Array, weight: Array) -> Array:
    """Part of its own scatter that each star has in the trend."""
    basis = np.linalg.qr(trend * weight[:, None])[0]
    return np.asarray((basis**2).sum(axis=1))


def _variance(left: Array) -> Array:
    """Variance of each column without outliers."""
    middle = np.nanmedian(left, axis=0)
    sigma = 1.4826 * np.nanmedian(np.abs(left - middle), axis=0)
    good = np.abs(left - middle) < _OUTLIER * np.maximum(sigma, 1e-12)
    return np.asarray(np.nanvar(np.where(good, left, np.nan), axis=0, ddof=1))


def _model(terms: Array, flux: Array, sky: Array) -> Array:
    return np.asarray(np.maximum(terms[0] / flux + terms[1] + terms[2] * sky, 1e-12))


def _fit(flux: Array, sky: Array, variance: Array) -> Array:
    """The terms of the variance, each point having the same relative error."""
    from scipy.optimize import nnls

    design = np.column_stack([1 / flux, np.ones_like(flux), sky])
    terms, good = np.zeros(3), np.isfinite(variance) & (variance > 0)
    model = np.where(good, variance, 1.0)
    for _ in range(12):
        terms = nnls(design[good] / model[good, None], variance[good] / model[good])[0]
        model = _model(terms, flux, sky)
        with np.errstate(invalid="ignore", divide="ignore"):
            pull = np.log(variance / model)
        some = pull[good]
        middle = np.median(some)
        spread = 1.4826 * np.median(np.abs(some - middle))
        good = np.isfinite(pull) & (np.abs(pull - middle) <= _OUTLIER * max(spread, 1e-6))
    return np.asarray(terms)


# Fluxes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StarSums:
    """The stars whose light is summed in every frame."""

    xy: Array  #: (m, 2) in pixels of the reference
    radius: float  #: of the aperture, pixel
    ring: tuple[float, float]  #: of the sky around it
    calibration: Calibration

    @classmethod
    def of(cls, records: Sequence[FrameRecord], reference: FrameRecord, calibration: Calibration) -> StarSums:
        """Whole and single stars of the reference, well above the noise.

        Parameters
        ----------
        records : sequence of FrameRecord
            All frames; their median FWHM tells the aperture.
        reference : FrameRecord
            One of them.
        calibration : Calibration
            Of the run.

        Returns
        -------
        StarSums
            Apertures of 1.5 FWHM.

        Raises
        ------
        StackError
            If the width of the stars is not known.
        """
        assert reference.stars is not None
        widths = [r.quality.fwhm for r in records if r.quality and np.isfinite(r.quality.fwhm)]
        if not widths:
            raise StackError("the width of the stars is not known")
        fwhm = float(np.median(widths))
        stars = reference.stars
        good = ~stars.has(_USELESS) & (stars.snr > _SNR)
        return cls(
            xy=stars.xy[good],
            radius=max(_SUM * fwhm, 2.0),
            ring=(max(_RING[0] * fwhm, 5.0), max(_RING[1] * fwhm, 9.0)),
            calibration=calibration,
        )

    def of_frame(self, record: FrameRecord) -> tuple[Array, Array]:
        """Fluxes of the stars in one frame, neither resampled nor clipped, and the sky's part of their errors.

        Parameters
        ----------
        record : FrameRecord
            Registered, with its flux scale.

        Returns
        -------
        flux, noise : (m,) ndarray, ADU of the reference
            NaN where a pixel of the star is missing or saturated.
        """
        assert record.transform is not None and record.quality is not None
        (y0, y1), (x0, x1) = (
            (max(0, (n - _MOST_SIDE) // 2), min(n, (n + _MOST_SIDE) // 2)) for n in record.frame.shape
        )
        section = self.calibration.read(record.frame, (y0, y1, x0, x1), record.prepared)
        for bad in (section.saturated, record.artefacts):
            if bad is not None and len(bad):
                x, y = (bad[(bad >= [x0, y0]).all(axis=1) & (bad < [x1, y1]).all(axis=1)] - [x0, y0]).T
                section.pixels[y, x] = np.nan
        flux, area = _sums(section.pixels, record.transform(self.xy) - [x0, y0], self.radius, self.ring)
        return record.scale * flux, record.scale * record.quality.noise * np.sqrt(area)


def star_scatter(
    records: Sequence[FrameRecord],
    reference: FrameRecord,
    calibration: Calibration,
    mapped: Callable[[Callable[[FrameRecord], Any], Sequence[FrameRecord]], Iterable[Any]] = map,
) -> StarScatter:
    """Scatter of the stars that frames have in common, from sums in apertures.

    Parameters
    ----------
    records : sequence of FrameRecord
        Registered frames with their flux scales; of many, 150 spread evenly over them are read.
    reference : FrameRecord
        One of them, whose stars are looked at.
    calibration : Calibration
        Of the run.
    mapped : callable
        Maps a function over frames, as `Executor.map` does.

    Returns
    -------
    StarScatter
        Per ADU of the reference.

    Raises
    ------
    FrameError
        If a file cannot be read.
    StackError
        With too few stars or frames; see `fit_scatter`.
    """
    sums = StarSums.of(records, reference, calibration)
    _require(len(sums.xy), len(records))
    n = min(len(records), _MOST_FRAMES)
    some = [records[k] for k in np.unique(np.linspace(0, len(records) - 1, n).round().astype(int))]
    flux, noise = (np.array(values) for values in zip(*mapped(sums.of_frame, some), strict=True))
    return fit_scatter(flux, noise, sums.xy)


def _sums(image: FloatImage, at: Array, radius: float, ring: tuple[float, float]) -> tuple[Array, Array]:
    """Light in apertures above the sky around them, and the variance of the sum for a pixel's noise of 1."""
    ny, nx = image.shape
    reach = int(np.ceil(ring[1])) + 1
    centre = np.rint(at).astype(np.int64)
    inside = ((centre >= reach) & (centre < np.array([nx, ny]) - reach)).all(axis=1)
    flux, area = np.full((2, len(at)), np.nan)
    x, y = centre[inside].T
    around = _offsets(ring[1], ring[0])
    sky, left = _middle_mean(image[y[:, None] + around[:, 1], x[:, None] + around[:, 0]])
    core = _offsets(radius + 1.5)
    pixels = image[y[:, None] + core[:, 1], x[:, None] + core[:, 0]].astype(float)
    part = _covered(core[None, :, :] - (at[inside] - centre[inside])[:, None, :], radius)
    light = np.where(part > 0, pixels - sky[:, None], 0.0)
    flux[inside] = (part * light).sum(axis=1)
    area[inside] = (part**2).sum(axis=1) + part.sum(axis=1) ** 2 / np.maximum(left, 1)
    return flux, area


def _offsets(outer: float, inner: float = -1.0) -> NDArray[np.int64]:
    """(k, 2) whole pixels (x, y) between two distances from one."""
    reach = int(np.ceil(outer))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    r2 = x * x + y * y
    return np.argwhere((r2 <= outer**2) & (r2 > inner * abs(inner)))[:, ::-1] - reach


def _covered(distance: Array, radius: float) -> Array:
    """Part of each pixel within the radius, from (..., 2) offsets of its centre: exact along x, in strips along y."""
    x, y = distance[..., 0], distance[..., 1]
    part = np.zeros(x.shape)
    for strip in (np.arange(_STRIPS) + 0.5) / _STRIPS - 0.5:
        half = np.sqrt(np.maximum(radius**2 - (y + strip) ** 2, 0.0))
        part += np.clip(np.minimum(x + 0.5, half) - np.maximum(x - 0.5, -half), 0.0, 1.0)
    return part / _STRIPS


def _middle_mean(values: FloatImage) -> tuple[Array, NDArray[np.int64]]:
    """Mean of the middle half of each row, which whole numbers do not coarsen as a median, and how many it has."""
    ordered = np.sort(values, axis=1).astype(float)
    count = np.isfinite(ordered).sum(axis=1)
    total = np.concatenate([np.zeros((len(ordered), 1)), np.nancumsum(ordered, axis=1)], axis=1)
    first, last, row = count // 4, count - count // 4, np.arange(len(ordered))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[row, last] - total[row, first]) / (last - first), count


def pixel_response(floor: float, psf: PSF) -> float:
    """Relative scatter of the pixels' response that makes stars scatter by so much.

    Parameters
    ----------
    floor : float
        Scatter of stars, relative.
    psf : PSF
        Of the frames.

    Returns
    -------
    float
        ``floor / sqrt(sum(p^2))``, p the light that each pixel has of a star's; mean over places of its centre.
    """
    reach = int(np.ceil(4 * psf.fwhm))
    line = np.arange(-reach, reach + 1)
    squares = []
    for dx, dy in ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.25, 0.25)):
        light = psf.profile(np.hypot(line[None, :] - dx, line[:, None] - dy))
        squares.append(float((light**2).sum() / light.sum() ** 2))
    return floor / float(np.sqrt(np.mean(squares)))
