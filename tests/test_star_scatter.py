"""Scatter of stars between frames of unknown gain, against nights whose photons and pixels are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import fastack
from fastack import report
from fastack.error_guide import read_guide
from fastack.errors import StackError
from fastack.load_calibration import load_calibration
from fastack.simulate import Night, NightOptions
from fastack.star_scatter import StarScatter, StarSums, _sums, fit_scatter, pixel_response
from fastack.types import PSF
from fastack.uncertainty import NoiseCorrelation, aperture_error


def fluxes(rng: np.random.Generator, gain: float, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """150 stars in 60 frames with clouds, a trend over the field, sky noise and a hundredth of wild values."""
    n, m, sky = 60, 150, 8.0
    truth = np.exp(rng.uniform(np.log(300), np.log(30_000), m))
    xy = rng.uniform(0, 1000, (m, 2))
    clouds = rng.normal(0, 0.05, n)[:, None] + rng.normal(0, 2e-5, (n, 1)) * (xy[:, 0] - 500)
    flux = truth * np.exp(clouds) * (1 + rng.normal(0, floor, (n, m)))
    flux = rng.poisson(flux * gain) / gain + rng.normal(0, sky, (n, m))
    flux[rng.random((n, m)) < 0.01] *= 1.2
    flux[rng.random((n, m)) < 0.02] = np.nan
    return flux, np.full((n, m), sky), xy


@pytest.mark.parametrize(("gain", "floor"), [(1.5, 0.004), (0.5, 0.0), (200.0, 0.01), (4.0, 0.02)])
def test_scatter_tells_photons_and_floor(gain: float, floor: float) -> None:
    """Eight nights each (seeds 0 to 7): both terms within four of their errors, and so is their mean."""
    pulls = []
    for seed in range(8):
        found = fit_scatter(*fluxes(np.random.default_rng(seed), gain, floor))
        rest = (found.floor - floor) / found.floor_err if floor else 0.0  # what cannot be negative has no error at 0
        photons = (found.slope - 1 / gain) / found.slope_err if gain < 100 else 0.0  # else there are hardly any
        pulls.append([photons, rest])
        assert found.stars == 150 and found.frames == 60
        # what matters is the variance that they make together, over the range of the stars
        for flux in (500.0, 3000.0, 20_000.0):
            expected = 1 / (gain * flux) + floor**2 + (8 / flux) ** 2
            assert found.slope / flux + found.floor**2 + (8 / flux) ** 2 == pytest.approx(expected, rel=0.15)
    for pull in np.array(pulls).T:
        assert np.abs(pull).max() < 4 and abs(pull.mean()) < 4 / np.sqrt(8)


def test_a_few_stars_or_frames_tell_nothing() -> None:
    flux, noise, xy = fluxes(np.random.default_rng(1), 1.0, 0.01)
    with pytest.raises(StackError, match="4 frames are too few"):
        fit_scatter(flux[:4], noise[:4], xy)
    with pytest.raises(StackError, match="29 stars in 60 frames"):
        fit_scatter(flux[:, :29], noise[:, :29], xy[:29])


def test_sums_are_those_of_exact_apertures() -> None:
    """On a sloping sky: light of Gaussians inside the radius, error as from many skies."""
    aperture = pytest.importorskip("photutils.aperture")
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:200, :220]
    at = np.array([[40.0, 50.0], [90.3, 60.7], [150.5, 120.5], [30.2, 160.9], [3.0, 100.0]])
    stars = sum(5000 / (2 * np.pi * 1.2**2) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 2 / 1.2**2) for a, b in at)
    sky = 300 + 0.02 * x
    flux, area = _sums((sky + stars).astype(np.float32), at, 3.0, (7.0, 12.0))
    exact = aperture.aperture_photometry(stars, aperture.CircularAperture(at, 3.0))["aperture_sum"]
    np.testing.assert_allclose(flux[:4], exact[:4], rtol=5e-4)
    assert np.isnan(flux[4])  # its sky is cut off
    many = np.array([
        _sums(np.rint(sky + rng.normal(0, 1.3, sky.shape)).astype(np.float32), at[:4], 3.0, (7.0, 12.0))[0]
        for _ in range(400)
    ])  # fmt: skip
    # 1600 sums: 1.8 % of a sigma; whole numbers add 1/12, the middle half of the ring is 8 % noisier than its mean
    expected = np.sqrt((1.3**2 + 1 / 12) * area[:4].mean())
    assert many.std() == pytest.approx(expected, rel=0.06)
    assert abs(many.mean()) < 0.2 * expected


def test_a_missing_pixel_takes_its_star_along() -> None:
    image = np.full((60, 60), 100.0, np.float32)
    image[30, 31] = np.nan
    flux, _ = _sums(image, np.array([[30.0, 30.0], [20.0, 30.0]]), 3.0, (7.0, 12.0))
    assert np.isnan(flux[0]) and flux[1] == pytest.approx(0, abs=1e-3)


def test_response_of_pixels_makes_stars_scatter() -> None:
    """2000 stars, each on pixels of its own: the standard deviation is known to 1.6 %."""
    rng = np.random.default_rng(3)
    psf = PSF(fwhm=2.4, beta=3.0, ellipticity=0.0, theta=0.0, optical=np.nan)
    line = np.arange(-12, 13)
    sums = []
    for dx, dy in rng.uniform(-0.5, 0.5, (2000, 2)):
        r2 = (line[None, :] - dx) ** 2 + (line[:, None] - dy) ** 2
        light = (1 + r2 * (2 ** (1 / 3) - 1) / 1.2**2) ** -3.0
        sums.append((light * (1 + rng.normal(0, 0.02, light.shape))).sum() / light.sum())
    assert pixel_response(float(np.std(sums)), psf) == pytest.approx(0.02, rel=0.06)


def headerless(directory: Path, night: Night) -> list[Path]:
    night.write(directory)
    for path in directory.glob("d*.fits"):
        with fits.open(path, mode="update") as file:
            for keyword in ("GAIN", "EGAIN", "RDNOISE"):
                file[0].header.remove(keyword, ignore_missing=True)
    return sorted(directory.glob("d*.fits"))


def apart(seed: int) -> dict[str, np.ndarray]:
    """A catalogue of 110 bright stars no two of which are nearer than 24 pixels."""
    rng = np.random.default_rng(seed)
    xy = np.array([[200.0, 190.0]])
    while len(xy) < 110:
        place = rng.uniform(-10, [410, 390])
        if np.hypot(*(xy - place).T).min() > 24:
            xy = np.vstack([xy, place])
    return {"x": xy[:, 0], "y": xy[:, 1], "flux": np.exp(rng.uniform(np.log(3e4), np.log(3e5), 110))}


def test_errors_of_bright_stars_without_gain_and_flat(tmp_path: Path) -> None:
    """Three nights of 30 frames on a bias of 300 ADU, 2 e-/ADU, pixels unlike by 2 %: fluxes against the truth.

    Their robust scatter in units of the errors that the stacks tell, from 160 to 180 stars: known to 10 %. Two frames
    that lie 12 px apart at random have a star on shared pixels (20 of them hold it) in 20 / (4 pi 12^2) = 1.1 % of all
    cases, 29 others a third: with photons for a third of the variance the scatter is 1.1.
    """
    pulls = []
    for seed in (11, 12, 13):
        options = NightOptions(
            n_frames=30, shape=(380, 400), gain=2.0, prnu=0.02, fwhm=2.6, beta=7.0, fwhm_spread=0.03, sky=100.0,
            sky_spread=0.0, dither=12.0, transparency_spread=0.03, dtype="float32", seed=seed,
        )  # fmt: skip
        night = Night(options, catalogue=apart(seed))
        frames = headerless(tmp_path / str(seed), night)
        made = fastack.stack(frames, output_path=tmp_path / f"{seed}.fits", framing="intersection")
        scatter = made.used[0].scatter
        assert isinstance(scatter, StarScatter)
        assert made.header["STARSCAT"] == scatter.floor
        assert "GAIN" not in made.header
        assert "\nstars       scatter by 0." in report.summary(made)
        assert "takes the noise of stars from their scatter" in read_guide(made.path).text()
        # the light that each pixel has of a star, integrated in steps of a tenth
        fine = ((np.arange(290) - 144.5) / 10) ** 2
        star = (1 + (fine[None, :] + fine[:, None]) * (2 ** (1 / 7) - 1) / 1.3**2) ** -7.0
        light = star.reshape(29, 10, 29, 10).sum(axis=(1, 3))
        expected = 0.02 * np.sqrt((light**2).sum()) / light.sum()
        assert abs(scatter.floor - expected) < 4 * scatter.floor_err < 0.6 * expected

        truth = night.truth
        reference = next(k for k, r in enumerate(made.records) if r.name == made.reference)
        at = truth.frames[reference].to_frame(truth.xy) - made.grid.origin
        flux, _ = _sums(np.ascontiguousarray(made.data, np.float32), at, 4.0, (9.0, 15.0))
        dark = 1 / made.plane("WEIGHT").astype(float)
        error = aperture_error(made.uncertainty, dark, NoiseCorrelation.read(made.header), 4.0)
        variance, _ = _sums((error**2).astype(np.float32), at, 4.0, (9.0, 15.0))
        variance += np.nanmedian(dark) * np.pi * 4.0**2  # that of the sky, which the sum has lost with its level
        ratio = np.log(flux / truth.flux)
        pulls.append((ratio - np.nanmedian(ratio)) / (np.sqrt(variance) / flux))
    pull = np.concatenate(pulls)
    assert np.count_nonzero(np.isfinite(pull)) > 150
    assert 1.4826 * np.nanmedian(np.abs(pull)) == pytest.approx(1.1, abs=0.3)


def test_a_known_gain_is_believed(tmp_path: Path) -> None:
    night = Night(NightOptions(n_frames=6, shape=(200, 220), n_stars=60, seed=4))
    night.write(tmp_path)
    made = fastack.stack(sorted(tmp_path.glob("d*.fits")))
    assert made.used[0].scatter is None and "STARSCAT" not in made.header


def test_only_the_middle_of_large_frames_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums do not depend on the window; stars outside of it, and those with a pixel that is an artefact, have none."""
    night = Night(NightOptions(n_frames=5, shape=(300, 320), n_stars=150, flux=(1e4, 1e6), seed=6))
    made = fastack.stack(headerless(tmp_path, night), dry_run=True)
    frames = [r.frame for r in made.records]
    reference = next(r for r in made.records if r.name == made.reference)
    sums = StarSums.of(made.records, reference, load_calibration(frames))
    whole, noise = sums.of_frame(made.records[1])
    monkeypatch.setattr("fastack.star_scatter._MOST_SIDE", 200)
    part, _ = sums.of_frame(made.records[1])
    known = np.isfinite(part)
    np.testing.assert_array_equal(part[known], whole[known])
    at = made.records[1].transform(sums.xy)
    far = np.abs(at - [159.5, 149.5]).max(axis=1) > 100
    assert np.isnan(part[far]).all()
    assert 10 < np.count_nonzero(known) < np.count_nonzero(np.isfinite(whole)) <= len(noise)
    first = int(np.flatnonzero(known)[0])
    made.records[1].artefacts = np.rint(at[[first]]).astype(np.int32)
    hit, _ = sums.of_frame(made.records[1])
    assert np.isnan(hit[first])
    np.testing.assert_array_equal(hit[known][1:], part[known][1:])
