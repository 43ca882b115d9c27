"""What the features of a day are made from, and so the fingerprint that tells whether they are up to date.

Light: it reads raw files only to hash them, and no engine is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeVar

from evergreen import storage
from evergreen.errors import Fault, RawDataError
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.lake.fingerprints import code as code_of
from evergreen.lake.fingerprints import fingerprint
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import Features, Model
from evergreen.window import days_between

T = TypeVar("T")

Fingerprints = dict[str, str]
"""Fingerprint of the features of each day, by ISO date: what they are made from, and how."""


@dataclass(frozen=True)
class Drop:
    """One raw file that a day of features is made from."""

    source: str
    day: date | None

    @property
    def path(self) -> Path:
        return raw_files.raw_file(self.source, self.day)

    @property
    def name(self) -> str:
        return f"{self.source}-{self.day}" if self.day else self.source


def dataset(model: Model) -> datasets.Dataset:
    """The published features that `model` uses, its own or another's."""
    return datasets.dataset(f"features/{model.features_of}")


def drops(features: Features, day: date) -> list[Drop]:
    """Every raw file that the features of `day` are made from, oldest first."""
    found = []
    for source in features.sources:
        if not source.daily:
            found.append(Drop(source.name, None))
            continue
        first = max(features.first_day, day - timedelta(source.trailing_days))
        found += [Drop(source.name, drop) for drop in days_between(first, day + timedelta(1))]
    return found


def drops_of(features: Features, days: Iterable[date]) -> list[Drop]:
    """Every raw file that any of `days` is made from, each once."""
    return list({drop: None for day in days for drop in drops(features, day)})


def of(model: Model, days: Iterable[date]) -> dict[str, dict[str, Any]]:
    """What the features of each of `days` depend on, and nothing else.

    Raises:
        RawDataError: raw files are missing; all are named.
    """
    features, days = feature_spec(model), list(days)
    if faults := missing(features, days):
        raise RawDataError(f"raw data for {span(days)} of {model.features_of}", faults)
    raw = {drop: storage.sha256(drop.path) for drop in drops_of(features, days)}
    code = code_of(
        (f"evergreen_models.{model.features_of}.features", "evergreen.features.build"), ("pyspark", "pyarrow")
    )
    return {
        day.isoformat(): {
            "day": day.isoformat(),
            "raw": {drop.name: raw[drop] for drop in drops(features, day)},
            "parameters": {"timezone": features.timezone, "tables": features.tables},
            "code": code,
        }
        for day in days
    }


def fingerprints(model: Model, days: Iterable[date]) -> Fingerprints:
    """
    Raises:
        RawDataError: raw files are missing; all are named.
    """
    return {day: fingerprint(parts) for day, parts in of(model, days).items()}


def missing(features: Features, days: Iterable[date]) -> list[Fault]:
    """The raw files that `days` need and nobody has delivered."""
    return [not_delivered(drop) for drop in drops_of(features, days) if not drop.path.exists()]


def not_delivered(drop: Drop) -> Fault:
    return Fault(str(drop.path), "missing", "deliver it, then clear the run")


def published(model: Model, day: str, mark: str) -> datasets.Manifest | None:
    """The manifest of `day` if it is published with this fingerprint."""
    return dataset(model).published(datasets.day_partition(day), mark)


def newest(model: Model) -> date:
    """The newest published day.

    Raises:
        RawDataError: nothing is published yet.
    """
    days = dataset(model).partitions()
    if not days:
        way_out = f"run {model.features_of}.features first"
        raise RawDataError(f"features of {model.features_of}", [Fault("lake", "none are published", way_out)])
    return date.fromisoformat(days[-1].removeprefix("day="))


def outdated_by(model: Model, days: Sequence[date]) -> list[date]:
    """The published days after `days` that were made from raw files of `days` which have changed since.

    A corrected or late day changes exactly those later days whose trailing windows reach back to it.
    """
    features = feature_spec(model)
    reach = max((source.trailing_days for source in features.sources), default=0)
    later = {day + timedelta(n) for day in days for n in range(1, reach + 1)} - set(days)
    now: dict[str, str] = {}
    found = []
    for day in sorted(later):
        manifest = dataset(model).manifest(datasets.day_partition(day))
        if manifest is None:
            continue
        for drop in drops(features, day):
            if drop.day in days and drop.path.exists():
                now.setdefault(drop.name, storage.sha256(drop.path))
                if manifest.inputs["raw"].get(drop.name) != now[drop.name]:
                    found.append(day)
                    break
    return found


def at_once(things: Sequence[T]) -> Iterator[Sequence[T]]:
    """In parts, so that memory does not grow with the days that are asked for."""
    size = settings().days_at_once
    return (things[first : first + size] for first in range(0, len(things), size))


def span(days: Collection[date]) -> str:
    """`days` in a few words."""
    return f"{len(days)} days, {min(days)} – {max(days)}" if len(days) > 1 else str(*days)
