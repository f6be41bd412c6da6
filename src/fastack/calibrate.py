"""Stored pixels to calibrated ones: overscan, bias, dark and flat in one pass over the bytes of the file.

``x = (raw * BSCALE + BZERO - overscan - bias - dark * scale) / flat``, in the light area. Missing pixels
(BLANK, masked, bad in the flat) are NaN. The native row functions do all of it at once
(csrc/rows/calibrate.inl).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastack import _pixels
from fastack.errors import CalibrationError, FrameError
from fastack.executor import Executor
from fastack.files import find_frames
from fastack.frames import Frame, open_frame
from fastack.options import CalibrateOptions
from fastack.storage import Plane, Rows, Store, Stored, Window, failed, unpack
from fastack.types import Array, FloatImage

if TYPE_CHECKING:
    from astropy.io import fits

Kind = Literal["bias", "dark", "flat"]
Mask = NDArray[np.bool_]
_Start = Callable[..., Callable[[], Any]]  # begins a call, as `Executor.start` does

_SMOOTH = (0, 1, 2, 4, 8, 16, 32)  # rows on either side over which the overscan level may be averaged
_CONFIDENCE = 2.0  # sigmas on either side in the choice among them
_OUTLIER = 5.0  # sigmas beyond which a pixel of the overscan is left out
_BAND = 32  # rows of all frames that are combined into a master at a time
_SAME_EXPOSURE = 0.02  # relative difference up to which two exposures are the same
_KEPT = 256_000_000  # bytes of decompressed calibration frames that stay in memory
_SAMPLED = 3  # frames in which the saturation level and bad edges are looked for
_AT_ONCE = 1 << 18  # pixels of a frame that are looked at together
_STRIP = 64  # lines at each side in which a bad edge is looked for
_ALIKE = 6  # lines over which stars make levels alike
_EDGE = 24  # lines that a bad edge may have; the others tell the sky


def decode(
    raw: ArrayLike, bitpix: int, bscale: float = 1.0, bzero: float = 0.0, blank: int | None = None
) -> FloatImage:
    """Decode FITS pixels.

    Parameters
    ----------
    raw : (ny, row_bytes) array_like of uint8
        Big-endian pixels as a FITS file holds them; rows may be cut from wider ones.
    bitpix : {8, 16, 32, 64, -32, -64}
        How a pixel is stored.
    bscale, bzero : float
        Physical value = stored * `bscale` + `bzero`.
    blank : int, optional
        Stored integer that marks a missing pixel; has no meaning for floats.

    Returns
    -------
    (ny, nx) ndarray of float32
        Physical values, rounded once; missing pixels are NaN.

    Raises
    ------
    ValueError
        If `raw` has another shape or `bitpix` is none of FITS.

    Notes
    -----
    FITS standard 4.0 [1]_, sections 4.4.2.5 and 5.

    References
    ----------
    .. [1] https://fits.gsfc.nasa.gov/fits_standard.html
    """
    raw = np.asarray(raw, np.uint8)
    if raw.ndim != 2:
        raise ValueError(f"raw has {raw.ndim} dimensions, not 2 (rows and bytes)")
    if raw.shape[1] > 1 and raw.strides[1] != 1:
        raw = np.ascontiguousarray(raw)
    out = np.empty((raw.shape[0], raw.shape[1] * 8 // max(8, abs(bitpix))), np.float32)
    _pixels.calibrate(out, raw, bitpix=bitpix, bscale=bscale, bzero=bzero, blank=blank)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """Calibrated pixels of a window of one frame."""

    pixels: FloatImage  #: (h, w), NaN where missing
    saturated: NDArray[np.int32]  #: (k, 2) x and y of saturated pixels, in pixels of the frame's light area
    variance: FloatImage | None = None  #: (h, w) where the file brings one, ADU^2 after the flat

    @property
    def n_saturated(self) -> int:
        """Number of saturated pixels in the window."""
        return len(self.saturated)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prepared:
    """What `Calibration.prepare` found in one frame, so that its sections can be read many times.

    Small for plain files. For compressed ones it holds the decompressed integers or a scratch file; sent to
    another process it leaves them behind, and they are decompressed there.
    """

    level: Array | None  #: overscan level of each row of the light area, ADU
    dark_scale: float
    saturation: float | None  #: ADU, raw
    image: Rows
    mask: Rows | None = None
    weight: Rows | None = None
    variance: Rows | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Calibration:
    """Masters for the frames of one run, cut to the light area; arrays are read-only."""

    bias: FloatImage | None = None  #: ADU
    dark: FloatImage | None = None  #: without bias where there is a `bias`, per `dark_exposure`; ADU
    inv_flat: FloatImage | None = None  #: 1 / flat, NaN in bad pixels
    dark_exposure: float | None = None  #: s
    flat_filter: str | None = None
    binning: tuple[int, int] | None = None  #: of the masters
    use_overscan: bool = True  #: False where the master bias or dark holds the level itself
    saturation: float | None = None  #: found in the frames; counts where a frame has a guess only, ADU
    edges: tuple[int, int, int, int] = (0, 0, 0, 0)  #: rows below, above, columns left, right that do not show the sky
    variance: dict[str, FloatImage] = field(default_factory=dict)  #: of "bias", "dark", "flat" where known
    notes: tuple[str, ...] = ()  #: what was used, refused and assumed, in words

    @property
    def bad(self) -> Mask | None:
        """(ny, nx) pixels that the masters know to be bad; None without masters."""
        masters = [master for master in (self.bias, self.dark, self.inv_flat) if master is not None]
        if not masters:
            return None
        return np.asarray(np.logical_or.reduce([~np.isfinite(master) for master in masters]))

    def prepare(self, frame: Frame, store: Store | None = None) -> Prepared:
        """Find everything about a frame that a section alone could not tell.

        Parameters
        ----------
        frame : Frame
            To be read.
        store : Store, optional
            Where the stored pixels stay; without one they are read from the file again, decompressed ones stay in
            memory.

        Returns
        -------
        Prepared
            For `read`.

        Raises
        ------
        CalibrationError
            If a master does not fit the frame: size, binning, filter or exposure.
        FrameError
            If the file cannot be read.
        """
        self._check(frame)
        keep = store.keep if store else unpack
        image = keep(frame.plane)
        planes = [keep(plane) if plane else None for plane in _planes(frame)]
        level = None
        if frame.overscan is not None and self.use_overscan:
            level = _overscan_level(frame, image)
        return Prepared(
            level=level,
            dark_scale=self._dark_scale(frame),
            saturation=self.saturation_of(frame),
            image=image,
            mask=planes[0],
            weight=planes[1],
            variance=planes[2],
        )

    def read(
        self,
        frame: Frame,
        window: Window | None = None,
        prepared: Prepared | None = None,
        out: FloatImage | None = None,
    ) -> Section:
        """Read and calibrate a window of a frame.

        Parameters
        ----------
        frame : Frame
            To be read.
        window : (y0, y1, x0, x1), optional
            In pixels of the light area; default all of it. The pixels do not depend on the window.
        prepared : Prepared, optional
            What `prepare` said of this frame; found anew where it is not given.
        out : (h, w) float32 ndarray, C-contiguous, optional
            Where the pixels go; default a new array.

        Returns
        -------
        Section
            Calibrated pixels and the positions of saturated ones.

        Raises
        ------
        CalibrationError
            If a master does not fit the frame.
        FrameError
            If the file vanished, changed since it was opened, or is damaged.
        ValueError
            If the window lies outside of the light area, or `out` has another shape or type.
        """
        y0, y1, x0, x1 = window or (0, frame.shape[0], 0, frame.shape[1])
        if not (0 <= y0 <= y1 <= frame.shape[0] and 0 <= x0 <= x1 <= frame.shape[1]):
            raise ValueError(f"window {window} outside of a frame of shape {frame.shape}")
        ready = prepared or self.prepare(frame)
        pixels = np.empty((y1 - y0, x1 - x0), np.float32) if out is None else out
        if pixels.shape != (y1 - y0, x1 - x0) or pixels.dtype != np.float32 or not pixels.flags.c_contiguous:
            raise ValueError(f"out must be a C-contiguous float32 array of shape {(y1 - y0, x1 - x0)}")
        stored = (y0 + frame.trim[0], y1 + frame.trim[0], x0 + frame.trim[2], x1 + frame.trim[2])
        saturated = []
        for y, raw in ready.image.rows(stored):
            top = y - stored[0]
            found = _decode(
                pixels[top : top + len(raw)],
                raw,
                frame.plane,
                saturation=math.inf if ready.saturation is None else ready.saturation,
                level=ready.level,
                bias=self.bias,
                dark=self.dark,
                dark_scale=ready.dark_scale,
                inv_flat=self.inv_flat,
                y0=y0 + top,
                x0=x0,
            )
            if len(found):
                saturated.append(found + np.array([x0, y0 + top], np.int32))
        self._cut_edges(pixels, (y0, y1, x0, x1), frame.shape)
        if ready.mask is not None and frame.mask is not None:
            pixels[~(_read_plane(frame.mask, ready.mask, stored) == 0)] = np.nan
        if ready.weight is not None and frame.weight is not None:
            pixels[~(_read_plane(frame.weight, ready.weight, stored) > 0)] = np.nan
        variance = None
        if ready.variance is not None and frame.variance is not None:
            variance = _read_plane(frame.variance, ready.variance, stored)
            if self.inv_flat is not None:
                variance *= self.inv_flat[y0:y1, x0:x1] ** 2
            pixels[~(np.isfinite(variance) & (variance >= 0))] = np.nan
        positions = np.concatenate(saturated) if saturated else np.empty((0, 2), np.int32)
        return Section(pixels, positions, variance)

    def _cut_edges(self, pixels: FloatImage, window: Window, shape: tuple[int, int]) -> None:
        """Pixels of the detector's bad edges become missing."""
        if not any(self.edges):
            return
        below, above, left, right = self.edges
        y0, _, x0, _ = window
        pixels[: max(0, below - y0)] = np.nan
        pixels[max(0, shape[0] - above - y0) :] = np.nan
        pixels[:, : max(0, left - x0)] = np.nan
        pixels[:, max(0, shape[1] - right - x0) :] = np.nan

    def ahead(self, frame: Frame, window: Window, prepared: Prepared) -> None:
        """Tell the system that a window of a frame will be read next, so that its disk need not be waited for.

        Parameters
        ----------
        frame, window, prepared
            As they will be given to `read`.

        Raises
        ------
        FrameError
            If the file vanished or changed since it was opened.
        """
        y0, y1, x0, x1 = window
        prepared.image.ahead((y0 + frame.trim[0], y1 + frame.trim[0], x0 + frame.trim[2], x1 + frame.trim[2]))

    def saturation_of(self, frame: Frame) -> float | None:
        """Raw level from which a pixel of the frame counts as saturated, ADU; None where nothing tells it."""
        if frame.saturation_guessed and self.saturation is not None:
            return self.saturation
        return frame.saturation

    def _check(self, frame: Frame) -> None:
        """Raise `CalibrationError` where a master does not fit the frame."""
        for kind, master in (("bias", self.bias), ("dark", self.dark), ("flat", self.inv_flat)):
            if master is not None and master.shape != frame.shape:
                raise CalibrationError(
                    f"{frame.name}: is {_size(frame.shape)} pixels, the master {kind} {_size(master.shape)}; "
                    f"give a {kind} of the same size{' or --no-flat' if kind == 'flat' else ''}"
                )
        if self.binning and frame.binning and self.binning != frame.binning and self.bad is not None:
            raise CalibrationError(
                f"{frame.name}: binning {frame.binning[0]}x{frame.binning[1]}, the masters' is "
                f"{self.binning[0]}x{self.binning[1]}; give masters of the same binning"
            )
        if self.inv_flat is not None and not _same_filter(self.flat_filter, frame.filter):
            raise CalibrationError(
                f"{frame.name}: filter {frame.filter!r}, the flat's is {self.flat_filter!r}; "
                "give a flat of the same filter or --no-flat"
            )

    def _dark_scale(self, frame: Frame) -> float:
        """Factor from the master dark's exposure to the frame's."""
        if self.dark is None or self.dark_exposure is None or frame.exposure is None:
            return 1.0
        if abs(frame.exposure - self.dark_exposure) <= _SAME_EXPOSURE * self.dark_exposure:
            return 1.0
        if self.bias is None:
            raise CalibrationError(
                f"{frame.name}: exposure {frame.exposure:g} s, the dark's is {self.dark_exposure:g} s, and a "
                "dark cannot be scaled with the bias in it; give --bias too or a dark of the same exposure"
            )
        return frame.exposure / self.dark_exposure


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Master:
    """Bias, dark or flat frames combined into one."""

    kind: Kind
    pixels: FloatImage  #: (ny, nx) light area; ADU, or for a flat 1 in the median
    variance: FloatImage  #: (ny, nx) of `pixels`
    header: fits.Header
    used: tuple[str, ...]  #: names of the frames behind it
    refused: tuple[tuple[str, str], ...]  #: name and reason of the others
    notes: tuple[str, ...] = ()


