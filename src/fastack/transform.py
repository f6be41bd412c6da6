"""From pairs of stars to a transform: robust, weighted, with no more terms than the residuals justify."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastack import _match, _transform
from fastack.errors import FrameError, MatchError
from fastack.match import SHARP, match, rows_of
from fastack.options import MatchOptions, TransformOptions
from fastack.types import Array, Pairs, StarFlag, Stars, Transform, positions

Mask = NDArray[np.bool_]

LADDER = ("shift", "similarity", "affine", "quadratic", "cubic")
NEED = {"auto": 3, "shift": 1, "similarity": 2, "affine": 3, "quadratic": 6, "cubic": 10}  # stars at least
FREE = {"shift": 2, "similarity": 4, "affine": 6, "quadratic": 12, "cubic": 20}  # parameters of both axes
ORDER = {3: 1, 6: 2, 10: 3}
MANY = 40  # pairs from which on a similarity brings them closer before the ladder is climbed
UNDISTORTED = 0.9  # part of the first pairs within the clipping limit of a similarity
SAMPLES = 80  # pairs of stars behind the first guess
JURY = 80  # stars that judge it, at most
FINEST = 1e-4  # pixel: differences below it justify nothing
ROUNDS = 20  # of pairing again
DOUBTFUL = int(StarFlag.SATURATED | StarFlag.EDGE)  # flags are slow to look up


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
    a, b = positions(reference_xy), positions(frame_xy)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} reference positions but {len(b)} frame positions")
    finite: Mask = np.asarray(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
    n, wanted = int(np.count_nonzero(finite)), options.model
    if n < NEED[wanted]:
        raise MatchError(f"{n} pairs of stars; the model {wanted!r} needs {NEED[wanted]}")
    first, second = (None if e is None else _errors(e, finite) for e in (reference_err, frame_err))
    if n < len(finite):
        a, b = a[finite], b[finite]
    left, low, right, high = _match.box(a)
    extent = max(right - left, high - low)
    scale = max(extent / 2, 1e-3)
    if wanted != "shift" and extent < 1e-6:
        raise MatchError(f"all {len(a)} stars stand at one point: no rotation or scale can be found")
    origin = ((left + right) / 2, (low + high) / 2)
    if guess is None:
        u, v = ((a - origin) / scale).T
        parity, size, start = _first_guess(u, v, b, options.clip)
    else:
        start = _transform.near_prediction(guess(a), b, options.clip)
        parity, size = (-1.0 if guess.mirrored else 1.0), guess.magnification * scale
    variance, known = _transform.variances(first, second, n, size / scale)
    ladder = -1 if wanted == "auto" else LADDER.index(wanted)
    number, c, covariance, keep, squares = _transform.fit_pairs(
        a,
        b,
        variance,
        known,
        options.clip,
        *origin,
        scale,
        parity,
        start.view(np.uint8),
        ladder,
    )
    used = finite.copy()
    used[finite] = keep
    n, model = int(np.count_nonzero(keep)), LADDER[number]
    free = 2 * n - FREE[model]
    c = np.ascontiguousarray(c.T)
    for array in (c, covariance):
        array.setflags(write=False)
    return Transform(
        cx=c[0],
        cy=c[1],
        order=ORDER[c.shape[1]],
        origin=origin,
        scale=scale,
        model=model,
        rms=math.sqrt(squares / free) if free > 0 else float("nan"),
        n=n,
        covariance=covariance,
    ), used


def _errors(values: ArrayLike, finite: Mask) -> Array:
    errors: Array = np.ascontiguousarray(values, float)
    if errors.shape != finite.shape:
        raise ValueError(f"errors have shape {errors.shape}, not {finite.shape}")
    return errors if finite.all() else errors[finite]


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
    reference: Stars | ArrayLike,
    frame: Stars | ArrayLike,
    *,
    guess: Transform | None = None,
    match_options: MatchOptions = MatchOptions(),  # noqa: B008
    options: TransformOptions = TransformOptions(),  # noqa: B008
) -> tuple[Transform, Pairs]:
    """Match two lists of stars and fit the transform to all the stars that they share.

    Parameters
    ----------
    reference, frame : Stars or (n, 2) array_like, pixel
        Brightest first. Sharp detections (hot pixels, cosmic rays) take part only where the others do not
        match. Of plain positions all errors are taken to be the same.
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
    reference, frame = (s if isinstance(s, Stars) else Stars.make(s) for s in (reference, frame))
    seed = match(reference, frame, options=match_options, guess=guess)
    rows_a, rows_b = _rows(reference, frame, seed)
    a, b = reference.xy.take(rows_a, axis=0), frame.xy.take(rows_b, axis=0)
    index = seed.index
    transform = None
    if options.model == "auto" and len(index) >= MANY:
        # the first fit only brings the pairs closer: the ladder is climbed once they are known
        transform, used = _rough(reference.xy[index[:, 0]], frame.xy[index[:, 1]], options.clip)
    if transform is None or np.count_nonzero(used) < UNDISTORTED * len(used):
        transform, used = _fit_rows(reference, frame, index, options)
    seen: set[bytes] = set()
    for _ in range(ROUNDS if len(index) > 3 else 0):
        reach = min(max(5 * transform.rms, 0.5), match_options.tolerance)
        sigma = max(transform.rms, 0.1) if math.isfinite(transform.rms) else 0.1
        pairs = rows_of(_match.pairs_of_sky(transform(a), a, b, reach, sigma), rows_a, rows_b)
        key = pairs.tobytes()
        if len(pairs) < 3 or key in seen:
            break
        seen.add(key)
        index = pairs
        transform, used = _fit_rows(reference, frame, index, options, transform)
    odds = seed.log_odds
    if not seed.weak:
        odds = _match.refine(transform(a), b, np.array([1, 0, 0, 0, 1.0]), match_options.tolerance)[2]
        if odds < match_options.min_log_odds:
            raise MatchError(
                f"{len(index)} matched stars do not stand up to the fit ({transform.model}, "
                f"rms {transform.rms:.2f} px, log odds {odds:.1f}, needed {match_options.min_log_odds:.1f})"
            )
    return transform, Pairs(index=index[used], log_odds=float(odds), weak=seed.weak)


