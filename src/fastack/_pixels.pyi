"""Typed by hand: the pixel kernels."""

import numpy as np
from numpy.typing import NDArray

def isa() -> str: ...
def isa_levels() -> list[str]: ...
def _choose_isa(name: str | None) -> None: ...

# --- calibrate

def calibrate(
    out: NDArray[np.float32],  # (h, w), written
    raw: NDArray[np.uint8],  # (h, w * bytes of a pixel), big-endian
    *,
    bitpix: int,
    bscale: float = 1.0,
    bzero: float = 0.0,
    blank: int | None = None,
    saturation: float = ...,  # infinite: none
    level: NDArray[np.float64] | None = None,  # (ny,)
    bias: NDArray[np.float32] | None = None,  # (ny, nx)
    dark: NDArray[np.float32] | None = None,  # (ny, nx)
    dark_scale: float = 1.0,
    inv_flat: NDArray[np.float32] | None = None,  # (ny, nx)
    y0: int = 0,  # of out in the masters
    x0: int = 0,
) -> NDArray[np.int32]: ...  # (k, 2) x and y of saturated pixels in out
