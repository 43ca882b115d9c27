"""Feast's offline store, answered by DuckDB's ASOF JOIN.

Plugged in by configuration, no other change::

    offline_store:
      type: evergreen.feature_store.offline_store.AsofOfflineStore
      memory_limit: 2GB

The answers are those of Feast's stock DuckDB store: inclusive boundaries (`feature ts <= entity ts <= feature
ts + ttl`), the latest event wins and among its corrections the latest created. What differs is the work: the
stock store joins every entity row with the whole past of its key and then throws all but one away; an ASOF
join merges two sorted sides. Three more promises that the stock store does not make:

* rows out are the rows in, in their order, each once; anything else is an error, never a shorter table;
* rows that tie in event and created timestamp are decided by their place in the files, so the same files
  and entities give the same bytes;
* a dataset of the lake is read through its manifests, so a half-published day is never seen.

Timestamps are compared in microseconds; those without a time zone are UTC.
"""

# ruff: noqa: S608 - every name and literal that enters a statement goes through _name or _text.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

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
from evergreen.lake.datasets import published_files

# Of rows with the same event timestamp the greatest wins: the latest created, then the last in the files.
# The last two are virtual columns of DuckDB's, so no two rows are equal and the answer is always the same.
_FILE_POSITION = "file_index, file_row_number"
_ROW_RANK = f"row(ts, coalesce(created, '-infinity'), {_FILE_POSITION})"
# The same order as one number, where no row has a created timestamp: it is compared in half the time.
_MICROSECOND_STRIDE = 2**64
_PACKED_RANK = f"epoch_us(ts) * {_MICROSECOND_STRIDE}::HUGEINT + file_index * {2**40}::HUGEINT + file_row_number"


class RetrievalError(FaultsError):
    """Features cannot be retrieved as asked; nothing was returned."""


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """The `offline_store` section of feature_store.yaml. Unset limits are DuckDB's defaults."""

    type: Literal["evergreen.feature_store.offline_store.AsofOfflineStore"] = (
        "evergreen.feature_store.offline_store.AsofOfflineStore"
    )
    memory_limit: StrictStr | None = None  # as DuckDB writes it: "2GB", "500MB"; beyond it, it spills
    threads: PositiveInt | None = None
    temp_directory: StrictStr | None = None  # where it spills to


class AsofRetrievalJob(RetrievalJob):
    """A retrieval that runs when its table is asked for, each time anew."""

    def __init__(
        self,
        retrieve: Callable[[], pa.Table],
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ):
        super().__init__()
        self._retrieve = retrieve
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if timeout is not None:
            raise NotImplementedError("AsofOfflineStore has no query timeout: set one on the task that asks.")
        return self._retrieve()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        raise NotImplementedError("AsofOfflineStore saves no datasets: write to_arrow() where you want it.")

    def to_sql(self) -> str:
        raise NotImplementedError("AsofOfflineStore runs several statements, there is no one SQL to show.")


