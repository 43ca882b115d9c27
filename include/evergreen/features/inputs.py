"""What the features of a period depend on, and so the fingerprint that tells whether they are up to date.

Light: raw files are only hashed, and no engine is imported, unless a register has a history.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, TypeVar

from evergreen.errors import Fault, FaultyPeriodsError, RawDataError
from evergreen.features.definitions import declared_types
from evergreen.ingest import raw_files
from evergreen.ingest.raw_files import RawFile
from evergreen.lake import datasets
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.periods import Duration
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import FeatureSpec, ModelSpec, RawSource
from evergreen.spec.origins import READING_FIELDS

T = TypeVar("T")

FingerprintsByPeriod = dict[str, str]
"""Fingerprint of the features of each period."""


FaultsByPeriod = dict[str, list[Fault]]
"""The faults of each period; periods without a fault are left out."""

log = logging.getLogger(__name__)


def features_dataset(model: ModelSpec) -> datasets.Dataset:
    """The published features that `model` uses, its own or another model's."""
    return datasets.open_dataset(f"features/{model.feature_model}")


def register_files(spec: FeatureSpec) -> list[RawFile]:
    """Return the file of each source that has one for all periods."""
    return [RawFile.from_source(source, None) for source in spec.sources if source.is_register]


def raw_files_for_period(spec: FeatureSpec, period: str) -> list[RawFile]:
    """Every raw file that the features of `period` depend on, oldest first."""
    files, calendar = [], spec.calendar
    for source in spec.sources:
        if not source.is_register:
            first = max(spec.first_period, calendar.period_before(period, source.trailing))
            end = calendar.shift(period, 1)
            files += [RawFile.from_source(source, raw_period) for raw_period in calendar.periods_between(first, end)]
        else:
            files.append(RawFile.from_source(source, None))
    return files


def raw_files_for_periods(spec: FeatureSpec, periods: Iterable[str]) -> list[RawFile]:
    """Every raw file that the features of any of `periods` depend on, each once."""
    return list(dict.fromkeys(file for period in periods for file in raw_files_for_period(spec, period)))


