"""What the features of a day depend on, and so the fingerprint that tells whether they are up to date.

Light: raw files are only hashed, and no engine is imported, unless a register has a history.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, timedelta
from typing import Any, TypeVar

from evergreen.errors import Fault, FaultyDaysError, RawDataError
from evergreen.features.definitions import declared_types
from evergreen.ingest import raw_files
from evergreen.ingest.raw_files import RawFile
from evergreen.lake import datasets
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import FeatureSpec, ModelSpec, RawSource
from evergreen.spec.origins import READING_FIELDS
from evergreen.window import days_between, midnight

T = TypeVar("T")

FingerprintsByDay = dict[str, str]
"""Fingerprint of the features of each day, by ISO date."""


FaultsByDay = dict[date, list[Fault]]
"""The faults of each day; days without a fault are left out."""

log = logging.getLogger(__name__)


def features_dataset(model: ModelSpec) -> datasets.Dataset:
    """The published features that `model` uses, its own or another model's."""
    return datasets.open_dataset(f"features/{model.feature_model}")


def register_files(spec: FeatureSpec) -> list[RawFile]:
    """Return the file of each source that has one for all days."""
    return [RawFile.from_source(source, None) for source in spec.sources if not source.daily]


def raw_files_for_day(spec: FeatureSpec, day: date) -> list[RawFile]:
    """Every raw file that the features of `day` depend on, oldest first."""
    files = []
    for source in spec.sources:
        if source.daily:
            first = max(spec.first_day, day - timedelta(source.trailing_days))
            files += [RawFile.from_source(source, raw_day) for raw_day in days_between(first, day + timedelta(1))]
        else:
            files.append(RawFile.from_source(source, None))
    return files


def raw_files_for_days(spec: FeatureSpec, days: Iterable[date]) -> list[RawFile]:
    """Every raw file that the features of any of `days` depend on, each once."""
    return list(dict.fromkeys(file for day in days for file in raw_files_for_day(spec, day)))


def feature_inputs(model: ModelSpec, days: Iterable[date]) -> dict[str, dict[str, Any]]:
    """Return everything that the features of each of `days` depend on, by ISO date.

    The hash of a raw file that does not exist is None. That of a register with history is of what the day sees of it.
    """
    spec, days = feature_spec(model), list(days)
    hashes = raw_files.hash_raw_files(raw_files_for_days(spec, days))
    histories = hash_visible_histories(model, days)
    shared = shared_inputs(model)
    return {
        day.isoformat(): {
            "day": day.isoformat(),
            "raw": {file.name: hashes.get(file) for file in raw_files_for_day(spec, day)} | histories[day],
            **shared,
        }
        for day in days
    }


def visible_span(spec: FeatureSpec, source: RawSource, day: date) -> tuple[date, date]:
    """Return the time at which `day` sees a register with history: until the day ends, the end not included.

    As days or as instants, as the register itself has them.
    """
    first, end = day - timedelta(source.trailing_days), day + timedelta(1)
    if source.has_dates_of_validity:
        return first, end
    return midnight(first, spec.timezone).astimezone(UTC), midnight(end, spec.timezone).astimezone(UTC)


def hash_visible_histories(model: ModelSpec, days: Iterable[date]) -> dict[date, dict[str, str]]:
    """Return the hash of what each of `days` sees of each register with history that is there, by name.

    Of a file that cannot be read as declared, it is the hash of the file, and no day is built from it.
    """
    spec, days = feature_spec(model), list(days)
    result: dict[date, dict[str, str]] = {day: {} for day in days}
    for file in register_files(spec):
        source = spec.source(file.source)
        sha256 = raw_files.hash_raw_files([file]).get(file)
        if not (source.history and days and sha256):
            continue
        from evergreen.ingest import declared_files, histories  # they load engines

        copies = declared_files.declared_copies(model.feature_model)
        declared = declared_files.read_as_declared(source, file, sha256, copies)
        spans = [visible_span(spec, source, day) for day in days]
        hashes = None if declared.faults else histories.hash_visible(source, declared.path, spans)
        for day, value in zip(days, hashes or [sha256] * len(days), strict=True):
            result[day][file.name] = value
    return result


def shared_inputs(model: ModelSpec) -> dict[str, Any]:
    """Return what the features of every day depend on besides raw files."""
    spec = feature_spec(model)
    parameters = {
        "timezone": spec.timezone,
        "tables": spec.tables,
        "trailing_days": {
            source.name: source.trailing_days for source in spec.sources if source.daily or source.history
        },
        "histories": {source.name: source.history.model_dump() for source in spec.sources if source.history},
        "columns": {
            source.name: {name: column.type for name, column in source.columns.items()} for source in spec.sources
        },
        "types": declared_types(model.feature_model),
        "formats": {
            source.name: options
            for source in spec.sources
            if (options := source.files.model_dump(include=READING_FIELDS, exclude_defaults=True, mode="json"))
        },
    }
    return {"parameters": parameters, "code": feature_code(model)}


