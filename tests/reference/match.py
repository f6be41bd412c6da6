"""Pairs of star lists with known truth, and slow twins of the matcher's counting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

CLASSES = (
    "turned",
    "mirrored",
    "scaled",
    "half shared",
    "60 % unmatched",
    "few stars",
    "hot pixels",
    "three stars",
    "mirrored, scaled, 60 % unmatched",
    "half shared, turned, scaled, 30 % unmatched",
    "hot pixels, mirrored, half shared",
    "unrelated",
    "unrelated, same hot pixels",
)


@dataclass(frozen=True)
class Case:
    """Two lists, brightest first, and what is true of them."""

    a: np.ndarray
    b: np.ndarray
    pairs: np.ndarray | None  # rows of the shared stars; None: nothing is shared
    truth: np.ndarray  # (2, 3) matrix from a to b, exact
    corners: np.ndarray  # outermost points of the shared area, pixels of a


def case(kind: str, rng: np.random.Generator) -> Case:
    """Draw a random case of one of CLASSES: position errors of 0.05 to 0.3 px and 0.3 mag in each list."""
    side = np.exp(rng.uniform(np.log(1000), np.log(4096)))
    n = int(np.exp(rng.uniform(np.log(30), np.log(300))))
    angle = rng.uniform(0, 2 * np.pi)
    scale, mirror = 1.0, 1.0
    shift = rng.uniform(-0.1, 0.1, 2) * side
    unmatched, hot, cosmic = 0.0, 0, 0
    if "mirrored" in kind:
        mirror = -1.0
    if "scaled" in kind:
        scale = rng.uniform(0.9, 1.1)
    if "half shared" in kind:
        direction = rng.uniform(0, 2 * np.pi)
        # along a side a shift by half of it, along the diagonal less, leaves half of the area
        shift = side * 0.5 * np.array([np.cos(direction), np.sin(direction)])
        shift /= np.abs(shift).max() / (side * 0.5) * (1 + 0.7 * np.abs(shift).min() / np.abs(shift).max())
    if "60 %" in kind:
        unmatched = 0.6
    if "30 %" in kind:
        unmatched = 0.3
    if "hot pixels" in kind:
        junk = 2 * n
        hot = int(rng.uniform(0.5, 0.9) * junk)
        cosmic = junk - hot
        if "mirrored" not in kind:
            angle = rng.choice([0.0, np.radians(rng.uniform(-1, 1)), angle])
            move = np.exp(rng.uniform(np.log(2.5), np.log(0.3 * side)))
            shift = move * np.array([np.cos(side), np.sin(side)])
    if kind == "unrelated, same hot pixels":
        hot = cosmic = n // 3
    if kind in ("few stars", "three stars"):
        n = int(rng.integers(5, 16)) if kind == "few stars" else 3
        shift *= 0.3

    centre = np.array([side / 2, side / 2])
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[c, -s * mirror], [s, c * mirror]])
    truth = np.column_stack([linear, centre + shift - linear @ centre])

    field = rng.uniform(0, side, (20_000, 2))
    there = field @ linear.T + truth[:, 2]
    inside = ((there > 0) & (there < side)).all(axis=1)
    back = (rng.uniform(0, side, (20_000, 2)) - truth[:, 2]) @ np.linalg.inv(linear).T
    outside_b = back[~((back > 0) & (back < side)).all(axis=1)] @ linear.T + truth[:, 2]
    share = inside.mean()
    if kind.startswith("unrelated"):
        shared, only_a, only_b = field[:0], field[:n], rng.uniform(0, side, (n, 2))
    elif kind in ("few stars", "three stars"):
        extra = int(kind == "few stars")
        shared = field[inside][: n - extra]
        only_a, only_b = rng.uniform(0, side, (2, extra, 2))
    else:
        k = max(int(n * share * (1 - unmatched)), 4)
        shared = field[inside][:k]
        lost = int(n * (1 - share) * (1 - unmatched))  # stars of either frame that the other does not reach
        wild = n - k - lost
        only_a = np.concatenate([field[~inside][:lost], rng.uniform(0, side, (max(wild, 0), 2))])
        only_b = np.concatenate([outside_b[:lost], rng.uniform(0, side, (max(wild, 0), 2))])
    fixed = rng.uniform(0, side, (hot, 2))
    a = np.concatenate([shared, only_a, fixed, rng.uniform(0, side, (cosmic, 2))])
    b = np.concatenate([shared @ linear.T + truth[:, 2], only_b, fixed, rng.uniform(0, side, (cosmic, 2))])
    error = rng.uniform(0.05, 0.3)
    magnitude = -rng.exponential(1 / (0.4 * np.log(10)), len(shared) + len(fixed))

    def order(total: int, own: int) -> np.ndarray:
        own_mag = -rng.exponential(1 / (0.4 * np.log(10)), total)
        own_mag[: len(shared)] = magnitude[: len(shared)] + rng.normal(0, 0.3, len(shared))
        start = len(shared) + own
        own_mag[start : start + len(fixed)] = magnitude[len(shared) :] + rng.normal(0, 0.3, len(fixed))
        return np.argsort(own_mag)

    order_a, order_b = order(len(a), len(only_a)), order(len(b), len(only_b))
    a, b = a + rng.normal(0, error, a.shape), b + rng.normal(0, error, b.shape)
    rank_a, rank_b = np.argsort(order_a), np.argsort(order_b)
    k = len(shared)
    pairs = None if kind.startswith("unrelated") else np.stack([rank_a[:k], rank_b[:k]], axis=1)
    area = field[inside] if inside.any() else field
    extreme = [np.argmax(area @ [np.cos(t), np.sin(t)]) for t in np.arange(16) * np.pi / 8]
    return Case(a[order_a], b[order_b], pairs, truth, area[extreme])


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(2, 3) matrix of the least-squares similarity of either parity, by a general solver."""
    best = None
    for parity in (1.0, -1.0):
        x, y, one, zero = a[:, 0], parity * a[:, 1], np.ones(len(a)), np.zeros(len(a))
        design = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        (c, s, tx, ty), *_ = np.linalg.lstsq(design, b.T.ravel(), rcond=None)
        residual = np.sum((design @ (c, s, tx, ty) - b.T.ravel()) ** 2)
        if best is None or residual < best[0]:
            best = residual, np.array([[c, -s * parity, tx], [s, c * parity, ty]])
    return best[1]


