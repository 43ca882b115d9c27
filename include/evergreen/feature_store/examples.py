"""The examples of a training set, whatever engine joins them with features: which there are, and the files they go to.

An engine yields rows in batches, in one order and with one set of values. So Python holds a few batches of them, and
the bytes of the files do not depend on the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView
from feast.repo_config import RepoConfig

from evergreen.errors import Fault, SpecError
from evergreen.feature_store.offline_store import DeclaredColumns, JoinedView, RetrievalError
from evergreen.features.types import common_type_problem
from evergreen.ingest.frames import text_as_strings
from evergreen.ingest.row_groups import ROW_GROUP_ROWS
from evergreen.lake import datasets

LABEL_COLUMNS = ("label", "label_known_at")
"""Unknown at the time of a prediction."""

POSITION_COLUMNS = ("file_index", "file_row_number")
"""Virtual columns of DuckDB, which a column of that name would hide."""


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
    made_from: datetime | None = None
    """None: of predictions whenever they were made; else only of those made at this instant or later."""


class Examples(ABC):
    """The examples of some periods, ordered by time, then by period, then as in their files.

    Use `count_labels`, `select`, `join`, and `write_files`, in this order.
    """

    def __init__(self, schema: pa.Schema):
        self._schema = schema  # of the spine
        # Names of columns come from users, so an engine has names of its own.
        self._columns = {name: f"column_{number}" for number, name in enumerate(schema.names)}
        self._columns |= {"day": "day", datasets.PERIOD_COLUMN: "period"}
        self._selections: Mapping[str, Selection] = {}
        self._views: list[JoinedView] = []

    @property
    def schema(self) -> pa.Schema:
        """The columns of the spine, and `label`."""
        return self._schema

    @abstractmethod
    def count_labels(self, known_before: datetime, made_from: datetime | None = None) -> list[LabelCount]:
        """Return the number of examples, and of those whose label was known, of each period that has any, in order.

        With `made_from`, only examples of predictions that were made at this instant or later count.
        """

    @abstractmethod
    def select(self, selections: Mapping[str, Selection]) -> int:
        """Keep the examples of these files, by name; return their number."""

    @abstractmethod
    def join(self, config: RepoConfig, views: Sequence[FeatureView], feature_refs: Sequence[str]) -> None:
        """Join the features, named `view__feature`, as of each example's `event_timestamp`.

        Of a key's rows the one with the latest event timestamp counts, among equal ones the latest created, then the
        last in the files; if it is older than the view's TTL, its features are missing.

        Raises:
            RetrievalError: columns are missing, or keys cannot be compared.
        """

    @abstractmethod
    def _read_columns(self) -> Iterator[list[pa.ChunkedArray]]:
        """Yield batches of rows, in order: a mask of each file, the columns, then the features of each view with files.

        Raises:
            RetrievalError: the rows are not the examples.
        """

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
        faults: list[Fault] = []
        for columns in self._read_columns():
            values = iter(columns)
            file_masks = {name: next(values) for name in self._selections}
            rows = {name: next(values) for name in self._columns}
            count = len(rows["day"])
            for view, cast in zip(self._views, casts, strict=True):
                if view.is_published:
                    rows |= zip(view.columns, cast.cast([next(values) for _ in view.columns]), strict=True)
                else:
                    nulls = (pa.chunked_array([pa.nulls(count, dtype)]) for dtype in view.types)
                    rows |= zip(view.columns, nulls, strict=True)
            faults = [fault for cast in casts for fault in cast.faults()]
            if not faults:  # else only the values that change are counted, of all examples
                yield pa.table([_as_type(rows[field.name], field.type) for field in schema], schema=schema), file_masks
        if faults:
            raise RetrievalError("Retrieval of historical features", faults)


def unify_spine(model: str, spine: str, schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """Return the columns that files of the table `spine`, by period, have in common, each with a type for all periods.

    Raises:
        SpecError: columns have types that do not fit together.
    """
    if faults := list(_spine_faults(spine, schemas)):
        raise SpecError(f"model {model}", faults)
    schema = pa.unify_schemas(list(schemas.values()), promote_options="permissive")
    return text_as_strings(schema.remove_metadata().empty_table()).schema


def rename_label(schema: pa.Schema, label: str) -> pa.Schema:
    """Return the schema of a spine, with `label` named `label`."""
    return pa.schema([field.with_name("label") if field.name == label else field for field in schema])


def _as_type(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """Return a column of an engine as the type that it has in the files, all of whose values it holds."""
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
        if column.lower() in POSITION_COLUMNS:
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
