"""Pass 2: the frames, read again by parts, resampled and combined tile by tile."""

from __future__ import annotations

import functools
import math
import operator
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastack import _match, _pixels, calibrate, frames, grid, normalise, output, report, uncertainty
from fastack.combine import PANEL, Combined, NoiseModel, Starlight, combine_tile, halo
from fastack.executor import Buffers, Executor
from fastack.options import StackOptions
from fastack.resample import input_window, resample_tile, resample_variance
from fastack.star_scatter import pixel_response
from fastack.storage import Held, Store, Window
from fastack.types import PSF, Array, FloatImage, FrameRecord, Grid, StarFlag, Transform

_REREAD = 4  # times that a frame may be read in pass 2 before it is laid out in tiles
_NO_STAR = StarFlag.SATURATED | StarFlag.EDGE | StarFlag.NO_FIT | StarFlag.SHARP | StarFlag.EXTENDED
_STAR_FRAMES = 15
_HIDING = 3.0  # pixels from a star, or its FWHM, within which an artefact may hide it
_SAME_SHAPE = 4.0  # relative errors of a frame's FWHM within which its stars' ellipticity is the others'
_PAGE = 1024  # float32 in a page of memory
_CLEARED = 1 << 20  # of them that are cleared at once
_READ = 0.5  # of the background's noise, where no card tells the read noise


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
    shape: tuple[int, int]  #: of the output and the margin
    margin: tuple[int, int]  #: rows and columns before the output's first ones, see `_anchored`
    options: StackOptions
    maps: bool
    shared: uncertainty.MasterNoise | None  #: noise of the masters
    ahead: bool  #: the system is to read ahead: pass 1 has not left the files in its cache
    buffers: Buffers  #: memory of the tiles

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
        buffers: Buffers | None = None,
    ) -> Job:
        """Collect it from the records."""
        assert reference.background is not None

        def column(values: Iterator[Any]) -> Array:
            return np.array([np.nan if v is None else v for v in values], float)

        out, transforms, margin = _anchored(out, transforms)
        levels = column(r.sky for r in used)
        measured = column(r.quality.noise if r.quality else None for r in used)
        gain = column(r.frame.gain or _apparent_gain(r) for r in used)
        light, rdnoise = _split_noise(measured, gain, column(r.frame.rdnoise for r in used), levels)
        psfs = [_on_grid(r, t) for r, t in zip(used, transforms, strict=True)]
        noise = NoiseModel(
            weight=column(r.weight for r in used),
            scale=column(r.scale for r in used),
            sky=light,
            gain=gain,
            rdnoise=rdnoise,
            noise=measured,
            area=column(t.magnification**2 for t in transforms),
            fwhm=column(p.fwhm for p in psfs),
            elongation=_elongations(psfs),
            shade=_shades(calibration, transforms, out.shape),
        )
        return cls(
            frames=[r.frame for r in used],
            prepared=[r.prepared for r in used],
            artefacts=[_by_row(r.artefacts) for r in used],
            transforms=transforms,
            calibration=calibration,
            noise=noise,
            stars=_starlight(used, transforms, psfs, noise) if options.combine.reject == "noise" else None,
            levels=levels,
            surfaces=_surfaces(used, transforms, out, margin, calibration, options) if options.normalise else None,
            pedestal=0.0 if options.subtract_sky else reference.background.sky,
            shape=out.shape,
            margin=margin,
            options=options,
            maps=maps,
            shared=_shared_noise(calibration, used, transforms, noise, levels, out.shape, options),
            ahead=sum(r.frame.plane.nbytes for r in used) > options.memory,
            buffers=buffers or Buffers(),
        )


