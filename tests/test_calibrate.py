"""Calibration: the kernel against its twin, sections against the whole, masters against what was rendered."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from reference import calibrate as twin

from fastack import _pixels
from fastack.calibrate import Calibration, decode
from fastack.errors import CalibrationError, FrameError, OutputError
from fastack.executor import Executor
from fastack.files import find_frames
from fastack.frames import open_frame
from fastack.load_calibration import load_calibration
from fastack.make_master import make_master
from fastack.options import CalibrateOptions
from fastack.simulate import NightOptions, simulate_night
from fastack.storage import Plane, Store, failed

SCALES = [(1, 0, None), (1, 32768, None), (2.5, -7.25, None), (-1, 100, None), (1, 0, 3), (0.5, 1e6, -1)]


def random_image(bitpix, shape, seed):
    rng = np.random.default_rng(seed)
    if bitpix < 0:
        image = rng.normal(1000, 300, shape) * 10.0 ** rng.integers(-3, 4, shape)
        image[rng.random(shape) < 0.02] = np.nan
        image[0, 0] = np.inf
        return image
    low, high = (0, 255) if bitpix == 8 else (-(2 ** (bitpix - 1)), 2 ** (bitpix - 1) - 1)
    image = rng.integers(low, high, shape, endpoint=True, dtype=np.int64)
    image[rng.random(shape) < 0.05] = 3
    return image


def same_bits(a, b):
    return np.array_equal(np.ascontiguousarray(a).view("u4"), np.ascontiguousarray(b).view("u4"))


# ---- the kernel


@pytest.mark.parametrize("bitpix", [8, 16, 32, 64, -32, -64])
@pytest.mark.parametrize(("bscale", "bzero", "blank"), SCALES)
def test_decode_is_the_twin_rounded_once(isa, bitpix, bscale, bzero, blank):
    raw = twin.stored(random_image(bitpix, (7, 619), 1), bitpix)  # more than one block and a remainder
    expected, _ = twin.calibrate(raw, bitpix, bscale, bzero, blank)
    pixels = decode(raw, bitpix, bscale, bzero, blank)
    # a fused multiply-add rounds once less than the twin: half a step of double precision, far below one of
    # single
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(pixels, expected.astype(np.float32), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("bitpix", [8, 16, 32, 64, -32, -64])
def test_decode_against_astropy(tmp_path, bitpix):
    data = random_image(bitpix, (9, 33), 5)
    if bitpix < 0:
        data[0, 0] = 1.0
    hdu = fits.PrimaryHDU(np.zeros((9, 33), twin.FITS_TYPES[bitpix]))
    hdu.writeto(tmp_path / "a.fits")
    with open(tmp_path / "a.fits", "r+b") as file:
        file.seek(2880)
        file.write(twin.stored(data, bitpix).tobytes())
    with fits.open(tmp_path / "a.fits", "update", do_not_scale_image_data=True) as file:
        file[0].header["BSCALE"], file[0].header["BZERO"] = 1.5, 12.0
        if bitpix > 0:
            file[0].header["BLANK"] = 3
    frame = open_frame(tmp_path / "a.fits")
    pixels = Calibration().read(frame).pixels
    with np.errstate(over="ignore"):
        expected = fits.getdata(tmp_path / "a.fits").astype(np.float32)
    assert np.isnan(pixels).any()
    # astropy scales 8 and 16 bits in single precision: a step of each operation
    np.testing.assert_allclose(pixels, expected, rtol=3e-7)


@pytest.mark.parametrize(
    ("ny", "nx", "first", "stride"), [(7, 64, 0, 64), (300, 3000, 10, 3100), (60, 5000, 33, 30000), (2, 9, 1, 700_000)]
)
def test_rows_of_a_file_are_like_rows_in_memory(tmp_path, ny: int, nx: int, first: int, stride: int) -> None:
    """Whole rows, cut ones, a small part of each, rows longer than what is read at once; with masters."""
    rng = np.random.default_rng(ny)
    data = rng.integers(0, 256, first + ny * stride, dtype=np.uint8)
    path = tmp_path / "rows"
    path.write_bytes(data[: first + (ny - 1) * stride + nx].tobytes())  # the last row ends the file
    masters = {
        "level": rng.normal(100, 5, ny + 4), "bias": rng.normal(9, 1, (ny + 4, nx)).astype(np.float32),
        "inv_flat": rng.normal(1, 0.1, (ny + 4, nx)).astype(np.float32), "y0": 3, "saturation": 250.0,
    }  # fmt: skip
    made = []
    with path.open("rb") as file:
        rows = np.lib.stride_tricks.as_strided(data[first:], (ny, nx), (stride, 1))
        for raw in (rows, _pixels.RowFile(file.fileno(), first, stride, ny, nx)):
            out = np.empty((ny, nx), np.float32)
            made.append((out, _pixels.calibrate(out, raw, bitpix=8, **masters)))
    np.testing.assert_array_equal(made[1][0], made[0][0])
    np.testing.assert_array_equal(made[1][1], made[0][1])


def test_a_file_that_shrinks_or_fails_while_it_is_read_is_named(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.zeros((2000, 700), np.int16)).writeto(path)
    frame = open_frame(path)
    cut = frame.plane.offset + 1_500_000
    monkeypatch.setattr(Plane, "check", lambda *_: None)  # as if it shrank only then
    os.truncate(path, cut)
    with pytest.raises(FrameError, match=rf"a\.fits: truncated: {cut} of \d+ bytes"):
        Calibration().read(frame)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError) as caught:
            _pixels.calibrate(np.empty((1, 4), np.float32), _pixels.RowFile(directory, 0, 4, 1, 4), bitpix=8)
    finally:
        os.close(directory)
    assert "a.fits: is a directory" in str(failed(Path("a.fits"), caught.value))


@pytest.mark.parametrize("bitpix", [8, 16, 32, -32, -64])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("masters", ["", "b", "d", "bd", "f", "bf", "df", "bdf"])
def test_all_steps_against_the_twin(isa, bitpix, exact, masters):
    rng = np.random.default_rng(len(masters))
    ny, nx = 5, 533
    image = rng.integers(0, 255 if bitpix == 8 else 30000, (ny, nx))
    raw = twin.stored(image, bitpix)
    arrays = {
        "bias": rng.normal(300, 5, (ny, nx)).astype(np.float32) if "b" in masters else None,
        "dark": rng.normal(20, 5, (ny, nx)).astype(np.float32) if "d" in masters else None,
        "inv_flat": rng.uniform(0.5, 2, (ny, nx)).astype(np.float32) if "f" in masters else None,
    }
    level = rng.normal(1000, 2, ny)
    bzero = 0.5 if exact else 0.0
    out = np.empty((ny, nx), np.float32)
    limit = 250 if bitpix == 8 else 29000
    found = _pixels.calibrate(
        out, raw, bitpix=bitpix, bzero=bzero, saturation=limit, level=level, dark_scale=1.75, **arrays
    )
    given = {k: v for k, v in arrays.items() if v is not None}
    expected, saturated = twin.calibrate(raw, bitpix, 1, bzero, level=level, dark_scale=1.75, saturation=limit, **given)
    # four single-precision operations on terms up to 31000 ADU, each good to half of 2^-23
    np.testing.assert_allclose(out, expected, rtol=0, atol=4 * 31000 * 2**-24 * 2)
    np.testing.assert_array_equal(found, saturated)
    assert len(saturated) > 5


def test_integers_beyond_single_precision_lose_nothing_before_the_end(isa):
    image = np.array([[2**30 + 1, 2**30 + 3, -(2**31), 2**31 - 1]])
    out = np.empty((1, 4), np.float32)
    _pixels.calibrate(out, twin.stored(image, 32), bitpix=32, level=np.array([2.0**30]))
    np.testing.assert_array_equal(out[0, :2], [1, 3])
    _pixels.calibrate(out, twin.stored(image * 2**20 + 5, 64), bitpix=64, level=np.array([2.0**50]))
    np.testing.assert_array_equal(out[0, :2], [2**20 + 5, 3 * 2**20 + 5])


@pytest.mark.parametrize("bitpix", [16, -32])
def test_saturation_is_tested_on_the_raw_level(isa, bitpix):
    raw = twin.stored(np.array([[4094, 4095, 4096, 10]]), bitpix)
    out = np.empty((1, 4), np.float32)
    for limit, count in ((4095, 2), (4094.5, 2), (4095.0000001, 1), (4096, 1), (4097, 0), (np.inf, 0)):
        found = _pixels.calibrate(
            out,
            raw,
            bitpix=bitpix,
            saturation=limit,
            level=np.array([1000.0]),
            inv_flat=np.full((1, 4), 9, "f4"),
        )
        assert len(found) == count, limit


def test_blank_is_not_saturated_and_nan_stays(isa):
    raw = twin.stored(np.array([[32767, 5, 32766]]), 16)
    out = np.empty((1, 3), np.float32)
    found = _pixels.calibrate(out, raw, bitpix=16, blank=32767, saturation=32766)
    assert np.isnan(out[0, 0])
    np.testing.assert_array_equal(found, [[2, 0]])
    assert np.isnan(decode(twin.stored([[np.nan]], -64), -64)).all()
    assert decode(twin.stored([[0]], 16), 16)[0, 0] == 0


def test_shape_errors():
    out = np.empty((2, 3), np.float32)
    raw = np.zeros((2, 6), np.uint8)
    for change, message in (
        ({"raw": np.zeros((2, 5), np.uint8)}, "out needs 2 of 6"),
        ({"bitpix": 12}, "BITPIX is 12"),
        ({"bias": np.zeros((2, 2), np.float32)}, "outside of bias"),
        ({"level": np.zeros(1)}, "outside of level"),
        ({"bias": np.zeros((2, 3), np.float32), "y0": 1}, "outside of bias"),
    ):
        with pytest.raises(ValueError, match=message):
            _pixels.calibrate(out, **({"raw": raw, "bitpix": 16} | change))
    with pytest.raises(TypeError):
        _pixels.calibrate(out.astype(float), raw, bitpix=16)
    with pytest.raises(ValueError, match="1 dimensions"):
        decode(np.zeros(6, np.uint8), 16)


# ---- frames with overscan, written by the test


NY, NX = 200, 180
LIGHT, OVERSCAN = 150, (155, 180)


def make_frame(path, light, level, rng, cards=(), noise=3.0, **kwargs):
    """Write a uint16 frame: light area at 0 to 150, overscan at 155 to 180, `level` under each row."""
    image = np.empty((NY, NX))
    image[:] = np.reshape(level, (-1, 1))
    image[:, :LIGHT] += light
    image += rng.normal(0, noise, image.shape)
    header = fits.Header([("TRIMSEC", f"[1:{LIGHT},1:{NY}]"), ("BIASSEC", f"[{OVERSCAN[0] + 1}:{OVERSCAN[1]},1:{NY}]")])
    header.extend(fits.Header(list(cards)))
    data = np.clip(np.round(image), 0, 65535).astype(np.uint16)
    fits.PrimaryHDU(data, header).writeto(path, **kwargs)
    return open_frame(path)


@pytest.fixture
def level():
    """Level of a readout that starts low and then drifts, as CCD controllers do."""
    y = np.arange(NY)
    return 1600 - 900 * np.exp(-y / 3.0) + 0.004 * y


@pytest.fixture
def masters(tmp_path, level):
    """Write a night of calibration frames with known truth, and a light frame."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0:NY, 0:LIGHT]
    truth = {
        "bias": 20 * np.sin(x / 9.0),
        "dark": rng.gamma(1.0, 5.0, (NY, LIGHT)),
        "flat": 1 - 0.3 * ((x - 75) ** 2 + (y - 100) ** 2) / 14000,
    }
    truth["flat"][50, 60], truth["flat"][:, 140] = 0, 0.01
    truth["flat"] /= np.median(truth["flat"])
    for i in range(9):
        make_frame(tmp_path / f"b{i}.fits", truth["bias"], level, rng, [("IMAGETYP", "bias"), ("EXPTIME", 0.0)])
        make_frame(
            tmp_path / f"k{i}.fits",
            truth["bias"] + truth["dark"],
            level,
            rng,
            [("IMAGETYP", "dark"), ("EXPTIME", 100.0)],
        )
        sky = 15000 + 2500 * i
        cards = [("IMAGETYP", "flat"), ("FILTER", "R"), ("EXPTIME", 2.0)]
        light = truth["bias"] + 0.02 * truth["dark"] + rng.poisson(sky * truth["flat"])
        make_frame(tmp_path / f"f{i}.fits", light, level, rng, cards)
    sky = truth["bias"] + 3 * truth["dark"] + 2000 * truth["flat"]
    cards = [("FILTER", "R"), ("EXPTIME", 300.0), ("IMAGETYP", "light")]
    light = make_frame(tmp_path / "d1.fits", sky, level, rng, cards)
    return tmp_path, truth, light


