"""Where on the sky an image lies: stars + catalogue -> WCS.

The search lays triangles of detections over triangles of catalogue stars (on the sphere, so that no patch is too
large), and the odds of Lang et al. 2010 (AJ 139, 1782) decide whether the place that a pair of triangles proposes is
true. The fit that follows is a weighted least-squares fit in the tangent plane: a similarity, an affine map, then
the SIP polynomial (Shupe et al. 2005, ASP 347, 491) that the residuals justify.

Detections are 0-based pixels, ``(x, y)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fastack import _sky
from fastack.errors import CatalogueError, SolveError
from fastack.guess import Guess
from fastack.options import AstrometryOptions
from fastack.plate import Plate, fit_plate, power_terms
from fastack.solution import Solution
from fastack.sphere import ARCSEC, deproject, local_frame, project, radec, spiral, unit_vectors
from fastack.types import Array, CatalogueStars, StarFlag, Stars

Fetch = Callable[[float, float, float], CatalogueStars]
Index = NDArray[np.intp]


_ROUNDS = (
    (0, 24, 0, 24, 0.5),
    (0, 40, 0, 40, 0.35),
    (0, 24, 0, 16, 1.0),
    (0, 40, 16, 56, 0.4),
    (16, 56, 0, 40, 0.4),
    (0, 100, 0, 100, 0.2),
)
_BINS = 96
_FAR_CONE = np.radians(1.5)  # radius of a request beyond the guess: some thirty of them reach 5 degrees
_LEVEL = 0.45  # ln(scale) covered by one level of the search
_REPORT, _SURE, _BAIL = 8.0, 25.0, -6.0
_LENS = 1 / 3  # weight in the error of the map of a lens that the stars neither suggest nor exclude
_ALONE = 40  # stars up to which one of them may decide a corner


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
        x, y = (np.linspace(-0.5, size - 0.5, 5) for size in shape[::-1])
        self.corners = np.stack([v.ravel() for v in np.meshgrid(x, y)], axis=1)  # and places between them
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

    def search(self, sky: _Sky, leg: _Leg, parity: int) -> Plate | None:
        """Look for the image in one patch of the sky at one level of scale."""
        centre, radius, scale, window = leg.centre, leg.radius, leg.scale, leg.window
        options, width = self.options, self.width * scale
        frame = local_frame(*radec(centre))
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
            ours, shape, sign = ours[order] + np.int32(d0), shape[order], sign[order]
            names = np.asarray(chosen, np.int32)
            start, theirs, sky_shape, sky_sign = _sky.binned(theirs, sky_shape, sky_sign, names, _BINS)
            first = 0
            while first < len(ours):
                places, odds, first, tried = _sky.search(
                    camera,
                    ours,
                    shape,
                    sign,
                    patch.vectors,
                    patch.density,
                    theirs,
                    sky_shape,
                    sky_sign,
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

    def refine(self, sky: _Sky, place: Array, frame: Array, scale: float) -> Plate | None:
        """Turn a proposed place into a fitted model; None where the odds are against it."""
        ra, dec = radec(place[:, 2] @ frame)
        net = np.array([[-1, -1], [1, -1], [0, 0], [-1, 1], [1, 1]]) * self.half + self.origin
        uv = np.column_stack([(net - self.origin) * scale, np.ones(len(net))])
        plane = project(uv @ place.T @ frame, ra, dec)
        terms = power_terms((net - self.origin) / self.half, 1)
        coefficients: Array = np.asarray(np.linalg.lstsq(terms, plane, rcond=None)[0], np.float64)
        model = Plate(
            ra=ra,
            dec=dec,
            origin=self.origin,
            half=self.half,
            order=0,
            coefficients=coefficients,
            covariance=np.zeros((3, 3)),
        )
        near = sky.within(deproject(np.zeros((1, 2)), ra, dec)[0], 0.6 * self.diagonal * model.scale)
        if len(near) < 4:
            return None
        few = self.spread[: self.options.verify]
        bright = near[np.argsort(sky.brightness[near], kind="stable")]
        tolerance = 5 * np.hypot(self.options.centroid * model.scale, sky.typical_error)
        detections, known = few, bright[: 2 * len(few)]
        last: NDArray[Any] = np.empty(0)
        for step in range(12):
            if step == 3:
                if self.log_odds(sky, model, near) < self.options.min_log_odds / 2:
                    return None
                detections, known = np.arange(len(self.xy)), bright
            pairs = self.match(sky, model, detections, known, tolerance)
            if len(pairs) < 4:
                return None
            kind = (0, False) if step < 3 else (model.order, model.radial)
            model = self.fit(sky, model, pairs, *kind)
            if step >= 3:
                # distortion that is not in the model yet shows in pairs further apart than the clipping limit
                wide = self.match(sky, model, detections, known, max(tolerance, self.reach(model, near)))
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

    def reach(self, model: Plate, near: Index) -> float:
        """Distance, radian, within which a star is hardly ever another one: part of the mean distance of stars."""
        return float(0.15 * model.scale * min(self.diagonal / np.sqrt(len(near)), 50.0))

    def match(self, sky: _Sky, model: Plate, ours: Index, theirs: Index, tolerance: float) -> Index:
        """(n, 2) detections and catalogue rows that are each other's nearest within `tolerance` (radian)."""
        mine = model.plane(self.xy[ours])
        plane = project(sky.vectors[theirs], model.ra, model.dec)
        distance, there = cKDTree(plane).query(mine, distance_upper_bound=tolerance)
        hit = np.flatnonzero(np.isfinite(distance))
        back = cKDTree(mine).query(plane[there[hit]])[1]
        hit = hit[back == hit]
        return np.column_stack([ours[hit], theirs[there[hit]]])

    def noise(self, sky: _Sky, pairs: Index, model: Plate) -> Array:
        """(n, 2) error of each pair's residual in the tangent plane, radian, the extra scatter included."""
        ours = self.xy_err[pairs[:, 0]] * model.scale
        return np.sqrt(ours[:, None] ** 2 + sky.error[pairs[:, 1]] ** 2 + model.extra**2)

    def fit(self, sky: _Sky, model: Plate, pairs: Index, order: int, radial: bool = False) -> Plate:
        """The plate of one kind that pairs of stars lead to, from `model`."""
        ours, theirs = pairs.T
        stars = self.xy[ours], sky.vectors[theirs], self.xy_err[ours], sky.error[theirs]
        return fit_plate(model, *stars, order=order, radial=radial, clip=self.options.clip)

    def kinds(self, sky: _Sky, model: Plate, pairs: Index) -> list[Plate]:
        """Plates of every kind for which there are pairs enough, the simplest first."""
        kinds = [(0, False), (1, False), (3, True), *((n, False) for n in range(2, self.options.max_order + 1))]
        enough = {0: 4, 1: 5} | {n: 3 * (n + 1) * (n + 2) / 2 for n in range(2, self.options.max_order + 1)}
        return [
            self.fit(sky, model, pairs, order, radial)
            for order, radial in kinds
            if order <= self.options.max_order and len(pairs) >= (8 if radial else enough[order])
        ]

    def choose(self, sky: _Sky, model: Plate, pairs: Index) -> Plate:
        """The kind of plate that the residuals justify.

        A bent one has to be far more probable than the straight one (`min_bic`). Among those the one that predicts
        best is taken, not the simplest: what bends an image has a little of every term.
        """
        kinds = self.kinds(sky, model, pairs)
        straight = kinds[0]
        if len(kinds) > 1 and kinds[1].bic < straight.bic - self.options.min_bic:
            straight = kinds[1]
        bent = []
        for kind in kinds[2:]:
            # where the stars end, a larger model may know less than the bend that it corrects
            bend = np.hypot(*self.deviation(kind, straight).T).max() / straight.scale
            if kind.bic < straight.bic - self.options.min_bic and kind.error(self.corners).max() < max(1.0, bend / 2):
                bent.append(kind)
        return min(bent, key=lambda kind: kind.aic, default=straight)

    def map_error(self, sky: _Sky, model: Plate, pairs: Index) -> float:
        """Distance from the true coordinates to be expected where it is largest in the image, radian.

        It comes from the errors of the fit, and from not knowing which kind of plate is true: the other kinds deviate
        from the chosen one, most of all where the stars end, and count by their Akaike weights, exp(-AIC / 2).
        Corrected for few stars that criterion takes their errors for unknown, and then ten of them prove no bend,
        however well it fits. A lens therefore has at least the odds `_LENS` : 1 - `_LENS`, times the ratio of the
        likelihoods where it fits worse than the chosen kind; where it fits better, times the weight that the mean of
        both criteria gives it, since the errors are half known: catalogue and centroids state them, the scatter beyond
        is fitted.
        """
        kinds = self.kinds(sky, model, pairs)
        weight = np.array([k.aic for k in kinds])
        weight = np.exp(-0.5 * (weight - weight.min()))
        weight /= weight.sum()
        chosen = next(k for k in kinds if (k.order, k.radial) == (model.order, model.radial))
        for number, kind in enumerate(kinds):
            if kind.radial:
                worse = min(0.0, (chosen.deviance - kind.deviance) / 2)
                better = max(0.0, (chosen.uncorrected_aic + chosen.aic - kind.uncorrected_aic - kind.aic) / 4)
                odds = _LENS / (1 - _LENS) * float(np.exp(min(worse + better, 100.0)))
                least = odds / (1 + odds)
                if weight[number] < least:
                    weight *= (1 - least) / (1 - weight[number])
                    weight[number] = least
        distance = np.zeros(len(self.corners))
        for share, other in zip(weight, kinds, strict=True):
            off2 = (self.deviation(other, model) ** 2).sum(axis=1)
            # the mean of a Rice distribution, within 4 %
            distance += share * np.sqrt(off2 + np.pi / 2 * (other.error(self.corners) * other.scale) ** 2)
        return float(max(distance.max(), np.sqrt(np.pi / 2 * self.jackknife(sky, model, pairs).max())))

    def jackknife(self, sky: _Sky, model: Plate, pairs: Index) -> Array:
        """(n,) variance per axis at `corners`, radian^2, as leaving out each star in turn shows it (Tukey 1958).

        A star that is taken for another one and stands alone in its corner draws the map along and leaves no residual;
        this tells. With more stars than `_ALONE` none is alone.
        """
        n = len(pairs)
        if n > _ALONE:
            return np.zeros(len(self.corners))
        off2 = np.zeros(len(self.corners))
        for k in range(n):
            other = self.fit(sky, model, np.delete(pairs, k, axis=0), model.order, model.radial)
            off2 += (self.deviation(other, model) ** 2).sum(axis=1)
        return off2 * (n - 1) / n / 2

    def deviation(self, one: Plate, other: Plate) -> Array:
        """(n, 2) difference of two plates at `corners`, radian in the tangent plane of the second."""
        there = project(deproject(one.plane(self.corners), one.ra, one.dec), other.ra, other.dec)
        return there - other.plane(self.corners)

    # -- odds

    def log_odds(self, sky: _Sky, model: Plate, field: Index) -> float:
        """Natural logarithm of the odds that the model is true and not chance.

        Lang et al. 2010, section 3.4: a detection is a distractor with probability d or lies at a catalogue star
        within the errors; by chance it would lie anywhere. The density of chance is the catalogue's own, taken
        about each star, and as many of the best detections as the model has free points do not count. A catalogue
        may be shallower than the image, so the best of all cuts in brightness counts.
        """
        d = self.options.distractors
        ours = self.spread[: self.options.verify]
        scale = model.scale
        plane_all = project(sky.vectors[field], model.ra, model.dec)
        corner = np.array([[0, 0], [0, self.shape[0]], [self.shape[1], 0], self.shape[::-1]], float)
        area = self.shape[0] * self.shape[1] * scale**2
        reach = np.abs(model.plane(corner)).max()
        inside = np.flatnonzero((np.abs(plane_all) < 1.1 * reach).all(axis=1))
        order = inside[np.argsort(sky.brightness[field[inside]], kind="stable")]
        free = model.free / 2
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


