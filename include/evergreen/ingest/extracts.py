"""Read queries and tables into the lake, once per period: what was read is the raw data from then on.

An extract is a published partition: whole or absent, with the hash of its content. A query is read once; reading it
again has to be asked for (`reread_query`). A table is read again when a version of it has changed the period.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy
from sqlalchemy.engine.default import DefaultDialect

from evergreen.errors import Fault, first_line
from evergreen.ingest.declared_files import copy_rows, declared_schema, find_column_faults, row_faults
from evergreen.ingest.part_readers import (
    BATCH_ROWS,
    Conversion,
    PartReader,
    UnreadableError,
    convert_arrow,
    report_rejections,
)
from evergreen.ingest.raw_files import EXTRACT, ExtractError, RawFile, extracts
from evergreen.ingest.tables import LakehouseTable, open_table
from evergreen.ingest.text_values import convert_objects
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.periods import Calendar
from evergreen.settings import redact_url, settings, variable_name
from evergreen.spec.model import FeatureSpec, RawSource
from evergreen.spec.origins import RawQuery, RawTable
from evergreen.storage import file_sha256

_DUCKDB_SCHEME = "duckdb:///"

_FIX_TIME = "let the schedule start later, or clear the run then"
_FIX = "correct the query of the source"

log = logging.getLogger(__name__)


def refresh_extracts(spec: FeatureSpec, files: Iterable[RawFile]) -> dict[RawFile, list[Fault]]:
    """Read those of `files` that come from a query or a table, and were not read or have changed; return their faults.

    Raises:
        OSError: a database does not respond.
    """
    faults: dict[RawFile, list[Fault]] = {}
    tables: dict[str, LakehouseTable] = {}  # each at one version
    for file in dict.fromkeys(files):
        if isinstance(file.origin, RawQuery):
            manifest = extracts(file.source, file.origin).manifest(file.name)
            if manifest is None or manifest.inputs != _query_inputs(spec, file, file.origin):
                faults[file] = _read_query(spec, file, file.origin)
        elif isinstance(file.origin, RawTable):
            faults[file] = _refresh_from_table(spec, file, file.origin, tables)
    return {file: problems for file, problems in faults.items() if problems}


def reread_query(spec: FeatureSpec, file: RawFile) -> list[Fault]:
    """Read a query again, and replace what was read before; return its faults, with which that stays."""
    assert isinstance(file.origin, RawQuery)
    return _read_query(spec, file, file.origin)


def check_connection(origin: RawQuery | RawTable, calendar: Calendar) -> None:
    """Check that the database of a query responds, or that a table is there.

    Raises:
        ExtractError: it does not let anybody ask, or is not there.
        OSError: it does not respond.
    """
    if isinstance(origin, RawTable):
        open_table(origin, calendar)
    elif origin.watermark:
        read_watermark(origin)
    else:
        with run_query(origin.connection, "SELECT 1", {}) as reader:
            next(iter(reader.read_batches()))


def observe_periods(
    origin: RawQuery | RawTable, periods: Iterable[str], now: datetime, calendar: Calendar
) -> dict[str, str]:
    """Return those of `periods` that are complete, with the version of what they have now.

    Raises:
        ExtractError, OSError: it cannot be asked.
    """
    delay = timedelta(minutes=origin.delay_minutes)
    ends = {period: calendar.end(period) for period in periods}
    complete = [period for period, end in ends.items() if end + delay <= now]
    if isinstance(origin, RawQuery) and origin.watermark and complete:
        watermark = read_watermark(origin)
        complete = [period for period in complete if watermark is not None and ends[period] <= watermark]
    if isinstance(origin, RawTable):
        return open_table(origin, calendar).period_versions(complete)
    return dict.fromkeys(complete, compute_fingerprint(origin.model_dump()))


def read_watermark(query: RawQuery) -> datetime | None:
    """Return the instant before which no row will be added; None if the database has none.

    Raises:
        ExtractError: it cannot be asked, or its answer is no instant.
        OSError: the database does not respond.
    """
    assert query.watermark
    with run_query(query.connection, query.watermark, {}) as reader:
        batch: Mapping[str, Any] = next(iter(reader.read_batches()), {})
        values = [value for column in batch.values() for value in column]
    value = values[0] if values else None
    value = value.as_py() if isinstance(value, pa.Scalar) else value
    if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
        fix = "let it select one instant with a time zone, such as max(loaded_at)"
        raise ExtractError(f"the watermark is {value!r}", fix)
    return value


def _bounds(spec: FeatureSpec, file: RawFile) -> dict[str, datetime]:
    return {"start": spec.calendar.start(file.period), "end": spec.calendar.end(file.period)} if file.period else {}


def _query_inputs(spec: FeatureSpec, file: RawFile, query: RawQuery) -> dict[str, str]:
    return {"query": query.sql, **{name: instant.isoformat() for name, instant in _bounds(spec, file).items()}}


def _read_query(spec: FeatureSpec, file: RawFile, query: RawQuery) -> list[Fault]:
    bounds = _bounds(spec, file)
    try:
        if bounds:
            _check_is_complete(query, bounds["end"])
        with run_query(query.connection, query.sql, bounds) as reader:
            return _publish_rows(reader, spec.source(file.source), file, _query_inputs(spec, file, query))
    except ExtractError as error:
        return [Fault(file.location, str(error), error.fix)]


def _refresh_from_table(
    spec: FeatureSpec, file: RawFile, origin: RawTable, tables: dict[str, LakehouseTable]
) -> list[Fault]:
    """Read the rows of a period, unless those that have been read are of the table's version."""
    source = spec.source(file.source)
    try:
        if file.period:
            _check_is_over(origin.delay_minutes, spec.calendar.end(file.period))
        if source.name not in tables:
            tables[source.name] = open_table(origin, spec.calendar)
        table = tables[source.name]
        period = table.period_versions([file.period])[file.period] if file.period else table.whole_version
        manifest = extracts(file.source, origin).manifest(file.name)
        if manifest and manifest.inputs.get("period") == period and manifest.inputs.get("timezone") == spec.timezone:
            return []
        columns = [name for name in source.columns if name in table.columns]
        if faults := list(find_column_faults(table.columns, source, file.location)):
            return faults
        inputs = {"version": table.version, "period": period, "timezone": spec.timezone}
        return _publish_rows(ArrowReader(table.read_rows(columns, file.period)), source, file, inputs)
    except ExtractError as error:
        return [Fault(file.location, str(error), error.fix)]


