"""Flux scale and sky level of each frame against the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastack import _stars
from fastack.errors import MatchError
from fastack.types import Array, Background, FrameRecord, StarFlag, Stars, Transform

_UNFIT = StarFlag.SATURATED | StarFlag.EDGE | StarFlag.NO_FIT | StarFlag.SHARP


def match_levels(records: Sequence[FrameRecord], reference: FrameRecord, *, normalise: bool = True) -> None:
    """Flux scale and sky level of each frame against the reference.

    Parameters
    ----------
    records : sequence of FrameRecord
        Registered frames.
    reference : FrameRecord
        Whose scale is 1.
    normalise : bool
        Whether at all; otherwise every frame keeps its own scale and level.
    """
    assert reference.stars is not None and reference.background is not None
    pedestal = reference.background.sky
    for r in records:
        if r.reason is not None or r.transform is None or r.background is None:
            continue
        area = r.transform.magnification**2
        if r is reference:
            r.scale, r.scale_err, r.sky = 1.0, 0.0, pedestal
        elif not normalise:
            r.scale, r.scale_err, r.sky = 1.0, 0.0, pedestal / area
        else:
            assert r.stars is not None
            first, second = _common_stars(reference.stars, r.stars, r.transform)
            try:
                r.scale, r.scale_err = flux_scale(first, second)
            except MatchError as error:
                r.scale = _exposure_ratio(reference, r)
                r.notes += (f"{error}; scaled by exposure, {r.scale:.4g}",)
            r.sky = sky_level(reference.background, r.background, r.transform, r.scale)


def _common_stars(reference: Stars, frame: Stars, to_frame: Transform) -> tuple[Stars, Stars]:
    """Stars of both lists that a transform brings together, row by row."""
    pairs = _stars.nearest_pairs(np.ascontiguousarray(to_frame(reference.xy)), np.ascontiguousarray(frame.xy), 1.5)
    return reference[pairs[:, 0]], frame[pairs[:, 1]]


def _exposure_ratio(reference: FrameRecord, record: FrameRecord) -> float:
    a, b = reference.frame.exposure, record.frame.exposure
    return float(a / b) if a and b else 1.0


def flux_scale(reference: Stars, frame: Stars) -> tuple[float, float]:
    """Factor that brings a frame's fluxes to the reference's.

    Parameters
    ----------
    reference, frame : Stars
        The same stars in the same order, in both images.

    Returns
    -------
    scale, error : float
        Weighted mean of the flux ratios after robust clipping, and its standard error, from the scatter where that
        exceeds what the flux errors explain.

    Raises
    ------
    MatchError
        If fewer than three unsaturated stars are common, or their ratios have no meaning.
    """
    good = ~(reference.has(_UNFIT) | frame.has(_UNFIT))
    good &= (reference.flux > 0) & (frame.flux > 0) & (reference.snr > 5) & (frame.snr > 5)
    if good.sum() < 3:
        raise MatchError(f"flux scale: {int(good.sum())} unsaturated stars in common, need 3")
    ratio = np.log(reference.flux[good] / frame.flux[good])
    variance = 1 / reference.snr[good] ** 2 + 1 / frame.snr[good] ** 2
    keep = np.ones(len(ratio), bool)
    extra = 0.0
    for _ in range(10):
        weight = np.where(keep, 1 / (variance + extra), 0.0)
        mean = _weighted_median(ratio[keep], weight[keep])
        residual = ratio - mean
        spread = 1.4826 * np.median(np.abs(residual[keep]))
        extra = max(0.0, spread**2 - float(np.median(variance[keep])))
        new = np.abs(residual) < 4 * np.sqrt(variance + extra) + 1e-12
        if new.sum() < 3 or (new == keep).all():
            break
        keep = new
    weight = 1 / (variance[keep] + extra)
    mean = float(np.sum(weight * ratio[keep]) / weight.sum())
    chi2 = float(np.sum(weight * (ratio[keep] - mean) ** 2) / max(1, keep.sum() - 1))
    error = float(np.sqrt(max(1.0, chi2) / weight.sum()))
    if not np.isfinite(mean) or error > 0.5:
        raise MatchError(f"flux scale: the ratios of {int(keep.sum())} stars scatter too much (error {error:.2f})")
    return float(np.exp(mean)), float(np.exp(mean)) * error


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values, kind="stable")
    half = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(half, half[-1] / 2)])


def mesh_at(background: Background, xy: Array) -> Array:
    """Sky level at pixels of the image, bilinear between mesh points.

    Parameters
    ----------
    background : Background
        Mesh of levels.
    xy : (n, 2) ndarray, pixel
        Positions.

    Returns
    -------
    (n,) ndarray, ADU
        NaN outside the image.
    """
    level = np.asarray(background.level, float)
    ny, nx = background.shape
    fx = np.clip((xy[:, 0] + 0.5) / background.cell[1] - 0.5, 0, level.shape[1] - 1)
    fy = np.clip((xy[:, 1] + 0.5) / background.cell[0] - 0.5, 0, level.shape[0] - 1)
    ix, iy = np.floor(fx).astype(int), np.floor(fy).astype(int)
    jx, jy = np.minimum(ix + 1, level.shape[1] - 1), np.minimum(iy + 1, level.shape[0] - 1)
    fx, fy = fx - ix, fy - iy
    top = level[iy, ix] * (1 - fx) + level[iy, jx] * fx
    bottom = level[jy, ix] * (1 - fx) + level[jy, jx] * fx
    inside = (xy[:, 0] >= -0.5) & (xy[:, 0] <= nx - 0.5) & (xy[:, 1] >= -0.5) & (xy[:, 1] <= ny - 0.5)
    return np.where(inside, top * (1 - fy) + bottom * fy, np.nan)


def sky_level(reference: Background, frame: Background, transform: Transform, scale: float) -> float:
    """Level to subtract from a frame so that its sky equals the reference's where both look.

    The two meshes are compared point by point over the overlap, so that an extended object, which both show, keeps
    its light.

    Parameters
    ----------
    reference, frame : Background
        Meshes of both.
    transform : Transform
        Reference pixels to frame pixels.
    scale : float
        Flux scale of the frame.

    Returns
    -------
    float, ADU of the frame
        ``b`` such that ``scale * area * (frame - b)`` has the reference's median sky subtracted.
    """
    my, mx = reference.level.shape
    x = (np.arange(mx) + 0.5) * reference.cell[1] - 0.5
    y = (np.arange(my) + 0.5) * reference.cell[0] - 0.5
    grid = np.stack([a.ravel() for a in np.meshgrid(x, y)], axis=1)
    grid = np.minimum(grid, [reference.shape[1] - 1, reference.shape[0] - 1])
    gain = scale * transform.magnification**2
    excess = mesh_at(frame, transform(grid)) - (mesh_at(reference, grid) - reference.sky) / gain
    excess = excess[np.isfinite(excess)]
    if not len(excess):
        return frame.sky
    for _ in range(5):
        median = np.median(excess)
        sigma = 1.4826 * np.median(np.abs(excess - median))
        keep = np.abs(excess - median) <= 3 * sigma
        if keep.all() or keep.sum() < 3:
            break
        excess = excess[keep]
    return float(np.mean(excess)) if len(excess) > 4 else float(np.median(excess))
