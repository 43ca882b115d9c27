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
from evergreen.lake.fingerprints import code_versions as code_of
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.window import days_between

T = TypeVar("T")

FingerprintsByDay = dict[str, str]
"""Fingerprint of the features of each day, by ISO date: what they are made from, and how."""


@dataclass(frozen=True)
class RawFile:
    """One raw file that a day of features is made from."""

    source: str
    day: date | None

    @property
    def path(self) -> Path:
        return raw_files.raw_file(self.source, self.day)

    @property
    def name(self) -> str:
        return f"{self.source}-{self.day}" if self.day else self.source


def features_dataset(model: ModelSpec) -> datasets.Dataset:
    """The published features that `model` uses, its own or another's."""
    return datasets.open_dataset(f"features/{model.feature_model}")


def raw_files_for_day(features: FeatureSpec, day: date) -> list[RawFile]:
    """Every raw file that the features of `day` are made from, oldest first."""
    found = []
    for source in features.sources:
        if not source.daily:
            found.append(RawFile(source.name, None))
            continue
        first = max(features.first_day, day - timedelta(source.trailing_days))
        found += [RawFile(source.name, drop) for drop in days_between(first, day + timedelta(1))]
    return found


def raw_files_for_days(features: FeatureSpec, days: Iterable[date]) -> list[RawFile]:
    """Every raw file that any of `days` is made from, each once."""
    return list({drop: None for day in days for drop in raw_files_for_day(features, day)})


def feature_inputs(model: ModelSpec, days: Iterable[date]) -> dict[str, dict[str, Any]]:
    """What the features of each of `days` depend on, and nothing else.

    Raises:
        RawDataError: raw files are missing; all are named.
    """
    features, days = feature_spec(model), list(days)
    if faults := find_missing_raw_files(features, days):
        raise RawDataError(f"raw data for {format_days(days)} of {model.feature_model}", faults)
    raw = {drop: storage.file_sha256(drop.path) for drop in raw_files_for_days(features, days)}
    code = code_of(
        (f"evergreen_models.{model.feature_model}.features", "evergreen.features.build"),
        ("pyspark", "pyarrow"),
    )
    return {
        day.isoformat(): {
            "day": day.isoformat(),
            "raw": {drop.name: raw[drop] for drop in raw_files_for_day(features, day)},
            "parameters": {"timezone": features.timezone, "tables": features.tables},
            "code": code,
        }
        for day in days
    }


def compute_day_fingerprints(model: ModelSpec, days: Iterable[date]) -> FingerprintsByDay:
    """Raises:
    RawDataError: raw files are missing; all are named.
    """
    return {day: compute_fingerprint(parts) for day, parts in feature_inputs(model, days).items()}


def find_missing_raw_files(features: FeatureSpec, days: Iterable[date]) -> list[Fault]:
    """The raw files that `days` need and nobody has delivered."""
    return [missing_raw_file_fault(drop) for drop in raw_files_for_days(features, days) if not drop.path.exists()]


def missing_raw_file_fault(raw_file: RawFile) -> Fault:
    return Fault(str(raw_file.path), "missing", "deliver it, then clear the run")


def find_published_day(model: ModelSpec, day: str, fingerprint: str) -> datasets.Manifest | None:
    """The manifest of `day` if it is published with this fingerprint."""
    return features_dataset(model).find(datasets.day_partition(day), fingerprint)


def newest_published_day(model: ModelSpec) -> date:
    """The newest published day.

    Raises:
        RawDataError: nothing is published yet.
    """
    days = features_dataset(model).partitions()
    if not days:
        way_out = f"run {model.feature_model}.features first"
        raise RawDataError(f"features of {model.feature_model}", [Fault("lake", "none are published", way_out)])
    return date.fromisoformat(days[-1].removeprefix("day="))


def stale_days(model: ModelSpec, changed_days: Sequence[date]) -> list[date]:
    """The published days after `days` that were made from raw files of `days` which have changed since.

    A corrected or late day changes exactly those later days whose trailing windows reach back to it.
    """
    features = feature_spec(model)
    reach = max((source.trailing_days for source in features.sources), default=0)
    later = {day + timedelta(n) for day in changed_days for n in range(1, reach + 1)} - set(changed_days)
    now: dict[str, str] = {}
    found = []
    for day in sorted(later):
        manifest = features_dataset(model).manifest(datasets.day_partition(day))
        if manifest is None:
            continue
        for drop in raw_files_for_day(features, day):
            if drop.day in changed_days and drop.path.exists():
                now.setdefault(drop.name, storage.file_sha256(drop.path))
                if manifest.inputs["raw"].get(drop.name) != now[drop.name]:
                    found.append(day)
                    break
    return found


def split_into_batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """In parts, so that memory does not grow with the days that are asked for."""
    size = settings().max_days_per_run
    return (items[first : first + size] for first in range(0, len(items), size))


def format_days(days: Collection[date]) -> str:
    """`days` in a few words."""
    return f"{len(days)} days, {min(days)} – {max(days)}" if len(days) > 1 else str(*days)
