"""Slow twins of csrc/rows/calibrate.inl and of the masters: float64 NumPy."""

import numpy as np

FITS_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


def stored(values, bitpix):
    """Bytes of an image as a FITS file holds them: (ny, row_bytes) of uint8."""
    values = np.ascontiguousarray(values, FITS_TYPES[bitpix])
    return values.view(np.uint8).reshape(values.shape[0], -1)


def calibrate(
    raw,
    bitpix,
    bscale=1,
    bzero=0,
    blank=None,
    *,
    level=0,
    bias=0,
    dark=0,
    dark_scale=1,
    inv_flat=1,
    saturation=np.inf,
):
    """``(raw * bscale + bzero - level - bias - dark * scale) * inv_flat`` and (x, y) of saturated pixels."""
    number = raw.view(FITS_TYPES[bitpix])
    physical = number.astype(np.float64) * bscale + bzero
    if blank is not None and bitpix > 0:
        physical[number == blank] = np.nan
    saturated = np.argwhere(physical >= saturation)[:, ::-1]
    x = physical - np.reshape(level, (-1, 1)) - bias - np.multiply(dark, np.float64(dark_scale))
    return x * inv_flat, saturated


def clipped_mean(cube, clip):
    """Mean of each pixel's samples within `clip` sigmas of their median; sigma of each frame from its MAD."""
    median = np.median(cube, axis=0)
    n = len(cube)
    sigma = [1.4826 * np.median(abs(frame - median)) * np.sqrt(n / (n - 1)) for frame in cube]
    kept = [abs(frame - median) <= clip * s for frame, s in zip(cube, sigma, strict=True)]
    return np.average(cube, axis=0, weights=np.array(kept, float))
