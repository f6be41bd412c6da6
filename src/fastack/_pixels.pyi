"""Typed by hand: the pixel kernels."""

import numpy as np
from numpy.typing import NDArray

def isa() -> str: ...
def isa_levels() -> list[str]: ...
def _choose_isa(name: str | None) -> None: ...

# --- measure
# a, b, c (pixel^-2), eta, whether integrated over the pixel
_MoffatShape = tuple[float, float, float, float, bool]

# image (ny, nx) float32; xy (n, 2), peak, sky, noise (n,) float64; rows (m,) int64.
# fits: structured (n or m,), fields x, y, peak, sky, xy_err, peak_err, top, width, width_err, a, b, c, eta,
# chi2 (float64), pixels, missing, saturated, neighbours, converged, padding (int32)
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
    shape: _MoffatShape,
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
    shape: _MoffatShape,
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
    shape: _MoffatShape,
    radius: float,
    inverse_gain: float,
    saturation: float,
    rows: NDArray[np.int64],
) -> tuple[_MoffatShape, float]: ...  # and -2 log likelihood, NaN where it did not converge
