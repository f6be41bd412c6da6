"""Registration of a set: what one frame's stars cannot tell, the others do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastack.options import MOST_JITTER, StackOptions
from fastack.registration import jitter, register
from fastack.report import Reporter
from fastack.types import FrameRecord, Stars, Transform

SIDE = 1000


def night(bends: list[float], *, noise: float, waves: float = 0.0, seed: int) -> list[FrameRecord]:
    """Frames of 300 stars, each shifted, with a quadratic distortion of `bends` px at the edge.

    Positions err by `noise` px each, and those of frame 3 together, by up to `waves` px.
    """
    rng = np.random.default_rng(seed)
    sky = rng.uniform(0, SIDE, (300, 2))
    u = (sky - SIDE / 2) / (SIDE / 2)
    records = []
    for k, bend in enumerate(bends):
        xy = sky + rng.uniform(-20, 20, 2) + bend * u[:, :1] * u
        if k == 3:
            xy = xy + waves * u[:, :1] ** 2
        stars = Stars.make(xy + rng.normal(0, noise, xy.shape))
        frame = SimpleNamespace(shape=(SIDE, SIDE))
        records.append(FrameRecord(path=Path(f"d{k:04d}.fits"), name=f"d{k:04d}.fits", frame=frame, stars=stars))
    return records


def orders(records: list[FrameRecord], **options: object) -> list[int]:
    register(records, records[0], StackOptions.of(**options), Reporter())
    assert all(r.reason is None for r in records)
    return [r.transform.order for r in records]


@pytest.mark.parametrize("seed", range(5))
def test_a_distortion_that_one_frame_hardly_shows_is_none(seed: int) -> None:
    records = night([0.0] * 8, noise=0.2, waves=0.4, seed=seed)
    assert orders(records) == [1] * 8
    # the same frame on its own would be given a distortion
    assert orders(night([0.0] * 8, noise=0.2, waves=0.4, seed=seed)[2:4])[1] > 1


def test_a_distortion_that_one_frame_shows_well_stays() -> None:
    assert orders(night([0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0], noise=0.1, seed=1)) == [1, 1, 1, 2, 1, 1, 1, 1]


def test_a_distortion_of_many_frames_stays() -> None:
    """Hardly seen in each, but in every second one of them."""
    found = orders(night([0.0, 0.3, 0.0, 0.3, 0.0, 0.3, 0.0, 0.3], noise=0.2, seed=2))
    assert found[1::2] == [2] * 4
    assert found[::2] == [1] * 4


def test_a_model_that_was_asked_for_is_kept() -> None:
    assert orders(night([0.0] * 5, noise=0.1, seed=3), model="quadratic")[1:] == [2] * 4


def measured(n: int = 6, *, moved: float = 0.0, widths: float = 0.02) -> list[FrameRecord]:
    """Registered frames of 200 stars of SNR 200 whose errors are known; the last one's may be unlike the others'."""
    rng = np.random.default_rng(8)
    sky, error = rng.uniform(0, SIDE, (200, 2)), 0.01
    records = []
    for k in range(n):
        odd = k == n - 1
        xy = sky + rng.normal(0, np.hypot(error, moved * odd), sky.shape)
        one = np.ones(len(xy))
        stars = Stars.make(
            xy,
            flux=1e5 * one,
            flux_err=500 * one,
            xy_err=error * one,
            ellipticity=np.abs(rng.normal(0, 0.01, len(xy))),
            theta=rng.uniform(-0.2, 0.2, len(xy)),
        )
        quality = SimpleNamespace(fwhm=3.0, fwhm_err=3.0 * (widths if odd else 0.02) / 10, n_fitted=100)
        record = FrameRecord(path=Path(f"d{k}.fits"), name=f"d{k}.fits", stars=stars)
        record.transform, record.quality = Transform.identity(), quality
        records.append(record)
    return records


def test_samples_of_frames_that_agree_may_differ_by_little() -> None:
    records = measured()
    assert 0.01 < jitter(records, records[0]) < 0.02


def test_a_kernel_that_changes_stars_between_pixels_is_allowed_for() -> None:
    records = measured()
    assert jitter(records, records[0], "lanczos4") == jitter(records, records[0], "lanczos3") < 0.02
    assert jitter(records, records[0], "nearest") > jitter(records, records[0], "bilinear") > MOST_JITTER


@pytest.mark.parametrize("unlike", [{"moved": 0.05}, {"widths": 0.12}])
def test_samples_of_frames_that_differ_may_differ_as_before(unlike: dict[str, float]) -> None:
    records = measured(2, **unlike)
    assert jitter(records, records[0]) == MOST_JITTER


def test_few_stars_do_not_tell_how_well_frames_agree() -> None:
    records = measured()
    records[2].stars = records[2].stars[:8]
    assert jitter(records, records[0]) == MOST_JITTER
    assert jitter(records[:1], records[0]) == MOST_JITTER
