"""Stars of one list found in another: triangles propose a transform, all stars vote, odds decide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastack import _match
from fastack.errors import MatchError
from fastack.options import MatchOptions
from fastack.types import Array, Pairs, StarFlag, Stars, Transform, positions

Rows = NDArray[np.intp]

WIDEN = (1 / 3, 1.0, 2.5, 6.7)  # steps of the number of stars that form triangles, in units of max_stars
ROOM = 40_000  # triangles of one list; above it only the smaller ones are formed
BUDGET = 2_000_000  # stars looked up in one step, to test what pairs of triangles propose
OVERWHELMING = 40.0  # log odds at which the search for a better candidate ends
MARGIN = 5.0  # log odds by which the best candidate must lead the next
CLUMP = 0.05  # of the list's interquartile range that pairs must span along both axes
FIXED = 0.5  # tolerances: entries so close to the same detector position are taken for hot pixels at first
FEW = 0.25  # part of the entries that moved; fewer do not speak against a sky that stood still
FOLLOWED = 0.5  # part of the shorter list that a guess must bring together, or triangles are asked as well
REACH = 4.0  # tolerances: how far a guess may be off
ALIKE = 0.5  # scatter of flux ratios, part of that of unrelated stars, from which pairs are strangers
_TELLING = 10  # pairs that tell it
_UNSURE = 5.0  # errors of the ratios below which they tell nothing
SHARP = int(StarFlag.SHARP)  # flags are slow to look up


def match(
    a: Stars | Any,
    b: Stars | Any,
    *,
    options: MatchOptions = MatchOptions(),  # noqa: B008
    guess: Transform | None = None,
) -> Pairs:
    """Find the stars that two lists have in common.

    The lists may differ by any shift, rotation and mirror image and by a magnification within
    ``options.scale_range``. Fluxes serve for the order of the lists and, of two `Stars`, to refuse pairs that agree
    in place alone.

    Parameters
    ----------
    a, b : Stars or (n, 2) array_like, pixel
        Positions, brightest first. Rows that are not finite take no part.
    options : MatchOptions
        Number of stars, tolerance, and the odds that are asked for.
    guess : Transform, optional
        From `a` to `b`, good to a few tolerances: tried before triangles are.

    Returns
    -------
    Pairs
        Rows of `a` and `b` in the order of `a`, one to one. `weak` where both lists have three stars and no
        more.

    Raises
    ------
    MatchError
        Where no transform reaches the odds, where two different ones come too close to each other, and where
        nothing agrees but positions fixed on the detector.

    Notes
    -----
    Triangles with the ratios of their sides as invariants follow Groth (1986, AJ 91, 1244) and
    Valdes et al. (1995, PASP 107, 1119); bright stars first as in Tabur (2007, PASA 24, 189). The odds count
    false alarms as Desolneux, Moisan & Morel (2008, From Gestalt Theory to Image Analysis, ch. 3) do; see
    docs/match.md.

    Hot pixels stand at the same detector position in both lists and vote for the identity. Entries that
    coincide there are therefore left out at first, and come back only where the rest of the lists does not
    match.
    """
    every_a, every_b = positions(a), positions(b)
    best = -np.inf
    reason = "no transform brings enough stars together"
    for rows_a, rows_b, all_rows, widen, still in _attempts(a, b, every_a, every_b, options):
        xa, xb = every_a.take(rows_a, axis=0), every_b.take(rows_b, axis=0)
        found = None
        if guess is not None:
            found = _follow(guess, xa, xb, options)
            if found is not None and _are_strangers(a, b, rows_of(found.index, rows_a, rows_b)):
                found = None
        if found is None and min(len(xa), len(xb)) == 3 == max(len(xa), len(xb)):
            found = _three(xa, xb, options)
        # a guess that is off by some pixels may bring the second images of a mount that jumped together
        if found is None or (not found.weak and len(found.index) < FOLLOWED * min(len(xa), len(xb))):
            searched, odds = _search(xa, xb, widen, options)
            best = max(best, odds)
            if searched is not None and _are_strangers(a, b, rows_of(searched.index, rows_a, rows_b)):
                # stars that stand in rows and columns agree in many places: the best of all is looked for
                searched, odds = _search(xa, xb, widen, options, enough=np.inf)
            if searched is not None and (found is None or searched.odds > found.odds):
                found = searched
        if found is None:
            continue
        if _are_strangers(a, b, rows_of(found.index, rows_a, rows_b)):
            reason = f"{len(found.index)} agree in place, but not in brightness: a pattern, not the same stars"
            continue
        if not found.weak and _is_clump(xa.take(found.index[:, 0], axis=0), every_a):
            reason = f"{len(found.index)} agree, but in one place: a pattern of the detector, not the sky"
            continue
        if all_rows and _rests_on_fixed(found, xa, xb, options):
            reason = f"only {len(found.index)} positions fixed on the detector agree, not the sky"
            continue
        # a few pairs beside a majority that stood still: the still sky is looked at before they are believed
        if still >= min(len(xa), len(xb)) and len(found.index) < FEW * min(len(xa), len(xb)):
            continue
        return Pairs(index=rows_of(found.index, rows_a, rows_b), log_odds=found.odds, weak=found.weak)
    raise MatchError(
        f"{len(every_a)} and {len(every_b)} stars do not match: {reason} (best log odds {best:.1f}, "
        f"needed {options.min_log_odds:.1f}); deeper lists of stars or a guess of the transform may help"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Match:
    index: Rows
    odds: float
    weak: bool = False


def rows_of(index: Rows, rows_a: Rows, rows_b: Rows) -> Rows:
    """Pairs of parts of two lists as rows of the lists.

    Parameters
    ----------
    index : (n, 2) ndarray
        Pairs of the parts.
    rows_a, rows_b : (k,) ndarray
        Rows that the parts are made of.

    Returns
    -------
    (n, 2) ndarray
        Rows of the first and of the second list.
    """
    out = np.empty_like(index)
    out[:, 0], out[:, 1] = rows_a.take(index[:, 0]), rows_b.take(index[:, 1])
    return out


def _attempts(
    a: Stars | Any, b: Stars | Any, xa: Array, xb: Array, options: MatchOptions
) -> Iterator[tuple[Rows, Rows, bool, tuple[float, ...], int]]:
    """Rows to match: without sharp and fixed detections, without sharp ones, without fixed ones, all.

    The flag says whether the rows include detections at the same position in both lists, the last number how
    many of them were left out while it is still to be seen whether they are the sky. Where sharpness has
    told the hot pixels from the stars, a quick search without the fixed ones will do before a sky that stood
    still is believed.
    """
    lists = ((a, xa), (b, xb))
    quick = all(isinstance(stars, Stars) and bool(np.isfinite(stars.sharpness).any()) for stars in (a, b))
    finite, soft = (
        [_match.usable_rows(xy, stars.flags if isinstance(stars, Stars) else None, bad) for stars, xy in lists]
        for bad in (0, SHARP)
    )
    for rows_a, rows_b in (finite,) if list(map(len, soft)) == list(map(len, finite)) else (soft, finite):
        if min(len(rows_a), len(rows_b)) < 3:
            continue
        fixed = _fixed(xa.take(rows_a, axis=0), xb.take(rows_b, axis=0), FIXED * options.tolerance)
        if not len(fixed):
            yield rows_a, rows_b, False, WIDEN, 0
            continue
        rest = np.delete(rows_a, fixed[:, 0]), np.delete(rows_b, fixed[:, 1])
        yield *rest, False, WIDEN[: 2 if quick else None], len(fixed) if quick else 0
        yield rows_a, rows_b, True, WIDEN, 0
        if quick:
            yield *rest, False, WIDEN, 0


def _fixed(xa: Array, xb: Array, radius: float) -> Rows:
    """Pairs at the same position of both lists, where they are more than chance would have."""
    pairs = _match.nearest_pairs(xa, xb, radius)
    left, low, right, high = _match.box(xb)
    chance = len(xa) * len(xb) * math.pi * radius**2 / (max(right - left, 1) * max(high - low, 1))
    return pairs if len(pairs) > 1 + chance + 4 * math.sqrt(chance) else pairs[:0]


def _is_clump(pairs: Array, every: Array) -> bool:
    """Whether the pairs fill but a corner or a row of the list; a shared sky shows all over the shared area."""
    middle = _match.interquartile(pairs)
    left, low, right, high = _match.box(every)
    if middle[0] >= CLUMP * (right - left) and middle[1] >= CLUMP * (high - low):
        return False  # the middle half of the list spans even less
    whole = _match.interquartile(every)
    return any(part < CLUMP * all_ for part, all_ in zip(middle, whole, strict=True))


def _are_strangers(a: Stars | Any, b: Stars | Any, index: Rows) -> bool:
    """Whether the fluxes of pairs have as little in common as those of any two stars, far beyond their errors."""
    if not isinstance(a, Stars) or not isinstance(b, Stars) or len(index) < _TELLING:
        return False
    i, j = index.T
    with np.errstate(invalid="ignore", divide="ignore"):
        one, other = np.log(a.flux.take(i)), np.log(b.flux.take(j))
    known = np.isfinite(one + other)
    one, other = one[known], other[known]
    if len(one) < _TELLING or np.var(one - other) < ALIKE**2 * (np.var(one) + np.var(other)):
        return False
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.nanmedian(np.hypot(1 / a.snr.take(i), 1 / b.snr.take(j))[known])
    ratio = _scatter(one - other)
    return bool(ratio > ALIKE * np.hypot(_scatter(one), _scatter(other)) and not ratio < _UNSURE * error)


def _scatter(values: Array) -> float:
    return float(np.median(np.abs(values - np.median(values))))


def _rests_on_fixed(found: _Match, xa: Array, xb: Array, options: MatchOptions) -> bool:
    """Whether a match is the identity and leaves out most of what the lists show.

    A sky that stood still carries all stars with it; hot pixels alone leave the stars unpaired.
    """
    i, j = found.index.T
    moved = np.abs(np.mean(xb[j] - xa[i], axis=0)).max()
    still = np.hypot(*(xb[j] - xa[i]).T).max() < 1.5 * options.tolerance and moved < FIXED * options.tolerance
    return bool(still and len(found.index) < 0.5 * min(len(xa), len(xb)))


def _follow(guess: Transform, xa: Array, xb: Array, options: MatchOptions) -> _Match | None:
    """Nearest neighbours under a guess that may be off by a few pixels and a small turn."""
    if min(len(xa), len(xb)) < 4:
        return None
    reach, step = REACH * options.tolerance, options.tolerance / 2
    near = np.ascontiguousarray(guess(xa))
    dx, dy = _match.commonest_shift(near, xb, reach, step)
    _, index, odds = _match.refine(near, xb, np.array([1, 0, dx, dy, 1.0]), options.tolerance)
    odds -= 2 * math.log(2 * reach / step)
    return _Match(index, odds) if odds >= options.min_log_odds and len(index) >= 4 else None


def _search(
    xa: Array, xb: Array, steps: tuple[float, ...], options: MatchOptions, enough: float = OVERWHELMING
) -> tuple[_Match | None, float]:
    """Match by triangles over more and more stars; the match, and the best odds seen."""
    best = -np.inf
    done = 0
    for widen in steps:
        m = max(3, min(round(widen * options.max_stars), max(len(xa), len(xb))))
        if m == done or min(len(xa), len(xb)) < 4:
            continue
        done = m
        found, odds = _step(xa, xb, m, options, enough)
        best = max(best, odds)
        if found is not None:
            return found, best
    return None, best


def _step(xa: Array, xb: Array, m: int, options: MatchOptions, enough: float) -> tuple[_Match | None, float]:
    """Triangles of the m brightest stars, the best candidates checked on all stars."""
    some_a, some_b = xa[:m], xb[:m]
    tolerance = options.tolerance
    left, low, right, high = _match.box(some_a)
    width, height = right - left, high - low
    hypotheses = sum(math.log(n * (n - 1.0)) for n in (len(some_a), len(some_b)))
    candidates = _match.search(
        some_a,
        some_b,
        tolerance,
        *options.scale_range,
        3 * tolerance,
        0.08 * math.hypot(width, height) if m >= 20 else 0.0,
        _largest(m, width * height),
        ROOM,
        BUDGET,
        enough + hypotheses,
    )
    ranked: list[tuple[float, Array, Rows]] = []
    for row in candidates:
        similarity, index, odds = _match.refine(xa, xb, np.ascontiguousarray(row[:5]), tolerance)
        magnification = math.hypot(similarity[0], similarity[1])
        if not options.scale_range[0] <= magnification <= options.scale_range[1] or len(index) < 4:
            continue
        ranked.append((max(odds, row[5]) - hypotheses - np.log(2 * len(WIDEN)), similarity, index))
    ranked.sort(key=lambda entry: -entry[0])
    if not ranked:
        return None, -np.inf
    odds, similarity, index = ranked[0]
    rivals = [r[0] for r in ranked[1:] if _differ(similarity, r[1], xa, 4 * tolerance)]
    clear = not rivals or odds - rivals[0] >= MARGIN
    return (_Match(index, odds) if odds >= options.min_log_odds and clear else None), odds


def _largest(m: int, area: float) -> float:
    """Longest side up to which m stars on an area form about ROOM triangles."""
    every = m * (m - 1) * (m - 2) / 6
    if every <= ROOM:
        return np.inf
    # a point within L of another: pi L^2 / area; two such whose distance is below L, too: 0.5865 of the pairs
    return float(np.sqrt(area / np.pi) * (ROOM / (0.5865 * every)) ** 0.25)


def _apply(similarity: Array, xy: Array) -> Array:
    c, s, tx, ty, parity = similarity
    return np.asarray(xy @ np.array([[c, s], [-s * parity, c * parity]]) + (tx, ty))


def _differ(one: Array, other: Array, xy: Array, limit: float) -> bool:
    """Whether two similarities disagree somewhere on the stars."""
    return bool(np.abs(_apply(one, xy) - _apply(other, xy)).max() > limit)


def _three(xa: Array, xb: Array, options: MatchOptions) -> _Match | None:
    """Both lists have three stars: the one of the six assignments that fits, if the others clearly do not."""
    za, zb = xa @ [1, 1j], xb @ [1, 1j]
    trials = []
    for order in permutations(range(3)):
        w = zb[list(order)] - zb.mean()
        for z in (za - za.mean(), (za - za.mean()).conj()):
            size = np.vdot(z, z).real
            factor = np.vdot(z, w) / size if size else 0.0
            in_scale = options.scale_range[0] <= abs(factor) <= options.scale_range[1]
            misfit = float(np.linalg.norm(w - factor * z) ** 2)
            trials.append((misfit if in_scale else np.inf, order))
    trials.sort()
    (residual, order), (rival, _) = trials[:2]
    if not residual <= 0.5 * options.tolerance**2 <= rival:
        return None
    longest = np.abs(za - np.roll(za, 1)).max()
    density = 3 / np.prod(np.maximum(np.ptp(xb, axis=0), 0.1 * longest))
    spread = 3 * np.sum(np.abs(za - za.mean()) ** 2) / longest**2
    odds = -float(np.log(12 * np.pi * density * max(residual, 0.005) * spread))
    if odds < options.min_log_odds / 2:
        return None
    return _Match(np.array([(i, order[i]) for i in range(3)], np.intp), odds, weak=True)
