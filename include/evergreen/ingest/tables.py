"""Tables of a lakehouse: which version of a period they hold, and its rows. Read by the format's own library.

The version of a period is the files that may have rows of it, with what is deleted in them. So a commit to other
periods changes nothing.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.types as pat

from evergreen.errors import first_line
from evergreen.ingest.databases import quote_name
from evergreen.ingest.raw_files import ExtractError, raw_folder
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.periods import Calendar
from evergreen.settings import settings, variable_name
from evergreen.spec.origins import RawTable

_NOON = time(12)
_LIBRARIES = {"delta": "deltalake", "iceberg": "pyiceberg"}


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
    calendar: Calendar
    _snapshot: _Snapshot = field(compare=False)

    @property
    def version(self) -> str:
        return self._snapshot.version

    @property
    def columns(self) -> list[str]:
        return list(self._snapshot.schema.names)

    def period_versions(self, periods: Iterable[str]) -> dict[str, str]:
        """Return what identifies the rows of each period."""
        names = sorted(periods)
        files: dict[str, list[str]] = {period: [] for period in names}
        for file in self._files:
            first, end = 0, len(names)
            if file.low is not None and file.high is not None:  # names sort as time does
                first = bisect_left(names, self.calendar.period_at(self._instant(file.low)))
                end = bisect_right(names, self.calendar.period_at(self._instant(file.high)))
            for period in names[first:end]:
                files[period].append(file.identity)
        return {period: compute_fingerprint(sorted(identities)) for period, identities in files.items()}

    @property
    def whole_version(self) -> str:
        """What identifies all rows."""
        return compute_fingerprint(sorted(file.identity for file in self._files))

    def read_rows(self, columns: Sequence[str], period: str | None) -> pa.RecordBatchReader:
        """Return the rows of a period, or all."""
        low, high = self._bounds(period) if period else (None, None)
        return self._snapshot.read_rows(columns, self.origin.time_column, low, high)

    @cached_property
    def _files(self) -> list[_TableFile]:
        return list(self._snapshot.list_files(self.origin.time_column))

    def _bounds(self, period: str) -> tuple[Any, Any]:
        instants = self.calendar.start(period), self.calendar.end(period)
        if pat.is_timestamp(self._time_type) and self._time_type.tz:
            return instants
        if self._has_dates:  # what a clock shows at its start, not at the instant, which clocks may skip
            clock = [datetime.fromisoformat(name) for name in (period, self.calendar.shift(period, 1))]
        else:
            clock = [instant.replace(tzinfo=None) for instant in instants]
        low, high = (moment.date() if pat.is_date(self._time_type) else moment for moment in clock)
        return low, high

    def _instant(self, value: date | datetime) -> datetime:
        if not isinstance(value, datetime):
            value = datetime.combine(value, _NOON)
        zone = ZoneInfo(self.calendar.timezone) if self._has_dates else UTC
        return value if value.tzinfo else value.replace(tzinfo=zone)

    @property
    def _has_dates(self) -> bool:
        return self.calendar.partition_key == "day"

    @cached_property
    def _time_type(self) -> pa.DataType:
        name = self.origin.time_column
        if name not in self.columns:
            raise ExtractError(f"has no column {name}; it has {', '.join(self.columns)}", "correct table.time_column")
        kind = self._snapshot.schema.field(name).type
        if not (pat.is_date(kind) or pat.is_timestamp(kind)):
            raise ExtractError(f"{name} is {kind}, and no date or instant", "correct table.time_column")
        if pat.is_date(kind) and not self._has_dates:
            raise ExtractError(f"{name} is a date, and a period is {self.calendar.period}", "name a column of instants")
        return kind


def open_table(origin: RawTable, calendar: Calendar) -> LakehouseTable:
    """Open a table at its newest version.

    Raises:
        ExtractError: it is not there, or its library is not installed.
        OSError: its store does not respond.
    """
    library = _LIBRARIES[origin.format]
    try:
        import_module(library)
    except ModuleNotFoundError:
        raise ExtractError(f"{library} is not installed", f"pip install 'evergreen[{origin.format}]'") from None
    snapshot = _DeltaSnapshot(origin) if origin.format == "delta" else _IcebergSnapshot(origin)
    table = LakehouseTable(origin, calendar, snapshot)
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
            raise ExtractError(f"there is no table of Delta in {uri}", "correct table.location") from None
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

        query = f"SELECT {', '.join(map(quote_name, columns))} FROM source"  # noqa: S608 - names, quoted
        if column:
            kind = self.schema.field(column).type
            low, high = (f"arrow_cast('{value.isoformat()}', '{_datafusion_type(kind)}')" for value in (low, high))
            query += f" WHERE {quote_name(column)} >= {low} AND {quote_name(column)} < {high}"
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
            raise ExtractError(f"{origin.catalog} is no catalog: {first_line(error)}", f"set {variable}") from None
        try:
            self._table = catalog.load_table(origin.location)
        except (NoSuchTableError, NoSuchNamespaceError):
            raise ExtractError(f"{origin.catalog} has no table {origin.location}", "correct table.location") from None
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


def _datafusion_type(kind: pa.DataType) -> str:
    if pat.is_date(kind):
        return "Date32"
    return 'Timestamp(Microsecond, Some("UTC"))' if kind.tz else "Timestamp(Microsecond, None)"
