"""The files of a model, from templates, formatted as ruff formats them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from evergreen.periods import Calendar, Duration
from evergreen.scaffold.events import HOURS_SINCE_LAST, event_features
from evergreen.scaffold.guesses import (
    ONLY_SERIES,
    DraftColumn,
    EventsDraft,
    ModelDraft,
    feature_names,
    history_last,
    history_rows,
    horizon_name,
)
from evergreen.scaffold.samples import SampleOrigin

LINE_LENGTH = 120
_SPINE = "examples"
_UNITS = {"min": "minute", "h": "hour", "d": "day", "w": "week"}


class ModelFolders(NamedTuple):
    """Where the files of models are, relative to the project if they are in it."""

    models: str = "models"
    feature_repo: str = "feature_repo"
    dags: str = "dags"


@cache
def template_environment() -> Environment:
    """Return the environment of `templates/`: text is not escaped, because it is no HTML, and no name is undefined."""
    environment = Environment(
        loader=PackageLoader("evergreen.scaffold"),
        autoescape=False,  # noqa: S701 - Python: values are written by `literal`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"literal": python_literal, "interval": spark_interval}
    return environment


def render_model(
    name: str, owner: str, draft: ModelDraft, origin: SampleOrigin, folders: ModelFolders, *, ends_with_sample: bool
) -> dict[str, str]:
    """Return the files of a model, by path. The DAG file, which completes it, is the last."""
    calendar = draft.calendar
    label, time = draft.columns_of("label")[0], draft.columns_of("time")[0]
    has_hours = not time.type.startswith("date")
    is_forecast, horizon = draft.kind.name == "forecast", horizon_name(calendar)
    if is_forecast:  # its rows have the time of their period
        has_hours = calendar.partition_key != "day"
    derived = ["weekday"] * (calendar.unit != "week") + ["hour"] * has_hours
    derived = [name for name in derived if is_forecast or name not in draft.constant_inputs]
    inputs = [column.name for column in draft.columns_of("number", "category")] + derived
    views = [f"{key}_history" for key in draft.key_names] or ["recent_history"]
    if is_forecast:
        inputs = [horizon, *derived]
        views = ["series_history"] + ["season_history"] * (draft.season > 1)
    views += [events.view for events in draft.events]
    means = _means(label, draft)
    values = {
        "name": name,
        "owner": owner,
        "draft": draft,
        "kind": draft.kind,
        "calendar": calendar,
        "label": label,
        "time": time,
        "origin": origin,
        "source": origin.name,
        "sql": _bounded_query(origin, time),
        "spine": _SPINE,
        "views": views,
        "inputs": inputs,
        "categories": [column.name for column in draft.columns_of("category")],
        "derived": derived,
        "uses_timezone": (bool(derived) and not is_forecast) or not time.type.endswith("tz=UTC]"),
        "horizon": horizon,
        "series": tuple(draft.key_names) or (ONLY_SERIES,),
        "text_series": [c.name for c in draft.columns_of("key") if c.type == "string"]
        + [ONLY_SERIES] * (not draft.key_names),
        "identifier": next((c for c in draft.columns_of("identifier") if not c.is_nullable), None),
        "source_columns": [line for column in draft.columns for line in _declaration(column)],
        "selected_columns": [line for column in draft.columns for line in _selection(column, draft)]
        + [f"F.lit({python_literal(origin.name)}).alias({python_literal(ONLY_SERIES)}),"]
        * (is_forecast and not draft.key_names),
        "window_name": f"{draft.window}",
        "query": next(iter(draft.columns_of("query")), None),
        "means": means,
        "baseline": f"{views[0]}__{next(iter(means))}" if draft.kind.name == "ranking" else "prior",
        "rows": history_rows(draft.window),
        "last": history_last(label.name),
        "trailing": _trailing(draft),
        "retraining": "0 5 * * 1" if calendar.unit in ("day", "week") else "30 0 * * *",
        "features_schedule": None if calendar.unit in ("day", "week") else "0 0 * * *",
        "train": _train(draft),
        "ttl": _ttl(draft),
        "ends_with_sample": ends_with_sample,
        "bounds": _bounds(time),
        "partition": calendar.partition_key,
        "event_bounds": {events.source: _bounds(events.time) for events in draft.events},
        "event_columns": {events.source: _event_selection(events) for events in draft.events},
        "event_declarations": {
            events.source: [line for column in events.columns for line in _declaration(column)]
            for events in draft.events
        },
        "event_fields": {events.source: event_features(events) for events in draft.events},
        "event_trailing": {events.source: _event_trailing(events, calendar) for events in draft.events},
        "has_event_numbers": any(events.columns_of("number") for events in draft.events),
        "hours_since_last": HOURS_SINCE_LAST,
    }
    paths = {
        f"{folders.models}/{name}/__init__.py": "package.py.j2",
        f"{folders.models}/{name}/features.py": "forecast_features.py.j2" if is_forecast else "features.py.j2",
        f"{folders.models}/{name}/expectations.py": "expectations.py.j2",
        f"{folders.models}/{name}/train.py": "train.py.j2",
        f"{folders.models}/{name}/model.py": "model.py.j2",
        f"{folders.feature_repo}/{name}.py": "forecast_feature_repo.py.j2" if is_forecast else "feature_repo.py.j2",
        f"tests/test_{name}.py": "test.py.j2",
        f"{folders.dags}/{name}.py": "dag.py.j2",
    }
    environment = template_environment()
    return {path: environment.get_template(f"model/{file}").render(values) for path, file in paths.items()}


def _means(label: DraftColumn, draft: ModelDraft) -> dict[str, str]:
    """Return the features of a history that are means of the label, and how Spark computes each."""
    suffix = f"{draft.kind.statistic}_{draft.window}"
    if draft.kind.name == "multiclass":
        names = feature_names(map(str, label.categories))
        is_class = '(F.col(LABEL) == {}).cast("int")'
        return {
            f"{label.name}_{names[str(value)]}_{suffix}": f"F.avg({is_class.format(python_literal(value))})"
            for value in label.categories
        }
    if draft.positive is not None:
        return {f"{label.name}_{suffix}": "F.avg(LABEL)"}
    if draft.kind.name == "forecast":
        return {f"{label.name}_{suffix}": '(_sum_values() / F.count("*"))'}
    return {f"{label.name}_{suffix}": 'F.avg(F.col(LABEL).cast("decimal(28, 6)")).cast("double")'}


def python_literal(value: Any) -> str:
    """Return a value as Python source; text in double quotes, unless that would need more escapes."""
    if isinstance(value, str):
        text = repr(value)
        if text[0] == "'" and value.count('"') <= value.count("'"):
            text = '"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'
        return text
    if isinstance(value, list | tuple):
        items = ", ".join(map(python_literal, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    return repr(value)


def spark_interval(duration: Duration) -> str:
    """Return a length of time as Spark's SQL writes it."""
    return f"interval {duration.count} {_UNITS[duration.unit]}{'s' * (duration.count != 1)}"


