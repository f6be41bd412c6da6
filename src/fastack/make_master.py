"""Raw bias, dark or flat frames to a master: those that belong together, averaged without outliers.

The master stays in memory; `masters` writes it to a file, with a map of bad pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fastack.calibrate import (
    SAME_EXPOSURE,
    Calibration,
    Kind,
    Master,
    Prepared,
    holds_level,
    nanmedian,
    read_only,
    same_filter,
    size_text,
    with_dark,
)
from fastack.errors import CalibrationError, FrameError
from fastack.frames import Frame
from fastack.options import CalibrateOptions
from fastack.storage import Store
from fastack.types import Array, FloatImage

if TYPE_CHECKING:
    from astropy.io import fits

_BAND = 32  # rows of all frames that are combined into a master at a time
_KEPT = 256_000_000  # bytes of decompressed calibration frames that stay in memory


def make_master(
    kind: Kind,
    frames: Sequence[Frame],
    *,
    bias: Master | ArrayLike | None = None,
    dark: Master | Calibration | None = None,
    like: Frame | None = None,
    options: CalibrateOptions | None = None,
) -> Master:
    """Combine raw bias, dark or flat frames.

    Overscan is subtracted, then the bias (from darks and flats) and the dark scaled by exposure (from flats);
    each flat is divided by its own median. What is left is averaged pixel by pixel without the samples that
    lie more than `options.master_clip` sigmas from the median of all.

    Parameters
    ----------
    kind : {"bias", "dark", "flat"}
        What the frames are.
    frames : sequence of Frame
        Raw frames, two-dimensional and of one camera.
    bias : Master or (ny, nx) array_like, optional
        Subtracted from darks and flats.
    dark : Master or Calibration, optional
        Subtracted from flats.
    like : Frame, optional
        A frame to be calibrated: size, binning, filter (flats) and exposure (darks) are asked to fit it.
        Default: what most of `frames` have.
    options : CalibrateOptions, optional
        `master_clip`, `max_temperature`.

    Returns
    -------
    Master
        With the variance of each pixel, and the names of frames that were refused.

    Raises
    ------
    CalibrationError
        If no frame is left.
    ValueError
        If `kind` is unknown or there are no frames.

    Notes
    -----
    The noise of frame i is ``k_i`` times 1 (bias, dark) or the square root of the median (flat: photon
    noise), with k_i from the median absolute deviation over 32 rows. The variance of the mean of n samples is
    ``sum(sigma_i^2) / n^2``, or what the samples themselves say where they scatter significantly more.
    """
    options = options or CalibrateOptions()
    if kind not in ("bias", "dark", "flat"):
        raise ValueError(f"kind is {kind!r}, not 'bias', 'dark' or 'flat'")
    if not frames:
        raise ValueError(f"no {kind} frames")
    good, refused = _sort_out(kind, frames, like, options)
    notes: list[str] = []
    basis = _basis(kind, good, bias, dark)
    usable: list[tuple[Frame, Prepared, float]] = []
    with Store(_KEPT) as store:
        for frame in good:
            try:
                prepared = basis.prepare(frame, store)
                scale = _flat_scale(basis, frame, prepared) if kind == "flat" else 1.0
            except FrameError as error:
                refused.append((frame.name, str(error)))
                continue
            usable.append((frame, prepared, scale))
        if not usable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
            raise CalibrationError(f"no {kind} frame can be used ({reasons}); give others or leave --{kind} out")
        pixels, variance = _combine(kind, basis, usable, options.master_clip)
    if kind == "flat":
        median = np.float32(np.nanmedian(pixels))
        pixels, variance = pixels / median, variance / (median * median)
    used = [frame for frame, *_ in usable]
    if len(used) == 1:
        notes.append("a single frame: cosmic rays stay in it")
    if kind == "flat" and basis.bias is None and basis.dark is None and used[0].overscan is None:
        notes.append("neither bias nor overscan was subtracted: a pedestal in the flats makes it too even")
    notes += unknown_filter(kind, used[0].filter)
    return Master(
        kind=kind,
        pixels=pixels,
        variance=variance,
        header=_master_header(kind, used, subtracted=[n for n in ("bias", "dark") if getattr(basis, n) is not None]),
        used=tuple(frame.name for frame in used),
        refused=tuple(refused),
        notes=tuple(notes),
    )


def _sort_out(
    kind: Kind, frames: Sequence[Frame], like: Frame | None, options: CalibrateOptions
) -> tuple[list[Frame], list[tuple[str, str]]]:
    """Frames that belong together, and the others with the reason."""
    refused: list[tuple[str, str]] = []
    good = list(frames)

    def keep(test: dict[str, str | None]) -> None:
        refused.extend((frame.name, reason) for frame in good if (reason := test[frame.name]))
        good[:] = [frame for frame in good if not test[frame.name]]

    keep({f.name: f"its header says {f.image_type}" if f.image_type not in (kind, "unknown") else None for f in good})
    if not good:
        return good, refused
    shape = like.shape if like else _most_common(f.shape for f in good)
    keep({f.name: f"size {size_text(f.shape)}, not {size_text(shape)}" if f.shape != shape else None for f in good})
    binning = like.binning if like else _most_common(f.binning for f in good)
    keep({f.name: _unlike_binning(f.binning, binning) for f in good})
    if kind == "flat":
        wanted = like.filter if like else _most_common(f.filter for f in good)
        keep({f.name: None if same_filter(f.filter, wanted) else f"filter {f.filter!r}, not {wanted!r}" for f in good})
    if kind == "dark" and good:
        exposure = _dark_exposure(good, like)
        keep({f.name: _unlike_exposure(f.exposure, exposure) for f in good})
    if kind != "flat":
        known = [f.temperature for f in good if f.temperature is not None]
        middle = float(np.median(known)) if known else 0.0
        keep({f.name: _unlike_temperature(f.temperature, middle, options.max_temperature) for f in good})
    return good, refused


def _most_common(values: Iterable[Any]) -> Any:
    """Find the most common value that is known."""
    counted = Counter(value for value in values if value is not None)
    return counted.most_common(1)[0][0] if counted else None


def _unlike_binning(mine: tuple[int, int] | None, wanted: tuple[int, int] | None) -> str | None:
    if mine is None or wanted is None or mine == wanted:
        return None
    return f"binning {mine[0]} x {mine[1]}, not {wanted[0]} x {wanted[1]}"


def _unlike_exposure(mine: float | None, wanted: float | None) -> str | None:
    if mine is None or wanted is None or abs(mine - wanted) <= SAME_EXPOSURE * wanted:
        return None
    return f"exposure {mine:g} s, not {wanted:g} s"


def _unlike_temperature(mine: float | None, middle: float, limit: float) -> str | None:
    if mine is None or abs(mine - middle) <= limit:
        return None
    return f"temperature {mine:g} C, the median is {middle:g} C"


def _dark_exposure(frames: list[Frame], like: Frame | None) -> float | None:
    """Exposure of the darks to be combined: nearest to the frames', else the most common one."""
    known = [f.exposure for f in frames if f.exposure is not None]
    if not known:
        return None
    wanted = like.exposure if like else None
    if wanted is None:
        return float(_most_common(known))
    return min(known, key=lambda exposure: abs(exposure - wanted))


