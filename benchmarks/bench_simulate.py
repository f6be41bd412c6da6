"""Rendering stars and frames, beside photutils and a plain loop over stars."""

from __future__ import annotations

import numpy as np
import pytest
from reference.simulate import render_stars as slow_render_stars

from fastack.render import moffat_alpha, render_stars
from fastack.simulate import NightOptions, simulate_night

SIDE, N, FWHM, BETA, RADIUS = 1024, 500, 3.0, 3.0, 20


def fastack(xy, flux):
    return render_stars((SIDE, SIDE), xy, flux, fwhm=FWHM, beta=BETA, radius=RADIUS)


def loop(xy, flux):
    return slow_render_stars((SIDE, SIDE), xy, flux, fwhm=FWHM, beta=BETA, radius=RADIUS)


def photutils(xy, flux):
    from astropy.table import Table
    from photutils.datasets import make_model_image
    from photutils.psf import MoffatPSF

    table = Table({"x_0": xy[:, 0], "y_0": xy[:, 1], "flux": flux})
    model = MoffatPSF(alpha=moffat_alpha(FWHM, BETA), beta=BETA)
    return make_model_image(
        (SIDE, SIDE),
        model,
        table,
        model_shape=(2 * RADIUS + 1,) * 2,
        discretize_method="oversample",
        discretize_oversample=5,
    )


@pytest.mark.benchmark(group=f"render {N} stars, {SIDE}x{SIDE}")
@pytest.mark.parametrize("impl", [fastack, loop, photutils], ids=lambda f: f.__name__)
def bench_render_stars(benchmark, impl):
    rng = np.random.default_rng(1)
    xy, flux = rng.uniform(30, SIDE - 30, (N, 2)), rng.uniform(10, 1000, N)
    image = benchmark.pedantic(impl, (xy, flux), rounds=3 if impl is fastack else 1, warmup_rounds=1)
    # photutils samples a pixel at 5x5 points, which errs by some 1e-3 of the peak.
    tolerance = 3e-3 if impl is photutils else 1e-6
    np.testing.assert_allclose(image, loop(xy, flux), rtol=0, atol=tolerance * 1000 * 0.08)


@pytest.mark.benchmark(group="frame 2048x2048, 2000 stars")
def bench_frame(benchmark, night):
    frame = benchmark.pedantic(night.__getitem__, (1,), rounds=3, warmup_rounds=1)
    expected = night.expected(1, artefacts=True)
    noise = np.sqrt((expected - 300) / 1.5 + 16)
    chi = ((frame.image - expected) / noise)[expected < 50_000]
    assert abs(chi.mean()) < 4.5 / np.sqrt(chi.size)
    assert abs((chi**2).mean() - 1) < 4.5 * np.sqrt(2 / chi.size) + 1 / 12 / 16


@pytest.mark.benchmark(group="night of 6 frames, 256x320")
def bench_small_night(benchmark):
    options = NightOptions(n_frames=6, shape=(256, 320), n_stars=60)
    frames = benchmark.pedantic(lambda: list(simulate_night(options).frames), rounds=3, warmup_rounds=1)
    assert len(frames) == 6
