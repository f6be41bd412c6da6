"""Stored pixels to calibrated ones: overscan, bias, dark and flat in one pass over the bytes of the file.

``x = (raw * BSCALE + BZERO - overscan - bias - dark * scale) / flat``, in the light area. Missing pixels
(BLANK, masked, bad in the flat) are NaN. The native row functions do all of it at once
(csrc/rows/calibrate.inl). Where masters come from stands in `make_master` and `load_calibration`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastack import _pixels
from fastack.errors import CalibrationError, FrameError
from fastack.frames import Frame
from fastack.options import CalibrateOptions
from fastack.storage import Plane, Rows, Store, Stored, Window, failed, unpack
from fastack.types import Array, FloatImage

if TYPE_CHECKING:
    from astropy.io import fits

Kind = Literal["bias", "dark", "flat"]
Mask = NDArray[np.bool_]

SAME_EXPOSURE = 0.02  #: relative difference up to which two exposures are the same

_SMOOTH = (0, 1, 2, 4, 8, 16, 32)  # rows on either side over which the overscan level may be averaged
_CONFIDENCE = 2.0  # sigmas on either side in the choice among them
_OUTLIER = 5.0  # sigmas beyond which a pixel of the overscan is left out


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
        self.check(frame)
        keep = store.keep if store else unpack
        image = keep(frame.plane)
        planes = [keep(plane) if plane else None for plane in _planes(frame)]
        level = None
        if frame.overscan is not None and self.use_overscan:
            level = _overscan_level(frame, image)
        return Prepared(
            level=level,
            dark_scale=self.dark_scale_of(frame),
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

    def check(self, frame: Frame) -> None:
        """See that the masters fit a frame.

        Parameters
        ----------
        frame : Frame
            To be calibrated.

        Raises
        ------
        CalibrationError
            If a master has another size, binning or filter.
        """
        for kind, master in (("bias", self.bias), ("dark", self.dark), ("flat", self.inv_flat)):
            if master is not None and master.shape != frame.shape:
                raise CalibrationError(
                    f"{frame.name}: is {size_text(frame.shape)} pixels, the master {kind} {size_text(master.shape)}; "
                    f"give a {kind} of the same size{' or --no-flat' if kind == 'flat' else ''}"
                )
        if self.binning and frame.binning and self.binning != frame.binning and self.bad is not None:
            raise CalibrationError(
                f"{frame.name}: binning {frame.binning[0]}x{frame.binning[1]}, the masters' is "
                f"{self.binning[0]}x{self.binning[1]}; give masters of the same binning"
            )
        if self.inv_flat is not None and not same_filter(self.flat_filter, frame.filter):
            raise CalibrationError(
                f"{frame.name}: filter {frame.filter!r}, the flat's is {self.flat_filter!r}; "
                "give a flat of the same filter or --no-flat"
            )

    def dark_scale_of(self, frame: Frame) -> float:
        """Factor from the master dark's exposure to the frame's.

        Parameters
        ----------
        frame : Frame
            To be calibrated.

        Returns
        -------
        float
            1 without a dark, or where an exposure is unknown.

        Raises
        ------
        CalibrationError
            If the dark cannot be scaled, because its bias is still in it.
        """
        if self.dark is None or self.dark_exposure is None or frame.exposure is None:
            return 1.0
        if abs(frame.exposure - self.dark_exposure) <= SAME_EXPOSURE * self.dark_exposure:
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


# ---- masters into a calibration


def with_bias(result: Calibration, bias: Master, like: Frame, notes: list[str]) -> Calibration:
    """Add a bias.

    Parameters
    ----------
    result : Calibration
        So far.
    bias : Master
        ADU; pixels and variance of the frames' shape.
    like : Frame
        One of the run's.
    notes : list of str
        What was done is added.

    Returns
    -------
    Calibration
        With it.
    """
    notes += _describe(bias)
    overscan = not holds_level(bias, like)
    if not overscan:
        notes.append("bias: holds the electronic level itself: the overscan is not subtracted")
    return replace(
        result,
        bias=read_only(bias.pixels),
        use_overscan=overscan,
        variance=result.variance | {"bias": read_only(bias.variance)},
    )


def with_dark(result: Calibration, dark: Master, like: Frame, notes: list[str]) -> Calibration:
    """Add a dark, whose bias is taken off where there is one.

    Parameters
    ----------
    result : Calibration
        So far.
    dark : Master
        ADU; pixels and variance of the frames' shape.
    like : Frame
        One of the run's.
    notes : list of str
        What was done is added.

    Returns
    -------
    Calibration
        With it.
    """
    notes += _describe(dark)
    pixels, overscan = dark.pixels, result.use_overscan
    if result.bias is not None:
        # A dark made here has lost its bias already; a master from elsewhere shows it by its level.
        level = float(np.nanmedian(result.bias))
        if level > 0 and np.nanmedian(pixels) > 0.8 * level and len(dark.used) == 1:
            pixels = pixels - result.bias
            notes.append("dark: still held the bias, which was subtracted from it")
    elif holds_level(dark, like):
        overscan = False
        notes.append("dark: holds the electronic level itself: the overscan is not subtracted")
    exposure = _header_number(dark.header, "EXPTIME", "EXPOSURE")
    if exposure is None:
        notes.append("dark: its exposure is unknown: used unscaled")
    return replace(
        result,
        dark=read_only(pixels),
        dark_exposure=exposure,
        use_overscan=overscan,
        variance=result.variance | {"dark": read_only(dark.variance)},
    )


def with_flat(result: Calibration, flat: Master, notes: list[str], options: CalibrateOptions) -> Calibration:
    """Add a flat, scaled to a median of 1.

    Parameters
    ----------
    result : Calibration
        So far.
    flat : Master
        Relative response; pixels and variance of the frames' shape.
    notes : list of str
        What was done is added.
    options : CalibrateOptions
        `flat_floor`.

    Returns
    -------
    Calibration
        With it.

    Raises
    ------
    CalibrationError
        If the flat has no pixel above zero.
    """
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
        inv_flat=read_only(inverse),
        flat_filter=str(header_filter).strip() if header_filter else None,
        variance=result.variance | {"flat": read_only(flat.variance / np.float32(scale * scale))},
    )


def _describe(master: Master) -> list[str]:
    """Say what went into a master."""
    used = master.used[0] if len(master.used) == 1 else f"{len(master.used)} frames"
    return [
        f"{master.kind}: {used}",
        *(f"{master.kind}: {name} left out: {reason}" for name, reason in master.refused),
        *(f"{master.kind}: {note}" for note in master.notes),
    ]


def holds_level(master: Master, like: Frame) -> bool:
    """Whether a master still holds the level that the overscan would take off the frames."""
    if like.overscan is None:
        return False
    level = _overscan_level(like, like.plane)
    return bool(np.nanmedian(master.pixels) > 0.5 * np.median(level) > 0)


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
    sigma = max(float(nanmedian(quartiles[1] - quartiles[0], axis=0)) / 1.349, 0.5)
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


def read_only(image: Any) -> FloatImage:
    """Copy of an image that nobody can write to."""
    copy: FloatImage = np.array(image, np.float32, order="C")
    copy.setflags(write=False)
    return copy


def nanmedian(values: Any, axis: int) -> Any:
    """Median without NaN; NaN, without a warning, where nothing is left."""
    if not np.isnan(values).any():
        return np.median(values, axis=axis)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=axis)


def same_filter(first: str | None, second: str | None) -> bool:
    """Whether two filters are the same as far as is known."""
    return first is None or second is None or first.strip().lower() == second.strip().lower()


def size_text(shape: tuple[int, ...] | None) -> str:
    """Size of an image in words, width first."""
    return "unknown" if shape is None else " x ".join(str(n) for n in reversed(shape))


def _header_number(header: fits.Header, *keywords: str) -> float | None:
    for keyword in keywords:
        value = header.get(keyword)
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    return None
