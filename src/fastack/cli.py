"""The command line: parses, calls the Python functions of the same names, prints what they report.

Exit codes: 0 done, 1 nothing could be made (the message says why), 2 wrong usage, 3 a stack was made but not
everything that was asked for, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from fastack import __version__
from fastack.errors import FastackError, FrameError

F = TypeVar("F", bound=Callable[..., Any])

_OBJECTS = 20_000  # new ones between two looks for garbage, of which a run makes hardly any
_KERNELS = ("nearest", "bilinear", "bicubic", "lanczos2", "lanczos3", "lanczos4", "area")
_REJECT = ("noise", "none", "sigma", "sigma-median", "mad", "minmax", "percentile", "winsorized", "linear-fit", "esd")
_MODELS = ("auto", "shift", "similarity", "affine", "quadratic", "cubic")


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().upper().removesuffix("B").removesuffix("I")
        unit = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(text[-1:], 1)
        try:
            number = float(text.rstrip("KMGT")) * unit
        except ValueError:
            self.fail(f"{value!r} is no size; write 500M or 2G", param, ctx)
        if number < 1e6:
            self.fail(f"{value!r} is less than a megabyte", param, ctx)
        return int(number)


class _Range(click.ParamType[tuple[float, float]]):
    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no range; write 0.8,1.25", param, ctx)
        return low, high


# flat name of the option (options.flat_names): how it is parsed, what it does
_SETTINGS: dict[str, tuple[str, Any, str]] = {
    # selection
    "fwhm_limit": (
        "Selection",
        str,
        'keep frames with FWHM below it: 5.0 (pixels), 4" (arcsec), 50% (best half), 2.5k',
    ),
    "ellipticity_limit": ("Selection", str, "keep frames with ellipticity below it: 0.3, 50% or 2.5k"),
    "min_stars": ("Selection", int, "keep frames with at least so many stars"),
    "sky_limit": ("Selection", str, "keep frames with a sky below it: 2000 (ADU), 50% or 2.5k"),
    "min_transparency": ("Selection", float, "keep frames with at least this part of the best one's star light"),
    "filter": ("Selection", str, "stack this filter [the majority's]"),
    "object": ("Selection", str, "stack this target [the majority's]"),
    "pixel_scale": ("Selection", float, "arcsec per pixel [from WCS or header]"),
    # calibration
    "bias": ("Calibration", str, "master bias, or raw bias frames (glob, directory, @list)"),
    "dark": ("Calibration", str, "master dark, or raw dark frames"),
    "flat": ("Calibration", str, "master flat, or raw flats [master_flat.fits beside the frames]"),
    "flat_floor": ("Calibration", float, "part of the flat's median at and below which a pixel is bad"),
    "master_clip": ("Calibration", float, "clipping when raw calibration frames are combined, sigma"),
    "max_temperature": ("Calibration", float, "difference of temperature between calibration frames at most, degree"),
    "no_flat": ("Calibration", bool, "do not pick up master_flat.fits"),
    "keep_edges": ("Calibration", bool, "keep lines at the detector's edge whose level is not the sky's"),
    "gain": ("Calibration", float, "e-/ADU, over the headers"),
    "rdnoise": ("Calibration", float, "read noise in electrons, over the headers"),
    "saturation": ("Calibration", float, "level in raw ADU from which a pixel is saturated, over the headers"),
    # registration
    "reference": ("Registration", str, "file name of the reference frame, or first or last [the best near the middle]"),
    "register": ("Registration", str, "stars, wcs, none, or a stack or table that holds the transforms [stars]"),
    "model": ("Registration", click.Choice(_MODELS), "transform; auto: the simplest that the residuals justify"),
    "framing": ("Registration", click.Choice(("union", "reference", "intersection")), "what the output covers [union]"),
    "grid": ("Registration", str, "FITS file or header text whose WCS and size the output takes"),
    "max_size": ("Registration", int, "pixels of the output at most [4 times the reference]"),
    "kernel": ("Registration", click.Choice(_KERNELS), "resampling kernel [lanczos3]"),
    "max_lost": ("Registration", float, "part of the kernel over missing pixels from which a pixel is missing [0.5]"),
    # combination
    "combine": ("Combination", click.Choice(("mean", "median")), "[mean]"),
    "reject": ("Combination", click.Choice(_REJECT), "outlier rejection [noise]"),
    "kappa_low": ("Combination", float, "rejection limit below, sigma"),
    "kappa_high": ("Combination", float, "rejection limit above, sigma"),
    "kappa_pair": ("Combination", float, "noise: limit of the difference of two samples, sigma"),
    "kappa_grow": ("Combination", float, "noise: limit beside a rejected pixel of the same frame, sigma"),
    "kappa_group": ("Combination", float, "noise: sigmas of the mean of 3x3 pixels of one of few frames"),
    "trail_frames": ("Combination", int, "leave satellite trails out of stacks of at most so many frames; 0: never"),
    "grow": ("Combination", int, "noise: pixels around a faint trail or other group that go with it"),
    "star_error": ("Combination", float, "noise: part of what seeing changes in a star that may be wrong"),
    "jitter": (
        "Combination",
        float,
        "noise: part of the local range by which samples may differ [from the stars]",
    ),
    "max_outliers": ("Combination", float, "esd: part of the samples that may be outliers"),
    "significance": ("Combination", float, "esd: significance of the test"),
    "combine_rounds": ("Combination", int, "rounds of rejection at most"),
    "n_low": ("Combination", int, "minmax: samples dropped below"),
    "n_high": ("Combination", int, "minmax: samples dropped above"),
    "percentile_low": ("Combination", float, "percentile: relative distance below the median"),
    "percentile_high": ("Combination", float, "percentile: relative distance above the median"),
    "max_saturated": ("Combination", float, "part of the samples saturated above which a pixel is missing [0.1]"),
    "weights": ("Combination", str, "equal, variance, exposure, depth, or a column of --weight-table [equal]"),
    "weight_table": ("Combination", str, "table with a weight for each frame"),
    "normalise": ("Combination", bool, "match flux scale and sky to the reference"),
    "match_sky": (
        "Combination",
        click.Choice(("mesh", "plane", "level")),
        "how finely the frames' skies are made alike before rejection [mesh]",
    ),
    "subtract_sky": ("Combination", bool, "leave the sky out of the result"),
    # running
    "threads": ("Running", int, "threads [all processors]"),
    "memory": ("Running", _Size(), "working memory, such as 500M [2G]"),
    "scratch": ("Running", str, "directory for temporary data of compressed frames [the system's]"),
    "scheduler": ("Running", str, "address of a Dask scheduler, tcp://host:port"),
    # tuning
    "cell": ("Tuning", int, "side of a background mesh cell, pixel"),
    "background_clip": ("Tuning", float, "clipping in a background cell, sigma"),
    "background_rounds": ("Tuning", int, "rounds of that clipping at most"),
    "row_step": ("Tuning", int, "every so many rows one is looked at for the background [2]"),
    "threshold": ("Tuning", float, "detection threshold, signal-to-noise ratio"),
    "fwhm": ("Tuning", float, "FWHM of the matched filter, pixel [from the image]"),
    "max_stars": ("Tuning", int, "brightest stars of a frame that are measured and matched [500]"),
    "detect_max_stars": ("Tuning", int, "keep the brightest detections only"),
    "max_fits": ("Tuning", int, "stars behind a frame's FWHM at most"),
    "min_snr": ("Tuning", float, "signal-to-noise ratio of a star behind the FWHM at least"),
    "match_max_stars": ("Tuning", int, "brightest stars that form triangles first"),
    "tolerance": ("Tuning", float, "largest distance of a matched pair, pixel"),
    "scale_range": ("Tuning", _Range(), "magnification between frames, such as 0.8,1.25"),
    "min_log_odds": ("Tuning", float, "log odds from which a match is believed"),
    "seed": ("Tuning", int, "of random choices"),
    "transform_clip": ("Tuning", float, "clipping of the transform's residuals, sigma"),
}

# flat name of the option (options.sky_names): how it is parsed, what it does
_SKY_SETTINGS: dict[str, tuple[Any, str]] = {
    "catalogue_path": (str, "the observatory's own store of catalogues [FASTACK_CATALOGUES]"),
    "cache_path": (str, "where downloads are kept [FASTACK_CACHE, else the user's cache directory]"),
    "cache_size": (_Size(), "of the downloads at most, such as 500M [1G]"),
    "timeout": (float, "patience for one step of a request, second [60]"),
    "job_timeout": (float, "patience for a whole answer or a job at the Gaia archive, second [300]"),
    "retries": (int, "attempts after a failed one [2]"),
    "backoff": (float, "pause before the first retry, second; doubled before each further one [2]"),
    "row_limit": (int, "stars of one answer at most [300000]"),
    "vizier_server": (str, "VizieR or a mirror of it, https://..."),
    "gaia_server": (str, "TAP service of the Gaia archive, https://.../tap"),
    "sesame_server": (str, "service that knows the places of names"),
    "astrometry_min_log_odds": (float, "ln(odds) from which a place on the sky is believed [20.7]"),
    "max_radius": (float, "how far from the guess the search goes, degree [5]"),
    "widen_scale": (float, "factor by which the scale may be wrong at last; 1: never [3]"),
    "max_order": (int, "of the distortion polynomial [5]"),
    "min_bic": (float, "gain in the information criterion that justifies a larger model [10]"),
    "max_map_error": (
        float,
        "a solution with a larger expected error in a corner is refused, pixel [1]",
    ),
    "astrometry_clip": (float, "pairs further apart are left out, sigma [4]"),
    "centroid": (float, "error of a position that the search allows for, pixel [1]"),
    "position_error": (float, "error of a star whose own is unknown, pixel [0.3]"),
    "catalogue_error": (float, "error of a catalogue star whose own is unknown, mas [100]"),
    "distractors": (float, "part of the detections that the catalogue may not know [0.6]"),
    "verify": (int, "brightest detections that decide the odds of a place [100]"),
    "max_triangles": (int, "catalogue triangles in one round of the search at most [300000]"),
}


class _Grouped(click.Command):
    """Shows the options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = _SETTINGS[param.name][0] if param.name in _SETTINGS else "General"
                heading = "Sky coordinates" if param.name in _SKY_SETTINGS else heading
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _with_settings(function: F) -> F:
    for name, (_, kind, text) in reversed(_SETTINGS.items()):
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            declaration = f"{flag}/--no-{flag[2:]}" if name == "normalise" else flag
            function = click.option(declaration, name, is_flag=True, default=None, help=text)(function)
        else:
            function = click.option(flag, name, type=kind, default=None, help=text)(function)
    return function