class AsofOfflineStore(OfflineStore):
    """See the module. Reads `FileSource`s of Parquet: file, glob, directory or dataset of the lake."""

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
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The columns of `entity_df`, then the requested features: one row for each of its rows, in order.

        With `filter_by_created_timestamp`, a feature row counts only for entity rows at or after its created
        timestamp: what was known then, not what was corrected later.

        Raises:
            RetrievalError: `entity_df` is no DataFrame or lacks join keys, a column would appear twice, or a
                source is not Parquet; and, when the table is asked for, when source columns are missing, keys
                cannot be compared, or rows out are not rows in.
        """
        if not isinstance(entity_df, pd.DataFrame):
            what = "an SQL string" if isinstance(entity_df, str) else "no entity_df"
            way_out = "pass a pandas DataFrame of join keys and event timestamps"
            raise RetrievalError("AsofOfflineStore", [Fault("entity_df", f"got {what}", way_out)])
        event_timestamp = infer_event_timestamp_from_entity_df(
            dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        )
        views = [_ViewRequest.from_feature_view(view, feature_refs, full_feature_names) for view in feature_views]
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        _check_request(entity_df, views, on_demand)
        entities = _entity_table(entity_df, event_timestamp)
        seen = entities[event_timestamp].drop_null()

        def retrieve() -> pa.Table:
            table = entities
            with _connect_duckdb(config) as con:
                for view in views:
                    relation = _source_relation(view.source, config)
                    found = _asof_join(con, relation, entities, event_timestamp, view, filter_by_created_timestamp)
                    for name, column in zip(view.columns, found, strict=True):
                        table = table.append_column(name, column)
            return table

        return AsofRetrievalJob(
            retrieve,
            full_feature_names,
            on_demand,
            RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entity_df.columns if name != event_timestamp],
                min_event_timestamp=pc.min(seen).as_py(),
                max_event_timestamp=pc.max(seen).as_py(),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The latest row of each key with `start_date <= event timestamp <= end_date`."""
        keys = ", ".join(map(_quote_identifier, join_key_columns)) or "NULL"
        created = f"{_quote_identifier(created_timestamp_column)} DESC NULLS LAST, " if created_timestamp_column else ""
        newest_first = f"{_quote_identifier(timestamp_field)} DESC, {created}file_index DESC, file_row_number DESC"
        return _pull_rows(
            data_source,
            config,
            columns=[*join_key_columns, *feature_name_columns],
            timestamps=[timestamp_field, created_timestamp_column],
            start=start_date,
            end=end_date,
            qualify_clause=f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {newest_first}) = 1",
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows with `start_date <= event timestamp <= end_date`, in the order of the files."""
        return _pull_rows(
            data_source,
            config,
            columns=[*join_key_columns, *feature_name_columns],
            timestamps=[timestamp_field, created_timestamp_column],
            start=start_date,
            end=end_date,
        )

    @staticmethod
    def offline_write_batch(*_: Any, **__: Any) -> None:
        raise NotImplementedError("AsofOfflineStore only reads: publish features through evergreen.lake.")

    @staticmethod
    def write_logged_features(*_: Any, **__: Any) -> None:
        raise NotImplementedError("AsofOfflineStore only reads: it keeps no logs of served features.")


@dataclass(frozen=True)
class _ViewRequest:
    """A feature view as one retrieval asks for it. Names on the left are the source's, after its mapping."""

    name: str
    source: DataSource
    keys: dict[str, str]  # join key → column of the entity table
    features: list[str]
    columns: list[str]  # what the features are called in the answer
    types: list[pa.DataType]
    ttl: timedelta | None  # none or zero: for ever

    @classmethod
    def from_feature_view(cls, view: FeatureView, feature_refs: list[str], full_feature_names: bool) -> _ViewRequest:
        projection = view.projection
        prefix = f"{projection.name_to_use()}:"
        features = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
        # Not name_to_use(): a pinned version does not show in the names of columns.
        shown = projection.name_alias or view.name
        declared = {field.name: field.dtype.to_value_type() for field in view.features}
        if view.batch_source is None:
            raise RetrievalError(f"View {view.name}", [Fault("source", "has no batch source", "give it one")])
        return cls(
            name=view.name,
            source=view.batch_source,
            keys={
                key.name: projection.join_key_map.get(key.name, key.name)
                for key in view.entity_columns
                if key.name != DUMMY_ENTITY_ID
            },
            features=features,
            columns=[f"{shown}__{feature}" if full_feature_names else feature for feature in features],
            types=[feast_value_type_to_pa(declared[feature]) for feature in features],
            ttl=view.ttl,
        )


def _check_request(
    entity_df: pd.DataFrame, views: Sequence[_ViewRequest], on_demand_views: Sequence[OnDemandFeatureView]
) -> None:
    have = set(entity_df.columns)
    faults = [
        Fault(f"entity_df[{column!r}]", f"missing, view {view.name} joins on it", "add the column")
        for view in views
        for column in view.keys.values()
        if column not in have
    ]
    faults += [
        Fault(f"entity_df[{column!r}]", f"also a feature of view {view.name}", "use full_feature_names")
        for view in views
        for column in view.columns
        if column in have
    ]
    faults += [
        Fault(f"on demand view {view.name}", "mode substrait is not supported", "use mode pandas or python")
        for view in on_demand_views
        if view.mode == "substrait"
    ]
    if faults:
        raise RetrievalError("Retrieval of historical features", faults)


def _entity_table(entity_df: pd.DataFrame, event_timestamp: str) -> pa.Table:
    """`entity_df` as Arrow: its event timestamps in UTC microseconds, its other columns as they are."""
    instants = pd.to_datetime(entity_df[event_timestamp], utc=True).dt.floor("us").dt.as_unit("us")
    table = pa.Table.from_pandas(entity_df.assign(**{event_timestamp: instants}), preserve_index=False)
    return table.replace_schema_metadata(None)


