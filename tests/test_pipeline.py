"""The main job on simulated nights: the product against the truth, and everything it has to survive."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from real_frames import evenness

import fastack
from fastack import coadd, pipeline
from fastack.calibrate import Section
from fastack.errors import FastackError, OutputError, StackError
from fastack.executor import Buffers
from fastack.options import StackOptions
from fastack.simulate import Night, NightOptions, simulate_night
from fastack.storage import Plane, Rows, Store
from fastack.types import PixelFlag, StarFlag, Stars

SMALL = {"shape": (256, 320), "n_stars": 120, "flux": (3000.0, 400_000.0), "separation": 8.0}


def make(directory: Path, **options: object) -> Night:
    night = simulate_night(NightOptions(**({"n_frames": 6} | SMALL | options)))
    night.write(directory)
    return night


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good frames; tests copy them and spoil one."""
    directory = tmp_path_factory.mktemp("plain")
    make(directory)
    return directory


@pytest.fixture
def night(plain: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "night"
    shutil.copytree(plain, directory)
    return directory


def expected(night: Night, result: fastack.StackResult) -> np.ndarray:
    """Error-free stack: every error-free frame through its fitted transform, averaged as the run did."""
    total = np.zeros(result.shape)
    weight = np.zeros(result.shape)
    origin = result.grid.origin
    pedestal = next(r.sky for r in result.records if r.name == result.reference)
    for k, record in enumerate(result.records):
        if not record.used:
            continue
        image = fastack.resample(
            night.expected(k), record.transform.shifted(*origin), shape=result.shape, options=result.options.resample
        )
        sky = fastack.resample(
            np.full(night.options.shape, record.sky, np.float32),
            record.transform.shifted(*origin),
            shape=result.shape,
            options=result.options.resample,
        )
        value = pedestal + record.scale * (image - sky)
        known = np.isfinite(value)
        total[known] += record.weight * value[known]
        weight[known] += record.weight
    with np.errstate(invalid="ignore"):
        return np.where(weight > 0, total / weight, np.nan)


def test_noise_is_what_photons_and_readout_allow(tmp_path: Path) -> None:
    night = make(tmp_path, n_frames=12, rotation=1.5, dither=4.0, shape=(400, 420))
    result = fastack.stack(str(tmp_path), framing="intersection", output_path=tmp_path / "out.fits")
    residual = result.data - expected(night, result)
    sigma = result.uncertainty
    assert len(result.used) == 12
    inner = np.isfinite(residual) & (result.plane("NCOMB") == 12)
    pull = (residual / sigma)[inner]
    # pixels are correlated over about 2 px: a tenth of them count as independent
    n = inner.sum() / 10
    assert abs(np.std(pull) - 1) < 5 / np.sqrt(2 * n) + 0.02
    assert abs(np.mean(pull)) < 5 / np.sqrt(n)


def test_artefacts_are_gone_and_stars_stay(tmp_path: Path) -> None:
    night = make(tmp_path, n_frames=8, cosmic_rays=40, hot_pixels=60, trails=0.3, dither=4.0)
    result = fastack.stack(str(tmp_path), framing="reference")
    residual = (result.data - expected(night, result)) / result.uncertainty
    stars = np.zeros(result.shape, bool)
    yy, xx = np.mgrid[: result.shape[0], : result.shape[1]]
    for (x, y), flux in zip(night.truth.xy, night.truth.flux, strict=True):
        if flux > 20_000:
            stars |= np.hypot(xx - x, yy - y) < 8
    free = np.isfinite(residual) & ~stars & (result.plane("NCOMB") > 4)
    assert np.abs(residual[free]).max() < 6.0


@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "bicubic", "lanczos2", "lanczos4", "area"])
def test_every_kernel_keeps_the_flux(tmp_path: Path, kernel: str) -> None:
    night = make(tmp_path, n_frames=3, n_stars=25, separation=40.0, flux=(2e5, 4e5), rotation=2.0)
    result = fastack.stack(str(tmp_path), kernel=kernel, framing="reference")
    data = result.data
    transparency = next(
        night.truth.frames[k].transparency for k, r in enumerate(result.records) if r.name == result.reference
    )
    ratios = []
    for (x, y), flux in zip(night.truth.xy, night.truth.flux, strict=True):
        if 25 < x < 295 and 25 < y < 230:
            yy, xx = np.mgrid[round(y) - 20 : round(y) + 21, round(x) - 20 : round(x) + 21]
            box = data[round(y) - 20 : round(y) + 21, round(x) - 20 : round(x) + 21]
            ring = np.hypot(xx - x, yy - y)
            inside = ring < 15
            sky = np.median(box[(ring > 17) & (ring < 20)])
            ratios.append(np.sum(box[inside] - sky) * night.options.gain / (flux * transparency))
    assert len(ratios) > 8
    # a beta = 3 Moffat keeps 99.2 % of its light within 15 px of FWHM 3; noise of one ratio is about 0.5 %
    assert np.median(ratios) == pytest.approx(0.992, abs=0.008)


