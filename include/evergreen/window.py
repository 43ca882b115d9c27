"""The window of a run: which periods it is about, as of when, and why it runs.

One pure function per DAG resolves it for every way a run can start, so no step reads the clock and no two steps
of a run can disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from evergreen.errors import WindowError
from evergreen.periods import Calendar, Duration


class RunReason(StrEnum):
    """Why a run exists."""

    SCHEDULE = "schedule"
    BACKFILL = "backfill"
    ARRIVAL = "arrival"
    MANUAL = "manual"
    ALARM = "alarm"


_EXAMPLE_EXTRA = '{"periods": ["2013-03-01"]}'
_EXTRA_KEYS = ("periods", "data_end", "run_reason")
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
    """One asset event that started a run: the periods it is about and, if the sender knows, why they changed."""

    periods: tuple[str, ...] = ()
    data_end: str | None = None
    """The first period that the sender has no data of yet."""
    run_reason: RunReason | None = None
    deliveries: Mapping[str, str] | None = None
    """The delivery id of each period, if the event is an announcement of the raw-data watcher."""

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> AssetEvent:
        """Parse the extra of an asset event: the payload of a watcher, or what an external system posted.

        `periods` is a list of periods or a mapping whose keys are periods. Their names are checked where the calendar
        is known: by `resolve_features_window` and `resolve_retrain_window`.

        Raises:
            WindowError: a key is unknown, or a value is not of its type.
        """
        from_watcher = bool(extra.get("from_trigger"))
        payload = extra.get("payload", extra) if from_watcher else extra
        if not isinstance(payload, Mapping):
            raise WindowError(f"an asset event came with {payload!r}: post extra like {_EXAMPLE_EXTRA}")
        if unknown := sorted(str(key) for key in set(payload) - {*_EXTRA_KEYS, *_AIRFLOW_KEYS}):
            raise WindowError(
                f"an asset event came with unknown {', '.join(unknown)}: post extra like {_EXAMPLE_EXTRA}"
            )
        periods, data_end, reason = (payload.get(name) for name in _EXTRA_KEYS)
        if periods is not None and not isinstance(periods, list | tuple | Mapping):
            raise WindowError(f"an asset event came with periods={periods!r}: post extra like {_EXAMPLE_EXTRA}")
        if reason is not None and reason not in set(RunReason):
            raise WindowError(f"an asset event came with run_reason={reason!r}: one of {', '.join(RunReason)}")
        return cls(
            periods=tuple(periods or ()),
            data_end=data_end or None,
            run_reason=RunReason(reason) if reason else None,
            deliveries=periods if from_watcher and isinstance(periods, Mapping) else None,
        )

    def to_extra(self) -> dict[str, Any]:
        """The extra that `from_extra` parses."""
        return {
            "periods": list(self.periods),
            "data_end": self.data_end,
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
    cause: str | None = None
    """What the alarms say that asked for the run, if some did."""

    @property
    def run_reason(self) -> RunReason:
        """Why the run exists. A run that only events of a backfill started belongs to that backfill."""
        if self.cause and run_reason_of(self.run_type) is RunReason.MANUAL:
            return RunReason.ALARM
        if self.asset_events and all(event.run_reason is RunReason.BACKFILL for event in self.asset_events):
            return RunReason.BACKFILL
        return run_reason_of(self.run_type)


@dataclass(frozen=True)
class Window:
    """The periods of the model's calendar that a run is about, in order."""

    periods: tuple[str, ...]
    run_reason: RunReason
    calendar: Calendar
    cause: str | None = None
    """Of a run that alarms have asked for: what they say."""

    def __post_init__(self) -> None:
        if not self.periods:
            raise WindowError("the window has no periods")
        if list(self.periods) != sorted(set(self.periods)):
            raise WindowError(f"the periods of a window must differ and be in order, got {', '.join(self.periods)}")

    @classmethod
    def from_range(
        cls, start: str, end: str, run_reason: RunReason, calendar: Calendar, cause: str | None = None
    ) -> Window:
        """The periods `start` ≤ period < `end`."""
        if start >= end:
            raise WindowError(f"the window has no periods: it starts at {start} and ends before {end}")
        return cls(tuple(calendar.periods_between(start, end)), run_reason, calendar, cause)

    @property
    def start(self) -> str:
        return self.periods[0]

    @property
    def end(self) -> str:
        """The period after the last period."""
        return self.calendar.shift(self.periods[-1], 1)

    @property
    def as_of(self) -> datetime:
        """The end of the last period: a step may only use what was known before this instant."""
        return self.calendar.end(self.periods[-1])


