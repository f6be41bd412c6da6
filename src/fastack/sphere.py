"""Directions on the sky: unit vectors, distances, and the gnomonic projection."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastack.types import Array

ARCSEC = np.pi / 180 / 3600


def unit_vectors(ra: Any, dec: Any) -> Array:
    """(n, 3) unit vectors of positions in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def local_frame(ra: float, dec: float) -> Array:
    """(3, 3) rows: east, north and outward at a position in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.array(
        [
            [-np.sin(a), np.cos(a), 0.0],
            [-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)],
            [np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)],
        ]
    )


def radec(vector: Array) -> tuple[float, float]:
    """Position in degrees of a vector of any length."""
    x, y, z = (float(v) for v in vector)
    return float(np.degrees(np.arctan2(y, x)) % 360), float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def spiral(centre: Array, spacing: float, radius: float) -> Array:
    """(n, 3) hexagonal net of directions about the frame `centre`, from the middle outwards, radian."""
    n = int(radius / spacing) + 2
    i, j = (a.ravel() for a in np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1)))
    x, y = (i + j / 2) * spacing, j * spacing * np.sqrt(3) / 2
    r = np.hypot(x, y)
    keep = np.flatnonzero(r <= radius + spacing / 2)
    keep = keep[np.lexsort((np.arctan2(y[keep], x[keep]), np.round(r[keep] / spacing, 6)))]
    x, y, r = x[keep], y[keep], r[keep]
    s = np.sinc(r / np.pi)
    return np.asarray((np.stack([x * s, y * s, np.cos(r)], axis=1)) @ centre)


def project(vectors: Array, ra: float, dec: float) -> Array:
    """(n, 2) gnomonic projection; NaN on the far side."""
    e = vectors @ local_frame(ra, dec).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(e[:, 2:] > 0.05, e[:, :2] / e[:, 2:], np.nan)


def deproject(plane: Array, ra: float, dec: float) -> Array:
    """(n, 3) vectors, not normalised, of tangent-plane positions."""
    return np.column_stack([plane, np.ones(len(plane))]) @ local_frame(ra, dec)


def distance(ra: Any, dec: Any, ra0: float, dec0: float) -> Array:
    """Angular distance, degree; the haversine formula, good at any distance that matters here."""
    a, d, d0 = np.radians(np.asarray(ra) - ra0), np.radians(dec), np.radians(dec0)
    h = np.sin((d - d0) / 2) ** 2 + np.cos(d) * np.cos(d0) * np.sin(a / 2) ** 2
    return np.asarray(2 * np.degrees(np.arcsin(np.sqrt(np.clip(h, 0, 1)))))