def bits(result: fastack.StackResult) -> list[bytes]:
    return [result.plane(name).tobytes() for name in ("", "UNCERT", "NCOMB", "WEIGHT", "FLAGS")]


def test_the_border_is_judged_like_the_middle(tmp_path: Path) -> None:
    """What the framing leaves out stands beside the border all the same, and is looked at; no pixel changes."""
    make(tmp_path, n_frames=8, n_stars=500, fwhm=(2.0, 2.2, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0), dither=4.0, seed=3)
    union, shared = (fastack.stack(str(tmp_path), framing=how) for how in ("union", "intersection"))
    x, y = (round(a - b) for a, b in zip(shared.grid.origin, union.grid.origin, strict=True))
    part = np.s_[y : y + shared.shape[0], x : x + shared.shape[1]]
    for plane in ("NCOMB", "FLAGS", "WEIGHT", ""):
        np.testing.assert_array_equal(union.plane(plane)[part], shared.plane(plane))


def test_a_table_of_transforms_that_starts_from_another_frame(night: Path, tmp_path: Path) -> None:
    table = tmp_path / "first.fits"
    first = fastack.stack(str(night), output_path=table, reference="d0001.fits")
    by_stars = fastack.stack(str(night), reference="d0004.fits", dry_run=True)
    by_table = fastack.stack(str(night), register=str(table), reference="d0004.fits", dry_run=True)
    assert by_table.reference == "d0004.fits" != first.reference
    corners = np.array([[0.0, 0.0], [319.0, 0.0], [0.0, 255.0], [319.0, 255.0]])
    for one, other in zip(by_stars.records, by_table.records, strict=True):
        # two fits of the same stars: each errs by some hundredths of a pixel at the corners
        np.testing.assert_allclose(one.transform(corners), other.transform(corners), atol=0.15)


def test_gradients_that_change_from_frame_to_frame_do_not_enter_the_rejection(tmp_path: Path) -> None:
    make(tmp_path / "even", n_frames=5, seed=6)
    make(tmp_path / "tilted", n_frames=5, seed=6, sky_gradient=0.3)

    def lost(name: str, **settings: Any) -> int:
        result = fastack.stack(str(tmp_path / name), framing="intersection", maps=True, **settings)
        return int(sum(np.count_nonzero(result.plane(plane)) for plane in ("REJLOW", "REJHIGH")))

    even = lost("even")
    assert lost("tilted", match_sky="level") > 10 * (even + 10)  # the test can tell
    # the same noise on another sky: the few that are lost by chance scatter as the root of their number
    assert lost("tilted") <= even + 5 * np.sqrt(even + 4)


def test_making_skies_alike_does_not_change_the_average(tmp_path: Path) -> None:
    make(tmp_path, n_frames=5, seed=6, sky_gradient=0.3)
    mesh, level = (
        fastack.stack(str(tmp_path), framing="intersection", reject="none", match_sky=how) for how in ("mesh", "level")
    )
    np.testing.assert_allclose(mesh.data, level.data, rtol=1e-5)