def _check_is_complete(query: RawQuery, end: datetime) -> None:
    """Check that a period has all of its rows: what is read now is read once.

    Raises:
        ExtractError: it has not.
    """
    _check_is_over(query.delay_minutes, end)
    if query.watermark and ((watermark := read_watermark(query)) is None or watermark < end):
        problem = f"is not complete: it ends at {end.isoformat()}, and the watermark is {watermark}"
        raise ExtractError(problem, _FIX_TIME)


def _check_is_over(delay_minutes: int, end: datetime) -> None:
    complete_at = end + timedelta(minutes=delay_minutes)
    if datetime.now(UTC) < complete_at:
        raise ExtractError(f"is not complete before {complete_at.isoformat()}", _FIX_TIME)


def _publish_rows(reader: PartReader, source: RawSource, file: RawFile, inputs: Mapping[str, Any]) -> list[Fault]:
    """Publish what a reader reads, unless it has faults."""
    assert isinstance(file.origin, RawQuery | RawTable)
    dataset = extracts(file.source, file.origin)
    staged = dataset.stage(file.name, "reading")
    target = staged / f"{EXTRACT}.parquet"
    try:
        with pq.ParquetWriter(target, declared_schema(source)) as writer:
            try:
                rows, faults = copy_rows(reader, source, file.location, writer, is_wanted=True)
            except UnreadableError as error:
                return [Fault(file.location, f"cannot be read: {error}", "correct the rows, then clear the run")]
        faults += row_faults(source, rows or 0, file.location)
        if not faults:
            fingerprint = compute_fingerprint({**inputs, "content": file_sha256(target)})
            dataset.publish(file.name, fingerprint, {EXTRACT: target}, dict(inputs))
            log.info("%s: read %s rows", file.location, rows)
        return faults
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def run_query(connection: str, sql: str, parameters: Mapping[str, datetime]) -> Iterator[PartReader]:
    """Run a query, and yield its rows. Values are bound, never written into its text."""
    url = settings().connections.get(connection)
    if url is None:
        variable = variable_name("connections", connection)
        raise ExtractError(f"{variable} is not set", "set it to the URL of the database")
    text = url.get_secret_value()
    try:
        if text.startswith(_DUCKDB_SCHEME):
            with _run_on_duckdb(text.removeprefix(_DUCKDB_SCHEME), sql, parameters) as reader:
                yield reader
        else:
            with _run_on_sqlalchemy(text, sql, parameters) as reader:
                yield reader
    except (duckdb.IOException, duckdb.ConnectionException) as error:
        raise OSError(f"{redact_url(text)} does not respond: {first_line(error)}") from error
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            raise OSError(f"{redact_url(text)} does not respond: {first_line(error.orig or error)}") from None
        raise ExtractError(f"cannot be queried: {first_line(error.orig or error)}", _FIX) from None
    except (duckdb.Error, sqlalchemy.exc.SQLAlchemyError) as error:
        raise ExtractError(f"cannot be queried: {first_line(error)}", _FIX) from None


