"""Compute the features of many periods in one job (Spark), in folders that no reader looks into.

A period is computed once: its folder is found by its fingerprint, also when the run that built it died before
publishing it.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from evergreen.errors import Fault, FaultsError, FeatureError, RawDataError, StoreError, first_line
from evergreen.features import FeatureTables, inputs, spark
from evergreen.features.definitions import DeclaredTypes, declared_types
from evergreen.features.inputs import FaultsByPeriod, FingerprintsByPeriod, raise_own_faults
from evergreen.features.register_history import RegisterHistory
from evergreen.features.row_order import read_batches, write_ordered
from evergreen.features.types import cast_columns, find_cast_problems
from evergreen.ingest import raw_files
from evergreen.ingest.declared_files import declared_copies, declared_schema, find_damage, read_as_declared
from evergreen.ingest.raw_files import RawFile
from evergreen.lake import datasets
from evergreen.lake.exchange import JobExchange, open_exchange
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec, RawSource

_MAX_FAILURES = 4
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_CONDITION_LINE = re.compile(r"^.*(\[[A-Z][A-Z0-9_.]+\].*)$", re.MULTILINE)
# What Spark's client of an object store throws; in a trace, methods of the same packages follow.
_STORE_FAILURE = re.compile(r"\b(software\.amazon\.awssdk|org\.apache\.hadoop\.fs\.s3a)\.[\w.$]*Exception\b")
_READ_CONDITION = "FAILED_READ_FILE"
_PASSING_CONDITIONS = ("INTERNAL_ERROR", "CONNECT", "OPERATION_CANCELED", "INVALID_HANDLE", "SPARK_JOB_CANCELLED")

log = logging.getLogger(__name__)


def build_features(
    model: ModelSpec, fingerprints: FingerprintsByPeriod, own_periods: Collection[str] | None = None
) -> dict[str, str]:
    """Compute the features of periods that are not built yet, and return the folder of each unpublished period.

    Periods that fail are left out; `own_periods` as in `validate_raw_files`.

    Raises:
        FeatureError: periods of `own_periods` that cannot be built, each with its error; it has the others' folders.
    """
    dataset = inputs.features_dataset(model)
    folders: dict[str, str] = {}
    missing_periods = []
    for period, fingerprint in fingerprints.items():
        if inputs.find_published_period(model, period, fingerprint):
            log.info("%s: published already with fingerprint %s, nothing to do", period, fingerprint[:12])
        elif cached := dataset.find_cached(datasets.period_partition(period), fingerprint):
            log.info("%s: built already with fingerprint %s, not yet published", period, fingerprint[:12])
            folders[period] = str(cached)
        else:
            missing_periods.append(period)
    faults: FaultsByPeriod = {}
    for batch in inputs.split_into_batches(model, missing_periods):
        staged = {period: dataset.stage(datasets.period_partition(period), fingerprints[period]) for period in batch}
        batch_faults = _build_periods(model, staged)
        faults |= batch_faults
        for period, folder in staged.items():
            if period in batch_faults:
                shutil.rmtree(folder)
            else:
                folders[period] = str(
                    dataset.cache_staged(datasets.period_partition(period), fingerprints[period], folder)
                )
        if len(batch) < len(missing_periods):
            log.info("%s of %s periods are built", len(folders.keys() & set(missing_periods)), len(missing_periods))
    raise_own_faults(FeatureError, "features", model, faults, own_periods, folders)
    return folders


def _build_periods(model: ModelSpec, staging_folders: Mapping[str, Path]) -> FaultsByPeriod:
    """Build periods in one job; if that fails, in halves, down to those that fail alone. Return the faults of these.

    If the first few periods fail alone and nothing has been built, the code is wrong, and the others are not tried.
    """
    pending, faults, has_built = [list(staging_folders)], FaultsByPeriod(), False
    while pending:
        periods = pending.pop()
        try:
            compute_features(model, {period: staging_folders[period] for period in periods})
            has_built = True
        except Exception as error:
            if fault := spark.explain_missing_client(error):
                raise StoreError(str(fault)) from error
            if not _is_repeatable(error):
                raise
            log.exception("%s cannot be built", feature_spec(model).calendar.describe(periods))
            if len(periods) > 1:
                pending += [periods[len(periods) // 2 :], periods[: len(periods) // 2]]
                continue
            faults[periods[0]] = _build_faults(model, periods[0], error)
            if pending and not has_built and len(faults) >= _MAX_FAILURES:
                untried = [period for batch in pending for period in batch]
                problem = f"not tried, because the first {_MAX_FAILURES} periods of the job fail"
                fault = Fault(feature_spec(model).calendar.describe(untried), problem, "correct what they report")
                return faults | {period: [fault] for period in untried}
    return faults


def _is_repeatable(error: Exception) -> bool:
    """Whether the same periods would fail again: because of their rows or of the code, not of a server or a disk."""
    if _STORE_FAILURE.search(str(error)):
        return False
    if isinstance(error, PySparkException):
        # Spark names the condition of what it refuses. What it does not know, such as a lost connection, has no name.
        condition = error.getCondition() or ""
        return bool(condition) and not condition.startswith(_PASSING_CONDITIONS)
    if isinstance(error, Py4JJavaError):  # a failure of a task that PySpark has no class for
        return _READ_CONDITION in str(error)
    is_client = type(error).__module__.partition(".")[0] in ("grpc", "py4j")
    return not (is_client or isinstance(error, OSError | MemoryError))


def _build_faults(model: ModelSpec, period: str, error: Exception) -> list[Fault]:
    """Return what is wrong with a period that fails alone. Raises `error` if that may pass."""
    if isinstance(error, FaultsError):
        return [Fault(f"{period} {fault.location}", fault.problem, fault.fix) for fault in error.faults]
    if _READ_CONDITION in str(error):
        if damaged := _find_damaged_files(model, period):
            return damaged
        raise error  # by now, its files can be read
    # What Spark wraps around a failure of a task comes first, the failure itself last.
    causes = _CONDITION_LINE.findall(str(error)) or [first_line(error)]
    fix = f"correct features.py of {model.feature_model}, or the raw data; the log has the whole error"
    return [Fault(period, f"cannot be built: {type(error).__name__}: {causes[-1]}", fix)]


def _find_damaged_files(model: ModelSpec, period: str) -> list[Fault]:
    spec = feature_spec(model)
    paths = _find_declared_files(model, inputs.raw_files_for_periods(spec, [period]))
    faults = (find_damage(path) for of_source in paths.values() for path in of_source)
    return [fault for fault in faults if fault]


def compute_features(
    model: ModelSpec,
    staging_folders: Mapping[str, Path],
    change: Callable[[RawSource, DataFrame], DataFrame] = lambda _, rows: rows,
) -> None:
    """Compute the features of periods in one job, each period into a folder of its own.

    `change` is given the rows of each source, and returns those that are read instead of them.
    """
    spec = feature_spec(model)
    periods = list(staging_folders)
    scratch = next(iter(staging_folders.values())).with_suffix(".spark")
    declared = _find_declared_files(model, inputs.raw_files_for_periods(spec, periods))
    with open_exchange(scratch) as exchange:
        provided = {name: [exchange.provide(path) for path in paths] for name, paths in declared.items()}
        with spark.spark_session() as session:
            raw: dict[str, DataFrame | RegisterHistory] = {}
            for source in spec.sources:
                raw[source.name] = frame = change(source, _read_raw(session, source, provided[source.name]))
                if source.history:
                    spans = [inputs.visible_span(spec, source, period) for period in periods]
                    raw[source.name] = RegisterHistory(source, frame, spans, spec.timezone)
            module = import_module(f"evergreen_models.{model.feature_model}.features")
            types = declared_types(model.feature_model)
            key = spec.calendar.partition_key
            for number, tables in enumerate(module.build(session, raw, periods, spec.calendar)):
                log.info("%s: computing %s", spec.calendar.describe(periods), ", ".join(tables.columns))
                written = _compute(tables, exchange, str(number), key)
                _stage_tables(tables, written, staging_folders, types, scratch)
                _check_partitions(tables, written, staging_folders.keys(), key)


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


def _read_raw(session: SparkSession, source: RawSource, files: Sequence[str]) -> DataFrame:
    schema = from_arrow_schema(declared_schema(source), prefer_timestamp_ntz=True)
    if not files:  # no period of them has events
        return session.createDataFrame([], schema)
    return session.read.schema(schema).parquet(*files)


@dataclass(frozen=True)
class _WrittenTables:
    """The files that Spark has written of the tables of one pass, by table and period."""

    exchange: JobExchange
    parts: Mapping[tuple[str, str], Sequence[str]]

    def open_parts(self, table: str, period: str) -> AbstractContextManager[list[Path]]:
        """Return local files with the rows of a table and a period."""
        return self.exchange.open_parts(self.parts.get((table, period), ()))


def _compute(tables: FeatureTables, exchange: JobExchange, result: str, key: str) -> _WrittenTables:
    """Compute the tables with Spark, in any number of files."""
    only = next(iter(tables.columns)) if len(tables.columns) == 1 else None
    spark.write_parquet(tables.frame, exchange.uri(result), [key] if only else ["table", key])
    parts: dict[tuple[str, str], list[str]] = {}
    for path in exchange.list_parts(result):
        folders = path.split("/")[:-1]
        if not folders[-1].startswith(f"{key}="):  # a file without rows, which has no partition
            continue
        table = only or unquote(folders[-2].removeprefix("table="))
        parts.setdefault((table, unquote(folders[-1].removeprefix(f"{key}="))), []).append(path)
    return _WrittenTables(exchange, parts)


def _check_partitions(tables: FeatureTables, written: _WrittenTables, periods: Collection[str], key: str) -> None:
    """Check that every row that Spark has written belongs to a table and a period of the job.

    Raises:
        FeatureError: others would be lost; they are counted by table and period.
    """
    faults = []
    for table, period in sorted(written.parts):
        if period in periods and table in tables.columns:
            continue
        with written.open_parts(table, period) as files:
            rows = sum(pq.read_metadata(file).num_rows for file in files)
        for column, value in ((key, period), ("table", table)):
            if value == _NULL_PARTITION:
                faults.append(Fault(table, f"{rows} rows have no {column}", f"let features.build set `{column}`"))
                break
        else:
            fix = f"let features.build return the rows of its periods only, each with its `{key}` and `table`"
            faults.append(Fault(table, f"{rows} rows of {period}, which this job does not build", fix))
    if faults:
        raise FeatureError("features", faults)


def _stage_tables(
    tables: FeatureTables,
    written: _WrittenTables,
    staging_folders: Mapping[str, Path],
    types: DeclaredTypes,
    scratch: Path,
) -> None:
    """Stage one file per table and period.

    Columns get the types that Feast declares. One with values that would change stays as it is, for `validate_features`
    to report: the other periods of the batch may have none.

    Staged rows are in the order of `row_order`, so the bytes do not depend on how Spark divided the work.
    """
    for name, columns in tables.columns.items():
        for period, folder in staging_folders.items():
            file, column_types = folder / f"{name}.parquet", types.get(name, {})
            with written.open_parts(name, period) as parts:
                if parts:
                    _stage_rows(file, parts, columns, column_types, scratch)
                else:  # a period without rows is a table without rows
                    table, _ = cast_columns(tables.frame.select(*columns).limit(0).toArrow(), column_types)
                    write_ordered(file, [table], scratch)


def _stage_rows(
    file: Path, parts: Sequence[Path], columns: Sequence[str], types: Mapping[str, str], scratch: Path
) -> None:
    """Write the rows of all `parts`, which have the same schema, to one file, in order."""
    schema = pq.read_schema(parts[0])
    changing = {name: types[name] for name in columns if name in types and types[name] != str(schema.field(name).type)}
    problems = find_cast_problems(read_batches(parts, list(changing)), changing) if changing else {}
    changing = {name: changing[name] for name in changing.keys() - problems.keys()}
    batches = (cast_columns(batch, changing)[0] for batch in read_batches(parts, columns))
    write_ordered(file, batches, scratch)
