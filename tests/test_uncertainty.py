"""NOISCORR against simulated noise, the levels for photon statistics, and what `fastack errors` says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

import fastack
from fastack import report
from fastack.error_guide import read_guide, rms_map
from fastack.errors import FrameError, StackError
from fastack.frames import open_frame
from fastack.gain import camera_gain, estimate_gain
from fastack.options import CombineOptions, ResampleOptions
from fastack.resample import autocorrelation
from fastack.simulate import NightOptions, simulate_night
from fastack.types import Transform
from fastack.uncertainty import (
    NoiseCorrelation,
    aperture_error,
    bias_level,
    master_noise,
    noise_correlation,
    noise_covariance,
)

KERNELS = ("nearest", "bilinear", "bicubic", "lanczos2", "lanczos3", "lanczos4")


def turned(degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Transform:
    a = np.radians(degrees)
    c, s = scale * np.cos(a), scale * np.sin(a)
    return Transform.affine(np.array([[c, -s, shift[0]], [s, c, shift[1]]]))


def aperture(radius: float, size: int) -> np.ndarray:
    """Part of each pixel inside a circle, by brute force."""
    fine = (np.arange(size * 25) + 0.5) / 25 - 0.5 - size // 2
    inside = fine**2 + fine[:, None] ** 2 < radius**2
    return inside.reshape(size, 25, size, 25).mean(axis=(1, 3))


@pytest.mark.parametrize("kernel", KERNELS)
@given(phase=st.tuples(st.integers(0, 63), st.integers(0, 63)))
@settings(max_examples=10, deadline=None)
def test_covariance_of_a_shift_is_that_of_its_phase(kernel: str, phase: tuple[int, int]) -> None:
    px, py = phase[0] / 64, phase[1] / 64
    shifted = noise_covariance(turned(0, shift=(px, py)), (40, 50), ResampleOptions(kernel=kernel), points=4)
    known = autocorrelation(kernel, px, py)
    m, r = len(shifted) // 2, len(known) // 2
    np.testing.assert_allclose(shifted[m - r : m + r + 1, m - r : m + r + 1], known, atol=1e-12)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize(("degrees", "scale"), [(1.5, 1.0), (45.0, 1.0), (30.0, 0.9)])
def test_covariance_is_that_of_resampled_noise(kernel: str, degrees: float, scale: float) -> None:
    rng = np.random.default_rng(5)
    options = ResampleOptions(kernel=kernel)
    to_frame = turned(degrees, scale, (300.0, -20.0))
    total, count = 0.0, 0
    expected = noise_covariance(to_frame, (300, 300), options)
    m = len(expected) // 2
    sums = np.zeros((3, 3))
    for _ in range(6):
        noise = rng.standard_normal((800, 800)).astype(np.float32)
        out = fastack.resample(noise, to_frame, shape=(300, 300), options=options) / scale**2
        inner = np.isfinite(out[4:-4, 4:-4])
        for j in range(3):
            for i in range(3):
                product = out[4:-4, 4:-4] * out[4 + j : 300 - 4 + j or None, 4 + i : 300 - 4 + i or None][:292, :292]
                sums[j, i] += np.nansum(product)
        total, count = total + inner.sum(), count + inner.sum()
    measured = sums / count
    # about one independent value in three pixels; five sigmas
    tolerance = 5 * np.sqrt(2 * 3 / count)
    np.testing.assert_allclose(measured, expected[m : m + 3, m : m + 3], atol=tolerance)


def test_known_values_far_out() -> None:
    transforms = [turned(0.5 * k, shift=(0.3 * k, 0.77 * k)) for k in range(1, 13)]
    # bilinear: sum k^2 is 2/3 along an axis, on average over all phases, and the factor 1/(2/3)
    found = noise_correlation(transforms, (500, 600), options=ResampleOptions(kernel="bilinear"))
    assert found.squared[-1] == pytest.approx(1.5, abs=0.02)
    found = noise_correlation(transforms, (500, 600))
    assert found.squared[-1] == pytest.approx(1.12, abs=0.01)
    found = noise_correlation(transforms, (500, 600), options=ResampleOptions(kernel="nearest"))
    np.testing.assert_allclose(found.squared, 1, atol=0.005)


def test_frames_count_by_their_share_of_the_variance() -> None:
    straight, half = turned(0), turned(0, shift=(0.5, 0.5))
    alone = noise_correlation([half], (100, 100))
    mixed = noise_correlation([straight, half], (100, 100), [0.0, 1.0])
    np.testing.assert_allclose(mixed.squared, alone.squared)
    np.testing.assert_allclose(noise_correlation([straight], (100, 100)).squared, 1)
    both = noise_correlation([straight, half], (100, 100), [3.0, 1.0])
    c0 = (3 + noise_covariance(half, (100, 100)).max()) / 4
    assert both.squared[-1] == pytest.approx(np.sqrt(1 / c0), rel=1e-3)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
def test_scatter_of_apertures_is_what_the_factors_say(kernel: str) -> None:
    """Six frames at random shifts, 300 x 300 pixels, 12 realisations: 4 sigmas of the scatter's own error."""
    rng = np.random.default_rng(11)
    options = ResampleOptions(kernel=kernel)
    size, radii = 300, (2.0, 5.0)
    sums: dict[float, list[np.ndarray]] = {r: [] for r in radii}
    transforms = [turned(0.0, shift=tuple(rng.uniform(8, 12, 2))) for _ in range(6)]
    sigma = rng.uniform(1, 3, 6)
    factors = noise_correlation(transforms, (size, size), sigma**2, options)
    variance = 0.0
    for to_frame, s in zip(transforms, sigma, strict=True):
        covariance = noise_covariance(to_frame, (size, size), options, points=8)
        variance += s**2 * covariance.max() / 36
    for _ in range(12):
        total = np.zeros((size, size))
        for to_frame, s in zip(transforms, sigma, strict=True):
            noise = (s * rng.standard_normal((size + 24, size + 24))).astype(np.float32)
            total += fastack.resample(noise, to_frame, shape=(size, size), options=options) / 6
        for r in radii:
            n = 2 * int(r) + 3
            step = n + 6
            weights = aperture(r, n)
            blocks = [total[y : y + n, x : x + n] for y in range(0, size - n, step) for x in range(0, size - n, step)]
            sums[r].append(np.array([(b * weights).sum() for b in blocks]))
    for r in radii:
        flux = np.concatenate(sums[r])
        weights = aperture(r, 2 * int(r) + 3)
        for squared, norm in ((True, (weights**2).sum()), (False, weights.sum())):
            predicted = np.sqrt(variance * norm) * factors.at(r, squared=squared)
            ratio = np.sqrt(np.mean(flux**2)) / predicted
            assert abs(ratio - 1) < 4 / np.sqrt(2 * len(flux)) + 0.005


