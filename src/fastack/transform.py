"""From pairs of stars to a transform: robust, weighted, with no more terms than the residuals justify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf, lgamma, log, log1p
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastack import _stars
from fastack.errors import FrameError, MatchError
from fastack.match import match
from fastack.options import MatchOptions, TransformOptions
from fastack.types import Array, Pairs, StarFlag, Stars, Transform

Mask = NDArray[np.bool_]

LADDER = ("shift", "similarity", "affine", "quadratic", "cubic")
TERMS = {"shift": 3, "similarity": 3, "affine": 3, "quadratic": 6, "cubic": 10}  # of one axis
FREE = {"shift": 2, "similarity": 4, "affine": 6, "quadratic": 12, "cubic": 20}  # parameters of both axes
ORDER = {3: 1, 6: 2, 10: 3}
ENOUGH = {
    "shift": 2,
    "similarity": 3,
    "affine": 6,
    "quadratic": 9,
    "cubic": 15,
}  # stars for the automatic choice
SPREAD = {"affine": 0.03, "quadratic": 0.01, "cubic": 0.005}  # least to greatest singular value of the design
# of the F test by which a model is taken: stricter where a wrong choice costs more at the edges of the field
SIGNIFICANCE = {"similarity": 3e-3, "affine": 1e-2, "quadratic": 1e-3, "cubic": 3e-4}
FROM_SHIFT = 0.1  # factor to it where a shift would do: its two numbers are known best of all
WITHOUT_ONE = 0.1  # the same with any one star left out: an outlier of great leverage must not decide
WORTH = 1.3  # errors by which a higher model must move the edges of the stars' area
MANY = 40  # stars from which on one look at the residuals tells whether higher models are worth fitting
UNDISTORTED = 0.9  # part of the first pairs within the clipping limit of a similarity
HOPELESS = 30.0  # times the significance that a model needs, above which it is not tried
UNLIKELY = 1e-5  # probability of chi^2 from which the given errors are called too small
SAMPLES = 80  # pairs of stars behind the first guess
JURY = 80  # stars that judge it, at most
FINEST = 1e-4  # pixel: differences below it justify nothing
ROUNDS = 20  # of clipping, and of pairing again


def fit(
    reference_xy: ArrayLike,
    frame_xy: ArrayLike,
    *,
    reference_err: ArrayLike | None = None,
    frame_err: ArrayLike | None = None,
    options: TransformOptions = TransformOptions(),  # noqa: B008
) -> Transform:
    """Fit the map from reference pixels to frame pixels to pairs of stars.

    Parameters
    ----------
    reference_xy, frame_xy : (n, 2) array_like, pixel
        Positions of the same stars. Rows that are not finite take no part.
    reference_err, frame_err : (n,) array_like, pixel, optional
        One sigma of the positions per axis. Where the residuals show them to be too small, a common floor is
        added in quadrature. Without them all stars weigh the same. NaN or 0 stand for the median of the
        others.
    options : TransformOptions
        The model, or ``"auto"``, and the clipping limit.

    Returns
    -------
    Transform
        With covariance, rms and number of the stars behind it. Its `origin` is the centre of the stars and
        its `scale` half of their extent, so that it is well conditioned on frames of any size.

    Raises
    ------
    MatchError
        Too few stars for the model asked for (3 for ``"auto"``), or all of them in one point.

    Notes
    -----
    The first guess is the similarity of least median of squares over pairs of stars (Rousseeuw
    1984, J. Am. Stat. Assoc. 79, 871); then each model is fitted by weighted least squares to the stars
    within ``options.clip`` robust sigmas of itself until their set no longer changes. ``"auto"`` goes up the
    ladder shift, similarity, affine, quadratic, cubic and takes a higher model where an F test on the same
    stars calls its gain real, with any one star left out, and the edges of the stars' area move by more than
    1.3 times the error that the model brings in there.
    """
    return _fit(reference_xy, frame_xy, reference_err, frame_err, options)[0]


def _fit(
    reference_xy: ArrayLike,
    frame_xy: ArrayLike,
    reference_err: ArrayLike | None,
    frame_err: ArrayLike | None,
    options: TransformOptions,
    guess: Transform | None = None,
) -> tuple[Transform, Mask]:
    """`fit`, from a first guess where there is one, and which of the stars are behind it."""
    a, b = _points(reference_xy), _points(frame_xy)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} reference positions but {len(b)} frame positions")
    finite: Mask = np.asarray(np.isfinite(np.hstack([a, b])).all(axis=1))
    wanted = options.model
    need = {"auto": 3, "shift": 1, "similarity": 2, "affine": 3, "quadratic": 6, "cubic": 10}[wanted]
    if finite.sum() < need:
        raise MatchError(f"{finite.sum()} pairs of stars; the model {wanted!r} needs {need}")
    errors = [None if e is None else _errors(e, len(a))[finite] for e in (reference_err, frame_err)]
    pairs = _Pairs.make(a[finite], b[finite], errors, options.clip, guess, shift=wanted == "shift")
    best = pairs.climb() if wanted == "auto" else pairs.reach(wanted)
    used = finite.copy()
    used[finite] = best.keep
    return pairs.transform(best), used


def _points(xy: ArrayLike) -> Array:
    points: Array = np.ma.filled(np.ma.asarray(xy, float), np.nan)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"positions have shape (n, 2), not {points.shape}")
    return np.asarray(points)


def _monomials(u: Array, v: Array) -> Array:
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3], axis=1)


def _errors(values: ArrayLike, n: int) -> Array:
    errors = np.array(values, float)
    if errors.shape != (n,):
        raise ValueError(f"errors have shape {errors.shape}, not ({n},)")
    good = np.isfinite(errors) & (errors > 0)
    errors[~good] = np.median(errors[good]) if good.any() else np.nan
    return errors


@dataclass(frozen=True, slots=True, eq=False)
class _Solution:
    """One model fitted to the stars in `keep`, in normalised coordinates."""

    model: str
    c: Array  #: (m, 2)
    keep: Mask
    near: Mask  #: stars that a higher model starts from: twice the clipping limit
    variance: Array  #: (n,) of a position per axis, the floor included
    parity: float


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Pairs of stars with all that the models share."""

    basis: Array  #: (n, 10) monomials of the normalised reference positions
    b: Array  #: (n, 2)
    variance: Array  #: (n,) pixel^2; ones where the errors are unknown
    known: bool
    clip: float
    origin: tuple[float, float]
    scale: float
    parity: float
    start: Mask  #: stars that the first guess puts within the clipping limit

    @classmethod
    def make(
        cls,
        a: Array,
        b: Array,
        errors: list[Array | None],
        clip: float,
        guess: Transform | None = None,
        *,
        shift: bool,
    ) -> _Pairs:
        low, high = a.min(axis=0), a.max(axis=0)
        scale = float(max((high - low).max() / 2, 1e-3))
        if not shift and (high - low).max() < 1e-6:
            raise MatchError(f"all {len(a)} stars stand at one point: no rotation or scale can be found")
        origin = (float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2)
        u, v = ((a - origin) / scale).T
        basis = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3], axis=1)
        if guess is None:
            parity, size, start = _first_guess(u, v, b, clip)
        else:
            distance = np.linalg.norm(b - guess(a), axis=1)
            start = distance <= 2 * clip * max(float(np.median(distance)), FINEST)
            parity, size = (-1.0 if guess.mirrored else 1.0), guess.magnification * scale
        variance = np.zeros(len(a))
        for error, factor in zip(errors, (size / scale, 1.0), strict=True):
            if error is not None:
                variance += (factor * error) ** 2
        known = bool(np.isfinite(variance).all() and variance.min() > 0)
        variance = variance if known else np.ones(len(a))
        return cls(basis, b, variance, known, clip, origin, scale, parity, start)

    def reach(self, wanted: str) -> _Solution:
        """Fit the model asked for, by way of the lower ones."""
        below: _Solution | None = None
        for model in LADDER[: LADDER.index(wanted) + 1]:
            if model == wanted or (model != "shift" and self.start.sum() >= ENOUGH[model]):
                below = self.settle(model, self.start if below is None else below.near)
        assert below is not None
        return below

    def climb(self) -> _Solution:
        """Find the lowest model to which no higher one is clearly better."""
        best: _Solution | None = None
        below = "shift"
        keep = self.start
        for model in LADDER[1:]:
            if keep.sum() < ENOUGH[model] or not self.spread(model, keep):
                break
            higher = self.settle(model, keep)
            keep = higher.near
            # where some pairs are wrong, others may be: the more stars must speak for a model
            enough = ENOUGH[model] * (2 if higher.keep.mean() < 0.95 else 1)
            if higher.keep.sum() >= enough and self.better(below, higher):
                best, below = higher, model
            if self.hopeless(below, model, higher):
                break
        return best if best is not None else self.settle("shift", np.ones(len(self.b), bool))

    def hopeless(self, lower: str, reached: str, last: _Solution) -> bool:
        """Whether no model above the one reached can be better, by far, than the lower one: of many stars alone."""
        some = last.near
        for _ in range(ROUNDS):
            keep, n = some, int(some.sum())
            if n < MANY:
                return False
            basis, b, weight = self.basis[keep], self.b[keep], 1 / last.variance[keep]
            weighted = basis.T * weight
            try:
                root = np.linalg.cholesky(weighted @ basis)
            except np.linalg.LinAlgError:  # the stars do not span the highest model
                return False
            terms = np.linalg.solve(root, weighted @ b)
            # wrong pairs make every model look bad: they are told by what the highest one leaves
            rest = b - basis @ np.linalg.solve(root.T, terms)
            left = np.sqrt(np.sum(rest * rest, axis=1) * weight)
            inside = left <= self.clip * _median(left) / 1.1774
            if inside.all():
                break
            some = keep.copy()
            some[keep] = inside
        chi2 = weight @ np.sum(b * b, axis=1) - np.cumsum(np.sum(terms**2, axis=1))
        low = self.chi2(self.solve(lower, keep, last.variance), keep, last.variance)
        for model in LADDER[LADDER.index(reached) + 1 :]:
            high = float(max(chi2[TERMS[model] - 1], 1e-12 * low))
            more, free = FREE[model] - FREE[lower], 2 * n - FREE[model]
            limit = SIGNIFICANCE[model] * (FROM_SHIFT if lower == "shift" else 1)
            if _f_tail(more, free, max(low - high, 0.0) / high * free / more) < HOPELESS * limit:
                return False
        return True

    def spread(self, model: str, keep: Mask) -> bool:
        """Whether the stars are spread over the field well enough for a model."""
        if model not in SPREAD:
            return True
        basis = self.basis[keep, : TERMS[model]]
        squares = np.linalg.eigvalsh(basis.T @ basis)
        return bool(squares[0] > SPREAD[model] ** 2 * squares[-1])

    def better(self, lower: str, higher: _Solution) -> bool:
        """Whether a higher model is worth its terms."""
        keep, variance = higher.keep, higher.variance
        low = self.solve(lower, keep, variance)
        more, free = FREE[higher.model] - FREE[lower], 2 * keep.sum() - FREE[higher.model]
        if free < 3:
            return False
        all_low, some_low = self.chi2_without_one(lower, low, keep, variance)
        all_high, some_high = self.chi2_without_one(higher.model, higher.c, keep, variance)
        gain = max(all_low - all_high, 0) / all_high * free / more
        least = np.min(np.maximum(some_low - some_high, 0) / some_high) * (free - 2) / more
        limit = SIGNIFICANCE[higher.model] * (FROM_SHIFT if lower == "shift" else 1)
        if _f_tail(more, free, gain) > limit or _f_tail(more, free - 2, float(least)) > WITHOUT_ONE:
            return False
        # what a few bright stars ask for must not be carried to the edges where it is worth nothing
        reach_u, reach_v = np.abs(self.basis[:, 1:3]).max(axis=0)
        edge = _monomials(reach_u * np.array([-1, -1, 1, 1]), reach_v * np.array([-1, 1, -1, 1]))
        moved = edge[:, : len(higher.c)] @ higher.c - edge[:, : TERMS[lower]] @ low
        edge = edge[:, : len(higher.c)]
        error = np.einsum("ij,jk,ik->i", edge, self.covariance(higher), edge)
        return bool(np.sum(moved**2) > 2 * WORTH**2 * error.sum())

    def chi2_without_one(self, model: str, c: Array, keep: Mask, variance: Array) -> tuple[float, Array]:
        """Chi^2, and that of the fits that leave out one star each (Cook & Weisberg 1982, ch. 2)."""
        squared = np.sum(self.residuals(c)[keep] ** 2, axis=1) / variance[keep]
        total = float(squared.sum() + 2 * np.sum(FINEST**2 / variance[keep]))
        own = squared / np.maximum(1 - self.leverage(model, keep, variance)[keep], 1e-9)
        return total, np.maximum(total - own, 1e-12 * total)

    def settle(self, model: str, keep: Mask) -> _Solution:
        """Fit and clip until the set of stars stays; again with a floor on the errors, if they need one."""
        variance = self.variance
        c, keep, near = self.clipped(model, keep, variance)
        floor = self.floor(model, c, keep) if self.known else 0.0
        if floor > 0:
            variance = variance + floor
            c, keep, near = self.clipped(model, keep, variance)
        return _Solution(model, c, keep, near, variance, self.parity)

    def clipped(self, model: str, keep: Mask, variance: Array) -> tuple[Array, Mask, Mask]:
        for _ in range(ROUNDS):
            c = self.solve(model, keep, variance)
            distance = np.linalg.norm(self.residuals(c), axis=1) / np.sqrt(variance)
            distance /= self.expected(model, keep, variance)
            # the median distance of a two-dimensional normal law is 1.177 sigma
            sigma = _median(distance[keep]) / 1.1774
            least = 1.0 if self.known else FINEST
            limit = self.clip * max(sigma, least)
            inside = distance <= limit
            if (inside == keep).all() or inside.sum() * 2 < max(FREE[model], 3):
                break
            keep = inside
        return self.solve(model, keep, variance), keep, distance <= 2 * limit

    def expected(self, model: str, keep: Mask, variance: Array) -> Array:
        """Error of a residual over the star's own: below 1 for the stars behind the fit, above for others."""
        leverage = self.leverage(model, keep, variance)
        return np.asarray(np.sqrt(np.where(keep, np.maximum(1 - leverage, 0.05), 1 + leverage)))

    def leverage(self, model: str, keep: Mask, variance: Array) -> Array:
        """(n,) variance of the fit at a star, over the star's own."""
        weight = 1 / variance
        if model in ("shift", "similarity"):
            at = np.full(len(weight), 1 / weight[keep].sum())
            if model == "similarity":
                uv = self.basis[:, 1:3]
                square = np.sum((uv - weight[keep] @ uv[keep] * at[0]) ** 2, axis=1)
                at = at + square / (weight[keep] @ square[keep])
            return np.asarray(weight * at)
        basis = self.basis[:, : TERMS[model]]
        inverse = np.linalg.pinv(basis[keep].T * weight[keep] @ basis[keep])
        return np.asarray(weight * np.sum(basis @ inverse * basis, axis=1))

    def floor(self, model: str, c: Array, keep: Mask) -> float:
        """Variance to add to all stars so that chi^2 is no larger than it should be (Paule & Mandel 1982)."""
        squared = np.sum(self.residuals(c)[keep] ** 2, axis=1)
        variance = self.variance[keep]
        free = 2 * len(squared) - FREE[model]
        if free <= 0 or _chi2_tail(free, float(np.sum(squared / variance))) > UNLIKELY:
            return 0.0
        low, high = 0.0, float(squared.sum() / free)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(squared / (variance + middle)) > free else (low, middle)
        return high

    def residuals(self, c: Array) -> Array:
        return self.b - self.basis[:, : len(c)] @ c

    def chi2(self, c: Array, keep: Mask, variance: Array) -> float:
        return float(np.sum(self.residuals(c)[keep] ** 2 / variance[keep, None]))

    def solve(self, model: str, keep: Mask, variance: Array) -> Array:
        """Coefficients (m, 2) by weighted least squares."""
        weight = 1 / variance[keep]
        basis, b = self.basis[keep, : TERMS[model]], self.b[keep]
        if model == "shift":
            rest = b - (basis[:, 1:3] * self.scale + self.origin)
            shift = weight @ rest / weight.sum() + self.origin
            return np.array([shift, [self.scale, 0], [0, self.scale]])
        if model == "similarity":
            mean = weight @ basis[:, 1:3] / weight.sum()
            centre = weight @ b / weight.sum()
            (x, y), (p, q) = (basis[:, 1:3] - mean).T * [[1], [self.parity]], (b - centre).T
            size = weight @ (x * x + y * y)
            cos, sin = weight @ (x * p + y * q) / size, weight @ (x * q - y * p) / size
            linear = np.array([[cos, sin], [-self.parity * sin, self.parity * cos]])
            return np.concatenate([[centre - mean @ linear], linear])
        if len(b) > 5 * basis.shape[1] and self.spread(model, keep):
            weighted = basis * weight[:, None]
            return np.asarray(np.linalg.solve(weighted.T @ basis, weighted.T @ b))
        root = np.sqrt(weight)[:, None]
        return np.asarray(np.linalg.lstsq(basis * root, b * root, rcond=None)[0])

    def covariance(self, found: _Solution) -> Array:
        """(m, m) covariance of one axis' coefficients."""
        keep, parity = found.keep, self.parity
        weight = 1 / found.variance[keep]
        free = 2 * keep.sum() - FREE[found.model]
        scale = self.chi2(found.c, keep, found.variance) / free if free > 0 and not self.known else 1.0
        basis = self.basis[keep, : TERMS[found.model]]
        if found.model == "shift":
            return np.diag([scale / weight.sum(), 0, 0])
        if found.model == "similarity":
            _, u, v = basis.T
            one, zero = np.ones_like(u), np.zeros_like(u)
            rows = [[one, zero, u, -parity * v], [zero, one, parity * v, u]]  # of tx, ty, cos, sin
            normal = sum(np.einsum("in,n,jn->ij", row, weight, row) for row in np.array(rows))
            pick = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, -parity]])
            return np.asarray(scale * pick @ np.linalg.pinv(normal) @ pick.T)
        return np.asarray(scale * np.linalg.pinv(basis.T * weight @ basis))

    def transform(self, found: _Solution) -> Transform:
        """Give a solution the form in which it leaves this module."""
        n = int(found.keep.sum())
        squares = float(np.sum(self.residuals(found.c)[found.keep] ** 2))
        free = 2 * n - FREE[found.model]
        c = np.ascontiguousarray(found.c.T)
        covariance = self.covariance(found)
        for array in (c, covariance):
            array.setflags(write=False)
        return Transform(
            cx=c[0],
            cy=c[1],
            order=ORDER[len(found.c)],
            origin=self.origin,
            scale=self.scale,
            model=found.model,
            rms=float(np.sqrt(squares / free)) if free > 0 else float("nan"),
            n=n,
            covariance=covariance,
        )