def _with_sky_settings(function: F, names: Sequence[str] = tuple(_SKY_SETTINGS)) -> F:
    for name in reversed(names):
        kind, text = _SKY_SETTINGS[name]
        function = click.option("--" + name.replace("_", "-"), name, type=kind, default=None, help=text)(function)
    return function


def _sky_chosen(rest: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of the sky coordinates out of `rest`, as arguments of `platesolve.solve_file`."""
    from fastack.options import sky_options

    known, how = sky_options(**_chosen({name: rest.pop(name) for name in _SKY_SETTINGS}))
    return {"options": how, "catalogue_options": known}


def _with_output(function: F) -> F:
    for option in (
        click.option("-v", "--verbose", count=True, help="tell every frame that is left out, and all assumptions"),
        click.option("-q", "--quiet", is_flag=True, help="print nothing but errors"),
        click.option("--table", type=click.Path(dir_okay=False), help="write a table of all frames (ECSV, FITS, CSV)"),
        click.option("--preview", type=click.Path(dir_okay=False), help="write a picture of the stack (PNG)"),
        click.option("--maps", is_flag=True, help="also write REJLOW and REJHIGH, the rejected samples in each pixel"),
        click.option("--dry-run", is_flag=True, help="show what would be used, and what other limits would give"),
    ):
        function = option(function)
    return function


def _chosen(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastack")
def cli() -> None:
    """Stack astronomical frames: fast, and right to the photon."""


@cli.command(cls=_Grouped)
@click.argument("frames", nargs=-1)
@click.option("-o", "--output", default="mosaic.fits", show_default=True, help="the stack")
@click.option("--overwrite", is_flag=True, help="replace an existing file")
@_with_output
@_with_settings
def stack(frames: tuple[str, ...], output: str, overwrite: bool, **rest: Any) -> None:
    """Stack FRAMES: files, globs, directories or @list.txt; d*.fits in the current directory by default.

    Exit codes: 0 done, 1 no stack could be made, 2 wrong usage, 130 interrupted, 143 terminated.
    """
    _run_stack(list(frames) or None, output, overwrite, rest)


def _run_stack(sources: Sequence[str | Path] | None, output: str, overwrite: bool, rest: dict[str, Any]) -> Any:
    from fastack import report
    from fastack.pipeline import stack as run

    general = {name: rest.pop(name) for name in ("dry_run", "maps", "preview", "table", "quiet", "verbose")}
    reporter = report.make_reporter(general["quiet"], general["verbose"])
    try:
        result = run(
            sources,
            output_path=output,
            overwrite=overwrite,
            dry_run=general["dry_run"],
            maps=general["maps"],
            reporter=reporter,
            command=_command(),
            **_chosen(rest),
        )
    finally:
        reporter.close()
    if general["table"]:
        report.write_table(result.records, general["table"])
    if general["dry_run"]:
        print(report.quality_lines(result.records))
        print(report.limits(result.records))
        print(report.depth_table(result.records, result.options.weights, result.options.weight_table))
    elif general["preview"]:
        report.write_preview(result.data, general["preview"])
    if not general["quiet"]:
        print(report.summary(result))
    return result


def _command() -> str:
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@cli.command(cls=_Grouped)
@click.argument("frames", nargs=-1)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="write the table (ECSV, FITS, CSV)")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
@click.option("-v", "--verbose", count=True, help="tell all assumptions")
@_with_settings
def measure(frames: tuple[str, ...], output: str | None, quiet: bool, verbose: int, **settings: Any) -> None:
    """Measure FWHM, ellipticity, stars, sky, noise and saturation of FRAMES."""
    from fastack import report
    from fastack.options import StackOptions
    from fastack.pipeline import measure_frames

    reporter = report.make_reporter(quiet, verbose)
    try:
        records, _ = measure_frames(list(frames) or None, StackOptions.of(**_chosen(settings)), reporter)
    finally:
        reporter.close()
    if output:
        report.write_table(records, output)
    if not quiet:
        print(report.quality_lines(records))


class _Centre(click.ParamType[tuple[float, float]]):
    name = "ra,dec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        from astropy import units as u
        from astropy.coordinates import SkyCoord

        text = str(value).replace(",", " ")
        try:
            sexagesimal = ":" in text or "h" in text
            place = SkyCoord(text, unit=(u.hourangle, u.deg) if sexagesimal else (u.deg, u.deg))
        except ValueError as error:
            self.fail(f"{value!r}: {error}; write degrees 299.59,35.2 or 19:58:21.6,+35:12:00", param, ctx)
        return float(place.ra.deg), float(place.dec.deg)


class _Columns(click.ParamType[dict[str, str]]):
    name = "field=column,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        pairs = [word.partition("=") for word in str(value).split(",")]
        if not all(field.strip() and sign and column.strip() for field, sign, column in pairs):
            self.fail(f"{value!r}: write ra=ALPHA,dec=DELTA,mag=R", param, ctx)
        return {field.strip(): column.strip() for field, _, column in pairs}


@cli.command(cls=_Grouped)
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@click.option("--catalogue", "source", required=True, help="ucac4, gaia, or a local catalogue (file or directory)")
@click.option("--columns", type=_Columns(), help="of a file: ra=A[hourangle],dec=D,mag=R,epoch=2010.5 [by name]")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="the image with its WCS")
@click.option("--overwrite", is_flag=True, help="replace an existing file")
@click.option("--centre", type=_Centre(), help="RA,Dec in degrees or 19:58:21.6,+35:12:00 [from the header]")
@click.option("--pixel-scale", type=float, help="arcsec per pixel [from the header, else 0.1 to 60]")
@click.option("--wcs", "distortion", type=click.Choice(("sip", "tpv")), default="sip", show_default=True)
@click.option("--plots", type=click.Path(dir_okay=False), help="picture of the residuals (PNG); a table goes beside it")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
@_with_sky_settings
def solve(image: str, source: str, output: str, quiet: bool, **rest: Any) -> None:
    """Find the place of IMAGE on the sky, and write it with a WCS and a photometric zero point."""
    from fastack.platesolve import solve_file

    sky = _sky_chosen(rest)
    solved = solve_file(image, source, output, **rest, **sky)
    if not quiet:
        print(solved.summary())


@cli.group()
def catalogue() -> None:
    """Keep pieces of star catalogues on this machine, for work without a network."""


def _with_network_settings(function: F) -> F:
    return _with_sky_settings(function, _NETWORK)


_NETWORK = ("timeout", "job_timeout", "retries", "backoff", "row_limit", "vizier_server", "gaia_server")
_STORE = click.option("--store", type=click.Path(file_okay=False), help="[FASTACK_CATALOGUES, else the cache]")


@catalogue.command("fetch")
@click.option("--around", type=_Centre(), required=True, help="RA,Dec")
@click.option("--radius", type=float, required=True, help="degrees")
@click.option("--catalogue", "names", type=click.Choice(("ucac4", "gaia")), multiple=True, help="[both]")
@click.option("--max-mag", type=float, help="faintest magnitude")
@_STORE
@_with_network_settings
def catalogue_fetch(
    around: tuple[float, float],
    radius: float,
    names: tuple[str, ...],
    max_mag: float | None,
    store: str | None,
    **rest: Any,
) -> None:
    """Fetch a piece of the sky into the local store."""
    from fastack.catalogue import fetch_into
    from fastack.options import CatalogueOptions
    from fastack.store import describe

    place, options = _store(store), CatalogueOptions(**_chosen(rest))
    wanted, failures = names or ("ucac4", "gaia"), []
    for name in wanted:
        try:
            fetch_into(place, name, *around, radius, max_mag, options=options)
        except FastackError as error:  # the other one may still be had
            failures.append(str(error))
    print(describe(place))
    if failures:
        print("\n".join(failures), file=sys.stderr)
        raise click.exceptions.Exit(1 if len(failures) == len(wanted) else 3)


@catalogue.command("list")
@_STORE
def catalogue_list(store: str | None) -> None:
    """Show what the local store covers."""
    from fastack.store import describe

    print(describe(_store(store)))


def _store(path: str | None) -> Any:
    from fastack.catalogue import cache, own_store
    from fastack.store import Store

    return Store(path) if path is not None else own_store() or cache()


@cli.command()
@click.argument("stack_file", metavar="STACK", type=click.Path(dir_okay=False))
@click.option("--radius", type=click.FloatRange(min=1), help="aperture radius, pixel [1.5 FWHM]")
@click.option("--rms-map", type=click.Path(dir_okay=False), help="write the background noise for SExtractor's MAP_RMS")
@click.option("--overwrite", is_flag=True, help="replace an existing map")
@click.option("--gain-from", multiple=True, metavar="FRAMES", help="estimate the camera's gain from raw light frames")
def errors(
    stack_file: str, radius: float | None, rms_map: str | None, overwrite: bool, gain_from: tuple[str, ...]
) -> None:
    """Tell what to type into GAIA, SExtractor and photutils for right errors on STACK."""
    from fastack import error_guide, gain, output

    guide = error_guide.read_guide(stack_file)
    if rms_map:
        output.write_hdus(Path(rms_map), error_guide.rms_map(stack_file, radius), overwrite=overwrite)
    print(guide.text(radius))
    if rms_map:
        print(f"wrote {rms_map}")
    if gain_from:
        print(gain.gain_text(list(gain_from)))


@cli.command()
@click.argument("kind", type=click.Choice(("bias", "dark", "flat")))
@click.argument("frames", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="the master")
@click.option("--overwrite", is_flag=True, help="replace an existing file")
@click.option("--bias", help="master or raw bias frames, subtracted from darks and flats")
@click.option("--dark", help="master or raw dark frames, subtracted from flats")
@click.option("--master-clip", type=float, help="sigmas from the median at which a sample is left out [5]")
@click.option("--max-temperature", type=float, help="largest difference in temperature, kelvin [2]")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
def master(kind: str, frames: tuple[str, ...], output: str, overwrite: bool, quiet: bool, **settings: Any) -> None:
    """Combine raw bias, dark or flat FRAMES into a master, with its errors and bad pixels.

    FRAMES are files, globs, directories or @list.txt. Those that do not belong are left out by name.
    """
    from fastack import masters
    from fastack.options import CalibrateOptions

    made = masters.make(kind, list(frames), output, overwrite=overwrite, options=CalibrateOptions(**_chosen(settings)))
    if not quiet:
        print(masters.summary(made, output))


@cli.command()
@click.option("-d", "--directory", default="fastack-demo", show_default=True, help="where everything goes")
@click.option("--frames", default=24, show_default=True, help="frames of the night")
@click.option("--size", default=1024, show_default=True, help="side of a frame, pixel")
@click.option("--seed", default=1, show_default=True, help="of the night")
@click.option("--threads", type=int, help="threads [all processors]")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
def demo(directory: str, frames: int, size: int, seed: int, threads: int | None, quiet: bool) -> None:
    """Simulate a night, stack it, and find its place on the sky: the main job on any machine, without data.

    Leaves frames/, mosaic.fits, mosaic.png, comparison.png, frames.ecsv, amosaic.fits (with WCS), catalogue.ecsv
    (the simulated stars) and residuals.png in the directory.
    """
    import numpy as np

    from fastack import report
    from fastack.executor import available_threads
    from fastack.platesolve import solve_file
    from fastack.simulate import NightOptions, simulate_night

    target = Path(directory)
    night = simulate_night(
        NightOptions(
            n_frames=frames, shape=(size, size), seed=seed, n_stars=size * size // 1500, fwhm=2.8, fwhm_spread=0.15,
            drift=(40.0, -25.0), rotation=1.2, transparency_spread=0.08, sky_spread=0.1, sky_gradient=0.05,
            cosmic_rays=size / 20, hot_pixels=size // 8, trails=0.15, wcs="approximate",
        ),
        threads=threads or available_threads(),
    )  # fmt: skip
    if not quiet:
        print(f"simulating {frames} frames of {size} x {size} pixels in {target / 'frames'}", file=sys.stderr)
    paths = night.write(target / "frames")
    rest = dict.fromkeys(("dry_run", "maps", "preview", "table"))
    rest |= {"quiet": quiet, "verbose": 0, "threads": threads, "table": str(target / "frames.ecsv")}
    result = _run_stack(list(paths), str(target / "mosaic.fits"), True, rest | {"preview": str(target / "mosaic.png")})
    report.write_comparison(result, target / "comparison.png")
    stars = night.truth.table()
    stars["mag"] = 25 - 2.5 * np.log10(stars["flux"].value)
    stars[np.argsort(stars["mag"])[:2000]]["ra", "dec", "mag"].write(target / "catalogue.ecsv", overwrite=True)
    solved = solve_file(
        target / "mosaic.fits", str(target / "catalogue.ecsv"), target / "amosaic.fits", overwrite=True,
        plots=target / "residuals.png",
    )  # fmt: skip
    if not quiet:
        print(solved.summary())
        print(f"open         {target / 'comparison.png'} and {target / 'mosaic.png'}")


@click.command(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("psf_limit")
@click.option("-o", "--output", default="mosaic.fits", show_default=True, help="the stack")
@_with_output
@_with_settings
@click.version_option(__version__, prog_name="stackX2")
def stackx2_command(psf_limit: str, output: str, **rest: Any) -> None:
    """Average all d*.fits of the current directory whose FWHM is below PSF_LIMIT into mosaic.fits.

    PSF_LIMIT is in pixels; 4" means arcseconds. master_flat.fits is used where it is there.
    """
    if rest.get("fwhm_limit") is not None:
        raise click.UsageError("PSF_LIMIT is the FWHM limit; leave --fwhm-limit out")
    rest["fwhm_limit"] = psf_limit
    from fastack.files import find_frames

    _run_stack(_without_skipped(find_frames(None), rest["quiet"]), output, True, rest)


def _without_skipped(paths: Sequence[Path], quiet: bool) -> list[Path]:
    """Leave out what DONT_PROCESS in the current directory names, and say so."""
    from fastack import archive

    kept, skipped = archive.split_skipped(paths, archive.read_skip_list(Path()))
    if skipped and not quiet:
        print(f"{archive.SKIP_FILE} leaves out {', '.join(p.name for p in skipped)}", file=sys.stderr)
    if not kept:
        raise FrameError(f"no frame is left: {archive.SKIP_FILE} names all {len(skipped)}")
    return kept


@click.command(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("telescope")
@click.argument("date", metavar="DATE")
@click.argument("start", type=int)
@click.argument("end", type=int)
@click.option("-o", "--output", default="mosaic.fits", show_default=True, help="the stack")
@click.option("--archive-root", help="root of the archive [FASTACK_ARCHIVE, the configuration file, /mnt/archive]")
@click.option("--no-sky", is_flag=True, help="leave the sky coordinates out")
@click.option("--centre", type=_Centre(), help="RA,Dec in degrees or 19:58:21.6,+35:12:00 [from the headers]")
@click.option("--wcs", "distortion", type=click.Choice(("sip", "tpv")), default="sip", show_default=True)
@click.option("--plots", is_flag=True, help="pictures and tables of the residuals beside the solved files")
@_with_output
@_with_settings
@_with_sky_settings
@click.version_option(__version__, prog_name="dfstack")
def dfstack_command(
    telescope: str,
    date: str,
    start: int,
    end: int,
    output: str,
    archive_root: str | None,
    no_sky: bool,
    centre: tuple[float, float] | None,
    distortion: str,
    plots: bool,
    **rest: Any,
) -> None:
    """Average frames START to END that TELESCOPE took in the night DATE (yy_mm_dd) into mosaic.fits.

    Then amosaic_ucac4.fits and amosaic_gaia.fits are written, each if its solution is good.

    Frames are ROOT/TELESCOPE/YEAR/DATE/dNNNN.fits; numbers named in DONT_PROCESS in the current directory are left
    out, and master_flat.fits of the current directory is used.
    """
    from fastack import archive

    directory = archive.night_directory(archive.archive_root(archive_root), telescope, date)
    paths, missing = archive.night_frames(directory, start, end)
    if missing and not rest["quiet"]:
        print(f"{directory} has no {_numbers(missing)}", file=sys.stderr)
    if not paths:
        raise FrameError(f"{directory} has none of the frames {start} to {end}")
    if rest.get("flat") is None and not rest.get("no_flat") and Path("master_flat.fits").is_file():
        rest["flat"] = "master_flat.fits"
    quiet = rest["quiet"]
    sky = _sky_chosen(rest) | {"centre": centre, "pixel_scale": rest["pixel_scale"], "distortion": distortion}
    frames = _without_skipped(paths, quiet)
    result = _run_stack(frames, output, True, rest)
    if result.path is None:
        return
    # the stack lies on the reference's grid, but any frame of the night points at the same field
    near = sorted(frames, key=lambda path: path.name != result.reference)
    sky["older"] = archive.older_solution(near)
    _solve_both(result.path, no_sky, plots, quiet, sky)


def _solve_both(mosaic: Path, skip: bool, plots: bool, quiet: bool, how: dict[str, Any]) -> None:
    """Write amosaic_ucac4.fits and amosaic_gaia.fits, each where its solution is good; say what there is."""
    from fastack.platesolve import solve_file

    lines = [f"{mosaic}: written"]
    complete = True
    for name in () if skip else ("ucac4", "gaia"):
        target = mosaic.with_name(f"a{mosaic.stem}_{name}.fits")
        if not quiet:
            print(f"looking for {mosaic.name} on the sky of {name} ...", file=sys.stderr)
        try:
            picture = target.with_suffix(".png") if plots else None
            lines.append(solve_file(mosaic, name, target, overwrite=True, plots=picture, **how).summary())
        except Exception as error:  # whatever it is, the stack stands and the other catalogue may do
            if os.environ.get("FASTACK_DEBUG"):
                raise
            complete = False
            text = str(error) if isinstance(error, FastackError) else f"{type(error).__name__}: {error}"
            stale = ""
            if target.exists():
                target.unlink()
                stale = " (an older file of that name was removed: it belonged to another stack)"
            lines.append(f"{target}: not written: {text}{stale}")
    if not quiet or not complete:
        print("\n".join(lines), file=sys.stdout if complete else sys.stderr)
    if not complete:
        raise click.exceptions.Exit(3)


def _numbers(numbers: Sequence[int]) -> str:
    """Write frame numbers as ``d0142, d0145 to d0150``."""
    runs: list[list[int]] = []
    for k in numbers:
        if runs and runs[-1][1] == k - 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ", ".join(f"d{a:04d}" if a == b else f"d{a:04d} to d{b:04d}" for a, b in runs)


def _terminate(number: int, _: object) -> NoReturn:
    """End as an interrupt does when a batch system takes the machine away: nothing half-written stays."""
    raise KeyboardInterrupt(number)


def _main(command: click.Command, name: str) -> NoReturn:
    """Run a command; errors become one message and an exit code, warnings one line."""
    import warnings

    gc.set_threshold(_OBJECTS, 20, 20)
    # the kernels take the processors; NumPy's threads, of no use for systems of a few numbers, would spin on them
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _terminate)
    warnings.formatwarning = lambda message, *_, **__: f"{name}: {message}\n"
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        print("interrupted; nothing was written", file=sys.stderr)
        code = 128 + next(iter(getattr(error.__cause__ or error, "args", ())), signal.SIGINT)
    except (FastackError, ValueError, OSError, MemoryError) as error:
        if os.environ.get("FASTACK_DEBUG"):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        code = 1
    gc.freeze()  # the end of the process takes all of it: no search for cycles at the exit
    sys.exit(code if isinstance(code, int) else 0)


def main() -> NoReturn:
    """Entry point of ``fastack``."""
    _main(cli, "fastack")


def stackx2() -> NoReturn:
    """Entry point of ``stackX2``."""
    _main(stackx2_command, "stackX2")


def dfstack() -> NoReturn:
    """Entry point of ``dfstack``."""
    _main(dfstack_command, "dfstack")
