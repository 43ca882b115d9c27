"""Times on a clock by period: an oracle reads each minute as Spark does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from evergreen.ingest.clock_times import clock_times_of
from evergreen.periods import Calendar

pytestmark = pytest.mark.unit

MINUTES = [timedelta(minutes=number) for number in range(0, 3 * 24 * 60, 15)]
WEEKENDS = [
    ("America/New_York", "2026-03-07"),
    ("America/New_York", "2026-10-31"),
    ("Europe/Berlin", "2026-03-28"),
    ("Europe/Berlin", "2026-10-24"),
    ("Australia/Lord_Howe", "2026-04-04"),  # by half an hour
    ("Australia/Lord_Howe", "2026-10-03"),
    ("America/Santiago", "2026-09-05"),  # at midnight, which does not exist
    ("Asia/Tokyo", "2026-03-28"),
]


@pytest.mark.parametrize("length", ["30min", "1h", "2h", "6h", "1d"])
@pytest.mark.parametrize(("zone", "first_day"), WEEKENDS)
def test_a_time_is_in_the_bounds_of_its_period_and_bounds_are_close(zone: str, first_day: str, length: str) -> None:
    calendar, times = Calendar(length, zone), dict[str, set[datetime]]()
    for step in MINUTES:
        clock = datetime.fromisoformat(first_day) + step
        for fold in (0, 1) if exists_twice(clock, zone) else (0,):  # of what does not exist, 0 is by the old offset
            instant = clock.replace(tzinfo=ZoneInfo(zone), fold=fold)
            times.setdefault(calendar.period_at(instant.astimezone(UTC)), set()).add(clock)
    for period in sorted(times)[1:-1]:  # the others have a part of their times
        start, end = clock_times_of(calendar, period)
        assert min(times[period]) == start, period
        assert max(times[period]) == end - timedelta(minutes=15), period


def exists_twice(clock: datetime, zone: str) -> bool:
    first, second = (clock.replace(tzinfo=ZoneInfo(zone), fold=fold).utcoffset() for fold in (0, 1))
    assert first is not None
    assert second is not None
    return first > second


def test_the_hours_of_new_york_when_clocks_change() -> None:
    calendar = Calendar("1h", "America/New_York")

    def hours(period: str) -> tuple[str, str]:
        start, end = clock_times_of(calendar, period)
        return f"{start:%H:%M}", f"{end:%H:%M}"

    assert [hours(f"2026-11-01T{hour:02}:00Z") for hour in (4, 5, 6, 7)] == [
        ("00:00", "01:00"),
        ("01:00", "02:00"),  # of the summer
        ("01:00", "02:00"),
        ("02:00", "03:00"),
    ]
    assert [hours(f"2026-03-08T{hour:02}:00Z") for hour in (6, 7, 8)] == [
        ("01:00", "02:00"),
        ("02:00", "04:00"),  # with those that do not exist
        ("04:00", "05:00"),
    ]