class _Sky:
    """A catalogue as unit vectors with errors in radian."""

    def __init__(self, catalogue: CatalogueStars, options: AstrometryOptions) -> None:
        self.stars = catalogue
        good = np.isfinite(catalogue.ra) & np.isfinite(catalogue.dec)
        self.vectors = np.where(good[:, None], unit_vectors(catalogue.ra, catalogue.dec), np.nan)
        error = np.column_stack([catalogue.ra_err, catalogue.dec_err])
        self.error = np.where(np.isfinite(error), error, options.catalogue_error) * 1e-3 * ARCSEC
        self.brightness = np.where(np.isfinite(catalogue.mag), catalogue.mag, np.inf)
        self.typical_error = float(np.median(self.error)) if len(catalogue) else 0.0

    def within(self, centre: Array, radius: float) -> Index:
        """Rows within `radius` (radian) of a direction."""
        chord = 2 * np.sin(min(radius, np.pi) / 2)
        unit = centre / np.linalg.norm(centre)
        return np.flatnonzero(((self.vectors - unit) ** 2).sum(axis=1) <= chord * chord)


class _Cones:
    """Catalogue stars by cones, as few and as large as a server likes them."""

    def __init__(self, fetch: Any, place: Array, options: AstrometryOptions, at_least: float = 0.0) -> None:
        self.fetch = fetch
        self.frame = local_frame(*radec(place))
        self.options = options
        self.at_least = at_least
        self.parts: list[tuple[Array, float, _Sky]] = []

    def about(self, centre: Array, radius: float) -> _Sky:
        """Stars within `radius` (radian) of a direction, and more."""
        for there, reach, sky in self.parts:
            if float(np.arccos(np.clip(there @ centre, -1, 1))) + radius < reach + 1e-6:
                return sky
        reach = radius
        if self.at_least:
            # on a net whose nodes are as far apart as they may be for a cone of `radius` to fit into one of theirs
            reach = max(2 * radius, self.at_least)
            width = np.radians(self.options.max_radius) + reach
            net = spiral(self.frame, np.sqrt(3) * (reach - radius), float(width))
            centre = net[np.argmax(net @ centre)]
        sky = _Sky(self.fetch(*radec(centre), float(np.degrees(reach))), self.options)
        self.parts.append((centre, reach, sky))
        return sky


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
        Stars at the epoch of the image, or ``fetch(ra, dec, radius)`` (degrees) that returns such. Cones of 1.5 degree
        are asked for when the search goes beyond the guess; their brightest stars will do.
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
    near = fixed or _Cones(catalogue, place[0], options)
    far = fixed or _Cones(catalogue, place[0], options, at_least=_FAR_CONE)
    visited, failure = 0, ""
    for leg in _plan(place, guess, solver, fixed, options):
        stock = far if leg.far else near
        try:
            sky = stock if isinstance(stock, _Sky) else stock.about(leg.centre, leg.radius)
        except CatalogueError as error:
            if not leg.far:
                raise
            failure = f"; no stars to look further out: {error}"
            break
        visited += 1
        model = solver.search(sky, leg, guess.parity or 0)
        if model is None:
            continue
        if not isinstance(near, _Sky):
            # the whole depth of the catalogue, over the whole of the image
            there = local_frame(model.ra, model.dec)[2]
            sky = near.about(there, 0.55 * solver.diagonal * model.scale)
            rows = sky.within(there, 0.55 * solver.diagonal * model.scale)
            pairs = solver.match(sky, model, np.arange(len(solver.xy)), rows, solver.reach(model, rows))
            model = solver.choose(sky, model, pairs)
        return _believed(_solution(solver, sky, model), options)
    known = [fixed] if fixed is not None else [part[2] for part in (*_parts(near), *_parts(far))]
    name = known[0].stars.name if known else "the catalogue"
    if not any(len(sky.within(place[0], np.radians(options.max_radius))) >= 4 for sky in known):
        raise SolveError(
            f"the catalogue {name!r} has no stars about RA {radec(place[0])[0]:.4f} Dec {radec(place[0])[1]:+.4f},"
            f" where the image should be by {guess.source or 'the caller'}{failure}: give another catalogue, or the"
            " centre"
        )
    raise SolveError(
        f"no place on the sky for {len(solver.rows)} stars: {solver.tried} places in {visited} patches of {name} "
        f"about RA {radec(place[0])[0]:.4f} Dec {radec(place[0])[1]:+.4f} at {low:.3g} to {high:.3g} arcsec/px "
        f"tried, best ln(odds) {solver.best:.1f} (needed {options.min_log_odds + np.log(max(solver.tried, 1)):.1f}); "
        f"guess from {guess.source or 'the caller'}: give the centre and the pixel scale{failure}"
    )


