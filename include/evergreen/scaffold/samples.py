# ruff: noqa: S608 - names are quoted, values are bound
"""The rows of a sample, in a DuckDB database that writes to disk what does not fit memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import available_timezones

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault, first_line
from evergreen.ingest.conversions import stored_type
from evergreen.ingest.databases import open_database, parquet_rows, quote_name, quote_text
from evergreen.ingest.drafts import common_type
from evergreen.ingest.extracts import run_query
from evergreen.ingest.raw_files import ExtractError
from evergreen.ingest.tables import open_table
from evergreen.periods import Calendar, Duration
from evergreen.scaffold.files import ScaffoldError
from evergreen.scaffold.guesses import ColumnProfile, LabelRelation, SampleProfile
from evergreen.spec.origins import RawTable

MAX_VALUES = 20
"""Of a column with more values, none is listed."""
_MAX_QUERY_ROWS = 1_000_000
_MIN_RELATED_ROWS = 30
# Of two classes, the one with fewer rows. The chance that one column of numbers puts n rows above nearly all others is
# about 0.02 to the power of n, and a sample has many columns.
_MIN_CLASS_ROWS = 5
_PANEL_UNIQUE_ROWS, _PANEL_COVERAGE = 0.95, 0.5  # keys may come and go
_TEXT_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_ORDERED_TYPES = ("int", "float", "decimal", "date", "timestamp")
_NUMBER_TYPES = ("int", "float", "decimal")
# Whether rows belong together is not asked about nested values and bytes.
_PLAIN_TYPES = (*_ORDERED_TYPES, "bool", "string")

SampleFormat = Literal["parquet", "csv", "jsonl", "query", "delta"]
FILE_FORMATS: tuple[SampleFormat, ...] = ("parquet", "csv", "jsonl")


@dataclass(frozen=True)
class SampleOrigin:
    """Where a sample is: a file, a table of Delta, or a query on a database that the settings name."""

    format: SampleFormat
    location: str
    """Path or URI; of a query, the name of its connection."""
    sql: str | None = None

    @property
    def name(self) -> str:
        """What the sample is called, of letters, digits and `_`: the stem of its file."""
        stem = re.split(r"[./]", self.location.rstrip("/").rpartition("/")[2])[0]
        return re.sub(r"[^a-z0-9_]+", "_", stem.lower()).strip("_0123456789") or "history"


def locate_sample(place: str, sql: str | None = None) -> SampleOrigin:
    """Return what a place is, by its name, or by what is there.

    Raises:
        ScaffoldError: it is nothing that can be read.
    """
    if sql is not None:
        return SampleOrigin("query", place, sql)
    path = Path(place)
    if (path / "_delta_log").is_dir():
        return SampleOrigin("delta", str(path.resolve()))
    if "://" in place:
        return SampleOrigin("delta", place)
    if not path.is_file():
        fix = "name a Parquet, CSV or JSON lines file, a folder or URI of a Delta table, or a connection with --query"
        raise ScaffoldError("sample", [Fault(place, "there is no such file or table", fix)])
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    format_ = _TEXT_SUFFIXES.get(suffixes[-1] if suffixes else "", "parquet")
    return SampleOrigin(format_, str(path.resolve()))  # type: ignore[arg-type]


class Sample:
    """A sample as one table of a database."""

    def __init__(self, database: duckdb.DuckDBPyConnection, origin: SampleOrigin, types: dict[str, str | None]):
        self._database, self.origin, self._types = database, origin, types

    def timezone(self, time: str) -> str | None:
        """Return the zone that a Parquet file names as that of a column's clock; None if it names none."""
        if self.origin.format != "parquet":
            return None
        kind = pq.read_schema(self.origin.location).field(time).type
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return zone if zone in available_timezones() else None  # fixed offsets, such as +02:00, are no zone

    def profile(self) -> SampleProfile:
        """Return what each column looks like."""
        columns = []
        for name, declared in self._types.items():
            column, is_plain = quote_name(name), (declared or "").startswith(_PLAIN_TYPES)
            measures = [f"count({column})", f"count(DISTINCT {column})" if is_plain else "NULL"]
            measures += [f"{end}({column})" if is_plain else "NULL" for end in ("min", "max")]
            [(count, distinct, low, high)] = self._rows(f"SELECT {', '.join(measures)} FROM sample")
            values: tuple[Any, ...] = ()
            if is_plain and distinct <= MAX_VALUES:
                by_count = (
                    f"SELECT {column} FROM sample WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1"
                )
                values = tuple(value for (value,) in self._rows(by_count))
            columns.append(ColumnProfile(name, declared, self.row_count - count, distinct or 0, low, high, values))
        return SampleProfile(self.row_count, tuple(columns))

    @property
    def row_count(self) -> int:
        [(count,)] = self._rows("SELECT count(*) FROM sample")
        return int(count)

    def weekdays(self, time: str) -> int:
        """Return on how many days of the week there are rows."""
        [(count,)] = self._rows(f"SELECT count(DISTINCT isodow({quote_name(time)})) FROM sample")
        return int(count)

    def periods(self, time: str, calendar: Calendar) -> list[str]:
        """Return the periods with rows, in order."""
        rows = self._rows(f"SELECT DISTINCT {self._period(time, calendar)} FROM sample")
        values = [value for (value,) in rows if value is not None]
        if calendar.partition_key == "day":
            return sorted(map(str, values))
        seconds = Duration.parse(calendar.period).length.total_seconds()
        return sorted(calendar.period_at(datetime.fromtimestamp(value * seconds, UTC)) for value in values)

    def coverage(self, column: str, time: str, calendar: Calendar) -> float:
        """Return in how many of all periods a value of a column has rows, on average, 0 to 1."""
        period, value = self._period(time, calendar), quote_name(column)
        rows = f"SELECT {period} AS period, {value} AS value FROM sample"
        rows = f"SELECT * FROM ({rows}) WHERE period IS NOT NULL AND value IS NOT NULL"
        query = f"SELECT count(DISTINCT (period, value)), count(DISTINCT value) FROM ({rows})"
        [(pairs, values)] = self._rows(query)
        return float(pairs / (values * len(self.periods(time, calendar)))) if pairs else 0.0

    def constant_inputs(self, time: str, calendar: Calendar) -> frozenset[str]:
        """Return which of `weekday` and `hour`, by the calendar's clock, are the same in all rows."""
        clock = f"timezone({quote_text(calendar.timezone)}, {self._instant(time, calendar)})"
        query = f"SELECT count(DISTINCT isodow({clock})), count(DISTINCT hour({clock})) FROM sample"
        [counts] = self._rows(query)
        return frozenset(name for name, count in zip(("weekday", "hour"), counts, strict=True) if count < 2)

    def is_panel(self, key: str, time: str, calendar: Calendar) -> bool:
        """Return whether each value of a key has about one row in most of its periods, such as customers in weeks."""
        is_one_per_period = self._unique_share(self._period(time, calendar), [key]) >= _PANEL_UNIQUE_ROWS
        return is_one_per_period and self.coverage(key, time, calendar) >= _PANEL_COVERAGE

    def unique_share(self, time: str, columns: Sequence[str]) -> float:
        """Return the number of times, with values of some columns, by the number of rows that have a time, 0 to 1."""
        return self._unique_share(quote_name(time), columns)

    def is_one_per_period(self, time: str, calendar: Calendar) -> bool:
        """Return whether no period has several rows."""
        return self._unique_share(self._period(time, calendar), ()) == 1

    def _unique_share(self, moment: str, columns: Sequence[str]) -> float:
        names = [f"{quote_name(name)} AS column_{number}" for number, name in enumerate(columns)]
        groups = f"SELECT {', '.join([f'{moment} AS moment', *names])} FROM sample WHERE {moment} IS NOT NULL"
        query = (
            f"SELECT (SELECT count(*) FROM (SELECT DISTINCT * FROM ({groups}))) / nullif(count(*), 0) FROM ({groups})"
        )
        [(share,)] = self._rows(query)
        return float(share or 0)

    def rows_of(self, period: str, time: str, columns: Sequence[str], calendar: Calendar) -> pa.Table:
        """Return the rows of a period, in the order of the sample."""
        start, end = calendar.start(period), calendar.end(period)
        instant = self._instant(time, calendar)
        query = f"SELECT {', '.join(map(quote_name, columns))} FROM sample WHERE {instant} >= $1 AND {instant} < $2"
        return self._database.sql(query, params=[start, end]).to_arrow_table()

    def deviation(self, column: str) -> float:
        """Return the standard deviation of a column, 0 of one that has no numbers."""
        number = f"TRY_CAST({quote_name(column)} AS DOUBLE)"
        [(value,)] = self._rows(f"SELECT stddev_pop({number}) FROM sample WHERE isfinite({number})")
        return float(value or 0)

    def relations(self, label: str, positive: Any = None) -> dict[str, LabelRelation]:
        """Return what each other column says about the label: of class `positive`, or a number."""
        is_binary = positive is not None
        column = quote_name(label)
        target = f"CAST({column} = $1 AS INTEGER)" if is_binary else f"CAST({column} AS DOUBLE)"
        parameters = [positive] if is_binary else []
        relations = {}
        for name, declared in self._types.items():
            if name != label and (declared or "").startswith(_PLAIN_TYPES):
                relations[name] = self._relation(name, declared or "", target, parameters, is_binary)
        return relations

    def _relation(self, name: str, declared: str, target: str, parameters: list[Any], is_binary: bool) -> LabelRelation:
        rows = f"(SELECT {quote_name(name)} AS value, {target} AS label FROM sample WHERE {target} IS NOT NULL)"
        if self.row_count < _MIN_RELATED_ROWS:  # by chance, anything goes with anything
            return LabelRelation()
        if not is_binary:
            if not declared.startswith((*_NUMBER_TYPES, "bool")):
                return LabelRelation()
            query = f"SELECT corr(CAST(value AS DOUBLE), label) FROM {rows} WHERE isfinite(CAST(value AS DOUBLE))"
            [(correlation,)] = self._rows(query, parameters)
            return LabelRelation(correlation=correlation or 0.0)
        [(rarer,)] = self._rows(f"SELECT least(sum(label), sum(1 - label)) FROM {rows}", parameters)
        if (rarer or 0) < _MIN_CLASS_ROWS:
            return LabelRelation()
        aucs = [self._auc(rows.replace(" AS value", " IS NULL AS value", 1), "value", parameters)]
        if declared.startswith(_ORDERED_TYPES):
            aucs.append(self._auc(f"(SELECT * FROM {rows} WHERE value IS NOT NULL)", "value", parameters))
        [(distinct,)] = self._rows(f"SELECT count(DISTINCT value) FROM {rows}", parameters)
        # Values are ordered by what their own rows show: of few rows, some values tell a class by chance.
        if distinct <= min(MAX_VALUES, rarer):
            aucs.append(self._auc(rows, "positives / (positives + negatives)", parameters))
        return LabelRelation(auc=max(aucs, key=lambda auc: abs(auc - 0.5)))

    def _auc(self, rows: str, order: str, parameters: list[Any]) -> float:
        """Return the AUC of the column `value` as a score of `label`, its groups ordered by an expression."""
        groups = f"SELECT value, sum(label) AS positives, sum(1 - label) AS negatives FROM {rows} GROUP BY 1"
        window = f"OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING)"
        ranks = f"SELECT positives, negatives, sum(negatives) {window} - negatives / 2 AS beaten FROM ({groups})"
        query = f"SELECT sum(positives * beaten) / (sum(positives) * sum(negatives)) FROM ({ranks})"
        [(auc,)] = self._rows(query, parameters)
        return 0.5 if auc is None or not math.isfinite(auc) else float(auc)

    def _period(self, time: str, calendar: Calendar) -> str:
        """Return SQL for the period of a row: its first date, or its number since 1970."""
        instant, length = self._instant(time, calendar), Duration.parse(calendar.period).length
        if calendar.partition_key != "day":
            return f"floor(epoch({instant}) / {length.total_seconds():.0f})"
        unit = "week" if length.days > 1 else "day"
        return f"CAST(date_trunc('{unit}', timezone({quote_text(calendar.timezone)}, {instant})) AS DATE)"

    def _instant(self, time: str, calendar: Calendar) -> str:
        """Return SQL for the instant of a row, as features.py reads its time."""
        column = quote_name(time)
        if self._types[time] == "timestamp[us, tz=UTC]":
            return column
        zone, clock = quote_text(calendar.timezone), f"CAST({column} AS TIMESTAMP)"
        later = f"timezone({zone}, {clock})"
        # Of a time that exists twice, when clocks are set back, DuckDB takes the later instant, and Spark the earlier.
        day_before = f"({later} - INTERVAL 24 HOURS)"
        offset = f"(timezone({zone}, {day_before}) - timezone('UTC', {day_before}))"
        earlier = f"timezone('UTC', {clock} - {offset})"
        return f"CASE WHEN timezone({zone}, {earlier}) = {clock} THEN least({earlier}, {later}) ELSE {later} END"

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._database.execute(query, list(parameters)).fetchall()


