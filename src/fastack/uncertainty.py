"""Errors of what is measured on a stack: correlated noise, and the noise that frames share through their masters.

UNCERT holds the error of each pixel. Resampling spreads a frame's noise over neighbouring pixels, so the error of a sum
over an aperture is larger than that of its pixels taken as independent, by the factor NOISCORR. It is computed
from the transforms and the kernel; nothing is measured on the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastack.errors import StackError
from fastack.options import CombineOptions, Kernel, ResampleOptions
from fastack.types import Array, FloatImage, Transform

if TYPE_CHECKING:
    from astropy.io import fits

#: Aperture radii at which the header tells NOISCORR, pixel; the card NOISCORR itself is for large ones.
RADII = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)

_REACH = {"nearest": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos2": 2.0, "lanczos3": 3.0, "lanczos4": 4.0}
_STEPS = 64  # of a pixel, in the tables of the kernels' overlaps
_POINTS = 2048  # output pixels, of all frames together, that stand for the whole grid
_MIN_POINTS = 16  # of one frame
_TOGETHER = 64  # frames whose points are looked at in one go
_GOLDEN = (0.7548776662466927, 0.5698402909980532)  # Roberts' sequence: evenly spread points in the square
_SUBPIXELS = 16  # per axis, where an aperture cuts a pixel
_MASTER_PLACES = 1 << 13  # places of the output times frames, where the masters' noise is followed
_MASTER_CELL = 32  # pixels of a master behind one value of its variance
_CENTRES = ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.25, 0.25))  # of apertures, against pixels


# ---- correlated noise


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NoiseCorrelation:
    """Factors by which the true error of an aperture's sum exceeds the one that UNCERT gives."""

    radius: Array  #: (n,) of the aperture, pixel, rising; the last one infinite
    squared: Array  #: (n,) to ``sqrt(sum(m^2 UNCERT^2))``, m the part of a pixel inside: independent pixels
    proportional: Array  #: (n,) to ``sqrt(sum(m UNCERT^2))``, which photutils and SExtractor compute
    star_squared: Array  #: (n,) as `squared`, for the light of a star in the middle of the aperture
    star_proportional: Array  #: (n,) as `proportional`

    def at(self, radius: ArrayLike, *, squared: bool = False, star: bool = False) -> Array:
        """Factor for any radius, interpolated in 1/radius.

        Parameters
        ----------
        radius : array_like
            Of circular apertures, pixel, at least 1.
        squared : bool
            Partial pixels count squared in the sum of variances, not in proportion.
        star : bool
            For the photon noise of a star in the middle, not for that of the sky.

        Returns
        -------
        ndarray
            Of the shape of `radius`.
        """
        inverse = 1 / np.maximum(np.asarray(radius, float), self.radius[0])
        sky, light = (self.squared, self.star_squared) if squared else (self.proportional, self.star_proportional)
        values = light if star else sky
        return np.asarray(np.interp(inverse, 1 / self.radius[::-1], values[::-1]))

    def cards(self) -> list[tuple[str, Any, str]]:
        """Header cards: NOISCORR for large apertures; NCRADn, NCSUMn and NCVALn for each radius."""
        out: list[tuple[str, Any, str]] = [
            ("NOISCORR", round(float(self.squared[-1]), 4), "true error / error by UNCERT, large apertures")
        ]
        for k, r in enumerate(self.radius[:-1]):
            out.append((f"NCRAD{k + 1}", float(r), "[pixel] radius of an aperture"))
            for name, what, text in _CARDS:
                out.append((f"{name}{k + 1}", round(float(getattr(self, what)[k]), 4), text))
        return out

    @classmethod
    def read(cls, header: fits.Header) -> NoiseCorrelation:
        """Read the factors back from the header of a stack.

        Parameters
        ----------
        header : astropy.io.fits.Header
            Of the primary HDU.

        Returns
        -------
        NoiseCorrelation
            As it was written.

        Raises
        ------
        StackError
            If the header has no such cards.
        """
        if "NOISCORR" not in header:
            raise StackError("the header has no NOISCORR card: stack the frames again with this version of fastack")
        n = next(k for k in range(1, 1000) if f"NCRAD{k}" not in header)
        far = float(header["NOISCORR"])

        def column(name: str, last: float) -> Array:
            return np.array([*(float(header.get(f"{name}{k}", far)) for k in range(1, n)), last])

        return cls(radius=column("NCRAD", np.inf), **{what: column(name, far) for name, what, _ in _CARDS})


