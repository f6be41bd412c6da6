"""When a frame was taken: dates as they occur in headers, and the date cards of a stack.

Keywords follow the FITS Standard 4.0, section 9 (time coordinates).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastack.cards import Cards, parse_number
from fastack.types import Array

if TYPE_CHECKING:
    from astropy.io import fits

_ISO = re.compile(
    r"^\s*(\d{4})([-/])(\d{1,2})\2(\d{1,2})"
    r"(?:[T ]\s*(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:[.,]\d*)?))?\s*(Z|[+-]\d{2}(?::?\d{2})?)?)?\s*$",
    re.IGNORECASE,
)
_OLD_DATE = re.compile(r"^\s*(\d{1,2})/(\d{1,2})/(\d{2}|\d{4})\s*$")
_CLOCK = re.compile(r"^\s*(\d{1,2})[: ](\d{1,2})(?:[: ](\d{1,2}(?:[.,]\d*)?))?\s*(Z)?\s*$", re.IGNORECASE)

_DATE_KEYS = ("DATE-BEG", "DATE-OBS", "DATE_OBS", "UTSHUT", "UT-DATE", "UTDATE", "DATEOBS")
_CLOCK_KEYS = ("TIME-OBS", "UTSTART", "UTCSTART", "UTC-OBS", "UT-OBS", "UT-START", "TIME-BEG", "UTC", "UT", "EXP-STRT")
_MID_KEYS = ("DATE-AVG", "DATE-MID")
_MJD_KEYS = ("MJD-BEG", "MJD-OBS", "MJD_OBS", "MJD")
_MJD_MID_KEYS = ("MJD-AVG", "MJD-MID")
_JD_KEYS = ("JD-OBS", "JD", "JD-BEG", "JULDATE")
_SYSTEMS = {"TAI": "tai", "IAT": "tai", "TT": "tt", "TDT": "tt", "ET": "tt", "TDB": "tdb"}  # other than UTC
_CLOCK_UNITS = {
    "hours": re.compile(r"\b(hours?|hrs?)\b|[\[(]h[\])]"),
    "seconds": re.compile(r"\b(secs?|seconds?)\b|[\[(]s[\])]"),
    "days": re.compile(r"\b(days|fraction)\b|[\[(]d[\])]"),
}
_JD_MID_KEYS = ("JD-AVG", "JD-MID", "MIDTIMJD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """When a frame was taken."""

    date_obs: str | None  #: DATE-OBS as the frame gives it, in UTC, ISO 8601; None where there is no date
    start: str | None  #: start of the exposure, UTC, ISO 8601 to the nanosecond
    exposure: float | None  #: seconds
    granularity: float = 1.0  #: step in which the date is given, second
    notes: tuple[str, ...] = ()  #: what was assumed
    count: int = 1  #: frames behind it: of a stack more than one
    middle: str | None = None  #: of a stack, the mean of its frames' middles; else it follows from start and exposure
    end: str | None = None  #: of a stack, the end of its last frame; else it follows from start and exposure


def _text(cards: Cards, key: str) -> str | None:
    value = cards.get(key)
    return None if isinstance(value, bool) else str(value).strip() or None


def _iso(days: Any, seconds: float) -> str:
    """ISO string of a calendar date plus seconds of the day (may lie outside 0..86400)."""
    import datetime as dt

    microseconds = round(seconds * 1e6)
    day, rest = divmod(microseconds, 86_400_000_000)
    date = days + dt.timedelta(days=day)
    clock, fraction = divmod(rest, 1_000_000)
    hour, minute, second = clock // 3600, clock // 60 % 60, clock % 60
    return f"{date.isoformat()}T{hour:02d}:{minute:02d}:{second:02d}.{fraction:06d}"


def parse_date(text: str) -> tuple[Any, float | None, float, float]:
    """Read a date, with or without a time.

    Parameters
    ----------
    text : str
        ISO 8601 with or without time, fraction, ``Z`` or a zone offset, or ``dd/mm/yy``.

    Returns
    -------
    date : datetime.date
        The calendar date as it is written.
    seconds : float or None
        Of that day; None where there is only a date. 60 and more in a leap second.
    granularity : float
        Step in which the time is written, second.
    offset : float
        Of the zone, east positive, second.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    import datetime as dt

    match = _OLD_DATE.match(text)
    if match:
        in_century = int(match.group(3))
        century = 0 if len(match.group(3)) == 4 else 1900 if in_century >= 70 else 2000
        return dt.date(century + in_century, int(match.group(2)), int(match.group(1))), None, 86400.0, 0.0
    match = _ISO.match(text)
    if not match:
        raise ValueError(f"{text!r} is no date that can be read")
    year, _, month, day, hour, minute, second, zone = match.groups()
    date = dt.date(int(year), int(month), int(day))
    offset = 0.0
    if zone and zone.upper() != "Z":
        digits = zone[1:].replace(":", "")
        offset = (1 if zone[0] == "+" else -1) * (int(digits[:2]) * 3600.0 + int(digits[2:] or 0) * 60.0)
    if hour is None:
        return date, None, 86400.0, offset
    seconds, granularity = _clock_seconds(hour, minute, second)
    if int(hour) == 24:  # the end of a day as ISO 8601 writes it, no leap second
        date, seconds = date + dt.timedelta(days=1), seconds - 86400.0
    return date, seconds, granularity, offset


