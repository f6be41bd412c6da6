"""How deep a catalogue is wanted."""

from __future__ import annotations

import pytest

from fastack.surveys import magnitude_limit
from fastack.tables import read_file


@pytest.mark.real
def test_magnitude_limits_follow_the_star_counts(data_root):
    bright = read_file(data_root / "catalogues" / "gaia_G7_pm_j2016.csv")
    # the whole sky to G = 7: the limit that asks for as many stars as there are is 7, but 8 is the least
    assert magnitude_limit("gaia", len(bright), 41253, margin=1.0) == 8.0
    assert magnitude_limit("gaia", int((bright.mag < 7).sum() * 10**0.45), 41253, margin=1.0) == pytest.approx(
        8, abs=0.3
    )
    for name in ("gaia_dr2_chunk_03687.fits", "gaia_dr2_chunk_05483.fits"):
        stars = read_file(data_root / "catalogues" / name)
        for limit in (14, 16, 18):
            n = int((stars.mag < limit).sum())
            # half a magnitude is 0.17 dex of the counts; single fields differ more than that, these do not
            assert magnitude_limit("gaia", n, 0.05246, margin=1.0) == pytest.approx(limit, abs=0.6)


def test_magnitude_limits_are_bounded_and_rise():
    limits = [magnitude_limit("gaia", n, 0.1) for n in (0, 10, 100, 1000, 10_000, 10**7)]
    assert limits == sorted(limits)
    assert limits[-1] == 21.5
    assert magnitude_limit("ucac4", 10_000, 0.1) == 17.0
    assert magnitude_limit("my.fits", 10**6, 0.1) == 21.5
    assert magnitude_limit("gaia", 20, 100.0) == 8.0  # a wide and shallow image does not fetch a million stars
    with pytest.raises(ValueError, match="area"):
        magnitude_limit("gaia", 10, 0.0)


# --- formats
