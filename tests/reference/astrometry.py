"""Simulated star lists with a known place on the sky, and slow twins of the search's loops.

Places, projections and distortions come from astropy.wcs and astropy.coordinates alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from fastack.types import CatalogueStars, Stars


def true_wcs(ra, dec, scale, rotation, parity, shape, distortion=0.0, rng=None):
    """TAN(-SIP) WCS: scale in arcsec/px, rotation in degree, parity -1 mirrored, distortion in pixels at the edge."""
    wcs = WCS(naxis=2)
    t = np.radians(rotation)
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    wcs.wcs.cd = scale / 3600 * np.diag([-1.0, 1.0]) @ turn @ np.diag([parity, 1.0])
    wcs.wcs.crval, wcs.wcs.crpix = [ra, dec], [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    kind = "TAN"
    if distortion:
        from astropy.wcs import Sip

        half = max(shape) / 2
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        k = distortion / half**3
        a[3, 0] = a[1, 2] = b[0, 3] = b[2, 1] = k  # radial
        a[2, 0], b[1, 1] = rng.normal(0, 0.3 * distortion / half**2, 2)
        wcs.sip, kind = Sip(a, b, None, None, wcs.wcs.crpix), "TAN-SIP"
    wcs.wcs.ctype = [f"RA---{kind}", f"DEC--{kind}"]
    wcs.wcs.set()
    return wcs


def around(ra, dec, radius, n, rng):
    """(n,) right ascensions and declinations, uniform in a cap, degree."""
    z = 1 - rng.uniform(0, 1, n) * (1 - np.cos(np.radians(radius)))
    there = SkyCoord(ra * u.deg, dec * u.deg).directional_offset_by(
        rng.uniform(0, 360, n) * u.deg, np.degrees(np.arccos(z)) * u.deg
    )
    return there.ra.deg, there.dec.deg


@dataclass
class Field:
    stars: Stars
    catalogue: CatalogueStars
    wcs: WCS
    shape: tuple
    scale: float
    pointing: tuple  # where the telescope believes it points
    width: float  # degree


def field(rng, *, n_stars=None, shape=None, scale=None, place=None, noise=None, distortion=0.0, offset=None) -> Field:
    """A random field: `n_stars` detections, half of them unknown to the catalogue, 70 % of the catalogue detected.

    The catalogue covers a cap about the wrong pointing, wide enough for a pointing error of 1.5 widths.
    """
    shape = shape or tuple(int(v) for v in rng.integers(500, 3000, 2))
    if max(shape) > 2 * min(shape):
        shape = (min(shape), 2 * min(shape))
    scale = scale or float(np.exp(rng.uniform(np.log(0.3), np.log(6))))
    n_stars = n_stars or int(np.exp(rng.uniform(np.log(25), np.log(2000))))
    noise = noise or rng.uniform(0.1, 0.5)
    if place is None:
        kind = rng.integers(5)
        dec = np.degrees(np.arcsin(rng.uniform(-1, 1)))
        ra = rng.uniform(0, 360)
        if kind == 0:
            dec = rng.choice([-1, 1]) * (90 - rng.exponential(0.3))
        elif kind == 1:
            ra = rng.normal(0, 0.2) % 360
        place = ra, dec
    wcs = true_wcs(*place, scale, rng.uniform(0, 360), int(rng.choice([-1, 1])), shape, distortion, rng)
    ny, nx = shape
    width = max(shape) * scale / 3600
    offset = rng.uniform(0, 1.5) if offset is None else offset
    sky = SkyCoord(*place, unit="deg").directional_offset_by(rng.uniform(0, 360) * u.deg, offset * width * u.deg)
    pointing = float(sky.ra.deg), float(sky.dec.deg)
    # stars of the field, and of the rest of the cap at the same density
    true_n = max(6, round(n_stars / 2 / 0.7))
    xy = rng.uniform(-0.5, [nx - 0.5, ny - 0.5], (true_n, 2))
    radius = (1.5 + 0.75) * width
    area = nx * ny * (scale / 3600) ** 2
    m = int(true_n * np.pi * radius**2 / area)
    ra, dec = around(*pointing, radius, m, rng)
    with np.errstate(invalid="ignore"):
        px, py = wcs.wcs_world2pix(np.column_stack([ra, dec]), 0).T
    out = ~((px > -0.5) & (px < nx - 0.5) & (py > -0.5) & (py < ny - 0.5))
    radec = wcs.all_pix2world(xy, 0)
    ra, dec = np.r_[radec[:, 0], ra[out]], np.r_[radec[:, 1], dec[out]]
    mag = 10 + 8 * np.log10(1 + 9 * rng.uniform(0, 1, len(ra)))  # more faint ones
    found = rng.uniform(0, 1, true_n) < 0.7
    known_mag = mag[:true_n][found]
    n_false = n_stars - len(known_mag)
    det_xy = np.r_[xy[found], rng.uniform(-0.5, [nx - 0.5, ny - 0.5], (n_false, 2))]
    det_mag = np.r_[known_mag, 10 + 8 * np.log10(1 + 9 * rng.uniform(0, 1, n_false))]
    flux = 10 ** (-0.4 * (det_mag + rng.normal(0, 0.3, len(det_mag)) - 25))
    order = np.argsort(-flux)
    det_xy = det_xy + rng.normal(0, noise, det_xy.shape)
    stars = Stars.make(det_xy[order], flux=flux[order], xy_err=np.full(len(order), noise))
    shuffle = rng.permutation(len(ra))
    catalogue = CatalogueStars.make(
        ra[shuffle] % 360,
        dec[shuffle],
        mag=mag[shuffle],
        ra_err=np.full(len(ra), 20.0),
        dec_err=np.full(len(ra), 20.0),
        epoch=2016.0,
        name="simulated",
    )
    return Field(stars, catalogue, wcs, shape, scale, pointing, width)


def separation(a: WCS, b: WCS, shape, n: int = 9):
    """(n * n,) distance in arcsec between two solutions over an image."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, n), np.linspace(-0.5, ny - 0.5, n))
    p, q = (SkyCoord(*w.all_pix2world(x.ravel(), y.ravel(), 0), unit="deg") for w in (a, b))
    return p.separation(q).arcsec


def triangles(xyz, shortest, longest, min_ratio):
    """{(rows opposite a >= b >= c): (b/a, c/a, ln a, sense)}."""
    found = {}
    for rows in combinations(range(len(xyz)), 3):
        sides = [np.linalg.norm(xyz[j] - xyz[k]) for j, k in ((rows[1], rows[2]), (rows[0], rows[2]), (rows[0], rows[1]))]
        order = np.argsort(sides)[::-1]
        c, b, a = sorted(sides)
        if c < shortest or a > longest or c < min_ratio * a or b + c < 1.02 * a:
            continue
        v = tuple(int(rows[i]) for i in order)
        found[v] = (b / a, c / a, np.log(a), np.sign(np.linalg.det(xyz[list(v)])))
    return found
