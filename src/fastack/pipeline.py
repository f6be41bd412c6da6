"""The main job: frames in, one honest stack out. The only module that knows all stages.

Pass 1 measures every frame, the meeting works on lists of stars alone, pass 2 combines tile by tile.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits

from fastack import (
    _pixels,
    _stars,
    background,
    calibrate,
    dates,
    files,
    frames,
    grid,
    header,
    masters,
    normalise,
    output,
    registration,
    report,
    select,
    transform,
    uncertainty,
)
from fastack import wcs as coordinates
from fastack.combine import Combined, NoiseModel, Starlight, combine_tile, halo
from fastack.detect import detect, find_artefacts, survey
from fastack.errors import FastackError, FrameError, StackError
from fastack.executor import Executor, make_executor
from fastack.measure import measure
from fastack.options import StackOptions
from fastack.resample import input_window, resample_tile, resample_variance
from fastack.storage import Held, Store, Window
from fastack.trails import Trail, find_trails, passing
from fastack.types import (
    Array,
    Background,
    FloatImage,
    FrameQuality,
    FrameRecord,
    Grid,
    StarFlag,
    Stars,
    Transform,
)

_REREAD = 4  # times that a frame may be read in pass 2 before it is laid out in tiles
_KEPT = 4  # a quarter of the memory may hold stored pixels between the passes
_LEAST_LEVER = 0.02  # range of the frames' noise, part of their mean, below which no gain can be read from it


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StackResult:
    """A stack and all that is known of it."""

    shape: tuple[int, int]  #: (ny, nx); (0, 0) after a dry run
    header: fits.Header  #: of the primary HDU
    records: list[FrameRecord]  #: every input, used or not
    reference: str  #: name of the reference frame
    grid: Grid | None
    path: Path | None  #: file, where one was written
    sink: output.Sink | None = field(repr=False, default=None)
    quality: FrameQuality | None = None  #: the stack itself, measured
    stars: Stars | None = field(repr=False, default=None)  #: detections of the stack
    seconds: float = 0.0
    options: StackOptions = field(default_factory=StackOptions, repr=False)
    notes: tuple[str, ...] = ()

    def plane(self, name: str = "") -> np.ndarray:
        """One plane: "" is the average, then UNCERT, NCOMB, WEIGHT, FLAGS (REJLOW, REJHIGH where asked for).

        Parameters
        ----------
        name : str
            Of the plane.

        Returns
        -------
        (ny, nx) ndarray
            In native byte order.
        """
        if self.path is not None:
            with fits.open(self.path, memmap=False) as file:
                data = file[name or 0].data
                return np.asarray(data, data.dtype.newbyteorder("="))
        if self.sink is None:
            raise StackError("a dry run has no pixels")
        return self.sink.read(name, 0, self.shape[0])

    @property
    def data(self) -> FloatImage:
        """(ny, nx) average, ADU of the reference."""
        return self.plane("")

    @property
    def uncertainty(self) -> FloatImage:
        """(ny, nx) one sigma of `data`, ADU."""
        return self.plane("UNCERT")

    @property
    def used(self) -> list[FrameRecord]:
        """The frames that are in the stack."""
        return [r for r in self.records if r.used]


def stack(
    sources: Sequence[str | Path] | str | Path | None = None,
    *,
    output_path: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    maps: bool = False,
    options: StackOptions | None = None,
    reporter: report.Reporter | None = None,
    command: str | None = None,
    **settings: Any,
) -> StackResult:
    """Stack frames of one field.

    Parameters
    ----------
    sources : str, Path or sequence of them, optional
        Files, globs, directories or ``@list.txt``; by default ``d*.fits`` in the current directory.
    output_path : str or Path, optional
        FITS file to write; without it the planes stay in memory.
    overwrite : bool
        Whether an existing file may be replaced.
    dry_run : bool
        Measure, select and register, but combine nothing.
    maps : bool
        Also keep the planes REJLOW and REJHIGH.
    options : StackOptions, optional
        All settings at once.
    reporter : Reporter, optional
        Told of progress and of everything left out.
    command : str, optional
        Command line, for the HISTORY.
    **settings
        Single settings by their flat names, ``fwhm_limit=5.0, kernel="lanczos4"``; see `StackOptions.of`.

    Returns
    -------
    StackResult
        The stack, and a record of every frame with its figures and, where it was left out, the reason.

    Raises
    ------
    StackError
        If no honest stack can be made; the message says what stood in the way.
    OutputError
        If the result cannot be written; an older file of that name stays as it is.
    """
    started = time.perf_counter()
    if options is not None and settings:
        raise TypeError("give either options or single settings")
    options = options or StackOptions.of(**settings)
    reporter = reporter or report.Reporter()
    target = Path(output_path) if output_path is not None else None
    if target is not None and not dry_run:
        output.check_target(target, overwrite=overwrite)
    with (
        make_executor(options.threads, options.scheduler) as executor,
        Store(options.memory // _KEPT, scratch=options.scratch) as store,
    ):
        records, calibration = measure_frames(sources, options, reporter, executor, exclude=target, store=store)
        select.apply_limits(records, options.select)
        _need(records, "after the selection")
        gain = _estimate_gain([r for r in records if r.reason is None], options, reporter)
        calibration = replace(calibration, notes=(*calibration.notes, *gain))
        reference = select.choose_reference(records, options.reference)
        registration.register(records, reference, options, reporter)
        normalise.match_levels(records, reference, normalise=options.normalise)
        select.apply_transparency(records, options.select)
        _drop_changed(records)
        _need(records, "after the registration")
        select.weigh(records, options.weights, options.weight_table)
        for r in records:
            if r.reason is not None:
                reporter.left_out(r.name, r.reason)
        used = [r for r in records if r.used]
        if dry_run:
            seconds = time.perf_counter() - started
            return StackResult(
                shape=(0, 0),
                header=fits.Header(),
                records=records,
                reference=reference.name,
                grid=None,
                path=None,
                seconds=seconds,
                options=options,
                notes=calibration.notes,
            )
        _mask_trails(used, reporter)
        out, transforms = output_grid(used, reference, options, calibration.edges)
        primary = header.stack_header(used, reference, out, transforms, options, command, calibration.notes)
        planes = [output.PRIMARY, output.UNCERT, output.NCOMB, output.WEIGHT, output.FLAGS]
        if maps:
            planes += [output.REJLOW, output.REJHIGH]
        job = Job.of(used, reference, transforms, out, calibration, options, maps)
        if target is None:
            sink = output.MemorySink(out.shape, planes)
            _combine(job, sink, executor, reporter, used, store)
            measured = _measure_stack(sink, out, reference, options)
        else:
            with output.FitsSink(target, out.shape, planes, primary, overwrite=overwrite) as file:
                _combine(job, file, executor, reporter, used, store)
                measured = _measure_stack(file, out, reference, options)
                header.quality_cards(primary, measured[1])
                file.finish([report.frames_hdu(records)])
            sink = None
    if target is None:
        header.quality_cards(primary, measured[1])
    stars, quality = measured
    return StackResult(
        shape=out.shape,
        header=primary,
        records=records,
        reference=reference.name,
        grid=out,
        path=target,
        sink=sink,
        quality=quality,
        stars=stars,
        seconds=time.perf_counter() - started,
        options=options,
        notes=calibration.notes,
    )


def _estimate_gain(live: Sequence[FrameRecord], options: StackOptions, reporter: report.Reporter) -> list[str]:
    """Give frames whose headers tell no gain the one that their own noise tells; a note on what came of it."""
    if len(live) < 3 or any(r.frame.gain for r in live):
        return []
    noise = np.array([r.quality.noise if r.quality else np.nan for r in live])
    sky = np.array([r.quality.sky if r.quality else np.nan for r in live])
    if not np.ptp(noise) > _LEAST_LEVER * noise.mean() > 0:
        reason = f"the sky changes too little, {sky.min():.0f} to {sky.max():.0f} adu"
    else:
        order = np.argsort(sky, kind="stable")
        try:
            estimate = masters.camera_gain([live[k].frame for k in order], options.calibrate)
        except FastackError as error:
            reason = str(error)
        else:
            reason = estimate.reason
    if reason:
        note = f"gain unknown: no header tells it, and the frames do not either: {reason}; --gain sets it"
    else:
        note = f"gain {estimate.gain:.3g} +- {estimate.error:.2g} e-/adu, estimated from {estimate.pairs + 1} frames"
        for r in live:
            r.frame, r.gain_err = replace(r.frame, gain=estimate.gain), estimate.error
    reporter.note(note)
    return [note]


# Pass 1 ------------------------------------------------------------------------------------------------------------


def open_frames(
    sources: Sequence[str | Path] | str | Path | None,
    options: StackOptions,
    exclude: Path | None = None,
) -> list[FrameRecord]:
    """Records of all inputs, in canonical order, headers read.

    Parameters
    ----------
    sources : see `stack`
        What to look for.
    options : StackOptions
        Detector constants.
    exclude : Path, optional
        The output of this run, which is never its own input.

    Returns
    -------
    list of FrameRecord
        Files that cannot be opened, and calibration frames among the lights, carry their reason.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    paths = files.find_frames(sources)
    records = []
    for path in paths:
        if exclude is not None and exclude.exists() and path.exists() and path.samefile(exclude):
            continue
        record = FrameRecord(path=path, name=path.name)
        try:
            record.frame = frames.open_frame(path, options=options.calibrate)
        except FrameError as error:
            record.reason = str(error)
        else:
            record.notes = tuple(record.frame.assumptions)
            record.exposure = dates.read_exposure(record.frame.header, record.frame.exposure)
            record.notes += record.exposure.notes
            if record.frame.image_type in ("bias", "dark", "flat"):
                record.reason = f"a {record.frame.image_type} frame, not a light frame"
        records.append(record)
    return records


