"""When features are served: what sources declare, what cannot be, and what was observed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from feast import FeatureView, FileSource

from evergreen.feature_store.repository import feature_source, without_serving_delay
from evergreen.features.observed_serving import find_views_served_late, publication_delays
from evergreen.features.served_after import ServedAfter, find_serving_faults
from evergreen.periods import Calendar
from support import tills

pytestmark = pytest.mark.unit

NEW_YORK = Calendar("1d", "America/New_York")
UTC_DAYS, HOURS = Calendar("1d", "UTC"), Calendar("1h", "UTC")
HOUR = timedelta(hours=1)


def view(name: str, table: str, served_after: str | None = None, ttl: timedelta = HOUR) -> FeatureView:
    tags = ServedAfter.declare(served_after, UTC_DAYS).to_tags() if served_after else None
    return FeatureView(name=name, ttl=ttl, source=FileSource(name=table, path=table, timestamp_field="ts", tags=tags))


def test_instants_follow_the_calendar() -> None:
    """The 10th of March had 23 hours in New York."""
    end, served_at, later_served_at = ServedAfter.declare("6h", NEW_YORK).instants("2013-03-09")
    assert end == datetime(2013, 3, 10, 5, tzinfo=UTC)
    assert served_at - end == 6 * HOUR
    assert later_served_at - end == (23 + 6) * HOUR
    daily = ServedAfter.declare("6h", NEW_YORK)
    assert daily.known_at("2013-03-09", end - HOUR) == served_at
    assert daily.known_at("2013-03-09", end) == later_served_at, "it is loaded with the period that it falls in"
    hourly = ServedAfter.declare("0h", HOURS).instants("2013-03-10T06:00Z")
    assert hourly.end == hourly.served_at == hourly.later_served_at - HOUR


def test_a_source_keeps_what_it_declares(
    home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tills.write_model(tmp_path, monkeypatch, use_models)
    source = feature_source("tills", "takings", served_after="90min")
    restored = FileSource.from_proto(source.to_proto())
    assert ServedAfter.from_tags(restored.tags) == ServedAfter.declare("90min", UTC_DAYS)
    assert ServedAfter.from_tags(feature_source("tills", "takings", served_after="0h").tags)
    unset = feature_source("tills", "takings")
    assert (ServedAfter.from_tags(unset.tags), without_serving_delay(source)) == (None, unset)
    assert source.tags, "it is no copy of it that changed"
    with pytest.raises(ValueError, match="'6 hours' is no length of time"):
        feature_source("tills", "takings", served_after="6 hours")
    with pytest.raises(ValueError, match="needs period and timezone: use feature_source"):
        ServedAfter.from_tags({"served_after": "6h"})


def test_views_agree_on_a_table_and_hold_when_they_are_served() -> None:
    fine = [view("a", "x", "6h", 6 * HOUR), view("b", "x", "6h", timedelta(0)), view("c", "y")]
    assert find_serving_faults(fine) == []
    faults = find_serving_faults([*fine, view("d", "y", "1h"), view("e", "z", "61min")])
    assert [(fault.location, fault.problem) for fault in faults] == [
        ("view d", "declares another served_after than view c, which reads the same table"),
        ("view e", "has a ttl of 1:00:00, and is served 61min after its period: no row ever holds"),
    ]


def instants(calendar: Calendar, first: str, *hours: float) -> dict[str, datetime]:
    """Return when periods from `first` on were published, so many hours after their end each."""
    periods = [calendar.shift(first, number) for number in range(len(hours))]
    return {period: calendar.end(period) + hour * HOUR for period, hour in zip(periods, hours, strict=True)}


def test_delays_are_those_of_first_publications() -> None:
    live = instants(UTC_DAYS, "2024-03-01", 2, 3, 1, 30, 7, 2)
    assert publication_delays(live, UTC_DAYS) == [hours * HOUR for hours in (3, 1, 30, 2)], "two came at once"
    corrected = live | {"2024-03-03": live["2024-03-06"] + HOUR}
    assert publication_delays(corrected, UTC_DAYS) == [hours * HOUR for hours in (3, 30, 2)]
    assert publication_delays({}, UTC_DAYS) == []


def test_a_backfill_says_nothing_about_the_periods_that_it_publishes() -> None:
    at = datetime(2024, 3, 20, 9, tzinfo=UTC)
    past = [UTC_DAYS.shift("2024-01-01", number) for number in range(79)]
    backfilled = {period: at + timedelta(minutes=number % 7) for number, period in enumerate(past)}
    live = instants(UTC_DAYS, "2024-03-20", 2, 3)
    assert publication_delays(backfilled | live, UTC_DAYS) == [2 * HOUR, 3 * HOUR]


def test_hours_that_one_run_publishes_count_as_the_first_of_them() -> None:
    """At 1:00 of each day, for the day before: the first hour waits for a day."""
    published = {
        HOURS.shift("2024-03-01T00:00Z", number): datetime(2024, 3, 2 + number // 24, 1, tzinfo=UTC)
        for number in range(5 * 24)
    }
    assert publication_delays(published, HOURS) == [24 * HOUR] * 4


@pytest.mark.parametrize(
    ("hours", "declared", "fix"),
    [
        ([2] * 10, "2h", None),
        ([2] * 9 + [48], "2h", None),  # one of ten
        ([2] * 8 + [48] * 2, "2h", "48h"),
        ([0.6] * 10, "30min", "45min"),
        ([6.5] * 10, "6h", "7h"),
        ([1, 1, 1, 1, 5.5], "2h", "6h"),
        ([48] * 4, "2h", None),  # too few
    ],
)
def test_views_that_are_served_later_are_named(hours: list[float], declared: str, fix: str | None) -> None:
    delays = [hour * HOUR for hour in hours]
    faults = find_views_served_late({"takings": ServedAfter.declare(declared, UTC_DAYS)}, delays, "tills")
    if fix is None:
        assert faults == []
        return
    [fault] = faults
    assert fault.location == "view takings"
    late = sum(delay > ServedAfter.declare(declared, UTC_DAYS).delay.length for delay in delays)
    assert f"served_after='{declared}', and {late} of the last {len(delays)} publications were later" in fault.problem
    assert f"declare served_after='{fix}' in feature_repo/tills.py" in fault.fix
    assert find_views_served_late({"takings": ServedAfter.declare(fix, UTC_DAYS)}, delays, "tills") == []
