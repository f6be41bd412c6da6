"""Detections against known truth and against the slow twin; hits against the pixels that were hit."""

from __future__ import annotations

import numpy as np
import pytest
from reference import detect as slow
from scipy.spatial import cKDTree

from fastack import _pixels, background, render
from fastack.detect import detect, find_artefacts, survey
from fastack.errors import DetectionError
from fastack.options import DetectOptions
from fastack.types import Background, StarFlag

SKY, NOISE = 500.0, 10.0


def flux_of(snr, fwhm, beta=3.0):
    """Flux of a star whose best possible signal-to-noise ratio is `snr` (background noise alone)."""
    y, x = np.mgrid[-40:41, -40:41].astype(float)
    return np.asarray(snr) * NOISE / np.sqrt((render.moffat(x, y, fwhm=fwhm, beta=beta) ** 2).sum())


def jittered_grid(rng, n, size, step):
    """N positions at least 0.6 steps apart."""
    side = size // step
    cells = rng.permutation(side * side)[:n]
    return (
        np.stack([cells % side, cells // side], axis=1) * step
        + step / 2
        + rng.uniform(-0.2, 0.2, (len(cells), 2)) * step
    )


def add_hits(image, rng, n):
    """Single pixels and tracks of 6 to 1000 sigma. Returns their pixels, and those above 10 sigma."""
    every, strong = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    for _ in range(n):
        length = rng.integers(2, 9) if rng.random() < 0.3 else 1
        angle, height = rng.uniform(0, np.pi), NOISE * 10 ** rng.uniform(0.8, 3)
        steps = np.arange(length)
        y = np.rint(rng.integers(0, image.shape[0]) + steps * np.sin(angle)).astype(int)
        x = np.rint(rng.integers(0, image.shape[1]) + steps * np.cos(angle)).astype(int)
        inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
        image[y[inside], x[inside]] += height
        every[y[inside], x[inside]] = True
        strong[y[inside], x[inside]] |= height > 10 * NOISE
    return every, strong


def star_frame(rng, xy, flux, fwhm, *, shape=(512, 512), **psf):
    image = render.render_stars(shape, xy, flux, fwhm=fwhm, pixel="sampled", radius=8 * fwhm, **psf)
    return (image + SKY + NOISE * rng.standard_normal(shape)).astype(np.float32)


def flat_sky(image):
    return Background(
        level=np.full((1, 1), SKY, np.float32),
        noise=np.full((1, 1), NOISE, np.float32),
        shape=image.shape,
        cell=image.shape,
    )


def nearest(found, truth):
    return cKDTree(found).query(truth)[0] if len(found) else np.full(len(truth), np.inf)


def raw(image, sky, fwhm, *, threshold=5.0):
    return _pixels.detect(image, sky.level, sky.noise, fwhm, fwhm, threshold, np.inf, np.inf)[0]


@pytest.mark.parametrize("fwhm", [1.8, 3.0, 6.5])
def test_maxima_agree_with_twin(isa, fwhm):
    """Same maxima as a direct two-dimensional filter, with gaps and borders."""
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 160, (25, 2))
    image = star_frame(rng, xy, flux_of(14.0, fwhm), fwhm, shape=(150, 160))
    image[40:44, 50:53] = np.nan
    image[:, 100] = np.nan
    snr = slow.snr_map(image, SKY, NOISE, fwhm)
    expected = slow.maxima(snr, 9.0)
    got = np.rint(raw(image, flat_sky(image), fwhm, threshold=9.0)[:, :2])
    # Detections may be dropped for lack of contrast, and refinement may round to a neighbour: both are rare.
    assert nearest(expected, got).max() <= np.sqrt(2)
    assert (nearest(got, expected) <= np.sqrt(2)).mean() >= 0.9


def test_levels_agree():
    rng = np.random.default_rng(3)
    image = star_frame(rng, rng.uniform(0, 512, (100, 2)), 10 ** rng.uniform(3, 5, 100), 2.6)
    sky = background.estimate(image)
    results = []
    for level in _pixels.isa_levels():
        _pixels._choose_isa(level)
        results.append(raw(image, sky, 2.6))
    _pixels._choose_isa(None)
    for other in results[1:]:
        assert len(other) == len(results[0])
        np.testing.assert_allclose(other[:, :2], results[0][:, :2], atol=1e-3)
        np.testing.assert_allclose(other[:, 2:7], results[0][:, 2:7], rtol=1e-4)


@pytest.mark.parametrize("fwhm", [1.8, 2.5, 4.0, 8.0])
def test_snr_ten_among_hits(fwhm):
    """SNR 10, unblended, as many hits as stars: 99 % complete and pure within the class's binomial error.

    The full classes are in benchmarks/truth_detect.py. Positions within 2.5 times the Cramer-Rao bound.
    """
    rng = np.random.default_rng(4)
    size = 768 if fwhm < 5 else 1024
    xy = jittered_grid(rng, 300, size, max(24, int(6 * fwhm)))
    image = star_frame(rng, xy, flux_of(10.0, fwhm), fwhm, shape=(size, size))
    every, _ = add_hits(image, rng, 500)
    stars = detect(image)
    free = nearest(np.argwhere(every)[:, ::-1], xy) > 2 * fwhm + 1
    good = ~stars.has(StarFlag.SHARP)
    apart = nearest(stars.xy[good], xy[free])
    n, lost = free.sum(), (apart > 0.5 * fwhm).sum()
    listed = stars[good & (stars.snr > 7.5)]
    wrong = (nearest(xy, listed.xy) > 0.7 * fwhm + 1).sum()
    margin = 3  # binomial: at most 0.01 n + 3 sqrt(0.01 n) are lost by chance
    assert lost <= 0.01 * n + margin * np.sqrt(0.01 * n)
    assert wrong <= 0.01 * len(listed) + margin * np.sqrt(0.01 * len(listed))
    assert (~good).sum() > 200
    bound = fwhm / 2.3548 / 10 * 1.2  # of a Gaussian; a Moffat profile of beta 3 carries less of it
    assert np.sqrt(np.mean(apart[apart < 0.5 * fwhm] ** 2) / 2) < 2.5 * bound


@pytest.mark.parametrize("fwhm", [1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("ellipticity", [0.0, 0.15])
def test_stars_are_not_sharp_and_not_hits(fwhm, ellipticity):
    """Of 400 clean stars with photon noise (gain 2, SNR 8 to 4000, any phase) at most one is flagged."""
    rng = np.random.default_rng(5)
    xy = jittered_grid(rng, 400, 768, max(28, int(6 * fwhm)))
    flux = flux_of(10 ** rng.uniform(0.9, 3.6, len(xy)), fwhm)
    model = SKY + render.render_stars(
        (768, 768), xy, flux, fwhm=fwhm, pixel="sampled", radius=8 * fwhm, ellipticity=ellipticity, theta=0.6
    )
    image = (rng.poisson(2 * model) / 2).astype(np.float32)
    sky = background.estimate(image)
    stars = detect(image, background=sky)
    assert len(find_artefacts(image, background=sky, fwhm=fwhm)) <= 1
    bright = stars[stars.snr > 20]
    assert bright.has(StarFlag.SHARP).sum() <= 1
    isolated = bright.sharpness[nearest(xy, bright.xy) < 0.5 * fwhm]
    assert np.median(isolated) == pytest.approx(1, abs=0.1)


def test_trailed_stars_are_not_hits():
    rng = np.random.default_rng(6)
    xy = jittered_grid(rng, 200, 512, 32)
    image = star_frame(rng, xy, flux_of(100.0, 2.4), 2.4, ellipticity=0.5, theta=0.0)
    assert len(find_artefacts(image, fwhm=2.4)) == 0
    assert detect(image).has(StarFlag.SHARP).sum() == 0


@pytest.mark.parametrize("fwhm", [2.0, 3.5])
def test_hits_are_found_and_nothing_else(fwhm):
    rng = np.random.default_rng(7)
    xy = jittered_grid(rng, 300, 768, 28)
    image = star_frame(rng, xy, flux_of(10 ** rng.uniform(1, 3, len(xy)), fwhm), fwhm, shape=(768, 768))
    every, strong = add_hits(image, rng, 400)
    pixels = find_artefacts(image, fwhm=fwhm)
    found = np.zeros(image.shape, bool)
    found[pixels[:, 1], pixels[:, 0]] = True
    on_sky = nearest(xy, np.argwhere(strong)[:, ::-1]) > 3 * fwhm
    caught = found[strong][on_sky]
    assert caught.mean() >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / len(caught))
    assert (found & ~every).sum() <= 1e-5 * image.size + 3 * np.sqrt(1e-5 * image.size)


@pytest.mark.parametrize(("fwhm", "shot"), [(2.0, 0.0), (3.0, 0.02)])
def test_hits_agree_with_twin(fwhm, shot):
    """The same pixels as the slow twin finds, but for values that rounding moves over a limit."""
    rng = np.random.default_rng(17)
    xy = jittered_grid(rng, 30, 256, 36)
    image = star_frame(rng, xy, flux_of(10 ** rng.uniform(1, 3, len(xy)), fwhm), fwhm, shape=(256, 256))
    add_hits(image, rng, 120)
    image[:, 90] = np.nan
    image[0, :5] += 500
    sky = flat_sky(image)
    bright = _pixels.detect_bright(image, sky.level, sky.noise)
    z = (image - SKY) / NOISE
    np.testing.assert_array_equal(np.stack([bright["y"], bright["x"]], axis=1), np.argwhere(z > 6))
    got = {tuple(p) for p in _pixels.detect_hits(image, bright, fwhm, np.nan, shot * NOISE).tolist()}
    expected = slow.hits(image, SKY, NOISE, fwhm, shot, np.nanmax(image))
    assert len(expected) > 150
    assert len(got ^ expected) <= 1


def test_saturated_star_is_one_detection():
    rng = np.random.default_rng(8)
    xy = np.array([[100.3, 90.7], [200.0, 180.0], [60.0, 200.0]])
    image = star_frame(rng, xy, [3e6, 4e5, 2e4], 3.0, shape=(256, 280))
    full = np.minimum(image, 20000)
    for options in (DetectOptions(saturation=20000), DetectOptions()):
        stars = detect(full, options=options)
        near = np.hypot(*(stars.xy - xy[0]).T) < 20
        assert near.sum() == 1
        assert stars[near].has(StarFlag.SATURATED).all()
        assert not stars[near].has(StarFlag.SHARP).any()
        assert np.hypot(*(stars[near].xy[0] - xy[0])) < 0.3
        assert not stars[np.hypot(*(stars.xy - xy[2]).T) < 2].has(StarFlag.SATURATED).any()
    assert len(find_artefacts(full, fwhm=3.0, options=DetectOptions(saturation=20000))) == 0


@pytest.mark.parametrize("fwhm", [2.2, 3.0, 5.0])
@pytest.mark.parametrize(("ratio", "apart"), [(1.0, 1.2), (0.1, 2.0)])
def test_close_pairs(fwhm, ratio, apart):
    """Twelve directions: both stars are found, at their places to a third of the FWHM, and nothing else."""
    rng = np.random.default_rng(9)
    step = int(14 * fwhm) + 20
    centre = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * step + step / 2
    centre = centre + rng.uniform(-0.5, 0.5, centre.shape)
    angle = np.arange(12) * np.pi / 6
    second = centre + apart * fwhm * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    truth = np.concatenate([centre, second])
    flux = flux_of(np.repeat([300.0, 300.0 * ratio], 12), fwhm)
    image = star_frame(rng, truth, flux, fwhm, shape=(3 * step, 4 * step))
    stars = detect(image, options=DetectOptions(fwhm=fwhm))
    assert nearest(stars.xy, truth).max() < 0.35 * fwhm
    assert len(stars[stars.snr > 15]) == 24


@pytest.mark.parametrize("fwhm", [1.8, 3.0, 6.0])
def test_width_is_found_among_hits(fwhm):
    """Twenty stars and 1500 hits: the filter's width within 15 %."""
    rng = np.random.default_rng(10)
    xy = jittered_grid(rng, 20, 512, 60)
    image = star_frame(rng, xy, flux_of(60.0, fwhm), fwhm)
    add_hits(image, rng, 1500)
    sky = background.estimate(image)
    mean, narrow = _pixels.detect_widths(image, sky.level, sky.noise, np.nan)
    assert mean == pytest.approx(fwhm, rel=0.15)
    assert 0.75 * mean < narrow <= 1.05 * mean


def test_no_stars_constant_and_saturated():
    rng = np.random.default_rng(11)
    assert len(detect(np.full((100, 120), 65535.0))) == 0
    assert len(detect(np.zeros((100, 120)))) == 0
    assert len(find_artefacts(np.zeros((100, 120)), fwhm=2)) == 0
    # 5 sigma, one-sided, about 65 000 independent values: 0.02 expected
    assert len(detect(SKY + NOISE * rng.standard_normal((256, 256)))) <= 1


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (1, 200), (200, 2)])
def test_tiny_images(shape):
    rng = np.random.default_rng(12)
    assert len(detect(SKY + NOISE * rng.standard_normal(shape))) <= 1
    find_artefacts(SKY + NOISE * rng.standard_normal(shape), fwhm=2)