def test_same_bits_for_any_threads_and_memory(night: Path) -> None:
    first = bits(fastack.stack(str(night), threads=1, model="affine"))
    for settings in ({"threads": 2}, {"threads": 3}, {"threads": 8}, {"memory": 400_000}, {"memory": 10**8}):
        assert bits(fastack.stack(str(night), model="affine", **settings)) == first, settings


def test_frames_that_would_be_read_over_and_over_are_laid_out_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame turned by 90 degrees, whose every row each tile of the output needs; the bits stay."""
    make(tmp_path, n_frames=3, shape=(512, 512), n_stars=300, rotation=[0.0, 0.5, 90.0])
    laid, tile = [], Store.tile

    def spy(store: Store, plane: Plane) -> Rows:
        laid.append(plane.path.name)
        return tile(store, plane)

    monkeypatch.setattr(Store, "tile", spy)
    settings = {"threads": 1, "reference": "d0001.fits", "model": "affine"}
    first = bits(fastack.stack(str(tmp_path), **settings))  # finds room for the pixels in memory
    assert not laid
    assert bits(fastack.stack(str(tmp_path), memory=400_000, **settings)) == first
    assert laid == ["d0003.fits"]


def test_same_bits_for_any_order_on_the_command_line(night: Path) -> None:
    paths = sorted(str(p) for p in night.glob("d*.fits"))
    assert bits(fastack.stack(paths)) == bits(fastack.stack(paths[::-1]))


def test_flipped_and_mirrored_frames_are_registered(tmp_path: Path) -> None:
    make(tmp_path / "flip", flipped=0.34)
    result = fastack.stack(str(tmp_path / "flip"))
    assert len(result.used) == 6
    assert sum(abs(abs(r.transform.rotation) - 180) < 1 for r in result.used) in (2, 4)
    make(tmp_path / "mirror", mirrored=0.34)
    result = fastack.stack(str(tmp_path / "mirror"))
    assert len(result.used) == 6


# What it has to survive ------------------------------------------------------------------------------------------


def reason(result: fastack.StackResult, name: str) -> str:
    record = next(r for r in result.records if r.name == name)
    assert not record.used
    assert record.reason
    return record.reason


def spoil(night: Path, change) -> fastack.StackResult:
    path = night / "d0003.fits"
    with fits.open(path) as file:
        data, head = file[0].data.copy(), file[0].header.copy()
    made = change(data, head)
    data, head = made if isinstance(made, tuple) else (made, head)
    fits.writeto(path, data, head, overwrite=True)
    result = fastack.stack(str(night))
    assert sum(r.used for r in result.records) == 5
    return result


def test_a_truncated_file(night: Path) -> None:
    path = night / "d0003.fits"
    path.write_bytes(path.read_bytes()[:60_000])
    result = fastack.stack(str(night))
    assert "truncated" in reason(result, "d0003.fits")
    assert len(result.used) == 5


@pytest.mark.parametrize("content", [b"", b"this is a text\n" * 500, b"SIMPLE  =                    T"])
def test_a_file_that_is_no_fits(night: Path, content: bytes) -> None:
    (night / "d0003.fits").write_bytes(content)
    result = fastack.stack(str(night))
    assert "d0003.fits" in reason(result, "d0003.fits")
    assert len(result.used) == 5


def test_a_missing_file_of_a_list_is_left_out(night: Path) -> None:
    (night / "all.txt").write_text("\n".join([*(p.name for p in sorted(night.glob("d*.fits"))), "d9999.fits"]))
    result = fastack.stack(f"@{night / 'all.txt'}")
    assert {r.name: r.reason for r in result.records if not r.used}["d9999.fits"].endswith("check the name")
    assert len(result.used) == len(list(night.glob("d*.fits")))
    with pytest.raises(StackError, match=r"no frame is left that could be opened:\n.*d9999\.fits: no such file"):
        fastack.stack(night / "d9999.fits")


def test_another_size_and_another_binning(night: Path) -> None:
    assert "size" in reason(spoil(night, lambda d, h: d[:200]), "d0003.fits")

    def bin_it(d, h):
        h["XBINNING"], h["YBINNING"] = 2, 2
        return d, h

    for path in night.glob("d*.fits"):
        fits.setval(path, "XBINNING", value=1)
        fits.setval(path, "YBINNING", value=1)
    with fits.open(night / "d0004.fits") as file:
        shutil.copy(night / "d0004.fits", night / "d0003.fits")
        del file
    assert "binning" in reason(spoil(night, bin_it), "d0003.fits")


def test_frames_without_content(night: Path) -> None:
    result = spoil(night, lambda d, h: np.full(d.shape, np.nan, np.float32))
    assert "no pixel has a value" in reason(result, "d0003.fits")
    result = spoil(night, lambda d, h: np.full(d.shape, 65535, np.uint16))
    assert reason(result, "d0003.fits")
    rng = np.random.default_rng(1)
    result = spoil(night, lambda d, h: rng.poisson(400, d.shape).astype(np.uint16))
    assert "star" in reason(result, "d0003.fits")
    result = spoil(night, lambda d, h: np.full(d.shape, 1000, np.uint16))
    assert reason(result, "d0003.fits")


def test_a_wrong_field_in_the_middle(night: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", n_frames=1, seed=99)
    shutil.copy(tmp_path / "other" / "d0001.fits", night / "d0003.fits")
    result = fastack.stack(str(night))
    assert "registration" in reason(result, "d0003.fits")
    assert len(result.used) == 5


def test_trailed_stars_are_left_out_by_ellipticity(tmp_path: Path) -> None:
    make(tmp_path, ellipticity=(0.0, 0.0, 0.6, 0.0, 0.0, 0.0))
    result = fastack.stack(str(tmp_path), ellipticity_limit=0.4)
    assert "ellipticity 0.6" in reason(result, "d0003.fits") or "ellipticity 0.5" in reason(result, "d0003.fits")
    assert len(result.used) == 5


@pytest.mark.parametrize("date", ["tomorrow", "", None, "2019-02-31T00:00:00"])
def test_missing_or_malformed_dates_and_exposures(night: Path, date: str | None) -> None:
    path = night / "d0003.fits"
    with fits.open(path, mode="update") as file:
        for key in ("DATE-OBS", "MJD-OBS", "DATE-BEG", "DATE-END", "DATE-AVG", "EXPTIME"):
            file[0].header.remove(key, ignore_missing=True)
        if date is not None:
            file[0].header["DATE-OBS"] = date
            file[0].header["EXPTIME"] = "sixty"
    result = fastack.stack(str(night))
    assert len(result.used) == 6
    assert result.header["NDATED"] == 5


def test_three_stars_and_one(tmp_path: Path) -> None:
    table = {"x": [60.0, 250.0, 120.0], "y": [50.0, 90.0, 210.0], "flux": [2e5, 1.5e5, 1e5]}
    night = simulate_night(NightOptions(n_frames=4, shape=(256, 320), dither=3.0), catalogue=table)
    night.write(tmp_path)
    result = fastack.stack(str(tmp_path))
    assert len(result.used) == 4
    truth = {f"d{k + 1:04d}.fits": frame for k, frame in enumerate(night.truth.frames)}
    reference = truth[result.reference].to_frame(night.truth.xy)
    for r in result.used:
        assert np.abs(r.transform(reference) - truth[r.name].to_frame(night.truth.xy)).max() < 0.1


def test_a_crowded_field(tmp_path: Path) -> None:
    """As dense as 50 000 stars on 2048 x 2048 pixels: a star on every 84."""
    night = make(tmp_path, n_frames=3, shape=(512, 512), n_stars=3100, separation=0.0, flux=(1000.0, 300_000.0))
    result = fastack.stack(str(tmp_path))
    assert len(result.used) == 3
    truth = {f"d{k + 1:04d}.fits": frame for k, frame in enumerate(night.truth.frames)}
    corners = np.array([[0.0, 0.0], [511, 0], [0, 511], [511, 511]])
    for r in result.used:
        true = truth[r.name].to_frame(truth[result.reference].to_reference(corners))
        assert np.abs(r.transform(corners) - true).max() < 0.1


def test_one_frame_and_two_frames(night: Path) -> None:
    one = fastack.stack(str(night / "d0001.fits"))
    with fits.open(night / "d0001.fits") as file:
        np.testing.assert_allclose(one.data, file[0].data.astype(np.float32), rtol=1e-6)
    assert (one.plane("NCOMB") == 1).all()
    two = fastack.stack([str(night / "d0001.fits"), str(night / "d0002.fits")])
    assert len(two.used) == 2
    assert set(np.unique(two.plane("NCOMB"))) <= {0, 1, 2}


def test_a_stack_of_stacks_counts_like_one_stack(night: Path, tmp_path: Path) -> None:
    """Four frames and two, stacked and stacked again: frames, light, dates, airmass, gain as of all six at once."""
    frames = sorted(night.glob("d*.fits"))
    options = {"reference": "first", "framing": "reference", "weights": "variance"}
    for name, part in (("a", frames[:4]), ("b", frames[4:]), ("all", frames)):
        fastack.stack(part, output_path=tmp_path / f"{name}.fits", **options)
    fastack.stack([tmp_path / "a.fits", tmp_path / "b.fits"], output_path=tmp_path / "ab.fits", **options)
    again, whole = (fits.getheader(tmp_path / f"{name}.fits") for name in ("ab", "all"))
    for key in ("NCOMBINE", "EXPTIME", "XPOSURE", "DATE-OBS", "DATE-BEG", "DATE-END", "TELAPSE"):
        assert again[key] == whole[key], key
    assert again["NCOMBINE"] == 6
    assert again["MJD-OBS"] == pytest.approx(whole["MJD-OBS"], abs=1e-10)
    assert again["AIRMASS"] == pytest.approx(whole["AIRMASS"], abs=1e-4)
    # weights are measured in each stack anew
    assert again["MJD-AVG"] == pytest.approx(whole["MJD-AVG"], abs=10 / 86400)
    assert again["GAIN"] == pytest.approx(whole["GAIN"], rel=0.03)
    assert again["RDNOISE"] == pytest.approx(whole["RDNOISE"], rel=0.03)


def test_all_frames_rejected_says_which_limit_and_what_the_widths_were(night: Path) -> None:
    with pytest.raises(StackError, match=r"limit 0\.5[\s\S]*FWHM of the frames: \d\.\d+ to \d\.\d+ px"):
        fastack.stack(str(night), fwhm_limit=0.5)


def test_an_unwritable_target_keeps_the_old_file(night: Path) -> None:
    target = night / "mosaic.fits"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="--overwrite"):
        fastack.stack(str(night), output_path=target)
    with pytest.raises(OutputError):
        fastack.stack(str(night), output_path=night / "absent" / "mosaic.fits")
    assert target.read_bytes() == b"precious"


def test_a_frame_that_disappears_between_the_passes(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastack import normalise

    target = night / "mosaic.fits"
    original = normalise.match_levels

    def vanish(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        os.unlink(night / "d0002.fits")

    monkeypatch.setattr(normalise, "match_levels", vanish)
    result = fastack.stack(str(night), output_path=target)
    assert len(result.used) == 5
    assert "d0002.fits" in reason(result, "d0002.fits")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_memory_that_is_taken_ahead_is_what_the_tiles_use(
    night: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    taken: list[Any] = []

    def noted(buffers: Buffers, *rest: Any) -> None:
        take(buffers, *rest)
        taken.append((buffers, list(buffers._idle)))

    take = coadd.take_memory
    monkeypatch.setattr(coadd, "take_memory", noted)
    fastack.stack(str(night), framing="union", threads=threads)
    ((buffers, ahead),) = taken
    assert len(ahead) == threads
    assert {id(b) for b in buffers._idle} == {id(b) for b in ahead}  # none was too small


def test_an_interrupt_leaves_nothing_half_written(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = night / "mosaic.fits"
    target.write_bytes(b"precious")
    before = sorted(p.name for p in night.iterdir())

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coadd, "stack_tiles", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fastack.stack(str(night), output_path=target, overwrite=True)
    assert target.read_bytes() == b"precious"
    assert sorted(p.name for p in night.iterdir()) == before


def test_a_flat_of_the_wrong_size_is_an_error_that_names_both(night: Path) -> None:
    fits.writeto(night / "master_flat.fits", np.ones((10, 12), np.float32))
    with pytest.raises(FastackError, match=r"12\s*x\s*10[\s\S]*320\s*x\s*256"):
        fastack.stack(str(night))
    assert len(fastack.stack(str(night), no_flat=True).used) == 6


def test_flat_is_picked_up_and_divides(tmp_path: Path) -> None:
    night = simulate_night(NightOptions(**({"n_frames": 4, "vignetting": 0.4, "bias": 0.0} | SMALL)))
    night.write(tmp_path, masters=True)
    (tmp_path / "master_bias.fits").unlink()
    result = fastack.stack(str(tmp_path), framing="intersection")
    assert len(result.records) == 4
    data = result.data
    corner, middle = np.median(data[:40, :40]), np.median(data[100:150, 140:190])
    assert corner / middle == pytest.approx(1.0, abs=0.02)


def test_saturated_pixels_are_flagged_and_missing_where_most_samples_are(tmp_path: Path) -> None:
    make(tmp_path, saturation=6000.0, flux=(3000.0, 2_000_000.0))
    result = fastack.stack(str(tmp_path), framing="intersection", saturation=6000.0)
    flags, data = result.plane("FLAGS"), result.data
    core = np.isnan(data)
    assert core.sum() > 5
    assert (flags[core] & PixelFlag.SATURATED).all()


def test_stars_near_saturated_pixels_are_those_that_a_plain_search_finds() -> None:
    rng = np.random.default_rng(12)
    pixels = np.unique(rng.integers(0, (60, 90), (150, 2)), axis=0)[:, ::-1].astype(np.int32)  # x, y; by rows
    stars = Stars.make(rng.uniform((-0.5, -0.5), (89.5, 59.5), (400, 2)))
    section = Section(np.zeros((60, 90), np.float32), pixels)
    for fwhm in (np.nan, 2.3, 7.0):
        radius = fwhm if fwhm > 1.5 else 1.5
        near = np.hypot(*(stars.xy[:, None] - pixels[None]).transpose(2, 0, 1)).min(axis=1) <= radius
        found = pipeline._flag_saturated(stars, section, fwhm).has(StarFlag.SATURATED)
        np.testing.assert_array_equal(found, near)


def test_zero_is_data(tmp_path: Path) -> None:
    night = make(tmp_path, sky=0.0, bias=0.0, rdnoise=0.5)
    result = fastack.stack(str(tmp_path), framing="intersection")
    assert len(result.used) == 6
    assert np.isfinite(result.data).all()
    del night


def test_a_pixel_far_below_the_sky_has_an_error(night: Path) -> None:
    """Without a read noise its light alone would have none; some of the sky's is left."""
    for path in night.glob("d*.fits"):
        with fits.open(path, mode="update") as file:
            file[0].header.remove("RDNOISE", ignore_missing=True)
            file[0].data[100, 100:103] = 0
    made = fastack.stack(str(night), register="none", framing="reference", reject="none")
    error, sky = made.uncertainty[100, 100:103], 1 / np.sqrt(made.plane("WEIGHT")[100, 100:103])
    assert (made.data[100, 100:103] < 1).all()
    assert (error > 0.2 * sky).all() and (error < sky).all()


