"""An image on disk gets its sky coordinates: stars, catalogue, WCS, written as a new file."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from astropy.io import fits

from fastack import __version__, background, catalogue, dates
from fastack.astrometry import solve
from fastack.calibrate import Calibration
from fastack.detect import detect
from fastack.errors import CatalogueError, FrameError, SolveError
from fastack.frames import Frame, open_frame
from fastack.guess import Guess, first_guess
from fastack.measure import measure
from fastack.network import resolve
from fastack.options import AstrometryOptions, CatalogueOptions, DetectOptions, MeasureOptions
from fastack.output import check_target, write_hdus
from fastack.positions import proper_motion
from fastack.solution import Solution, ZeroPoint
from fastack.solution import plots as draw
from fastack.surveys import magnitude_limit, survey_key
from fastack.tables import read_file
from fastack.types import CatalogueStars, FloatImage, FrameQuality, PixelFlag, StarFlag, Stars
from fastack.wcs import read_wcs, strip_wcs

_MAX_STARS = 2000  #: brightest detections that are measured for a solution
_ROUGH = 0.5  #: error of the centre of a saturated, cut or unfitted star at least, pixel


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SolvedFile:
    """An image with its place on the sky."""

    path: Path  #: the file that was written
    solution: Solution
    zero_point: ZeroPoint
    stars: Stars = field(repr=False)

    def summary(self) -> str:
        """One line for people."""
        s, z = self.solution, self.zero_point
        text = (
            f'{self.path}: {s.n} stars of {s.name}, rms {s.rms_ra:.3f}" {s.rms_dec:.3f}", '
            f'{s.scale:.4f}"/px, {"TAN" if s.order < 2 else f"SIP order {s.order}"}, '
            f'corners to {s.map_error:.2g}"'
        )
        if np.isfinite(z.zp):
            band = f"{z.band}, " if z.band else ""
            text += f"; zero point {z.zp:.3f} +- {z.err:.3f} ({band}scatter {z.scatter:.3f})"
        if np.isfinite(z.limiting_mag):
            text += f", 5-sigma limit {z.limiting_mag:.2f}"
        return text


def solve_file(
    image: str | Path,
    source: str,
    target: str | Path,
    *,
    overwrite: bool = False,
    centre: tuple[float, float] | None = None,
    pixel_scale: float | None = None,
    distortion: Literal["sip", "tpv"] = "sip",
    plots: str | Path | None = None,
    older: Path | None = None,
    columns: Mapping[str, str] | None = None,
    options: AstrometryOptions | None = None,
    catalogue_options: CatalogueOptions | None = None,
) -> SolvedFile:
    """Find an image's place on the sky and write it with a WCS.

    Parameters
    ----------
    image : str or Path
        FITS file, for example a stack.
    source : str
        ``ucac4``, ``gaia``, or a local catalogue (file or directory).
    target : str or Path
        File to write: the same data, every image HDU with the new WCS.
    overwrite : bool
        Whether an existing file may be replaced.
    centre : tuple of float, optional, degree
        RA and Dec where the header does not tell.
    pixel_scale : float, optional, arcsec
        Over the header.
    distortion : {"sip", "tpv"}
        How distortion is written.
    plots : str or Path, optional
        Picture of the residuals; their table goes beside it as ECSV.
    older : Path, optional
        The same image with an older WCS, as a first guess.
    columns : mapping of str to str, optional
        Columns of a catalogue file that are not recognised; see `tables.read_file`.
    options : AstrometryOptions, optional
    catalogue_options : CatalogueOptions, optional

    Returns
    -------
    SolvedFile
        The solution and its zero point.

    Raises
    ------
    SolveError
        If no place is likely enough.
    CatalogueError
        If the catalogue cannot be had.
    OutputError
        If the target cannot be written.
    """
    path, goal = Path(image), Path(target)
    check_target(goal, overwrite=overwrite)
    frame = open_frame(path)
    stars, quality = find_stars(frame)
    guess = first_guess(frame.header, centre=centre, pixel_scale=pixel_scale, shape=frame.shape)
    if older is not None:
        # a guess that cannot be read is none
        with contextlib.suppress(FrameError):
            past = open_frame(older)
            if read_wcs(past.header) is not None:
                guess = first_guess(past.header, centre=centre, pixel_scale=pixel_scale, shape=past.shape)
    if guess.ra is None:
        guess = _guess_otherwise(frame, guess, path, catalogue_options)
    epoch = mean_epoch(frame.header)
    if columns is not None and not Path(source).is_file():
        raise CatalogueError(f"{source} is no catalogue file, and only a file's columns can be mapped")
    stock = _supplier(source, stars, frame.shape, guess, epoch, catalogue_options, columns)
    solution = solve(stars, stock, frame.shape, guess=guess, options=options)
    zero_point = solution.zero_point(stars, noise=quality.noise, fwhm=quality.fwhm)
    _write(path, goal, solution, zero_point, distortion)
    if plots is not None:
        draw(solution, plots)
        _write_residuals(solution, Path(plots).with_suffix(".ecsv"))
    return SolvedFile(path=goal, solution=solution, zero_point=zero_point, stars=stars)


def find_stars(frame: Frame) -> tuple[Stars, FrameQuality]:
    """Measured stars of an image, brightest first.

    Parameters
    ----------
    frame : Frame
        Of the file.

    Returns
    -------
    stars : Stars
        At most 2000, hot pixels and cosmic rays left out.
    quality : FrameQuality
        Of the image.

    Raises
    ------
    SolveError
        If there are fewer than three.
    """
    pixels = Calibration().read(frame).pixels
    level = _fill_saturated(frame, pixels)
    sky = background.estimate(pixels)
    found = detect(pixels, background=sky, options=DetectOptions(saturation=level))
    found = found[~found.has(StarFlag.SHARP)][:_MAX_STARS]
    if len(found) < 3:
        raise SolveError(f"{frame.name}: {len(found)} stars found, too few to be placed on the sky")
    stars, quality = measure(pixels, found, background=sky, options=MeasureOptions(saturation=level))
    # what could not be fitted, most of it saturated and bloomed, keeps its detection; neither is a saturated or cut
    # star's centre where the photon noise of what is left of it says
    lost = ~np.isfinite(stars.flux)
    rough = lost | found.has(StarFlag.SATURATED | StarFlag.EDGE)
    stars = replace(
        stars,
        flux=np.where(lost, found.flux, stars.flux),
        xy=np.where(lost[:, None], found.xy, stars.xy),
        xy_err=np.where(rough, np.fmax(stars.xy_err, _ROUGH), stars.xy_err),
    )
    return stars[np.argsort(-stars.flux, kind="stable")], replace(quality, noise=background.pixel_noise(pixels))


def _fill_saturated(frame: Frame, pixels: FloatImage) -> float | None:
    """Put the saturation level into the holes that a stack has in its brightest stars.

    They are missing because their counts mean nothing, but where they are is as good an anchor as any star.
    """
    with fits.open(frame.path) as file:
        if "FLAGS" not in file or file["FLAGS"].data is None or file["FLAGS"].data.shape != pixels.shape:
            return frame.saturation
        saturated = (file["FLAGS"].data & int(PixelFlag.SATURATED)) != 0
    hole = np.isnan(pixels) & saturated
    if not hole.any():
        return None
    level = 1.01 * float(np.nanmax(pixels))
    pixels[hole] = level
    return level


def mean_epoch(cards: fits.Header) -> float | None:
    """Julian year of an image: the middle of its exposures where the header gives it.

    Parameters
    ----------
    cards : astropy.io.fits.Header
        Of the image.

    Returns
    -------
    float or None
        None where there is no date.
    """
    from astropy.time import Time

    text = cards.get("DATE-AVG") or dates.read_exposure(cards).date_obs
    if not text:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dates beyond the leap-second table
        return float(Time(str(text), scale="utc").jyear)


def _guess_otherwise(frame: Frame, guess: Guess, path: Path, options: CatalogueOptions | None) -> Guess:
    """A position from the target's name, else from astrometry.net's solve-field where it is installed."""
    place = resolve(frame.object, options=options) if frame.object else None
    if place is not None:
        return replace(guess, ra=place[0], dec=place[1], radius=1.0, source=f"the name {frame.object!r}")
    if shutil.which("solve-field") is None:
        return guess
    with tempfile.TemporaryDirectory() as directory:
        command = ["solve-field", "--overwrite", "--no-plots", "--dir", directory, "--cpulimit", "120", str(path)]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, check=False, timeout=300)
        for made in Path(directory).glob("*.wcs"):
            found = first_guess(fits.getheader(made), shape=frame.shape)
            if found.ra is not None:
                return replace(found, source="solve-field")
    return guess


def _supplier(
    source: str,
    stars: Stars,
    shape: tuple[int, int],
    guess: Guess,
    epoch: float | None,
    options: CatalogueOptions | None,
    columns: Mapping[str, str] | None,
) -> CatalogueStars | Callable[[float, float, float], CatalogueStars]:
    """The catalogue: a whole local file, or a function that fetches a cone."""
    path = Path(source)
    if path.is_file():
        whole = read_file(path, columns=columns)
        return proper_motion(whole, epoch) if epoch is not None else whole
    if guess.ra is None:
        raise SolveError(
            "where the image points is not known: give --centre RA,DEC, or install solve-field (astrometry.net)"
        )
    degree = (guess.scale or 1.0) / 3600
    full = guess.radius + float(np.hypot(*shape)) * degree

    def fetch(ra: float, dec: float, radius: float) -> CatalogueStars:
        limit = None
        if survey_key(source):
            # a cone wider than the guess asks for is searched by its brightest stars: not more of them, only elsewhere
            wanted = len(stars) * min(1.0, (full / radius) ** 2)
            limit = magnitude_limit(source, int(np.ceil(wanted)), shape[0] * shape[1] * degree**2)
        return catalogue.load(source, ra=ra, dec=dec, radius=radius, max_mag=limit, epoch=epoch, options=options)

    return fetch


def _write(
    path: Path,
    goal: Path,
    solution: Solution,
    zero_point: ZeroPoint,
    distortion: Literal["sip", "tpv"],
) -> None:
    """Copy a file with the new WCS in every image of the same size, all or nothing."""
    cards = solution.header(distortion)
    name = solution.name.encode("ascii", "replace").decode()
    with fits.open(path, memmap=True, do_not_scale_image_data=True) as file:
        for hdu in file:
            if not (hdu.is_image and hdu.header.get("NAXIS", 0) >= 2):
                continue
            if (hdu.header["NAXIS2"], hdu.header["NAXIS1"]) != tuple(solution.shape):
                continue
            clean = strip_wcs(hdu.header)
            for keyword in [k for k in hdu.header if k and k not in clean and k not in ("HISTORY", "COMMENT")]:
                hdu.header.remove(keyword, ignore_missing=True, remove_all=True)
            for card in cards.cards:
                hdu.header[card.keyword] = (card.value, card.comment)
            if hdu is file[0]:
                for keyword, value, comment in _photometry(zero_point):
                    hdu.header[keyword] = (value, comment)
                hdu.header.add_history(f"fastack {__version__}: coordinates by {solution.n} stars of {name}"[:72])
        write_hdus(goal, file, overwrite=True, verify="silentfix+ignore")


def _photometry(zero_point: ZeroPoint) -> list[tuple[str, float | int | str, str]]:
    if not np.isfinite(zero_point.zp):
        return []
    cards: list[tuple[str, float | int | str, str]] = [
        ("MAGZPT", round(zero_point.zp, 4), "[mag] of 1 adu"),
        ("MAGZERR", round(zero_point.err, 4), "[mag] standard error of MAGZPT"),
        ("MAGZSCAT", round(zero_point.scatter, 4), "[mag] scatter of one star"),
        ("MAGZNUM", zero_point.n, "stars behind MAGZPT"),
        ("MAGZBAND", zero_point.band, "band of the catalogue"),
    ]
    if np.isfinite(zero_point.limiting_mag):
        cards.append(("MAGLIM", round(zero_point.limiting_mag, 3), "[mag] 5-sigma limit for a star"))
    return cards


def _write_residuals(solution: Solution, path: Path) -> None:
    from astropy import units as u
    from astropy.table import QTable

    stock, rows = solution.catalogue, solution.pairs[:, 1]
    table = QTable()
    table["x"], table["y"] = solution.xy[:, 0] * u.pix, solution.xy[:, 1] * u.pix
    table["ra"], table["dec"] = stock.ra[rows] * u.deg, stock.dec[rows] * u.deg
    table["mag"] = stock.mag[rows] * u.mag
    table["d_ra"], table["d_dec"] = solution.residuals[:, 0] * u.arcsec, solution.residuals[:, 1] * u.arcsec
    table.write(path, overwrite=True)
