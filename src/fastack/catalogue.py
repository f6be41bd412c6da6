"""Stars of a catalogue at an epoch: from a file, a local store, or UCAC4 and Gaia over the network.

A request goes to the observatory's own store first, then to the cache on disk, then to the servers: UCAC4 is VizieR's
I/322A (Zacharias et al. 2013, AJ 145, 44), Gaia is DR3 of the Gaia archive (Gaia Collaboration 2023, A&A 674, A1) with
VizieR's I/355 in its place where the archive does not answer. This is the only module that imports astroquery, and it
does so at the first request. An answer is either whole or an error: nothing that is cut off, limited or marked as
erroneous by its server becomes a catalogue.

Positions are ICRS in degrees; errors are one sigma in mas, in right ascension times cos(dec).
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import http.client
import importlib.util
import io
import json
import os
import re
import socket
import tempfile
import time
import urllib.parse
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastack.errors import CatalogueError, FastackWarning
from fastack.options import AstrometryOptions, CatalogueOptions
from fastack.types import Array, CatalogueStars

if TYPE_CHECKING:
    from astropy.table import Table

T = TypeVar("T")

NO_MOTION_ERROR = 2.0  # mas/yr: typical error of a proper motion that states none
CELL = 0.25  # degree: height of a zone of a store, and about the width of its cells
MARGIN = 3e-4  # degree by which more is asked for: servers turn the centre to FK5 and round it
TIDY_AFTER = 3600.0  # second: age from which a temporary file of a store is that of a process that died


# --- load -------------------------------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    ra: float,
    dec: float,
    radius: float,
    max_mag: float | None = None,
    epoch: float | None = None,
    options: CatalogueOptions | None = None,
) -> CatalogueStars:
    """Stars of a catalogue around a place.

    Parameters
    ----------
    source : str or path-like
        ``"ucac4"`` or ``"gaia"``; a file, see `read_file`; or the directory of a `Store`.
    ra, dec : float, degree
        Centre, ICRS.
    radius : float, degree
        Stars within this distance of the centre, at the catalogue's own epoch.
    max_mag : float, optional
        Faintest magnitude; stars without magnitude are left out with it.
    epoch : float, optional, Julian year
        Carry the stars there by their proper motion; by default they stay at the catalogue's epoch.
    options : CatalogueOptions, optional

    Returns
    -------
    CatalogueStars
        Possibly none.

    Raises
    ------
    CatalogueError
        If the source cannot be read, reached or trusted.

    Warns
    -----
    FastackWarning
        If the network is out of reach and a store that covers only a part of the field stands in.
    """
    options = options or CatalogueOptions()
    _check_cone(ra, dec, radius)
    if name := _known(source):
        stars = _load_known(name, ra, dec, radius, max_mag, options)
    elif (path := Path(source).expanduser()).is_dir():
        stars = Store(path).cone(ra, dec, radius, max_mag=max_mag, partial=True)
    elif path.exists():
        stars = read_file(path)
        stars = stars[_within(stars, ra, dec, radius, max_mag)]
    else:
        raise CatalogueError(f"{source}: no such file or store, and no catalogue's name ({', '.join(sorted(_SERVED))})")
    return stars if epoch is None else proper_motion(stars, epoch)


def _load_known(
    name: str, ra: float, dec: float, radius: float, max_mag: float | None, options: CatalogueOptions
) -> CatalogueStars:
    """Own store, cache, network, and what the stores hold of the field where there is none."""
    limit = _limit(name, max_mag)
    stores = [store for store in (own_store(options), cache(options)) if store is not None]
    for store in stores:
        if store.covers(ra, dec, radius, catalogue=name, max_mag=limit):
            # a piece may be evicted between the two looks
            with contextlib.suppress(CatalogueError):
                return store.cone(ra, dec, radius, catalogue=name, max_mag=limit)
    region = covering_radius(ra, dec, radius)
    try:
        stars = fetch(name, ra, dec, region, max_mag=max_mag, options=options)
    except CatalogueError as error:
        for store in stores:
            with contextlib.suppress(CatalogueError):
                stars = store.cone(ra, dec, radius, catalogue=name, max_mag=max_mag, partial=True)
                warnings.warn(
                    f"{error}; {store.path} stands in, which covers a part only", FastackWarning, stacklevel=3
                )
                return stars
        raise
    if len(stars):  # an empty answer is believed once, not for ever
        try:
            stores[-1].add(stars, catalogue=name, region=(ra, dec, region), limit=limit)
        except OSError as error:
            warnings.warn(f"cache {stores[-1].path} cannot be written: {error}", FastackWarning, stacklevel=3)
    return stars[_within(stars, ra, dec, radius, max_mag)]


def own_store(options: CatalogueOptions | None = None) -> Store | None:
    """The observatory's own store: ``catalogue_path``, else FASTACK_CATALOGUES, else None."""
    path = (options or CatalogueOptions()).catalogue_path or os.environ.get("FASTACK_CATALOGUES")
    return Store(path) if path else None


def cache(options: CatalogueOptions | None = None) -> Store:
    """The store that downloads are kept in: ``cache_path``, else FASTACK_CACHE, else the user's cache directory."""
    import platformdirs

    options = options or CatalogueOptions()
    path = options.cache_path or os.environ.get("FASTACK_CACHE") or platformdirs.user_cache_path("fastack")
    return Store(Path(path) / "catalogues", max_size=options.cache_size)


def _check_cone(ra: float, dec: float, radius: float) -> None:
    if not (np.isfinite(ra) and -90 <= dec <= 90 and 0 < radius <= 180):
        raise ValueError(f"no circle on the sky: ra {ra}, dec {dec}, radius {radius} (degree)")


def _within(stars: CatalogueStars, ra: float, dec: float, radius: float, max_mag: float | None) -> NDArray[np.bool_]:
    """(n,) whether a star lies within a circle and is bright enough."""
    keep = _distance(stars.ra, stars.dec, ra, dec) <= radius
    return keep if max_mag is None else keep & (stars.mag <= max_mag)


def _distance(ra: Any, dec: Any, ra0: float, dec0: float) -> Array:
    """Angular distance, degree; the haversine formula, good at any distance that matters here."""
    a, d, d0 = np.radians(np.asarray(ra) - ra0), np.radians(dec), np.radians(dec0)
    h = np.sin((d - d0) / 2) ** 2 + np.cos(d) * np.cos(d0) * np.sin(a / 2) ** 2
    return np.asarray(2 * np.degrees(np.arcsin(np.sqrt(np.clip(h, 0, 1)))))


def _joined(parts: list[CatalogueStars]) -> CatalogueStars:
    """Several sets of one catalogue as one, at the epoch of the first."""
    parts = [p if p.epoch == parts[0].epoch else proper_motion(p, parts[0].epoch) for p in parts]
    columns = {key: np.concatenate([getattr(p, key) for p in parts]) for key in _COLUMNS}
    return CatalogueStars.make(**columns, epoch=parts[0].epoch, name=parts[0].name, band=parts[0].band)