def test_bayer_and_text_headers_do_not_matter(night: Path) -> None:
    with fits.open(night / "d0003.fits", mode="update") as file:
        file[0].header["CRVAL1"] = "12.5"
        file[0].header["CTYPE1"] = "Linear ADC Pixels"
        file[0].header["GAIN"] = "unknown"
    assert len(fastack.stack(str(night)).used) == 6


def test_masks_and_weights_of_zero_take_pixels_out(night: Path) -> None:
    box = np.s_[100:130, 100:140]
    mask = np.zeros((256, 320), np.uint8)
    mask[box] = 1
    for path in sorted(night.glob("d*.fits"))[:3]:
        with fits.open(path, mode="append") as file:
            file.append(fits.ImageHDU(mask, name="MASK"))
    for path in sorted(night.glob("d*.fits"))[3:]:  # a sibling file, and a weight in place of a mask
        fits.writeto(path.with_name(f"{path.stem}.weight.fits"), 1.0 - mask.astype(np.float32))
    result = fastack.stack(str(night), register="none", framing="reference")
    assert len(result.records) == len(result.used) == 6
    count = result.plane("NCOMB")
    assert (count[box] == 0).all()
    assert np.isnan(result.data[box]).all()
    assert np.median(count) == 6
    (night / "d0006.weight.fits").unlink()
    count = fastack.stack(str(night), register="none", framing="reference").plane("NCOMB")
    assert np.median(count[box]) == 1


