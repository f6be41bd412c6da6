"""Where on the sky an image lies: stars + catalogue -> WCS.

The search lays triangles of detections over triangles of catalogue stars (on the sphere, so that no patch is too
large), and the odds of Lang et al. 2010 (AJ 139, 1782) decide whether the place that a pair of triangles proposes is
true. The fit that follows is a weighted least-squares fit in the tangent plane: a similarity, an affine map, then
the SIP polynomial (Shupe et al. 2005, ASP 347, 491) that the residuals justify.

Detections are 0-based pixels, ``(x, y)``; the 1-based numbers of FITS exist only in the headers written here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fastack import _sky
from fastack.errors import SolveError
from fastack.options import AstrometryOptions
from fastack.types import Array, CatalogueStars, StarFlag, Stars
from fastack.wcs import WCS_CARD, read_wcs, without

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

Fetch = Callable[[float, float, float], CatalogueStars]
Index = NDArray[np.intp]

ARCSEC = np.pi / 180 / 3600
SCALES = (0.1, 60.0)  # arcsec per pixel: what an unknown scale may be
SCALE_FACTOR = 1.25  # either way, of a scale taken from a header


# --- first guess ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What is known of an image's place before it is solved."""

    ra: float | None = None  #: of the image's centre, degree
    dec: float | None = None  #: degree
    radius: float = 1.0  #: how far off the centre may be, degree
    scale: float | None = None  #: arcsec per pixel
    scale_range: tuple[float, float] = SCALES  #: limits of the scale, arcsec per pixel
    parity: int | None = None  #: +1 as on the sky, -1 mirrored, None: either
    source: str = ""  #: where it comes from, in words


_POSITIONS = (
    ("RA", "DEC"),
    ("OBJCTRA", "OBJCTDEC"),
    ("TELRA", "TELDEC"),
    ("OBJRA", "OBJDEC"),
    ("RA_OBJ", "DEC_OBJ"),
    ("CRVAL1", "CRVAL2"),
)
_SCALES = ("SECPIX", "SECPIX1", "SECPIXX", "PIXSCALE", "PIXSCAL", "PIXSCAL1", "IM_SCALE", "SCALE", "CCDSCALE")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eEdD][+-]?\d+)?")


def first_guess(
    header: Any,
    *,
    centre: tuple[Any, Any] | None = None,
    pixel_scale: float | None = None,
    shape: tuple[int, int] | None = None,
) -> Guess:
    """What a header tells of the image's place on the sky.

    Position: `centre`, else the header's WCS, else RA/DEC, OBJCTRA/OBJCTDEC, TELRA/TELDEC, CRVAL1/2 in degrees or
    sexagesimal (hours for the right ascension). Scale: `pixel_scale`, else WCS, pixel size times binning over focal
    length, SECPIX and its kin. Nothing in a header is believed to be exact: the radius is 1.5 widths of the
    field, at least 0.3 degree, a scale may be wrong by a quarter, and the parity is never taken from it.

    Parameters
    ----------
    header : astropy.io.fits.Header or mapping
        Cards may be strings where they should be numbers.
    centre : pair of float or str, optional
        Right ascension and declination in degrees, or as sexagesimal strings.
    pixel_scale : float, optional, arcsec per pixel
    shape : tuple of int, optional
        (ny, nx); by default NAXIS2, NAXIS1.

    Returns
    -------
    Guess
        Without a position (`ra` is None) where there is none.

    Raises
    ------
    ValueError
        If `centre` is no position on the sky or `pixel_scale` is not positive.
    """
    header = _as_header(header)
    if shape is None:
        naxis = _number(header.get("NAXIS1")), _number(header.get("NAXIS2"))
        shape = (int(naxis[1]), int(naxis[0])) if naxis[0] and naxis[1] else None
    wcs = _plausible_wcs(header)
    place = None
    words = []
    if centre is not None:
        place = _position(_angle(centre[0], hours=True), _angle(centre[1], hours=False))
        if place is None:
            raise ValueError(f"centre {centre!r} is no right ascension and declination")
        words.append("given centre")
    elif wcs is not None:
        middle = [[(shape[1] - 1) / 2, (shape[0] - 1) / 2]] if shape else [list(wcs.wcs.crpix - 1)]
        lon, lat = (float(v) for v in wcs.all_pix2world(middle, 0)[0])
        place = _position(lon, lat, header)
        words += ["header WCS"] if place else []
    if place is None:
        for key_ra, key_dec in _POSITIONS:
            ra = _angle(header.get(key_ra), hours=True, comment=_comment(header, key_ra))
            dec = _angle(header.get(key_dec), hours=False)
            # zero and zero is what a mount says that does not know
            if (ra or dec) and (place := _position(ra, dec, header)):
                words.append(key_ra)
                break
    if pixel_scale is not None:
        if not (np.isfinite(pixel_scale) and pixel_scale > 0):
            raise ValueError(f"pixel_scale is {pixel_scale}, not a positive number of arcsec per pixel")
        scale: float | None = float(pixel_scale)
        words.append("given scale")
    else:
        scale, how = _header_scale(header, wcs)
        words += [how] if how else []
    width = max(shape) * scale / 3600 if scale and shape else 0.5
    return Guess(
        ra=place[0] if place else None,
        dec=place[1] if place else None,
        radius=max(0.3, 1.5 * width),
        scale=scale,
        scale_range=(scale / SCALE_FACTOR, scale * SCALE_FACTOR) if scale else SCALES,
        source=", ".join(words) if words else "nothing",
    )


def _plausible_wcs(header: fits.Header) -> WCS | None:
    """The header's WCS where its scale is one that a camera can have."""
    wcs = read_wcs(header)
    if wcs is None or not 1e-3 < _wcs_scale(wcs) < 3600:
        return None
    return wcs if np.isfinite(wcs.all_pix2world([wcs.wcs.crpix - 1], 0)).all() else None


def _wcs_scale(wcs: WCS) -> float:
    """Arcsec per pixel, geometric mean of the axes."""
    return float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600)


def _header_scale(header: Any, wcs: WCS | None) -> tuple[float | None, str]:
    """Pixel scale that the header states, and in which words."""
    if wcs is not None:
        return _wcs_scale(wcs), "WCS scale"
    focal = _number(header.get("FOCALLEN"))
    for key in ("XPIXSZ", "PIXSIZE1", "PIXSIZE", "XPIXELSZ"):
        size = _number(header.get(key))
        if size and focal and size > 0 and focal > 0:
            # XPIXSZ is the size of the binned pixel already (MaxIm DL's definition)
            binning = 1.0 if key == "XPIXSZ" else _number(header.get("XBINNING")) or 1.0
            return 206.265 * size * binning / focal, f"{key} and FOCALLEN"
    for key in _SCALES:
        scale = _number(header.get(key))
        if scale is not None and 0.01 < abs(scale) < 600:
            return abs(scale), key
    return None, ""