def options(path, **changes):
    values = {"bias": f"{path}/b*.fits", "dark": f"{path}/k*.fits", "flat": f"{path}/f*.fits"} | changes
    return CalibrateOptions(**values)


def test_a_flat_sky_comes_out_flat(masters):
    path, truth, light = masters
    calibration = load_calibration([light], options(path))
    section = calibration.read(light)
    good = truth["flat"] > 0.5
    assert np.isnan(section.pixels[truth["flat"] <= 0.05]).all()
    residual = (section.pixels - 2000)[good]
    # read noise and rounding; bias B and darks K of 9 frames each enter as light + 2 B - 3 K
    read = 9 + 1 / 12
    detector = read * (1 + 4 / 9 + 9 / 9) / truth["flat"][good] ** 2
    sigma = np.sqrt(detector + 2000**2 / (9 * 25000 * truth["flat"][good]))
    later = np.broadcast_to(np.arange(NY)[:, None] >= 30, good.shape)[good]  # the start's rows: see below
    assert np.std((residual / sigma)[later]) == pytest.approx(1, abs=0.03)
    # level: 3/sqrt(25 * 200) of light, biases and darks; median of the flat: 1.25 * 0.2 % / sqrt(30000)
    assert abs(np.mean(residual)) < 4 * np.sqrt(0.042**2 * (1 + 4 / 9 + 1) + (2000 * 1.25 * 0.002 / 173) ** 2)