def _parts(stock: _Sky | _Cones) -> list[tuple[Array, float, _Sky]]:
    """What was fetched of a catalogue so far."""
    return stock.parts if isinstance(stock, _Cones) else []


def _believed(solution: Solution, options: AstrometryOptions) -> Solution:
    """Refuse a place that is true but too vague to give every pixel its coordinates."""
    worst = solution.map_error / solution.scale
    if worst > options.max_map_error:
        raise SolveError(
            f"{solution.n} stars of {solution.name} tell where the image is (RA {solution.centre[0]:.4f} Dec"
            f" {solution.centre[1]:+.4f}, ln(odds) {solution.log_odds:.0f}), but leave its coordinates uncertain by"
            f" {worst:.2g} px in a corner: more stars would help (a deeper stack or catalogue), or accept it with"
            f" --max-map-error {np.ceil(worst):.0f}"
        )
    return solution


def _where(guess: Guess, sky: _Sky | None) -> tuple[Array, float]:
    """Direction and radius (radian) to begin with."""
    if guess.ra is not None and guess.dec is not None:
        return local_frame(guess.ra, guess.dec)[2], float(np.radians(guess.radius))
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
    far: bool  # from where the guess expects the image


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
        # triangles as wide as the field are the most, and hardly ever the ones that find it
        stages += [(level, far, 2) for level in levels]
    if options.widen_scale > 1 and guess.scale is not None:
        wide = _levels(low / options.widen_scale, low) + _levels(high, high * options.widen_scale)
        stages += [(level, near, 2) for level in wide]
    seen: dict[float, NDArray[np.bool_]] = {}
    began: set[tuple[float, int]] = set()
    for (scale, window), reach, rounds in stages:
        half = 0.55 * solver.diagonal * scale * float(np.exp(window))
        # a patch holds a few fields: the fewer, the fewer triangles that mean nothing
        cover = max(min(near, 3.3 * solver.width * scale), half)
        net = spiral(local_frame(*radec(place[0])), np.sqrt(3) * cover, 0.0 if reach <= cover else reach)
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
            yield _Leg(centre, cover + half, scale, window, rounds, reach > near)


