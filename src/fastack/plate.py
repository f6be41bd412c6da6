"""The map of a camera onto the sky: polynomials in the tangent plane, and their FITS cards.

Pixels are 0-based, ``(x, y)``; the 1-based numbers of FITS exist only in the headers written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastack.types import Array

if TYPE_CHECKING:
    from astropy.io import fits


def exponents(order: int) -> list[tuple[int, int]]:
    """Exponents (p, q) of u^p v^q up to `order`, constant first."""
    return [(n - q, q) for n in range(order + 1) for q in range(n + 1)]


def power_terms(uv: Array, order: int) -> Array:
    """(n, m) products of powers."""
    u, v = uv[:, 0], uv[:, 1]
    return np.stack([u**p * v**q for p, q in exponents(order)], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plate:
    """Pixels -> tangent plane at (ra, dec) by polynomials in (x - x0)/half, radian."""

    ra: float
    dec: float
    origin: tuple[float, float]
    half: float
    order: int  # 0: similarity, with the terms of order 1
    coefficients: Array  # (m, 2)
    covariance: Array  # (m, m) of either column, radian^2: the larger axis
    extra: float = 0.0  # scatter beyond the stated errors, radian per axis
    bic: float = np.inf

    def terms(self, xy: Array) -> Array:
        """(n, m) terms of the polynomials at pixels."""
        return power_terms((xy - self.origin) / self.half, max(self.order, 1))

    def plane(self, xy: Array) -> Array:
        """(n, 2) tangent-plane positions of pixels."""
        return np.asarray(self.terms(xy) @ self.coefficients)

    @property
    def matrix(self) -> Array:
        """(2, 2) derivative at the origin, radian per pixel."""
        return np.asarray(self.coefficients[1:3].T / self.half)

    @property
    def scale(self) -> float:
        """Radian per pixel."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    def error(self, xy: Array) -> Array:
        """(n,) one sigma of the map per axis, pixel."""
        t = self.terms(xy)
        return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", t, self.covariance, t)) / self.scale)

    def cards(self, shape: tuple[int, int], kind: str) -> fits.Header:
        """FITS cards of an image of this shape: `kind` is "sip" or "tpv"."""
        from astropy.io import fits

        order = max(self.order, 1)
        powers = exponents(order)
        degrees = np.degrees(self.coefficients) / np.array([self.half ** (p + q) for p, q in powers])[:, None]
        cd = degrees[1:3].T
        name = "TPV" if kind == "tpv" else "TAN-SIP" if order > 1 else "TAN"
        header = fits.Header()
        header["WCSAXES"] = (2, "celestial axes")
        header["CTYPE1"] = (f"RA---{name}", "projection")
        header["CTYPE2"] = (f"DEC--{name}", "projection")
        header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
        header["CRVAL1"] = (self.ra, "[deg] right ascension of the reference pixel")
        header["CRVAL2"] = (self.dec, "[deg] declination of the reference pixel")
        header["CRPIX1"] = (self.origin[0] + 1, "reference pixel (first is 1)")
        header["CRPIX2"] = (self.origin[1] + 1, "reference pixel (first is 1)")
        for i in (0, 1):
            for j in (0, 1):
                header[f"CD{i + 1}_{j + 1}"] = (cd[i, j], "[deg/pixel]")
        header["RADESYS"] = ("ICRS", "celestial reference system")
        header["EQUINOX"] = (2000.0, "[yr]")
        if kind == "tpv":
            for key, value in _tpv(degrees, cd, order, shape):
                header[key] = value
        elif order > 1:
            ab = np.linalg.solve(cd, degrees[3:].T)
            for letter, column in zip("AB", ab, strict=True):
                header[f"{letter}_ORDER"] = (order, "SIP: pixels to sky")
                for (p, q), value in zip(powers[3:], column, strict=True):
                    header[f"{letter}_{p}_{q}"] = value
            back, terms = _inverse_sip(ab, order, shape)
            for letter, column in zip(("AP", "BP"), terms.T, strict=True):
                header[f"{letter}_ORDER"] = (back, "SIP: sky to pixels")
                for (p, q), value in zip(exponents(back), column, strict=True):
                    header[f"{letter}_{p}_{q}"] = value
        return header


def _net(shape: tuple[int, int], n: int = 24) -> Array:
    """(n * n, 2) pixel offsets from the centre that cover an image with a little margin."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.52, 0.52, n) * nx, np.linspace(-0.52, 0.52, n) * ny)
    return np.column_stack([x.ravel(), y.ravel()])


def _inverse_sip(ab: Array, order: int, shape: tuple[int, int]) -> tuple[int, Array]:
    """Order and (m, 2) coefficients of the SIP polynomials from sky to pixels, good to 0.001 pixel if possible."""
    uv = _net(shape)
    full = uv + power_terms(uv, order)[:, 3:] @ ab.T
    half = max(shape) / 2
    for back in range(order, 10):
        terms = power_terms(full / half, back)
        fit = np.linalg.lstsq(terms, uv - full, rcond=None)[0]
        if np.abs(terms @ fit - (uv - full)).max() < 1e-3:
            break
    return back, fit / np.array([half ** (p + q) for p, q in exponents(back)])[:, None]


def _tpv(degrees: Array, cd: Array, order: int, shape: tuple[int, int]) -> Iterator[tuple[str, float]]:
    """PV cards: the same polynomials in the linear world coordinates.

    Numbered as in the TPV convention (registry of FITS conventions): within one degree by falling powers of the
    axis's own coordinate, the odd powers of the radius (3, 11, 23) being unused.
    """
    uv = _net(shape)
    linear = uv @ cd.T
    size = float(np.abs(linear).max())
    plane = power_terms(uv, order) @ degrees
    for axis in (0, 1):
        own = linear[:, ::-1] if axis else linear
        fit = np.linalg.lstsq(power_terms(own / size, order), plane[:, axis], rcond=None)[0]
        number = 0
        for (p, q), value in zip(exponents(order), fit, strict=True):
            if number in (3, 11, 23):
                number += 1
            yield f"PV{axis + 1}_{number}", float(value / size ** (p + q))
            number += 1
