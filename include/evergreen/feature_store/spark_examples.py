"""The examples of a training set, joined by Spark: the same rows, in the same order, as DuckDB joins.

Spark reads the published files, joins them, and writes rows in order to files that the task then reads in batches. So
nothing is collected, and neither rows of examples nor of features pass through the task before they are joined. Files
of a lake in an object store are read in place, unless Spark sees the files of the task (`evergreen.lake.exchange`).

Of each key, examples and rows of a view are sorted together, and an example gets the last row before it: one shuffle
and one pass, whatever the number of rows of a key. Spark's own ASOF join compares each example with all rows of its key
(docs/decisions/0043-training-sets-by-spark.md).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, reduce
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView
from feast.repo_config import RepoConfig
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException, PySparkTypeError
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation calls it
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import (
    DataType,
    DecimalType,
    IntegerType,
    LongType,
    NullType,
    ShortType,
    StructField,
    StructType,
)

from evergreen import object_store
from evergreen.errors import DatasetError, Fault, SpecError, first_line
from evergreen.feature_store.examples import (
    LABEL_COLUMNS,
    Examples,
    LabelCount,
    Selection,
    rename_label,
    unify_spine,
)
from evergreen.feature_store.offline_store import (
    FIRST_ROUNDED_FLOAT,
    JoinedView,
    RetrievalError,
    SourceFiles,
    ViewRequest,
    check_request,
    source_path,
)
from evergreen.feature_store.retrieval import visible_manifests
from evergreen.features.served_after import ServingInstants
from evergreen.features.spark import REQUIRED_CONF, explain_missing_client, spark_session, write_parquet
from evergreen.ingest.frames import text_as_strings
from evergreen.ingest.row_groups import ROW_GROUP_ROWS
from evergreen.lake.datasets import PERIOD_COLUMN, Dataset, Manifest, find_published_table
from evergreen.lake.exchange import JobExchange
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen.storage import UPath

# Settings that rows depend on, beside those of every session. A server may have others: to skip a file that is gone,
# for example, would be to lose features without a word.
_CONF = REQUIRED_CONF | {
    "spark.sql.caseSensitive": "true",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
}
# Of 50 to 100 MB: what a task of Spark sorts in memory. Adaptive execution merges those that turn out smaller.
_ROWS_PER_PARTITION = 2**18

_FILE_STRIDE = 2**40  # more rows than a file has: `place` is the number of the file and that of the row in it
_FIRST, _LAST = -(2**63), 2**63 - 1
_LONGEST_TTL = 2**62  # of microseconds: a hundred thousand years, and no overflow
_UNSIGNED = {"uint8": ShortType(), "uint16": IntegerType(), "uint32": LongType(), "uint64": DecimalType(20, 0)}
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GLOB_CHARACTER = re.compile(r"[\\*?\[\]{}]")
_RETRIEVAL = "Retrieval of historical features"
_OTHER_ENGINE = "set EVERGREEN_TRAINING_SET_ENGINE=duckdb"
_MISSING_FILE = ("PATH_NOT_FOUND", "FAILED_READ_FILE.FILE_NOT_EXIST", "AccessDeniedException")
_SHARE_LAKE = "let Spark and this task see the lake under the same path"
_GRANT_LAKE = "give Spark the right to read features/ of the lake, and to read and write the exchange"
_ROWS = "rows"
_PART_NUMBER = re.compile(rf"{_ROWS}/part-(\d+)-.*")
_FOOTER_LENGTH_BYTES = 8


@contextmanager
def open_join_session() -> Iterator[SparkSession]:
    """Open a session with settings of its own, where `EVERGREEN_SPARK` says.

    Raises:
        RetrievalError: Spark does not find a file of the lake.
    """
    with spark_session() as session:
        # A session at a server is private already. One in this process is shared with everything in it.
        private = session.newSession() if isinstance(session, SparkSession) else session
        for key, value in _CONF.items():
            private.conf.set(key, value)
        try:
            yield private
        except (PySparkException, Py4JJavaError) as error:  # a failure of a task that PySpark has no class for
            fault = explain_missing_client(error)
            if any(condition in str(error) for condition in _MISSING_FILE):
                fault = Fault("Spark", first_line(error), _fix_for_missing_files())
            if not fault:
                raise
            raise RetrievalError(_RETRIEVAL, [fault]) from error


class SparkFile(NamedTuple):
    """A published Parquet file: where Spark reads it, where this process does, its types by column, and its rows."""

    uri: str
    path: UPath | Path
    types: Mapping[str, str]
    rows: int

    def read_schema(self) -> pa.Schema:
        """Return the types as Arrow's, from the file's footer.

        Raises:
            DatasetError: they are others.
        """
        schema = pq.read_schema(self.path) if isinstance(self.path, Path) else _read_remote_schema(self.path)
        if {field.name: str(field.type) for field in schema} != self.types:
            raise DatasetError(
                f"{self.path} does not have the columns that its manifest names: find out who can write to the lake, "
                "and build its partition again"
            )
        return schema


def provide_files(exchange: JobExchange, dataset: Dataset, name: str, manifests: Sequence[Manifest]) -> list[SparkFile]:
    """Return the files `name` of published partitions, for Spark to read."""
    files = []
    for manifest in manifests:
        entry, uri = manifest.files[name], exchange.provide_published(dataset, manifest, name)
        path = dataset.published_path(manifest, name)
        is_copied = not isinstance(path, Path) and uri.startswith("/")
        files.append(SparkFile(uri, Path(uri) if is_copied else path, entry.schema or {}, entry.rows or 0))
    return files


class SparkExamples(Examples):
    """Examples in Spark; see `Examples`.

    `exchange` is where Spark and this process read and write, for these examples alone.
    """

    def __init__(self, session: SparkSession, schema: pa.Schema, spine: DataFrame, rows: int, exchange: JobExchange):
        super().__init__(schema)
        self._session, self._spine, self._spine_rows, self._exchange = session, spine, rows, exchange
        self._examples = spine
        self._selected = _Selected(0, None, None)
        self._file_types: list[pa.DataType] = []  # of the features of each view with files

    @classmethod
    def from_files(
        cls,
        session: SparkSession,
        model: str,
        spine: str,
        label: str,
        files: Mapping[str, SparkFile],
        calendar: Calendar,
        exchange: JobExchange,
    ) -> Self:
        """Return all examples in these files of the table `spine`, by period, with `label` named `label`.

        Raises:
            SpecError: columns have types that do not fit together, or that Spark does not read.
        """
        schemas: dict[frozenset[tuple[str, str]], pa.Schema] = {}
        for file in files.values():  # the first one, whose columns are in the order that DuckDB takes
            types = frozenset(file.types.items())
            schemas[types] = schemas.get(types) or file.read_schema()
        by_period = {period: schemas[frozenset(file.types.items())] for period, file in files.items()}
        schema = unify_spine(model, spine, by_period)
        rows = sum(file.rows for file in files.values())
        partitions = max(int(session.conf.get("spark.sql.shuffle.partitions") or 1), rows // _ROWS_PER_PARTITION + 1)
        session.conf.set("spark.sql.shuffle.partitions", str(partitions))
        try:
            frame, _ = _read_files(session, list(files.values()), schema.names)
            schema = rename_label(schema, label)
            _check_instants({name: schema.field(name).type for name in ("event_timestamp", "label_known_at")})
        except _UnreadableTypeError as error:
            fault = Fault(
                f"{spine}.{error.column}", f"has type {error.dtype}, which Spark does not read", _OTHER_ENGINE
            )
            raise SpecError(f"model {model}", [fault]) from None
        days = [(number, period, calendar.date_of(period)) for number, period in enumerate(files)]
        periods = session.createDataFrame(days, "number long, period string, day date")
        frame = frame.withColumn("number", _file_number())
        frame = frame.join(F.broadcast(periods), "number").drop("number")
        event_timestamp = f"column_{schema.get_field_index('event_timestamp')}"
        frame = frame.withColumn("entity_us", _microseconds(event_timestamp))
        return cls(session, schema, frame, rows, exchange)

    def count_labels(self, known_before: datetime, made_from: datetime | None = None) -> list[LabelCount]:
        spine = self._spine.where(self._is_made_from(made_from)) if made_from else self._spine
        rows = spine.groupBy("period", "day").agg(
            F.count(F.lit(1)).alias("rows"), F.count_if(self._is_label_known(known_before)).alias("labelled")
        )
        return sorted(LabelCount(row.period, row.day, row.rows, row.labelled) for row in rows.collect())

    def select(self, selections: Mapping[str, Selection]) -> int:
        self._selections = selections
        masks = [self._condition(selection) for selection in selections.values()]
        is_selected = reduce(operator.or_, masks)
        instants = F.when(is_selected, F.col("entity_us"))
        counts = self._spine.agg(
            F.count(F.lit(1)), F.count_if(is_selected), F.min(instants), F.max(instants)
        ).collect()[0]
        if counts[0] != self._spine_rows:
            _raise_lost_rows("the spine", self._spine_rows, counts[0])
        self._selected = _Selected(*counts[1:])
        numbered = [mask.alias(f"mask_{number}") for number, mask in enumerate(masks)]
        columns = [F.col(name) for name in (*self._columns.values(), "entity_us", "place")]
        self._examples = self._spine.where(is_selected).select(*numbered, *columns)
        return self._selected.rows

    def join(self, config: RepoConfig, views: Sequence[FeatureView], feature_refs: Sequence[str]) -> None:
        requests = [ViewRequest.from_feature_view(view, list(feature_refs), True) for view in views]
        check_request(self._columns, requests, ())
        joined, read_manifests = self._examples, cache(visible_manifests)
        for number, request in enumerate(requests):
            table = find_published_table(source_path(request.source, config), read_manifests)
            if table is None:
                fault = Fault(f"source {request.source.name}", "is not published in the lake", _OTHER_ENGINE)
                raise RetrievalError(_RETRIEVAL, [fault])
            if files := provide_files(self._exchange, table.dataset, table.name, table.manifests):
                view = self._read_view(request, files, table.periods)
                joined = _join_view(view, joined, f"view_{number}")
                self._file_types += view.types
            self._views.append(JoinedView.from_request(request, bool(files)))
        nothing = [field.name for field in joined.schema if isinstance(field.dataType, NullType)]
        if nothing:  # Spark Connect refuses to add no columns
            joined = joined.withColumns({name: F.lit(None).cast("boolean") for name in nothing})  # Parquet has no void
        write_parquet(joined.orderBy(F.col("entity_us").asc_nulls_last(), "place"), self._exchange.uri(_ROWS), ())

    def _read_view(self, request: ViewRequest, files: Sequence[SparkFile], periods: Sequence[str]) -> _View:
        """Return the rows of a view that some example can reach: key_0, …, feature_0, …, and what ranks them."""
        source = SourceFiles({str(file.path): file.types for file in files}, periods=periods)
        raw = request.raw_names(source.columns)
        names = list(dict.fromkeys(raw.values()))
        values = [raw[name] for name in (*request.keys, *request.features)]
        source.check_columns(request.name, values, [name for name in names if name not in values])
        instants = [request.source.timestamp_field, request.source.created_timestamp_column]
        event, *created = [raw[name] for name in instants if name]
        try:
            frame, schema = _read_files(self._session, files, names)
            _check_instants({name: schema.field(name).type for name in (event, *created)})
        except _UnreadableTypeError as error:
            problem = f"has type {error.dtype}, which Spark does not read"
            raise RetrievalError(f"Source of {request.name}", [Fault(error.column, problem, _OTHER_ENGINE)]) from None
        columns = {name: f"column_{number}" for number, name in enumerate(names)}
        keys = []
        for key, column in request.keys.items():
            entity_type = self._type_of(column)
            key_type = _common_key_type(request.name, key, schema.field(raw[key]).type, column, entity_type)
            if pa.types.is_floating(entity_type):
                self._check_float_key(column)
            keys.append(_Key(self._columns[column], columns[raw[key]], key_type))
        frame = frame.where(reduce(operator.and_, self._reachable(columns[event], request.ttl, keys)))
        known_us = list[Column]()
        if request.served_after:
            frame = self._add_serving_instants(frame, source.serving_instants(request))
            event_us = _microseconds(columns[event])
            served = F.when(event_us < F.col("served_end"), F.col("served_at")).otherwise(F.col("later_served_at"))
            known_us.append(F.greatest(event_us, served).alias("known_us"))
        rows = frame.select(
            *(key.typed(key.source).alias(f"key_{i}") for i, key in enumerate(keys)),
            *(F.col(columns[raw[name]]).alias(f"feature_{i}") for i, name in enumerate(request.features)),
            *known_us,
            _microseconds(columns[event]).alias("event_us"),
            F.coalesce(*(_microseconds(columns[name]) for name in created), F.lit(_FIRST)).alias("created_us"),
            "place",
        )
        types = [schema.field(raw[name]).type for name in request.features]
        return _View(rows, keys, types, request.ttl, request.served_after is not None)

    def _add_serving_instants(self, frame: DataFrame, instants: Sequence[ServingInstants]) -> DataFrame:
        """Return rows of files with the instants from which on those of their file are served."""
        numbered = [(number, *map(_to_microseconds, of_file)) for number, of_file in enumerate(instants)]
        types = "file_number long, served_end long, served_at long, later_served_at long"
        served = F.broadcast(self._session.createDataFrame(numbered, types))
        return frame.withColumn("file_number", _file_number()).join(served, "file_number")

    def _reachable(self, event_ts: str, ttl: timedelta | None, keys: Sequence[_Key]) -> list[Column]:
        """Return which rows of a view may be those of some example: the conditions that a scan can skip rows by."""
        first, last = self._selected.first_us, self._selected.last_us
        if first is None or last is None:
            return [F.lit(False)]
        instant = F.col(event_ts).cast("timestamp")
        conditions = [F.col(key.source).isNotNull() for key in keys]
        conditions.append(instant <= F.timestamp_micros(F.lit(last)))
        if ttl:
            conditions.append(_microseconds(event_ts) >= F.lit(max(_FIRST, first - _ttl_us(ttl))))
        return conditions

    def _check_float_key(self, column: str) -> None:
        """Raise for a float that may have been another whole number, as DuckDB's store does."""
        value = F.col(self._columns[column])
        rounded = self._examples.where((F.abs(value) >= FIRST_ROUNDED_FLOAT) & ~F.isnan(value)).count()
        if rounded:
            problem = f"is {self._type_of(column)}, and {rounded:,} of its values may have been rounded"
            fault = Fault(f"entity_df[{column!r}]", problem, "use integers; where one is missing, pandas' Int64")
            raise RetrievalError(_RETRIEVAL, [fault])

    def _type_of(self, column: str) -> pa.DataType:
        added = {"day": pa.date32(), PERIOD_COLUMN: pa.string()}
        return added[column] if column in added else self._schema.field(column).type

    def _read_columns(self) -> Iterator[list[pa.ChunkedArray]]:
        names = [f"mask_{number}" for number in range(len(self._selections))]
        names += self._columns.values()
        for number, view in enumerate(self._views):
            names += [f"view_{number}_{i}" for i in range(len(view.features))] if view.is_published else []
        order = _OrderCheck()
        first_feature = len(self._selections) + len(self._columns)
        for batch in _read_parts(self._exchange, [*names, "entity_us", "place"]):
            order.add(batch["entity_us"], batch["place"])
            columns = [batch[name] for name in names]
            for number, dtype in enumerate(self._file_types, first_feature):
                columns[number] = _as_in_files(columns[number], dtype)
            yield columns
        if order.rows != self._selected.rows:
            _raise_lost_rows("all views", self._selected.rows, order.rows)

    def _condition(self, selection: Selection) -> Column:
        period = F.col("period")
        condition = (period >= F.lit(selection.period_from)) & (period < F.lit(selection.period_before))
        if selection.known_before:
            condition &= self._is_label_known(selection.known_before)
        if selection.made_from:
            condition &= self._is_made_from(selection.made_from)
        return condition

    def _is_made_from(self, instant: datetime) -> Column:
        return F.coalesce(F.col("entity_us") >= F.lit(_to_microseconds(instant)), F.lit(False))

    def _is_label_known(self, instant: datetime) -> Column:
        label, known_at = (self._columns[name] for name in LABEL_COLUMNS)
        in_time = _microseconds(known_at) < F.lit(_to_microseconds(instant))
        return F.col(label).isNotNull() & F.coalesce(in_time, F.lit(False))