#: Cards of `NoiseCorrelation`, one for each radius: keyword, field, comment.
_CARDS = (
    ("NCSUM", "proportional", "NOISCORR there, partial pixels in proportion"),
    ("NCVAL", "squared", "NOISCORR there, partial pixels squared"),
    ("NCSTS", "star_proportional", "for photons of a star, in proportion"),
    ("NCSTV", "star_squared", "for photons of a star, squared"),
)


def noise_covariance(
    transform: Transform,
    shape: tuple[int, int],
    options: ResampleOptions = ResampleOptions(),
    *,
    points: int = _POINTS,
) -> Array:
    """Covariance of an output pixel's noise with its neighbours', averaged over a resampled frame.

    Parameters
    ----------
    transform : Transform
        Output pixels to frame pixels; rotation and scale count.
    shape : tuple of int
        (ny, nx) of the output grid.
    options : ResampleOptions
        The kernel.
    points : int
        Pixels of the grid that are averaged.

    Returns
    -------
    (2 m + 1, 2 m + 1) ndarray
        For lags of -m to m output pixels in y and x, white noise of variance 1 at the input, without the Jacobian;
        the middle is the mean of sum(k^2). For m large enough nothing is left outside.

    Notes
    -----
    ``C(d) = <sum_j k(j - u) k(j - u - J d)>`` over output pixels that fall on u in the frame, J being the Jacobian
    there: kernels are separable, so it is a product of overlaps along x and y, which stand in a table by the phase of
    u and by J d.
    """
    return np.asarray(_covariances([transform], shape, options, points)[0])


