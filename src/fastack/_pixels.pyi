"""Typed by hand: the pixel kernels."""

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Counts = NDArray[np.uint16]

def keep_freed_memory() -> None: ...
def isa() -> str: ...
def isa_levels() -> list[str]: ...
def _choose_isa(name: str | None) -> None: ...

# --- rice

def decode_rice(
    out: NDArray[np.uint8],  # (h, nx * bytes), written
    packed: NDArray[np.uint8],
    where: NDArray[np.int64],  # (tiles, 2) first byte in packed, and length
    *,
    shape: tuple[int, int],
    tile: tuple[int, int],
    bytes: int,  # of a pixel: 1, 2 or 4
    block: int,
    y0: int,
) -> None: ...

# --- calibrate

class RowFile:
    def __init__(
        self,
        descriptor: int,
        offset: int,  # of the first byte of the first row
        stride: int,  # bytes from one row to the next
        ny: int,
        nx: int,  # bytes of each row that are wanted
    ) -> None: ...
    def __len__(self) -> int: ...

def calibrate(
    out: NDArray[np.float32],  # (h, w), written
    raw: NDArray[np.uint8] | RowFile,  # (h, w * bytes of a pixel), big-endian
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
def blank_pixels(
    image: NDArray[np.float32],  # (h, w), written
    list: NDArray[np.int32],  # (k, 2) x and y, sorted by y
    y0: int,  # of the image's first pixel
    x0: int,
) -> None: ...

# --- background
def background_estimate(
    image: NDArray[np.float32], mask: NDArray[np.uint8] | None, cell: int, clip: float, rounds: int, row_step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def background_render(
    mesh: NDArray[np.float32], shape: tuple[int, int], y0: int, y1: int, x0: int, x1: int
) -> NDArray[np.float32]: ...
def background_subtract(image: NDArray[np.float32], mesh: NDArray[np.float32]) -> NDArray[np.float32]: ...
def pixel_noise(image: NDArray[np.float32], rows: int) -> float: ...

# --- detect
def detect(
    image: NDArray[np.float32],
    level: NDArray[np.float32],
    noise: NDArray[np.float32],
    fwhm: float,
    narrow: float,
    threshold: float,
    saturation: float,
    widest: float,
) -> tuple[NDArray[np.float64], NDArray[np.void]]: ...

# (n, 8): x, y, flux, flux_err, peak, sky, sharpness, flags; structured (m,): x, y (int32), sky, noise (float32)
def detect_bright(
    image: NDArray[np.float32], level: NDArray[np.float32], noise: NDArray[np.float32]
) -> NDArray[np.void]: ...
def detect_widths(
    image: NDArray[np.float32], level: NDArray[np.float32], noise: NDArray[np.float32], saturation: float
) -> tuple[float, float]: ...  # FWHM: mean of both axes, shorter axis
def detect_hits(
    image: NDArray[np.float32], bright: NDArray[np.void], narrow: float, saturation: float, shot: float
) -> NDArray[np.int32]: ...  # (k, 2): x, y

# --- measure
# a, b, c (pixel^-2), eta, whether integrated over the pixel
_MoffatShape = tuple[float, float, float, float, bool]

# image (ny, nx) float32; xy (n, 2), peak, sky, noise (n,) float64; rows (m,) int64.
# fits: structured (n or m,), fields x, y, peak, sky, xy_err, peak_err, top, width, width_err, a, b, c, eta,
# chi2 (float64), pixels, missing, saturated, neighbours, converged, padding (int32)
def width_over_pixel(shape: tuple[float, float, float, float, bool], angle: float, width: float) -> float: ...
def star_rings(
    image: NDArray[np.float32], xy: NDArray[np.float64], sky: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def sky_annulus(
    image: NDArray[np.float32], xy: NDArray[np.float64], inner: float, outer: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...

class StarField:
    def __init__(
        self,
        image: NDArray[np.float32],
        xy: NDArray[np.float64],
        peak: NDArray[np.float64],
        sky: NDArray[np.float64],
        noise: NDArray[np.float64],
        shape: _MoffatShape,
        radius: float,
        inverse_gain: float,
        saturation: float,
    ) -> None: ...
    def fit_stars(self, passes: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.void]: ...
    def fit_moffat(self, rows: NDArray[np.int64]) -> NDArray[np.void]: ...
    # and -2 log likelihood of each star, NaN where it had no part; None where the fit did not converge
    def fit_shape(self, rows: NDArray[np.int64]) -> tuple[_MoffatShape, NDArray[np.float64]] | None: ...

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
    out: NDArray[np.float32] | None,  # the tile's shape, as the planes below, or in panels (h, panels, 64)
    factor: NDArray[np.uint8] | None,  # as out
    saturated: NDArray[np.int32] | None,  # (k, 2)
    saturated_count: NDArray[np.uint16] | None,
    flags: NDArray[np.uint8] | None,
    sky_mesh: _Floats | None,
    sky_area: tuple[int, int, int, int],  # y0, y1, x0, x1 of the output that the mesh covers
    square: bool,
) -> None: ...

# --- combine

def combine(
    cube: _Floats,  # (n, ny, nx), or in panels (ny, panels, n, 64)
    columns: int,  # nx
    factor: NDArray[np.uint8] | None,  # of that shape
    variance: _Floats | None,  # of that shape
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
    kappa: tuple[float, float, float, float, float],
    grow: int,
    rounds: int,
    minmax: tuple[int, int],
    percentile: tuple[float, float],
    max_outliers: float,
    esd_lambda: _Floats,  # (n + 1,)
    median_ratio: _Floats,  # (n + 1,)
    # xy (m, 2), flux (m,), radius (m,), profile (1 + k, bins), step, share (k, n)
    stars: tuple[NDArray[np.float64], _Floats, _Floats, _Floats, float, _Floats] | None,
    star_error: float,
) -> tuple[_Floats, _Floats, _Floats, _Counts, _Counts, _Counts]: ...
def combine_reach(n: int, kappa_group: float, grow: int) -> int: ...