@contextmanager
def _run_on_duckdb(file: str, sql: str, parameters: Mapping[str, datetime]) -> Iterator[PartReader]:
    compiled = sqlalchemy.text(sql).compile(dialect=DefaultDialect(paramstyle="numeric_dollar"))
    values = [parameters[name] for name in compiled.positiontup or ()]
    with closing(duckdb.connect(f"/{file.lstrip('/')}", read_only=True)) as database:
        database.execute("SET TimeZone = 'UTC'")
        yield ArrowReader(database.sql(str(compiled), params=values).to_arrow_reader(BATCH_ROWS))


@contextmanager
def _run_on_sqlalchemy(url: str, sql: str, parameters: Mapping[str, datetime]) -> Iterator[PartReader]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as database:
        if engine.dialect.name == "postgresql":  # for columns without a zone, which are compared with instants
            database.execute(sqlalchemy.text("SET TIME ZONE 'UTC'"))
        # Rows stay on the server until they are read.
        result = database.execution_options(stream_results=True, max_row_buffer=BATCH_ROWS).execute(
            sqlalchemy.text(sql), dict(parameters)
        )
        yield RowReader(result)


class ArrowReader:
    """Rows that come as Arrow batches."""

    row_count: int | None = None

    def __init__(self, batches: pa.RecordBatchReader):
        self._batches = batches
        self.names: Sequence[str] | None = batches.schema.names
        self.malformed: dict[str, list[int]] = {}

    def read_batches(self) -> Iterator[Mapping[str, pa.Array]]:
        for batch in self._batches:
            yield {name: batch.column(name) for name in batch.schema.names}

    def convert(self, values: pa.Array, declared: pa.DataType) -> Conversion:
        return convert_arrow(values, declared)


class RowReader:
    """Rows that come as Python objects."""

    row_count: int | None = None

    def __init__(self, result: sqlalchemy.CursorResult[Any]):
        self._result = result
        self.names: Sequence[str] | None = list(result.keys())
        self.malformed: dict[str, list[int]] = {}

    def read_batches(self) -> Iterator[Mapping[str, Sequence[Any]]]:
        for rows in self._result.partitions(BATCH_ROWS):
            yield dict(zip(self.names or (), map(list, zip(*rows, strict=True)), strict=True))

    def convert(self, values: Sequence[Any], declared: pa.DataType) -> Conversion:
        converted, rejections = convert_objects(values, declared, are_text=False)
        return report_rejections(converted, rejections, type(rejections[0][1]).__name__ if rejections else "")
