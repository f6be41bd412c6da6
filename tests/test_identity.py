"""What a stack must not change: constants, missing and zero pixels, the sum of its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import fastack

SHAPE = (72, 91)
ULP = float(np.finfo(np.float32).eps)


def write(directory: Path, images: list[np.ndarray]) -> Path:
    directory.mkdir()
    for k, image in enumerate(images):
        fits.writeto(directory / f"d{k:04d}.fits", image.astype(np.float32))
    return directory


@pytest.mark.parametrize("reject", ["none", "noise"])
@pytest.mark.parametrize("kernel", ["nearest", "lanczos3"])
@pytest.mark.parametrize("value", [0.0, 1234.567])
def test_a_constant_stays_with_and_without_missing_pixels(
    value: float, kernel: str, reject: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    images = [np.full(SHAPE, value) for _ in range(5)]
    images[1][rng.random(SHAPE) < 0.2] = np.nan
    images[3][20:30, 20:40] = np.nan
    made = fastack.stack(write(tmp_path / "in", images), register="none", reject=reject, kernel=kernel)
    assert np.isfinite(made.data).all()
    np.testing.assert_allclose(made.data, np.float32(value), rtol=2 * ULP, atol=2 * ULP)


def test_zero_pixels_are_averaged_like_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 3, SHAPE).astype(float) for _ in range(8)]
    made = fastack.stack(write(tmp_path / "in", images), register="none", reject="none", normalise=False)
    np.testing.assert_allclose(made.data, np.mean(images, axis=0), atol=2 * ULP * 2)
    assert (made.plane("NCOMB") == 8).all()


@pytest.mark.parametrize("weights", ["equal", "weight"])
def test_two_half_stacks_are_the_whole(weights: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    images = [500 + 20 * rng.standard_normal(SHAPE) for _ in range(9)]
    images[2][10:20, 10:30] = np.nan
    source = write(tmp_path / "in", images)
    w = np.array([1.0, 2.5, 0.5, 1.0, 3.0, 0.25, 1.0, 1.5, 2.0]) if weights == "weight" else np.ones(9)
    table = tmp_path / "weights.csv"
    rows = [f"d{k:04d}.fits,{v}" for k, v in enumerate(w)]
    table.write_text("\n".join(["name,weight", *rows]))
    settings = {"register": "none", "reject": "none", "normalise": False, "weights": weights}
    if weights == "weight":
        settings["weight_table"] = str(table)
    paths = sorted(source.glob("*.fits"))
    whole = fastack.stack(paths, **settings)
    parts = [fastack.stack(paths[k::2], **settings) for k in (0, 1)]
    # of each pixel, the weights that are behind it
    share = [sum(np.where(np.isfinite(i), v, 0.0) for i, v in zip(images[k::2], w[k::2], strict=True)) for k in (0, 1)]
    joined = sum(s * p.data.astype(float) for s, p in zip(share, parts, strict=True)) / sum(share)
    np.testing.assert_allclose(whole.data, joined, rtol=3 * ULP)
    total = sum((s / sum(share)) ** 2 * p.uncertainty.astype(float) ** 2 for s, p in zip(share, parts, strict=True))
    # the errors of a half stand on its own frames' level and noise
    np.testing.assert_allclose(whole.uncertainty, np.sqrt(total), rtol=0.02)


def test_the_order_of_frames_changes_no_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    images = [500 + 20 * rng.standard_normal(SHAPE) for _ in range(6)]
    paths = sorted(write(tmp_path / "in", images).glob("*.fits"))
    first = fastack.stack(paths, register="none")
    for order in (paths[::-1], [paths[k] for k in rng.permutation(6)]):
        again = fastack.stack(order, register="none")
        for plane in ("", "UNCERT", "NCOMB", "WEIGHT", "FLAGS"):
            assert again.plane(plane).tobytes() == first.plane(plane).tobytes()