def _median(values: Array) -> float:
    """`numpy.median` of finite values, without its overhead."""
    middle = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, middle)[middle])
    low, high = np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1]
    return float(low + high) / 2


def _f_tail(m: int, n: int, f: float) -> float:
    """Probability that an F variable of m and n degrees of freedom exceeds `f`.

    The continued fraction of DLMF 8.17.22 by Lentz's method; scipy.special would cost half of the start-up time.
    """
    if not f > 0:
        return 1.0
    a, b, x = n / 2, m / 2, n / (n + m * f)
    swapped = x > (a + 1) / (a + b + 2)
    if swapped:
        a, b, x = b, a, 1 - x
    if x <= 0:
        return 1.0 if swapped else 0.0
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for k in range(1, 1000):
        even = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        odd = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        before = fraction
        for term in (even, odd):
            c, d = 1 + term / c, 1 / (1 + term * d)
            fraction *= c * d
        if abs(fraction - before) < 1e-12 * abs(fraction):
            break
    return 1 - front * fraction if swapped else front * fraction


def _chi2_tail(n: int, x: float) -> float:
    """Probability that chi^2 of n degrees of freedom exceeds `x`; 1 below n + 2, where it is above 0.08.

    The continued fraction of DLMF 8.9.2 by Lentz's method.
    """
    a, x = n / 2, x / 2
    if not x > a + 1:
        return 1.0
    if x == inf:
        return 0.0
    b = x + 1 - a
    c, d = inf, 1 / b
    fraction = d
    for k in range(1, 1000):
        term = -k * (k - a)
        b += 2
        d = 1 / (term * d + b)
        c = b + term / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return fraction * exp(-x + a * log(x) - lgamma(a))