def test_medians_correlate_less() -> None:
    rng = np.random.default_rng(3)
    to_frame = turned(0, shift=(10.5, 10.5))
    options = ResampleOptions(kernel="bilinear")
    found = noise_correlation([to_frame] * 25, (200, 200), options=options, combine=CombineOptions(combine="median"))
    cube = [
        fastack.resample(
            rng.standard_normal((224, 224)).astype(np.float32), to_frame, shape=(200, 200), options=options
        )
        for _ in range(25)
    ]
    median = np.median(cube, axis=0)
    boxes = median.reshape(20, 10, 20, 10).sum(axis=(1, 3))
    inflated = boxes.std() / (10 * median.std())
    mean = noise_correlation([to_frame] * 25, (200, 200), options=options)
    assert found.squared[-1] < mean.squared[-1]
    # a box of 10 x 10 loses a little of the far-out factor at its edge
    assert 0.85 < inflated / found.squared[-1] < 1.08


def test_cards_bring_the_factors_back() -> None:
    found = noise_correlation([turned(1.0)], (300, 300))
    header = fits.Header()
    for keyword, value, comment in found.cards():
        header[keyword] = (value, comment)
    again = NoiseCorrelation.read(header)
    np.testing.assert_allclose(again.radius, found.radius)
    np.testing.assert_allclose(again.proportional, found.proportional, atol=1e-4)
    np.testing.assert_allclose(again.at([2.0, 5.0, np.inf]), found.proportional[[1, 3, -1]], atol=1e-4)
    with pytest.raises(StackError, match="NOISCORR"):
        NoiseCorrelation.read(fits.Header())