_COLUMNS = [f.name for f in fields(CatalogueStars)][:-3]


# --- magnitudes and motions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Served:
    """A catalogue that is served over the network."""

    name: str
    epoch: float
    faintest: float  #: magnitude beyond which it holds next to nothing
    source: str  #: VizieR's table
    columns: tuple[str, ...]  #: of that table
    mag: str  #: column of the magnitude limit


_SERVED = {
    "ucac4": _Served(
        "UCAC4",
        2000.0,
        17.0,
        "I/322A/out",
        (
            *("RAJ2000", "e_RAJ2000", "DEJ2000", "e_DEJ2000", "EpRA", "EpDE"),
            *("pmRA", "e_pmRA", "pmDE", "e_pmDE", "f.mag", "a.mag"),
        ),
        "f.mag",
    ),
    "gaia": _Served(
        "Gaia DR3",
        2016.0,
        21.5,
        "I/355/gaiadr3",
        ("RA_ICRS", "e_RA_ICRS", "DE_ICRS", "e_DE_ICRS", "Plx", "pmRA", "e_pmRA", "pmDE", "e_pmDE", "Gmag"),
        "Gmag",
    ),
}


def _known(source: str | Path) -> str | None:
    """Key of a catalogue that is served; None for anything else."""
    word = re.sub(r"[\s_-]", "", str(source).lower())
    return {"ucac4": "ucac4", "gaia": "gaia", "gaiadr3": "gaia", "gaiaedr3": "gaia"}.get(word)


def _limit(name: str, max_mag: float | None) -> float | None:
    """The limit that matters: None where a catalogue ends before it."""
    return None if max_mag is None or max_mag >= _SERVED[name].faintest else max_mag


def magnitude_limit(name: str, n_detections: int, area_deg2: float, *, margin: float = 3.0) -> float:
    """Magnitude to which a catalogue is wanted for an image with so many detections.

    Where the mean star counts of the sky, ``log10 N(<G) = 2.95 + 0.343 (G - 15) - 0.0084 (G - 15)^2`` per square
    degree, reach `margin` times the density of the detections. The counts hold within 0.1 dex for G < 18 as a mean
    over the sky (0.46 per square degree brighter than 7); single fields differ by a factor of three either way with
    galactic latitude, which is what the margin is for.

    Parameters
    ----------
    name : str
        ``"ucac4"``, ``"gaia"``, or anything else for a file: then the catalogue's own end is not known.
    n_detections : int
        In the image.
    area_deg2 : float
        Area of the image, square degree.
    margin : float, optional

    Returns
    -------
    float
        At least 8, and at most what the catalogue holds: 17 for UCAC4, 21.5 for Gaia.
    """
    if not area_deg2 > 0:
        raise ValueError(f"area is {area_deg2} square degree, not positive")
    key = _known(name)
    faintest = _SERVED[key].faintest if key else 21.5
    wanted = np.log10(max(n_detections, 1) * margin / area_deg2)
    a, b, c = -0.0084, 0.343, 2.95 - wanted
    discriminant = b * b - 4 * a * c
    if discriminant <= 0:
        return faintest
    return float(np.clip(15 + (-b + np.sqrt(discriminant)) / (2 * a), 8.0, faintest))


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
    columns = {key: getattr(catalogue, key).copy() for key in _COLUMNS}
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


# --- tables and files -----------------------------------------------------------------------------------------------

