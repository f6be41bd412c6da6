"""Flux scale, sky level and sky gradient of each frame against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastack import _levels, _match, background
from fastack.errors import MatchError
from fastack.types import Array, Background, FloatImage, FrameRecord, StarFlag, Stars, Transform

_CELL = 64  #: side of a cell of the sky surfaces, output pixel
_QUIET = 0.2  #: surfaces whose rms stays below, in sigmas of a pixel, are not worth their cost
_TURNS = 50  #: of common sky and planes at most; frames that overlap widely need about ten

_UNFIT = int(StarFlag.SATURATED | StarFlag.EDGE | StarFlag.NO_FIT | StarFlag.SHARP)


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
    points = _mesh_points(reference.background)
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
            try:
                r.scale, r.scale_err = _flux_scale(
                    reference.stars, r.stars, *_common(reference.stars, r.stars, r.transform)
                )
            except MatchError as error:
                r.scale = _exposure_ratio(reference, r)
                r.notes += (f"{error}; scaled by exposure, {r.scale:.4g}",)
            r.sky = _sky_level(*points, r.background, r.transform, r.scale)


def _common(reference: Stars, frame: Stars, to_frame: Transform) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the stars of both lists that a transform brings together."""
    pairs = _match.nearest_pairs(np.ascontiguousarray(to_frame(reference.xy)), np.ascontiguousarray(frame.xy), 1.5)
    return pairs[:, 0], pairs[:, 1]


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
    rows = np.arange(len(reference))
    return _flux_scale(reference, frame, rows, rows)


def _flux_scale(reference: Stars, frame: Stars, i: NDArray[np.intp], j: NDArray[np.intp]) -> tuple[float, float]:
    """`flux_scale` of the stars in rows i of the one list and j of the other."""
    first, second = reference.flux.take(i), frame.flux.take(j)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr, other = first / reference.flux_err.take(i), second / frame.flux_err.take(j)
    good = ((reference.flags.take(i) | frame.flags.take(j)) & _UNFIT) == 0
    good &= (first > 0) & (second > 0) & (snr > 5) & (other > 5)
    n = int(np.count_nonzero(good))
    if n < 3:
        raise MatchError(f"flux scale: {n} unsaturated stars in common, need 3")
    ratio = np.log(first[good] / second[good])
    order = np.argsort(ratio, kind="stable")
    variance = 1 / snr[good] ** 2 + 1 / other[good] ** 2
    mean, error, n = _levels.robust_mean(ratio[order], variance[order])
    if not np.isfinite(mean) or error > 0.5:
        raise MatchError(f"flux scale: the ratios of {n} stars scatter too much (error {error:.2f})")
    scale = float(np.exp(mean))
    return scale, scale * error


def mesh_at(background: Background, xy: Array, reach: float = 0.0) -> Array:
    """Sky level at pixels of the image, bilinear between mesh points and straight beyond the outermost.

    Parameters
    ----------
    background : Background
        Mesh of levels.
    xy : (n, 2) ndarray, pixel
        Positions.
    reach : float, pixel
        How far outside the image there is still a value.

    Returns
    -------
    (n,) ndarray, ADU
        NaN outside the image.
    """
    level = np.asarray(background.level, float)
    return _levels.mesh_values(level, *background.cell, *background.shape, np.asarray(xy, float), reach)


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
    return _sky_level(*_mesh_points(reference), frame, transform, scale)


def _mesh_points(reference: Background) -> tuple[Array, Array]:
    """Mesh points of the reference, as far as they lie in the image, and its level there above its sky."""
    my, mx = reference.level.shape
    x = (np.arange(mx) + 0.5) * reference.cell[1] - 0.5
    y = (np.arange(my) + 0.5) * reference.cell[0] - 0.5
    points = np.stack([a.ravel() for a in np.meshgrid(x, y)], axis=1)
    points = np.minimum(points, [reference.shape[1] - 1, reference.shape[0] - 1])
    return points, mesh_at(reference, points) - reference.sky


def _sky_level(points: Array, known: Array, frame: Background, transform: Transform, scale: float) -> float:
    gain = scale * transform.magnification**2
    level = _levels.clipped_mean(mesh_at(frame, transform(points)) - known / gain)
    return level if np.isfinite(level) else frame.sky


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SkySurfaces:
    """What the sky of each frame has beyond its level and the common sky; they reach `_CELL` pixels further out."""

    meshes: list[Background]  #: of each frame, ADU of the reference
    origin: tuple[int, int]  #: pixel of the output that the meshes' (0, 0) falls on, (x, y)

    def of(self, index: int) -> tuple[Background, tuple[int, int]]:
        """One frame's surface, as `resample_tile` takes it off.

        Parameters
        ----------
        index : int
            Of the frame.

        Returns
        -------
        mesh : Background
            ADU of the reference.
        origin : tuple of int
            (x, y) of the output that its first pixel falls on.
        """
        return self.meshes[index], self.origin

    def at(self, index: int, window: tuple[int, int, int, int]) -> FloatImage:
        """One frame's surface in a window of the output.

        Parameters
        ----------
        index : int
            Of the frame.
        window : tuple of int
            (y0, y1, x0, x1).

        Returns
        -------
        (y1 - y0, x1 - x0) float32 ndarray, ADU of the reference
            A pixel has the same value in every window.
        """
        y0, y1, x0, x1 = window
        dx, dy = self.origin
        return background.render(self.meshes[index], (slice(y0 - dy, y1 - dy), slice(x0 - dx, x1 - dx)))