def _anchored(out: Grid, transforms: Sequence[Transform]) -> tuple[Grid, list[Transform], tuple[int, int]]:
    """The output with a margin below and on the left, so that the kernels' blocks lie on the reference's pixels.

    Whatever the framing, a pixel is then made of the same blocks, and has the same value.
    """
    dx, dy = (round(at) % grid.ANCHOR if float(at).is_integer() else 0 for at in out.origin)
    shape, origin = (out.shape[0] + dy, out.shape[1] + dx), (out.origin[0] - dx, out.origin[1] - dy)
    return replace(out, shape=shape, origin=origin), [t.shifted(-dx, -dy) for t in transforms], (dy, dx)


def _apparent_gain(record: FrameRecord) -> float | None:
    """Gain that tells the errors of stars where the camera's is not known."""
    return record.scale / record.scatter.slope if record.scatter is not None and record.scatter.slope > 0 else None


def _shared_noise(
    calibration: calibrate.Calibration,
    used: Sequence[FrameRecord],
    transforms: Sequence[Transform],
    noise: NoiseModel,
    levels: Array,
    shape: tuple[int, int],
    options: StackOptions,
) -> uncertainty.MasterNoise | None:
    """Noise that the frames share through masters whose own is known, and what stars scatter beyond their photons."""
    parts = [
        _noise_of_masters(calibration, used, transforms, noise, levels, shape, options),
        _noise_of_stars(used, transforms, noise, shape, options),
    ]
    known = [part for part in parts if part is not None]
    return functools.reduce(operator.add, known) if known else None