def _clock_seconds(hour: str, minute: str, second: str | None) -> tuple[float, float]:
    second = second.replace(",", ".") if second else None
    if int(hour) * 60 + int(minute) > 1440 or int(minute) > 59 or (second and float(second) >= 61):
        raise ValueError(f"{hour}:{minute}:{second} is no time of day")
    if second is None:
        return int(hour) * 3600.0 + int(minute) * 60.0, 60.0
    _, _, fraction = second.partition(".")
    return int(hour) * 3600.0 + int(minute) * 60.0 + float(second), 10.0 ** -len(fraction)


def _leap_iso(date: Any, seconds: float) -> str:
    """Like `_iso`, but 23:59:60 stays what it is."""
    if 86400 <= seconds < 86401:
        return f"{date.isoformat()}T23:59:{60 + seconds - 86400:09.6f}"
    return _iso(date, seconds)


def read_exposure(header: fits.Header | Cards, exposure: float | None = None) -> Exposure:
    """When a frame was taken, from whatever cards its header has.

    Dates are looked for in DATE-BEG, DATE-OBS and their misspellings, times of day in TIME-OBS, UTSTART, UTCSTART,
    UT and others, then in MJD-OBS and JD. A zone offset is honoured. Where DATE-OBS and MJD-OBS differ by more than
    the coarser one's step, the finer one counts and the difference is noted.

    Parameters
    ----------
    header : astropy.io.fits.Header or Cards
        Of the frame.
    exposure : float, optional, second
        Exposure time, needed where the header gives the middle of the exposure.

    Returns
    -------
    Exposure
        With ``start`` None where there is no date. A stack (NCOMBINE) that states its DATE-OBS, DATE-BEG, DATE-AVG and
        DATE-END in UTC is taken by its word.
    """
    cards = header if isinstance(header, Cards) else Cards.of(header)
    notes: list[str] = []
    found: list[tuple[float, str, str, bool]] = []  # granularity, key, UTC, whether of the middle
    for key, middle in [*((k, False) for k in _DATE_KEYS), *((k, True) for k in _MID_KEYS)]:
        text = _text(cards, key)
        if text is None:
            continue
        try:
            date, seconds, granularity, offset = parse_date(text)
            if seconds is None:
                seconds, granularity, clock_key = _clock(cards, date, granularity)
                if clock_key:
                    notes.append(f"time of day from {clock_key}")
                else:
                    unread = [f"{k} {t!r}" for k in _CLOCK_KEYS if (t := _text(cards, k))]
                    notes += [f"{words} is no time of day that can be read" for words in unread]
                    notes.append(f"{key} {text!r} has no time of day; midnight assumed")
            if _OLD_DATE.match(text):
                notes.append(f"{key} {text!r} read as day/month/year {date.isoformat()}")
        except ValueError as error:
            notes.append(f"{key}: {error}")
            continue
        if offset:
            notes.append(f"{key} {text!r} is local time; turned into UTC")
        middle = middle or ("mid" in cards.comment(key) and key != "DATE-BEG")
        utc = _iso(date, seconds - offset) if offset else _leap_iso(date, seconds)
        found.append((granularity, key, utc, middle))
        if not middle:
            break
    numeric = [
        (_MJD_KEYS, 0.0, False),
        (_MJD_MID_KEYS, 0.0, True),
        (_JD_KEYS, 2400000.5, False),
        (_JD_MID_KEYS, 2400000.5, True),
    ]
    for keys, zero, middle in numeric:
        for key in keys:
            text = _text(cards, key)
            try:
                mjd = float(text.replace(",", ".")) - zero if text else np.nan
            except ValueError:
                notes.append(f"{key} {text!r} is no number")
                continue
            if zero == 0.0 and mjd > 2400000:
                notes.append(f"{key} {text} is a Julian Date")
                mjd -= 2400000.5
            if not 0 < mjd < 200000:
                continue
            granularity = max(86400.0 * 10.0 ** -cards.decimals(key), 1e-6 if zero == 0 else 4e-5)
            found.append((granularity, key, _mjd_iso(mjd), middle))
            break
    start = [f for f in found if not f[3]]
    chosen = min(start or found, key=lambda f: f[0], default=None)
    if chosen is None:
        return Exposure(date_obs=None, start=None, exposure=exposure, notes=(*notes, "no date"))
    for other in start if start else found:
        difference = _seconds_between(other[2], chosen[2])
        if other is not chosen and abs(difference) > 1.01 * max(other[0], chosen[0]):
            notes.append(f"{other[1]} differs from {chosen[1]} by {difference:+.3f} s; {chosen[1]} counts")
    system = (_text(cards, "TIMESYS") or "UTC").upper()
    if system in _SYSTEMS:
        chosen = (chosen[0], chosen[1], _utc(chosen[2], _SYSTEMS[system]), chosen[3])
        notes.append(f"TIMESYS is {system}; {chosen[1]} turned into UTC")
    elif system not in ("UTC", "UT", "UT1", "GMT", "Z"):
        notes.append(f"TIMESYS {system!r} is unknown; read as UTC")
    begin = chosen[2]
    if chosen[3]:
        begin = _shift(begin, -(exposure or 0.0) / 2)
        notes.append(f"{chosen[1]} is the middle of the exposure")
    combined = cards.number("NCOMBINE", "STACKCNT", quiet=True)
    one = Exposure(
        date_obs=chosen[2],
        start=begin,
        exposure=exposure,
        granularity=chosen[0],
        notes=tuple(notes),
        count=max(1, round(combined[1])) if combined else 1,
    )
    if one.count > 1 and system not in _SYSTEMS and (span := _span(cards)):
        return replace(one, date_obs=span[0], start=span[1], middle=span[2], end=span[3])
    return one