def test_masters_are_what_was_rendered(masters):
    path, truth, _ = masters
    bias = make_master("bias", [open_frame(p) for p in find_frames([f"{path}/b*.fits"])])
    for name, pixels, variance in (("bias", bias.pixels, bias.variance),):
        pull = (pixels - truth[name]) / np.sqrt(variance)
        # rows of the start-up carry the noise of their own overscan mean in addition
        assert np.std(pull[20:]) == pytest.approx(1, abs=0.05)
        assert abs(np.mean(pull)) < 0.15
    flats = [open_frame(p) for p in find_frames([f"{path}/f*.fits"])]
    flat = make_master("flat", flats, bias=bias)
    good = truth["flat"] > 0.5
    pull = (flat.pixels - truth["flat"])[good] / np.sqrt(flat.variance[good])
    assert np.std(pull) == pytest.approx(1, abs=0.06)
    assert np.nanmedian(flat.pixels) == pytest.approx(1, abs=1e-6)
    assert flat.header["NCOMBINE"] == 9
    assert flat.header["FILTER"] == "R"


def test_a_cosmic_ray_does_not_reach_the_master(masters, level):
    path, truth, _ = masters
    light = np.array(truth["bias"])
    light[30:33, 40] += 5000
    make_frame(path / "b4.fits", light, level, np.random.default_rng(5), [("IMAGETYP", "bias")], overwrite=True)
    frames = [open_frame(p) for p in find_frames([f"{path}/b*.fits"])]
    master = make_master("bias", frames)
    assert np.abs(master.pixels[30:33, 40] - truth["bias"][30:33, 40]).max() < 5 * 3 / np.sqrt(8)


