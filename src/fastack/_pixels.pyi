"""Typed by hand: the pixel kernels."""

import numpy as np
from numpy.typing import NDArray

def isa() -> str: ...
def isa_levels() -> list[str]: ...
def _choose_isa(name: str | None) -> None: ...

# --- resample

def input_window(
    cx: NDArray[np.float64],
    cy: NDArray[np.float64],
    origin: tuple[float, float],
    unit: float,
    tile: tuple[int, int, int, int],
    shape: tuple[int, int],
    kernel: str,
) -> tuple[int, int, int, int] | None: ...
def resample_tile(
    section: NDArray[np.float32],  # (h, w)
    section_origin: tuple[int, int],
    frame_shape: tuple[int, ...],
    cx: NDArray[np.float64],  # (3,), (6,) or (10,)
    cy: NDArray[np.float64],
    origin: tuple[float, float],
    unit: float,
    tile: tuple[int, int, int, int],
    kernel: str,
    max_lost: float,
    scale: float,
    offset: float,
    sky: float,
    level: float,
    out: NDArray[np.float32] | None,  # the tile's shape, as the planes below
    factor: NDArray[np.uint8] | None,
    saturated: NDArray[np.int32] | None,  # (k, 2)
    saturated_count: NDArray[np.uint16] | None,
    flags: NDArray[np.uint8] | None,
    square: bool,
) -> None: ...
