"""Slow float64 twin of `fastack.render.render_stars`: 5x5 Gauss-Legendre points in every pixel."""

from __future__ import annotations

import numpy as np


def moffat(dx, dy, fwhm, beta, ellipticity=0.0, theta=0.0):
    """Unit-flux elliptical Moffat profile (Moffat 1969, A&A 3, 455)."""
    q = np.sqrt(1 - ellipticity)
    u = (dx * np.cos(theta) + dy * np.sin(theta)) * q
    v = (dy * np.cos(theta) - dx * np.sin(theta)) / q
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return (beta - 1) / (np.pi * alpha2) * (1 + (u * u + v * v) / alpha2) ** -beta


def render_stars(shape, xy, flux, *, radius, integrated=True, **profile):
    """Noise-free image of stars on a black sky, each within a square of half side `radius`."""
    image = np.zeros(shape)
    nodes, weights = np.polynomial.legendre.leggauss(5 if integrated else 1)
    for (x, y), f in zip(xy, flux, strict=True):
        x0, x1 = max(0, round(x) - radius), min(shape[1], round(x) + radius + 1)
        y0, y1 = max(0, round(y) - radius), min(shape[0], round(y) + radius + 1)
        dx, dy = np.arange(x0, x1) - x, np.arange(y0, y1)[:, None] - y
        for a, wa in zip(nodes / 2, weights / 2, strict=True):
            for b, wb in zip(nodes / 2, weights / 2, strict=True):
                image[y0:y1, x0:x1] += f * wa * wb * moffat(dx + a, dy + b, **profile)
    return image
