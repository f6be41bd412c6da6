"""Fits of stars beside scipy and photutils: first the answer against the truth, then the time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reference import measure as reference

from fastack import _pixels
from fastack.measure import measure
from fastack.options import MeasureOptions

PSF = {"fwhm": 3.5, "beta": 3.0, "pixel": "sampled"}
RADIUS = 7.0  # windows of 15x15 pixels
START = 4 / 3.3**2
N_SLOW = 20  # stars that the peers are given


@pytest.fixture(scope="module")
def frame() -> reference.Frame:
    return reference.isolated_stars(np.random.default_rng(1), 1000, 100, **PSF)


def arguments(frame: reference.Frame) -> tuple[Any, ...]:
    n = len(frame.xy)
    peak = frame.flux * 0.08
    sky, noise = np.full(n, frame.sky), np.full(n, frame.noise)
    shape = (START, 0.0, START, 0.33, False)
    return (frame.image, frame.first, peak, sky, noise, shape, RADIUS, 1 / frame.gain, float("nan"))


def cutouts(frame: reference.Frame) -> list[tuple[Any, Any]]:
    corner = np.round(frame.first[:N_SLOW]).astype(int) - 7
    return [(frame.image[y : y + 15, x : x + 15], (x, y)) for x, y in corner]


def free_fastack(frame: reference.Frame) -> Any:
    fits = _pixels.StarField(*arguments(frame)).fit_moffat(np.arange(len(frame.xy)))
    return np.stack([fits["x"], fits["y"]], 1), 2 / (fits["a"] * fits["c"] - fits["b"] ** 2) ** 0.25


def free_scipy(frame: reference.Frame) -> Any:
    from scipy.optimize import curve_fit

    y, x = (v.ravel() for v in np.mgrid[:15, :15].astype(float))

    def moffat(_: Any, *p: float) -> Any:
        return p[3] + p[2] * reference.profile(np.array(p), x, y, integrated=False)

    found = []
    for data, (x0, y0) in cutouts(frame):
        p, _ = curve_fit(moffat, None, data.ravel(), p0=[7, 7, data.max() - 200, 200, START, 0, START, 0.33])
        found.append((p[0] + x0, p[1] + y0, 2 / (p[4] * p[6] - p[5] ** 2) ** 0.25))
    return np.array(found)[:, :2], np.array(found)[:, 2]


def free_astropy(frame: reference.Frame) -> Any:
    from astropy.modeling.fitting import LMLSQFitter
    from astropy.modeling.models import Const2D, Moffat2D

    y, x = np.mgrid[:15, :15]
    fitter, found = LMLSQFitter(), []
    for data, (x0, y0) in cutouts(frame):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = fitter(Moffat2D(data.max() - 200, 7, 7, 3.3, 3.0) + Const2D(200.0), x, y, data)
        found.append((fit.x_0_0.value + x0, fit.y_0_0.value + y0, fit[0].fwhm))
    return np.array(found)[:, :2], np.array(found)[:, 2]


def free_photutils(frame: reference.Frame) -> Any:
    from photutils.psf import fit_fwhm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fwhm = fit_fwhm(frame.image - frame.sky, xypos=frame.first[:N_SLOW], fit_shape=15)
    return None, fwhm


FREE: dict[str, Callable[[reference.Frame], Any]] = {
    "fastack.fit_moffat": free_fastack,
    "scipy.curve_fit": free_scipy,
    "astropy.Moffat2D": free_astropy,
    "photutils.fit_fwhm": free_photutils,
}


@pytest.mark.benchmark(group="free profile fits, 15x15 pixels; see stars per round in extra_info")
@pytest.mark.parametrize("name", FREE)
def bench_free_fits(benchmark: Any, frame: reference.Frame, name: str) -> None:
    xy, fwhm = FREE[name](frame)
    tolerance = 0.15 if name == "photutils.fit_fwhm" else 0.02  # it fits a Gaussian
    assert abs(np.median(fwhm) / 3.5 - 1) < tolerance
    if xy is not None:
        assert np.sqrt(np.mean((xy - frame.xy[: len(xy)]) ** 2)) < 0.04
    benchmark.extra_info["stars"] = len(fwhm)
    benchmark(FREE[name], frame)


def fixed_fastack(frame: reference.Frame) -> Any:
    fits = _pixels.StarField(*arguments(frame)).fit_stars(0)
    return np.stack([fits["x"], fits["y"]], axis=1)


def fixed_photutils(frame: reference.Frame) -> Any:
    from astropy.table import QTable
    from photutils.psf import MoffatPSF, PSFPhotometry

    alpha = 3.3 / (2 * np.sqrt(2 ** (1 / 3.0) - 1))
    photometry = PSFPhotometry(MoffatPSF(alpha=alpha, beta=3.0), 15, aperture_radius=5)
    first = frame.first[:N_SLOW]
    start = QTable({"x_init": first[:, 0], "y_init": first[:, 1]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = photometry(frame.image - np.float32(frame.sky), init_params=start)
    return np.stack([table["x_fit"], table["y_fit"]], axis=1)


FIXED: dict[str, Callable[[reference.Frame], Any]] = {
    "fastack.fit_stars": fixed_fastack,
    "photutils.PSFPhotometry": fixed_photutils,
}


@pytest.mark.benchmark(group="fits with the frame's PSF, 15x15 pixels; see stars per round in extra_info")
@pytest.mark.parametrize("name", FIXED)
def bench_fixed_fits(benchmark: Any, frame: reference.Frame, name: str) -> None:
    xy = FIXED[name](frame)
    assert np.sqrt(np.mean((xy - frame.xy[: len(xy)]) ** 2)) < 0.04
    benchmark.extra_info["stars"] = len(xy)
    benchmark(FIXED[name], frame)


@pytest.mark.benchmark(group="measure, 1000 stars")
def bench_measure(benchmark: Any, frame: reference.Frame) -> None:
    options = MeasureOptions(gain=frame.gain)
    stars, quality = measure(frame.image, frame.first, background=frame.background, options=options)
    assert abs(quality.fwhm / 3.5 - 1) < 0.01
    assert np.sqrt(np.mean((stars.xy - frame.xy) ** 2)) < 0.04
    benchmark(measure, frame.image, frame.first, background=frame.background, options=options)
