"""A synthetic night with known truth, for the demo, the tests and the benchmarks.

Nothing here is shared with the code under test: profiles, noise, transforms and projections are rendered by
plain NumPy here and in `render` alone. What the sky sends is counted in electrons per exposure, what the camera's
electronics add (bias, saturation) in ADU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastack.executor import Executor
from fastack.render import Profile, add_stars, moffat_alpha
from fastack.types import Array, FloatImage

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.table import QTable

R = TypeVar("R")
PerFrame = float | Sequence[float]

# What random numbers are drawn for; each purpose of each frame has a generator of its own, so that a night
# without artefacts has the same stars and the same noise as the one with them.
_FIELD, _SERIES, _DETECTOR, _NOISE, _ARTEFACTS, _POINTING = range(6)

# Above this expectation, electrons, the Poisson distribution is drawn by its Cornish-Fisher expansion.
_MANY = 50.0

_PIXEL = np.dtype([("x", np.int32), ("y", np.int32), ("electrons", np.float32)])


# --------------------------------------------------------------------- options


@dataclass(frozen=True, slots=True, kw_only=True)
class NightOptions:
    """A night of frames of one field.

    A `PerFrame` value is one number, or one for each frame; a spread applies to the former only.
    """

    n_frames: int = 10
    shape: tuple[int, int] = (1024, 1024)  #: (ny, nx)
    seed: int = 1

    n_stars: int = 500  #: mean number on one frame
    flux: tuple[float, float] = (500.0, 500_000.0)  #: total, faintest and brightest, e-
    slope: float = 0.8  #: N(> flux) falls as flux^-slope: 0.8 is usual at 12 to 18 mag, 1.5 a uniform space
    separation: float = 0.0  #: least distance between two stars, pixel
    centre: tuple[float, float] = (299.59, 35.2)  #: RA and Dec of the field, degree
    pixel_scale: float = 0.7  #: arcsec

    fwhm: PerFrame = 3.0  #: of the optical profile, before the pixel integrates it, pixel
    fwhm_spread: float = 0.08  #: standard deviation of ln fwhm from frame to frame
    beta: float = 3.0  #: Moffat exponent
    ellipticity: PerFrame = 0.0  #: 1 - minor/major
    theta: PerFrame = 0.0  #: of the major axis, from +x towards +y, radian
    drift: tuple[float, float] = (0.0, 0.0)  #: from the first to the last frame, pixel
    dither: float = 2.0  #: standard deviation per axis about the drift, pixel; the first frame has none
    shifts: Sequence[Sequence[float]] | None = None  #: (n_frames, 2), in place of drift and dither
    rotation: PerFrame = 0.0  #: degree; one number: of the last frame, growing evenly from 0
    flipped: float = 0.0  #: part of the frames that is turned by 180 degrees, at the end of the night
    mirrored: PerFrame = 0.0  #: part of the frames that is mirrored, at the end; or 0 or 1 for each
    scale: PerFrame = 1.0  #: magnification against the reference
    distortion: float = 0.0  #: radial, cubic, in the corners, pixel; fixed to the detector

    transparency: PerFrame = 1.0
    transparency_spread: float = 0.03  #: ln transparency is -abs of a normal deviate of this width
    sky: PerFrame = 400.0  #: e-/pixel
    sky_spread: float = 0.05  #: standard deviation of ln sky
    sky_gradient: float = 0.0  #: from edge to edge, part of the sky; turns by 90 degrees in the night

    gain: float = 1.5  #: e-/ADU
    rdnoise: float = 6.0  #: e-
    bias: float = 300.0  #: ADU
    dark: float = 0.0  #: e-/s
    vignetting: float = 0.0  #: loss in the corners, 0 to 1
    dust: int = 0  #: shadows of grains, 2 to 8 % deep
    prnu: float = 0.0  #: standard deviation of the pixels' response
    saturation: float | None = None  #: ADU; None: what `dtype` holds
    dtype: str = "uint16"  #: uint8, uint16, int16, int32 or float32

    cosmic_rays: float = 0.0  #: mean number in a frame; half of them tracks
    hot_pixels: int = 0  #: fixed in the detector
    trails: float = 0.0  #: mean number of satellite trails in a frame

    exposure: float = 60.0  #: s
    cadence: float = 70.0  #: between two starts, s
    start: str = "2019-01-30T22:00:00"  #: of the first exposure, UTC
    filter: str = "V"
    object: str = "simulated field"
    wcs: Literal["none", "approximate", "exact"] = "none"  #: in the headers; never with the distortion
    pointing_error: float = 60.0  #: of header RA, Dec and of the approximate WCS, per axis, arcsec

    def __post_init__(self) -> None:
        if self.n_frames < 1 or min(self.shape) < 1 or self.n_stars < 0:
            raise ValueError(f"no night of {self.n_frames} frames of {self.shape} with {self.n_stars} stars")
        if not 0 < self.flux[0] <= self.flux[1]:
            raise ValueError(f"flux range {self.flux} is not a rising pair of positive numbers")
        if self.gain <= 0 or self.rdnoise < 0 or self.exposure <= 0:
            raise ValueError("gain and exposure have to be positive, rdnoise not negative")
        if self.beta <= 1:
            raise ValueError(f"beta is {self.beta}: a Moffat profile has a finite flux above 1 only")
        if self.dtype not in ("uint8", "uint16", "int16", "int32", "float32"):
            raise ValueError(f"dtype {self.dtype!r} is none of uint8, uint16, int16, int32, float32")
        for name in ("fwhm", "ellipticity", "theta", "rotation", "mirrored", "scale", "transparency", "sky"):
            value = getattr(self, name)
            if np.ndim(value) and np.shape(value) != (self.n_frames,):
                raise ValueError(f"{name} has shape {np.shape(value)}, not ({self.n_frames},)")
        if self.shifts is not None and np.shape(self.shifts) != (self.n_frames, 2):
            raise ValueError(f"shifts has shape {np.shape(self.shifts)}, not ({self.n_frames}, 2)")
        for item in fields(self):  # arrays and lists become tuples: options are values
            object.__setattr__(self, item.name, _plain(getattr(self, item.name)))

    @property
    def full_well(self) -> float:
        """Level at which a pixel saturates, ADU."""
        top = np.inf if self.dtype == "float32" else float(np.iinfo(self.dtype).max)
        return top if self.saturation is None else min(top, self.saturation)


# ----------------------------------------------------------------------- truth


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameTruth:
    """What is known of one frame; reference pixels are those of an undistorted, unturned frame.

    `coefficients` map reference to frame pixels in the terms 1, u, v, u^2, uv, v^2, u^3, u^2 v, u v^2, v^3
    with ``u = (x - origin_x) / norm`` and v alike: one row for x, one for y.
    """

    index: int
    date: datetime  #: start of the exposure, UTC
    coefficients: Array  #: (2, 10), pixel
    origin: tuple[float, float]  #: pixel
    norm: float  #: pixel
    rotation: float  #: degree, a flip included
    mirrored: bool
    scale: float
    fwhm: float  #: optical, pixel
    beta: float
    ellipticity: float
    theta: float
    transparency: float
    sky: float  #: at the centre, e-/pixel
    sky_slope: tuple[float, float]  #: change along x and y over half of the frame, part of the sky

    def to_frame(self, xy: Any) -> Array:
        """Map reference pixels to pixels of this frame, (n, 2) each."""
        return np.asarray(_terms(self._uv(xy)) @ self.coefficients.T)

    def to_reference(self, xy: Any) -> Array:
        """Map pixels of this frame to reference pixels, (n, 2) each, by iteration."""
        target = np.asarray(xy, float).reshape(-1, 2)
        linear = self.matrix
        result = (target - linear[:, 2]) @ np.linalg.inv(linear[:, :2]).T
        for _ in range(30):
            step = (target - self.to_frame(result)) @ np.linalg.inv(linear[:, :2]).T
            result = result + step
            if not step.size or np.abs(step).max() < 1e-10:
                break
        return np.asarray(result)

    @property
    def matrix(self) -> Array:
        """(2, 3) linear part about the origin: ``frame = matrix @ (x, y, 1)``, exact without distortion."""
        linear = self.coefficients[:, 1:3] / self.norm
        return np.column_stack([linear, self.coefficients[:, 0] - linear @ np.array(self.origin)])

    def _uv(self, xy: Any) -> Array:
        return np.asarray((np.asarray(xy, float).reshape(-1, 2) - self.origin) / self.norm)


def _terms(uv: Array) -> Array:
    u, v = uv[:, 0], uv[:, 1]
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3], axis=1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NightTruth:
    """Stars and frames of a night. Reference pixels are those of an undistorted, unturned frame."""

    xy: Array  #: (n, 2) reference positions, pixel
    flux: Array  #: (n,) total flux at transparency 1, e-
    radec: Array  #: (n, 2) degree
    frames: tuple[FrameTruth, ...]
    hot_pixels: NDArray[Any]  #: x, y and mean electrons of each exposure

    def __len__(self) -> int:
        return len(self.flux)

    def table(self) -> QTable:
        """One row per star, brightest first: x, y, flux, ra, dec."""
        from astropy import units as u
        from astropy.table import QTable

        table = QTable()
        table["x"], table["y"] = self.xy[:, 0] * u.pix, self.xy[:, 1] * u.pix
        table["flux"] = self.flux * u.electron
        table["ra"], table["dec"] = self.radec[:, 0] * u.deg, self.radec[:, 1] * u.deg
        return table


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Artefacts:
    """Pixels of one frame that hold more than sky and stars; the columns are x, y and electrons added."""

    cosmic_rays: NDArray[Any]
    hot_pixels: NDArray[Any]
    trails: NDArray[Any]

    @property
    def pixels(self) -> NDArray[Any]:
        """All of them; a pixel hit twice stands twice."""
        return np.concatenate([self.cosmic_rays, self.hot_pixels, self.trails])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SimulatedFrame:
    """One frame of a night."""

    image: NDArray[Any]  #: (ny, nx) of the options' dtype, ADU
    header: Header
    truth: FrameTruth
    artefacts: Artefacts


# ----------------------------------------------------------------------- night


class Night:
    """Frames of one field with everything known about them.

    Parameters
    ----------
    options : NightOptions
        All of it but the stars.
    catalogue : mapping or table, optional
        The stars, in place of random ones: columns ``flux`` (e- per exposure) and either ``x``, ``y``
        (reference pixels) or ``ra``, ``dec`` (degree).
    threads : int
        Frames rendered at once by `frames` and `write`; the result does not depend on it.

    Attributes
    ----------
    truth : NightTruth
        Stars, transforms, seeing, transparency and sky of every frame.
    """

    def __init__(self, options: NightOptions, *, catalogue: Any = None, threads: int = 1) -> None:
        self.options = options
        self.threads = threads
        frames = _series(options)
        if catalogue is None:
            xy, flux = _random_stars(options, frames)
            radec = _to_sky(self._plane(xy), options.centre)
        else:
            flux = _columns(catalogue, "flux")[:, 0]
            if {"x", "y"} <= set(getattr(catalogue, "colnames", catalogue)):
                xy = _columns(catalogue, "x", "y")
                radec = _to_sky(self._plane(xy), options.centre)
            else:
                radec = _columns(catalogue, "ra", "dec")
                step = 3600 / options.pixel_scale
                xy = _middle(options.shape) + _to_plane(radec, options.centre) * [-step, step]
        order = np.argsort(-flux, kind="stable")
        self.truth = NightTruth(
            xy=xy[order], flux=flux[order], radec=radec[order], frames=frames, hot_pixels=_hot_pixels(options)
        )

    def __len__(self) -> int:
        return self.options.n_frames

    def __getitem__(self, index: int) -> SimulatedFrame:
        """Render frame `index`, 0 to n_frames - 1."""
        options, truth = self.options, self.truth.frames[index]
        index = truth.index
        electrons = self._light(truth)
        _poisson(electrons, _generator(options, _NOISE, index), options.rdnoise)
        artefacts = self.artefacts(index)
        pixels = artefacts.pixels
        np.add.at(electrons, (pixels["y"], pixels["x"]), pixels["electrons"])
        return SimulatedFrame(
            image=_digitise(electrons, options), header=self.header(index), truth=truth, artefacts=artefacts
        )

    @property
    def frames(self) -> Iterator[SimulatedFrame]:
        """All frames in order, rendered as they are taken."""
        yield from self._map(self.__getitem__)

    def expected(self, index: int, *, artefacts: bool = False) -> FloatImage:
        """Error-free frame.

        Parameters
        ----------
        index : int
            Of the frame.
        artefacts : bool
            With this night's cosmic rays, hot pixels and trails.

        Returns
        -------
        (ny, nx) float32 ndarray, ADU
            Neither rounded nor saturated. Its variance is ``(expected - bias) / gain + (rdnoise / gain)^2``.
        """
        options = self.options
        electrons = self._light(self.truth.frames[index])
        if artefacts:
            pixels = self.artefacts(index).pixels
            np.add.at(electrons, (pixels["y"], pixels["x"]), pixels["electrons"])
        electrons /= np.float32(options.gain)
        electrons += np.float32(options.bias)
        return electrons

    def header(self, index: int) -> Header:
        """Cards of one frame, as the camera and the telescope would write them.

        Parameters
        ----------
        index : int
            Of the frame.

        Returns
        -------
        astropy.io.fits.Header
            Without the cards that describe the array.
        """
        from astropy.io.fits import Header

        options, truth = self.options, self.truth.frames[index]
        ra, dec = self._pointing(truth)
        header = Header()
        for key, value, comment in [
            ("OBJECT", options.object, "target"),
            ("IMAGETYP", "Light Frame", "type of image"),
            ("TELESCOP", "simulated", "telescope"),
            ("INSTRUME", "fastack.simulate", "instrument"),
            ("FILTER", options.filter, "filter"),
            ("DATE-OBS", truth.date.replace(tzinfo=None).isoformat(timespec="milliseconds"), "start, UTC"),
            ("TIMESYS", "UTC", "time system"),
            ("MJD-OBS", _mjd(truth.date), "start, UTC"),
            ("EXPTIME", options.exposure, "[s] exposure time"),
            ("GAIN", options.gain, "[e-/ADU] gain"),
            ("RDNOISE", options.rdnoise, "[e-] read noise"),
            ("AIRMASS", round(self._airmass(truth.date), 4), "at start"),
            ("RA", round(ra, 6), "[deg] of the telescope, J2000"),
            ("DEC", round(dec, 6), "[deg] of the telescope, J2000"),
            ("PIXSCALE", options.pixel_scale, "[arcsec] pixel scale"),
            ("SEED", options.seed, "of the simulated night"),
        ]:
            header[key] = (value, comment)
        if np.isfinite(options.full_well):
            header["SATURATE"] = (options.full_well, "[ADU] saturation level")
        if options.wcs != "none":
            header.update(self._wcs(truth, exact=options.wcs == "exact"))
        return header

    def artefacts(self, index: int) -> Artefacts:
        """Pixels that hold more than sky and stars.

        Parameters
        ----------
        index : int
            Of the frame.

        Returns
        -------
        Artefacts
            The same as that of the rendered frame.
        """
        options = self.options
        rng = _generator(options, _ARTEFACTS, index)
        rays = _cosmic_rays(options, rng)
        trails = _trails(options, self.truth.frames[index], rng)
        hot = self.truth.hot_pixels.copy()
        hot["electrons"] = rng.poisson(hot["electrons"])
        if len(trails):
            trails["electrons"] = rng.poisson(trails["electrons"] * self.flat[trails["y"], trails["x"]])
        return Artefacts(cosmic_rays=rays, hot_pixels=hot, trails=trails)

    @cached_property
    def flat(self) -> FloatImage:
        """(ny, nx) response to light, 1 without vignetting, dust and prnu."""
        return _flat(self.options)

    def write(
        self,
        directory: str | Path,
        *,
        name: str = "d{:04d}.fits",
        first: int = 1,
        masters: bool = False,
    ) -> list[Path]:
        """Write the night as FITS files, and its truth beside them.

        Parameters
        ----------
        directory : path
            Made where it is missing.
        name : str
            Format of the file names; compressed by ``.gz``.
        first : int
            Number of the first frame.
        masters : bool
            Write the error-free master_bias.fits, master_dark.fits (e-/s turned into ADU per exposure) and
            master_flat.fits too.

        Returns
        -------
        list of Path
            The frames. `read_night` makes the same night again from ``night.json`` and ``truth.ecsv``.
        """
        from astropy.io import fits

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)

        def put(index: int) -> Path:
            frame = self[index]
            path = directory / name.format(first + index)
            fits.PrimaryHDU(frame.image, frame.header).writeto(path, overwrite=True)
            return path

        paths = list(self._map(put))
        (directory / "night.json").write_text(json.dumps(asdict(self.options), indent=1))
        self.truth.table().write(directory / "truth.ecsv", overwrite=True)
        if masters:
            for kind, image in self._masters().items():
                header = fits.Header({"IMAGETYP": f"Master {kind}", "FILTER": self.options.filter})
                header["EXPTIME"] = 0.0 if kind == "bias" else self.options.exposure
                fits.PrimaryHDU(image, header).writeto(directory / f"master_{kind}.fits", overwrite=True)
        return paths

    def _masters(self) -> dict[str, FloatImage]:
        options = self.options
        dark = np.full(options.shape, options.dark * options.exposure / options.gain, np.float32)
        hot = self.truth.hot_pixels
        np.add.at(dark, (hot["y"], hot["x"]), hot["electrons"] / np.float32(options.gain))
        return {"bias": np.full(options.shape, options.bias, np.float32), "dark": dark, "flat": self.flat}

    def _map(self, function: Callable[[int], R]) -> Iterator[R]:
        with Executor(self.threads) as pool:
            yield from pool.map(function, range(len(self)))

    def _plane(self, xy: Array) -> Array:
        """Tangent plane coordinates (east, north) of reference pixels, degree: north up, east left."""
        step = self.options.pixel_scale / 3600
        return (xy - _middle(self.options.shape)) * [-step, step]

    def _light(self, truth: FrameTruth) -> FloatImage:
        """Render the expected electrons of sky, stars and dark current."""
        options = self.options
        image = np.empty(options.shape, np.float32)
        gx, gy = truth.sky_slope
        x = truth.sky * gx * np.linspace(-1, 1, options.shape[1], dtype=np.float32)
        y = truth.sky * (1 + gy * np.linspace(-1, 1, options.shape[0], dtype=np.float32))
        np.add(x, y[:, None], out=image, casting="same_kind")
        profile = Profile(fwhm=truth.fwhm, beta=truth.beta, ellipticity=truth.ellipticity, theta=truth.theta)
        xy, flux = truth.to_frame(self.truth.xy), self.truth.flux * truth.transparency
        # Each stamp holds all but 5e-4 of the flux; those of bright stars end where they drop below the
        # noise.
        noise = np.sqrt(truth.sky + options.rdnoise**2 + 1)
        least = min(profile.radius_without(5e-4), 20 * truth.fwhm)
        wanted = profile.reaches(0.05 * noise / np.maximum(flux, 1e-30))
        steps = np.ceil(2 * np.log2(np.maximum(wanted / least, 1))).astype(int)
        for step in np.unique(steps):
            add_stars(image, xy[steps == step], flux[steps == step], profile, least * 2 ** (step / 2))
        if options.vignetting or options.dust or options.prnu:
            image *= self.flat
        if options.dark:
            image += np.float32(options.dark * options.exposure)
        return image

    def _pointing(self, truth: FrameTruth) -> tuple[float, float]:
        """RA and Dec that the telescope reports, degree."""
        centre = truth.to_reference([_middle(self.options.shape)])
        error = _generator(self.options, _POINTING, 0).normal(0, self.options.pointing_error / 3600, 2)
        ra, dec = _to_sky(self._plane(centre) + error, self.options.centre)[0]
        return float(ra), float(dec)

    def _wcs(self, truth: FrameTruth, *, exact: bool) -> dict[str, Any]:
        """TAN cards; approximate ones have a wrong centre, scale (1 %) and angle (0.5 degree)."""
        options = self.options
        step = options.pixel_scale / 3600
        cd = np.diag([-step, step]) @ np.linalg.inv(truth.matrix[:, :2])
        ra, dec = options.centre
        if not exact:
            angle = np.radians(0.5)
            cd = 1.01 * cd @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            error = _generator(options, _POINTING, 0).normal(0, options.pointing_error / 3600, 2)
            ra, dec = _to_sky(error[None], options.centre)[0]
        x, y = truth.to_frame([_middle(options.shape)])[0] + 1
        return {
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CUNIT1": "deg",
            "CUNIT2": "deg",
            "RADESYS": "ICRS",
            "CRVAL1": float(ra),
            "CRVAL2": float(dec),
            "CRPIX1": float(x),
            "CRPIX2": float(y),
            "CD1_1": float(cd[0, 0]),
            "CD1_2": float(cd[0, 1]),
            "CD2_1": float(cd[1, 0]),
            "CD2_2": float(cd[1, 1]),
        }

    def _airmass(self, date: datetime) -> float:
        """Secant of the zenith distance at latitude 30 degrees, the field in the meridian at mid-night."""
        options = self.options
        middle = _start(options) + timedelta(seconds=options.cadence * options.n_frames / 2)
        angle = np.radians((date - middle).total_seconds() / 240)
        dec, latitude = np.radians(options.centre[1]), np.radians(30)
        sine = np.sin(dec) * np.sin(latitude) + np.cos(dec) * np.cos(latitude) * np.cos(angle)
        return float(1 / max(sine, 0.1))


def simulate_night(options: NightOptions | None = None, *, catalogue: Any = None, threads: int = 1) -> Night:
    """Make a night of frames with known truth.

    Parameters
    ----------
    options : NightOptions, optional
        What the night is like.
    catalogue : mapping or table, optional
        Stars in place of random ones: columns ``flux`` (e- per exposure) and either ``x``, ``y`` (reference
        pixels) or ``ra``, ``dec`` (degree).
    threads : int
        Frames rendered at once; the result does not depend on it.

    Returns
    -------
    Night
        Frames are rendered when they are asked for.

    Examples
    --------
    >>> night = simulate_night(NightOptions(n_frames=3, shape=(64, 80), n_stars=5))
    >>> [frame.image.shape for frame in night.frames]
    [(64, 80), (64, 80), (64, 80)]
    """
    return Night(options or NightOptions(), catalogue=catalogue, threads=threads)


def read_night(directory: str | Path, *, threads: int = 1) -> Night:
    """Make the night again whose files `Night.write` put into a directory.

    Parameters
    ----------
    directory : path
        With ``night.json`` and ``truth.ecsv``.
    threads : int
        See `simulate_night`.

    Returns
    -------
    Night
        Its frames have the same bits as the files.
    """
    from astropy.table import Table

    values = json.loads((Path(directory) / "night.json").read_text())
    stars = Table.read(Path(directory) / "truth.ecsv")
    return Night(NightOptions(**values), catalogue=stars, threads=threads)


# ------------------------------------------------------------ series and field


def _plain(value: Any) -> Any:
    """Tuples and Python numbers in place of arrays and lists."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value


