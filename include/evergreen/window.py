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
class Event:
    """One asset event that started a run: the days it is about and, if its sender knows, why they changed.

    `until` is the first day that the sender has nothing of yet, where days are published in order.
    """

    days: tuple[date, ...] = ()
    until: date | None = None
    origin: Origin | None = None

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> Event:
        """From what comes with an asset event: a watcher's payload, or what somebody posted.

        Days are a list of dates or a mapping whose keys are dates; whatever else comes along is not ours.

        Raises:
            WindowError: a date or the origin cannot be read.
        """
        stated = extra.get("payload", extra) if extra.get("from_trigger") else extra
        if not isinstance(stated, Mapping):
            raise WindowError(f"an asset event came with {stated!r}: post extra like {_EXTRA}")
        days, until, origin = (stated.get(name) for name in ("days", "until", "origin"))
        if days is not None and not isinstance(days, list | tuple | Mapping):
            raise WindowError(f"an asset event came with days={days!r}: post extra like {_EXTRA}")
        if origin is not None and origin not in set(Origin):
            raise WindowError(f"an asset event came with origin={origin!r}: one of {', '.join(Origin)}")
        return cls(
            days=tuple(_date("days of an asset event", day) for day in days or ()),
            until=_date("until of an asset event", until) if until else None,
            origin=Origin(origin) if origin else None,
        )


_EXTRA = '{"days": ["2013-03-01"]}'


@dataclass(frozen=True)
class Run:
    """The facts that the scheduler states about a run.

    `interval` is absent in runs that have no logical date. `asked_at` is when the run was asked for:
    the one instant that a run without dates may be resolved from, and the same on every retry. `events`
    are those that a run of type asset_triggered consumed: one or several.
    """

    run_type: str
    asked_at: datetime
    interval: tuple[datetime, datetime] | None = None
    conf: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    @property
    def origin(self) -> Origin:
        """A run that only a backfill's events started is part of that backfill: Airflow calls it asset-triggered."""
        if self.run_type not in _ORIGINS:
            raise WindowError(f"run type {self.run_type!r} is none of {', '.join(sorted(_ORIGINS))}")
        if self.events and all(event.origin is Origin.BACKFILL for event in self.events):
            return Origin.BACKFILL
        return _ORIGINS[self.run_type]


@dataclass(frozen=True)
class Window:
    """The days that a run is about, of the model's calendar, in order; known as of midnight after the last."""

    days: tuple[date, ...]
    origin: Origin
    timezone: str

    def __post_init__(self) -> None:
        if not self.days:
            raise WindowError("the window holds no day")
        if list(self.days) != sorted(set(self.days)):
            raise WindowError(f"the days of a window must differ and be in order, got {self.days}")

    @classmethod
    def between(cls, start: date, end: date, origin: Origin, timezone: str) -> Window:
        """The days `start` ≤ day < `end`."""
        if start >= end:
            raise WindowError(f"the window from {start} until before {end} holds no day")
        return cls(days_between(start, end), origin, timezone)

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


def features_window(run: Run, *, first_day: date, last_day: date | None, timezone: str) -> Window:
    """The days whose features a run computes.

    A run with a data interval is about the days in it; one that asset events started, about their days;
    one started by hand may name `start` and `end` (both included); one without any of these is about the
    last day that was over when it was asked for.

    Raises:
        WindowError: unknown or malformed conf, reversed or future dates, days before the first day.
    """
    conf = _dates(run.conf, allowed=("start", "end"))
    today = _today(run, timezone, last_day)
    arrived = sorted({day for event in run.events for day in event.days})
    # Whoever delivers may deliver more than the model is about.
    arrived = [day for day in arrived if first_day <= day <= (last_day or day)] or arrived
    if conf:
        start = conf.get("start") or conf["end"]
        end = conf.get("end") or conf["start"]
        if start > end:
            raise WindowError(f"start {start} is after end {end}: swap them")
        days = days_between(start, end + timedelta(1))
    elif run.interval:
        days = days_between(*(_local_day(instant, timezone) for instant in run.interval))
        if not days:
            raise WindowError(
                f"the data interval {run.interval[0]} – {run.interval[1]} spans no whole day in {timezone}: "
                "the DAG needs a CronDataIntervalTimetable in the model's timezone"
            )
    else:
        days = tuple(arrived) or (today - timedelta(1),)
    _only_past_days(days[-1] + timedelta(1), today, last_day)
    if days[0] < first_day:
        raise WindowError(
            f"{days[0]} is before {first_day}, the first day of data of this model: start there"
        )
    return Window(days, run.origin, timezone)


def retrain_window(
    run: Run, *, first_day: date, last_day: date | None, timezone: str, history_days: int
) -> Window:
    """The days whose labels a retrain may see: at most `history_days` of them, all before its `as_of`.

    `as_of` is the end of the run's data interval, or the day that conf names (`as_of: 2013-03-01` knows
    everything up to midnight at the start of 1 March), or how far the data was that asset events told of,
    or the midnight before the run was asked for.

    Raises:
        WindowError: unknown or malformed conf, an `as_of` in the future or before any data.
    """
    conf = _dates(run.conf, allowed=("as_of",))
    today = _today(run, timezone, last_day)
    known = [
        event.until or max(event.days) + timedelta(1) for event in run.events if event.until or event.days
    ]
    if conf:
        end = conf["as_of"]
    elif run.interval:
        end = _local_day(run.interval[1], timezone)
    else:
        end = max(known, default=today)
    _only_past_days(end, today, last_day)
    if end <= first_day:
        raise WindowError(f"as of {end} there is no data yet: the first day of this model is {first_day}")
    return Window.between(max(first_day, end - timedelta(history_days)), end, run.origin, timezone)


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
        dates[name] = _date(f"conf {name}", value)
    return dates


def _date(what: str, value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise WindowError(f"{what}={value!r} is not a date like 2013-03-01") from None