# ---- masters for a run


def load_calibration(
    frames: Sequence[Frame], options: CalibrateOptions | None = None, *, executor: Executor | None = None
) -> Calibration:
    """Find, read and make the masters for a set of frames.

    Parameters
    ----------
    frames : sequence of Frame
        The frames of the run. Masters have to fit the majority of them.
    options : CalibrateOptions, optional
        `bias`, `dark` and `flat` each name a master or raw calibration frames (a file, a glob pattern, a
        directory or ``@list.txt``), which are combined. Without `flat`, a master_flat.fits beside the first
        frame is used, unless `no_flat` is set.
    executor : Executor, optional
        Its threads in this process look at some frames for their saturation level and bad edges.

    Returns
    -------
    Calibration
        Its `notes` say what was used, refused and assumed.

    Raises
    ------
    CalibrationError
        If a master does not fit the frames: size, binning, filter, exposure.
    FrameError
        If a calibration file cannot be used.
    """
    options = options or CalibrateOptions()
    if not frames:
        raise ValueError("no frames to calibrate")
    like = _majority(frames)
    start: _Start = partial if executor is None else executor.start
    result = Calibration(saturation=_find_saturation(frames, start), binning=like.binning)
    notes: list[str] = []
    if result.saturation is not None:
        notes.append(f"saturation level {result.saturation:g} from the pile-up of pixels at the highest value")
    if options.bias:
        bias = _load("bias", options.bias, like, result, options)
        result = _with_bias(result, bias, like, notes)
    if options.dark:
        dark = _load("dark", options.dark, like, result, options)
        result = _with_dark(result, dark, like, notes)
    flat = options.flat
    if flat is None and not options.no_flat and (beside := _flat_beside(like)) is not None:
        flat = str(beside)
        notes.append(f"{beside.name} lies beside the frames and is used")
    if flat is not None and not options.no_flat:
        result = _with_flat(result, _load("flat", flat, like, result, options), notes, options)
    if not options.keep_edges:
        result = replace(result, edges=_find_edges([f for f in frames if f.shape == like.shape], result, start))
        for count, side in zip(result.edges, ("below", "above", "on the left", "on the right"), strict=True):
            if count:
                notes.append(f"{count} rows or columns {side} do not show the sky and are left out (--keep-edges)")
    result = replace(result, notes=tuple(notes))
    result._check(like)
    result._dark_scale(like)
    return result


