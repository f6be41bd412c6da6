"""Stars of a catalogue around a place at an epoch: from a file, a local store, the cache or the network.

A request goes to the observatory's own store first, then to the cache on disk, then to the servers.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

from fastack.errors import CatalogueError, FastackWarning
from fastack.network import fetch, require
from fastack.options import CatalogueOptions
from fastack.positions import check_cone, proper_motion, within
from fastack.store import Store, covering_radius
from fastack.surveys import SURVEYS, survey_key, useful_limit
from fastack.tables import read_file
from fastack.types import CatalogueStars


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
    check_cone(ra, dec, radius)
    if name := survey_key(source):
        stars = _load_known(name, ra, dec, radius, max_mag, options)
    elif (path := Path(source).expanduser()).is_dir():
        stars = Store(path).cone(ra, dec, radius, max_mag=max_mag, partial=True)
    elif path.exists():
        stars = read_file(path)
        stars = stars[within(stars, ra, dec, radius, max_mag)]
    else:
        raise CatalogueError(f"{source}: no such file or store, and no catalogue's name ({', '.join(sorted(SURVEYS))})")
    return stars if epoch is None else proper_motion(stars, epoch)


def _load_known(
    name: str, ra: float, dec: float, radius: float, max_mag: float | None, options: CatalogueOptions
) -> CatalogueStars:
    """Own store, cache, network, and what the stores hold of the field where there is none."""
    limit = useful_limit(name, max_mag)
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
    return stars[within(stars, ra, dec, radius, max_mag)]


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
    check_cone(ra, dec, radius)
    key = require(name)
    store = store if isinstance(store, Store) else Store(store)
    region = covering_radius(ra, dec, radius)
    stars = fetch(key, ra, dec, region, max_mag=max_mag, options=options)
    if not len(stars):
        raise CatalogueError(f"{SURVEYS[key].name} has no star within {region:.3f} degree of {ra:.4f} {dec:+.4f}")
    store.add(stars, catalogue=key, region=(ra, dec, region), limit=useful_limit(key, max_mag))
    return int(within(stars, ra, dec, radius, max_mag).sum())
