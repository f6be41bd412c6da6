"""Masters as files: what is in them, what is refused, and bad pixels from the making to the stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from fastack import masters
from fastack.calibrate import Master
from fastack.errors import CalibrationError, FrameError, OutputError
from fastack.frames import open_frame
from fastack.load_calibration import load_calibration
from fastack.options import CalibrateOptions

SHAPE = (60, 80)


def write(path: Path, image: np.ndarray, kind: str, exposure: float = 10.0, band: str = "V") -> Path:
    header = fits.Header({"IMAGETYP": kind, "EXPTIME": exposure, "FILTER": band})
    fits.writeto(path, np.clip(np.round(image), 0, 65535).astype(np.uint16), header)
    return path


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    """Seven bias, darks and flats; a hot pixel at (x=5, y=7), a dead column x=20, a cold one at (x=30, y=40)."""
    rng = np.random.default_rng(4)
    for k in range(7):
        write(tmp_path / f"b{k}.fits", 300 + 4 * rng.standard_normal(SHAPE), "bias", 0.0)
        dark = 300 + 20 + 5 * rng.standard_normal(SHAPE)
        dark[7, 5] += 3000
        write(tmp_path / f"k{k}.fits", dark, "dark", 60.0)
        light = 20_000.0 * np.ones(SHAPE)
        light[:, 20] = 300.0
        light[40, 30] *= 0.4
        write(tmp_path / f"f{k}.fits", 300 + light + np.sqrt(light) * rng.standard_normal(SHAPE), "flat")
    return tmp_path


def make(camera: Path, kind: str, letter: str, **settings: object) -> masters.MasterFile:
    options = CalibrateOptions(**settings)
    return masters.make(kind, [str(camera / f"{letter}?.fits")], camera / f"master_{kind}.fits", options=options)


def test_bias_has_its_level_and_its_error(camera: Path) -> None:
    made = make(camera, "bias", "b")
    assert made.bad is None
    with fits.open(camera / "master_bias.fits", checksum=True) as file:
        assert [h.name for h in file] == ["PRIMARY", "UNCERT"]
        assert file[0].header["IMAGETYP"] == "master bias"
        assert file[0].header["NCOMBINE"] == 7
        assert file[0].data.mean() == pytest.approx(300, abs=0.2)
        # 4 adu and the rounding's 1/12, by root 7; the estimate is good to some percent
        assert np.median(file["UNCERT"].data) == pytest.approx(np.sqrt((16 + 1 / 12) / 7), rel=0.1)
        assert file[0].data.std() == pytest.approx(np.sqrt((16 + 1 / 12) / 7), rel=0.1)


def test_bad_pixels_are_found_and_stay_bad(camera: Path) -> None:
    make(camera, "bias", "b")
    dark = make(camera, "dark", "k", bias=str(camera / "master_bias.fits"))
    flat = make(camera, "flat", "f", bias=str(camera / "master_bias.fits"))
    assert dark.bad is not None
    assert flat.bad is not None
    assert list(zip(*np.nonzero(dark.bad), strict=True)) == [(7, 5)]
    assert dark.bad[7, 5] == masters.HOT
    assert (flat.bad[:, 20] & masters.COLUMN).all()
    assert flat.bad[40, 30] & masters.COLD
    others = flat.bad.copy()
    others[:, 20], others[40, 30] = 0, 0
    assert not others.any()
    light = write(camera / "d0001.fits", np.full(SHAPE, 1000.0), "light", 60.0)
    options = CalibrateOptions(dark=str(camera / "master_dark.fits"), flat=str(camera / "master_flat.fits"))
    frame = open_frame(light)
    image = load_calibration([frame], options).read(frame).pixels
    assert np.isnan(image[7, 5])
    assert np.isnan(image[40, 30])
    assert np.isnan(image[:, 20]).all()
    assert np.isfinite(image).sum() == image.size - SHAPE[0] - 2


def test_dust_and_vignetting_are_not_bad() -> None:
    y, x = np.mgrid[:200, :200]
    flat = 1 - 0.6 * ((x - 100) ** 2 + (y - 100) ** 2) / 20_000
    flat *= 1 - 0.1 * np.exp(-((x - 60) ** 2 + (y - 80) ** 2) / 50)
    flat += 0.002 * np.random.default_rng(1).standard_normal(flat.shape)
    master = Master(
        kind="flat", pixels=flat.astype(np.float32), variance=np.full(flat.shape, 4e-6, np.float32),
        header=fits.Header(), used=("a",), refused=(),
    )  # fmt: skip
    assert not masters.bad_pixels(master).any()


def test_frames_that_do_not_belong_are_named(camera: Path) -> None:
    write(camera / "f8.fits", np.full(SHAPE, 20_000.0), "flat", band="B")
    (camera / "f9.fits").write_bytes(b"SIMPLE  = nonsense")
    made = make(camera, "flat", "f", bias=str(camera / "b?.fits"))
    text = masters.summary(made, "master.fits")
    assert "7 of 9 frames" in text
    assert "f8.fits: filter 'B', not 'V'" in text
    assert "left out f9.fits" in text
    header = fits.getheader(camera / "master_flat.fits")
    assert header["FILTER"] == "V"
    assert header["NBAD"] == np.count_nonzero(made.bad)


def test_command_makes_a_master(camera: Path) -> None:
    from click.testing import CliRunner

    from fastack.cli import cli

    target = camera / "bias.fits"
    done = CliRunner().invoke(cli, ["master", "bias", str(camera / "b?.fits"), "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert "master bias of 7 of 7 frames" in done.output
    assert fits.getheader(target)["NCOMBINE"] == 7
    assert CliRunner().invoke(cli, ["master", "light", "x.fits", "-o", str(target)]).exit_code == 2


@pytest.mark.real
def test_masters_of_a_real_night(data_root: Path, tmp_path: Path) -> None:
    night = data_root / "lowell_night"
    bias = masters.make("bias", [night / "bias"], tmp_path / "bias.fits")
    assert len(bias.master.used) == 7
    flat = masters.make(
        "flat", [night / "flat"], tmp_path / "flat.fits", options=CalibrateOptions(bias=str(tmp_path / "bias.fits"))
    )
    assert [name for name, _ in flat.master.refused] == ["20190326.0100.fits.fz"]
    assert flat.bad is not None
    assert np.count_nonzero(flat.bad) < 1e-4 * flat.bad.size
    lights = [open_frame(p) for p in sorted((night / "light").iterdir())[:1]]
    options = CalibrateOptions(bias=str(tmp_path / "bias.fits"), flat=str(tmp_path / "flat.fits"))
    image = load_calibration(lights, options).read(lights[0]).pixels
    assert np.isnan(image[flat.bad != 0]).all()


def test_nothing_is_written_where_nothing_can_be_made(camera: Path) -> None:
    with pytest.raises(CalibrationError, match="header says bias"):
        masters.make("dark", [str(camera / "b?.fits")], camera / "m.fits")
    with pytest.raises(FrameError):
        masters.make("bias", [str(camera / "z?.fits")], camera / "m.fits")
    assert not (camera / "m.fits").exists()
    (camera / "m.fits").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        masters.make("bias", [str(camera / "b?.fits")], camera / "m.fits")
    assert (camera / "m.fits").read_text() == "mine"
    masters.make("bias", [str(camera / "b?.fits")], camera / "m.fits", overwrite=True)
    assert not list(camera.glob(".*"))
