"""What must hold of the features of any model, whatever they mean: shown by computing a period again, from other rows.

The order of rows means nothing, so features are computed from the same rows in another order, and must be equal. And
what became known later must not change them: they are computed without it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from evergreen.errors import Fault
from evergreen.features.build import compute_features
from evergreen.ingest.databases import open_database, parquet_rows, quote_name, quote_text
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec, RawSource

_PARTS = 5  # into which the rows of a source are dealt, one by one
# Sums of numbers with a point depend on their order in the last digits. A number may be rounded up here and down there
# once, but hardly at three precisions.
_PRECISIONS = ("%.9e", "%.8e", "%.7e")
_MAX_COLUMNS = 5  # that a message names
_ORDER_FIX = (
    "break ties by more columns, seed nothing by position, and use no rand(), uuid(), monotonically_increasing_id(), "
    "first() or current_timestamp()"
)


@dataclass(frozen=True)
class FeatureFault(Fault):
    """A fault of some columns of the tables of a period; of no column if their rows are others."""

    tables: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class _Difference(NamedTuple):
    """Rows of a table that are not the same again, and the columns in which they differ."""

    table: str
    row_count: int
    columns: tuple[str, ...]


def find_duplicate_faults(period: str, built: Path, keys: Mapping[str, Sequence[str]]) -> list[FeatureFault]:
    """Return the views of a period that have two rows of the same keys and `event_timestamp`, as one fault.

    Which of them an example would get is left to chance. `keys` has the columns of the keys of each view.
    """
    counts = {}
    for table, names in keys.items():
        file = built / f"{table}.parquet"
        if not file.is_file() or {*names} - {*pq.read_schema(file).names}:
            continue
        columns = ", ".join(map(quote_name, (*names, "event_timestamp")))
        with open_database() as database:
            query = f"SELECT count(*), count(DISTINCT ({columns})) FROM {parquet_rows(file)}"  # noqa: S608 - quoted
            ((count, distinct_count),) = database.execute(query).fetchall()
        if count > distinct_count:
            counts[table] = f"{_count_rows(count - distinct_count)} of {count:,}"
    if not counts:
        return []
    listed = ", ".join(counts.values())
    problem = f"{listed} have the same keys and event_timestamp as another row of their table"
    fix = "group by the keys and the time only, or join what is there once"
    return [FeatureFault(f"{period} {', '.join(counts)}", problem, fix, tuple(counts))]


def find_order_faults(model: ModelSpec, period: str, built: Path, scratch: Path) -> list[FeatureFault]:
    """Return the tables of a period that are others if the rows of its sources come in another order.

    `built` is the folder with its tables. Differences in the tenth digit of a number are none.
    """

    def deal(_source: RawSource, rows: DataFrame) -> DataFrame:
        return rows.repartition(_PARTS)

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        again = Path(folder)
        compute_features(model, {period: again}, deal)
        differences: list[_Difference] = []
        for table in feature_spec(model).tables:
            first_file, second_file = (directory / f"{table}.parquet" for directory in (built, again))
            names = pq.read_schema(first_file).names
            differences += _find_difference(table, first_file, second_file, names)
    problem = "differs when it is computed from the same rows in another order"
    return _join_differences(period, differences, problem, _ORDER_FIX)


def has_known_rows(model: ModelSpec) -> bool:
    """Return whether a source says when its rows were known, so that `find_future_faults` finds anything."""
    return any(source.known_at for source in feature_spec(model).sources)


def find_future_faults(model: ModelSpec, period: str, built: Path, scratch: Path) -> list[FeatureFault]:
    """Return the tables of a period that make use of rows that were known only after their own `event_timestamp`.

    Rows that were known after the middle of the period's examples are left out, of the sources that say when theirs
    were; views up to that moment have to stay the same, and so have request columns of the examples that are left.
    """
    spec = feature_spec(model)
    cut = _middle(built / f"{spec.spine}.parquet")
    if cut is None:
        return []

    def leave_out_later_rows(source: RawSource, rows: DataFrame) -> DataFrame:
        if not source.known_at:
            return rows
        known_at = F.col(source.known_at)
        return rows.filter(known_at.isNull() | (known_at <= F.lit(cut)))

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        earlier = Path(folder)
        compute_features(model, {period: earlier}, leave_out_later_rows)
        differences: list[_Difference] = []
        for table in spec.tables:
            full_file, earlier_file = (directory / f"{table}.parquet" for directory in (built, earlier))
            is_spine = table == spec.spine
            # Which examples there are, and their labels, may be known later.
            names = ["event_timestamp", *model.request_columns] if is_spine else pq.read_schema(full_file).names
            condition = f"event_timestamp <= {quote_text(cut.isoformat())}::TIMESTAMPTZ"
            differences += _find_difference(table, earlier_file, full_file, names, condition, is_subset=is_spine)
    problem = f"differs up to {cut:%Y-%m-%d %H:%M:%S} UTC without the rows known after it"
    fix = "use no row before its known_at: filter or join by event_timestamp"
    return _join_differences(period, differences, problem, fix)


def _join_differences(period: str, differences: Sequence[_Difference], problem: str, fix: str) -> list[FeatureFault]:
    """Return a fault for each set of columns that differ: tables that one function computes have the same ones."""
    by_columns: dict[tuple[str, ...], list[_Difference]] = {}
    for difference in differences:
        by_columns.setdefault(difference.columns, []).append(difference)
    faults = []
    for columns, group in by_columns.items():
        tables = tuple(difference.table for difference in group)
        suffix = f" and {len(columns) - _MAX_COLUMNS} more" if columns[_MAX_COLUMNS:] else ""
        listed = f", in {', '.join(columns[:_MAX_COLUMNS])}{suffix}" if columns else ""
        rows = _count_rows(sum(difference.row_count for difference in group))
        faults.append(FeatureFault(f"{period} {', '.join(tables)}", f"{problem}: {rows}{listed}", fix, tables, columns))
    return faults


def _count_rows(count: int) -> str:
    return f"{count:,} row" + ("s" if count != 1 else "")


def _middle(spine: Path) -> datetime | None:
    """Return a timestamp of an example, with as many before as after it; None if there are no examples."""
    with open_database() as database:
        query = f"SELECT quantile_disc(event_timestamp, 0.5) FROM {parquet_rows(spine)}"  # noqa: S608 - quoted
        ((moment,),) = database.execute(query).fetchall()
    return moment


def _find_difference(
    table: str,
    first_file: Path,
    second_file: Path,
    names: Sequence[str],
    condition: str = "true",
    *,
    is_subset: bool = False,
) -> Iterator[_Difference]:
    """Yield how many rows of the first file are not in the second one, and in which columns, if there are any.

    Unless `is_subset`, neither is a row of the second file to be missing in the first one.
    """
    with open_database() as database:
        types = {str(field.name): str(field.type) for field in pq.read_schema(first_file)}
        count = min(
            _count_differing(database, first_file, second_file, _rounded(names, types, precision), condition, is_subset)
            for precision in _PRECISIONS
        )
        if count:
            columns = _differing_columns(database, first_file, second_file, names, types, condition, is_subset)
            yield _Difference(table, count, tuple(columns))


def _differing_columns(
    database: duckdb.DuckDBPyConnection,
    first_file: Path,
    second_file: Path,
    names: Sequence[str],
    types: Mapping[str, str],
    condition: str,
    is_subset: bool,
) -> Iterator[str]:
    """Yield the columns that have other values; where all have the same ones, those that are in other rows."""
    has_other_values = False
    for name in names:
        if _count_differing(
            database, first_file, second_file, _rounded([name], types, _PRECISIONS[-1]), condition, is_subset
        ):
            has_other_values = True
            yield name
    if has_other_values:
        return
    for name in names:
        rest = [column for column in names if column != name]
        columns = _rounded(rest, types, _PRECISIONS[-1])
        if not _count_differing(database, first_file, second_file, columns, condition, is_subset):
            yield name


def _count_differing(
    database: duckdb.DuckDBPyConnection,
    first_file: Path,
    second_file: Path,
    columns: Sequence[str],
    condition: str,
    is_subset: bool,
) -> int:
    """Return how many rows one file has more than the other; the larger number of both directions."""

    def count(first: Path, second: Path) -> int:
        selected = ", ".join(columns)  # quoted, as all names here
        rows = (f"SELECT {selected} FROM {parquet_rows(file)} WHERE {condition}" for file in (first, second))  # noqa: S608
        query = f"SELECT count(*) FROM ({' EXCEPT ALL '.join(rows)})"  # noqa: S608
        ((number,),) = database.execute(query).fetchall()
        return int(number)

    return (
        count(first_file, second_file)
        if is_subset
        else max(count(first_file, second_file), count(second_file, first_file))
    )


def _rounded(names: Sequence[str], types: Mapping[str, str], precision: str) -> list[str]:
    """Return the columns in SQL, numbers with a point rounded."""
    floats = ("halffloat", "float", "double")
    quoted = ((types[name] in floats, quote_name(name)) for name in names)
    return [f"printf('{precision}', {column}::DOUBLE)" if is_float else column for is_float, column in quoted]