def test_bias_level_of_equal_frames() -> None:
    # nine frames, sky kept, no bias pedestal: -R^2/G with R = 3 r and G = 9 g
    sky, gain, rdnoise = 400.0, 1.5, 6.0
    noise = np.sqrt(sky / gain + (rdnoise / gain) ** 2)
    level = bias_level(sky, np.ones(9), np.ones(9), gain, noise)
    assert level == pytest.approx(-((3 * rdnoise) ** 2) / (9 * gain))
    # a pedestal in the raw frames makes no noise: the level moves up with it
    assert bias_level(sky + 300, np.ones(9), np.ones(9), gain, noise) == pytest.approx(300 + level)


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("errors")
    options = NightOptions(
        n_frames=9, shape=(300, 320), n_stars=60, gain=2.0, transparency_spread=0.1, sky_spread=0.2, rotation=1.0
    )
    simulate_night(options).write(directory / "frames")
    fastack.stack(directory / "frames", output_path=directory / "mosaic.fits", framing="intersection")
    return directory / "mosaic.fits"


def test_photon_statistics_give_the_noise_of_the_background(mosaic: Path) -> None:
    with fits.open(mosaic) as file:
        header, weight, counts = file[0].header, file["WEIGHT"].data, file["NCOMB"].data
        full = counts == counts.max()
        pixel = np.sqrt(1 / np.median(weight[full]))
        variance = (header["SKYLEVEL"] - header["BIASLEV"]) / header["GAIN"]
        # photon statistics know no interpolation: far out NOISCORR takes it back
        assert np.sqrt(variance) == pytest.approx(pixel * header["NOISCORR"], rel=0.03)


def test_guide_tells_every_program_its_numbers(mosaic: Path) -> None:
    guide = read_guide(mosaic)
    header = fits.getheader(mosaic)
    text = guide.text()
    assert f"photons per data unit  {header['GAIN']:.4f}" in text
    assert f"bias level             {guide.bias_at(round(1.5 * header['FWHM'], 1)):.3f}" in text
    assert f"For large apertures: {header['BIASLEV']:.3f}" in text
    assert guide.bias_at(1e9) == pytest.approx(header["BIASLEV"], rel=1e-6)
    assert "MAP_RMS" in text
    assert "UNCERT" in text
    assert "sky variance" in text
    assert guide.frames == 9
    assert f"radius 7 px: {guide.correlation.at(7.0):.3f}" in guide.text(7.0)


def test_rms_map_is_noiscorr_over_root_weight(mosaic: Path) -> None:
    with fits.open(mosaic) as file:
        weight, far = file["WEIGHT"].data, file[0].header["NOISCORR"]
    image = rms_map(mosaic)[0].data
    known = np.isfinite(weight) & (weight > 0)
    np.testing.assert_allclose(image[known], far / np.sqrt(weight[known]), rtol=1e-5)
    assert (image[~known] == np.float32(1e30)).all()
    assert rms_map(mosaic, radius=3.0)[0].header["NOISCORR"] < far


