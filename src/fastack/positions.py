"""Where the stars of a catalogue are: within a circle, at an epoch, and how well that is known.

Positions are ICRS in degrees; errors are one sigma in mas, in right ascension times cos(dec).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastack.options import AstrometryOptions
from fastack.sphere import distance
from fastack.types import Array, CatalogueStars

NO_MOTION_ERROR = 2.0  # mas/yr: typical error of a proper motion that states none
COLUMNS = [f.name for f in fields(CatalogueStars)][:-3]
UNITS = {
    "ra": "deg",
    "dec": "deg",
    "ra_err": "mas",
    "dec_err": "mas",
    "pm_ra": "mas/yr",
    "pm_dec": "mas/yr",
    "pm_ra_err": "mas/yr",
    "pm_dec_err": "mas/yr",
    "parallax": "mas",
    "ra_epoch": "yr",
    "dec_epoch": "yr",
    "epoch": "yr",
}


def check_cone(ra: float, dec: float, radius: float) -> None:
    """Raise ValueError where a circle (degree) is none."""
    if not (np.isfinite(ra) and -90 <= dec <= 90 and 0 < radius <= 180):
        raise ValueError(f"no circle on the sky: ra {ra}, dec {dec}, radius {radius} (degree)")


def within(stars: CatalogueStars, ra: float, dec: float, radius: float, max_mag: float | None) -> NDArray[np.bool_]:
    """(n,) whether a star lies within a circle and is bright enough."""
    keep = distance(stars.ra, stars.dec, ra, dec) <= radius
    return keep if max_mag is None else keep & (stars.mag <= max_mag)


def joined(parts: Sequence[CatalogueStars]) -> CatalogueStars:
    """Several sets of one catalogue as one, at the epoch of the first."""
    parts = [p if p.epoch == parts[0].epoch else proper_motion(p, parts[0].epoch) for p in parts]
    columns = {key: np.concatenate([getattr(p, key) for p in parts]) for key in COLUMNS}
    return CatalogueStars.make(**columns, epoch=parts[0].epoch, name=parts[0].name, band=parts[0].band)


def typical_motion(mag: Any) -> Array:
    """Proper motion per axis that a star of unknown motion may have, one sigma, mas/yr.

    ``4.5 + 30 * 10^(-0.2 (mag - 7))``, at most 50; 10 where the magnitude is unknown. Nine in ten stars move less
    than 1.645 times this per axis, measured on Gaia's stars brighter than G = 7 and on two fields at a galactic
    latitude of 17 degrees to G = 21.

    Parameters
    ----------
    mag : array_like

    Returns
    -------
    ndarray
        Of the shape of `mag`.
    """
    mag = np.asarray(mag, float)
    return np.asarray(np.where(np.isfinite(mag), np.minimum(4.5 + 30 * 10 ** (-0.2 * (mag - 7)), 50.0), 10.0))


def _rates(stars: CatalogueStars) -> tuple[Array, Array]:
    """(n,) errors of the proper motions per axis, mas/yr, with what is typical where none are known."""
    known = np.isfinite(stars.pm_ra) & np.isfinite(stars.pm_dec)
    unknown = typical_motion(stars.mag)

    def rate(error: Array) -> Array:
        return np.where(known, np.where(np.isfinite(error), error, NO_MOTION_ERROR), unknown)

    return rate(stars.pm_ra_err), rate(stars.pm_dec_err)


def proper_motion(catalogue: CatalogueStars, epoch: float) -> CatalogueStars:
    """A catalogue carried to another epoch.

    Space motion is rigorous (ERFA's ``pmsafe`` through `astropy.coordinates.SkyCoord.apply_space_motion`), so that
    stars beside the pole move right. Errors grow with the proper motion's own from the mean epoch m at which the two
    are uncorrelated: ``var(T) = var(m) + (pm_err (T - m))^2``. A star without proper motion stays where it is and its
    error grows as `typical_motion` says.

    Parameters
    ----------
    catalogue : CatalogueStars
        At its own epoch.
    epoch : float, Julian year
        Where to.

    Returns
    -------
    CatalogueStars
        The same rows in the same order.
    """
    from astropy import units as u
    from astropy.coordinates import Distance, SkyCoord
    from astropy.time import Time
    from erfa import ErfaWarning

    epoch = float(epoch)
    if epoch == catalogue.epoch:
        return catalogue
    if not len(catalogue):
        return replace(catalogue, epoch=epoch)
    known = np.isfinite(catalogue.pm_ra) & np.isfinite(catalogue.pm_dec)
    columns = {key: getattr(catalogue, key).copy() for key in COLUMNS}
    if known.any():
        # a parallax that is noise would make a distance of parsecs and a spurious perspective acceleration
        parallax = np.where(np.nan_to_num(catalogue.parallax[known]) > 1, catalogue.parallax[known], 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ErfaWarning)
            there = SkyCoord(
                ra=catalogue.ra[known] * u.deg,
                dec=catalogue.dec[known] * u.deg,
                distance=Distance(parallax=parallax * u.mas),
                pm_ra_cosdec=catalogue.pm_ra[known] * u.mas / u.yr,
                pm_dec=catalogue.pm_dec[known] * u.mas / u.yr,
                obstime=Time(catalogue.epoch, format="jyear", scale="tcb"),
            ).apply_space_motion(Time(epoch, format="jyear", scale="tcb"))
        columns["ra"][known], columns["dec"][known] = there.ra.deg, there.dec.deg
        columns["pm_ra"][known] = there.pm_ra_cosdec.to_value("mas/yr")
        columns["pm_dec"][known] = there.pm_dec.to_value("mas/yr")
    unknown = AstrometryOptions().catalogue_error
    for axis, rate in zip(("ra", "dec"), _rates(catalogue), strict=True):
        error, mean = columns[f"{axis}_err"], columns[f"{axis}_epoch"]
        mean = np.where(np.isfinite(mean), mean, catalogue.epoch)
        grown = rate**2 * ((epoch - mean) ** 2 - (catalogue.epoch - mean) ** 2)
        variance = np.where(np.isfinite(error), error, unknown) ** 2 + grown
        columns[f"{axis}_err"], columns[f"{axis}_epoch"] = np.sqrt(np.maximum(variance, 0.0)), mean
    return CatalogueStars.make(**columns, epoch=epoch, name=catalogue.name, band=catalogue.band)


def from_mean_epochs(stars: CatalogueStars) -> CatalogueStars:
    """Errors that a table states for the mean epochs (UCAC4, Tycho-2), as they are at the epoch of the positions."""
    columns = {}
    for axis, rate in zip(("ra", "dec"), _rates(stars), strict=True):
        mean, error = getattr(stars, f"{axis}_epoch"), getattr(stars, f"{axis}_err")
        mean = np.where((mean > 1800) & (mean < 2200), mean, stars.epoch)
        columns[f"{axis}_err"] = np.hypot(error, rate * (stars.epoch - mean))
        columns[f"{axis}_epoch"] = mean
    rest = {key: getattr(stars, key) for key in COLUMNS if key not in columns}
    return CatalogueStars.make(**rest, **columns, epoch=stars.epoch, name=stars.name, band=stars.band)
