"""Frames: files as they occur, their headers, and the errors that name what is wrong."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import warnings

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from fastack.calibrate import decode
from fastack.cards import Cards, parse_number
from fastack.errors import FrameError
from fastack.files import find_frames
from fastack.frames import open_frame
from fastack.options import CalibrateOptions

IMAGE = (np.arange(12 * 20).reshape(12, 20) * 7 % 1000).astype(np.int16)


def write(path, data=IMAGE, cards=(), **kwargs):
    hdu = fits.PrimaryHDU(data)
    for card in cards:
        hdu.header.append(card if isinstance(card, fits.Card) else fits.Card(*card))
    hdu.writeto(path, **kwargs)
    return path


def write_raw(path, cards, data=IMAGE):
    """Write a file whose cards stand as given, whatever the standard says of them."""
    structure = [
        f"{key:<8}= {value:>20}"
        for key, value in (
            ("SIMPLE", "T"),
            ("BITPIX", 16),
            ("NAXIS", 2),
            ("NAXIS1", data.shape[1]),
            ("NAXIS2", data.shape[0]),
        )
    ]
    text = b"".join(
        (card if isinstance(card, bytes) else card.encode("latin1")).ljust(80)[:80]
        for card in [*structure, *cards, "END"]
    )
    body = data.astype(">i2").tobytes()
    path.write_bytes(text.ljust(-(-len(text) // 2880) * 2880) + body.ljust(-(-len(body) // 2880) * 2880, b"\0"))
    return path


# ---- pixels


def test_pixels_where_the_frame_says(tmp_path):
    frame = open_frame(write(tmp_path / "a.fits", IMAGE.astype(np.uint16)))
    assert (frame.raw_shape, frame.shape, frame.bitpix, frame.bzero) == ((12, 20), (12, 20), 16, 32768)
    rows = frame.read_raw(3, 7)
    np.testing.assert_array_equal(decode(rows, frame.bitpix, frame.bscale, frame.bzero), IMAGE[3:7])
    with open(frame.path, "rb") as file:
        file.seek(frame.data_offset)
        assert file.read(frame.plane.nbytes) == frame.read_raw(0, 12).tobytes()


def test_compressed_files_hold_the_same_pixels(tmp_path):
    plain = open_frame(write(tmp_path / "a.fits", IMAGE.astype(np.uint16)))
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress(plain.path.read_bytes()))
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(IMAGE.astype(np.uint16), compression_type="RICE_1")]).writeto(
        tmp_path / "c.fits.fz"
    )
    for name in ("b.fits.gz", "c.fits.fz"):
        frame = open_frame(tmp_path / name)
        assert frame.shape == plain.shape
        assert frame.bzero == 32768
        np.testing.assert_array_equal(frame.read_raw(0, 12), plain.read_raw(0, 12), err_msg=name)
        np.testing.assert_array_equal(frame.read_raw(4, 6), plain.read_raw(4, 6), err_msg=name)
        assert "TTYPE1" not in frame.header
        assert frame.header["NAXIS1"] == 20


def test_frames_hold_no_file_and_travel(tmp_path):
    frame = open_frame(write(tmp_path / "a.fits", cards=[("OBJECT", "M27")]))
    opened = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    frames = [open_frame(frame.path) for _ in range(20)]
    assert not opened or len(os.listdir("/proc/self/fd")) <= len(opened)
    copy = pickle.loads(pickle.dumps(frames[0]))
    assert copy.object == "M27"
    np.testing.assert_array_equal(copy.read_raw(0, 12), frame.read_raw(0, 12))


# ---- files that cannot be used


def test_every_broken_file_is_named_with_cause_and_way_out(tmp_path):
    good = write(tmp_path / "good.fits")
    whole = good.read_bytes()
    cases = {
        "empty.fits": (b"", "is empty"),
        "text.fits": (b"hello world" * 1000, "not a FITS file"),
        "picture.fits": (b"\x89PNG" + bytes(9999), "looks like PNG"),
        "header.fits": (whole[:300], "no END card"),
        "short.fits": (whole[: 2880 + 100], "truncated: 2980 of 3360"),
        "short.fits.gz": (gzip.compress(whole)[:-200], "gzip"),
    }
    for name, (content, cause) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FrameError, match=cause) as caught:
            open_frame(tmp_path / name).read_raw(0, 12)
        assert str(tmp_path / name) in str(caught.value)
        assert ";" in str(caught.value), "the way out is missing"
    with pytest.raises(FrameError, match="no such file"):
        open_frame(tmp_path / "absent.fits")
    with pytest.raises(FrameError, match="is a directory"):
        open_frame(tmp_path)


def test_unpadded_end_is_no_truncation(tmp_path):
    path = write(tmp_path / "a.fits")
    path.write_bytes(path.read_bytes()[: 2880 + IMAGE.nbytes])
    np.testing.assert_array_equal(decode(open_frame(path).read_raw(0, 12), 16), IMAGE)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(tmp_path):
    path = write(tmp_path / "a.fits")
    path.chmod(0)
    with pytest.raises(FrameError, match="permission"):
        open_frame(path)


def test_permission_error_is_worded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.fits")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(FrameError, match="may not be read; ask its owner"):
        open_frame(path)


def test_changes_between_the_passes_are_noticed(tmp_path):
    path = write(tmp_path / "a.fits")
    frame = open_frame(path)
    frame.check_unchanged()
    os.utime(path, ns=(1, 1))
    with pytest.raises(FrameError, match="changed while it was used"):
        frame.check_unchanged()
    with pytest.raises(FrameError, match="changed while it was used"):
        frame.read_raw(0, 1)
    path.unlink()
    with pytest.raises(FrameError, match="no such file"):
        frame.check_unchanged()


@pytest.mark.parametrize(
    ("shape", "cause"),
    [
        ((3, 12, 20), "colour image"),
        ((5, 12, 20), "cube"),
        ((20,), "no two-dimensional image"),
        (None, "no two-dim"),
    ],
)
def test_not_an_image(tmp_path, shape, cause):
    path = write(tmp_path / "a.fits", None if shape is None else np.zeros(shape, np.float32))
    with pytest.raises(FrameError, match=cause):
        open_frame(path)


def test_a_cube_of_one_plane_is_an_image(tmp_path):
    assert open_frame(write(tmp_path / "a.fits", IMAGE[None])).shape == (12, 20)


# ---- several images in a file


@pytest.fixture
def mef(tmp_path):
    primary = fits.PrimaryHDU()
    primary.header["OBJECT"], primary.header["EXPTIME"] = "primary", 30.0
    primary.header["HISTORY"] = "of the primary"
    sci = fits.ImageHDU(IMAGE, name="SCI")
    sci.header["OBJECT"] = "extension"
    other = fits.ImageHDU(IMAGE + 1, name="SCI2")
    mask = fits.ImageHDU((IMAGE > 900).astype(np.uint8), name="MASK")
    fits.HDUList([primary, mask, sci, other]).writeto(tmp_path / "a.fits")
    return tmp_path / "a.fits"


def test_first_image_is_used_and_said(mef):
    frame = open_frame(mef)
    assert frame.hdu == 2
    assert any("SCI" in note and "SCI2" in note for note in frame.assumptions)
    assert (frame.object, frame.exposure) == ("extension", 30.0)
    assert "of the primary" in str(frame.header["HISTORY"])
    assert frame.mask is not None
    assert frame.mask.hdu == 1


@pytest.mark.parametrize(("wanted", "hdu"), [("SCI2", 3), ("sci2", 3), ("3", 3), ("MASK", 1)])
def test_another_image_on_request(mef, wanted, hdu):
    frame = open_frame(f"{mef}[{wanted}]")
    assert (frame.hdu, frame.name) == (hdu, f"a.fits[{wanted}]")
    assert frame.path == mef
    assert find_frames([f"{mef}[{wanted}]"]) == [type(mef)(f"{mef}[{wanted}]")]


def test_an_extension_that_is_not_there(mef):
    with pytest.raises(FrameError, match=r"no extension 'NOPE'; it holds 0, 1 MASK, 2 SCI, 3 SCI2"):
        open_frame(f"{mef}[NOPE]")


def test_companions_beside_the_frame(tmp_path):
    path = write(tmp_path / "d1.fits")
    write(tmp_path / "d1.weight.fits", np.ones((12, 20), np.float32))
    dotted = write(tmp_path / "d2.0126.fits")
    write(tmp_path / "d2.0126_weight.fit", np.ones((12, 20), np.float32))
    write(tmp_path / "d1_mask.fits", np.zeros((4, 4), np.uint8))
    frame = open_frame(path)
    assert frame.weight is not None
    assert frame.mask is None
    assert any("4 x 4 does not fit" in note for note in frame.assumptions)
    assert open_frame(dotted).weight.path.name == "d2.0126_weight.fit"
    assert find_frames(directory=tmp_path) == [path, dotted]


# ---- headers


BAD_CARDS = [
    "EXPTIME =              3,2E-05 / decimal comma",
    "OBJECT  = M 27 without quotes",
    "FILTER  = 'never closed",
    "gain    =                  1.5 / small letters",
    "RDNOISE =5.5",
    "AIRMASS =                  NaN",
    "JD      =       inf / no number",
    "no card at all, but a sentence that somebody typed",
    "DATE-OBS= 2019-01-30T00:00:00",
    b"OBSERVER= 'J\xe9r\xf4me'",
    b"TELESCOP= '\x00\x01\x7f'",
    "SITE    = 'it''s / here' / a slash in a text",
    "ODD     = 'a'b'",
    "HIERARCH ESO DET WIN1 = 3 / fine",
    "HIERARCH broken",
    "CONTINUE  'without a beginning'",
    "        = 5",
    "=====",
    "EQUINOX = ",
    "D/ATE   =                    1",
]


def access_everything(header):
    for card in header.cards:
        _ = card.keyword, card.value, card.comment, str(card)
    for keyword in set(header):
        _ = header[keyword], header.comments[keyword]
    copy = fits.Header.fromstring(header.tostring())
    assert len(copy) == len(header)


def test_malformed_cards_are_mended_and_told(tmp_path):
    frame = open_frame(write_raw(tmp_path / "a.fits", BAD_CARDS))
    access_everything(frame.header)
    assert frame.exposure == pytest.approx(3.2e-5)
    assert frame.object == "M 27 without quotes"
    assert frame.filter == "never closed"
    assert (frame.gain, frame.rdnoise) == (1.5, 5.5)
    assert frame.header["SITE"] == "it's / here"
    assert frame.header["ESO DET WIN1"] == 3
    assert frame.header["OBSERVER"] == "J?r?me"
    told = " ".join(frame.assumptions)
    assert "EXPTIME '3,2E-05' read as the number 3.2e-05 with a decimal comma" in told
    assert "somebody" in str(frame.header["COMMENT"])


KEYWORDS = [
    "EXPTIME",
    "GAIN",
    "OBJECT",
    "TRIMSEC",
    "BIASSEC",
    "SATURATE",
    "CCDSUM",
    "CD1_1",
    "NCOMBINE",
    "BZERO",
]
CARDS = st.one_of(
    st.binary(max_size=80),
    st.text("ABCDEFGH'/=& .,0123456789+-ET()", max_size=80).map(str.encode),
    st.builds(
        lambda keyword, text: f"{keyword:<8}= {text}".encode(),
        st.sampled_from(KEYWORDS),
        st.text("'/ 0123456789.,+-EeD[]:TF&x", max_size=60),
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(CARDS.filter(lambda card: b"END" not in card), max_size=12))
def test_no_header_raises(tmp_path_factory, cards):
    path = write_raw(tmp_path_factory.getbasetemp() / "fuzz.fits", cards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = open_frame(path)
        access_everything(frame.header)
    assert frame.shape[0] >= 1


def test_long_strings_go_on(tmp_path):
    text = "a long comment that goes on and on " * 6
    path = write(tmp_path / "a.fits", cards=[("LONGTEXT", text.strip())])
    assert open_frame(path).header["LONGTEXT"] == text.strip()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.5", 1.5),
        (" 3,2E-05 ", 3.2e-5),
        ("1D3", 1000.0),
        ("-2", -2.0),
        ("", None),
        ("1,234.5", None),
        ("12h", None),
    ],
)
def test_parse_number(text, number):
    assert parse_number(text) == number


def test_numbers_the_user_gives_count_first(tmp_path):
    path = write(tmp_path / "a.fits", cards=[("GAIN", 1.5), ("RDNOISE", 5.0), ("SATURATE", 4000)])
    frame = open_frame(path)
    assert (frame.gain, frame.rdnoise, frame.saturation, frame.saturation_guessed) == (1.5, 5.0, 4000, False)
    frame = open_frame(path, options=CalibrateOptions(gain=2.0, rdnoise=7.0, saturation=3000))
    assert (frame.gain, frame.rdnoise, frame.saturation) == (2.0, 7.0, 3000)


@pytest.mark.parametrize(
    ("cards", "gain"),
    [
        ([("GAIN", 180)], None),
        ([("GAIN", 0)], None),
        ([("GAIN", 2.0)], 2.0),
        ([("GAIN", 2), ("INSTRUME", "ZWO ASI224MC")], None),
        ([("GAIN", 2), ("INSTRUME", "ZWO ASI224MC"), ("EGAIN", 0.8)], 0.8),
        ([("GAIN", 40.0, "[e-/ADU] conversion")], 40.0),
        ([("GAIN", "1,3")], 1.3),
        ([("AAMP_01", 0), ("AAMP_02", 1), ("AGAIN_01", 3.0), ("AGAIN_02", 4.0)], 4.0),
        ([], None),
    ],
)
def test_gain_is_electrons_per_adu_or_unknown(tmp_path, cards, gain):
    assert open_frame(write(tmp_path / "a.fits", cards=cards)).gain == gain


@pytest.mark.parametrize(
    ("cards", "scale"),
    [
        ([("CTYPE1", "RA---TAN"), ("CD1_1", -2e-4), ("CD2_2", 2e-4), ("SECPIX", 9.0)], 0.72),
        ([("CTYPE1", "RA---TAN"), ("CDELT1", -2e-4), ("CDELT2", 2e-4)], 0.72),
        ([("CTYPE1", "RA---TAN"), ("CD1_1", "-2e-4"), ("CD2_2", "2e-4")], 0.72),
        ([("CTYPE1", "Linear"), ("CD1_1", 1.0), ("CD2_2", 1.0), ("SECPIX1", -0.5)], 0.5),
        ([("XPIXSZ", 9.0), ("FOCALLEN", 1000.0), ("XBINNING", 2)], 1.8564),
        ([("PIXSIZE1", 9.0), ("FOCALLEN", 1000.0), ("XBINNING", 2)], 3.7128),
        ([("FOCALLEN", 0), ("XPIXSZ", 9.0)], None),
    ],
)
def test_pixel_scale(tmp_path, cards, scale):
    found = open_frame(write(tmp_path / "a.fits", cards=cards)).pixel_scale
    assert found == (scale if scale is None else pytest.approx(scale, rel=1e-4))


@pytest.mark.parametrize(
    ("trimsec", "biassec", "trim", "overscan"),
    [
        ("[1:16,1:12]", "[18:20,1:12]", (0, 12, 0, 16), (0, 12, 17, 20)),
        ("[1:16,1:12]", None, (0, 12, 0, 16), None),
        ("[1:99,1:12]", "[18:20,1:12]", (0, 12, 0, 20), None),
        ("nonsense", "[0:0,0:0]", (0, 12, 0, 20), None),
        ("[3:18,1:12]", "[1:5,1:12]", (0, 12, 2, 18), None),
    ],
)
def test_sections(tmp_path, trimsec, biassec, trim, overscan):
    cards = [(k, v) for k, v in (("TRIMSEC", trimsec), ("BIASSEC", biassec)) if v]
    frame = open_frame(write(tmp_path / "a.fits", cards=cards))
    assert (frame.trim, frame.overscan) == (trim, overscan)


@pytest.mark.parametrize(
    ("card", "kind"),
    [
        (("IMAGETYP", "Light Frame"), "light"),
        (("IMAGETYP", "SKYFLAT"), "flat"),
        (("OBSTYPE", "zero"), "bias"),
        (("FRAME", "Dark"), "dark"),
        (("FOO", 1), "unknown"),
    ],
)
def test_image_type(tmp_path, card, kind):
    assert open_frame(write(tmp_path / "a.fits", cards=[card])).image_type == kind


def test_kelvin_and_units_of_time(tmp_path):
    cards = [("CAMTEMP", 271.0), ("EXPOINUS", 2500), ("CCDSUM", "3 2"), ("NCOMBINE", 4), ("BAYERPAT", "RGGB")]
    frame = open_frame(write(tmp_path / "a.fits", cards=cards))
    assert frame.temperature == pytest.approx(-2.15)
    assert frame.exposure == pytest.approx(0.0025)
    assert (frame.binning, frame.ncombine, frame.bayer) == ((3, 2), 4, "RGGB")


# ---- finding files


def test_products_are_no_frames(tmp_path):
    products = ("mosaic.fits", "amosaic_gaia.fits", "ad0001.fits", "master_flat.fits")
    for name in ("d1.fits", "d10.fits", "d2.fits", "dark_1.FITS", *products):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert [p.name for p in find_frames(directory=tmp_path)] == ["d1.fits", "d2.fits", "d10.fits"]
    assert [p.name for p in find_frames([tmp_path])] == ["d1.fits", "d2.fits", "d10.fits", "dark_1.FITS"]
    assert [p.name for p in find_frames(["*.fits"], directory=tmp_path)] == ["d1.fits", "d2.fits", "d10.fits"]
    assert [p.name for p in find_frames(["mosaic.fits", "d1.fits"], directory=tmp_path)] == [
        "d1.fits",
        "mosaic.fits",
    ]


def test_lists_and_duplicates(tmp_path):
    for name in ("d1.fits", "d2.fits", "d3.fits"):
        write(tmp_path / name)
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "list.txt").write_text("# a comment\n\n../d2.fits  # the second\n../d[13].fits\n")
    found = find_frames([f"@{sub / 'list.txt'}", tmp_path / "d2.fits"])
    assert [p.name for p in found] == ["d1.fits", "d2.fits", "d3.fits"]


def test_nothing_found_names_what_was_looked_for(tmp_path):
    with pytest.raises(FrameError, match=r"looked for d\*\.fits in"):
        find_frames(directory=tmp_path)
    write(tmp_path / "d1.fits")
    with pytest.raises(FrameError, match=r"looked for x\*\.fits"):
        find_frames(["d1.fits", "x*.fits"], directory=tmp_path)
    with pytest.raises(FrameError, match="no such file"):
        find_frames(["d7.fits"], directory=tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(FrameError, match="names no frame"):
        find_frames(["@empty.txt"], directory=tmp_path)
    (tmp_path / "loop.txt").write_text("@loop.txt\n")
    with pytest.raises(FrameError, match="names itself"):
        find_frames(["@loop.txt"], directory=tmp_path)


# ---- real frames


@pytest.mark.real
def test_lowell_header(data_root):
    frame = open_frame(data_root / "lowell_night/light/20190326.0126.fits.fz")
    assert (frame.gain, frame.rdnoise) == (4.95, 9.3)
    assert (frame.trim, frame.overscan) == ((0, 1370, 17, 1382), (0, 1370, 1387, 1432))
    assert (frame.filter, frame.exposure, frame.binning) == ("VR", 300.0, (3, 3))
    assert frame.pixel_scale == pytest.approx(1.107, abs=0.001)
    assert frame.image_type == "light"
    assert any("stored as text" in note for note in frame.assumptions)
    with fits.open(frame.path) as file:
        np.testing.assert_array_equal(decode(frame.read_raw(0, 1370), 16, 1, 32768), file[1].data)
    assert open_frame(data_root / "lowell_night/flat/20190326.0100.fits.fz").filter == "V"


@pytest.mark.real
def test_every_real_header_is_readable(data_root):
    paths = [p for p in data_root.rglob("*") if p.name.lower().endswith((".fits", ".fit", ".fz", ".gz"))]
    paths = [p for p in paths if p.parent.name in ("hatp32", "light", "flat", "bias", "m27_osc", "malformed")]
    assert len(paths) > 150
    for path in paths:
        if "truncated" in path.name:
            with pytest.raises(FrameError, match="truncated: 2097152 of 2463360"):
                open_frame(path)
            continue
        access_everything(open_frame(path).header)


@pytest.mark.real
def test_malformed_and_camera_gain(data_root):
    bias = open_frame(data_root / "malformed/Bias_decimal_comma_exptime.fit")
    assert bias.exposure == pytest.approx(3.2e-5)
    assert any("decimal comma" in note for note in bias.assumptions)
    m27 = open_frame(data_root / "m27_osc/Light_1069.fits")
    assert m27.gain is None
    assert any("GAIN 180" in note for note in m27.assumptions)
    assert m27.bayer == "RGGB"
    hatp32 = open_frame(data_root / "hatp32/HATP-32171220013343.FITS")
    assert (hatp32.exposure, hatp32.object, hatp32.pixel_scale) == (60.0, "HATP-32", 5.21)


# ---- single values, read from the text

VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=180),
)
COMMENTS = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="'"), max_size=20)
KEYWORDS = st.one_of(st.from_regex(r"[A-Z][A-Z0-9_-]{0,7}", fullmatch=True), st.just("ESO DET OUT1 RON"))


def assert_same_values(header: fits.Header, cards: Cards) -> None:
    for keyword in {k for k in header if k not in ("COMMENT", "HISTORY", "")}:
        expected = header[keyword]
        expected = "" if expected is None or isinstance(expected, fits.card.Undefined) else expected
        assert cards.get(keyword) == expected, keyword
        assert type(cards.get(keyword)) is type(expected), keyword
        if len(header.cards[keyword].image) == 80:
            assert cards.comment(keyword) == header.comments[keyword].lower(), keyword


@given(st.lists(st.tuples(KEYWORDS, VALUES, COMMENTS), max_size=8))
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_values_are_those_that_astropy_reads(entries):
    header = fits.Header()
    for keyword, value, comment in entries:
        if keyword not in ("END", "COMMENT", "HISTORY", "CONTINUE", "SIMPLE", "XTENSION", "HIERARCH"):
            header[keyword] = (value, comment)
    text = header.tostring(endcard=False, padding=False)
    assert_same_values(fits.Header.fromstring(text), Cards(text))
    assert_same_values(fits.Header.fromstring(text), Cards.of(header))


@pytest.mark.parametrize(
    "card",
    [
        "GAIN    = 1.50D+00 / e-/ADU",
        "GAIN    =                   1. / x",
        "GAIN    =                  .5",
        "GAIN    =                  007",
        "GAIN    = +3",
        "GAIN    =                      / no value",
        "GAIN    = (1.5, -2E3) / complex",
        "GAIN    = 'O''Brien''s  '   / it''s",
        "GAIN    = ''",
        "GAIN    = '   '",
        "GAIN    = '  leading'/tight",
        "GAIN    = 'a / b' / c / d",
        "HIERARCH ESO DET OUT1 CONAD = 2.5 / [e-/ADU]",
        "HIERARCH ESO INS NAME='long name'",
    ],
)
def test_odd_values_are_those_that_astropy_reads(card):
    text = f"{card:<80}"
    assert_same_values(fits.Header.fromstring(text), Cards(text))


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_values_of_real_headers_are_those_that_astropy_reads(data_root):
    frames = []
    for path in sorted(p for p in data_root.rglob("*") if p.suffix.lower() in (".fits", ".fit", ".fz", ".gz")):
        with contextlib.suppress(FrameError):
            frames.append(open_frame(path))
    assert frames
    for frame in frames:
        assert_same_values(frame.header, Cards(frame.cards))
