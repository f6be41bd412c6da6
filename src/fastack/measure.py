"""Positions, fluxes and shapes of detected stars, and what they say of the frame.

The brightest isolated stars are fitted with an elliptical Moffat profile each; those that agree give the
frame's point-spread function in one common fit. Every star is then fitted with that function at its own
position, peak and sky, which comes close to the Cramer-Rao bound down to the faintest stars and for
undersampled ones.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastack import _levels, _pixels
from fastack.options import MeasureOptions
from fastack.types import PSF, Array, Background, FloatImage, FrameQuality, StarFlag, Stars

_WINDOW = 2.0  # radius of the measuring window, FWHM
_MIN_WINDOW = 4.0  # pixel
_MAX_WINDOW = 40.0  # pixel
_SHAPE_WINDOW = 3.0  # of the common fit, whose wings tell exponent from sky, FWHM
_MIN_SHAPE_WINDOW = 8.0  # pixel
_MAX_SHAPE_WINDOW = 20.0  # pixel, or as wide as the other windows
_CORE_WINDOW = 0.9  # of the fit for the elongation, which wings dilute, FWHM
_MIN_CORE_WINDOW = 3.0  # pixel
_GUESSES = (1.0, 2.0, 4.0, 8.0)  # factors of the first width, tried in turn until stars are found to fit
_ANNULUS = (10.0, 16.0)  # sky around a star where no mesh is given, pixel, up to FWHM 4
_PASSES = 4  # rounds over stars with neighbours, each with the neighbours' light better known
_HOT_PIXEL = 1.3  # ring width below which a detection cannot be told from a single pixel
_ETA = 0.33  # 1/beta of the first guess
_MANY = 0.3  # part of the list among the candidates from which on no other first width is tried
_TRIED = (1.5, 3, 10)  # stars of which the isolated ones are chosen, per star behind the PSF
_PEAK = 0.9  # highest pixel of a star over that of a round one that stands between four pixels, at least,
_NOISE = 3.0  # and the noise by which it may fall below that
_ENOUGH = 10  # isolated stars from which on stars with neighbours do not take part in the frame's PSF
_MISSING = 0.2  # part of the window that may be missing for a star of the frame's PSF
_SPREAD = 0.03  # widths of stars vary that much (relative) over a frame without being suspect
_NARROWEST = 0.7  # FWHM of a star that takes part in the frame's PSF, pixel
_UNDERSAMPLED = 3.5  # FWHM below which the pixel's integration is told from mere sampling
_HEARD = 0.5  # difference of -2 log likelihood up to which a star counts in the choice between both
_DOUBT = 0.04  # mean of those differences from which on mere sampling is believed,
_CERTAIN = 2.5  # or as many of its standard errors
_SETTLED = 0.15  # change of the logarithm of the width after which the first fits are good enough
_SHARP = 0.7  # width over the PSF's, below: no star
_EXTENDED = 1.3  # above: no single star


class _Shape(NamedTuple):
    """Inverse squared half widths at half maximum and 1/beta, as the kernels take them."""

    a: float
    b: float
    c: float
    eta: float
    integrated: bool = False  # over the pixel's area, by the mean of four points

    @classmethod
    def round(cls, fwhm: float, *, integrated: bool = False) -> _Shape:
        """Build the shape of a star without elongation."""
        return cls(4 / fwhm**2, 0.0, 4 / fwhm**2, _ETA, integrated)

    @property
    def volume(self) -> float:
        """Integral of the profile of peak 1, pixel^2."""
        root = np.sqrt(self.a * self.c - self.b**2)
        return float(np.pi * self.eta / ((2**self.eta - 1) * (1 - self.eta) * root))

    @property
    def between_pixels(self) -> float:
        """Height, of a peak of 1, where a pixel's corner meets three others, for a round shape."""
        return float((1 + (2**self.eta - 1) * (self.a + self.c) / 4) ** (-1 / self.eta))

    @property
    def width(self) -> float:
        """FWHM before the integration over the pixel, pixel."""
        return float(2 / np.sqrt(np.sqrt(self.a * self.c - self.b**2)))

    @property
    def psf(self) -> PSF:
        """Effective point-spread function."""
        return _psf(self)

    @property
    def pixel(self) -> float:
        """What the pixel adds to the FWHM in quadrature, pixel."""
        return float(np.sqrt(max(self.psf.fwhm**2 - self.width**2, 0.0)))


