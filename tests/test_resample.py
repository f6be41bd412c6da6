"""Resampling against its exact-kernel twin, truth stars and Monte Carlo."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import resample as twin

from fastack.background import render
from fastack.options import ResampleOptions
from fastack.render import moffat, render_stars
from fastack.resample import autocorrelation, input_window, resample, resample_tile
from fastack.types import Background, PixelFlag, Transform

SEPARABLE = ["nearest", "bilinear", "bicubic", "lanczos2", "lanczos3", "lanczos4"]
KERNELS = [*SEPARABLE, "area"]


def turned(degrees, *, scale=1.0, mirrored=False, centre=(25.0, 20.0), shift=(0.3, -0.7)):
    """Rotation about a point, then a shift."""
    t = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    if mirrored:
        matrix = matrix @ np.diag([-1, 1])
    origin = np.asarray(centre)
    return Transform.affine(np.c_[matrix, origin - matrix @ origin + shift])


def distorted(order, amount=1.0, degrees=0.3):
    """Rotate a little, and distort by about `amount` pixel at 20 pixels from the middle."""
    m = 6 if order == 2 else 10
    rng = np.random.default_rng(order)
    cx, cy = (rng.normal(size=m) * amount for _ in range(2))
    c, s = 20 * np.cos(np.deg2rad(degrees)), 20 * np.sin(np.deg2rad(degrees))
    cx[:3], cy[:3] = (25.3, c, -s), (19.6, s, c)
    return Transform(cx=cx, cy=cy, order=order, origin=(24.0, 21.0), scale=20.0)


MAPS = {
    "0": turned(0),
    "0.01": turned(0.01),
    "0.2": turned(0.2),
    "0.85": turned(0.85),
    "2": turned(2),
    "3.5": turned(3.5),
    "17": turned(17),
    "45": turned(45),
    "90": turned(90),
    "179.5": turned(179.5),
    "-91": turned(-91),
    "mirrored": turned(1, mirrored=True, centre=(25, 20)),
    "scale 0.5": turned(5, scale=0.5),
    "scale 0.999": turned(0.5, scale=0.999),
    "scale 2": turned(-30, scale=2.0),
    "quadratic": distorted(2, 0.3),
    "cubic": distorted(3, 0.3),
    "slight cubic": distorted(3, 1e-4),
}


def tile_of(image, transform, tile, kernel="lanczos3", **values):
    """All planes of one tile, from the section that `input_window` names."""
    options = ResampleOptions(kernel=kernel, max_lost=values.pop("max_lost", 0.5))
    shape = (tile[1] - tile[0], tile[3] - tile[2])
    planes = {
        "out": np.full(shape, -1, np.float32),
        "factor": np.zeros(shape, np.uint8),
        "flags": np.zeros(shape, np.uint8),
        "saturated_count": np.zeros(shape, np.uint16),
    }
    y0, y1, x0, x1 = input_window(transform, tile, image.shape, options) or (0, 0, 0, 0)
    section = np.ascontiguousarray(image[y0:y1, x0:x1])
    resample_tile(section, (x0, y0), image.shape, transform, tile, options=options, **planes, **values)
    return planes


def holed(image, fraction=0.01, seed=2):
    out = image.copy()
    out[np.random.default_rng(seed).random(image.shape) < fraction] = np.nan
    return out


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).normal(size=(40, 50)).astype(np.float32)


# --- against the twin


def near(kernel, image, transform, holes):
    """Bound of |fast - twin| in a pixel, for weights that differ by 1e-4 each."""
    taps = {
        "nearest": 1,
        "bilinear": 2,
        "bicubic": 4,
        "lanczos2": 4,
        "lanczos3": 6,
        "lanczos4": 8,
        "area": 4,
    }[kernel]
    rms = 5 * np.sqrt(taps * taps) * np.nanstd(image) * 1e-4
    return (4 if holes else 1) * rms * max(transform.magnification**2, 1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["0", "2", "17", "179.5", "mirrored", "cubic"])
def test_twin(kernel, name, noise):
    """Pixels, variance factor and missing pixels of each kernel, with 1 % of the input missing."""
    image, transform = holed(noise), MAPS[name]
    tile = (3, 14, 5, 20) if kernel == "area" else (3, 24, 5, 40)  # the twin of area takes its time
    planes = tile_of(image, transform, tile, kernel, scale=1.5, offset=7.0, sky=0.25)
    shifted, shape = transform.shifted(5, 3), planes["out"].shape
    out, factor, lost = twin.resample(image, shifted, shape, kernel, scale=1.5, offset=7.0, sky=0.25)
    # A weight of 1e-4 more or less decides where the lost weight is within 1e-3 of the limit.
    sure = np.abs(lost - 0.5) > 1e-3
    tight = np.isfinite(out) & np.isfinite(planes["out"])
    assert np.mean(tight != np.isfinite(out)) < 0.01
    np.testing.assert_array_equal(np.isfinite(planes["out"])[sure], tight[sure])
    np.testing.assert_allclose(planes["out"][tight], out[tight], atol=1.5 * near(kernel, image, transform, True))
    expected = np.clip(255 * factor[tight], 1, 255)
    np.testing.assert_allclose(planes["factor"][tight], expected, atol=1, rtol=2e-3)
    flagged = (planes["flags"] & PixelFlag.INTERPOLATED) != 0
    np.testing.assert_array_equal(flagged[tight & (lost > 1e-3)], True)
    np.testing.assert_array_equal(flagged[tight & (lost == 0)], False)


@functools.cache
def exact_weights(kernel, name, tile):
    """Images of single pixels further apart than any kernel's support, and what the twin makes of them."""
    image = np.zeros((40, 50), np.float32)
    image[4::9, 4::9] = 1
    shape = (tile[1] - tile[0], tile[3] - tile[2])
    exact, _, _ = twin.resample(image, MAPS[name].shifted(tile[2], tile[0]), shape, kernel)
    xy = np.argwhere(np.ones(shape))[:, ::-1] + [tile[2], tile[0]]
    return image, exact, np.abs(np.linalg.det(MAPS[name].jacobian(xy))).reshape(shape)