def test_clipped_mean_against_the_twin():
    from fastack.make_master import _clipped_mean

    cube = np.random.default_rng(3).normal(100, 5, (7, 16, 40)).astype(np.float32)
    cube[2, 3, 4] = 1e4
    mean, variance = _clipped_mean(cube, 5.0, photon_noise=False)
    np.testing.assert_allclose(mean, twin.clipped_mean(cube.astype(float), 5.0), rtol=1e-6)
    # sigma of a frame from the MAD of 640 pixels: 1.17/sqrt(640) = 4.6 %; the variance of 7 frames: 2 * 4.6 %
    # / sqrt(7)
    assert np.median(variance) == pytest.approx(25 / 7, rel=4 * 0.035)
    cube[:, 0, 0] = np.nan
    assert np.isnan(_clipped_mean(cube, 5.0, photon_noise=False)[0][0, 0])


@pytest.mark.parametrize("suffix", ["", ".gz", ".fz"])
def test_sections_equal_the_whole(masters, isa, suffix):
    path, _, light = masters
    if suffix == ".gz":
        import gzip

        (path / "x.fits.gz").write_bytes(gzip.compress(light.path.read_bytes()))
        light = open_frame(path / "x.fits.gz")
    if suffix == ".fz":
        with fits.open(light.path) as file:
            packed = fits.CompImageHDU(file[0].data, file[0].header, compression_type="RICE_1")
            fits.HDUList([fits.PrimaryHDU(), packed]).writeto(path / "x.fits.fz")
        light = open_frame(path / "x.fits.fz")
    calibration = load_calibration([light], options(path, saturation=3500.0))
    light = open_frame(light.path, options=CalibrateOptions(saturation=3500.0))
    calibration = pickle.loads(pickle.dumps(calibration))
    whole = calibration.read(light)
    assert whole.n_saturated > 100
    rng = np.random.default_rng(1)
    for memory in (10**9, 0):  # in memory; in a scratch file
        store = Store(memory)
        prepared = calibration.prepare(light, store)
        windows = [(0, 1, 0, 1), (199, 200, 149, 150), (50, 50, 3, 9), (0, 200, 0, 150)]
        windows += [(*sorted(rng.integers(0, 201, 2)), *sorted(rng.integers(0, 151, 2))) for _ in range(20)]
        for y0, y1, x0, x1 in windows:
            part = calibration.read(light, (y0, y1, x0, x1), prepared)
            assert same_bits(part.pixels, whole.pixels[y0:y1, x0:x1])
            room = np.full((y1 - y0, x1 - x0), np.float32(7))
            assert calibration.read(light, (y0, y1, x0, x1), prepared, out=room).pixels is room
            assert same_bits(room, part.pixels)
            x, y = whole.saturated.T
            inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
            np.testing.assert_array_equal(part.saturated, whole.saturated[inside])
        sent = pickle.loads(pickle.dumps(prepared))
        assert same_bits(calibration.read(light, (3, 90, 5, 77), sent).pixels, whole.pixels[3:90, 5:77])
        store.close()
    with pytest.raises(ValueError, match="outside of a frame"):
        calibration.read(light, (0, 201, 0, 10))
    for room in (np.empty((9, 8), np.float32), np.empty((8, 9)), np.empty((9, 8), np.float32).T):
        with pytest.raises(ValueError, match="out must be"):
            calibration.read(light, (0, 8, 0, 9), out=room)
    if suffix:
        with pytest.raises(OutputError, match="--scratch"):
            calibration.prepare(light, Store(scratch=path / "absent"))