def unknown_filter(kind: Kind, name: str | None) -> tuple[str, ...]:
    """Note on a flat whose header names no filter."""
    return ("the flat's filter is unknown: used all the same",) if kind == "flat" and name is None else ()


def _basis(kind: Kind, frames: list[Frame], bias: Any, dark: Master | Calibration | None) -> Calibration:
    """Calibration of the frames that a master is made of."""
    basis = Calibration()
    if kind == "bias" or not frames:
        return basis
    if isinstance(dark, Calibration):
        return replace(dark, inv_flat=None)
    if bias is not None:
        pixels = bias.pixels if isinstance(bias, Master) else np.ascontiguousarray(bias, np.float32)
        holds = isinstance(bias, Master) and holds_level(bias, frames[0])
        basis = replace(basis, bias=read_only(pixels), use_overscan=not holds)
    if kind == "flat" and dark is not None:
        basis = with_dark(basis, dark, frames[0], [])
    return basis


def _flat_scale(basis: Calibration, frame: Frame, prepared: Prepared) -> float:
    """Median of a flat, from every fourth row; refused where it is no light level."""
    step = max(1, frame.shape[0] // 256)
    rows = [basis.read(frame, (y, y + 1, 0, frame.shape[1]), prepared).pixels for y in range(0, frame.shape[0], step)]
    median = float(np.nanmedian(np.concatenate(rows)))
    limit = prepared.saturation
    if not median > 0:
        raise CalibrationError(f"{frame.name}: holds no light (median {median:g} ADU)")
    if limit is not None and median > 0.9 * limit:
        raise CalibrationError(f"{frame.name}: saturated (median {median:g} of {limit:g} ADU)")
    return median


def _combine(
    kind: Kind, basis: Calibration, usable: list[tuple[Frame, Prepared, float]], clip: float
) -> tuple[FloatImage, FloatImage]:
    """Clipped mean of all frames and its variance, a band of rows at a time."""
    ny, nx = usable[0][0].shape
    pixels, variance = np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32)
    for y0 in range(0, ny, _BAND):
        y1 = min(y0 + _BAND, ny)
        cube = np.stack([basis.read(f, (y0, y1, 0, nx), p).pixels / np.float32(s) for f, p, s in usable])
        pixels[y0:y1], variance[y0:y1] = _clipped_mean(cube, clip, photon_noise=kind == "flat")
    return pixels, variance