def test_command_prints_the_guide_and_writes_the_map(mosaic: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fastack.cli import cli

    target = tmp_path / "rms.fits"
    words = ["errors", str(mosaic), "--rms-map", str(target), "--gain-from", str(mosaic.parent / "frames")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "photons per data unit" in done.output
    assert "gain estimated from 9 frames" in done.output
    np.testing.assert_array_equal(fits.getdata(target), rms_map(mosaic)[0].data)
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 1
    assert "--overwrite" in str(again.exception)


def test_other_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="does not exist"):
        read_guide(tmp_path / "none.fits")
    (tmp_path / "text.fits").write_text("no FITS")
    with pytest.raises(FrameError, match="cannot be read"):
        read_guide(tmp_path / "text.fits")
    fits.writeto(tmp_path / "plain.fits", np.zeros((4, 4), np.float32))
    with pytest.raises(StackError, match="fastack stack"):
        read_guide(tmp_path / "plain.fits")


@pytest.mark.parametrize(("gain", "seed"), [(0.6, 2), (1.5, 1), (4.0, 3)])
def test_gain_is_found_in_the_frames(gain: float, seed: int) -> None:
    options = NightOptions(n_frames=9, shape=(400, 420), n_stars=150, gain=gain, sky_spread=0.3, seed=seed)
    estimate = estimate_gain([frame.image for frame in simulate_night(options).frames])
    assert estimate.usable
    assert abs(estimate.gain - gain) < min(0.05 * gain, 3 * estimate.error)


def test_a_steady_sky_tells_no_gain() -> None:
    options = NightOptions(n_frames=4, shape=(256, 256), n_stars=40, sky_spread=0.0, transparency_spread=0.0)
    estimate = estimate_gain([frame.image for frame in simulate_night(options).frames])
    assert not estimate.usable
    with pytest.raises(StackError, match="three"):
        estimate_gain([np.zeros((64, 64), np.float32)] * 2)


@pytest.mark.real
def test_gain_of_a_real_night_agrees_with_its_flats(data_root: Path) -> None:
    from fastack.files import find_frames
    from fastack.frames import open_frame
    from fastack.load_calibration import load_calibration
    from fastack.options import CalibrateOptions

    def read(folder: str, step: int) -> list[np.ndarray]:
        frames = [open_frame(p) for p in find_frames([data_root / "lowell_night" / folder])[::step]]
        calibration = load_calibration(frames, CalibrateOptions(no_flat=True))
        return [calibration.read(f).pixels for f in frames]

    # photon transfer of two flats, box by box so that their slow differences do not count
    first, second = read("flat", 1)[2:4]
    boxes = []
    for y in range(300, 1000, 20):
        for x in range(300, 1000, 20):
            a, b = first[y : y + 20, x : x + 20].astype(float), second[y : y + 20, x : x + 20].astype(float)
            k = a.mean() / b.mean()
            boxes.append(a.mean() * (1 + k) / np.var(a - k * b, ddof=1))
    flats = float(np.median(boxes))
    estimate = estimate_gain(read("light", 1))
    assert estimate.usable
    assert abs(estimate.gain - flats) < 2.5 * estimate.error


def test_photons_of_a_star_are_cut_by_the_rim_too() -> None:
    """Partial pixels of nearest-neighbour frames: what remains is m^2 against m under the star's light."""
    found = noise_correlation([turned(0.0)] * 3, (200, 200), options=ResampleOptions(kernel="nearest"), fwhm=3.0)
    y, x = np.mgrid[-15:16, -15:16]
    light = (1 + (x * x + y * y) * (2 ** (1 / 3) - 1) / 1.5**2) ** -3.0
    part = aperture(3.0, 31)
    expected = np.sqrt((part**2 * light).sum() / (part * light).sum())
    # the factor is a mean over places of the centre within a pixel
    assert found.at(3.0, star=True) == pytest.approx(expected, rel=0.01)
    assert found.at(20.0, star=True) == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(found.star_squared, 1, atol=1e-6)
    without = noise_correlation([turned(0.3)] * 3, (200, 200))
    np.testing.assert_allclose(without.star_proportional, without.squared[-1])


def headerless(directory: Path, **options: Any) -> Path:
    """A night whose headers tell neither gain nor read noise."""
    simulate_night(NightOptions(n_frames=9, shape=(300, 320), n_stars=80, seed=2, **options)).write(directory)
    for path in directory.glob("d*.fits"):
        with fits.open(path, mode="update") as file:
            for keyword in ("GAIN", "EGAIN", "RDNOISE"):
                file[0].header.remove(keyword, ignore_missing=True)
    return directory


def test_a_run_estimates_a_gain_that_no_header_tells(tmp_path: Path) -> None:
    made = fastack.stack(headerless(tmp_path, gain=1.5, sky_spread=0.4), output_path=tmp_path / "mosaic.fits")
    error = made.header["GAINERR"] / made.header["GAIN"]
    estimate = made.used[0].frame.gain
    assert error < 0.1
    assert abs(estimate / 1.5 - 1) < 3 * error
    assert any(note.startswith("gain ") and "estimated from 9 frames" in note for note in made.notes)
    assert "estimated from the frames" in read_guide(tmp_path / "mosaic.fits").text()
    assert "estimated from the frames" in report.summary(made)


def test_a_run_refuses_a_gain_without_a_lever(tmp_path: Path) -> None:
    made = fastack.stack(headerless(tmp_path, sky_spread=0.0, transparency_spread=0.0))
    assert "GAIN" not in made.header
    assert "GAINERR" not in made.header
    assert any("gain unknown" in note and "the sky changes too little" in note for note in made.notes)
    assert "gain        unknown: no header tells it" in report.summary(made)


def test_noise_behind_a_flat_follows_it(tmp_path: Path) -> None:
    """Six frames, corners at 0.3 of the light, no dither: UNCERT is what photons and readout make at each flat."""
    options = NightOptions(
        n_frames=6, shape=(300, 320), n_stars=40, vignetting=0.7, dither=0.0, sky=1000.0, sky_spread=0.0, gain=1.5,
        transparency_spread=0.0, rdnoise=4.0, seed=3,
    )  # fmt: skip
    night = simulate_night(options)
    night.write(tmp_path, masters=True)
    masters = {kind: str(tmp_path / f"master_{kind}.fits") for kind in ("bias", "flat")}
    made = fastack.stack(sorted(tmp_path.glob("d*.fits")), register="none", normalise=False, **masters)
    flat = night.flat
    # a master flat is divided by its median
    expected = np.sqrt((1000.0 * flat + 4.0**2) / 6) / (1.5 * flat) * np.median(flat)
    sky = 1 / np.sqrt(made.plane("WEIGHT"))
    # 64 rows of differences tell a frame's noise to 1.3 %, six frames to 0.5 %; the read noise goes with the photons
    for part in (np.s_[140:160, 150:170], np.s_[20:40, 20:40], np.s_[140:160, 5:25]):
        assert np.median(sky[part] / expected[part]) == pytest.approx(1, abs=0.03)


@pytest.mark.real
def test_hatp32_tells_no_gain(data_root: Path) -> None:
    paths = sorted((data_root / "hatp32").iterdir())[::8]
    estimate = camera_gain([open_frame(p) for p in paths])
    assert not estimate.usable
    assert "masking the stars" in estimate.reason or "the sky changes too little" in estimate.reason


@pytest.mark.parametrize(("dither", "kernel"), [(0.0, "lanczos3"), (0.3, "bilinear"), (6.0, "lanczos3")])
def test_noise_of_masters_is_shared_as_far_as_the_dither_goes(dither: float, kernel: str) -> None:
    """Twelve frames of one master's noise alone, 60 draws: the variance that `master_noise` adds to that of the frames.

    Bias noise of 3 ADU and a flat of 1 % at a sky of 200 ADU, on a light of 400 ADU above it; the standard error of a
    variance from 60 draws of 48 x 52 pixels, of which one in two is independent, is below 0.6 %.
    """
    rng = np.random.default_rng(8)
    n, shape, size = 12, (48, 52), (80, 84)
    transforms = [turned(0.2 * k * (dither > 0), shift=tuple(14 + dither * rng.standard_normal(2))) for k in range(n)]
    weight, scale = rng.uniform(0.5, 2, n), rng.uniform(0.8, 1.2, n)
    options = ResampleOptions(kernel=kernel)
    additive, relative = np.full(size, 9.0, np.float32), np.full(size, 1e-4, np.float32)
    sky, light = 200.0, 400.0
    shared = master_noise(
        transforms, shape, additive=additive, relative=relative, weight=weight, scale=scale, level=np.full(n, sky),
        options=options,
    )  # fmt: skip
    total, background = shared.variance(np.full(shape, light, np.float32), (0, *shape[:1], 0, shape[1]))
    drawn: dict[float, list[np.ndarray]] = {0.0: [], light: []}
    for _ in range(60):
        bias, flat = 3 * rng.standard_normal(size), 0.01 * rng.standard_normal(size)
        for above, images in drawn.items():
            image = np.zeros(shape)
            for to_frame, w, s in zip(transforms, weight, scale, strict=True):
                error = bias * s + flat * (above + s * sky)
                image += w * fastack.resample(error.astype(np.float32), to_frame, shape=shape, options=options)
            images.append(image / weight.sum())
    # the frames' own noise was measured with that of the masters in it
    squares = [noise_covariance(t, shape, options).max() for t in transforms]
    own = sum(
        (w * s) ** 2 * k * (9 + (0.01 * sky) ** 2) for w, s, k in zip(weight, scale, squares, strict=True)
    ) / weight.sum() ** 2  # fmt: skip
    for found, above in ((background, 0.0), (total, light)):
        expected = np.nanmean(np.square(drawn[above]))
        assert float(found.mean()) + own == pytest.approx(expected, rel=0.04)
    if dither == 0.0:
        assert float(background.mean()) > 5 * own


def test_added_variance_does_not_depend_on_the_tiles() -> None:
    shared = master_noise(
        [turned(0.1 * k, shift=(k, 0.3)) for k in range(4)], (90, 100), additive=np.full((120, 130), 4.0, np.float32),
        relative=None, weight=np.ones(4), scale=np.ones(4), level=np.full(4, 100.0),
    )  # fmt: skip
    excess = np.random.default_rng(1).uniform(-10, 1e4, (90, 100)).astype(np.float32)
    whole = shared.variance(excess, (0, 90, 0, 100))
    for y0, y1, x0, x1 in ((0, 17, 0, 33), (17, 90, 33, 100), (40, 41, 5, 99)):
        part = shared.variance(excess[y0:y1, x0:x1], (y0, y1, x0, x1))
        for a, b in zip(part, whole, strict=True):
            assert a.tobytes() == np.ascontiguousarray(b[y0:y1, x0:x1]).tobytes()


def test_truth_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells of benchmarks/truth_uncertainty.py, 1000 apertures each, and the observatory's example."""
    pytest.importorskip("photutils")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import truth_uncertainty as truth

    cells = [
        truth.Cell(3, "lanczos3", 0.0, 5.0, 1.5, 6.0, 2.0),
        truth.Cell(5, "bilinear", 1.5, 300.0, 0.7, 3.0, 2.0),
    ]
    for cell in cells:
        for count, value, error in truth.ratio(cell, 1000, 400).values():
            assert count >= 1000
            assert value - error < 1.03
            assert value + error > 0.97
    scatter, error = truth.example("nearest", dithered=False)
    assert error == pytest.approx(1 / 30, rel=0.03)
    assert scatter == pytest.approx(1 / 30, rel=0.06)  # 2400 objects: 1.4 % (one sigma)
    sys.modules.pop("truth_uncertainty", None)


def test_truth_end_to_end_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case of benchmarks/truth_photometry.py in 8 nights: nine ratios, none off by more than twice its interval."""
    pytest.importorskip("photutils")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import truth_photometry as truth

    for value, reach in truth.ratios(truth.CASES[0], nights=8, seed=4):
        assert 0.97 - 2 * reach < value < 1.03 + 2 * reach
        assert reach < 0.15
    for name in ("truth_photometry", "truth_uncertainty"):
        sys.modules.pop(name, None)


def test_aperture_error_is_right_where_the_sky_is_dark() -> None:
    """UNCERT scatters about the background's error there, and half of that must not be cut."""
    rng = np.random.default_rng(3)
    dark = np.full((50, 50), 4.0)
    variance = dark + rng.normal(0, 1.0, dark.shape)
    flat = NoiseCorrelation(
        radius=np.array([1.0, np.inf]), **{name: np.ones(2) for name in
        ("squared", "proportional", "star_squared", "star_proportional")},
    )  # fmt: skip
    error = aperture_error(np.sqrt(variance), dark, flat, 3.0)
    np.testing.assert_allclose(error**2, variance, rtol=1e-12)
    assert (aperture_error(np.zeros((2, 2)), dark[:2, :2], flat, 3.0) == 0).all()
