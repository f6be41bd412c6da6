"""Every trap in the headers of the real frames: read right, or refused with its reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.time import Time

from fastack.dates import Exposure, read_exposure
from fastack.errors import FrameError
from fastack.frames import Frame, open_frame
from fastack.guess import first_guess
from fastack.pipeline import stack
from fastack.wcs import read_wcs

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]

LIGHT = "lowell_night/light/20190326.0126.fits.fz"


def exposure_of(frame: Frame) -> Exposure:
    return read_exposure(frame.header, frame.exposure)


def test_local_time_with_an_offset_and_a_coarse_mjd(data_root: Path) -> None:
    frame = open_frame(data_root / "hatp32" / "HATP-32171220013343.FITS")
    assert frame.header["DATE-OBS"] == "2017-12-19T18:33:43.317-0700"
    found = exposure_of(frame)
    assert found.start == "2017-12-20T01:33:43.317000"
    assert frame.header["UT-OBS"] == "2017-12-20T01:33:43.317-0000"
    # MJD-OBS goes in steps of 86 s: it may differ by as much, and does not count
    assert abs(Time(found.start, scale="utc").mjd - frame.header["MJD-OBS"]) < 1e-3
    assert any("local time" in note for note in found.notes)


def test_a_header_without_wcs_whose_scale_is_nearly_right(data_root: Path) -> None:
    frame = open_frame(data_root / "hatp32" / "HATP-32171220013343.FITS")
    assert read_wcs(frame.header) is None
    guess = first_guess(frame.header, shape=frame.shape)
    assert guess.source == "RA, IM_SCALE"
    true = SkyCoord(31.08, 46.72, unit="deg")
    assert SkyCoord(guess.ra, guess.dec, unit="deg").separation(true).deg < guess.radius
    assert guess.scale_range[0] < 5.166 < guess.scale_range[1]
    assert guess.parity is None  # it is mirrored, which no card says


def test_a_date_without_time_and_the_middle_as_a_julian_date(data_root: Path) -> None:
    frame = open_frame(data_root / LIGHT)
    assert frame.header["DATE-OBS"] == "2019-03-26"
    found = exposure_of(frame)
    assert "time of day from UTCSTART" in found.notes
    middle = Time(found.start, scale="utc").jd + frame.exposure / 2 / 86400
    assert (middle - float(frame.header["MIDTIMJD"])) * 86400 == pytest.approx(0, abs=3)


def test_a_wcs_of_strings_with_tpv_terms_under_tan(data_root: Path) -> None:
    frame = open_frame(data_root / LIGHT)
    assert isinstance(frame.header["CRVAL1"], str)
    assert frame.header["CTYPE1"].strip().endswith("TAN")
    guess = first_guess(frame.header, shape=frame.shape)
    assert guess.source == "header WCS, WCS scale"  # and not PIXSCAL or SECPIX, which are wrong
    assert guess.scale == pytest.approx(1.107, rel=2e-3)
    assert abs(float(frame.header["PIXSCAL"]) / 1.107 - 1) > 0.02
    assert SkyCoord(guess.ra, guess.dec, unit="deg").separation(SkyCoord(124.618, 25.329, unit="deg")).arcmin < 3


def test_axes_that_are_no_sky(data_root: Path) -> None:
    frames = [open_frame(path) for path in sorted((data_root / "lowell_night").glob("*/*.fz"))]
    linear = [frame for frame in frames if "Linear" in str(frame.header.get("CTYPE1"))]
    assert linear
    for frame in linear:
        assert read_wcs(frame.header) is None, frame.path
        assert "WCS" not in first_guess(frame.header, shape=frame.shape).source, frame.path


def test_cdelt_with_crota_and_a_wrong_scale(data_root: Path) -> None:
    frame = open_frame(data_root / "m27_osc" / "Light_1069.fits")
    assert "CROTA2" in frame.header
    assert "CD1_1" not in frame.header
    guess = first_guess(frame.header, shape=frame.shape)
    assert guess.scale == pytest.approx(1.517, rel=1e-3)
    assert guess.scale_range[0] < 1.4817 < guess.scale_range[1]


def test_a_decimal_comma_and_a_file_that_ends_in_the_middle(data_root: Path) -> None:
    assert open_frame(data_root / "malformed" / "Bias_decimal_comma_exptime.fit").exposure == pytest.approx(3.2e-5)
    assert open_frame(data_root / "malformed" / "Flat_ok.fit.gz").exposure == pytest.approx(0.01)
    with pytest.raises(FrameError, match=r"truncated: 2097152 of 2463360 bytes .*leave it out"):
        open_frame(data_root / "malformed" / "Flat_truncated_2MiB.fit")


@pytest.mark.parametrize("night", ["hatp32/*.FITS", "lowell_night/light/*.fz", "m27_osc/*.fits"])
def test_nothing_of_the_dirt_is_written(data_root: Path, tmp_path: Path, night: str) -> None:
    """Three frames stacked: every card is sound, and the WCS is of numbers in one form."""
    target = tmp_path / "mosaic.fits"
    stack(sorted(data_root.glob(night))[:3], output_path=target)
    with fits.open(target, checksum=True) as file:
        file.verify("exception")
        header = file[0].header
        assert not [k for k in header if k.startswith(("CDELT", "CROTA", "PC1", "PC2"))]
        assert all(np.isscalar(header[k]) and not isinstance(header[k], str) for k in header["CR*"] if k[:3] == "CRV")
        assert header["NCOMBINE"] == 3
        assert (
            Time(header["DATE-BEG"]) <= Time(header["DATE-OBS"]) <= Time(header["DATE-AVG"]) < Time(header["DATE-END"])
        )
    if program := shutil.which("fitsverify"):
        done = subprocess.run([program, "-q", str(target)], capture_output=True, text=True)
        assert done.stdout.startswith("verification OK"), done.stdout
