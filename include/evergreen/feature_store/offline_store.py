"""Feast's offline store on DuckDB's ASOF JOIN.

It is enabled by `type` in the section `offline_store` of feature_store.yaml, with no other change. Its results are
those of Feast's stock DuckDB store: inclusive boundaries (`feature ts <= entity ts <= feature ts + ttl`), the latest
event wins and among its corrections the latest created. Only the work differs: the stock store joins every entity row
with the whole past of its key and then drops all but one match; an ASOF join merges two sorted sides.
It also guarantees four things that the stock store does not:

* the rows of the result are the entity rows, in their order, each once; anything else is an error, never a shorter
  table;
* rows with equal event and created timestamps are ranked by their position in the files, so the same files and
  entities give the same bytes;
* a dataset of the lake is read through its manifests, so a partly published day is never visible;
* features have the types that Feast declares, whatever those of the files are, and keys are compared as they are: a
  value that would change is an error.

A view whose source is `served_after` a time (`evergreen.features.served_after`) has other rows than in the stock store:
only those that were in the online store at the entity's timestamp.

Timestamps are compared in microseconds; those without a time zone are UTC. Whole queries are in
`tests/unit/feature_store/snapshots`.
"""
# ruff: noqa: S608 - every name and literal that enters a statement goes through quote_name or quote_text

from __future__ import annotations

import glob
import math
import tempfile
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.type_map import feast_value_type_to_pa
from feast.utils import make_tzaware
from pydantic import PositiveInt, StrictStr

from evergreen.errors import Fault, FaultsError
from evergreen.feature_store.retrieval import visible_manifests
from evergreen.features.served_after import ServedAfter, ServingInstants
from evergreen.features.types import SUPPORTED_TYPES, ColumnCast, common_type_problem
from evergreen.ingest.databases import quote_name, quote_text
from evergreen.ingest.frames import text_as_objects
from evergreen.lake.datasets import Dataset, Manifest, find_published_table
from evergreen.settings import settings

_RETRIEVAL = "Retrieval of historical features"
_SERVED = "serving_instants_of_files"
_LIST, _AND = ",\n    ", " AND\n    "

# Of rows with the same event timestamp the greatest wins: the latest created, then the last in the files.
# The last two are virtual columns of DuckDB, so no two rows are equal and the result is always the same.
_FILE_POSITION = "file_index, file_row_number"
_ROW_RANK = f"row(event_ts, coalesce(created_ts, '-infinity'), {_FILE_POSITION})"
# The same order as one number, for sources without a created timestamp: comparing it takes half the time.
_MICROSECOND_STRIDE = 2**64
_PACKED_RANK = f"epoch_us(event_ts) * {_MICROSECOND_STRIDE}::HUGEINT + file_index * {2**40}::HUGEINT + file_row_number"


# To pull rows: beyond these limits DuckDB writes to disk, but for what it needs of each column.
_PULL_MEMORY_MB, _PULL_MEMORY_MB_PER_COLUMN, _PULL_THREADS = 256, 8, "4"
_PULLED_ROWS = 2**20
_RANGE_ROWS = 2**20  # of keys that are pulled at a time
_SAMPLED_ROWS = 20_000  # to find the ranges
_WHOLE_TYPES = ("tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger")

_SUPPORTED = {column_type.arrow for column_type in SUPPORTED_TYPES.values()}
FIRST_ROUNDED_FLOAT = 2.0**53  # also what the next integer becomes

# What DuckDB holds of a row that an ASOF join sorts, roughly: its number, instants and rank, and its values.
_SORTED_ROW_BYTES, _SORTED_VALUE_BYTES = 64, 16
_SORTED_LIMITS = 2.0  # times its memory, so much is sorted at once; 10 million rows of nine times could be, in 128 MB
_JOINS_AT_ONCE, _INTERRUPT_S = 2, 0.1
_FEW_ENTITY_ROWS = 500_000  # which are ranked sooner than a thousand files are opened to count their rows
_BYTES_PER_THREAD = 2**28  # each has buffers of its own: with less, many threads exceed any limit
# Lists of files that DuckDB reads with the same columns; some are in names of folders, such as `day=2013-01-01/`, and
# have the type that the value there can have.
_ALIKE_FILES_QUERY = """
SELECT list(file_name ORDER BY file_name)
FROM (
    SELECT file_name, list(field ORDER BY column_id) AS schema
    FROM (
        SELECT file_name, column_id, row(
            name, type, type_length, repetition_type, num_children, converted_type, scale, precision, logical_type
        ) AS field
        FROM parquet_schema({files})
    )
    GROUP BY file_name
)
GROUP BY schema, list_transform(
    regexp_extract_all(file_name, '[^/]+=[^/]*'),
    lambda part: row(split_part(part, '=', 1), {types})
)
"""
_FOLDER_TYPES = ", ".join(
    [
        *(
            f"TRY_CAST(url_decode(split_part(part, '=', 2)) AS {name}) IS NULL"
            for name in ("DATE", "TIMESTAMP", "BIGINT")
        ),
        "contains(url_decode(part), ':')",  # a date with a time is no date
        "length(regexp_replace(part, '[^=]', '', 'g'))",  # with two of them it is no column
    ]
)
_BINARY_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class RetrievalError(FaultsError):
    """Features cannot be retrieved as requested; nothing was returned."""


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """The `offline_store` section of feature_store.yaml. Unset limits are DuckDB's defaults."""

    type: Literal["evergreen.feature_store.offline_store.AsofOfflineStore"] = (
        "evergreen.feature_store.offline_store.AsofOfflineStore"
    )
    memory_limit: StrictStr | None = None  # as DuckDB writes it: "2GB", "500MB"; DuckDB spills beyond it
    threads: PositiveInt | None = None
    temp_directory: StrictStr | None = None  # where DuckDB spills to


