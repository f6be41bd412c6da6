"""Typed by hand: the pixel kernels."""

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Counts = NDArray[np.uint16]

def isa() -> str: ...
def isa_levels() -> list[str]: ...
def _choose_isa(name: str | None) -> None: ...

# --- combine

def combine(
    cube: _Floats,  # (n, ny, nx)
    factor: NDArray[np.uint8] | None,  # (n, ny, nx)
    variance: _Floats | None,  # (n, ny, nx)
    constants: _Floats,  # (7, n): weight, shot, sky, floor, seeing, tolerance, jitter
    with_model: bool,
    pedestal: float,
    shade: _Floats | None,  # (n, by, bx)
    shade_origin: tuple[int, int],
    origin: tuple[int, int],
    window: tuple[int, int, int, int],
    radius: int,
    reject: str,
    median: bool,
    kappa: tuple[float, float, float, float],
    rounds: int,
    minmax: tuple[int, int],
    percentile: tuple[float, float],
    max_outliers: float,
    esd_lambda: _Floats,  # (n + 1,)
    median_ratio: _Floats,  # (n + 1,)
) -> tuple[_Floats, _Floats, _Counts, _Counts, _Counts]: ...
def combine_reach(radius: int) -> int: ...
