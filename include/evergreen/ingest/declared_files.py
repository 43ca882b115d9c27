"""Raw files as declared: with exactly the columns and types that their source declares.

A file that has these types is used where it lies. Any other is copied into the lake once, as Parquet with the
declared types, under the hash of its content and of the declaration; Spark and the checks read the copy. Where a
conversion would lose something, the file is refused, with column, count and an example. A file is read in batches:
memory does not grow with its rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault, first_line
from evergreen.ingest.conversions import arrow_type, convert_values, stored_type
from evergreen.lake.datasets import Dataset, open_dataset
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.spec.model import RawSource

_BATCH_ROWS = 65_536
_BUFFER_BYTES = 2**20
_ROWS = "rows"  # name of the copy in its partition
_MAX_EXAMPLE_CHARS = 80


@dataclass(frozen=True)
class DeclaredFile:
    """Where the rows of a raw file are, with the declared types; nowhere if the file has `faults`."""

    path: Path
    rows: int = 0
    faults: tuple[Fault, ...] = ()


def declared_schema(source: RawSource) -> pa.Schema:
    """Return the columns of a source with their Arrow types, in the order of their declaration."""
    return pa.schema([(name, arrow_type(column.type)) for name, column in source.columns.items()])


def declaration_of(source: RawSource) -> dict[str, Any]:
    """Return what decides how a file of the source is read, for fingerprints; not its descriptions."""
    columns = {name: [column.type, column.nullable] for name, column in source.columns.items()}
    return {"columns": columns, "extra_columns": source.extra_columns, "empty_days": source.empty_days}


def declared_copies(feature_model: str) -> Dataset:
    """The copies of raw files whose types were not the declared ones."""
    return open_dataset(f"declared/{feature_model}")


def read_as_declared(source: RawSource, file: Path, sha256: str, copies: Dataset, partition: str) -> DeclaredFile:
    """Return where the rows of `file`, whose content has this hash, are as declared; a copy is made if need be.

    `partition` names the file among the `copies`.
    """
    try:
        with _readable():
            parquet = _open_parquet(file)
        with parquet:
            return _read_parquet(parquet, source, file, sha256, copies, partition)
    except _UnreadableError as error:
        return DeclaredFile(file, faults=(unreadable_fault(file, error),))


def unreadable_fault(file: Path, error: Exception) -> Fault:
    """Return the fault of a file that is no Parquet, or is damaged."""
    return Fault(str(file), f"is not a readable Parquet file: {first_line(error)}", "deliver it again")


def find_damage(file: Path) -> Fault | None:
    """Return the fault of a file of which a part cannot be read; None if all of it can. Reads all of it."""
    try:
        with _readable(), _open_parquet(file) as parquet:
            for _ in parquet.iter_batches(_BATCH_ROWS):
                pass
    except _UnreadableError as error:
        return unreadable_fault(file, error)
    return None


class _UnreadableError(ValueError):
    """A file cannot be read, or a part of it."""


def _open_parquet(file: Path) -> pq.ParquetFile:
    # A timestamp of 96 bits has no zone and no unit: all that write it mean instants, to the microsecond.
    # Unless buffers are bounded, Arrow keeps all that it has read.
    return pq.ParquetFile(file, coerce_int96_timestamp_unit="us", pre_buffer=False, buffer_size=_BUFFER_BYTES)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _UnreadableError(first_line(error)) from error


def _read_parquet(
    parquet: pq.ParquetFile, source: RawSource, file: Path, sha256: str, copies: Dataset, partition: str
) -> DeclaredFile:
    rows = parquet.metadata.num_rows
    if faults := _find_structural_faults(parquet.schema_arrow.names, rows, source, file):
        return DeclaredFile(file, rows, faults)
    if _has_declared_types(parquet, source):
        reading = _Reading(source)
        required = [name for name, column in source.columns.items() if not column.nullable]
        for name in required:
            reading.nulls[name] = count_nulls(parquet, name)
        return DeclaredFile(file, rows, reading.faults(file, rows))
    declaration = declaration_of(source)
    code = code_of([__name__], ["pyarrow"])
    inputs = {"raw": sha256, "declaration": declaration, "code": code}
    fingerprint = compute_fingerprint(inputs)
    if manifest := copies.find(partition, fingerprint):
        return DeclaredFile(copies.file_path(manifest, _ROWS), rows)
    staged = copies.stage(partition, fingerprint)
    try:
        if faults := _copy_as_declared(_read_batches(parquet, source), source, staged / f"{_ROWS}.parquet", file, rows):
            return DeclaredFile(file, rows, faults)
        manifest = copies.publish(partition, fingerprint, {_ROWS: staged / f"{_ROWS}.parquet"}, inputs)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return DeclaredFile(copies.file_path(manifest, _ROWS), rows)


def _find_structural_faults(names: Sequence[str], rows: int, source: RawSource, file: Path) -> tuple[Fault, ...]:
    """Faults that need no look at the rows: missing, doubled and undeclared columns, and a file without rows."""
    missing = [name for name in source.columns if name not in names]
    doubled = [name for name in source.columns if names.count(name) > 1]
    extra = [name for name in dict.fromkeys(names) if name not in source.columns]
    fix = "deliver them, or correct `columns` of the source"
    faults = []
    if missing:
        problem = f"{len(missing)} declared columns are missing: {', '.join(missing)}"
        similar = f"; it has undeclared {', '.join(extra)}" if extra else ""
        faults.append(Fault(str(file), problem + similar, fix))
    if doubled:
        faults.append(Fault(str(file), f"has columns twice: {', '.join(doubled)}", "deliver each once"))
    if extra and source.extra_columns == "refuse":
        fix = 'declare them, or let the source say extra_columns="ignore"'
        faults.append(Fault(str(file), f"has {len(extra)} undeclared columns: {', '.join(extra)}", fix))
    if rows == 0 and source.empty_days == "refused":
        fix = 'deliver its rows, or let the source say empty_days="delivered" if there may be none'
        faults.append(Fault(str(file), "has no rows", fix if source.daily else "deliver its rows"))
    return tuple(faults)


def _has_declared_types(parquet: pq.ParquetFile, source: RawSource) -> bool:
    """Whether every reader gets the declared types from the file as it is."""
    names = parquet.schema_arrow.names
    if len({name.lower() for name in names}) < len(names):  # Spark could not tell them apart
        return False
    return not _int96_columns(parquet) and all(
        stored_type(parquet.schema_arrow.field(column.name).type) == column.type for column in declared_schema(source)
    )


def _int96_columns(parquet: pq.ParquetFile) -> set[str]:
    columns = (parquet.schema.column(number) for number in range(len(parquet.schema)))
    return {column.path.split(".")[0] for column in columns if column.physical_type == "INT96"}


def count_nulls(parquet: pq.ParquetFile, name: str) -> int:
    """Count the nulls of a column, from the footer if it says so."""
    metadata, count = parquet.metadata, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = [group.column(number) for number in range(group.num_columns)]
        statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == name]
        if not (len(statistics) == 1 and statistics[0] and statistics[0].has_null_count):
            with _readable():
                batches = parquet.iter_batches(_BATCH_ROWS, columns=[name])
                return sum(batch.column(0).null_count for batch in batches)
        count += statistics[0].null_count
    return count


def _read_batches(parquet: pq.ParquetFile, source: RawSource) -> Iterator[pa.RecordBatch]:
    """Yield the declared columns, in the order of their declaration."""
    instants = _int96_columns(parquet)
    batches = parquet.iter_batches(_BATCH_ROWS, columns=list(source.columns))
    while True:
        with _readable():
            batch = next(batches, None)
        if batch is None:
            return
        columns = {name: batch.column(name) for name in source.columns}
        for name in instants & columns.keys():
            if source.columns[name].type != "timestamp[us]":
                columns[name] = columns[name].cast(pa.timestamp("us", "UTC"))
        yield pa.RecordBatch.from_pydict(columns)


def _copy_as_declared(
    batches: Iterator[pa.RecordBatch], source: RawSource, copy: Path, file: Path, rows: int
) -> tuple[Fault, ...]:
    """Write the rows with the declared types to `copy`; return the faults, with which the copy is worthless."""
    schema, reading = declared_schema(source), _Reading(source)
    with pq.ParquetWriter(copy, schema) as writer:
        for batch in batches:
            converted = [reading.convert(name, batch.column(name), schema.field(name).type) for name in schema.names]
            if not reading.losses:
                writer.write_batch(pa.RecordBatch.from_arrays(converted, schema=schema))
    return reading.faults(file, rows)


@dataclass
class _Reading:
    """What is wrong with the values of a file, counted batch by batch."""

    source: RawSource
    nulls: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[pa.DataType, str]] = field(default_factory=dict)

    def convert(self, name: str, values: pa.Array, declared: pa.DataType) -> pa.Array:
        converted, lost = convert_values(values, declared)
        if len(lost):
            self.losses[name] = self.losses.get(name, 0) + len(lost)
            self.examples.setdefault(name, (lost.type, _format_value(lost[0])))
        if not self.source.columns[name].nullable:
            self.nulls[name] = self.nulls.get(name, 0) + values.null_count
        return converted

    def faults(self, file: Path, rows: int) -> tuple[Fault, ...]:
        return tuple(fault for name in self.source.columns for fault in self._column_faults(name, file, rows))

    def _column_faults(self, name: str, file: Path, rows: int) -> Iterator[Fault]:
        location, declared = f"{file}: {name}", self.source.columns[name].type
        if count := self.losses.get(name, 0):
            stored, example = self.examples[name]
            problem = (
                f"{count} values of {rows} rows cannot be read as {declared} without loss, such as {example}: "
                f"the file has {stored}"
            )
            yield Fault(location, problem, _fix_for(stored, declared))
        if count := self.nulls.get(name, 0):
            fix = "deliver them, or leave out nullable=False in the source"
            yield Fault(location, f"{count} of {rows} rows have no value", fix)


def _fix_for(stored: pa.DataType, declared: str) -> str:
    if pa.types.is_timestamp(stored) and declared.startswith("timestamp"):
        if stored.tz is None and declared != "timestamp[us]":
            return "deliver instants with a time zone, or declare timestamp[us]"
        if stored.tz is not None and declared == "timestamp[us]":
            return "deliver times without a zone, or declare timestamp[us, tz=UTC]"
    return "deliver it again, or correct the type in `columns` of the source"


def _format_value(value: pa.Scalar) -> str:
    text: str | None = None
    with suppress(ValueError, OverflowError):  # not every instant is a datetime
        python = value.as_py()
        text = python if isinstance(python, str) else repr(python) if isinstance(python, bytes) else str(python)
    text = text if text is not None else str(value.cast(pa.int64(), safe=False))
    return text if len(text) <= _MAX_EXAMPLE_CHARS else f"{text[:_MAX_EXAMPLE_CHARS]}…"