def _noise_of_stars(
    used: Sequence[FrameRecord],
    transforms: Sequence[Transform],
    noise: NoiseModel,
    shape: tuple[int, int],
    options: StackOptions,
) -> uncertainty.MasterNoise | None:
    """What the scatter of bright stars between the frames adds to the photon noise of all light.

    As if the pixels of each frame responded unlike: of what else it may come from, errors of pixels can tell no more.
    """
    scatter, quality = used[0].scatter, used[len(used) // 2].quality
    if scatter is None or not scatter.floor or quality is None or not np.isfinite(quality.fwhm):
        return None
    response = pixel_response(scatter.floor, quality.psf)
    return uncertainty.master_noise(
        transforms,
        shape,
        additive=None,
        relative=np.full(used[0].frame.shape, response**2, np.float32),
        weight=noise.weight,
        scale=noise.scale,
        level=np.zeros(len(used)),
        options=options.resample,
        shared=False,
    )


def _noise_of_masters(
    calibration: calibrate.Calibration,
    used: Sequence[FrameRecord],
    transforms: Sequence[Transform],
    noise: NoiseModel,
    levels: Array,
    shape: tuple[int, int],
    options: StackOptions,
) -> uncertainty.MasterNoise | None:
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
    margin: tuple[int, int],
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
        down, left = margin
        area = (min(down, y0), max(ny, y0 + whole.shape[0]), min(left, x0), max(nx, x0 + whole.shape[1]))
    return normalise.sky_surfaces(used, transforms, area, options.match_sky)


def _starlight(
    used: Sequence[FrameRecord], transforms: Sequence[Transform], psfs: Sequence[PSF], noise: NoiseModel
) -> Starlight | None:
    """Stars that several frames agree on, at the median of their places and fluxes: some trail crosses one of them."""
    if len(used) < 2 or not all(r.quality for r in used):
        return None
    # some frames, evenly over the night, tell the stars of all
    some = range(0, len(used), -(-len(used) // _STAR_FRAMES))
    first = np.empty((0, 2))
    numbers, samples = [], []  # of the stars, and their x, y, flux, frame by frame
    for k in some:
        stars = used[k].stars
        assert stars is not None
        good = ~stars.has(_NO_STAR) & (stars.snr > 5)
        xy = transforms[k].inverse(stars.xy[good])
        i, j = _match.nearest_pairs(first, xy, 1.5).T
        number = np.full(len(xy), -1)
        number[j] = i
        new = number < 0
        number[new] = len(first) + np.arange(np.count_nonzero(new))
        first = np.concatenate([first, xy[new]])
        numbers.append(number)
        samples.append(np.column_stack([xy, used[k].scale * stars.flux[good]]))
    count = np.bincount(np.concatenate(numbers), minlength=len(first))
    every = np.full((len(first), len(some), 3), np.inf)
    for k, (number, rows) in enumerate(zip(numbers, samples, strict=True)):
        every[number, k] = rows
    often = count >= max(2, len(some) // 2)
    if len(used) == 2:
        often |= _hidden(used, transforms, first, numbers)
    # what is missing stands last
    ordered, middle, row = np.sort(every[often], axis=1), count[often], np.arange(np.count_nonzero(often))
    table = (ordered[row, (middle - 1) // 2] + ordered[row, middle // 2]) / 2
    unsure = np.array([r.quality.fwhm_err / r.quality.fwhm for r in used if r.quality])
    if not (noise.elongation > _SAME_SHAPE * unsure).any():
        psfs = [replace(p, ellipticity=0.0) for p in psfs]
    least = float(np.min(noise.scale * noise.area * noise.noise))
    return Starlight.make(table[:, :2], table[:, 2], psfs, least, noise.weight)


def _on_grid(record: FrameRecord, transform: Transform) -> PSF:
    """A frame's PSF in pixels of the output, turned and mirrored with the frame; of NaN where it is not known."""
    if record.quality is None:
        return PSF(fwhm=np.nan, ellipticity=np.nan)
    psf, (ny, nx) = record.quality.psf, record.frame.shape
    middle = transform.inverse([[(nx - 1) / 2, (ny - 1) / 2]])
    across, up = np.linalg.solve(transform.jacobian(middle)[0], [np.cos(psf.theta), np.sin(psf.theta)])
    return replace(psf.scaled(1 / transform.magnification), theta=float(np.arctan2(up, across)))


def _elongations(psfs: Sequence[PSF]) -> Array:
    """How far the stars of each frame differ in shape from the typical ones: see `NoiseModel.elongation`."""
    shapes = np.array([p.ellipticity * np.exp(2j * p.theta) for p in psfs])
    known = shapes[np.isfinite(shapes)]
    typical = complex(np.median(known.real), np.median(known.imag)) if len(known) else 0.0
    return np.where(np.isfinite(shapes), np.abs(shapes - typical), 0.0)


def _hidden(
    used: Sequence[FrameRecord], transforms: Sequence[Transform], xy: Array, numbers: Sequence[Array]
) -> NDArray[np.bool_]:
    """Stars that one of two frames lacks where it has an artefact: a cosmic ray that hit a star may hide it."""
    hidden = np.zeros(len(xy), bool)
    for r, to_frame, found in zip(used, transforms, numbers, strict=True):
        lost = np.setdiff1d(np.arange(len(xy)), found)
        if r.artefacts is None or not len(r.artefacts) or r.quality is None:
            continue
        reach = max(r.quality.fwhm, _HIDING)
        for star, place in zip(lost, to_frame(xy[lost]), strict=True):
            hidden[star] = (np.abs(r.artefacts - place).max(axis=1) < reach).any()
    return hidden


def _split_noise(noise: Array, gain: Array, rdnoise: Array, level: Array) -> tuple[Array, Array]:
    """Light (ADU) and read noise (e-) that together make the measured background noise.

    The level of the sky alone does not tell its photon noise: raw frames stand on a bias pedestal, others had their
    sky taken away. What was measured does. Without a gain the level is all there is. Of an unknown read noise some is
    assumed: a pixel far below the sky, which by the light alone would have no noise, has a part of the background's.
    """
    electrons = noise * gain
    read = np.where(np.isfinite(rdnoise), np.minimum(rdnoise, electrons), _READ * electrons)
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


def stack_tiles(strip: Sequence[grid.Tile], job: Job) -> Iterator[Combined]:
    """Pass 2 for tiles that follow each other along y: read, calibrate, resample and normalise, then combine.

    Parameters
    ----------
    strip : sequence of tuple of int
        Tiles (y0, y1, x0, x1) of the output; see `grid.strips`.
    job : Job
        The whole task.

    Yields
    ------
    Combined
        The planes of each tile.
    """
    n = len(job.frames)
    _, edge, side = _with_halo(strip[0], n, job.options)
    rows = max(y1 - y0 for y0, y1, _, _ in strip) + 2 * edge
    columns = strip[0][3] - strip[0][2] + 2 * side
    with job.buffers.lend((1, _floats(rows, columns, n))) as room:
        # variance planes that files bring count before the model
        every = _Planes.within(room, (rows, columns), n, spread=any(f.variance for f in job.frames))
        height = known = 0  # rows of the tile below, and those of them that this one needs too
        for tile in strip:
            every.move(height - known, height)
            part, _, _ = _with_halo(tile, n, job.options)
            height = part[1] - part[0]
            _resample(every.rows(known, height), (part[0] + known, *part[1:]), job)
            yield _combine(every.rows(0, height), tile, edge, side, job)
            known = 2 * edge


def stack_strip(strip: Sequence[grid.Tile], job: Job) -> list[Combined]:
    """All tiles of a strip at once, for a sink in another process.

    Parameters
    ----------
    strip, job
        See `stack_tiles`.

    Returns
    -------
    list of Combined
        The planes of each tile.
    """
    return list(stack_tiles(strip, job))


def _stack_and_write(strip: Sequence[grid.Tile], job: Job, sink: output.Sink) -> None:
    """Put a strip's planes into a sink of this process."""
    for tile, made in zip(strip, stack_tiles(strip, job), strict=True):
        _write(sink, tile, made, job)


def _resample(planes: _Planes, part: grid.Tile, job: Job) -> None:
    """Fill planes with a part of the output."""
    planes.clear()
    kernel = job.options.resample
    windows = [input_window(t, part, f.shape, kernel) for f, t in zip(job.frames, job.transforms, strict=True)]
    for i, window in enumerate(windows):
        following = windows[i + 1] if job.ahead and i + 1 < len(windows) else None
        if following is not None:
            job.calibration.ahead(job.frames[i + 1], following, job.prepared[i + 1])
        _resample_frame(i, part, window, planes, job)


def _combine(planes: _Planes, tile: grid.Tile, edge: int, side: int, job: Job) -> Combined:
    """Combine a tile of which the planes hold the samples, and so many rows and columns around it."""
    inner = (slice(edge, -edge), slice(side, -side))
    made = combine_tile(
        planes.samples,
        planes.factor,
        job.noise,
        pedestal=job.pedestal,
        tile=tile,
        halo=(edge, side),
        saturated_count=np.ascontiguousarray(planes.saturated[inner]),
        flags=np.ascontiguousarray(planes.flags[inner]),
        variance=planes.spread,
        stars=job.stars,
        options=job.options.combine,
    )
    if job.shared is not None:
        total, sky = job.shared.variance(made.data - np.float32(job.pedestal), tile)
        np.add(made.variance, total, out=made.variance)
        np.add(made.background_variance, sky, out=made.background_variance)
    return made


def _with_halo(tile: grid.Tile, n: int, options: StackOptions) -> tuple[grid.Tile, int, int]:
    """A tile and what must be seen around it, and the rows and columns of that."""
    y0, y1, x0, x1 = tile
    edge = halo(n, options.combine)
    # whole blocks of columns: none lies in two panels
    side = -(-edge // grid.ANCHOR) * grid.ANCHOR
    # beyond the output as well: pixels at its border are judged by what stands around them
    return (y0 - edge, y1 + edge, x0 - side, x1 + side), edge, side


def _panels(rows: int, columns: int, n: int) -> tuple[int, int, int, int]:
    """Shape of the samples of a part of the output, as `combine_tile` reads them most quickly."""
    return rows, -(-columns // PANEL), n, PANEL


def _floats(rows: int, columns: int, n: int) -> int:
    """Numbers of four bytes that hold so many samples and their variance factors."""
    size = math.prod(_panels(rows, columns, n))
    return size + size // 4


class _Planes(NamedTuple):
    """What is made of all frames for one part of the output."""

    samples: FloatImage  # (h, panels, n, 64)
    factor: np.ndarray  # (h, panels, n, 64), variance factors
    spread: FloatImage | None  # (h, panels, n, 64), variances
    saturated: np.ndarray  # (h, w), number of samples that hold saturated light
    flags: np.ndarray  # (h, w)

    @classmethod
    def within(cls, room: FloatImage, shape: tuple[int, int], n: int, *, spread: bool) -> _Planes:
        panels = _panels(*shape, n)
        size = math.prod(panels)
        return cls(
            samples=room[0, :size].reshape(panels),
            factor=room[0, size:].view(np.uint8).reshape(panels),
            spread=np.empty(panels, np.float32) if spread else None,
            saturated=np.empty(shape, np.uint16),
            flags=np.empty(shape, np.uint8),
        )

    def rows(self, first: int, end: int) -> _Planes:
        """Some of the rows."""
        some = slice(first, end)
        spread = None if self.spread is None else self.spread[some]
        return _Planes(self.samples[some], self.factor[some], spread, self.saturated[some], self.flags[some])

    def clear(self) -> None:
        """What frames add to, or may leave as it is."""
        self.saturated[...], self.flags[...] = 0, 0
        if self.spread is not None:
            self.spread[...] = np.nan

    def move(self, first: int, end: int) -> None:
        """Put some rows at the beginning."""
        for plane in self:
            if plane is not None:
                plane[: end - first] = plane[first:end]


def _resample_frame(i: int, part: grid.Tile, window: Window | None, planes: _Planes, job: Job) -> None:
    """Fill frame i's part of the planes from its window of the frame."""
    frame, to_frame, kernel = job.frames[i], job.transforms[i], job.options.resample
    samples, factor = planes.samples[:, :, i], planes.factor[:, :, i]
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
        surface=job.surfaces.of(i) if job.surfaces is not None else None,
        options=kernel,
    )
    if planes.spread is None:
        return
    spread = planes.spread[:, :, i]
    if section.variance is None:
        dark = (job.noise.area[i] * job.noise.noise[i]) ** 2 / 255
        np.multiply(factor, np.float32(scale * scale * dark), out=spread)
    else:
        known = np.where(np.isfinite(section.pixels), section.variance, np.float32(np.nan))
        resample_variance(known, *place, out=spread, options=kernel)
        spread *= np.float32(scale * scale)


def room(n: int, shape: tuple[int, int], options: StackOptions, count: int) -> int:
    """Size of a `Buffers` image that holds the samples of a tile.

    Parameters
    ----------
    n : int
        Number of frames.
    shape : tuple of int
        (ny, nx) of the output, nearly.
    options : StackOptions
        Of the run.
    count : int
        Of tiles that this process will make at once.

    Returns
    -------
    int
        Pixels; 0 where it makes none.
    """
    if not count:
        return 0
    height, width = grid.tile_shape(n, shape, _budget(options.memory, count), 0.0, count)
    (y0, y1, x0, x1), _, _ = _with_halo((0, height, 0, width), n, options)
    return _floats(y1 - y0, x1 - x0, n)


def take_memory(buffers: Buffers, size: int, count: int, enough: threading.Event) -> None:
    """Take the memory of pass 2 while only one thread has work: the system clears it page by page.

    Parameters
    ----------
    buffers : Buffers
        That `Job.of` will be given.
    size : int
        Pixels of each image that are needed.
    count : int
        Of images.
    enough : Event
        Ends it before all is cleared.
    """
    with ExitStack() as held:
        rooms = [held.enter_context(buffers.lend((1, size))) for _ in range(count)]
        for first in range(0, size, _CLEARED):
            for each in rooms:
                if enough.is_set():
                    return
                each[0, first : min(first + _CLEARED, size) : _PAGE] = 0


def _budget(memory: int, threads: int) -> int:
    """Bytes of a tile."""
    return min(memory // (2 * threads), 1 << 28)


def _retile(job: Job, tiles: Sequence[grid.Tile], store: Store) -> None:
    """Frames whose rows would be read over and over, as those turned by 90 degrees, are laid out anew."""
    for i, (frame, to_frame, prepared) in enumerate(zip(job.frames, job.transforms, job.prepared, strict=True)):
        if not isinstance(prepared.image, Held):
            continue
        windows = (input_window(to_frame, tile, frame.shape, job.options.resample) for tile in tiles)
        if sum(w[1] - w[0] for w in windows if w is not None) > _REREAD * frame.shape[0]:
            job.prepared[i] = replace(prepared, image=store.tile(frame.plane))


def coadd(job: Job, sink: output.Sink, executor: Executor, reporter: report.Reporter, store: Store) -> None:
    """Pass 2 for the whole output.

    Parameters
    ----------
    job : Job
        The whole task; its frames may be laid out anew.
    sink : Sink
        Receives the planes, tile by tile.
    executor : Executor
        Among whose workers the tiles are shared.
    reporter : Reporter
        Told of progress.
    store : Store
        Where the frames' pixels stayed between the passes.

    Raises
    ------
    FrameError
        If a file changed since it was opened.
    """
    rotation = max(abs((t.rotation + 45) % 90 - 45) for t in job.transforms)
    budget = _budget(job.options.memory - store.used, executor.threads)
    size = grid.tile_shape(len(job.frames), job.shape, budget, rotation, executor.threads)
    strips = list(grid.strips(len(job.frames), job.shape, size, executor.threads))
    _retile(job, [tile for strip in strips for tile in strip], store)
    reporter.start("combine", sum(map(len, strips)), size[0] * size[1] * len(job.frames))
    for strip in _written(strips, job, sink, executor):
        for _ in strip:
            reporter.advance()
    for frame in job.frames:
        frame.check_unchanged()
    reporter.finish()


def _written(
    strips: Sequence[list[grid.Tile]], job: Job, sink: output.Sink, executor: Executor
) -> Iterator[list[grid.Tile]]:
    """The strips, one after the other, as they are in the sink: who makes a tile writes it, but for other processes."""
    if executor.here:
        work = functools.partial(_stack_and_write, job=job, sink=sink)
        for strip, _ in zip(strips, executor.map(work, strips), strict=True):
            yield strip
        return
    for strip, made in zip(strips, executor.map(functools.partial(stack_strip, job=job), strips), strict=True):
        for tile, planes in zip(strip, made, strict=True):
            _write(sink, tile, planes, job)
        yield strip


def _write(sink: output.Sink, tile: grid.Tile, result: Combined, job: Job) -> None:
    """Hand on what a tile holds of the output."""
    y, x = max(0, tile[0] - job.margin[0]), max(0, tile[2] - job.margin[1])
    here = np.s_[y + job.margin[0] - tile[0] :, x + job.margin[1] - tile[2] :]

    def write(name: str, plane: np.ndarray) -> None:
        sink.write(name, y, x, plane[here])

    write("", result.data)
    write("UNCERT", np.sqrt(result.variance))
    write("NCOMB", result.count)
    with np.errstate(divide="ignore"):  # frames without noise
        write("WEIGHT", 1 / result.background_variance)
    write("FLAGS", result.flags)
    if job.maps:
        write("REJLOW", result.rejected_low)
        write("REJHIGH", result.rejected_high)
