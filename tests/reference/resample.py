"""Slow twin of fastack.resample: exact kernels, float64, one loop over output pixels, no blocks."""

from __future__ import annotations

import numpy as np

REACH = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos2": 2, "lanczos3": 3, "lanczos4": 4}


def profile(kernel, x):
    """Kernel at distance x, not normalised."""
    x = np.abs(x)
    if kernel == "nearest":
        return np.where(x <= 0.5, 1.0, 0.0)
    if kernel == "bilinear":
        return np.maximum(1 - x, 0)
    if kernel == "bicubic":
        far = np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0)
        return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, far)
    a = REACH[kernel]
    return np.where(x < a, np.sinc(x) * np.sinc(x / a), 0)


def taps(kernel, x):
    """Input pixels under the kernel at position x, and their normalised weights."""
    if kernel == "nearest":
        return np.array([int(np.floor(x + 0.5))]), np.ones(1)
    a = REACH[kernel]
    pixels = np.arange(int(np.floor(x)) - a + 1, int(np.floor(x)) + a + 1)
    w = profile(kernel, x - pixels)
    return pixels, w / w.sum()


def area_taps(corners):
    """Overlap of a convex quadrilateral with each input pixel, clipped against its four sides."""
    (x0, y0), (x1, y1) = np.floor(corners.min(0) + 0.5), np.floor(corners.max(0) + 0.5)
    xs, ys = np.arange(int(x0), int(x1) + 1), np.arange(int(y0), int(y1) + 1)
    k = np.zeros((len(ys), len(xs)))
    for j, y in enumerate(ys):
        for i, x in enumerate(xs):
            polygon = corners
            for normal, limit in (
                ((1, 0), x + 0.5),
                ((-1, 0), 0.5 - x),
                ((0, 1), y + 0.5),
                ((0, -1), 0.5 - y),
            ):
                polygon = clip(polygon, np.array(normal), limit)
            px, py = polygon.T
            k[j, i] = abs(px @ np.roll(py, -1) - py @ np.roll(px, -1)) / 2
    return ys, xs, k


def clip(polygon, normal, limit):
    """Cut away the part of a polygon outside of normal . point <= limit."""
    out = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        da, db = normal @ a - limit, normal @ b - limit
        if da <= 0:
            out.append(a)
        if (da <= 0) != (db <= 0):
            out.append(a + (b - a) * da / (da - db))
    return np.array(out).reshape(-1, 2)


def weights(kernel, transform, x, y):
    """Rows, columns and coefficients of the input pixels that make up output pixel (x, y)."""
    if kernel == "area":
        square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
        return area_taps(transform(np.array([x, y]) + square))
    px, py = transform([[x, y]])[0]
    xs, wx = taps(kernel, px)
    ys, wy = taps(kernel, py)
    return ys, xs, np.outer(wy, wx)


def resample(image, transform, shape, kernel, max_lost=0.5, scale=1.0, offset=0.0, sky=0.0):
    """Pixels, variance factor sum(k^2)/(sum k)^2 (|J|/|J_frame|)^2, and part of the weight lost."""
    image = np.asarray(image, float)
    out, factor, lost = (np.full(shape, np.nan) for _ in range(3))
    frame = abs(np.linalg.det(transform.matrix))
    for y, x in np.ndindex(shape):
        ys, xs, k = weights(kernel, transform, x, y)
        inside = ((ys >= 0) & (ys < image.shape[0]))[:, None] & ((xs >= 0) & (xs < image.shape[1]))
        pixels = image[np.clip(ys, 0, image.shape[0] - 1)[:, None], np.clip(xs, 0, image.shape[1] - 1)]
        good = inside & np.isfinite(pixels)
        lost[y, x] = np.abs(k[~good]).sum() / np.abs(k).sum()
        norm = k[good].sum()
        if lost[y, x] > max_lost or norm < (1 - max_lost) * k.sum() or not good.any():
            continue
        jacobian = abs(np.linalg.det(transform.jacobian([[x, y]])[0]))
        out[y, x] = scale * jacobian * ((k[good] * pixels[good]).sum() / norm - sky) + offset
        factor[y, x] = (k[good] ** 2).sum() / norm**2 * (jacobian / frame) ** 2
    return out, factor, lost


def variance(var, transform, shape, kernel, max_lost=0.5):
    """Variance of the resampled pixels: |J|^2 sum(k^2 V) / (sum k)^2 over the pixels that are there."""
    var = np.asarray(var, float)
    out = np.full(shape, np.nan)
    for y, x in np.ndindex(shape):
        ys, xs, k = weights(kernel, transform, x, y)
        inside = ((ys >= 0) & (ys < var.shape[0]))[:, None] & ((xs >= 0) & (xs < var.shape[1]))
        v = var[np.clip(ys, 0, var.shape[0] - 1)[:, None], np.clip(xs, 0, var.shape[1] - 1)]
        good = inside & np.isfinite(v)
        kept = np.abs(k[~good]).sum() <= max_lost * np.abs(k).sum() and k[good].sum() >= (1 - max_lost) * k.sum()
        if kept and good.any():
            jacobian = abs(np.linalg.det(transform.jacobian([[x, y]])[0]))
            out[y, x] = jacobian**2 * (k[good] ** 2 * v[good]).sum() / k[good].sum() ** 2
    return out