def test_nothing_but_nan():
    with pytest.raises(DetectionError, match="finite"):
        detect(np.full((50, 50), np.nan))
    with pytest.raises(DetectionError, match="finite"):
        find_artefacts(np.full((50, 50), np.nan), fwhm=2)


def filtered_flux(xy, fwhm):
    """Part of a Moffat star's flux that a Gaussian of the same width, fitted by the matched filter, has."""
    y, x = np.mgrid[-8:9, -8:9].astype(float)
    dx, dy = x - (xy[0] - np.rint(xy[0])), y - (xy[1] - np.rint(xy[1]))
    sigma = fwhm / 2.3548
    gauss = np.exp(-(dx**2 + dy**2) / (2 * sigma**2)) * (np.maximum(abs(x), abs(y)) <= np.ceil(0.85 * fwhm))
    return 2 * np.pi * sigma**2 * (gauss * render.moffat(dx, dy, fwhm=fwhm, beta=3.0)).sum() / (gauss**2).sum()


def test_three_stars_in_order_with_fluxes():
    """A Gaussian filter on Moffat stars loses their wings: by what it should, to 1 % and the noise."""
    rng = np.random.default_rng(13)
    xy, flux = np.array([[50.2, 60.7], [120.5, 30.5], [80.0, 110.0]]), np.array([2e4, 8e4, 4e4])
    stars = detect(star_frame(rng, xy, flux, 3.0, shape=(150, 170)), options=DetectOptions(fwhm=3.0))
    assert len(stars) == 3
    order = [1, 2, 0]
    assert np.abs(stars.xy - xy[order]).max() < 0.1
    expected = flux[order] * [filtered_flux(p, 3.0) for p in xy[order]]
    assert np.all(abs(stars.flux - expected) < 0.01 * expected + 4 * stars.flux_err)
    np.testing.assert_allclose(stars.sky, SKY, atol=3)
    assert len(detect(star_frame(rng, xy, flux, 3.0), options=DetectOptions(max_stars=2))) == 2


