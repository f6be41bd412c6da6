"""Rice-coded tiles beside astropy's decoder; the answer is checked before it is timed.

``pytest benchmarks/bench_rice.py --benchmark-columns=min,median,rounds``; divide by 1.05 million pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from fastack.frames import open_frame


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    data = np.random.default_rng(1).normal(3000, 20, (1024, 1024)).astype(np.uint16)
    path = tmp_path_factory.mktemp("rice") / "a.fits.fz"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, compression_type="RICE_1")]).writeto(path)
    plane = open_frame(path).plane
    return {"fastack": plane, "astropy": replace(plane, rice=None)}, data


@pytest.mark.benchmark(group="rice uint16 1024x1024")
@pytest.mark.parametrize("who", ["fastack", "astropy"])
def bench_decode(benchmark, planes, who):
    plane, data = planes[0][who], planes[1]
    np.testing.assert_array_equal(plane.load().view(">i2") + np.int32(32768), data)
    benchmark(plane.load)
