"""What flows between the stages: frozen records of columns.

Coordinates are 0-based pixels with the centre of the first pixel at (0, 0), ``(x, y)`` for points and ``[y, x]``
for arrays. Units are attached only where a table leaves the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastack import _maps

if TYPE_CHECKING:
    from pathlib import Path

    from astropy.table import QTable

FloatImage = NDArray[np.float32]
Array = NDArray[np.float64]
Flags = NDArray[np.uint16]


class StarFlag(IntFlag):
    """What is to be known about one detection."""

    SATURATED = 1  #: at least one pixel of the core at or above the saturation level
    EDGE = 2  #: the measuring window is cut by the border of the image or by missing pixels
    BLENDED = 4  #: a neighbour within the measuring window
    NO_FIT = 8  #: the profile fit did not converge; shape columns are NaN
    SHARP = 16  #: sharper than the point-spread function: a hot pixel or a cosmic ray
    EXTENDED = 32  #: wider than the point-spread function: a galaxy, a trail, a blend


class PixelFlag(IntFlag):
    """Bits of the ``FLAGS`` plane of a stack."""

    SATURATED = 1  #: a saturated sample contributed
    INTERPOLATED = 2  #: a missing input pixel lay under the resampling kernel of a sample
    REJECTED = 4  #: at least one sample was rejected
    PARTIAL = 8  #: not every frame covers this pixel


def _frozen(value: Any, dtype: Any) -> Any:
    array = np.array(value, dtype=dtype, copy=True, order="C")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stars:
    """Detections of one image, brightest first.

    All columns have the same length n; what was not measured is NaN.
    """

    xy: Array  #: (n, 2) position, pixel
    flux: Array  #: (n,) total flux above the sky, ADU
    flux_err: Array  #: (n,) one sigma of `flux`, ADU
    xy_err: Array  #: (n,) one sigma of the position per axis, pixel
    peak: Array  #: (n,) highest pixel above the sky, ADU
    sky: Array  #: (n,) sky level under the star, ADU
    fwhm: Array  #: (n,) full width at half maximum, geometric mean of both axes, pixel
    ellipticity: Array  #: (n,) 1 - minor/major axis
    theta: Array  #: (n,) position angle of the major axis from +x towards +y, radian
    sharpness: Array  #: (n,) central concentration relative to the PSF's: about 1 for a star, above for a hot pixel
    flags: Flags  #: (n,) bits of `StarFlag`

    @classmethod
    def make(cls, xy: Any, **columns: Any) -> Stars:
        """Stars at `xy`, with the given columns; the others are NaN (flags: 0).

        Parameters
        ----------
        xy : (n, 2) array_like, pixel
            Positions.
        **columns : (n,) array_like
            Any other column.

        Returns
        -------
        Stars
            In the given order.

        Raises
        ------
        ValueError
            If `xy` or a column has another shape.
        TypeError
            If there is no such column.
        """
        xy = _frozen(positions(xy), np.float64)
        n = len(xy)
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name == "xy":
                continue
            if item.name == "flags":
                values["flags"] = _frozen(columns.pop("flags", np.zeros(n)), np.uint16)
            else:
                values[item.name] = _frozen(columns.pop(item.name, np.full(n, np.nan)), np.float64)
            if values[item.name].shape != (n,):
                raise ValueError(f"column {item.name!r} has shape {values[item.name].shape}, not ({n},)")
        if columns:
            raise TypeError(f"unknown columns {sorted(columns)}")
        return cls(xy=xy, **values)

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: Any) -> Stars:
        """Rows by mask, slice or index array."""
        if isinstance(index, (int, np.integer)):
            index = [index]
        return Stars(**{item.name: _view(getattr(self, item.name)[index]) for item in fields(self)})

    @property
    def snr(self) -> Array:
        """(n,) flux over its error."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.flux / self.flux_err)

    def has(self, flag: StarFlag) -> NDArray[np.bool_]:
        """(n,) whether any bit of `flag` is set."""
        return np.asarray((self.flags & int(flag)) != 0)

    def table(self) -> QTable:
        """The columns with their units.

        Returns
        -------
        astropy.table.QTable
            One row per star.
        """
        from astropy import units as u
        from astropy.table import QTable

        unit = {"flux": u.adu, "flux_err": u.adu, "xy_err": u.pix, "peak": u.adu, "sky": u.adu}
        unit |= {"fwhm": u.pix, "theta": u.rad}
        table = QTable()
        table["x"], table["y"] = self.xy[:, 0] * u.pix, self.xy[:, 1] * u.pix
        for item in fields(self)[1:]:
            column = getattr(self, item.name)
            table[item.name] = column * unit[item.name] if item.name in unit else column
        return table