def test_threads_share_a_calibration(masters):
    path, _, light = masters
    calibration = load_calibration([light], options(path))
    prepared = calibration.prepare(light)
    windows = [(y, y + 20, x, x + 30) for y in range(0, 180, 7) for x in range(0, 120, 11)]
    whole = calibration.read(light).pixels
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda w: calibration.read(light, w, prepared).pixels, windows))
    for (y0, y1, x0, x1), part in zip(windows, parts, strict=True):
        assert same_bits(part, whole[y0:y1, x0:x1])


def test_narrow_windows_of_a_wide_frame(tmp_path):
    data = np.arange(6 * 20000, dtype=np.int32).reshape(6, 20000)
    fits.PrimaryHDU(data).writeto(tmp_path / "wide.fits")
    frame = open_frame(tmp_path / "wide.fits")
    part = Calibration().read(frame, (1, 5, 7001, 8500)).pixels
    np.testing.assert_array_equal(part, data[1:5, 7001:8500])


def test_overscan_follows_a_start_and_smooths_the_rest(masters, level):
    _, _, light = masters
    error = Calibration().prepare(light).level - level
    row = 3 / np.sqrt(25)  # noise of one row's own mean
    assert np.std(error[40:]) < 0.4 * row
    assert np.abs(error[40:].mean()) < 4 * row / np.sqrt(160)
    # a window is at most 2 (1 + 1/sqrt(3)) sigmas from the row's own mean; that errs by 3.5 in 200 rows
    assert np.abs(error).max() < (2 * (1 + 1 / np.sqrt(3)) + 3.5) * row


def test_overscan_above_the_light_area_is_one_level(tmp_path):
    rng = np.random.default_rng(2)
    data = rng.normal(500, 4, (60, 80))
    data[:50] += 100
    data[55, 3] = 60000  # a cosmic ray in the overscan
    cards = fits.Header([("TRIMSEC", "[1:80,1:50]"), ("BIASSEC", "[1:80,51:60]")])
    fits.PrimaryHDU(data.astype(np.float32), cards).writeto(tmp_path / "a.fits")
    frame = open_frame(tmp_path / "a.fits")
    level = Calibration().prepare(frame).level
    assert np.ptp(level) == 0
    assert level[0] == pytest.approx(500, abs=4 * 4 / np.sqrt(800))
    assert np.mean(Calibration().read(frame).pixels) == pytest.approx(100, abs=1)


def test_masks_and_weights_become_missing(tmp_path):
    data = np.full((10, 12), 50.0, np.float32)
    mask = np.zeros((10, 12), np.uint8)
    mask[2, 3] = 4
    variance = np.full((10, 12), 9.0, np.float32)
    variance[7, 8] = np.nan
    weight = np.ones((10, 12), np.float32)
    weight[5, 5] = 0
    units = [fits.PrimaryHDU(data), fits.ImageHDU(mask, name="MASK"), fits.ImageHDU(variance, name="VAR")]
    fits.HDUList(units).writeto(tmp_path / "a.fits")
    fits.PrimaryHDU(weight).writeto(tmp_path / "a.weight.fits")
    section = Calibration().read(open_frame(tmp_path / "a.fits"))
    np.testing.assert_array_equal(np.argwhere(np.isnan(section.pixels)), [[2, 3], [5, 5], [7, 8]])
    assert section.variance[0, 0] == 9


# ---- masters that do not fit


def test_flat_of_the_wrong_size_names_both(masters):
    path, _, light = masters
    fits.PrimaryHDU(np.ones((100, 90), np.float32)).writeto(path / "small.fits")
    with pytest.raises(CalibrationError, match=r"90 x 100 pixels, the frames 150 x 200.*--no-flat"):
        load_calibration([light], options(path, flat=str(path / "small.fits")))


def test_flat_of_the_wrong_filter_names_both(masters):
    path, _, light = masters
    header = fits.Header([("FILTER", "V")])
    fits.PrimaryHDU(np.ones((NY, LIGHT), np.float32), header).writeto(path / "v.fits")
    with pytest.raises(CalibrationError, match="'V', the frames' is 'R'"):
        load_calibration([light], options(path, flat=str(path / "v.fits")))
    header["FILTER"] = ("r ", "small letters")
    fits.PrimaryHDU(np.ones((NY, LIGHT), np.float32), header).writeto(path / "r.fits")
    load_calibration([light], options(path, flat=str(path / "r.fits")))


