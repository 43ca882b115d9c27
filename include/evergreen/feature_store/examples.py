"""The examples of a training set, out of core: split into files, joined with features, and written by DuckDB.

They are in tables of a database of their own, whose memory is limited by the setting `duckdb_memory`; what exceeds it
is in a scratch folder. Python sees batches of rows. So the memory of a task does not grow with its examples.

Names of columns come from users, so the tables have names of their own.
"""
# ruff: noqa: S608 - names are quoted or made here, and literals are quoted

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView
from feast.repo_config import RepoConfig

from evergreen.errors import Fault, SpecError
from evergreen.feature_store.offline_store import (
    DeclaredColumns,
    JoinedView,
    RetrievalError,
    check_row_numbers,
    join_out_of_core,
)
from evergreen.features.types import common_type_problem
from evergreen.ingest.databases import quote_name, quote_text
from evergreen.ingest.frames import text_as_strings
from evergreen.ingest.row_groups import ROW_GROUP_ROWS
from evergreen.lake import datasets
from evergreen.periods import Calendar

LABEL_COLUMNS = ("label", "label_known_at")
"""Unknown at the time of a prediction."""

_POSITION = ("file_index", "file_row_number")  # virtual columns of DuckDB, which a column of that name would hide


class LabelCount(NamedTuple):
    """How many examples a period has, and how many of them have a label that was known in time."""

    period: str
    day: date
    rows: int
    labelled: int


@dataclass(frozen=True)
class Selection:
    """Which examples a file has: those of its periods, or those with a label that was known before an instant."""

    period_from: str
    period_before: str
    """Exclusive."""
    known_before: datetime | None = None
    """None: all examples, and without the columns of their label."""


