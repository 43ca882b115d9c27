"""Histograms of the columns of a table: on fixed bins, by DuckDB; histograms of periods add up.

The bins of a column come from a reference, the data that the champion was made from, and stay the same for as long as
it is champion: so a day's histogram is the sum of those of its periods, and any two of them can be compared.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evergreen.ingest.databases import quote_text

Counts = NDArray[np.int64]
ColumnKind = Literal["numeric", "categorical", "time"]

BINS = 20
"""Of a numeric column, between the smallest and the largest value of the reference."""

MAX_CATEGORY_BINS = 50
"""Of a categorical column: the most frequent ones of the reference. All others share the last bin."""

BIN_SAMPLE_ROWS = 200_000
"""Of the reference, about so many at random, to find the bins with."""

_SIGNED_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
_UNSIGNED_NUMBERS = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
_NUMBERS = (*_SIGNED_NUMBERS, *_UNSIGNED_NUMBERS)
_CATEGORIES = ("VARCHAR", "BOOLEAN")
_INSTANTS = ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S")
_MICROSECONDS_A_DAY = 86_400_000_000
_NO_TYPE = '"NULL"'  # of a column without values


@dataclass(frozen=True)
class ColumnBins:
    """The bins of a column.

    Attributes:
        bounds: of a numeric column, in order: bin k has values x with bounds[k-1] < x ≤ bounds[k]; the first bin has
            what is below the smallest value of the reference, and one more what is above its largest. Of a categorical
            column its values; one more bin has all others, those that the reference does not have or hardly has.
        timezone: of a column of instants, kind `time`, in which their *time of day* is counted, in seconds since
            midnight as clocks show them, as a number is.
    """

    table: str
    column: str
    kind: ColumnKind
    bounds: tuple[float, ...] | tuple[str, ...]
    timezone: str = ""

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}"

    @property
    def size(self) -> int:
        """The number of bins."""
        return len(self.bounds) + 1


@dataclass(frozen=True)
class Histogram:
    """The rows of some periods by the bin of a column. `counts`, of shape (bins,), leaves out the missing values."""

    rows: int
    missing: int
    counts: Counts

    def __add__(self, addend: Histogram) -> Histogram:
        return Histogram(self.rows + addend.rows, self.missing + addend.missing, self.counts + addend.counts)

    @classmethod
    def of_absent_column(cls, bins: ColumnBins, rows: int) -> Histogram:
        """Return the histogram of a column that rows do not have: all its values are missing."""
        return cls(rows, rows, np.zeros(bins.size, np.int64))


@dataclass(frozen=True)
class _FileGroup:
    """Files that have the same columns, so that one scan reads them.

    Attributes:
        numbers: of the files, among all.
        columns: name and type in DuckDB of each, in the order of the files. SQL calls them c0, c1 …: whatever their
            names are, none is taken for another one, or for what DuckDB adds.
    """

    files: tuple[Path, ...]
    numbers: tuple[int, ...]
    columns: tuple[tuple[str, str], ...]

    @property
    def source(self) -> str:
        """Its rows as SQL, with `file_index` and `file_row_number`."""
        aliases = ", ".join(f"c{number}" for number in range(len(self.columns)))
        return f"{_parquet_files(self.files)} AS source({aliases})"

    def type_of(self, column: str) -> str | None:
        """Return the type of a column in DuckDB, of decimals without their digits; None if there is no such column."""
        return next((kind for name, kind in self.columns if name == column), None)

    def value_of(self, column: str, kind: str, timezone: str = "") -> str:
        """Return the values of a column as SQL: what is not a number, where numbers are expected, is missing."""
        if self.type_of(column) not in (_INSTANTS if kind == "time" else (*_NUMBERS, *_CATEGORIES)):
            return "CAST(NULL AS VARCHAR)" if kind == "categorical" else "CAST(NULL AS DOUBLE)"
        name = next(f"c{number}" for number, (listed, _) in enumerate(self.columns) if listed == column)
        if kind == "time":
            clock = f"timezone({quote_text(timezone)}, CAST({name} AS TIMESTAMPTZ))"
            return f"TRY(epoch_us({clock}) % {_MICROSECONDS_A_DAY} / 1e6)"
        if kind == "categorical":
            return f"CAST({name} AS VARCHAR)"
        number = f"TRY_CAST({name} AS DOUBLE)"
        return f"CASE WHEN isnan({number}) THEN NULL ELSE {number} END"


def find_bins(
    database: duckdb.DuckDBPyConnection,
    table: str,
    files: Sequence[Path],
    columns: Sequence[str],
    rows: int,
    *,
    times: Mapping[str, str] | None = None,
) -> list[ColumnBins]:
    """Return the bins of those `columns` that are numbers, texts or booleans, and have a value, in order.

    They are quantiles, and the most frequent values, of some `BIN_SAMPLE_ROWS` of the `rows` rows of `files`. What a
    column is, the last file says in which it has a type. After them come those of `times` that are instants: columns
    whose time of day is counted, each with the time zone of its days.
    The result depends on the rows and their order only, however many threads read them.
    """
    groups, zones = _group_files(database, files), dict(times or {})
    kinds = {column: kind for column in columns if (kind := _kind_of(column, groups))}
    kinds |= {column: "time" for column in zones if _newest_type(column, groups) in _INSTANTS}
    if not kinds:
        return []
    step = max(1, -(-rows // BIN_SAMPLE_ROWS))
    # A hash, since rows that are so far apart may have something in common, such as the hour.
    selected = " UNION ALL ".join(
        f"SELECT {_aliased(group.value_of(column, kind, zones.get(column, '')) for column, kind in kinds.items())} "  # noqa: S608 - columns have numbers
        f"FROM {group.source} WHERE hash({number}, file_index, file_row_number) % {step} = 0"
        for number, group in enumerate(groups)
    )
    database.execute(f"CREATE OR REPLACE TEMP TABLE sample AS {selected}")
    bins = []
    for number, (column, kind) in enumerate(kinds.items()):
        find = _find_categories if kind == "categorical" else _find_bounds
        if bounds := find(database, f"c{number}"):
            bins.append(ColumnBins(table, column, kind, bounds, zones.get(column, "")))
    database.execute("DROP TABLE sample")
    return bins


def count_by_bin(
    database: duckdb.DuckDBPyConnection, bins: Sequence[ColumnBins], files: Mapping[str, Path]
) -> dict[str, tuple[int, dict[str, Histogram]]]:
    """Return the number of rows, and the histogram of each column by `ColumnBins.name`, of each file, by its key.

    All files that have the same columns are read in one scan. A column that a file does not have, or that is neither
    numbers, texts nor booleans in it, has missing values only.

    Args:
        database: that reads them.
        bins: of columns of one table.
        files: Parquet files of that table, such as one per period.
    """
    keys = list(files)
    nothing: tuple[int, dict[str, Histogram]] = (0, {c.name: Histogram.of_absent_column(c, 0) for c in bins})
    counted = dict.fromkeys(keys, nothing)
    for group in _group_files(database, list(files.values())):
        terms = ["count(*)"]
        for column in bins:
            value = group.value_of(column.column, column.kind, column.timezone)
            function = "histogram_exact" if column.kind == "categorical" else "histogram"
            bounds = ", ".join(quote_text(bound) if isinstance(bound, str) else repr(bound) for bound in column.bounds)
            terms += [f"count({value})", f"map_values({function}({value}, [{bounds}]))"]
        query = f"SELECT file_index, {', '.join(terms)} FROM {group.source} GROUP BY file_index"  # noqa: S608 - quoted
        for index, *values in database.execute(query).fetchall():
            counted[keys[group.numbers[index]]] = _histograms(bins, values)
    return counted


def _histograms(bins: Sequence[ColumnBins], values: Sequence[Any]) -> tuple[int, dict[str, Histogram]]:
    rows, histograms = values[0], {}
    for number, column in enumerate(bins):
        present, counts = values[1 + 2 * number : 3 + 2 * number]
        if not present:
            histograms[column.name] = Histogram.of_absent_column(column, rows)
            continue
        # DuckDB leaves the last bin out where it has no rows.
        padded = np.array([*counts, 0][: column.size], np.int64)
        histograms[column.name] = Histogram(rows, rows - present, padded)
    return rows, histograms


def _aliased(values: Iterable[str]) -> str:
    return ", ".join(f"{value} AS c{number}" for number, value in enumerate(values))


def _kind_of(column: str, groups: Sequence[_FileGroup]) -> ColumnKind | None:
    kind = _newest_type(column, groups)
    return "numeric" if kind in _NUMBERS else "categorical" if kind in _CATEGORIES else None


def _newest_type(column: str, groups: Sequence[_FileGroup]) -> str | None:
    newest = sorted(groups, key=lambda group: group.numbers[-1], reverse=True)
    return next((kind for group in newest if (kind := group.type_of(column)) not in (None, _NO_TYPE)), None)


def _find_bounds(database: duckdb.DuckDBPyConnection, name: str) -> tuple[float, ...]:
    shares = ", ".join(repr(number / BINS) for number in range(BINS + 1))
    query = f"SELECT quantile_disc({name}, [{shares}]) FROM sample WHERE isfinite({name})"  # noqa: S608 - a number
    row = database.execute(query).fetchone()
    if not row or row[0] is None:
        return ()
    bounds = np.unique(np.array(row[0], np.float64))
    return (float(np.nextafter(bounds[0], -np.inf)), *map(float, bounds))


def _find_categories(database: duckdb.DuckDBPyConnection, name: str) -> tuple[str, ...]:
    query = (
        f"SELECT {name} FROM sample WHERE {name} IS NOT NULL GROUP BY {name} "  # noqa: S608 - a number
        f"ORDER BY count(*) DESC, {name} LIMIT {MAX_CATEGORY_BINS}"
    )
    return tuple(sorted(value for (value,) in database.execute(query).fetchall()))


def _group_files(database: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> list[_FileGroup]:
    numbers: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, file in enumerate(files):
        schema = tuple((field.name, str(field.type)) for field in pq.read_schema(file))
        numbers.setdefault(schema, []).append(number)
    groups = []
    for schema, members in numbers.items():
        described = database.execute(f"DESCRIBE SELECT * FROM {_parquet_files([files[members[0]]])}").fetchall()  # noqa: S608 - quoted
        types = [re.sub(r"\(\d+,\s*\d+\)$", "", row[1]) for row in described]
        columns = tuple((name, kind) for (name, _), kind in zip(schema, types, strict=True))
        groups.append(_FileGroup(tuple(files[number] for number in members), tuple(members), columns))
    return groups


def _parquet_files(files: Sequence[Path]) -> str:
    # The names of folders are not data: day=… must not replace a column `day`.
    listed = ", ".join(quote_text(glob.escape(str(file))) for file in files)
    return f"read_parquet([{listed}], hive_partitioning = false)"