@functools.lru_cache(maxsize=16)
def _psf(shape: _Shape) -> PSF:
    minor, major, theta = _axes(shape.a, shape.b, shape.c)
    if shape.integrated:
        minor = _pixels.width_over_pixel(shape, theta + np.pi / 2, minor)
        major = _pixels.width_over_pixel(shape, theta, major)
    fwhm, ellipticity = float(np.sqrt(minor * major)), float(1 - minor / major)
    optical = shape.width if shape.integrated else np.nan
    return PSF(fwhm=fwhm, beta=1 / shape.eta, ellipticity=ellipticity, theta=float(theta), optical=optical)


def measure(
    image: ArrayLike,
    stars: Stars | ArrayLike,
    *,
    background: Background | None = None,
    options: MeasureOptions = MeasureOptions(),  # noqa: B008
    n_saturated: int | None = None,
) -> tuple[Stars, FrameQuality]:
    """Fit position, flux and shape of stars, and the frame's point-spread function.

    Parameters
    ----------
    image : (ny, nx) array_like, ADU
        Pixels; NaN or masked: missing. 0 is data.
    stars : Stars or (n, 2) array_like, pixel
        First positions (x, y), good to a pixel; the centre of the first pixel is (0, 0). Detections flagged
        `StarFlag.SHARP` or `StarFlag.SATURATED` have no part in the frame's point-spread function.
    background : Background, optional
        Sky level and noise. By default median and scatter in an annulus around each star.
    options : MeasureOptions
        With `gain`, photon noise of the stars' own light enters weights and errors. Without, the errors of
        stars whose residuals exceed the background noise are raised to match them.
    n_saturated : int, optional
        Number of saturated pixels of the image, where it is known. By default they are counted.

    Returns
    -------
    stars : Stars
        Rows as in the input. Where no fit is possible: the input's position, NaN in all that a fit would
        give, and `StarFlag.NO_FIT`. `ellipticity` and `theta` are given for the stars behind the frame's PSF
        alone; `fwhm` of the others is from a fit of the PSF stretched by one factor.
    quality : FrameQuality
        `fwhm` and `beta` of the common fit, `ellipticity` and `theta` of its core (radius 0.9 FWHM, where a
        trail shows undiluted); NaN where no star could be fitted.

    Raises
    ------
    ValueError
        If `image` does not have two dimensions or `stars` is no list of positions.

    Notes
    -----
    The profile is that of Moffat 1969, A&A 3, 455. Below a FWHM of 3.5 pixels it is fitted twice, sampled at
    pixel centres and integrated over the pixel, and the one that most stars find likelier is kept; the FWHM is
    the effective PSF's, the pixel's response included, in both cases. Weights are 1 / (noise^2 + model/gain):
    the model's photon noise, never the data's own, which would bias fluxes low. Stars with neighbours are
    fitted again with the neighbours' light taken away.
    """
    pixels = _as_image(image)
    table = stars if isinstance(stars, Stars) else Stars.make(stars)
    xy = np.ascontiguousarray(table.xy)
    noise: Array
    if background is None:
        sky, noise = _pixels.sky_annulus(pixels, xy, *_ANNULUS)
    else:
        sky, noise = _at(background, xy)
    rings, peak = _pixels.star_rings(pixels, xy, sky)
    unfit = table.has(StarFlag.SHARP | StarFlag.SATURATED)
    guess = _first_width(np.where(unfit, np.nan, rings), peak / _positive(noise))
    if background is None and 2.5 * guess > _ANNULUS[0]:
        sky, noise = _pixels.sky_annulus(pixels, xy, 2.5 * guess, 4 * guess)
    noise = np.where(noise > 0, noise, 1e-3 * _positive(peak))  # an image without noise

    saturated = _count_saturated(pixels, options.saturation) if n_saturated is None else n_saturated
    frame = _Frame(pixels, sky, noise, options)
    found = frame.shape(xy, peak, unfit, guess) if np.isfinite(guess) else None
    if found is None:
        result = _unmeasured(table)
        return result, _quality(saturated, result, background, sky, noise)
    shape, single, rows = found
    core, _ = frame.common(shape, rows, _CORE_WINDOW, _MIN_CORE_WINDOW)
    fits = frame.fit(frame.xy, frame.peak, shape, passes=_PASSES)
    result = _columns(table, fits, shape, single, rows, options)
    return result, _quality(saturated, result, background, sky, noise, (shape, core), single)