def _span(cards: Cards) -> tuple[str, str, str, str] | None:
    """The four dates of a stack, UTC; None unless all of them are there, with their times."""
    found = []
    for key in ("DATE-OBS", "DATE-BEG", "DATE-AVG", "DATE-END"):
        try:
            date, seconds, _, offset = parse_date(_text(cards, key) or "")
        except ValueError:
            return None
        if seconds is None:
            return None
        found.append(_iso(date, seconds - offset) if offset else _leap_iso(date, seconds))
    return found[0], found[1], found[2], found[3]


def _utc(text: str, scale: str) -> str:
    from astropy.time import Time

    return str(Time(text, scale=scale, precision=6).utc.isot)


def _clock(cards: Cards, date: Any, granularity: float) -> tuple[float, float, str | None]:
    for key in _CLOCK_KEYS:
        text = _text(cards, key)
        if text is None:
            continue
        match = _CLOCK.match(text)
        if match:
            seconds, step = _clock_seconds(*match.groups()[:3])
            return seconds, step, key
        if decimal := _decimal_clock(cards, key, text):
            seconds, step, unit = decimal
            return seconds, step, f"{key}, a number of {unit}"
        try:
            other, seconds_or_none, step, offset = parse_date(text)
        except ValueError:
            continue
        if seconds_or_none is not None:
            return seconds_or_none - offset + 86400.0 * (other - date).days, step, key
    return 0.0, granularity, None


