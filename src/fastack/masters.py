"""Master bias, dark and flat frames as files: pixels, errors and a map of bad pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastack import __version__, output
from fastack.calibrate import Kind, Master
from fastack.errors import FrameError
from fastack.files import find_frames
from fastack.frames import open_frame
from fastack.load_calibration import load_calibration
from fastack.make_master import make_master
from fastack.options import CalibrateOptions
from fastack.types import FloatImage

if TYPE_CHECKING:
    from astropy.io import fits

HOT, COLD, COLUMN, MISSING = 1, 2, 4, 8  #: bits of the BPM plane

_DARK_LIMIT = 8.0  # robust sigmas of a dark's pixels above which one is hot
_FLAT_LIMIT = 8.0  # robust sigmas of a flat's pixels about their neighbours beyond which one is bad
_FLAT_LEAST = 0.15  # deviation from the neighbours that a bad pixel of a flat has at least, part of them
_COLUMN_PART = 0.5  # of a column's pixels that are bad where all of it is
_NEIGHBOURS = 7  # side of the median box that a flat's pixel is compared with


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MasterFile:
    """A master as it was written."""

    master: Master
    bad: NDArray[np.uint8] | None  #: (ny, nx) bits; None for a bias
    unreadable: tuple[tuple[str, str], ...] = ()  #: name and reason


def make(
    kind: Kind | str,
    sources: Sequence[str | Path],
    output_path: str | Path,
    *,
    overwrite: bool = False,
    options: CalibrateOptions = CalibrateOptions(),
) -> MasterFile:
    """Combine raw frames into a master and write it.

    Parameters
    ----------
    kind : {"bias", "dark", "flat"}
        What the frames are.
    sources : sequence of str or Path
        Files, globs, directories or ``@list.txt``.
    output_path : str or Path
        FITS file: the master, its UNCERT, and for darks and flats its bad pixels, BPM.
    overwrite : bool
        Whether an existing file may be replaced.
    options : CalibrateOptions
        `bias` and `dark` name what is subtracted; `master_clip`, `max_temperature`.

    Returns
    -------
    MasterFile
        With the frames that were used and refused.

    Raises
    ------
    CalibrationError
        If no frame is left.
    OutputError
        If the file cannot be written.
    """
    target = Path(output_path)
    output.check_target(target, overwrite=overwrite)
    frames, unreadable = [], []
    for path in find_frames(list(sources)):
        if target.exists() and path.samefile(target):
            continue
        try:
            frames.append(open_frame(path, options=options))
        except FrameError as error:
            unreadable.append((path.name, str(error)))
    if not frames:
        reasons = "; ".join(reason for _, reason in unreadable)
        raise FrameError(f"no {kind} frame can be read ({reasons}); give others")
    bias, dark = None, None
    given = {"bias": options.bias} if kind == "dark" else {"bias": options.bias, "dark": options.dark}
    if kind != "bias" and any(given.values()):
        base = replace(
            options, bias=given.get("bias"), dark=given.get("dark"), flat=None, no_flat=True, keep_edges=True
        )
        basis = load_calibration(frames, base)
        bias, dark = basis.bias, basis if basis.dark is not None else None
    master = make_master(kind, frames, bias=bias, dark=dark, options=options)  # type: ignore[arg-type]
    bad = None if kind == "bias" else bad_pixels(master)
    made = MasterFile(master=master, bad=bad, unreadable=tuple(unreadable))
    output.write_hdus(target, hdus(made), overwrite=overwrite)
    return made


def bad_pixels(master: Master) -> NDArray[np.uint8]:
    """Map of the pixels that cannot be trusted.

    Parameters
    ----------
    master : Master
        A dark or a flat.

    Returns
    -------
    (ny, nx) uint8 ndarray
        0 for good pixels; sums of 1 (hot), 2 (cold), 4 (dead column), 8 (no value).

    Notes
    -----
    Dark: hot above median + 8 sigma, cold below median - 8 sigma, sigma = 1.4826 MAD of the whole master, at least
    the pixel's own error. Flat: hot and cold beyond 8 such sigmas and 15 % from the median of 7 x 7 neighbours, so
    that vignetting and dust, which the flat is for, stay. A column of which half is bad is bad altogether, and so is
    one whose median lies as far from the two columns beside it.
    """
    from scipy.ndimage import median_filter

    pixels = master.pixels.astype(float)
    known = np.isfinite(pixels)
    filled = np.where(known, pixels, np.median(pixels[known]) if known.any() else 0.0)
    if master.kind == "flat":
        around = median_filter(filled, _NEIGHBOURS, mode="nearest")
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(around > 0, filled / around - 1, -1.0)
            own = np.sqrt(master.variance) / np.maximum(around, 1e-9)
        sigma, least, limit = _spread(excess[known]), _FLAT_LEAST, _FLAT_LIMIT
    else:
        excess = filled - np.median(filled)
        own = np.sqrt(master.variance)
        sigma, least, limit = _spread(excess[known]), 0.0, _DARK_LIMIT
    far = np.maximum(limit * np.fmax(sigma, np.where(np.isfinite(own), own, 0.0)), least)
    bad = np.zeros(pixels.shape, np.uint8)
    bad[known & (excess > far)] |= HOT
    bad[known & (excess < -far)] |= COLD
    column = np.median(excess, axis=0)
    beside = np.median(np.stack([np.roll(column, k) for k in (-2, -1, 1, 2)]), axis=0)
    apart = np.abs(column - beside) > np.maximum(
        limit * max(_spread(column - beside), sigma / np.sqrt(len(bad))), least
    )
    dead = ((bad > 0).mean(axis=0) >= _COLUMN_PART) | apart
    bad[:, dead] |= COLUMN
    bad[~known] |= MISSING
    return bad


def _spread(values: Any) -> float:
    """Robust standard deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else 0.0