class _Frame:
    """One image and its stars as the kernels take them; positions and peaks get better from fit to fit."""

    def __init__(self, pixels: FloatImage, sky: Array, noise: Array, options: MeasureOptions) -> None:
        self.pixels, self.sky, self.noise, self.options = pixels, sky, noise, options
        self.inverse_gain = 1 / options.gain if options.gain else 0.0
        self.saturation = np.nan if options.saturation is None else options.saturation
        self.xy: Array
        self.peak: Array

    def field(self, xy: Array, peak: Array, shape: _Shape, radius: float | None = None) -> _pixels.StarField:
        """Take the stars for fits with a shape; by default with the usual radius of the window."""
        if radius is None:
            radius = min(max(_WINDOW * shape.width, _MIN_WINDOW), _MAX_WINDOW)
        return _pixels.StarField(
            self.pixels, xy, peak, self.sky, self.noise, shape, radius, self.inverse_gain, self.saturation
        )

    def fit(
        self, xy: Array, peak: Array, shape: _Shape, passes: int, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.void]:
        """Fit every star, or some, with one shape."""
        fits = self.field(xy, peak, shape).fit_stars(passes, rows)
        good = fits["converged"] > 0
        self.xy = np.where(good[:, None], np.stack([fits["x"], fits["y"]], axis=1), xy)
        self.peak = np.where(good, fits["peak"], peak)
        return fits

    def shape(
        self, xy: Array, peak: Array, unfit: NDArray[np.bool_], fwhm: float
    ) -> tuple[_Shape, NDArray[np.void], NDArray[np.int64]] | None:
        """Find the frame's PSF, the single fits behind it and their rows."""
        tried = []
        for factor in _GUESSES:
            start, rows = self.first_fits(xy, peak, unfit, factor * fwhm)
            tried.append((len(rows), start, rows, self.xy, self.peak))
            if len(rows) >= min(self.options.max_fits, _MANY * len(xy)):
                break
        _, start, rows, self.xy, self.peak = max(tried, key=lambda trial: trial[0])
        start = start._replace(integrated=start.width < _UNDERSAMPLED)
        found = self.agreeing_fits(start, rows)
        if found is None:
            return None
        rows, fits = found
        a, b, c = (_median(fits[name]) for name in "abc")
        shape, likelihood = self.common(start._replace(a=a, b=b, c=c), rows, _SHAPE_WINDOW, _MIN_SHAPE_WINDOW)
        if start.integrated:
            sampled, other = self.common(_sampled(shape), rows, _SHAPE_WINDOW, _MIN_SHAPE_WINDOW)
            # Star by star: a few that are disturbed must not decide for all. In doubt, detectors integrate.
            better = np.clip(np.nan_to_num(likelihood - other), -_HEARD, _HEARD)
            if better.mean() > min(_DOUBT, _CERTAIN * better.std() / np.sqrt(len(better))):
                again = self.agreeing_fits(sampled, rows)
                if again is not None:
                    shape, (rows, fits) = sampled, again
        return shape, fits, rows

    def agreeing_fits(
        self, start: _Shape, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.void]] | None:
        """Fit stars one by one, all parameters free; rows and fits of those of a common width."""
        fits = self.field(self.xy, self.peak, start).fit_moffat(rows)
        agree = _agreeing(fits)
        return (rows[agree], fits[agree]) if agree.any() else None

    def common(self, start: _Shape, rows: NDArray[np.int64], window: float, least: float) -> tuple[_Shape, Array]:
        """Fit one shape to many stars; -2 log likelihoods are infinite where that fails and the start stays."""
        radius = min(max(window * start.width, least), max(_MAX_SHAPE_WINDOW, _WINDOW * start.width))
        found = self.field(self.xy, self.peak, start, radius).fit_shape(rows)
        return (start, np.full(len(rows), np.inf)) if found is None else (_Shape(*found[0]), found[1])

    def first_fits(
        self, xy: Array, peak: Array, unfit: NDArray[np.bool_], fwhm: float
    ) -> tuple[_Shape, NDArray[np.int64]]:
        """Fit stars with a round shape whose width settles on that of the brightest.

        The brightest will do, unless there are too few isolated ones among them or others may be as bright.
        """
        height = np.where(unfit | ~np.isfinite(peak), -np.inf, peak / self.noise)
        order = np.lexsort((xy[:, 0], -height))
        many = self.options.max_fits
        counts = sorted({min(int(n * many), len(xy)) for n in _TRIED} | {len(xy)})
        for _ in range(4):
            shape = _Shape.round(fwhm)
            highest = _PEAK * shape.between_pixels
            while True:
                fits = self.fit(xy, peak, shape, passes=1, rows=order[: counts[0]])
                rows = self.candidates(fits, unfit, fwhm)
                if len(counts) == 1 or (len(rows) >= many and counts[0] >= _TRIED[1] * many):
                    break
                # a star that was left out is fainter than all that were chosen
                if len(rows) >= many:
                    faintest = (fits["peak"][rows] / self.noise[rows]).min()
                    if highest * faintest - _NOISE > height[order[counts[0]]]:
                        break
                counts.pop(0)
            if not len(rows):
                break
            change = _median(fits["width"][rows])
            if abs(np.log(change)) < _SETTLED:
                break
            fwhm *= change
        return shape, rows

    def candidates(self, fits: NDArray[np.void], unfit: NDArray[np.bool_], fwhm: float) -> NDArray[np.int64]:
        """Rows of bright, whole, isolated stars of a common width, at most `max_fits`."""
        snr = np.where(fits["converged"] > 0, fits["peak"] / fits["peak_err"], 0.0)
        whole = (fits["saturated"] == 0) & (fits["missing"] <= _MISSING * (fits["pixels"] + fits["missing"]))
        usable = whole & ~unfit & np.isfinite(fits["width"]) & (snr >= self.options.min_snr)
        usable &= fits["width"] * fwhm > _NARROWEST
        alone = usable & (fits["neighbours"] == 0)
        rows = np.flatnonzero(alone if np.count_nonzero(alone) >= _ENOUGH else usable)
        if not len(rows):
            return np.asarray(rows, dtype=np.int64)
        width = np.log(fits["width"][rows])
        rows = rows[np.abs(width - _median(_densest(width, 0.25))) < 0.4]
        brightest = np.lexsort((fits["x"][rows], -fits["peak"][rows]))
        return np.asarray(rows[brightest][: self.options.max_fits], dtype=np.int64)