def test_flat_beside_the_frames(masters):
    path, truth, light = masters
    flat = (truth["flat"] * 20000).astype(np.float32)
    flat[9, 9] = np.nan
    fits.PrimaryHDU(flat).writeto(path / "master_flat.fits")
    calibration = load_calibration([light])
    notes = " ".join(calibration.notes)
    assert "master_flat.fits lies beside the frames" in notes
    assert "filter is unknown" in notes
    assert "divided by its median" in notes
    assert calibration.bad[9, 9]
    assert calibration.bad[50, 60]
    assert calibration.bad[:, 140].all()
    assert calibration.bad.sum() == NY + 2
    assert np.nanmedian(calibration.inv_flat) == pytest.approx(1, rel=1e-3)
    assert load_calibration([light], CalibrateOptions(no_flat=True)).inv_flat is None


@pytest.mark.parametrize(("level", "scale"), [(1.03, 1.0), (0.9, 0.9)])
def test_flats_near_one_are_left_alone(masters, level, scale):
    path, _, light = masters
    fits.PrimaryHDU(np.full((NY, LIGHT), level, np.float32)).writeto(path / "flat.fits")
    calibration = load_calibration([light], CalibrateOptions(flat=str(path / "flat.fits")))
    np.testing.assert_allclose(calibration.inv_flat, scale / level, rtol=1e-6)


def test_untrimmed_master_is_cut(masters):
    path, truth, light = masters
    whole = np.ones((NY, NX), np.float32)
    whole[:, :LIGHT] = truth["flat"]
    fits.PrimaryHDU(whole).writeto(path / "flat.fits")
    calibration = load_calibration([light], CalibrateOptions(flat=str(path / "flat.fits")))
    good = truth["flat"] > 0.5
    np.testing.assert_allclose((1 / calibration.inv_flat)[good], truth["flat"][good], rtol=1e-6)


def test_a_frame_that_the_masters_do_not_fit_is_refused_alone(masters):
    path, _, light = masters
    calibration = load_calibration([light, light], options(path))
    other = make_frame(path / "o.fits", 5, 10, np.random.default_rng(1), [("FILTER", "B"), ("EXPTIME", 300.0)])
    with pytest.raises(CalibrationError, match=r"o.fits: filter 'B', the flat's is 'R'"):
        calibration.prepare(other)


def test_dark_without_bias_is_never_scaled(masters):
    path, _, light = masters
    with pytest.raises(CalibrationError, match="exposure 300 s, the dark's is 100 s"):
        load_calibration([light], options(path, bias=None, flat=None))


def test_master_bias_that_holds_the_level(masters, level):
    path, truth, light = masters
    full = np.repeat(level[:, None], LIGHT, axis=1) + truth["bias"]
    fits.PrimaryHDU(full.astype(np.float32)).writeto(path / "master_bias.fits")
    calibration = load_calibration([light], CalibrateOptions(bias=str(path / "master_bias.fits")))
    assert not calibration.use_overscan
    good = truth["flat"] > 0.5
    expected = 3 * truth["dark"] + 2000 * truth["flat"]
    assert abs(np.mean((calibration.read(light).pixels - expected)[good])) < 0.1


def test_calibration_frames_are_refused_by_name(masters, level):
    path, truth, _ = masters
    rng = np.random.default_rng(4)
    flat = truth["flat"] * 20000
    odd = {
        "v": [("IMAGETYP", "flat"), ("FILTER", "V")],
        "dark": [("IMAGETYP", "dark"), ("FILTER", "R")],
        "binned": [("IMAGETYP", "flat"), ("FILTER", "R"), ("CCDSUM", "2 2")],
    }
    frames = [open_frame(p) for p in find_frames([f"{path}/f*.fits"])]
    for frame in frames:
        with fits.open(frame.path, "update") as file:
            file[0].header["CCDSUM"] = "1 1"
    frames = [open_frame(frame.path) for frame in frames]
    frames += [make_frame(path / f"{name}.fits", flat, level, rng, cards) for name, cards in odd.items()]
    fits.PrimaryHDU(np.ones((5, 5), np.float32)).writeto(path / "size.fits")
    frames.append(open_frame(path / "size.fits"))
    cards = [("IMAGETYP", "flat"), ("FILTER", "R"), ("CCDSUM", "1 1")]
    frames.append(make_frame(path / "dim.fits", -50, level, rng, cards))
    frames.append(make_frame(path / "full.fits", 64000, level, rng, cards))
    master = make_master("flat", frames)
    reasons = dict(master.refused)
    assert "filter 'V', not 'R'" in reasons["v.fits"]
    assert "says dark" in reasons["dark.fits"]
    assert "binning 2 x 2, not 1 x 1" in reasons["binned.fits"]
    assert "size 5 x 5, not 150 x 200" in reasons["size.fits"]
    assert "no light" in reasons["dim.fits"]
    assert "saturated" in reasons["full.fits"]
    assert len(master.used) == 9