FEW = ["2", "3.5", "17", "scale 0.999", "slight cubic"]


@pytest.mark.parametrize(
    ("kernel", "name"),
    [("lanczos3", n) for n in MAPS] + [("bicubic", n) for n in FEW] + [("lanczos4", n) for n in FEW],
)
def test_weights(kernel, name, isa):
    """Every weight within 1e-4 of the exact kernel's: read off as the images of single pixels."""
    tile = (4, 32, 3, 42)
    image, exact, jacobian = exact_weights(kernel, name, tile)
    out = tile_of(image, MAPS[name], tile, kernel)["out"]
    assert np.isfinite(exact).sum() > 200
    assert np.nanmax(np.abs(out - exact) / jacobian) < 1e-4


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3", "area"])
def test_variance(kernel, noise):
    var = np.random.default_rng(3).uniform(1, 2, noise.shape)
    shape = (8, 11) if kernel == "area" else (30, 37)
    for transform in (turned(2), turned(30, scale=1.2)):
        options = ResampleOptions(kernel=kernel)
        image, got = resample(noise, transform, shape=shape, variance=var, options=options)
        expected = twin.variance(var, transform, shape, kernel)
        np.testing.assert_allclose(got, expected, rtol=2e-3)
        np.testing.assert_array_equal(np.isnan(image), np.isnan(got))


# --- invariants