def _declaration(column: DraftColumn) -> Iterable[str]:
    """Yield the lines that declare a column of the source."""
    declared = f'dict(type="{column.type}", nullable=False)' if not column.is_nullable else f'"{column.type}"'
    yield from _commented(f"{python_literal(column.raw_name)}: {declared},", column.comment, indent=20)


def _selection(column: DraftColumn, draft: ModelDraft) -> Iterable[str]:
    """Yield the lines that make a feature, a key or the label of a column."""
    raw = f"F.col({python_literal(_spark_name(column.raw_name))})"
    alias = f".alias({python_literal(column.name)})"
    match column.role:
        case "time":
            yield f'{_instant(column)}.alias("event_timestamp"),'
        case "identifier" if draft.kind.name == "forecast":
            return
        case "key" | "query" | "identifier":
            kind = "string" if column.type == "string" else "bigint"
            yield f'{raw}.cast("{kind}"){alias},'
        case "label" if draft.positive is not None:
            is_one = draft.positive is True or (draft.positive == 1 and set(column.categories) == {0, 1})
            is_positive = raw if is_one else f"({raw} == {_spark_literal(draft.positive, column.type)})"
            is_positive = f"(~{raw})" if draft.positive is False else is_positive
            yield f'{is_positive}.cast("int"){alias},'
        case "label" if draft.kind.name == "multiclass":
            yield f'{raw}.cast("{"string" if column.type == "string" else "bigint"}"){alias},'
        case "number" if column.type.startswith(("int", "bool")):
            yield f'{raw}.cast("{"bigint" if column.type == "int64" else "int"}"){alias},'
        case "number" | "label":
            yield f'{raw}.cast("double"){alias},'
        case "category":
            yield f"{raw}{alias},"