def _as_header(header: Any) -> fits.Header:
    """A header, from a mapping too; an empty one for None."""
    from astropy.io import fits

    return header if isinstance(header, fits.Header) else fits.Header(dict(header or {}))


def _comment(header: fits.Header, key: str) -> str:
    return str(header.comments[key]) if key in header else ""


def _number(value: Any) -> float | None:
    """A card's value as a number, from strings and with a decimal comma too; None where it is none."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, (int, float, np.number)):
        plain = float(value)
        return plain if np.isfinite(plain) else None
    text = str(value).strip().replace(",", ".")
    return float(re.sub("[dD]", "e", text)) if _NUMBER.fullmatch(text) else None


def _angle(value: Any, *, hours: bool, comment: str = "") -> float | None:
    """Degrees from decimal degrees or from a sexagesimal text (hours where `hours` is set)."""
    number = _number(value)
    if number is not None:
        return number * 15 if hours and "hour" in comment.lower() else number
    if value is None:
        return None
    text = str(value).strip().lower()
    parts = [p for p in re.split(r"[\s:hdms°'\"′″]+", text.lstrip("+-").replace(",", ".")) if p]
    if not 2 <= len(parts) <= 3 or any(_number(p) is None for p in parts):
        return None
    fields = [float(p) for p in parts]
    if any(f >= 60 for f in fields[1:]):
        return None
    angle = sum(f / scale for f, scale in zip(fields, (1.0, 60.0, 3600.0), strict=False))
    angle = -angle if text.startswith("-") else angle
    return angle * 15 if hours and fields[0] < 24 and "d" not in text and "°" not in text else angle


def _position(ra: float | None, dec: float | None, header: Any = None) -> tuple[float, float] | None:
    """ICRS position of one in the header's system (only an equinox matters to a guess); None where it is none."""
    if ra is None or dec is None or not (-360 <= ra <= 360 and -90 <= dec <= 90):
        return None
    ra %= 360
    if header is None:
        return ra, dec
    equinox = _number(header.get("EQUINOX")) or _number(header.get("EPOCH")) or 2000.0
    if not 1850 < equinox < 2100 or abs(equinox - 2000) < 0.01:
        return ra, dec
    from astropy.coordinates import FK4, FK5, SkyCoord

    frame = FK4(equinox=f"B{equinox}") if equinox < 1980 else FK5(equinox=f"J{equinox}")
    there = SkyCoord(ra, dec, unit="deg", frame=frame).icrs
    return float(there.ra.deg), float(there.dec.deg)


_MORE_WCS = re.compile(
    r"^(((WCSAXES|WCSNAME|RADESYS|EQUINOX|(LON|LAT)POLE|CTYPE\d|CUNIT\d|CRVAL\d|CRPIX\d|CDELT\d|(CD|PC)\d_\d"
    r"|P[VS]\d_\d+|(CRDER|CSYER)\d)[A-Z])|PS\d_\d+|WCSDIM|WAT\d_\d{3}|ASTRRMS\d|ASTRNUM|ASTRCAT|ASTREPOC|ASTRODDS)$"
)


def strip_wcs(header: fits.Header) -> fits.Header:
    """Copy of a header without any WCS card: alternates, TNX and earlier solutions included."""
    return without(header, WCS_CARD, _MORE_WCS)


# --- sphere ---------------------------------------------------------------------------------------------------


def _vectors(ra: Any, dec: Any) -> Array:
    """(n, 3) unit vectors of positions in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def _frame(ra: float, dec: float) -> Array:
    """(3, 3) rows: east, north and outward at a position in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.array(
        [
            [-np.sin(a), np.cos(a), 0.0],
            [-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)],
            [np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)],
        ]
    )


def _radec(vector: Array) -> tuple[float, float]:
    """Position in degrees of a vector of any length."""
    x, y, z = (float(v) for v in vector)
    return float(np.degrees(np.arctan2(y, x)) % 360), float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def _spiral(centre: Array, spacing: float, radius: float) -> Array:
    """(n, 3) hexagonal net of directions about the frame `centre`, from the middle outwards, radian."""
    n = int(radius / spacing) + 2
    i, j = (a.ravel() for a in np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1)))
    x, y = (i + j / 2) * spacing, j * spacing * np.sqrt(3) / 2
    r = np.hypot(x, y)
    keep = np.flatnonzero(r <= radius + spacing / 2)
    keep = keep[np.lexsort((np.arctan2(y[keep], x[keep]), np.round(r[keep] / spacing, 6)))]
    x, y, r = x[keep], y[keep], r[keep]
    s = np.sinc(r / np.pi)
    return np.asarray((np.stack([x * s, y * s, np.cos(r)], axis=1)) @ centre)


# --- the model of a camera --------------------------------------------------------------------------------------


def _powers(order: int) -> list[tuple[int, int]]:
    """Exponents (p, q) of u^p v^q up to `order`, constant first."""
    return [(n - q, q) for n in range(order + 1) for q in range(n + 1)]