@contextmanager
def open_sample(origin: SampleOrigin) -> Iterator[Sample]:
    """Read a sample into a database of its own.

    Raises:
        ScaffoldError: it cannot be read.
    """
    with ExitStack() as stack:
        database = stack.enter_context(open_database())
        # Rows keep their order, so that what is delivered is the same each time.
        try:
            types = _load(database, origin)
        except (pa.ArrowException, duckdb.Error, ExtractError, OSError, ValueError) as error:
            fault = Fault(origin.location, f"cannot be read: {first_line(error)}", getattr(error, "fix", "") or "")
            raise ScaffoldError("sample", [fault]) from None
        yield Sample(database, origin, types)


def _load(database: duckdb.DuckDBPyConnection, origin: SampleOrigin) -> dict[str, str | None]:
    """Create the table of a sample; return the declared type of each column, None if there is none."""
    if origin.format == "parquet":
        schema = pq.read_schema(origin.location)
        _check_names(schema.names, origin)
        database.execute(f"CREATE TABLE sample AS SELECT * FROM {parquet_rows(Path(origin.location))}")
    else:
        if origin.format == "csv":
            _check_names(_csv_header(database, origin.location), origin)
            rows = f"read_csv({quote_text(origin.location)}, sample_size = -1, hive_partitioning = false)"
            database.execute(f"CREATE TABLE sample AS SELECT * FROM {rows}")
        elif origin.format == "jsonl":
            rows = f"read_json({quote_text(origin.location)}, format = 'newline_delimited', sample_size = -1)"
            database.execute(f"CREATE TABLE sample AS SELECT * FROM {rows}")
        elif origin.format == "delta":
            table = open_table(RawTable(format="delta", location=origin.location), Calendar("1d", "UTC"))
            _check_names(table.columns, origin)
            batches = table.read_rows(table.columns, None)
            database.register("batches", batches)
            database.execute("CREATE TABLE sample AS SELECT * FROM batches")
        else:
            _load_query(database, origin)
        schema = database.sql("SELECT * FROM sample LIMIT 0").to_arrow_table().schema
    types = {field.name: common_type([stored_type(field.type)]) for field in schema}
    for name, declared in types.items():
        if declared and declared.startswith("timestamp"):  # in whatever unit
            kind = "TIMESTAMPTZ" if declared.endswith("tz=UTC]") else "TIMESTAMP"
            database.execute(f"ALTER TABLE sample ALTER {quote_name(name)} TYPE {kind}")
    return types