@pytest.mark.parametrize("kernel", SEPARABLE)
@pytest.mark.parametrize("missing", [0.0, 0.02])
def test_copies(kernel, missing, noise):
    """Identity, whole-pixel shifts, quarter turns and reflections are copies, bit by bit."""
    image = holed(noise, missing)
    np.testing.assert_array_equal(resample(image, np.eye(2, 3), options=ResampleOptions(kernel=kernel)), image)
    moved = resample(image, [[1, 0, 3], [0, 1, -2]], options=ResampleOptions(kernel=kernel))
    np.testing.assert_array_equal(moved[2:, :-3], image[:-2, 3:])
    ny, nx = image.shape
    flips = {
        "180": ([[-1, 0, nx - 1], [0, -1, ny - 1]], image.shape, image[::-1, ::-1]),
        "90": ([[0, 1, 0], [-1, 0, ny - 1]], (nx, ny), np.rot90(image, -1)),
        "mirrored": ([[-1, 0, nx - 1], [0, 1, 0]], image.shape, image[:, ::-1]),
        "transposed": ([[0, 1, 0], [1, 0, 0]], (nx, ny), image.T),
    }
    for name, (matrix, shape, expected) in flips.items():
        got = resample(image, matrix, shape=shape, options=ResampleOptions(kernel=kernel))
        np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_tiling_gives_the_same_bits(kernel, noise, isa):
    """Random divisions of the output, each part from its own smallest section, with missing pixels."""
    rng = np.random.default_rng(4)
    image = holed(np.tile(noise, (2, 2)), 0.01)
    for transform in (
        turned(1.5),
        turned(181, scale=0.9995),
        turned(88, mirrored=True),
        turned(12, scale=1.3),
    ):
        whole = tile_of(image, transform, (0, 90, -7, 110), kernel)
        rows = [0, *sorted(rng.choice(np.arange(1, 90), 7, replace=False)), 90]
        columns = [-7, *sorted(rng.choice(np.arange(-6, 110), 6, replace=False)), 110]
        for y0, y1 in itertools.pairwise(rows):
            for x0, x1 in itertools.pairwise(columns):
                part = tile_of(image, transform, (int(y0), int(y1), int(x0), int(x1)), kernel)
                for plane, values in part.items():
                    bits = values.view({4: "u4", 2: "u2", 1: "u1"}[values.itemsize])
                    expected = whole[plane].view(bits.dtype)[y0:y1, x0 + 7 : x1 + 7]
                    np.testing.assert_array_equal(bits, expected, err_msg=f"{plane} {y0} {x0}")


