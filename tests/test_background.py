"""Sky level and noise: against the slow twin, against known truth, and on images that have neither."""

from __future__ import annotations

import numpy as np
import pytest
from reference import background as slow

from fastack import _pixels, background, render
from fastack.options import BackgroundOptions

SIGMA = 10.0


def noise_frame(shape, seed=1, sky=500.0):
    return (sky + SIGMA * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_cell_agrees_with_twin(isa):
    """One cell with outliers: both converge on the same clipped sample, but for samples at its edge."""
    image = noise_frame((64, 64))
    image[::7, ::5] += 300
    found = background.estimate(image)
    mean, median, sigma = slow.cell_statistics(image)
    assert found.level.shape == (1, 1)
    assert found.level[0, 0] == pytest.approx(mean - 3.2 * (mean - median), abs=0.005 * SIGMA)
    assert found.noise[0, 0] == pytest.approx(sigma, rel=0.005)


def test_level_and_noise_of_pure_noise():
    """Errors of 1024 cells: at most 1.5 times those of 4096 samples."""
    found = background.estimate(noise_frame((2048, 2048)))
    error = SIGMA / 64
    assert abs(found.level.mean() - 500) < 5 * error / 32
    assert np.std(found.level - 500) < 1.5 * error
    assert np.std(found.noise) < 1.5 * error / np.sqrt(2)
    assert found.sigma == pytest.approx(SIGMA, rel=0.01)


@pytest.mark.parametrize("step", [2, 4])
def test_some_rows_are_enough(step):
    """Errors grow with the root of the step, no more."""
    found = background.estimate(noise_frame((2048, 2048)), options=BackgroundOptions(row_step=step))
    error = SIGMA / 64 * np.sqrt(step)
    assert abs(found.level.mean() - 500) < 5 * error / 32
    assert np.std(found.level - 500) < 1.5 * error
    tiny = BackgroundOptions(cell=8, row_step=100)
    assert abs(background.estimate(noise_frame((40, 40)), options=tiny).level - 500).max() < 5 * SIGMA / 8


def test_gradient_reaches_the_border():
    """A plane is followed to the outermost pixel: no bias at borders and corners beyond the noise."""
    y, x = np.mgrid[:700, :900]
    plane = 0.5 * x - 0.3 * y
    image = noise_frame(plane.shape) + plane.astype(np.float32)
    difference = background.render(background.estimate(image)) - (500 + plane)
    assert abs(difference).max() < 6 * SIGMA / 64 * 2.5  # straight lines beyond the nodes add their slope's error
    for side in (difference[:8], difference[-8:], difference[:, :8], difference[:, -8:]):
        assert abs(side.mean()) < 3 * SIGMA / 64


def test_faint_stars_do_not_raise_the_level():
    """Stars of 0.1 to 10 sigma, one in 10x10 pixels: at most 0.75 of the clipped mean's bias is left."""
    rng = np.random.default_rng(3)
    shape = (512, 512)
    xy = rng.uniform(0, 512, (3000, 2))
    stars = render.render_stars(shape, xy, 10 ** rng.uniform(1.5, 3.5, 3000), fwhm=3, pixel="sampled", radius=12)
    image = noise_frame(shape, 4) + stars
    cells = image.reshape(8, 64, 8, 64).swapaxes(1, 2).reshape(64, -1)
    clipped = np.median([slow.cell_statistics(cell)[0] for cell in cells])
    assert clipped - 500 > 0.2 * SIGMA
    assert background.estimate(image).sky - 500 < 0.75 * (clipped - 500)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 5.0])
def test_integers_are_not_a_special_case(sigma):
    """Rounding adds 1/12 to the variance and nothing to the level."""
    rng = np.random.default_rng(5)
    image = np.round(100.3 + sigma * rng.standard_normal((512, 512))).astype(np.float32)
    found = background.estimate(image)
    total = np.sqrt(sigma**2 + 1 / 12)
    assert found.sky == pytest.approx(100.3, abs=0.03 * total)
    assert found.sigma == pytest.approx(total, rel=0.03)


def test_window_has_the_bits_of_the_whole(isa):
    found = background.estimate(noise_frame((333, 517)))
    whole = background.render(found)
    for window in [np.s_[10:200, 3:500], np.s_[0:1, 516:517], np.s_[331:333, 0:100]]:
        part = background.render(found, window)
        assert np.array_equal(part.view("u4"), whole[window].view("u4"))


def test_render_agrees_with_twin(isa):
    mesh = np.random.default_rng(6).normal(1000, 30, (5, 7)).astype(np.float32)
    got = _pixels.background_render(mesh, (321, 430), 0, 321, 0, 430)
    np.testing.assert_allclose(got, slow.render(mesh, (321, 430)), rtol=1e-6)


def test_subtract_is_image_minus_render():
    image = noise_frame((200, 300))
    image[5, 7] = np.nan
    found = background.estimate(image)
    np.testing.assert_array_equal(background.subtract(image, found), image - background.render(found))