def test_variance_planes_count_before_the_model(night: Path) -> None:
    box, given = np.s_[100:130, 100:140], 400.0
    variance = np.full((256, 320), given, np.float32)
    variance[box] *= 4
    paths = sorted(night.glob("d*.fits"))
    for path in paths:
        with fits.open(path, mode="append") as file:
            file.append(fits.ImageHDU(variance, name="VARIANCE"))
    run = {"register": "none", "framing": "reference", "reject": "none", "normalise": False}
    result = fastack.stack(str(night), **run)
    free = result.plane("NCOMB") == 6
    np.testing.assert_allclose(result.uncertainty[box][free[box]] ** 2, 4 * given / 6, rtol=1e-3)
    np.testing.assert_allclose(result.uncertainty[:90][free[:90]] ** 2, given / 6, rtol=1e-3)
    # one frame without: its measured noise stands in
    with fits.open(paths[0]) as file:
        data, head = file[0].data.copy(), file[0].header.copy()
    fits.writeto(paths[0], data, head, overwrite=True)
    result = fastack.stack(str(night), **run)
    noise = next(r for r in result.records if r.name == paths[0].name).quality.noise
    typical = np.median(result.uncertainty[:90][free[:90]] ** 2)
    assert typical == pytest.approx((5 * given + noise**2) / 36, rel=0.01)
    tiled = fastack.stack(str(night), memory=400_000, **run)  # some strips of several tiles
    for name in ("", "UNCERT", "WEIGHT", "FLAGS"):
        np.testing.assert_array_equal(tiled.plane(name), result.plane(name))


