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

# --- measure
_Shape = tuple[float, float, float, float]  # a, b, c (pixel^-2), eta

# image (ny, nx) float32; xy (n, 2), peak, sky, noise (n,) float64; rows (m,) int64.
# fits: structured, fields x, y, peak, sky, xy_err, peak_err, top, fwhm, fwhm_err, a, b, c, eta, chi2 (float64), pixels,
# missing, saturated, neighbours, converged, padding (int32)
def star_rings(
    image: NDArray[np.float32], xy: NDArray[np.float64], sky: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def sky_annulus(
    image: NDArray[np.float32], xy: NDArray[np.float64], inner: float, outer: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def fit_stars(
    image: NDArray[np.float32],
    xy: NDArray[np.float64],
    peak: NDArray[np.float64],
    sky: NDArray[np.float64],
    noise: NDArray[np.float64],
    shape: _Shape,
    radius: float,
    inverse_gain: float,
    saturation: float,
    passes: int,
) -> NDArray[np.void]: ...
def fit_moffat(
    image: NDArray[np.float32],
    xy: NDArray[np.float64],
    peak: NDArray[np.float64],
    sky: NDArray[np.float64],
    noise: NDArray[np.float64],
    shape: _Shape,
    radius: float,
    inverse_gain: float,
    saturation: float,
    rows: NDArray[np.int64],
) -> NDArray[np.void]: ...
def fit_shape(
    image: NDArray[np.float32],
    xy: NDArray[np.float64],
    peak: NDArray[np.float64],
    sky: NDArray[np.float64],
    noise: NDArray[np.float64],
    shape: _Shape,
    radius: float,
    inverse_gain: float,
    saturation: float,
    rows: NDArray[np.int64],
) -> _Shape | None: ...
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
    threshold: float,
    saturation: float,
    strip: int,
) -> NDArray[np.float64]: ...  # (n, 8): x, y, flux, flux_err, peak, sky, sharpness, flags
def detect_fwhm(
    image: NDArray[np.float32], level: NDArray[np.float32], noise: NDArray[np.float32], saturation: float
) -> float: ...
def detect_hits(
    image: NDArray[np.float32],
    level: NDArray[np.float32],
    noise: NDArray[np.float32],
    fwhm: float,
    saturation: float,
    shot: float,
) -> NDArray[np.int32]: ...  # (k, 2): x, y