@dataclass(eq=False, slots=True)  # slots: Feast declares these fields as properties, which they replace
class AsofRetrievalJob(RetrievalJob):
    """A retrieval that runs whenever its table is requested."""

    retrieve: Callable[[], pa.Table]
    full_feature_names: bool = False
    on_demand_feature_views: list[OnDemandFeatureView] = field(default_factory=list)
    metadata: RetrievalMetadata | None = None
    read_batches: Callable[[int, bool], Iterator[pa.Table]] | None = None
    """Returns the rows of the table in tables of about so many, the first without rows, in memory that does not grow
    with their number; with True, newest rows come in the order of their keys' bytes in an online store."""

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if timeout is not None:
            raise NotImplementedError("AsofOfflineStore has no query timeout: set one on the task that retrieves.")
        return self.retrieve()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        raise NotImplementedError("AsofOfflineStore saves no datasets: write the table of to_arrow().")

    def to_sql(self) -> str:
        raise NotImplementedError("AsofOfflineStore runs several statements, so there is no single SQL query.")


def _pull_rows(
    config: RepoConfig,
    data_source: DataSource,
    join_key_columns: list[str],
    feature_name_columns: list[str],
    timestamp_field: str,
    created_timestamp_column: str | None = None,
    start_date: datetime | None = None,
    end_date: datetime | None = None,
    latest_only: bool = False,
) -> RetrievalJob:
    """Return the rows with `start_date <= event timestamp <= end_date` in file order, or each key's latest."""
    instants = [name for name in dict.fromkeys((timestamp_field, created_timestamp_column)) if name]
    values = [name for name in dict.fromkeys((*join_key_columns, *feature_name_columns)) if name not in instants]

    def read_batches(rows: int, by_key: bool = False, in_key_order: bool = False, **limits: str) -> Iterator[pa.Table]:
        latest_by = join_key_columns if latest_only else None
        with _connect_duckdb(config, **limits) as con:
            files = SourceFiles.find(con, data_source, config)
            if not files.schemas:
                types = dict.fromkeys(values, pa.null()) | dict.fromkeys(instants, pa.timestamp("us", "UTC"))
                yield pa.schema(types).empty_table()
                return
            relation = files.relation(data_source.name, values, instants)
            key = _online_key(join_key_columns, _column_types(con, relation)) if by_key else []
            for number, key_range in enumerate(_split_keys(con, relation, key)):
                query = _pull_query(relation, values, instants, (start_date, end_date), latest_by, key_range)
                if key and in_key_order:
                    query += f"\nORDER BY {', '.join(key)}"
                reader = con.sql(query).to_arrow_reader(rows)
                if number == 0:
                    yield reader.schema.empty_table()
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def read_in_limits(rows: int, in_key_order: bool) -> Iterator[pa.Table]:
        memory = f"{_PULL_MEMORY_MB + _PULL_MEMORY_MB_PER_COLUMN * len(values)}MB"
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            limits = {"memory_limit": memory, "threads": _PULL_THREADS, "temp_directory": scratch}
            yield from read_batches(rows, latest_only, in_key_order, **limits)  # all rows come in the order of files

    return AsofRetrievalJob(lambda: pa.concat_tables(read_batches(_PULLED_ROWS)), read_batches=read_in_limits)


def earliest_timestamp(config: RepoConfig, source: DataSource) -> datetime | None:
    """Return the first event timestamp of a source; None if it has no row with one.

    Raises:
        RetrievalError: see `SourceFiles.relation`.
    """
    with _connect_duckdb(config) as con:
        files = SourceFiles.find(con, source, config)
        if not files.schemas:
            return None
        relation = files.relation(source.name, [], [source.timestamp_field])
        event_ts = f"CAST({quote_name(source.timestamp_field)} AS TIMESTAMPTZ)"
        [[microseconds]] = con.sql(f"SELECT epoch_us(min({event_ts})) FROM {relation}").fetchall()
    return None if microseconds is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


