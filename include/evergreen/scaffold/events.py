"""What becomes of events beside a sample: a source of their own, and a view of what happened to a key. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evergreen.errors import Fault
from evergreen.periods import Calendar, Duration
from evergreen.scaffold.files import ScaffoldError
from evergreen.scaffold.guesses import (
    Choices,
    ColumnProfile,
    DraftColumn,
    EventsDraft,
    ModelDraft,
    Role,
    SampleProfile,
    feature_names,
    guess_time,
    is_code,
    is_identifier,
    whole_days,
)

HOURS_SINCE_LAST = "hours_since_last"
"""The feature that says how long ago the last event was."""
_LONG_PERIOD = Duration(6, "h")


@dataclass(frozen=True)
class EventsProfile:
    """What a file of events shows."""

    source: str
    place: str
    """As the person wrote it, for faults."""
    columns: SampleProfile
    time: str
    """The column that says when events happened."""
    periods: Sequence[str]
    """Those with rows, in order."""


def event_windows(calendar: Calendar) -> dict[str, int]:
    """Return how far back events are summarized, in periods: the last one, and a week, four weeks or a day."""
    longest = {"day": Duration(7, "d"), "week": Duration(4, "w")}.get(calendar.unit)
    if longest is None:
        is_long = Duration.parse(calendar.period).length >= _LONG_PERIOD.length
        longest = Duration(7 if is_long else 1, "d")
    return {calendar.period: 1, f"{longest}": calendar.count_in(longest)}


def check_event_names(sample: str, sources: Mapping[str, str], choices: Choices) -> None:
    """Check that events can be sources of a model, beside its sample.

    Args:
        sample: The name of the sample's source.
        sources: The name of the source that each file would be, by its place.
        choices: What a person decided.

    Raises:
        ScaffoldError: two sources would have one name, or the kind of model has no events.
    """
    faults = []
    if sources and choices.kind == "forecast":
        problem = "histories of a forecast are those of its series, and no others are written"
        fix = "leave it out, and let features.py read them as a second source"
        faults.append(Fault("--events", problem, fix))
    names = [sample, *sources.values()]
    faults += [
        Fault(f"--events {place}", f"would be the source {name!r}, as another file is", "rename one of the files")
        for place, name in sources.items()
        if names.count(name) > 1
    ]
    if faults:
        raise ScaffoldError("events", faults)


def find_event_time(
    place: str, profile: SampleProfile, choices: Choices, calendar: Calendar, named: str | None = None
) -> str:
    """Return the column that says when events happened: the one that a person has `named`, or the only one there is.

    An event counts from then on, so a wrong one is a leak, and none is guessed where there are several.

    Raises:
        ScaffoldError: there is none, or nobody knows which instants its values are.
    """

    def refuse(problem: str, fix: str) -> ScaffoldError:
        return ScaffoldError("events", [Fault(f"--events {place}", problem, fix)])

    times = [column.name for column in profile.columns if column.is_time and column.distinct_count > 1]
    complete = [name for name in times if not profile.column(name).null_count]
    if named is not None and named not in times:
        has = _quoted(times) or "none"
        raise refuse(
            f"{named!r} is no column with times of more than one moment; it has {has}", "name another after ::"
        )
    if named is None and len(complete) > 1:
        problem = f"{_quoted(complete)} have times, and an event counts from the moment on that one of them says"
        raise refuse(problem, f"name the one by which all of its values were known: --events {place}::{complete[-1]}")
    time = named or guess_time(profile)
    if time is None:
        problem = "no column has times of more than one moment, so nobody knows when these events happened"
        raise refuse(problem, "write one in ISO 8601: 2026-01-31T08:00:00Z")
    declared = profile.column(time).declared
    if declared == "date32" and calendar.partition_key != "day":
        problem = f"{time!r} has dates, and with periods of {calendar.period} an event would count from midnight on"
        raise refuse(problem, "write when it was known, with its hour, or use periods of 1d")
    if declared == "timestamp[us]" and choices.timezone is None:
        problem = f"{time!r} has no time zone, so nobody knows which instants these are"
        raise refuse(problem, "say --timezone Europe/Berlin, or UTC: that of the clock that wrote them")
    return time


def add_events(
    draft: ModelDraft, files: Sequence[EventsProfile], periods: Sequence[str], *, is_delivered: bool
) -> ModelDraft:
    """Return the model with a source and a view for each file of events.

    Args:
        draft: The model of the sample alone.
        files: What the files show.
        periods: Those of the sample that have rows, in order.
        is_delivered: Whether raw files are made of all of them: then the model's first day is as early as events that
            its first examples can make use of.

    Raises:
        ScaffoldError: events cannot be joined, or are of other times; has everything that is wrong.
    """
    calendar, events, notes = draft.calendar, [], list(draft.notes)
    faults: list[Fault] = []
    windows = event_windows(calendar)
    leads = [_lead(file, calendar, periods[0], max(windows.values())) for file in files] if is_delivered else []
    lead = max(leads, default=0)
    first, last = calendar.shift(periods[0], -lead), periods[-1]
    span = calendar.count(first, last) + 1
    views = {f"{key}_history" for key in draft.key_names}
    for file in files:
        time = file.time
        within = [period for period in file.periods if first <= period <= last]
        try:
            key, raw_key = _find_key(file, draft, time)
        except ScaffoldError as error:
            faults += error.faults
            continue
        if not within:
            problem = f"has no rows from {first} to {last}, where the sample has"
            faults.append(Fault(f"--events {file.place}", problem, "take events of the same time"))
            continue
        columns = _columns(file.columns, time, key, raw_key)
        drafted = EventsDraft(
            source=file.source,
            view=f"{file.source}_{'events' if f'{file.source}_history' in views else 'history'}",
            key=key.name,
            columns=columns,
            windows=windows,
            has_gaps=len(within) < span,
        )
        if key.name in event_features(drafted):
            problem = f"the key {key.name!r} has the name of a feature of events"
            faults.append(Fault(f"--events {file.place}", problem, "rename its column in both files"))
        events.append(drafted)
        numbers = [column.raw_name for column in drafted.columns_of("number")]
        summary = f", and mean and maximum of {_quoted(numbers)}" if numbers else ""
        notes.append(
            f"{file.source}: how many events each {key.raw_name!r} had by {time!r}, in {' and '.join(windows)}{summary}"
        )
        if within[-1] < last:
            notes.append(f"{file.source}: no event is later than {within[-1]}, and examples go on to {last}")
        if ignored := [column.name for column in file.columns.columns if column.declared is None]:
            notes.append(f"{file.source}: left out, because no type can be declared for them: {_quoted(ignored)}")
    if faults:
        raise ScaffoldError("events", faults)
    first_day, _ = whole_days(calendar, first, last)
    return replace(
        draft,
        events=tuple(events),
        lead=lead,
        first_day=first_day if lead else draft.first_day,
        has_gaps=draft.has_gaps or lead > 0,
        notes=tuple(notes),
    )


def event_features(events: EventsDraft) -> dict[str, str]:
    """Return the features of a history of events, in order, and the type of each in Feast."""
    features = {}
    for window in events.windows:
        features[f"rows_{window}"] = "Int64"
        for column in events.columns_of("number"):
            features |= {f"{column.name}_{statistic}_{window}": "Float64" for statistic in ("mean", "max")}
    return features | {HOURS_SINCE_LAST: "Float64"}


def _lead(file: EventsProfile, calendar: Calendar, first: str, longest: int) -> int:
    """Return how many periods before the first examples there are events that these can make use of."""
    earlier = [period for period in file.periods if calendar.shift(first, -longest) <= period < first]
    return calendar.count(earlier[0], first) if earlier else 0


def _find_key(file: EventsProfile, draft: ModelDraft, time: str) -> tuple[DraftColumn, str]:
    """Return the first key of the model that the file has, and its column there.

    Raises:
        ScaffoldError: it has none, or one of another type, or it cannot be said which column is meant.
    """
    place = f"--events {file.place}"
    keys = draft.columns_of("key")
    for key in keys:
        names = [name for name in file.columns.names if name != time and _plain(name) == _plain(key.raw_name)]
        names = [key.raw_name] if key.raw_name in names else names
        if len(names) > 1:
            problem = f"columns {_quoted(names)} are all called like the key {key.raw_name!r}"
            raise ScaffoldError("events", [Fault(place, problem, "rename all but one in the file")])
        if not names:
            continue
        declared = file.columns.column(names[0]).declared or "of no type that can be declared"
        if not any(key.type.startswith(kind) and declared.startswith(kind) for kind in ("string", "int")):
            problem = f"{names[0]!r} is {declared}, and the key {key.raw_name!r} of the sample {key.type}"
            fix = "write both as text, or both as whole numbers"
            raise ScaffoldError("events", [Fault(place, problem, fix)])
        return key, names[0]
    has = f"it has {_quoted(file.columns.names)}"
    if not keys:
        problem, fix = f"the sample has no key to join events by; {has}", "name its column with --key"
    else:
        problem = f"has no column of the model's keys, {_quoted(key.raw_name for key in keys)}; {has}"
        fix = "rename the column of the key in the file, or name another key of the sample with --key"
    raise ScaffoldError("events", [Fault(place, problem, fix)])


def _columns(profile: SampleProfile, time: str, key: DraftColumn, raw_key: str) -> tuple[DraftColumn, ...]:
    declared = [column for column in profile.columns if column.declared is not None]
    other_names = [column.name for column in declared if column.name not in (time, raw_key)]
    names = feature_names(other_names, {key.name}) | {time: "event_at", raw_key: key.name}
    columns = []
    for column in declared:
        role, comment = _role(column, profile.row_count, time, raw_key)
        columns.append(
            DraftColumn(
                raw_name=column.name,
                name=names[column.name],
                type=column.declared or "",
                is_nullable=column.null_count > 0,
                role=role,
                comment=comment,
            )
        )
    return tuple(columns)


def _role(column: ColumnProfile, row_count: int, time: str, raw_key: str) -> tuple[Role, str]:
    """Return what a column of events is for, and what to say about it beside its declaration."""
    if column.name == time:
        return "time", "when it happened"
    if column.name == raw_key:
        return "key", "whom it happened to"
    if column.is_number and not is_code(column) and not is_identifier(column, row_count):
        return "number", ""
    return "none", ""


def _plain(name: str) -> str:
    """Return the feature that a column would be."""
    return feature_names([name])[name]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