def _first_guess(u: Array, v: Array, b: Array, clip: float) -> tuple[float, float, Mask]:
    """Least median of squares over similarities through two stars: parity, magnification, stars near it."""
    n = len(u)
    everything = np.ones(n, bool)
    if n < 3:
        size = np.hypot(*np.ptp(b, axis=0)) / np.hypot(np.ptp(u), np.ptp(v)) if n == 2 else 1.0
        return 1.0, float(size), everything
    rng = np.random.default_rng(1)
    i = rng.integers(0, n, SAMPLES)
    j = (i + rng.integers(1, n, SAMPLES)) % n
    some = np.linspace(0, n - 1, min(n, JURY)).astype(int)
    w = b[:, 0] + 1j * b[:, 1]
    best = (np.inf, 1.0, 1.0, everything)
    for parity in (1.0, -1.0):
        z = u + 1j * parity * v
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = (w[j] - w[i]) / (z[j] - z[i])
            off = np.abs(w[some] - w[i, None] - factor[:, None] * (z[some] - z[i, None]))
            medians = np.median(off, axis=1)
        medians[~np.isfinite(medians)] = np.inf
        k = int(np.argmin(medians))
        if medians[k] < best[0]:
            distance = np.abs(w - w[i[k]] - factor[k] * (z - z[i[k]]))
            near = distance <= 2 * clip * max(medians[k], FINEST)
            best = (float(medians[k]), parity, float(np.abs(factor[k])), near)
    return best[1:]


