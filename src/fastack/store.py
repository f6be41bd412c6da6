"""Pieces of catalogues on this machine: the cache of downloads, and an observatory's own store."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastack.errors import CatalogueError
from fastack.positions import COLUMNS, UNITS, check_cone, joined, within
from fastack.surveys import survey_key
from fastack.types import Array, CatalogueStars

if TYPE_CHECKING:
    from astropy.table import Table

CELL = 0.25  # degree: height of a zone of a store, and about the width of its cells
TIDY_AFTER = 3600.0  # second: age from which a temporary file of a store is that of a process that died


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
                    part = _unique(joined([old.stars, part]))
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
        check_cone(ra, dec, radius)
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
        check_cone(ra, dec, radius)
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
        stars = joined([p.stars for p in there])
        return stars[within(stars, ra, dec, radius, max_mag)]

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
        facts = {"epoch": stars.epoch, "name": stars.name, "band": stars.band, "limit": limit, "columns": COLUMNS}
        facts |= {"units": [UNITS.get(key, "mag") for key in COLUMNS], "rows": len(stars)}
        columns = np.stack([getattr(stars, key) for key in COLUMNS])
        path = self._piece(catalogue, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, stars=columns, facts=np.array(json.dumps(facts)))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
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


def _directory(name: str) -> str:
    """Directory of a catalogue in a store."""
    return survey_key(name) or re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "catalogue"


def _deep_enough(limit: float | None, wanted: float | None) -> bool:
    """Whether a piece complete to `limit` answers a request to `wanted`; None: no limit."""
    return limit is None or (wanted is not None and wanted <= limit + 1e-9)


def _unique(stars: CatalogueStars) -> CatalogueStars:
    """Each place once; a star that is there twice has the same coordinates to 1e-8 degree."""
    places = np.round(np.column_stack([stars.ra, stars.dec]) * 1e8).astype(np.int64)
    return stars[np.sort(np.unique(places, axis=0, return_index=True)[1])]


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