def test_darks_of_another_exposure_or_temperature(masters, level):
    path, _truth, _ = masters
    rng = np.random.default_rng(4)
    base = [("IMAGETYP", "dark"), ("CCD-TEMP", -10.0)]
    frames = [make_frame(path / f"x{i}.fits", 5, level, rng, [*base, ("EXPTIME", 60.0)]) for i in range(3)]
    frames.append(make_frame(path / "long.fits", 5, level, rng, [*base, ("EXPTIME", 90.0)]))
    warm = [("IMAGETYP", "dark"), ("EXPTIME", 60.0), ("CCD-TEMP", 5.0)]
    frames.append(make_frame(path / "warm.fits", 5, level, rng, warm))
    master = make_master("dark", frames)
    assert dict(master.refused) == {
        "long.fits": "exposure 90 s, not 60 s",
        "warm.fits": "temperature 5 C, the median is -10 C",
    }
    assert master.header["EXPTIME"] == 60
    with pytest.raises(CalibrationError, match=r"x0.fits: its header says dark.*leave --bias out"):
        make_master("bias", frames[:3])
    with pytest.raises(ValueError, match="kind is"):
        make_master("sky", frames)


def test_pile_up_tells_the_saturation_level(tmp_path):
    rng = np.random.default_rng(8)
    frames = []
    for i in range(5):
        data = rng.normal(350, 10, (100, 100))
        data[rng.integers(0, 100, 30), rng.integers(0, 100, 30)] = 9000
        fits.PrimaryHDU(np.minimum(data, 4095).astype(np.int16)).writeto(tmp_path / f"d{i}.fits")
        frames.append(open_frame(tmp_path / f"d{i}.fits"))
    calibration = load_calibration(frames)
    with Executor(3) as executor:
        assert load_calibration(frames, executor=executor).saturation == calibration.saturation
    assert calibration.saturation_of(frames[0]) == 4095
    assert calibration.read(frames[0]).n_saturated == int(np.sum(fits.getdata(frames[0].path) == 4095))
    told = open_frame(tmp_path / "d0.fits", options=CalibrateOptions(saturation=4000.0))
    assert calibration.saturation_of(told) == 4000
    clean = [rng.normal(350, 10, (100, 100)).astype(np.int16) for _ in range(3)]
    for i, data in enumerate(clean):
        data[5, 5] = 5000 + i
        fits.PrimaryHDU(data).writeto(tmp_path / f"c{i}.fits")
    assert load_calibration([open_frame(tmp_path / f"c{i}.fits") for i in range(3)]).saturation is None


def edged(path, name, rng, *, defect):
    """A vignetted frame of 300 x 280 px with a gradient; with dark first rows and an empty last column on demand."""
    y, x = np.mgrid[:300, :280]
    data = rng.normal(1000 * (1 - 2e-6 * ((x - 140) ** 2 + (y - 150) ** 2)) + 0.1 * x, 8)
    if defect:
        data[:9] -= 200 * np.exp(-np.arange(9) / 3.0)[:, None]
        data[:, -2:] = 0
    fits.PrimaryHDU(np.rint(data).astype(np.int16)).writeto(path / name)
    return open_frame(path / name)


def test_lines_at_the_edge_that_do_not_show_the_sky(tmp_path):
    rng = np.random.default_rng(9)
    frames = [edged(tmp_path, f"d{i}.fits", rng, defect=True) for i in range(4)]
    calibration = load_calibration(frames)
    # the ninth row is off by 200 exp(-8/3) = 14 ADU, nearly two sigmas; a line counts from half a sigma on
    assert calibration.edges == (9, 0, 0, 2)
    with Executor(3) as executor:
        assert load_calibration(frames, executor=executor).edges == calibration.edges
    pixels = calibration.read(frames[0]).pixels
    assert np.isnan(pixels[:9]).all() and np.isnan(pixels[:, -2:]).all() and np.isfinite(pixels[9:, :-2]).all()
    np.testing.assert_array_equal(calibration.read(frames[0], (3, 40, 250, 280)).pixels, pixels[3:40, 250:])
    assert sum("--keep-edges" in note for note in calibration.notes) == 2
    assert load_calibration(frames, CalibrateOptions(keep_edges=True)).edges == (0, 0, 0, 0)


def test_gradients_and_vignetting_are_no_edges(tmp_path):
    rng = np.random.default_rng(10)
    frames = [edged(tmp_path, f"d{i}.fits", rng, defect=False) for i in range(4)]
    assert load_calibration(frames).edges == (0, 0, 0, 0)