def _load_query(database: duckdb.DuckDBPyConnection, origin: SampleOrigin) -> None:
    """Load the rows of a query, of all times if it has bounds, and of so many that they fit memory."""
    bounds = {"start": datetime(1970, 1, 1, tzinfo=UTC), "end": datetime(2200, 1, 1, tzinfo=UTC)}
    named = {name: value for name, value in bounds.items() if re.search(rf"(?<!:):{name}\b", origin.sql or "")}
    tables, count = [], 0
    with run_query(origin.location, origin.sql or "", named) as reader:
        _check_names(list(reader.names or ()), origin)
        for batch in reader.read_batches():
            tables.append(pa.table({name: _as_array(values) for name, values in batch.items()}))
            count += tables[-1].num_rows
            if count >= _MAX_QUERY_ROWS:
                break
        names = list(reader.names or ())
    rows = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({n: [] for n in names})
    database.register("batches", rows)
    database.execute("CREATE TABLE sample AS SELECT * FROM batches")


def _as_array(values: Any) -> Any:
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)


def _csv_header(database: duckdb.DuckDBPyConnection, location: str) -> list[str]:
    """Return the names in the first row, which DuckDB would make unique."""
    sniffed = f"SELECT Delimiter, HasHeader FROM sniff_csv({quote_text(location)})"
    delimiter, has_header = database.execute(sniffed).fetchone() or (",", False)
    if not has_header:
        problem = "has no row with names of columns"
        raise ScaffoldError("sample", [Fault(location, problem, "add one: the model's columns are named by it")])
    options = f"delim = {quote_text(delimiter)}, header = false, all_varchar = true, hive_partitioning = false"
    first = database.execute(f"SELECT * FROM read_csv({quote_text(location)}, {options}) LIMIT 1").fetchone()
    return [str(name) for name in first or ()]


def _check_names(names: Sequence[str], origin: SampleOrigin) -> None:
    """Refuse names that Spark, DuckDB and Great Expectations take for the same column."""
    folded = [name.casefold() for name in names]
    if duplicates := [name for name in names if folded.count(name.casefold()) > 1]:
        problem = f"columns {', '.join(map(repr, duplicates))} have the same name, or differ only in case"
        fix = "rename all but one in the file: engines cannot tell them apart"
        raise ScaffoldError("sample", [Fault(origin.location, problem, fix)])