def test_missing_pixels_and_mask():
    """NaN, infinity and masked pixels count nowhere; empty cells take their neighbours' values."""
    image = noise_frame((256, 256))
    image[:70, :70] = np.nan
    image[100, 100] = np.inf
    mask = np.zeros(image.shape, bool)
    image[150:256, 150:256] = 1e6
    mask[150:256, 150:256] = True
    found = background.estimate(image, mask=mask)
    assert abs(found.level - 500).max() < 5 * SIGMA / 64 * 2
    again = background.estimate(np.ma.MaskedArray(image.astype(">f8"), mask))
    np.testing.assert_array_equal(again.level, found.level)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (1, 300), (63, 64), (97, 1)])
def test_small_images(shape):
    found = background.estimate(np.full(shape, 7.0))
    assert found.shape == shape
    assert found.sky == 7
    assert found.sigma == 0
    np.testing.assert_allclose(background.render(found), 7, rtol=5e-7)  # four units in the last place


def test_nothing_but_nan():
    found = background.estimate(np.full((100, 100), np.nan))
    assert np.isnan(found.level).all()
    assert np.isnan(found.noise).all()


def test_one_bright_cell_is_replaced():
    """A star that fills a cell does not leave a hill in the sky."""
    image = noise_frame((448, 448))
    image[192:256, 192:256] += 500
    assert abs(background.estimate(image).level - 500).max() < 5 * SIGMA / 64


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((2, 3, 4)), np.zeros((0, 5)), 3.0])
def test_shape_errors(bad):
    with pytest.raises(ValueError, match="shape"):
        background.estimate(bad)


def test_argument_errors():
    image = np.zeros((10, 10))
    with pytest.raises(ValueError, match="mask"):
        background.estimate(image, mask=np.zeros((9, 10), bool))
    with pytest.raises(ValueError, match="positive"):
        background.estimate(image, options=BackgroundOptions(cell=0))
    with pytest.raises(ValueError, match="shape"):
        background.subtract(np.zeros((9, 9)), background.estimate(image))
    with pytest.raises(TypeError):
        _pixels.background_estimate(image, None, 64, 3.0, 5, 1)  # float64 is refused, not copied


def test_levels_agree():
    """Every instruction set: within a thousandth of the noise."""
    image = noise_frame((500, 650))
    results = []
    for level in _pixels.isa_levels():
        _pixels._choose_isa(level)
        results.append(background.estimate(image))
    _pixels._choose_isa(None)
    for other in results[1:]:
        np.testing.assert_allclose(other.level, results[0].level, atol=1e-3 * SIGMA)
        np.testing.assert_allclose(other.noise, results[0].noise, atol=1e-3 * SIGMA)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("sigma", [0.8, 1.2, 1.4, 5.0, 40.0])
def test_pixel_noise_sees_neither_steps_nor_slopes_nor_stars(sigma, integer):
    rng = np.random.default_rng(11)
    image = 500 + 0.3 * np.arange(1200) + sigma * rng.standard_normal((400, 1200))
    for x, y in rng.uniform(10, 390, (150, 2)):
        image[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4] += 300 * sigma
    image = np.round(image) if integer else image
    step = 1.0 if integer else 0.0
    expected = np.hypot(sigma, step / np.sqrt(12))  # rounding adds 1/12 of a step squared
    n = 64 * 599
    scatter = 0.75 / np.sqrt(n)  # of the root of the variance of n numbers, cut at 3 sigmas
    # integers' differences come in half steps: the cut falls up to a quarter of a step beside its place, where the
    # density of normal deviates is 0.0089
    bins = 0.5 * 0.0089 * (9 - 0.973) / 0.971 * (step / 4) / (np.sqrt(1.5) * expected)
    bins += (step / 2) ** 2 / (24 * 1.5 * expected**2)  # and add their own variance
    error = background.pixel_noise(image.astype(np.float32)) / expected - 1
    assert abs(error) < 4 * scatter + bins


@pytest.mark.parametrize("fwhm", [2.0, 4.0])
def test_pixel_noise_sees_little_of_crowded_wings(fwhm):
    """Stars to a peak of 10 000 sigmas, 28 px apart: second differences alone are 4 and 12 % too wide there."""
    rng = np.random.default_rng(13)
    image = 500 + rng.standard_normal((640, 640))
    y, x = np.mgrid[:640, :640]
    alpha2 = fwhm**2 / 4 / (2 ** (1 / 3) - 1)
    for a in range(14, 640, 28):
        for b in range(14, 640, 28):
            part = np.s_[max(0, b - 30) : b + 31, max(0, a - 30) : a + 31]
            r2 = (x[part] - a - rng.uniform(-0.5, 0.5)) ** 2 + (y[part] - b - rng.uniform(-0.5, 0.5)) ** 2
            image[part] += 10 ** rng.uniform(1, 4) * (1 + r2 / alpha2) ** -3.0
    assert background.pixel_noise(image.astype(np.float32), 640) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (200, 31), (100, 400)])
def test_pixel_noise_agrees_with_twin(shape, integer):
    image = np.random.default_rng(12).normal(100, 2, shape)
    image = (np.round(image) if integer else image).astype(np.float32)
    image[1, 1] = np.nan if shape[0] > 3 else image[1, 1]
    assert background.pixel_noise(image) == pytest.approx(slow.pixel_noise(image), rel=1e-6)
