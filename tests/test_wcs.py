"""Celestial coordinates: dirty cards in, one clean representation out."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from fastack import wcs
from fastack.errors import FrameError


def tan_header(**more: object) -> fits.Header:
    head = fits.Header()
    head["CTYPE1"], head["CTYPE2"] = "RA---TAN", "DEC--TAN"
    head["CRVAL1"], head["CRVAL2"] = 124.6, 25.3
    head["CRPIX1"], head["CRPIX2"] = 716.0, 685.0
    head["CD1_1"], head["CD1_2"], head["CD2_1"], head["CD2_2"] = -3e-4, 1e-5, 1e-5, 3e-4
    for key, value in more.items():
        head[key] = value
    return head


def test_strings_are_read_as_numbers() -> None:
    plain = tan_header()
    dirty = fits.Header()
    for card in plain.cards:
        dirty[card.keyword] = str(card.value)
    xy = [[0.0, 0.0], [1400.0, 1300.0]]
    np.testing.assert_allclose(wcs.read_wcs(dirty).all_pix2world(xy, 0), wcs.read_wcs(plain).all_pix2world(xy, 0))


def test_cdelt_with_crota_is_understood() -> None:
    head = fits.Header()
    head["CTYPE1"], head["CTYPE2"] = "RA---TAN", "DEC--TAN"
    head["CRVAL1"], head["CRVAL2"], head["CRPIX1"], head["CRPIX2"] = 300.0, 22.7, 652.0, 488.0
    head["CDELT1"], head["CDELT2"], head["CROTA2"] = -4e-4, 4e-4, 30.0
    found = wcs.read_wcs(head)
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    np.testing.assert_allclose(found.pixel_scale_matrix, [[-4e-4 * c, -4e-4 * s], [-4e-4 * s, 4e-4 * c]], atol=1e-12)


@pytest.mark.parametrize(
    "broken", [{"CTYPE1": "Linear Unbinned ADC Pixels"}, {"CRVAL1": "none"}, {"CD1_1": 0.0, "CD1_2": 0.0}]
)
def test_no_wcs_where_there_is_none(broken: dict[str, object]) -> None:
    assert wcs.read_wcs(tan_header(**broken)) is None
    assert wcs.read_wcs(fits.Header()) is None


def test_one_representation_is_written_and_moves_with_the_grid() -> None:
    source = WCS(tan_header())
    made = wcs.wcs_cards(source, (10.0, -7.0))
    assert not [k for k in made if k.startswith(("PC", "CDELT", "CROTA"))]
    np.testing.assert_allclose(
        WCS(made).all_pix2world([[100.0, 200.0]], 0), source.all_pix2world([[110.0, 193.0]], 0), atol=1e-12
    )


def test_strip_takes_everything_out() -> None:
    head = tan_header(PV1_1=1.0, A_ORDER=2, A_0_2=1e-6, RADESYS="ICRS", EQUINOX=2000.0, OBJECT="x")
    assert list(wcs.strip_wcs(head)) == ["OBJECT"]


def test_grid_from_text_and_its_errors(tmp_path) -> None:
    head = tan_header(NAXIS1=300, NAXIS2=200)
    path = tmp_path / "grid.head"
    path.write_text(head.tostring(sep="\n"))
    found, shape = wcs.read_grid(str(path))
    assert shape == (200, 300)
    np.testing.assert_allclose(found.wcs.crval, [124.6, 25.3])
    path.write_text("OBJECT  = 'x'")
    with pytest.raises(FrameError, match="no celestial WCS"):
        wcs.read_grid(str(path))
    with pytest.raises(FrameError, match="cannot be read"):
        wcs.read_grid(str(tmp_path / "absent"))


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_pv_terms_under_tan_are_taken_as_tpv(data_root) -> None:
    head = fits.getheader(data_root / "lowell_night/light/20190326.0126.fits.fz", 1)
    pixel = np.array([30.0, 1300.0])
    found = wcs.read_wcs(head).all_pix2world([pixel], 0)[0]

    def card(key: str) -> float:
        return float(head.get(key, 0.0))

    matrix = np.array([[card("CD1_1"), card("CD1_2")], [card("CD2_1"), card("CD2_2")]])
    u, v = matrix @ (pixel + 1 - [card("CRPIX1"), card("CRPIX2")])
    # the TPV convention: the axes' own coordinate comes first in each polynomial
    terms = {
        0: (0, 0),
        1: (1, 0),
        2: (0, 1),
        4: (2, 0),
        5: (1, 1),
        6: (0, 2),
        7: (3, 0),
        8: (2, 1),
        9: (1, 2),
        10: (0, 3),
    }
    xi = sum(card(f"PV1_{k}") * u**i * v**j for k, (i, j) in terms.items())
    eta = sum(card(f"PV2_{k}") * v**i * u**j for k, (i, j) in terms.items())
    np.testing.assert_allclose(found, _tan(card("CRVAL1"), card("CRVAL2"), xi, eta), atol=1e-9)


def _tan(ra: float, dec: float, xi: float, eta: float) -> np.ndarray:
    """Gnomonic projection by hand (Calabretta & Greisen 2002, section 5.1.3)."""
    a0, d0 = np.radians([ra, dec])
    x, y = np.radians([xi, eta])
    bottom = np.cos(d0) - y * np.sin(d0)
    a = a0 + np.arctan2(x, bottom)
    d = np.arctan2(np.sin(d0) + y * np.cos(d0), np.hypot(x, bottom))
    return np.degrees([a, d])
