"""Types of the Cython loops in `_match.pyx`; arrays are C-contiguous float64."""

import numpy as np
from numpy.typing import NDArray

from fastack.types import Array

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
def nearest_pairs(a: Array, b: Array, radius: float) -> NDArray[np.intp]: ...
def pairs_of_sky(predicted: Array, a: Array, b: Array, radius: float, sigma: float) -> NDArray[np.intp]: ...
def usable_rows(xy: Array, flags: NDArray[np.uint16] | None, unwanted: int) -> NDArray[np.intp]: ...
def box(xy: Array) -> tuple[float, float, float, float]: ...
def interquartile(xy: Array) -> tuple[float, float]: ...
def commonest_shift(a: Array, b: Array, radius: float, step: float) -> tuple[float, float]: ...
