"""Compute the features of many days in one job (Spark), in folders that no reader looks into.

A day is computed once: its folder is found by its fingerprint, also when the run that built it died before
publishing it.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from evergreen.errors import Fault, FaultsError, FeatureError, RawDataError, first_line
from evergreen.features import FeatureTables, inputs, spark
from evergreen.features.definitions import DeclaredTypes, declared_types
from evergreen.features.inputs import FaultsByDay, FingerprintsByDay, raise_own_faults
from evergreen.features.register_history import RegisterHistory
from evergreen.features.row_order import order_rows
from evergreen.features.types import cast_columns
from evergreen.ingest import raw_files
from evergreen.ingest.declared_files import declared_copies, declared_schema, find_damage, read_as_declared
from evergreen.ingest.raw_files import RawFile
from evergreen.lake import datasets
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec, RawSource

_MAX_FAILURES = 4
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_CONDITION_LINE = re.compile(r"^.*(\[[A-Z][A-Z0-9_.]+\].*)$", re.MULTILINE)
_READ_CONDITION = "FAILED_READ_FILE"
_PASSING_CONDITIONS = ("INTERNAL_ERROR", "CONNECT", "OPERATION_CANCELED", "INVALID_HANDLE", "SPARK_JOB_CANCELLED")

log = logging.getLogger(__name__)


def build_features(
    model: ModelSpec, fingerprints: FingerprintsByDay, own_days: Collection[date] | None = None
) -> dict[str, str]:
    """Compute the features of days that are not built yet, and return the folder of each unpublished day.

    Days that fail are left out; `own_days` as in `validate_raw_files`.

    Raises:
        FeatureError: days of `own_days` that cannot be built, each with its error; it has the other days' folders.
    """
    dataset = inputs.features_dataset(model)
    folders: dict[str, str] = {}
    missing_days = []
    for day, fingerprint in fingerprints.items():
        if inputs.find_published_day(model, day, fingerprint):
            log.info("%s: published already with fingerprint %s, nothing to do", day, fingerprint[:12])
        elif cached := dataset.find_cached(datasets.day_partition(day), fingerprint):
            log.info("%s: built already with fingerprint %s, not yet published", day, fingerprint[:12])
            folders[day] = str(cached)
        else:
            missing_days.append(day)
    faults: FaultsByDay = {}
    for batch in inputs.split_into_batches(missing_days):
        staged = {day: dataset.stage(datasets.day_partition(day), fingerprints[day]) for day in batch}
        batch_faults = _build_days(model, staged)
        faults |= batch_faults
        for day, folder in staged.items():
            if date.fromisoformat(day) in batch_faults:
                shutil.rmtree(folder)
            else:
                folders[day] = str(dataset.cache_staged(datasets.day_partition(day), fingerprints[day], folder))
        if len(batch) < len(missing_days):
            log.info("%s of %s days are built", len(folders.keys() & set(missing_days)), len(missing_days))
    raise_own_faults(FeatureError, "features", model, faults, own_days, folders)
    return folders


def _build_days(model: ModelSpec, staging_folders: Mapping[str, Path]) -> FaultsByDay:
    """Build days in one job; if that fails, in halves, down to the days that fail alone. Return the faults of these.

    If the first few days fail alone and nothing has been built, the code is wrong, and the other days are not tried.
    """
    pending, faults, has_built = [list(staging_folders)], FaultsByDay(), False
    while pending:
        days = pending.pop()
        try:
            _build_batch(model, {day: staging_folders[day] for day in days})
            has_built = True
        except Exception as error:
            if not _is_repeatable(error):
                raise
            log.exception("%s cannot be built", inputs.format_days([date.fromisoformat(day) for day in days]))
            if len(days) > 1:
                pending += [days[len(days) // 2 :], days[: len(days) // 2]]
                continue
            faults[date.fromisoformat(days[0])] = _build_faults(model, days[0], error)
            if pending and not has_built and len(faults) >= _MAX_FAILURES:
                untried = [date.fromisoformat(day) for batch in pending for day in batch]
                problem = f"not tried, because the first {_MAX_FAILURES} days of the job fail"
                fault = Fault(inputs.format_days(untried), problem, "correct what they report")
                return faults | {day: [fault] for day in untried}
    return faults


def _is_repeatable(error: Exception) -> bool:
    """Whether the same days would fail again: because of their rows or of the code, not of a server or a disk."""
    if isinstance(error, PySparkException):
        # Spark names the condition of what it refuses. What it does not know, such as a lost connection, has no name.
        condition = error.getCondition() or ""
        return bool(condition) and not condition.startswith(_PASSING_CONDITIONS)
    if isinstance(error, Py4JJavaError):  # a failure of a task that PySpark has no class for
        return _READ_CONDITION in str(error)
    is_client = type(error).__module__.partition(".")[0] in ("grpc", "py4j")
    return not (is_client or isinstance(error, OSError | MemoryError))


def _build_faults(model: ModelSpec, day: str, error: Exception) -> list[Fault]:
    """Return what is wrong with a day that fails alone. Raises `error` if that may pass."""
    if isinstance(error, FaultsError):
        return [Fault(f"{day} {fault.location}", fault.problem, fault.fix) for fault in error.faults]
    if _READ_CONDITION in str(error):
        if damaged := _find_damaged_files(model, day):
            return damaged
        raise error  # by now, its files can be read
    # What Spark wraps around a failure of a task comes first, the failure itself last.
    causes = _CONDITION_LINE.findall(str(error)) or [first_line(error)]
    fix = f"correct features.py of {model.feature_model}, or the raw data; the log has the whole error"
    return [Fault(day, f"cannot be built: {type(error).__name__}: {causes[-1]}", fix)]


def _find_damaged_files(model: ModelSpec, day: str) -> list[Fault]:
    spec = feature_spec(model)
    paths = _find_declared_files(model, inputs.raw_files_for_days(spec, [date.fromisoformat(day)]))
    faults = (find_damage(path) for of_source in paths.values() for path in of_source)
    return [fault for fault in faults if fault]


def _build_batch(model: ModelSpec, staging_folders: Mapping[str, Path]) -> None:
    spec = feature_spec(model)
    days = [date.fromisoformat(day) for day in staging_folders]
    scratch = next(iter(staging_folders.values())).with_suffix(".spark")
    declared = _find_declared_files(model, inputs.raw_files_for_days(spec, days))
    try:
        with spark.spark_session() as session:
            raw: dict[str, DataFrame | RegisterHistory] = {}
            for source in spec.sources:
                frame = _read_raw(session, source, declared[source.name])
                spans = [inputs.visible_span(spec, source, day) for day in days]
                raw[source.name] = RegisterHistory(source, frame, spans, spec.timezone) if source.history else frame
            module = import_module(f"evergreen_models.{model.feature_model}.features")
            types = declared_types(model.feature_model)
            for number, tables in enumerate(module.build(session, raw, days, spec.timezone)):
                log.info("%s: computing %s", inputs.format_days(days), ", ".join(tables.columns))
                _write_tables(tables, scratch / str(number), staging_folders, types)
                _check_partitions(tables, scratch / str(number), staging_folders.keys())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _find_declared_files(model: ModelSpec, files: Sequence[RawFile]) -> dict[str, list[Path]]:
    """Return where the rows of the raw files are, with the declared types, by source.

    Raises:
        RawDataError: a file has been replaced since it was validated, by one with faults.
    """
    spec, copies = feature_spec(model), declared_copies(model.feature_model)
    hashes = raw_files.hash_raw_files(files)
    paths: dict[str, list[Path]] = {source.name: [] for source in spec.sources}
    faults: list[Fault] = list(inputs.find_missing_raw_files(spec, files).values())
    for file in files:
        if sha256 := hashes.get(file):
            declared = read_as_declared(spec.source(file.source), file, sha256, copies)
            faults += declared.faults
            paths[file.source].append(declared.path)
    if faults:
        raise RawDataError(f"raw data of {model.feature_model}", faults)
    return paths


def _read_raw(session: SparkSession, source: RawSource, files: Sequence[Path]) -> DataFrame:
    schema = from_arrow_schema(declared_schema(source), prefer_timestamp_ntz=True)
    if not files:  # no day of them has events
        return session.createDataFrame([], schema)
    return session.read.schema(schema).parquet(*map(str, files))


def _check_partitions(tables: FeatureTables, scratch: Path, days: Collection[str]) -> None:
    """Check that every row that Spark has written belongs to a table and a day of the job.

    Raises:
        FeatureError: others would be lost; they are counted by table and day.
    """
    faults = []
    for folder in sorted({file.parent for file in scratch.rglob("day=*/*.parquet")}):
        day = unquote(folder.name.removeprefix("day="))
        table = (
            unquote(folder.parent.name.removeprefix("table="))
            if len(tables.columns) > 1
            else next(iter(tables.columns))
        )
        if day in days and table in tables.columns:
            continue
        rows = sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
        for column, value in (("day", day), ("table", table)):
            if value == _NULL_PARTITION:
                faults.append(Fault(table, f"{rows} rows have no {column}", f"let features.build set `{column}`"))
                break
        else:
            fix = (
                "let features.build return the rows of `days` only, each with the `day` and `table` that it belongs to"
            )
            faults.append(Fault(table, f"{rows} rows of {day}, which this job does not build", fix))
    if faults:
        raise FeatureError("features", faults)


def _write_tables(
    tables: FeatureTables, scratch: Path, staging_folders: Mapping[str, Path], types: DeclaredTypes
) -> None:
    """Compute the tables with Spark, in any number of files, and stage one file per table and day.

    Columns get the types that Feast declares. One with values that would change stays as it is, for `validate_features`
    to report: the other days of the batch may have none.

    Staged rows are in the order of `row_order`, so the bytes do not depend on how Spark divided the work.
    """
    several = len(tables.columns) > 1
    tables.frame.write.partitionBy(*(["table", "day"] if several else ["day"])).parquet(str(scratch))
    for name, columns in tables.columns.items():
        for day, folder in staging_folders.items():
            partition = (scratch / f"table={name}" if several else scratch) / f"day={day}"
            if partition.exists():
                table = pq.read_table(partition, columns=list(columns), partitioning=None)
            else:  # a day without rows is a table without rows
                table = tables.frame.select(*columns).limit(0).toArrow()
            table, _ = cast_columns(table, types.get(name, {}))
            pq.write_table(order_rows(table).replace_schema_metadata(), folder / f"{name}.parquet")