def test_edge_flag():
    rng = np.random.default_rng(14)
    xy = np.array([[1.0, 50.0], [60.0, 60.0], [100.0, 100.0]])
    image = star_frame(rng, xy, [5e4] * 3, 3.0, shape=(150, 150))
    image[98:103, 102] = np.nan
    stars = detect(image, options=DetectOptions(fwhm=3.0))
    flags = {tuple(np.rint(p)): f for p, f in zip(stars.xy, stars.has(StarFlag.EDGE), strict=True)}
    assert flags[1, 50]
    assert not flags[60, 60]
    assert any(f and abs(x - 100) <= 1 for (x, y), f in flags.items() if abs(y - 100) <= 1)


def test_gaps_do_not_grow():
    """A missing pixel takes nothing away from stars beyond the filter's reach."""
    rng = np.random.default_rng(15)
    xy = jittered_grid(rng, 60, 256, 30)
    image = star_frame(rng, xy, flux_of(50.0, 2.5), 2.5, shape=(256, 256))
    image[:, 128] = np.nan
    image[77, :] = np.nan
    far = (abs(xy[:, 0] - 128) > 3) & (abs(xy[:, 1] - 77) > 3)
    assert nearest(detect(image).xy, xy[far]).max() < 0.5


@pytest.mark.parametrize("dtype", [">f4", ">i2", "f8", "u2"])
def test_any_array(dtype):
    rng = np.random.default_rng(16)
    image = np.rint(star_frame(rng, [[40.0, 50.0]], [2e4], 3.0, shape=(90, 100)))
    expected = detect(image)
    np.testing.assert_array_equal(detect(image.astype(dtype)).xy, expected.xy)


