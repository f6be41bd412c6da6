"""The judge of products, judged: stacks made by whole-pixel shifts, whose figures are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quality import check_product
from scipy import ndimage
from table import insert

from fastack.simulate import NightOptions, simulate_night

SHIFTS = [(0, 0), (7, -3), (-4, 6), (2, 2), (-8, -5), (5, 8), (-1, 4), (3, -7)]
OPTIONS = NightOptions(
    n_frames=8,
    shape=(640, 600),
    n_stars=260,
    flux=(500.0, 1e6),
    shifts=SHIFTS,
    cosmic_rays=25,
    trails=0.2,
    seed=5,
)


def registered(options):
    night = simulate_night(options)
    cube = np.full((len(SHIFTS), *options.shape), np.nan, np.float32)
    for plane, frame, (dx, dy) in zip(cube, night.frames, SHIFTS, strict=True):
        image = (frame.image - np.float32(options.bias)) / np.float32(frame.truth.transparency)
        plane[:] = ndimage.shift(image, (-dy, -dx), order=0, cval=np.nan)
    return cube


@pytest.fixture(scope="module")
def night():
    return simulate_night(OPTIONS)


@pytest.fixture(scope="module")
def clean():
    return registered(replace(OPTIONS, cosmic_rays=0, trails=0)).mean(axis=0)


def test_a_perfect_stack_is_perfect(clean, night):
    figures = check_product(clean, night)
    assert abs(figures["noise_equal"] - 1) < 4 * figures["noise_err"]
    assert figures["noise_pixel"] == pytest.approx(1, abs=0.02)
    assert abs(figures["flux_exponent"] - 1) < 4 * figures["flux_exponent_err"]
    assert abs(figures["bright_loss"]) < 4 * figures["bright_loss_err"]
    assert (figures["artefacts_left"], figures["outliers"]) == (0, 0)
    assert figures["fwhm_ratio"] == pytest.approx(1, abs=0.005)
    assert figures["astrometry"] < 0.03


def test_unit_offset_margin_and_turn_do_not_matter(clean, night):
    turned = np.pad(clean / 65535 + 3, ((40, 3), (17, 60)), constant_values=np.nan)
    figures, before = check_product(turned, night), check_product(clean, night)
    for name in ("noise_equal", "flux_exponent", "fwhm_ratio"):
        assert figures[name] == pytest.approx(before[name], abs=0.01)


def test_smoothing_hides_no_noise_but_widens_the_stars(clean, night):
    smooth = (clean + np.roll(clean, 1, 0) + np.roll(clean, 1, 1) + np.roll(clean, (1, 1), (0, 1))) / 4
    figures = check_product(smooth, night)
    assert figures["noise_pixel"] < 0.6
    assert abs(figures["noise_equal"] - 1) < 4 * figures["noise_err"]
    assert figures["fwhm_ratio"] > 1.05


def test_artefacts_that_are_left_are_counted(night):
    figures = check_product(registered(OPTIONS).mean(axis=0), night)
    assert figures["artefacts_left"] > 0.8 * figures["artefacts"]
    assert figures["noise_equal"] > 1.2


def test_outliers_at_other_places_are_counted(clean, night):
    dirty = clean.copy()
    sigma = 1.4826 * np.nanmedian(np.abs(clean - np.nanmedian(clean)))
    rng = np.random.default_rng(2)
    for x, y in rng.integers(60, 540, (40, 2)):
        dirty[y, x] += 9 * sigma
    assert 15 < check_product(dirty, night)["outliers"] <= 40


def test_eaten_cores_show_as_bright_loss_and_exponent(clean, night):
    level = np.nanmedian(clean)
    light = clean - level
    eaten = level + np.where(light > 1500, light * 0.92, light)
    figures = check_product(eaten, night)
    assert figures["bright_loss"] > 4 * figures["bright_loss_err"]
    assert figures["flux_exponent"] < 1 - 5 * figures["flux_exponent_err"]


def test_a_sparser_stack_is_noisier(night):
    half = registered(replace(OPTIONS, cosmic_rays=0, trails=0))[:4].mean(axis=0)
    assert check_product(half, night)["noise_equal"] == pytest.approx(np.sqrt(2), rel=0.06)


def test_another_field_is_not_recognised(clean):
    with pytest.raises(ValueError, match="not those of the night"):
        check_product(clean, simulate_night(replace(OPTIONS, seed=6)))


def test_tables_stand_between_their_markers():
    text = "a\n<!-- stack-S -->\nold\n<!-- /stack-S -->\nb\n"
    assert insert(text, "stack-S", "new") == "a\n<!-- stack-S -->\nnew\n<!-- /stack-S -->\nb\n"
    assert insert(text, "stack-M", "new") == text
