"""Places and scales as headers state them."""

from __future__ import annotations

import pytest
from astropy.io import fits

from fastack.guess import first_guess


def test_guess_from_a_plain_header():
    header = fits.Header([("NAXIS1", 650), ("NAXIS2", 500), ("RA", 31.312099), ("DEC", 46.769087), ("IM_SCALE", 5.21)])
    guess = first_guess(header)
    assert (guess.ra, guess.dec, guess.scale) == (31.312099, 46.769087, 5.21)
    assert guess.radius == pytest.approx(1.5 * 650 * 5.21 / 3600)
    assert guess.parity is None
    assert guess.source == "RA, IM_SCALE"


@pytest.mark.parametrize(
    ("ra", "dec", "where"),
    [
        ("19 59 41.99", "22 43 19.37", (299.924958, 22.722047)),
        ("19:59:41.99", "-22:43:19.37", (299.924958, -22.722047)),
        ("19h59m41.99s", "-00d43m19.37s", (299.924958, -0.722047)),
        ("299.924958", "+22,722047", (299.924958, 22.722047)),
        ("299d55m29.85s", "22 43", (299.924958, 22.716667)),
        ("19 59,5", "+22 43 19,37", (299.875, 22.722047)),
    ],
)
def test_positions_as_they_occur(ra, dec, where):
    guess = first_guess({"OBJCTRA": ra, "OBJCTDEC": dec})
    assert (guess.ra, guess.dec) == pytest.approx(where, abs=1e-5)
    given = first_guess(None, centre=(ra, dec))
    assert (given.ra, given.dec) == pytest.approx(where, abs=1e-5)


@pytest.mark.parametrize(
    ("ra", "dec"), [("19 75 00", "1 0 0"), ("none", "1"), (400.0, 1.0), (10.0, 91.0), ("", ""), (None, 1)]
)
def test_nonsense_is_no_position(ra, dec):
    assert first_guess({"RA": ra, "DEC": dec}).ra is None
    with pytest.raises(ValueError, match="centre"):
        first_guess(None, centre=(ra, dec))


def test_hours_by_the_comment_and_old_equinox():
    header = fits.Header([("RA", 6.5, "[hours] right ascension"), ("DEC", 10.0)])
    assert first_guess(header).ra == pytest.approx(97.5)
    old = first_guess({"RA": "0 0 0", "DEC": "0 0 1", "EQUINOX": 1950.0})
    assert (old.ra, old.dec) == pytest.approx((0.6406, 0.2786), abs=2e-3)


def test_scale_from_pixels_and_focal_length():
    common = {"FOCALLEN": 510.0, "RA": 1.0, "DEC": 1.0}
    assert first_guess(common | {"PIXSIZE1": 3.75, "XBINNING": 2}).scale == pytest.approx(2 * 1.51666, rel=1e-4)
    assert first_guess(common | {"XPIXSZ": "7,5", "XBINNING": 2}).scale == pytest.approx(2 * 1.51666, rel=1e-4)
    assert first_guess(common).scale is None
    assert first_guess(common).scale_range == (0.1, 60.0)
    assert first_guess(common, pixel_scale=2.0).scale == 2.0
    with pytest.raises(ValueError, match="pixel_scale"):
        first_guess(common, pixel_scale=-1)
