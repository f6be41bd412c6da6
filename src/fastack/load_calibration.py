"""The calibration of a run: masters, read from files or made from raw frames, and what its frames themselves show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fastack.calibrate import Calibration, Kind, Master, same_filter, size_text, with_bias, with_dark, with_flat
from fastack.characterise import Start, find_edges, find_saturation
from fastack.errors import CalibrationError
from fastack.executor import Executor
from fastack.files import find_frames
from fastack.frames import Frame, open_frame
from fastack.make_master import make_master, unknown_filter
from fastack.options import CalibrateOptions


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
    start: Start = partial if executor is None else executor.start
    result = Calibration(saturation=find_saturation(frames, start), binning=like.binning)
    notes: list[str] = []
    if result.saturation is not None:
        notes.append(f"saturation level {result.saturation:g} from the pile-up of pixels at the highest value")
    if options.bias:
        bias = _load("bias", options.bias, like, result, options)
        result = with_bias(result, bias, like, notes)
    if options.dark:
        dark = _load("dark", options.dark, like, result, options)
        result = with_dark(result, dark, like, notes)
    flat = options.flat
    if flat is None and not options.no_flat and (beside := _flat_beside(like)) is not None:
        flat = str(beside)
        notes.append(f"{beside.name} lies beside the frames and is used")
    if flat is not None and not options.no_flat:
        result = with_flat(result, _load("flat", flat, like, result, options), notes, options)
    if not options.keep_edges:
        result = replace(result, edges=find_edges([f for f in frames if f.shape == like.shape], result, start))
        for count, side in zip(result.edges, ("below", "above", "on the left", "on the right"), strict=True):
            if count:
                notes.append(f"{count} rows or columns {side} do not show the sky and are left out (--keep-edges)")
    result = replace(result, notes=tuple(notes))
    result.check(like)
    result.dark_scale_of(like)
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
            f"{frame.path}: the master {kind} is {size_text(frame.shape)} pixels, the frames "
            f"{size_text(like.shape)}; give a {kind} of the same size{' or --no-flat' if kind == 'flat' else ''}"
        )
    if kind == "flat" and not same_filter(frame.filter, like.filter):
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
        notes=unknown_filter(kind, frame.filter),
    )