@pytest.mark.parametrize("kernel", ["nearest", "lanczos3", "area"])
@pytest.mark.parametrize("name", ["0.2", "17", "slight cubic"])
@pytest.mark.parametrize("tile", [(0, 40, 0, 50), (3, 36, -34, 195), (-5, 5, 5, 69)])
def test_panels_hold_the_same(kernel, name, tile, noise):
    """Out and factor in panels of 64 columns, the frames of a row beside each other; nothing else is written."""
    image, options = holed(noise), ResampleOptions(kernel=kernel)
    plain = tile_of(image, MAPS[name], tile, kernel)
    ny, nx = plain["out"].shape
    panels = (ny, -(-nx // 64), 3, 64)
    out, factor = np.full(panels, -7, np.float32), np.full(panels, 99, np.uint8)
    values = {"out": out[:, :, 1], "factor": factor[:, :, 1]}
    resample_tile(image, (0, 0), image.shape, MAPS[name], tile, options=options, **values)
    for whole, one, rest in ((out, plain["out"], -7), (factor, plain["factor"], 99)):
        np.testing.assert_array_equal(whole[:, :, 1].reshape(ny, -1)[:, :nx], one)
        assert (whole[:, :, 1].reshape(ny, -1)[:, nx:] == rest).all()
        assert (whole[:, :, ::2] == rest).all()
    with pytest.raises(ValueError, match="panels"):
        resample_tile(image, (0, 0), image.shape, MAPS[name], tile, out=out[:, :, 1], factor=plain["factor"])


@pytest.mark.parametrize("kernel", ["lanczos3", "area"])
def test_sky_surface(kernel, noise):
    """What `background.render` draws is taken off, to the bit."""
    mesh = np.random.default_rng(3).normal(0, 10, (5, 12)).astype(np.float32)
    sky = Background(level=mesh, noise=np.zeros_like(mesh), shape=(80, 192), cell=(16, 16))
    tile, origin = (-6, 37, -3, 170), (-10, -8)
    out = tile_of(noise, MAPS["0.2"], tile, kernel, surface=(sky, origin))["out"]
    drawn = render(
        sky, (slice(tile[0] - origin[1], tile[1] - origin[1]), slice(tile[2] - origin[0], tile[3] - origin[0]))
    )
    np.testing.assert_array_equal(out, tile_of(noise, MAPS["0.2"], tile, kernel)["out"] - drawn)
    with pytest.raises(ValueError, match="beyond"):
        tile_of(noise, MAPS["0.2"], (-9, 37, -3, 170), kernel, surface=(sky, origin))


def test_missing_pixels_touch_their_neighbours_only(noise):
    """A pixel whose kernel holds no missing one has the same bits as without."""
    image = noise.copy()
    image[20, 25] = np.nan
    for transform in (turned(1), turned(20)):
        tile = (0, 40, 0, 50)
        whole, holed_ = (tile_of(pixels, transform, tile)["out"] for pixels in (noise, image))
        xy = transform(np.argwhere(np.ones(noise.shape))[:, ::-1]).reshape(*noise.shape, 2)
        far = np.abs(xy - [25, 20]).max(axis=-1) > 3.01
        np.testing.assert_array_equal(whole[far].view("u4"), holed_[far].view("u4"))
        assert np.isnan(holed_).sum() > np.isnan(whole).sum()


def test_instruction_sets_agree(noise, isa):
    """Every kernel on every level, against the lowest one."""
    from fastack import _pixels

    image = holed(100 + noise, 0.01)
    for kernel in KERNELS:
        for transform in (turned(1.5), turned(30, scale=1.1)):
            here = tile_of(image, transform, (0, 40, 0, 50), kernel)
            _pixels._choose_isa(_pixels.isa_levels()[0])
            lowest = tile_of(image, transform, (0, 40, 0, 50), kernel)
            _pixels._choose_isa(isa)
            np.testing.assert_allclose(here["out"], lowest["out"], rtol=1e-6)
            np.testing.assert_allclose(here["factor"], lowest["factor"], atol=1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("level", [1.0, 1000.0, 0.0])
def test_constant(kernel, level, isa):
    """A constant stays within 2 units in the last place, with missing pixels; zero stays zero."""
    image = holed(np.full((120, 130), level, np.float32), 0.02)
    for degrees in (0.5, 30):
        out = resample(image, turned(degrees), options=ResampleOptions(kernel=kernel))
        out = out[np.isfinite(out)]
        assert out.size > 5000
        assert np.abs(out - np.float32(level)).max() <= (2 * np.spacing(np.float32(level)) if level else 0)


def test_infinite_counts_as_missing(noise):
    bad, worse = noise.copy(), noise.copy()
    bad[10, 10], worse[10, 10] = np.nan, np.inf
    np.testing.assert_array_equal(resample(bad, turned(1)), resample(worse, turned(1)))


# --- flux and shape


@pytest.mark.parametrize("name", ["0.2", "2", "45", "90", "scale 0.5", "mirrored", "slight cubic"])
def test_stars(name):
    """Flux and shape of well-sampled stars: the exact image is the profile at the mapped place, times |J|."""
    transform = MAPS[name]
    at = np.array([[25.2, 20.4]])
    image = render_stars((60, 60), transform(at) + 5, 1000.0, fwhm=5.0, beta=6, pixel="sampled")
    moved = Transform.affine(np.c_[transform.matrix, transform([[0, 0]])[0] + 5]) if transform.order == 1 else None
    if moved is None:
        cx, cy = transform.cx.copy(), transform.cy.copy()
        cx[0] += 5
        cy[0] += 5
        moved = Transform(cx=cx, cy=cy, order=3, origin=transform.origin, scale=transform.scale)
    shape = (110, 110) if name == "scale 0.5" else (50, 55)
    out = resample(image, moved, shape=shape)
    xy = np.argwhere(np.ones(shape))[:, ::-1]
    dx, dy = (moved(xy) - moved(at)).T
    truth = (1000 * moffat(dx, dy, fwhm=5.0, beta=6) * np.abs(np.linalg.det(moved.jacobian(xy)))).reshape(shape)
    near_star = np.hypot(*(xy - at).T).reshape(shape) < 20
    assert np.nansum(out[near_star]) == pytest.approx(truth[near_star].sum(), rel=1e-4)
    # What the exact kernel makes of a cut through the star, at the worst phase, for either axis.
    x = np.linspace(-10, 10, 401)
    worst = 0.0
    for phase in np.linspace(0, 1, 21):
        pixels, w = twin.taps("lanczos3", phase)
        cut = moffat(x[:, None] + pixels - phase, np.zeros(1), fwhm=5.0, beta=6) @ w
        worst = max(worst, np.abs(cut - moffat(x, np.zeros(1), fwhm=5.0, beta=6)).max())
    bound = 2 * worst / moffat(0.0, 0.0, fwhm=5.0, beta=6)
    assert np.nanmax(np.abs(out - truth)[near_star]) < bound * truth.max()


@pytest.mark.parametrize("fwhm", [2.5, 4.0])
def test_width(fwhm):
    """Lanczos-3 widens a star of 2.5 px and more by less than 3 %, in the mean over the phases."""
    rng = np.random.default_rng(5)
    n = 60
    xy = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)[:n] * 40 + 30 + rng.random((n, 2))
    image = render_stars((340, 340), xy, 1.0, fwhm=fwhm, beta=4, pixel="sampled", radius=18)
    # Turned by a degree about the middle: every star at another phase of the grid.
    transform = turned(1, centre=(170, 170), shift=(0.3, 0.4))
    out, places = resample(image, transform), transform.inverse(xy)
    ratios = [width(out, after) / width(image, before) for before, after in zip(xy, places, strict=True)]
    assert np.mean(ratios) < 1.03


def width(image, at):
    """Width of a star from its second moments in a Gaussian window, the window taken out."""
    x, y = np.round(at).astype(int)
    stamp = image[y - 15 : y + 16, x - 15 : x + 16].astype(float)
    dy, dx = np.mgrid[-15:16, -15:16]
    sigma2 = 2.0**2  # a weighted second moment: insensitive to the wings
    weight = np.exp(-0.5 * ((dx - (at[0] - x)) ** 2 + (dy - (at[1] - y)) ** 2) / sigma2)
    r2 = (dx - (at[0] - x)) ** 2 + (dy - (at[1] - y)) ** 2
    moment = (weight * stamp * r2).sum() / (weight * stamp).sum() / 2
    return 1 / np.sqrt(1 / moment - 1 / sigma2)


# --- noise


@pytest.mark.parametrize(
    ("kernel", "sigma"),
    [
        ("nearest", 1.0),
        ("bilinear", 0.667),
        ("bicubic", 0.814),
        ("lanczos2", 0.818),
        ("lanczos3", 0.893),
        ("lanczos4", 0.914),
    ],
)
def test_noise_of_a_pixel(kernel, sigma):
    """Standard deviation of a pixel after resampling over before, in the mean over the phases."""
    rng = np.random.default_rng(6)
    image = rng.normal(size=(600, 600)).astype(np.float32)
    # 0.618 pixel from pixel to pixel: all phases alike
    transform = Transform.affine([[1.0, 0.00618, 0.1], [-0.00618, 1.0, 3.2]])
    planes = tile_of(image, transform, (20, 580, 20, 580), kernel)
    # Over 3e5 pixels, correlated over a few, the rms is good to 0.3 % (3 sigma); `factor` rounds by 0.2 %
    # more. The table gives the rms of sigma over the phases of both axes, which is the square of one axis'
    # mean.
    phases = (np.arange(64) + 0.5) / 64
    line = [np.sqrt(autocorrelation(kernel, p, 0.0).max()) for p in phases]
    assert np.mean(np.square(line)) == pytest.approx(sigma, abs=0.002)
    predicted = np.sqrt(planes["factor"].mean() / 255)
    assert np.std(planes["out"]) == pytest.approx(predicted, rel=0.006)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
def test_autocorrelation(kernel):
    """Covariance of neighbours, against 5e5 resampled pixels of white noise (4 sigma: 0.006)."""
    image = np.random.default_rng(7).normal(size=(720, 720)).astype(np.float32)
    transform = Transform.affine([[1.0, -0.01, 0.4], [0.01, 1.0, 0.7]])
    out = tile_of(image, transform, (10, 700, 10, 700), kernel)["out"].astype(float)
    phases = (np.arange(24) + 0.5) / 24  # which the transform takes evenly
    mean = np.mean([autocorrelation(kernel, x, y) for x in phases for y in phases], axis=0)
    middle = mean.shape[0] // 2
    for dy in range(min(3, middle + 1)):
        for dx in range(min(3, middle + 1)):
            got = np.mean(out[dy:, dx:] * out[: out.shape[0] - dy, : out.shape[1] - dx])
            assert got == pytest.approx(mean[middle + dy, middle + dx], abs=0.006)
    # interpolation keeps constants, and so the noise of a large sum
    assert mean.sum() == pytest.approx(1, abs=1e-9)


# --- saturation, window, edges


@pytest.mark.parametrize("name", ["0.2", "17", "90", "scale 0.5", "cubic"])
def test_saturated(name, noise):
    transform = MAPS[name]
    places = np.array([[20, 15], [21, 15], [30, 28], [400, 3]], np.int32)
    planes = tile_of(noise, transform, (0, 40, 0, 50), saturated=places)
    xy = transform(np.argwhere(np.ones((40, 50)))[:, ::-1])
    touched = np.zeros(len(xy), bool)
    for place in places[:3]:
        touched |= (np.abs(xy - place) < 1).all(axis=1)
    assert touched.sum() >= 3
    np.testing.assert_array_equal(planes["saturated_count"].ravel(), touched)
    np.testing.assert_array_equal((planes["flags"].ravel() & PixelFlag.SATURATED) != 0, touched)


def test_saturated_copy_is_one_pixel(noise):
    planes = tile_of(noise, Transform.identity(), (0, 40, 0, 50), saturated=np.array([[7, 9]], np.int32))
    assert np.argwhere(planes["saturated_count"]).tolist() == [[9, 7]]


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-180, 180),
    st.floats(0.4, 2.5),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from(KERNELS),
    st.tuples(st.integers(-20, 60), st.integers(1, 40), st.integers(-20, 60), st.integers(1, 60)),
)
def test_input_window_holds_all_that_counts(degrees, scale, mirrored, bend, kernel, place):
    """Brute force: no input pixel with weight lies outside of the window, and the window is not wasteful."""
    base = turned(degrees, scale=scale, mirrored=mirrored)
    transform = distorted(3, bend) if bend else base
    y0, x0 = place[0], place[2]
    tile = (y0, y0 + place[1], x0, x0 + place[3])
    shape = (60, 70)
    window = input_window(transform, tile, shape, ResampleOptions(kernel=kernel))
    border = [(x, y) for x in (x0, x0 + place[3] - 1) for y in range(tile[0], tile[1])]
    border += [(x, y) for y in (y0, y0 + place[1] - 1) for x in range(tile[2], tile[3])]
    middle = np.random.default_rng(1).uniform([x0, y0], [tile[3] - 1, tile[1] - 1], (20, 2)).round()
    for x, y in [*border[::3], *middle]:
        ys, xs, k = twin.weights(kernel, transform, x, y)
        j, i = np.nonzero(np.abs(k) > 1e-9)
        seen = (ys[j] >= 0) & (ys[j] < shape[0]) & (xs[i] >= 0) & (xs[i] < shape[1])
        if seen.any():
            assert window is not None
            assert window[0] <= ys[j][seen].min()
            assert ys[j][seen].max() < window[1]
            assert window[2] <= xs[i][seen].min()
            assert xs[i][seen].max() < window[3]