def feature_code(model: ModelSpec) -> dict[str, str]:
    """Return what features depend on besides raw data: the `features.py` that builds them, and the build step."""
    builder = model if model.builds_features else load_spec(model.feature_model)
    packages = (f"evergreen_models.{builder.name}.features", "evergreen.features.build")
    return code_of(packages, ("pyspark", "pyarrow"), builder.code_packages)


def compute_day_fingerprints(model: ModelSpec, days: Iterable[date]) -> FingerprintsByDay:
    """Return the fingerprint of the features of each day."""
    return {day: compute_fingerprint(parts) for day, parts in feature_inputs(model, days).items()}


def find_missing_raw_files(spec: FeatureSpec, files: Iterable[RawFile]) -> dict[RawFile, Fault]:
    """The fault of each of `files` that has not been delivered and may not be absent."""
    return {
        file: raw_files.missing_fault(file)
        for file in files
        if spec.source(file.source).empty_days != "absent" and not raw_files.is_delivered(file)
    }


def find_published_day(model: ModelSpec, day: str, fingerprint: str) -> datasets.Manifest | None:
    """The manifest of `day` if it is published with this fingerprint."""
    return features_dataset(model).find(datasets.day_partition(day), fingerprint)


def published_manifests(model: ModelSpec, days: Iterable[date]) -> dict[date, datasets.Manifest]:
    """Return the manifest of each of `days` that is published."""
    dataset = features_dataset(model)
    manifests = {day: dataset.manifest(datasets.day_partition(day)) for day in days}
    return {day: manifest for day, manifest in manifests.items() if manifest}


def unpublished_days(model: ModelSpec, fingerprints: FingerprintsByDay) -> FingerprintsByDay:
    """Those of `fingerprints` that are not published."""
    return {day: value for day, value in fingerprints.items() if not find_published_day(model, day, value)}


def newest_published_day(model: ModelSpec) -> date:
    """The newest published day.

    Raises:
        RawDataError: nothing is published yet.
    """
    partitions = features_dataset(model).partitions()
    if not partitions:
        fault = Fault("lake", "none are published", f"run {model.feature_model}.features first")
        raise RawDataError(f"features of {model.feature_model}", [fault])
    return datasets.partition_day(partitions[-1])


def stale_days(model: ModelSpec, changed_days: Sequence[date]) -> list[date]:
    """The published days after `changed_days` that were built from earlier versions of their raw files.

    A corrected or late day changes exactly those later days whose trailing windows include it.
    """
    spec = feature_spec(model)
    longest = max((source.trailing_days for source in spec.sources), default=0)
    later = {day + timedelta(n) for day in changed_days for n in range(1, longest + 1)} - set(changed_days)
    hashes = raw_files.hash_raw_files(file for file in raw_files_for_days(spec, later) if file.day in changed_days)
    stale = []
    for day in sorted(later):
        manifest = features_dataset(model).manifest(datasets.day_partition(day))
        files = [file for file in raw_files_for_day(spec, day) if file in hashes]
        if manifest and any(manifest.inputs["raw"].get(file.name) != hashes[file] for file in files):
            stale.append(day)
    return stale


def raise_own_faults(
    error: type[FaultyDaysError],
    label: str,
    model: ModelSpec,
    faults: FaultsByDay,
    own_days: Collection[date] | None,
    remaining: Mapping[str, str],
) -> None:
    """Raise `error` with the faults of `own_days`, by default all days, and with what `remaining` has of other days.

    Faults of other days are only logged: the runs that are about those days report them.
    """
    own_faults = {day: faults[day] for day in faults if own_days is None or day in own_days}
    for day in faults.keys() - own_faults.keys():
        log.warning("%s skipped: %s; the run for that day will report it", day, "; ".join(map(str, faults[day])))
    if own_faults:
        distinct = list(dict.fromkeys(fault for day_faults in own_faults.values() for fault in day_faults))
        raise error(f"{label} for {format_days(own_faults)} of {model.feature_model}", distinct, remaining)


def split_into_batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Batches of at most `max_days_per_run` items, so that memory does not grow with their number."""
    size = settings().max_days_per_run
    return (items[first : first + size] for first in range(0, len(items), size))


def format_days(days: Collection[date]) -> str:
    """`days` in a few words, for logs and errors."""
    return f"{len(days)} days, {min(days)} – {max(days)}" if len(days) > 1 else str(*days)
