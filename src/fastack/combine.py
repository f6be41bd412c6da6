"""Reject outliers and average: N registered samples a pixel -> one value, its variance, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from fastack import _pixels
from fastack.executor import Executor
from fastack.options import MOST_JITTER, CombineOptions
from fastack.types import PSF, Array, FloatImage, PixelFlag

#: Columns of a panel, see `combine_tile`.
PANEL = 64

_COLUMNS = ("weight", "scale", "sky", "gain", "rdnoise", "noise", "area", "fwhm", "elongation")  # of a noise model
_BETA = 3.0  # of the Moffat profiles that stand for frames of another seeing
_STAR_REACH = 40.0  # pixels, largest radius out to which stars are modelled
_STAR_STEP = 0.125  # pixels
_STAR_COMPONENTS = {0: 4, 2: 2, 4: 1}  # of the frames' profiles, by their angular order
_ANGLES = np.pi / 2 * (np.arange(8) + 0.5) / 8  # a quarter of an ellipse stands for all of it
_STAR_LIMIT = 0.3  # sigmas of a sample, least difference between frames that counts
_MOST_BENT = 3.0  # largest multiple of the curvature
_GOLDEN = (np.sqrt(5.0) - 1) / 2
_SHAPE = 0.5  # part of the local range that an elongation of 1 moves
_UNDERSAMPLED = 2.5  # FWHM in pixels below which interpolation itself moves a star's light


@dataclass(frozen=True, eq=False, kw_only=True)
class NoiseModel:
    """What is known of the noise of n frames; float64 arrays of n values, one per frame.

    The variance of a sample of frame i, on the scale of the output, is
    ``k s^2 a^2 (((Y - p) / (s a) + b) f / g + (r f / g)^2)`` with Y the stack's value, p the output's
    pedestal, k the sum of the squared resampling coefficients and f the shade.
    """

    weight: Array  #: of the frame in the mean, > 0
    scale: Array  #: flux scale s
    sky: Array  #: sky level b in the frame, ADU
    gain: Array  #: g, e-/ADU; NaN: not known, then `noise` is used
    rdnoise: Array  #: r, e-
    noise: Array  #: measured standard deviation of the background in one pixel of the frame, ADU; NaN: not known
    area: Array  #: frame pixels per output pixel a = |J|
    fwhm: Array  #: of the frame's PSF, in pixels of the output; NaN: not known
    elongation: Array  #: length of the frame's ellipticity less the typical one, as vectors at twice the angle
    shade: FloatImage | None = None  #: (n, by, bx) 1/flat on blocks of 16x16 output pixels; None: 1
    shade_origin: tuple[int, int] = (
        0,
        0,
    )  #: block row and column of the output that ``shade[:, 0, 0]`` stands for

    def __post_init__(self) -> None:
        n = np.size(self.weight)
        for name in _COLUMNS:
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != (n,):
                raise ValueError(f"{name} has shape {value.shape}; one value per frame is needed: ({n},)")
            if name in ("weight", "scale", "area") and not (value > 0).all():
                raise ValueError(f"{name} must be positive; leave a frame that should not count out of the cube")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if self.shade is not None:
            shade = np.ascontiguousarray(self.shade, np.float32)
            if shade.ndim != 3 or len(shade) != n:
                raise ValueError(f"shade has shape {shade.shape}, not ({n}, by, bx)")
            object.__setattr__(self, "shade", shade)

    def __len__(self) -> int:
        return len(self.weight)

    @classmethod
    def make(cls, n: int, **columns: Any) -> NoiseModel:
        """Make a model of n frames from scalars or arrays; what is not given is neutral.

        Parameters
        ----------
        n : int
            Number of frames.
        **columns : float or (n,) array_like
            Any of the fields. Neutral are: weight, scale, area 1, sky, rdnoise and elongation 0, the others NaN.

        Returns
        -------
        NoiseModel
            With every column spread to n values.
        """
        neutral = {"weight": 1.0, "scale": 1.0, "area": 1.0, "sky": 0.0, "rdnoise": 0.0, "elongation": 0.0}
        values: dict[str, Any] = {
            name: np.broadcast_to(np.asarray(columns.pop(name, neutral.get(name, np.nan)), float), (n,))
            for name in _COLUMNS
        }
        return cls(**values, **columns)

    @classmethod
    def estimate(cls, cube: ArrayLike, *, weights: ArrayLike | None = None) -> NoiseModel:
        """Estimate a model from the samples themselves, for cubes of which nothing else is known.

        Parameters
        ----------
        cube : (n, ny, nx) array_like
            Registered images on one scale; NaN is missing.
        weights : (n,) array_like, optional
            Of the frames.

        Returns
        -------
        NoiseModel
            With each frame's median as its sky, and as its noise 1.4826 times the median absolute deviation
            from the median of all frames (of fewer than three: of its own pixels), on at most 2^18 pixels.
        """
        samples = np.asarray(cube, np.float32)
        n = len(samples)
        flat = samples.reshape(n, -1)
        flat = flat[:, :: max(1, flat.shape[1] >> 18)]
        sky, noise = np.zeros(n), np.full(n, np.nan)
        with np.errstate(invalid="ignore"):
            middle = _median(flat)
            for i, row in enumerate(flat):
                if not np.isfinite(row).any():
                    continue
                sky[i] = np.nanmedian(row)
                # the median of n holds part of the sample itself
                distance = row - (middle if n > 2 else sky[i])
                left = np.sqrt(1 - min(1 / n, 0.5)) if n > 2 else 1.0
                centre = np.nanmedian(distance)
                noise[i] = 1.4826 * np.nanmedian(np.abs(distance - centre)) / left
        return cls.make(n, weight=1.0 if weights is None else weights, sky=sky, noise=noise)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Starlight:
    """Known stars, and what their light is in each of n frames.

    The frames' profiles are the weighted mean of all and multiples of a few components (compare Lupton et al. 2001,
    ASP Conference Series 238, 269), so that each component is rendered once for all frames. A component is a function
    of the radius times cos(m angle), or sin(-m angle) where its order m is negative, angles from +x towards +y.
    """

    xy: Array  #: (m, 2) positions in pixels of the output
    flux: FloatImage  #: (m,) total fluxes on the output's scale
    radius: FloatImage  #: (m,) pixels beyond which the frames agree within the noise
    profile: FloatImage  #: (1 + k, bins) round mean and components, per pixel, in radial steps of `step`
    order: NDArray[np.int32]  #: (k,) of the components: 0, 2, -2, 4, -4
    step: float  #: pixel
    share: FloatImage  #: (k, n) of the components in each frame

    @classmethod
    def make(
        cls, xy: ArrayLike, flux: ArrayLike, psfs: Sequence[PSF], noise: float, weights: ArrayLike = 1.0
    ) -> Starlight | None:
        """Describe stars by the frames' PSFs.

        Parameters
        ----------
        xy : (m, 2) array_like
            Positions in pixels of the output.
        flux : (m,) array_like
            Total fluxes on the output's scale.
        psfs : sequence of PSF
            Of the n frames, FWHM in pixels of the output, ``theta`` against its x axis.
        noise : float
            Smallest standard deviation of the sky in one sample, on the output's scale.
        weights : (n,) array_like
            Of the frames in the stack.

        Returns
        -------
        Starlight or None
            None where the frames do not differ by more than noise, or a PSF is not known.
        """
        xy = np.asarray(xy, float).reshape(-1, 2)
        flux = np.asarray(flux, float)
        known = all(np.isfinite(p.fwhm) and p.fwhm > 0 and p.beta > 1 for p in psfs)
        if not known or not len(flux) or not noise > 0:
            return None
        r = np.arange(0, _STAR_REACH + _STAR_STEP, _STAR_STEP)
        weight = np.broadcast_to(np.asarray(weights, float), len(psfs))
        harmonics = _harmonics(psfs, r)
        mean = np.average(harmonics[0].real, axis=0, weights=weight)
        components, shares, orders, largest = [mean[None]], [], [], np.zeros(len(r))
        for m, most in _STAR_COMPONENTS.items():
            rows = harmonics[m] - np.average(harmonics[m], axis=0, weights=weight)
            if m and np.abs(rows).max() * flux.max() <= _STAR_LIMIT * noise:
                continue
            largest += np.abs(rows).max(axis=0)
            basis, share = _span(np.concatenate([rows.real, rows.imag]) if m else rows.real, most)
            for part, sign in ((0, 1), (1, -1)) if m else ((0, 1),):
                components.append(basis)
                shares.append(share[:, part * len(psfs) : (part + 1) * len(psfs)])
                orders += [sign * m] * len(basis)
        envelope = np.maximum.accumulate(largest[::-1])[::-1]
        bins = np.array([np.count_nonzero(f * envelope > _STAR_LIMIT * noise) for f in flux], int)
        use = (bins > 0) & (flux > 0)
        if not use.any():
            return None
        radius = np.minimum(bins[use] * _STAR_STEP / 0.75, _STAR_REACH)  # the last quarter fades out
        return cls(
            xy=np.ascontiguousarray(xy[use]),
            flux=flux[use].astype(np.float32),
            radius=radius.astype(np.float32),
            profile=np.ascontiguousarray(np.concatenate(components), np.float32),
            order=np.array(orders, np.int32),
            step=_STAR_STEP,
            share=np.ascontiguousarray(np.concatenate(shares), np.float32),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Combined:
    """A stack, or a tile of one."""

    data: FloatImage  #: (ny, nx) average; NaN where no sample is left
    variance: FloatImage  #: (ny, nx) of `data`
    background_variance: FloatImage  #: (ny, nx) of `data` where it holds no signal above the sky
    count: NDArray[np.uint16]  #: (ny, nx) samples kept
    rejected_low: NDArray[np.uint16]  #: (ny, nx) samples rejected below
    rejected_high: NDArray[np.uint16]  #: (ny, nx) samples rejected above
    flags: NDArray[np.uint8]  #: (ny, nx) bits of `PixelFlag`


def combine(
    cube: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    noise: NoiseModel | None = None,
    stars: Starlight | None = None,
    mask: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    pedestal: float | None = None,
    options: CombineOptions | None = None,
    threads: int | None = 1,
) -> Combined:
    """Average registered images pixel by pixel, without their outliers.

    Parameters
    ----------
    cube : (n, ny, nx) array_like
        Registered images on one flux scale and sky level. What is not finite is missing; 0 is a value.
    weights : (n,) array_like, optional
        Weights of the frames, positive; default those of `noise`, else equal ones.
    noise : NoiseModel, optional
        Where it is not given, ``reject="noise"`` takes `NoiseModel.estimate`.
    stars : Starlight, optional
        What ``reject="noise"`` should know of the stars; positions in pixels of the cube.
    mask : (n, ny, nx) array_like of bool, optional
        True where a sample is missing.
    variance : (n, ny, nx) array_like, optional
        Variance of each sample, used in place of the one that `noise` predicts.
    pedestal : float, optional
        Level of the output that stands for no signal above the sky; default the median of the frames' skies.
    options : CombineOptions, optional
        Rejection, its limits, mean or median.
    threads : int, optional
        Bands of the image are combined by so many threads; None: as many as there are processors. The result
        does not depend on it.

    Returns
    -------
    Combined
        Its `variance` is that of the noise model. Without a model and without `variance` it comes from the
        scatter of the samples kept: ``sum(w^2 (x - y)^2) / (sum w)^2 * m / (m - 1)``.

    Raises
    ------
    ValueError
        If shapes do not fit together or a weight is not positive.

    Notes
    -----
    The rejections are described in docs/combine.md, with their sources.
    """
    options = options or CombineOptions()
    samples = _samples(cube, mask)
    n, ny, nx = samples.shape
    spread = None
    if variance is not None:
        spread = _samples(variance, None)
        if spread.shape != samples.shape:
            raise ValueError(f"variance has shape {spread.shape}, the cube {samples.shape}")
        if np.isnan(spread).any():
            samples = np.where(np.isnan(spread), np.float32(np.nan), samples)
    with_model = noise is not None or (options.reject == "noise" and spread is None)
    if noise is None:
        noise = NoiseModel.estimate(samples) if with_model else NoiseModel.make(n, noise=1.0)
    if len(noise) != n:
        raise ValueError(f"the noise model is for {len(noise)} frames, the cube holds {n}")
    if weights is not None:
        noise = replace(noise, weight=np.asarray(weights, float))
    if pedestal is None:
        pedestal = float(np.median(noise.sky))
    constants, radius = _constants(noise, options)
    bands = [(y, min(y + 64, ny)) for y in range(0, ny, 64)] if threads != 1 else [(0, ny)]

    def run(band: tuple[int, int]) -> Combined:
        window = (band[0], band[1], 0, nx)
        place = ((0, 0), window)
        return _run(samples, None, spread, noise, constants, radius, with_model, pedestal, *place, options, stars)

    with Executor(threads) as executor:
        parts = list(executor.map(run, bands))
    if len(parts) == 1:
        return parts[0]
    names = ("data", "variance", "background_variance", "count", "rejected_low", "rejected_high", "flags")
    return Combined(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def combine_tile(
    cube: FloatImage,
    factor: NDArray[np.uint8] | None,
    noise: NoiseModel,
    *,
    pedestal: float,
    tile: tuple[int, int, int, int],
    halo: int | tuple[int, int],
    saturated_count: NDArray[np.uint16] | None = None,
    flags: NDArray[np.uint8] | None = None,
    variance: FloatImage | None = None,
    stars: Starlight | None = None,
    options: CombineOptions | None = None,
) -> Combined:
    """One tile of a stack; its bits do not depend on how the output is tiled.

    Parameters
    ----------
    cube : (n, h + 2 halo, w + 2 halo) or (h + 2 halo, panels, n, 64) float32 ndarray
        Samples on the output's scale, ``pedestal + s a (x - b)``; NaN is missing. Not changed. The second form
        holds panels of 64 columns, in each of whose rows all frames lie together, the quickest to read; columns
        that fill up the last panel do not count.
    factor : uint8 ndarray of the shape of `cube`, optional
        Sum of the squared resampling coefficients (without a) times 255; None: all 255.
    noise : NoiseModel
        Of the n frames.
    pedestal : float
        Level of the output that stands for no signal above the sky.
    tile : tuple of int
        (y0, y1, x0, x1), the tile in pixels of the output.
    halo : int or (int, int)
        Rows and columns around the tile in `cube`, beyond the borders of the output too. With fewer than `HALO`
        the allowances of ``reject="noise"`` near the tile's edge depend on the tiling.
    saturated_count : (h, w) uint16 ndarray, optional
        Number of samples of each pixel that hold saturated light.
    flags : (h, w) uint8 ndarray, optional
        Bits of `PixelFlag` that are already known.
    variance : float32 ndarray of the shape of `cube`, optional
        Variance of each sample, used in place of the one that `noise` predicts.
    stars : Starlight, optional
        What ``reject="noise"`` should know of the stars.
    options : CombineOptions, optional
        Rejection, its limits, mean or median.

    Returns
    -------
    Combined
        Of shape (h, w).

    Raises
    ------
    ValueError
        If shapes do not fit together.
    """
    options = options or CombineOptions()
    y0, y1, x0, x1 = tile
    high, wide = (halo, halo) if isinstance(halo, int) else halo
    rows, columns = y1 - y0 + 2 * high, x1 - x0 + 2 * wide
    plain, panelled = (len(noise), rows, columns), (rows, -(-columns // PANEL), len(noise), PANEL)
    if cube.shape not in (plain, panelled):
        raise ValueError(f"the cube has shape {cube.shape}, tile and halo ask for {plain} or panels {panelled}")
    if variance is not None and variance.shape != cube.shape:
        raise ValueError(f"variance has shape {variance.shape}, the cube {cube.shape}")
    constants, radius = _constants(noise, options)
    window = (high, high + y1 - y0, wide, wide + x1 - x0)
    place = ((y0 - high, x0 - wide), window)
    result = _run(cube, factor, variance, noise, constants, radius, True, pedestal, *place, options, stars, columns)
    if flags is not None:
        np.bitwise_or(result.flags, flags, out=result.flags)
    if saturated_count is not None:
        result.flags[saturated_count > 0] |= np.uint8(PixelFlag.SATURATED)
        present = result.count + result.rejected_low + result.rejected_high
        lost = saturated_count > options.max_saturated * present
        result.data[lost] = np.nan
        result.variance[lost] = np.nan
        result.count[lost] = 0
    return result


def _run(
    cube: FloatImage,
    factor: NDArray[np.uint8] | None,
    variance: FloatImage | None,
    noise: NoiseModel,
    constants: FloatImage,
    radius: int,
    with_model: bool,
    pedestal: float,
    origin: tuple[int, int],
    window: tuple[int, int, int, int],
    options: CombineOptions,
    stars: Starlight | None = None,
    columns: int | None = None,
) -> Combined:
    n = len(noise)
    data, spread, background, count, low, high = _pixels.combine(
        cube,
        cube.shape[2] if columns is None else columns,
        factor,
        variance,
        constants,
        with_model,
        pedestal,
        noise.shade,
        noise.shade_origin,
        origin,
        window,
        radius,
        options.reject,
        options.combine == "median",
        (options.kappa_low, options.kappa_high, options.kappa_pair, options.kappa_grow, options.kappa_group),
        options.grow,
        options.rounds,
        (options.n_low, options.n_high),
        (options.percentile_low, options.percentile_high),
        options.max_outliers,
        _esd_lambda(n, options.significance if options.reject == "esd" else None),
        median_noise_ratios(n),
        None if stars is None else _arrays(stars),
        options.star_error,
    )
    rejected = low + high
    flags = (rejected > 0) * np.uint8(PixelFlag.REJECTED)
    flags |= (count + rejected < n) * np.uint8(PixelFlag.PARTIAL)
    return Combined(
        data=data,
        variance=spread,
        background_variance=background,
        count=count,
        rejected_low=low,
        rejected_high=high,
        flags=flags,
    )


def _arrays(stars: Starlight) -> tuple[Any, ...]:
    return stars.xy, stars.flux, stars.radius, stars.profile, stars.order, stars.step, stars.share


def _samples(cube: ArrayLike, mask: ArrayLike | None) -> FloatImage:
    """Contiguous float32 samples, NaN where they are masked or not finite."""
    masked = np.ma.getmaskarray(cube) if np.ma.isMaskedArray(cube) else None
    with np.errstate(over="ignore", invalid="ignore"):
        samples = np.ascontiguousarray(np.ma.getdata(cube), np.float32)
    if samples.ndim != 3 or not len(samples):
        raise ValueError(f"the cube has shape {samples.shape}; (n, ny, nx) with n > 0 is needed")
    missing = np.isinf(samples)
    if masked is not None:
        missing |= masked
    if mask is not None:
        extra = np.asarray(mask, bool)
        if extra.shape != samples.shape:
            raise ValueError(f"mask has shape {extra.shape}, the cube {samples.shape}")
        missing |= extra
    return np.where(missing, np.float32(np.nan), samples) if missing.any() else samples


def _median(flat: FloatImage) -> FloatImage:
    """Median over the first axis."""
    options = CombineOptions(combine="median", reject="none")
    noise = NoiseModel.make(len(flat), noise=1.0)
    cube = np.ascontiguousarray(flat[:, None, :])
    window = (0, 1, 0, flat.shape[1])
    constants = np.ones((7, len(flat)), np.float32)
    return _run(cube, None, None, noise, constants, 1, False, 0.0, (0, 0), window, options).data[0, :]


def _constants(noise: NoiseModel, options: CombineOptions) -> tuple[FloatImage, int]:
    """Frames' constants in the form that the kernel takes, and the radius of the curvature's box."""
    unit = noise.scale * noise.area  # output units per ADU of the frame
    known = np.isfinite(noise.gain) & (noise.gain > 0)
    measured = np.where(np.isfinite(noise.noise), noise.noise, 0.0) ** 2
    # Without a gain the background is taken for photon noise, which errs on the side of keeping stars.
    guess = np.where((noise.sky > 0) & (measured > 0), noise.sky / np.where(measured > 0, measured, 1.0), 1.0)
    gain = np.where(known, noise.gain, guess)
    read = np.where(known & np.isfinite(noise.rdnoise), (noise.rdnoise / gain) ** 2, 0.0)
    # Noise in excess of the model (wrong gain, pattern, unresolved stars) would be taken for outliers.
    predicted = np.maximum(noise.sky, 0.0) / gain + read
    read = read + np.where(~known | (measured > 1.1 * predicted), np.maximum(measured - predicted, 0.0), 0.0)

    fwhm = noise.fwhm
    finite = np.isfinite(fwhm) & (fwhm > 0)
    radius = 2
    seeing, tolerance = np.zeros(len(noise)), np.zeros(len(noise))
    most = MOST_JITTER if options.jitter is None else options.jitter
    jitter = np.full(len(noise), most)
    if finite.any():
        # The robust first stack is a lower median: of two frames it shows the wider one's cores.
        typical = float(np.sort(fwhm[finite])[np.count_nonzero(finite) // 2])
        radius = 1 if typical < 2.5 else 2 if typical < 5 else 3
        for i in np.flatnonzero(finite):
            seeing[i], tolerance[i] = _seeing(round(float(fwhm[i]), 2), round(typical, 2), radius)
        jitter = np.where(finite, most * (1 + np.clip(3 * (_UNDERSAMPLED - fwhm), 0, 3)), jitter)
    jitter = jitter + _SHAPE * noise.elongation
    rows = [noise.weight, unit / gain, noise.sky * unit, unit**2 * read, seeing, tolerance, jitter]
    return np.ascontiguousarray(rows, np.float32), radius


def halo(n: int, options: CombineOptions | None = None) -> int:
    """Pixels around a tile that `combine_tile` wants to see, so that its result does not depend on the tiling.

    Parameters
    ----------
    n : int
        Number of frames.
    options : CombineOptions, optional
        Whose groups and growth reach out.

    Returns
    -------
    int
        Pixels on every side.
    """
    options = options or CombineOptions()
    return _pixels.combine_reach(n, options.kappa_group, options.grow)


#: Enough for any number of frames and the default options.
HALO = halo(2)


@lru_cache(maxsize=64)
def _bends(typical: float, radius: int, half: int) -> tuple[Array, Array, Array, Array]:
    """Pixels of a star in four places on the grid: distance squared, light, curvature and its local maximum."""
    line = np.arange(-half, half + 1)
    parts = []
    for dx, dy in ((0.0, 0.0), (0.5, 0.5), (0.5, 0.0), (0.25, 0.25)):
        r2 = (line - dx)[None, :] ** 2 + (line - dy)[:, None] ** 2
        stack = _moffat(r2, typical)
        windows = sliding_window_view(np.pad(stack, radius, mode="edge"), (2 * radius + 1,) * 2)
        bent = windows.mean(axis=(2, 3)) - stack
        largest = sliding_window_view(np.pad(np.abs(bent), 1, mode="edge"), (3, 3)).max(axis=(2, 3))
        seen = stack > 0.02 * stack.max()
        parts.append(np.stack([r2[seen], stack[seen], bent[seen], largest[seen]]))
    r2, stack, bent, largest = np.concatenate(parts, axis=1)
    return r2, stack, bent, largest


@lru_cache(maxsize=4096)
def _seeing(fwhm: float, typical: float, radius: int) -> tuple[float, float]:
    """Difference of a star of this FWHM from one of the stack, in units of the stack's curvature.

    The multiple of (blurred - sharp) that comes nearest, and the largest distance that is left, in units of
    the local maximum of |blurred - sharp|.
    """
    r2, stack, bent, largest = _bends(typical, radius, int(np.ceil(2 * max(fwhm, typical))) + 4)
    delta, slope = (_moffat(r2, fwhm) - stack) / largest, bent / largest

    def left(multiple: float) -> float:
        return float(np.abs(delta - multiple * slope).max())

    # A convex function, searched by golden section. A frame so sharp that it would take a larger multiple is not to
    # be had from the stack: only noise would grow.
    low, high = -_MOST_BENT, _MOST_BENT
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = left(a), left(b)
    while high - low > 1e-4:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = left(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = left(b)
    return (a, at_a) if at_a < at_b else (b, at_b)


def _harmonics(psfs: Sequence[PSF], r: Array) -> dict[int, NDArray[np.complex128]]:
    """(n, bins) functions h of the radius for m = 0, 2, 4: the light is the sum of Re(h exp(-i m angle))."""
    made = {m: np.zeros((len(psfs), len(r)), complex) for m in _STAR_COMPONENTS}
    for i, psf in enumerate(psfs):
        round_ = psf.profile(r)
        made[0][i] = round_
        if psf.ellipticity > 0:
            short = 1 - psf.ellipticity
            stretch = np.sqrt(short * np.cos(_ANGLES) ** 2 + np.sin(_ANGLES) ** 2 / short)
            # beyond the last radius there is no light to speak of
            light = np.array([np.interp(r * s, r, round_) for s in stretch])
            for m in _STAR_COMPONENTS:
                wave = np.cos(m * _ANGLES) * (2 if m else 1)
                made[m][i] = (light * wave[:, None]).mean(axis=0) * np.exp(1j * m * psf.theta)
    return made


def _span(rows: Array, most: int) -> tuple[Array, Array]:
    """At most so many orthonormal rows that span the given ones to 1e-3 of the largest; multiples of them in each.

    Gram and Schmidt, the row that is worst described first; without BLAS, whose threads would wait in a busy loop.
    """
    rest = rows.copy()
    basis: list[Array] = []
    largest = float(np.sqrt((rest**2).sum(axis=1).max()))
    while len(basis) < most:
        norms = np.sqrt((rest**2).sum(axis=1))
        worst = int(np.argmax(norms))
        if norms[worst] <= 1e-3 * largest:
            break
        basis.append(rest[worst] / norms[worst])
        rest -= (rest * basis[-1]).sum(axis=1)[:, None] * basis[-1]
    components = np.array(basis).reshape(-1, rows.shape[1])
    return components, (rows[None] * components[:, None]).sum(axis=2)


def _moffat(r2: Array, fwhm: float, beta: float = _BETA) -> Array:
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return np.asarray((beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -beta)


@lru_cache(maxsize=64)
def _esd_lambda(n: int, significance: float | None) -> FloatImage:
    """Critical values of the generalised ESD test for 0 .. n samples (Rosner 1983)."""
    table = np.full(n + 1, np.inf, np.float32)
    if significance is not None and n >= 3:
        from scipy.special import stdtrit

        m = np.arange(3, n + 1)
        t = stdtrit(m - 2, 1 - significance / (2 * m))
        table[3:] = (m - 1) * t / np.sqrt((m - 2 + t * t) * m)
    return table


@lru_cache(maxsize=64)
def median_noise_ratios(n: int) -> FloatImage:
    """Variance of the median over that of the mean, for normal samples.

    Parameters
    ----------
    n : int
        Largest number of samples.

    Returns
    -------
    (n + 1,) float32 ndarray
        For 0 .. n samples: 1 for one or two, towards pi/2 for many. Integrals over the order statistics up to 7
        samples, a series in 1/n good to 0.2 % beyond.
    """
    exact = [1.0, 1.0, 1.0, 1.3460, 1.1928, 1.4342, 1.2885, 1.4731]
    m = np.arange(n + 1, dtype=float)
    r = 1 / np.maximum(m, 1)
    series = np.pi / 2 * np.where(m % 2 == 1, 1 - 0.433 * r, 1 - 1.429 * r + 2.25 * r**2)
    table = np.where(m < len(exact), np.resize(np.array(exact), n + 1), series)
    return table.astype(np.float32)
