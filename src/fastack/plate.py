"""The map of a camera onto the sky: polynomials in the tangent plane, and their FITS cards.

Pixels are 0-based, ``(x, y)``; the 1-based numbers of FITS exist only in the headers written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fastack.sphere import deproject, project, radec
from fastack.types import Array

if TYPE_CHECKING:
    from astropy.io import fits

OFF_AXIS = 0.3  # quadratic terms of a lens in units of its cubic one: 3 times the axis's distance from the middle


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
    radial: bool = False  # of order 3, but as a lens has it: one strength for all directions, and little beside it
    free: float = 4.0  # numbers that the stars decided
    extra: float = 0.0  # scatter beyond the stated errors, radian per axis
    deviance: float = np.inf  # -2 ln(likelihood), clipped stars at the limit
    bic: float = np.inf  # Bayesian information criterion (Schwarz 1978): which kind is true
    aic: float = np.inf  # Akaike's, corrected for few stars (Hurvich & Tsai 1989): which kind predicts best

    @property
    def uncorrected_aic(self) -> float:
        """Akaike's criterion as it is where the errors are known."""
        return self.deviance + 2 * self.free

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


def fit_plate(
    start: Plate, xy: Array, vectors: Array, xy_err: Array, sky_err: Array, *, order: int, radial: bool, clip: float
) -> Plate:
    """Weighted, clipped least squares of one kind of plate, the tangent point moved to the image's centre.

    Parameters
    ----------
    start : Plate
        Not far from the truth.
    xy : (n, 2) ndarray, pixel
        Stars on the image.
    vectors : (n, 3) ndarray
        The same on the sky, unit vectors.
    xy_err : (n,) ndarray, pixel
        Errors per axis.
    sky_err : (n, 2) ndarray, radian
        Errors along east and north.
    order, radial
        See `Plate`.
    clip : float
        Stars further out than this many sigmas have no weight.

    Returns
    -------
    Plate
        With the scatter beyond the errors that the residuals show, and both information criteria.
    """
    ours2 = ((xy_err * start.scale) ** 2)[:, None] + sky_err**2
    uv = (xy - start.origin) / start.half
    terms = power_terms(uv, max(order, 1))
    free = 4.0 if order == 0 else 2.0 * terms.shape[1]
    mirrored = np.linalg.det(start.matrix) > 0
    ra, dec, extra2 = start.ra, start.dec, start.extra**2
    coefficients, penalty = start.coefficients, 0.0
    keep = np.ones(len(xy), bool)
    for step in range(8):
        target = project(vectors, ra, dec)
        variance = ours2 + extra2
        weight = np.where(keep[:, None], 1 / variance, 0)
        if order == 0:
            coefficients, covariance = _similarity(uv, target, weight.mean(axis=1), mirrored)
        elif radial:
            coefficients, covariance, free, penalty = _radial(terms, target, weight, coefficients, start.half)
        else:
            coefficients, covariance = _linear(terms, target, weight)
        residual = target - terms @ coefficients
        extra2 = _extra_scatter(residual, ours2, max(1.0 - free / (2 * len(xy)), 0.1))
        z2 = (residual**2 / (ours2 + extra2)).sum(axis=1)
        now = z2 < clip**2
        if now.sum() < max(free / 2 + 1, 0.5 * len(xy)):
            now = z2 <= np.median(z2)
        shift = float(np.hypot(*coefficients[0]))
        ra, dec = radec(deproject(coefficients[:1], ra, dec)[0])
        if step > 1 and np.array_equal(now, keep) and shift < 1e-6 * start.scale:
            break
        keep = now
    variance = ours2 + extra2
    deviance = penalty + float((np.minimum(residual**2 / variance, clip**2) + np.log(variance)).sum())
    n = 2 * len(xy)
    coefficients = coefficients.copy()
    coefficients[0] = 0  # moved into the tangent point
    return replace(
        start,
        ra=ra,
        dec=dec,
        order=order,
        radial=radial,
        coefficients=coefficients,
        covariance=covariance,
        extra=float(np.sqrt(extra2)),
        free=free,
        deviance=deviance,
        bic=deviance + free * np.log(n),
        aic=deviance + 2 * free * n / (n - free - 1) if n > free + 1 else np.inf,
    )