def positions(stars: Any) -> Array:
    """Positions of a list of stars.

    Parameters
    ----------
    stars : Stars or (n, 2) array_like, pixel
        Masked values are missing.

    Returns
    -------
    (n, 2) ndarray
        NaN where a position is missing.

    Raises
    ------
    ValueError
        If the list has another shape.
    """
    xy = stars.xy if isinstance(stars, Stars) else stars
    if type(xy) is not np.ndarray:
        xy = np.ma.filled(np.ma.asarray(xy, float), np.nan)
    if xy.size == 0:
        return np.empty((0, 2))
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"a list of stars has shape (n, 2), not {xy.shape}")
    return np.ascontiguousarray(xy, np.float64)


def _view(array: Any) -> Any:
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


def _finite_median(values: FloatImage) -> float:
    """Median of what is not NaN; a frame asks several times, and `np.nanmedian` takes its time."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class PSF:
    """Mean point-spread function of a frame: an elliptical Moffat profile, the pixel's response included.

    ``I(r) = (1 + r^2 / alpha^2)^-beta`` with r in the frame of the ellipse; see Moffat 1969, A&A 3, 455.
    """

    fwhm: float  #: geometric mean of both axes, pixel
    beta: float = 3.0
    ellipticity: float = 0.0  #: 1 - minor/major
    theta: float = 0.0  #: of the major axis, from +x towards +y, radian
    optical: float = float("nan")  #: FWHM before the pixel's response, where `beta` is that profile's; NaN: it is not
    pixel: float = 1.0  #: side of that pixel

    def scaled(self, factor: float) -> PSF:
        """The same on a grid whose pixels are `factor` times as fine."""
        return replace(self, fwhm=factor * self.fwhm, optical=factor * self.optical, pixel=factor * self.pixel)

    def profile(self, radius: Any) -> Array:
        """Light per pixel of a round source of unit flux.

        Parameters
        ----------
        radius : array_like
            Distances from its centre, pixel.

        Returns
        -------
        ndarray
            The Moffat profile; of a PSF with `optical`, its mean over the pixel (two-point Gauss-Legendre rule along
            each axis), pixels turned against the radius by 0 and 45 degrees.
        """
        r = np.asarray(radius, float)
        known = self.optical == self.optical
        alpha2 = ((self.optical if known else self.fwhm) / 2) ** 2 / (2 ** (1 / self.beta) - 1)
        node = self.pixel / np.sqrt(12) if known else 0.0
        offsets = [0.0] if not known else [s * node for s in (-1.0, 1.0)]
        directions = [(1.0, 0.0)] if not known else [(1.0, 0.0), (np.sqrt(0.5), np.sqrt(0.5))]
        places = [(r * x + a) ** 2 + (r * y + b) ** 2 for x, y in directions for a in offsets for b in offsets]
        mean = sum((1 + r2 / alpha2) ** -self.beta for r2 in places) / len(places)
        return np.asarray((self.beta - 1) / (np.pi * alpha2) * mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameQuality:
    """What `measure` says of a whole frame."""

    fwhm: float  #: of the profile fitted to the chosen stars together, pixel; NaN where no star could be fitted
    fwhm_err: float  #: standard error of `fwhm`
    ellipticity: float  #: of the mean PSF, so that noise of single stars averages out
    theta: float  #: direction of the elongation, radian
    beta: float  #: Moffat exponent of the mean PSF; see `PSF.optical`
    n_stars: int  #: detections that look like stars
    n_fitted: int  #: stars behind `fwhm`
    n_sharp: int  #: hot pixels and cosmic rays
    sky: float  #: median background, ADU
    noise: float  #: median standard deviation of the background in one pixel, ADU
    saturated: int  #: pixels at or above the saturation level
    optical: float = float("nan")  #: FWHM before the pixel's response, pixel; see `PSF`

    @property
    def psf(self) -> PSF:
        """The mean point-spread function."""
        return PSF(fwhm=self.fwhm, beta=self.beta, ellipticity=self.ellipticity, theta=self.theta, optical=self.optical)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Background:
    """Sky level and noise on a coarse mesh.

    The mesh point [j, i] stands at the centre of its cell: pixel ``x = (i + 0.5) * cell_x - 0.5``, y alike. Cells
    divide the image evenly, so their sides need not be whole numbers.
    """

    level: FloatImage  #: (my, mx) sky level, ADU
    noise: FloatImage  #: (my, mx) standard deviation of one pixel, ADU
    shape: tuple[int, int]  #: of the image
    cell: tuple[float, float]  #: height and width of a cell, pixel

    @property
    def sky(self) -> float:
        """Median level."""
        return _finite_median(self.level)

    @property
    def sigma(self) -> float:
        """Median noise."""
        return _finite_median(self.noise)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pairs:
    """Stars that two lists have in common."""

    index: NDArray[np.intp]  #: (n, 2) rows of the first and of the second list
    log_odds: float  #: natural logarithm of the odds that the match is true and not chance
    weak: bool = False  #: true of a match that rests on three stars alone

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Transform:
    """Polynomial map from output (reference) pixels to the pixels of one frame.

    With ``u = (x - origin_x) / scale`` and v alike, the frame's x is ``sum cx[k] u^i v^j`` over the terms with
    ``i + j <= order`` in the order 1, u, v, u^2, uv, v^2, u^3, u^2 v, u v^2, v^3.
    """

    cx: Array  #: (m,) coefficients of the frame's x
    cy: Array  #: (m,) coefficients of the frame's y
    order: int = 1
    origin: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    model: str = "affine"  #: shift, similarity, affine, quadratic, cubic
    rms: float = float("nan")  #: residual per axis of the stars behind it, frame pixels
    n: int = 0  #: stars behind it
    covariance: Array | None = field(default=None, repr=False)  #: (m, m) of `cx` (and of `cy`), pixel^2

    @classmethod
    def identity(cls) -> Transform:
        """The map of a frame onto itself."""
        return cls.affine([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], model="shift")

    @classmethod
    def affine(cls, matrix: Any, *, model: str = "affine") -> Transform:
        """A linear map from the (2, 3) matrix of ``frame = matrix @ (x, y, 1)``."""
        m = np.asarray(matrix, float)
        return cls(cx=_frozen(m[0, [2, 0, 1]], float), cy=_frozen(m[1, [2, 0, 1]], float), model=model)

    def __call__(self, xy: Any) -> Array:
        """Output pixels to pixels of the frame.

        Parameters
        ----------
        xy : (n, 2) array_like, pixel
            Positions on the output grid.

        Returns
        -------
        (n, 2) ndarray, pixel
            Positions in the frame.
        """
        return _maps.evaluate(np.asarray(xy, float).reshape(-1, 2), *self._map)

    def inverse(self, xy: Any) -> Array:
        """Pixels of the frame to output pixels, by Newton's method (to 1e-9 pixel).

        Parameters
        ----------
        xy : (n, 2) array_like, pixel
            Positions in the frame.

        Returns
        -------
        (n, 2) ndarray, pixel
            Positions on the output grid.
        """
        return _maps.invert_map(np.asarray(xy, float).reshape(-1, 2), *self._map, 1e-9, 20 if self.order > 1 else 1)

    def jacobian(self, xy: Any) -> Array:
        """(n, 2, 2) derivatives d(frame x, y) / d(output x, y)."""
        return _maps.derivatives(np.asarray(xy, float).reshape(-1, 2), *self._map)

    @property
    def _map(self) -> tuple[Array, Array, float, float, float]:
        return np.asarray(self.cx, float), np.asarray(self.cy, float), *self.origin, self.scale

    @property
    def matrix(self) -> Array:
        """(2, 2) linear part at the origin."""
        return np.array([self.cx[1:3], self.cy[1:3]]) / self.scale

    @property
    def _determinant(self) -> float:
        """Of `matrix`."""
        _, a, b = self.cx[:3].tolist()
        _, c, d = self.cy[:3].tolist()
        return float((a / self.scale) * (d / self.scale) - (b / self.scale) * (c / self.scale))

    @property
    def rotation(self) -> float:
        """Rotation of the frame against the output, degree, -180 to 180."""
        m = self.matrix
        sign = 1.0 if self._determinant > 0 else -1.0
        return float(np.degrees(np.arctan2(m[1, 0] - sign * m[0, 1], m[0, 0] + sign * m[1, 1])))

    @property
    def magnification(self) -> float:
        """Frame pixels per output pixel (length)."""
        return math.sqrt(abs(self._determinant))

    @property
    def mirrored(self) -> bool:
        """Whether the frame is a mirror image of the output."""
        return self._determinant < 0

    def shifted(self, dx: float, dy: float) -> Transform:
        """The same map for an output grid whose pixel (0, 0) lies at (dx, dy) of this one's."""
        return replace(self, origin=(self.origin[0] - dx, self.origin[1] - dy))

    def _terms(self, xy: Array) -> Array:
        uv = (xy - self.origin) / self.scale
        u, v = uv[:, 0], uv[:, 1]
        terms = np.empty((len(u), len(self.cx)))
        columns = [np.ones_like(u), u, v]
        if terms.shape[1] > 3:
            columns += [u * u, u * v, v * v]
        if terms.shape[1] > 6:
            columns += [u**3, u * u * v, u * v * v, v**3]
        for k, column in enumerate(columns[: terms.shape[1]]):
            terms[:, k] = column
        return terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The output's pixel grid: the reference frame's, moved and cut to its own size."""

    shape: tuple[int, int]  #: (ny, nx)
    origin: tuple[float, float] = (0.0, 0.0)  #: reference pixel that the output's (0, 0) falls on, (x, y)
    wcs: Any = None  #: astropy.wcs.WCS of the output where it is known


@dataclass(slots=True, eq=False, kw_only=True)
class FrameRecord:
    """All that a run knows of one input: filled in stage by stage, and a row of the ``FRAMES`` table at the end."""

    path: Path
    name: str
    frame: Any = None  #: frames.Frame; None where the file could not be opened
    prepared: Any = field(default=None, repr=False)  #: calibrate.Prepared, for reading sections
    reason: str | None = None  #: why the frame is not in the stack; None while it is
    exposure: Any = None  #: dates.Exposure
    quality: FrameQuality | None = None
    stars: Stars | None = field(default=None, repr=False)
    background: Background | None = field(default=None, repr=False)
    artefacts: NDArray[np.int32] | None = field(default=None, repr=False)  #: (k, 2) x, y of hot and cosmic-ray pixels
    trails: tuple[Any, ...] = field(default=(), repr=False)  #: trails.Trail, what satellites and aircraft left
    transform: Transform | None = None  #: reference pixels to frame pixels
    gain_err: float | None = None  #: of a gain that was estimated from the frames, e-/ADU
    scatter: Any = None  #: star_scatter.StarScatter of all frames, where no gain is known
    n_matched: int = 0
    log_odds: float = float("inf")  #: natural logarithm of the odds of the match
    scale: float = 1.0  #: flux scale to the reference
    scale_err: float = 0.0
    sky: float = 0.0  #: level subtracted before scaling, ADU of the frame
    weight: float = 1.0
    notes: tuple[str, ...] = ()  #: what was assumed

    @property
    def used(self) -> bool:
        """Whether the frame is in the stack."""
        return self.reason is None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CatalogueStars:
    """Stars of a catalogue at one epoch, ICRS.

    All columns have the same length n; what is unknown is NaN.
    """

    ra: Array  #: (n,) right ascension, degree
    dec: Array  #: (n,) declination, degree
    ra_err: Array  #: (n,) one sigma of `ra` times cos(dec), mas
    dec_err: Array  #: (n,) one sigma of `dec`, mas
    pm_ra: Array  #: (n,) proper motion in `ra` times cos(dec), mas/yr
    pm_dec: Array  #: (n,) proper motion in `dec`, mas/yr
    pm_ra_err: Array  #: (n,) one sigma of `pm_ra`, mas/yr
    pm_dec_err: Array  #: (n,) one sigma of `pm_dec`, mas/yr
    parallax: Array  #: (n,) mas
    mag: Array  #: (n,) magnitude in `band`
    ra_epoch: Array  #: (n,) Julian year at which `ra` and `pm_ra` are uncorrelated; NaN: `epoch`
    dec_epoch: Array  #: (n,) the same of `dec` and `pm_dec`
    epoch: float = 2000.0  #: Julian year of the positions and their errors
    name: str = ""  #: of the catalogue: "UCAC4", "Gaia DR3", a file's name
    band: str = ""  #: of `mag`

    @classmethod
    def make(
        cls, ra: Any, dec: Any, *, epoch: float = 2000.0, name: str = "", band: str = "", **columns: Any
    ) -> CatalogueStars:
        """Stars at `ra`, `dec` (degree) with the given columns; the others are NaN."""
        values = {"ra": _frozen(np.ravel(ra), np.float64), "dec": _frozen(np.ravel(dec), np.float64)}
        n = len(values["ra"])
        for key in [f.name for f in fields(cls)][2:-3]:
            column: Any = np.ma.filled(np.ma.asarray(columns.pop(key, np.full(n, np.nan)), float), np.nan)
            values[key] = _frozen(column, np.float64)
        if columns:
            raise TypeError(f"unknown columns {sorted(columns)}")
        for key, column in values.items():
            if column.shape != (n,):
                raise ValueError(f"column {key!r} has shape {column.shape}, not ({n},)")
        return cls(epoch=float(epoch), name=name, band=band, **values)

    def __len__(self) -> int:
        return len(self.ra)

    def __getitem__(self, index: Any) -> CatalogueStars:
        """Rows by mask, slice or index array."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return CatalogueStars(
            **{k: _view(np.atleast_1d(v[index])) if isinstance(v, np.ndarray) else v for k, v in columns.items()}
        )
