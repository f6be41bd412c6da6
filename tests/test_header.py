"""What a stack's header says of gain, read noise and provenance."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from fastack import header


def cards(**values: object) -> fits.Header:
    head = fits.Header()
    for key, value in values.items():
        head[key.replace("_", "-")] = value
    return head


def test_gain_of_equal_frames_is_n_times_the_frames_own() -> None:
    n, ones = 9, np.ones(9)
    assert header.effective_gain(ones, ones, 1.7 * ones) == pytest.approx(n * 1.7)
    assert header.effective_rdnoise(ones, ones, 1.7 * ones, 5 * ones) == pytest.approx(3 * 5)


def test_nine_frames_of_a_hundred_counts_have_an_error_of_one_thirtieth() -> None:
    gain = header.effective_gain(np.ones(9), np.ones(9), np.ones(9))
    electrons = 100 * gain
    assert np.sqrt(electrons) / electrons == pytest.approx(1 / 30)


def test_effective_gain_predicts_the_noise_of_a_weighted_scaled_average() -> None:
    rng = np.random.default_rng(7)
    n, trials = 5, 40_000
    w, s, g, r = (rng.uniform(0.5, 2, n) for _ in range(4))
    level = 400.0  # ADU on the reference's scale
    electrons = rng.poisson(level / s * g, (trials, n)) + rng.normal(0, r, (trials, n))
    y = (electrons / g * s) @ w / w.sum()
    gain, noise = header.effective_gain(w, s, g), header.effective_rdnoise(w, s, g, r)
    predicted = level / gain + (noise / gain) ** 2
    # the relative error of a variance from n normal samples is sqrt(2 / n)
    assert y.var() == pytest.approx(predicted, rel=5 * np.sqrt(2 / trials))


def test_base_cards_keep_the_target_and_drop_what_is_no_longer_true() -> None:
    head = cards(OBJECT="M27", FILTER="V", BZERO=32768, MJD_OBS=5.0, TRIMSEC="[1:2,1:2]", GAIN=180, CRVAL1=3.0)
    kept = header.base_cards(head)
    assert kept["OBJECT"] == "M27"
    assert kept["CAMGAIN"] == 180
    assert not {"BZERO", "MJD-OBS", "TRIMSEC", "CRVAL1", "GAIN"} & set(kept)
