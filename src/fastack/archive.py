"""An observatory's archive: which files a night's frame numbers mean, and which must not be used.

Frames lie at ROOT/<telescope>/<year>/<yy_mm_dd>/dNNNN.fits; the archive is only ever read.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from fastack.errors import FrameError

DEFAULT_ROOT = "/mnt/archive"
SKIP_FILE = "DONT_PROCESS"
SUFFIXES = (".fits", ".fits.gz", ".fits.fz")

_NIGHT = re.compile(r"^(\d{2})_(\d{2})_(\d{2})$")
_NUMBER = re.compile(r"^[a-z]*(\d+)(?:\.fits?(?:\.gz|\.fz)?|\.fts)?$", re.IGNORECASE)
_RANGE = re.compile(r"^[a-z]*(\d+)\s*(?:-|\.\.|:)\s*[a-z]*(\d+)$", re.IGNORECASE)


def archive_root(given: str | None = None) -> Path:
    """Root of the archive.

    Parameters
    ----------
    given : str, optional
        From the command line; else the environment variable FASTACK_ARCHIVE, else ``archive_root`` in the
        configuration file (see `config_file`), else /mnt/archive.

    Returns
    -------
    Path
        Not checked to exist.

    Raises
    ------
    FrameError
        If the configuration file is malformed.
    """
    value = given or os.environ.get("FASTACK_ARCHIVE")
    if not value:
        path = config_file()
        try:
            value = tomllib.loads(path.read_text()).get("archive_root") if path.is_file() else None
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise FrameError(f"{path}: cannot be read as TOML ({error}); mend or remove it") from error
    return Path(value or DEFAULT_ROOT).expanduser()


def config_file() -> Path:
    """Path of the user's configuration file, ``config.toml``."""
    from platformdirs import user_config_path

    return user_config_path("fastack") / "config.toml"


def night_directory(root: Path, telescope: str, date: str) -> Path:
    """Directory of a night.

    Parameters
    ----------
    root : Path
        Of the archive.
    telescope : str
        Any name that the archive has.
    date : str
        ``yy_mm_dd`` of the night.

    Returns
    -------
    Path
        ROOT/<telescope>/<year>/<yy_mm_dd>.

    Raises
    ------
    FrameError
        If the date is malformed, or there is no such directory; the message names what there is instead.
    """
    match = _NIGHT.match(date)
    if not match or not (1 <= int(match.group(2)) <= 12 and 1 <= int(match.group(3)) <= 31):
        raise FrameError(f"date {date!r}: write yy_mm_dd, such as 19_01_30")
    parts = (telescope, f"20{match.group(1)}", date)
    path = root
    if not root.is_dir():
        raise FrameError(f"archive {root} is not there: name it with --archive-root or FASTACK_ARCHIVE")
    for part in parts:
        if not (path / part).is_dir():
            there = sorted(p.name for p in path.iterdir() if p.is_dir())
            shown = ", ".join(there[-12:]) or "nothing"
            raise FrameError(f"{path} has no {part!r}; it has {'... ' if len(there) > 12 else ''}{shown}")
        path = path / part
    return path


def night_frames(directory: Path, start: int, end: int) -> tuple[list[Path], list[int]]:
    """Frames of a night by their numbers.

    Parameters
    ----------
    directory : Path
        Of the night.
    start, end : int
        First and last number, inclusive.

    Returns
    -------
    paths : list of Path
        One per number that exists, as ``.fits``, ``.fits.gz`` or ``.fits.fz``.
    missing : list of int
        Numbers that do not exist.

    Raises
    ------
    FrameError
        If the range is empty.
    """
    if end < start:
        raise FrameError(f"frames {start} to {end}: the first number must not be above the last")
    # one listing in place of a question per file and suffix, which a slow network disk would answer one by one
    listing = {p.name: p for p in directory.iterdir()}
    by_number: dict[int, Path] = {}
    for suffix in reversed(SUFFIXES):
        for name, path in listing.items():
            match = re.fullmatch(r"d(\d{4,})" + re.escape(suffix), name)
            if match and start <= int(match.group(1)) <= end:
                by_number[int(match.group(1))] = path
    missing = [k for k in range(start, end + 1) if k not in by_number]
    return [by_number[k] for k in sorted(by_number)], missing


def read_skip_list(directory: Path) -> list[tuple[int, int]]:
    """Frame numbers that the file DONT_PROCESS in a directory leaves out.

    Parameters
    ----------
    directory : Path
        Usually the current one.

    Returns
    -------
    list of (first, last)
        Inclusive ranges, from any of ``142``, ``0142``, ``d0142.fits``, ``142-145``, separated by commas, blanks or
        lines, with ``#`` comments. Empty where there is no such file.

    Raises
    ------
    FrameError
        If an entry is none of these: nothing is left out or kept by guessing.
    """
    path = directory / SKIP_FILE
    if not path.is_file():
        return []
    ranges = []
    for line in path.read_text(errors="replace").splitlines():
        text = re.sub(r"\s*(-|\.\.)\s*", r"\1", line.split("#", 1)[0])
        for word in re.split(r"[\s,;]+", text.strip()):
            if not word:
                continue
            if match := _RANGE.match(word):
                ranges.append((int(match.group(1)), int(match.group(2))))
            elif match := _NUMBER.match(Path(word).name):
                ranges.append((int(match.group(1)),) * 2)
            else:
                raise FrameError(f"{path}: cannot read {word!r}; write numbers, d0142.fits or ranges 142-145")
    return ranges


def split_skipped(paths: Sequence[Path], ranges: Sequence[tuple[int, int]]) -> tuple[list[Path], list[Path]]:
    """Part the frames that DONT_PROCESS names from the others.

    Parameters
    ----------
    paths : sequence of Path
        Frames.
    ranges : sequence of (first, last)
        From `read_skip_list`.

    Returns
    -------
    kept, skipped : list of Path
        In the order given.
    """
    kept: list[Path] = []
    skipped: list[Path] = []
    for path in paths:
        match = re.match(r"^d(\d+)\.", path.name)
        out = match is not None and any(a <= int(match.group(1)) <= b for a, b in ranges)
        (skipped if out else kept).append(path)
    return kept, skipped


def older_solution(paths: Sequence[Path]) -> Path | None:
    """An image with an older WCS, ``adNNNN.fits`` beside ``dNNNN.fits``, which is the same without.

    Parameters
    ----------
    paths : sequence of Path
        Frames; the first one that has such a companion counts.

    Returns
    -------
    Path or None
        None where there is none.
    """
    there: dict[Path, set[str]] = {}
    for path in paths:
        if not re.match(r"^d\d+\.", path.name):
            continue
        if path.parent not in there:  # one listing, as in `night_frames`
            there[path.parent] = {p.name for p in path.parent.iterdir()}
        stem = re.sub(r"\.(fits|fit|fts)(\.gz|\.fz)?$", "", path.name)
        if name := next((f"a{stem}{s}" for s in SUFFIXES if f"a{stem}{s}" in there[path.parent]), None):
            return path.with_name(name)
    return None
