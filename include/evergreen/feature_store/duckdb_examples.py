"""The examples of a training set, joined by DuckDB in the task, out of core.

They are in tables of a database of their own, whose memory is limited by the setting `duckdb_memory`; what exceeds it
is in a scratch folder. So the memory of a task does not grow with its examples.
"""
# ruff: noqa: S608 - names are quoted or made here, and literals are quoted

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView
from feast.repo_config import RepoConfig

from evergreen.feature_store.examples import (
    LABEL_COLUMNS,
    POSITION_COLUMNS,
    Examples,
    LabelCount,
    Selection,
    rename_label,
    unify_spine,
)
from evergreen.feature_store.offline_store import (
    check_row_numbers,
    count_sorted_ranges,
    join_out_of_core,
    memory_limit,
    split_rows,
)
from evergreen.ingest.databases import quote_name, quote_text
from evergreen.ingest.row_groups import ROW_GROUP_ROWS
from evergreen.periods import Calendar


class DuckDBExamples(Examples):
    """Examples in a database of DuckDB; see `Examples`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, schema: pa.Schema):
        super().__init__(schema)
        self._con = con

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
        schema = unify_spine(model, spine, schemas)
        examples = cls(con, rename_label(schema, label))
        rows = [(number, period, calendar.date_of(period)) for number, period in enumerate(files)]
        con.execute("CREATE TABLE periods (number INTEGER, period VARCHAR, day DATE)")
        con.executemany("INSERT INTO periods VALUES (?, ?, ?)", rows)
        columns = [f"file_rows.{quote_name(name)} AS column_{number}" for number, name in enumerate(schema.names)]
        paths = ", ".join(quote_text(glob.escape(str(file))) for file in files.values())
        options = "hive_partitioning = false" + (", union_by_name = true" if len(set(schemas.values())) > 1 else "")
        con.execute(
            "CREATE VIEW spine AS "
            f"SELECT {', '.join(columns)}, periods.day, periods.period, {', '.join(POSITION_COLUMNS)} "
            f"FROM read_parquet([{paths}], {options}) AS file_rows JOIN periods ON periods.number = file_index"
        )
        return examples

    def count_labels(self, known_before: datetime, made_from: datetime | None = None) -> list[LabelCount]:
        condition = f"WHERE {self._is_made_from(made_from)} " if made_from else ""
        query = (
            f"SELECT period, any_value(day), count(*), count(*) FILTER ({self._is_label_known(known_before)}) "
            f"FROM spine {condition}GROUP BY period ORDER BY period"
        )
        return [LabelCount(*row) for row in self._con.sql(query).fetchall()]

    def select(self, selections: Mapping[str, Selection]) -> int:
        self._selections = selections
        conditions = " OR ".join(self._condition(selection) for selection in selections.values())
        selected = f"(FROM spine WHERE {conditions})"
        order = [self._columns["event_timestamp"], *POSITION_COLUMNS]
        columns = ", ".join(self._columns.values())
        query = f"SELECT {columns} FROM {selected}"
        self._con.execute(f"CREATE TABLE examples AS {query} LIMIT 0")
        rows = int(self._con.sql(f"SELECT count(*) FROM {selected}").fetchall()[0][0])
        ranges = count_sorted_ranges(self._con, rows, len(self._columns))
        for condition in split_rows(self._con, selected, order, ranges):
            self._con.execute(f"INSERT INTO examples {query} WHERE {condition or 'true'} ORDER BY {', '.join(order)}")
        return rows

    def join(
        self,
        config: RepoConfig,
        views: Sequence[FeatureView],
        feature_refs: Sequence[str],
        bucket_bytes: float | None = None,
    ) -> None:
        """See `Examples.join`, and `join_out_of_core` for `bucket_bytes`."""
        self._views = join_out_of_core(self._con, config, views, feature_refs, "examples", self._columns, bucket_bytes)

    def _read_columns(self) -> Iterator[list[pa.ChunkedArray]]:
        columns = [f"{self._condition(selection)}" for selection in self._selections.values()]
        columns += [f"examples.{column}" for column in self._columns.values()]
        source, tables = "examples", [number for number, view in enumerate(self._views) if view.is_published]
        for number in tables:
            columns += [f"view_{number}.feature_{i}" for i in range(len(self._views[number].features))]
            source += f" POSITIONAL JOIN view_{number}"
        numbers = [f"view_{number}.row_number" for number in tables]
        # Rows are read once, in order, while Python writes others: half of what joined them is enough.
        self._con.execute(f"SET memory_limit = '{memory_limit(self._con) // 2:.0f}B'")
        reader = self._con.sql(f"SELECT {', '.join([*columns, *numbers])} FROM {source}").to_arrow_reader(
            ROW_GROUP_ROWS
        )
        first = 0
        for batch in reader:
            values = pa.Table.from_batches([batch]).columns
            for number, row_numbers in zip(tables, values[len(columns) :], strict=True):
                check_row_numbers(self._views[number].view, row_numbers.to_numpy(), len(batch), first)
            first += len(batch)
            yield values[: len(columns)]

    def _condition(self, selection: Selection) -> str:
        condition = f"period >= {quote_text(selection.period_from)} AND period < {quote_text(selection.period_before)}"
        if selection.known_before:
            condition += f" AND {self._is_label_known(selection.known_before)}"
        if selection.made_from:
            condition += f" AND {self._is_made_from(selection.made_from)}"
        return f"({condition})"

    def _is_made_from(self, instant: datetime) -> str:
        made_at = f"CAST({self._columns['event_timestamp']} AS TIMESTAMPTZ)"
        return f"coalesce({made_at} >= TIMESTAMPTZ {quote_text(instant.isoformat())}, false)"

    def _is_label_known(self, instant: datetime) -> str:
        label, known_at = (self._columns[name] for name in LABEL_COLUMNS)
        in_time = f"CAST({known_at} AS TIMESTAMPTZ) < TIMESTAMPTZ {quote_text(instant.isoformat())}"
        return f"{label} IS NOT NULL AND coalesce({in_time}, false)"
