"""Trails of satellites: found where no pixel of them stands out, and nothing else taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import fastack
from fastack import background, trails
from fastack.render import moffat_alpha
from fastack.simulate import NightOptions, simulate_night
from fastack.trails import Trail, find_trails, passing
from fastack.types import Transform

SKY, NOISE = 200.0, 10.0


def trail_light(shape: tuple[int, int], at: tuple[float, float], angle: float, peak: float, fwhm: float) -> np.ndarray:
    """Light of a line through `at`, ADU: a Moffat profile integrated along it."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = (y - at[1]) * np.cos(angle) - (x - at[0]) * np.sin(angle)
    return peak * NOISE * (1 + (distance / moffat_alpha(fwhm, 3.0)) ** 2) ** -2.5


def frame(seed: int, fwhm: float, shape: tuple[int, int] = (512, 600)) -> np.ndarray:
    """Stars and noise."""
    options = NightOptions(
        n_frames=1, shape=shape, seed=seed, n_stars=120, fwhm=fwhm, sky=SKY - 100, gain=1.0, rdnoise=1.0, bias=100.0
    )
    return simulate_night(options)[0].image.astype(np.float32)


def find(image: np.ndarray, fwhm: float) -> tuple[Trail, ...]:
    return find_trails(image, background=background.estimate(image), fwhm=fwhm)


@pytest.mark.parametrize("fwhm", [2.0, 3.0, 6.0])
@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 122])
def test_a_faint_trail_is_found_and_covered(fwhm: float, degrees: int) -> None:
    image, angle, at = frame(degrees, fwhm), np.radians(degrees), (260.0, 301.0)
    light = trail_light(image.shape, at, angle, 2.0, fwhm)
    (found,) = find(image + light, fwhm)
    middle = found.points()
    distance = (middle[:, 1] - at[1]) * np.cos(angle) - (middle[:, 0] - at[0]) * np.sin(angle)
    assert np.abs(distance).max() < 1.5
    assert found.peak == pytest.approx(2.0, rel=0.4)
    x, y = found.pixels(image.shape).T
    light[y, x] = 0
    assert light.max() < 0.2 * NOISE  # a pixel's width of error in the line is allowed for
    assert len(x) < 2 * (found.reach + 1) * np.hypot(*image.shape)


def test_a_large_image_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part sees its own piece, with the sky of its own place; together they cover the trail."""
    monkeypatch.setattr(trails, "_LARGE", 700)
    image = frame(9, 3.0, (1024, 1200))
    image += np.linspace(0, 40 * NOISE, 1200, dtype=np.float32)
    light = trail_light(image.shape, (500.0, 400.0), 0.3, 4.0, 3.0)
    found = find(image + light, 3.0)
    assert len(found) >= 3
    for each in found:
        x, y = each.pixels(image.shape).T
        light[y, x] = 0
    assert light.max() < 0.2 * NOISE


def test_two_trails_that_cross() -> None:
    image = frame(5, 3.0)
    for angle, peak in ((0.4, 30.0), (2.0, 3.0)):
        image += trail_light(image.shape, (300.0, 250.0), angle, peak, 3.0)
    found = find(image, 3.0)
    assert len(found) == 2
    assert found[0].peak > found[1].peak


@pytest.mark.parametrize("fwhm", [2.0, 4.0])
def test_stars_alone_make_no_trail(fwhm: float) -> None:
    assert [find(frame(seed, fwhm), fwhm) for seed in range(12)] == [()] * 12


def test_a_trail_that_ends_inside_is_followed_to_its_end() -> None:
    image = frame(3, 3.0)
    light = trail_light(image.shape, (0.0, 200.0), 0.0, 5.0, 3.0)
    light[:, 320:] = 0
    (found,) = find(image + light, 3.0)
    first, last = sorted((found.start[0], found.end[0]))
    assert first < 0
    assert 320 <= last < 320 + 64


def test_pictures_that_cannot_hold_one() -> None:
    small = np.full((40, 500), SKY, np.float32)
    assert find(small, 3.0) == ()
    flat = np.full((300, 300), SKY, np.float32)
    assert find(flat, 3.0) == ()
    holes = frame(8, 3.0)
    holes[:, 100:400] = np.nan
    assert find(holes, 3.0) == ()


def line(x0: float, y0: float, x1: float, y1: float) -> Trail:
    return Trail(start=np.array([x0, y0]), end=np.array([x1, y1]), reach=4.0, peak=3.0)


def test_what_stays_on_the_sky_or_on_the_detector_is_no_trail() -> None:
    still, moved = Transform.identity(), Transform.affine(np.array([[1.0, 0.0, 30.0], [0.0, 1.0, 20.0]]))
    column, spike = line(100, 0, 100, 500), line(0, 0, 400, 300)
    same_sky = line(30, 20, 430, 320)
    trail, other = line(0, 400, 500, 100), line(0, 100, 500, 150)
    frames = [(column, spike, trail), (column, same_sky, other)]
    assert passing(frames, [still, moved]) == [(trail,), (other,)]
    # the same satellite goes on where it was when the exposure ended
    first, second = line(0, 0, 250, 250), line(250, 250, 500, 500)
    assert passing([(first,), (second,)], [still, still]) == [(first,), (second,)]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames, a faint trail in one of them, a bright column in all."""
    where = tmp_path_factory.mktemp("night")
    options = NightOptions(n_frames=4, shape=(480, 500), seed=7, n_stars=90, fwhm=4.0, dither=20.0)
    simulate_night(options).write(where)
    for path in sorted(where.glob("d*.fits")):
        with fits.open(path, mode="update") as file:
            data = file[0].data.astype(np.float32)
            noise = background.pixel_noise(data)
            data[:, 200] += 4 * noise
            if path.name == "d0002.fits":
                data += trail_light(data.shape, (240.0, 250.0), 0.6, 1.5 * noise / NOISE, 4.0)
            file[0].data = np.rint(data).astype(file[0].data.dtype)
    return where


def test_a_stack_of_few_leaves_the_trail_out(night: Path) -> None:
    result = fastack.stack(night, framing="reference", reference="d0001.fits")
    assert [len(r.trails) for r in result.records] == [0, 1, 0, 0]
    assert "1 trail left out" in "; ".join(result.records[1].notes)
    kept = fastack.stack(night, framing="reference", reference="d0001.fits", trail_frames=0)
    assert not any(r.trails for r in kept.records)
    (trail,) = result.records[1].trails
    to_frame = result.records[1].transform
    assert to_frame is not None
    x, y = np.rint(to_frame.inverse(trail.points())).astype(int).T
    inside = (x > 20) & (x < 480) & (y > 20) & (y < 460)
    x, y = x[inside], y[inside]
    assert (result.plane("NCOMB")[y, x] <= 3).mean() > 0.9
    beside = np.median(result.data)
    excess = [float(np.median(r.data[y, x]) - beside) / float(np.median(r.uncertainty)) for r in (result, kept)]
    assert abs(excess[0]) < 0.5
    assert excess[1] > 0.5


def test_nothing_is_left_out_where_nothing_is_rejected(night: Path) -> None:
    result = fastack.stack(night, reject="none")
    assert not any(r.trails for r in result.records)
