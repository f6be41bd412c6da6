"""Resampling against its exact-kernel twin, truth stars and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
from reference import resample as twin

from fastack.options import ResampleOptions
from fastack.resample import resample_tile
from fastack.types import Transform

KERNELS = ["nearest", "bilinear", "bicubic", "lanczos2", "lanczos3", "lanczos4", "area"]


def turned(degrees, *, scale=1.0, mirrored=False, centre=(34.0, 30.0), shift=(0.3, -0.7)):
    """Rotation about a point, then a shift."""
    t = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    if mirrored:
        matrix = matrix @ np.diag([-1, 1])
    origin = np.asarray(centre)
    return Transform.affine(np.c_[matrix, origin - matrix @ origin + shift])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("degrees", "mirrored"), [(0, False), (2, True), (17, False), (180, False)])
def test_twin(kernel, degrees, mirrored):
    rng = np.random.default_rng(1)
    image = rng.normal(size=(40, 50)).astype(np.float32)
    transform = turned(degrees, mirrored=mirrored, centre=(25.0, 20.0))
    out, factor = np.empty((30, 37), np.float32), np.empty((30, 37), np.uint8)
    resample_tile(
        image,
        (0, 0),
        image.shape,
        transform,
        (0, 30, 0, 37),
        out=out,
        factor=factor,
        options=ResampleOptions(kernel=kernel),
    )
    expected, variance, _ = twin.resample(image, transform, out.shape, kernel)
    np.testing.assert_allclose(out, expected, atol=3e-4)
    given = np.isfinite(expected)
    np.testing.assert_allclose(factor[given], np.clip(255 * variance[given], 1, 255), atol=1)
