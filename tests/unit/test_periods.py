"""Periods of every length, over changes of clocks."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.errors import WindowError
from evergreen.periods import Calendar, Duration

pytestmark = pytest.mark.unit

ZONES = (
    "UTC",
    "America/New_York",
    "America/Sao_Paulo",  # until 2018 clocks skipped midnight
    "America/Havana",  # clocks show midnight twice
    "America/St_Johns",  # until 2011 at one minute past midnight
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # skipped 2011-12-30
    "Pacific/Kwajalein",
    "Antarctica/Troll",  # by two hours
    "Europe/Berlin",
)
PERIODS = ("1min", "15min", "30min", "1h", "6h", "24h", "1d", "1w")
calendars = st.builds(Calendar, st.sampled_from(PERIODS), st.sampled_from(ZONES))
instants = st.datetimes(datetime(1999, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


@given(calendars, instants)
def test_every_instant_is_in_one_period(calendar: Calendar, instant: datetime) -> None:
    name = calendar.period_at(instant)
    assert calendar.start(name) <= instant < calendar.end(name)
    assert calendar.parse(name) == name
    following = calendar.shift(name, 1)
    assert calendar.end(name) == calendar.start(following)
    assert name < following


@given(calendars, instants, st.integers(-400, 400))
def test_count_is_the_inverse_of_shift(calendar: Calendar, instant: datetime, periods: int) -> None:
    name = calendar.period_at(instant)
    other = calendar.shift(name, periods)
    assert calendar.count(name, other) == periods
    assert len(list(calendar.between(name, other))) == max(periods, 0)
    assert calendar.start(name) <= calendar.start(other) or periods < 0


@given(st.sampled_from(ZONES), instants)
def test_a_day_begins_when_clocks_first_show_its_date(zone: str, instant: datetime) -> None:
    calendar = Calendar("1d", zone)
    name = calendar.period_at(instant)
    start = calendar.start(name)
    assert start.astimezone(ZoneInfo(zone)).date().isoformat() == name
    assert (start - timedelta(seconds=1)).astimezone(ZoneInfo(zone)).date().isoformat() < name


@pytest.mark.parametrize(
    ("zone", "day", "start", "hours"),
    [
        ("America/New_York", "2013-03-10", "2013-03-10T05:00", 23),
        ("America/New_York", "2013-11-03", "2013-11-03T04:00", 25),
        ("America/Sao_Paulo", "2013-10-20", "2013-10-20T03:00", 23),
        ("America/Havana", "2013-11-03", "2013-11-03T04:00", 25),
        ("Australia/Lord_Howe", "2013-04-07", "2013-04-06T13:00", 24.5),
        ("Pacific/Apia", "2011-12-30", "2011-12-30T10:00", 0),
        ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00", 24),
        ("Antarctica/Troll", "2013-03-31", "2013-03-31T00:00", 22),
    ],
)
def test_days_have_the_hours_of_their_zone(zone: str, day: str, start: str, hours: float) -> None:
    calendar = Calendar("1d", zone)
    assert calendar.start(day) == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert calendar.end(day) - calendar.start(day) == timedelta(hours=hours)


def test_weeks_start_on_monday() -> None:
    calendar = Calendar("1w", "America/New_York")
    assert calendar.period_at(datetime(2013, 3, 11, 3, 59, tzinfo=UTC)) == "2013-03-04"
    assert calendar.period_at(datetime(2013, 3, 11, 4, tzinfo=UTC)) == "2013-03-11"
    assert calendar.end("2013-03-04") - calendar.start("2013-03-04") == timedelta(days=7, hours=-1)


def test_short_periods_go_on_when_clocks_change() -> None:
    calendar = Calendar("1h", "America/New_York")
    hours = list(calendar.between("2013-03-10T05:00Z", "2013-03-11T04:00Z"))
    assert len(hours) == 23
    assert hours[:2] == ["2013-03-10T05:00Z", "2013-03-10T06:00Z"]
    assert {calendar.date_of(hour) for hour in hours} == {date(2013, 3, 10)}


@pytest.mark.parametrize(
    ("period", "name", "duration", "expected"),
    [
        ("1d", "2013-03-15", "90d", "2012-12-15"),
        ("1d", "2013-03-11", "24h", "2013-03-09"),  # the 10th has 23 hours
        ("1h", "2013-03-11T04:00Z", "7d", "2013-03-04T05:00Z"),  # midnight to midnight
        ("1h", "2013-03-11T04:00Z", "168h", "2013-03-04T04:00Z"),
        ("1w", "2013-03-11", "10d", "2013-02-25"),
        ("1w", "2013-03-11", "7d", "2013-03-04"),
        ("15min", "2013-03-11T04:15Z", "36h", "2013-03-09T16:15Z"),
    ],
)
def test_before_takes_days_of_the_calendar(period: str, name: str, duration: str, expected: str) -> None:
    assert Calendar(period, "America/New_York").before(name, Duration.parse(duration)) == expected


@pytest.mark.parametrize("period", ["2d", "7min", "5h", "25h", "2w", "0h", "h", "1m", "1D", " 1h", "1.5h", "-1h"])
def test_lengths_that_are_no_period(period: str) -> None:
    with pytest.raises(ValueError, match="write"):
        Calendar(period, "UTC")


@pytest.mark.parametrize(
    ("period", "name"),
    [
        ("1d", "2013-3-10"),
        ("1d", "20130310"),
        ("1d", "2013-03-10T00:00Z"),
        ("1w", "2013-03-12"),
        ("1w", "2013-W10"),
        ("1h", "2013-03-10"),
        ("1h", "2013-03-10T06:30Z"),
        ("1h", "2013-03-10T06:00"),
        ("1h", "2013-03-10T06:00:00Z"),
        ("6h", "2013-03-10T07:00Z"),
        ("1d", ""),
    ],
)
def test_names_that_are_no_period(period: str, name: str) -> None:
    with pytest.raises(WindowError, match=r"is not .*period of"):
        Calendar(period, "UTC").parse(name)
