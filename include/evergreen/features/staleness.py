"""Which published periods were made by other code, parameters or registers than they would be now.

A register is one file for all periods: every period depends on it, or, if it has a history, on what was valid then.
Other raw files are not compared here: a corrected period has a run of its own
(`evergreen.features.inputs.stale_periods`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from evergreen.errors import Fault
from evergreen.features import inputs
from evergreen.ingest import raw_files
from evergreen.lake.datasets import Manifest
from evergreen.periods import Calendar
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import Window

_MAX_DIFFERENCES = 6  # of one fault: an upgrade changes many modules at once
_MAX_VALUE_LENGTH = 40
_HASH_LENGTH = 64


@dataclass(frozen=True)
class StaleFeatures:
    """The stale ones of some published periods, by what differs."""

    feature_model: str
    calendar: Calendar
    published: Sequence[str]
    differences: Mapping[str, Sequence[str]]
    """What differs, in words, and the periods that it concerns, in order."""

    @property
    def periods(self) -> list[str]:
        """All stale periods, in order."""
        return sorted({period for periods in self.differences.values() for period in periods})

    @property
    def summary(self) -> str:
        """How many periods are stale, and why."""
        units = f"{self.calendar.unit}s of features of {self.feature_model}"
        count = f"{len(self.periods)} of {len(self.published)} {units} are stale"
        return "; ".join([count, *(f"{fault.location}: {fault.problem}" for fault in self.faults(""))])

    @property
    def rebuild_fix(self) -> str:
        """How a person has the stale periods built again."""
        return f"run `evergreen backfill {self.feature_model} --from {self.periods[0]} --to {self.periods[-1]}`"

    @property
    def rebuild_advice(self) -> str:
        """How a person has the stale periods rebuilt, now or whenever there are any."""
        return f'{self.rebuild_fix}, or set stale_features="rebuild" in the spec'

    def faults(self, fix: str) -> list[Fault]:
        """Return one fault for all that differs for the same periods."""
        by_periods: dict[tuple[str, ...], list[str]] = {}
        for difference, periods in self.differences.items():
            by_periods.setdefault(tuple(periods), []).append(difference)
        return [Fault(self.calendar.describe(periods), _shorten(texts), fix) for periods, texts in by_periods.items()]


def periods_in_reach(model: ModelSpec, window: Window, ttls: Sequence[float]) -> list[str]:
    """Return the periods of `window`, and the published ones before it that its examples may have features of.

    `ttls` are those of the views, in seconds; a view without one (0) reaches back to the first period. A row may be
    stamped up to one period after its own, such as at the midnight that ends its day.
    """
    if not ttls:
        return list(window.periods)
    first = first_period_in_reach(window.calendar, window.start, ttls)
    earlier = [period for period in inputs.published_periods(model, first) if period < window.start]
    return [*earlier, *window.periods]


def first_period_in_reach(calendar: Calendar, start: str, ttls: Sequence[float]) -> str | None:
    """Return the first period that examples from `start` on may have features of; None: all before it."""
    if not ttls:
        return start
    if not all(ttls):
        return None
    return calendar.shift(calendar.period_at(calendar.start(start) - timedelta(seconds=max(ttls))), -1)


def find_stale_features(model: ModelSpec, published: Mapping[str, Manifest]) -> StaleFeatures:
    """Return those of the `published` periods that would be made differently now.

    A register that is not there now is compared with none.
    """
    spec = feature_spec(model)
    hashes = raw_files.hash_raw_files(inputs.register_files(spec))
    current = {"raw": {file.name: sha256 for file, sha256 in hashes.items()}, **inputs.shared_inputs(model)}
    return _compare(model, published, current)


def find_mixed_features(model: ModelSpec, published: Mapping[str, Manifest]) -> StaleFeatures:
    """Return those of the `published` periods that were not made like the newest of them.

    Each period sees another part of a register with history: that is compared with the register as it is now.
    """
    newest = published[max(published)].inputs if published else {}
    return _compare(model, published, newest)


def _compare(model: ModelSpec, published: Mapping[str, Manifest], reference: Mapping[str, Any]) -> StaleFeatures:
    spec = feature_spec(model)
    registers = [source.name for source in spec.sources if source.is_register and source.rebuild_on_change]
    histories = inputs.hash_visible_histories(model, published)
    reference = json.loads(json.dumps(reference))  # as manifests have it, with lists for tuples
    with_history = {source.name for source in spec.sources if source.history}
    raw = {name: value for name, value in reference.get("raw", {}).items() if name not in with_history}
    differences: dict[str, list[str]] = {}
    for period, manifest in sorted(published.items()):
        current = {**reference, "raw": raw | histories[period]}
        for difference in _differences(manifest.inputs, current, registers):
            differences.setdefault(difference, []).append(period)
    return StaleFeatures(model.feature_model, spec.calendar, sorted(published), differences)


def _differences(recorded: Mapping[str, Any], current: Mapping[str, Any], registers: Sequence[str]) -> Iterator[str]:
    recorded_raw, current_raw = recorded.get("raw", {}), current.get("raw", {})
    for name in registers:
        if name in current_raw and recorded_raw.get(name) != current_raw[name]:
            yield f"the raw file of {name} {'has changed' if name in recorded_raw else 'is new'}"
    for part, describe in (("code", describe_code_differences), ("parameters", describe_parameter_differences)):
        if recorded.get(part, {}) != current.get(part, {}):
            yield from describe(recorded.get(part, {}), current.get(part, {}))


def describe_code_differences(recorded: Mapping[str, str], current: Mapping[str, str]) -> Iterator[str]:
    """Say which modules, files and libraries differ between two results of `evergreen.lake.fingerprints.code_of`."""
    changed = sorted(name for name in recorded.keys() | current.keys() if recorded.get(name) != current.get(name))
    for name in changed:
        if name.startswith("evergreen."):
            continue
        old, new = recorded.get(name), current.get(name)
        label = _file_name(name)
        if old is None or new is None:
            yield f"{label} is {'new' if old is None else 'no longer used'}"
        elif len(old) == len(new) == _HASH_LENGTH:
            yield f"{label} has changed"
        else:
            yield f"{label} was {old} and is {new}"
    if any(name.startswith("evergreen.") for name in changed):
        yield "Evergreen's own code has changed"


def _file_name(name: str) -> str:
    """Return the path of a module, or of a file beside one, of a model folder; other names as they are."""
    package, _, file = name.partition("/")
    if not package.startswith("evergreen_models."):
        return name
    parts = package.split(".")[1:]
    if file:
        return "/".join([*parts, file])
    return "/".join(parts if len(parts) > 1 else [*parts, "__init__"]) + ".py"


def describe_parameter_differences(recorded: Any, current: Any, path: str = "") -> Iterator[str]:
    """Say which values differ between two JSON-like values, each by its path."""
    if isinstance(recorded, Mapping) and isinstance(current, Mapping):
        for key in sorted(recorded.keys() | current.keys()):
            yield from describe_parameter_differences(
                recorded.get(key), current.get(key), f"{path}.{key}".removeprefix(".")
            )
    elif recorded == current:
        return
    elif recorded is None or current is None:
        yield f"{path} is {'new' if recorded is None else 'no longer used'}"
    else:
        old, new = repr(recorded), repr(current)
        is_short = max(len(old), len(new)) <= _MAX_VALUE_LENGTH
        yield f"{path} was {old} and is {new}" if is_short else f"{path} has changed"


def _shorten(texts: Sequence[str]) -> str:
    count = len(texts) - _MAX_DIFFERENCES
    return ", ".join(texts[:_MAX_DIFFERENCES]) + (f", and {count} more" if count > 0 else "")