def measure_frames(
    sources: Sequence[str | Path] | str | Path | None,
    options: StackOptions,
    reporter: report.Reporter | None = None,
    executor: Executor | None = None,
    exclude: Path | None = None,
    store: Store | None = None,
) -> tuple[list[FrameRecord], calibrate.Calibration]:
    """Pass 1: open, calibrate, detect and measure every frame.

    Parameters
    ----------
    sources, options, reporter
        See `stack`.
    executor : Executor, optional
        Default: threads of this process.
    exclude : Path, optional
        File that is never an input.
    store : Store, optional
        Where the pixels stay for pass 2.

    Returns
    -------
    records : list of FrameRecord
        With quality, stars, background and artefacts; those left out carry the reason.
    calibration : Calibration
        The masters behind it; its notes say what was used, refused and assumed.
    """
    reporter = reporter or report.Reporter()
    if executor is None:
        with make_executor(options.threads, options.scheduler) as made:
            return measure_frames(sources, options, reporter, made, exclude, store)
    records = open_frames(sources, options, exclude)
    select.keep_majority(records, options.select)
    live = [r for r in records if r.reason is None]
    _need(records, "that could be opened")
    calibration = calibrate.load_calibration([r.frame for r in live], options.calibrate)
    for note in calibration.notes:
        reporter.note(note)
    pixels = max(r.frame.raw_shape[0] * r.frame.raw_shape[1] for r in live)
    workers = max(1, min(executor.threads, options.memory // (16 * pixels)))
    if store is not None:
        store.expect(sum(r.frame.plane.nbytes for r in live))
    few = options.combine.reject != "none" and 1 < len(live) <= options.combine.trail_frames
    work = functools.partial(_measure_one, calibration=calibration, store=store, options=options, trails=few)
    reporter.start("measure", len(live), pixels)
    for record, result in zip(live, executor.map(work, _coming(live), ahead=workers), strict=True):
        if isinstance(result, str):
            record.reason = result
        else:
            record.prepared, record.background, record.stars = result.prepared, result.background, result.stars
            record.quality, record.artefacts, record.trails = result.quality, result.artefacts, result.trails
            if record.quality.n_stars == 0:
                record.reason = "no stars found" if options.register == "stars" else None
        reporter.advance()
    reporter.finish()
    _drop_known_artefacts([r for r in live if r.reason is None])
    return records, calibration


def _coming(records: Sequence[FrameRecord]) -> Iterator[frames.Frame]:
    """Frames as they are asked for; the system hears of the one after them."""
    for this, following in zip_longest(records, records[1:]):
        if following is not None:
            following.frame.plane.prefetch()
        yield this.frame


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    prepared: Any
    background: Background
    stars: Stars
    quality: FrameQuality
    artefacts: np.ndarray
    trails: tuple[Trail, ...]


def _measure_one(
    frame: frames.Frame,
    *,
    calibration: calibrate.Calibration,
    store: Store | None,
    options: StackOptions,
    trails: bool,
) -> _Measured | str:
    """Pass 1 for one frame; a string is the reason why it cannot be used."""
    try:
        prepared = calibration.prepare(frame, store)
        section = calibration.read(frame, None, prepared)
        image = section.pixels
        finite = np.isfinite(image[:: max(1, image.shape[0] // 64)])
        if not finite.any() and not np.isfinite(image).any():
            return "no pixel has a value"
        if section.n_saturated > 0.5 * image.size:
            return f"{100 * section.n_saturated / image.size:.0f} % of the pixels are saturated"
        sky = background.estimate(image, options=options.background)
        level = _saturation_level(section)
        found, traces = survey(image, background=sky, options=replace(options.detect, saturation=level))
        clean = found[~found.has(StarFlag.SHARP)]
        stars, quality = measure(
            image,
            clean[: options.max_stars],
            background=sky,
            options=replace(options.measure, gain=frame.gain, saturation=level),
            n_saturated=section.n_saturated,
        )
        quality = replace(
            quality,
            n_stars=len(clean),
            n_sharp=len(found) - len(clean),
            noise=_pixel_noise(image, calibration.inv_flat),
        )
        stars = _flag_saturated(stars, section, quality.fwhm)
        width = quality.fwhm if np.isfinite(quality.fwhm) else 2.0
        artefacts = find_artefacts(image, background=sky, fwhm=width, options=options.detect, traces=traces)
        keep = ~stars.has(StarFlag.SHARP)
        return _Measured(
            prepared=prepared,
            background=sky,
            stars=stars[keep],
            quality=quality,
            artefacts=artefacts,
            trails=find_trails(image, background=sky, fwhm=width) if trails else (),
        )
    except FastackError as error:
        return str(error)
    except OSError as error:
        return f"{frame.path}: cannot be read ({error.strerror or error})"


def _pixel_noise(image: FloatImage, inv_flat: FloatImage | None, rows: int = 64) -> float:
    """White noise of a pixel where the flat is 1: elsewhere that of the sky goes with the root of 1/flat."""
    if inv_flat is None:
        return background.pixel_noise(image, rows)
    some = np.unique(np.linspace(0, len(image) - 1, min(rows, len(image))).astype(int))
    return background.pixel_noise(image[some] / np.sqrt(inv_flat[some]), rows)


def _saturation_level(section: calibrate.Section) -> float | None:
    if not len(section.saturated):
        return None
    x, y = section.saturated[:, 0], section.saturated[:, 1]
    values = section.pixels[y, x]
    values = values[np.isfinite(values)]
    return float(np.percentile(values, 5)) if len(values) else None


def _flag_saturated(stars: Stars, section: calibrate.Section, fwhm: float) -> Stars:
    """Stars with a saturated pixel in their core get the flag."""
    if not len(section.saturated) or not len(stars):
        return stars
    radius = max(1.5, fwhm if np.isfinite(fwhm) else 1.5)
    # cells as wide as the radius tell the few stars that are worth a closer look
    width = int(section.pixels.shape[1] / radius) + 4

    def cells(xy: np.ndarray) -> np.ndarray:
        at = np.floor(xy / radius).astype(np.int64) + 1
        return np.asarray(at[:, 1] * width + at[:, 0])

    full, own = np.unique(cells(section.saturated)), cells(stars.xy)
    near = np.zeros(len(stars), bool)
    for step in (-width, 0, width):
        for side in (-1, 0, 1):
            near |= np.isin(own + step + side, full)
    for row in np.flatnonzero(near):
        y = stars.xy[row, 1]
        first, last = section.saturated[:, 1].searchsorted((y - radius, y + radius + 1))
        near[row] = (np.hypot(*(section.saturated[first:last] - stars.xy[row]).T) <= radius).any()
    flags = stars.flags | np.where(near, int(StarFlag.SATURATED), 0).astype(np.uint16)
    flags.setflags(write=False)
    return replace(stars, flags=flags)


def _drop_known_artefacts(records: Sequence[FrameRecord]) -> None:
    """Pixels that are hot in at least a third of the frames (and in four) are masked in all of them."""
    lists = [r.artefacts for r in records if r.artefacts is not None and len(r.artefacts)]
    if len(records) < 4 or not lists:
        return
    pixels, counts = np.unique(np.concatenate(lists), axis=0, return_counts=True)
    fixed = pixels[counts >= max(4, len(records) / 3)]
    if not len(fixed):
        return
    for r in records:
        own = r.artefacts if r.artefacts is not None else np.empty((0, 2), np.int32)
        r.artefacts = np.unique(np.concatenate([own, fixed]), axis=0).astype(np.int32)


def _mask_trails(used: Sequence[FrameRecord], reporter: report.Reporter) -> None:
    """The pixels of trails that one frame alone has are missing in it."""
    transforms = [r.transform for r in used if r.transform is not None]
    for r, own in zip(used, passing([r.trails for r in used], transforms), strict=True):
        r.trails = own
        if own:
            r.notes = (*r.notes, f"{len(own)} trail{'s' * (len(own) > 1)} left out")
            reporter.note(f"{r.name}: {r.notes[-1]}")
            known = [r.artefacts] if r.artefacts is not None else []
            r.artefacts = np.unique(np.concatenate([*known, *(t.pixels(r.frame.shape) for t in own)]), axis=0)


# The meeting -------------------------------------------------------------------------------------------------------


def _drop_changed(records: Sequence[FrameRecord]) -> None:
    """Leave out frames whose files vanished or changed since they were measured."""
    for r in records:
        if r.reason is None:
            try:
                r.frame.check_unchanged()
            except FrameError as error:
                r.reason = str(error)


def output_grid(
    used: Sequence[FrameRecord],
    reference: FrameRecord,
    options: StackOptions,
    edges: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> tuple[Grid, list[Transform]]:
    """The output's grid, and the maps from its pixels to those of each frame.

    Parameters
    ----------
    used : sequence of FrameRecord
        Frames of the stack.
    reference : FrameRecord
        Whose pixels the output continues.
    options : StackOptions
        Framing, grid, size limit.
    edges : tuple of int
        Rows below and above, columns left and right of every frame that are not used.

    Returns
    -------
    grid : Grid
        With the WCS where one is known.
    transforms : list of Transform
        In the order of `used`.
    """
    wcs = coordinates.read_wcs(reference.frame.header)
    wcs = registration.trimmed_wcs(wcs, reference) if wcs is not None else None
    own = [r.transform for r in used if r.transform is not None]
    if options.grid is not None:
        if wcs is None:
            raise StackError(f"--grid needs the WCS of the reference, and {reference.name} has none")
        target, shape = coordinates.read_grid(options.grid)
        to_reference = transform.from_wcs(target, wcs, shape)
        return Grid(shape=shape, wcs=target), [transform.compose(to_reference, t) for t in own]
    shapes = [r.frame.shape for r in used]
    out = grid.frame_grid(options.framing, reference.frame.shape, shapes, own, options.max_size, edges)
    dx, dy = out.origin
    return replace(out, wcs=wcs), [t.shifted(dx, dy) for t in own]


# Pass 2 ------------------------------------------------------------------------------------------------------------


_NO_STAR = StarFlag.SATURATED | StarFlag.EDGE | StarFlag.NO_FIT | StarFlag.SHARP | StarFlag.EXTENDED
_STAR_FRAMES = 15
_NEAREST_JITTER = 0.3  # half a pixel is up to this part of the range over 3x3


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """All that a tile needs, small enough to be sent to another machine."""

    frames: list[frames.Frame]
    prepared: list[Any]
    artefacts: list[np.ndarray]  #: (k, 2) x, y, sorted by y
    transforms: list[Transform]  #: output pixels to frame pixels
    calibration: calibrate.Calibration
    noise: NoiseModel
    stars: Starlight | None  #: what seeing does to the known stars
    levels: Array  #: sky of each frame, ADU of the frame
    surfaces: normalise.SkySurfaces | None  #: what each sky has beyond its level
    pedestal: float
    shape: tuple[int, int]
    options: StackOptions
    maps: bool
    shared: uncertainty.MasterNoise | None  #: noise of the masters
    ahead: bool  #: the system is to read ahead: pass 1 has not left the files in its cache

    @classmethod
    def of(
        cls,
        used: Sequence[FrameRecord],
        reference: FrameRecord,
        transforms: list[Transform],
        out: Grid,
        calibration: calibrate.Calibration,
        options: StackOptions,
        maps: bool,
    ) -> Job:
        """Collect it from the records."""
        assert reference.background is not None

        def column(values: Iterator[Any]) -> Array:
            return np.array([np.nan if v is None else v for v in values], float)

        if options.resample.kernel == "nearest":  # moves a star's light by up to half a pixel
            jitter = max(options.combine.jitter, _NEAREST_JITTER)
            options = replace(options, combine=replace(options.combine, jitter=jitter))
        levels = column(r.sky for r in used)
        measured = column(r.quality.noise if r.quality else None for r in used)
        gain = column(r.frame.gain for r in used)
        light, rdnoise = _split_noise(measured, gain, column(r.frame.rdnoise for r in used), levels)
        noise = NoiseModel(
            weight=column(r.weight for r in used),
            scale=column(r.scale for r in used),
            sky=light,
            gain=gain,
            rdnoise=rdnoise,
            noise=measured,
            area=column(t.magnification**2 for t in transforms),
            fwhm=column(
                r.quality.fwhm / t.magnification if r.quality else None for r, t in zip(used, transforms, strict=True)
            ),
            shade=_shades(calibration, transforms, out.shape),
        )
        return cls(
            frames=[r.frame for r in used],
            prepared=[r.prepared for r in used],
            artefacts=[_by_row(r.artefacts) for r in used],
            transforms=transforms,
            calibration=calibration,
            noise=noise,
            stars=_starlight(used, transforms, noise) if options.combine.reject == "noise" else None,
            levels=levels,
            surfaces=_surfaces(used, transforms, out, calibration, options) if options.normalise else None,
            pedestal=0.0 if options.subtract_sky else reference.background.sky,
            shape=out.shape,
            options=options,
            maps=maps,
            shared=_shared_noise(calibration, used, transforms, noise, levels, out.shape, options),
            ahead=sum(r.frame.plane.nbytes for r in used) > options.memory,
        )


def _shared_noise(
    calibration: calibrate.Calibration,
    used: Sequence[FrameRecord],
    transforms: Sequence[Transform],
    noise: NoiseModel,
    levels: Array,
    shape: tuple[int, int],
    options: StackOptions,
) -> uncertainty.MasterNoise | None:
    """Noise that the frames share through masters whose own is known."""
    dark = float(np.mean([r.prepared.dark_scale for r in used])) if calibration.dark is not None else 0.0
    inverse = 1.0 if calibration.inv_flat is None else calibration.inv_flat
    known = {kind: v for kind, v in calibration.variance.items() if np.isfinite(v).any()}
    # what was subtracted from the darks is subtracted once less from the frames
    factors = (("bias", (1 - dark) ** 2), ("dark", dark**2))
    parts = [known[kind] * factor for kind, factor in factors if kind in known]
    if not known:
        return None
    return uncertainty.master_noise(
        transforms,
        shape,
        additive=sum(parts[1:], parts[0]) * inverse**2 if parts else None,
        relative=known["flat"] * inverse**2 if "flat" in known else None,
        weight=noise.weight,
        scale=noise.scale,
        level=levels,
        options=options.resample,
    )


def _surfaces(
    used: Sequence[FrameRecord],
    transforms: Sequence[Transform],
    out: Grid,
    calibration: calibrate.Calibration,
    options: StackOptions,
) -> normalise.SkySurfaces | None:
    """Sky surfaces over all that the frames cover, so that the framing does not change them."""
    ny, nx = out.shape
    area = (0, ny, 0, nx)
    if options.grid is None:
        own = [r.transform for r in used if r.transform is not None]
        whole = grid.frame_grid("union", (ny, nx), [r.frame.shape for r in used], own, sys.maxsize, calibration.edges)
        x0, y0 = (round(a - b) for a, b in zip(whole.origin, out.origin, strict=True))
        area = (min(0, y0), max(ny, y0 + whole.shape[0]), min(0, x0), max(nx, x0 + whole.shape[1]))
    return normalise.sky_surfaces(used, transforms, area, options.match_sky)


def _starlight(used: Sequence[FrameRecord], transforms: Sequence[Transform], noise: NoiseModel) -> Starlight | None:
    """Stars that several frames agree on, at the median of their places and fluxes: some trail crosses one of them."""
    if len(used) < 2 or not all(r.quality for r in used):
        return None
    # some frames, evenly over the night, tell the stars of all
    some = range(0, len(used), -(-len(used) // _STAR_FRAMES))
    first = np.empty((0, 2))
    found: list[list[Array]] = []  # x, y, flux of each star, frame by frame
    for k in some:
        stars = used[k].stars
        assert stars is not None
        good = stars[~stars.has(_NO_STAR) & (stars.snr > 5)]
        rows = np.column_stack([transforms[k].inverse(good.xy), used[k].scale * good.flux])
        pairs = _stars.nearest_pairs(first, np.ascontiguousarray(rows[:, :2]), 1.5)
        for i, j in pairs:
            found[i].append(rows[j])
        new = np.delete(rows, pairs[:, 1], axis=0)
        first = np.concatenate([first, new[:, :2]])
        found += [[row] for row in new]
    table = np.array([np.median(each, axis=0) for each in found if len(each) >= max(2, len(some) // 2)]).reshape(-1, 3)
    psfs = [r.quality.psf.scaled(1 / t.magnification) for r, t in zip(used, transforms, strict=True) if r.quality]
    least = float(np.min(noise.scale * noise.area * noise.noise))
    return Starlight.make(table[:, :2], table[:, 2], psfs, least, noise.weight)


def _split_noise(noise: Array, gain: Array, rdnoise: Array, level: Array) -> tuple[Array, Array]:
    """Light (ADU) and read noise (e-) that together make the measured background noise.

    The level of the sky alone does not tell its photon noise: raw frames stand on a bias pedestal, others had their
    sky taken away. What was measured does. Without a gain the level is all there is.
    """
    electrons = noise * gain
    read = np.where(np.isfinite(rdnoise), np.minimum(rdnoise, electrons), 0.0)
    known = np.isfinite(electrons)
    return np.where(known, (electrons**2 - read**2) / gain, level), np.where(known, read, rdnoise)


def _shades(
    calibration: calibrate.Calibration, transforms: Sequence[Transform], shape: tuple[int, int]
) -> FloatImage | None:
    """(n, by, bx) of 1/flat for each frame on blocks of 16 x 16 output pixels; None without a flat."""
    if calibration.inv_flat is None:
        return None
    block = grid.ANCHOR
    ny, nx = (s // block for s in calibration.inv_flat.shape)
    if not ny * nx:
        return None
    cells = calibration.inv_flat[: ny * block, : nx * block].reshape(ny, block, nx, block)
    known = np.isfinite(cells)
    coarse = np.where(known, cells, 0).sum(axis=(1, 3)) / np.maximum(known.sum(axis=(1, 3)), 1)
    coarse[coarse <= 0] = 1.0
    y, x = (np.arange(-(-s // block)) * block + (block - 1) / 2 for s in shape)
    centres = np.stack([a.ravel() for a in np.meshgrid(x, y)], axis=1)
    out = np.empty((len(transforms), len(y), len(x)), np.float32)
    for k, to_frame in enumerate(transforms):
        at = np.floor(to_frame(centres) / block).astype(int)
        out[k] = coarse[np.clip(at[:, 1], 0, ny - 1), np.clip(at[:, 0], 0, nx - 1)].reshape(out.shape[1:])
    return out


def _by_row(pixels: np.ndarray | None) -> np.ndarray:
    if pixels is None or not len(pixels):
        return np.empty((0, 2), np.int32)
    return np.ascontiguousarray(pixels[np.lexsort((pixels[:, 0], pixels[:, 1]))], np.int32)


def stack_tile(tile: grid.Tile, job: Job) -> Combined:
    """Pass 2 for one tile: read, calibrate, resample and normalise every frame, then combine.

    Parameters
    ----------
    tile : tuple of int
        (y0, y1, x0, x1) of the output.
    job : Job
        The whole task.

    Returns
    -------
    Combined
        The tile's planes.
    """
    y0, y1, x0, x1 = tile
    edge = halo(len(job.frames), job.options.combine)
    # beyond the output as well: pixels at its border are judged by what stands around them
    part = (y0 - edge, y1 + edge, x0 - edge, x1 + edge)
    shape = (len(job.frames), part[1] - part[0], part[3] - part[2])
    samples, factor = _scratch(shape)
    # variance planes that files bring count before the model
    spread = np.full(shape, np.nan, np.float32) if any(f.variance for f in job.frames) else None
    saturated, flags = np.zeros(shape[1:], np.uint16), np.zeros(shape[1:], np.uint8)
    planes = _Planes(samples=samples, factor=factor, spread=spread, saturated=saturated, flags=flags)
    kernel = job.options.resample
    windows = [input_window(t, part, f.shape, kernel) for f, t in zip(job.frames, job.transforms, strict=True)]
    for i, window in enumerate(windows):
        following = windows[i + 1] if job.ahead and i + 1 < len(windows) else None
        if following is not None:
            job.calibration.ahead(job.frames[i + 1], following, job.prepared[i + 1])
        _resample_frame(i, part, window, planes, job)
    inner = (slice(edge, -edge), slice(edge, -edge))
    made = combine_tile(
        samples,
        factor,
        job.noise,
        pedestal=job.pedestal,
        tile=tile,
        halo=edge,
        saturated_count=np.ascontiguousarray(saturated[inner]),
        flags=np.ascontiguousarray(flags[inner]),
        variance=spread,
        stars=job.stars,
        options=job.options.combine,
    )
    if job.shared is not None:
        total, sky = job.shared.variance(made.data - np.float32(job.pedestal), tile)
        np.add(made.variance, total, out=made.variance)
        np.add(made.background_variance, sky, out=made.background_variance)
    return made


class _Planes(NamedTuple):
    """What is made of all frames for one part of the output."""

    samples: FloatImage  # (n, h, w)
    factor: np.ndarray  # (n, h, w), variance factors
    spread: FloatImage | None  # (n, h, w), variances
    saturated: np.ndarray  # (h, w), number of samples that hold saturated light
    flags: np.ndarray  # (h, w)


def _resample_frame(i: int, part: grid.Tile, window: Window | None, planes: _Planes, job: Job) -> None:
    """Fill frame i's part of the planes from its window of the frame."""
    frame, to_frame, kernel = job.frames[i], job.transforms[i], job.options.resample
    samples, factor = planes.samples[i], planes.factor[i]
    if window is None:
        samples[...], factor[...] = np.nan, 0
        return
    section = job.calibration.read(frame, window, job.prepared[i])
    # hot and cosmic-ray pixels become missing before they can ring
    _pixels.blank_pixels(section.pixels, job.artefacts[i], window[0], window[2])
    place = ((window[2], window[0]), frame.shape, to_frame, part)
    scale = float(job.noise.scale[i])
    resample_tile(
        section.pixels,
        *place,
        scale=scale,
        sky=float(job.levels[i]),
        offset=job.pedestal,
        out=samples,
        factor=factor,
        saturated=section.saturated,
        saturated_count=planes.saturated,
        flags=planes.flags,
        options=kernel,
    )
    if job.surfaces is not None:
        samples -= job.surfaces.at(i, part)
    if planes.spread is None:
        return
    spread = planes.spread[i]
    if section.variance is None:
        dark = (job.noise.area[i] * job.noise.noise[i]) ** 2 / 255
        np.multiply(factor, np.float32(scale * scale * dark), out=spread)
    else:
        known = np.where(np.isfinite(section.pixels), section.variance, np.float32(np.nan))
        resample_variance(known, *place, out=spread, options=kernel)
        spread *= np.float32(scale * scale)


_local = threading.local()


def _scratch(shape: tuple[int, ...]) -> tuple[FloatImage, np.ndarray]:
    """Memory for the samples and variance factors of a tile, kept by each thread: fresh pages cost more than pixels."""
    size = math.prod(shape)
    if getattr(_local, "size", 0) < size:
        _local.size, _local.samples, _local.factors = size, np.empty(size, np.float32), np.empty(size, np.uint8)
    samples: FloatImage = _local.samples[:size].reshape(shape)
    factors: np.ndarray = _local.factors[:size].reshape(shape)
    return samples, factors


def _retile(job: Job, tiles: Sequence[grid.Tile], store: Store) -> None:
    """Frames whose rows would be read over and over, as those turned by 90 degrees, are laid out anew."""
    for i, (frame, to_frame, prepared) in enumerate(zip(job.frames, job.transforms, job.prepared, strict=True)):
        if not isinstance(prepared.image, Held):
            continue
        windows = (input_window(to_frame, tile, frame.shape, job.options.resample) for tile in tiles)
        if sum(w[1] - w[0] for w in windows if w is not None) > _REREAD * frame.shape[0]:
            job.prepared[i] = replace(prepared, image=store.tile(frame.plane))


def _combine(
    job: Job,
    sink: output.Sink,
    executor: Executor,
    reporter: report.Reporter,
    used: Sequence[FrameRecord],
    store: Store,
) -> None:
    rotation = max(abs((t.rotation + 45) % 90 - 45) for t in job.transforms)
    budget = min((job.options.memory - store.used) // (2 * executor.threads), 1 << 28)
    size = grid.tile_shape(len(used), job.shape, budget, rotation, executor.threads)
    every = list(grid.tiles(job.shape, size))
    _retile(job, every, store)
    reporter.start("combine", len(every), size[0] * size[1] * len(used))
    work = functools.partial(stack_tile, job=job)
    for tile, result in zip(every, executor.map(work, every), strict=True):
        y, _, x, _ = tile
        sink.write("", y, x, result.data)
        sink.write("UNCERT", y, x, np.sqrt(result.variance))
        sink.write("NCOMB", y, x, result.count)
        with np.errstate(divide="ignore"):  # frames without noise
            sink.write("WEIGHT", y, x, 1 / result.background_variance)
        sink.write("FLAGS", y, x, result.flags)
        if job.maps:
            sink.write("REJLOW", y, x, result.rejected_low)
            sink.write("REJHIGH", y, x, result.rejected_high)
        reporter.advance()
    for r in used:
        r.frame.check_unchanged()
    reporter.finish()


def _measure_stack(
    sink: output.Sink, out: Grid, reference: FrameRecord, options: StackOptions
) -> tuple[Stars | None, FrameQuality | None]:
    """Stars and quality of the stack itself, from its middle where it is large."""
    ny, nx = out.shape
    rows = min(ny, max(512, (1 << 24) // nx))
    y0 = (ny - rows) // 2
    image = np.ascontiguousarray(sink.read("", y0, y0 + rows), np.float32)
    try:
        sky = background.estimate(image, options=options.background)
        found = detect(image, background=sky, options=options.detect)
        stars, quality = measure(image, found, background=sky, options=options.measure)
    except FastackError:
        return None, None
    moved = np.array(stars.xy)
    moved[:, 1] += y0
    moved.setflags(write=False)
    return replace(stars, xy=moved), quality


def _need(records: Sequence[FrameRecord], when: str) -> None:
    """Raise where no frame is left, saying why."""
    if any(r.reason is None for r in records):
        return
    reasons = [f"  {r.name}: {r.reason}" for r in records[:20]]
    if len(records) > 20:
        reasons.append(f"  ... and {len(records) - 20} more")
    known = sorted(r.quality.fwhm for r in records if r.quality and np.isfinite(r.quality.fwhm))
    if known:
        reasons.append(f"FWHM of the frames: {known[0]:.2f} to {known[-1]:.2f} px, median {np.median(known):.2f} px")
    raise StackError(f"no frame is left {when}:\n" + "\n".join(reasons))