def _levels(low: float, high: float) -> list[tuple[float, float]]:
    """Nominal scales (radian per pixel) with half their window in ln(scale), from the middle outwards."""
    span = float(np.log(high / low))
    n = max(1, int(np.ceil(span / _LEVEL - 1e-9)))
    middle = [np.log(low) + span * (i + 0.5) / n for i in range(n)]
    middle.sort(key=lambda v: abs(v - np.log(low * high) / 2))
    return [(float(np.exp(v)) * ARCSEC, max(span / n / 2, 0.01) + 0.01) for v in middle]


def _solution(solver: _Solver, sky: _Sky, model: Plate) -> Solution:
    """Pairs, residuals and figures of the final model."""
    from astropy.wcs import WCS

    field_rows = sky.within(local_frame(model.ra, model.dec)[2], 0.6 * solver.diagonal * model.scale)
    pairs = np.empty((0, 2), np.intp)
    for _ in range(3):
        pairs = solver.match(sky, model, np.arange(len(solver.xy)), field_rows, _wide(solver, sky, model, field_rows))
        model = solver.fit(sky, model, pairs, model.order, model.radial)
        residual = project(sky.vectors[pairs[:, 1]], model.ra, model.dec) - model.plane(solver.xy[pairs[:, 0]])
        noise = solver.noise(sky, pairs, model)
        # a detection that may be pixels off is not that star's because something is there within its error
        doubt = np.minimum(noise, np.maximum(3 * np.median(noise, axis=0), model.scale))
        keep = ((residual / doubt) ** 2).sum(axis=1) < solver.options.clip**2
        # the fit is robust and does not need them, but within a pixel it is the same star all the same
        keep |= np.hypot(*residual.T) < model.scale
        pairs, residual, noise = pairs[keep], residual[keep] / ARCSEC, noise[keep] / ARCSEC
    wide = max(_wide(solver, sky, model, field_rows), solver.reach(model, field_rows))
    wide_pairs = solver.match(sky, model, np.arange(len(solver.xy)), field_rows, wide)
    matrix = model.matrix
    odds = solver.log_odds(sky, model, field_rows)
    return Solution(
        wcs=WCS(model.cards(solver.shape, "sip")),
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
        map_error=solver.map_error(sky, model, wide_pairs) / ARCSEC,
        shape=solver.shape,
        catalogue=sky.stars,
        xy=solver.xy[pairs[:, 0]],
        model=model,
    )


def _wide(solver: _Solver, sky: _Sky, model: Plate, rows: Index) -> float:
    """Matching radius that loses no pair within the clipping limit, radian."""
    ours = min(float(solver.xy_err.max()), 2.0) * model.scale
    theirs = float(np.quantile(sky.error[rows], 0.98))
    return solver.options.clip * float(np.sqrt(ours**2 + theirs**2 + model.extra**2))
