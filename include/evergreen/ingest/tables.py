"""Tables of a lakehouse: which version of a period they hold, and its rows. Read by the format's own library.

The version of a period is the files that may have rows of it, with what is deleted in them. So a commit to other
periods changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.types as pat

from evergreen.errors import first_line
from evergreen.ingest.raw_files import raw_folder
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.settings import settings, variable_name
from evergreen.spec.origins import RawTable
from evergreen.window import midnight

_LIBRARIES = {"delta": "deltalake", "iceberg": "pyiceberg"}


class TableError(ValueError):
    """A table is not there, or not what the spec says; tells the fix."""

    def __init__(self, problem: str, fix: str):
        super().__init__(problem)
        self.fix = fix


class _TableFile(NamedTuple):
    """A file of a table, with what is deleted in it, and the range of the times in it, if that is known."""

    identity: str
    low: date | datetime | None
    high: date | datetime | None


class _Snapshot(Protocol):
    """A table at one version."""

    version: str
    schema: pa.Schema

    def list_files(self, column: str | None) -> Iterable[_TableFile]:
        """Yield the files of this version, with the range of a column."""

    def read_rows(self, columns: Sequence[str], column: str | None, low: Any, high: Any) -> pa.RecordBatchReader:
        """Return the rows with low ≤ column < high; without a column, all."""


@dataclass(frozen=True)
class LakehouseTable:
    """A table as it is now."""

    origin: RawTable
    timezone: str
    _snapshot: _Snapshot = field(compare=False)

    @property
    def version(self) -> str:
        return self._snapshot.version

    @property
    def columns(self) -> list[str]:
        return list(self._snapshot.schema.names)

    def period_versions(self, days: Iterable[date]) -> dict[date, str]:
        """Return what identifies the rows of each day."""
        files: dict[date, list[str]] = {day: [] for day in days}
        for file in self._files:
            for day in self._days_of(file, files):
                files[day].append(file.identity)
        return {day: compute_fingerprint(sorted(identities)) for day, identities in files.items()}

    @property
    def whole_version(self) -> str:
        """What identifies all rows."""
        return compute_fingerprint(sorted(file.identity for file in self._files))

    def read_rows(self, columns: Sequence[str], day: date | None) -> pa.RecordBatchReader:
        """Return the rows of a day, or all."""
        low, high = self._bounds(day) if day else (None, None)
        return self._snapshot.read_rows(columns, self.origin.time_column, low, high)

    @cached_property
    def _files(self) -> list[_TableFile]:
        return list(self._snapshot.list_files(self.origin.time_column))

    def _bounds(self, day: date) -> tuple[Any, Any]:
        next_day = day + timedelta(1)
        kind = self._time_type
        if pat.is_date(kind):
            return day, next_day
        if kind.tz is None:
            return datetime.combine(day, time()), datetime.combine(next_day, time())
        return midnight(day, self.timezone).astimezone(UTC), midnight(next_day, self.timezone).astimezone(UTC)

    @cached_property
    def _time_type(self) -> pa.DataType:
        name = self.origin.time_column
        if name not in self.columns:
            raise TableError(f"has no column {name}; it has {', '.join(self.columns)}", "correct table.time_column")
        kind = self._snapshot.schema.field(name).type
        if not (pat.is_date(kind) or pat.is_timestamp(kind)):
            raise TableError(f"{name} is {kind}, and no date or instant", "correct table.time_column")
        return kind

    def _days_of(self, file: _TableFile, days: dict[date, list[str]]) -> Iterable[date]:
        if file.low is None or file.high is None:
            return days
        first, last = self._date_of(file.low), self._date_of(file.high)
        if (last - first).days > len(days):
            return [day for day in days if first <= day <= last]
        return [day for n in range((last - first).days + 1) if (day := first + timedelta(n)) in days]

    def _date_of(self, value: date | datetime) -> date:
        if not isinstance(value, datetime):
            return value
        return (value if self._time_type.tz is None else value.astimezone(ZoneInfo(self.timezone))).date()


def open_table(origin: RawTable, timezone: str) -> LakehouseTable:
    """Open a table at its newest version.

    Raises:
        TableError: it is not there, or its library is not installed.
        OSError: its store does not respond.
    """
    library = _LIBRARIES[origin.format]
    try:
        import_module(library)
    except ModuleNotFoundError:
        raise TableError(f"{library} is not installed", f"pip install 'evergreen[{origin.format}]'") from None
    snapshot = _DeltaSnapshot(origin) if origin.format == "delta" else _IcebergSnapshot(origin)
    table = LakehouseTable(origin, timezone, snapshot)
    if origin.time_column:
        _ = table._time_type  # noqa: SLF001 - refused here
    return table


class _DeltaSnapshot:
    """Read by delta-rs, whose queries honour deletion vectors; its datasets of Arrow do not."""

    def __init__(self, origin: RawTable):
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        is_relative = "://" not in origin.location and not origin.location.startswith("/")
        uri = f"{str(raw_folder()).rstrip('/')}/{origin.location}" if is_relative else origin.location
        try:
            self._table = DeltaTable(uri)
        except TableNotFoundError:
            raise TableError(f"there is no table of Delta in {uri}", "correct table.location") from None
        except DeltaError as error:
            raise OSError(f"{uri} cannot be read: {first_line(error)}") from error
        self.version = str(self._table.version())
        self.schema = pa.schema(self._table.schema().to_arrow())

    def list_files(self, column: str | None) -> Iterable[_TableFile]:
        deleted = {
            row["filepath"].rpartition("/")[2]: hashlib.sha256(bytes(row["selection_vector"])).hexdigest()
            for row in pa.table(self._table.deletion_vectors()).to_pylist()
        }
        for file in pa.table(self._table.get_add_actions(flatten=True)).to_pylist():
            value = file.get(f"partition.{column}")
            low, high = (value, value) if value is not None else (file.get(f"min.{column}"), file.get(f"max.{column}"))
            identity = [file["path"], file["size_bytes"], deleted.get(file["path"].rpartition("/")[2])]
            yield _TableFile(compute_fingerprint(identity), low, high)

    def read_rows(self, columns: Sequence[str], column: str | None, low: Any, high: Any) -> pa.RecordBatchReader:
        from deltalake import QueryBuilder

        query = f"SELECT {', '.join(map(_quote, columns))} FROM source"  # noqa: S608 - names, quoted
        if column:
            kind = self.schema.field(column).type
            low, high = (f"arrow_cast('{value.isoformat()}', '{_datafusion_type(kind)}')" for value in (low, high))
            query += f" WHERE {_quote(column)} >= {low} AND {_quote(column)} < {high}"
        return pa.RecordBatchReader.from_stream(QueryBuilder().register("source", self._table).execute(query))


class _IcebergSnapshot:
    def __init__(self, origin: RawTable):
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

        assert origin.catalog
        url = settings().connections.get(origin.catalog)
        try:
            catalog = load_catalog(origin.catalog, **({"uri": url.get_secret_value()} if url else {}))
        except ValueError as error:
            variable = variable_name("connections", origin.catalog)
            raise TableError(f"{origin.catalog} is no catalog: {first_line(error)}", f"set {variable}") from None
        try:
            self._table = catalog.load_table(origin.location)
        except (NoSuchTableError, NoSuchNamespaceError):
            raise TableError(f"{origin.catalog} has no table {origin.location}", "correct table.location") from None
        snapshot = self._table.current_snapshot()
        self.version = str(snapshot.snapshot_id if snapshot else "empty")
        self.schema = self._table.schema().as_arrow()

    def list_files(self, column: str | None) -> Iterable[_TableFile]:
        from pyiceberg.conversions import from_bytes

        time_field: Any = self._table.schema().find_field(column) if column else None
        for task in self._table.scan().plan_files():
            low, high = (
                self._time(column, from_bytes(time_field.field_type, bounds[time_field.field_id]))
                if column and time_field.field_id in bounds
                else None
                for bounds in (task.file.lower_bounds or {}, task.file.upper_bounds or {})
            )
            deletes = sorted(file.file_path for file in task.delete_files)
            yield _TableFile(compute_fingerprint([task.file.file_path, deletes]), low, high)

    def read_rows(self, columns: Sequence[str], column: str | None, low: Any, high: Any) -> pa.RecordBatchReader:
        expressions: Any = import_module("pyiceberg.expressions")  # whose classes are made in ways that mypy cannot see
        condition = expressions.AlwaysTrue()
        if column:
            condition = expressions.And(
                expressions.GreaterThanOrEqual(column, low.isoformat()),
                expressions.LessThan(column, high.isoformat()),
            )
        return self._table.scan(row_filter=condition, selected_fields=tuple(columns)).to_arrow_batch_reader()

    def _time(self, column: str, count: Any) -> date | datetime:
        """Return the time that a bound counts: days, or parts of a second."""
        kind = self.schema.field(column).type
        value: date | datetime = pa.scalar(count, pa.int32() if pat.is_date(kind) else pa.int64()).cast(kind).as_py()
        return value


def _quote(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _datafusion_type(kind: pa.DataType) -> str:
    if pat.is_date(kind):
        return "Date32"
    return 'Timestamp(Microsecond, Some("UTC"))' if kind.tz else "Timestamp(Microsecond, None)"
