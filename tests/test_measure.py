"""Fits against float64 twins; the stage against rendered truth, with tolerances from the Cramer-Rao bound."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import measure as reference

from fastack import _pixels, render
from fastack.measure import measure
from fastack.options import MeasureOptions
from fastack.types import StarFlag, Stars

OPTIONS = MeasureOptions(gain=reference.GAIN)
NAN = float("nan")


def run(frame: reference.Frame, options: MeasureOptions = OPTIONS) -> Any:
    return measure(frame.image, frame.first, background=frame.background, options=options)


def kernel_arguments(frame: reference.Frame, shape: tuple[float, ...], radius: float) -> tuple[Any, ...]:
    n = len(frame.xy)
    lists = (frame.flux * 0.08, np.full(n, frame.sky), np.full(n, frame.noise))
    return (frame.image, frame.first, *lists, shape, radius, 1 / frame.gain, NAN)


# The kernels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrated", [False, True])
def test_fit_of_one_shape_equals_twin(isa: str, integrated: bool) -> None:
    frame = reference.isolated_stars(np.random.default_rng(1), 12, 40, fwhm=2.6, ellipticity=0.2, theta=0.5)
    shape = (0.55, -0.06, 0.62, 0.31, integrated)
    fits = _pixels.StarField(*kernel_arguments(frame, shape, 6.0)).fit_stars(0)
    for fit, (x, y), flux in zip(fits, frame.first, frame.flux, strict=True):
        start = np.array([x, y, flux * 0.08, frame.sky, *shape[:4]])
        twin = reference.fit(
            frame.image,
            start,
            4,
            radius=6.0,
            noise=frame.noise,
            inverse_gain=1 / frame.gain,
            integrated=integrated,
        )
        assert fit["converged"]
        assert np.hypot(fit["x"] - twin[0], fit["y"] - twin[1]) < 0.01 * fit["xy_err"]
        assert abs(fit["peak"] - twin[2]) < 0.01 * fit["peak_err"]
        assert abs(fit["sky"] - twin[3]) < 0.002 * frame.noise


@pytest.mark.parametrize("integrated", [False, True])
def test_free_fit_equals_twin(isa: str, integrated: bool) -> None:
    frame = reference.isolated_stars(np.random.default_rng(2), 6, 80, fwhm=3.0, ellipticity=0.2, theta=0.5)
    shape = (0.45, 0.0, 0.45, 0.33, integrated)
    fits = _pixels.StarField(*kernel_arguments(frame, shape, 7.0)).fit_moffat(np.arange(6))
    for fit, (x, y), flux in zip(fits, frame.first, frame.flux, strict=True):
        start = np.array([x, y, flux * 0.08, frame.sky, *shape[:4]])
        twin = reference.fit(
            frame.image,
            start,
            8,
            radius=7.0,
            noise=frame.noise,
            inverse_gain=1 / frame.gain,
            integrated=integrated,
            mismatch=0.01,
            prior=(0.33, 0.15),
        )
        assert fit["converged"]
        assert np.hypot(fit["x"] - twin[0], fit["y"] - twin[1]) < 0.02 * fit["xy_err"]
        assert abs(fit["peak"] - twin[2]) < 0.02 * fit["peak_err"]
        width = 2 / (twin[4] * twin[6] - twin[5] ** 2) ** 0.25
        ours = 2 / (fit["a"] * fit["c"] - fit["b"] ** 2) ** 0.25
        assert abs(ours / width - 1) < 0.02 * fit["width_err"]
        np.testing.assert_allclose(fit["eta"], twin[7], atol=0.003)


@pytest.mark.parametrize("fwhm", [1.6, 2.4, 3.4])
@pytest.mark.parametrize("angle", [0.0, 0.7, -1.2])
def test_width_over_pixel_equals_twin(fwhm: float, angle: float) -> None:
    for stretch, eta in ((1.0, 0.3), (1.3, 0.6), (1.2, 0.05)):
        shape = (4 / fwhm**2 * stretch, 0.1, 4 / fwhm**2 / stretch, eta, True)
        x, y = np.cos(angle), np.sin(angle)
        width = 2 / np.sqrt(shape[0] * x * x + 2 * shape[1] * x * y + shape[2] * y * y)
        ours = _pixels.width_over_pixel(shape, angle, width)
        assert width < ours < np.hypot(width, 1.3)
        assert ours == pytest.approx(reference.width_over_pixel(shape, angle, width), rel=1e-12)
    with pytest.raises(ValueError, match="positive definite"):
        _pixels.width_over_pixel((0.1, 0.2, 0.1, 0.3, True), angle, fwhm)


def test_stars_behind_the_psf_are_the_brightest_however_few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["fastack.measure"]
    frame = reference.crowded_stars(np.random.default_rng(5), 1500, 1200, fwhm=3.0)
    tried: list[int] = []
    fit = module._Frame.fit

    def counted(self: Any, xy: Any, peak: Any, shape: Any, passes: int, rows: Any = None) -> Any:
        tried.append(len(xy) if rows is None else len(rows))
        return fit(self, xy, peak, shape, passes, rows)

    monkeypatch.setattr(module._Frame, "fit", counted)
    options = MeasureOptions(gain=reference.GAIN, max_fits=40)
    chosen, rows = [], []
    for first in ((1.5, 3, 10), (1000,)):
        monkeypatch.setattr(module, "_TRIED", first)
        tried.clear()
        stars, quality = run(frame, options)
        chosen.append(np.isfinite(stars.ellipticity))
        rows.append(tried[0])
        assert quality.n_fitted == chosen[-1].sum() > 30
    assert rows == [60, len(frame.first)]
    np.testing.assert_array_equal(*chosen)


def test_instruction_sets_agree() -> None:
    frame = reference.crowded_stars(np.random.default_rng(3), 250, 400, fwhm=2.5)
    results = []
    for level in _pixels.isa_levels():
        _pixels._choose_isa(level)
        results.append(run(frame))
    _pixels._choose_isa(os.environ.get("FASTACK_ISA") or None)
    stars, quality = results[-1]
    for other, other_quality in results[:-1]:
        fitted = np.isfinite(stars.flux)
        assert np.array_equal(fitted, np.isfinite(other.flux))
        assert np.abs(other.xy - stars.xy)[fitted].max() < 1e-3 * stars.xy_err[fitted].max()
        assert np.all(np.abs(other.flux - stars.flux)[fitted] < 0.01 * stars.flux_err[fitted])
        assert abs(other_quality.fwhm - quality.fwhm) < 0.01 * quality.fwhm_err


def test_kernels_refuse_what_does_not_fit() -> None:
    frame = reference.isolated_stars(np.random.default_rng(1), 2, 40, fwhm=2.6)
    good = kernel_arguments(frame, (0.5, 0.0, 0.5, 0.3, False), 5.0)
    for place, wrong in (
        (0, frame.image[0]),
        (1, frame.first[:, :1].copy()),
        (2, np.ones(3)),
        (5, (0.5, 0.6, 0.5, 0.3, False)),
        (5, (0.5, 0.0, 0.5, 1.5, False)),
        (6, 0.0),
        (7, -1.0),
    ):
        with pytest.raises(ValueError, match="must"):
            _pixels.StarField(*good[:place], wrong, *good[place + 1 :])
    with pytest.raises(ValueError, match="rows"):
        _pixels.StarField(*good).fit_moffat(np.array([2]))
    with pytest.raises(TypeError):
        _pixels.StarField(frame.image.astype(float), *good[1:])


# The stage against the truth -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fwhm", "beta", "ellipticity", "pixel"),
    [
        (1.8, 3.0, 0.0, "integrated"),
        (1.8, 2.5, 0.3, "integrated"),
        (2.5, 4.5, 0.1, "integrated"),
        (4.0, 3.0, 0.3, "sampled"),
        (8.0, 2.5, 0.1, "integrated"),
    ],
)
def test_fwhm_and_ellipticity(fwhm: float, beta: float, ellipticity: float, pixel: Any) -> None:
    psf = {"fwhm": fwhm, "beta": beta, "ellipticity": ellipticity, "theta": 0.4, "pixel": pixel}
    frame = reference.isolated_stars(np.random.default_rng(4), 80, 100, **psf)
    stars, quality = run(frame)
    width, elongation = reference.effective_psf(**psf)
    assert abs(quality.fwhm / width - 1) < 0.01
    assert abs(quality.ellipticity - elongation) < 0.02
    assert quality.n_fitted >= 70
    assert quality.n_sharp == 0
    assert np.nanmedian(stars.fwhm) == pytest.approx(width, rel=0.015)


def test_fwhm_in_a_crowded_field() -> None:
    frame = reference.crowded_stars(np.random.default_rng(5), 1000, 1024, fwhm=3.0, pixel="integrated")
    _, quality = run(frame)
    width, _ = reference.effective_psf(fwhm=3.0, beta=3.0)
    assert abs(quality.fwhm / width - 1) < 0.01
    assert quality.ellipticity < 0.03


@pytest.mark.parametrize(("fwhm", "snr"), [(1.8, 10), (1.8, 200), (2.5, 20), (4.0, 10), (4.0, 100), (8.0, 50)])
def test_positions_and_fluxes_near_the_bound(fwhm: float, snr: float) -> None:
    """Of 196 stars: the rms of 392 coordinates is known to 3.6 %, so 1.2 lies five sigmas from 1."""
    rng = np.random.default_rng(int(10 * fwhm + snr))
    frame = reference.isolated_stars(rng, 196, snr, fwhm=fwhm, pixel="integrated")
    # faint stars alone do not tell the frame's PSF: every frame has some bright ones
    stars, _ = run(frame, MeasureOptions(gain=reference.GAIN, max_fits=196, min_snr=5.0))
    bound, _ = reference.cramer_rao(frame.flux[0], rng.uniform(-0.5, 0.5, (6, 2)), fwhm=fwhm, pixel="integrated")
    fitted = ~stars.has(StarFlag.NO_FIT)
    assert fitted.mean() > 0.99
    offset = (stars.xy - frame.xy)[fitted]
    assert np.sqrt(np.mean(offset**2)) < 1.2 * bound
    assert 0.9 < np.std(offset / stars.xy_err[fitted, None]) < 1.1
    pull = (stars.flux - frame.flux)[fitted] / stars.flux_err[fitted]
    assert 0.85 < np.std(pull) < 1.15  # 196 stars: 5 % of its own
    if snr >= 50:
        assert abs(np.mean(stars.flux[fitted]) / frame.flux[0] - 1) < 0.01 + 3 / snr / np.sqrt(196)


def test_no_bias_with_the_phase_of_the_pixel() -> None:
    frame = reference.isolated_stars(np.random.default_rng(6), 400, 200, fwhm=1.8, pixel="integrated")
    stars, _ = run(frame)
    phase = np.floor((frame.xy % 1) * 5).astype(int)
    offset = stars.xy - frame.xy
    bias = [offset[phase[:, axis] == k, axis].mean() for axis in (0, 1) for k in range(5)]
    assert np.sqrt(np.mean(np.square(bias))) < 0.02


def test_trailed_frame_shows() -> None:
    trail = {"fwhm": 3.0, "beta": 3.0, "trail": 3.0, "theta": 0.7}
    frame = reference.trailed_stars(np.random.default_rng(7), 100, 100, 3.0, 0.7, fwhm=3.0, pixel="integrated")
    _, quality = run(frame)
    width, elongation = reference.effective_psf(**trail)
    assert abs(quality.ellipticity - elongation) < 0.03
    assert abs(quality.theta - 0.7) < 0.05
    assert abs(quality.fwhm / width - 1) < 0.03


def test_round_frame_reads_round() -> None:
    frame = reference.isolated_stars(np.random.default_rng(8), 100, 50, fwhm=3.0)
    stars, quality = run(frame)
    assert quality.ellipticity < 0.03 < np.nanmedian(stars.ellipticity) + 0.03
    assert quality.n_stars == 100


def test_hot_pixels_and_cosmic_rays_stay_out() -> None:
    """Two thirds of the list are single hot pixels or short tracks, as bright as the stars and brighter."""
    rng = np.random.default_rng(9)
    frame = reference.isolated_stars(rng, 100, 60, fwhm=2.5, pixel="integrated")
    size = frame.image.shape[0]
    # between the stars, which stand on a grid of 24 pixels
    corners = np.stack(np.meshgrid(np.arange(size // 24), np.arange(size // 24)), -1).reshape(-1, 2)[:100] * 24
    hot, rays = corners + np.array([1, 1]), corners + np.array([1, 12])
    for x, y in hot:
        frame.image[y, x] += rng.uniform(300, 10000)
    for x, y in rays:
        length, value = rng.integers(2, 5), rng.uniform(300, 5000)
        for k in range(length):
            frame.image[min(y + k, size - 1), x + k // 2] += value * rng.uniform(0.5, 1)
    frame.first = np.concatenate([frame.first, hot, rays])
    stars, quality = run(frame)
    refused = stars.has(StarFlag.NO_FIT | StarFlag.SHARP)
    assert not refused[:100].any()
    assert refused[100:200].all()
    assert quality.n_fitted <= 100
    width, _ = reference.effective_psf(fwhm=2.5, beta=3.0)
    assert abs(quality.fwhm / width - 1) < 0.02


def test_neighbours_are_taken_away() -> None:
    rng = np.random.default_rng(10)
    frame = reference.isolated_stars(rng, 64, 100, fwhm=3.0, pixel="integrated")
    angle = rng.uniform(0, 2 * np.pi, 30)
    near = frame.xy[:30] + 5.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    light = render.render_stars(frame.image.shape, near, frame.flux[:30] / 2, fwhm=3.0).astype(float)
    frame.image = frame.image + light.astype(np.float32)
    frame.first = np.concatenate([frame.first, near])
    stars, _ = run(frame)
    assert stars.has(StarFlag.BLENDED)[:30].all()
    assert not stars.has(StarFlag.BLENDED)[30:64].any()
    error = np.sqrt(np.mean((stars.xy - np.concatenate([frame.xy, near]))[:64] ** 2, axis=1))
    assert np.median(error[:30]) < 1.5 * np.median(error[30:])
    assert abs(np.median(stars.flux[:30]) / frame.flux[0] - 1) < 0.02


def test_saturated_stars_keep_a_position() -> None:
    rng = np.random.default_rng(11)
    frame = reference.isolated_stars(rng, 100, 100, fwhm=3.0, pixel="integrated")
    frame.flux[::2] *= 20
    light = render.render_stars(frame.image.shape, frame.xy, frame.flux, fwhm=3.0).astype(float)
    level = 0.4 * light.max()
    frame.image = np.minimum(reference.expose(light, rng), np.float32(level))
    stars, quality = run(frame, MeasureOptions(gain=reference.GAIN, saturation=level))
    np.testing.assert_array_equal(stars.has(StarFlag.SATURATED), np.arange(100) % 2 == 0)
    assert quality.saturated == np.count_nonzero(frame.image >= np.float32(level))
    assert quality.n_fitted == 50
    offset = (stars.xy - frame.xy)[::2]
    assert np.sqrt(np.mean(offset**2)) < 1.5 * np.sqrt(np.mean(stars.xy_err[::2] ** 2)) < 0.02
    assert np.abs(stars.flux / frame.flux - 1)[::2].max() < 0.05


# What may not disturb it -----------------------------------------------------------------------------


def test_order_of_the_stars_does_not_matter() -> None:
    frame = reference.crowded_stars(np.random.default_rng(12), 300, 400, fwhm=3.0)
    order = np.random.default_rng(0).permutation(len(frame.first))
    stars, quality = run(frame)
    frame.first = frame.first[order]
    shuffled, same = run(frame)
    assert same == quality
    for name in ("xy", "flux", "flux_err", "fwhm", "flags"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(stars, name)[order])


def test_columns_and_flags_of_the_input_are_kept() -> None:
    frame = reference.isolated_stars(np.random.default_rng(13), 36, 100, fwhm=3.0)
    flags = np.where(np.arange(36) % 6 == 0, int(StarFlag.SHARP), 0)
    first = Stars.make(frame.first, sharpness=np.arange(36.0), flux=np.ones(36), flags=flags)
    stars, quality = measure(frame.image, first, background=frame.background, options=OPTIONS)
    np.testing.assert_array_equal(stars.sharpness, np.arange(36.0))
    assert stars.has(StarFlag.SHARP)[::6].all()
    assert quality.n_fitted == 30
    assert quality.sky == pytest.approx(200)


def test_any_array_and_own_sky() -> None:
    frame = reference.isolated_stars(np.random.default_rng(14), 36, 100, fwhm=3.0)
    stars, quality = measure(frame.image, frame.first)
    assert quality.sky == pytest.approx(200, abs=2)
    assert quality.noise == pytest.approx(frame.noise, rel=0.1)
    for image in (frame.image.astype(">f8"), frame.image.tolist(), np.asfortranarray(frame.image)):
        other, _ = measure(image, frame.first.tolist())
        np.testing.assert_array_equal(other.xy, stars.xy)
    masked = np.ma.array(frame.image, mask=np.zeros(frame.image.shape, bool))
    x, y = np.round(frame.xy[0]).astype(int)
    masked[y, x + 1] = np.ma.masked
    other, _ = measure(masked, frame.first)
    assert other.has(StarFlag.EDGE)[0]
    assert np.abs(other.xy[0] - frame.xy[0]).max() < 5 * other.xy_err[0]


@pytest.mark.parametrize("value", [0.0, 5.0, NAN])
def test_constant_images(value: float) -> None:
    stars, quality = measure(np.full((50, 60), value), [[20.0, 20.0], [30.2, 31.0]])
    assert stars.has(StarFlag.NO_FIT).all()
    np.testing.assert_array_equal(stars.xy, [[20.0, 20.0], [30.2, 31.0]])
    assert np.isnan(quality.fwhm)
    assert quality.n_stars == 0


def test_no_stars() -> None:
    stars, quality = measure(np.zeros((20, 20)), [])
    assert len(stars) == 0
    assert np.isnan(quality.fwhm)
    assert quality.n_fitted == 0


def test_positions_at_and_beyond_the_border() -> None:
    frame = reference.isolated_stars(np.random.default_rng(15), 36, 100, fwhm=3.0)
    beyond = [[-50.0, 3.0], [1e12, 1.0], [NAN, 5.0], [np.inf, 0.0], [-0.5, -0.5], [143.4, 143.4]]
    stars, quality = measure(
        frame.image, np.concatenate([frame.first, beyond]), background=frame.background, options=OPTIONS
    )
    assert not stars.has(StarFlag.NO_FIT)[:36].any()
    assert stars.has(StarFlag.NO_FIT)[36:40].all()
    assert quality.n_fitted == 36
    image = frame.image[:, round(frame.xy[0, 0]) :]
    cut, _ = measure(image, frame.first - [round(frame.xy[0, 0]), 0], background=frame.background, options=OPTIONS)
    assert cut.has(StarFlag.EDGE)[0]
    assert abs(cut.xy[0, 1] - frame.xy[0, 1]) < 5 * cut.xy_err[0]


def test_noise_free_image() -> None:
    xy = np.array([[20.3, 20.6], [60.1, 22.9], [40.5, 60.0]])
    image = render.render_stars((80, 80), xy, [1000.0, 2000.0, 500.0], fwhm=3.0, pixel="sampled")
    stars, quality = measure(image, xy.round())
    assert np.abs(stars.xy - xy).max() < 0.01
    assert quality.fwhm == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("image", [np.zeros(5), np.zeros((3, 4, 5))])
def test_image_must_have_two_dimensions(image: Any) -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        measure(image, [[1.0, 1.0]])


def test_positions_must_be_pairs() -> None:
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        measure(np.zeros((9, 9)), [[1.0, 1.0, 1.0]])


# Real frames -----------------------------------------------------------------------------------------


def local_maxima(image: Any, noise: float) -> Any:
    from scipy.ndimage import gaussian_filter, maximum_filter

    smooth = gaussian_filter(image, 1.0)
    y, x = np.nonzero((smooth == maximum_filter(smooth, 5)) & (smooth > np.median(smooth) + 8 * noise / 3.5))
    return np.stack([x, y], axis=1)


@pytest.mark.real
def test_trailed_real_frames_stand_out(data_root: Path) -> None:
    """The three frames that data/README names, between every tenth of the others."""
    from astropy.io import fits

    files = sorted((data_root / "hatp32").glob("*.FITS"))
    trailed = [f for f in files if f.stem.endswith(("050612", "080612", "064512"))]
    assert len(trailed) == 3
    values = {}
    for file in [*files[5::20], *trailed]:
        image = fits.getdata(file).astype(np.float32)
        noise = float(1.4826 * np.median(np.abs(image - np.median(image))))
        _, quality = measure(image, local_maxima(image, noise), options=MeasureOptions(saturation=4095))
        assert quality.n_fitted >= 50
        assert 1.3 < quality.fwhm < 3.0
        values[file] = quality.ellipticity
    assert min(values[f] for f in trailed) > np.median(list(values.values())) + 0.1