def test_argument_errors():
    image = np.zeros((20, 20))
    with pytest.raises(ValueError, match="threshold"):
        detect(image, options=DetectOptions(threshold=0))
    with pytest.raises(ValueError, match="fwhm"):
        detect(image, options=DetectOptions(fwhm=-1.0))
    with pytest.raises(ValueError, match="fwhm"):
        find_artefacts(image, fwhm=np.nan)
    with pytest.raises(ValueError, match="gain"):
        find_artefacts(image, fwhm=2.0, gain=0)
    with pytest.raises(ValueError, match="background"):
        detect(image, background=background.estimate(np.zeros((10, 10))))


@pytest.mark.real
def test_fixed_hot_pixels_are_sharp(data_root):
    """hatp32: what stays at its detector position while the field drifts is a hot pixel."""
    from astropy.io import fits

    paths = sorted((data_root / "hatp32").glob("*.FITS"))[0:142:20]
    lists = [detect(fits.getdata(path), options=DetectOptions(saturation=4095)) for path in paths]
    first = lists[0]
    fixed = np.sum([nearest(other.xy, first.xy) < 0.5 for other in lists[1:]], axis=0) >= 6
    assert fixed.sum() > 30
    assert first[fixed].has(StarFlag.SHARP).mean() > 0.8
    for stars in lists:
        assert (~stars.has(StarFlag.SHARP) & (stars.snr > 8)).sum() > 500