def register(
    reference: Stars,
    frame: Stars,
    *,
    guess: Transform | None = None,
    match_options: MatchOptions = MatchOptions(),  # noqa: B008
    options: TransformOptions = TransformOptions(),  # noqa: B008
) -> tuple[Transform, Pairs]:
    """Match two lists of stars and fit the transform to all the stars that they share.

    Parameters
    ----------
    reference, frame : Stars
        Brightest first. Sharp detections (hot pixels, cosmic rays) take part only where the others do not
        match.
    guess : Transform, optional
        For instance that of the neighbouring frame.
    match_options : MatchOptions
        For `match`.
    options : TransformOptions
        For `fit`.

    Returns
    -------
    transform : Transform
        From reference pixels to pixels of the frame.
    pairs : Pairs
        The stars behind the transform.

    Raises
    ------
    MatchError
        Where the lists do not match, or the match does not stand up to the fit.

    Notes
    -----
    The stars are predicted through the fitted transform and paired again within five sigma of the
    residuals, until the pairs stay the same. A pair that coincides on the detector within three sigma, where
    the transform moves it by more than six, is a hot pixel and left out.
    """
    seed = match(reference, frame, options=match_options, guess=guess)
    rows_a, rows_b = _rows(reference, frame, seed)
    a, b = reference.xy[rows_a], frame.xy[rows_b]
    index = seed.index
    used = np.zeros(len(index), bool)
    if options.model == "auto" and len(index) >= MANY:
        # the first fit only brings the pairs closer: the ladder is climbed once they are known
        transform, used = _rough(reference.xy[index[:, 0]], frame.xy[index[:, 1]], options.clip)
    if used.mean() < UNDISTORTED:
        transform, used = _fit_rows(reference, frame, index, options)
    seen: set[bytes] = set()
    for _ in range(ROUNDS if len(index) > 3 else 0):
        predicted = np.ascontiguousarray(transform(a))
        reach = float(np.clip(5 * transform.rms, 0.5, match_options.tolerance))
        found = _stars.nearest_pairs(predicted, np.ascontiguousarray(b), reach)
        pairs = np.stack([rows_a[found[:, 0]], rows_b[found[:, 1]]], axis=1)
        pairs = pairs[~_hot(reference.xy[pairs[:, 0]], frame.xy[pairs[:, 1]], transform)]
        key = pairs.tobytes()
        if len(pairs) < 3 or key in seen:
            break
        seen.add(key)
        index = pairs
        transform, used = _fit_rows(reference, frame, index, options, transform)
    odds = seed.log_odds
    if not seed.weak:
        unit = np.array([1, 0, 0, 0, 1.0])
        near = np.ascontiguousarray(transform(a))
        odds = _stars.refine(near, np.ascontiguousarray(b), unit, match_options.tolerance)[2]
        if odds < match_options.min_log_odds:
            raise MatchError(
                f"{len(index)} matched stars do not stand up to the fit ({transform.model}, "
                f"rms {transform.rms:.2f} px, log odds {odds:.1f}, needed {match_options.min_log_odds:.1f})"
            )
    return transform, Pairs(index=index[used], log_odds=float(odds), weak=seed.weak)


