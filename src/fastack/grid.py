"""The output's pixel grid, and its division into tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fastack.errors import StackError
from fastack.types import Array, Grid, Transform

Tile = tuple[int, int, int, int]  #: y0, y1, x0, x1

ANCHOR = 16  #: tiles begin at multiples of it, so that the kernels' blocks are the same whatever the tiling

_AREA = 1 << 18  # pixels of a tile: larger ones save little
_SAMPLES = 70_000_000  # bytes of a tile's samples beyond which a tile of `_LEAST` pixels is not enlarged
_LEAST = 1 << 16
_SHARE = 4  # strips for each worker
_STRIP = 1 << 20  # pixels of a strip, whose planes another process sends back at once,
_TASK = 1 << 28  # and samples, which take some seconds: progress shows, and an interrupt waits no longer
_STEPS = 8  # points along a side of a frame


def footprint(
    shape: tuple[int, int], transform: Transform, steps: int = _STEPS, edges: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> Array:
    """Border of a frame on the reference's grid.

    Parameters
    ----------
    shape : tuple of int
        (ny, nx) of the frame.
    transform : Transform
        Reference pixels to frame pixels.
    steps : int
        Points along each side.
    edges : tuple of int
        Rows below and above, columns left and right of the frame that are not used.

    Returns
    -------
    (4 * steps, 2) ndarray, pixel
        Centres of border pixels, on the reference's grid.
    """
    return transform.inverse(_border(shape, steps, edges))


def _border(shape: tuple[int, int], steps: int, edges: tuple[int, int, int, int]) -> Array:
    """Points along the sides of a frame, in its own pixels."""
    ny, nx = shape
    t = np.linspace(0, 1, steps, endpoint=False)
    zero, one = np.zeros_like(t), np.ones_like(t)
    sides = [(t, zero), (one, t), (1 - t, one), (zero, 1 - t)]
    below, above, left, right = edges
    size = np.array([nx - 1 - left - right, ny - 1 - below - above])
    return np.asarray(np.concatenate([np.stack([u, v], axis=1) for u, v in sides]) * size + [left, below])


def frame_grid(
    framing: str,
    reference_shape: tuple[int, int],
    shapes: Sequence[tuple[int, int]],
    transforms: Sequence[Transform],
    max_size: int | None = None,
    edges: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Grid:
    """Output grid: the reference's pixels, as far as the framing wants.

    Parameters
    ----------
    framing : {"union", "reference", "intersection"}
        What the output covers.
    reference_shape : tuple of int
        (ny, nx) of the reference frame.
    shapes, transforms : sequence
        Of the frames that are stacked; the transforms map reference pixels to frame pixels.
    max_size : int, optional
        Pixels allowed; default 4 times the reference's.
    edges : tuple of int
        Rows below and above, columns left and right of every frame that are not used.

    Returns
    -------
    Grid
        Whole reference pixels.

    Raises
    ------
    StackError
        If the intersection is empty or the union too large.
    """
    ny, nx = reference_shape
    if framing == "reference":
        return Grid(shape=(ny, nx))
    border = {s: _border(s, _STEPS, edges) for s in set(shapes)}
    borders = [t.inverse(border[s]) for s, t in zip(shapes, transforms, strict=True)]
    if framing == "union":
        low = np.floor(np.min([b.min(axis=0) for b in borders], axis=0) + 1e-3).astype(int)
        high = np.ceil(np.max([b.max(axis=0) for b in borders], axis=0) - 1e-3).astype(int)
    elif framing == "intersection":
        # the largest upright rectangle inside convex quadrilaterals is bounded by their inner corners
        inner = [_inscribed(b) for b in borders]
        low = np.ceil(np.max([r[0] for r in inner], axis=0) - 1e-3).astype(int)
        high = np.floor(np.min([r[1] for r in inner], axis=0) + 1e-3).astype(int)
    else:
        raise ValueError(f"framing {framing!r}: choose union, reference or intersection")
    width, height = (high - low + 1).tolist()
    if width < 1 or height < 1:
        raise StackError("the frames have no area in common: use --framing union or reference")
    limit = max_size or 4 * ny * nx
    if width * height > limit:
        raise StackError(
            f"the union of the frames would be {width}x{height} pixels, more than {limit}: "
            f"use --framing reference, or allow it with --max-size {width * height}"
        )
    return Grid(shape=(height, width), origin=(float(low[0]), float(low[1])))


def _inscribed(border: Array) -> tuple[Array, Array]:
    """Upright rectangle inside a border that is nearly a rectangle (rotated by less than 45 degrees)."""
    corners = border[:: len(border) // 4]
    xs, ys = np.sort(corners[:, 0]), np.sort(corners[:, 1])
    return np.array([xs[1], ys[1]]), np.array([xs[2], ys[2]])


def tile_shape(
    n_frames: int, shape: tuple[int, int], budget: int, rotation: float, workers: int = 1
) -> tuple[int, int]:
    """Height and width of a tile that keeps `n_frames` samples a pixel within `budget`.

    Parameters
    ----------
    n_frames : int
        Frames in the stack.
    shape : tuple of int
        (ny, nx) of the output.
    budget : int, byte
        For the samples of one tile.
    rotation : float, degree
        Largest rotation in the set, taken modulo 90: long rows for straight frames, squarer tiles for turned ones.
    workers : int
        Among whom the tiles are shared: there are some for each, so that all end together.

    Returns
    -------
    tuple of int
        (height, width), multiples of `ANCHOR`.
    """
    share = max(_LEAST // 2, shape[0] * shape[1] // (_SHARE * workers))
    area = min(_AREA, share, max(_LEAST, _SAMPLES // (5 * n_frames)), max(ANCHOR * ANCHOR, budget // (5 * n_frames)))
    slope = abs(math.sin(math.radians(rotation)))
    best = (math.inf, ANCHOR, ANCHOR)
    for columns in range(1, -(-shape[1] // ANCHOR) + 1):
        width = -(-shape[1] // (columns * ANCHOR)) * ANCHOR  # alike, so that no narrow column is left over
        height = max(ANCHOR, min(area // width, -(-shape[0] // ANCHOR) * ANCHOR) // ANCHOR * ANCHOR)
        if width * height > area:
            continue
        # what is done twice, as part of the whole: rows above and below are read and judged, columns at the sides are
        # resampled, and of a file whole rows are read, of turned frames more of them
        twice = (4 + slope * width / 16) / height + (20 + shape[1] / 32) / width
        best = min(best, (twice, height, width))
    _, height, width = best
    return height, width


def strips(n_frames: int, shape: tuple[int, int], size: tuple[int, int], workers: int = 1) -> Iterator[list[Tile]]:
    """Divide an output into strips of tiles, each of which goes on along y where the one before it ends.

    Parameters
    ----------
    n_frames : int
        Frames in the stack.
    shape : tuple of int
        (ny, nx) of the output.
    size : tuple of int
        (height, width) of a tile.
    workers : int
        Among whom the strips are shared: there are some for each, so that all end together.

    Yields
    ------
    list of tuple of int
        Tiles (y0, y1, x0, x1) with the same x0 and x1.
    """
    rows, columns = -(-shape[0] // size[0]), -(-shape[1] // size[1])
    least = -(-_SHARE * workers // columns)
    count = min(rows, max(least, -(-rows * size[0] * size[1] // min(_STRIP, max(1, _TASK // n_frames)))))
    # as many for each worker, so that none waits for the others with the last one
    count = next((c for c in range(count, min(rows, count + workers) + 1) if not c * columns % workers), count)
    for k in range(count):
        first, last = rows * k // count, rows * (k + 1) // count
        for x in range(0, shape[1], size[1]):
            yield [
                (y, min(y + size[0], shape[0]), x, min(x + size[1], shape[1]))
                for y in range(first * size[0], last * size[0], size[0])
            ]