def _asof_join(
    con: duckdb.DuckDBPyConnection,
    relation: str | None,
    entities: pa.Table,
    event_timestamp: str,
    view: _ViewRequest,
    filter_by_created_timestamp: bool,
) -> list[pa.ChunkedArray]:
    """The columns of `view.features`, as long as `entities` and in its order."""
    if relation is None:
        return [pa.chunked_array([pa.nulls(entities.num_rows, dtype)]) for dtype in view.types]
    instants = entities[event_timestamp]
    keys = {f"k{i}": entities[column] for i, column in enumerate(view.keys.values())}
    con.register("entities", pa.table({"row": np.arange(entities.num_rows), "asked": instants, **keys}))
    rows = _feature_rows_query(con, relation, view, instants)
    if not view.source.created_timestamp_column:
        reached = f"(epoch_us(asked) + 1) * {_MICROSECOND_STRIDE}::HUGEINT > {_PACKED_RANK}"
    elif filter_by_created_timestamp:
        rows, reached = _known_rows_query(rows, list(keys)), "asked >= known"
    else:
        # Inside a row, NULL is above everything: the upper end of all that happened at this instant.
        reached = f"row(asked, NULL, NULL, NULL) >= {_ROW_RANK}"
    matches = [*(f"entities.{key} = found.{key}" for key in keys), reached]
    # Without a TTL this repeats the join, but for entity rows without a timestamp, which reach everything.
    holds = f"asked <= ts + {_interval_literal(view.ttl)}" if view.ttl else "asked >= ts"
    features = [f"CASE WHEN {holds} THEN f{i} END AS f{i}" for i in range(len(view.features))]
    joined = con.sql(
        f"SELECT row, {', '.join(features)} FROM entities "
        f"ASOF LEFT JOIN ({rows}) AS found ON {' AND '.join(matches)} ORDER BY row"
    ).to_arrow_table()
    _check_row_numbers(view.name, joined["row"].to_numpy(), entities.num_rows)
    return joined.columns[1:]


def _feature_rows_query(
    con: duckdb.DuckDBPyConnection, relation: str, view: _ViewRequest, instants: pa.ChunkedArray
) -> str:
    """A query for the source's rows: k0… (join keys), f0… (features), ts, created, and their place.

    Only columns in use, and only rows that some entity row can reach, are read from the files.
    """
    types = _column_types(con, relation)
    source = view.source
    raw_names = {mapped: raw for raw, mapped in source.field_mapping.items() if raw in types}
    timestamps = [name for name in (source.timestamp_field, source.created_timestamp_column) if name]
    raw = {name: raw_names.get(name, name) for name in [*view.keys, *view.features, *timestamps]}
    _check_source_columns(view.name, types, list(raw.values()))
    entity_types = _column_types(con, "entities")
    for i, (key, column) in enumerate(view.keys.items()):
        _check_key_types(view.name, key, types[raw[key]], column, entity_types[f"k{i}"])

    ts = f"CAST({_quote_identifier(raw[source.timestamp_field])} AS TIMESTAMPTZ)"
    created = _quote_identifier(raw[source.created_timestamp_column]) if source.created_timestamp_column else "NULL"
    first, last = pc.min(instants).as_py(), pc.max(instants).as_py()
    reachable = f"{ts} <= {_timestamp_literal(last)}"
    if view.ttl:
        reachable += f" AND {ts} >= {_timestamp_literal(first)} - {_interval_literal(view.ttl)}"
    columns = [f"{_quote_identifier(raw[key])} AS k{i}" for i, key in enumerate(view.keys)]
    columns += [f"{_quote_identifier(raw[feature])} AS f{i}" for i, feature in enumerate(view.features)]
    columns += [f"{ts} AS ts", f"CAST({created} AS TIMESTAMPTZ) AS created"]
    return f"SELECT {', '.join(columns)}, {_FILE_POSITION} FROM {relation} WHERE {reachable}"


def _known_rows_query(rows: str, keys: list[str]) -> str:
    """A query for those of `rows` that ever were the best known, with the instant `known` of that.

    A row is known once it has happened and was created. It is dropped when a better one was known by then,
    so that of the rest the latest known is the best known: again a question for an ASOF join.
    """
    partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
    return (
        f"SELECT *, greatest(ts, created) AS known FROM ({rows}) WHERE created IS NOT NULL "
        f"QUALIFY {_ROW_RANK} >= max({_ROW_RANK}) OVER ({partition}ORDER BY known)"
    )


def _check_row_numbers(view: str, rows: np.ndarray[Any, Any], expected: int) -> None:
    """Raise unless `rows`, the row numbers that came out of the join, are 0 … expected - 1."""
    if not np.array_equal(rows, np.arange(expected)):
        what = f"{expected} entity rows in, {len(rows)} rows out ({len(np.unique(rows))} of them different)"
        raise RetrievalError(
            "Retrieval of historical features", [Fault(f"view {view}", what, "this is a bug: report it")]
        )