def _decimal_clock(cards: Cards, key: str, text: str) -> tuple[float, float, str] | None:
    """Seconds of the day, their step and the unit of a number: hours, unless the comment says otherwise."""
    value = parse_number(text)
    if value is None:
        return None
    comment = cards.comment(key)
    unit = next((name for name, said in _CLOCK_UNITS.items() if said.search(comment)), "hours")
    size = {"hours": 3600.0, "seconds": 1.0, "days": 86400.0}[unit]
    if not 0 <= value * size < 86400:
        return None
    return value * size, max(size * 10.0 ** -cards.decimals(key), 1e-6), unit


def _mjd_iso(mjd: float) -> str:
    import datetime as dt

    day = int(np.floor(mjd))
    return _iso(dt.date(1858, 11, 17) + dt.timedelta(days=day), (mjd - day) * 86400.0)


def _seconds_between(a: str, b: str) -> float:
    import datetime as dt

    try:
        first, second = dt.datetime.fromisoformat(a), dt.datetime.fromisoformat(b)
    except ValueError:  # a leap second
        pass
    else:
        if first.date() == second.date():
            return (first - second).total_seconds()
    times = _Times.read([a, b])
    return float(times.at(0).seconds(times.at(1))[0])


def _shift(utc: str, seconds: float) -> str:
    return _Times.read([utc]).later(seconds).iso()[0]


class _Times(NamedTuple):
    """Moments as Julian Dates of TAI in two parts, by the routines of the IAU that are behind astropy.time too.

    Between them lie whole seconds of a clock that leaps no second; astropy.time itself takes longer to start than the
    dates of a night take.
    """

    day: Array
    part: Array

    @classmethod
    def read(cls, texts: Sequence[str]) -> _Times:
        """From ISO 8601 in UTC."""
        import erfa

        fields = [re.split("[-T:]", text) for text in texts]
        y, m, d, hour, minute = (np.array([int(f[k]) for f in fields]) for k in range(5))
        second = np.array([float(f[5]) for f in fields])
        return cls(*_quiet(erfa.utctai, *_quiet(erfa.dtf2d, b"UTC", y, m, d, hour, minute, second)))

    def at(self, index: int) -> _Times:
        """One of them."""
        return _Times(self.day[index : index + 1], self.part[index : index + 1])

    def seconds(self, zero: _Times | None = None) -> Array:
        """Since the first one, or since the first one of others."""
        zero = zero or self
        return np.asarray(((self.day - zero.day[0]) + (self.part - zero.part[0])) * 86400.0)

    def later(self, seconds: Any) -> _Times:
        """The same, moved."""
        return _Times(*np.broadcast_arrays(self.day, self.part + np.asarray(seconds) / 86400.0))

    def replaced(self, texts: Sequence[str | None]) -> _Times:
        """The same, but where there is a text."""
        rows = [row for row, text in enumerate(texts) if text]
        if not rows:
            return self
        other = _Times.read([text for text in texts if text])
        day, part = self.day.copy(), self.part.copy()
        day[rows], part[rows] = other
        return _Times(day, part)

    def mean(self, weights: Array | None = None) -> _Times:
        """One moment, the mean."""
        return self.at(0).later(np.average(self.seconds(), weights=weights))

    def iso(self) -> list[str]:
        """In UTC, to the microsecond."""
        import erfa

        y, m, d, clock = _quiet(erfa.d2dtf, b"UTC", 6, *_quiet(erfa.taiutc, *self))
        return [
            f"{a:04d}-{b:02d}-{c:02d}T{t[0]:02d}:{t[1]:02d}:{t[2]:02d}.{t[3]:06d}"
            for a, b, c, t in zip(y, m, d, clock, strict=True)
        ]

    def mjd(self) -> Array:
        """Modified Julian Dates of UTC."""
        import erfa

        day, part = _quiet(erfa.taiutc, *self)
        return np.asarray((day - 2400000.5) + part)


