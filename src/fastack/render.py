"""Stars as the simulator draws them: Moffat profiles integrated over pixels, by plain NumPy.

Nothing here is shared with the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastack.types import Array, FloatImage

Star32 = NDArray[np.float32]


def moffat_alpha(fwhm: float, beta: float) -> float:
    """Scale radius of a Moffat profile, pixel."""
    return float(fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1)))


def moffat(dx: Array, dy: Array, *, fwhm: float, beta: float, ellipticity: float = 0.0, theta: float = 0.0) -> Array:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The optical profile of the stars of one frame."""

    fwhm: float  #: pixel
    beta: float  #: exponent of the Moffat profile
    ellipticity: float = 0.0  #: 1 - minor/major axis
    theta: float = 0.0  #: position angle of the major axis from +x towards +y, radian

    @property
    def alpha(self) -> float:
        """Scale of the radius, pixel."""
        return moffat_alpha(self.fwhm, self.beta)

    @property
    def central(self) -> float:
        """Value at the centre for unit flux, 1/pixel^2."""
        return (self.beta - 1) / (np.pi * self.alpha**2)

    def reaches(self, level: Any) -> Any:
        """Radius at which the profile of unit flux falls to `level`, pixel."""
        return self.alpha * np.sqrt(np.maximum(0, (self.central / level) ** (1 / self.beta) - 1))

    def radius_without(self, lost: float) -> float:
        """Radius outside of which the part `lost` of the flux falls, pixel."""
        return float(self.alpha * np.sqrt(lost ** (1 / (1 - self.beta)) - 1))

    def cut(self) -> float:
        """Default radius of a stamp, pixel."""
        return float(max(4 * self.fwhm, self.alpha * (self.central / 1e-6) ** (0.5 / self.beta)))

    def squares(self) -> list[tuple[int, int]]:
        """Half side of nested squares and the Gauss-Legendre points per axis inside; one point further out.

        What is neglected (the sixth derivative over 2 016 000 with three points, the fourth over 4320 with
        two, the second over 24 with one) stays below 1e-6 of the peak.
        """
        wide, narrow = max(6 * self.fwhm, 14), max(3 * self.fwhm, 7)
        return [(int(np.ceil(wide)), 2), (int(np.ceil(narrow)), 3), (4, 5)]

    def values(self, dx: Star32, dy: Star32) -> Star32:
        """(m, ny, nx) unit-flux profile at the offsets `dx` (m, nx) and `dy` (m, ny)."""
        q, cos, sin = 1 - self.ellipticity, np.cos(self.theta), np.sin(self.theta)
        xx = np.float32((q * cos**2 + sin**2 / q) / self.alpha**2)
        yy = np.float32((q * sin**2 + cos**2 / q) / self.alpha**2)
        xy = np.float32(2 * (q - 1 / q) * sin * cos / self.alpha**2)
        t = (xx * dx * dx)[:, None, :] + (1 + yy * dy * dy)[:, :, None]
        if xy:
            t += (xy * dy)[:, :, None] * dx[:, None, :]
        np.log(t, out=t)
        t *= np.float32(-self.beta)
        t += np.float32(np.log(self.central))
        return np.exp(t, out=t)


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
        See `moffat`. With ``pixel="sampled"`` they describe the effective PSF; with ``"integrated"`` the
        optical one, and each pixel holds its integral (5x5 Gauss-Legendre points in the core, fewer outside).
    pixel : {"integrated", "sampled"}
        How a pixel responds.
    radius : float, optional, pixel
        Half side of the square stamps; by default where a star's profile falls below 1e-6 of its flux per
        pixel, at least 4 FWHM.

    Returns
    -------
    (ny, nx) float32 ndarray
        Same unit as `flux`.
    """
    image = np.zeros(shape, np.float32)
    xy = np.asarray(xy, float).reshape(-1, 2)
    flux = np.broadcast_to(np.asarray(flux, float), len(xy))
    profile = Profile(fwhm=fwhm, beta=beta, ellipticity=ellipticity, theta=theta)
    add_stars(image, xy, flux, profile, radius or profile.cut(), integrated=pixel == "integrated")
    return image


def effective_fwhm(fwhm: float, beta: float = 3.0) -> float:
    """FWHM of a circular Moffat profile after the square pixels have integrated it.

    Parameters
    ----------
    fwhm, beta : float
        Of the optical profile; `fwhm` in pixel.

    Returns
    -------
    float, pixel
        Geometric mean of the widths along the rows and along the diagonals, which differ by 1e-3 at most for
        stars wider than 1.5 pixel.
    """
    from scipy.optimize import brentq

    nodes, weights = np.polynomial.legendre.leggauss(15)
    a, b, w = nodes[:, None] / 2, nodes / 2, weights[:, None] * weights / 4

    def excess(radius: float, angle: float) -> float:
        """Profile at `radius` over half of the central one, minus 1."""
        dx, dy = radius * np.cos(angle) + a, radius * np.sin(angle) + b
        outer, centre = (w * moffat(x, y, fwhm=fwhm, beta=beta) for x, y in ((dx, dy), (a, b)))
        return float(2 * outer.sum() / centre.sum() - 1)

    widths = [2 * brentq(excess, 0, 2 * fwhm + 2, args=(angle,)) for angle in (0.0, np.pi / 4)]
    return float(np.sqrt(widths[0] * widths[1]))


def add_stars(
    image: FloatImage, xy: Array, flux: Array, profile: Profile, radius: float, *, integrated: bool = True
) -> None:
    """Add stars to an image, with stamps of one size, many at a time.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        In the unit of `flux`; changed in place.
    xy : (n, 2) ndarray, pixel
        Positions (x, y).
    flux : (n,) ndarray
        Total flux of each.
    profile : Profile
        Of all of them.
    radius : float, pixel
        Half side of the stamps.
    integrated : bool
        Whether pixels integrate the profile, or take its value in their middle.
    """
    ny, nx = image.shape
    r = int(np.ceil(radius))
    inside = ((xy > -r - 1) & (xy < np.array([nx, ny]) + r)).all(axis=1)
    xy, flux = xy[inside], flux[inside]
    whole = np.rint(xy).astype(int)
    part = (xy - whole).astype(np.float32)
    step = max(1, (1 << 17) // (2 * r + 1) ** 2)  # so that the stamps stay in the cache
    for first in range(0, len(xy), step):
        some = slice(first, first + step)
        stamps = _stamps(part[some], profile, r, integrated)
        stamps *= flux[some, None, None].astype(np.float32)
        for (x, y), stamp in zip(whole[some].tolist(), stamps, strict=True):
            x0, x1, y0, y1 = max(0, x - r), min(nx, x + r + 1), max(0, y - r), min(ny, y + r + 1)
            if x0 < x1 and y0 < y1:
                image[y0:y1, x0:x1] += stamp[y0 - y + r : y1 - y + r, x0 - x + r : x1 - x + r]


@cache
def _gauss_legendre(count: int) -> tuple[Star32, Star32]:
    """Nodes and weights on a pixel about 0."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes / 2).astype(np.float32), (weights / 2).astype(np.float32)


def _stamps(part: Star32, profile: Profile, r: int, integrated: bool) -> Star32:
    """(m, 2r+1, 2r+1) pixels of unit-flux stars that lie `part` (m, 2) off the centre of the middle pixel."""

    def offsets(half: int) -> tuple[Star32, Star32]:
        line = np.arange(-half, half + 1, dtype=np.float32)
        return line - part[:, :1], line - part[:, 1:]

    stamps = profile.values(*offsets(r))
    for reach, count in profile.squares() if integrated else []:
        half = min(r, reach)
        dx, dy = offsets(half)
        nodes, weights = _gauss_legendre(count)
        middle = stamps[:, r - half : r + half + 1, r - half : r + half + 1]
        middle[...] = 0
        for a, wa in zip(nodes, weights, strict=True):
            for b, wb in zip(nodes, weights, strict=True):
                values = profile.values(dx + a, dy + b)
                values *= wa * wb
                middle += values
    return stamps
