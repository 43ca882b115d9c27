"""The window of a run: which days it is about, as of when, and why it runs.

One pure function per DAG answers this for every way a run can start, so that no step ever asks the
clock, and no two steps of a run can disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from evergreen.errors import WindowError


class Origin(StrEnum):
    """Why a run exists."""

    SCHEDULE = "schedule"
    BACKFILL = "backfill"
    ARRIVAL = "arrival"
    MANUAL = "manual"


# Airflow's run types. A backfill that re-runs an existing run keeps the old run id: the type tells, the id does not.
_ORIGINS = {
    "scheduled": Origin.SCHEDULE,
    "backfill": Origin.BACKFILL,
    "asset_triggered": Origin.ARRIVAL,
    "manual": Origin.MANUAL,
}


@dataclass(frozen=True)
class Run:
    """The facts that the scheduler states about a run.

    `interval` is absent in runs that have no logical date. `asked_at` is when the run was asked for:
    the one instant that a run without dates may be resolved from, and the same on every retry.
    """

    run_type: str
    asked_at: datetime
    interval: tuple[datetime, datetime] | None = None
    conf: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        try:
            return _ORIGINS[self.run_type]
        except KeyError:
            raise WindowError(
                f"run type {self.run_type!r} is none of {', '.join(sorted(_ORIGINS))}"
            ) from None


@dataclass(frozen=True)
class Window:
    """The days `start` ≤ day < `end` of the model's calendar, known as of midnight at the start of `end`."""

    start: date
    end: date
    origin: Origin
    timezone: str

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise WindowError(f"the window from {self.start} until before {self.end} holds no day")

    @property
    def days(self) -> tuple[date, ...]:
        return tuple(self.start + timedelta(n) for n in range((self.end - self.start).days))

    @property
    def as_of(self) -> datetime:
        """Only what was known before this instant may be used."""
        return midnight(self.end, self.timezone)


def midnight(day: date, timezone: str) -> datetime:
    """The instant at which `day` begins in `timezone`."""
    return datetime.combine(day, time(), ZoneInfo(timezone))


def features_window(run: Run, *, first_day: date, last_day: date | None, timezone: str) -> Window:
    """The days whose features a run computes.

    A run with a data interval is about the days in it; one started by hand may name `start` and `end`
    (both included); one without either is about the last day that was over when it was asked for.

    Raises:
        WindowError: unknown or malformed conf, reversed or future dates, days before the first day.
    """
    conf = _dates(run.conf, allowed=("start", "end"))
    today = _today(run, timezone, last_day)
    if conf:
        start = conf.get("start") or conf["end"]
        end = (conf.get("end") or conf["start"]) + timedelta(1)
        if start >= end:
            raise WindowError(f"start {start} is after end {end - timedelta(1)}: swap them")
    elif run.interval:
        start, end = (_local_day(instant, timezone) for instant in run.interval)
        if start == end:
            raise WindowError(
                f"the data interval {run.interval[0]} – {run.interval[1]} spans no whole day in {timezone}: "
                "the DAG needs a CronDataIntervalTimetable in the model's timezone"
            )
    else:
        start, end = today - timedelta(1), today
    _only_past_days(end, today, last_day)
    if start < first_day:
        raise WindowError(f"{start} is before {first_day}, the first day of data of this model: start there")
    return Window(start, end, run.origin, timezone)


def retrain_window(
    run: Run, *, first_day: date, last_day: date | None, timezone: str, history_days: int
) -> Window:
    """The days whose labels a retrain may see: at most `history_days` of them, all before its `as_of`.

    `as_of` is the end of the run's data interval, or the day that conf names (`as_of: 2013-03-01` knows
    everything up to midnight at the start of 1 March), or the midnight before the run was asked for.

    Raises:
        WindowError: unknown or malformed conf, an `as_of` in the future or before any data.
    """
    conf = _dates(run.conf, allowed=("as_of",))
    today = _today(run, timezone, last_day)
    if conf:
        end = conf["as_of"]
    elif run.interval:
        end = _local_day(run.interval[1], timezone)
    else:
        end = today
    _only_past_days(end, today, last_day)
    if end <= first_day:
        raise WindowError(f"as of {end} there is no data yet: the first day of this model is {first_day}")
    return Window(max(first_day, end - timedelta(history_days)), end, run.origin, timezone)


def _local_day(instant: datetime, timezone: str) -> date:
    return instant.astimezone(ZoneInfo(timezone)).date()


def _today(run: Run, timezone: str, last_day: date | None) -> date:
    """The first day that was not over, or for which there will never be data, when the run was asked for."""
    today = _local_day(run.asked_at, timezone)
    return min(today, last_day + timedelta(1)) if last_day else today


def _only_past_days(end: date, today: date, last_day: date | None) -> None:
    newest = end - timedelta(1)
    if last_day and newest > last_day:
        raise WindowError(f"{newest} is after {last_day}, the last day of data of this model: end there")
    if end > today:
        raise WindowError(
            f"{newest} was not over when the run was asked for; the newest day is {today - timedelta(1)}"
        )


def _dates(conf: Mapping[str, Any], *, allowed: tuple[str, ...]) -> dict[str, date]:
    """The dates that conf gives; a form field left empty counts as not given."""
    unknown = sorted(set(conf) - set(allowed))
    if unknown:
        raise WindowError(f"unknown conf: {', '.join(unknown)}; this DAG knows {', '.join(allowed)}")
    dates = {}
    for name, value in conf.items():
        if value in (None, ""):
            continue
        try:
            dates[name] = date.fromisoformat(value)
        except (TypeError, ValueError):
            raise WindowError(f"conf {name}={value!r} is not a date like 2013-03-01") from None
    return dates
