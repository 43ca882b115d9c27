"""Every way a run can start, and the days that it is about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from evergreen.errors import WindowError
from evergreen.periods import Calendar, Duration
from evergreen.window import (
    AssetEvent,
    DagRunInfo,
    RunReason,
    Window,
    resolve_features_window,
    resolve_retrain_window,
)

pytestmark = pytest.mark.unit

CALENDAR = Calendar("1d", "America/New_York")
HISTORY = (Duration(30, "d"),)
FIRST = date(2013, 1, 1)
ASKED = datetime(2013, 3, 10, 15, tzinfo=UTC)


def run(run_type: str = "manual", interval: tuple[str, str] | None = None, **conf: str | None) -> DagRunInfo:
    instants = interval and (CALENDAR.start(interval[0]), CALENDAR.start(interval[1]))
    return DagRunInfo(run_type, ASKED, instants, conf)


def arrived(*extras: dict[str, Any]) -> DagRunInfo:
    return DagRunInfo("asset_triggered", ASKED, asset_events=tuple(map(AssetEvent.from_extra, extras)))


def days(run: DagRunInfo) -> tuple[str, str, RunReason]:
    window = resolve_features_window(run, calendar=CALENDAR, first_day=FIRST, last_day=None)
    return window.start, window.end, window.run_reason


@pytest.mark.parametrize(
    ("given", "start", "end", "run_reason"),
    [
        (
            run("scheduled", ("2013-03-09", "2013-03-10")),
            "2013-03-09",
            "2013-03-10",
            RunReason.SCHEDULE,
        ),
        (run("backfill", ("2013-01-05", "2013-01-06")), "2013-01-05", "2013-01-06", RunReason.BACKFILL),
        (run(start="2013-01-05", end="2013-01-07"), "2013-01-05", "2013-01-08", RunReason.MANUAL),
        (run(start="2013-01-05"), "2013-01-05", "2013-01-06", RunReason.MANUAL),
        (run(end="2013-01-05", start=None), "2013-01-05", "2013-01-06", RunReason.MANUAL),
        (run(), "2013-03-09", "2013-03-10", RunReason.MANUAL),
        (run("asset_triggered"), "2013-03-09", "2013-03-10", RunReason.ARRIVAL),
        (run("operator_triggered", start="2013-01-05"), "2013-01-05", "2013-01-06", RunReason.MANUAL),
        (run("asset_materialization"), "2013-03-09", "2013-03-10", RunReason.MANUAL),
        (run("of_a_later_airflow"), "2013-03-09", "2013-03-10", RunReason.MANUAL),
        # A form that was left empty does not hide the interval of a scheduled run.
        (
            run("scheduled", ("2013-03-08", "2013-03-09"), start=None),
            "2013-03-08",
            "2013-03-09",
            RunReason.SCHEDULE,
        ),
    ],
)
def test_features_window(given: DagRunInfo, start: str, end: str, run_reason: RunReason) -> None:
    assert days(given) == (start, end, run_reason)


@pytest.mark.parametrize(
    ("extras", "expected", "run_reason"),
    [
        # What a watcher tells, what somebody posts, and both in one run.
        (
            [{"from_trigger": True, "payload": {"periods": {"2013-01-05": "a1", "2013-01-03": "b2"}}}],
            [3, 5],
            RunReason.ARRIVAL,
        ),
        ([{"periods": ["2013-01-05"], "from_rest_api": True}], [5], RunReason.ARRIVAL),
        (
            [{"periods": ["2013-01-05", "2013-01-07"]}, {"periods": {"2013-01-06": "c3"}}],
            [5, 6, 7],
            RunReason.ARRIVAL,
        ),
        ([{"periods": ["2013-01-05"], "run_reason": "backfill"}], [5], RunReason.BACKFILL),
        ([{"periods": ["2013-01-05"], "run_reason": "schedule"}], [5], RunReason.ARRIVAL),
        # A new day, and one of a backfill.
        (
            [{"periods": ["2013-01-05"], "run_reason": "backfill"}, {"periods": ["2013-01-06"]}],
            [5, 6],
            RunReason.ARRIVAL,
        ),
        # More was delivered than the model is about.
        ([{"periods": ["2012-12-31", "2013-01-02"]}], [2], RunReason.ARRIVAL),
    ],
)
def test_the_days_of_asset_events(extras: list[dict[str, Any]], expected: list[int], run_reason: RunReason) -> None:
    window = resolve_features_window(arrived(*extras), calendar=CALENDAR, first_day=FIRST, last_day=None)
    assert window.periods == tuple(f"2013-01-{day:02d}" for day in expected)
    assert window.run_reason is run_reason


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"periods": "2013-01-05"}, "post extra like"),
        ({"days": ["2013-01-05"]}, "came with unknown days: post extra like"),
        ({"periods": ["2013-01-05"], "data_ends": "2013-01-06", "from_rest_api": True}, "came with unknown data_ends"),
        ({"from_trigger": True, "payload": {"Periods": ["2013-01-05"]}}, "came with unknown Periods"),
        ({"periods": ["soon"]}, "is not a period of 1d like"),
        ({"periods": [20130105]}, "is not a period of 1d like"),
        ({"from_trigger": True, "payload": "soon"}, "post extra like"),
        ({"periods": [], "run_reason": "fate"}, "run_reason='fate'"),
        ({"periods": ["2012-12-31"]}, "first day of data"),
        ({"periods": ["2013-03-10"]}, "was not over"),
    ],
)
def test_invalid_asset_events_are_refused(extra: dict[str, Any], complaint: str) -> None:
    with pytest.raises(WindowError, match=complaint):
        resolve_features_window(arrived(extra), calendar=CALENDAR, first_day=FIRST, last_day=None)


@pytest.mark.parametrize(
    ("extras", "end", "run_reason"),
    [
        ([{"periods": ["2013-03-01"], "data_end": "2013-03-05"}], "2013-03-05", RunReason.ARRIVAL),
        ([{"periods": ["2013-03-01"]}, {"periods": ["2013-02-01"]}], "2013-03-02", RunReason.ARRIVAL),
        ([{"periods": ["2013-03-01"], "run_reason": "backfill"}], "2013-03-02", RunReason.BACKFILL),
        ([{}], "2013-03-10", RunReason.ARRIVAL),
    ],
)
def test_a_retrain_started_by_features_is_as_of_their_data_end(
    extras: list[dict[str, Any]], end: str, run_reason: RunReason
) -> None:
    window = resolve_retrain_window(
        arrived(*extras), calendar=CALENDAR, first_day=FIRST, last_day=None, history=HISTORY
    )
    assert (window.end, window.run_reason) == (end, run_reason)


def test_a_day_of_23_hours_is_a_day() -> None:
    spring = run("backfill", ("2013-03-10", "2013-03-11"))
    late = DagRunInfo("backfill", datetime(2013, 3, 12, tzinfo=UTC), spring.data_interval)
    assert days(late)[:2] == ("2013-03-10", "2013-03-11")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (run(start="2013-01-07", end="2013-01-05"), "after end"),
        (run(start="2013-03-10"), "was not over"),
        (run(start="2012-12-31"), "first day of data"),
        (run(start="soon"), "is not a period of 1d like"),
        (run(day="2013-01-05"), "unknown conf: day"),
        (DagRunInfo("manual", ASKED, None, {"start": 20130105}), "is not a period of 1d like"),
        (DagRunInfo("scheduled", ASKED, (ASKED, ASKED)), "CronDataIntervalTimetable"),
    ],
)
def test_features_window_refuses(given: DagRunInfo, complaint: str) -> None:
    with pytest.raises(WindowError, match=complaint):
        days(given)


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        (run("scheduled", ("2013-03-01", "2013-03-08")), "2013-02-06", "2013-03-08"),
        (run(as_of="2013-03-01"), "2013-01-30", "2013-03-01"),
        (run(as_of="2013-01-05"), "2013-01-01", "2013-01-05"),
        (run(), "2013-02-08", "2013-03-10"),
    ],
)
def test_retrain_window(given: DagRunInfo, start: str, end: str) -> None:
    window = resolve_retrain_window(given, calendar=CALENDAR, first_day=FIRST, last_day=None, history=HISTORY)
    assert (window.start, window.end) == (start, end)
    assert window.as_of == CALENDAR.start(end)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (run(as_of="2013-03-11"), "was not over"),
        (run(as_of="2013-01-01"), "no data yet"),
        (run(until="2013-01-01"), "unknown conf: until"),
    ],
)
def test_retrain_window_refuses(given: DagRunInfo, complaint: str) -> None:
    with pytest.raises(WindowError, match=complaint):
        resolve_retrain_window(given, calendar=CALENDAR, first_day=FIRST, last_day=None, history=HISTORY)


def test_a_window_has_at_least_one_day() -> None:
    with pytest.raises(WindowError, match="no periods"):
        Window.from_range("2013-01-01", "2013-01-01", RunReason.MANUAL, CALENDAR)
    window = Window.from_range("2013-01-01", "2013-01-03", RunReason.MANUAL, CALENDAR)
    assert window.periods == ("2013-01-01", "2013-01-02")
    with pytest.raises(WindowError, match="no periods"):
        Window((), RunReason.MANUAL, CALENDAR)
    with pytest.raises(WindowError, match="in order"):
        Window(("2013-01-03", "2013-01-02"), RunReason.MANUAL, CALENDAR)


def test_data_that_has_ended_bounds_every_window() -> None:
    ended = {"calendar": CALENDAR, "first_day": FIRST, "last_day": date(2013, 2, 1)}
    assert resolve_features_window(run(), **ended).periods == ("2013-02-01",)
    assert resolve_retrain_window(run(), **ended, history=[Duration(9, "d")]).end == "2013-02-02"
    with pytest.raises(WindowError, match="last day of data"):
        resolve_features_window(run(start="2013-02-02"), **ended)
    with pytest.raises(WindowError, match="last day of data"):
        resolve_retrain_window(run(as_of="2013-02-03"), **ended, history=[Duration(9, "d")])


HOURLY = Calendar("1h", "America/New_York")
QUARTERS = Calendar("15min", "America/New_York")
WEEKLY = Calendar("1w", "America/New_York")


def of_instants(run_type: str, *interval: str, **conf: str) -> DagRunInfo:
    instants = tuple(datetime.fromisoformat(f"2013-03-{text}Z") for text in interval)
    return DagRunInfo(run_type, ASKED, instants or None, conf)


def posted(*periods: str) -> DagRunInfo:
    return arrived({"periods": list(periods)})


SHORT_AND_LONG = [
    # A run each hour, also in the night in which clocks change.
    (HOURLY, of_instants("scheduled", "10T06:00", "10T07:00"), "2013-03-10T06:00Z", "2013-03-10T07:00Z"),
    (HOURLY, of_instants("backfill", "10T07:00", "10T08:00"), "2013-03-10T07:00Z", "2013-03-10T08:00Z"),
    (HOURLY, of_instants("scheduled", "10T06:05", "10T07:05"), "2013-03-10T06:00Z", "2013-03-10T07:00Z"),
    # A run each day has 23 hours on that day.
    (HOURLY, of_instants("scheduled", "09T05:00", "10T05:00"), "2013-03-09T05:00Z", "2013-03-10T05:00Z"),
    (HOURLY, run(start="2013-03-09"), "2013-03-09T05:00Z", "2013-03-10T05:00Z"),
    (HOURLY, run(start="2013-03-09", end="2013-03-10T06:00Z"), "2013-03-09T05:00Z", "2013-03-10T07:00Z"),
    (HOURLY, run(start="2013-03-10T01:00:00-05:00"), "2013-03-10T06:00Z", "2013-03-10T07:00Z"),  # as a form writes it
    (HOURLY, run(), "2013-03-10T14:00Z", "2013-03-10T15:00Z"),
    (HOURLY, run("asset_triggered"), "2013-03-10T14:00Z", "2013-03-10T15:00Z"),
    (HOURLY, run("of_a_later_airflow"), "2013-03-10T14:00Z", "2013-03-10T15:00Z"),
    (HOURLY, posted("2013-03-09T07:00Z", "2013-03-09T05:00Z"), "2013-03-09T05:00Z", "2013-03-09T08:00Z"),
    (HOURLY, posted("2013-03-09"), "2013-03-09T05:00Z", "2013-03-10T05:00Z"),
    (QUARTERS, of_instants("scheduled", "10T06:45", "10T07:00"), "2013-03-10T06:45Z", "2013-03-10T07:00Z"),
    (QUARTERS, run(), "2013-03-10T14:45Z", "2013-03-10T15:00Z"),
    (WEEKLY, of_instants("scheduled", "04T05:00", "11T04:00"), "2013-03-04", "2013-03-11"),
    (WEEKLY, run(), "2013-02-25", "2013-03-04"),
    (WEEKLY, run(start="2013-02-18", end="2013-02-25"), "2013-02-18", "2013-03-04"),
]


@pytest.mark.parametrize(("calendar", "given", "start", "end"), SHORT_AND_LONG)
def test_features_window_of_other_periods(calendar: Calendar, given: DagRunInfo, start: str, end: str) -> None:
    asked = replace(given, requested_at=datetime(2013, 3, 11, 4, tzinfo=UTC)) if given.data_interval else given
    window = resolve_features_window(asked, calendar=calendar, first_day=FIRST, last_day=None)
    assert (window.start, window.end) == (start, end)
    assert window.as_of == calendar.start(end)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (run(start="2013-03-10T06:30Z"), "not the start of a period of 1h: 2013-03-10T06:00Z is one"),
        (run(start="2013-03-10T15:00Z"), "the newest hour is 2013-03-10T14:00Z"),
        (run(start="2013-01-01T04:00Z"), "is before 2013-01-01T05:00Z, the first hour of data"),
        (run(start="2013-03-10"), "2013-03-11T03:00Z was not over"),
        (run(start="noon"), "'noon' is not a period of 1h like 2013-03-10T06:00Z"),
        (posted("2013-03-10T06:30Z"), "periods of an asset event: '2013-03-10T06:30Z' is not the start"),
        (of_instants("scheduled", "10T06:05", "10T06:50"), "spans no whole hour"),
    ],
)
def test_features_window_of_hours_refuses(given: DagRunInfo, complaint: str) -> None:
    with pytest.raises(WindowError, match=complaint):
        resolve_features_window(given, calendar=HOURLY, first_day=FIRST, last_day=None)


@pytest.mark.parametrize(
    ("calendar", "given", "period"),
    [
        (HOURLY, of_instants("scheduled", "10T06:05", "10T06:50"), "2013-03-10T05:00Z"),
        (HOURLY, of_instants("scheduled", "10T06:05", "10T07:05"), "2013-03-10T06:00Z"),
        (WEEKLY, of_instants("backfill", "06T05:00", "07T05:00"), "2013-02-25"),
    ],
)
def test_a_short_interval_is_about_the_last_period(calendar: Calendar, given: DagRunInfo, period: str) -> None:
    window = resolve_features_window(
        given, calendar=calendar, first_day=FIRST, last_day=None, allows_short_interval=True
    )
    assert window.periods == (period,)


def test_a_day_has_24_hourly_retrains_each_as_of_its_own_hour() -> None:
    for run_type in ("scheduled", "backfill"):
        windows = [
            resolve_retrain_window(
                DagRunInfo(run_type, ASKED, (HOURLY.start(hour), HOURLY.end(hour))),
                calendar=HOURLY,
                first_day=FIRST,
                last_day=None,
                history=(Duration(2, "h"), Duration(7, "d")),
            )
            for hour in HOURLY.periods_between("2013-03-08T05:00Z", "2013-03-09T05:00Z")
        ]
        assert len({window.as_of for window in windows}) == 24
        assert {len(window.periods) for window in windows} == {2 + 7 * 24}


@pytest.mark.parametrize(
    ("calendar", "given", "start", "end"),
    [
        (HOURLY, run(as_of="2013-03-10T10:00Z"), "2013-03-03T11:00Z", "2013-03-10T10:00Z"),  # 7 days of the clock
        (HOURLY, run(as_of="2013-03-10"), "2013-03-03T05:00Z", "2013-03-10T05:00Z"),
        (HOURLY, run(), "2013-03-03T16:00Z", "2013-03-10T15:00Z"),
        (HOURLY, arrived({"periods": [], "data_end": "2013-03-09T08:00Z"}), "2013-03-02T08:00Z", "2013-03-09T08:00Z"),
        (WEEKLY, run(as_of="2013-02-25"), "2013-02-18", "2013-02-25"),
        (WEEKLY, arrived({"periods": ["2013-02-18"]}), "2013-02-18", "2013-02-25"),
    ],
)
def test_retrain_window_of_other_periods(calendar: Calendar, given: DagRunInfo, start: str, end: str) -> None:
    window = resolve_retrain_window(
        given, calendar=calendar, first_day=FIRST, last_day=None, history=[Duration(7, "d")]
    )
    assert (window.start, window.end) == (start, end)


def test_hours_end_with_the_last_day_of_data() -> None:
    ended = {"calendar": HOURLY, "first_day": FIRST, "last_day": date(2013, 2, 1)}
    assert resolve_features_window(run(), **ended).periods == ("2013-02-02T04:00Z",)
    assert resolve_features_window(run(start="2013-02-01"), **ended).end == "2013-02-02T05:00Z"
    with pytest.raises(WindowError, match="is after 2013-02-01, the last day of data"):
        resolve_features_window(run(start="2013-02-02T05:00Z"), **ended)


def test_a_run_that_alarms_ask_for_knows_it() -> None:
    def resolve(run: DagRunInfo) -> Window:
        return resolve_retrain_window(run, calendar=CALENDAR, first_day=FIRST, last_day=None, history=HISTORY)

    cause = "drift since 2013-03-01: flights.distance level (alarm in entry 12)"
    window = resolve(replace(run("operator_triggered", as_of="2013-03-05"), cause=cause))
    assert (window.end, window.run_reason, window.cause) == ("2013-03-05", RunReason.ALARM, cause)
    assert resolve(run(as_of="2013-03-05")).cause is None
    # A backfill promotes nothing, whatever its conf says.
    past = resolve(replace(run("backfill", ("2013-03-04", "2013-03-05")), cause=cause))
    assert (past.run_reason, past.cause) == (RunReason.BACKFILL, None)
