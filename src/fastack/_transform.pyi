"""Types of the Cython loops in `_transform.pyx`; arrays are C-contiguous float64."""

import numpy as np
from numpy.typing import NDArray

from fastack.types import Array

def rough_fit(a: Array, b: Array, clip: float) -> tuple[Array, float, NDArray[np.bool_]]: ...
def near_prediction(predicted: Array, b: Array, clip: float) -> NDArray[np.bool_]: ...
def variances(a: Array | None, b: Array | None, n: int, factor: float) -> tuple[Array, bool]: ...
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