def _clipped_mean(cube: FloatImage, clip: float, *, photon_noise: bool) -> tuple[FloatImage, FloatImage]:
    """Mean along the first axis without outliers, and its variance."""
    n = len(cube)
    if n == 1:
        return cube[0], _single_variance(cube[0], photon_noise=photon_noise)
    median = nanmedian(cube, axis=0)
    shape = np.sqrt(np.maximum(median, 0)) if photon_noise else np.ones_like(median)
    k = _frame_noise(cube, shape)[:, None, None]
    with np.errstate(invalid="ignore"):
        kept = np.isfinite(cube) & ~(np.abs(cube - median) > clip * k * np.maximum(shape, 1e-30))
    count = kept.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(kept, cube, 0).sum(axis=0, dtype=np.float64) / count
        model = (np.where(kept, k * k, 0).sum(axis=0) * shape * shape) / (count * count)
        residual = np.where(kept, cube - mean, 0)
        own = (residual * residual).sum(axis=0) / np.maximum(count - 1, 1) / count
        # Five standard deviations of a variance that is itself measured from `count` samples.
        noisy = own > model * (1 + 5 * np.sqrt(2 / np.maximum(count - 1, 1)))
    return mean.astype(np.float32), np.where(noisy, own, model).astype(np.float32)


def _frame_noise(cube: FloatImage, shape: FloatImage) -> Array:
    """(n,) standard deviation of each frame in units of `shape`.

    Deviations from the mean of n frames have the variance ``d_i = k_i^2 (1 - 2/n) + sum(k^2) / n^2``, which
    is solved for k; the median absolute deviation over all pixels keeps outliers out.
    """
    n = len(cube)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.abs(cube - cube.mean(axis=0)) / shape
    deviation[~np.isfinite(deviation)] = np.nan
    d = (1.4826 * nanmedian(deviation.reshape(n, -1), axis=1).astype(np.float64)) ** 2
    total = d.sum() / (1 - 1 / n)
    k2 = (d - total / n**2) / (1 - 2 / n) if n > 2 else np.full(n, total / n)
    # Noise in the estimate must not make a frame perfect.
    return np.asarray(np.sqrt(np.maximum(k2, 0.1 * total / n + 1e-30)))


def _single_variance(image: FloatImage, *, photon_noise: bool) -> FloatImage:
    """Variance of one frame, from the differences of neighbours."""
    shape = np.sqrt(np.maximum(image, 1e-30)) if photon_noise else np.ones_like(image)
    difference = np.diff(image, axis=1) / shape[:, 1:]
    sigma = 1.4826 * nanmedian(np.abs(difference).ravel(), axis=0) / math.sqrt(2)
    return np.asarray(sigma * sigma * shape * shape, np.float32)


def _master_header(kind: Kind, used: list[Frame], subtracted: list[str]) -> fits.Header:
    """Cards of a master."""
    from astropy.io import fits

    first = used[0]
    header = fits.Header()
    header["IMAGETYP"] = (f"master {kind}", "type of image")
    header["NCOMBINE"] = (len(used), "number of frames averaged")
    if first.filter is not None and kind == "flat":
        header["FILTER"] = (first.filter, "filter")
    if kind == "dark" and first.exposure is not None:
        header["EXPTIME"] = (first.exposure, "[s] exposure time of each frame")
    if first.binning is not None:
        header["CCDSUM"] = (f"{first.binning[0]} {first.binning[1]}", "binning")
    temperatures = [f.temperature for f in used if f.temperature is not None]
    if temperatures:
        header["CCD-TEMP"] = (round(float(np.mean(temperatures)), 3), "[C] mean detector temperature")
    if first.instrument is not None:
        header["INSTRUME"] = (first.instrument, "instrument")
    if kind != "flat":
        header["BUNIT"] = ("adu", "unit of the pixels")
        header["BIASSUB"] = ("bias" in subtracted, "bias subtracted")
    for frame in used:
        header["HISTORY"] = f"from {frame.name}"
    return header