def test_options_and_settings_exclude_each_other(night: Path) -> None:
    with pytest.raises(TypeError, match="either"):
        fastack.stack(str(night), options=StackOptions(), fwhm_limit=3)
    with pytest.raises(TypeError, match="unknown option 'fwmh_limit'"):
        fastack.stack(str(night), fwmh_limit=3)


# Real frames -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_frame_with_second_images_is_registered_on_the_first(data_root: Path) -> None:
    """The mount jumped in the third of these frames; its neighbour's transform brings some second images together."""
    names = ("033612", "063612", "064212", "064812")
    paths = [data_root / "hatp32" / f"HATP-32171220{name}.FITS" for name in names]
    result = fastack.stack(paths, reference=paths[0].name, dry_run=True)
    for record in result.used[1:]:
        # the four fields share at least two thirds of their area
        assert record.n_matched > 200
        assert abs(record.scale - 1) < 0.1


@pytest.mark.real
def test_hatp32_is_registered_whole(data_root: Path) -> None:
    result = fastack.stack(str(data_root / "hatp32"), dry_run=True, reference="first")
    assert len(result.records) == 142
    assert len(result.used) == 142
    shifts = np.array([r.transform.inverse([[0.0, 0.0]])[0] for r in result.records])
    assert np.abs(shifts).max() > 250
    rotation = [r.transform.rotation for r in result.records]
    assert 0.5 < max(np.abs(rotation)) < 0.65
    trailed = {"HATP-32171220050612.FITS", "HATP-32171220080612.FITS", "HATP-32171220064512.FITS"}
    worst = sorted(result.records, key=lambda r: -r.quality.ellipticity)[:8]
    assert trailed <= {r.name for r in worst}


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_lowell_night_is_calibrated_and_registered(data_root: Path) -> None:
    base = data_root / "lowell_night"
    result = fastack.stack(
        str(base / "light"), bias=str(base / "bias"), flat=str(base / "flat"), framing="intersection"
    )
    assert len(result.used) == 14
    assert any("0100" in note and "V" in note for note in result.notes)
    reference = next(r for r in result.records if r.name == result.reference)
    bright = reference.stars[(reference.stars.snr > 100) & (reference.stars.flags == 0)]
    assert len(bright) > 30
    for r in result.used:
        predicted = r.transform(bright.xy)
        distance = np.hypot(*(r.stars.xy[None] - predicted[:, None]).transpose(2, 0, 1))
        nearest = distance.argmin(axis=1)
        hit = distance[np.arange(len(bright)), nearest] < 1
        residual = (r.stars.xy[nearest] - predicted)[hit]
        assert np.median(np.abs(residual)) < 0.05, r.name
    assert evenness(result.data)[0] < 0.02