class _Selected(NamedTuple):
    """The examples in use: how many there are, and their first and last timestamp."""

    rows: int
    first_us: int | None
    last_us: int | None


class _Key(NamedTuple):
    """A join key: its column in the examples and in the files, and the type as which these are compared."""

    entity: str
    source: str
    type: DataType | str

    def typed(self, column: str) -> Column:
        value = F.col(column).cast(self.type)
        return value + F.lit(0.0) if self.type == "double" else value  # -0.0 is 0.0


class _View(NamedTuple):
    """The rows of a view: key_0, …, feature_0, …, event_us, created_us, place, and known_us if it is served later."""

    rows: DataFrame
    keys: Sequence[_Key]
    types: Sequence[pa.DataType]
    """Of the features, in the files."""
    ttl: timedelta | None
    is_served_later: bool
    """Whether rows count from `known_us` on, and not from their timestamp on."""

    def typed_keys(self) -> list[Column]:
        """Return the keys of the examples, as they are compared with those of the rows."""
        return [key.typed(key.entity).alias(f"key_{i}") for i, key in enumerate(self.keys)]

    def valid_features(self, row: str, view: str) -> list[Column]:
        """Return the features of the struct `row`, named after the `view`; null where they are older than the TTL."""
        features = [F.col(f"{row}.feature_{i}") for i in range(len(self.types))]
        if self.ttl:
            is_valid = F.col("entity_us") - F.lit(_ttl_us(self.ttl)) <= F.col(f"{row}.event_us")
            features = [F.when(is_valid, feature) for feature in features]
        return [feature.alias(f"{view}_{i}") for i, feature in enumerate(features)]


