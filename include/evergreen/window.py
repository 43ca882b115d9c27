"""The window of a run: which days it is about, as of when, and why it runs.

One pure function per DAG resolves it for every way a run can start, so no step reads the clock and no two steps
of a run can disagree.
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


_EXAMPLE_EXTRA = '{"days": ["2013-03-01"]}'
_EXTRA_KEYS = ("days", "data_end", "run_reason")
_AIRFLOW_KEYS = ("from_rest_api", "from_trigger")  # added to an extra by Airflow
# By Airflow's run type. The run id says nothing: a backfill that re-runs an existing run keeps the old id. Runs of all
# other types were asked for: by a person, by another DAG, or by a button of the UI.
_RUN_REASONS = {
    "scheduled": RunReason.SCHEDULE,
    "backfill": RunReason.BACKFILL,
    "asset_triggered": RunReason.ARRIVAL,
}


def run_reason_of(run_type: str) -> RunReason:
    """Return why a run of this type of Airflow exists. Types that a later Airflow adds are like a run by hand."""
    return _RUN_REASONS.get(run_type, RunReason.MANUAL)


@dataclass(frozen=True)
class AssetEvent:
    """One asset event that started a run: the days it is about and, if the sender knows, why they changed."""

    days: tuple[date, ...] = ()
    data_end: date | None = None
    """The first day that the sender has no data of yet."""
    run_reason: RunReason | None = None
    deliveries: Mapping[str, str] | None = None
    """The delivery id of each day, by ISO date, if the event is an announcement of the raw-data watcher."""

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> AssetEvent:
        """Parse the extra of an asset event: the payload of a watcher, or what an external system posted.

        `days` is a list of dates or a mapping whose keys are dates.

        Raises:
            WindowError: a key is unknown, or a date or the run reason cannot be parsed.
        """
        from_watcher = bool(extra.get("from_trigger"))
        payload = extra.get("payload", extra) if from_watcher else extra
        if not isinstance(payload, Mapping):
            raise WindowError(f"an asset event came with {payload!r}: post extra like {_EXAMPLE_EXTRA}")
        if unknown := sorted(str(key) for key in set(payload) - {*_EXTRA_KEYS, *_AIRFLOW_KEYS}):
            raise WindowError(
                f"an asset event came with unknown {', '.join(unknown)}: post extra like {_EXAMPLE_EXTRA}"
            )
        days, data_end, reason = (payload.get(name) for name in _EXTRA_KEYS)
        if days is not None and not isinstance(days, list | tuple | Mapping):
            raise WindowError(f"an asset event came with days={days!r}: post extra like {_EXAMPLE_EXTRA}")
        if reason is not None and reason not in set(RunReason):
            raise WindowError(f"an asset event came with run_reason={reason!r}: one of {', '.join(RunReason)}")
        return cls(
            days=tuple(_parse_date("days of an asset event", day) for day in days or ()),
            data_end=_parse_date("data_end of an asset event", data_end) if data_end else None,
            run_reason=RunReason(reason) if reason else None,
            deliveries=days if from_watcher and isinstance(days, Mapping) else None,
        )

    def to_extra(self) -> dict[str, Any]:
        """The extra that `from_extra` parses."""
        return {
            "days": [day.isoformat() for day in self.days],
            "data_end": self.data_end and self.data_end.isoformat(),
            "run_reason": self.run_reason and self.run_reason.value,
        }


@dataclass(frozen=True)
class DagRunInfo:
    """The facts that the scheduler states about a run."""

    run_type: str
    requested_at: datetime
    """The one instant that a run without dates is resolved from; equal on every retry."""
    data_interval: tuple[datetime, datetime] | None = None
    """None for runs without a logical date and for runs that were asked for."""
    conf: Mapping[str, Any] = field(default_factory=dict)
    asset_events: tuple[AssetEvent, ...] = ()
    """The events that a run of type asset_triggered consumed: one or several."""
    run_id: str = ""
    logical_date: datetime | None = None
    started_at: datetime | None = None

    @property
    def run_reason(self) -> RunReason:
        """Why the run exists. A run that only events of a backfill started belongs to that backfill."""
        if self.asset_events and all(event.run_reason is RunReason.BACKFILL for event in self.asset_events):
            return RunReason.BACKFILL
        return run_reason_of(self.run_type)


@dataclass(frozen=True)
class Window:
    """The days of the model's calendar that a run is about, in order."""

    days: tuple[date, ...]
    run_reason: RunReason
    timezone: str

    def __post_init__(self) -> None:
        if not self.days:
            raise WindowError("the window has no days")
        if list(self.days) != sorted(set(self.days)):
            raise WindowError(f"the days of a window must differ and be in order, got {self.days}")

    @classmethod
    def from_range(cls, start: date, end: date, run_reason: RunReason, timezone: str) -> Window:
        """The days `start` ≤ day < `end`."""
        if start >= end:
            raise WindowError(f"the window has no days: it starts on {start} and ends before {end}")
        return cls(days_between(start, end), run_reason, timezone)

    @property
    def start(self) -> date:
        return self.days[0]

    @property
    def end(self) -> date:
        """The day after the last day."""
        return self.days[-1] + timedelta(1)

    @property
    def as_of(self) -> datetime:
        """Midnight after the last day: a step may only use what was known before this instant."""
        return midnight(self.end, self.timezone)