def _covariances(
    transforms: Sequence[Transform], shape: tuple[int, int], options: ResampleOptions, points: int
) -> Array:
    """`noise_covariance` of frames whose kernel is the same, together, with zeros around those of less reach."""
    k = np.arange(points) + 0.5
    ny, nx = shape
    xy = np.round(np.stack([np.modf(k * g)[0] for g in _GOLDEN], axis=1) * [nx, ny] - 0.5)
    at, right, up = (
        np.array([t(xy + np.array(step)) for t in transforms]) for step in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    right, up = right - at, up - at
    table, reach = _overlaps(options.kernel, _width(transforms[0], options))
    m = int(np.ceil(reach / min(1.0, *(t.magnification for t in transforms)) + 1e-9))
    lag_y, lag_x = np.mgrid[: m + 1, -m : m + 1]  # the other half is the same by symmetry
    step = [
        np.rint(_STEPS * (lag_x[..., None] * right[:, None, None, :, i] + lag_y[..., None] * up[:, None, None, :, i]))
        for i in (0, 1)
    ]
    phase = np.rint(_STEPS * (at - np.floor(at))).astype(int) % _STEPS
    middle, size = table.shape[1] // 2, table.shape[1]
    part = [table[phase[:, None, None, :, i], np.clip(step[i] + middle, 0, size - 1).astype(np.int32)] for i in (0, 1)]
    upper = (part[0] * part[1]).mean(axis=-1)
    return np.concatenate([upper[:, :0:-1, ::-1], upper], axis=1)


def _width(transform: Transform, options: ResampleOptions) -> float:
    """Output pixels in frame pixels, where the kernel goes with them."""
    return round(transform.magnification, 2) if options.kernel == "area" else 1.0


@lru_cache(maxsize=16)
def _overlaps(kernel: Kernel, width: float) -> tuple[Array, float]:
    """Overlap ``sum_j k(j - u) k(j - u - d)`` by the phase of u and by d in 1/64 pixel; 0 from `reach` on."""
    half = 0.5 * (width + 1) if kernel == "area" else _REACH[kernel]
    reach = 2 * half
    most = int(np.ceil(reach)) * _STEPS + 1
    d = np.arange(-most, most + 1)
    pixel = np.arange(-int(np.ceil(half)) - 1, int(np.ceil(half)) + 3)
    # all distances are multiples of a step: the kernel is computed once for each
    at = _STEPS * pixel - np.arange(_STEPS)[:, None]
    last = int(np.abs(at).max()) + most
    values = _kernel(kernel, np.arange(-last, last + 1) / _STEPS, width)
    first, second = values[at + last], values[at[:, None] - d[:, None] + last]
    weight = first.sum(axis=1)  # of all taps, by the phase
    table = np.einsum("pj,pdj->pd", first, second)
    table /= weight[:, None] * weight[(np.arange(_STEPS)[:, None] + d) % _STEPS]
    table[:, [0, -1]] = 0.0
    table.setflags(write=False)
    return table, reach


def _kernel(kernel: Kernel, x: Array, width: float) -> Array:
    """Kernel at distances x along one axis."""
    a = np.abs(x)
    if kernel == "nearest":
        return ((x > -0.5) & (x <= 0.5)).astype(float)
    if kernel == "bilinear":
        return np.asarray(np.maximum(1 - a, 0.0))
    if kernel == "bicubic":
        near, far = (1.5 * a - 2.5) * a**2 + 1, ((-0.5 * a + 2.5) * a - 4) * a + 2
        return np.where(a < 1, near, np.where(a < 2, far, 0.0))
    if kernel == "area":
        return np.asarray(np.clip(0.5 * (width + 1) - a, 0.0, min(1.0, width)))
    r = _REACH[kernel]
    return np.where(a < r, np.sinc(a) * np.sinc(a / r), 0.0)


def noise_correlation(
    transforms: Sequence[Transform],
    shape: tuple[int, int],
    variance: ArrayLike | None = None,
    options: ResampleOptions = ResampleOptions(),
    *,
    combine: CombineOptions = CombineOptions(),
    radii: Sequence[float] = RADII,
    fwhm: float | None = None,
) -> NoiseCorrelation:
    """NOISCORR of a stack.

    Parameters
    ----------
    transforms : sequence of Transform
        Output pixels to the pixels of each frame.
    shape : tuple of int
        (ny, nx) of the output grid.
    variance : (n,) array_like, optional
        What each frame adds to the variance of the stack, ``w^2 s^2 a^2 V``, in any unit; equal by default.
    options : ResampleOptions
        The kernel.
    combine : CombineOptions
        Mean or median: medians of three and more samples correlate less, by ``2/pi asin(rho)``.
    radii : sequence of float
        Of circular apertures, pixel.
    fwhm : float, optional
        Of the stars, pixel of the output; without it, all light of a star counts as far inside the aperture.

    Returns
    -------
    NoiseCorrelation
        For `radii` and for an infinite one, where the factor is ``sqrt(sum(C) / C(0))``.

    Notes
    -----
    The variance of a sum over an aperture m is ``sum_d A(d) C(d)``, C being the stack's covariance and A(d) the sum
    of m(p) m(p + d). For the photons of a star, m is m sqrt(P) with P a Moffat profile of exponent 3. It holds
    where all frames have pixels, and averages over the grid: with few frames that are
    turned against each other, the phases and with them the errors of single apertures vary around it.
    """
    share = np.ones(len(transforms)) if variance is None else np.asarray(variance, float)
    share = np.where(np.isfinite(share) & (share > 0), share, 0.0)
    if not share.any():
        share = np.ones(len(transforms))
    points = max(_MIN_POINTS, _POINTS // len(transforms))
    alike: dict[float, list[int]] = {}
    for k, t in enumerate(transforms):
        alike.setdefault(_width(t, options), []).append(k)
    some = [group[k : k + _TOGETHER] for group in alike.values() for k in range(0, len(group), _TOGETHER)]
    parts = [np.tensordot(share[k], _covariances([transforms[i] for i in k], shape, options, points), 1) for k in some]
    m = max(len(part) for part in parts) // 2
    total = np.zeros((2 * m + 1, 2 * m + 1))
    for part in parts:
        r = len(part) // 2
        total[m - r : m + r + 1, m - r : m + r + 1] += part
    rho = total / total[m, m]
    if combine.combine == "median" and len(transforms) > 2:
        rho = 2 / np.pi * np.arcsin(np.clip(rho, -1, 1))
    far = np.sqrt(max(rho.sum(), 0.0))
    sums = np.zeros((len(radii), 2, 3))  # of sky and star: m m rho, m^2, m
    for k, radius in enumerate(radii):
        for centre in _CENTRES:
            part = _aperture(float(radius), centre)
            light = np.ones_like(part) if fwhm is None else _profile(len(part), centre, fwhm)
            for j, weight in enumerate((np.ones_like(part), light)):
                correlated = float((_lags(part * np.sqrt(weight), m) * rho).sum())
                sums[k, j] += [correlated, float((part**2 * weight).sum()), float((part * weight).sum())]
    with_squares, with_parts = (np.sqrt(sums[:, :, 0] / sums[:, :, k]) for k in (1, 2))
    inside = np.full(len(radii), far)
    return NoiseCorrelation(
        radius=np.array([*radii, np.inf]),
        squared=np.array([*with_squares[:, 0], far]),
        proportional=np.array([*with_parts[:, 0], far]),
        star_squared=np.array([*(inside if fwhm is None else with_squares[:, 1]), far]),
        star_proportional=np.array([*(inside if fwhm is None else with_parts[:, 1]), far]),
    )


def _profile(size: int, centre: tuple[float, float], fwhm: float) -> Array:
    """Moffat profile of exponent 3 about the centre of an aperture."""
    at = np.arange(size) - size // 2
    r2 = (at - centre[0]) ** 2 + (at[:, None] - centre[1]) ** 2
    return np.asarray((1 + r2 * (2 ** (1 / 3) - 1) / (fwhm / 2) ** 2) ** -3)


@lru_cache(maxsize=64)
def _aperture(radius: float, centre: tuple[float, float]) -> Array:
    """Part of each pixel inside a circle."""
    half = int(np.ceil(radius)) + 1
    fine = (np.arange((2 * half + 1) * _SUBPIXELS) + 0.5) / _SUBPIXELS - half - 0.5
    inside = (fine - centre[0]) ** 2 + (fine[:, None] - centre[1]) ** 2 < radius**2
    n = 2 * half + 1
    return np.asarray(inside.reshape(n, _SUBPIXELS, n, _SUBPIXELS).mean(axis=(1, 3)))


def _lags(aperture: Array, m: int) -> Array:
    """Autocorrelation of an aperture for lags of -m to m."""
    size = len(aperture) + m  # room for the longest lag: nothing comes round
    spectrum = np.fft.rfft2(aperture, (size, size))
    lags = np.fft.irfft2(np.abs(spectrum) ** 2, (size, size))
    at = np.arange(-m, m + 1)
    return np.asarray(lags[np.ix_(at, at)])


def aperture_error(
    sigma: ArrayLike,
    background_variance: ArrayLike,
    correlation: NoiseCorrelation,
    radius: float,
    *,
    squared: bool = False,
) -> Array:
    """Error image whose sum over an aperture is right on blank sky and on stars.

    Parameters
    ----------
    sigma : (ny, nx) array_like
        The plane UNCERT.
    background_variance : (ny, nx) array_like
        ``1 / WEIGHT``.
    correlation : NoiseCorrelation
        Of the stack.
    radius : float
        Of the apertures, pixel.
    squared : bool
        See `NoiseCorrelation.at`.

    Returns
    -------
    (ny, nx) ndarray
        ``sqrt(N(r)^2 / WEIGHT + S(r)^2 (UNCERT^2 - 1 / WEIGHT))``: noise of the sky is cut by the rim of the aperture
        and takes the factor N(r) of its radius; a star's own lies inside of it and takes S(r), that of the star.
    """
    sky = np.asarray(background_variance, float)
    own = np.asarray(sigma, float) ** 2 - sky  # below 0 where noise is: cut there, it would be so much too large
    inside = correlation.at(radius, squared=squared, star=True)
    total = sky * correlation.at(radius, squared=squared) ** 2 + own * inside**2
    return np.asarray(np.sqrt(np.maximum(total, 0.0)))


# ---- noise that frames share through their masters


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MasterNoise:
    """What the masters' noise adds to the variance of a stack; see `master_noise`."""

    coefficients: FloatImage  #: (3, gy, gx) of 1, D and D^2 in the middles of gy x gx parts of the output
    shape: tuple[int, int]  #: (ny, nx) of the output

    def __add__(self, other: MasterNoise) -> MasterNoise:
        return MasterNoise(coefficients=self.coefficients + other.coefficients, shape=self.shape)

    def variance(self, excess: FloatImage, tile: tuple[int, int, int, int]) -> tuple[FloatImage, FloatImage]:
        """Variance to be added in a tile; does not depend on how the output is tiled.

        Parameters
        ----------
        excess : (h, w) float32 ndarray
            Light D above the sky, ADU of the output.
        tile : tuple of int
            (y0, y1, x0, x1) in the output.

        Returns
        -------
        total, background : (h, w) float32 ndarray
            With that light and without it.
        """
        _, gy, gx = self.coefficients.shape
        y, fy = _between(np.arange(tile[0], tile[1]), self.shape[0], gy)
        x, fx = _between(np.arange(tile[2], tile[3]), self.shape[1], gx)
        rows = self.coefficients[:, y] * (1 - fy[:, None]) + self.coefficients[:, y + 1] * fy[:, None]
        none, first, second = rows[:, :, x] * (1 - fx) + rows[:, :, x + 1] * fx
        light = np.maximum(excess, np.float32(0))
        return none + light * (first + light * second), none


def _between(pixel: NDArray[Any], size: int, parts: int) -> tuple[NDArray[np.int64], FloatImage]:
    """Index of the part before each pixel and the way to the next one, 0 to 1."""
    at = np.clip((pixel + 0.5) * parts / size - 0.5, 0, parts - 1)
    index = np.minimum(at.astype(int), parts - 2)
    return index, np.asarray(at - index, np.float32)


def master_noise(
    transforms: Sequence[Transform],
    shape: tuple[int, int],
    *,
    additive: FloatImage | None,
    relative: FloatImage | None,
    weight: ArrayLike,
    scale: ArrayLike,
    level: ArrayLike,
    options: ResampleOptions = ResampleOptions(),
    shared: bool = True,
) -> MasterNoise:
    """Variance that frames share through their masters.

    Parameters
    ----------
    transforms : sequence of Transform
        Output pixels to the pixels of each frame.
    shape : tuple of int
        (ny, nx) of the output grid.
    additive : (h, w) ndarray, optional
        Variance of what is subtracted from the pixels of the frames (bias, dark), after the flat, ADU^2.
    relative : (h, w) ndarray, optional
        Relative variance of the flat.
    weight, scale, level : (n,) array_like
        Of the frames: weight w, flux scale s and sky b, ADU.
    options : ResampleOptions
        The kernel.
    shared : bool
        False: a pixel errs anew in each frame.

    Returns
    -------
    MasterNoise
        What is missing in a stack's variance.

    Notes
    -----
    A pixel j of the detector enters the output pixel p with ``c_j = sum_i w_i s_i a_i k_i(j, p)``, so that its error
    is divided by the number of frames only as far as the dither brings it to other output pixels: the variance is
    ``sum_j c_j^2 A_j / (sum w)^2``, for the flat with ``w_i k_i (D + s_i a_i b_i)`` in place of ``w_i s_i a_i k_i``.
    The noise that was measured in the background of each frame holds its own part of it already, as if frames were
    independent; that is taken off. A and the flat's variance count as their medians in cells of 32 pixels.
    """
    w, s, b = (np.asarray(v, float) for v in (weight, scale, level))
    n = len(transforms)
    side = int(np.clip(np.sqrt(_MASTER_PLACES / n), 4, 16))
    y, x = ((np.arange(side) + 0.5) * size / side - 0.5 for size in shape)
    places = np.rint(np.stack([v.ravel() for v in np.meshgrid(x, y)], axis=1))
    maps = [None if v is None else _medians(v) for v in (additive, relative)]
    frame = next(v.shape for v in (additive, relative) if v is not None)
    half = int(np.ceil(_REACH.get(options.kernel, 1.0)))
    taps = np.arange(-half, half + 1)
    entry: list[Array] = []  # place, pixel and kernel of every tap; of each sample: place, frame, sum k^2
    sample: list[Array] = []
    for i, to_frame in enumerate(transforms):
        at = to_frame(places)
        inside = ((at > -0.5) & (at < np.array(frame[::-1]) - 0.5)).all(axis=1)
        which, at = np.flatnonzero(inside), at[inside]
        near = np.rint(at)
        kx, ky = (_kernel(options.kernel, taps - (at - near)[:, k : k + 1], 1.0) for k in (0, 1))
        k = ky[:, :, None] * kx[:, None, :]
        k /= k.sum(axis=(1, 2), keepdims=True)
        pixel = (
            (near[:, 1, None, None] + taps[:, None] + half) * (frame[1] + 2 * half)
            + near[:, 0, None, None]
            + taps
            + half
        )
        if not shared:
            pixel += i * (frame[0] + 2 * half) * (frame[1] + 2 * half)
        index = np.broadcast_to(which[:, None, None], k.shape)
        entry.append(np.stack([index.ravel(), pixel.ravel(), k.ravel(), np.full(k.size, i)]))
        cells = (np.clip(near, 0, None) // _MASTER_CELL).astype(int)
        value = [np.zeros(len(near)) if m is None else _at(m, cells) for m in maps]
        sample.append(np.stack([which, np.full(len(which), i), (k**2).sum(axis=(1, 2)), *value]))
    place, pixel, k, frames = np.concatenate(entry, axis=1)
    where, number, square, plus, times = np.concatenate(sample, axis=1)
    number, where = number.astype(int), where.astype(int)
    area = np.array([t.magnification**2 for t in transforms])
    unit = s * area
    total = np.bincount(where, w[number], side * side)

    def mean(values: Array) -> Array:
        return np.bincount(where, values, side * side) / np.maximum(np.bincount(where, minlength=side * side), 1)

    _, same = np.unique(place * (pixel.max() + 1) + pixel, return_inverse=True)
    owner = np.zeros(same.max() + 1, int)
    owner[same] = place.astype(int)
    i = frames.astype(int)

    def summed(first: Array, second: Array) -> Array:
        both = [np.bincount(same, v[i] * k) for v in (first, second)]
        return np.asarray(np.bincount(owner, both[0] * both[1], side * side), float)

    own = [np.bincount(where, (w[number] * v[number]) ** 2 * square, side * side) for v in (unit, unit * b)]
    sky = w * unit * b
    coefficients = [
        np.maximum(summed(w * unit, w * unit) - own[0], 0) * mean(plus)
        + np.maximum(summed(sky, sky) - own[1], 0) * mean(times),
        2 * summed(w, sky) * mean(times),
        summed(w, w) * mean(times),
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        out = np.nan_to_num(np.array(coefficients) / total**2).reshape(3, side, side)
    return MasterNoise(coefficients=out.astype(np.float32), shape=shape)


def _medians(image: FloatImage) -> Array:
    """Medians of cells of a map, from every second row and column; NaN does not count."""
    side = _MASTER_CELL // 2
    image = image[::2, ::2]
    ny, nx = (-(-n // side) for n in image.shape)
    wide = np.full((ny * side, nx * side), np.nan, np.float32)
    wide[: image.shape[0], : image.shape[1]] = image
    cells = np.sort(wide.reshape(ny, side, nx, side).swapaxes(1, 2).reshape(ny, nx, -1), axis=-1)
    count = np.isfinite(cells).sum(axis=-1)
    middle = np.take_along_axis(cells, np.maximum(count - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return np.asarray(np.where(count > 0, middle, 0.0), float)


def _at(cells: Array, index: NDArray[np.int64]) -> Array:
    ny, nx = cells.shape
    return np.asarray(cells[np.minimum(index[:, 1], ny - 1), np.minimum(index[:, 0], nx - 1)])


# ---- the photon-transfer level


def bias_level(
    pedestal: float,
    weight: ArrayLike,
    scale: ArrayLike,
    gain: ArrayLike,
    noise: ArrayLike,
    area: ArrayLike = 1.0,
) -> float:
    """Level at which a stack would have no noise, were all of it photon noise.

    Parameters
    ----------
    pedestal : float
        Level of the stack's sky, ADU.
    weight, scale, gain, noise, area : (n,) array_like
        Weight w, flux scale s, gain g (e-/ADU), measured standard deviation of a background pixel (ADU of the frame)
        and frame pixels per output pixel a.

    Returns
    -------
    float
        ADU; ``(sky - level) / G`` is then the variance of the stack's background, G being its effective gain.

    Notes
    -----
    ``p - sum(w^2 s^2 a b / g) / sum(w^2 s / g) - R^2 / G`` with the light b that makes the noise measured in each
    frame, ``g b + r^2 = (g noise)^2``: the level of raw frames holds their bias, which makes none.
    """
    w, s, g, sigma, a = np.broadcast_arrays(*(np.asarray(v, float) for v in (weight, scale, gain, noise, area)))
    return float(pedestal - np.sum(w**2 * s**2 * a * sigma**2) / np.sum(w**2 * s / g))
