"""Any table of stars as `CatalogueStars`: files in eight formats, and the VOTables that servers send.

A table is either whole or an error: nothing that is cut off, limited or marked as erroneous becomes a catalogue.
"""

from __future__ import annotations

import gzip
import importlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastack.errors import CatalogueError
from fastack.positions import COLUMNS, UNITS, from_mean_epochs, joined
from fastack.surveys import Survey
from fastack.types import Array, CatalogueStars

if TYPE_CHECKING:
    from astropy.table import Table


class Broken(CatalogueError):
    """An answer, or a lack of one, that another attempt may mend."""


class TooMany(CatalogueError):
    """More stars than a limit lets through."""


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
    ("alpha@", "delta@"),
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
    ("V", "V"),
    ("R", "R"),
    ("mag", ""),
    ("MAG", ""),
    ("MAG_AUTO", ""),
    ("magnitude", ""),
)


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
_TEXT = frozenset(b"\t\n\r") | frozenset(range(32, 127))
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
        return stars_of(table, path.name, columns=columns)
    except CatalogueError as error:
        raise CatalogueError(f"{path}: {error}") from None
    except Exception as error:  # readers of eight formats fail in as many ways
        raise CatalogueError(f"{path} cannot be read as a catalogue: {one_line(error)}") from error


def _read_parquet(path: Path) -> Table:
    """Parquet through pyarrow; astropy's own reader needs pandas too, and stumbles over texts that are missing."""
    from astropy.table import MaskedColumn, Table
    from astropy.table.meta import get_header_from_yaml

    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise CatalogueError(
            "Parquet files need pyarrow (pip install pyarrow), or save the table as FITS or ECSV"
        ) from None
    read = parquet.read_table(path)
    facts = (read.schema.metadata or {}).get(b"table_meta_yaml")  # where astropy wrote the file
    header = get_header_from_yaml(facts.decode().split("\n")) if facts else {}
    units = {column["name"]: column.get("unit") for column in header.get("datatype", ())}
    table = Table(meta={k: v for k, v in header.get("meta", {}).items() if not k.startswith("__")})
    for name in read.column_names:
        empty = read[name].is_null().to_numpy()
        if (mask := f"{name}.mask") in read.column_names:  # as astropy keeps what is missing
            empty |= read[mask].to_numpy().astype(bool)
        table[name] = MaskedColumn(read[name].to_numpy(), mask=empty, unit=units.get(name))
    return table


def _read_bytes(data: bytes) -> Table:
    """FITS, VOTable or text, by what it looks like."""
    from astropy.table import Table

    if data.startswith(b"SIMPLE"):
        return Table.read(io.BytesIO(data), format="fits")
    if b"<VOTABLE" in data[:2000]:
        table = read_votable(data)
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
        if field not in (*COLUMNS, "epoch"):
            raise CatalogueError(f"{field!r} is no field of a catalogue; there are {', '.join(COLUMNS)} and epoch")
        name, _, unit = text.partition("[")
        if name in table.colnames:
            found[field] = name, unit.rstrip("]") or None
        elif field == "epoch" and _as_epoch(text) is not None:
            found.pop("epoch", None)
        else:
            raise CatalogueError(f"there is no column {name!r}; there are {', '.join(table.colnames)}")
    if "ra" not in found or "dec" not in found:
        raise CatalogueError(
            f"no columns of right ascension and declination among {', '.join(table.colnames[:30])};"
            " map them (--columns ra=...,dec=...)"
        )
    return found


def stars_of(
    table: Table, name: str, *, columns: Mapping[str, str] | None = None, survey: Survey | None = None
) -> CatalogueStars:
    """A table's rows as stars; `name` is the file's. With `survey` every row has to have a position."""
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
    title = survey.name if survey else _title(table, name, epochs)
    stated = survey.epoch if survey else _stated_epoch(table, found, name, columns, title)
    epochs = np.where(np.isfinite(epochs), epochs, stated)
    good = np.isfinite(values["ra"]) & np.isfinite(values["dec"]) & (np.abs(values["dec"]) <= 90)
    if survey and not good.all():
        raise Broken(f"left {(~good).sum()} rows without a position")
    values = {k: v[good] for k, v in values.items()} | {"ra": values["ra"][good] % 360}
    first = float(epochs[good][0]) if good.any() else stated
    parts, rows = [], []
    for epoch in [first, *(e for e in np.unique(epochs[good]) if e != first)]:
        rows.append(np.flatnonzero(epochs[good] == epoch))
        part = {k: v[rows[-1]] for k, v in values.items()}
        parts.append(from_mean_epochs(CatalogueStars.make(**part, epoch=epoch, name=title, band=band)))
    return joined(parts)[np.argsort(np.concatenate(rows))]


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
    if field not in UNITS:
        return np.asarray(values, float)
    used = u.Unit(unit or stated or "", parse_strict="silent")
    if used == u.hour and field == "ra":
        used = u.hourangle
    if used == u.dimensionless_unscaled:
        return np.asarray(values, float)
    if not used.is_equivalent(u.Unit(UNITS[field])):
        if field == "epoch" or field.endswith("_epoch"):
            return np.asarray(values, float)
        raise CatalogueError(f"column {column.name!r} has the unit {used}, which is none of {field}")
    return np.asarray((values * used).to_value(UNITS[field]), float)


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


def words_of(data: bytes) -> str:
    """The words of an error document; none of bytes that are no text."""
    head = data[:4000]
    if sum(byte in _TEXT for byte in head) < 0.9 * len(head):
        return ""
    text = re.sub(r"<[^>]*>|[^ -~]", " ", data[:4000].decode("latin-1"))
    return " ".join(text.split())[:160]


def read_votable(data: bytes) -> Table | None:
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
            raise Broken("cut the answer off") from error
    if not re.search(rb"<(\w+:)?VOTABLE", data[:2000]):
        words = words_of(data)[:60]
        raise Broken("answered with something else than a VOTable" + (f": {words!r}" if words else ""))
    if not re.search(rb"</(\w+:)?VOTABLE\s*>\s*$", data[-2000:]):
        raise Broken("cut the answer off")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VOWarning)
            warnings.simplefilter("ignore", UnitsWarning)
            warnings.simplefilter("error", W30)  # text in the place of a number, else read as "unknown"
            tree = votable.parse(io.BytesIO(data), invalid="exception", verify="warn")
            tables = list(tree.iter_tables())
            table = tables[0].to_table(use_names_over_ids=True) if tables else None
    except Exception as error:  # expat, numpy and astropy each in their own way
        raise Broken(f"sent a malformed answer: {one_line(error)}") from error
    for info in _infos(tree):
        name, value = str(info.name).upper(), str(info.value).upper()
        if name == "QUERY_STATUS" and value == "OVERFLOW":
            raise TooMany(f"the server left rows out after {len(table) if table else 0}: ask for a brighter"
                           " magnitude limit or a smaller circle")  # fmt: skip
        if name == "ERROR" or (name == "QUERY_STATUS" and value == "ERROR"):
            words = " ".join((info.content or info.value or "").split())
            raise Broken(f"reports an error: {words[:160]}")
    return table


def _infos(tree: Any) -> Iterator[Any]:
    """Every INFO of a VOTable."""
    yield from getattr(tree, "infos", ())
    for part in (*getattr(tree, "resources", ()), *getattr(tree, "tables", ())):
        yield from _infos(part)


def one_line(error: BaseException) -> str:
    """The beginning of an error's text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