def test_artefacts_from_the_pass_that_finds_stars():
    rng = np.random.default_rng(8)
    xy = jittered_grid(rng, 60, 400, 40)
    image = star_frame(rng, xy, flux_of(rng.uniform(10, 300, len(xy)), 2.5), 2.5, shape=(400, 400))
    add_hits(image, rng, 80)
    stars, traces = survey(image)
    np.testing.assert_array_equal(stars.xy, detect(image).xy)
    alone = find_artefacts(image, fwhm=2.5)
    assert len(alone) > 40
    np.testing.assert_array_equal(find_artefacts(image, fwhm=2.5, traces=traces), alone)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2, 1.3])
@pytest.mark.parametrize("saturation", [None, 4000.0])
def test_traces_hold_all_hits_of_any_final_width(factor, saturation):
    rng = np.random.default_rng(18)
    xy = jittered_grid(rng, 100, 400, 36)
    image = star_frame(rng, xy, flux_of(10 ** rng.uniform(1, 3, len(xy)), 2.2), 2.2, shape=(400, 400))
    add_hits(image, rng, 200)
    if saturation is not None:
        image = np.minimum(image, saturation)
    options = DetectOptions(saturation=saturation)
    _, traces = survey(image, options=options)
    sky = flat_sky(image)
    every = _pixels.detect_bright(image, sky.level, sky.noise)
    assert 40 < len(traces.bright) < 0.7 * len(every)  # a good part of the stars' pixels are not tested again
    width = factor * traces.widest / 1.25 / traces.roundness
    anew = traces._replace(widest=0.0)  # every bright pixel is looked at again
    for gain in (None, 2.0):
        got, expected = (
            find_artefacts(image, fwhm=width, options=options, gain=gain, traces=t) for t in (traces, anew)
        )
        np.testing.assert_array_equal(got, expected)
        assert len(got) > 40
