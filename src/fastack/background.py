"""Sky level and noise on a coarse mesh, and the smooth surface through it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastack import _pixels
from fastack.options import BackgroundOptions
from fastack.types import Background, FloatImage


def as_pixels(image: Any) -> FloatImage:
    """Any two-dimensional array_like as native contiguous float32; masked entries become NaN.

    Parameters
    ----------
    image : (ny, nx) array_like
        Pixels of any numeric type and byte order, or a masked array.

    Returns
    -------
    (ny, nx) float32 ndarray
        The input itself where it has that form already.

    Raises
    ------
    ValueError
        If `image` has not two dimensions, or no pixels.
    """
    if isinstance(image, np.ma.MaskedArray):
        image = np.ma.filled(image.astype(np.float32), np.nan)
    pixels = np.ascontiguousarray(image, np.float32) if np.ndim(image) == 2 else np.asarray(image)
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"image has shape {pixels.shape}; needed is (ny, nx) with at least one pixel")
    return pixels


def estimate(image: Any, *, mask: Any = None, options: BackgroundOptions = BackgroundOptions()) -> Background:
    """Sky level and pixel noise in the cells of a mesh.

    Parameters
    ----------
    image : (ny, nx) array_like, ADU
        NaN and infinite pixels count as missing.
    mask : (ny, nx) array_like of bool, optional
        True where a pixel is to be left out.
    options : BackgroundOptions
        Size of a cell, clipping.

    Returns
    -------
    Background
        All of NaN where no pixel is left. A cell without data takes its neighbours' values.

    Raises
    ------
    ValueError
        If a shape does not fit.

    Notes
    -----
    In each cell a clipped mean, corrected for stars too faint to be clipped by mode = mean - 2.5 (mean -
    median) (Bertin & Arnouts 1996, A&AS 117, 393; Huber's estimate and a factor of 3.2 in place of the
    median and 2.5), the difference taken over 3x3 cells; a clipped standard deviation, corrected for the cut
    tails; then a median filter that leaves planes as they are.
    """
    pixels = as_pixels(image)
    left_out: NDArray[np.uint8] | None = None
    if mask is not None:
        left_out = np.ascontiguousarray(np.asarray(mask, bool)).view(np.uint8)
        if left_out.shape != pixels.shape:
            raise ValueError(f"mask has shape {left_out.shape}, the image {pixels.shape}")
    if options.cell < 1 or options.rounds < 1 or options.row_step < 1 or not options.clip > 0:
        raise ValueError(f"cell, rounds, row_step and clip must be positive: {options}")
    level, noise = _pixels.background_estimate(
        pixels, left_out, options.cell, options.clip, options.rounds, options.row_step
    )
    for mesh in (level, noise):
        mesh.setflags(write=False)
    ny, nx = pixels.shape
    return Background(level=level, noise=noise, shape=(ny, nx), cell=(ny / level.shape[0], nx / level.shape[1]))


def render(background: Background, window: tuple[slice, slice] | None = None) -> FloatImage:
    """Render the sky level in every pixel.

    Parameters
    ----------
    background : Background
        What `estimate` returned.
    window : (slice, slice), optional
        Rows and columns that are wanted, of step 1; default the whole image. A pixel has the same value, bit
        for bit, in every window.

    Returns
    -------
    float32 ndarray, ADU
        Catmull-Rom cubics between the centres of the cells, straight beyond the outermost.

    Raises
    ------
    ValueError
        If a slice has another step than 1.
    """
    rows, columns = window or (slice(None), slice(None))
    y0, y1, y_step = rows.indices(background.shape[0])
    x0, x1, x_step = columns.indices(background.shape[1])
    if (y_step, x_step) != (1, 1):
        raise ValueError(f"window {window} has steps other than 1")
    return _pixels.background_render(background.level, background.shape, y0, max(y0, y1), x0, max(x0, x1))


def subtract(image: Any, background: Background) -> FloatImage:
    """Take the sky off an image.

    Parameters
    ----------
    image : (ny, nx) array_like, ADU
        NaN stays NaN.
    background : Background
        Of an image of this shape.

    Returns
    -------
    (ny, nx) float32 ndarray, ADU
        ``image - render(background)``.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    pixels = as_pixels(image)
    if pixels.shape != background.shape:
        raise ValueError(f"the image has shape {pixels.shape}, its background {background.shape}")
    return _pixels.background_subtract(pixels, background.level)


def pixel_noise(image: FloatImage, rows: int = 64) -> float:
    """White noise of one pixel, whatever stars and gradients are there.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        NaN is missing.
    rows : int
        Rows that are looked at, spread evenly over the image.

    Returns
    -------
    float, unit of `image`
        Standard deviation of the second differences along the rows: the difference of a pixel and the mean of its
        neighbours has 3/2 of a pixel's variance, and no slope enters. Differences are left out where the means of the
        pixels 2 and 6 away differ by more than 1.5 sigmas of a pixel, since a star is there, and beyond 3 sigmas, at
        first from their median; the variance is corrected for the latter.
        NaN where nothing can be measured.
    """
    return _pixels.pixel_noise(image, rows)
