"""A synthetic night with known truth, for the demo, the tests and the benchmarks.

Nothing here is shared with the code under test: profiles, noise, transforms and projections are rendered by plain
NumPy in this module alone.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastack.types import Array, FloatImage


def moffat_alpha(fwhm: float, beta: float) -> float:
    """Scale radius of a Moffat profile, pixel."""
    return fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))


def moffat(
    dx: Array, dy: Array, *, fwhm: float, beta: float, ellipticity: float = 0.0, theta: float = 0.0
) -> Array:
    """Unit-flux elliptical Moffat profile (Moffat 1969, A&A 3, 455).

    Parameters
    ----------
    dx, dy : ndarray, pixel
        Offsets from the centre.
    fwhm : float, pixel
        Geometric mean of the widths along both axes.
    beta : float
        Exponent.
    ellipticity : float
        1 - minor/major.
    theta : float, radian
        Of the major axis, from +x towards +y.

    Returns
    -------
    ndarray, 1/pixel^2
        The profile, whose integral over the plane is 1.
    """
    q = np.sqrt(1 - ellipticity)
    u = (dx * np.cos(theta) + dy * np.sin(theta)) * q
    v = (dy * np.cos(theta) - dx * np.sin(theta)) / q
    alpha2 = moffat_alpha(fwhm, beta) ** 2
    return np.asarray((beta - 1) / (np.pi * alpha2) * (1 + (u * u + v * v) / alpha2) ** -beta)


def render_stars(
    shape: tuple[int, int],
    xy: Any,
    flux: Any,
    *,
    fwhm: float,
    beta: float = 3.0,
    ellipticity: float = 0.0,
    theta: float = 0.0,
    pixel: Literal["sampled", "integrated"] = "integrated",
    radius: float | None = None,
) -> FloatImage:
    """Noise-free image of stars on a black sky.

    Parameters
    ----------
    shape : tuple of int
        (ny, nx).
    xy : (n, 2) array_like, pixel
        Positions; the centre of the first pixel is (0, 0).
    flux : (n,) array_like
        Total fluxes, any unit.
    fwhm, beta, ellipticity, theta
        See `moffat`. With ``pixel="sampled"`` they describe the effective PSF; with ``"integrated"`` the optical
        one, and each pixel holds its integral (3x3 Gauss-Legendre points).
    pixel : {"integrated", "sampled"}
        How a pixel responds.
    radius : float, optional, pixel
        Stamps are cut there; by default where a star's profile falls below 1e-6 of its flux per pixel, at least
        4 FWHM.

    Returns
    -------
    (ny, nx) float32 ndarray
        Same unit as `flux`.
    """
    image = np.zeros(shape)
    xy = np.asarray(xy, float).reshape(-1, 2)
    flux = np.broadcast_to(np.asarray(flux, float), len(xy))
    if pixel == "integrated":
        nodes, weights = np.polynomial.legendre.leggauss(3)
        nodes, weights = nodes / 2, weights / 2
    else:
        nodes, weights = np.zeros(1), np.ones(1)
    for (x, y), f in zip(xy, flux, strict=True):
        r = int(np.ceil(radius or _cut(f, fwhm, beta)))
        x0, x1 = max(0, round(x) - r), min(shape[1], round(x) + r + 1)
        y0, y1 = max(0, round(y) - r), min(shape[0], round(y) + r + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        dx, dy = np.arange(x0, x1) - x, np.arange(y0, y1) - y
        for a, wa in zip(nodes, weights, strict=True):
            for b, wb in zip(nodes, weights, strict=True):
                stamp = moffat(
                    dx[None, :] + a, dy[:, None] + b, fwhm=fwhm, beta=beta, ellipticity=ellipticity, theta=theta
                )
                image[y0:y1, x0:x1] += f * wa * wb * stamp
    return image.astype(np.float32)


def _cut(flux: float, fwhm: float, beta: float) -> float:
    alpha = moffat_alpha(fwhm, beta)
    central = (beta - 1) / (np.pi * alpha**2)
    return float(max(4 * fwhm, alpha * (central / 1e-6) ** (0.5 / beta)))
