"""`evergreen explain`: one prediction, the values of its inputs, and what each adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evergreen.cli.options import print_json
from evergreen.errors import Fault, RequestError
from evergreen.reports.formatting import NO_VALUE, format_number, format_signed
from evergreen.spec.loader import feature_spec, load_spec

if TYPE_CHECKING:
    from evergreen.explanations.prediction import Alias, ExplainedInput, ExplainedPrediction


def show_explanation(
    name: str,
    pairs: Sequence[str],
    console: Console,
    *,
    alias: Alias,
    version: str | None,
    time: str | None,
    online: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Print why a version predicts what it does for a request of `key=value`s."""
    from evergreen.explanations.prediction import explain_prediction  # loads the model's library

    model = load_spec(name)
    instant = _parse_time(time, name) if time else None
    if instant and online:
        raise RequestError("options", [Fault("--at", "the online store has no past", "leave --at or --online out")])
    explained = explain_prediction(
        model, parse_pairs(pairs), alias=alias, version=version, as_of=instant, online=online
    )
    if as_json:
        print_json(console, explanation_record(explained))
    else:
        print_explanation(explained, console, output)


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Return what was typed as `key=value`; a value may have an equals sign.

    Raises:
        RequestError: something is no pair, or a key occurs twice; all are named.
    """
    values: dict[str, str] = {}
    faults = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            faults.append(Fault(pair[:80], "is no key=value", "write the name of a column, =, and its value"))
        elif key in values:
            faults.append(Fault(key, "occurs twice", "drop one"))
        else:
            values[key] = value
    if faults:
        raise RequestError("request", faults)
    return values


def _parse_time(text: str, model: str) -> datetime:
    """Return an instant; without an offset, it is in the time zone of the model's features."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        fault = Fault("--at", f"{text[:80]!r} is no time", "write it as 2013-03-01T12:00, or with an offset as +01:00")
        raise RequestError("options", [fault]) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=ZoneInfo(feature_spec(load_spec(model)).timezone))


def explanation_record(explained: ExplainedPrediction) -> dict[str, Any]:
    """Return the explanation for programs, inputs in the model's order."""
    record = asdict(explained)
    outputs = list(explained.predictions)
    for name in ("base", "scores"):
        record[name] = dict(zip(outputs, record[name], strict=False))
    record["as_of"] = explained.as_of.isoformat()
    for item in record["inputs"]:
        item["contributions"] = dict(zip(outputs, item["contributions"], strict=False))
        if item["origin"] and item["origin"]["event_timestamp"]:
            item["origin"]["event_timestamp"] = item["origin"]["event_timestamp"].isoformat()
    return record


def print_explanation(explained: ExplainedPrediction, console: Console, output: str | None = None) -> None:
    """Print the prediction, and its inputs: those that add most to `output` first."""
    outputs = list(explained.predictions)
    chosen = output or _default_output(explained)
    if chosen not in outputs:
        raise RequestError(
            "options", [Fault("--output", f"{chosen[:80]!r} is none of the model's", f"one of {', '.join(outputs)}")]
        )
    place = outputs.index(chosen)
    role = f", the {explained.role}" if explained.role else ""
    store = "the online store, written up to" if explained.is_online else "features as of"
    console.print(f"{explained.model} version {explained.version}{role}; {store} {explained.as_of.isoformat()}")
    for name, value in explained.predictions.items():
        marker = "*" if len(outputs) > 1 and name == chosen else " "
        console.print(f"{marker} {name}: {format_number(value)}", style="bold" if name == chosen else None)
    console.print(_method_line(explained, chosen, place))
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("input", overflow="fold")
    table.add_column("value", justify="right", overflow="fold")
    has_references = explained.method == "difference"
    if explained.method != "none":
        table.add_column("contribution", justify="right", no_wrap=True)
    if has_references:
        table.add_column("usual value", justify="right", overflow="fold")
    table.add_column("from", overflow="fold")
    for item in sorted(explained.inputs, key=lambda item: -abs(item.contributions[place]) if item.contributions else 0):
        cells = [Text(item.name), Text(_format_value(item.value))]
        if explained.method != "none":
            cells.append(Text(format_signed(item.contributions[place])))
        if has_references:
            cells.append(Text(_format_value(item.reference)))
        table.add_row(*cells, Text(_format_origin(item)))
    console.print(table, soft_wrap=False)
    for note in explained.notes:
        console.print(f"note: {note}", style="yellow")


def _default_output(explained: ExplainedPrediction) -> str:
    """Return the output that is explained: the most probable class, or the quantile in the middle."""
    outputs = list(explained.predictions)
    if explained.kind == "quantile":
        return outputs[len(outputs) // 2]
    return max(outputs, key=explained.predictions.__getitem__)


def _method_line(explained: ExplainedPrediction, output: str, place: int) -> str:
    subject = f" of {output}" if len(explained.predictions) > 1 else ""
    if explained.method == "shap":
        base, score = explained.base[place], explained.scores[place]
        return (
            f"raw score{subject} {format_number(score)} = {format_number(base)}, the mean, and the contributions "
            "(SHAP values by the model's library)"
        )
    if explained.method == "difference":
        return (
            f"contribution{subject}: by how much the prediction is higher than with the usual value of this input "
            "alone (median, or most frequent value, of what was learned from); they do not add up"
        )
    return "no contributions"


def _format_value(value: Any) -> str:
    if value is None or value != value:
        return NO_VALUE
    if isinstance(value, bool | str):
        return str(value)
    return format_number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _format_origin(item: ExplainedInput) -> str:
    origin = item.origin
    if origin is None:
        return item.source
    if origin.problem or origin.event_timestamp is None:
        return f"{item.source}: no row"
    period = f"in {origin.period}" if origin.period else "republished since"
    return f"{item.source}: {origin.event_timestamp.isoformat()}, {period}"