def _sampled(shape: _Shape) -> _Shape:
    """Guess the shape that fits as well as an integrated one where the pixel's light is that of its middle."""
    added = (shape.pixel / 2) ** 2
    determinant = shape.a * shape.c - shape.b**2
    # the inverse of the form holds squared half widths, to which the pixel adds
    xx, xy, yy = shape.c / determinant + added, -shape.b / determinant, shape.a / determinant + added
    scale = 1 / (xx * yy - xy**2)
    return _Shape(scale * yy, -scale * xy, scale * xx, shape.eta)


def _as_image(image: ArrayLike) -> FloatImage:
    if isinstance(image, np.ma.MaskedArray):
        image = np.ma.filled(image.astype(np.float32), np.nan)
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    if pixels.ndim != 2:
        raise ValueError(f"image must have two dimensions, not {pixels.ndim}")
    return pixels


def _median(values: Array | FloatImage) -> float:
    """Median of a few finite values, without the checks that take longer than the work."""
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _positive(values: Array) -> Array:
    """Values above 0; the others NaN."""
    return np.where(values > 0, values, np.nan)


def _at(background: Background, xy: Array) -> tuple[Array, Array]:
    """Interpolate level and noise at the stars, bilinear, constant outside the outermost points."""
    cell = np.array(background.cell[::-1])
    first, last = (cell - 1) / 2, cell * background.level.shape[::-1] - (cell + 1) / 2
    inside = np.minimum(np.maximum(np.nan_to_num(xy), first), last)

    def at(mesh: FloatImage) -> Array:
        values = mesh.astype(np.float64)
        if not (known := np.isfinite(values)).all():
            values = np.where(known, values, _middle(values))
        return _levels.mesh_values(values, *background.cell, *background.shape, inside, np.inf)

    return at(background.level), at(background.noise)


