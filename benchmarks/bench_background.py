"""Sky level and noise mesh: the answer against the truth, then the time, beside sep and photutils.

pytest benchmarks/bench_background.py
"""

from __future__ import annotations

import numpy as np
import pytest

from fastack import background

SHAPE, SKY, NOISE = (2048, 2048), 500.0, 10.0


@pytest.fixture(scope="module")
def image():
    return (SKY + NOISE * np.random.default_rng(1).standard_normal(SHAPE)).astype(np.float32)


def fastack_mesh(image):
    found = background.estimate(image)
    return found.sky, found.sigma


def sep_mesh(image):
    found = pytest.importorskip("sep").Background(image)
    return found.globalback, found.globalrms


def photutils_mesh(image):
    photutils = pytest.importorskip("photutils.background")
    found = photutils.Background2D(image, 64)
    return found.background_median, found.background_rms_median


IMPLEMENTATIONS = {"fastack": fastack_mesh, "sep": sep_mesh, "photutils": photutils_mesh}


@pytest.mark.benchmark(group="background mesh 2048x2048")
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def bench_estimate(benchmark, name, image):
    sky, sigma = benchmark.pedantic(IMPLEMENTATIONS[name], (image,), rounds=5 if name != "photutils" else 1)
    assert sky == pytest.approx(SKY, abs=0.02 * NOISE)
    assert sigma == pytest.approx(NOISE, rel=0.02)


@pytest.mark.benchmark(group="background rendered 2048x2048")
@pytest.mark.parametrize("name", ["fastack", "sep"])
def bench_subtract(benchmark, name, image):
    if name == "fastack":
        found = background.estimate(image)
        rest = benchmark(background.subtract, image, found)
    else:
        sep_found = pytest.importorskip("sep").Background(image)
        rest = benchmark(lambda: image - sep_found.back())
    assert abs(np.mean(rest)) < 0.02 * NOISE
