"""The main job: frames in, one honest stack out. The only module that knows all stages.

Pass 1 measures every frame, the meeting works on lists of stars alone, pass 2 combines tile by tile.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastack import (
    _pixels,
    background,
    calibrate,
    coadd,
    dates,
    files,
    frames,
    gain,
    grid,
    header,
    normalise,
    output,
    registration,
    report,
    select,
    star_scatter,
    transform,
)
from fastack import wcs as coordinates
from fastack.cards import Cards
from fastack.detect import detect, find_artefacts, survey
from fastack.errors import FastackError, FrameError, StackError
from fastack.executor import Buffers, Executor, make_executor, preload
from fastack.load_calibration import load_calibration
from fastack.measure import measure
from fastack.options import MeasureOptions, StackOptions
from fastack.storage import Store
from fastack.trails import Trail, find_trails, passing
from fastack.types import (
    Background,
    FloatImage,
    FrameQuality,
    FrameRecord,
    Grid,
    StarFlag,
    Stars,
    Transform,
)

if TYPE_CHECKING:
    from astropy.io import fits

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
    seconds: float = 0.0
    options: StackOptions = field(default_factory=StackOptions, repr=False)
    notes: tuple[str, ...] = ()
    _stars: list[Stars] = field(init=False, repr=False, default_factory=list)

    @property
    def stars(self) -> Stars:
        """All detections of the stack, in its pixels and ADU of the reference; measured when they are first asked for.

        Raises
        ------
        StackError
            After a dry run.
        FastackError
            If the stack has no background to measure them on.
        """
        if not self._stars:
            image = np.ascontiguousarray(self.data, np.float32)
            sky = background.estimate(image, options=self.options.background)
            found = detect(image, background=sky, options=self.options.detect)
            self._stars.append(measure(image, found, background=sky, options=self.options.measure)[0])
        return self._stars[0]

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
        from astropy.io import fits

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
        Command line, for the HISTORY; the process is taken to be its own.
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
        records = open_frames(sources, options, exclude=target)
        fits_in = _fitting([r.frame for r in records if r.frame is not None], options)
        if command and fits_in:  # the process is our own, and has room
            _pixels.keep_freed_memory()
        tiles = 0 if dry_run else executor.here
        size = _room(records, options, tiles)
        buffers = Buffers(size + size // 8)  # an output that is somewhat larger than its frames finds room, too
        # numpy.ma, which NumPy's own functions load at the first frame, stands in no circle with the others; where a
        # single frame takes all the memory there is, no modules are loaded before they are needed
        with preload("numpy.ma", *(_needed_later(records) if fits_in else [])):
            calibration = _measure_all(records, options, reporter, executor, store, buffers)
        select.apply_limits(records, options.select)
        _need(records, "after the selection")
        gain_notes = _estimate_gain([r for r in records if r.reason is None], options, reporter)
        calibration = replace(calibration, notes=(*calibration.notes, *gain_notes))
        reference = select.choose_reference(records, options.reference)
        buffers.trim()
        enough = threading.Event()
        taking = executor.start(coadd.take_memory, buffers, _room(records, options, tiles), tiles, enough)
        registration.register(records, reference, options, reporter)
        normalise.match_levels(records, reference, normalise=options.normalise)
        select.apply_transparency(records, options.select)
        _drop_changed(records)
        _need(records, "after the registration")
        scatter_notes = _star_scatter(records, reference, calibration, executor, reporter)
        calibration = replace(calibration, notes=(*calibration.notes, *scatter_notes))
        select.weigh(records, options.weights, options.weight_table)
        for r in records:
            if r.reason is not None:
                reporter.left_out(r.name, r.reason)
        used = [r for r in records if r.used]
        if options.combine.reject == "noise" and options.combine.jitter is None:
            jitter = registration.jitter(used, reference, options.resample.kernel)
            options = replace(options, combine=replace(options.combine, jitter=jitter))
        if dry_run:
            from astropy.io import fits

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
        job = coadd.Job.of(used, reference, transforms, out, calibration, options, maps, buffers)
        enough.set()
        taking()
        if target is None:
            sink = output.MemorySink(out.shape, planes)
            coadd.coadd(job, sink, executor, reporter, store)
            quality = _measure_stack(sink, out, options, buffers)
        else:
            with output.FitsSink(target, out.shape, planes, primary, overwrite=overwrite) as file:
                coadd.coadd(job, file, executor, reporter, store)
                measuring = executor.start(_measure_stack, file, out, options, buffers)
                file.add_up()
                file.append(report.frames_hdu(records))
                quality = measuring()
                header.quality_cards(primary, quality)
                file.finish()
            sink = None
    if target is None:
        header.quality_cards(primary, quality)
    return StackResult(
        shape=out.shape,
        header=primary,
        records=records,
        reference=reference.name,
        grid=out,
        path=target,
        sink=sink,
        quality=quality,
        seconds=time.perf_counter() - started,
        options=options,
        notes=calibration.notes,
    )


def _room(records: Sequence[FrameRecord], options: StackOptions, tiles: int) -> int:
    """Pixels of a tile's samples, when so many tiles are made at once from all frames that are left."""
    live = [r.frame.shape for r in records if r.reason is None]
    return coadd.room(len(live), max(live), options, tiles) if live else 0


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
            estimate = gain.camera_gain([live[k].frame for k in order], options.calibrate)
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