# Column names without case, units, epochs and punctuation ("era@" is e_RAJ2000: "@" stands for an epoch); the first
# that a table has counts. A leading "_" is a column that VizieR computes itself, and rounds.
_POSITIONS = (
    ("ra", "dec"),
    ("ramdeg", "demdeg"),
    ("raicrs", "deicrs"),
    ("ra@", "dec@"),
    ("ra@", "de@"),
    ("ra", "de"),
    ("radeg", "decdeg"),
    ("radeg", "dedeg"),
    ("raicrs", "decicrs"),
    ("rightascension", "declination"),
    ("alpha", "delta"),
    ("_raicrs", "_deicrs"),
    ("_ra@", "_de@"),
    ("_ra", "_de"),
)
_NAMES = {
    "ra_err": ("raerr", "raerror", "eramdeg", "eraicrs", "era@", "era", "sigmara"),
    "dec_err": ("decerr", "decerror", "edemdeg", "edeicrs", "ede@", "ede", "edec", "sigmadec"),  # codespell:ignore
    "pm_ra": ("pmra", "pmracosdec"),
    "pm_dec": ("pmdec", "pmde"),
    "pm_ra_err": ("pmraerr", "pmraerror", "epmra"),
    "pm_dec_err": ("pmdecerr", "pmdecerror", "epmde", "epmdec"),
    "parallax": ("parallax", "plx"),
    "ra_epoch": ("raepoch", "epra", "epram"),
    "dec_epoch": ("decepoch", "epde", "epdem"),
    "epoch": ("refepoch", "epoch"),
}
# magnitudes keep their case: Gmag is Gaia's, gmag is Sloan's
_MAGNITUDES = (
    ("phot_g_mean_mag", "G"),
    ("f.mag", "UCAC f"),
    ("f_mag", "UCAC f"),
    ("Gmag", "G"),
    ("VTmag", "VT"),
    ("Vmag", "V"),
    ("Rmag", "R"),
    ("rmag", "r"),
    ("mag", ""),
    ("MAG", ""),
    ("magnitude", ""),
)
_UNITS = {
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
_UNIT_WORD = {
    "deg": "deg",
    "degree": "deg",
    "degrees": "deg",
    "rad": "rad",
    "h": "hourangle",
    "hr": "hourangle",
    "hours": "hourangle",
    "arcsec": "arcsec",
    "as": "arcsec",
    "mas": "mas",
    "uas": "uas",
    "masyr": "mas/yr",
    "arcsecyr": "arcsec/yr",
}
_EPOCH_WORD = re.compile(r"_?j((?:19|20)\d\d(?:\.\d+)?)", re.IGNORECASE)


def read_file(path: str | Path, *, columns: Mapping[str, str] | None = None) -> CatalogueStars:
    """A catalogue from a file.

    CSV (any delimiter, VizieR's tab-separated tables with their rows of units too), ECSV, FITS, VOTable, and Parquet
    where ``pyarrow`` is installed; compressed with gzip or not. Columns are recognised by the names that Gaia, UCAC4,
    Tycho-2 and VizieR use. A column's unit counts before the unit in its name (``ra_deg``), and that before the
    usual one: degree for positions, mas for errors, mas/yr for motions. A right ascension in text is taken in hours.

    The epoch is that of the column ``ref_epoch``, else of the position's name (``ra_j2016``), the table's metadata
    (EPOCH), the file's name (``..._j2016.csv``), else the catalogue's own: 2016.0 for Gaia, J2000 for all others.

    Parameters
    ----------
    path : path-like
    columns : mapping of str to str, optional
        Columns that are not recognised, or wrongly: from a field of `CatalogueStars`, or ``"epoch"``, to the file's
        name for it, with its unit if need be: ``{"ra": "ALPHA[hourangle]", "mag": "R"}``. A number in the place of
        the epoch's column is the epoch.

    Returns
    -------
    CatalogueStars
        In the order of the file; rows without a position are left out.

    Raises
    ------
    CatalogueError
        If the file cannot be read whole, or holds no positions.
    """
    path = Path(path)
    suffixes = [s.lower() for s in path.suffixes]
    kind = next((s for s in reversed(suffixes) if s != ".gz"), "")
    try:
        if kind in (".parquet", ".pq"):
            table = _read_parquet(path)
        else:
            data = path.read_bytes()
            table = _read_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        return _stars(table, path.name, columns=columns)
    except CatalogueError as error:
        raise CatalogueError(f"{path}: {error}") from None
    except Exception as error:  # readers of eight formats fail in as many ways
        raise CatalogueError(f"{path} cannot be read as a catalogue: {_one_line(error)}") from error


def _read_parquet(path: Path) -> Table:
    """Parquet through astropy and pyarrow."""
    from astropy.table import Table

    if importlib.util.find_spec("pyarrow") is None:
        raise CatalogueError("Parquet files need pyarrow (pip install pyarrow), or save the table as FITS or ECSV")
    try:
        return Table.read(path, format="parquet")
    except (KeyError, TypeError, ValueError):  # without astropy's own metadata
        return Table(importlib.import_module("pyarrow.parquet").read_table(path).to_pydict())


def _read_bytes(data: bytes) -> Table:
    """FITS, VOTable or text, by what it looks like."""
    from astropy.table import Table

    if data.startswith(b"SIMPLE"):
        return Table.read(io.BytesIO(data), format="fits")
    if b"<VOTABLE" in data[:2000]:
        table = _votable(data)
        if table is None:
            raise CatalogueError("there is no table in it")
        return table
    return _read_text(data.decode("utf-8-sig", "replace"))


def _read_text(text: str) -> Table:
    """ECSV or a delimited table, with or without VizieR's rows of units and dashes."""
    from astropy.table import Table

    if text.startswith("# %ECSV"):
        return Table.read(text.splitlines(), format="ascii.ecsv")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) < 2:
        raise CatalogueError("it holds no rows")
    delimiter = max("\t;,|", key=lines[0].count)
    delimiter = delimiter if delimiter in lines[0] else " "
    units: list[str] = []
    for k, line in enumerate(lines[1:4], 1):
        if re.fullmatch(r"[-+\s;,|]+", line) and "-" in line:
            units = [u.strip() for u in lines[1].split(delimiter)] if k == 2 else []
            lines = [lines[0], *lines[k + 1 :]]
            break
    if delimiter == "\t":  # VizieR pads its cells with blanks
        lines = ["\t".join(cell.strip() for cell in line.split("\t")) for line in lines]
    missing = [("", "0"), ("null", "0"), ("NULL", "0"), ("--", "0"), ("nan", "nan")]
    kind = {" ": "ascii.basic", "\t": "ascii.tab"}.get(delimiter, "ascii.csv")
    table = Table.read(lines, format=kind, delimiter=delimiter, fill_values=missing, guess=False)
    for name, unit in zip(table.colnames, units, strict=False):
        if unit and "h:m" not in unit and "d:m" not in unit:
            table[name].unit = unit
    return table


def _plain(name: str) -> tuple[str, str | None, float | None]:
    """A column's name without decoration, the unit and the epoch that it states."""
    text = re.sub(r"_from_\w+$", "", name.strip().lower())
    unit = epoch = None
    if (found := re.search(r"_([a-z]+)$", text)) and found[1] in _UNIT_WORD:
        unit, text = _UNIT_WORD[found[1]], text[: found.start()]
    if found := _EPOCH_WORD.search(text):
        epoch, text = float(found[1]), text[: found.start()] + "@" + text[found.end() :]
    lead = "_" if text.startswith("_") else ""
    return lead + re.sub(r"[^a-z0-9@]", "", text), unit, epoch


def _find_columns(table: Table, columns: Mapping[str, str] | None) -> dict[str, tuple[str, str | None]]:
    """From fields of CatalogueStars (and "epoch") to the names of columns and the units that those state."""
    plain: dict[str, tuple[str, str | None]] = {}
    for name in table.colnames:
        key, unit, _ = _plain(name)
        plain.setdefault(key, (name, unit))
    found: dict[str, tuple[str, str | None]] = {}
    for ra, dec in _POSITIONS:
        if ra in plain and dec in plain:
            found["ra"], found["dec"] = plain[ra], plain[dec]
            break
    for field, names in _NAMES.items():
        if match := next((plain[n] for n in names if n in plain), None):
            found[field] = match
    if magnitude := next((name for name, _ in _MAGNITUDES if name in table.colnames), None):
        found["mag"] = magnitude, None
    for field, text in (columns or {}).items():
        if field not in (*_COLUMNS, "epoch"):
            raise CatalogueError(f"{field!r} is no field of a catalogue; there are {', '.join(_COLUMNS)} and epoch")
        name, _, unit = text.partition("[")
        if name in table.colnames:
            found[field] = name, unit.rstrip("]") or None
        elif field == "epoch" and _as_epoch(text) is not None:
            found.pop("epoch", None)
        else:
            raise CatalogueError(f"there is no column {name!r}; there are {', '.join(table.colnames)}")
    if "ra" not in found or "dec" not in found:
        raise CatalogueError(
            f"no columns of right ascension and declination among {', '.join(table.colnames[:30])}; map them by hand"
        )
    return found


def _stars(
    table: Table, name: str, *, columns: Mapping[str, str] | None = None, served: _Served | None = None
) -> CatalogueStars:
    """A table's rows as stars; `name` is the file's, or the server's."""
    found = _find_columns(table, columns)
    values = {
        field: _values(table[column], field, unit)
        for field, (column, unit) in found.items()
        if field not in ("epoch", "mag")
    }
    band = ""
    if "mag" in found:
        column = found["mag"][0]
        band = dict(_MAGNITUDES).get(column, column)
        values["mag"] = _values(table[column], "mag", None)
        second = {"f.mag": "a.mag", "f_mag": "a_mag"}.get(column)
        if second in table.colnames:
            values["mag"] = np.where(np.isfinite(values["mag"]), values["mag"], _values(table[second], "mag", None))
    epochs = _values(table[found["epoch"][0]], "epoch", None) if "epoch" in found else np.full(len(table), np.nan)
    title = served.name if served else _title(table, name, epochs)
    stated = served.epoch if served else _stated_epoch(table, found, name, columns, title)
    epochs = np.where(np.isfinite(epochs), epochs, stated)
    good = np.isfinite(values["ra"]) & np.isfinite(values["dec"]) & (np.abs(values["dec"]) <= 90)
    if served and not good.all():
        raise _Broken(f"left {(~good).sum()} rows without a position")
    values = {k: v[good] for k, v in values.items()} | {"ra": values["ra"][good] % 360}
    first = float(epochs[good][0]) if good.any() else stated
    parts, rows = [], []
    for epoch in [first, *(e for e in np.unique(epochs[good]) if e != first)]:
        rows.append(np.flatnonzero(epochs[good] == epoch))
        part = {k: v[rows[-1]] for k, v in values.items()}
        parts.append(_at_epoch(CatalogueStars.make(**part, epoch=epoch, name=title, band=band)))
    return _joined(parts)[np.argsort(np.concatenate(rows))]