def _least_squares(design: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """Solution and covariance by the normal equations, refined once; the shortest solution where there are many."""
    unit = float(weight.max())
    weighted = design * (weight / unit)[:, None]
    inverse = np.asarray(np.linalg.pinv(weighted.T @ design, rcond=1e-13, hermitian=True), np.float64)
    found = inverse @ (weighted.T @ target)
    found += inverse @ (weighted.T @ (target - design @ found))
    return found, inverse / unit


def _linear(terms: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted least squares of both columns and the larger of the two covariances."""
    (x, cov_x), (y, cov_y) = (_least_squares(terms, target[:, axis], weight[:, axis]) for axis in (0, 1))
    return np.column_stack([x, y]), cov_x if np.trace(cov_x) > np.trace(cov_y) else cov_y


def _radial(terms: Array, target: Array, weight: Array, last: Array, half: float) -> tuple[Array, Array, float, float]:
    """Weighted least squares of a lens: linear terms, a radial cubic of one strength, and small quadratic terms.

    The cubic follows the linear part of `last`. Where the optical axis meets the image is not known, and a cubic about
    another point has quadratic terms too: they are free within `OFF_AXIS` of the cubic's strength, so that few stars do
    not decide them, and the covariance tells what that leaves open.

    Returns
    -------
    coefficients, covariance
        As of a polynomial of order 3.
    free : float
        Numbers that the stars, and not that limit, decided.
    penalty : float
        Of the quadratic terms in the deviance.
    """
    matrix = last[1:3]
    size = float(np.sqrt(abs(np.linalg.det(matrix))))
    strength = max(float(np.abs(last[6:10]).max(initial=0.0)), size / half)  # a pixel at least
    cubic = np.zeros((10, 2))
    cubic[[6, 8]], cubic[[7, 9]] = matrix / size  # u^3 + u v^2 and u^2 v + v^3
    n = len(terms)
    design = np.zeros((2 * n + 6, 13))
    design[:n, :6] = design[n : 2 * n, 6:12] = terms[:, :6]
    design[: 2 * n, 12] = (terms @ cubic).T.ravel()
    quadratic = np.array([3, 4, 5, 9, 10, 11])
    design[2 * n + np.arange(6), quadratic] = 1.0
    looseness = (OFF_AXIS * strength) ** 2
    weights = np.r_[weight.T.ravel(), np.full(6, 1 / looseness)]
    found, whole = _least_squares(design, np.r_[target.T.ravel(), np.zeros(6)], weights)
    coefficients = found[12] * cubic
    covariance = np.zeros((10, 10))
    for axis in (0, 1):
        mine = np.r_[6 * axis : 6 * axis + 6, 12]
        coefficients[:6, axis] += found[mine[:-1]]
        lead = np.column_stack([np.eye(10, 6), cubic[:, axis]])
        other = lead @ whole[np.ix_(mine, mine)] @ lead.T
        covariance = other if np.trace(other) > np.trace(covariance) else covariance
    free = 13 - float(whole[quadratic, quadratic].sum()) / looseness
    return coefficients, covariance, free, float((found[quadratic] ** 2).sum()) / looseness


def _similarity(uv: Array, target: Array, weight: Array, mirrored: bool) -> tuple[Array, Array]:
    """Shift, turn and scale by least squares; `mirrored` where the determinant is positive."""
    w = weight / weight.sum()
    sign = 1.0 if mirrored else -1.0
    p = (uv[:, 0] + 1j * sign * uv[:, 1]) if not mirrored else uv[:, 0] + 1j * uv[:, 1]
    t = target[:, 0] + 1j * target[:, 1]
    p0, t0 = (w * p).sum(), (w * t).sum()
    spread = (w * np.abs(p - p0) ** 2).sum()
    z = (w * np.conj(p - p0) * (t - t0)).sum() / spread
    shift = t0 - z * p0
    coefficients = np.array([[shift.real, shift.imag], [z.real, z.imag], [-sign * z.imag, sign * z.real]])
    one = 1 / weight.sum()
    turn = one / spread
    c0 = np.array([p0.real, sign * p0.imag])
    covariance = np.diag([one + turn * float(c0 @ c0), turn, turn])
    covariance[0, 1:] = covariance[1:, 0] = -turn * c0
    return coefficients, covariance


def _extra_scatter(residual: Array, variance: Array, dof: float) -> float:
    """Variance per axis beyond the stated errors that gives the residuals their expected median."""
    r2 = residual**2
    goal = 2 * np.log(2) * dof  # median of chi^2 with two degrees of freedom
    middle = [(len(r2) - 1) // 2, len(r2) // 2]

    def median(extra: float) -> float:
        return float(np.partition((r2 / (variance + extra)).sum(axis=1), middle)[middle].mean())

    if median(0.0) <= goal:
        return 0.0
    low, high = 0.0, float(r2.sum(axis=1).max())
    for _ in range(20):
        half = (low + high) / 2
        low, high = (half, high) if median(half) > goal else (low, half)
    return (low + high) / 2


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