def feature_inputs(model: ModelSpec, periods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return everything that the features of each of `periods` depend on.

    The hash of a raw file that does not exist is None. That of a register with history is of what the period sees of
    it.
    """
    spec, periods = feature_spec(model), list(periods)
    hashes = raw_files.hash_raw_files(raw_files_for_periods(spec, periods))
    histories = hash_visible_histories(model, periods)
    shared = shared_inputs(model)
    return {
        period: {
            "period": period,
            "raw": {file.name: hashes.get(file) for file in raw_files_for_period(spec, period)} | histories[period],
            **shared,
        }
        for period in periods
    }


def visible_span(spec: FeatureSpec, source: RawSource, period: str) -> tuple[date, date]:
    """Return the time at which `period` sees a register with history: until the period ends, the end not included.

    As days or as instants, as the register itself has them.
    """
    calendar = spec.calendar
    first, end = calendar.period_before(period, source.trailing), calendar.shift(period, 1)
    if source.has_dates_of_validity:
        return calendar.dates(first, end)
    return calendar.start(first), calendar.start(end)


def hash_visible_histories(model: ModelSpec, periods: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the hash of what each of `periods` sees of each register with history that is there, by name.

    Of a file that cannot be read as declared, it is the hash of the file, and no period is built from it.
    """
    spec, periods = feature_spec(model), list(periods)
    result: dict[str, dict[str, str]] = {period: {} for period in periods}
    for file in register_files(spec):
        source = spec.source(file.source)
        if not (source.history and periods and (sha256 := raw_files.hash_raw_files([file]).get(file))):
            continue
        from evergreen.ingest import declared_files, histories  # they load engines

        copies = declared_files.declared_copies(model.feature_model)
        declared = declared_files.read_as_declared(source, file, sha256, copies)
        spans = [visible_span(spec, source, period) for period in periods]
        hashes = None if declared.faults else histories.hash_visible(source, declared.path, spans)
        for period, value in zip(periods, hashes or [sha256] * len(periods), strict=True):
            result[period][file.name] = value
    return result


def shared_inputs(model: ModelSpec) -> dict[str, Any]:
    """Return what the features of every period depend on besides raw files."""
    spec = feature_spec(model)
    parameters = {
        "period": spec.period,
        "timezone": spec.timezone,
        "tables": spec.tables,
        "trailing": {
            source.name: str(source.trailing) for source in spec.sources if not source.is_register or source.history
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


def compute_period_fingerprints(model: ModelSpec, periods: Iterable[str]) -> FingerprintsByPeriod:
    """Return the fingerprint of the features of each period."""
    return {period: compute_fingerprint(parts) for period, parts in feature_inputs(model, periods).items()}


def find_missing_raw_files(spec: FeatureSpec, files: Iterable[RawFile]) -> dict[RawFile, Fault]:
    """The fault of each of `files` that has not been delivered and may not be absent."""
    return {
        file: raw_files.missing_fault(file)
        for file in files
        if spec.source(file.source).empty_periods != "absent" and not raw_files.is_delivered(file)
    }


def find_published_period(model: ModelSpec, period: str, fingerprint: str) -> datasets.Manifest | None:
    """The manifest of `period` if it is published with this fingerprint."""
    return features_dataset(model).find(datasets.period_partition(period), fingerprint)


def published_periods(model: ModelSpec, start: str | None = None) -> list[str]:
    """Return all published periods, in order, from `start` on: what is before costs nothing."""
    partitions = features_dataset(model).partitions(datasets.period_partition(start) if start else "")
    return [datasets.partition_period(partition) for partition in partitions]


def published_manifests(model: ModelSpec, periods: Iterable[str]) -> dict[str, datasets.Manifest]:
    """Return the manifest of each of `periods` that is published."""
    manifests = features_dataset(model).read_manifests([datasets.period_partition(period) for period in periods])
    return {datasets.partition_period(manifest.partition): manifest for manifest in manifests}


def unpublished_periods(model: ModelSpec, fingerprints: FingerprintsByPeriod) -> FingerprintsByPeriod:
    """Those of `fingerprints` that are not published."""
    return {period: value for period, value in fingerprints.items() if not find_published_period(model, period, value)}


def newest_published_period(model: ModelSpec) -> str:
    """The newest published period.

    Raises:
        RawDataError: nothing is published yet.
    """
    periods = published_periods(model)
    if not periods:
        fault = Fault("lake", "none are published", f"run {model.feature_model}.features first")
        raise RawDataError(f"features of {model.feature_model}", [fault])
    return periods[-1]


def stale_periods(model: ModelSpec, changed_periods: Sequence[str]) -> list[str]:
    """The published periods after `changed_periods` that were built from earlier versions of their raw files.

    A corrected or late period changes exactly those later periods whose trailing windows include it.
    """
    spec = feature_spec(model)
    calendar = spec.calendar
    trailing = [source.trailing for source in spec.sources if source.trailing]
    later = {
        later_period
        for period in changed_periods
        for first in [calendar.shift(period, 1)]
        for end in [max((calendar.period_after(first, duration) for duration in trailing), default=first)]
        for later_period in calendar.periods_between(first, end)
    } - set(changed_periods)
    hashes = raw_files.hash_raw_files(
        file for file in raw_files_for_periods(spec, later) if file.period in changed_periods
    )
    stale = []
    for period in sorted(later):
        manifest = features_dataset(model).manifest(datasets.period_partition(period))
        files = [file for file in raw_files_for_period(spec, period) if file in hashes]
        if manifest and any(manifest.inputs["raw"].get(file.name) != hashes[file] for file in files):
            stale.append(period)
    return stale


def raise_own_faults(
    error: type[FaultyPeriodsError],
    label: str,
    model: ModelSpec,
    faults: FaultsByPeriod,
    own_periods: Collection[str] | None,
    remaining: Mapping[str, str],
) -> None:
    """Raise `error` with the faults of `own_periods`, by default all, and with what `remaining` has of the others.

    Faults of other periods are only logged: the runs that are about those periods report them.
    """
    own_faults = {period: faults[period] for period in faults if own_periods is None or period in own_periods}
    for period in faults.keys() - own_faults.keys():
        log.warning(
            "%s skipped: %s; the run for that period will report it", period, "; ".join(map(str, faults[period]))
        )
    if own_faults:
        distinct = list(dict.fromkeys(fault for period_faults in own_faults.values() for fault in period_faults))
        raise error(
            f"{label} for {feature_spec(model).calendar.describe(own_faults)} of {model.feature_model}",
            distinct,
            remaining,
        )


def max_periods_per_run(spec: FeatureSpec) -> int:
    """The number of periods that one run builds in one job: those of `max_days_per_run` days, or as many weeks.

    A week has about as many rows of features as a day: one for each key.
    """
    calendar, limit = spec.calendar, settings().max_days_per_run
    return max(1, calendar.count_in(Duration(limit, "w" if calendar.unit == "week" else "d")))


def split_into_batches(model: ModelSpec, items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Batches of at most `max_periods_per_run` items, so that memory does not grow with their number."""
    size = max_periods_per_run(feature_spec(model))
    return (items[first : first + size] for first in range(0, len(items), size))