def _columns(table: Any, *names: str) -> Array:
    return np.stack([np.asarray(table[name], float).ravel() for name in names], axis=1)


def _generator(options: NightOptions, purpose: int, index: int) -> np.random.Generator:
    """Make the generator of one purpose in one frame, independent of all others."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([options.seed, purpose, index])))


def _middle(shape: tuple[int, int]) -> Array:
    """Centre of a frame, (x, y)."""
    return (np.array(shape[::-1]) - 1) / 2


def _start(options: NightOptions) -> datetime:
    return datetime.fromisoformat(options.start).replace(tzinfo=UTC)


def _mjd(date: datetime) -> float:
    elapsed = date - datetime(1858, 11, 17, tzinfo=UTC)
    return elapsed.days + (elapsed.seconds + elapsed.microseconds * 1e-6) / 86400


def _series(options: NightOptions) -> tuple[FrameTruth, ...]:
    """Pointing, seeing and sky of every frame."""
    n = options.n_frames
    middle = _middle(options.shape)
    norm = float(np.hypot(*middle)) or 1.0
    part = np.linspace(0, 1, n) if n > 1 else np.zeros(1)
    random = _generator(options, _SERIES, 0).normal(size=(n + 1, 8))
    direction, random = np.pi * random[0, 0], random[1:]

    def each(value: PerFrame, factor: Array) -> Array:
        return np.asarray(value, float) if np.ndim(value) else value * factor

    one = np.ones(n)
    rotation = each(options.rotation, part) + 180.0 * _last(n, options.flipped)
    mirrored = np.asarray(options.mirrored if np.ndim(options.mirrored) else _last(n, options.mirrored), bool)
    scale = each(options.scale, one)
    fwhm = each(options.fwhm, np.exp(options.fwhm_spread * random[:, 0]))
    ellipticity, theta = each(options.ellipticity, one), each(options.theta, one)
    transparency = each(options.transparency, np.exp(-options.transparency_spread * np.abs(random[:, 1])))
    sky = each(options.sky, np.exp(options.sky_spread * random[:, 2]))
    angle = direction + np.pi / 2 * part
    slope = options.sky_gradient / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if options.shifts is None:
        dither = options.dither * random[:, 3:5] * (np.arange(n) > 0)[:, None]
        shifts = part[:, None] * np.array(options.drift) + dither
    else:
        shifts = np.array(options.shifts, float)
    return tuple(
        FrameTruth(
            index=i,
            date=_start(options) + timedelta(seconds=i * options.cadence),
            coefficients=_coefficients(options, rotation[i], bool(mirrored[i]), scale[i], shifts[i], norm),
            origin=(float(middle[0]), float(middle[1])),
            norm=norm,
            rotation=float(rotation[i]),
            mirrored=bool(mirrored[i]),
            scale=float(scale[i]),
            fwhm=float(fwhm[i]),
            beta=options.beta,
            ellipticity=float(ellipticity[i]),
            theta=float(theta[i]),
            transparency=float(transparency[i]),
            sky=float(sky[i]),
            sky_slope=(float(slope[i, 0]), float(slope[i, 1])),
        )
        for i in range(n)
    )


def _last(n: int, part: Any) -> NDArray[np.bool_]:
    """(n,) true of the last `part` of n frames."""
    return np.asarray(np.arange(n) >= n - round(n * part))


def _coefficients(
    options: NightOptions, rotation: float, mirrored: bool, scale: float, shift: Array, norm: float
) -> Array:
    """(2, 10) polynomial of one frame: mirrored, turned, magnified, shifted, then distorted by the optics."""
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    if rotation % 90 == 0:
        cos, sin = np.round(cos), np.round(sin)
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    # The cubic is known exactly from its values on a grid of 16 points.
    u, v = (axis.ravel() for axis in np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4)))
    uv = np.stack([u, v], axis=1)
    off = uv @ linear.T + shift / norm
    off = off * (1 + options.distortion / norm * (off**2).sum(axis=1, keepdims=True))
    coefficients = np.linalg.lstsq(_terms(uv), off * norm, rcond=None)[0].T
    if not options.distortion:
        coefficients = np.zeros((2, 10))
        coefficients[:, 0], coefficients[:, 1:3] = shift, linear * norm
    coefficients[:, 0] += _middle(options.shape)
    return np.asarray(coefficients)


def _random_stars(options: NightOptions, frames: tuple[FrameTruth, ...]) -> tuple[Array, Array]:
    """Positions and fluxes over all that any frame sees."""
    from scipy.spatial import cKDTree

    rng = _generator(options, _FIELD, 0)
    ny, nx = options.shape
    margin = 30 + 2 * abs(options.distortion)
    corners = np.array([[x, y] for x in (-margin, nx - 1 + margin) for y in (-margin, ny - 1 + margin)])
    seen = np.concatenate([(corners - f.matrix[:, 2]) @ np.linalg.inv(f.matrix[:, :2]).T for f in frames])
    low, high = seen.min(axis=0), seen.max(axis=0)
    n = round(options.n_stars * float(np.prod(high - low)) / (nx * ny))
    xy = rng.uniform(low, high, (n, 2))
    for _ in range(100 if options.separation else 0):
        close = cKDTree(xy).query_pairs(options.separation, output_type="ndarray")[:, 1]
        if not len(close):
            break
        close = np.unique(close)
        xy[close] = rng.uniform(low, high, (len(close), 2))
    # Inverse of the cumulative distribution of a power law between both limits.
    (faint, bright), slope = options.flux, options.slope
    chance = rng.uniform(size=n)
    if slope == 0:
        return xy, faint * (bright / faint) ** chance
    return xy, (faint**-slope + chance * (bright**-slope - faint**-slope)) ** (-1 / slope)


def _to_sky(plane: Array, centre: tuple[float, float]) -> Array:
    """Gnomonic plane (east, north) to RA and Dec, degree (Calabretta & Greisen 2002, A&A 395, 1077)."""
    xi, eta = np.radians(plane).T
    ra0, dec0 = np.radians(centre)
    y = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0 + np.arctan2(xi, y)
    dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, y))
    return np.asarray(np.degrees(np.stack([ra % (2 * np.pi), dec], axis=1)))


def _to_plane(radec: Array, centre: tuple[float, float]) -> Array:
    """RA and Dec to the gnomonic plane, degree; NaN for the far side of the sphere."""
    ra, dec = np.radians(radec).T
    ra0, dec0 = np.radians(centre)
    depth = np.sin(dec0) * np.sin(dec) + np.cos(dec0) * np.cos(dec) * np.cos(ra - ra0)
    depth = np.where(depth > 0, depth, np.nan)
    xi = np.cos(dec) * np.sin(ra - ra0) / depth
    eta = (np.cos(dec0) * np.sin(dec) - np.sin(dec0) * np.cos(dec) * np.cos(ra - ra0)) / depth
    return np.asarray(np.degrees(np.stack([xi, eta], axis=1)))


# -------------------------------------------------------------------- detector


def _flat(options: NightOptions) -> FloatImage:
    """Response of the pixels to light: vignetting, shadows of dust, differences from pixel to pixel."""
    rng = _generator(options, _DETECTOR, 1)
    ny, nx = options.shape
    y, x = np.ogrid[-1 : 1 : ny * 1j, -1 : 1 : nx * 1j]
    flat = np.asarray(1 - options.vignetting * (x * x + y * y) / 2)
    for _ in range(options.dust):
        cx, cy, depth = rng.uniform(0, nx), rng.uniform(0, ny), rng.uniform(0.02, 0.08)
        outer = rng.uniform(0.01, 0.03) * min(options.shape)
        r = np.hypot(np.arange(nx) - cx, np.arange(ny)[:, None] - cy) / outer
        flat *= 1 - depth * np.clip(8 * (1 - r), 0, 1) * np.clip(8 * (r - 0.4), 0, 1)
    if options.prnu:
        flat *= 1 + options.prnu * rng.standard_normal((ny, nx), np.float32)
    return flat.astype(np.float32)


def _hot_pixels(options: NightOptions) -> NDArray[Any]:
    """Draw fixed positions and mean charges, 300 to 30 000 e- per exposure, uniform in the logarithm."""
    rng = _generator(options, _DETECTOR, 0)
    ny, nx = options.shape
    where = rng.choice(nx * ny, min(options.hot_pixels, nx * ny), replace=False)
    pixels = np.zeros(len(where), _PIXEL)
    pixels["x"], pixels["y"] = where % nx, where // nx
    pixels["electrons"] = 300 * 100 ** rng.uniform(size=len(where))
    return pixels


def _cosmic_rays(options: NightOptions, rng: np.random.Generator) -> NDArray[Any]:
    """Draw single hits of 300 to 30 000 e-, and tracks of 2 to some 30 pixels with 300 to 3000 e- each."""
    n = rng.poisson(options.cosmic_rays)
    ny, nx = options.shape
    start = rng.uniform(-0.5, [nx - 0.5, ny - 0.5], (n, 2))
    track = rng.uniform(size=n) < 0.5
    length = np.where(track, 2 + rng.exponential(8, n), 0)
    angle, charge = rng.uniform(0, 2 * np.pi, n), 300 * np.where(track, 10, 100) ** rng.uniform(size=n)
    # Four deposits in each pixel of length; a single hit is one deposit.
    count = np.where(track, np.ceil(4 * length), 1).astype(int)
    ray = np.repeat(np.arange(n), count)
    along = (np.arange(len(ray)) - np.repeat(np.cumsum(count) - count, count)) / 4
    x = np.rint(start[ray, 0] + along * np.cos(angle[ray])).astype(int)
    y = np.rint(start[ray, 1] + along * np.sin(angle[ray])).astype(int)
    deposit = np.where(track, charge / 4, charge)[ray]
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    where, back = np.unique((y * nx + x)[inside], return_inverse=True)
    pixels = np.zeros(len(where), _PIXEL)
    pixels["x"], pixels["y"] = where % nx, where // nx
    pixels["electrons"] = np.rint(np.bincount(back, deposit[inside], len(where)))
    return pixels


def _trails(options: NightOptions, truth: FrameTruth, rng: np.random.Generator) -> NDArray[Any]:
    """Draw lines across the whole frame, as wide as the stars, with peaks of 2 to 40 times the noise."""
    ny, nx = options.shape
    pieces = [np.zeros(0, _PIXEL)]
    alpha = moffat_alpha(truth.fwhm, truth.beta)
    for _ in range(rng.poisson(options.trails)):
        x0, y0, angle = rng.uniform(0.2, 0.8) * nx, rng.uniform(0.2, 0.8) * ny, rng.uniform(0, np.pi)
        peak = 2 * 20 ** rng.uniform() * np.sqrt(truth.sky + options.rdnoise**2)
        distance = (np.arange(ny)[:, None] - y0) * np.cos(angle) - (np.arange(nx) - x0) * np.sin(angle)
        y, x = np.nonzero(np.abs(distance) < 6 * truth.fwhm)
        pixels = np.zeros(len(x), _PIXEL)
        pixels["x"], pixels["y"] = x, y
        # A Moffat profile integrated along the line: the exponent falls by one half.
        pixels["electrons"] = peak * (1 + (distance[y, x] / alpha) ** 2) ** (0.5 - truth.beta)
        pieces.append(pixels)
    return np.concatenate(pieces)


def _poisson(electrons: FloatImage, rng: np.random.Generator, rdnoise: float) -> None:
    """Put photon and read noise on the expected electrons, in place.

    Expectations below 50 e- are drawn from the Poisson distribution itself. Above, the first terms of its
    Cornish-Fisher expansion (Johnson, Kotz & Balakrishnan 1994, section 12.5) turn a normal deviate z into
    ``m + sqrt(m) z + (z^2 - 1) / 6 + (z - z^3) / (72 sqrt(m))``, which has the mean, the variance and the
    skewness of the Poisson distribution.
    """
    rows = max(1, (1 << 16) // electrons.shape[1])  # bands that stay in the cache
    for first in range(0, len(electrons), rows):
        mean = electrons[first : first + rows]
        few = mean < _MANY
        drawn = rng.poisson(mean[few]) if few.any() else None
        z = rng.standard_normal(mean.shape, np.float32)
        root = np.sqrt(np.maximum(mean, np.float32(_MANY)))
        square = z * z
        mean += root * z
        square -= 1
        mean += square * np.float32(1 / 6)
        square *= z
        square /= root
        square *= np.float32(1 / 72)
        mean -= square
        if drawn is not None:
            mean[few] = drawn
        if rdnoise:
            mean += np.float32(rdnoise) * rng.standard_normal(mean.shape, np.float32)


def _digitise(electrons: FloatImage, options: NightOptions) -> NDArray[Any]:
    """Electrons to the numbers that the camera writes; overwrites its argument."""
    rows = max(1, (1 << 16) // electrons.shape[1])
    kind = np.dtype(options.dtype)
    image = np.empty(electrons.shape, kind)
    lowest = -np.inf if kind.kind == "f" else np.iinfo(kind).min
    for first in range(0, len(electrons), rows):
        level = electrons[first : first + rows]
        level *= np.float32(1 / options.gain)
        level += np.float32(options.bias)
        if kind.kind != "f":
            np.rint(level, out=level)
        np.clip(level, lowest, options.full_well, out=level)
        image[first : first + rows] = level
    return image