def _rough(a: Array, b: Array, clip: float) -> tuple[Transform, Mask]:
    """Similarity through pairs that a similarity has brought together, and those within the clipping limit of it."""
    centre = a.mean(axis=0)
    z, w = (a - centre) @ [1, 1j], b @ [1, 1j]
    near = np.ones(len(a), bool)
    for _ in range(2):
        trials = []
        for x in (z, z.conj()):
            x0, w0 = x[near].mean(), w[near].mean()
            factor = np.vdot(x[near] - x0, w[near] - w0) / np.vdot(x[near] - x0, x[near] - x0).real
            distance = np.abs(w - w0 - factor * (x - x0))
            trials.append((_median(distance), factor, w0 - factor * x0, distance))
        parity = 1.0 if trials[0][0] <= trials[1][0] else -1.0
        median, factor, offset, distance = min(trials, key=lambda t: t[0])
        sigma = max(median / 1.1774, FINEST)
        near = distance <= clip * sigma
    c, s = factor.real, factor.imag
    cx, cy = np.array([offset.real, c, -parity * s]), np.array([offset.imag, s, parity * c])
    origin = (float(centre[0]), float(centre[1]))
    return Transform(
        cx=cx, cy=cy, order=1, origin=origin, model="similarity", rms=float(sigma), n=int(near.sum())
    ), near