def test_no_overlap(noise):
    transform = turned(3, shift=(500, 0))
    assert input_window(transform, (0, 16, 0, 16), noise.shape) is None
    out = tile_of(noise, transform, (0, 16, 0, 16))["out"]
    assert np.isnan(out).all()
    for kernel in KERNELS:
        assert np.isnan(resample(noise, transform, options=ResampleOptions(kernel=kernel))).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_frames_smaller_than_the_kernel(kernel):
    for shape in ((1, 1), (2, 3), (1, 7)):
        image = np.ones(shape, np.float32)
        np.testing.assert_array_equal(resample(image, np.eye(2, 3), options=ResampleOptions(kernel=kernel)), image)
        out = resample(image, turned(10, centre=(0, 0), shift=(0.1, 0.1)), options=ResampleOptions(kernel=kernel))
        exact, _, _ = twin.resample(image, turned(10, centre=(0, 0), shift=(0.1, 0.1)), shape, kernel)
        np.testing.assert_allclose(out, exact, atol=1e-4)
    assert resample(np.ones((0, 5)), np.eye(2, 3)).shape == (0, 5)


def test_wild_maps(noise):
    """Maps that leave the frame at once, fold or blow up give NaN or numbers, never a crash."""
    for matrix in (
        [[1e7, 0, 0], [0, 1e7, 0]],
        [[1e-6, 0, 20], [0, 1e-6, 20]],
        [[0, 0, 5], [0, 0, 5]],
        [[1, 0, 1e12], [0, 1, 0]],
    ):
        for kernel in KERNELS:
            assert resample(noise, matrix, options=ResampleOptions(kernel=kernel)).shape == noise.shape
    assert resample(noise, distorted(3, 1e6)).shape == noise.shape


