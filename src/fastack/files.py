"""Which files are frames: names, patterns, directories and lists."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastack.errors import FrameError
from fastack.storage import unreadable

SUFFIXES = (".fits", ".fit", ".fts", ".fz", ".fits.gz", ".fit.gz", ".fts.gz")
#: What fastack and its predecessors write; never taken for a frame unless it is named one by one.
PRODUCTS = ("mosaic.fits*", "amosaic_*.fits*", "ad*.fits*", "master_*.fits*")


def find_frames(
    sources: Sequence[str | Path] | None = None,
    *,
    directory: str | Path = ".",
    default: str = "d*.fits",
    missing: bool = False,
) -> list[Path]:
    """Files behind a list of names.

    Parameters
    ----------
    sources : sequence of str or Path, optional
        Files, glob patterns, directories (all FITS files in them) and ``@list.txt`` (one source a line,
        relative to the list; blank lines and ``#`` comments are skipped). Default: the pattern `default`.
    directory : str or Path
        What relative names refer to.
    default : str
        Pattern that is used without sources.
    missing : bool
        Whether files that are named one by one may be missing, and are listed all the same: who opens them says so.

    Returns
    -------
    list of Path
        Sorted, each file once. Products of earlier runs (mosaic.fits, amosaic_*.fits, adNNNN.fits,
        master_*.fits) and the masks, weights and variances beside a frame are left out unless they are named
        one by one.

    Raises
    ------
    FrameError
        If a source leads to no file.
    """
    base = Path(directory)
    if isinstance(sources, (str, Path)):
        sources = [sources]
    found: list[Path] = []
    asked = [default] if not sources else list(sources)
    for source in asked:
        files = _expand(base, str(source), (), missing)
        if not files:
            raise FrameError(f"no frames: looked for {source} in {base.resolve()}")
        found += files
    unique = {os.path.realpath(split_extension(path)[0]) + _bracket(path): path for path in reversed(found)}
    return sorted(unique.values(), key=lambda path: _natural(str(path)))


def _expand(base: Path, source: str, lists: tuple[Path, ...], missing: bool) -> list[Path]:
    """Files behind one source."""
    if source.startswith("@"):
        return _read_list(base / os.path.expanduser(source[1:]), lists, missing)
    path = base / os.path.expanduser(source)
    if path.is_dir():
        names = (entry.path for entry in os.scandir(path) if entry.is_file())
        found = [Path(name) for name in names if name.lower().endswith(SUFFIXES)]
        return _without_products(found)
    plain, wanted = split_extension(path)
    if plain.exists() or (wanted is None and not glob.has_magic(source)):
        if not missing and not plain.exists():
            raise FrameError(f"{plain}: no such file; looked for {source!r} in {base.resolve()}")
        return [path]
    return _without_products([Path(name) for name in glob.glob(str(path)) if os.path.isfile(name)])


def _read_list(path: Path, lists: tuple[Path, ...], missing: bool) -> list[Path]:
    """Files behind the lines of a list."""
    if path in lists:
        raise FrameError(f"{path}: the list names itself")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise unreadable(path, error) from None
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    found = [file for line in lines if line for file in _expand(path.parent, line, (*lists, path), missing)]
    if not found:
        raise FrameError(f"{path}: the list names no frame")
    return found


def _without_products(paths: list[Path]) -> list[Path]:
    """Drop products of earlier runs and companions of frames."""
    stems = {stem(path.name) for path in paths}
    return [path for path in paths if not is_product(path) and not _is_companion(path.name, stems)]


def is_product(path: str | Path) -> bool:
    """Whether a file bears the name of something that fastack writes."""
    return any(fnmatch.fnmatch(Path(path).name, pattern) for pattern in PRODUCTS)


def stem(name: str) -> str:
    """Name of a file without the suffixes of FITS and of compression."""
    return re.sub(r"(\.(fits|fit|fts))?(\.(gz|fz))?$", "", name, flags=re.I)


def _is_companion(name: str, stems: set[str]) -> bool:
    """Whether a file is the mask, weight or variance of another."""
    match = re.fullmatch(r"(.+)[._](?:mask|bpm|weight|var)", stem(name))
    return match is not None and match[1] in stems


def _natural(text: str) -> list[Any]:
    """Sorting key under which d9 stands before d10."""
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text)]


def _bracket(path: str | Path) -> str:
    wanted = split_extension(path)[1]
    return "" if wanted is None else f"[{wanted}]"


def split_extension(path: str | Path) -> tuple[Path, str | None]:
    """``file.fits[SCI]`` to the file and the extension that is asked for."""
    match = re.fullmatch(r"(.+)\[([\w.\- ]+)\]", str(path))
    if match is None or os.path.exists(path):
        return Path(path), None
    return Path(match[1]), match[2]