def _quiet(function: Any, *values: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # years beyond the table of leap seconds
        return function(*values)


def date_cards(exposures: Sequence[Exposure], weights: Sequence[float] | None = None) -> list[tuple[str, Any, str]]:
    """Date cards of a stack.

    Parameters
    ----------
    exposures : sequence of Exposure
        Of the accepted frames.
    weights : sequence of float, optional
        Of the frames in the average; equal by default.

    Returns
    -------
    list of (keyword, value, comment)
        DATE-OBS and MJD-OBS are plain means of the frames' own (this observatory's tools expect that; a stack among
        them counts as often as it has frames), DATE-AVG and MJD-AVG weighted means of mid-exposures, DATE-BEG,
        DATE-END, MJD-BEG, MJD-END and TELAPSE the whole span.
        Empty where no frame has a date.
    """
    dated = [i for i, e in enumerate(exposures) if e.start is not None]
    if not dated:
        return []
    some = [exposures[i] for i in dated]
    times = _Times.read([e.date_obs or "" for e in some])
    start = _Times.read([e.start or "" for e in some])
    length = np.array([e.exposure or 0.0 for e in some])
    count = np.array([e.count for e in some], float)
    w = np.ones(len(some)) if weights is None else np.asarray(weights, float)[dated]
    if not w.sum() > 0:
        w = np.ones(len(some))
    end = start.later(length).replaced([e.end for e in some])
    first, last = start.at(int(np.argmin(start.seconds()))), end.at(int(np.argmax(end.seconds())))
    mid = start.later(length / 2).replaced([e.middle for e in some]).mean(w)
    dated_frames = int(count.sum())
    of = f"of {dated_frames} frames" if len(some) == len(exposures) else f"of the {dated_frames} dated frames"
    cards: list[tuple[str, Any, str]] = [
        ("TIMESYS", "UTC", "time system of all dates"),
        ("DATE-OBS", times.mean(count).iso()[0], f"mean DATE-OBS {of}"),
        ("MJD-OBS", float(np.average(times.mjd(), weights=count)), f"mean MJD {of}"),
        ("DATE-BEG", first.iso()[0], "start of the first exposure"),
        ("DATE-AVG", mid.iso()[0], "weighted mean of mid-exposures"),
        ("DATE-END", last.iso()[0], "end of the last exposure"),
        ("MJD-BEG", float(first.mjd()[0]), "start of the first exposure"),
        ("MJD-AVG", float(mid.mjd()[0]), "weighted mean of mid-exposures"),
        ("MJD-END", float(last.mjd()[0]), "end of the last exposure"),
        ("TELAPSE", float(np.round(last.seconds(first)[0], 6)), "[s] from DATE-BEG to DATE-END"),
    ]
    if len(some) < len(exposures):
        cards.append(("NDATED", dated_frames, "frames behind the mean dates; the others had none"))
    return cards