def _at_epoch(stars: CatalogueStars) -> CatalogueStars:
    """Errors that a table states for the mean epochs (UCAC4, Tycho-2), as they are at the epoch of the positions."""
    columns = {}
    for axis, rate in zip(("ra", "dec"), _rates(stars), strict=True):
        mean, error = getattr(stars, f"{axis}_epoch"), getattr(stars, f"{axis}_err")
        mean = np.where((mean > 1800) & (mean < 2200), mean, stars.epoch)
        columns[f"{axis}_err"] = np.hypot(error, rate * (stars.epoch - mean))
        columns[f"{axis}_epoch"] = mean
    rest = {key: getattr(stars, key) for key in _COLUMNS if key not in columns}
    return CatalogueStars.make(**rest, **columns, epoch=stars.epoch, name=stars.name, band=stars.band)


def _values(column: Any, field: str, unit: str | None) -> Array:
    """(n,) a column in the unit of its field, NaN where it is empty."""
    from astropy import units as u
    from astropy.coordinates import Angle

    stated = getattr(column, "unit", None)
    data = np.ma.asarray(getattr(column, "value", column))
    empty = np.ma.getmaskarray(data)
    if data.dtype.kind in "USO":
        text = np.ma.filled(data.astype(str), "").astype(str)
        empty = empty | (np.char.strip(text) == "")
        try:
            data = np.ma.array(np.where(empty, "nan", text).astype(float), mask=empty)
        except ValueError:
            if field not in ("ra", "dec"):
                raise CatalogueError(f"column {column.name!r} is text, not numbers") from None
            sexagesimal = u.hourangle if field == "ra" else u.deg
            angles = np.full(len(text), np.nan)
            if not empty.all():
                angles[~empty] = Angle(np.char.strip(text[~empty]), unit=sexagesimal).deg
            return angles
    values = np.ma.filled(data.astype(float), np.nan)
    values = np.where(empty, np.nan, values)
    if field not in _UNITS:
        return np.asarray(values, float)
    used = u.Unit(unit or stated or "", parse_strict="silent")
    if used == u.hour and field == "ra":
        used = u.hourangle
    if used == u.dimensionless_unscaled:
        return np.asarray(values, float)
    if not used.is_equivalent(u.Unit(_UNITS[field])):
        if field == "epoch" or field.endswith("_epoch"):
            return np.asarray(values, float)
        raise CatalogueError(f"column {column.name!r} has the unit {used}, which is none of {field}")
    return np.asarray((values * used).to_value(_UNITS[field]), float)


def _title(table: Table, name: str, epochs: Array) -> str:
    """Name of the catalogue that a table comes from, by its columns."""
    known = set(table.colnames)
    if "phot_g_mean_mag" in known or {"Gmag", "BPmag"} <= known:
        year = np.nanmedian(epochs) if np.isfinite(epochs).any() else 2016.0
        return {2015.0: "Gaia DR1", 2015.5: "Gaia DR2", 2016.0: "Gaia DR3"}.get(round(float(year), 2), "Gaia")
    if "UCAC4" in known or {"f.mag", "EpRA"} <= known or {"f_mag", "EpRA"} <= known:
        return "UCAC4"
    return "Tycho-2" if "VTmag" in known else name


def _stated_epoch(
    table: Table, found: Mapping[str, Any], name: str, columns: Mapping[str, str] | None, title: str
) -> float:
    """Epoch of the positions where no column gives it."""
    if (given := _as_epoch((columns or {}).get("epoch"))) is not None:
        return given
    if (given := _plain(found["ra"][0])[2]) is not None:
        return given
    for key, value in table.meta.items():
        if str(key).lower() in ("epoch", "ref_epoch", "refepoch") and (given := _as_epoch(value)) is not None:
            return given
    if stem := _EPOCH_WORD.search(name):
        return float(stem[1])
    return 2016.0 if title.startswith("Gaia") else 2000.0


def _as_epoch(value: Any) -> float | None:
    """A Julian year from 2016.0, "2016.0" or "J2016"."""
    found = re.fullmatch(r"\s*J?((?:18|19|20|21)\d\d(?:\.\d*)?)\s*", str(value))
    return float(found[1]) if found else None


# --- store ----------------------------------------------------------------------------------------------------------

Cell = tuple[int, int]
_UNSOUND = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile)  # what reading a piece may raise


def _zone_cells(zone: int) -> int:
    """Number of cells in a zone: about as wide as they are high."""
    middle = np.radians((zone + 0.5) * CELL - 90)
    return max(1, round(360 * float(np.cos(middle)) / CELL))


def _cell_of(ra: Array, dec: Array) -> NDArray[np.intp]:
    """(n, 2) zone and cell of positions."""
    zone = np.clip(np.floor((dec + 90) / CELL), 0, round(180 / CELL) - 1).astype(np.intp)
    count = np.array([_zone_cells(z) for z in range(round(180 / CELL))])[zone]
    cell = np.minimum(np.floor(np.asarray(ra) % 360 / 360 * count).astype(np.intp), count - 1)
    return np.column_stack([zone, cell])


