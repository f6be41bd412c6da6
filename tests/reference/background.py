"""Slow float64 twins of the kernels in csrc/fastack/background.cpp."""

from __future__ import annotations

import numpy as np
from scipy.special import erf


def cell_statistics(samples, clip=3.0, rounds=5):
    """Clipped mean, the same corrected for faint stars, and standard deviation, of one cell."""
    x = np.asarray(samples, float)
    x = x[np.isfinite(x)]
    mean = np.median(x)
    sigma = 1.4826 * np.median(abs(x - mean))
    cut = np.sqrt(1 - 2 * clip * np.exp(-(clip**2) / 2) / np.sqrt(2 * np.pi) / erf(clip / np.sqrt(2)))
    for _ in range(rounds):
        kept = x[abs(x - mean) <= clip * sigma]
        mean, sigma = kept.mean(), kept.std(ddof=1) / cut
    near = np.where(abs(x - mean) <= clip * sigma, x - mean, 0)
    median = mean + np.clip(near, -sigma, sigma).sum() / (abs(x - mean) < sigma).sum()
    return mean, median, sigma


def render(mesh, shape):
    """Catmull-Rom cubics through the centres of the cells, straight beyond them."""
    padded = np.pad(np.asarray(mesh, float), 2, mode="reflect", reflect_type="odd") if min(mesh.shape) > 2 else None

    def matrix(n_pixels, n_cells):
        place = (np.arange(n_pixels) + 0.5) * n_cells / n_pixels - 0.5
        first = np.floor(place).astype(int)
        t = place - first
        weights = np.zeros((n_pixels, n_cells + 4))
        rows = np.arange(n_pixels)
        weights[rows, first + 1] = -0.5 * t + t**2 - 0.5 * t**3
        weights[rows, first + 2] = 1 - 2.5 * t**2 + 1.5 * t**3
        weights[rows, first + 3] = 0.5 * t + 2 * t**2 - 1.5 * t**3
        weights[rows, first + 4] = -0.5 * t**2 + 0.5 * t**3
        return weights

    # beyond the outermost nodes the line through the last two, not the mirrored mesh
    for axis in (0, 1):
        p = np.moveaxis(padded, axis, 0)
        p[1], p[-2] = 2 * p[2] - p[3], 2 * p[-3] - p[-4]
        p[0], p[-1] = 2 * p[1] - p[2], 2 * p[-2] - p[-3]
    return matrix(shape[0], mesh.shape[0]) @ padded @ matrix(shape[1], mesh.shape[1]).T


def pixel_noise(image, rows=64):
    """Scatter of second differences over the root of 3/2, cut at 3 sigmas, which at first the median tells.

    In its bin where many are equal. The cut takes 2.67 % of a normal variance. Differences are left out where the means
    of the pixels 2 and 6 away differ by more than 1.5 sigmas of a pixel, unless they are seven of eight.
    """
    ny = image.shape[0]
    some = np.asarray(image, float)[np.unique(np.linspace(0, ny - 1, min(rows, ny)).astype(int))]
    second = np.abs(some[:, 1:-1:2] - 0.5 * (some[:, :-2:2] + some[:, 2::2]))
    around = np.zeros_like(second)
    for i in range(second.shape[1]):
        if 3 <= i < second.shape[1] - 3:
            inner, outer = ((some[:, 2 * i + 1 - k] + some[:, 2 * i + 1 + k]) / 2 for k in (2, 6))
            around[:, i] = np.abs(inner - outer)
    known = np.isfinite(second)
    around, unsorted = around[known], second[known]
    second = np.sort(unsorted)
    median = second[second.size // 2]
    equal, below = (second == median).sum(), (second < median).sum()
    if equal >= 0.02 * second.size:
        low = (second[second < median].max() + median) / 2 if below else median
        high = (second[second > median].min() + median) / 2 if below + equal < second.size else median
        median = low + (high - low) * min(1.0, (0.5 * second.size - below) / equal)
    sigma = 1.482602218505602 * median
    calm = around <= 1.5 * sigma / np.sqrt(1.5)
    second = unsorted[calm] if calm.sum() >= len(unsorted) // 8 else unsorted
    for _ in range(4):
        sigma = np.sqrt(np.mean(second[second <= 3 * sigma] ** 2) / 0.9733369246625415)
    return sigma / np.sqrt(1.5)