def _rows(reference: Stars, frame: Stars, seed: Pairs) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that may be paired: not the sharp ones, unless the match rests on them."""
    masks = []
    for stars, rows in ((reference, seed.index[:, 0]), (frame, seed.index[:, 1])):
        finite = np.isfinite(stars.xy).all(axis=1)
        soft = finite & ~stars.has(StarFlag.SHARP)
        masks.append(soft if soft[rows].all() else finite)
    return np.flatnonzero(masks[0]), np.flatnonzero(masks[1])


def _fit_rows(
    reference: Stars,
    frame: Stars,
    index: NDArray[np.intp],
    options: TransformOptions,
    guess: Transform | None = None,
) -> tuple[Transform, Mask]:
    """Fit pairs; saturated stars and those cut by an edge only where there are few others."""
    i, j = index.T
    bad = StarFlag.SATURATED | StarFlag.EDGE
    clean = ~(reference.has(bad)[i] | frame.has(bad)[j])
    if clean.sum() < 10:
        clean[:] = True
    i, j = i[clean], j[clean]
    transform, used = _fit(reference.xy[i], frame.xy[j], reference.xy_err[i], frame.xy_err[j], options, guess)
    mask = np.zeros(len(index), bool)
    mask[np.flatnonzero(clean)[used]] = True
    return transform, mask


def _hot(a: Array, b: Array, transform: Transform) -> Mask:
    """Pairs at one detector position, where the sky moved on."""
    sigma = max(transform.rms, 0.1) if np.isfinite(transform.rms) else 0.1
    stayed = np.hypot(*(b - a).T) < 3 * sigma
    return np.asarray(stayed & (np.hypot(*(transform(a) - a).T) > 6 * sigma))


def compose(first: Transform, second: Transform) -> Transform:
    """Chain two maps: apply `first` and then `second`.

    Parameters
    ----------
    first : Transform
        From the output to an intermediate frame.
    second : Transform
        From the intermediate frame to another.

    Returns
    -------
    Transform
        Exact where both are linear; else fitted on a grid over the area of `first` (its origin +- its scale),
        with the higher one's order, and `rms` the error of that added to those of the two. The covariances
        add up where both are known.
    """
    order = max(first.order, second.order)
    m = len(max(first.cx, second.cx, key=len))
    node = np.linspace(-1, 1, 9)
    u, v = (axis.ravel() for axis in np.meshgrid(node, node))
    xy = np.stack([u, v], axis=1) * first.scale + first.origin
    middle = first(xy)
    values = second(middle)
    probe = replace(first, cx=np.zeros(m), cy=np.zeros(m))
    basis = probe._terms(xy)
    inverse = np.linalg.pinv(basis)
    c = inverse @ values
    error = np.sqrt(np.mean((basis @ c - values) ** 2))
    covariance = None
    if first.covariance is not None and second.covariance is not None:
        one, two = first._terms(xy), second._terms(middle)
        at_nodes = second.magnification**2 * one @ first.covariance @ one.T + two @ second.covariance @ two.T
        covariance = inverse @ at_nodes @ inverse.T
    rms = np.sqrt((second.magnification * first.rms) ** 2 + second.rms**2 + error**2)
    return Transform(
        cx=c[:, 0],
        cy=c[:, 1],
        order=order,
        origin=first.origin,
        scale=first.scale,
        model=max(first.model, second.model, key=LADDER.index),
        rms=float(rms),
        n=min(first.n, second.n),
        covariance=covariance,
    )


def from_wcs(reference_wcs: Any, frame_wcs: Any, shape: tuple[int, int], *, tolerance: float = 0.01) -> Transform:
    """Fit the transform between two frames with sky coordinates.

    Parameters
    ----------
    reference_wcs, frame_wcs : astropy.wcs.WCS
        Celestial, of the output grid and of the frame.
    shape : tuple of int
        (ny, nx) of the output grid.
    tolerance : float, pixel
        Largest error of the polynomial on a grid of points.

    Returns
    -------
    Transform
        The lowest of similarity, affine, quadratic, cubic that is good to `tolerance`; `rms` is its error.

    Raises
    ------
    FrameError
        Where no model reaches the tolerance or the frame's coordinates do not cover the grid.
    """
    from astropy.wcs.utils import pixel_to_pixel

    ny, nx = shape
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(0, nx - 1, 33), np.linspace(0, ny - 1, 33)))
    a = np.stack([x, y], axis=1)
    b = np.stack(pixel_to_pixel(reference_wcs, frame_wcs, x, y), axis=1)
    if not np.isfinite(b).all():
        raise FrameError("the frame's sky coordinates do not cover the output grid; register on stars instead")
    worst = np.inf
    for model in ("similarity", "affine", "quadratic", "cubic"):
        found = fit(a, b, options=TransformOptions(model=model, clip=np.inf))
        worst = float(np.abs(found(a) - b).max())
        if worst <= tolerance:
            return found
    raise FrameError(
        f"no cubic polynomial follows the two WCS to {tolerance} px (largest error {worst:.3g} px); "
        "register on stars instead"
    )


def consistent(
    transforms: Sequence[Transform | None],
    shapes: Sequence[tuple[int, int]],
    *,
    log_odds: Sequence[float] | None = None,
    max_scale: float = 0.02,
    sure: float = 50.0,
) -> list[str | None]:
    """Why transforms do not belong to the set, one reason or None for each.

    Parameters
    ----------
    transforms : sequence of Transform or None
        All from the same output grid; None is passed over.
    shapes : sequence of tuple of int
        (ny, nx) of each frame.
    log_odds : sequence of float, optional
        Of the matches behind them.
    max_scale : float
        Largest difference of the scale from the set's median, and of the scales along any two directions.
    sure : float
        Log odds from which a single mirrored frame among others is believed.

    Returns
    -------
    list of str or None
        A transform is refused where it folds the frame over, where it stretches one direction, where its
        scale is not the set's, where its footprint meets no other frame's, and where it alone is mirrored:
        frames of the rarer parity stay if there are at least three of them and they are a tenth of the set,
        or if their odds are overwhelming.
    """
    known = [k for k, t in enumerate(transforms) if t is not None]
    reasons: list[str | None] = [None] * len(transforms)
    boxes: dict[int, Array] = {}
    scales: dict[int, float] = {}
    for k in known:
        t = transforms[k]
        assert t is not None
        ny, nx = shapes[k]
        edge = np.array([(x, y) for x in np.linspace(0, nx - 1, 5) for y in np.linspace(0, ny - 1, 5)])
        with np.errstate(all="ignore"):
            inside = t.inverse(edge)
        determinants = np.linalg.det(t.jacobian(inside)) if np.isfinite(inside).all() else np.array([np.nan])
        if not (np.all(determinants > 0) or np.all(determinants < 0)):
            reasons[k] = "the transform folds the frame over"
            continue
        stretch = np.linalg.svd(t.matrix, compute_uv=False)
        if stretch[0] > (1 + max_scale) * stretch[1]:
            reasons[k] = f"the transform stretches one direction by {100 * (stretch[0] / stretch[1] - 1):.1f} %"
            continue
        scales[k] = t.magnification
        boxes[k] = np.array([inside.min(axis=0), inside.max(axis=0)])
    if not scales:
        return reasons
    median = float(np.median(list(scales.values())))
    for k, scale in scales.items():
        if abs(scale / median - 1) > max_scale:
            reasons[k] = f"scale {scale:.4f}, where the set has {median:.4f}"
    clean = [k for k in scales if reasons[k] is None]
    mirrored = [k for k in clean if transforms[k].mirrored]  # type: ignore[union-attr]
    rare = mirrored if 2 * len(mirrored) <= len(clean) else [k for k in clean if k not in mirrored]
    if not (len(rare) >= 3 and len(rare) >= 0.1 * len(clean)) and 2 * len(rare) < len(clean):
        for k in rare:
            if log_odds is None or log_odds[k] < sure:
                reasons[k] = "mirrored against the rest of the set"
    clean = [k for k in clean if reasons[k] is None]
    for k in clean:
        others = [j for j in clean if j != k]
        if others and not any(_overlap(boxes[k], boxes[j]) for j in others):
            reasons[k] = "its footprint meets no other frame's"
    return reasons


def _overlap(one: Array, other: Array) -> bool:
    """Whether two boxes (low, high) overlap."""
    return bool(np.all(np.minimum(one[1], other[1]) > np.maximum(one[0], other[0])))
