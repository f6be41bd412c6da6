"""Types of the native module for lists of stars; its arrays are C-contiguous float64."""

import numpy as np
from numpy.typing import NDArray

from fastack.types import Array

# --- match

def search(
    a: Array,
    b: Array,
    tolerance: float,
    low: float,
    high: float,
    shortest: float,
    smallest: float,
    largest: float,
    room: int,
    budget: int,
    stop: float,
) -> Array: ...
def refine(a: Array, b: Array, start: Array, tolerance: float) -> tuple[Array, NDArray[np.intp], float]: ...
def rough_fit(a: Array, b: Array, clip: float) -> tuple[Array, float, NDArray[np.bool_]]: ...
def nearest_pairs(a: Array, b: Array, radius: float) -> NDArray[np.intp]: ...
def commonest_shift(a: Array, b: Array, radius: float, step: float) -> tuple[float, float]: ...

# --- transform

def fit_pairs(
    a: Array,
    b: Array,
    variance: Array,
    known: bool,
    clip: float,
    x0: float,
    y0: float,
    scale: float,
    parity: float,
    start: NDArray[np.uint8],
    wanted: int,
) -> tuple[int, Array, Array, NDArray[np.bool_], float]: ...
def f_tail(m: float, n: float, f: float) -> float: ...
def chi2_tail(n: float, x: float) -> float: ...

# --- maps

def evaluate(xy: Array, cx: Array, cy: Array, x0: float, y0: float, scale: float) -> Array: ...
def derivatives(xy: Array, cx: Array, cy: Array, x0: float, y0: float, scale: float) -> Array: ...
def invert_map(
    xy: Array, cx: Array, cy: Array, x0: float, y0: float, scale: float, precision: float, steps: int
) -> Array: ...

# --- levels

def mesh_values(
    level: Array, cell_y: float, cell_x: float, height_: float, width_: float, xy: Array, reach: float
) -> Array: ...
def clipped_mean(values: Array) -> float: ...
def robust_mean(values: Array, variance: Array) -> tuple[float, float, int]: ...