def hdus(made: MasterFile) -> fits.HDUList:
    """Lay out a master as FITS.

    Parameters
    ----------
    made : MasterFile
        The master.

    Returns
    -------
    astropy.io.fits.HDUList
        Primary: pixels; UNCERT: one sigma; BPM: bad pixels, where there is a map.
    """
    from astropy.io import fits

    header = made.master.header.copy()
    header["CREATOR"] = (f"fastack {__version__}", "program")
    primary = fits.PrimaryHDU(np.asarray(made.master.pixels, np.float32), header)
    sigma: FloatImage = np.sqrt(made.master.variance).astype(np.float32)
    error = fits.ImageHDU(sigma, name="UNCERT")
    error.header["UTYPE"] = ("StdDevUncertainty", "for astropy CCDData")
    out = [primary, error]
    if made.bad is not None:
        plane = fits.ImageHDU(made.bad, name="BPM")
        plane.header["COMMENT"] = "0 good; sums of 1 hot, 2 cold, 4 dead column, 8 no value"
        primary.header["NBAD"] = (int(np.count_nonzero(made.bad)), "bad pixels, see BPM")
        out.append(plane)
    return fits.HDUList(out)


def summary(made: MasterFile, path: str | Path) -> str:
    """Tell what went into a master.

    Parameters
    ----------
    made : MasterFile
        The master.
    path : str or Path
        Its file.

    Returns
    -------
    str
        A few lines.
    """
    master = made.master
    refused = [*made.unreadable, *master.refused]
    total = len(master.used) + len(refused)
    lines = [f"{path}: master {master.kind} of {len(master.used)} of {total} frames"]
    lines += [f"  left out {name}: {reason}" for name, reason in refused]
    middle, sigma = float(np.nanmedian(master.pixels)), float(np.sqrt(np.nanmedian(master.variance)))
    unit = "" if master.kind == "flat" else " adu"
    lines.append(f"  median {middle:.4g}{unit}, error of a pixel {sigma:.3g}{unit}")
    if made.bad is not None:
        count = [int(np.count_nonzero(made.bad & bit)) for bit in (HOT, COLD)]
        columns = int(np.count_nonzero((made.bad & COLUMN).all(axis=0)))
        lines.append(f"  bad pixels: {count[0]} hot, {count[1]} cold, {columns} columns")
    lines += [f"  note: {note}" for note in master.notes]
    return "\n".join(lines)
