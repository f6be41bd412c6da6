"""Framing and tiles."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastack import grid
from fastack.errors import StackError
from fastack.types import Transform


def moved(dx: float, dy: float) -> Transform:
    """A frame whose pixel (x, y) shows the reference's (x + dx, y + dy)."""
    return Transform.affine([[1, 0, -dx], [0, 1, -dy]])


def test_union_and_intersection_of_shifted_frames() -> None:
    transforms = [Transform.identity(), moved(20, -5)]
    union = grid.frame_grid("union", (100, 200), [(100, 200)] * 2, transforms)
    assert union.shape == (105, 220)
    assert union.origin == (0, -5)
    common = grid.frame_grid("intersection", (100, 200), [(100, 200)] * 2, transforms)
    assert common.shape == (95, 180)
    assert common.origin == (20, 0)
    assert grid.frame_grid("reference", (100, 200), [(100, 200)] * 2, transforms).shape == (100, 200)


def test_fractions_of_a_pixel_round_outwards_and_inwards() -> None:
    transforms = [Transform.identity(), moved(0.5, 0)]
    assert grid.frame_grid("union", (10, 10), [(10, 10)] * 2, transforms).shape == (10, 11)
    assert grid.frame_grid("intersection", (10, 10), [(10, 10)] * 2, transforms).shape == (10, 9)


def test_half_a_turn_covers_the_same_area() -> None:
    turn = Transform.affine([[-1, 0, 199], [0, -1, 99]])
    for framing in ("union", "intersection"):
        out = grid.frame_grid(framing, (100, 200), [(100, 200)] * 2, [Transform.identity(), turn])
        assert out.shape == (100, 200)


def test_intersection_of_turned_frames_lies_in_all_of_them() -> None:
    angle = np.radians(3.0)
    c, s = np.cos(angle), np.sin(angle)
    turn = Transform.affine([[c, -s, 4.0], [s, c, -3.0]])
    out = grid.frame_grid("intersection", (100, 200), [(100, 200)] * 2, [Transform.identity(), turn])
    corners = np.array([[0, 0], [out.shape[1] - 1, 0], [0, out.shape[0] - 1], [out.shape[1] - 1, out.shape[0] - 1]])
    inside = turn(corners + out.origin)
    assert (inside > -0.01).all()
    assert (inside < np.array([199.01, 99.01])).all()


def test_refusals() -> None:
    with pytest.raises(StackError, match="no area in common"):
        grid.frame_grid("intersection", (10, 10), [(10, 10)] * 2, [Transform.identity(), moved(50, 0)])
    with pytest.raises(StackError, match="--max-size"):
        grid.frame_grid("union", (10, 10), [(10, 10)] * 2, [Transform.identity(), moved(500, 0)])
    with pytest.raises(ValueError, match="framing"):
        grid.frame_grid("all", (10, 10), [(10, 10)], [Transform.identity()])


@given(
    st.integers(1, 300), st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.integers(10_000, 1 << 28),
    st.floats(-45, 45), st.integers(1, 8),
)  # fmt: skip
def test_strips_cover_everything_once_within_the_budget(
    n: int, shape: tuple[int, int], budget: int, rotation: float, workers: int
) -> None:
    size = grid.tile_shape(n, shape, budget, rotation, workers)
    assert size[0] % grid.ANCHOR == 0
    assert size[1] % grid.ANCHOR == 0
    assert size[0] * size[1] * n * 5 <= max(budget, n * 5 * grid.ANCHOR**2)
    if shape[0] * shape[1] // (size[0] * size[1]) > 5000:
        return
    strips = list(grid.strips(n, shape, size, workers))
    covered = 0
    for strip in strips:
        for y0, y1, x0, x1 in strip:
            assert 0 < y1 - y0 <= size[0]
            assert 0 < x1 - x0 <= size[1]
            assert (y0 % grid.ANCHOR, x0 % grid.ANCHOR) == (0, 0)
            covered += (y1 - y0) * (x1 - x0)
        assert all(this[1] == after[0] and this[2:] == after[2:] for this, after in pairwise(strip))
    assert covered == shape[0] * shape[1]
    assert len({tile[::2] for strip in strips for tile in strip}) == sum(map(len, strips))
    # something to do for every worker to the end, wherever there are rows for it
    assert len(strips) >= min(4 * workers, -(-shape[0] // size[0]) * -(-shape[1] // size[1]))
