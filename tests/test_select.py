"""Limits, majorities, the reference and the weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastack import detect, measure, select
from fastack.options import SelectOptions
from fastack.render import render_stars
from fastack.select import noise_area, predict_depth
from fastack.simulate import NightOptions, simulate_night
from fastack.types import PSF, FrameQuality, FrameRecord


def quality(fwhm: float, **more: float) -> FrameQuality:
    values = {
        "fwhm_err": 0.01, "ellipticity": 0.05, "theta": 0.0, "beta": 3.0, "n_stars": 100, "n_fitted": 50,
        "n_sharp": 0, "sky": 1000.0, "noise": 10.0, "saturated": 0,
    }  # fmt: skip
    return FrameQuality(fwhm=fwhm, **(values | more))


def record(k: int, fwhm: float = 3.0, *, frame: dict | None = None, **more: float) -> FrameRecord:
    values = {"shape": (100, 120), "binning": (1, 1), "filter": "V", "object": "M27", "pixel_scale": None}
    values |= {"exposure": 60.0} | (frame or {})
    name = f"d{k:04d}.fits"
    return FrameRecord(path=Path(name), name=name, frame=SimpleNamespace(**values), quality=quality(fwhm, **more))


def used(records: list[FrameRecord]) -> list[int]:
    return [i for i, r in enumerate(records) if r.used]


def test_a_bare_number_is_pixels_and_strict() -> None:
    records = [record(k, f) for k, f in enumerate([4.99, 5.0, 5.01, np.nan])]
    select.apply_limits(records, SelectOptions(fwhm_limit=5.0))
    assert used(records) == [0]
    assert records[1].reason == "FWHM 5 px, limit 5"
    assert records[3].reason == "FWHM could not be measured"


def test_arcsec_uses_the_scale_or_says_what_is_missing() -> None:
    records = [record(k, f, frame={"pixel_scale": 1.5}) for k, f in enumerate([2.0, 3.0])]
    select.apply_limits(records, SelectOptions(fwhm_limit='4"'))
    assert used(records) == [0]
    assert records[1].reason == 'FWHM 4.50 arcsec, limit 4"'
    records = [record(0)]
    with pytest.raises(ValueError, match="--pixel-scale"):
        select.apply_limits(records, SelectOptions(fwhm_limit="4arcsec"))
    select.apply_limits(records, SelectOptions(fwhm_limit="4arcsec", pixel_scale=1.0))
    assert used(records) == [0]


def test_percent_keeps_the_best_and_k_cuts_the_tail() -> None:
    widths = [3.0, 2.0, 5.0, 4.0, 2.5]
    records = [record(k, f) for k, f in enumerate(widths)]
    select.apply_limits(records, SelectOptions(fwhm_limit="50%"))
    assert used(records) == [0, 1, 4]
    records = [record(k, f) for k, f in enumerate([3.0, 3.1, 2.9, 3.05, 2.95, 9.0])]
    select.apply_limits(records, SelectOptions(fwhm_limit="3k"))
    assert used(records) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["", "five", "-3", "0", "120%", "3 parsec"])
def test_nonsense_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"limit|range"):
        select.Limit.parse(text)


def test_the_majority_is_stacked_and_the_others_named() -> None:
    records = [record(0), record(1, frame={"filter": "R"}), record(2), record(3, frame={"shape": (50, 60)})]
    records.append(record(4, frame={"filter": None}))
    select.keep_majority(records, SelectOptions())
    assert used(records) == [0, 2, 4]  # an unknown filter is not held against a frame
    assert records[1].reason == "filter R, not V"
    assert records[3].reason == "size 60x50, not 120x100"
    records = [record(0), record(1, frame={"filter": "r"}), record(2)]
    select.keep_majority(records, SelectOptions(filter="R"))
    assert used(records) == [1]


def test_reference_is_sharp_rich_and_in_the_middle() -> None:
    records = [record(k, 3.0) for k in range(8)]
    records[0].quality = quality(1.0)  # sharpest, but at the rim of the set
    records[4].quality = quality(2.0)
    records[5].quality = quality(1.5, n_stars=10)  # sharp because it shows nothing
    assert select.choose_reference(records) is records[4]
    assert select.choose_reference(records, "d0007.fits") is records[7]
    assert select.choose_reference(records, "last") is records[7]
    records[7].reason = "FWHM 9 px, limit 5"
    with pytest.raises(ValueError, match="FWHM 9 px"):
        select.choose_reference(records, "d0007.fits")
    with pytest.raises(ValueError, match="no such frame"):
        select.choose_reference(records, "x.fits")


def test_weights() -> None:
    records = [record(0, 2.0, noise=10.0), record(1, 4.0, noise=20.0)]
    for how, ratio in {"equal": 1, "variance": 4, "depth": 16, "exposure": 1}.items():
        select.weigh(records, how)
        assert records[0].weight / records[1].weight == pytest.approx(ratio)
        assert records[0].weight + records[1].weight == pytest.approx(2)
    records[0].scale = 2.0  # half as transparent
    select.weigh(records, "variance")
    assert records[0].weight == pytest.approx(records[1].weight)
    with pytest.raises(ValueError, match="choose equal"):
        select.weigh(records, "magic")


def test_weights_from_a_table(tmp_path) -> None:
    path = tmp_path / "w.csv"
    path.write_text("name,w\nd0000.fits,1\nd0001.fits,3\n")
    records = [record(0), record(1)]
    select.weigh(records, "w", str(path))
    assert records[1].weight / records[0].weight == pytest.approx(3)
    records.append(record(2))
    with pytest.raises(ValueError, match=r"d0002\.fits"):
        select.weigh(records, "w", str(path))


def test_limit_table_knows_that_more_frames_go_deeper_until_the_seeing_spoils_it() -> None:
    rows = select.limit_table([record(k, 2.0) for k in range(8)] + [record(k, 8.0) for k in range(8, 12)])
    assert [r.frames for r in rows] == sorted(r.frames for r in rows)
    assert rows[-1].depth == pytest.approx(0)
    best = max(rows, key=lambda r: r.depth)
    assert best.frames == 8
    # eight frames of noise 1 and FWHM 2 against twelve whose mean square FWHM is 24
    expected = 2.5 * np.log10(np.sqrt(24 / 12) * 1 / (np.sqrt(4 / 8)))
    assert best.depth == pytest.approx(expected)


def test_noise_area_is_that_of_the_pixels() -> None:
    y, x = np.mgrid[-60:61, -60:61]
    for fwhm, beta in ((3.0, 2.5), (5.0, 4.0)):
        alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
        profile = (1 + (x * x + y * y) / alpha2) ** -beta
        profile /= np.pi * alpha2 / (beta - 1)
        assert noise_area([PSF(fwhm=fwhm, beta=beta)]) == pytest.approx(1 / (profile**2).sum(), rel=1e-3)
    # the mean of two widths lies between them, nearer to the sharper one than the mean of the areas
    sharp, wide = PSF(fwhm=3.0), PSF(fwhm=6.0)
    mixed = noise_area([sharp, wide], [0.5, 0.5])
    assert noise_area([sharp]) < mixed < (noise_area([sharp]) + noise_area([wide])) / 2


@pytest.mark.parametrize("fwhm", [1.8, 2.0, 2.5, 3.4])
def test_noise_area_knows_what_the_pixel_does(fwhm: float) -> None:
    """A Moffat profile of the effective width and of the optical exponent has up to a tenth more."""
    rng, places = np.random.default_rng(1), 40
    stamps = [
        render_stars((81, 81), [40 + rng.uniform(-0.5, 0.5, 2)], [1.0], fwhm=fwhm, beta=3.0) for _ in range(places)
    ]
    area = 1 / np.mean([(stamp.astype(float) ** 2).sum() for stamp in stamps])
    psf = PSF(fwhm=np.nan, beta=3.0, optical=fwhm)
    r = np.linspace(0, 5, 2000)
    light = psf.profile(r)
    effective = 2 * np.interp(-light[0] / 2, -light, r)
    found = noise_area([PSF(fwhm=effective, beta=3.0, optical=fwhm)])
    assert found == pytest.approx(area, rel=0.01)
    assert noise_area([PSF(fwhm=effective, beta=3.0)]) > 1.02 * area


def test_measure_tells_what_the_pixel_adds() -> None:
    """Width before the pixel's response, where it can be told; the depth rests on it."""
    options = NightOptions(n_frames=1, shape=(400, 400), n_stars=60, fwhm=2.0, seed=4, flux=(2e4, 2e5), separation=20.0)
    frame = simulate_night(options)[0]
    _, quality = measure(frame.image, detect(frame.image))
    assert quality.optical == pytest.approx(frame.truth.fwhm, rel=0.02)
    assert quality.psf.optical == quality.optical
    half = quality.psf.scaled(0.5)
    assert noise_area([half]) == pytest.approx(noise_area([quality.psf]) / 4, rel=1e-6)


def test_depth_of_equal_frames_grows_with_their_root() -> None:
    one, many = ([record(k, fwhm=3.0, noise=10.0) for k in range(n)] for n in (1, 16))
    for how in ("equal", "variance", "depth"):
        first, last = (predict_depth(records, how) for records in (one, many))
        assert last.limit == pytest.approx(first.limit / 4)
        assert last.noise == pytest.approx(2.5)
    # half of the frames have three times the noise: their inverse variance takes them nearly out
    half = [record(k, fwhm=3.0, noise=10.0 if k % 2 else 30.0) for k in range(16)]
    best = np.sqrt(8 / 10**2 + 8 / 30**2)
    assert predict_depth(half, "variance").noise == pytest.approx(1 / best)
    assert predict_depth(half, "equal").noise == pytest.approx(np.sqrt(8 * 10**2 + 8 * 30**2) / 16)
    with pytest.raises(ValueError, match="no measured PSF"):
        predict_depth([record(0, fwhm=float("nan"), noise=10.0)], "equal")