def test_a_star_that_a_cosmic_ray_hides_in_one_of_two_frames_keeps_its_profile(tmp_path: Path) -> None:
    steady = {"sky_spread": 0.0, "transparency_spread": 0.0, "dither": 0.0, "drift": (0.0, 0.0), "rotation": 0.0}
    stars = {"n_stars": 30, "separation": 40.0, "flux": (80_000.0, 200_000.0), "fwhm": (2.2, 6.0)}
    options = NightOptions(n_frames=2, shape=(256, 320), seed=4, **stars, **steady)
    simulate_night(options).write(tmp_path)
    clean = fastack.stack(str(tmp_path), framing="intersection", register="none", reject="none").data
    night = simulate_night(options)
    inside = (np.abs(night.truth.xy - [160, 128]) < [120, 90]).all(axis=1)
    x, y = np.rint(night.truth.xy[np.flatnonzero(inside)[0]]).astype(int)
    with fits.open(tmp_path / "d0002.fits", mode="update") as file:
        file[0].data[y + 1, x - 2 : x + 6] += 3000
    result = fastack.stack(str(tmp_path), framing="intersection", register="none")
    hit = (slice(y, y + 3), slice(x - 1, x + 3))
    assert (result.plane("NCOMB")[hit] == 1).any()
    assert (np.abs(result.data - clean)[hit] < 6 * result.uncertainty[hit]).all()
    # which the sharper frame alone would miss by far
    assert (clean[hit] - result.quality.sky > 20 * result.uncertainty[hit]).any()


def test_the_stars_of_a_stack_are_measured_when_they_are_asked_for(night: Path, tmp_path: Path) -> None:
    in_memory = fastack.stack(str(night), max_stars=20)
    in_file = fastack.stack(str(night), max_stars=20, output_path=tmp_path / "mosaic.fits")
    assert in_file.stars is in_file.stars
    np.testing.assert_array_equal(in_memory.stars.xy, in_file.stars.xy)
    # all of them, while the quality rests on as many as that of a frame
    assert len(in_file.stars) > 40
    assert in_file.quality.n_stars == np.count_nonzero(~in_file.stars.has(StarFlag.SHARP))
    assert in_file.quality.n_fitted <= 20
    with pytest.raises(StackError, match="dry run"):
        _ = fastack.stack(str(night), dry_run=True).stars