def _terms(uv: Array, order: int) -> Array:
    """(n, m) products of powers."""
    u, v = uv[:, 0], uv[:, 1]
    return np.stack([u**p * v**q for p, q in _powers(order)], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Pixels -> tangent plane at (ra, dec) by polynomials in (x - x0)/half, radian."""

    ra: float
    dec: float
    origin: tuple[float, float]
    half: float
    order: int  # 0: similarity, with the terms of order 1
    coefficients: Array  # (m, 2)
    covariance: Array  # (m, m) of either column, radian^2: the larger axis
    extra: float = 0.0  # scatter beyond the stated errors, radian per axis
    bic: float = np.inf

    def terms(self, xy: Array) -> Array:
        return _terms((xy - self.origin) / self.half, max(self.order, 1))

    def plane(self, xy: Array) -> Array:
        """(n, 2) tangent-plane positions of pixels."""
        return np.asarray(self.terms(xy) @ self.coefficients)

    @property
    def matrix(self) -> Array:
        """(2, 2) derivative at the origin, radian per pixel."""
        return np.asarray(self.coefficients[1:3].T / self.half)

    @property
    def scale(self) -> float:
        """Radian per pixel."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    def error(self, xy: Array) -> Array:
        """(n,) one sigma of the map per axis, pixel."""
        t = self.terms(xy)
        return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", t, self.covariance, t)) / self.scale)


def _project(vectors: Array, ra: float, dec: float) -> Array:
    """(n, 2) gnomonic projection; NaN on the far side."""
    e = vectors @ _frame(ra, dec).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(e[:, 2:] > 0.05, e[:, :2] / e[:, 2:], np.nan)


def _deproject(plane: Array, ra: float, dec: float) -> Array:
    """(n, 3) vectors, not normalised, of tangent-plane positions."""
    return np.column_stack([plane, np.ones(len(plane))]) @ _frame(ra, dec)


# --- search ---------------------------------------------------------------------------------------------------

# (detections from, to; catalogue stars per field from, to; longest side in field widths)
_ROUNDS = (
    (0, 24, 0, 24, 0.5),
    (0, 40, 0, 40, 0.35),
    (0, 24, 0, 16, 1.0),
    (0, 40, 16, 56, 0.4),
    (16, 56, 0, 40, 0.4),
    (0, 100, 0, 100, 0.2),
)
_BINS = 96
_LEVEL = 0.45  # ln(scale) covered by one level of the search
_REPORT, _SURE, _BAIL = 8.0, 25.0, -6.0


def _ranks(xy: Array, order: Index, cell: float) -> Index:
    """(n,) rank of each star, by `order`, among those in its square cell."""
    key = np.floor((xy - xy.min(axis=0)) / cell).astype(np.int64)
    code = key[:, 0] * (key[:, 1].max() + 1) + key[:, 1]
    position = np.empty(len(xy), np.int64)
    position[order] = np.arange(len(xy))
    by_cell = np.lexsort((position, code))
    sorted_code = code[by_cell]
    begin = np.flatnonzero(np.r_[True, sorted_code[1:] != sorted_code[:-1]])
    length = np.diff(np.r_[begin, len(xy)])
    rank = np.empty(len(xy), np.int64)
    rank[by_cell] = np.arange(len(xy)) - np.repeat(begin, length)
    return rank


def _triangles(xyz: Array, longest: float, limit: int) -> tuple[Any, Array, Any]:
    """Triangles with sides between a tenth of `longest` and `longest`, as `_sky.triangles` returns them."""
    pairs = cKDTree(xyz).query_pairs(longest, output_type="ndarray")
    pairs.sort(axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    start = np.searchsorted(pairs[:, 0], np.arange(len(xyz) + 1)).astype(np.int32)
    neighbour = np.ascontiguousarray(pairs[:, 1], np.int32)
    return _sky.triangles(np.ascontiguousarray(xyz), start, neighbour, 0.1 * longest, longest, 0.15, limit)


@dataclass(slots=True)
class _Patch:
    """Catalogue stars about one direction, prepared for one level of scale."""

    vectors: Array  # (n, 3) with the patch's centre at +z, spread bright ones first
    rank: Index  # (n,) of each among its neighbours
    frame: Array
    density: Array = field(init=False)
    grid: tuple[Any, Any, float, float, float, int, int] = field(init=False)

    def index(self, reach: float) -> None:
        """Local densities and the cells in which `_sky.search` looks."""
        xy = self.vectors[:, :2] / self.vectors[:, 2:]
        low = xy.min(axis=0)
        span = np.maximum(xy.max(axis=0) - low, 1e-12)
        k = min(6, len(xy) - 1)
        distance = cKDTree(xy).query(xy, k + 1)[0][:, k]
        mean = len(xy) / (span[0] * span[1])
        self.density = np.maximum(mean, k / (np.pi * np.maximum(distance, 1e-12) ** 2))
        cell = max(reach, float(np.sqrt(span[0] * span[1] / len(xy))))
        nx, ny = (int(s / cell) + 1 for s in span)
        number = ((xy - low) / cell).astype(np.int64)
        code = number[:, 1] * nx + number[:, 0]
        star = np.argsort(code, kind="stable").astype(np.int32)
        start = np.searchsorted(code[star], np.arange(nx * ny + 1)).astype(np.int32)
        self.grid = (start, star, float(low[0]), float(low[1]), cell, nx, ny)


class _Solver:
    """One list of detections on its way to the sky."""

    def __init__(self, stars: Stars, shape: tuple[int, int], options: AstrometryOptions) -> None:
        self.options = options
        self.shape = shape
        self.origin = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
        self.half = max(shape) / 2
        self.width = float(np.sqrt(shape[0] * shape[1]))
        self.diagonal = float(np.hypot(*shape))
        usable = np.isfinite(stars.xy).all(axis=1) & ~stars.has(StarFlag.SHARP)
        brightness = np.where(np.isfinite(stars.flux), stars.flux, -np.inf)
        rows = np.flatnonzero(usable)
        self.rows = rows[np.argsort(-brightness[rows], kind="stable")]
        self.xy = stars.xy[self.rows]
        error = np.where(np.isfinite(stars.xy_err), stars.xy_err, options.position_error)
        self.xy_err = np.maximum(error[self.rows], 1e-4)
        self.tried = 0
        self.best = -np.inf
        if len(self.rows):
            rank = _ranks(self.xy, np.arange(len(self.xy)), self.width / 2)
            self.spread = np.lexsort((np.arange(len(rank)), rank))

    # -- search

    def search(self, sky: _Sky, leg: _Leg, parity: int) -> _Model | None:
        """Look for the image in one patch of the sky at one level of scale."""
        centre, radius, scale, window = leg.centre, leg.radius, leg.scale, leg.window
        options, width = self.options, self.width * scale
        frame = _frame(*_radec(centre))
        rows = sky.within(centre, min(radius, 1.2))
        if len(rows) < 4:
            return None
        vectors = sky.vectors[rows] @ frame.T
        plane = vectors[:, :2] / vectors[:, 2:]
        rank = _ranks(plane, np.argsort(sky.brightness[rows], kind="stable"), width / 2)
        verify = min(options.verify, len(self.xy))
        depth = int(np.ceil(max(1.5 * verify, _ROUNDS[-1][3]) / 4))
        kept = np.flatnonzero(rank < depth)
        kept = kept[np.lexsort((sky.brightness[rows][kept], rank[kept]))]
        patch = _Patch(np.ascontiguousarray(vectors[kept]), rank[kept], frame)
        if len(kept) < 4 or len(kept) * width**2 < 2 * _area(patch.vectors):
            return None
        noise = np.hypot(options.centroid * scale, sky.typical_error)
        patch.index(8 * noise * float(np.exp(window)))
        camera = np.ascontiguousarray((self.xy[self.spread[:verify]] - self.origin) * scale)
        unit = np.column_stack([camera, np.ones(len(camera))])
        unit /= np.linalg.norm(unit, axis=1)[:, None]
        done: set[tuple[int, int, int, int, float]] = set()
        for d0, d1, c0, c1, longest in _ROUNDS[: leg.rounds]:
            chosen = np.flatnonzero((patch.rank >= c0 // 4) & (patch.rank < -(-c1 // 4)))
            signature = (d0, min(d1, verify), len(chosen), c0, longest)
            if d0 >= verify - 3 or len(chosen) < 4 or signature in done:
                continue
            done.add(signature)
            ours, shape, sign = _triangles(unit[d0:d1], longest * width, 20_000)
            theirs, sky_shape, sky_sign = _triangles(
                patch.vectors[chosen], longest * width * float(np.exp(window)), options.max_triangles
            )
            if not len(ours) or not len(theirs):
                continue
            order = np.argsort(ours.max(axis=1), kind="stable")
            bins = np.minimum((sky_shape[:, :2] * _BINS).astype(np.int64), _BINS - 1)
            code = bins[:, 0] * _BINS + bins[:, 1]
            by_bin = np.argsort(code, kind="stable")
            start = np.searchsorted(code[by_bin], np.arange(_BINS * _BINS + 1)).astype(np.int32)
            first = 0
            while first < len(ours):
                places, odds, first, tried = _sky.search(
                    camera,
                    np.ascontiguousarray(ours[order] + np.int32(d0)),
                    np.ascontiguousarray(shape[order]),
                    np.ascontiguousarray(sign[order]),
                    patch.vectors,
                    patch.density,
                    np.ascontiguousarray(chosen.astype(np.int32)[theirs[by_bin]]),
                    np.ascontiguousarray(sky_shape[by_bin]),
                    np.ascontiguousarray(sky_sign[by_bin]),
                    start,
                    _BINS,
                    *patch.grid,
                    float(noise),
                    0.004,
                    -window,
                    window,
                    parity,
                    options.distractors,
                    _BAIL,
                    _REPORT,
                    _SURE,
                    first,
                )
                self.tried += tried
                for i in np.argsort(-odds)[:20]:
                    model = self.refine(sky, places[i].reshape(3, 3), frame, scale)
                    if model is not None:
                        return model
        return None

    # -- fit

    def refine(self, sky: _Sky, place: Array, frame: Array, scale: float) -> _Model | None:
        """Turn a proposed place into a fitted model; None where the odds are against it."""
        ra, dec = _radec(place[:, 2] @ frame)
        net = np.array([[-1, -1], [1, -1], [0, 0], [-1, 1], [1, 1]]) * self.half + self.origin
        uv = np.column_stack([(net - self.origin) * scale, np.ones(len(net))])
        plane = _project(uv @ place.T @ frame, ra, dec)
        terms = _terms((net - self.origin) / self.half, 1)
        coefficients: Array = np.asarray(np.linalg.lstsq(terms, plane, rcond=None)[0], np.float64)
        model = _Model(
            ra=ra,
            dec=dec,
            origin=self.origin,
            half=self.half,
            order=0,
            coefficients=coefficients,
            covariance=np.zeros((3, 3)),
        )
        near = sky.within(_deproject(np.zeros((1, 2)), ra, dec)[0], 0.6 * self.diagonal * model.scale)
        if len(near) < 4:
            return None
        few = self.spread[: self.options.verify]
        bright = near[np.argsort(sky.brightness[near], kind="stable")]
        tolerance = 5 * np.hypot(self.options.centroid * model.scale, sky.typical_error)
        detections, known = few, bright[: 2 * len(few)]
        apart = min(self.diagonal * model.scale / np.sqrt(len(bright)), 50 * model.scale)  # mean distance of stars
        last: NDArray[Any] = np.empty(0)
        for step in range(12):
            if step == 3:
                if self.log_odds(sky, model, near) < self.options.min_log_odds / 2:
                    return None
                detections, known = np.arange(len(self.xy)), bright
            pairs = self.match(sky, model, detections, known, tolerance)
            if len(pairs) < 4:
                return None
            model = self.fit(sky, model, pairs, 0 if step < 3 else model.order)
            if step >= 3:
                # distortion that is not in the model yet shows in pairs further apart than the clipping limit
                wide = self.match(sky, model, detections, known, max(tolerance, 0.15 * apart))
                model = self.choose(sky, model, wide)
            noise = self.noise(sky, pairs, model).max(axis=1)
            tolerance = max(self.options.clip * float(np.quantile(noise, 0.9)), 1.0 * model.scale)
            if step > 3 and np.array_equal(last, pairs):
                break
            last = pairs
        odds = self.log_odds(sky, model, near)
        self.best = max(self.best, odds)
        if odds < self.options.min_log_odds + np.log(max(self.tried, 1)):
            return None
        return model

    def match(self, sky: _Sky, model: _Model, ours: Index, theirs: Index, tolerance: float) -> Index:
        """(n, 2) detections and catalogue rows that are each other's nearest within `tolerance` (radian)."""
        mine = model.plane(self.xy[ours])
        plane = _project(sky.vectors[theirs], model.ra, model.dec)
        distance, there = cKDTree(plane).query(mine, distance_upper_bound=tolerance)
        hit = np.flatnonzero(np.isfinite(distance))
        back = cKDTree(mine).query(plane[there[hit]])[1]
        hit = hit[back == hit]
        return np.column_stack([ours[hit], theirs[there[hit]]])

    def noise(self, sky: _Sky, pairs: Index, model: _Model) -> Array:
        """(n, 2) error of each pair's residual in the tangent plane, radian, the extra scatter included."""
        ours = self.xy_err[pairs[:, 0]] * model.scale
        return np.sqrt(ours[:, None] ** 2 + sky.error[pairs[:, 1]] ** 2 + model.extra**2)

    def fit(self, sky: _Sky, model: _Model, pairs: Index, order: int) -> _Model:
        """Weighted, clipped least squares of one order, the tangent point moved to the image's centre."""
        xy, vectors = self.xy[pairs[:, 0]], sky.vectors[pairs[:, 1]]
        ours2 = ((self.xy_err[pairs[:, 0]] * model.scale) ** 2)[:, None] + sky.error[pairs[:, 1]] ** 2
        uv = (xy - self.origin) / self.half
        terms = _terms(uv, max(order, 1))
        unknowns = 4 if order == 0 else 2 * terms.shape[1]
        mirrored = np.linalg.det(model.matrix) > 0
        ra, dec, extra2 = model.ra, model.dec, model.extra**2
        keep = np.ones(len(pairs), bool)
        dof = max(1.0 - unknowns / (2 * len(pairs)), 0.1)
        for step in range(8):
            target = _project(vectors, ra, dec)
            variance = ours2 + extra2
            weight = np.where(keep[:, None], 1 / variance, 0)
            if order == 0:
                coefficients, covariance = _similarity(uv, target, weight.mean(axis=1), mirrored)
            else:
                coefficients, covariance = _linear(terms, target, weight)
            residual = target - terms @ coefficients
            extra2 = _extra_scatter(residual, ours2, dof)
            z2 = (residual**2 / (ours2 + extra2)).sum(axis=1)
            now = z2 < self.options.clip**2
            if now.sum() < max(unknowns / 2 + 1, 0.5 * len(pairs)):
                now = z2 <= np.median(z2)
            shift = float(np.hypot(*coefficients[0]))
            ra, dec = _radec(_deproject(coefficients[:1], ra, dec)[0])
            if step > 1 and np.array_equal(now, keep) and shift < 1e-6 * model.scale:
                break
            keep = now
        variance = ours2 + extra2
        limit = self.options.clip**2
        deviance = float((np.minimum(residual**2 / variance, limit) + np.log(variance)).sum())
        coefficients = coefficients.copy()
        coefficients[0] = 0  # moved into the tangent point
        return _Model(
            ra=ra,
            dec=dec,
            origin=self.origin,
            half=self.half,
            order=order,
            coefficients=coefficients,
            covariance=covariance,
            extra=float(np.sqrt(extra2)),
            bic=deviance + unknowns * np.log(2 * len(pairs)),
        )

    def choose(self, sky: _Sky, model: _Model, pairs: Index) -> _Model:
        """The simplest model that the residuals justify, by the Bayesian information criterion (Schwarz 1978)."""
        ny, nx = self.shape
        corners = np.array([[0, 0], [nx - 1, 0], [0, ny - 1], [nx - 1, ny - 1]], float)
        best = self.fit(sky, model, pairs, 0)
        for order in range(1, self.options.max_order + 1):
            unknowns = (order + 1) * (order + 2)
            if 2 * len(pairs) < 3 * unknowns:
                break
            other = self.fit(sky, model, pairs, order)
            if other.bic < best.bic - self.options.min_bic and other.error(corners).max() < 1:
                best = other
        return best

    # -- odds

    def log_odds(self, sky: _Sky, model: _Model, field: Index) -> float:
        """Natural logarithm of the odds that the model is true and not chance.

        Lang et al. 2010, section 3.4: a detection is a distractor with probability d or lies at a catalogue star
        within the errors; by chance it would lie anywhere. The density of chance is the catalogue's own, taken
        about each star, and as many of the best detections as the model has free points do not count. A catalogue
        may be shallower than the image, so the best of all cuts in brightness counts.
        """
        d = self.options.distractors
        ours = self.spread[: self.options.verify]
        scale = model.scale
        plane_all = _project(sky.vectors[field], model.ra, model.dec)
        corner = np.array([[0, 0], [0, self.shape[0]], [self.shape[1], 0], self.shape[::-1]], float)
        area = self.shape[0] * self.shape[1] * scale**2
        reach = np.abs(model.plane(corner)).max()
        inside = np.flatnonzero((np.abs(plane_all) < 1.1 * reach).all(axis=1))
        order = inside[np.argsort(sky.brightness[field[inside]], kind="stable")]
        free = max((4 if model.order == 0 else (model.order + 1) * (model.order + 2)) / 2, 2)
        best = -np.inf
        mine = model.plane(self.xy[ours])
        for depth in (len(ours), 4 * len(ours), 1 << 62):
            chosen = order[:depth]
            if len(chosen) < 4:
                continue
            plane = plane_all[chosen]
            tree = cKDTree(plane)
            k = min(6, len(chosen) - 1)
            distance, there = tree.query(mine)
            back = cKDTree(mine).query(plane[there])[1] == np.arange(len(mine))
            local = tree.query(plane[there], k + 1)[0][:, k]
            density = np.maximum(len(chosen) / area, k / (np.pi * np.maximum(local, 1e-12) ** 2))
            s2 = (self.xy_err[ours] * scale) ** 2 + (sky.error[field[chosen[there]]] ** 2).mean(axis=1)
            s2 = np.maximum(s2 + model.extra**2, (0.3 * scale) ** 2)
            likelihood = d + (1 - d) * np.exp(-0.5 * distance**2 / s2) / (2 * np.pi * s2 * density)
            gains = np.log(np.where(back, likelihood, d))
            gains[np.argsort(gains)[len(gains) - int(np.ceil(free)) :]] = 0
            best = max(best, float(np.cumsum(gains).max()))
            if depth >= len(order):
                break
        # three depths of the catalogue and as many of the detections as there are were tried
        return best - float(np.log(3 * len(ours)))


def _area(vectors: Array) -> float:
    """Steradians that a patch of stars covers, by its cap."""
    r = float(np.arccos(np.clip(vectors[:, 2].min(), -1, 1)))
    return float(np.pi * max(r, 1e-9) ** 2)


def _linear(terms: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted least squares of both columns and the larger of the two covariances."""
    coefficients = np.empty((terms.shape[1], 2))
    covariance = np.zeros((terms.shape[1], terms.shape[1]))
    for axis in (0, 1):
        root = np.sqrt(weight[:, axis])
        unit = float(root.max())
        q, r = np.linalg.qr(terms * (root / unit)[:, None])
        coefficients[:, axis] = np.linalg.lstsq(r, q.T @ (target[:, axis] * root / unit), rcond=None)[0]
        inverse = np.linalg.pinv(r) / unit
        other = inverse @ inverse.T
        covariance = other if np.trace(other) > np.trace(covariance) else covariance
    return coefficients, covariance


def _similarity(uv: Array, target: Array, weight: Array, mirrored: bool) -> tuple[Array, Array]:
    """Shift, turn and scale by least squares; `mirrored` where the determinant is positive."""
    w = weight / weight.sum()
    sign = 1.0 if mirrored else -1.0
    p = (uv[:, 0] + 1j * sign * uv[:, 1]) if not mirrored else uv[:, 0] + 1j * uv[:, 1]
    t = target[:, 0] + 1j * target[:, 1]
    p0, t0 = (w * p).sum(), (w * t).sum()
    spread = (w * np.abs(p - p0) ** 2).sum()
    z = (w * np.conj(p - p0) * (t - t0)).sum() / spread
    shift = t0 - z * p0
    coefficients = np.array([[shift.real, shift.imag], [z.real, z.imag], [-sign * z.imag, sign * z.real]])
    one = 1 / weight.sum()
    turn = one / spread
    c0 = np.array([p0.real, sign * p0.imag])
    covariance = np.diag([one + turn * float(c0 @ c0), turn, turn])
    covariance[0, 1:] = covariance[1:, 0] = -turn * c0
    return coefficients, covariance


def _extra_scatter(residual: Array, variance: Array, dof: float) -> float:
    """Variance per axis beyond the stated errors that gives the residuals their expected median."""
    r2 = residual**2
    goal = 2 * np.log(2) * dof  # median of chi^2 with two degrees of freedom

    def median(extra: float) -> float:
        return float(np.median((r2 / (variance + extra)).sum(axis=1)))

    if median(0.0) <= goal:
        return 0.0
    low, high = 0.0, float(r2.sum(axis=1).max())
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if median(middle) > goal else (low, middle)
    return (low + high) / 2


class _Sky:
    """A catalogue as unit vectors with errors in radian."""

    def __init__(self, catalogue: CatalogueStars, options: AstrometryOptions) -> None:
        self.stars = catalogue
        good = np.isfinite(catalogue.ra) & np.isfinite(catalogue.dec)
        self.vectors = np.where(good[:, None], _vectors(catalogue.ra, catalogue.dec), np.nan)
        error = np.column_stack([catalogue.ra_err, catalogue.dec_err])
        self.error = np.where(np.isfinite(error), error, options.catalogue_error) * 1e-3 * ARCSEC
        self.brightness = np.where(np.isfinite(catalogue.mag), catalogue.mag, np.inf)
        self.typical_error = float(np.median(self.error)) if len(catalogue) else 0.0

    def within(self, centre: Array, radius: float) -> Index:
        """Rows within `radius` (radian) of a direction."""
        chord = 2 * np.sin(min(radius, np.pi) / 2)
        unit = centre / np.linalg.norm(centre)
        return np.flatnonzero(((self.vectors - unit) ** 2).sum(axis=1) <= chord * chord)


def solve(
    stars: Stars,
    catalogue: CatalogueStars | Fetch,
    shape: tuple[int, int],
    *,
    guess: Guess,
    options: AstrometryOptions | None = None,
) -> Solution:
    """The WCS of an image from its stars and a catalogue.

    The search begins at `guess`, goes outward in a spiral as far as the catalogue (or `options.max_radius`) reaches,
    through several slices of brightness, and at last doubts the scale. A place is believed by its odds, raised by
    the number of places tried, never by a count of pairs.

    Parameters
    ----------
    stars : Stars
        Detections; SHARP ones are left out.
    catalogue : CatalogueStars or callable
        Stars at the epoch of the image, or ``fetch(ra, dec, radius)`` (degrees) that returns such.
    shape : tuple of int
        (ny, nx) of the image.
    guess : Guess
        See `first_guess`. Without a position the whole of a given catalogue is searched.
    options : AstrometryOptions, optional

    Returns
    -------
    Solution

    Raises
    ------
    SolveError
        If no place is likely enough, with what was tried and how near it came.
    """
    options = options or AstrometryOptions()
    solver = _Solver(stars, shape, options)
    if len(solver.rows) < 5:
        raise SolveError(f"{len(solver.rows)} usable stars are too few to find a place on the sky")
    low, high = guess.scale_range
    if not 0 < low <= high:
        raise ValueError(f"scale_range {guess.scale_range} is not a pair of positive, ascending scales")
    fixed = _Sky(catalogue, options) if isinstance(catalogue, CatalogueStars) else None
    if fixed is not None and len(fixed.stars) < 4:
        raise SolveError(f"the catalogue {fixed.stars.name!r} has {len(fixed.stars)} stars here, too few")
    place = _where(guess, fixed)
    skies: dict[tuple[float, float, float], _Sky] = {}
    visited = 0
    for leg in _plan(place, guess, solver, fixed, options):
        if fixed is not None:
            sky = fixed
        else:
            ra, dec = _radec(leg.centre)
            key = (round(ra, 6), round(dec, 6), round(float(np.degrees(leg.radius)), 6))
            if key not in skies:
                assert not isinstance(catalogue, CatalogueStars)
                skies[key] = _Sky(catalogue(*key), options)
            sky = skies[key]
        visited += 1
        model = solver.search(sky, leg, guess.parity or 0)
        if model is None:
            continue
        if fixed is None:
            assert not isinstance(catalogue, CatalogueStars)
            there = _frame(model.ra, model.dec)[2]
            need = 0.55 * solver.diagonal * model.scale
            if float(np.arccos(np.clip(there @ leg.centre, -1, 1))) + need > leg.radius:
                sky = _Sky(catalogue(model.ra, model.dec, float(np.degrees(need))), options)
        return _solution(solver, sky, model)
    name = fixed.stars.name if fixed is not None else "the catalogue"
    raise SolveError(
        f"no place on the sky for {len(solver.rows)} stars: {solver.tried} places in {visited} patches of {name} "
        f"about RA {_radec(place[0])[0]:.4f} Dec {_radec(place[0])[1]:+.4f} at {low:.3g} to {high:.3g} arcsec/px "
        f"tried, best ln(odds) {solver.best:.1f} (needed {options.min_log_odds + np.log(max(solver.tried, 1)):.1f}); "
        f"guess from {guess.source or 'the caller'}: give the centre and the pixel scale"
    )


def _where(guess: Guess, sky: _Sky | None) -> tuple[Array, float]:
    """Direction and radius (radian) to begin with."""
    if guess.ra is not None and guess.dec is not None:
        return _frame(guess.ra, guess.dec)[2], float(np.radians(guess.radius))
    if sky is None:
        raise SolveError(
            "neither the header nor the caller says where on the sky the image is: give its centre, "
            "or let solve-field (astrometry.net) find it"
        )
    mean = np.nanmean(sky.vectors, axis=0)
    mean = mean / np.linalg.norm(mean)
    return mean, float(np.arccos(np.clip(np.nanmin(sky.vectors @ mean), -1, 1)))


@dataclass(frozen=True, slots=True)
class _Leg:
    """One step of the search: a patch of the sky at one level of scale."""

    centre: Array  # unit vector
    radius: float  # radian
    scale: float  # nominal, radian per pixel
    window: float  # half of the level's width in ln(scale)
    rounds: int  # of `_ROUNDS`


def _plan(
    place: tuple[Array, float], guess: Guess, solver: _Solver, sky: _Sky | None, options: AstrometryOptions
) -> Iterator[_Leg]:
    """The legs of the search, the likeliest first: about the guess, further out, at scales that nobody named."""
    low, high = guess.scale_range
    levels = _levels(low, high)
    near, far = place[1], float(np.radians(options.max_radius))
    stages = [(level, near, len(_ROUNDS)) for level in levels]
    # a scale that is unknown too would make a search far out last for minutes
    if far > near and len(levels) <= 4:
        stages += [(level, far, 3) for level in levels]
    if options.widen_scale > 1 and guess.scale is not None:
        wide = _levels(low / options.widen_scale, low) + _levels(high, high * options.widen_scale)
        stages += [(level, near, 2) for level in wide]
    seen: dict[float, NDArray[np.bool_]] = {}
    began: set[tuple[float, int]] = set()
    for (scale, window), reach, rounds in stages:
        half = 0.55 * solver.diagonal * scale * float(np.exp(window))
        # a patch holds a few fields: the fewer, the fewer triangles that mean nothing
        cover = max(min(near, 3.3 * solver.width * scale), half)
        net = _spiral(_frame(*_radec(place[0])), np.sqrt(3) * cover, 0.0 if reach <= cover else reach)
        for number, centre in enumerate(net):
            if (scale, number) in began:
                continue
            began.add((scale, number))
            if sky is not None:
                mask = seen.setdefault(scale, np.zeros(len(sky.stars), bool))
                rows = sky.within(centre, cover + half)
                if (~mask[rows]).sum() < 4:
                    continue
                mask[rows] = True
            yield _Leg(centre, cover + half, scale, window, rounds)


def _levels(low: float, high: float) -> list[tuple[float, float]]:
    """Nominal scales (radian per pixel) with half their window in ln(scale), from the middle outwards."""
    span = float(np.log(high / low))
    n = max(1, int(np.ceil(span / _LEVEL - 1e-9)))
    middle = [np.log(low) + span * (i + 0.5) / n for i in range(n)]
    middle.sort(key=lambda v: abs(v - np.log(low * high) / 2))
    return [(float(np.exp(v)) * ARCSEC, max(span / n / 2, 0.01) + 0.01) for v in middle]


# --- the solution ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroPoint:
    """Photometric zero point: ``mag = zp - 2.5 log10(flux)``."""

    zp: float  #: magnitude of 1 ADU
    err: float  #: standard error of `zp`, magnitude
    scatter: float  #: robust standard deviation of one star, magnitude; colour terms included
    n: int  #: stars behind it
    limiting_mag: float  #: magnitude of a star with 5 times the noise of the sky under its PSF
    band: str  #: of the catalogue


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Solution:
    """An image's place on the sky."""

    wcs: WCS  #: TAN or TAN-SIP
    pairs: Index  #: (n, 2) rows of the detections and of `catalogue`
    residuals: Array  #: (n, 2) catalogue minus solution along east and north, arcsec
    expected: Array = field(repr=False)  #: (n, 2) error of each residual that the stated errors and `extra` predict
    rms_ra: float  #: arcsec
    rms_dec: float  #: arcsec
    log_odds: float  #: natural logarithm of the odds against chance
    order: int  #: of the polynomial; 1 is a plain TAN
    scale: float  #: arcsec per pixel at the centre
    rotation: float  #: position angle of the image's +y axis, from north through east, degree
    parity: int  #: +1 as on the sky (det CD < 0), -1 mirrored
    extra: float  #: scatter per axis beyond the stated errors, arcsec
    shape: tuple[int, int]  #: of the image
    catalogue: CatalogueStars = field(repr=False)  #: what it was solved against
    xy: Array = field(repr=False)  #: (n, 2) the pairs' pixels
    model: Any = field(repr=False)

    @property
    def n(self) -> int:
        """Stars behind it."""
        return len(self.pairs)

    @property
    def name(self) -> str:
        """Of the catalogue."""
        return self.catalogue.name

    @property
    def epoch(self) -> float:
        """Julian year of the catalogue's positions."""
        return self.catalogue.epoch

    @property
    def centre(self) -> tuple[float, float]:
        """Right ascension and declination of the image's centre, degree."""
        return self.model.ra, self.model.dec

    def header(self, kind: Literal["sip", "tpv"] = "sip") -> fits.Header:
        """The WCS cards: one representation, ICRS.

        Parameters
        ----------
        kind : {"sip", "tpv"}
            TAN-SIP (ds9, GAIA, astropy, Siril) or TPV (SExtractor, SWarp, SCAMP). Both are the same polynomial.

        Returns
        -------
        astropy.io.fits.Header
        """
        if kind not in ("sip", "tpv"):
            raise ValueError(f"kind is {kind!r}, not 'sip' or 'tpv'")
        header = _wcs_cards(self.model, self.shape, kind)
        header["ASTRRMS1"] = (self.rms_ra / 3600, "[deg] rms of the stars along RA")
        header["ASTRRMS2"] = (self.rms_dec / 3600, "[deg] rms of the stars along Dec")
        header["ASTRNUM"] = (self.n, "stars behind the astrometric solution")
        header["ASTRCAT"] = (self.name[:60], "catalogue")
        header["ASTREPOC"] = (round(self.epoch, 6), "[yr] Julian epoch of the catalogue positions")
        header["ASTRODDS"] = (round(self.log_odds, 1), "ln(odds) against a chance match")
        return header

    def zero_point(self, stars: Stars, *, noise: float | None = None, fwhm: float | None = None) -> ZeroPoint:
        """Zero point of the image's magnitudes in the catalogue's band.

        Parameters
        ----------
        stars : Stars
            The detections that were solved.
        noise : float, optional, ADU
            Standard deviation of the sky in one pixel. With `fwhm` it gives the limiting magnitude,
            5 noise sqrt(4 pi) FWHM/2.355 being the flux of a 5-sigma star; without, the errors of the faintest
            detections do.
        fwhm : float, optional, pixel

        Returns
        -------
        ZeroPoint
            All NaN where no pair has both flux and magnitude.
        """
        flux, mag = stars.flux[self.pairs[:, 0]], self.catalogue.mag[self.pairs[:, 1]]
        clean = ~stars.has(StarFlag.SATURATED | StarFlag.BLENDED | StarFlag.EDGE)[self.pairs[:, 0]]
        good = (flux > 0) & np.isfinite(flux) & np.isfinite(mag)
        good = good & clean if (good & clean).sum() >= 5 else good
        if not good.any():
            nan = float("nan")
            return ZeroPoint(zp=nan, err=nan, scatter=nan, n=0, limiting_mag=nan, band=self.catalogue.band)
        value = mag[good] + 2.5 * np.log10(flux[good])
        keep = np.ones(len(value), bool)
        for _ in range(5):
            zp = float(np.median(value[keep]))
            scatter = 1.4826 * float(np.median(np.abs(value[keep] - zp)))
            now = np.abs(value - zp) <= 4 * max(scatter, 1e-3)
            if np.array_equal(now, keep):
                break
            keep = now
        n = int(keep.sum())
        if noise is not None and fwhm is not None:
            limit = 5 * noise * np.sqrt(4 * np.pi) * fwhm / 2.3548
        else:
            faint = stars.flux_err[np.isfinite(stars.flux_err) & (stars.flux_err > 0)]
            limit = 5 * float(np.quantile(faint, 0.1)) if len(faint) else np.nan
        return ZeroPoint(
            zp=zp,
            err=float(1.2533 * scatter / np.sqrt(n)),
            scatter=scatter,
            n=n,
            limiting_mag=zp - 2.5 * float(np.log10(limit)),
            band=self.catalogue.band,
        )


def _solution(solver: _Solver, sky: _Sky, model: _Model) -> Solution:
    """Pairs, residuals and figures of the final model."""
    from astropy.wcs import WCS

    field_rows = sky.within(_frame(model.ra, model.dec)[2], 0.6 * solver.diagonal * model.scale)
    pairs = np.empty((0, 2), np.intp)
    for _ in range(3):
        pairs = solver.match(sky, model, np.arange(len(solver.xy)), field_rows, _wide(solver, sky, model, field_rows))
        model = solver.fit(sky, model, pairs, model.order)
        residual = _project(sky.vectors[pairs[:, 1]], model.ra, model.dec) - model.plane(solver.xy[pairs[:, 0]])
        noise = solver.noise(sky, pairs, model)
        # the fit is robust and does not need them, but within a pixel it is the same star all the same
        keep = ((residual / noise) ** 2).sum(axis=1) < solver.options.clip**2
        keep |= np.hypot(*residual.T) < model.scale
        pairs, residual, noise = pairs[keep], residual[keep] / ARCSEC, noise[keep] / ARCSEC
    matrix = model.matrix
    odds = solver.log_odds(sky, model, field_rows)
    return Solution(
        wcs=WCS(_wcs_cards(model, solver.shape, "sip")),
        pairs=np.column_stack([solver.rows[pairs[:, 0]], pairs[:, 1]]),
        residuals=residual,
        expected=noise,
        rms_ra=float(np.sqrt((residual[:, 0] ** 2).mean())),
        rms_dec=float(np.sqrt((residual[:, 1] ** 2).mean())),
        log_odds=odds,
        order=max(model.order, 1),
        scale=model.scale / ARCSEC,
        rotation=float(np.degrees(np.arctan2(matrix[0, 1], matrix[1, 1]))),
        parity=-1 if np.linalg.det(matrix) > 0 else 1,
        extra=model.extra / ARCSEC,
        shape=solver.shape,
        catalogue=sky.stars,
        xy=solver.xy[pairs[:, 0]],
        model=model,
    )


def _wide(solver: _Solver, sky: _Sky, model: _Model, rows: Index) -> float:
    """Matching radius that loses no pair within the clipping limit, radian."""
    ours = min(float(solver.xy_err.max()), 2.0) * model.scale
    theirs = float(np.quantile(sky.error[rows], 0.98))
    return solver.options.clip * float(np.sqrt(ours**2 + theirs**2 + model.extra**2))


def _wcs_cards(model: _Model, shape: tuple[int, int], kind: str) -> fits.Header:
    """The model as FITS cards."""
    from astropy.io import fits

    order = max(model.order, 1)
    powers = _powers(order)
    degrees = np.degrees(model.coefficients) / np.array([model.half ** (p + q) for p, q in powers])[:, None]
    cd = degrees[1:3].T
    name = "TPV" if kind == "tpv" else "TAN-SIP" if order > 1 else "TAN"
    header = fits.Header()
    header["WCSAXES"] = (2, "celestial axes")
    header["CTYPE1"] = (f"RA---{name}", "projection")
    header["CTYPE2"] = (f"DEC--{name}", "projection")
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRVAL1"] = (model.ra, "[deg] right ascension of the reference pixel")
    header["CRVAL2"] = (model.dec, "[deg] declination of the reference pixel")
    header["CRPIX1"] = (model.origin[0] + 1, "reference pixel (first is 1)")
    header["CRPIX2"] = (model.origin[1] + 1, "reference pixel (first is 1)")
    for i in (0, 1):
        for j in (0, 1):
            header[f"CD{i + 1}_{j + 1}"] = (cd[i, j], "[deg/pixel]")
    header["RADESYS"] = ("ICRS", "celestial reference system")
    header["EQUINOX"] = (2000.0, "[yr]")
    if kind == "tpv":
        for key, value in _tpv(degrees, cd, order, shape):
            header[key] = value
    elif order > 1:
        ab = np.linalg.solve(cd, degrees[3:].T)
        for letter, column in zip("AB", ab, strict=True):
            header[f"{letter}_ORDER"] = (order, "SIP: pixels to sky")
            for (p, q), value in zip(powers[3:], column, strict=True):
                header[f"{letter}_{p}_{q}"] = value
        back, terms = _inverse_sip(ab, order, shape)
        for letter, column in zip(("AP", "BP"), terms.T, strict=True):
            header[f"{letter}_ORDER"] = (back, "SIP: sky to pixels")
            for (p, q), value in zip(_powers(back), column, strict=True):
                header[f"{letter}_{p}_{q}"] = value
    return header


def _net(shape: tuple[int, int], n: int = 24) -> Array:
    """(n * n, 2) pixel offsets from the centre that cover an image with a little margin."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.52, 0.52, n) * nx, np.linspace(-0.52, 0.52, n) * ny)
    return np.column_stack([x.ravel(), y.ravel()])


def _inverse_sip(ab: Array, order: int, shape: tuple[int, int]) -> tuple[int, Array]:
    """Order and (m, 2) coefficients of the SIP polynomials from sky to pixels, good to 0.001 pixel if possible."""
    uv = _net(shape)
    full = uv + _terms(uv, order)[:, 3:] @ ab.T
    half = max(shape) / 2
    for back in range(order, 10):
        terms = _terms(full / half, back)
        fit = np.linalg.lstsq(terms, uv - full, rcond=None)[0]
        if np.abs(terms @ fit - (uv - full)).max() < 1e-3:
            break
    return back, fit / np.array([half ** (p + q) for p, q in _powers(back)])[:, None]


def _tpv(degrees: Array, cd: Array, order: int, shape: tuple[int, int]) -> Iterator[tuple[str, float]]:
    """PV cards: the same polynomials in the linear world coordinates.

    Numbered as in the TPV convention (registry of FITS conventions): within one degree by falling powers of the
    axis's own coordinate, the odd powers of the radius (3, 11, 23) being unused.
    """
    uv = _net(shape)
    linear = uv @ cd.T
    size = float(np.abs(linear).max())
    plane = _terms(uv, order) @ degrees
    for axis in (0, 1):
        own = linear[:, ::-1] if axis else linear
        fit = np.linalg.lstsq(_terms(own / size, order), plane[:, axis], rcond=None)[0]
        number = 0
        for (p, q), value in zip(_powers(order), fit, strict=True):
            if number in (3, 11, 23):
                number += 1
            yield f"PV{axis + 1}_{number}", float(value / size ** (p + q))
            number += 1


def plots(solution: Solution, path: str | Path) -> None:
    """Residuals as vectors over the image and as histograms.

    Parameters
    ----------
    solution : Solution
    path : path-like
        Where to; the suffix chooses the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rms = float(np.hypot(solution.rms_ra, solution.rms_dec))
    # residuals are along east and north; the arrows stand in pixels
    arrows = np.linalg.solve(solution.model.matrix / ARCSEC, solution.residuals.T).T
    length = 0.06 * max(solution.shape) / max(rms / solution.scale, 1e-9)
    quiver = left.quiver(
        *solution.xy.T, *(arrows * length).T, angles="xy", scale_units="xy", scale=1, width=0.002, color="C0"
    )
    left.quiverkey(quiver, 0.85, 1.03, rms / solution.scale * length, f'{rms:.3g}"', labelpos="E")
    left.set(xlim=(0, solution.shape[1]), ylim=(0, solution.shape[0]), aspect="equal", xlabel="x [px]", ylabel="y [px]")
    left.set_title(f"{solution.n} stars of {solution.name or 'the catalogue'}, order {solution.order}", loc="left")
    limit = 4 * max(solution.rms_ra, solution.rms_dec)
    for values, label, value in zip(
        solution.residuals.T, ("RA cos Dec", "Dec"), (solution.rms_ra, solution.rms_dec), strict=True
    ):
        right.hist(values, bins=33, range=(-limit, limit), histtype="step", label=f'{label}: rms {value:.3g}"')
    right.set(xlabel="catalogue - solution [arcsec]", ylabel="stars")
    right.margins(y=0.2)
    right.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=110)