def _densest(values: Array, width: float) -> Array:
    """Select the values of that interval of the given width that holds most of them."""
    ordered = np.sort(values)
    count = np.searchsorted(ordered, ordered + width, side="right") - np.arange(len(ordered))
    first = int(np.argmax(count))
    return np.asarray(ordered[first : first + count[first]])


def _first_width(rings: Array, height: Array) -> float:
    """Find the common ring width of the clearest stars; NaN where there are none."""
    star = np.isfinite(rings) & (rings > _HOT_PIXEL)
    star = star if star.any() else np.isfinite(rings)
    height = np.where(np.isfinite(height), height, np.inf)
    for limit in (20.0, 10.0, 5.0, 0.0):
        clear = star & (height > limit)
        if np.count_nonzero(clear) >= _ENOUGH or (limit == 0 and clear.any()):
            return float(np.exp(_median(_densest(np.log(rings[clear]), 0.4))))
    return float("nan")


def _agreeing(single: NDArray[np.void]) -> NDArray[np.bool_]:
    """Tell which fits have the width of most of the others, within their errors."""
    agree = single["converged"] > 0
    if agree.any():
        width = np.log(single["width"])
        middle = _median(_densest(width[agree], 0.2))
        with np.errstate(invalid="ignore"):
            agree &= np.abs(width - middle) < 4 * np.hypot(single["width_err"], _SPREAD)
    return np.asarray(agree)


def _axes(a: Any, b: Any, c: Any) -> tuple[Any, Any, Any]:
    """Full widths along the minor and the major axis, and the major axis' angle."""
    mean, split = (a + c) / 2, np.hypot((a - c) / 2, b)
    theta = (np.arctan2(2 * b, a - c) / 2 + np.pi) % np.pi - np.pi / 2
    return 2 / np.sqrt(mean + split), 2 / np.sqrt(mean - split), theta


def _unmeasured(table: Stars) -> Stars:
    """Keep the input, every row without a fit."""
    columns = {name: getattr(table, name) for name in ("flux", "sharpness")}
    return Stars.make(table.xy, **columns, flags=table.flags | int(StarFlag.NO_FIT))


