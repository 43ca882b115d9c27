"""What the rows of a table look like, computed in its file: how values are distributed, nulls, and the label over time.

Values are those of Parquet files of any size: only counts leave the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.ingest.databases import open_database, parquet_rows, quote_name, quote_text

BIN_COUNT = 20
MAX_FREQUENT_VALUES = 10
"""Of those that a column of text has, the most frequent ones are counted one by one."""
TIME_BIN_COUNT = 24
MAX_SHOWN_CLASSES = 5
_LARGEST = 1e300  # plots compute with sums of the edges of bins
_TIME = "event_timestamp"


@dataclass(frozen=True)
class ColumnDistribution:
    """How the values of a column are distributed.

    Of numbers, `edges` (n + 1) are those of bins of equal width, and `counts` (n) the rows in each; infinite and NaN
    are in none. Of other values, `values` are the most frequent, with `counts`. Neither, if there are no values, or
    if they are lists or times.
    """

    name: str
    type: str
    null_count: int
    edges: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelSeries:
    """The mean of a label, or the share of one of its classes, in equal parts of a period; None without rows."""

    name: str
    times: tuple[datetime, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class TableProfile:
    """A table of a period: its columns in order, and its label over time if it has one."""

    name: str
    row_count: int
    columns: tuple[ColumnDistribution, ...]
    label: tuple[LabelSeries, ...] = ()


def profile_table(name: str, file: Path, label: str | None = None) -> TableProfile:
    """Return the profile of a table in a Parquet file; `label` is the column that is shown over time."""
    schema, rows = pq.read_schema(file), parquet_rows(file)
    with open_database() as database:
        columns = tuple(_profile_column(database, rows, field) for field in schema)
        series: Iterable[LabelSeries] = ()
        if label in schema.names and _TIME in schema.names and label is not None:
            series = _label_over_time(database, rows, schema.field(label))
        return TableProfile(name, pq.read_metadata(file).num_rows, columns, tuple(series))


def _profile_column(database: duckdb.DuckDBPyConnection, rows: str, field: pa.Field) -> ColumnDistribution:
    column, type_ = quote_name(field.name), str(field.type)
    null_count = _fetch(database, f"SELECT count(*) - count({column}) FROM {rows}")[0][0]  # noqa: S608 - quoted
    if _is_number(field.type):
        number = f"{column}::DOUBLE"
        finite = f"FROM {rows} WHERE abs({number}) <= {_LARGEST}"  # nor NaN
        low, high = _fetch(database, f"SELECT min({number}), max({number}) {finite}")[0]
        if low is None:
            return ColumnDistribution(field.name, type_, null_count)
        width = high / BIN_COUNT - low / BIN_COUNT or 1.0
        position = f"least(floor(({number} - {low!r}) / {width!r}), {BIN_COUNT - 1})::INTEGER"
        counted = dict(_fetch(database, f"SELECT {position}, count(*) {finite} GROUP BY 1"))
        edges = tuple(low + width * place for place in range(BIN_COUNT + 1))
        counts = tuple(counted.get(place, 0) for place in range(BIN_COUNT))
        return ColumnDistribution(field.name, type_, null_count, edges=edges, counts=counts)
    if pa.types.is_nested(field.type) or pa.types.is_temporal(field.type) or pa.types.is_binary(field.type):
        return ColumnDistribution(field.name, type_, null_count)
    query = f"SELECT {column}::VARCHAR, count(*) FROM {rows} WHERE {column} IS NOT NULL GROUP BY 1"  # noqa: S608 - quoted
    frequent = _fetch(database, f"{query} ORDER BY 2 DESC, 1 LIMIT {MAX_FREQUENT_VALUES}")
    values, counts = zip(*frequent, strict=True) if frequent else ((), ())
    return ColumnDistribution(field.name, type_, null_count, values=values, counts=counts)


def _label_over_time(database: duckdb.DuckDBPyConnection, rows: str, label: pa.Field) -> Iterable[LabelSeries]:
    """Yield the mean of a label of numbers, or the share of each of its most frequent classes."""
    column = quote_name(label.name)
    known_rows = f"FROM {rows} WHERE {column} IS NOT NULL AND {_TIME} IS NOT NULL"
    start, end = _fetch(database, f"SELECT epoch(min({_TIME})), epoch(max({_TIME})) {known_rows}")[0]
    if start is None:
        return
    width = (end - start) / TIME_BIN_COUNT or 1.0
    place = f"least(floor((epoch({_TIME}) - {start!r}) / {width!r}), {TIME_BIN_COUNT - 1})::INTEGER"
    times = tuple(datetime.fromtimestamp(start + width * n, UTC) for n in range(TIME_BIN_COUNT))
    if _is_number(label.type) or pa.types.is_boolean(label.type):
        expressions = {f"mean of {label.name}": f"avg({column}::DOUBLE)"}
    else:
        classes = _fetch(
            database,
            f"SELECT {column}::VARCHAR, count(*) {known_rows} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {MAX_SHOWN_CLASSES}",
        )
        expressions = {
            f"share of {value}": f"avg(({column}::VARCHAR = {quote_text(value)})::INTEGER)" for value, _ in classes
        }
    for name, expression in expressions.items():
        counted = dict(_fetch(database, f"SELECT {place}, {expression} {known_rows} GROUP BY 1"))
        yield LabelSeries(name, times, tuple(counted.get(n) for n in range(TIME_BIN_COUNT)))


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)


def _fetch(database: duckdb.DuckDBPyConnection, query: str) -> Sequence[Any]:
    return database.execute(query).fetchall()