def _instant(time: DraftColumn) -> str:
    raw = f"F.col({python_literal(_spark_name(time.raw_name))})"
    return raw if time.type.endswith("tz=UTC]") else f'F.to_utc_timestamp({raw}.cast("timestamp"), timezone)'


def _event_selection(events: EventsDraft) -> list[str]:
    """Return the lines that make a key, a time and numbers of a row of events."""
    lines = []
    for column in events.columns_of("key", "time", "number"):
        raw = f"F.col({python_literal(_spark_name(column.raw_name))})"
        if column.role == "time":
            lines.append(f'{_instant(column)}.alias("_at"),')
        elif column.role == "key":
            kind = "string" if column.type == "string" else "bigint"
            lines.append(f'{raw}.cast("{kind}").alias({python_literal(column.name)}),')
        else:
            lines.append(f"_number({raw}).alias({python_literal(column.name)}),")
    return lines


def _event_trailing(events: EventsDraft, calendar: Calendar) -> Duration:
    """Return how far back events are read, before the period itself."""
    period = Duration.parse(calendar.period)
    return Duration((max(events.windows.values()) - 1) * period.count, period.unit)


def _bounds(time: DraftColumn) -> str:
    """Return what times of a column are compared with."""
    return {"timestamp[us]": "clock", "date32": "date"}.get(time.type, "instant")


def _spark_name(name: str) -> str:
    """Return a name of a column as Spark's expressions write it: plain, or in backticks."""
    return name if name.isidentifier() and name.isascii() else "`" + name.replace("`", "``") + "`"


def _spark_literal(value: Any, declared: str) -> str:
    if declared.startswith("decimal"):
        return f"F.lit({python_literal(str(value))}).cast({python_literal(declared.replace('128', ''))})"
    return python_literal(value)


def _commented(line: str, comment: str, indent: int) -> list[str]:
    """Return a line with a comment, which stands above it if it would be too long."""
    if not comment:
        return [line]
    if indent + len(line) + len(comment) + 4 <= LINE_LENGTH:
        return [f"{line}  # {comment}"]
    return [f"# {comment}", line]


def _trailing(draft: ModelDraft) -> Duration:
    """Return how far back features read their source: window, delay of labels, and a period for a change of clocks.

    Histories of forecasts are of whole periods, whatever clocks show.
    """
    calendar, period = draft.calendar, Duration.parse(draft.calendar.period)
    count = sum(map(calendar.count_in, (draft.window, draft.label_delay))) + (draft.kind.name != "forecast")
    return Duration(count * period.count, period.unit)


def _train(draft: ModelDraft) -> str | None:
    """Return how long to train, if that is not the default: errors of forecasts count in those of two seasons."""
    if draft.calendar.unit not in ("day", "week"):
        return "90d"
    is_long = draft.calendar.count_in(Duration(52, "w")) < 2 * draft.season
    period = Duration.parse(draft.calendar.period)
    return f"{2 * draft.season * period.count}{period.unit}" if is_long else None


def _ttl(draft: ModelDraft) -> str:
    """Return how long a row of a history holds: its period, and the hour that clocks may add."""
    length = Duration.parse(draft.calendar.period)
    if length.unit == "w":
        return "timedelta(days=7, hours=1)"
    if length.unit == "d":
        return "timedelta(hours=25)"
    return f"timedelta({'hours' if length.unit == 'h' else 'minutes'}={length.count})"


def _bounded_query(origin: SampleOrigin, time: DraftColumn) -> str | None:
    """Return the query of a period: the one of the sample, if it has bounds, else its rows by their time."""
    if origin.sql is None or (":start" in origin.sql and ":end" in origin.sql):
        return origin.sql
    column = '"' + time.raw_name.replace('"', '""') + '"'
    query = origin.sql.strip().rstrip(";")
    return f"SELECT * FROM ({query}) AS history WHERE {column} >= :start AND {column} < :end"  # noqa: S608 - of the person who writes the model
