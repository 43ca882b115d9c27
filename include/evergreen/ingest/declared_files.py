"""Raw data as declared: with exactly the columns and types that its source declares.

A Parquet file that has these types is used where it lies. Anything else is copied into the lake once, as one Parquet
file with the declared types, under the hash of its content and of the declaration; Spark and the checks read the copy.
Where a conversion would lose something, the data is refused, with file, row, column, count and an example. It is read
in batches: memory does not grow with its rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault
from evergreen.ingest.conversions import arrow_type, stored_type
from evergreen.ingest.part_readers import (
    BATCH_ROWS,
    Conversion,
    JsonReader,
    ParquetReader,
    PartReader,
    UnreadableError,
    file_format,
    format_name,
    open_parquet,
    open_part,
    readable,
)
from evergreen.ingest.raw_files import RawFile, RawPart, display_path, find_parts, hash_raw_files, part_folder
from evergreen.lake.datasets import Dataset, open_dataset
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.spec.model import RawSource
from evergreen.spec.origins import ONE_PARQUET_FILE, READING_FIELDS, RawFiles
from evergreen.storage import is_local

_ROWS = "rows"  # name of the copy in its partition
_MAX_FAULTY_PARTS = 10
_DELIVER = "deliver it again, or correct the type in `columns` of the source"


@dataclass(frozen=True)
class DeclaredFile:
    """Where the rows of a delivery are, with the declared types; nowhere if it has `faults`."""

    path: Path
    rows: int = 0
    faults: tuple[Fault, ...] = ()
    has_changed: bool = False
    """Whether it has changed while it was read, so that its faults say nothing about what is there now."""


def declared_schema(source: RawSource) -> pa.Schema:
    """Return the columns of a source with their Arrow types, in the order of their declaration."""
    return pa.schema([(name, arrow_type(column.type)) for name, column in source.columns.items()])


def declaration_of(source: RawSource) -> dict[str, Any]:
    """Return what decides how a file of the source is read, for fingerprints; not its descriptions."""
    columns = {name: [column.type, column.nullable] for name, column in source.columns.items()}
    return {
        "columns": columns,
        "extra_columns": source.extra_columns,
        "empty_periods": source.empty_periods,
        "format": source.files.model_dump(include={*READING_FIELDS, "part_count"}, mode="json"),
    }


def declared_copies(feature_model: str) -> Dataset:
    """The copies of raw files whose types were not the declared ones."""
    return open_dataset(f"declared/{feature_model}")


def read_as_declared(source: RawSource, file: RawFile, sha256: str, copies: Dataset) -> DeclaredFile:
    """Return where the rows of `file`, whose content has this hash, are as declared; a copy is made if need be."""
    try:
        declared = _read_delivery(source, file, sha256, copies)
    except FileNotFoundError as error:
        return _changed_file(file, f"{display_path(error.filename or file.location)} is gone")
    # What was read belongs to the hash only if nothing was written meanwhile.
    if hash_raw_files([file]).get(file) != sha256:
        return _changed_file(file, "it was written again")
    return declared


def _changed_file(file: RawFile, problem: str) -> DeclaredFile:
    fault = Fault(file.location, f"changed while it was read: {problem}", "clear the run when it is complete")
    return DeclaredFile(Path(), faults=(fault,), has_changed=True)


def _read_delivery(source: RawSource, file: RawFile, sha256: str, copies: Dataset) -> DeclaredFile:
    files, parts = file_format(file), find_parts(file)
    if parts is None:
        raise FileNotFoundError(file.location)
    if files.part_count and len(parts) > files.part_count:
        problem = f"has {len(parts)} parts instead of {files.part_count}"
        return DeclaredFile(Path(), faults=(Fault(file.location, problem, "remove those that are not its"),))
    if files.format == "parquet" and len(parts) == 1 and is_local(part_folder(file)):
        try:
            with open_part(source, file, parts[0]) as reader:
                assert isinstance(reader, ParquetReader)
                if _can_be_used_as_is(reader, source):
                    return _use_as_is(reader, source, Path(parts[0].path))
        except UnreadableError as error:
            return DeclaredFile(Path(parts[0].path), faults=(unreadable_fault(parts[0].path, error, files),))
    inputs = {
        "raw": sha256,
        "declaration": declaration_of(source),
        "code": code_of([__name__], ["pyarrow"]),
    }
    fingerprint = compute_fingerprint(inputs)
    if manifest := copies.find(file.name, fingerprint):
        return DeclaredFile(copies.file_path(manifest, _ROWS), manifest.files[_ROWS].rows or 0)
    staged = copies.stage(file.name, fingerprint)
    try:
        copied = _copy_as_declared(source, file, parts, staged / f"{_ROWS}.parquet")
        if copied.faults or hash_raw_files([file]).get(file) != sha256:
            return copied
        manifest = copies.publish(file.name, fingerprint, {_ROWS: staged / f"{_ROWS}.parquet"}, inputs)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return replace(copied, path=copies.file_path(manifest, _ROWS))


def unreadable_fault(path: object, error: Exception, files: RawFiles = ONE_PARQUET_FILE) -> Fault:
    """Return the fault of a file that has another format, is damaged, or is not there."""
    if isinstance(error, FileNotFoundError):
        return Fault(display_path(path), "there is no such file", "deliver it, or correct its path")
    problem = f"is not a readable {format_name(files)} file: {str(error).strip() or type(error).__name__}"
    return Fault(display_path(path), problem.splitlines()[0], "deliver it again")


def find_damage(file: Path) -> Fault | None:
    """Return the fault of a Parquet file of which a part cannot be read; None if all of it can. Reads all of it."""
    try:
        with readable(), open_parquet(file) as parquet:
            for _ in parquet.iter_batches(BATCH_ROWS):
                pass
    except UnreadableError as error:
        return unreadable_fault(file, error)
    return None


def _can_be_used_as_is(reader: ParquetReader, source: RawSource) -> bool:
    """Whether every reader gets the declared columns and types from the file as it is."""
    schema = reader.parquet.schema_arrow
    # Spark could not tell names apart that differ in case only.
    if len({name.lower() for name in schema.names}) < len(schema.names) or not source.columns.keys() <= set(
        schema.names
    ):
        return False
    return not reader.int96_columns and all(
        stored_type(schema.field(column.name).type) == column.type for column in declared_schema(source)
    )


def _use_as_is(reader: ParquetReader, source: RawSource, path: Path) -> DeclaredFile:
    rows = reader.parquet.metadata.num_rows
    reading = _Reading(source, display_path(path))
    faults = [*find_column_faults(reader.names or (), source, reading.location), *row_faults(source, rows, path)]
    if not faults:
        for name in [name for name, column in source.columns.items() if not column.nullable]:
            reading.nulls[name] = count_nulls(reader.parquet, name)
        faults = [*reading.faults(rows)]
    return DeclaredFile(path, rows, tuple(faults))


def count_nulls(parquet: pq.ParquetFile, name: str) -> int:
    """Count the nulls of a column, from the footer if it says so."""
    metadata, count = parquet.metadata, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = [group.column(number) for number in range(group.num_columns)]
        statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == name]
        if not (len(statistics) == 1 and statistics[0] and statistics[0].has_null_count):
            with readable():
                batches = parquet.iter_batches(BATCH_ROWS, columns=[name])
                return sum(batch.column(0).null_count for batch in batches)
        count += statistics[0].null_count
    return count


def find_column_faults(names: Sequence[str], source: RawSource, location: str) -> Iterator[Fault]:
    """Yield the faults that need no look at the rows: missing, doubled and undeclared columns."""
    missing = [name for name in source.columns if name not in names]
    doubled = [name for name in source.columns if names.count(name) > 1]
    extra = [name for name in dict.fromkeys(names) if name not in source.columns]
    fix = "deliver them, or correct `columns` of the source"
    if missing:
        problem = f"{len(missing)} declared columns are missing: {', '.join(missing)}"
        undeclared = f"; it has undeclared {_join(extra)}" if extra else ""
        similar = [(name, *get_close_matches(name, extra, n=1)) for name in missing]
        meant = [f"{match[0]!r} for {name!r}" for name, *match in similar if match]
        yield Fault(location, problem + undeclared, f"did you mean {', '.join(meant)}? If not, {fix}" if meant else fix)
    if doubled:
        yield Fault(location, f"has columns twice: {', '.join(doubled)}", "deliver each once")
    if extra and source.extra_columns == "refuse":
        fix = 'declare them, or let the source say extra_columns="ignore"'
        yield Fault(location, f"has {len(extra)} undeclared columns: {_join(extra)}", fix)


def _join(names: Sequence[str]) -> str:
    return display_path(", ".join(names))


def row_faults(source: RawSource, rows: int, path: object) -> Iterator[Fault]:
    if rows == 0 and source.empty_periods == "refused":
        fix = 'deliver its rows, or let the source say empty_periods="delivered" if there may be none'
        yield Fault(display_path(path), "has no rows", "deliver its rows" if source.is_register else fix)


def _copy_as_declared(source: RawSource, file: RawFile, parts: Sequence[RawPart], copy: Path) -> DeclaredFile:
    """Write the rows of all parts with the declared types to `copy`; if there are faults, the copy is worthless."""
    rows, has_rows, faulty_parts, faults, keys = 0, False, 0, list[Fault](), set[str]()
    with pq.ParquetWriter(copy, declared_schema(source)) as writer:
        for part in parts:
            # Of a single file, the message has the path that was declared.
            folder = part_folder(file)
            location = display_path(part.path if is_local(folder) else folder.fs.unstrip_protocol(part.path))
            try:
                with open_part(source, file, part) as reader:
                    part_rows, part_faults = copy_rows(reader, source, location, writer, is_wanted=not faults)
                    keys |= reader.keys if isinstance(reader, JsonReader) else set()
            except UnreadableError as error:
                part_rows, part_faults = None, [unreadable_fault(location, error, file_format(file))]
            rows, has_rows = rows + (part_rows or 0), has_rows or part_rows != 0
            if part_faults:
                faulty_parts += 1
                faults += part_faults if faulty_parts <= _MAX_FAULTY_PARTS else []
    if faulty_parts > _MAX_FAULTY_PARTS:
        problem = f"{faulty_parts} of {len(parts)} parts have faults: those of the first {_MAX_FAULTY_PARTS} are named"
        faults.append(Fault(file.location, problem))
    if rows and not faults and file_format(file).format == "jsonl":
        # Only all rows together show which keys there are: writers leave out those without a value.
        faults += find_column_faults([*keys], source, file.location)
    if not has_rows:
        faults += row_faults(source, rows, file.location)
    return DeclaredFile(copy, rows, tuple(faults))


def copy_rows(
    reader: PartReader, source: RawSource, location: str, writer: pq.ParquetWriter, *, is_wanted: bool
) -> tuple[int | None, list[Fault]]:
    """Write rows as declared, unless they have faults, or others had; return their number, if known, and their faults.

    Raises:
        UnreadableError: they cannot be read.
    """
    if reader.names is not None and (faults := [*find_column_faults(reader.names, source, location)]):
        return reader.row_count, faults
    rows, schema, reading = 0, writer.schema, _Reading(source, location)
    with readable():
        for columns in reader.read_batches():
            converted = [reading.convert(reader, name, columns[name], schema.field(name).type) for name in schema.names]
            rows += len(converted[0])
            reading.rows = rows
            if is_wanted and not reading.losses and not reader.malformed:
                writer.write_batch(pa.RecordBatch.from_arrays(converted, schema=schema))
    malformed = [
        Fault(location, f"{count} rows cannot be read, such as row {row}: {problem}", "deliver it again")
        for problem, (count, row) in reader.malformed.items()
    ]
    return rows + sum(count for count, _ in reader.malformed.values()), [*malformed, *reading.faults(rows)]


@dataclass
class _Reading:
    """What is wrong with the values of one part, counted batch by batch."""

    source: RawSource
    location: str
    rows: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[Conversion, int]] = field(default_factory=dict)

    def convert(self, reader: PartReader, name: str, values: Any, declared: pa.DataType) -> pa.Array:
        conversion = reader.convert(values, declared)
        if conversion.lost:
            self.losses[name] = self.losses.get(name, 0) + conversion.lost
            self.examples.setdefault(name, (conversion, self.rows))
        if not self.source.columns[name].nullable:
            nulls = values.null_count if isinstance(values, pa.Array) else values.count(None)
            self.nulls[name] = self.nulls.get(name, 0) + nulls
        return conversion.values

    def faults(self, rows: int) -> Iterator[Fault]:
        for name in self.source.columns:
            yield from self._column_faults(name, rows)

    def _column_faults(self, name: str, rows: int) -> Iterator[Fault]:
        location, declared = f"{self.location}: {name}", self.source.columns[name].type
        if count := self.losses.get(name, 0):
            conversion, rows_before = self.examples[name]
            row = f" in row {rows_before + conversion.row + 1}" if conversion.row is not None else ""
            problem = (
                f"{count} values of {rows} rows cannot be read as {declared} without loss, such as "
                f"{conversion.example}{row}: the file has {conversion.stored}"
            )
            yield Fault(location, problem, _fix_for(conversion.stored, declared))
        if count := self.nulls.get(name, 0):
            fix = "deliver them, or leave out nullable=False in the source"
            yield Fault(location, f"{count} of {rows} rows have no value", fix)


def _fix_for(stored: str, declared: str) -> str:
    if stored.startswith("timestamp[") and declared.startswith("timestamp"):
        if "tz=" not in stored and declared != "timestamp[us]":
            return "deliver instants with a time zone, or declare timestamp[us]"
        if "tz=" in stored and declared == "timestamp[us]":
            return "deliver times without a zone, or declare timestamp[us, tz=UTC]"
    return _DELIVER