def test_a_file_that_vanishes_between_the_passes(masters):
    _path, _, light = masters
    calibration = load_calibration([light])
    prepared = calibration.prepare(light)
    light.path.unlink()
    with pytest.raises(FrameError, match="no such file"):
        calibration.read(light, (0, 5, 0, 5), prepared)


# ---- real frames


@pytest.mark.real
def test_lowell_sky_is_even(data_root):
    night = data_root / "lowell_night"
    frames = [open_frame(path) for path in find_frames([night / "light"])]
    calibration = load_calibration(frames, CalibrateOptions(bias=str(night / "bias"), flat=str(night / "flat")))
    assert "flat: 20190326.0100.fits.fz left out: filter 'V', not 'VR'" in calibration.notes
    assert "flat: 4 frames" in calibration.notes
    for frame in (frames[0], frames[4], frames[12]):  # twilight, dark sky, moon
        section = calibration.read(frame)
        assert 500 < section.n_saturated < 1500
        cells = sky_cells(section)
        # 80 % of either side; the haloes of saturated stars are light, not an uneven flat
        ny, nx = cells.shape
        inner = cells[round(0.1 * ny) : round(0.9 * ny), round(0.1 * nx) : round(0.9 * nx)]
        inner = inner[np.isfinite(inner)] / np.nanmedian(inner)
        assert len(inner) > 150
        assert np.abs(inner - 1).max() < 0.02, frame.name


def sky_cells(section, side=64):
    """Median of cells without the surroundings of saturated stars."""
    pixels = np.array(section.pixels)
    counts = np.zeros(np.array(pixels.shape) // 16 + 1)
    np.add.at(counts, (section.saturated[:, 1] // 16, section.saturated[:, 0] // 16), 1)
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    for j, i in np.argwhere(counts >= 3):
        radius = 20 * np.sqrt(counts[j, i])  # light of the halo goes with that of the star
        pixels[(y - 16 * j - 8) ** 2 + (x - 16 * i - 8) ** 2 < radius**2] = np.nan
    ny, nx = pixels.shape[0] // side, pixels.shape[1] // side
    cells = pixels[: ny * side, : nx * side].reshape(ny, side, nx, side).swapaxes(1, 2).reshape(ny, nx, -1)
    out = np.full((ny, nx), np.nan)
    full = np.isfinite(cells).mean(axis=2) > 0.5
    out[full] = np.nanmedian(cells[full], axis=1)
    return out


@pytest.mark.real
def test_flat_of_one_filter_alone_is_refused(data_root):
    night = data_root / "lowell_night"
    light = open_frame(night / "light/20190326.0126.fits.fz")
    with pytest.raises(CalibrationError, match=r"20190326.0100.fits.fz: filter 'V', not 'VR'"):
        load_calibration([light], CalibrateOptions(flat=str(night / "flat/20190326.0100.fits.fz")))


@pytest.mark.real
def test_hatp32_saturates_at_twelve_bits(data_root):
    frames = [open_frame(path) for path in find_frames([data_root / "hatp32"])]
    assert len(frames) == 142
    calibration = load_calibration(frames)
    assert calibration.saturation_of(frames[7]) == 4095
    assert any("4095" in note for note in calibration.notes)


def test_listed_pixels_become_missing():
    """Those of a list that lie in a window, at its edges too (seed 5)."""
    rng = np.random.default_rng(5)
    places = np.unique(rng.integers(0, 60, (300, 2)), axis=0).astype(np.int32)
    places = places[np.lexsort((places[:, 0], places[:, 1]))]
    whole = np.zeros((60, 60), bool)
    whole[places[:, 1], places[:, 0]] = True
    for y0, y1, x0, x1 in ((0, 60, 0, 60), (10, 30, 5, 59), (59, 60, 0, 1), (7, 7, 0, 9)):
        image = np.ones((y1 - y0, x1 - x0), np.float32)
        _pixels.blank_pixels(image, places, y0, x0)
        np.testing.assert_array_equal(np.isnan(image), whole[y0:y1, x0:x1])
    with pytest.raises(ValueError, match="shape"):
        _pixels.blank_pixels(np.ones((2, 2), np.float32), np.zeros((3, 3), np.int32), 0, 0)


@pytest.mark.parametrize("seed", [113, 130])
def test_crowded_stars_make_no_edge(seed: int, tmp_path: Path) -> None:
    """Stars move many lines alike, and a parabola through such lines misses the outer ones by several sigmas."""
    simulate_night(NightOptions(n_frames=1, shape=(256, 320), n_stars=1500, seed=seed)).write(tmp_path)
    assert load_calibration([open_frame(path) for path in tmp_path.glob("d*.fits")]).edges == (0, 0, 0, 0)
