"""Fitting a transform to 100 and 1000 pairs; correctness first, then times, beside scikit-image.

Run with ``python -m pytest benchmarks/bench_transform.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference import transform as reference

from fastack.options import TransformOptions
from fastack.transform import fit, register
from fastack.types import Stars, Transform


@pytest.mark.benchmark(group="transform")
@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("model", ["auto", "similarity", "affine", "cubic"])
def bench_fit(benchmark, model: str, n: int) -> None:
    truth = "affine" if model == "auto" else model
    case = reference.case(truth, np.random.default_rng(1), n=n)
    errors = {"reference_err": case.reference_err, "frame_err": case.frame_err}
    found = benchmark(fit, case.a, case.b, **errors, options=TransformOptions(model=model))
    assert reference.corner_error(case, found) < 4 * case.bound


@pytest.mark.benchmark(group="transform, affine, 100 stars, no outliers")
@pytest.mark.parametrize("who", ["fastack", "scikit-image"])
def bench_beside_scikit_image(benchmark, who: str) -> None:
    """scikit-image fits without weights or clipping: a lower limit of what such a call costs."""
    case = reference.case("affine", np.random.default_rng(2), n=100)
    if who == "fastack":
        found = benchmark(fit, case.a, case.b, options=TransformOptions(model="affine"))
    else:
        kind = pytest.importorskip("skimage.transform").AffineTransform
        found = benchmark(kind.from_estimate, case.a, case.b)
    assert reference.corner_error(case, found) < 1


@pytest.mark.benchmark(group="register, 500 stars")
@pytest.mark.parametrize("guess", [False, True])
def bench_register(benchmark, guess: bool) -> None:
    rng = np.random.default_rng(3)
    sky = rng.uniform(0, 2048, (500, 2))
    turn = np.array([[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]])
    truth = Transform.affine(np.column_stack([turn, [20.0, -30.0]]))
    a, b = (Stars.make(xy + rng.normal(0, 0.1, xy.shape)) for xy in (sky, truth(sky)))
    found, pairs = benchmark(register, a, b, guess=truth if guess else None)
    assert np.abs(found(sky) - truth(sky)).max() < 0.1
    assert len(pairs) > 490