class AsofOfflineStore(OfflineStore):
    """Reads `FileSource`s of Parquet: a file, glob, directory or dataset of the lake."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,  # noqa: ARG004 - for retrieval without entities, which is not supported
        end_date: datetime | None = None,  # noqa: ARG004
    ) -> RetrievalJob:
        """Return the columns of `entity_df`, then the requested features: one row for each of its rows, in order.

        With `filter_by_created_timestamp`, a feature row counts only for entity rows at or after its created
        timestamp: the values that were known then, without later corrections.

        Raises:
            RetrievalError: `entity_df` is no DataFrame or lacks join keys, a column would appear twice, or a
                source is not Parquet; and, when the table is requested, if source columns are missing, keys
                cannot be compared, or the rows of the result are not the entity rows.
        """
        if not isinstance(entity_df, pd.DataFrame):
            problem = "got an SQL string" if isinstance(entity_df, str) else "got no entity_df"
            fault = Fault("entity_df", problem, "pass a pandas DataFrame of join keys and event timestamps")
            raise RetrievalError("AsofOfflineStore", [fault])
        event_timestamp = infer_event_timestamp_from_entity_df(
            dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        )
        views = [ViewRequest.from_feature_view(view, feature_refs, full_feature_names) for view in feature_views]
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        check_request(entity_df.columns, views, on_demand)
        # Event timestamps become UTC microseconds; the other columns stay as they are.
        timestamps = pd.to_datetime(entity_df[event_timestamp], utc=True).dt.floor("us").dt.as_unit("us")
        entity_df = text_as_objects(entity_df)  # a shallow copy
        entity_df[event_timestamp] = timestamps
        entities = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None)
        instants = entities[event_timestamp].drop_null()

        def retrieve() -> pa.Table:
            table = entities
            read_manifests = cache(visible_manifests)
            with _connect_duckdb(config) as con:
                # Before any join: all views see the same days, and threads no context of the caller's.
                sources = [SourceFiles.find(con, view.source, config, read_manifests) for view in views]
                joined = _join_side_by_side(
                    con,
                    [
                        partial(_join_table, files, entities, event_timestamp, view, filter_by_created_timestamp)
                        for view, files in zip(views, sources, strict=True)
                    ],
                )
            for view, columns in zip(views, joined, strict=True):
                for name, column in zip(view.columns, columns, strict=True):
                    table = table.append_column(name, column)
            return table

        return AsofRetrievalJob(
            retrieve,
            full_feature_names,
            on_demand,
            RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entity_df.columns if name != event_timestamp],
                min_event_timestamp=pc.min(instants).as_py(),
                max_event_timestamp=pc.max(instants).as_py(),
            ),
        )

    @staticmethod
    def offline_write_batch(*_: Any, **__: Any) -> None:
        raise NotImplementedError("AsofOfflineStore only reads: publish features through evergreen.lake.")

    @staticmethod
    def write_logged_features(*_: Any, **__: Any) -> None:
        raise NotImplementedError("AsofOfflineStore only reads: it stores no logs of served features.")

    pull_all_from_table_or_query = staticmethod(_pull_rows)
    pull_latest_from_table_or_query = staticmethod(partial(_pull_rows, latest_only=True))


@dataclass(frozen=True)
class ViewRequest:
    """A feature view as requested by one retrieval. Join keys and features have their names after field mapping."""

    name: str
    source: DataSource
    keys: dict[str, str]  # join key → column of the entity table
    features: list[str]
    columns: list[str]  # names of the features in the result
    types: list[pa.DataType]
    ttl: timedelta | None  # None or zero: no limit
    served_after: ServedAfter | None = None  # None: rows count from their event timestamp on

    @classmethod
    def from_feature_view(cls, view: FeatureView, feature_refs: list[str], full_feature_names: bool) -> ViewRequest:
        if view.batch_source is None:
            raise RetrievalError(f"View {view.name}", [Fault("source", "has no batch source", "give it one")])
        projection = view.projection
        prefix = f"{projection.name_to_use()}:"
        features = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
        # Not name_to_use(): the names of columns do not contain a pinned version.
        column_prefix = f"{projection.name_alias or view.name}__" if full_feature_names else ""
        value_types = {feature.name: feature.dtype.to_value_type() for feature in view.features}
        keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
        return cls(
            name=view.name,
            source=view.batch_source,
            keys={key: projection.join_key_map.get(key, key) for key in keys},
            features=features,
            columns=[column_prefix + feature for feature in features],
            types=[feast_value_type_to_pa(value_types[feature]) for feature in features],
            ttl=view.ttl,
            served_after=ServedAfter.from_tags(view.batch_source.tags),
        )

    def raw_names(self, columns: Collection[str]) -> dict[str, str]:
        """Return what files with these `columns` call keys, features and timestamps."""
        raw_names = {mapped: raw for raw, mapped in self.source.field_mapping.items() if raw in columns}
        timestamps = filter(None, (self.source.timestamp_field, self.source.created_timestamp_column))
        return {name: raw_names.get(name, name) for name in [*self.keys, *self.features, *timestamps]}


def check_request(
    entity_columns: Collection[str], views: Sequence[ViewRequest], on_demand_views: Sequence[OnDemandFeatureView]
) -> None:
    faults = []
    for view in views:
        missing = [column for column in view.keys.values() if column not in entity_columns]
        problem, fix = f"missing, view {view.name} joins on it", "add the column"
        faults += [Fault(f"entity_df[{column!r}]", problem, fix) for column in missing]
    for view in views:
        problem, fix = f"also a feature of view {view.name}", "use full_feature_names"
        faults += [Fault(f"entity_df[{name!r}]", problem, fix) for name in view.columns if name in entity_columns]
    for on_demand in on_demand_views:
        if on_demand.mode == "substrait":
            problem, fix = "mode substrait is not supported", "use mode pandas or python"
            faults.append(Fault(f"on demand view {on_demand.name}", problem, fix))
    if faults:
        raise RetrievalError(_RETRIEVAL, faults)


@dataclass(frozen=True)
class JoinedView:
    """The features of one view that an engine has joined with examples, in the types of the files."""

    view: str
    features: Sequence[str]
    columns: Sequence[str]
    """Names of the features in the result."""
    types: Sequence[pa.DataType]
    """As Feast declares them, see `DeclaredColumns`."""
    is_published: bool
    """False: there are no files, so that all features are missing."""

    @classmethod
    def from_request(cls, request: ViewRequest, is_published: bool) -> JoinedView:
        return cls(request.name, request.features, request.columns, request.types, is_published)


def join_out_of_core(
    con: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    feature_views: Sequence[FeatureView],
    feature_refs: Sequence[str],
    examples: str,
    columns: Mapping[str, str],
    bucket_bytes: float | None = None,
) -> list[JoinedView]:
    """Join the rows of `examples`, a table of `con`, with features as of their `event_timestamp`.

    The features of the first view are the table `view_0` (`row_number`, `feature_0`, …), ordered by row number, and so
    on; there is none of a view without files. The number of an example is its `rowid`; `columns` names the columns of
    `examples` for `event_timestamp` and keys. A view is joined in buckets of its keys, each of about `bucket_bytes`; by
    default, of the database's limit of memory. The rows are those of `AsofOfflineStore.get_historical_features`, with
    features named `view__feature`.

    Raises:
        RetrievalError: as there.
    """
    views = [ViewRequest.from_feature_view(view, list(feature_refs), True) for view in feature_views]
    check_request(columns, views, ())
    # DuckDB expects few rows in a bucket, whatever its size, and would compare all pairs of them.
    con.execute("SET asof_loop_join_threshold = 0")
    read_manifests, joined = cache(visible_manifests), []
    for number, view in enumerate(views):
        table = f"view_{number}"
        keys = [f"{quote_name(columns[column])} AS key_{i}" for i, column in enumerate(view.keys.values())]
        entity_ts = f"CAST({quote_name(columns['event_timestamp'])} AS TIMESTAMPTZ) AS entity_ts"
        entities = f"SELECT {_LIST.join(['rowid AS row_number', entity_ts, *keys])}\nFROM {quote_name(examples)}"
        con.execute(f"CREATE OR REPLACE TEMP VIEW entities AS {entities}")
        files = SourceFiles.find(con, view.source, config, read_manifests)
        if files.schemas:
            join = _plan_join(con, files, view, False)
            _join_buckets(con, join, table, _count_buckets(con, join, view, bucket_bytes or memory_limit(con)))
        joined.append(JoinedView.from_request(view, bool(files.schemas)))
    con.execute("DROP VIEW IF EXISTS entities")
    return joined


def _join_buckets(con: duckdb.DuckDBPyConnection, join: _Join, table: str, count: int) -> None:
    """Create the `table` of a join, bucket by bucket."""
    if count == 1:
        con.execute(f"CREATE TABLE {table} AS {join.query()}")
        return
    scratch, order = f"{table}_unordered", "ORDER BY row_number"
    con.execute(f"CREATE TABLE {scratch} AS SELECT * FROM ({join.query(KeyBucket(0, count))}) LIMIT 0")
    columns = len(con.table(scratch).columns)
    rows = con.sql("SELECT count(*) FROM entities").fetchall()[0][0]
    ranges = count_sorted_ranges(con, rows, columns)
    # Of buckets in order, a range reads what it has of each, and not all of them.
    bucket_order = f"\n{order}" if ranges > 1 else ""
    for number in range(count):
        con.execute(f"INSERT INTO {scratch} {join.query(KeyBucket(number, count))}{bucket_order}")
    con.execute(f"CREATE TABLE {table} AS FROM {scratch} LIMIT 0")
    size = max(1, math.ceil(rows / ranges))
    for first in range(0, rows, size):
        condition = f"row_number >= {first} AND row_number < {first + size}" if ranges > 1 else "true"
        con.execute(f"INSERT INTO {table} FROM {scratch} WHERE {condition} {order}")
    con.execute(f"DROP TABLE {scratch}")


def count_sorted_ranges(con: duckdb.DuckDBPyConnection, rows: int, columns: int) -> int:
    """Return in how many ranges rows with this many columns are sorted, each of about as many rows.

    DuckDB writes sorted runs to disk, and merges all of them at once, for which it holds a block of each: the memory
    that it needs grows with the rows, whatever its limit is.
    """
    bytes_per_row = _SORTED_ROW_BYTES + _SORTED_VALUE_BYTES * columns
    return max(1, math.ceil(rows * bytes_per_row / (_SORTED_LIMITS * memory_limit(con))))


def _count_buckets(con: duckdb.DuckDBPyConnection, join: _Join, view: ViewRequest, bucket_bytes: float) -> int:
    """Return in how many buckets a view is joined: DuckDB sorts both sides of one in memory, and spills the excess."""
    if not view.keys:
        return 1
    rows = con.sql(f"SELECT (SELECT count(*) FROM entities) + (SELECT count(*) FROM {join.relation})").fetchall()[0][0]
    bytes_per_row = _SORTED_ROW_BYTES + _SORTED_VALUE_BYTES * (len(view.keys) + len(view.features))
    return max(1, math.ceil(rows * bytes_per_row / bucket_bytes))


def memory_limit(con: duckdb.DuckDBPyConnection) -> float:
    """Return the limit of the database's memory, in bytes."""
    number, unit = con.sql("SELECT current_setting('memory_limit')").fetchall()[0][0].split()
    return float(number) * 1024.0 ** _BINARY_UNITS.index(unit)