def _star_scatter(
    records: Sequence[FrameRecord],
    reference: FrameRecord,
    calibration: calibrate.Calibration,
    executor: Executor,
    reporter: report.Reporter,
) -> list[str]:
    """How much stars scatter in frames of unknown gain, for the errors of their light; a note on it."""
    live = [r for r in records if r.reason is None]
    if not live or any(r.frame.gain for r in live):
        return []
    try:
        found = star_scatter.star_scatter(live, reference, calibration, executor.map)
    except (FastackError, OSError):
        return []  # errors are those of the background then, as the note on the gain says
    for r in live:
        r.scatter = found
    reporter.note(found.text())
    return [found.text()]


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
    paths = files.find_frames(sources, missing=True)
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
            record.exposure = dates.read_exposure(Cards(record.frame.cards), record.frame.exposure)
            record.notes += record.exposure.notes
            if record.frame.image_type in ("bias", "dark", "flat"):
                record.reason = f"a {record.frame.image_type} frame, not a light frame"
        records.append(record)
    return records


def _needed_later(records: Sequence[FrameRecord]) -> list[str]:
    """Modules that no frame needs in pass 1 but the header of the stack does; they are slow to start."""
    celestial = any(r.frame is not None and "CTYPE1  =" in r.frame.cards for r in records)
    return ["astropy.io.fits", "erfa", *(["astropy.wcs"] if celestial else [])]


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
    return records, _measure_all(records, options, reporter, executor, store, Buffers())


def _measure_all(
    records: list[FrameRecord],
    options: StackOptions,
    reporter: report.Reporter,
    executor: Executor,
    store: Store | None,
    buffers: Buffers,
) -> calibrate.Calibration:
    """Pass 1 for frames that are open."""
    select.keep_majority(records, options.select)
    live = [r for r in records if r.reason is None]
    _need(records, "that could be opened")
    opened = [r.frame for r in live]
    fitting = _fitting(opened, options)
    # compressed frames are whole in memory while they are sampled
    sampling = executor if fitting >= executor.threads else None
    calibration = load_calibration(opened, options.calibrate, executor=sampling)
    for note in calibration.notes:
        reporter.note(note)
    pixels = max(f.raw_shape[0] * f.raw_shape[1] for f in opened)
    fewer = max(1, fitting) if fitting < executor.threads else None
    if store is not None:
        store.expect(sum(r.frame.plane.nbytes for r in live))
    few = options.combine.reject != "none" and 1 < len(live) <= options.combine.trail_frames
    work = functools.partial(
        _measure_one, calibration=calibration, store=store, options=options, trails=few, buffers=buffers
    )
    reporter.start("measure", len(live), pixels)
    for record, result in zip(live, executor.map(work, _coming(live), ahead=fewer), strict=True):
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
    return calibration


def _fitting(some: Sequence[frames.Frame], options: StackOptions) -> int:
    """Number of frames that may be in memory at once."""
    return options.memory // max((16 * f.raw_shape[0] * f.raw_shape[1] for f in some), default=1)


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
    buffers: Buffers,
) -> _Measured | str:
    """Pass 1 for one frame; a string is the reason why it cannot be used."""
    try:
        prepared = calibration.prepare(frame, store)
        with buffers.lend(frame.shape) as room:
            section = calibration.read(frame, None, prepared, out=room)
            return _measure_section(section, frame, prepared, calibration, options, trails)
    except FastackError as error:
        return str(error)
    except OSError as error:
        return f"{frame.path}: cannot be read ({error.strerror or error})"


