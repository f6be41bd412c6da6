"""Decode and calibrate beside NumPy, astropy and ccdproc; every answer is checked before it is timed.

``pytest benchmarks/bench_calibrate.py --benchmark-columns=min,median,rounds``; divide by 4.2 million pixels
for the cost of one (``ns_per_pixel`` in the JSON of ``--benchmark-json``).
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from reference import calibrate as twin

from fastack import _pixels, cards
from fastack.calibrate import Calibration
from fastack.frames import open_frame

SHAPE = (2048, 2048)
RNG = np.random.default_rng(1)
STORED = RNG.integers(-32768, 32767, SHAPE).astype(">i2")
RAW = STORED.view(np.uint8).reshape(SHAPE[0], -1)
BIAS = RNG.normal(1000, 3, SHAPE).astype(np.float32)
DARK = RNG.gamma(1, 5, SHAPE).astype(np.float32)
INV_FLAT = RNG.uniform(0.9, 1.5, SHAPE).astype(np.float32)
LEVEL = RNG.normal(300, 1, SHAPE[0])
OUT = np.empty(SHAPE, np.float32)


def check_and_time(benchmark, expected, atol, function, *args):
    np.testing.assert_allclose(function(*args), expected, rtol=0, atol=atol)
    benchmark(function, *args)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["ns_per_pixel"] = benchmark.stats.stats.min / OUT.size * 1e9


def fastack_decode():
    _pixels.calibrate(OUT, RAW, bitpix=16, bzero=32768.0)
    return OUT


def numpy_decode():
    out = STORED.astype(np.float32)
    out += np.float32(32768)
    return out


@pytest.mark.benchmark(group="decode uint16 2048x2048")
@pytest.mark.parametrize("function", [fastack_decode, numpy_decode], ids=lambda f: f.__name__)
def bench_decode(benchmark, function):
    expected, _ = twin.calibrate(RAW, 16, 1, 32768)
    check_and_time(benchmark, expected, 0, function)


STEPS = {
    "bias_flat": {"bias": BIAS, "inv_flat": INV_FLAT},
    "all": {"level": LEVEL, "bias": BIAS, "dark": DARK, "dark_scale": 0.5, "inv_flat": INV_FLAT},
}


def fastack_calibrate(steps):
    _pixels.calibrate(OUT, RAW, bitpix=16, bzero=32768.0, saturation=65536.0, **steps)
    return OUT


def numpy_calibrate(steps):
    out = STORED.astype(np.float32)
    out += np.float32(32768)
    if "level" in steps:
        out -= steps["level"].astype(np.float32)[:, None]
    out -= steps["bias"]
    if "dark" in steps:
        out -= steps["dark"] * np.float32(steps["dark_scale"])
    out *= steps["inv_flat"]
    return out


@pytest.mark.benchmark(group="calibrate uint16 2048x2048")
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("function", [fastack_calibrate, numpy_calibrate], ids=lambda f: f.__name__)
def bench_calibrate(benchmark, function, name):
    expected, _ = twin.calibrate(RAW, 16, 1, 32768, **STEPS[name])
    # four single-precision operations on values up to 65535 ADU
    check_and_time(benchmark, expected, 4 * 1.5 * 65536 * 2**-24, function, STEPS[name])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "d1.fits"
    fits.PrimaryHDU((STORED.astype(np.int32) + 32768).astype(np.uint16)).writeto(path)
    return path


def fastack_file(path, calibration):
    return calibration.read(open_frame(path)).pixels


def astropy_file(path, _calibration):
    return ((fits.getdata(path).astype(np.float32) - BIAS) * INV_FLAT).astype(np.float32)


def ccdproc_file(path, _calibration):
    ccdproc = pytest.importorskip("ccdproc")
    from astropy.nddata import CCDData

    frame = CCDData.read(path, unit="adu")
    frame = ccdproc.subtract_bias(frame, CCDData(BIAS, unit="adu"))
    flat = CCDData(1 / INV_FLAT, unit="adu")
    return ccdproc.flat_correct(frame, flat, norm_value=1.0).data


@pytest.mark.benchmark(group="file to calibrated image, header included")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", [fastack_file, astropy_file, ccdproc_file], ids=lambda f: f.__name__)
def bench_file(benchmark, path, function):
    expected, _ = twin.calibrate(RAW, 16, 1, 32768, bias=BIAS, inv_flat=INV_FLAT)
    check_and_time(benchmark, expected, 0.05, function, path, Calibration(bias=BIAS, inv_flat=INV_FLAT))


def fastack_header(path):
    cards.parsed.cache_clear()
    return open_frame(path).header


@pytest.mark.benchmark(group="header of 200 cards")
@pytest.mark.parametrize("function", [fastack_header, fits.getheader], ids=lambda f: f.__name__)
def bench_header(benchmark, tmp_path, function):
    hdu = fits.PrimaryHDU(STORED[:8, :8])
    for i in range(200):
        hdu.header[f"KEY{i}"] = (i * 1.5 if i % 2 else f"text {i}", "a comment")
    hdu.writeto(tmp_path / "a.fits")
    assert function(tmp_path / "a.fits")["KEY199"] == 298.5
    benchmark(function, tmp_path / "a.fits")
