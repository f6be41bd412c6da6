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


def too_sharp(z, shot, narrow, limit):
    """Whether no PSF as narrow as that makes the middle of a 5x5 patch (in units of the noise; NaN is missing)."""
    g = np.exp(-0.5 * (2.3548200450309493 / (0.9 * narrow)) ** 2)
    here, beside = z[2, 2], np.array([z[2, 1], z[2, 3], z[1, 2], z[3, 2]])

    def variance(v):
        return 1 + shot * np.maximum(v, 0)

    def exceeds(mean, n, other, m, ratio):
        excess = 0.9 * mean - other / ratio
        return excess > 0 and excess**2 > limit**2 * (variance(mean) / n + variance(other) / (m * ratio**2))

    def alike(mate):
        return mate > 0.4 * here and here > 0.4 * mate

    def corner(a, b, across):
        r, s = 0.4 * a / here, 0.4 * b / here
        spread = variance(across) + s**2 * variance(a) + r**2 * variance(b) + (r * s / 0.4) ** 2 * variance(here)
        return alike(a) and alike(b) and r * b > across and (r * b - across) ** 2 > limit**2 * spread

    for p in (np.rot90(z, k) for k in range(4)):
        pair, along = (here + p[2, 3]) / 2, (p[2, 1] + p[2, 4]) / 2
        across = (p[1, 2] + p[3, 2] + p[1, 3] + p[3, 3]) / 4
        if exceeds(here, 1, (p[2, 1] + p[2, 3]) / 2, 2, g) or corner(p[2, 3], p[1, 2], p[1, 3]):
            return True
        if alike(p[2, 3]) and (exceeds(pair, 2, along, 2, g**2) or exceeds(pair, 2, across, 4, g)):
            return True
    known = beside[np.isfinite(beside)]
    return len(known) > 2 and exceeds(here, 1, known.mean(), len(known), g)


def hits(image, level, noise, narrow, shot, full):
    """x, y of hit pixels: cores among those above 6 sigma, then what hangs on them and is too bright for the rest."""
    z = np.pad((np.asarray(image, float) - level) / noise, 2, constant_values=np.nan)

    def patch(x, y):
        return z[y : y + 5, x : x + 5]

    y, x = np.nonzero(z[2:-2, 2:-2] > 6)
    top = (full - level) / noise
    cores = [p for p in zip(x, y, strict=True) if too_sharp(patch(*p), shot, narrow, 4)]
    found = [p for p in cores if (patch(*p) >= top).sum() < 4]
    g = np.exp(-0.5 * (2.3548200450309493 / (0.9 * narrow)) ** 2)
    for x, y in found:  # grows
        around = np.sort(patch(x, y)[np.isfinite(patch(x, y))])
        if around[len(around) // 2] > 1:
            continue
        for v in range(max(y - 1, 0), min(y + 2, image.shape[0])):
            for u in range(max(x - 1, 0), min(x + 2, image.shape[1])):
                here, near = z[v + 2, u + 2], patch(u, v)[1:4, 1:4].copy()
                if not 3.5 < here < top or (u, v) in found:
                    continue
                for j in range(3):
                    for i in range(3):
                        if (i, j) == (1, 1) or (u + i - 1, v + j - 1) in found:
                            near[j, i] = np.nan
                if (near > max(0.25 * here, 2)).sum() > 1:
                    continue
                cross = np.array([near[1, 0], near[1, 2], near[0, 1], near[2, 1]])
                cross = cross[np.isfinite(cross)]
                if len(cross):
                    excess = 0.9 * here - cross.mean() / g
                    variance = 1 + shot * here + (1 + shot * max(cross.mean(), 0)) / (len(cross) * g**2)
                if not len(cross) or (excess > 0 and excess**2 > 4 * variance):
                    found.append((u, v))
    return {(int(x), int(y)) for x, y in found}
