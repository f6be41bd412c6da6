"""Typed by hand: the pixel kernels."""

import numpy as np
from numpy.typing import NDArray

def isa() -> str: ...
def isa_levels() -> list[str]: ...
def _choose_isa(name: str | None) -> None: ...

# --- background
def background_estimate(
    image: NDArray[np.float32], mask: NDArray[np.uint8] | None, cell: int, clip: float, rounds: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def background_render(
    mesh: NDArray[np.float32], shape: tuple[int, int], y0: int, y1: int, x0: int, x1: int
) -> NDArray[np.float32]: ...
def background_subtract(image: NDArray[np.float32], mesh: NDArray[np.float32]) -> NDArray[np.float32]: ...

# --- detect
def detect(
    image: NDArray[np.float32],
    level: NDArray[np.float32],
    noise: NDArray[np.float32],
    fwhm: float,
    narrow: float,
    threshold: float,
    saturation: float,
    strip: int,
) -> NDArray[np.float64]: ...  # (n, 8): x, y, flux, flux_err, peak, sky, sharpness, flags
def detect_widths(
    image: NDArray[np.float32], level: NDArray[np.float32], noise: NDArray[np.float32], saturation: float
) -> tuple[float, float]: ...  # FWHM: mean of both axes, shorter axis
def detect_hits(
    image: NDArray[np.float32],
    level: NDArray[np.float32],
    noise: NDArray[np.float32],
    narrow: float,
    saturation: float,
    shot: float,
) -> NDArray[np.int32]: ...  # (k, 2): x, y