def _measure_section(
    section: calibrate.Section,
    frame: frames.Frame,
    prepared: calibrate.Prepared,
    calibration: calibrate.Calibration,
    options: StackOptions,
    trails: bool,
) -> _Measured | str:
    """What pass 1 finds in the pixels of one frame."""
    image = section.pixels
    few = image[:: max(1, image.shape[0] // 4)]
    if not np.isfinite(few).any() and not np.isfinite(image).any():
        return "no pixel has a value"
    if section.n_saturated > 0.5 * image.size:
        return f"{100 * section.n_saturated / image.size:.0f} % of the pixels are saturated"
    sky = background.estimate(image, options=options.background)
    level = _saturation_level(section)
    found, traces = survey(image, background=sky, options=replace(options.detect, saturation=level))
    how = replace(options.measure, gain=frame.gain, saturation=level)
    stars, quality = _measure_brightest(image, found, sky, options.max_stars, how, section.n_saturated)
    quality = replace(quality, noise=_pixel_noise(image, calibration.inv_flat))
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


def _measure_brightest(
    image: FloatImage,
    found: Stars,
    sky: Background,
    most: int,
    options: MeasureOptions,
    n_saturated: int | None = None,
) -> tuple[Stars, FrameQuality]:
    """Measure so many of the detections that look like stars; all of them are counted."""
    clean = np.flatnonzero(~found.has(StarFlag.SHARP))
    stars, quality = measure(image, found[clean[:most]], background=sky, options=options, n_saturated=n_saturated)
    return stars, replace(quality, n_stars=len(clean), n_sharp=len(found) - len(clean))


_NOISE_PIXELS = 1 << 17  # that tell a frame's noise to half a per cent
_NOISE_ROWS = 24  # at least, over the whole frame


def _pixel_noise(image: FloatImage, inv_flat: FloatImage | None) -> float:
    """White noise of a pixel where the flat is 1: elsewhere that of the sky goes with the root of 1/flat."""
    rows = max(_NOISE_ROWS, _NOISE_PIXELS // image.shape[1])
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
    pixels, counts = _different(lists)
    fixed = pixels[counts >= max(4, len(records) / 3)]
    if not len(fixed):
        return
    for r in records:
        own = r.artefacts if r.artefacts is not None else np.empty((0, 2), np.int32)
        r.artefacts = _different([own, fixed])[0]


def _different(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (x, y) of some lists, each once, and their numbers; `np.unique` of rows takes 20 times as long."""
    x, y = np.concatenate(lists).astype(np.int64).T
    places, counts = np.unique(x << 32 | y, return_counts=True)
    return np.column_stack([places >> 32, places & 0xFFFFFFFF]).astype(np.int32), counts


def _mask_trails(used: Sequence[FrameRecord], reporter: report.Reporter) -> None:
    """The pixels of trails that one frame alone has are missing in it."""
    transforms = [r.transform for r in used if r.transform is not None]
    for r, own in zip(used, passing([r.trails for r in used], transforms), strict=True):
        r.trails = own
        if own:
            r.notes = (*r.notes, f"{len(own)} trail{'s' * (len(own) > 1)} left out")
            reporter.note(f"{r.name}: {r.notes[-1]}")
            known = [r.artefacts] if r.artefacts is not None else []
            r.artefacts = _different([*known, *(t.pixels(r.frame.shape) for t in own)])[0]


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


def _measure_stack(sink: output.Sink, out: Grid, options: StackOptions, buffers: Buffers) -> FrameQuality | None:
    """Quality of the stack itself, as a frame's, from its middle where it is large."""
    ny, nx = out.shape
    rows = min(ny, max(512, (1 << 24) // nx))
    y0 = (ny - rows) // 2
    try:
        with buffers.lend((rows, nx)) as room:
            image = np.ascontiguousarray(sink.read("", y0, y0 + rows, room), np.float32)
            sky = background.estimate(image, options=options.background)
            found = detect(image, background=sky, options=options.detect)
            return _measure_brightest(image, found, sky, options.max_stars, options.measure)[1]
    except FastackError:
        return None


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