def _majority(frames: Sequence[Frame]) -> Frame:
    """Find the first frame of the most common size, binning and filter."""
    key = Counter((f.shape, f.binning, f.filter) for f in frames).most_common(1)[0][0]
    return next(f for f in frames if (f.shape, f.binning, f.filter) == key)


def _flat_beside(frame: Frame) -> Path | None:
    for suffix in (".fits", ".fits.gz", ".fits.fz"):
        path = frame.path.with_name(f"master_flat{suffix}")
        if path.is_file():
            return path
    return None


def _load(kind: Kind, source: str, like: Frame, so_far: Calibration, options: CalibrateOptions) -> Master:
    """Read a master from a file, or make it from raw frames."""
    frames = [open_frame(path) for path in find_frames([source])]
    if len(frames) == 1 and _is_master(frames[0]):
        return _read_master(kind, frames[0], like)
    bias = None if kind == "bias" else so_far.bias
    dark = so_far if kind == "flat" and so_far.dark is not None else None
    return make_master(kind, frames, bias=bias, dark=dark, like=like, options=options)


def _is_master(frame: Frame) -> bool:
    """Whether a file is a combined frame and not a raw one."""
    return frame.bitpix < 0 or frame.ncombine > 1 or "master" in frame.name.lower()


def _read_master(kind: Kind, frame: Frame, like: Frame) -> Master:
    """Read a master from its file, cut to the light area."""
    if frame.image_type not in (kind, "unknown", "light"):
        raise CalibrationError(f"{frame.path}: is given as {kind}, but its header says {frame.image_type}")
    if frame.shape == like.raw_shape != like.shape:
        frame = replace(frame, trim=like.trim)
    if frame.shape != like.shape:
        raise CalibrationError(
            f"{frame.path}: the master {kind} is {_size(frame.shape)} pixels, the frames "
            f"{_size(like.shape)}; give a {kind} of the same size{' or --no-flat' if kind == 'flat' else ''}"
        )
    if kind == "flat" and not _same_filter(frame.filter, like.filter):
        raise CalibrationError(
            f"{frame.path}: the flat's filter is {frame.filter!r}, the frames' is {like.filter!r}; "
            "give a flat of the same filter or --no-flat"
        )
    section = Calibration().read(frame)
    unknown = np.full(section.pixels.shape, np.nan, np.float32)
    return Master(
        kind=kind,
        pixels=section.pixels,
        variance=unknown if section.variance is None else section.variance,
        header=frame.header,
        used=(frame.name,),
        refused=(),
        notes=_unknown_filter(kind, frame.filter),
    )