def verdict(case: Case, pairs: np.ndarray | None) -> str:
    """``unsolved``, ``solved`` or ``wrong``; ``noisy`` where the pairs are right but not good to 1 px.

    Wrong is a transform through the pairs that errs by more than 1 px at an edge of the shared area. A
    matcher answers for its pairs, not for the errors of the positions: where the true pairs' own transform
    errs that much and the one found lies within 1 px of it, the case is called noisy.
    """
    if pairs is None:
        return "unsolved"
    if case.pairs is None:
        return "wrong"
    at = np.column_stack([case.corners, np.ones(len(case.corners))])
    found = at @ similarity(case.a[pairs[:, 0]], case.b[pairs[:, 1]]).T
    if np.hypot(*(found - at @ case.truth.T).T).max() <= 1:
        return "solved"
    ideal = at @ similarity(case.a[case.pairs[:, 0]], case.b[case.pairs[:, 1]]).T
    return "noisy" if np.hypot(*(found - ideal).T).max() <= 1 else "wrong"


def nearest_pairs(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Twin of `_match.nearest_pairs`: each of `a` takes its nearest of `b`, the closest taker keeps it."""
    distance, j = cKDTree(b).query(a, distance_upper_bound=radius)
    taken: dict[int, tuple[float, int]] = {}
    for i in np.flatnonzero(np.isfinite(distance)):
        taken[j[i]] = min(taken.get(j[i], (np.inf, 0)), (distance[i], i))
    return np.array(sorted((i, j) for j, (_, i) in taken.items()), np.intp).reshape(-1, 2)


def pairs_of_sky(predicted: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float, sigma: float) -> np.ndarray:
    """Twin of `_match.pairs_of_sky`."""
    pairs = nearest_pairs(predicted, b, radius)
    i, j = pairs.T
    stayed = np.linalg.norm(b[j] - a[i], axis=1) < 3 * sigma
    return pairs[~(stayed & (np.linalg.norm(predicted[i] - a[i], axis=1) > 6 * sigma))]


def interquartile(xy: np.ndarray) -> np.ndarray:
    """Twin of `_match.interquartile`."""
    xy = np.sort(xy[np.isfinite(xy).all(axis=1)], axis=0)
    return xy[len(xy) - 1 - len(xy) // 4] - xy[len(xy) // 4]
