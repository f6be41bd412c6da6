"""What a run tells: progress while it works, a summary, tables and a picture at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastack.errors import FrameError, OutputError
from fastack.select import WEIGHTS, Depth, limit_table, predict_depth
from fastack.types import FloatImage, FrameRecord, Transform

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.table import QTable
    from rich.progress import Progress

_TERMS = 10  #: coefficients of a cubic polynomial
_FORMS = {"S": "A", "i": "J", "f": "D"}  #: of the columns of a FITS table


class Reporter:
    """Told what happens; this one is silent."""

    def start(self, stage: str, total: int, pixels: int) -> None:
        """A stage of `total` steps of `pixels` pixels each begins."""

    def advance(self) -> None:
        """One step is done."""

    def finish(self) -> None:
        """The stage is done."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def left_out(self, name: str, reason: str) -> None:
        """A frame is not used."""

    def close(self) -> None:
        """No more is coming."""


class LineReporter(Reporter):
    """Plain lines, for logs and pipes.

    Parameters
    ----------
    verbose : int
        0 for stages only, 1 for every frame that is left out and all notes.
    """

    def __init__(self, verbose: int = 0) -> None:
        self._verbose = verbose
        self._stage, self._total, self._pixels, self._began = "", 0, 0, 0.0

    def start(self, stage: str, total: int, pixels: int) -> None:
        """Remember when the stage began."""
        self._stage, self._total, self._pixels, self._began = stage, total, pixels, time.perf_counter()

    def finish(self) -> None:
        """One line for the stage."""
        seconds = time.perf_counter() - self._began
        rate = ""
        if self._pixels and seconds > 0:
            rate = f", {self._total * self._pixels / seconds / 1e6:.0f} Mpix/s"
        noun = "tiles" if self._stage == "combine" else "frames"
        print(f"{self._stage}: {self._total} {noun} in {seconds:.2f} s{rate}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Print it."""
        if self._verbose:
            print(f"note: {text}", file=sys.stderr)

    def left_out(self, name: str, reason: str) -> None:
        """Print it."""
        if self._verbose:
            print(f"left out: {name}: {reason}", file=sys.stderr)


class BarReporter(LineReporter):
    """A live bar with rate and time left, for terminals."""

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._bar: Progress | None = None
        self._task: Any = None

    def start(self, stage: str, total: int, pixels: int) -> None:
        """Show the bar, the first one when the first step is done: work does not wait for it."""
        super().start(stage, total, pixels)
        self._task = None
        if self._bar is not None:
            self._show()

    def _show(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description:<9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            self._bar.start()
        self._task = self._bar.add_task(self._stage, total=self._total, rate="")
        return self._bar

    def advance(self) -> None:
        """Move the bar."""
        bar = self._show() if self._bar is None or self._task is None else self._bar
        task = bar.tasks[-1]
        seconds = time.perf_counter() - self._began
        rate = ""
        if seconds > 0:
            done = task.completed + 1
            rate = f"{done * self._pixels / seconds / 1e6:.0f} Mpix/s" if self._pixels else f"{done / seconds:.0f}/s"
        bar.update(self._task, advance=1, rate=rate)

    def finish(self) -> None:
        """Leave the bar full."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._total)

    def note(self, text: str) -> None:
        """Print it above the bar."""
        if self._verbose:
            self._say(f"note: {text}")

    def left_out(self, name: str, reason: str) -> None:
        """Print it above the bar."""
        if self._verbose:
            self._say(f"left out: {name}: {reason}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr)

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make_reporter(quiet: bool = False, verbose: int = 0) -> Reporter:
    """The reporter that suits standard error.

    Parameters
    ----------
    quiet : bool
        Nothing at all.
    verbose : int
        Also notes and every frame that is left out.

    Returns
    -------
    Reporter
        A bar on a terminal, lines elsewhere.
    """
    if quiet:
        return Reporter()
    return BarReporter(verbose) if sys.stderr.isatty() else LineReporter(verbose)


def frames_table(records: Sequence[FrameRecord]) -> QTable:
    """One row per input: every figure, its transform, and why it was left out if it was.

    Parameters
    ----------
    records : sequence of FrameRecord
        All inputs.

    Returns
    -------
    astropy.table.QTable
        With units.
    """
    from astropy import units as u
    from astropy.table import QTable

    return QTable({name: u.Quantity(values, unit) if unit else values for name, values, unit in _columns(records)})


def _columns(records: Sequence[FrameRecord]) -> list[tuple[str, Any, str]]:
    """Name, values and unit of every column of the table of frames."""

    def quality(name: str) -> Any:
        return np.array([getattr(r.quality, name) if r.quality else np.nan for r in records], np.float64)

    def number(values: Iterable[Any]) -> Any:
        return np.array([np.nan if value is None else value for value in values], np.float64)

    def count(values: Any) -> Any:
        return np.nan_to_num(values).astype(np.int32)

    frames, maps = [r.frame for r in records], [r.transform for r in records]
    return [
        ("name", [r.name for r in records], ""),
        ("used", np.array([r.used for r in records]), ""),
        ("reason", [r.reason or "" for r in records], ""),
        ("date_obs", [(r.exposure.date_obs or "") if r.exposure else "" for r in records], ""),
        ("exposure", number(f.exposure if f else None for f in frames), "s"),
        # electrons are no unit of the FITS standard: these two go without
        ("gain", number(f.gain if f else None for f in frames), ""),
        ("rdnoise", number(f.rdnoise if f else None for f in frames), ""),
        ("fwhm", quality("fwhm"), "pix"),
        ("fwhm_err", quality("fwhm_err"), "pix"),
        ("ellipticity", quality("ellipticity"), ""),
        ("theta", quality("theta"), "rad"),
        ("beta", quality("beta"), ""),
        ("n_stars", count(quality("n_stars")), ""),
        ("n_sharp", count(quality("n_sharp")), ""),
        ("saturated", count(quality("saturated")), ""),
        ("sky", quality("sky"), "adu"),
        ("noise", quality("noise"), "adu"),
        ("n_artefacts", count([0 if r.artefacts is None else len(r.artefacts) for r in records]), ""),
        ("n_matched", count([r.n_matched for r in records]), ""),
        ("rms", number(t.rms if t else None for t in maps), "pix"),
        ("rotation", number(t.rotation if t else None for t in maps), "deg"),
        ("magnification", number(t.magnification if t else None for t in maps), ""),
        ("scale", number(r.scale for r in records), ""),
        ("scale_err", number(r.scale_err for r in records), ""),
        ("sky_level", number(r.sky for r in records), "adu"),
        ("weight", number(r.weight if r.used else 0.0 for r in records), ""),
        ("model", [t.model if t else "" for t in maps], ""),
        ("origin", np.array([t.origin if t else (np.nan, np.nan) for t in maps]), ""),
        ("unit", number(t.scale if t else None for t in maps), ""),
        ("cx", np.array([_coefficients(r, "cx") for r in records]), ""),
        ("cy", np.array([_coefficients(r, "cy") for r in records]), ""),
        ("notes", ["; ".join(r.notes) for r in records], ""),
    ]


def _coefficients(record: FrameRecord, name: str) -> np.ndarray:
    out = np.zeros(_TERMS)
    if record.transform is not None:
        values = getattr(record.transform, name)
        out[: len(values)] = values
    return out


def frames_hdu(records: Sequence[FrameRecord]) -> fits.BinTableHDU:
    """The table of `frames_table` as the extension FRAMES of a stack.

    Parameters
    ----------
    records : sequence of FrameRecord
        All inputs.

    Returns
    -------
    astropy.io.fits.BinTableHDU
        Text cut to 200 ASCII characters a cell.
    """
    from astropy.io import fits

    columns = [(name, _cells(values), unit) for name, values, unit in _columns(records)]
    rows = np.empty(len(records), [(name, cells.dtype, cells.shape[1:]) for name, cells, _ in columns])
    header = fits.Header()
    header["XTENSION"] = ("BINTABLE", "binary table extension")
    header["BITPIX"], header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 8, 2, rows.itemsize, len(rows)
    header["PCOUNT"], header["GCOUNT"], header["TFIELDS"] = 0, 1, len(columns)
    for k, (name, cells, unit) in enumerate(columns, 1):
        rows[name] = cells
        form = "L" if name == "used" else _FORMS[cells.dtype.kind]
        repeat = cells.itemsize if form == "A" else cells.size // max(1, len(cells))
        header[f"TTYPE{k}"], header[f"TFORM{k}"] = name, f"{repeat}{form}"
        if unit:
            header[f"TUNIT{k}"] = unit
    # from its bytes: made of columns, it would load all of astropy.table
    data = rows.tobytes()
    hdu = fits.BinTableHDU.fromstring(header.tostring().encode() + data + bytes(-len(data) % 2880))
    hdu.name = "FRAMES"
    return hdu


def _cells(values: Any) -> np.ndarray:
    """A column as a FITS table holds it: big-endian, text in ASCII, T and F."""
    if isinstance(values, list):
        return np.array([text.encode("ascii", "replace")[:200] or b" " for text in values])
    return np.where(values, b"T", b"F") if values.dtype == bool else values.astype(values.dtype.newbyteorder(">"))


def read_transforms(path: str | Path) -> dict[str, Transform]:
    """Transforms by frame name, from the FRAMES table of a stack or from a table written with `--table`.

    Parameters
    ----------
    path : str or Path
        A stack, or an ECSV or FITS table with the columns name, model, origin, unit, cx and cy.

    Returns
    -------
    dict of str to Transform
        Reference pixels to frame pixels.

    Raises
    ------
    FrameError
        If there is no such table.
    """
    from astropy.table import Table

    try:
        more = {"hdu": "FRAMES"} if Path(path).suffix.lower() in (".fits", ".fit", ".fts") else {}
        table = Table.read(path, **more)
        out = {}
        for row in table:
            model = str(row["model"]).strip()
            if not model:
                continue
            order = {"quadratic": 2, "cubic": 3}.get(model, 1)
            m = (order + 1) * (order + 2) // 2
            origin = np.asarray(row["origin"], float)
            out[str(row["name"]).strip()] = Transform(
                cx=np.array(row["cx"], float)[:m],
                cy=np.array(row["cy"], float)[:m],
                order=order,
                origin=(float(origin[0]), float(origin[1])),
                scale=float(row["unit"]),
                model=model,
            )
    except (OSError, KeyError, ValueError) as error:
        raise FrameError(
            f"{path}: no table of transforms ({error}); --register takes stars, wcs, none, or a stack or table with "
            "the columns name, model, origin, unit, cx, cy"
        ) from error
    return out


def write_table(records: Sequence[FrameRecord], path: str | Path, *, overwrite: bool = True) -> None:
    """Write `frames_table` as ECSV, FITS or whatever the suffix says.

    Parameters
    ----------
    records : sequence of FrameRecord
        All inputs.
    path : str or Path
        Target.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from astropy.io import fits

    target = Path(path)
    try:
        if target.suffix.lower() in (".fits", ".fit", ".fts"):
            fits.HDUList([fits.PrimaryHDU(), frames_hdu(records)]).writeto(target, overwrite=overwrite)
        elif target.suffix.lower() == ".csv":
            table = frames_table(records)
            table.remove_columns(["origin", "cx", "cy"])
            table.write(target, format="ascii.csv", overwrite=overwrite)
        else:
            frames_table(records).write(target, format="ascii.ecsv", overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from error


def reasons(records: Sequence[FrameRecord]) -> list[str]:
    """Why frames were left out, as one line per kind of reason.

    Parameters
    ----------
    records : sequence of FrameRecord
        All inputs.

    Returns
    -------
    list of str
        ``3 x FWHM, limit 5: d0003.fits (6.1 px), ...`` style lines, at most six names each.
    """
    out = [r for r in records if not r.used]
    kinds: dict[str, list[FrameRecord]] = {}
    for r in out:
        kinds.setdefault((r.reason or "").split(" ")[0].rstrip(":,"), []).append(r)
    lines = []
    for group in kinds.values():
        if len(group) == 1:
            lines.append(f"{group[0].name}: {group[0].reason}")
            continue
        common = Counter(r.reason for r in group).most_common(1)[0][0] or ""
        names = ", ".join(r.name for r in group[:6]) + (", ..." if len(group) > 6 else "")
        lines.append(f"{len(group)} frames like '{common}': {names}")
    return lines


def summary(result: Any) -> str:
    """A few lines about a stack for the end of a run.

    Parameters
    ----------
    result : pipeline.StackResult
        The stack.

    Returns
    -------
    str
        Frames used and why the others were not, FWHM in and out, registration residual, output, time.
    """
    records, used = result.records, result.used
    lines = [f"{len(used)} of {len(records)} frames used; reference {result.reference}"]
    lines += [f"  left out  {line}" for line in reasons(records)]
    widths = np.array([r.quality.fwhm for r in used if r.quality])
    if len(widths):
        out = f", stack {result.quality.fwhm:.2f}" if result.quality is not None else ""
        lines.append(f"FWHM        {widths.min():.2f} to {widths.max():.2f} px, mean {widths.mean():.2f}{out}")
    rms = np.array([r.transform.rms for r in used if r.transform is not None])
    rms = rms[np.isfinite(rms)]
    if len(rms):
        worst = max((r for r in used if r.transform and np.isfinite(r.transform.rms)), key=lambda r: r.transform.rms)
        lines.append(f"residual    {np.median(rms):.3f} px median, {rms.max():.3f} px worst ({worst.name})")
    if result.path is not None or result.sink is not None:
        gain = result.header.get("GAIN")
        if gain is not None:
            noise = result.header.get("RDNOISE")
            extra = f", read noise {noise:.2f} e-" if noise is not None else ""
            origin = ", estimated from the frames" if "GAINERR" in result.header else ""
            lines.append(f"gain        {gain:.3f} e-/adu effective{extra}{origin}")
        for start in ("gain unknown", "stars scatter"):
            word = start.split()[0]
            lines += [note.replace(word, f"{word:<11}", 1) for note in result.notes if note.startswith(start)]
    lines += _depth_line(result)
    if result.path is not None or result.sink is not None:
        where = result.path if result.path is not None else "memory"
        lines.append(f"output      {where}, {result.shape[1]} x {result.shape[0]} pixels")
    lines.append(f"time        {result.seconds:.2f} s")
    return "\n".join(lines)


def depths(records: Sequence[FrameRecord], weights: str = "equal", table: str | None = None) -> list[Depth]:
    """Predicted depth of each choice of weights.

    Parameters
    ----------
    records : sequence of FrameRecord
        With scale and quality.
    weights, table : str
        Those of the run, which come first.

    Returns
    -------
    list of Depth
        Without the choices that the frames' headers or stars do not allow.
    """
    out = []
    for how in (weights, *(name for name in WEIGHTS if name != weights)):
        try:
            out.append(predict_depth(records, how, table if how == weights else None))
        except ValueError:
            continue
    return out


def _depth_line(result: Any) -> list[str]:
    """Predicted depth of the run's weights and of the others, for the summary."""
    rows = depths(result.records, result.options.weights, result.options.weight_table)
    if not rows or rows[0].weights != result.options.weights:
        return []
    others = ", ".join(f"{row.weights} {row.limit:.4g}" for row in rows[1:])
    line = f"depth       5 sigma point source {rows[0].limit:.4g} adu with weights {rows[0].weights}"
    return [f"{line}; {others}" if others else line]


def depth_table(records: Sequence[FrameRecord], weights: str = "equal", table: str | None = None) -> str:
    """Predicted depth of each choice of weights, for the screen.

    Parameters
    ----------
    records : sequence of FrameRecord
        With scale and quality.
    weights, table : str
        Those of the run, which come first.

    Returns
    -------
    str
        One line per choice; empty where nothing can be predicted.
    """
    rows = depths(records, weights, table)
    if not rows:
        return ""
    lines = ["weights     sky noise/adu  5 sigma point source/adu  depth gain/mag (against the first)"]
    lines += [
        f"{row.weights:<10}  {row.noise:13.4g}  {row.limit:24.4g}  {2.5 * np.log10(rows[0].limit / row.limit):+.3f}"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def quality_lines(records: Sequence[FrameRecord]) -> str:
    """Table of the frames' quality for the screen.

    Parameters
    ----------
    records : sequence of FrameRecord
        All inputs.

    Returns
    -------
    str
        One line per frame, under a heading.
    """
    width = max([len(r.name) for r in records] + [5])
    head = f"{'frame':<{width}}  FWHM/px  ellip  stars  sky/adu  noise/adu  satur  remark"
    lines = [head]
    for r in records:
        q = r.quality
        if q is None:
            lines.append(f"{r.name:<{width}}  {'-':>7}  {'-':>5}  {'-':>5}  {'-':>7}  {'-':>9}  {'-':>5}  {r.reason}")
            continue
        lines.append(
            f"{r.name:<{width}}  {q.fwhm:7.3f}  {q.ellipticity:5.3f}  {q.n_stars:5d}  {q.sky:7.1f}  {q.noise:9.2f}  "
            f"{q.saturated:5d}  {r.reason or ''}".rstrip()
        )
    return "\n".join(lines)


def limits(records: Sequence[FrameRecord]) -> str:
    """How depth and seeing change with the FWHM limit, for the screen.

    Parameters
    ----------
    records : sequence of FrameRecord
        Measured frames.

    Returns
    -------
    str
        One line per limit.
    """
    rows = limit_table(records)
    if not rows:
        return "no frame has a measured FWHM"
    lines = ["", "FWHM limit/px  frames  mean FWHM/px  depth gain/mag (point sources, against all frames)"]
    lines += [f"{r.fwhm_limit:13.2f}  {r.frames:6d}  {r.fwhm:12.2f}  {r.depth:+.3f}" for r in rows]
    return "\n".join([*lines, ""])


def write_preview(image: FloatImage, path: str | Path, *, size: int = 1600) -> None:
    """PNG of an image, north as the array has it (first row at the bottom).

    Parameters
    ----------
    image : (ny, nx) ndarray
        Missing pixels (NaN) are shown dark blue.
    path : str or Path
        Target.
    size : int, pixel
        Longest side; larger images are averaged down.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from matplotlib import image as png

    try:
        png.imsave(Path(path), _stretched(image, size)[::-1])
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _stretched(image: FloatImage, size: int, limits: tuple[float, float, float] | None = None) -> np.ndarray:
    """Picture of an image by an asinh stretch (Lupton et al. 2004), averaged down to `size`."""
    step = max(1, -(-max(image.shape) // size))
    ny, nx = (s // step * step for s in image.shape)
    small = np.asarray(image[:ny, :nx], np.float64).reshape(ny // step, step, nx // step, step).mean(axis=(1, 3))
    known = np.isfinite(small)
    low, soft, high = limits or stretch_limits(small)
    with np.errstate(invalid="ignore"):
        scaled = np.arcsinh((small - low) / soft) / np.arcsinh((high - low) / soft)
    rgb = np.repeat(np.nan_to_num(np.clip(scaled, 0, 1))[..., None], 3, axis=2)
    rgb[~known] = (0.05, 0.08, 0.25)
    return rgb


def stretch_limits(image: np.ndarray) -> tuple[float, float, float]:
    """Black level, softening and white level that show sky noise and bright stars at once.

    Parameters
    ----------
    image : ndarray
        Any image; NaN does not count.

    Returns
    -------
    low, soft, high : float
        In units of the image.
    """
    values = image[np.isfinite(image)]
    if not values.size:
        return 0.0, 1.0, 1.0
    median = float(np.median(values))
    sigma = float(1.4826 * np.median(np.abs(values - median))) or 1.0
    return median - 2.5 * sigma, 4 * sigma, max(float(np.percentile(values, 99.7)), median + 10 * sigma)


def write_comparison(result: Any, path: str | Path, *, size: int = 420) -> None:
    """PNG of one frame beside the stack, the same part of the sky with the same stretch.

    Parameters
    ----------
    result : pipeline.StackResult
        Of a run that wrote a file.
    path : str or Path
        Target.
    size : int, pixel
        Side of the part that is shown.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from astropy.io import fits
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    record = next(r for r in result.records if r.name == result.reference)
    frame = fits.getdata(record.path).astype(np.float32)
    stack = result.data
    dx, dy = (int(v) for v in result.grid.origin)
    half = min(size, *frame.shape) // 2
    cy, cx = frame.shape[0] // 2, frame.shape[1] // 2
    one = frame[cy - half : cy + half, cx - half : cx + half]
    many = stack[cy - dy - half : cy - dy + half, cx - dx - half : cx - dx + half]
    one = one - np.median(one) + np.nanmedian(many)
    limits = stretch_limits(one)
    figure = Figure(figsize=(10, 5.3), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, image, title in zip(
        figure.subplots(1, 2), (one, many), ("one frame", f"stack of {len(result.used)}"), strict=True
    ):
        axis.imshow(_stretched(image, size, limits), origin="lower", interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    try:
        figure.savefig(Path(path), dpi=80)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