def days_between(start: date, end: date) -> tuple[date, ...]:
    """`start` ≤ day < `end`."""
    return tuple(start + timedelta(n) for n in range((end - start).days))


def midnight(day: date, timezone: str) -> datetime:
    """The instant at which `day` begins in `timezone`."""
    return datetime.combine(day, time(), ZoneInfo(timezone))


def resolve_features_window(dag_run: DagRunInfo, *, first_day: date, last_day: date | None, timezone: str) -> Window:
    """Return the days whose features a run computes.

    These are the days from `start` to `end` (both included) of its conf, or the days in its data interval, or the
    days of the asset events that started it, or the last day that was over when the run was requested.

    Raises:
        WindowError: unknown or malformed conf, reversed or future dates, days before the first day.
    """
    conf = _parse_dates(dag_run.conf, allowed=("start", "end"))
    today = _first_unavailable_day(dag_run, timezone, last_day)
    arrived = sorted({day for event in dag_run.asset_events for day in event.days})
    # A delivery may include days that the model does not use.
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
            first, last = dag_run.data_interval
            raise WindowError(
                f"the data interval {first} – {last} spans no whole day in {timezone}: "
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
    """Return the days whose labels a retrain may use: at most `history_days` of them, all before its `as_of`.

    `as_of` is the day in its conf (`as_of: 2013-03-01` uses everything known at the start of 1 March), or the end of
    its data interval, or the newest `data_end` of the asset events that started it, or the midnight before the run
    was requested.

    Raises:
        WindowError: unknown or malformed conf, an `as_of` in the future or before any data.
    """
    conf = _parse_dates(dag_run.conf, allowed=("as_of",))
    today = _first_unavailable_day(dag_run, timezone, last_day)
    data_ends = [
        event.data_end or max(event.days) + timedelta(1)
        for event in dag_run.asset_events
        if event.data_end or event.days
    ]
    if conf:
        end = conf["as_of"]
    elif dag_run.data_interval:
        end = _local_day(dag_run.data_interval[1], timezone)
    else:
        end = max(data_ends, default=today)
    _require_past_days(end, today, last_day)
    if end <= first_day:
        raise WindowError(f"as of {end} there is no data yet: the first day of data of this model is {first_day}")
    return Window.from_range(max(first_day, end - timedelta(history_days)), end, dag_run.run_reason, timezone)


def _local_day(instant: datetime, timezone: str) -> date:
    return instant.astimezone(ZoneInfo(timezone)).date()


def _first_unavailable_day(dag_run: DagRunInfo, timezone: str, last_day: date | None) -> date:
    """The first day that was not over when the run was requested, or that is after the model's last day of data."""
    today = _local_day(dag_run.requested_at, timezone)
    return min(today, last_day + timedelta(1)) if last_day else today


def _require_past_days(end: date, first_unavailable_day: date, last_day: date | None) -> None:
    newest = end - timedelta(1)
    if last_day and newest > last_day:
        raise WindowError(f"{newest} is after {last_day}, the last day of data of this model: end there")
    if end > first_unavailable_day:
        newest_over = first_unavailable_day - timedelta(1)
        raise WindowError(f"{newest} was not over when the run was requested; the newest day is {newest_over}")


def _parse_dates(conf: Mapping[str, Any], *, allowed: tuple[str, ...]) -> dict[str, date]:
    """The dates in conf. An empty form field counts as absent."""
    unknown = sorted(set(conf) - set(allowed))
    if unknown:
        raise WindowError(f"unknown conf: {', '.join(unknown)}; this DAG accepts {', '.join(allowed)}")
    return {name: _parse_date(f"conf {name}", value) for name, value in conf.items() if value not in (None, "")}


def _parse_date(label: str, value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise WindowError(f"{label}={value!r} is not a date like 2013-03-01") from None
