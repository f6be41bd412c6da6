"""Combining kernels beside their peers; every answer is checked before it is timed.

pytest benchmarks/bench_combine.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

import numpy as np
import pytest
from reference import combine as twin

from fastack.combine import PANEL, NoiseModel, combine, combine_tile
from fastack.options import CombineOptions

N, SHAPE = 100, (96, 128)


@pytest.fixture(scope="module")
def cube():
    rng = np.random.default_rng(1)
    cube = (1000 + 30 * rng.standard_normal((N, *SHAPE))).astype(np.float32)
    cube[rng.random(cube.shape) < 1e-3] += 3000
    return cube


def fastack_run(**options):
    model = NoiseModel.make(N, noise=30.0, sky=1000.0, gain=1000 / 900)
    return lambda cube: combine(cube, noise=model, options=CombineOptions(**options)).data


def bottleneck_median(cube):
    return pytest.importorskip("bottleneck").nanmedian(cube, axis=0)


def numpy_median(cube):
    return np.median(cube, axis=0)


def astropy_clip(cube):
    from astropy.stats import sigma_clip

    return np.ma.mean(sigma_clip(cube, sigma=3, maxiters=4, axis=0, cenfunc="mean"), axis=0).filled(np.nan)


def ccdproc_clip(cube):
    ccdproc = pytest.importorskip("ccdproc")
    from astropy.nddata import CCDData

    combiner = ccdproc.Combiner([CCDData(image, unit="adu") for image in cube])
    combiner.sigma_clipping(low_thresh=3, high_thresh=3, func=np.ma.mean)
    return np.asarray(combiner.average_combine())


MEDIANS = {
    "fastack": fastack_run(reject="none", combine="median"),
    "bottleneck": bottleneck_median,
    "numpy": numpy_median,
}
CLIPS = {
    "fastack": fastack_run(reject="sigma", kappa_low=3, kappa_high=3),
    "astropy": astropy_clip,
    "ccdproc": ccdproc_clip,  # one round
}
METHODS = ["none", "noise", "minmax", "percentile", "sigma-median", "mad", "winsorized", "linear-fit", "esd"]


@pytest.mark.benchmark(group=f"median of {N}")
@pytest.mark.parametrize("name", MEDIANS)
def bench_median(benchmark, cube, name):
    np.testing.assert_allclose(benchmark(MEDIANS[name], cube), np.median(cube, axis=0), rtol=1e-6)


@pytest.mark.benchmark(group=f"sigma clip of {N}")
@pytest.mark.parametrize("name", CLIPS)
def bench_sigma_clip(benchmark, cube, name):
    if name == "ccdproc":
        pytest.importorskip("ccdproc")
    rounds = 1 if name == "ccdproc" else 4
    keep = np.apply_along_axis(twin.keep_sigma, 0, cube.astype(float)[:, :8], 3, 3, rounds)
    truth = twin.average(cube[:, :8].astype(float), keep, np.ones(N))
    result = benchmark.pedantic(CLIPS[name], (cube,), rounds=2, warmup_rounds=1)
    assert np.isclose(result[:8], truth, rtol=1e-6).mean() > 0.999


@pytest.mark.benchmark(group=f"rejections, {N} samples")
@pytest.mark.parametrize("method", METHODS)
def bench_rejection(benchmark, cube, method):
    result = benchmark(fastack_run(reject=method), cube)
    # 0.1 sigma of a sample is the stack's own noise; outliers of 100 sigma would show
    if method not in ("none", "minmax"):
        assert np.abs(result - np.median(cube, axis=0)).max() < 30 * 0.6


TILE = (64, 512)


def in_panels(cube):
    n, ny, nx = cube.shape
    return np.ascontiguousarray(cube.reshape(n, ny, nx // PANEL, PANEL).transpose(1, 2, 0, 3))


@pytest.mark.benchmark(group=f"combine_tile, {N} samples")
@pytest.mark.parametrize("layout", ["images", "panels"])
def bench_tile(benchmark, layout):
    """A tile of a run: variance factors given, one outlier in a hundred pixels."""
    rng = np.random.default_rng(2)
    cube = (1000 + 30 * rng.standard_normal((N, *TILE))).astype(np.float32)
    cube[rng.random(cube.shape) < 1e-4] += 3000
    factor = np.full(cube.shape, 250, np.uint8)
    model = NoiseModel.make(N, noise=30.0, sky=1000.0, gain=1000 / 900)
    arrays = (cube, factor) if layout == "images" else (in_panels(cube), in_panels(factor))
    where = {"pedestal": 1000.0, "tile": (0, TILE[0], 0, TILE[1]), "halo": 0}
    result = benchmark(combine_tile, *arrays, model, **where)
    assert np.abs(result.data - np.median(cube, axis=0)).max() < 30 * 0.6