def _unknown_filter(kind: Kind, name: str | None) -> tuple[str, ...]:
    return ("the flat's filter is unknown: used all the same",) if kind == "flat" and name is None else ()


def _describe(master: Master) -> list[str]:
    """Say what went into a master."""
    used = master.used[0] if len(master.used) == 1 else f"{len(master.used)} frames"
    return [
        f"{master.kind}: {used}",
        *(f"{master.kind}: {name} left out: {reason}" for name, reason in master.refused),
        *(f"{master.kind}: {note}" for note in master.notes),
    ]


def _with_bias(result: Calibration, bias: Master, like: Frame, notes: list[str]) -> Calibration:
    """Add a bias."""
    notes += _describe(bias)
    overscan = not _holds_level(bias, like)
    if not overscan:
        notes.append("bias: holds the electronic level itself: the overscan is not subtracted")
    return replace(
        result,
        bias=_read_only(bias.pixels),
        use_overscan=overscan,
        variance=result.variance | {"bias": _read_only(bias.variance)},
    )


def _holds_level(master: Master, like: Frame) -> bool:
    """Whether a master still holds the level that the overscan would take off the frames."""
    if like.overscan is None:
        return False
    level = _overscan_level(like, like.plane)
    return bool(np.nanmedian(master.pixels) > 0.5 * np.median(level) > 0)


