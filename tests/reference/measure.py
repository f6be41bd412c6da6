"""Slow float64 twins of the fits, their Cramer-Rao bound, and frames of stars with known truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, least_squares

from fastack import render
from fastack.types import Array, Background, FloatImage

NODE = 0.5 / np.sqrt(3)


def profile(p: Array, x: Array, y: Array, integrated: bool) -> Array:
    """Moffat profile of peak 1; p is x, y, peak, sky, a, b, c, eta."""
    nodes = (-NODE, NODE) if integrated else (0.0,)
    points = [(x - p[0] + i, y - p[1] + j) for i in nodes for j in nodes]
    forms = [p[4] * u * u + 2 * p[5] * u * v + p[6] * v * v for u, v in points]
    return np.mean([(1 + (2 ** p[7] - 1) * q) ** (-1 / p[7]) for q in forms], axis=0)


def width_over_pixel(shape: tuple[float, float, float, float, bool], angle: float, width: float) -> float:
    """Full width at half maximum of the profile's mean over a pixel, along a direction."""
    a, b, c, eta, _ = shape
    nodes, weights = np.polynomial.legendre.leggauss(4)
    weight = np.outer(weights, weights)[:, :, None] / 4
    half = np.hypot(width, np.linspace(0.0, 1.3, 64)) / 2

    def mean(distance: Array) -> Array:
        x = distance * np.cos(angle) + nodes[:, None, None] / 2
        y = distance * np.sin(angle) + nodes[None, :, None] / 2
        form = a * x * x + 2 * b * x * y + c * y * y
        return np.asarray((weight * (1 + (2**eta - 1) * form) ** (-1 / eta)).sum((0, 1)))

    return float(2 * np.interp(-mean(np.zeros(1))[0] / 2, -mean(half), half))


def window(image: FloatImage, x: float, y: float, radius: float) -> tuple[Array, Array, Array]:
    """Coordinates and values of the finite pixels closer than `radius` to the pixel of (x, y)."""
    yy, xx = np.mgrid[: image.shape[0], : image.shape[1]]
    inside = (np.hypot(xx - round(x), yy - round(y)) <= radius) & np.isfinite(image)
    return xx[inside].astype(float), yy[inside].astype(float), image[inside].astype(float)


def fit(
    image: FloatImage,
    start: Array,
    free: int,
    *,
    radius: float,
    noise: float,
    inverse_gain: float,
    integrated: bool = False,
    mismatch: float = 0.0,
    prior: tuple[float, float] | None = None,
) -> Array:
    """Least squares over the first `free` parameters, weights from the model of the round before."""
    x, y, value = window(image, start[0], start[1], radius)
    p = np.array(start, float)
    for _ in range(12):
        light = p[2] * profile(p, x, y, integrated)
        sigma = np.sqrt(noise**2 + light * inverse_gain + (mismatch * light) ** 2)

        def residual(q: Array, p: Array = p, sigma: Array = sigma) -> Array:
            full = np.concatenate([q, p[free:]])
            pull = [] if prior is None else [(full[7] - prior[0]) / prior[1]]
            model = full[3] + full[2] * profile(full, x, y, integrated)
            return np.concatenate([(value - model) / sigma, pull])

        p[:free] = least_squares(residual, p[:free], x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12).x
    return p


@dataclass
class Frame:
    """A rendered frame and what is true of it."""

    image: FloatImage
    xy: Array
    flux: Array
    noise: float  #: of the background
    sky: float
    gain: float
    first: Array  #: positions as a detection gives them

    @property
    def background(self) -> Background:
        mesh = np.ones((2, 2), np.float32)
        shape = self.image.shape
        cell = (shape[0] / 2, shape[1] / 2)
        return Background(level=mesh * self.sky, noise=mesh * self.noise, shape=shape, cell=cell)


SKY, GAIN, READ_NOISE = 200.0, 2.0, 5.0
NOISE = float(np.sqrt(SKY / GAIN + (READ_NOISE / GAIN) ** 2))


def flux_of_snr(snr: float, stamp: Array) -> float:
    """Flux whose optimal photometry has this signal-to-noise ratio, from the normalised stamp of a star."""
    photons = snr**2 / GAIN
    area = 1 / np.sum(np.square(stamp, dtype=float))
    return float((photons + np.sqrt(photons**2 + 4 * snr**2 * NOISE**2 * area)) / 2)


def stamp_of(**psf: Any) -> Array:
    return render.render_stars((121, 121), [[60.0, 60.0]], [1.0], **psf).astype(float)


def expose(light: Array, rng: np.random.Generator) -> FloatImage:
    electrons = rng.poisson((light + SKY) * GAIN) + rng.normal(0, READ_NOISE, light.shape)
    return (electrons / GAIN).astype(np.float32)