class DeclaredColumns:
    """Casts the columns of a view, batch by batch, to the types that Feast declares; others than Evergreen's stay."""

    def __init__(self, view: str, features: Sequence[str], types: Sequence[pa.DataType]):
        self._names = [f"{view}:{feature}" for feature in features]
        self._casts = [ColumnCast(dtype) if str(dtype) in _SUPPORTED else None for dtype in types]

    def cast(self, columns: Sequence[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
        return [cast.add(column) if cast else column for cast, column in zip(self._casts, columns, strict=True)]

    def faults(self) -> list[Fault]:
        """Return a fault for each feature with values, in any batch so far, that its type does not keep."""
        fix = "build its days again, or declare another type"
        casts = zip(self._names, self._casts, strict=True)
        return [Fault(name, cast.problem, fix) for name, cast in casts if cast and cast.problem]


def _join_side_by_side(
    con: duckdb.DuckDBPyConnection, joins: Sequence[Callable[[duckdb.DuckDBPyConnection], list[pa.ChunkedArray]]]
) -> list[list[pa.ChunkedArray]]:
    """Return the columns of each join, which has a connection of its own to the database of `con`.

    A join leaves processors idle: while files are found, columns become Arrow, and few threads have sorted rows left.
    Few joins run at a time, as each needs memory; with one thread, one does.
    """
    threads = con.execute("SELECT current_setting('threads')").fetchall()[0][0]
    with ExitStack() as stack:
        connections = [stack.enter_context(con.cursor()) for _ in joins]
        workers = stack.enter_context(ThreadPoolExecutor(min(threads, _JOINS_AT_ONCE), "evergreen-join"))
        joined = [workers.submit(join, connection) for join, connection in zip(joins, connections, strict=True)]
        try:
            for columns in wait(joined, return_when=FIRST_EXCEPTION).done:
                columns.result()  # an error of any view: those before it may take long yet
            return [columns.result() for columns in joined]
        except BaseException:  # a time limit of the caller's, too
            for columns in joined:
                columns.cancel()
            while wait(joined, _INTERRUPT_S).not_done:  # again and again: the next query may just begin
                for connection in connections:
                    connection.interrupt()
            raise


def _join_table(
    files: SourceFiles,
    entities: pa.Table,
    event_timestamp: str,
    view: ViewRequest,
    filter_by_created_timestamp: bool,
    con: duckdb.DuckDBPyConnection,
) -> list[pa.ChunkedArray]:
    """Return the columns of `view.features`, as long as `entities` and in its order."""
    if not files.schemas:
        return [pa.chunked_array([pa.nulls(entities.num_rows, dtype)]) for dtype in view.types]
    keys = {f"key_{i}": entities[column] for i, column in enumerate(view.keys.values())}
    row_numbers = np.arange(entities.num_rows)
    con.register("entities", pa.table({"row_number": row_numbers, "entity_ts": entities[event_timestamp], **keys}))
    joined = con.sql(_plan_join(con, files, view, filter_by_created_timestamp).query()).to_arrow_table()
    check_row_numbers(view.name, joined["row_number"].to_numpy(), entities.num_rows)
    declared = DeclaredColumns(view.name, view.features, view.types)
    columns = declared.cast(joined.columns[1:])
    if faults := declared.faults():
        raise RetrievalError(_RETRIEVAL, faults)
    return columns


class KeyBucket(NamedTuple):
    """A part of the keys of a join: those whose hash, divided by `total`, leaves `number`."""

    number: int
    total: int


@dataclass(frozen=True)
class _Join:
    """The join of the table `entities` with the rows of a view; see `_asof_join_query`."""

    relation: str
    query: Callable[..., str]


def _plan_join(
    con: duckdb.DuckDBPyConnection, files: SourceFiles, view: ViewRequest, filter_by_created_timestamp: bool
) -> _Join:
    """Return the join of the table `entities` (row_number, entity_ts, key_0, …) with the rows of `view`.

    Raises:
        RetrievalError: columns are missing in the files, or keys cannot be compared.
    """
    raw = view.raw_names(files.columns)
    values = [raw[name] for name in (*view.keys, *view.features)]
    relation = files.relation(view.name, values, [name for name in raw.values() if name not in values])
    source_types, entity_types = _column_types(con, relation), _column_types(con, "entities")
    for i, (key, column) in enumerate(view.keys.items()):
        _check_key_types(view.name, key, source_types[raw[key]], column, entity_types[f"key_{i}"])
        _check_float_key(con, column, f"key_{i}", entity_types[f"key_{i}"])
    if view.served_after:
        _create_serving_instants(con, files.serving_instants(view))
    first, last, count = con.execute("SELECT min(entity_ts), max(entity_ts), count(*) FROM entities").fetchall()[0]
    span = first, last
    ranks_all = view.served_after or filter_by_created_timestamp or not _may_skip_ranks(con, relation, count)

    @cache
    def find_key_types() -> list[str]:
        return [_common_key_type(con, f"key_{i}", quote_name(raw[key]), relation) for i, key in enumerate(view.keys)]

    def query(bucket: KeyBucket | None = None) -> str:
        key_types = find_key_types() if bucket else []
        ties = ranks_all or con.execute(_ties_query(relation, view, raw, span, key_types, bucket)).fetchall()
        parts = relation, view, raw, span, filter_by_created_timestamp, key_types, bucket
        return _asof_join_query(*parts, has_ties=bool(ties))

    return _Join(relation, query)


def _common_key_type(con: duckdb.DuckDBPyConnection, entity_key: str, key: str, relation: str) -> str:
    """Return the type as which DuckDB compares a key of `entities` with one of the files."""
    return str(con.sql(f"SELECT {entity_key} FROM entities UNION ALL SELECT {key} FROM {relation}").types[0])


def _may_skip_ranks(con: duckdb.DuckDBPyConnection, relation: str, entity_rows: int) -> bool:
    """Return whether to look for ties may cost less than to rank all rows of both sides.

    Most tables have none. To look reads all files once more; to rank costs up to a third of the join.
    """
    if entity_rows < _FEW_ENTITY_ROWS:
        return False
    feature_rows: int = con.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0]
    return entity_rows >= feature_rows / 2


def _asof_join_query(
    relation: str,
    view: ViewRequest,
    raw_names: Mapping[str, str],
    span: tuple[datetime | None, datetime | None],
    filter_by_created_timestamp: bool,
    key_types: Sequence[str] = (),
    bucket: KeyBucket | None = None,
    has_ties: bool = True,
) -> str:
    """Return the query that joins the table `entities` (row_number, entity_ts, key_0, …) with a view's rows.

    Its result has one row per entity row: row_number, feature_0, …. Only columns in use, and only rows that some entity
    row of the `span` of timestamps can reach, are read from the files. With a `bucket`, it has the rows of its keys
    only, in any order; keys are hashed as `key_types`, as which they are compared. Without ties, no two rows of a key
    have the same event timestamp, and so none has to be ranked. Of a view that is `served_after`, it also reads the
    table of `_create_serving_instants`.
    """
    keys = [f"key_{i}" for i in range(len(view.keys))]
    source = view.source
    ttl = _interval(view.ttl) if view.ttl else None
    event_ts = f"CAST({quote_name(raw_names[source.timestamp_field])} AS TIMESTAMPTZ)"
    created_name = source.created_timestamp_column
    created_ts = quote_name(raw_names[created_name]) if created_name else "NULL"
    columns = [f"{quote_name(raw_names[key])} AS key_{i}" for i, key in enumerate(view.keys)]
    columns += [f"{quote_name(raw_names[feature])} AS feature_{i}" for i, feature in enumerate(view.features)]
    columns += [f"{event_ts} AS event_ts", f"CAST({created_ts} AS TIMESTAMPTZ) AS created_ts", _FILE_POSITION]
    known_from = ["event_ts"]
    if filter_by_created_timestamp and created_name:
        known_from.append("created_ts")
    if view.served_after:
        known_from.append("served_ts")
        columns.append(f'CASE WHEN {event_ts} < "served.end" THEN "served.at" ELSE "served.later_at" END AS served_ts')
        relation = f'{relation}\nJOIN {_SERVED} ON "served.file" = file_index'
    reachable = _reachable_conditions(view, event_ts, span)
    entities, order = "entities", "\nORDER BY row_number"
    if bucket:
        entity_keys, feature_keys = keys, [quote_name(raw_names[key]) for key in view.keys]
        rows = f"SELECT *\nFROM entities\nWHERE {_bucket_condition(entity_keys, key_types, bucket)}"
        entities, order = f"({_indent(rows)}) AS entities", ""
        reachable.append(_bucket_condition(feature_keys, key_types, bucket))
    feature_rows = f"SELECT {_LIST.join(columns)}\nFROM {relation}\nWHERE {_AND.join(reachable)}"

    if len(known_from) > 1:
        feature_rows, match = _best_known_rows_query(feature_rows, keys, known_from), "entity_ts >= known_at"
    elif not has_ties and not filter_by_created_timestamp:
        match = "entity_ts >= event_ts"
    elif not created_name:
        match = f"(epoch_us(entity_ts) + 1) * {_MICROSECOND_STRIDE}::HUGEINT > {_PACKED_RANK}"
    else:
        # Inside a row, NULL is greater than any value: the upper end of everything at this instant.
        match = f"row(entity_ts, NULL, NULL, NULL) >= {_ROW_RANK}"
    # Without a TTL this repeats the join, except for entity rows without a timestamp, which match everything.
    valid = f"entity_ts <= event_ts + {ttl}" if ttl else "entity_ts >= event_ts"
    features = [f"CASE WHEN {valid} THEN feature_{i} END AS feature_{i}" for i in range(len(view.features))]
    matches = [*(f"entities.{key} = feature_rows.{key}" for key in keys), match]
    return (
        f"SELECT {_LIST.join(['row_number', *features])}\nFROM {entities}\n"
        f"ASOF LEFT JOIN ({_indent(feature_rows)}) AS feature_rows\nON {_AND.join(matches)}{order}"
    )


def _ties_query(
    relation: str,
    view: ViewRequest,
    raw_names: Mapping[str, str],
    span: tuple[datetime | None, datetime | None],
    key_types: Sequence[str],
    bucket: KeyBucket | None,
) -> str:
    """Return the query for one of the keys and event timestamps that several rows within reach have."""
    event_ts = f"CAST({quote_name(raw_names[view.source.timestamp_field])} AS TIMESTAMPTZ)"
    keys = [quote_name(raw_names[key]) for key in view.keys]
    conditions = [*_reachable_conditions(view, event_ts, span), *(f"{key} IS NOT NULL" for key in keys)]
    if bucket:
        conditions.append(_bucket_condition(keys, key_types, bucket))
    return (
        f"SELECT true\nFROM {relation}\nWHERE {_AND.join(conditions)}\n"
        f"GROUP BY {', '.join([*keys, event_ts])}\nHAVING count(*) > 1\nLIMIT 1"
    )


def _reachable_conditions(view: ViewRequest, event_ts: str, span: tuple[datetime | None, datetime | None]) -> list[str]:
    """Return which rows of a view some entity row of the `span` of timestamps can reach."""
    first, last = map(_timestamp_literal, span)
    expiry = [f"{event_ts} >= {first} - {_interval(view.ttl)}"] if view.ttl else []
    return [f"{event_ts} <= {last}", *expiry]


def _interval(duration: timedelta) -> str:
    return f"to_microseconds({duration // timedelta(microseconds=1)})"


def _bucket_condition(keys: Sequence[str], key_types: Sequence[str], bucket: KeyBucket) -> str:
    typed = ", ".join(f"CAST({key} AS {type_})" for key, type_ in zip(keys, key_types, strict=True))
    return f"hash({typed}) % {bucket.total} = {bucket.number}"


def _create_serving_instants(con: duckdb.DuckDBPyConnection, instants: Sequence[ServingInstants]) -> None:
    """Create the table of the instants from which on the rows of each file of a view are served, by its number."""
    names = ("end", "at", "later_at")
    columns = {
        f"served.{name}": pa.array(column, pa.timestamp("us", "UTC"))
        for name, column in zip(names, zip(*instants, strict=True), strict=True)
    }
    con.register("serving_instants", pa.table({"served.file": np.arange(len(instants)), **columns}))
    con.execute(f"CREATE OR REPLACE TEMP TABLE {_SERVED} AS FROM serving_instants")
    con.unregister("serving_instants")


def _best_known_rows_query(feature_rows: str, keys: Sequence[str], known_from: Sequence[str]) -> str:
    """Return a query for the rows that ever were the best known, with the instant `known_at` since when.

    A row is known once it is past all the instants `known_from`: it has happened, was created, is served. It is dropped
    if a better one was known by then. Of the remaining rows the latest known is the best known, which is again a
    condition for an ASOF join.
    """
    partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
    return (
        f"SELECT *, greatest({', '.join(known_from)}) AS known_at\nFROM ({_indent(feature_rows)})\n"
        f"WHERE {known_from[1]} IS NOT NULL\n"
        f"QUALIFY {_ROW_RANK} >= max({_ROW_RANK}) OVER ({partition}ORDER BY known_at)"
    )


def check_row_numbers(view: str, row_numbers: np.ndarray[Any, Any], expected: int, first: int = 0) -> None:
    """Raise unless the row numbers of the join's result, or of a batch of it, are first … first + expected - 1."""
    if not np.array_equal(row_numbers, np.arange(first, first + expected)):
        distinct = len(np.unique(row_numbers))
        problem = f"{expected} entity rows in, {len(row_numbers)} rows out ({distinct} of them distinct)"
        fault = Fault(f"view {view}", problem, "this is a bug: report it")
        raise RetrievalError(_RETRIEVAL, [fault])


def _pull_query(
    relation: str,
    values: Sequence[str],
    instants: Sequence[str],
    span: tuple[datetime | None, datetime | None],
    latest_by: Sequence[str] | None = None,
    condition: str = "",
) -> str:
    """Return the query for the rows of the `span` by the first of `instants`; with `latest_by`, the newest per key.

    A `condition` has to be true of all rows of a key, or of none.
    """
    quoted = {name: quote_name(name) for name in [*values, *instants, *(latest_by or ())]}
    timestamps = [f"CAST({quoted[name]} AS TIMESTAMPTZ) AS {quoted[name]}" for name in instants]
    query = f"SELECT {_LIST.join([*(quoted[name] for name in values), *timestamps])}\nFROM {relation}"
    bounds = [
        f"CAST({quoted[instants[0]]} AS TIMESTAMPTZ) {operator} {_timestamp_literal(make_tzaware(bound))}"
        for operator, bound in zip((">=", "<="), span, strict=True)
        if bound
    ]
    if conditions := [*bounds, *([condition] if condition else [])]:
        query += f"\nWHERE {_AND.join(conditions)}"
    if latest_by is not None:
        keys = ", ".join(quoted[key] for key in latest_by) or "NULL"
        newest_first = [
            *(f"{quoted[name]} DESC NULLS LAST" for name in instants),
            "file_index DESC, file_row_number DESC",
        ]
        query += f"\nQUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {', '.join(newest_first)}) = 1"
    return query


def _online_key(columns: Sequence[str], types: Mapping[str, str]) -> list[str]:
    """Return terms whose order is that of the keys' bytes in Feast's online stores.

    Those have the length of a text before it, and of a number the lowest byte first.
    """
    terms = []
    for name, quoted in ((name, quote_name(name)) for name in columns):
        if types[name] in _WHOLE_TYPES:
            number = f"CAST({quoted} AS BIGINT)"
            swapped = (f"(CAST(({number} >> {8 * n}) & 255 AS UBIGINT) << {56 - 8 * n})" for n in range(8))
            terms.append(" | ".join(swapped))
        else:
            terms += [f"strlen({quoted})", quoted] if types[name] == "varchar" else [quoted]
    return terms


def _split_keys(con: duckdb.DuckDBPyConnection, relation: str, key: Sequence[str]) -> Iterator[str]:
    """Yield conditions that split the rows of a relation by ranges of `key`, in order; empty for all rows.

    What DuckDB needs to compare rows of a key, and to sort keys, grows with the rows, whatever its limit is.
    """
    rows = con.sql(f"SELECT count(*) FROM {relation}").fetchall()[0][0] if key else 0
    yield from split_rows(con, relation, key, math.ceil(rows / _RANGE_ROWS))


def split_rows(con: duckdb.DuckDBPyConnection, relation: str, terms: Sequence[str], ranges: int) -> Iterator[str]:
    """Yield conditions that split the rows of a relation by ranges of `terms`, in order; empty for all rows.

    There are about as many rows in each, by the order of a sample, and at most `ranges` of them.
    """
    if ranges < 2:
        yield ""
        return
    value = f"struct_pack({', '.join(f'term_{number} := {term}' for number, term in enumerate(terms))})"
    sample = f"SELECT {value} AS key FROM {relation} USING SAMPLE {_SAMPLED_ROWS} ROWS"
    con.execute(f"CREATE OR REPLACE TEMP TABLE sampled AS {sample}")
    con.execute(
        "CREATE OR REPLACE TEMP TABLE ends AS SELECT DISTINCT max(key) AS key "
        f"FROM (SELECT key, ntile({ranges}) OVER (ORDER BY key) AS number FROM sampled) GROUP BY number"
    )
    count = con.sql("SELECT count(*) FROM ends").fetchall()[0][0]
    for number in range(count):
        con.execute(f"SET VARIABLE end_{number} = (SELECT key FROM ends ORDER BY key LIMIT 1 OFFSET {number})")
        is_after = f"{value} > getvariable('end_{number - 1}')" if number else "true"
        is_before_end = f"{value} <= getvariable('end_{number}')" if number < count - 1 else "true"
        yield f"CASE WHEN {is_after} THEN {is_before_end} ELSE false END"  # DuckDB has no BETWEEN for structs


@dataclass(frozen=True)
class SourceFiles:
    """The Parquet files of a source; there are none in a dataset of the lake with nothing published."""

    schemas: Mapping[str, Mapping[str, str]]
    """By file: its columns and their Arrow types."""
    arguments: str = ""
    """Of DuckDB's read_parquet."""
    periods: Sequence[str] = ()
    """The period of each file; none of files that are not in the lake."""

    @classmethod
    def find(
        cls,
        con: duckdb.DuckDBPyConnection,
        source: DataSource,
        config: RepoConfig,
        read_manifests: Callable[[Dataset], list[Manifest]] = visible_manifests,
    ) -> SourceFiles:
        if published := cls.find_published(source, config, read_manifests):
            return published
        literal = quote_text(source_path(source, config))
        schemas: dict[str, dict[str, str]] = {}
        for (files,) in con.execute(_ALIKE_FILES_QUERY.format(files=literal, types=_FOLDER_TYPES)).fetchall():
            # One is read for all of them: each takes a millisecond, and three views of a year have a thousand.
            schema = con.sql(f"FROM read_parquet({quote_text(files[0])}) LIMIT 0").to_arrow_table().schema
            columns = {field.name: str(field.type) for field in schema}
            schemas |= dict.fromkeys(files, columns)
        return cls(dict(sorted(schemas.items())), literal)

    @classmethod
    def find_published(
        cls, source: DataSource, config: RepoConfig, read_manifests: Callable[[Dataset], list[Manifest]]
    ) -> SourceFiles | None:
        """Return the published files of a source, oldest partition first; None if it is not in the lake."""
        table = find_published_table(source_path(source, config), read_manifests)
        if table is None:
            return None
        published = table.local_files()
        # The names of published folders are not data: day=… must not replace a column `day`.
        files = ", ".join(quote_text(glob.escape(file)) for file in published)
        return cls(published, f"[{files}], hive_partitioning = false", table.periods)

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the first file, which DuckDB takes for those of all."""
        return list(next(iter(self.schemas.values())))

    def serving_instants(self, view: ViewRequest) -> list[ServingInstants]:
        """Return when the rows of each file are served, as the view declares it.

        Raises:
            RetrievalError: the files are not those of periods.
        """
        assert view.served_after
        if len(self.periods) < len(self.schemas):
            fault = Fault(f"source {view.source.name}", "is served_after periods, and not published in the lake")
            raise RetrievalError(f"View {view.name}", [fault])
        return [view.served_after.instants(period) for period in self.periods]

    def relation(self, name: str, values: Sequence[str], instants: Sequence[str]) -> str:
        """Return the table expression that reads these columns: keys and features, and timestamps.

        Raises:
            RetrievalError: see `check_columns`.
        """
        self.check_columns(name, values, instants)
        if all(len(self._types(column)) == 1 for column in values):
            return f"read_parquet({self.arguments})"
        # DuckDB would cast the columns of all files to the types of the first, and so round 0.7 to 1.
        return f"read_parquet({self.arguments}, union_by_name = true)"

    def check_columns(self, name: str, values: Sequence[str], instants: Sequence[str]) -> None:
        """Check the columns of keys and features, and of timestamps.

        Raises:
            RetrievalError: they are missing, or the types of several files cannot be read as one.
        """
        # DuckDB itself would accept `Delay` for `delay`.
        existing = f"there are {', '.join(self.columns)}"
        missing = [column for column in (*values, *instants) if column not in self.columns]
        if missing:
            faults = [Fault(column, "no such column in its files", existing) for column in missing]
            raise RetrievalError(f"Source of {name}", faults)
        fix = "build their days again, or declare one type"
        faults = []
        for column in dict.fromkeys((*values, *instants)):
            by_type = self._types(column)
            if partial := [file for file, schema in self.schemas.items() if column not in schema]:
                faults.append(Fault(column, f"no such column in {len(partial)} files, such as {partial[0]}", fix))
            elif column in values and (problem := common_type_problem(by_type)):
                examples = ", ".join(f"{arrow_type} in {file}" for arrow_type, file in sorted(by_type.items()))
                faults.append(Fault(column, f"{problem}: {examples}", fix))
        if faults:
            raise RetrievalError(f"Source of {name}", faults)

    def _types(self, column: str) -> dict[str, str]:
        """Return the Arrow types of a column, each with the last file that has it."""
        return {schema[column]: file for file, schema in self.schemas.items() if column in schema}


def source_path(source: DataSource, config: RepoConfig) -> str:
    """Return the path or URI of a source.

    Raises:
        RetrievalError: it is no file of Parquet.
    """
    if not isinstance(source, FileSource) or not isinstance(source.file_format, ParquetFormat | None):
        fault = Fault(f"source {source.name}", "not supported", "use a FileSource of Parquet")
        raise RetrievalError("AsofOfflineStore", [fault])
    return str(FileSource.get_uri_for_file_path(config.repo_path, source.path))


@contextmanager
def _connect_duckdb(config: RepoConfig, **defaults: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database with the configured limits, for one retrieval."""
    limits = config.offline_store.model_dump(include={"memory_limit", "threads", "temp_directory"}, exclude_none=True)
    with duckdb.connect(config={**defaults, **limits}) as con:
        # Naive timestamps are UTC, and a day is 24 hours: globally, for all connections to it.
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        yield con


@contextmanager
def open_scratch_database(config: RepoConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database for tables that may exceed its memory: what the configuration leaves open, settings limit."""
    current = settings()
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-examples-", dir=current.duckdb_scratch) as scratch,
        _connect_duckdb(config, memory_limit=current.duckdb_memory, temp_directory=scratch) as con,
    ):
        if not getattr(config.offline_store, "threads", None):
            threads = con.sql("SELECT current_setting('threads')").fetchall()[0][0]
            con.execute(f"SET threads = {max(1, min(threads, int(memory_limit(con) / _BYTES_PER_THREAD)))}")
        yield con


def _column_types(con: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    rows = con.sql(f"FROM {relation}")
    return {name: dtype.id for name, dtype in zip(rows.columns, rows.types, strict=True)}


def _check_key_types(view: str, key: str, source_type: str, column: str, entity_type: str) -> None:
    """Raise for text against anything else, which DuckDB would cast: "01" must not match 1; and for floats in files."""
    text, problem = {"varchar", "enum"}, ""
    if source_type in ("float", "double"):
        problem, fix = f"is {source_type} in the files of view {view}, which rounds whole numbers", "store integers"
    elif "null" not in (entity_type, source_type) and (source_type in text) != (entity_type in text):
        problem, fix = f"is {entity_type}, but join key {key} of view {view} is {source_type}", "cast one of them"
    if problem:
        raise RetrievalError(_RETRIEVAL, [Fault(f"entity_df[{column!r}]", problem, fix)])


def _check_float_key(con: duckdb.DuckDBPyConnection, column: str, key: str, entity_type: str) -> None:
    """Raise for a float that may have been another whole number: pandas makes floats of integers if one is missing."""
    if entity_type not in ("float", "double"):
        return
    query = f"SELECT count(*) FROM entities WHERE abs({key}) >= {FIRST_ROUNDED_FLOAT} AND NOT isnan({key})"
    if rounded := con.sql(query).fetchall()[0][0]:
        problem = f"is {entity_type}, and {rounded:,} of its values may have been rounded"
        fault = Fault(f"entity_df[{column!r}]", problem, "use integers; where one is missing, pandas' Int64")
        raise RetrievalError(_RETRIEVAL, [fault])


def _indent(query: str) -> str:
    return "\n" + textwrap.indent(query, "    ") + "\n"


def _timestamp_literal(value: datetime | None) -> str:
    return f"TIMESTAMPTZ {quote_text(value.isoformat())}" if value else "NULL::TIMESTAMPTZ"