# --- the Python layer


def test_any_array(noise):
    expected = resample(noise, turned(1))
    masked = np.ma.array(noise, mask=np.zeros(noise.shape, bool))
    masked[5, 5] = np.ma.masked
    for values in (noise.tolist(), noise.astype(">f8"), np.asfortranarray(noise), noise[::1]):
        np.testing.assert_array_equal(resample(values, turned(1)), expected)
    hole = noise.copy()
    hole[5, 5] = np.nan
    np.testing.assert_array_equal(resample(masked, turned(1)), resample(hole, turned(1)))


def test_errors(noise):
    with pytest.raises(ValueError, match="two dimensions"):
        resample(noise[0], turned(1))
    with pytest.raises(ValueError, match="2, 3"):
        resample(noise, np.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        resample(noise, [[1, 0, np.nan], [0, 1, 0]])
    with pytest.raises(ValueError, match="unknown kernel"):
        resample(noise, turned(1), options=ResampleOptions(kernel="sinc"))
    out = np.empty((16, 16), np.float32)
    with pytest.raises(ValueError, match="input window"):
        resample_tile(noise[:10].copy(), (0, 0), noise.shape, turned(1), (0, 16, 0, 16), out=out)
    with pytest.raises(ValueError, match="tile's shape"):
        resample_tile(noise, (0, 0), noise.shape, turned(1), (0, 16, 0, 17), out=out)
    with pytest.raises(TypeError):
        resample_tile(noise.astype(float), (0, 0), noise.shape, turned(1), (0, 16, 0, 16), out=out)
