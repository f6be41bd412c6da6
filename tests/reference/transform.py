"""Pairs of stars with a known transform, the best that any unbiased fit can do with them, and the fit in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

MODELS = ("shift", "similarity", "affine", "quadratic", "cubic")
TERMS = {"shift": 1, "similarity": 3, "affine": 3, "quadratic": 6, "cubic": 10}
FREE = {"shift": 2, "similarity": 4, "affine": 6, "quadratic": 12, "cubic": 20}


@dataclass(frozen=True)
class Case:
    """Measured pairs, their errors, and the truth at the frame's corners."""

    a: np.ndarray
    b: np.ndarray
    reference_err: np.ndarray
    frame_err: np.ndarray
    corners: np.ndarray  # (4, 2) of the reference
    truth: np.ndarray  # (4, 2) of the frame
    bound: float  # rms over both axes and the corners of the Cramer-Rao bound, pixel
    outlier: np.ndarray  # (n,) stars that are none of the pairs they claim to be


def monomials(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(n, 10) products of powers up to the third."""
    return np.stack([u**i * v**j for i, j in POWERS], axis=1)


POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))


def design(model: str, u: np.ndarray, v: np.ndarray, parity: float) -> np.ndarray:
    """(2n, p) derivatives of all x and then all y by the parameters."""
    one, zero = np.ones_like(u), np.zeros_like(u)
    if model == "shift":
        return np.concatenate([np.stack([one, zero], 1), np.stack([zero, one], 1)])
    if model == "similarity":
        rows = np.stack([one, zero, u, -parity * v], 1), np.stack([zero, one, parity * v, u], 1)
        return np.concatenate(rows)
    terms = monomials(u, v)[:, : TERMS[model]]
    return np.block([[terms, np.zeros_like(terms)], [np.zeros_like(terms), terms]])


def case(
    model: str,
    rng: np.random.Generator,
    *,
    n: int | None = None,
    strength: float = 10.0,
    outliers: float = 0.0,
    snr: float | None = None,
    side: float = 2048.0,
) -> Case:
    """Draw a frame whose true map is of the given model and whose terms beyond the next lower one matter.

    Those terms are random, scaled until their joint significance, the square root of c^T C^-1 c over their
    number with C their covariance in the fit, is at least `strength` (exponential tail above it). Position
    errors follow a range of brightness: 0.6 FWHM / SNR (King 1983, PASP 95, 163) for FWHM 3 px and SNR of
    `snr` or 10 to 1000.
    """
    n = n or int(np.exp(rng.uniform(np.log(20), np.log(500))))
    a = rng.uniform(0, side, (n, 2))
    signal = np.exp(rng.uniform(np.log(snr or 10), np.log(20 * (snr or 50)), n))
    reference_err, frame_err = 0.6 * 3 / signal, 0.6 * 3 / (signal * rng.uniform(0.5, 2, n))
    variance = reference_err**2 + frame_err**2
    u, v = (a - side / 2).T / (side / 2)
    parity = 1.0 if model == "shift" else rng.choice([1.0, -1.0])
    angle = 0.0 if model == "shift" else rng.uniform(0, 2 * np.pi)
    size = side / 2
    low = MODELS[max(MODELS.index(model) - 1, 0)]
    c = np.zeros((10, 2))
    c[1:3] = size * np.array([[np.cos(angle), np.sin(angle)], parity * np.array([-np.sin(angle), np.cos(angle)])])
    c[0] = side / 2 + rng.uniform(-100, 100, 2)

    weight = np.concatenate([1 / variance, 1 / variance])
    full = design(model, u, v, parity)
    normal = full.T * weight @ full
    if model not in ("shift", "similarity"):
        below = design(low, u, v, parity)
        if model != "affine":  # all lower terms take random values of their own, too
            c[1:3] += rng.normal(0, 1e-3 * size, (2, 2))
        extra = np.zeros((10, 2))
        first = {"affine": 1, "quadratic": 3, "cubic": 6}[model]
        extra[first : TERMS[model]] = rng.normal(0, 1, (TERMS[model] - first, 2))
        # what a lower model cannot take up of these terms
        signal_b = (monomials(u, v) @ extra).T.ravel()
        root = np.sqrt(weight)
        left = (
            signal_b * root
            - below * root[:, None] @ np.linalg.lstsq(below * root[:, None], signal_b * root, rcond=None)[0]
        )
        significance = np.sqrt(left @ left / (FREE[model] - FREE[low]))
        c += extra * strength * (1 + rng.exponential(1.0)) / significance
    exact = monomials(u, v) @ c
    corners = np.array([(0, 0), (side, 0), (0, side), (side, side)])
    cu, cv = (corners - side / 2).T / (side / 2)
    at = design(model, cu, cv, parity)
    bound = np.sqrt(np.mean(np.einsum("ij,jk,ik->i", at, np.linalg.inv(normal), at)))
    b = exact + frame_err[:, None] * rng.normal(0, 1, (n, 2))
    a = a + reference_err[:, None] * rng.normal(0, 1, (n, 2))
    outlier = rng.uniform(size=n) < outliers
    b[outlier] += rng.normal(0, 3, (n, 2))[outlier] + rng.choice([-1, 1], (n, 2))[outlier]
    return Case(a, b, reference_err, frame_err, corners, monomials(cu, cv) @ c, float(bound), outlier)


def corner_error(case: Case, transform: object) -> float:
    """Rms over the corners and axes of a transform's error, pixel."""
    return float(np.sqrt(np.mean((transform(case.corners) - case.truth) ** 2)))


# ---- the fit

LADDER = MODELS
WIDTH = TERMS | {"shift": 3}  # coefficients of one axis
ENOUGH = {"shift": 2, "similarity": 3, "affine": 6, "quadratic": 9, "cubic": 15}
SPREAD = {"affine": 0.03, "quadratic": 0.01, "cubic": 0.005}
SIGNIFICANCE = {"similarity": 3e-3, "affine": 1e-2, "quadratic": 1e-3, "cubic": 3e-4}
FROM_SHIFT, WITHOUT_ONE, WORTH, MANY, HOPELESS, UNLIKELY, FINEST, ROUNDS = 0.1, 0.1, 1.3, 40, 30.0, 1e-5, 1e-4, 20


@dataclass(frozen=True, eq=False)
class Solution:
    """One model fitted to the stars in `keep`, in normalised coordinates."""

    model: str
    c: np.ndarray  #: (m, 2)
    keep: np.ndarray
    near: np.ndarray  #: stars that a higher model starts from: twice the clipping limit
    variance: np.ndarray  #: (n,) of a position per axis, the floor included
    parity: float


@dataclass(frozen=True, eq=False)
class Fit:
    """Twin of `_transform.fit_pairs`: pairs of stars with all that the models share."""

    basis: np.ndarray  #: (n, 10) monomials of the normalised reference positions
    b: np.ndarray  #: (n, 2)
    variance: np.ndarray  #: (n,) pixel^2; ones where the errors are unknown
    known: bool
    clip: float
    origin: tuple[float, float]
    scale: float
    parity: float
    start: np.ndarray  #: stars that the first guess puts within the clipping limit

    def reach(self, wanted: str) -> Solution:
        """Fit the model asked for, by way of the lower ones."""
        below: Solution | None = None
        for model in LADDER[: LADDER.index(wanted) + 1]:
            if model == wanted or (model != "shift" and self.start.sum() >= ENOUGH[model]):
                below = self.settle(model, self.start if below is None else below.near)
        assert below is not None
        return below

    def climb(self) -> Solution:
        """Find the lowest model to which no higher one is clearly better."""
        best: Solution | None = None
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

    def hopeless(self, lower: str, reached: str, last: Solution) -> bool:
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
            inside = left <= self.clip * np.median(left) / 1.1774
            if inside.all():
                break
            some = keep.copy()
            some[keep] = inside
        chi2 = weight @ np.sum(b * b, axis=1) - np.cumsum(np.sum(terms**2, axis=1))
        low = self.chi2(self.solve(lower, keep, last.variance), keep, last.variance)
        for model in LADDER[LADDER.index(reached) + 1 :]:
            high = float(max(chi2[WIDTH[model] - 1], 1e-12 * low))
            more, free = FREE[model] - FREE[lower], 2 * n - FREE[model]
            limit = SIGNIFICANCE[model] * (FROM_SHIFT if lower == "shift" else 1)
            if special.fdtrc(more, free, max(low - high, 0.0) / high * free / more) < HOPELESS * limit:
                return False
        return True

    def spread(self, model: str, keep: np.ndarray) -> bool:
        """Whether the stars are spread over the field well enough for a model."""
        if model not in SPREAD:
            return True
        basis = self.basis[keep, : WIDTH[model]]
        squares = np.linalg.eigvalsh(basis.T @ basis)
        return bool(squares[0] > SPREAD[model] ** 2 * squares[-1])

    def better(self, lower: str, higher: Solution) -> bool:
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
        if special.fdtrc(more, free, gain) > limit or special.fdtrc(more, free - 2, float(least)) > WITHOUT_ONE:
            return False
        # what a few bright stars ask for must not be carried to the edges where it is worth nothing
        reach_u, reach_v = np.abs(self.basis[:, 1:3]).max(axis=0)
        edge = monomials(reach_u * np.array([-1, -1, 1, 1]), reach_v * np.array([-1, 1, -1, 1]))
        moved = edge[:, : len(higher.c)] @ higher.c - edge[:, : WIDTH[lower]] @ low
        edge = edge[:, : len(higher.c)]
        error = np.einsum("ij,jk,ik->i", edge, self.covariance(higher), edge)
        return bool(np.sum(moved**2) > 2 * WORTH**2 * error.sum())

    def chi2_without_one(
        self, model: str, c: np.ndarray, keep: np.ndarray, variance: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Chi^2, and that of the fits that leave out one star each (Cook & Weisberg 1982, ch. 2)."""
        squared = np.sum(self.residuals(c)[keep] ** 2, axis=1) / variance[keep]
        total = float(squared.sum() + 2 * np.sum(FINEST**2 / variance[keep]))
        own = squared / np.maximum(1 - self.leverage(model, keep, variance)[keep], 1e-9)
        return total, np.maximum(total - own, 1e-12 * total)

    def settle(self, model: str, keep: np.ndarray) -> Solution:
        """Fit and clip until the set of stars stays; again with a floor on the errors, if they need one."""
        variance = self.variance
        c, keep, near = self.clipped(model, keep, variance)
        floor = self.floor(model, c, keep) if self.known else 0.0
        if floor > 0:
            variance = variance + floor
            c, keep, near = self.clipped(model, keep, variance)
        return Solution(model, c, keep, near, variance, self.parity)

    def clipped(self, model: str, keep: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        for _ in range(ROUNDS):
            c = self.solve(model, keep, variance)
            distance = np.linalg.norm(self.residuals(c), axis=1) / np.sqrt(variance)
            distance /= self.expected(model, keep, variance)
            # the median distance of a two-dimensional normal law is 1.177 sigma
            sigma = np.median(distance[keep]) / 1.1774
            least = 1.0 if self.known else FINEST
            limit = self.clip * max(sigma, least)
            inside = distance <= limit
            if (inside == keep).all() or inside.sum() * 2 < max(FREE[model], 3):
                break
            keep = inside
        return self.solve(model, keep, variance), keep, distance <= 2 * limit

    def expected(self, model: str, keep: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Error of a residual over the star's own: below 1 for the stars behind the fit, above for others."""
        leverage = self.leverage(model, keep, variance)
        return np.asarray(np.sqrt(np.where(keep, np.maximum(1 - leverage, 0.05), 1 + leverage)))

    def leverage(self, model: str, keep: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """(n,) variance of the fit at a star, over the star's own."""
        weight = 1 / variance
        if model in ("shift", "similarity"):
            at = np.full(len(weight), 1 / weight[keep].sum())
            if model == "similarity":
                uv = self.basis[:, 1:3]
                square = np.sum((uv - weight[keep] @ uv[keep] * at[0]) ** 2, axis=1)
                at = at + square / (weight[keep] @ square[keep])
            return np.asarray(weight * at)
        basis = self.basis[:, : WIDTH[model]]
        inverse = np.linalg.pinv(basis[keep].T * weight[keep] @ basis[keep])
        return np.asarray(weight * np.sum(basis @ inverse * basis, axis=1))

    def floor(self, model: str, c: np.ndarray, keep: np.ndarray) -> float:
        """Variance to add to all stars so that chi^2 is no larger than it should be (Paule & Mandel 1982)."""
        squared = np.sum(self.residuals(c)[keep] ** 2, axis=1)
        variance = self.variance[keep]
        free = 2 * len(squared) - FREE[model]
        if free <= 0 or special.chdtrc(free, np.sum(squared / variance)) > UNLIKELY:
            return 0.0
        low, high = 0.0, float(squared.sum() / free)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(squared / (variance + middle)) > free else (low, middle)
        return high

    def residuals(self, c: np.ndarray) -> np.ndarray:
        return self.b - self.basis[:, : len(c)] @ c

    def chi2(self, c: np.ndarray, keep: np.ndarray, variance: np.ndarray) -> float:
        return float(np.sum(self.residuals(c)[keep] ** 2 / variance[keep, None]))

    def solve(self, model: str, keep: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Coefficients (m, 2) by weighted least squares."""
        weight = 1 / variance[keep]
        basis, b = self.basis[keep, : WIDTH[model]], self.b[keep]
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

    def covariance(self, found: Solution) -> np.ndarray:
        """(m, m) covariance of one axis' coefficients."""
        keep, parity = found.keep, self.parity
        weight = 1 / found.variance[keep]
        free = 2 * keep.sum() - FREE[found.model]
        scale = self.chi2(found.c, keep, found.variance) / free if free > 0 and not self.known else 1.0
        basis = self.basis[keep, : WIDTH[found.model]]
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


def near_prediction(predicted: np.ndarray, b: np.ndarray, clip: float) -> np.ndarray:
    """Twin of `_transform.near_prediction`."""
    distance = np.linalg.norm(b - predicted, axis=1)
    return distance <= 2 * clip * max(np.median(distance), 1e-4)


def variances(a: np.ndarray | None, b: np.ndarray | None, n: int, factor: float) -> tuple[np.ndarray, bool]:
    """Twin of `_transform.variances`."""
    total = np.zeros(n)
    for errors, times in ((a, factor), (b, 1.0)):
        if errors is not None:
            good = np.isfinite(errors) & (errors > 0)
            total += (times * np.where(good, errors, np.median(errors[good]) if good.any() else np.nan)) ** 2
    known = bool((np.isfinite(total) & (total > 0)).all())
    return (total if known else np.ones(n)), known
