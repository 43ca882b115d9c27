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


class RunReason(StrEnum):
    """Why a run exists."""

    SCHEDULE = "schedule"
    BACKFILL = "backfill"
    ARRIVAL = "arrival"
    MANUAL = "manual"


# Airflow's run types. A backfill that re-runs an existing run keeps the old run id: the type tells, the id does not.
_RUN_REASONS = {
    "scheduled": RunReason.SCHEDULE,
    "backfill": RunReason.BACKFILL,
    "asset_triggered": RunReason.ARRIVAL,
    "manual": RunReason.MANUAL,
}


@dataclass(frozen=True)
class AssetEvent:
    """One asset event that started a run: the days it is about and, if its sender knows, why they changed.

    `until` is the first day that the sender has nothing of yet, where days are published in order.
    """

    days: tuple[date, ...] = ()
    data_end: date | None = None
    run_reason: RunReason | None = None

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> AssetEvent:
        """From what comes with an asset event: a watcher's payload, or what somebody posted.

        Days are a list of dates or a mapping whose keys are dates; whatever else comes along is not ours.

        Raises:
            WindowError: a date or the origin cannot be read.
        """
        stated = extra.get("payload", extra) if extra.get("from_trigger") else extra
        if not isinstance(stated, Mapping):
            raise WindowError(f"an asset event came with {stated!r}: post extra like {_EXAMPLE_EXTRA}")
        days, data_end, reason = (stated.get(name) for name in ("days", "data_end", "run_reason"))
        if days is not None and not isinstance(days, list | tuple | Mapping):
            raise WindowError(f"an asset event came with days={days!r}: post extra like {_EXAMPLE_EXTRA}")
        if reason is not None and reason not in set(RunReason):
            raise WindowError(f"an asset event came with run_reason={reason!r}: one of {', '.join(RunReason)}")
        return cls(
            days=tuple(_parse_date("days of an asset event", day) for day in days or ()),
            data_end=_parse_date("data_end of an asset event", data_end) if data_end else None,
            run_reason=RunReason(reason) if reason else None,
        )


_EXAMPLE_EXTRA = '{"days": ["2013-03-01"]}'


@dataclass(frozen=True)
class DagRunInfo:
    """The facts that the scheduler states about a run.

    `interval` is absent in runs that have no logical date. `asked_at` is when the run was asked for:
    the one instant that a run without dates may be resolved from, and the same on every retry. `events`
    are those that a run of type asset_triggered consumed: one or several.
    """

    run_type: str
    requested_at: datetime
    data_interval: tuple[datetime, datetime] | None = None
    conf: Mapping[str, Any] = field(default_factory=dict)
    asset_events: tuple[AssetEvent, ...] = ()

    @property
    def run_reason(self) -> RunReason:
        """A run that only a backfill's events started is part of that backfill: Airflow calls it asset-triggered."""
        if self.run_type not in _RUN_REASONS:
            raise WindowError(f"run type {self.run_type!r} is none of {', '.join(sorted(_RUN_REASONS))}")
        if self.asset_events and all(event.run_reason is RunReason.BACKFILL for event in self.asset_events):
            return RunReason.BACKFILL
        return _RUN_REASONS[self.run_type]


@dataclass(frozen=True)
class Window:
    """The days that a run is about, of the model's calendar, in order; known as of midnight after the last."""

    days: tuple[date, ...]
    run_reason: RunReason
    timezone: str

    def __post_init__(self) -> None:
        if not self.days:
            raise WindowError("the window holds no day")
        if list(self.days) != sorted(set(self.days)):
            raise WindowError(f"the days of a window must differ and be in order, got {self.days}")

    @classmethod
    def from_range(cls, start: date, end: date, run_reason: RunReason, timezone: str) -> Window:
        """The days `start` ≤ day < `end`."""
        if start >= end:
            raise WindowError(f"the window from {start} until before {end} holds no day")
        return cls(days_between(start, end), run_reason, timezone)

    @property
    def start(self) -> date:
        return self.days[0]

    @property
    def end(self) -> date:
        """The day after the last."""
        return self.days[-1] + timedelta(1)

    @property
    def as_of(self) -> datetime:
        """Only what was known before this instant may be used."""
        return midnight(self.end, self.timezone)


def days_between(start: date, end: date) -> tuple[date, ...]:
    """`start` ≤ day < `end`."""
    return tuple(start + timedelta(n) for n in range((end - start).days))


def midnight(day: date, timezone: str) -> datetime:
    """The instant at which `day` begins in `timezone`."""
    return datetime.combine(day, time(), ZoneInfo(timezone))


