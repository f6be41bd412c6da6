"""Detection: the answer against the truth, then the time, beside sep.

pytest benchmarks/bench_detect.py
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from fastack import background, render
from fastack.detect import detect, find_artefacts
from fastack.options import DetectOptions

SHAPE, SKY, NOISE, FWHM, STARS = (2048, 2048), 500.0, 10.0, 3.0, 1000


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(2)
    xy = rng.uniform(8, SHAPE[0] - 8, (STARS, 2))
    flux = 10 ** rng.uniform(3.3, 5.5, STARS)
    image = render.render_stars(SHAPE, xy, flux, fwhm=FWHM, pixel="sampled", radius=20)
    return (image + SKY + NOISE * rng.standard_normal(SHAPE)).astype(np.float32), xy


def fastack_end_to_end(image):
    return detect(image).xy


def fastack_given_width(image):
    return detect(image, options=DetectOptions(fwhm=FWHM)).xy


def sep_end_to_end(image):
    sep = pytest.importorskip("sep")
    sky = sep.Background(image)
    found = sep.extract(image - sky.back(), 5.0, err=sky.globalrms)
    return np.stack([found["x"], found["y"]], axis=1)


IMPLEMENTATIONS = {f.__name__: f for f in (fastack_end_to_end, fastack_given_width, sep_end_to_end)}


@pytest.mark.benchmark(group="background + detection 2048x2048, 1000 stars")
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def bench_detect(benchmark, name, scene):
    image, truth = scene
    xy = benchmark.pedantic(IMPLEMENTATIONS[name], (image,), rounds=5)
    distance = cKDTree(xy).query(truth)[0]
    assert (distance < 1.5).mean() > 0.93  # a few per cent stand in the light of a neighbour


@pytest.mark.benchmark(group="hits 2048x2048, 1000 stars")
def bench_find_artefacts(benchmark, scene):
    image, _ = scene
    sky = background.estimate(image)
    pixels = benchmark.pedantic(find_artefacts, (image,), {"background": sky, "fwhm": FWHM}, rounds=5)
    assert len(pixels) <= 1e-5 * image.size


@pytest.mark.benchmark(group="50 000 stars, 2048x2048")
def bench_many_stars(benchmark):
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(np.arange(224), np.arange(224)), -1).reshape(-1, 2)[:50_000] * 9.1 + 5
    image = np.zeros(SHAPE)
    at = np.rint(grid).astype(int)
    step = np.arange(-4, 5)
    stamp = np.exp(-4 * np.log(2) * (step[:, None] ** 2 + step**2) / 2.2**2)
    for (x, y), height in zip(at, 10 ** rng.uniform(2.2, 3.5, len(at)), strict=True):
        image[y - 4 : y + 5, x - 4 : x + 5] += height * stamp
    image = (image + SKY + NOISE * rng.standard_normal(SHAPE)).astype(np.float32)
    stars = benchmark.pedantic(detect, (image,), {"options": DetectOptions(fwhm=2.2)}, rounds=3)
    assert (cKDTree(stars.xy).query(at)[0] < 1).mean() > 0.99