def sky_surfaces(
    records: Sequence[FrameRecord], to_frame: Sequence[Transform], area: tuple[int, int, int, int], model: str = "mesh"
) -> SkySurfaces | None:
    """What each frame's sky has beyond the common sky: gradients of moon and twilight, flats that miss.

    Parameters
    ----------
    records : sequence of FrameRecord
        Frames of the stack with background, flux scale, level and weight.
    to_frame : sequence of Transform
        Output pixels to the pixels of each frame.
    area : tuple of int
        (y0, y1, x0, x1) of the output that is wanted; beyond the output where the surfaces are not to depend on its
        framing.
    model : {"mesh", "plane", "level"}
        How fine: a plane and what the frame's mesh shows beyond it, the plane alone, or nothing.

    Returns
    -------
    SkySurfaces, or None
        To be taken off the frames' resampled and scaled pixels. None where no frame's sky differs from the others' by
        more than a fifth of a pixel's noise.

    Notes
    -----
    The frames' levels are the sum of a common sky, free at every mesh point, and a plane for each frame (least squares
    by turns; planes of mosaics are matched so in Montage, Berriman et al. 2003, ADASS XII, 343). Their weighted mean
    is zero. What is left at a mesh point beyond the weighted mean of the frames there is the mesh's part. So the
    average of frames that cover a place is the same as without it: objects of any size keep their light, and
    a uniform sky stays as it is.
    """
    if model == "level" or len(records) < 2:
        return None
    y0, y1, x0, x1 = area
    my, mx = -(-(y1 - y0) // _CELL) + 2, -(-(x1 - x0) // _CELL) + 2
    x, y = x0 + (np.arange(mx) - 0.5) * _CELL - 0.5, y0 + (np.arange(my) - 0.5) * _CELL - 0.5
    nodes = np.stack([a.ravel() for a in np.meshgrid(x, y)], axis=1)
    weight = np.array([r.weight for r in records])
    factor = np.array([r.scale * t.magnification**2 for r, t in zip(records, to_frame, strict=True)])
    noise = factor * np.array([r.quality.noise if r.quality else np.nan for r in records])
    excess = np.empty((len(records), len(nodes)))
    for k, (r, t) in enumerate(zip(records, to_frame, strict=True)):
        assert r.background is not None
        excess[k] = factor[k] * (mesh_at(r.background, t(nodes), reach=_CELL) - r.sky)
    known = np.isfinite(excess)
    excess[~known] = 0.0
    basis = np.stack([np.ones(len(nodes)), *((nodes - nodes.mean(axis=0)) / np.ptp(nodes, axis=0).max()).T], axis=1)
    surface = _planes(excess, known, weight, basis) @ basis.T
    rest = np.zeros_like(surface)
    if model == "mesh":
        left = excess - surface
        rest = np.where(known, left - _common_level(left, *_shares(known, weight)), 0.0)
    size = np.sqrt(np.sum((surface + rest) ** 2, axis=1, where=known) / np.maximum(known.sum(axis=1), 1))
    if not (size > _QUIET * np.where(np.isfinite(noise), noise, 0.0)).any():
        return None
    if model == "mesh":
        padded = np.pad(rest.reshape(-1, my, mx), ((0, 0), (1, 1), (1, 1)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        rest = np.median(windows, axis=(3, 4)).reshape(rest.shape)
        surface = surface + rest - _common_level(rest, *_shares(np.ones_like(known), weight))
    whole = (my * _CELL, mx * _CELL)
    empty = np.zeros((my, mx), np.float32)
    meshes = surface.astype(np.float32).reshape(-1, my, mx)
    return SkySurfaces(
        meshes=[Background(level=mesh, noise=empty, shape=whole, cell=(_CELL, _CELL)) for mesh in meshes],
        origin=(x0 - _CELL, y0 - _CELL),
    )


def _common_level(values: Array, shares: Array, total: Array) -> Array:
    """Weighted mean over the frames at every point; 0 where there is none."""
    mean: Array = np.sum(shares * values, axis=0) / total
    return mean


def _shares(known: NDArray[np.bool_], weight: Array) -> tuple[Array, Array]:
    """Weight of each frame at every point, and of all together (1 where there is none)."""
    shares = weight[:, None] * known
    total = shares.sum(axis=0)
    return shares, np.where(total > 0, total, 1.0)


def _planes(excess: Array, known: NDArray[np.bool_], weight: Array, basis: Array) -> Array:
    """(n, 3) coefficients of each frame's plane beside the common sky; cells of odd light do not count."""
    terms = basis.shape[1]
    products = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), terms * terms)
    planes: Array = np.zeros((len(excess), terms))
    counted = known.copy()
    for _ in range(3):
        mask = counted.astype(float)
        normal = (mask @ products).reshape(-1, terms, terms) + 1e-9 * np.eye(terms)
        shares, total = _shares(counted, weight)
        part = (shares / total).T
        fixed = ((excess - _common_level(excess, shares, total)) * mask) @ basis
        for _ in range(_TURNS):
            common = ((part @ planes) * basis).sum(axis=1)  # level of the planes themselves
            moment = fixed + mask @ (common[:, None] * basis)
            new = np.linalg.solve(normal, moment[..., None])[..., 0]
            new = new - weight @ new / weight.sum()
            change, planes = np.abs(new - planes).max(), np.asarray(new, float)
            if change <= 1e-4 * np.abs(planes).max():
                break
        rest = excess - planes @ basis.T
        rest = np.abs(rest - _common_level(rest, shares, total))
        limit = 5 * 1.4826 * _levels.medians(rest, counted)
        counted = known & (rest <= limit[:, None] + 1e-12)
    return planes