def resolve_features_window(
    dag_run: DagRunInfo,
    *,
    calendar: Calendar,
    first_day: date,
    last_day: date | None,
    allows_short_interval: bool = False,
) -> Window:
    """Return the periods whose features a run computes.

    These are the periods from `start` to `end` (both included) of its conf, or those in its data interval, or those of
    the asset events that started it, or the last one that was over when the run was requested. A date in conf means
    all periods that begin on it. A data interval in which no period ends is an error, or, if that is allowed, about the
    last one before.

    Raises:
        WindowError: unknown or malformed conf, a reversed range, periods in the future or before the first day.
    """
    conf = _parse_conf(dag_run.conf, calendar, allowed=("start", "end"))
    first, current = calendar.first_of(first_day), _first_unavailable(dag_run, calendar, last_day)
    arrived = sorted({period for event in dag_run.asset_events for period in _parse_periods(event, calendar)})
    # A delivery may include periods that the model does not use.
    end_of_data = _end_of_data(calendar, last_day)
    arrived = [p for p in arrived if first <= p and not (end_of_data and p >= end_of_data)] or arrived
    if conf:
        start, end = (conf.get(name) or next(iter(conf.values())) for name in ("start", "end"))
        if start[0] >= end[1]:
            raise WindowError(f"start {dag_run.conf['start']} is after end {dag_run.conf['end']}: swap them")
        periods = tuple(calendar.periods_between(start[0], end[1]))
    elif dag_run.data_interval:
        periods = tuple(calendar.periods_between(*map(calendar.period_at, dag_run.data_interval)))
        if not periods and allows_short_interval:
            periods = (calendar.shift(calendar.period_at(dag_run.data_interval[1]), -1),)
        if not periods:
            begin, end_of_interval = dag_run.data_interval
            raise WindowError(
                f"the data interval {begin} – {end_of_interval} spans no whole {calendar.unit} in {calendar.timezone}: "
                "the DAG needs a CronDataIntervalTimetable in the model's timezone"
            )
    else:
        periods = tuple(arrived) or (calendar.shift(current, -1),)
    _require_past(calendar.shift(periods[-1], 1), current, calendar, last_day)
    if periods[0] < first:
        raise WindowError(
            f"{periods[0]} is before {first}, the first {calendar.unit} of data of this model: start there"
        )
    return Window(periods, dag_run.run_reason, calendar)


def resolve_retrain_window(
    dag_run: DagRunInfo, *, calendar: Calendar, first_day: date, last_day: date | None, history: Sequence[Duration]
) -> Window:
    """Return the periods whose labels a retrain may use: those of the durations `history`, all before its `as_of`.

    `as_of` is the period in its conf (`as_of: 2013-03-01` uses everything known at the start of 1 March), or the end of
    its data interval, or the newest `data_end` of the asset events that started it, or the start of the period in
    which the run was requested.

    Raises:
        WindowError: unknown or malformed conf, an `as_of` in the future or before any data.
    """
    conf = _parse_conf(dag_run.conf, calendar, allowed=("as_of",))
    first, current = calendar.first_of(first_day), _first_unavailable(dag_run, calendar, last_day)
    data_ends = [
        _parse("data_end of an asset event", event.data_end, calendar)
        if event.data_end
        else calendar.shift(max(_parse_periods(event, calendar)), 1)
        for event in dag_run.asset_events
        if event.data_end or event.periods
    ]
    if conf:
        end = conf["as_of"][0]
    elif dag_run.data_interval:
        end = calendar.period_at(dag_run.data_interval[1])
    else:
        end = max(data_ends, default=current)
    _require_past(end, current, calendar, last_day)
    if end <= first:
        raise WindowError(
            f"as of {end} there is no data yet: the first {calendar.unit} of data of this model is {first}"
        )
    start = end
    for duration in history:
        start = calendar.period_before(start, duration)
    cause = dag_run.cause if dag_run.run_reason is RunReason.ALARM else None
    return Window.from_range(max(first, start), end, dag_run.run_reason, calendar, cause)


def _parse_periods(event: AssetEvent, calendar: Calendar) -> list[str]:
    ranges = (_parse_range("periods of an asset event", value, calendar) for value in event.periods)
    return [period for first, end in ranges for period in calendar.periods_between(first, end)]


def _end_of_data(calendar: Calendar, last_day: date | None) -> str | None:
    """The first period of which there is no data any more; None if data goes on."""
    return calendar.first_of(last_day + timedelta(1)) if last_day else None


def _first_unavailable(dag_run: DagRunInfo, calendar: Calendar, last_day: date | None) -> str:
    """The first period that was not over when the run was requested, or that is after the model's last day of data."""
    current = calendar.period_at(dag_run.requested_at)
    return min(current, _end_of_data(calendar, last_day) or current)


def _require_past(end: str, first_unavailable: str, calendar: Calendar, last_day: date | None) -> None:
    newest, end_of_data = calendar.shift(end, -1), _end_of_data(calendar, last_day)
    if end_of_data and newest >= end_of_data:
        raise WindowError(f"{newest} is after {last_day}, the last day of data of this model: end there")
    if end > first_unavailable:
        newest_over = calendar.shift(first_unavailable, -1)
        raise WindowError(
            f"{newest} was not over when the run was requested; the newest {calendar.unit} is {newest_over}"
        )


def _parse_conf(conf: Mapping[str, Any], calendar: Calendar, *, allowed: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """The periods in conf, first ≤ period < end. An empty form field counts as absent."""
    unknown = sorted(set(conf) - set(allowed))
    if unknown:
        raise WindowError(f"unknown conf: {', '.join(unknown)}; this DAG accepts {', '.join(allowed)}")
    return {
        name: _parse_range(f"conf {name}", value, calendar) for name, value in conf.items() if value not in (None, "")
    }


def _parse_range(label: str, value: Any, calendar: Calendar) -> tuple[str, str]:
    """Return the periods first ≤ period < end that a period or, of shorter ones, a date means."""
    with suppress(TypeError, ValueError):
        if calendar.partition_key != "day" and len(value) == len("2013-03-01"):
            day = date.fromisoformat(value)
            return calendar.first_of(day), calendar.first_of(day + timedelta(1))
    period = _parse(label, value, calendar)
    return period, calendar.shift(period, 1)


def _parse(label: str, value: Any, calendar: Calendar) -> str:
    with suppress(TypeError, ValueError):  # an instant in another notation, such as of a form
        if calendar.partition_key != "day" and (instant := datetime.fromisoformat(value)).tzinfo:
            value = instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ") if not instant.second else value
    try:
        return calendar.parse(value)
    except WindowError as error:
        raise WindowError(f"{label}: {error}") from None