class Examples:
    """The examples of some periods, ordered by time, then by period, then as in their files.

    Use `count_labels`, `select`, one of the joins, and `write_files`, in this order.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, schema: pa.Schema):
        self._con = con
        self._schema = schema  # of the spine
        self._columns = {name: f"column_{number}" for number, name in enumerate(schema.names)}
        self._columns |= {"day": "day", datasets.PERIOD_COLUMN: "period"}
        self._selections: Mapping[str, Selection] = {}
        self._views: list[JoinedView] = []

    @classmethod
    def from_files(
        cls,
        con: duckdb.DuckDBPyConnection,
        model: str,
        spine: str,
        label: str,
        files: Mapping[str, Path],
        calendar: Calendar,
    ) -> Self:
        """Return all examples in these files of the table `spine`, by period, with `label` named `label`.

        Raises:
            SpecError: columns have types that do not fit together.
        """
        schemas = {period: pq.read_schema(file) for period, file in files.items()}
        if faults := list(_spine_faults(spine, schemas)):
            raise SpecError(f"model {model}", faults)
        schema = pa.unify_schemas(list(schemas.values()), promote_options="permissive")
        schema = text_as_strings(schema.remove_metadata().empty_table()).schema
        examples = cls(con, pa.schema([field.with_name("label") if field.name == label else field for field in schema]))
        rows = [(number, period, calendar.date_of(period)) for number, period in enumerate(files)]
        con.execute("CREATE TABLE periods (number INTEGER, period VARCHAR, day DATE)")
        con.executemany("INSERT INTO periods VALUES (?, ?, ?)", rows)
        columns = [f"{quote_name(name)} AS column_{number}" for number, name in enumerate(schema.names)]
        paths = ", ".join(quote_text(glob.escape(str(file))) for file in files.values())
        options = "hive_partitioning = false" + (", union_by_name = true" if len(set(schemas.values())) > 1 else "")
        con.execute(
            f"CREATE VIEW spine AS SELECT {', '.join(columns)}, day, period, {', '.join(_POSITION)} "
            f"FROM read_parquet([{paths}], {options}) JOIN periods ON number = file_index"
        )
        return examples

    @property
    def schema(self) -> pa.Schema:
        """The columns of the spine, and `label`."""
        return self._schema

    def count_labels(self, known_before: datetime) -> list[LabelCount]:
        """Return the number of examples, and of those whose label was known, of each period that has any, in order."""
        query = (
            f"SELECT period, any_value(day), count(*), count(*) FILTER ({self._is_label_known(known_before)}) "
            "FROM spine GROUP BY period ORDER BY period"
        )
        return [LabelCount(*row) for row in self._con.sql(query).fetchall()]

    def select(self, selections: Mapping[str, Selection]) -> int:
        """Keep the examples of these files, by name; return their number."""
        self._selections = selections
        conditions = " OR ".join(self._condition(selection) for selection in selections.values())
        order = ", ".join([self._columns["event_timestamp"], *_POSITION])
        columns = ", ".join(self._columns.values())
        self._con.execute(f"CREATE TABLE examples AS SELECT {columns} FROM spine WHERE {conditions} ORDER BY {order}")
        return int(self._con.sql("SELECT count(*) FROM examples").fetchall()[0][0])

    def join(
        self,
        config: RepoConfig,
        views: Sequence[FeatureView],
        feature_refs: Sequence[str],
        bucket_bytes: float | None = None,
    ) -> None:
        """Join the features, named `view__feature`, as of each example's `event_timestamp`; see `join_out_of_core`."""
        self._views = join_out_of_core(self._con, config, views, feature_refs, "examples", self._columns, bucket_bytes)

    def join_by_table(self, retrieve: Callable[[pa.Table], pa.Table], keys: Iterable[str]) -> None:
        """Join the features that `retrieve` returns for the examples' timestamps, `keys` and row numbers, in memory.

        For an engine that is not DuckDB: row numbers are the column `datasets.ROW_COLUMN`, and come back with the rows.
        """
        columns = ["event_timestamp", *sorted(set(keys) & set(self._columns))]
        selected = [f"{self._columns[name]} AS {quote_name(name)}" for name in columns]
        numbered = f"SELECT {', '.join(selected)}, rowid AS {datasets.ROW_COLUMN} FROM examples"
        table = retrieve(self._con.sql(numbered).to_arrow_table()).sort_by(datasets.ROW_COLUMN)
        names = [name for name in table.column_names if name not in (*columns, datasets.ROW_COLUMN)]
        numbered_features = [table[datasets.ROW_COLUMN], *(table[name] for name in names)]
        table_names = ["row_number", *(f"feature_{number}" for number in range(len(names)))]
        self._con.register("retrieved", pa.table(numbered_features, table_names))
        self._con.execute("CREATE TABLE view_0 AS FROM retrieved")
        self._con.unregister("retrieved")
        types = [table.schema.field(name).type for name in names]
        self._views = [JoinedView("of the service", names, names, types, "view_0")]

    def write_files(self, folder: Path, left_out: Sequence[str] = ()) -> dict[str, Path]:
        """Write a Parquet file of each selection to `folder`, without the columns `left_out`; return them by name.

        Raises:
            RetrievalError: features have values that would change in the type that Feast declares.
        """
        features = sorted(column for view in self._views for column in view.columns)
        schema = pa.schema([*self._schema, ("day", pa.date32()), (datasets.PERIOD_COLUMN, pa.string())])
        declared = {name: dtype for view in self._views for name, dtype in zip(view.columns, view.types, strict=True)}
        schema = pa.schema([*schema, *((name, declared[name]) for name in features)])
        writers = {}
        for name, selection in self._selections.items():
            dropped = {*left_out, *(() if selection.known_before else LABEL_COLUMNS)}
            fields = [field for field in schema if field.name not in dropped]
            writers[name] = _RowGroupWriter(folder / f"{name}.parquet", pa.schema(fields))
        try:
            for rows, masks in self._batches(schema):
                for name, writer in writers.items():
                    writer.add(rows.filter(masks[name]))
        finally:
            for writer in writers.values():
                writer.close()
        return {name: writer.file for name, writer in writers.items()}

    def _batches(self, schema: pa.Schema) -> Iterator[tuple[pa.Table, dict[str, pa.ChunkedArray]]]:
        """Yield rows in order, with which of them each file has."""
        casts = [DeclaredColumns(view.view, view.features, view.types) for view in self._views]
        masks = [f"{self._condition(selection)} AS mask_{i}" for i, selection in enumerate(self._selections.values())]
        columns = [f"examples.{column}" for column in self._columns.values()]
        source = "examples"
        for view in self._views:
            if view.table:
                features = [f"{view.table}.feature_{number}" for number in range(len(view.features))]
                columns += [f"{view.table}.row_number", *features]
                source += f" POSITIONAL JOIN {view.table}"
        reader = self._con.sql(f"SELECT {', '.join([*masks, *columns])} FROM {source}").to_arrow_reader(ROW_GROUP_ROWS)
        first, faults = 0, []
        for batch in reader:
            values = iter(pa.Table.from_batches([batch]).columns)
            file_masks = {name: next(values) for name in self._selections}
            rows = {name: next(values) for name in self._columns}
            for view, cast in zip(self._views, casts, strict=True):
                if view.table:
                    check_row_numbers(view.view, next(values).to_numpy(), len(batch), first)
                    rows |= zip(view.columns, cast.cast([next(values) for _ in view.columns]), strict=True)
                else:
                    nulls = (pa.chunked_array([pa.nulls(len(batch), dtype)]) for dtype in view.types)
                    rows |= zip(view.columns, nulls, strict=True)
            first += len(batch)
            faults = [fault for cast in casts for fault in cast.faults()]
            if not faults:  # else only the values that change are counted, of all examples
                yield pa.table([_as_type(rows[field.name], field.type) for field in schema], schema=schema), file_masks
        if faults:
            raise RetrievalError("Retrieval of historical features", faults)

    def _condition(self, selection: Selection) -> str:
        condition = f"period >= {quote_text(selection.period_from)} AND period < {quote_text(selection.period_before)}"
        if selection.known_before:
            condition += f" AND {self._is_label_known(selection.known_before)}"
        return f"({condition})"

    def _is_label_known(self, instant: datetime) -> str:
        label, known_at = (self._columns[name] for name in LABEL_COLUMNS)
        in_time = f"CAST({known_at} AS TIMESTAMPTZ) < TIMESTAMPTZ {quote_text(instant.isoformat())}"
        return f"{label} IS NOT NULL AND coalesce({in_time}, false)"


