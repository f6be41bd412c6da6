"""A frame's pixels on the output grid: section + Transform -> pixels, variance factor and flags.

Every output pixel is a weighted mean of the frame's pixels around the place that the transform maps it to,
times the Jacobian, so that flux is conserved. Lanczos kernels: Duchon 1979, J. Appl. Meteorology 18, 1016;
bicubic: Keys 1981, IEEE Trans. ASSP 29, 1153 with a = -1/2; all are separable and normalised to a sum of 1.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastack import _pixels
from fastack.options import Kernel, ResampleOptions
from fastack.types import Array, Background, FloatImage, Transform

#: Rows, columns of a tile: (y0, y1, x0, x1), ends excluded.
Tile = tuple[int, int, int, int]

_REACH = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos2": 2, "lanczos3": 3, "lanczos4": 4}


@overload
def resample(
    image: ArrayLike,
    transform: Transform | ArrayLike,
    *,
    shape: tuple[int, int] | None = ...,
    variance: None = ...,
    options: ResampleOptions = ...,
) -> FloatImage: ...


@overload
def resample(
    image: ArrayLike,
    transform: Transform | ArrayLike,
    *,
    shape: tuple[int, int] | None = ...,
    variance: ArrayLike,
    options: ResampleOptions = ...,
) -> tuple[FloatImage, FloatImage]: ...


def resample(
    image: ArrayLike,
    transform: Transform | ArrayLike,
    *,
    shape: tuple[int, int] | None = None,
    variance: ArrayLike | None = None,
    options: ResampleOptions = ResampleOptions(),
) -> FloatImage | tuple[FloatImage, FloatImage]:
    """Bring an image onto another pixel grid, conserving flux.

    Parameters
    ----------
    image : (ny, nx) array_like
        Any dtype and byte order. NaN, infinite or masked: missing.
    transform : Transform or (2, 3) array_like
        Output pixels to pixels of `image`; a matrix stands for ``(x, y)_image = matrix @ (x, y, 1)_output``.
    shape : tuple of int, optional
        (ny, nx) of the output; by default the image's.
    variance : (ny, nx) array_like, optional
        Variance of each pixel, in the image's unit squared; a scalar holds for all.
    options : ResampleOptions
        Kernel, and how much of it may fall on missing pixels.

    Returns
    -------
    (ny, nx) float32 ndarray, or a pair of them
        The image, ``|J| sum(k s) / sum(k)`` with J the Jacobian of the transform at each output pixel, and
        with `variance` its variance ``|J|^2 sum(k^2 V) / sum(k)^2``. NaN where more than ``options.max_lost``
        of the kernel's absolute weight falls on missing pixels or outside of the image.

    Raises
    ------
    ValueError
        If an array or matrix has the wrong shape, or a coefficient of the transform is not finite.

    Notes
    -----
    Kernels are in units of the input's pixels: where an output pixel covers more than about 1.2 input pixels,
    interpolation skips light and ``kernel="area"`` is the right choice. Identity and shifts by whole pixels
    are copies, bit by bit, but for the area kernel.
    """
    pixels = _image(image, "image")
    mapping = transform if isinstance(transform, Transform) else _affine(transform)
    ny, nx = pixels.shape if shape is None else (int(shape[0]), int(shape[1]))
    if ny < 0 or nx < 0:
        raise ValueError(f"shape must not be negative, got {(ny, nx)}")
    out = np.empty((ny, nx), np.float32)
    tile = (0, ny, 0, nx)
    _call(pixels, (0, 0), pixels.shape, mapping, tile, out=out, level=_level(pixels, mapping), options=options)
    if variance is None:
        return out
    spread = np.empty((ny, nx), np.float32)
    noise = np.broadcast_to(_masked(variance), pixels.shape)
    noise = np.where(np.isfinite(pixels), noise, np.float32("nan")).astype(np.float32)
    _call(noise, (0, 0), pixels.shape, mapping, tile, out=spread, square=True, options=options)
    return out, spread


def input_window(
    transform: Transform, tile: Tile, shape: tuple[int, int], options: ResampleOptions = ResampleOptions()
) -> Tile | None:
    """Part of a frame that a tile of the output needs, the kernel's reach included.

    Parameters
    ----------
    transform : Transform
        Output pixels to frame pixels.
    tile : tuple of int
        (y0, y1, x0, x1) of the output, ends excluded. Blocks of 16 columns are computed whole, so that tiles
        which start and end at multiples of 16 need the least.
    shape : tuple of int
        (ny, nx) of the frame.
    options : ResampleOptions
        The kernel.

    Returns
    -------
    tuple of int or None
        (y0, y1, x0, x1) within the frame; None where the tile and the frame do not overlap.

    Notes
    -----
    The bounds hold for polynomials of any order up to 3, wherever in the tile their extremes lie: values on a
    mesh, widened by what the second derivatives allow in between.
    """
    cx, cy = _coefficients(transform)
    window: Tile | None = _pixels.input_window(cx, cy, transform.origin, transform.scale, tile, shape, options.kernel)
    return window


def resample_tile(
    section: FloatImage,
    section_origin: tuple[int, int],
    frame_shape: tuple[int, int],
    transform: Transform,
    tile: Tile,
    *,
    out: FloatImage,
    factor: NDArray[np.uint8] | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
    sky: float = 0.0,
    saturated: NDArray[np.int32] | None = None,
    saturated_count: NDArray[np.uint16] | None = None,
    flags: NDArray[np.uint8] | None = None,
    surface: tuple[Background, tuple[int, int]] | None = None,
    options: ResampleOptions = ResampleOptions(),
) -> None:
    """One tile of the output from a section of a frame, written into preallocated planes.

    Parameters
    ----------
    section : (h, w) float32 ndarray
        Calibrated pixels of the frame, at least those of `input_window`; NaN or infinite: missing.
    section_origin : tuple of int
        Frame pixel (x0, y0) of ``section[0, 0]``.
    frame_shape : tuple of int
        (ny, nx) of the whole frame.
    transform : Transform
        Output pixels to frame pixels.
    tile : tuple of int
        (y0, y1, x0, x1) of the output, ends excluded.
    out : (y1 - y0, x1 - x0) float32 ndarray
        Receives ``scale * |J| * (sum(k s) / sum(k) - sky) + offset``, NaN where missing. May be part of a
        larger array, as all planes. `out` and `factor` may lie in panels of 64 columns, (y1 - y0, panels, 64), of
        the last of which only the tile's columns are written.
    factor : uint8 ndarray of the same shape, optional
        Receives ``255 sum(k^2) / sum(k)^2 (|J| / |J_frame|)^2``, rounded, 1 to 255, with J_frame the Jacobian
        at the transform's origin: white noise of variance V becomes ``V scale^2 |J_frame|^2 factor / 255``.
    scale, offset, sky : float
        See `out`; sky in the frame's ADU, offset in the output's.
    saturated : (k, 2) int32 ndarray, optional
        (x, y) of the frame's saturated pixels.
    saturated_count : uint16 ndarray of the tile's shape, optional
        Incremented where a saturated pixel is closer than 1 pixel in x and y (one of the nearest 2 x 2).
    flags : uint8 ndarray of the tile's shape, optional
        ``PixelFlag.INTERPOLATED`` is added where a missing pixel lay under the kernel of a given output,
        ``PixelFlag.SATURATED`` where `saturated_count` is incremented.
    surface : (Background, (x, y)), optional
        Taken off the output where `background.render` draws it, with its first pixel on pixel (x, y) of the output.
    options : ResampleOptions
        Kernel and `max_lost`.

    Raises
    ------
    ValueError
        If the section is too small for the tile, or an array has the wrong shape.
    TypeError
        If an array has the wrong dtype, or the pixels of its rows do not lie side by side.

    Notes
    -----
    The same bits for any tiling of the output: blocks of pixels are anchored at multiples of 16 columns and 8
    rows.
    """
    _call(
        section,
        section_origin,
        frame_shape,
        transform,
        tile,
        out=out,
        factor=factor,
        scale=scale,
        offset=offset,
        sky=sky,
        level=sky,
        saturated=saturated,
        saturated_count=saturated_count,
        flags=flags,
        surface=surface,
        options=options,
    )


def resample_variance(
    variance: FloatImage,
    section_origin: tuple[int, int],
    frame_shape: tuple[int, int],
    transform: Transform,
    tile: Tile,
    *,
    out: FloatImage,
    options: ResampleOptions = ResampleOptions(),
) -> None:
    """Variance of a tile that `resample_tile` makes from a section, for noise that no neighbours share.

    Parameters
    ----------
    variance : (h, w) float32 ndarray
        Of each pixel of the section; NaN where the pixel is missing.
    section_origin, frame_shape, transform, tile, options
        As given to `resample_tile`.
    out : (y1 - y0, x1 - x0) float32 ndarray
        Receives ``|J|^2 sum(k^2 V) / sum(k)^2``, NaN where missing; the square of `scale` is left to the caller.

    Raises
    ------
    ValueError
        If the section is too small for the tile, or an array has the wrong shape.
    """
    _call(variance, section_origin, frame_shape, transform, tile, out=out, square=True, options=options)


def autocorrelation(kernel: Kernel, phase_x: float, phase_y: float) -> Array:
    """Covariance of a resampled pixel's noise with its neighbours', for white noise at the input.

    Parameters
    ----------
    kernel : str
        A kernel of `ResampleOptions`; "area" counts as an unturned pixel.
    phase_x, phase_y : float, pixel
        Position of the output pixel between input pixels, 0 to 1.

    Returns
    -------
    (2 r + 1, 2 r + 1) ndarray
        Covariance for lags of -r to r pixels in y and x in units of the input's variance, r being the number
        of taps minus 1; the middle is the variance factor sum(k^2).
    """
    return np.outer(_lags(_weights(kernel, phase_y)), _lags(_weights(kernel, phase_x)))


def _weights(kernel: Kernel, phase: float) -> Array:
    """Normalised weights of the taps -r + 1 to r around the pixel to the left of the phase."""
    if kernel == "area":
        return np.array([1 - phase, phase])
    r = _REACH[kernel]
    x = np.abs(phase - np.arange(-r + 1, r + 1))
    if kernel == "nearest":
        return np.array([1.0, 0.0] if phase < 0.5 else [0.0, 1.0])
    if kernel == "bilinear":
        w = 1 - x
    elif kernel == "bicubic":
        w = np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    else:
        w = np.where(x < r, np.sinc(x) * np.sinc(x / r), 0.0)
    return np.asarray(w / w.sum())


def _lags(w: Array) -> Array:
    """Autocorrelation of a row of weights."""
    return np.correlate(w, w, mode="full")


def _masked(values: ArrayLike) -> NDArray[np.float32]:
    if isinstance(values, np.ma.MaskedArray):
        return np.asarray(np.ma.filled(values.astype(np.float32), np.nan))
    return np.asarray(values, np.float32)


def _image(values: ArrayLike, name: str) -> FloatImage:
    pixels = np.ascontiguousarray(_masked(values))
    if np.ndim(values) != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {np.shape(values)}")
    return pixels


def _level(pixels: FloatImage, transform: Transform) -> float:
    """Return what to subtract before interpolating, that an even image stays even; 0 for copies."""
    numbers = (*transform.matrix.ravel(), *transform([[0.0, 0.0]])[0])
    if transform.order == 1 and all(float(number).is_integer() for number in numbers):
        return 0.0
    step = max(1, int(np.sqrt(pixels.size / 10_000)))
    some = pixels[::step, ::step]
    some = some[np.isfinite(some)]
    if not some.size:
        return 0.0
    mantissa, exponent = np.frexp(np.median(some))  # in coarse steps, so that single pixels do not change it
    return float(np.ldexp(np.round(mantissa * 64) / 64, exponent))


def _affine(matrix: ArrayLike) -> Transform:
    values = np.asarray(matrix, float)
    if values.shape != (2, 3):
        raise ValueError(f"transform must be a Transform or a (2, 3) matrix, got shape {values.shape}")
    return Transform.affine(values)


def _coefficients(transform: Transform) -> tuple[Array, Array]:
    return np.ascontiguousarray(transform.cx), np.ascontiguousarray(transform.cy)


def _call(
    section: FloatImage,
    section_origin: tuple[int, int],
    frame_shape: tuple[int, ...],
    transform: Transform,
    tile: Tile,
    *,
    out: FloatImage,
    options: ResampleOptions,
    factor: Any = None,
    scale: float = 1.0,
    offset: float = 0.0,
    sky: float = 0.0,
    level: float = 0.0,
    saturated: Any = None,
    saturated_count: Any = None,
    flags: Any = None,
    surface: tuple[Background, tuple[int, int]] | None = None,
    square: bool = False,
) -> None:
    """Call the native function, its arguments in order."""
    cx, cy = _coefficients(transform)
    mesh, area = None, (0, 0, 0, 0)
    if surface is not None:
        mesh, (x, y) = surface[0].level, surface[1]
        area = (y, y + surface[0].shape[0], x, x + surface[0].shape[1])
    _pixels.resample_tile(
        section,
        section_origin,
        frame_shape,
        cx,
        cy,
        transform.origin,
        transform.scale,
        tile,
        options.kernel,
        options.max_lost,
        scale,
        offset,
        sky,
        level,
        out,
        factor,
        saturated,
        saturated_count,
        flags,
        mesh,
        area,
        square,
    )