def _columns(
    table: Stars,
    fits: NDArray[np.void],
    shape: _Shape,
    single: NDArray[np.void],
    rows: NDArray[np.int64],
    options: MeasureOptions,
) -> Stars:
    """Turn the fits into columns, with flags."""
    good = fits["converged"] > 0
    excess = np.ones(len(fits))
    if options.gain is None:
        freedom = np.maximum(fits["pixels"] - 4, 1)
        excess = np.sqrt(np.fmax(fits["chi2"] / freedom, 1.0))
    saturated = (fits["saturated"] > 0) | table.has(StarFlag.SATURATED)
    stretch = fits["width"]
    error = np.nan_to_num(fits["width_err"] * excess)
    sharp = good & ~saturated & (stretch + 3 * error < _SHARP)
    extended = good & ~saturated & (stretch - 5 * error > _EXTENDED)
    sharpness = np.where(np.isfinite(table.sharpness), table.sharpness, 1 / stretch)
    pixel = shape.pixel
    fwhm = np.hypot(shape.width * stretch, pixel)
    ellipticity, theta = np.full(len(fits), np.nan), np.full(len(fits), np.nan)
    minor, major, theta[rows] = _axes(single["a"], single["b"], single["c"])
    minor, major = np.hypot(minor, pixel), np.hypot(major, pixel)
    fwhm[rows], ellipticity[rows] = np.sqrt(minor * major), 1 - minor / major
    flags = table.flags & ~np.uint16(StarFlag.NO_FIT)
    for flag, which in (
        (StarFlag.SATURATED, saturated),
        (StarFlag.EDGE, fits["missing"] > 0),
        (StarFlag.BLENDED, fits["neighbours"] > 0),
        (StarFlag.SHARP, sharp),
        (StarFlag.EXTENDED, extended),
        (StarFlag.NO_FIT, ~good),
    ):
        flags = flags | np.uint16(flag) * which
    return Stars.make(
        np.stack([fits["x"], fits["y"]], axis=1),
        flux=np.where(good, fits["peak"] * shape.volume, np.nan),
        flux_err=fits["peak_err"] * shape.volume * excess,
        xy_err=fits["xy_err"] * excess,
        peak=fits["top"],
        sky=fits["sky"],
        fwhm=np.where(good, fwhm, np.nan),
        ellipticity=np.where(good, ellipticity, np.nan),
        theta=np.where(good, theta, np.nan),
        sharpness=sharpness,
        flags=flags,
    )


def _count_saturated(pixels: FloatImage, level: float | None) -> int:
    return 0 if level is None else int(np.count_nonzero(pixels >= np.float32(level)))


def _quality(
    saturated: int,
    stars: Stars,
    background: Background | None,
    sky: Array,
    noise: Array,
    shapes: tuple[_Shape, _Shape] | None = None,
    single: NDArray[np.void] | None = None,
) -> FrameQuality:
    psf = core = PSF(fwhm=np.nan, beta=np.nan, ellipticity=np.nan, theta=np.nan)
    if shapes is not None:
        psf, core = (shape.psf for shape in shapes)
    fwhm_err, n_fitted = np.nan, 0
    if single is not None:
        n_fitted = len(single)
        width = np.log(single["width"])
        scatter = 1.4826 * _median(np.abs(width - _median(width)))
        fwhm_err = psf.fwhm * float(max(scatter, _median(single["width_err"])) / np.sqrt(n_fitted))
    return FrameQuality(
        fwhm=psf.fwhm,
        fwhm_err=fwhm_err,
        ellipticity=core.ellipticity,
        theta=core.theta,
        beta=psf.beta,
        optical=psf.optical,
        n_stars=int(np.count_nonzero(~stars.has(StarFlag.SHARP | StarFlag.NO_FIT))),
        n_fitted=n_fitted,
        n_sharp=int(np.count_nonzero(stars.has(StarFlag.SHARP))),
        sky=_middle(sky if background is None else background.level),
        noise=_middle(noise if background is None else background.noise),
        saturated=saturated,
    )


def _middle(values: Array | FloatImage) -> float:
    values = values[np.isfinite(values)]
    return _median(values) if len(values) else float("nan")