def resolve_features_window(dag_run: DagRunInfo, *, first_day: date, last_day: date | None, timezone: str) -> Window:
    """The days whose features a run computes.

    A run with a data interval is about the days in it; one that asset events started, about their days;
    one started by hand may name `start` and `end` (both included); one without any of these is about the
    last day that was over when it was asked for.

    Raises:
        WindowError: unknown or malformed conf, reversed or future dates, days before the first day.
    """
    conf = _parse_dates(dag_run.conf, allowed=("start", "end"))
    today = _first_unavailable_day(dag_run, timezone, last_day)
    arrived = sorted({day for event in dag_run.asset_events for day in event.days})
    # Whoever delivers may deliver more than the model is about.
    arrived = [day for day in arrived if first_day <= day <= (last_day or day)] or arrived
    if conf:
        start = conf.get("start") or conf["end"]
        end = conf.get("end") or conf["start"]
        if start > end:
            raise WindowError(f"start {start} is after end {end}: swap them")
        days = days_between(start, end + timedelta(1))
    elif dag_run.data_interval:
        days = days_between(*(_local_day(instant, timezone) for instant in dag_run.data_interval))
        if not days:
            raise WindowError(
                f"the data interval {dag_run.data_interval[0]} – {dag_run.data_interval[1]} spans no whole day in {timezone}: "
                "the DAG needs a CronDataIntervalTimetable in the model's timezone"
            )
    else:
        days = tuple(arrived) or (today - timedelta(1),)
    _require_past_days(days[-1] + timedelta(1), today, last_day)
    if days[0] < first_day:
        raise WindowError(f"{days[0]} is before {first_day}, the first day of data of this model: start there")
    return Window(days, dag_run.run_reason, timezone)


def resolve_retrain_window(
    dag_run: DagRunInfo, *, first_day: date, last_day: date | None, timezone: str, history_days: int
) -> Window:
    """The days whose labels a retrain may see: at most `history_days` of them, all before its `as_of`.

    `as_of` is the end of the run's data interval, or the day that conf names (`as_of: 2013-03-01` knows
    everything up to midnight at the start of 1 March), or how far the data was that asset events told of,
    or the midnight before the run was asked for.

    Raises:
        WindowError: unknown or malformed conf, an `as_of` in the future or before any data.
    """
    conf = _parse_dates(dag_run.conf, allowed=("as_of",))
    today = _first_unavailable_day(dag_run, timezone, last_day)
    known = [
        event.data_end or max(event.days) + timedelta(1)
        for event in dag_run.asset_events
        if event.data_end or event.days
    ]
    if conf:
        end = conf["as_of"]
    elif dag_run.data_interval:
        end = _local_day(dag_run.data_interval[1], timezone)
    else:
        end = max(known, default=today)
    _require_past_days(end, today, last_day)
    if end <= first_day:
        raise WindowError(f"as of {end} there is no data yet: the first day of this model is {first_day}")
    return Window.from_range(max(first_day, end - timedelta(history_days)), end, dag_run.run_reason, timezone)


def _local_day(instant: datetime, timezone: str) -> date:
    return instant.astimezone(ZoneInfo(timezone)).date()


def _first_unavailable_day(dag_run: DagRunInfo, timezone: str, last_day: date | None) -> date:
    """The first day that was not over, or for which there will never be data, when the run was asked for."""
    today = _local_day(dag_run.requested_at, timezone)
    return min(today, last_day + timedelta(1)) if last_day else today


def _require_past_days(end: date, first_unavailable_day: date, last_day: date | None) -> None:
    newest = end - timedelta(1)
    if last_day and newest > last_day:
        raise WindowError(f"{newest} is after {last_day}, the last day of data of this model: end there")
    if end > first_unavailable_day:
        raise WindowError(
            f"{newest} was not over when the run was asked for; the newest day is {first_unavailable_day - timedelta(1)}"
        )


def _parse_dates(conf: Mapping[str, Any], *, allowed: tuple[str, ...]) -> dict[str, date]:
    """The dates that conf gives; a form field left empty counts as not given."""
    unknown = sorted(set(conf) - set(allowed))
    if unknown:
        raise WindowError(f"unknown conf: {', '.join(unknown)}; this DAG knows {', '.join(allowed)}")
    dates = {}
    for name, value in conf.items():
        if value in (None, ""):
            continue
        dates[name] = _parse_date(f"conf {name}", value)
    return dates


def _parse_date(label: str, value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise WindowError(f"{label}={value!r} is not a date like 2013-03-01") from None