def _nearest(zone: int, cells: NDArray[np.intp], ra: float, dec: float) -> Array:
    """(n,) distance of a point from cells of one zone, degree; 0 inside."""
    width = 360 / _zone_cells(zone)
    # offset in right ascension from the middle of the cell, then from its nearer edge
    off = np.abs((ra - (cells + 0.5) * width + 180) % 360 - 180)
    off = np.radians(np.maximum(off - width / 2, 0.0))
    # along the nearest meridian, sin d sin dec + cos d cos dec cos(off) is highest at `peak`
    d = np.radians(dec)
    a, b = np.sin(d), np.cos(d) * np.cos(off)
    peak = np.arctan2(a, b)
    low, high = np.radians(zone * CELL - 90), np.radians((zone + 1) * CELL - 90)
    ends = np.maximum(a * np.sin(low) + b * np.cos(low), a * np.sin(high) + b * np.cos(high))
    cosine = np.where((peak >= low) & (peak <= high), np.hypot(a, b), ends)
    inside = (off == 0) & (low <= d <= high)
    return np.where(inside, 0.0, np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _farthest(zone: int, cells: NDArray[np.intp], ra: float, dec: float) -> Array:
    """(n,) greatest distance of a point from anywhere in the cells, degree."""
    return 180 - _nearest(zone, cells, ra + 180, -dec)


def _cells(ra: float, dec: float, radius: float, *, whole: bool = False) -> Iterator[Cell]:
    """Cells that a circle touches, or those that lie wholly within it."""
    first = max(0, int(np.floor((dec - radius + 90) / CELL)))
    last = min(round(180 / CELL) - 1, int(np.floor((dec + radius + 90) / CELL)))
    for zone in range(first, last + 1):
        cells = np.arange(_zone_cells(zone))
        distance = _farthest(zone, cells, ra, dec) if whole else _nearest(zone, cells, ra, dec)
        yield from ((zone, int(cell)) for cell in cells[distance <= radius])


def covering_radius(ra: float, dec: float, radius: float) -> float:
    """Radius of the circle that holds every cell of a store which a circle touches, degree."""
    reach = max(float(_farthest(zone, np.array([cell]), ra, dec)[0]) for zone, cell in _cells(ra, dec, radius))
    return min(reach + 1e-6, 180.0)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The stars of one cell."""

    stars: CatalogueStars
    limit: float | None  #: magnitude to which it is complete; None: as far as the catalogue goes


class Store:
    """A directory of catalogue pieces: the cache, or an observatory's own.

    The sky is cut into declination zones of 0.25 degree, and each zone into cells of equal width in right ascension,
    ``round(360 cos(dec) / 0.25)`` of them, which start at RA = 0. A piece is the NumPy archive of one cell,
    ``<path>/<catalogue>/<zone>/<cell>.npz``: ``stars`` is the table, a row for each column of `CatalogueStars`, and
    ``facts`` says in JSON what columns and units these are, their epoch, the catalogue's name and band, and the
    magnitude to which the piece is complete (null: as far as the catalogue goes). A cell without a piece is not
    covered.

    A piece is written to a temporary file and moved into place, and never changed afterwards: readers need no locks,
    writers of the same piece overwrite each other with the same stars, and an interrupted writer leaves nothing that
    a reader would see. Only `add` without a region merges with what is there, under a lock.

    Parameters
    ----------
    path : path-like
        Made when something is added.
    max_size : int, optional, byte
        The pieces that were used longest ago are removed beyond it. None: no limit.
    """

    def __init__(self, path: str | Path, *, max_size: int | None = None) -> None:
        self.path = Path(path).expanduser()
        self.max_size = max_size

    def add(
        self,
        stars: CatalogueStars,
        *,
        catalogue: str | None = None,
        region: tuple[float, float, float] | None = None,
        limit: float | None = None,
    ) -> int:
        """Keep stars.

        Parameters
        ----------
        stars : CatalogueStars
        catalogue : str, optional
            Name of the directory; by default after the name of `stars`: ``ucac4``, ``gaia``, ``tycho-2``.
        region : (ra, dec, radius), optional, degree
            The circle in which `stars` is all there is. Cells wholly within it are replaced (unless what is there
            goes deeper), the others are left alone. Without it every cell that holds a star is taken as covered, and
            the stars join those that are there.
        limit : float, optional
            Magnitude to which `stars` is complete; None: as far as the catalogue goes.

        Returns
        -------
        int
            Number of pieces written.
        """
        catalogue = catalogue or _directory(stars.name)
        home = _cell_of(stars.ra, stars.dec)
        order = np.lexsort((home[:, 1], home[:, 0]))
        home = home[order]
        wanted = dict.fromkeys(_cells(*region, whole=True) if region else ((int(z), int(c)) for z, c in home))
        flat = home[:, 0] * 10_000 + home[:, 1]
        written = 0
        with self._lock(catalogue) if region is None else contextlib.nullcontext():
            for zone, cell in wanted:
                rows = slice(*np.searchsorted(flat, zone * 10_000 + cell + np.array([0, 1])))
                part = stars[order[rows]]
                old = self._read(catalogue, (zone, cell))
                if old and region is None:
                    part = _unique(_joined([old.stars, part]))
                elif old and region and _deep_enough(old.limit, limit) and old.limit != limit:
                    continue
                self._write(catalogue, (zone, cell), part, limit)
                written += 1
        self._tidy()
        return written

    def covers(
        self, ra: float, dec: float, radius: float, *, catalogue: str | None = None, max_mag: float | None = None
    ) -> bool:
        """Whether the whole of a circle is there, to a magnitude."""
        _check_cone(ra, dec, radius)
        try:
            catalogue = catalogue or self._only()
        except CatalogueError:
            return False
        for cell in _cells(ra, dec, radius):
            facts = self._facts(self._piece(catalogue, cell))
            if facts is None or not _deep_enough(facts.get("limit"), max_mag):
                return False
        return True

    def cone(
        self,
        ra: float,
        dec: float,
        radius: float,
        *,
        catalogue: str | None = None,
        max_mag: float | None = None,
        partial: bool = False,
    ) -> CatalogueStars:
        """Stars within a circle.

        Parameters
        ----------
        ra, dec, radius : float, degree
        catalogue : str, optional
            May be left out where the store holds a single one.
        max_mag : float, optional
            Faintest magnitude.
        partial : bool, optional
            Be content with a part of the circle, and with fainter stars missing; the centre must be there.

        Returns
        -------
        CatalogueStars

        Raises
        ------
        CatalogueError
            If the circle is not covered.
        """
        _check_cone(ra, dec, radius)
        catalogue = catalogue or self._only()
        pieces = {cell: self._read(catalogue, cell) for cell in _cells(ra, dec, radius)}
        there = [p for p in pieces.values() if p and (partial or _deep_enough(p.limit, max_mag))]
        if len(there) < len(pieces):
            centre = _cell_of(np.array([ra]), np.array([dec]))[0]
            if not partial or not pieces.get((int(centre[0]), int(centre[1]))):
                raise CatalogueError(
                    f"{self.path}: {catalogue} covers {len(there)} of {len(pieces)} cells within {radius:g} degree of"
                    f" {ra:.4f} {dec:+.4f}; fill it with 'fastack catalogue fetch'"
                )
        stars = _joined([p.stars for p in there])
        return stars[_within(stars, ra, dec, radius, max_mag)]

    def list(self) -> Table:
        """What the store covers.

        Returns
        -------
        astropy.table.Table
            One row for each piece: catalogue, ra and dec of its middle (degree), area (square degree), stars, limit,
            epoch, size (byte), used (seconds since 1970).
        """
        from astropy.table import Table

        rows = []
        for path in sorted(self.path.glob("*/[0-9]*/[0-9]*.npz")):
            facts = self._facts(path)
            if facts is None:
                continue
            zone, cell = int(path.parent.name), int(path.stem)
            low = np.radians(zone * CELL - 90)
            area = 360 / _zone_cells(zone) * np.degrees(np.sin(low + np.radians(CELL)) - np.sin(low))
            middle = (cell + 0.5) * 360 / _zone_cells(zone), (zone + 0.5) * CELL - 90
            info = path.stat()
            limit = np.nan if facts["limit"] is None else facts["limit"]
            rows.append(
                (path.parts[-3], *middle, area, facts["rows"], limit, facts["epoch"], info.st_size, info.st_mtime)
            )
        names = ("catalogue", "ra", "dec", "area", "stars", "limit", "epoch", "size", "used")
        table = Table(rows=rows or None, names=names, dtype=("U32", "f8", "f8", "f8", "i8", "f8", "f8", "i8", "f8"))
        table["ra"].unit = table["dec"].unit = "deg"
        table["area"].unit, table["size"].unit = "deg2", "byte"
        return table

    def _only(self) -> str:
        names = sorted(p.name for p in self.path.glob("*") if p.is_dir() and next(p.glob("[0-9]*/[0-9]*.npz"), None))
        if len(names) == 1:
            return names[0]
        there = f"it holds {', '.join(names)}: say which" if names else "there is nothing in it"
        raise CatalogueError(f"store {self.path}: {there}")

    def _piece(self, catalogue: str, cell: Cell) -> Path:
        return self.path / catalogue / f"{cell[0]:03d}" / f"{cell[1]:04d}.npz"

    def _facts(self, path: Path) -> dict[str, Any] | None:
        """Everything about a piece but its stars; None where there is no sound piece."""
        try:
            with open(path, "rb") as raw, np.load(raw) as file:
                facts = json.loads(str(file["facts"]))
        except _UNSOUND:
            return None
        return facts if isinstance(facts, dict) else None

    def _read(self, catalogue: str, cell: Cell) -> _Piece | None:
        """One piece; None where there is none, or none that can be read."""
        path = self._piece(catalogue, cell)
        try:
            with open(path, "rb") as raw, np.load(raw) as file:
                facts = json.loads(str(file["facts"]))
                columns = dict(zip(facts["columns"], file["stars"], strict=True))
            stars = CatalogueStars.make(**columns, epoch=facts["epoch"], name=facts["name"], band=facts["band"])
            limit = facts["limit"]
        except _UNSOUND:
            return None
        if self.max_size is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
        return _Piece(stars, limit)

    def _write(self, catalogue: str, cell: Cell, stars: CatalogueStars, limit: float | None) -> None:
        """One piece, whole or not at all."""
        facts = {"epoch": stars.epoch, "name": stars.name, "band": stars.band, "limit": limit, "columns": _COLUMNS}
        facts |= {"units": [_UNITS.get(key, "mag") for key in _COLUMNS], "rows": len(stars)}
        columns = np.stack([getattr(stars, key) for key in _COLUMNS])
        path = self._piece(catalogue, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, stars=columns, facts=np.array(json.dumps(facts)))
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _lock(self, catalogue: str) -> Iterator[None]:
        """One writer at a time."""
        directory = self.path / catalogue
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _tidy(self) -> None:
        """Remove what dead writers left, and the pieces used longest ago beyond the size limit."""
        for path in self.path.glob("*/[0-9]*/.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > TIDY_AFTER:
                    path.unlink()
        if self.max_size is None:
            return
        pieces = []
        for path in self.path.glob("*/[0-9]*/[0-9]*.npz"):
            with contextlib.suppress(OSError):
                info = path.stat()
                pieces.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in pieces)
        for _, size, path in sorted(pieces):
            if total <= self.max_size:
                break
            path.unlink(missing_ok=True)
            total -= size


def _umask() -> int:
    """The process's umask, which can only be read by setting it; 022 where Linux does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"Umask:\s*(\d+)", status)[1], 8)  # type: ignore[index]
    except (OSError, TypeError):
        return 0o022


def _directory(name: str) -> str:
    """Directory of a catalogue in a store."""
    return _known(name) or re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "catalogue"


def _deep_enough(limit: float | None, wanted: float | None) -> bool:
    """Whether a piece complete to `limit` answers a request to `wanted`; None: no limit."""
    return limit is None or (wanted is not None and wanted <= limit + 1e-9)


def _unique(stars: CatalogueStars) -> CatalogueStars:
    """Each place once; a star that is there twice has the same coordinates to 1e-8 degree."""
    places = np.round(np.column_stack([stars.ra, stars.dec]) * 1e8).astype(np.int64)
    return stars[np.sort(np.unique(places, axis=0, return_index=True)[1])]


def fetch_into(
    store: Store | str | Path,
    name: str,
    ra: float,
    dec: float,
    radius: float,
    max_mag: float | None = None,
    *,
    options: CatalogueOptions | None = None,
) -> int:
    """Fetch a field and keep it in a store.

    Parameters
    ----------
    store : Store or path-like
    name : {"ucac4", "gaia"}
    ra, dec, radius : float, degree
        Whole cells are fetched, up to 0.6 degree beyond the radius.
    max_mag : float, optional
    options : CatalogueOptions, optional

    Returns
    -------
    int
        Number of stars within the circle.

    Raises
    ------
    CatalogueError
        As `fetch`; and if the answer is empty.
    """
    _check_cone(ra, dec, radius)
    key = _require(name)
    store = store if isinstance(store, Store) else Store(store)
    region = covering_radius(ra, dec, radius)
    stars = fetch(key, ra, dec, region, max_mag=max_mag, options=options)
    if not len(stars):
        raise CatalogueError(f"{_SERVED[key].name} has no star within {region:.3f} degree of {ra:.4f} {dec:+.4f}")
    store.add(stars, catalogue=key, region=(ra, dec, region), limit=_limit(key, max_mag))
    return int(_within(stars, ra, dec, radius, max_mag).sum())


def describe(store: Store | str | Path) -> str:
    """What a store covers, in lines: for each catalogue its patches of the sky, in the order of right ascension.

    Parameters
    ----------
    store : Store or path-like

    Returns
    -------
    str
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    store = store if isinstance(store, Store) else Store(store)
    table = store.list()
    if not len(table):
        return f"{store.path}: empty"
    lines = [f"{store.path}: {np.sum(table['size']) / 1e6:.1f} MB"]
    for name in sorted(set(table["catalogue"])):
        rows = table[table["catalogue"] == name]
        a, d = np.radians(np.asarray(rows["ra"])), np.radians(np.asarray(rows["dec"]))
        xyz = np.column_stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
        near = cKDTree(xyz).query_pairs(np.radians(1.6 * CELL), output_type="ndarray")
        links = coo_matrix((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(rows), len(rows)))
        count, patch = connected_components(links, directed=False)
        text = []
        for k in range(count):
            part = rows[patch == k]
            middle = xyz[patch == k].mean(axis=0)
            ra = float(np.degrees(np.arctan2(middle[1], middle[0])) % 360)
            dec = float(np.degrees(np.arctan2(middle[2], np.hypot(middle[0], middle[1]))))
            limit = np.asarray(part["limit"])
            depth = "complete" if np.isnan(limit).all() else f"to {np.nanmin(limit):.1f} mag"
            area, stars = float(np.sum(part["area"])), int(np.sum(part["stars"]))
            text.append((ra, f"  around {ra:8.4f} {dec:+8.4f}  {area:8.2f} deg2  {stars:9d} stars  {depth}"))
        lines.append(f"{name}: {len(rows)} pieces, {np.sum(rows['area']):.2f} deg2, {np.sum(rows['stars'])} stars")
        lines += [line for _, line in sorted(text)]
    return "\n".join(lines)


# --- network --------------------------------------------------------------------------------------------------------


class _Broken(CatalogueError):
    """An answer, or a lack of one, that another attempt may mend."""


class _Unreachable(CatalogueError):
    """No connection to the server at all."""


class _TooMany(CatalogueError):
    """More stars than the row limit."""


def fetch(
    name: str,
    ra: float,
    dec: float,
    radius: float,
    *,
    max_mag: float | None = None,
    options: CatalogueOptions | None = None,
) -> CatalogueStars:
    """Stars of UCAC4 or Gaia DR3 from their servers, past all stores.

    Parameters
    ----------
    name : {"ucac4", "gaia"}
    ra, dec, radius : float, degree
        Circle, ICRS.
    max_mag : float, optional
        Faintest magnitude: UCAC's f, Gaia's G.
    options : CatalogueOptions, optional

    Returns
    -------
    CatalogueStars
        At J2000 (UCAC4) or J2016.0 (Gaia); possibly none.

    Raises
    ------
    CatalogueError
        In one line: the servers cannot be reached, do not answer in time, answer with an error or with something that
        is no whole catalogue, or there are more stars than the row limit.
    """
    options = options or CatalogueOptions()
    _check_cone(ra, dec, radius)
    key = _require(name)
    served, max_mag = _SERVED[key], _limit(key, max_mag)
    services: list[tuple[str, Callable[[], Table | None]]] = []
    if key == "gaia":
        services.append((options.gaia_server, lambda: _ask_archive(ra, dec, radius, max_mag, options)))
    services.append((options.vizier_server, lambda: _ask_vizier(served, ra, dec, radius, max_mag, options)))
    failures: list[CatalogueError] = []
    for server, ask in services:
        host = urllib.parse.urlsplit(server).netloc

        def answer(ask: Callable[[], Table | None] = ask) -> CatalogueStars:
            table = ask()
            if table is None or not len(table):
                return CatalogueStars.make([], [], epoch=served.epoch, name=served.name)
            if len(table) > options.row_limit:
                raise _TooMany(
                    f"more than {options.row_limit} stars within {radius:.3g} degree: ask for a brighter magnitude"
                    " limit or a smaller circle, or raise the row limit"
                )
            try:
                return _stars(table, served.name, served=served)
            except _Broken:
                raise
            except (CatalogueError, ValueError, TypeError) as error:
                raise _Broken(f"answered with something else than {served.name}: {_one_line(error)}") from error

        try:
            stars = _attempts(answer, options)
            return stars[_within(stars, ra, dec, radius, None)]
        except _TooMany as error:
            raise CatalogueError(f"{served.name} from {host}: {error}") from None
        except CatalogueError as error:
            failures.append(type(error)(f"{host} {error}"))
    text = f"{served.name}: " + "; ".join(str(f) for f in failures)
    if all(isinstance(f, _Unreachable) for f in failures):
        text += " (no network?); use a local file, or a store filled by 'fastack catalogue fetch'"
    raise CatalogueError(text)


def _require(name: str) -> str:
    key = _known(name)
    if key is None:
        raise ValueError(f"catalogue is {name!r}, not one of {', '.join(sorted(_SERVED))}")
    return key


def _attempts(ask: Callable[[], T], options: CatalogueOptions) -> T:
    """The first good answer, with pauses that double between the attempts."""
    for attempt in range(options.retries + 1):
        if attempt:
            time.sleep(options.backoff * 2 ** (attempt - 1))
        try:
            with _named_errors():
                return ask()
        except _Broken as error:
            last = error
    raise _Broken(f"{last} ({options.retries + 1} attempts)") from last


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """What requests and http.client raise, as one of this module's errors."""
    import requests

    try:
        yield
    except CatalogueError:
        raise
    except (OSError, EOFError, http.client.HTTPException) as error:
        causes = list(_causes(error))
        if any(isinstance(c, (TimeoutError, requests.Timeout)) for c in causes):
            raise _Broken("did not answer in time") from error
        if any(isinstance(c, (socket.gaierror, ConnectionRefusedError)) for c in causes) or any(
            isinstance(c, OSError) and c.errno in _NO_ROUTE for c in causes
        ):
            raise _Unreachable("cannot be reached") from error
        if any(isinstance(c, http.client.IncompleteRead) or type(c).__name__ == "IncompleteRead" for c in causes):
            raise _Broken("cut the answer off") from error
        raise _Broken(f"broke off: {_one_line(error)}") from error


_NO_ROUTE = {100, 101, 112, 113}  # errno of a network or host that is down or out of reach


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    waiting, seen = [error], set()
    while waiting:
        this = waiting.pop()
        if id(this) in seen:
            continue
        seen.add(id(this))
        yield this
        linked = (this.__cause__, this.__context__, getattr(this, "reason", None), *this.args)
        waiting += [e for e in linked if isinstance(e, BaseException)]


def _one_line(error: BaseException) -> str:
    """The beginning of an error's text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _status(code: int, reason: str) -> None:
    """Raise for anything but success."""
    if code >= 500 or code in (408, 429):
        raise _Broken(f"answers {code} {reason}")
    if code >= 400:
        raise CatalogueError(f"refuses the request: {code} {reason}")
    if code != 200:
        raise _Broken(f"answers {code} {reason}")


def _ask_vizier(
    served: _Served, ra: float, dec: float, radius: float, max_mag: float | None, options: CatalogueOptions
) -> Table | None:
    """One request to VizieR through astroquery."""
    from astropy.coordinates import Angle, SkyCoord
    from astroquery.vizier import VizierClass

    vizier = VizierClass(
        columns=list(served.columns),
        column_filters={} if max_mag is None else {served.mag: f"<={max_mag:.3f}"},
        timeout=options.timeout,
        row_limit=options.row_limit + 1,
    )
    # astroquery puts https:// before the name of a mirror; a mirror inside an observatory may speak http
    vizier._server_to_url = lambda return_type="votable": f"{options.vizier_server.rstrip('/')}/viz-bin/{return_type}"
    centre = SkyCoord(ra, dec, unit="deg", frame="icrs")
    try:
        # the answer as it came: astroquery's parser takes a limited or erroneous one for a catalogue
        response = vizier.query_region_async(
            centre, radius=Angle(radius + MARGIN, "deg"), catalog=served.source, cache=False
        )
    finally:
        vizier._session.close()
    _status(response.status_code, response.reason)
    return _votable(response.content)


def _ask_archive(
    ra: float, dec: float, radius: float, max_mag: float | None, options: CatalogueOptions
) -> Table | None:
    """One asynchronous job at the Gaia archive through astroquery's TAP client.

    `astroquery.gaia` asks the archive for its messages when it is imported, without a time-out; the client below it
    does not. Synchronous jobs would be limited to 2000 rows.
    """
    from astroquery.utils.tap.conn.tapconn import ConnectionHandler, TapConn
    from astroquery.utils.tap.core import TapPlus

    opened: list[http.client.HTTPConnection] = []

    class Connections(ConnectionHandler):  # type: ignore[misc]
        """Connections with a time-out, which astroquery's have not, and with an end."""

        def get_connection(self, **how: Any) -> Any:
            connection = super().get_connection(**how)
            connection.timeout = options.timeout
            opened.append(connection)
            return connection

    url = urllib.parse.urlsplit(options.gaia_server)
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    context, _, tap = url.path.strip("/").rpartition("/")
    connection = TapConn(
        secure,
        url.hostname,
        server_context=context,
        tap_context=tap,
        port=port,
        sslport=port,
        connhandler=Connections(url.hostname, port, port),
    )
    query = _adql(ra, dec, radius + MARGIN, max_mag, options.row_limit + 1)
    try:
        return _votable(_run_job(TapPlus(connhandler=connection), connection, query, options.job_timeout))
    finally:
        for each in opened:
            each.close()


def _run_job(tap: Any, connection: Any, query: str, patience: float) -> bytes:
    """Launch a job, wait for its end and read its result."""
    deadline = time.monotonic() + patience
    try:
        job = tap.launch_job_async(query, background=True)
    except OSError:
        if connection.get_response_status() not in (0, 303):
            _status(connection.get_response_status(), connection.get_response_reason())
        raise
    pause = 0.1
    while (phase := _get(connection, f"async/{job.jobid}/phase").decode("ascii", "replace").strip().upper()) in (
        "PENDING",
        "QUEUED",
        "EXECUTING",
    ):
        if time.monotonic() + pause > deadline:
            raise _Broken(f"had not finished after {patience:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
    if phase != "COMPLETED":
        message = _get(connection, f"async/{job.jobid}/error") if phase == "ERROR" else b""
        raise _Broken(f"ended the job with {phase[:20]!r} {_message(message)}".rstrip())
    return _get(connection, f"async/{job.jobid}/results/result")


def _get(connection: Any, path: str) -> bytes:
    """Body of a GET request, redirections followed."""
    for _ in range(4):
        response = connection.execute_tapget(path)
        if response.status not in (301, 302, 303, 307):
            break
        target = urllib.parse.urlsplit(response.getheader("Location") or "").path
        path = path if "/async/" not in target else "async/" + target.split("/async/", 1)[1]
    _status(response.status, response.reason)
    return bytes(response.read())


def _adql(ra: float, dec: float, radius: float, max_mag: float | None, rows: int) -> str:
    """Query of the Gaia archive."""
    bright = "" if max_mag is None else f" AND phot_g_mean_mag <= {max_mag:.3f}"
    return (
        f"SELECT TOP {rows} ra, dec, ra_error, dec_error, pmra, pmdec, pmra_error, pmdec_error, parallax,"
        " phot_g_mean_mag, ref_epoch FROM gaiadr3.gaia_source WHERE 1 = CONTAINS(POINT('ICRS', ra, dec),"
        f" CIRCLE('ICRS', {ra:.8f}, {dec:.8f}, {radius:.8f})){bright}"
    )


def _message(data: bytes) -> str:
    """The words of an error document."""
    text = re.sub(r"<[^>]*>|[^ -~]", " ", data[:4000].decode("latin-1"))
    return " ".join(text.split())[:160]


def _votable(data: bytes) -> Table | None:
    """The table of a VOTable that is whole and sound; None where it holds none.

    Raises
    ------
    CatalogueError
        If it is no VOTable, ends early, reports an error, or that rows were left out.
    """
    from astropy.io import votable
    from astropy.io.votable.exceptions import W30, VOWarning
    from astropy.units import UnitsWarning

    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError) as error:
            raise _Broken("cut the answer off") from error
    if not re.search(rb"<(\w+:)?VOTABLE", data[:2000]):
        raise _Broken(f"answered with something else than a VOTable: {_message(data)[:60]!r}")
    if not re.search(rb"</(\w+:)?VOTABLE\s*>\s*$", data[-2000:]):
        raise _Broken("cut the answer off")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VOWarning)
            warnings.simplefilter("ignore", UnitsWarning)
            warnings.simplefilter("error", W30)  # text in the place of a number, else read as "unknown"
            tree = votable.parse(io.BytesIO(data), invalid="exception", verify="warn")
            tables = list(tree.iter_tables())
            table = tables[0].to_table(use_names_over_ids=True) if tables else None
    except Exception as error:  # expat, numpy and astropy each in their own way
        raise _Broken(f"sent a malformed answer: {_one_line(error)}") from error
    for info in _infos(tree):
        name, value = str(info.name).upper(), str(info.value).upper()
        if name == "QUERY_STATUS" and value == "OVERFLOW":
            raise _TooMany(f"the server left rows out after {len(table) if table else 0}: ask for a brighter"
                           " magnitude limit or a smaller circle")  # fmt: skip
        if name == "ERROR" or (name == "QUERY_STATUS" and value == "ERROR"):
            words = " ".join((info.content or info.value or "").split())
            raise _Broken(f"reports an error: {words[:160]}")
    return table


def _infos(tree: Any) -> Iterator[Any]:
    """Every INFO of a VOTable."""
    yield from getattr(tree, "infos", ())
    for part in (*getattr(tree, "resources", ()), *getattr(tree, "tables", ())):
        yield from _infos(part)


def resolve(name: str, *, options: CatalogueOptions | None = None) -> tuple[float, float] | None:
    """Position of an object by its name, from Sesame.

    Parameters
    ----------
    name : str
    options : CatalogueOptions, optional

    Returns
    -------
    (ra, dec) in degree, ICRS, or None
        None where Sesame does not know it, or cannot be reached in time.
    """
    from astropy.coordinates import name_resolve
    from astropy.utils.data import conf

    options = options or CatalogueOptions()
    if not name.strip():
        return None
    servers = [options.sesame_server] if options.sesame_server else name_resolve.sesame_url.get()
    try:
        with conf.set_temp("remote_timeout", min(options.timeout, 15.0)), name_resolve.sesame_url.set(servers):
            place = name_resolve.get_icrs_coordinates(name.strip())
    except (name_resolve.NameResolveError, OSError, ValueError, http.client.HTTPException):
        return None
    return float(place.ra.deg), float(place.dec.deg)