def _join_view(view: _View, examples: DataFrame, name: str) -> DataFrame:
    """Return `examples` with the features of a view: of each key, both in one order, and the last row of the view.

    The order is that in which rows are known, and then by rank. Where that is another one than by rank, the last row is
    the one of the greatest rank so far.
    """
    keys = [f"key_{i}" for i in range(len(view.keys))]
    ranks = ["event_us", "created_us", "place"]
    order = ["known_us", *ranks] if view.is_served_later else ranks
    last = [F.col("entity_us").alias(order[0]), *(F.lit(_LAST).alias(rank) for rank in order[1:])]
    rows = view.rows.select(*keys, F.struct(*order).alias("rank"), F.struct("*").alias("row"))
    keyed = examples.select(*view.typed_keys(), F.struct(*last).alias("rank"), F.struct("*").alias("example"))
    in_order = Window.partitionBy(*keys).orderBy("rank").rowsBetween(Window.unboundedPreceding, Window.currentRow)
    best = F.last("row", True)
    if view.is_served_later:
        best = F.max_by("row", F.when(F.col("row").isNotNull(), F.struct(*(f"row.{rank}" for rank in ranks))))
    joined = keyed.unionByName(rows, allowMissingColumns=True).withColumn("row", best.over(in_order))
    joined = joined.where(F.col("example").isNotNull()).select("example.*", "row")
    return joined.select(*examples.columns, *view.valid_features("row", name))