def isolated_stars(rng: np.random.Generator, n: int, snr: float, **psf: Any) -> Frame:
    """Stars of one brightness far from each other, at random phases of the pixel."""
    step = int(max(24, 8 * psf["fwhm"]))
    side = int(np.ceil(np.sqrt(n)))
    grid = (np.arange(side) + 0.5) * step
    xy = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)[:n] + rng.uniform(-0.5, 0.5, (n, 2))
    flux = np.full(n, flux_of_snr(snr, stamp_of(**psf)))
    light = render.render_stars((side * step, side * step), xy, flux, **psf).astype(float)
    return Frame(expose(light, rng), xy, flux, NOISE, SKY, GAIN, xy + rng.normal(0, 0.2, xy.shape))


def crowded_stars(rng: np.random.Generator, n: int, size: int, **psf: Any) -> Frame:
    """Render a field with N(>F) ~ 1/F from SNR 2 to 2000.

    As a detection would, the list holds what is above SNR 8 and the brighter star of close pairs.
    """
    xy = rng.uniform(8, size - 9, (n, 2))
    stamp = stamp_of(**psf)
    faintest = flux_of_snr(2, stamp)
    flux = np.sort(np.minimum(faintest / rng.uniform(0, 1, n), flux_of_snr(2000, stamp)))[::-1]
    light = render.render_stars((size, size), xy, flux, **psf).astype(float)
    listed = flux > flux_of_snr(8, stamp)
    for i in range(n):
        near = np.hypot(*(xy[:i] - xy[i]).T) < 1.2 * psf["fwhm"]
        listed[i] &= not near.any()
    first = xy[listed] + rng.normal(0, 0.2, (np.count_nonzero(listed), 2))
    return Frame(expose(light, rng), xy[listed], flux[listed], NOISE, SKY, GAIN, first)


def cramer_rao(flux: float, phases: Array, **psf: Any) -> tuple[float, float]:
    """Bounds on position (per axis) and flux with flux and background free, averaged over phases."""
    variances = []
    for phase in phases:
        size = 2 * int(5 * psf["fwhm"]) + 9
        centre = size // 2 + phase

        def star(x: float, y: float, size: int = size) -> Array:
            stars = render.render_stars((size, size), [[x, y]], [flux], **psf)
            return stars.astype(float)

        light, h = star(*centre), 0.02
        x = (star(centre[0] + h, centre[1]) - star(centre[0] - h, centre[1])) / (2 * h)
        y = (star(centre[0], centre[1] + h) - star(centre[0], centre[1] - h)) / (2 * h)
        d = np.stack([v.ravel() for v in (x, y, light / flux, np.ones_like(light))])
        covariance = np.linalg.inv(d / (NOISE**2 + light.ravel() / GAIN) @ d.T)
        variances.append([(covariance[0, 0] + covariance[1, 1]) / 2, covariance[2, 2]])
    position, light_ = np.sqrt(np.mean(variances, axis=0))
    return float(position), float(light_)


def effective_psf(
    *,
    fwhm: float,
    beta: float,
    ellipticity: float = 0.0,
    theta: float = 0.0,
    pixel: str = "integrated",
    trail: float = 0.0,
) -> tuple[float, float]:
    """FWHM and ellipticity at half maximum of the profile convolved with a pixel and a trail along theta."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    box = nodes / 2 if pixel == "integrated" else np.zeros(1)
    wbox = weights / 2 if pixel == "integrated" else np.ones(1)
    line = nodes * trail / 2 if trail else np.zeros(1)
    wline = weights / 2 if trail else np.ones(1)
    x = box[:, None, None] + (line * np.cos(theta))[None, None, :]
    y = box[None, :, None] + (line * np.sin(theta))[None, None, :]
    weight = wbox[:, None, None] * wbox[None, :, None] * wline[None, None, :]

    def value(r: float, angle: float) -> float:
        dx, dy = x + r * np.cos(angle), y + r * np.sin(angle)
        star = render.moffat(dx, dy, fwhm=fwhm, beta=beta, ellipticity=ellipticity, theta=theta)
        return float(np.sum(weight * star))

    half = value(0, 0) / 2
    major, minor = (
        2 * brentq(lambda r, a=a: value(r, a) - half, 0.0, 5 * fwhm + trail) for a in (theta, theta + np.pi / 2)
    )
    return float(np.sqrt(major * minor)), float(1 - minor / major)


def trailed_stars(rng: np.random.Generator, n: int, snr: float, trail: float, theta: float, **psf: Any) -> Frame:
    """As `isolated_stars`, each smeared along a line by a moving mount."""
    frame = isolated_stars(rng, n, snr, **psf)
    steps = (np.arange(24) + 0.5) / 24 - 0.5
    light = np.zeros(frame.image.shape)
    for step in steps * trail:
        shift = np.array([np.cos(theta), np.sin(theta)]) * step
        light += render.render_stars(light.shape, frame.xy + shift, frame.flux, **psf)
    frame.image = expose(light / len(steps), rng)
    return frame