def _with_dark(result: Calibration, dark: Master, like: Frame, notes: list[str]) -> Calibration:
    """Add a dark, whose bias is taken off where there is one."""
    notes += _describe(dark)
    pixels, overscan = dark.pixels, result.use_overscan
    if result.bias is not None:
        # A dark made here has lost its bias already; a master from elsewhere shows it by its level.
        level = float(np.nanmedian(result.bias))
        if level > 0 and np.nanmedian(pixels) > 0.8 * level and len(dark.used) == 1:
            pixels = pixels - result.bias
            notes.append("dark: still held the bias, which was subtracted from it")
    elif _holds_level(dark, like):
        overscan = False
        notes.append("dark: holds the electronic level itself: the overscan is not subtracted")
    exposure = _header_number(dark.header, "EXPTIME", "EXPOSURE")
    if exposure is None:
        notes.append("dark: its exposure is unknown: used unscaled")
    return replace(
        result,
        dark=_read_only(pixels),
        dark_exposure=exposure,
        use_overscan=overscan,
        variance=result.variance | {"dark": _read_only(dark.variance)},
    )


def _with_flat(result: Calibration, flat: Master, notes: list[str], options: CalibrateOptions) -> Calibration:
    """Add a flat of median 1."""
    notes += _describe(flat)
    good = flat.pixels[np.isfinite(flat.pixels) & (flat.pixels > 0)]
    if not good.size:
        raise CalibrationError(f"{flat.used[0]}: the flat has no pixel above zero; give another one or --no-flat")
    median = float(np.median(good))
    scale = 1.0 if 0.95 <= median <= 1.05 else median
    if scale != 1.0:
        notes.append(f"flat: divided by its median {median:g}")
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = np.isfinite(flat.pixels) & (flat.pixels > options.flat_floor * median)
        inverse = np.where(usable, scale / flat.pixels.astype(np.float64), np.nan).astype(np.float32)
    bad = int(usable.size - usable.sum())
    if bad:
        notes.append(f"flat: {bad} pixels at or below {options.flat_floor:g} of its median or not finite are bad")
    header_filter = flat.header.get("FILTER") or flat.header.get("FILTNAME")
    return replace(
        result,
        inv_flat=_read_only(inverse),
        flat_filter=str(header_filter).strip() if header_filter else None,
        variance=result.variance | {"flat": _read_only(flat.variance / np.float32(scale * scale))},
    )


def _sampled(frames: Sequence[Frame]) -> list[Frame]:
    """Some frames, from the first to the last."""
    return [frames[i] for i in sorted({round(k * (len(frames) - 1) / (_SAMPLED - 1)) for k in range(_SAMPLED)})]


