"""Slow float64 twins of the kernels in csrc/fastack/detect.cpp."""

from __future__ import annotations

import numpy as np
from scipy.signal import correlate


def kernel(fwhm):
    """Gaussian matched filter on its square of pixels, with a height of 1."""
    radius = int(np.ceil(0.85 * fwhm))
    offset = np.arange(-radius, radius + 1)
    line = np.exp(-4 * np.log(2) * (offset / fwhm) ** 2)
    return np.outer(line, line)


def snr_map(image, level, noise, fwhm):
    """sum(k d / s) / sqrt(sum(k^2)) over the pixels that are there."""
    present = np.isfinite(image)
    whitened = np.where(present, (np.where(present, image, 0.0) - level) / noise, 0.0)
    k = kernel(fwhm)
    light = correlate(whitened, k, mode="same", method="direct")
    weight = correlate(present.astype(float), k**2, mode="same", method="direct")
    return np.where(weight >= 0.25 * (k**2).sum(), light / np.sqrt(np.maximum(weight, 1e-30)), -np.inf)


def maxima(snr, threshold):
    """(n, 2) x and y of the pixels that exceed the threshold and their eight neighbours."""
    padded = np.pad(snr, 1, constant_values=-np.inf)
    ny, nx = snr.shape
    near = [padded[1 + j : 1 + j + ny, 1 + i : 1 + i + nx] for j in (-1, 0, 1) for i in (-1, 0, 1) if i or j]
    y, x = np.nonzero((snr > threshold) & (snr > np.max(near, axis=0)))
    return np.stack([x, y], axis=1)