def _rough(a: Array, b: Array, clip: float) -> tuple[Transform, Mask]:
    """Similarity through pairs that a similarity has brought together, and those within the clipping limit of it."""
    (c, s, x, y, parity), sigma, near = _transform.rough_fit(a, b, clip)
    cx, cy = np.array([x, c, -parity * s]), np.array([y, s, parity * c])
    return Transform(cx=cx, cy=cy, order=1, model="similarity", rms=sigma, n=int(np.count_nonzero(near))), near


def _rows(reference: Stars, frame: Stars, seed: Pairs) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that may be paired: not the sharp ones, unless the match rests on them."""
    rows_a, rows_b = (
        _match.usable_rows(stars.xy, stars.flags, 0 if (stars.flags.take(rows) & SHARP).any() else SHARP)
        for stars, rows in ((reference, seed.index[:, 0]), (frame, seed.index[:, 1]))
    )
    return rows_a, rows_b


def _fit_rows(
    reference: Stars,
    frame: Stars,
    index: NDArray[np.intp],
    options: TransformOptions,
    guess: Transform | None = None,
) -> tuple[Transform, Mask]:
    """Fit pairs; saturated stars and those cut by an edge only where there are few others."""
    i, j = index.T
    clean: Mask = (reference.flags.take(i) | frame.flags.take(j)) & DOUBTFUL == 0
    if np.count_nonzero(clean) < 10:
        clean[:] = True
    i, j = i[clean], j[clean]
    a, b = reference.xy.take(i, axis=0), frame.xy.take(j, axis=0)
    transform, used = _fit(a, b, reference.xy_err.take(i), frame.xy_err.take(j), options, guess)
    clean[clean] = used
    return transform, clean


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
    reasons: list[str | None] = [None] * len(transforms)
    known = [(k, t) for k, t in enumerate(transforms) if t is not None]
    if not known:
        return reasons
    edges = {shape: _edge(shape) for shape in set(shapes)}
    with np.errstate(all="ignore"):
        inside = np.stack([t.inverse(edges[shapes[k]]) for k, t in known])
        jacobians = np.stack([t.jacobian(points) for (_, t), points in zip(known, inside, strict=True)])
        areas = jacobians[..., 0, 0] * jacobians[..., 1, 1] - jacobians[..., 0, 1] * jacobians[..., 1, 0]
    one_sided = (areas > 0).all(axis=1) | (areas < 0).all(axis=1)
    kept = np.asarray(np.isfinite(inside).all(axis=(1, 2)) & one_sided)
    stretch = np.linalg.svd(np.stack([t.matrix for _, t in known]), compute_uv=False)
    low, high = inside.min(axis=1).tolist(), inside.max(axis=1).tolist()
    boxes: dict[int, list[float]] = {}
    scales: dict[int, float] = {}
    for i, (k, t) in enumerate(known):
        longest, shortest = stretch[i]
        if not kept[i]:
            reasons[k] = "the transform folds the frame over"
        elif longest > (1 + max_scale) * shortest:
            reasons[k] = f"the transform stretches one direction by {100 * (longest / shortest - 1):.1f} %"
        else:
            scales[k] = t.magnification
            boxes[k] = [*low[i], *high[i]]
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
        if len(clean) > 1 and not any(j != k and _overlap(boxes[k], boxes[j]) for j in clean):
            reasons[k] = "its footprint meets no other frame's"
    return reasons


def _edge(shape: tuple[int, int]) -> Array:
    """Points of a frame from edge to edge."""
    ny, nx = shape
    return np.array([(x, y) for x in np.linspace(0, nx - 1, 5) for y in np.linspace(0, ny - 1, 5)])


def _overlap(one: list[float], other: list[float]) -> bool:
    """Whether two boxes (low x, low y, high x, high y) overlap."""
    return all(min(one[k + 2], other[k + 2]) > max(one[k], other[k]) for k in (0, 1))
