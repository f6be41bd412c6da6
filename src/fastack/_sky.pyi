"""Types of the Cython loops in `_sky.pyx`."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int32]
Sign = NDArray[np.int8]

def triangles(
    xyz: Array,  # (n, 3)
    start: Index,  # (n + 1,)
    neighbour: Index,
    min_side: float,
    max_side: float,
    min_ratio: float,
    limit: int,
) -> tuple[Index, Array, Sign]: ...  # (m, 3), (m, 3), (m,)
def binned(
    index: Index,  # (m, 3)
    shape: Array,  # (m, 3)
    sign: Sign,
    rows: Index,
    bins: int,
) -> tuple[Index, Index, Array, Sign]: ...  # (bins * bins + 1,), (m, 3), (m, 3), (m,)
def search(
    camera: Array,  # (n, 2)
    camera_index: Index,
    camera_shape: Array,
    camera_sign: Sign,
    sky: Array,  # (m, 3)
    density: Array,  # (m,)
    sky_index: Index,
    sky_shape: Array,
    sky_sign: Sign,
    bin_start: Index,
    bins: int,
    cell_start: Index,
    cell_star: Index,
    x0: float,
    y0: float,
    cell: float,
    nx: int,
    ny: int,
    sigma: float,
    min_tolerance: float,
    log_low: float,
    log_high: float,
    parity: int,
    distractors: float,
    bail: float,
    report: float,
    sure: float,
    first: int,
) -> tuple[Array, Array, int, int]: ...  # (k, 9), (k,), next triangle, places tried
