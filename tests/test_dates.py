"""Dates as they occur, and the date cards of a stack."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from fastack import dates


def cards(**values: object) -> fits.Header:
    head = fits.Header()
    for key, value in values.items():
        head[key.replace("_", "-")] = value
    return head


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"DATE_OBS": "2019-01-30T21:14:05"}, "2019-01-30T21:14:05"),
        ({"DATE_OBS": "2019-01-30T21:14:05.123456"}, "2019-01-30T21:14:05.123456"),
        ({"DATE_OBS": "2019-01-30T21:14:05Z"}, "2019-01-30T21:14:05"),
        ({"DATE_OBS": "2019-01-30 21:14:05.5"}, "2019-01-30T21:14:05.5"),
        ({"DATE_OBS": "2017-12-19T18:33:43.317-0700"}, "2017-12-20T01:33:43.317"),
        ({"DATE_OBS": "2017-12-20T00:30:00+05:30"}, "2017-12-19T19:00:00"),
        ({"DATE_OBS": "2019-03-26", "UTCSTART": "02:27:31.13"}, "2019-03-26T02:27:31.13"),
        ({"DATE_OBS": "2019-03-26", "TIME_OBS": "23:59:59.9"}, "2019-03-26T23:59:59.9"),
        ({"DATE_OBS": "2019-03-26", "UT": "03 04 05"}, "2019-03-26T03:04:05"),
        ({"DATE_OBS": "30/01/99", "UTSTART": "01:02:03"}, "1999-01-30T01:02:03"),
        ({"DATE_OBS": "30/01/19", "UT": "01:02:03"}, "2019-01-30T01:02:03"),
        ({"DATE_OBS": "2016-12-31T23:59:60.25"}, "2016-12-31T23:59:60.25"),
        ({"DATE_OBS": "2019-01-30T24:00:00"}, "2019-01-31T00:00:00"),
        ({"DATE_OBS": "2019-01-30T03:02:03-07"}, "2019-01-30T10:02:03"),
        ({"DATE_OBS": "2019-01-30T03:02:03,5"}, "2019-01-30T03:02:03.5"),
        ({"DATE_OBS": "2019/01/30", "UT": "03:02"}, "2019-01-30T03:02:00"),
        # TAI was 37 s ahead of UTC, TT 32.184 s more
        ({"DATE_OBS": "2019-01-30T03:02:03", "TIMESYS": "TAI"}, "2019-01-30T03:01:26"),
        ({"MJD_OBS": 58513.25, "TIMESYS": "TT"}, "2019-01-30T05:58:50.816"),
        ({"DATE_OBS": "2019-01-30T03:02:03", "TIMESYS": "UTC"}, "2019-01-30T03:02:03"),
        ({"MJD_OBS": 58513.25}, "2019-01-30T06:00:00"),
        ({"JD": 2458513.75}, "2019-01-30T06:00:00"),
        ({"JD": "2458513,75"}, "2019-01-30T06:00:00"),
    ],
)
def test_dates_are_read_as_they_occur(values: dict[str, object], start: str) -> None:
    found = dates.read_exposure(cards(**values), 60.0)
    assert found.start is not None
    assert abs((Time(found.start, scale="utc") - Time(start, scale="utc")).sec) < 1e-6


@pytest.mark.parametrize(
    ("value", "comment", "start", "step", "unit"),
    [
        (3.5, "", "2019-01-30T03:30:00", 360.0, "hours"),
        (23.99999, "UT at the start", "2019-01-30T23:59:59.964", 0.036, "hours"),
        ("3,25", "[h] start", "2019-01-30T03:15:00", 36.0, "hours"),
        (0.25, "[d] UT of the day", "2019-01-30T06:00:00", 864.0, "days"),
        (3723.5, "seconds since midnight", "2019-01-30T01:02:03.5", 0.1, "seconds"),
        (12, "UT", "2019-01-30T12:00:00", 3600.0, "hours"),
    ],
)
def test_a_time_of_day_as_a_number(value: object, comment: str, start: str, step: float, unit: str) -> None:
    found = dates.read_exposure(fits.Header([("DATE-OBS", "2019-01-30"), ("UT", value, comment)]), 1.0)
    assert abs((Time(found.start, scale="utc") - Time(start, scale="utc")).sec) < 1e-6
    assert found.granularity == pytest.approx(step)
    assert f"time of day from UT, a number of {unit}" in found.notes


@pytest.mark.parametrize("value", [24.0, -0.5, 45296, 3723.5])
def test_a_number_that_is_no_hour_is_refused_with_its_reason(value: float) -> None:
    found = dates.read_exposure(cards(DATE_OBS="2019-01-30", UT=value), 1.0)
    assert f"UT '{value}' is no time of day that can be read" in found.notes
    assert found.granularity == 86400.0
    # a finer date elsewhere counts instead
    other = dates.read_exposure(cards(DATE_OBS="2019-01-30", UT=value, MJD_OBS=58513.25125), 1.0)
    assert other.start.startswith("2019-01-30T06:01:48")


def test_what_was_not_read_is_told() -> None:
    unread = dates.read_exposure(cards(DATE_OBS="2019-01-30", UT=3723.5), 1.0)
    assert unread.start == "2019-01-30T00:00:00.000000"
    assert any("UT '3723.5' is no time of day" in note for note in unread.notes)
    assert any("midnight assumed" in note for note in unread.notes)
    system = dates.read_exposure(cards(DATE_OBS="2019-01-30T01:02:03", TIMESYS="LST"), 1.0)
    assert any("TIMESYS 'LST' is unknown" in note for note in system.notes)


def test_middle_of_exposure_becomes_its_start() -> None:
    head = cards(DATE_AVG="2019-01-30T21:14:30")
    assert dates.read_exposure(head, 60.0).start.startswith("2019-01-30T21:14:00")
    head = fits.Header([("DATE-OBS", "2019-01-30T21:14:30", "mid-exposure, UTC")])
    assert dates.read_exposure(head, 60.0).start.startswith("2019-01-30T21:14:00")


def test_finer_date_counts_and_the_difference_is_told() -> None:
    coarse = dates.read_exposure(cards(DATE_OBS="2019-01-30T21:14:05.50", MJD_OBS=58513.1), 1.0)
    assert coarse.date_obs.startswith("2019-01-30T21:14:05.5")
    assert any("MJD-OBS differs" in note for note in coarse.notes)
    mjd = Time("2019-01-30T21:15:05.5", scale="utc").mjd
    fine = dates.read_exposure(cards(DATE_OBS="2019-01-30T21:14", MJD_OBS=mjd), 1.0)
    assert fine.date_obs.startswith("2019-01-30T21:15:05.5")


@pytest.mark.parametrize("text", ["yesterday", "2019-13-01T00:00:00", "2019-01-30T25:00:00", "", "0000-00-00"])
def test_malformed_dates_do_not_stop_anything(text: str) -> None:
    found = dates.read_exposure(cards(DATE_OBS=text), 60.0)
    assert found.start is None
    assert found.notes


def test_means_of_the_dates_are_exact_to_a_microsecond() -> None:
    texts = ["2016-12-31T23:59:59.000001", "2017-01-01T00:00:01.000003", "2017-01-01T00:00:03.000005"]
    exposures = [dates.read_exposure(cards(DATE_OBS=t), 10.0) for t in texts]
    made = {k: v for k, v, _ in dates.date_cards(exposures, [1.0, 1.0, 2.0])}
    # a leap second lies between the first and the second date: offsets are 0, 3.000002 and 5.000004 s
    first = Time(texts[0], scale="utc")
    assert abs((Time(made["DATE-OBS"], scale="utc") - first).sec - 8.000006 / 3) < 1e-6
    assert abs((Time(made["DATE-AVG"], scale="utc") - first).sec - (5 + 13.000010 / 4)) < 1e-6
    assert made["TELAPSE"] == pytest.approx(15.000004, abs=1e-6)
    assert made["DATE-BEG"] == texts[0]


def test_a_stack_of_stacks_has_the_dates_of_all_its_frames() -> None:
    """Three frames and one, stacked apart and together; and a foreign stack that states its start alone."""
    texts = [f"2019-01-30T21:0{k}:00.500000" for k in (0, 3, 4, 9)]
    frames = [dates.read_exposure(cards(DATE_OBS=text), 30.0) for text in texts]
    parts = []
    for group in (frames[:3], frames[3:]):
        head = fits.Header([(k, v) for k, v, _ in dates.date_cards(group)] + [("NCOMBINE", len(group))])
        parts.append(dates.read_exposure(head, 30.0))
    assert [part.count for part in parts] == [3, 1]
    made = {k: v for k, v, _ in dates.date_cards(parts, [3.0, 1.0])}
    whole = {k: v for k, v, _ in dates.date_cards(frames)}
    for key in ("DATE-OBS", "DATE-BEG", "DATE-AVG", "DATE-END"):
        assert abs((Time(made[key], scale="utc") - Time(whole[key], scale="utc")).sec) < 2e-6, key
    assert made["TELAPSE"] == whole["TELAPSE"] == 570.0
    assert made["MJD-OBS"] == pytest.approx(whole["MJD-OBS"], abs=1e-11)
    assert {k: c for k, _, c in dates.date_cards(parts)}["DATE-OBS"] == "mean DATE-OBS of 4 frames"
    foreign = dates.read_exposure(cards(DATE_OBS=texts[0], NCOMBINE=5), 30.0)
    assert (foreign.start, foreign.count, foreign.end) == (texts[0], 5, None)


@given(st.lists(st.floats(0, 3e7), min_size=1, max_size=30))
def test_mean_mjd_is_the_mean_of_the_mjds(seconds: list[float]) -> None:
    times = Time(58000.0 + np.array(seconds) / 86400, format="mjd", scale="utc", precision=6)
    exposures = [dates.Exposure(date_obs=t, start=t, exposure=0.0) for t in times.isot]
    made = {k: v for k, v, _ in dates.date_cards(exposures)}
    assert abs(made["MJD-OBS"] - times.mjd.mean()) * 86400 < 5e-6  # a double holds an MJD to 0.6 microseconds
    assert made["MJD-BEG"] <= made["MJD-AVG"] + 1e-10 <= made["MJD-END"] + 2e-10


def test_undated_frames_are_left_out_of_the_mean_and_counted() -> None:
    exposures = [
        dates.read_exposure(cards(DATE_OBS="2019-01-30T21:00:00"), 1.0),
        dates.read_exposure(cards(OBJECT="x"), 1.0),
    ]
    made = {k: (v, c) for k, v, c in dates.date_cards(exposures)}
    assert made["NDATED"][0] == 1
    assert "1 dated" in made["DATE-OBS"][1]
    assert dates.date_cards(exposures[1:]) == []


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("hatp32/HATP-32171220013343.FITS", "2017-12-20T01:33:43.317"),
        ("m27_osc/Light_1069.fits", "2018-09-07T22:31:45.431"),
        ("lowell_night/light/20190326.0126.fits.fz", "2019-03-26T02:27:31.13"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_dates_of_real_frames(data_root, name: str, start: str) -> None:
    with fits.open(data_root / name) as file:
        head = file[-1].header
    found = dates.read_exposure(head, 60.0)
    assert abs((Time(found.start, scale="utc") - Time(start, scale="utc")).sec) < 1e-6