class _UnreadableTypeError(Exception):
    """A column has a type that Spark does not read, or reads as something else."""

    def __init__(self, column: str, dtype: pa.DataType):
        super().__init__(f"{column} is {dtype}")
        self.column, self.dtype = column, dtype


def _read_files(session: SparkSession, files: Sequence[SparkFile], names: Sequence[str]) -> tuple[DataFrame, pa.Schema]:
    """Return columns of Parquet files as column_0, …, with each row's `place`, and the Arrow types that they have.

    Each file has all of the columns. A column that has several types gets one that holds all of their values. The place
    is the number of the file × `_FILE_STRIDE`, and that of the row in it.

    Raises:
        _UnreadableTypeError: Spark does not read a column as it is.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, file in enumerate(files):
        groups.setdefault(tuple(file.types[name] for name in names), []).append(number)
    schemas = []
    for numbers in groups.values():
        schema = files[numbers[0]].read_schema()
        schemas.append(pa.schema([schema.field(name) for name in names]).remove_metadata())
    schema = text_as_strings(pa.unify_schemas(schemas, promote_options="permissive").empty_table()).schema
    frames = []
    for file_schema, numbers in zip(schemas, groups.values(), strict=True):
        present = [field for field in file_schema if not pa.types.is_null(field.type)]
        spark_schema = StructType([StructField(field.name, _spark_type(field)) for field in present])
        frame = session.read.schema(spark_schema).parquet(*_paths_for_spark([files[number].uri for number in numbers]))
        columns = []
        for i, field in enumerate(schema):
            column = F.lit(None) if pa.types.is_null(file_schema.field(i).type) else F.col(_quote(field.name))
            if not pa.types.is_null(field.type) and file_schema.field(i).type != field.type:
                column = column.cast(_spark_type(field))
            columns.append(column.alias(f"column_{i}"))
        path, row = F.col("_metadata.file_path"), F.col("_metadata.row_index")
        frame = frame.select(*columns, F.substring_index(path, "/", -2).alias("file"), row.alias("row_index"))
        numbered = session.createDataFrame(
            [("/".join(files[number].uri.split("/")[-2:]), number) for number in numbers],
            "file string, file_number long",
        )
        unknown = F.raise_error(F.concat(F.lit("Spark read a file that was not to be read: "), "file")).cast("long")
        place = F.coalesce("file_number", unknown) * F.lit(_FILE_STRIDE) + F.col("row_index")
        frame = frame.join(F.broadcast(numbered), "file", "left")
        frames.append(frame.select(*(f"column_{i}" for i in range(len(schema))), place.alias("place")))
    return reduce(DataFrame.unionAll, frames), schema


def _paths_for_spark(uris: Sequence[str]) -> list[str]:
    """Return what Spark reads files by, each once, in which some characters stand for others."""
    return [_GLOB_CHARACTER.sub(r"\\\g<0>", uri) for uri in dict.fromkeys(uris)]


def _spark_type(field: pa.Field) -> DataType:
    """Return the type as which Spark reads a column of a Parquet file.

    Raises:
        _UnreadableTypeError: there is none with the same values.
    """
    dtype = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if str(dtype) in _UNSIGNED:
        return _UNSIGNED[str(dtype)]
    try:
        if pa.types.is_duration(dtype) or (pa.types.is_timestamp(dtype) and dtype.unit == "ns"):
            raise _UnreadableTypeError(field.name, field.type)
        return from_arrow_type(dtype, prefer_timestamp_ntz=True)
    except PySparkTypeError:
        raise _UnreadableTypeError(field.name, field.type) from None


def _check_instants(types: Mapping[str, pa.DataType]) -> None:
    """Raise for text, from which each engine reads other instants."""
    for name, dtype in types.items():
        if not (pa.types.is_timestamp(dtype) or pa.types.is_date(dtype) or pa.types.is_null(dtype)):
            raise _UnreadableTypeError(name, dtype)


def _common_key_type(
    view: str, key: str, source_type: pa.DataType, column: str, entity_type: pa.DataType
) -> DataType | str:
    """Return the type as which keys of both sides are compared, exactly.

    Raises:
        RetrievalError: there is none. "01" must not match 1, and a float in files may have been another whole number.
    """
    types = [dtype for dtype in (source_type, entity_type) if not pa.types.is_null(dtype)]
    problem, fix = f"is {entity_type}, but join key {key} of view {view} is {source_type}", "cast one of them"
    if pa.types.is_floating(source_type):
        problem, fix = f"is {source_type} in the files of view {view}, which rounds whole numbers", "store integers"
    elif not types:
        return "string"
    elif all(pa.types.is_integer(dtype) for dtype in types):
        return DecimalType(20, 0) if pa.uint64() in types else "bigint"
    elif all(pa.types.is_integer(dtype) or pa.types.is_floating(dtype) for dtype in types):
        return "double"
    elif all(dtype == types[0] for dtype in types):
        return _spark_type(pa.field(column, types[0]))
    raise RetrievalError(_RETRIEVAL, [Fault(f"entity_df[{column!r}]", problem, fix)])


class _OrderCheck:
    """Counts rows that come in batches, each after the one before it: so all of them are different."""

    def __init__(self) -> None:
        self.rows = 0
        self._last: tuple[int, int] | None = None

    def add(self, entity_us: pa.ChunkedArray, places: pa.ChunkedArray) -> None:
        instants = entity_us.fill_null(_LAST).to_numpy()
        numbers = places.to_numpy()
        if self._last:
            instants, numbers = np.append(self._last[0], instants), np.append(self._last[1], numbers)
        steps = np.diff(instants), np.diff(numbers)
        if not ((instants[1:] > instants[:-1]) | ((steps[0] == 0) & (steps[1] > 0))).all():
            fault = Fault("rows of examples", "are not in order, or not distinct", "this is a bug: report it")
            raise RetrievalError(_RETRIEVAL, [fault])
        self.rows += len(places)
        if len(instants):
            self._last = int(instants[-1]), int(numbers[-1])


def _read_parts(exchange: JobExchange, names: Sequence[str]) -> Iterator[pa.Table]:
    """Return the rows of files that Spark has written in order, in tables of few rows.

    Raises:
        RetrievalError: there are none here.
    """
    parts = []
    for path in exchange.list_parts(_ROWS):
        number = _PART_NUMBER.fullmatch(path)
        assert number, f"{path} is no file of Spark's"
        parts.append((int(number[1]), path))
    if not parts:
        fault = Fault(exchange.uri(_ROWS), "Spark wrote it, but it is not here", _fix_for_missing_files())
        raise RetrievalError(_RETRIEVAL, [fault])
    for _, path in sorted(parts):
        with exchange.open_parts([path]) as [file], pq.ParquetFile(file) as part:
            for batch in part.iter_batches(ROW_GROUP_ROWS, columns=list(names)):
                yield pa.Table.from_batches([batch])


def _as_in_files(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """Return a column of Spark as the type that it has in the files of its view."""
    if pa.types.is_null(dtype):
        return pa.chunked_array([pa.nulls(len(column))])
    return column.cast(dtype)


def _read_remote_schema(file: UPath) -> pa.Schema:
    """Return the types in the footer of an object, which is all of it that is read."""
    stored = object_store.find(file)
    if stored is None:
        raise DatasetError(f"{file} is gone: it has expired, or was removed: clear the run from its plan task on")
    length = object_store.get_range(file, max(0, stored.size - _FOOTER_LENGTH_BYTES), stored.size)
    start = stored.size - _FOOTER_LENGTH_BYTES - int.from_bytes(length[:4], "little")
    return pq.read_schema(pa.BufferReader(object_store.get_range(file, max(0, start), stored.size)))


def _fix_for_missing_files() -> str:
    exchange = settings().spark_exchange
    return _SHARE_LAKE if exchange is None or isinstance(exchange, Path) else _GRANT_LAKE


def _raise_lost_rows(place: str, expected: int, actual: int) -> NoReturn:
    fault = Fault(place, f"{expected} entity rows in, {actual} rows out", "this is a bug: report it")
    raise RetrievalError(_RETRIEVAL, [fault])


def _file_number() -> Column:
    """Return the number of the file that a row's `place` is in."""
    return F.shiftright("place", _FILE_STRIDE.bit_length() - 1)


def _microseconds(column: str) -> Column:
    """Return an instant as a number; one without a time zone is UTC."""
    return F.unix_micros(F.col(column).cast("timestamp"))


def _to_microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _ttl_us(ttl: timedelta) -> int:
    return min(ttl // _MICROSECOND, _LONGEST_TTL)


def _quote(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