def _as_type(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """Return a column of DuckDB as the type that it has in the files, all of whose values it holds."""
    if pa.types.is_null(dtype):
        return pa.chunked_array([pa.nulls(len(column))])
    return column if column.type == dtype else column.cast(dtype)


def _spine_faults(spine: str, schemas: Mapping[str, pa.Schema]) -> Iterator[Fault]:
    """Yield a fault for each column that differs between periods, unless all values stay what they are in one type."""
    fix = "build the features of these periods again"
    for column in dict.fromkeys(name for schema in schemas.values() for name in schema.names):
        if missing := [period for period, schema in schemas.items() if column not in schema.names]:
            yield Fault(f"{spine}.{column}", f"is missing in {len(missing)} periods, such as {missing[0]}", fix)
            continue
        periods = {str(schema.field(column).type): period for period, schema in schemas.items()}
        if problem := common_type_problem(periods):
            examples = ", ".join(f"{arrow_type} on {period}" for arrow_type, period in sorted(periods.items()))
            yield Fault(f"{spine}.{column}", f"{problem}: {examples}", fix)
        if column.lower() in _POSITION:
            yield Fault(f"{spine}.{column}", "has a name that DuckDB keeps for the position of a row", "rename it")


class _RowGroupWriter:
    """Writes rows in row groups of one size, however they come, so that the bytes do not depend on it."""

    def __init__(self, file: Path, schema: pa.Schema):
        self.file = file
        self._schema, self._writer = schema, pq.ParquetWriter(file, schema)
        self._pending = [schema.empty_table()]
        self._rows, self._is_begun = 0, False

    def add(self, rows: pa.Table) -> None:
        self._pending.append(rows.select(self._schema.names))
        self._rows += len(rows)
        while self._rows >= ROW_GROUP_ROWS:
            self._write(ROW_GROUP_ROWS)

    def close(self) -> None:
        if self._rows or not self._is_begun:
            self._write(self._rows)
        self._writer.close()

    def _write(self, count: int) -> None:
        self._is_begun = True
        table = pa.concat_tables(self._pending)
        self._writer.write_table(table.slice(0, count).combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        self._pending, self._rows = [table.slice(count)], len(table) - count