def _pull_rows(
    source: DataSource,
    config: RepoConfig,
    columns: list[str],
    timestamps: list[str | None],
    start: datetime | None,
    end: datetime | None,
    qualify_clause: str = "",
) -> AsofRetrievalJob:
    """Rows of `source` between `start` and `end` by the first of `timestamps`; names are the source's own."""
    instants = [name for name in dict.fromkeys(timestamps) if name]
    others = [name for name in dict.fromkeys(columns) if name not in instants]
    ts = f"CAST({_quote_identifier(instants[0])} AS TIMESTAMPTZ)"
    bounds = [f"{ts} >= {_timestamp_literal(make_tzaware(start))}"] if start else []
    bounds += [f"{ts} <= {_timestamp_literal(make_tzaware(end))}"] if end else []

    def retrieve() -> pa.Table:
        relation = _source_relation(source, config)
        if relation is None:
            fields = [(name, pa.null()) for name in others]
            fields += [(name, pa.timestamp("us", "UTC")) for name in instants]
            return pa.schema(fields).empty_table()
        with _connect_duckdb(config) as con:
            _check_source_columns(source.name, _column_types(con, relation), [*others, *instants])
            shown = [*map(_quote_identifier, others)]
            shown += [
                f"CAST({_quote_identifier(name)} AS TIMESTAMPTZ) AS {_quote_identifier(name)}" for name in instants
            ]
            where = f"WHERE {' AND '.join(bounds)}" if bounds else ""
            return con.sql(f"SELECT {', '.join(shown)} FROM {relation} {where} {qualify_clause}").to_arrow_table()

    return AsofRetrievalJob(retrieve)


def _source_relation(source: DataSource, config: RepoConfig) -> str | None:
    """What to select from to read `source`, or None if it is a dataset of the lake with nothing published."""
    if not isinstance(source, FileSource) or not isinstance(source.file_format, ParquetFormat | None):
        fault = Fault(f"source {source.name}", "not supported", "use a FileSource of Parquet")
        raise RetrievalError("AsofOfflineStore", [fault])
    path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    files = published_files(path)
    if files is None:
        return f"read_parquet({_quote_literal(path)})"
    # What the folders of a published file are called says nothing: day=… must not replace a column `day`.
    return f"read_parquet([{', '.join(map(_quote_literal, files))}], hive_partitioning = false)" if files else None


@contextmanager
def _connect_duckdb(config: RepoConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, with the limits of the configuration, that lives as long as one question."""
    limits = config.offline_store.model_dump(include={"memory_limit", "threads", "temp_directory"})
    with duckdb.connect(config={name: value for name, value in limits.items() if value is not None}) as con:
        con.execute("SET TimeZone = 'UTC'")  # naive timestamps are UTC, and a day is 24 hours
        yield con


def _column_types(con: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    columns = con.sql(f"FROM {relation}")
    return {name: dtype.id for name, dtype in zip(columns.columns, columns.types, strict=True)}


def _check_source_columns(name: str, column_types: dict[str, str], required_columns: Sequence[str]) -> None:
    """Raise if a column is missing. DuckDB would take `Delay` for `delay`."""
    if missing := [column for column in required_columns if column not in column_types]:
        there = f"there are {', '.join(column_types)}"
        faults = [Fault(column, "no such column in its files", there) for column in missing]
        raise RetrievalError(f"Source of {name}", faults)


def _check_key_types(view: str, key: str, source_type: str, column: str, entity_type: str) -> None:
    """Raise for text against anything else, which DuckDB would cast: "01" must not find 1."""
    text = {"varchar", "enum"}
    if entity_type != "null" and (source_type in text) != (entity_type in text):
        fault = Fault(
            f"entity_df[{column!r}]",
            f"is {entity_type}, but join key {key} of view {view} is {source_type}",
            "cast one of them",
        )
        raise RetrievalError("Retrieval of historical features", [fault])


def _quote_identifier(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _quote_literal(literal: str) -> str:
    return "'" + literal.replace("'", "''") + "'"


def _timestamp_literal(value: datetime | None) -> str:
    return f"TIMESTAMPTZ {_quote_literal(value.isoformat())}" if value else "NULL::TIMESTAMPTZ"


def _interval_literal(value: timedelta) -> str:
    return f"to_microseconds({value // timedelta(microseconds=1)})"
