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


def field(rng, *, n_stars=None, shape=None, scale=None, place=None, noise=None, distortion=0.0, offset=None, cover=1.5):
    """A random field: `n_stars` detections, half of them unknown to the catalogue, 70 % of the catalogue detected.

    The catalogue covers a cap about the wrong pointing, wide enough for a pointing error of `cover` widths; the
    error itself is uniform in its amount below `cover` (or `offset`).
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
    offset = rng.uniform(0, cover) if offset is None else offset
    sky = SkyCoord(*place, unit="deg").directional_offset_by(rng.uniform(0, 360) * u.deg, offset * width * u.deg)
    pointing = float(sky.ra.deg), float(sky.dec.deg)
    # stars of the field, and of the rest of the cap at the same density
    true_n = max(6, round(n_stars / 2 / 0.7))
    xy = rng.uniform(-0.5, [nx - 0.5, ny - 0.5], (true_n, 2))
    radius = (cover + 0.75) * width
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
        sides = [
            np.linalg.norm(xyz[j] - xyz[k]) for j, k in ((rows[1], rows[2]), (rows[0], rows[2]), (rows[0], rows[1]))
        ]
        order = np.argsort(sides)[::-1]
        c, b, a = sorted(sides)
        if c < shortest or a > longest or c < min_ratio * a or b + c < 1.02 * a:
            continue
        v = tuple(int(rows[i]) for i in order)
        found[v] = (b / a, c / a, np.log(a), np.sign(np.linalg.det(xyz[list(v)])))
    return found


def place_odds(camera, place, sky, density, triangle, sigma, distractors):
    """Best log odds over the cuts in brightness of a place (3, 3), as `_sky.search` counts them."""
    ours, theirs, ratio = triangle  # rows of the camera's triangle, rows of the sky's, scale
    centre = camera[list(ours)].mean(axis=0)
    unit = np.column_stack([camera[list(ours)] * ratio, np.ones(3)])
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    spread = ((unit - unit.mean(axis=0)) ** 2).sum()
    used, odds, best = set(theirs), 0.0, 0.0
    plane = sky[:, :2] / sky[:, 2:]
    for row, (cx, cy) in enumerate(camera):
        if row in ours:
            continue
        x, y, z = place @ [cx, cy, 1]
        r = np.hypot(*(plane - [x / z, y / z]).T)
        r[list(used)] = np.inf
        s2 = (ratio * sigma) ** 2 * (4 / 3 + ratio**2 * ((cx - centre[0]) ** 2 + (cy - centre[1]) ** 2) / spread)
        j = int(np.argmin(r))
        if r[j] ** 2 > 16 * s2:
            odds += np.log(distractors)
        else:
            used.add(j)
            density_ratio = np.exp(-0.5 * r[j] ** 2 / s2) / (2 * np.pi * s2 * density[j])
            odds += np.log(distractors + (1 - distractors) * density_ratio)
        best = max(best, odds)
    return best


def observe(wcs, shape, ra, dec, xy_err, flux, rng, *, false=0.5):
    """Detections of stars at their true places, with centroid noise and `false` times as many that are no stars."""
    with np.errstate(invalid="ignore"):
        xy = np.column_stack(wcs.all_world2pix(ra, dec, 0))
    ny, nx = shape
    inside = np.flatnonzero((xy > -0.5).all(axis=1) & (xy[:, 0] < nx - 0.5) & (xy[:, 1] < ny - 0.5))
    xy, error, flux = xy[inside], xy_err[inside], flux[inside]
    n = int(false * len(xy))
    xy = np.r_[xy + rng.normal(0, 1, xy.shape) * error[:, None], rng.uniform(0, [nx - 1, ny - 1], (n, 2))]
    pick = rng.integers(0, len(flux), n)
    order = np.argsort(-np.r_[flux, flux[pick]], kind="stable")
    source = np.r_[inside, np.full(n, -1)][order]
    stars = Stars.make(xy[order], flux=np.r_[flux, flux[pick]][order], xy_err=np.r_[error, error[pick]][order])
    return stars, source


def ucac4(path):
    """The UCAC4 rows of a VizieR CSV."""
    from astropy.table import Table

    t = Table.read(path)
    return CatalogueStars.make(
        t["RAJ2000"],
        t["DEJ2000"],
        ra_err=t["e_RAJ2000"],
        dec_err=t["e_DEJ2000"],
        pm_ra=t["pmRA"],
        pm_dec=t["pmDE"],
        pm_ra_err=t["e_pmRA"],
        pm_dec_err=t["e_pmDE"],
        mag=t["f.mag"],
        epoch=2000.0,
        name="UCAC4",
        band="f",
    )


def gaia(path):
    """A piece of Gaia DR2."""
    from astropy.table import Table

    t = Table.read(path)
    return CatalogueStars.make(
        t["ra"],
        t["dec"],
        ra_err=t["ra_error"],
        dec_err=t["dec_error"],
        pm_ra=t["pmra"],
        pm_dec=t["pmdec"],
        pm_ra_err=t["pmra_error"],
        pm_dec_err=t["pmdec_error"],
        parallax=t["parallax"],
        mag=t["phot_g_mean_mag"],
        epoch=2015.5,
        name="Gaia DR2",
        band="G",
    )


def tycho2(path):
    """Tycho-2 positions at J2000 without proper motions."""
    from astropy.table import Table

    t = Table.read(path)
    return CatalogueStars.make(t["ra_j2000_deg"], t["dec_j2000_deg"], mag=t["VTmag"], name="Tycho-2", band="VT")


def moved(catalogue, years, rng):
    """(n,) true right ascensions and declinations: places and motions, errors drawn, 5 mas/yr where none is known."""
    hidden = np.isnan(catalogue.pm_ra)
    pm_ra = np.where(hidden, rng.normal(0, 5, len(catalogue)), catalogue.pm_ra)
    pm_dec = np.where(hidden, rng.normal(0, 5, len(catalogue)), catalogue.pm_dec)
    draw = rng.normal(0, 1, (2, len(catalogue)))
    moved_ra = catalogue.ra_err * draw[0] + pm_ra * years
    moved_dec = catalogue.dec_err * draw[1] + pm_dec * years
    ra = catalogue.ra + moved_ra / 3.6e6 / np.cos(np.radians(catalogue.dec))
    return ra, catalogue.dec + moved_dec / 3.6e6


@dataclass
class GaiaField:
    stars: Stars
    source: np.ndarray  # row of the catalogue behind each detection, -1: none
    catalogue: CatalogueStars  # at its own epoch
    wcs: WCS
    shape: tuple
    bound: np.ndarray  # Cramer-Rao bound of each detection, arcsec
    snr: np.ndarray
    epoch: float


def gaia_field(path, rng, *, scale=0.6, fwhm=1.5, years=10.0) -> GaiaField:
    """What a telescope sees of a piece of Gaia `years` after its epoch: SNR 100 at G = 19, mostly sky noise.

    Bound of a Gaussian profile of width s: s^2 / F + 2 s^2 V / F^2 (sky-limited: sqrt(2) s / SNR, 9 mas at SNR 100).
    Places are moved linearly on the sphere's metric, which is exact to 0.01 mas over 10 years here.
    """
    catalogue = gaia(path)
    middle = float(np.median(catalogue.ra)), float(np.median(catalogue.dec))
    size = int(0.2 * 3600 / scale)
    shape = (size, size)
    wcs = true_wcs(*middle, scale, rng.uniform(0, 360), int(rng.choice([-1, 1])), shape)
    ra, dec = moved(catalogue, years, rng)
    f = 1e5 * 10 ** (-0.4 * (catalogue.mag - 19))
    v = 9e5
    s = fwhm / 2.3548
    bound = np.sqrt(s**2 / f + 2 * s**2 * v / f**2)
    snr = f / np.sqrt(f + v)
    seen = np.where(snr > 5, 1.0, np.nan)
    keep = np.flatnonzero(np.isfinite(seen))
    stars, source = observe(wcs, shape, ra[keep], dec[keep], bound[keep] / scale, f[keep], rng)
    source = np.where(source >= 0, keep[source], -1)
    return GaiaField(stars, source, catalogue, wcs, shape, stars.xy_err * scale, snr, catalogue.epoch + years)


def ucac4_case(catalogue, seed, solve, guess_class):
    """A 20' field of UCAC4 rows at 0.7 arcsec/px, each at its place plus a draw from its errors.

    Returns (rms of the residuals in units of their errors, largest error of the solution in arcsec, pairs).
    """
    rng = np.random.default_rng(seed)
    scale, shape = 0.7, (1714, 1714)
    wcs = true_wcs(299.59, 35.20, scale, rng.uniform(0, 360), int(rng.choice([-1, 1])), shape)
    draw = rng.normal(0, 1, (2, len(catalogue))) * [catalogue.ra_err, catalogue.dec_err] / 3.6e6
    ra, dec = catalogue.ra + draw[0] / np.cos(np.radians(catalogue.dec)), catalogue.dec + draw[1]
    flux = 10 ** (-0.4 * (np.nan_to_num(catalogue.mag, nan=17.0) - 25))
    xy_err = np.hypot(0.02, 0.05 * np.sqrt(flux.min() / flux))
    stars, source = observe(wcs, shape, ra, dec, xy_err, flux, rng)
    guess = guess_class(ra=299.7, dec=35.12, radius=0.3, scale=0.75, scale_range=(0.6, 0.9))
    solution = solve(stars, catalogue, shape, guess=guess)
    ours, theirs = solution.pairs.T
    right = source[ours] == theirs
    assert right.mean() > 0.95
    expected = np.column_stack([catalogue.ra_err, catalogue.dec_err])[theirs] / 1000
    expected = np.hypot(expected, (stars.xy_err[ours] * scale)[:, None])
    # in units of each star's own error: the plain rms hangs on the few stars of the largest errors
    ratio = float(np.sqrt(((solution.residuals / expected) ** 2).mean()))
    return ratio, float(separation(solution.wcs, wcs, shape).max()), solution.n


def gaia_case(path, seed, solve, guess_class, carry):
    """A piece of Gaia ten years on. Returns (rms of residual / bound at SNR >= 100, worst error in arcsec, stars)."""
    f = gaia_field(path, np.random.default_rng(seed))
    catalogue = carry(f.catalogue, f.epoch)
    guess = guess_class(
        ra=float(f.wcs.wcs.crval[0]) + 0.05,
        dec=float(f.wcs.wcs.crval[1]) - 0.05,
        radius=0.2,
        scale=0.62,
        scale_range=(0.5, 0.75),
    )
    solution = solve(f.stars, catalogue, f.shape, guess=guess)
    ours, theirs = solution.pairs.T
    bright = (f.source[ours] == theirs) & (f.snr[theirs] >= 100)
    # two-parameter sources have no proper motion: nobody can know where they are ten years later
    bright &= np.isfinite(f.catalogue.pm_ra[theirs])
    # the bound of the image alone; the catalogue's own error is part of the measured scatter
    bound = f.bound[ours][bright]
    rms = np.sqrt((solution.residuals[bright] ** 2).mean())
    return (
        float(rms / np.sqrt((bound**2).mean())),
        float(separation(solution.wcs, f.wcs, f.shape).max()),
        int(bright.sum()),
    )
