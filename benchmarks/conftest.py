"""Shared by the benchmarks: one night, one frame of it, and what they were run on."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from fastack import _pixels
from fastack.simulate import Night, NightOptions, SimulatedFrame, simulate_night

SIDE, STARS = 2048, 2000


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["isa"] = _pixels.isa_levels()[-1]
    for name in ("numpy", "scipy", "astropy", "sep", "photutils", "scikit-image"):
        try:
            machine_info[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


@pytest.fixture(scope="session")
def night() -> Night:
    """Ten frames of 2048x2048 with 2000 stars, rotation and artefacts."""
    return simulate_night(
        NightOptions(
            shape=(SIDE, SIDE),
            n_stars=STARS,
            rotation=1.0,
            dither=4.0,
            cosmic_rays=60,
            hot_pixels=200,
            seed=7,
        )
    )


@pytest.fixture(scope="session")
def frame(night: Night) -> SimulatedFrame:
    """Render the first frame, uint16."""
    return night[0]


@pytest.fixture(scope="session")
def image(frame: SimulatedFrame) -> np.ndarray:
    """Give the first frame as float32."""
    return frame.image.astype(np.float32)
