"""Slow twins of the loops over levels and fluxes."""

from __future__ import annotations

import numpy as np


def mesh_values(
    level: np.ndarray, cell: tuple[float, float], shape: tuple[int, int], xy: np.ndarray, reach: float
) -> np.ndarray:
    """Twin of `_levels.mesh_values`: bilinear between mesh points, straight beyond them."""
    places, inside = [], np.ones(len(xy), bool)
    for axis in (0, 1):
        n, size = level.shape[1 - axis], shape[1 - axis]
        at = (xy[:, axis] + 0.5) / cell[1 - axis] - 0.5
        first = np.clip(np.floor(at), 0, max(0, n - 2)).astype(int)
        places.append((first, np.minimum(first + 1, n - 1), at - first))
        inside &= (xy[:, axis] >= -0.5 - reach) & (xy[:, axis] <= size - 0.5 + reach)
    (ix, jx, fx), (iy, jy, fy) = places
    top = level[iy, ix] * (1 - fx) + level[iy, jx] * fx
    bottom = level[jy, ix] * (1 - fx) + level[jy, jx] * fx
    return np.where(inside, top * (1 - fy) + bottom * fy, np.nan)


def clipped_mean(values: np.ndarray) -> float:
    """Twin of `_levels.clipped_mean`."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan")
    for _ in range(5):
        median = np.median(values)
        sigma = 1.4826 * np.median(np.abs(values - median))
        keep = np.abs(values - median) <= 3 * sigma
        if keep.all() or keep.sum() < 3:
            break
        values = values[keep]
    return float(np.mean(values)) if len(values) > 4 else float(np.median(values))


def robust_mean(values: np.ndarray, variance: np.ndarray) -> tuple[float, float, int]:
    """Twin of `_levels.robust_mean`, for values in any order."""
    keep, extra = np.ones(len(values), bool), 0.0
    for _ in range(10):
        weight = 1 / (variance[keep] + extra)
        order = np.argsort(values[keep], kind="stable")
        half = np.cumsum(weight[order])
        mean = values[keep][order][np.searchsorted(half, half[-1] / 2)]
        spread = 1.4826 * np.median(np.abs(values - mean)[keep])
        extra = max(0.0, spread**2 - float(np.median(variance[keep])))
        new = np.abs(values - mean) < 4 * np.sqrt(variance + extra) + 1e-12
        if new.sum() < 3 or (new == keep).all():
            break
        keep = new
    weight = 1 / (variance[keep] + extra)
    mean = np.sum(weight * values[keep]) / weight.sum()
    chi2 = np.sum(weight * (values[keep] - mean) ** 2) / max(1, keep.sum() - 1)
    return float(mean), float(np.sqrt(max(1.0, chi2) / weight.sum())), int(keep.sum())


def medians(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Twin of `_levels.medians`."""
    return np.array([np.median(row[some]) if some.any() else 0.0 for row, some in zip(values, chosen, strict=True)])