def _find_saturation(frames: Sequence[Frame], start: _Start) -> float | None:
    """Level at which pixels pile up, in frames whose header does not tell it.

    A converter of 12 bits in a file of 16 saturates at 4095, which no card says. The level is believed where
    the highest value is the same in all sampled frames, with at least three pixels at it in each.
    """
    guessed = [frame for frame in frames if frame.saturation_guessed and frame.bitpix > 0]
    if not guessed:
        return None
    looking = [start(_highest, frame) for frame in _sampled(guessed)]
    found = [peak for look in looking if (peak := look()) is not None]
    highest, counts = [top for top, _ in found], [count for _, count in found]
    if not highest or min(highest) != max(highest) or not math.isfinite(highest[0]):
        return None
    enough = min(counts) >= 3 if len(counts) > 1 else counts[0] >= 10
    return highest[0] if enough and highest[0] != guessed[0].saturation else None


def _highest(frame: Frame) -> tuple[float, int] | None:
    """Highest stored level of a frame and how many pixels have it, a few rows at a time."""
    raw = Calibration(use_overscan=False)
    ny, nx = frame.shape
    top, count = -math.inf, 0
    step = max(1, _AT_ONCE // nx)
    try:
        ready = raw.prepare(frame)
        for y in range(0, ny, step):
            pixels = raw.read(frame, (y, min(y + step, ny), 0, nx), ready).pixels
            here = float(np.fmax.reduce(pixels, axis=None, initial=-np.inf))
            if here > top:
                top, count = here, 0
            if here == top:
                count += int(np.count_nonzero(pixels == here))
    except FrameError:  # the frame is left out, with its reason, when its turn comes
        return None
    return top, count


def _find_edges(frames: Sequence[Frame], calibration: Calibration, start: _Start) -> tuple[int, int, int, int]:
    """Rows below and above, columns left and right, whose level departs from the sky next to them.

    The first rows that are read out, and strips that the light does not reach, stand off by many sigmas of the noise
    within a few pixels; gradients and vignetting go on far inwards and are followed by a parabola.
    """
    if min(frames[0].shape) < 4 * _STRIP:
        return 0, 0, 0, 0
    looking = [start(_profiles, frame, calibration) for frame in _sampled(frames)]
    known = [profiles for look in looking if (profiles := look()) is not None]
    a, b, c, d = (_bad_lines([profiles[side] for profiles in known]) for side in range(4))
    return a, b, c, d


def _profiles(frame: Frame, calibration: Calibration) -> list[Array | None] | None:
    """`_profile` of the rows from below and above, of the columns from the left and the right."""
    ny, nx = frame.shape
    (y0, y1), (x0, x1) = ((max(0, n // 2 - 256), min(n, n // 2 + 256)) for n in (ny, nx))
    windows = (0, _STRIP, x0, x1), (ny - _STRIP, ny, x0, x1), (y0, y1, 0, _STRIP), (y0, y1, nx - _STRIP, nx)
    try:
        ready = calibration.prepare(frame)
        below, above, left, right = (calibration.read(frame, window, ready).pixels for window in windows)
    except (CalibrationError, FrameError):  # the frame is left out, with its reason, when its turn comes
        return None
    return [_profile(strip) for strip in (below, above[::-1], left.T, right.T[::-1])]


def _profile(strip: FloatImage) -> Array | None:
    """Level of each line above that of the inner ones, in sigmas of a pixel; infinite where lines are missing."""
    finite = np.isfinite(strip)
    known = finite[_EDGE:].all(axis=0)
    if np.count_nonzero(known) < 32:
        return None
    some = strip if finite.all() else np.where(finite, strip, np.float32(np.inf))[:, known]
    steps = np.sort(np.abs(np.diff(some[_EDGE:], axis=1)), axis=None)
    noise = 1.4826 * float(steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2 / math.sqrt(2)
    # the mean of the middle half: stars hardly move it, and it has no steps where the pixels are integers
    quarter = some.shape[1] // 4
    level = np.sort(some, axis=1)[:, quarter:-quarter].mean(axis=1, dtype=float)
    return (level - level[_EDGE:].mean()) / noise if noise > 0 else None


def _bad_lines(profiles: Sequence[Array | None]) -> int:
    """Number of lines, from the first on, whose level is off the smooth continuation of the inner ones."""
    known = [profile for profile in profiles if profile is not None]
    if not known:
        return 0
    level: Array = np.mean(known, axis=0)
    design = np.vander(np.arange(len(level)) / len(level), 3)
    solve = np.linalg.pinv(design[_EDGE:])
    fitted = design @ (solve @ level[_EDGE:])
    # stars move the level of a line more than noise does: what the inner lines scatter counts, carried outwards
    left = level[_EDGE:] - fitted[_EDGE:]
    scatter = float(np.std(left))
    carried = np.sum((design @ solve) ** 2, axis=1)
    error = scatter * np.sqrt(1 + carried)
    off = np.abs(level - fitted)
    bad = off > 0.5 + 3 * error
    # a star moves several lines alike: so many fewer of them tell the parabola that the first line is held against
    lags = [float(np.mean(left[k:] * left[:-k])) / scatter**2 for k in range(1, _ALIKE + 1)] if scatter else []
    alike = 1 + 2 * sum(max(lag, 0.0) for lag in lags)
    sure = off[0] > 3 + 5 * scatter * np.sqrt(1 + alike * carried[0])
    # what hardly stands off, or has no end, is no edge
    return int(np.argmin(bad)) if sure and not bad[:_EDGE].all() else 0


# ---- making masters


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
    dark : Master, optional
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
    notes += _unknown_filter(kind, used[0].filter)
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
    keep({f.name: f"size {_size(f.shape)}, not {_size(shape)}" if f.shape != shape else None for f in good})
    binning = like.binning if like else _most_common(f.binning for f in good)
    keep({f.name: _unlike_binning(f.binning, binning) for f in good})
    if kind == "flat":
        wanted = like.filter if like else _most_common(f.filter for f in good)
        keep({f.name: None if _same_filter(f.filter, wanted) else f"filter {f.filter!r}, not {wanted!r}" for f in good})
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
    if mine is None or wanted is None or abs(mine - wanted) <= _SAME_EXPOSURE * wanted:
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


def _same_filter(first: str | None, second: str | None) -> bool:
    """Whether two filters are the same as far as is known."""
    return first is None or second is None or first.strip().lower() == second.strip().lower()


def _basis(kind: Kind, frames: list[Frame], bias: Any, dark: Master | Calibration | None) -> Calibration:
    """Calibration of the frames that a master is made of."""
    basis = Calibration()
    if kind == "bias" or not frames:
        return basis
    if isinstance(dark, Calibration):
        return replace(dark, inv_flat=None)
    if bias is not None:
        pixels = bias.pixels if isinstance(bias, Master) else np.ascontiguousarray(bias, np.float32)
        holds = isinstance(bias, Master) and _holds_level(bias, frames[0])
        basis = replace(basis, bias=_read_only(pixels), use_overscan=not holds)
    if kind == "flat" and dark is not None:
        basis = _with_dark(basis, dark, frames[0], [])
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
    median = _nanmedian(cube, axis=0)
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
    d = (1.4826 * _nanmedian(deviation.reshape(n, -1), axis=1).astype(np.float64)) ** 2
    total = d.sum() / (1 - 1 / n)
    k2 = (d - total / n**2) / (1 - 2 / n) if n > 2 else np.full(n, total / n)
    # Noise in the estimate must not make a frame perfect.
    return np.asarray(np.sqrt(np.maximum(k2, 0.1 * total / n + 1e-30)))


def _single_variance(image: FloatImage, *, photon_noise: bool) -> FloatImage:
    """Variance of one frame, from the differences of neighbours."""
    shape = np.sqrt(np.maximum(image, 1e-30)) if photon_noise else np.ones_like(image)
    difference = np.diff(image, axis=1) / shape[:, 1:]
    sigma = 1.4826 * _nanmedian(np.abs(difference).ravel(), axis=0) / math.sqrt(2)
    return np.asarray(sigma * sigma * shape * shape, np.float32)


def _nanmedian(values: Any, axis: int) -> Any:
    """Median without NaN; NaN, without a warning, where nothing is left."""
    if not np.isnan(values).any():
        return np.median(values, axis=axis)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=axis)


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


# ---- overscan


def _overscan_level(frame: Frame, image: Rows) -> Array:
    """(ny,) electronic level of each row of the light area, ADU.

    An overscan beside the light area gives a level for each row; one above or below it, a single level. A
    row's own mean is noisy, and its noise would go into every pixel of that row, while the true level drifts
    slowly; so rows are averaged over up to 65 neighbours. Where the level changes fast, as in the first rows
    after a restart of the readout, the window shrinks down to the row itself.
    """
    assert frame.overscan is not None
    y0, y1 = frame.trim[:2]
    beside = frame.overscan[0] <= y0 and y1 <= frame.overscan[1]
    window = (y0, y1, *frame.overscan[2:]) if beside else frame.overscan
    strip = _read_plane(frame.plane, image, window)
    mean, sigma = _row_means(strip)
    if not np.isfinite(mean).any():
        raise FrameError(f"{frame.path}: its overscan holds no pixel; remove BIASSEC from the header")
    if not beside:
        return np.full(y1 - y0, np.nanmean(mean))
    mean = np.interp(np.arange(len(mean)), np.flatnonzero(np.isfinite(mean)), mean[np.isfinite(mean)])
    return _smooth_rows(mean, sigma)


def _row_means(strip: FloatImage) -> tuple[Array, float]:
    """Mean of each row without outliers, and its standard error in a typical row."""
    ordered = np.sort(strip, axis=1)  # NaN stands last
    n = np.count_nonzero(np.isfinite(strip), axis=1)
    row = np.arange(len(strip))
    middle = 0.5 * (ordered[row, (n - 1) // 2] + ordered[row, n // 2 - (n == 0)])
    quartiles = ordered[row, n // 4], ordered[row, (3 * n - 1) // 4]
    # Integers may not scatter at all; half a step is then the least that counts.
    sigma = max(float(_nanmedian(quartiles[1] - quartiles[0], axis=0)) / 1.349, 0.5)
    kept = np.abs(strip - middle[:, None]) <= _OUTLIER * sigma
    count = kept.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(kept, strip, 0).sum(axis=1, dtype=np.float64) / count
    return mean, sigma / math.sqrt(max(1.0, float(np.median(count))))


def _smooth_rows(level: Array, sigma: float) -> Array:
    """Average each row over as many neighbours as agree with it.

    The widest window counts for which the confidence intervals of this and all narrower windows still have a
    point in common (Katkovnik 1999, IEEE Trans. Signal Proc. 47, 2567).
    """
    n = len(level)
    sigma = max(sigma, 1.4826 * float(np.median(np.abs(np.diff(level)))) / math.sqrt(2)) if n > 1 else sigma
    total = np.concatenate([[0.0], np.cumsum(level - level.mean())])
    row = np.arange(n)
    smooth = level.copy()
    low, high = np.full(n, -np.inf), np.full(n, np.inf)
    agrees = np.ones(n, bool)
    for half in _SMOOTH:
        first, end = np.maximum(row - half, 0), np.minimum(row + half + 1, n)
        mean = (total[end] - total[first]) / (end - first) + level.mean()
        margin = _CONFIDENCE * sigma / np.sqrt(end - first)
        low, high = np.maximum(low, mean - margin), np.minimum(high, mean + margin)
        agrees &= low <= high
        smooth = np.where(agrees, mean, smooth)
    return smooth


# ---- small things


def _planes(frame: Frame) -> tuple[Plane | None, Plane | None, Plane | None]:
    return frame.mask, frame.weight, frame.variance


def _decode(out: FloatImage, raw: Stored, plane: Plane, **masters: Any) -> NDArray[np.int32]:
    """Stored rows to calibrated pixels; positions of the saturated ones."""
    try:
        return _pixels.calibrate(
            out, raw, bitpix=plane.bitpix, bscale=plane.bscale, bzero=plane.bzero, blank=plane.blank, **masters
        )
    except (OSError, EOFError) as error:
        raise failed(plane.path, error) from None


def _read_plane(plane: Plane, rows: Rows, window: Window) -> FloatImage:
    """Physical values of a window of a stored image."""
    out = np.empty((window[1] - window[0], window[3] - window[2]), np.float32)
    for y, raw in rows.rows(window):
        _decode(out[y - window[0] : y - window[0] + len(raw)], raw, plane)
    return out


def _read_only(image: Any) -> FloatImage:
    copy: FloatImage = np.array(image, np.float32, order="C")
    copy.setflags(write=False)
    return copy


def _size(shape: tuple[int, ...] | None) -> str:
    """Size of an image in words, width first."""
    return "unknown" if shape is None else " x ".join(str(n) for n in reversed(shape))


def _header_number(header: fits.Header, *keywords: str) -> float | None:
    for keyword in keywords:
        value = header.get(keyword)
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    return None
