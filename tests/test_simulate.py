"""The simulated night against theory: totals, centroids, noise, transforms, artefacts, headers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from reference.simulate import moffat as slow_moffat
from reference.simulate import render_stars as slow_render_stars
from scipy import integrate, ndimage, stats
from scipy.spatial.distance import pdist

from fastack.render import effective_fwhm, moffat, render_stars
from fastack.simulate import NightOptions, _poisson, read_night, simulate_night

SMALL = NightOptions(n_frames=6, shape=(256, 320), n_stars=60)


# Stars ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fwhm", [1.5, 2.5, 8.0])
@pytest.mark.parametrize("beta", [2.2, 3.0, 5.0])
@pytest.mark.parametrize(("ellipticity", "theta"), [(0.0, 0.0), (0.3, 0.7)])
@pytest.mark.parametrize("pixel", ["integrated", "sampled"])
def test_render_stars_equals_the_slow_twin(fwhm, beta, ellipticity, theta, pixel):
    xy = [(40.3, 50.8), (41.0, 20.5), (1.2, 77.7), (-5.0, 30.0), (200.0, 30.0)]
    profile = {"fwhm": fwhm, "beta": beta, "ellipticity": ellipticity, "theta": theta}
    for star in xy:
        fast = render_stars((80, 90), [star], 1.0, pixel=pixel, radius=35, **profile)
        slow = slow_render_stars((80, 90), [star], [1.0], radius=35, integrated=pixel == "integrated", **profile)
        np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-6 * slow_moffat(0, 0, fwhm, beta))


def test_stars_add_up():
    rng = np.random.default_rng(1)
    xy, flux = rng.uniform(-10, 110, (300, 2)), rng.uniform(1, 100, 300)
    many = render_stars((90, 100), xy, flux, fwhm=3.0)
    one_by_one = sum(render_stars((90, 100), [p], f, fwhm=3.0).astype(float) for p, f in zip(xy, flux, strict=True))
    np.testing.assert_allclose(many, one_by_one, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("fwhm", [1.8, 4.0])
def test_total_and_centroid_are_those_of_the_integral(fwhm):
    x, y, half = 20.3, 19.6, 10
    image = render_stars((41, 41), [(x, y)], 1.0, fwhm=fwhm, radius=half).astype(float)
    rows = (20 - half - 0.5 - y, 20 + half + 0.5 - y)
    columns = np.arange(20 - half, 20 + half + 1)

    def column(k):
        return integrate.dblquad(
            lambda v, u: slow_moffat(u, v, fwhm, 3.0), k - 0.5 - x, k + 0.5 - x, *rows, epsabs=1e-9
        )[0]

    true = np.array([column(k) for k in columns])
    assert image.sum() == pytest.approx(true.sum(), abs=1e-5)
    assert (image.sum(axis=0) * (np.arange(41) - x)).sum() == pytest.approx(true @ (columns - x), abs=1e-5)


def test_the_profile_has_its_width_its_shape_and_unit_flux():
    half = moffat(np.array([2.0]), np.array([0.0]), fwhm=4.0, beta=2.5)
    assert half == pytest.approx(moffat(np.zeros(1), np.zeros(1), fwhm=4.0, beta=2.5) / 2)
    y, x = np.mgrid[-300:301, -300:301] / 10.0
    for ellipticity in (0.0, 0.4):
        values = moffat(x, y, fwhm=1.5, beta=4.0, ellipticity=ellipticity, theta=0.6)
        assert values.sum() / 100 == pytest.approx(1, abs=1e-4)
    # Half of the maximum at the ends of both axes.
    for length, angle in ((2 / np.sqrt(0.6), 0.6), (2 * np.sqrt(0.6), 0.6 + np.pi / 2)):
        end = np.array([np.cos(angle)]) * length / 2, np.array([np.sin(angle)]) * length / 2
        value = moffat(*end, fwhm=2.0, beta=4.0, ellipticity=0.4, theta=0.6)
        assert value == pytest.approx(slow_moffat(0, 0, 2.0, 4.0) / 2)


@pytest.mark.parametrize("beta", [2.5, 4.0])
def test_effective_width_is_that_of_the_profile_smoothed_by_a_pixel(beta):
    y, x = np.mgrid[-150:151, -150:151] / 25.0
    smooth = ndimage.uniform_filter(slow_moffat(x, y, 2.0, beta), 25)  # 25 samples in a pixel
    row = smooth[150, 150:]
    width = 2 * np.interp(-row[0] / 2, -row, x[150, 150:])
    assert effective_fwhm(2.0, beta) == pytest.approx(width, rel=2e-3)
    assert effective_fwhm(20.0, beta) == pytest.approx(20.0, rel=2e-3)


# Noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.3, 5.0, 45.0, 55.0, 300.0, 20_000.0])
def test_photon_noise_has_the_moments_and_tails_of_a_poisson_distribution(mean):
    n = 1_000_000
    drawn = np.full((1000, 1000), mean, np.float32)
    _poisson(drawn, np.random.default_rng(3), rdnoise=0.0)
    drawn = drawn.ravel().astype(float)
    # 4.5 standard errors of mean, variance and third moment, from the distribution's own central moments.
    assert abs(drawn.mean() - mean) < 4.5 * np.sqrt(mean / n) + 1e-7 * mean
    assert abs(drawn.var() - mean) < 4.5 * np.sqrt((2 * mean**2 + mean) / n)
    error = np.sqrt((15 * mean**3 + 25 * mean**2 + mean) / n)
    assert abs(((drawn - mean) ** 3).mean() - mean) < 4.5 * error + 1e-6 * mean
    # The tails; a whole number stands for the interval about it, and the expansion may err by 2 % in them.
    for level in (1e-4, 0.01, 0.99, 0.9999):
        at = stats.poisson.ppf(level, mean)
        true = stats.poisson.cdf(at, mean)
        tail = min(true, 1 - true)
        assert abs(np.mean(drawn <= at + 0.5) - true) < 4.5 * np.sqrt(tail / n) + 0.02 * tail + 1e-12


def test_frames_scatter_about_the_expected_image_as_photon_and_read_noise_say():
    options = replace(SMALL, rdnoise=7.0, gain=2.2, sky=150.0, vignetting=0.4, prnu=0.02, dark=0.5)
    night = simulate_night(options)
    for frame in night.frames:
        expected = night.expected(frame.truth.index).astype(float)
        # Photon and read noise, and the rounding to whole numbers.
        variance = (expected - options.bias) / options.gain + (options.rdnoise / options.gain) ** 2 + 1 / 12
        good = expected + 6 * np.sqrt(variance) < 65535
        chi2 = ((frame.image[good] - expected[good]) ** 2 / variance[good]).sum()
        assert good.mean() > 0.999
        low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], good.sum())
        assert low < chi2 < high
        mean = ((frame.image[good] - expected[good]) / np.sqrt(variance[good])).mean()
        assert abs(mean) < 4.5 / np.sqrt(good.sum())


def test_noise_of_different_frames_is_independent():
    night = simulate_night(replace(SMALL, n_stars=0, dither=0.0))
    a, b = (night[i].image - night.expected(i) for i in (0, 1))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.5 / np.sqrt(a.size)


def test_threads_and_order_change_no_bit():
    options = replace(SMALL, cosmic_rays=20, hot_pixels=30, trails=0.5)
    one = [frame.image for frame in simulate_night(options).frames]
    three = [frame.image for frame in simulate_night(options, threads=3).frames]
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(simulate_night(options)[4].image, one[4])
    assert not np.array_equal(simulate_night(replace(options, seed=2))[4].image, one[4])


# Positions and fluxes ------------------------------------------------------------------------------------

TURNED = NightOptions(
    n_frames=4,
    shape=(300, 340),
    n_stars=25,
    flux=(300_000.0, 1_000_000.0),
    slope=0.0,
    separation=45.0,
    fwhm=2.6,
    rotation=[0.0, 7.0, 182.0, 90.0],
    mirrored=[0, 0, 1, 1],
    scale=[1.0, 1.03, 0.95, 1.0],
    distortion=3.0,
    dither=5.0,
    dtype="float32",
    sky=100.0,
)


def window_centroid(image, xy, sigma):
    """Centroid in a Gaussian window about `xy`: 0 for a symmetric star, whatever its profile."""
    y, x = np.indices(image.shape)
    dx, dy = x - xy[0], y - xy[1]
    weight = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    total = (weight * image).sum()
    return np.array([(weight * image * dx).sum(), (weight * image * dy).sum()]) / total, weight, total


def test_stars_stand_where_the_transform_says():
    night = simulate_night(TURNED)
    offsets = []
    for frame in night.frames:
        xy = frame.truth.to_frame(night.truth.xy)
        inside = ((xy > 25) & (xy < np.array(TURNED.shape[::-1]) - 26)).all(axis=1)
        sky = TURNED.bias + np.median(night.expected(frame.truth.index) - TURNED.bias)
        variance = (night.expected(frame.truth.index) - TURNED.bias) / TURNED.gain + (6 / TURNED.gain) ** 2
        for star in xy[inside]:
            offset, weight, total = window_centroid(frame.image - sky, star, 3.0)
            dx = np.arange(TURNED.shape[1]) - star[0]
            error = np.sqrt((weight**2 * dx**2 * variance).sum()) / total
            assert error < 0.02
            offsets.append(offset / error)
    offsets = np.array(offsets)
    assert len(offsets) > 40
    # Each offset within 5 standard errors, and together as they should scatter (neighbours' wings aside).
    assert np.abs(offsets).max() < 5
    assert (offsets**2).sum() < stats.chi2.ppf(1 - 1e-4, offsets.size) * 1.2


def test_fluxes_are_those_of_the_truth():
    options = replace(TURNED, transparency=[1.0, 0.7, 0.9, 0.5], mirrored=0.0, separation=60.0, n_stars=10)
    night = simulate_night(options)
    y, x = np.indices(options.shape)
    seen = 0
    for frame in night.frames:
        truth = frame.truth
        level = options.bias + truth.sky / options.gain
        for (sx, sy), flux in zip(truth.to_frame(night.truth.xy), night.truth.flux, strict=True):
            if not (15 < sx < 340 - 16 and 15 < sy < 300 - 16):
                continue
            r = 12.0
            weight = np.clip(r + 0.5 - np.hypot(x - sx, y - sy), 0, 1)
            total = (weight * (frame.image - level)).sum() * options.gain
            inside = 1 - (1 + (r / (truth.fwhm / (2 * np.sqrt(2 ** (1 / 3) - 1)))) ** 2) ** -2
            expected = flux * truth.transparency * inside
            noise = np.sqrt(expected + np.pi * r * r * (truth.sky + options.rdnoise**2))
            # Wings of neighbours and the edge of the aperture add up to 2e-3.
            assert abs(total - expected) < 4.5 * noise + 2e-3 * expected
            seen += 1
    assert seen > 15


def test_transforms_invert_and_compose_as_stated():
    for truth in simulate_night(TURNED).truth.frames:
        xy = np.random.default_rng(1).uniform(0, 300, (50, 2))
        np.testing.assert_allclose(truth.to_reference(truth.to_frame(xy)), xy, atol=1e-8)
    plain = replace(TURNED, distortion=0.0, scale=1.0, shifts=np.zeros((4, 2)), rotation=[0, 180, 0, 90])
    frames = simulate_night(replace(plain, mirrored=[0, 0, 1, 0])).truth.frames
    corner = [(0.0, 0.0)]
    assert frames[0].to_frame(corner).tolist() == [[0, 0]]
    assert frames[1].to_frame(corner).tolist() == [[339, 299]]
    assert frames[2].to_frame(corner).tolist() == [[339, 0]]
    np.testing.assert_allclose(frames[3].to_frame([(169.5, 150.5)]), [(168.5, 149.5)])


def test_distortion_is_cubic_and_reaches_its_value_in_the_corner():
    flat = replace(TURNED, rotation=0.0, mirrored=0.0, scale=1.0, dither=0.0)
    truth = simulate_night(flat).truth.frames[0]
    centre = np.array([169.5, 149.5])
    for part in (0.5, 1.0):
        moved = truth.to_frame(centre + part * centre) - (centre + part * centre)
        assert np.hypot(*moved[0]) == pytest.approx(3.0 * part**3)


def test_the_night_goes_as_the_options_say():
    options = replace(SMALL, n_frames=8, flipped=0.25, drift=(30.0, -12.0), dither=0.0, rotation=2.0)
    frames = simulate_night(options).truth.frames
    np.testing.assert_allclose([f.rotation for f in frames], [*np.linspace(0, 2, 8)[:6], 180 + 12 / 7, 182])
    centre = np.array([[159.5, 127.5]])
    np.testing.assert_allclose(frames[-1].to_frame(centre) - centre, [(30.0, -12.0)])
    np.testing.assert_allclose(frames[0].matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    given = replace(SMALL, fwhm=np.linspace(2, 6, 6), sky=[100.0] * 6, transparency=[0.5] * 6)
    frames = simulate_night(given).truth.frames
    np.testing.assert_allclose([f.fwhm for f in frames], np.linspace(2, 6, 6))
    assert {f.sky for f in frames} == {100.0}
    assert {f.transparency for f in frames} == {0.5}


def test_fluxes_follow_the_power_law_and_stars_fill_every_frame():
    options = NightOptions(n_frames=5, n_stars=3000, slope=1.2, flux=(100.0, 1e5), rotation=20.0, drift=(200, 0))
    truth = simulate_night(options).truth
    a, b = 100.0**-1.2, 1e5**-1.2
    assert stats.kstest(truth.flux, lambda f: (a - f**-1.2) / (a - b)).pvalue > 1e-3
    assert (np.diff(truth.flux) <= 0).all()
    for frame in truth.frames:
        xy = frame.to_frame(truth.xy)
        count = ((xy > -0.5) & (xy < 1023.5)).all(axis=1).sum()
        assert abs(count - 3000) < 4.5 * np.sqrt(3000)


def test_separation_keeps_stars_apart():
    assert pdist(simulate_night(replace(SMALL, separation=15.0)).truth.xy).min() > 15


def test_sky_gradient_runs_over_the_frame():
    options = replace(SMALL, n_stars=0, sky=1000.0, sky_gradient=0.2)
    night = simulate_night(options)
    for i in range(6):
        sky = (night.expected(i) - options.bias) * options.gain
        assert sky.max() / sky.min() > 1.15
        gx, gy = night.truth.frames[i].sky_slope
        assert np.hypot(gx, gy) == pytest.approx(0.1)
        level = night.truth.frames[i].sky
        assert sky[:, -1].mean() - sky[:, 0].mean() == pytest.approx(2 * gx * level, abs=0.1)


# Detector and artefacts ----------------------------------------------------------------------------------


def test_saturated_pixels_stand_at_the_level():
    options = replace(SMALL, saturation=12_000.0, flux=(1e6, 3e6), n_stars=8)
    night = simulate_night(options)
    image, expected = night[0].image, night.expected(0)
    noise = np.sqrt(expected / options.gain) + 10
    assert image.max() == 12_000
    assert (image[expected > 12_000 + 6 * noise] == 12_000).all()
    assert (image[expected < 12_000 - 6 * noise] < 12_000).all()
    assert night[0].header["SATURATE"] == 12_000
    assert (expected > 13_000).sum() > 20


def test_listed_artefact_pixels_are_the_only_ones_that_differ():
    options = replace(SMALL, cosmic_rays=30, hot_pixels=40, trails=1.0, dtype="float32", gain=2.0)
    clean = simulate_night(replace(options, cosmic_rays=0, hot_pixels=0, trails=0))
    trails = 0
    for dirty, plain in zip(simulate_night(options).frames, clean.frames, strict=True):
        added = np.zeros(options.shape)
        for x, y, electrons in dirty.artefacts.pixels.tolist():
            added[y, x] += electrons
        np.testing.assert_allclose(dirty.image - plain.image, added / 2.0, atol=0.01)
        assert len(dirty.artefacts.hot_pixels) == 40
        assert (dirty.artefacts.cosmic_rays["electrons"] > 50).all()
        trails += len(dirty.artefacts.trails) > 0
        assert not plain.artefacts.pixels.size
    assert trails >= 2


def test_cosmic_rays_have_their_number_and_are_half_tracks():
    options = replace(SMALL, n_frames=20, shape=(512, 512), n_stars=0, cosmic_rays=50)
    pieces = tracks = 0
    for frame in simulate_night(options).frames:
        mask = np.zeros(options.shape, bool)
        mask[frame.artefacts.cosmic_rays["y"], frame.artefacts.cosmic_rays["x"]] = True
        labels, n = ndimage.label(mask, np.ones((3, 3)))
        pieces += n
        tracks += (np.bincount(labels.ravel())[1:] > 1).sum()
    # Poisson counts; one in some hundred meets another.
    assert abs(pieces - 1000) < 4.5 * np.sqrt(1000) + 30
    assert abs(tracks / pieces - 0.5) < 4.5 * 0.5 / np.sqrt(pieces) + 0.02


def test_hot_pixels_are_fixed_in_the_detector():
    options = replace(SMALL, hot_pixels=50, dither=20.0, sky=50.0, n_stars=0)
    night = simulate_night(options)
    hot = night.truth.hot_pixels
    for frame in night.frames:
        level = frame.image[hot["y"], hot["x"]].astype(float) - options.bias - frame.truth.sky / options.gain
        mean = hot["electrons"] / options.gain
        noise = np.sqrt(hot["electrons"] + frame.truth.sky + options.rdnoise**2) / options.gain
        assert (np.abs(level - mean) < 5 * noise + 1).all()
    assert len(np.unique(hot[["x", "y"]])) == 50


def test_masters_take_the_detector_away(tmp_path):
    options = replace(SMALL, n_stars=0, sky=20_000.0, vignetting=0.5, dust=6, prnu=0.03, dark=2.0, hot_pixels=5)
    night = simulate_night(options)
    paths = night.write(tmp_path, masters=True)
    master = {kind: fits.getdata(tmp_path / f"master_{kind}.fits").astype(float) for kind in ("bias", "dark", "flat")}
    assert master["flat"].min() < 0.55 < 0.95 < master["flat"].max()
    for path, truth in zip(paths, night.truth.frames, strict=True):
        level = (fits.getdata(path) - master["bias"] - master["dark"]) / master["flat"]
        noise = np.sqrt(truth.sky * master["flat"] + 120 + 36 + 20_000) / options.gain / master["flat"]
        assert abs(level - truth.sky / options.gain).max() < 7 * noise.max()
        assert level.mean() == pytest.approx(truth.sky / options.gain, rel=1e-3)


# Files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bitpix"), [("uint8", 8), ("uint16", 16), ("int16", 16), ("int32", 32), ("float32", -32)]
)
def test_files_hold_the_dtype_and_the_night_comes_back(tmp_path, dtype, bitpix):
    options = replace(SMALL, n_frames=3, dtype=dtype, bias=10.0, sky=[20.0] * 3, cosmic_rays=5)
    night = simulate_night(options, threads=2)
    paths = night.write(tmp_path)
    assert [path.name for path in paths] == ["d0001.fits", "d0002.fits", "d0003.fits"]
    again = read_night(tmp_path)
    assert again.options == options
    np.testing.assert_array_equal(again.truth.xy, night.truth.xy)
    for path, frame in zip(paths, again.frames, strict=True):
        with fits.open(path) as hdus:
            assert hdus[0].header["BITPIX"] == bitpix
            assert frame.image.dtype == dtype
            np.testing.assert_array_equal(hdus[0].data, frame.image)
            assert hdus[0].header["DATE-OBS"] == frame.header["DATE-OBS"]


def test_compressed_names_and_other_numbers(tmp_path):
    paths = simulate_night(replace(SMALL, n_frames=2)).write(tmp_path, name="r{:03d}.fits.gz", first=140)
    assert [path.name for path in paths] == ["r140.fits.gz", "r141.fits.gz"]
    assert fits.getdata(paths[1]).shape == SMALL.shape


def test_header_dates_agree_and_advance():
    headers = [frame.header for frame in simulate_night(replace(SMALL, start="2018-12-31T23:59:10.25")).frames]
    for i, header in enumerate(headers):
        start = Time("2018-12-31T23:59:10.25", scale="utc") + 70 * i * u.s
        assert abs(Time(header["DATE-OBS"], scale="utc") - start) < 1e-3 * u.s
        assert header["MJD-OBS"] == pytest.approx(start.mjd, abs=1e-9)
        assert (header["EXPTIME"], header["FILTER"], header["OBJECT"]) == (60, "V", "simulated field")
        assert (header["GAIN"], header["RDNOISE"]) == (1.5, 6)
        assert 1 <= header["AIRMASS"] < 3
        assert "CTYPE1" not in header


@pytest.mark.parametrize("centre", [(299.59, 35.2), (0.001, 0.0), (180.0, 89.9)])
def test_exact_wcs_leads_from_the_catalogue_to_the_stars(centre):
    options = replace(TURNED, distortion=0.0, wcs="exact", centre=centre)
    night = simulate_night(options)
    for frame in night.frames:
        xy = WCS(frame.header).all_world2pix(night.truth.radec, 0)
        np.testing.assert_allclose(xy, frame.truth.to_frame(night.truth.xy), atol=1e-6)


def test_approximate_wcs_and_pointing_are_off_by_what_was_asked():
    options = replace(SMALL, wcs="approximate", pointing_error=100.0, dither=0.0)
    night = simulate_night(options)
    xy = WCS(night[0].header).all_world2pix([options.centre], 0)
    off = np.hypot(*(xy - [(159.5, 127.5)])[0]) * options.pixel_scale
    assert 5 < off < 450
    header = night[0].header
    assert np.hypot((header["RA"] - 299.59) * np.cos(np.radians(35.2)), header["DEC"] - 35.2) * 3600 == pytest.approx(
        off, rel=0.03
    )


def test_stars_of_a_catalogue():
    night = simulate_night(SMALL, catalogue={"x": [10.0, 200.5], "y": [20.0, 99.0], "flux": [5e4, 9e4]})
    assert night.truth.xy.tolist() == [[200.5, 99.0], [10.0, 20.0]]
    again = simulate_night(
        SMALL,
        catalogue={"ra": night.truth.radec[:, 0], "dec": night.truth.radec[:, 1], "flux": night.truth.flux},
    )
    np.testing.assert_allclose(again.truth.xy, night.truth.xy, atol=1e-7)
    plane = (np.array([[200.5, 99.0]]) - [159.5, 127.5]) * 0.7 / 3600
    assert night.truth.radec[0, 0] - 299.59 == pytest.approx(-plane[0, 0] / np.cos(np.radians(35.2)), rel=1e-3)
    assert night.truth.radec[0, 1] - 35.2 == pytest.approx(plane[0, 1], rel=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_frames": 0}, "0 frames"),
        ({"flux": (10.0, 1.0)}, "flux range"),
        ({"gain": 0.0}, "gain"),
        ({"beta": 1.0}, "Moffat"),
        ({"dtype": "float64"}, "float64"),
        ({"fwhm": [1.0, 2.0]}, "fwhm has shape"),
        ({"shifts": [(1.0, 2.0)]}, "shifts has shape"),
    ],
)
def test_impossible_nights_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
