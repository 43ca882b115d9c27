"""Examples in DuckDB: each file has the rows, and the features, that a loop in Python finds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int32, Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evergreen.settings
from evergreen.errors import SpecError
from evergreen.feature_store.examples import Examples, Selection
from evergreen.feature_store.offline_store import RetrievalError, memory_limit, open_scratch_database
from evergreen.lake.datasets import Dataset
from support.calendars import DAYS

pytestmark = pytest.mark.unit

UTC_US = pa.timestamp("us", "UTC")
START = datetime(2024, 3, 1, tzinfo=UTC)
TTL = timedelta(seconds=5)
ALL = {"all": Selection("", "9", START + timedelta(days=99))}
TYPES = {Int64: ValueType.INT64, Int32: ValueType.INT32, String: ValueType.STRING}
FEATURES = pa.schema([("a", pa.string()), ("b", pa.int64()), ("ts", UTC_US), ("v", pa.int64())])
SPINE = pa.schema(
    [
        ("event_timestamp", UTC_US),
        ("a", pa.string()),
        ("b", pa.int32()),
        ("row", pa.int64()),
        ("loss", pa.float64()),
        ("label_known_at", UTC_US),
    ]
)
Row = dict[str, Any]


@pytest.fixture
def config(tmp_path: Path) -> RepoConfig:
    return repo_config(tmp_path)


def repo_config(tmp_path: Path, **limits: Any) -> RepoConfig:
    return RepoConfig(
        project="examples",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.db"},
        online_store={"type": "sqlite", "path": f"{tmp_path}/online.db"},
        offline_store={"type": "evergreen.feature_store.offline_store.AsofOfflineStore", **limits},
        entity_key_serialization_version=3,
    )


@pytest.fixture
def con(config: RepoConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_scratch_database(config) as con:
        yield con


def instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


def view(name: str, path: Path, keys: Mapping[str, Any], ttl: timedelta = timedelta(0), v: Any = Int64) -> FeatureView:
    """Return a view with the feature `v` over the Parquet file, or the published table, at `path`."""
    entities = [Entity(name=key, join_keys=[key], value_type=TYPES[dtype]) for key, dtype in keys.items()]
    schema = [*(Field(name=key, dtype=dtype) for key, dtype in keys.items()), Field(name="v", dtype=v)]
    source = FileSource(name=name, path=str(path), file_format=ParquetFormat(), timestamp_field="ts")
    return FeatureView(name=name, entities=entities or None, ttl=ttl, schema=schema, source=source)


def write_periods(folder: Path, periods: Sequence[pa.Table]) -> dict[str, Path]:
    """Write the spine of one day after the other; return the files by day."""
    folder.mkdir(exist_ok=True)
    files = {DAYS.shift("2024-03-01", number): folder / f"spine{number}.parquet" for number in range(len(periods))}
    for file, table in zip(files.values(), periods, strict=True):
        pq.write_table(table, file)
    return files


def spine(rows: Sequence[Row], schema: pa.Schema = SPINE) -> pa.Table:
    known = {"loss": 1.0, "label_known_at": START}
    return pa.Table.from_pylist([known | row for row in rows], schema=schema)


def read_all(
    con: duckdb.DuckDBPyConnection, folder: Path, periods: Sequence[pa.Table], config: RepoConfig, **join: Any
) -> pa.Table:
    """Return all examples of these periods, with the features of a `Examples.join`."""
    examples = Examples.from_files(con, "loans", "requests", "loss", write_periods(folder, periods), DAYS)
    examples.select(ALL)
    examples.join(config, **join)
    return pq.read_table(examples.write_files(folder)["all"])


def latest_values(rows: Sequence[Row], features: Sequence[Row], keys: str, ttl: timedelta | None) -> list[int | None]:
    """Return `v` of the last feature row, by time and then by place, that is known for each row."""
    values = []
    for row in rows:
        seen, best = row["event_timestamp"], None
        for place, feature in enumerate(features):
            is_match = seen and all(feature[key] is not None and feature[key] == row[key] for key in keys)
            if is_match and feature["ts"] <= seen and (not ttl or seen <= feature["ts"] + ttl):
                best = max(best or (feature["ts"], place), (feature["ts"], place))
        values.append(features[best[1]]["v"] if best else None)
    return values


# Few keys, one of them hot, and few instants: ties, duplicates, and keys without a feature row.
KEYS_A = st.sampled_from(["hot", "hot", "hot", "x", "", None])
KEYS_B = st.sampled_from([1, 1, 2, None])
SECONDS = st.integers(0, 12)
SPINE_ROWS = st.lists(st.fixed_dictionaries({"event_timestamp": st.none() | SECONDS, "a": KEYS_A, "b": KEYS_B}))
FEATURE_ROWS = st.lists(st.fixed_dictionaries({"ts": SECONDS, "a": KEYS_A, "b": KEYS_B}), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SPINE_ROWS, min_size=1, max_size=3), FEATURE_ROWS, st.sampled_from([None, 4000, 500]))
def test_any_number_of_buckets_joins_as_a_loop_does(
    config: RepoConfig, periods: list[list[Row]], features: list[Row], bucket_bytes: float | None
) -> None:
    features = [row | {"ts": instant(row["ts"]), "v": number} for number, row in enumerate(features)]
    rows = [row | {"event_timestamp": instant(row["event_timestamp"])} for period in periods for row in period]
    for number, row in enumerate(rows):
        row["row"] = number
    numbered = iter(rows)
    tables = [spine([next(numbered) for _ in period]) for period in periods]
    with tempfile.TemporaryDirectory() as folder, open_scratch_database(config) as con:
        file = Path(folder, "features.parquet")
        pq.write_table(pa.Table.from_pylist(features, schema=FEATURES), file)
        views = [
            view("pair", file, {"a": String, "b": Int64}, TTL),
            view("one", file, {"a": String}),
            view("none", file, {}),
        ]
        references = ["pair:v", "one:v", "none:v"]
        options = {"views": views, "feature_refs": references, "bucket_bytes": bucket_bytes}
        table = read_all(con, Path(folder), tables, config, **options)
    ordered = sorted(rows, key=lambda row: (row["event_timestamp"] is None, row["event_timestamp"] or START))
    assert table["row"].to_pylist() == [row["row"] for row in ordered], "by time, and then as they were"
    assert table["pair__v"].to_pylist() == latest_values(ordered, features, "ab", TTL)
    assert table["one__v"].to_pylist() == latest_values(ordered, features, "a", None)
    assert table["none__v"].to_pylist() == latest_values(ordered, features, "", None)


@pytest.mark.parametrize("bucket_bytes", [None, 1000])
def test_names_of_columns_and_folders_may_be_anything(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig, bucket_bytes: float | None
) -> None:
    folder = tmp_path / "it's [a] *"
    names = ['key"; --', "row_number", "feature_0", "entities", "select", "Ünï çode"]
    rows = [{name: f"{name}{number}" for name in names} for number in range(9)]
    schema = pa.schema([*SPINE, *((name, pa.string()) for name in names)])
    table = spine([row | {"event_timestamp": START} for row in rows], schema)
    folder.mkdir()
    write_periods(tmp_path / "it's a *", [table.slice(1)])
    features = pa.table({names[0]: [row[names[0]] for row in rows], "ts": pa.array([START] * 9, UTC_US), "v": range(9)})
    dataset = Dataset(tmp_path / "lake [1]")
    staged = dataset.stage("day=2024-03-01", "f") / "rates.parquet"
    pq.write_table(features, staged)
    dataset.publish("day=2024-03-01", "f", {"rates": staged}, {})
    for file in dataset.root.glob("rates/*/*.parquet"):
        decoy = tmp_path / "lake 1" / file.relative_to(dataset.root)
        decoy.parent.mkdir(parents=True)
        pq.write_table(features.slice(1), decoy)
    rates = view("rates", dataset.root / "rates", {names[0]: String})
    options = {"views": [rates], "feature_refs": ["rates:v"], "bucket_bytes": bucket_bytes}
    result = read_all(con, folder, [table], config, **options)
    assert result["rates__v"].to_pylist() == list(range(9))
    assert result.select(names).to_pylist() == rows


@pytest.mark.parametrize("name", ["file_index", "File_Row_Number"])
def test_column_that_hides_the_position_is_refused(con: duckdb.DuckDBPyConnection, tmp_path: Path, name: str) -> None:
    files = write_periods(tmp_path, [spine([{name: 1}], pa.schema([*SPINE, (name, pa.int64())]))])
    with pytest.raises(SpecError, match=f"requests.{name}: has a name that DuckDB keeps .* rename it"):
        Examples.from_files(con, "loans", "requests", "loss", files, DAYS)


def test_columns_of_the_spine_keep_types_and_values(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig
) -> None:
    values: dict[str, tuple[pa.DataType, list[Any]]] = {
        "tiny": (pa.int8(), [-128, None]),
        "large": (pa.uint64(), [2**64 - 1, None]),
        "short": (pa.float32(), [0.1, None]),
        "zero": (pa.float64(), [-0.0, None]),
        "price": (pa.decimal128(20, 3), [Decimal("0.125"), None]),
        "born": (pa.date32(), [date(1969, 12, 31), None]),
        "local": (pa.timestamp("us", "Asia/Tokyo"), [START, None]),
        "naive": (pa.timestamp("us"), [datetime(2024, 1, 1), None]),
        "bytes": (pa.binary(), [b"\0", None]),
        "trail": (pa.list_(pa.float64()), [[0.5, None], None]),
        "pair": (pa.struct([("x", pa.int64())]), [{"x": 1}, None]),
        "nothing": (pa.null(), [None, None]),
    }
    schema = pa.schema([*SPINE, *((name, dtype) for name, (dtype, _) in values.items())])
    rows = [{name: cells[number] for name, (_, cells) in values.items()} for number in range(2)]
    table = spine([row | {"event_timestamp": START} for row in rows], schema)
    wider = spine([{"event_timestamp": START, "b": 2**30, "large": 3}], schema)
    wider = wider.set_column(2, "b", pa.array([2**40], pa.int64()))
    result = read_all(con, tmp_path, [table, wider], config, views=[], feature_refs=[])
    assert result.schema.field("b").type == pa.int64(), "which holds the integers of all periods"
    assert result["b"].to_pylist() == [None, None, 2**40]
    names = list(values)
    assert result.select(names).schema.types == [dtype for dtype, _ in values.values()]
    assert result.select(names).slice(0, 2).equals(table.select(names))
    assert str(result["zero"][0].as_py()) == "-0.0"


def test_row_groups_and_values_that_change(con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig) -> None:
    count = 100_000
    schema = pa.schema([field for field in SPINE if field.name in ("event_timestamp", "b", "loss", "label_known_at")])
    columns = [pa.array([START] * count, UTC_US), pa.array(range(count), pa.int32()), np.ones(count)]
    day = pa.table([*columns, columns[0]], schema)
    for name, changed in (("whole", []), ("broken", [5, 90_000])):
        values = np.arange(count, dtype=float)
        values[changed] += 0.5
        features = pa.table({"b": pa.array(range(count), pa.int64()), "ts": columns[0], "v": values})
        pq.write_table(features, tmp_path / f"{name}.parquet")
    examples = Examples.from_files(con, "loans", "requests", "loss", write_periods(tmp_path, [day, day]), DAYS)
    second = Selection("2024-03-02", "9")
    assert examples.select(ALL | {"second": second}) == 2 * count
    options = ["numbers:v"], 10_000_000
    examples.join(config, [view("numbers", tmp_path / "whole.parquet", {"b": Int64})], *options)
    files = examples.write_files(tmp_path)
    for name, rest, values in (("all", 3_392, [*range(count)] * 2), ("second", 34_464, [*range(count)])):
        file = pq.ParquetFile(files[name])
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        assert groups == [65_536] * (len(values) // 65_536) + [rest], "however rows of other files are between them"
        assert file.read(["numbers__v"])["numbers__v"].to_pylist() == values
    con.execute("DROP TABLE view_0")
    examples.join(config, [view("numbers", tmp_path / "broken.parquet", {"b": Int64})], *options)
    with pytest.raises(
        RetrievalError, match=r"double, declared int64, and 4 of 200,000 values would change, such as 5.5"
    ):
        examples.write_files(tmp_path)


def test_feature_of_another_kind_is_named(con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig) -> None:
    features = pa.table({"a": ["x"], "ts": pa.array([START], UTC_US), "v": ["x"]})
    pq.write_table(features, tmp_path / "features.parquet")
    texts = view("texts", tmp_path / "features.parquet", {"a": String})
    table = spine([{"event_timestamp": START, "a": "x"}])
    with pytest.raises(RetrievalError, match="texts:v: is string, declared int64"):
        read_all(con, tmp_path, [table], config, views=[texts], feature_refs=["texts:v"])


def test_floating_keys_are_in_the_bucket_of_their_integers(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig
) -> None:
    features = pa.table({"b": range(50), "ts": pa.array([START] * 50, UTC_US), "v": range(50)})
    pq.write_table(features, tmp_path / "features.parquet")
    keys = pa.array([*map(float, range(50)), None], pa.float64())
    table = spine([{"event_timestamp": START}] * 51).set_column(2, "b", keys)
    numbers = view("numbers", tmp_path / "features.parquet", {"b": Int64})
    options = {"views": [numbers], "feature_refs": ["numbers:v"], "bucket_bytes": 2000}
    assert read_all(con, tmp_path, [table], config, **options)["numbers__v"].to_pylist() == [*range(50), None]


def test_rows_out_of_place_are_an_error(con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig) -> None:
    pq.write_table(pa.Table.from_pylist([], schema=FEATURES), tmp_path / "features.parquet")
    files = write_periods(tmp_path, [spine([{"event_timestamp": START, "a": "x"}] * 3)])
    examples = Examples.from_files(con, "loans", "requests", "loss", files, DAYS)
    examples.select(ALL)
    examples.join(config, [view("one", tmp_path / "features.parquet", {"a": String})], ["one:v"])
    con.execute("UPDATE view_0 SET row_number = 0 WHERE row_number = 1")
    with pytest.raises(RetrievalError, match=r"3 entity rows in, 3 rows out \(2 of them distinct\)"):
        examples.write_files(tmp_path)


def test_view_with_nothing_published_is_missing(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig
) -> None:
    dataset = Dataset(tmp_path / "features")
    staged = dataset.stage("day=2024-03-01", "f") / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), staged)
    dataset.publish("day=2024-03-01", "f", {"other": staged}, {})
    nothing = view("rates", dataset.root / "rates", {"a": String}, v=Float64)
    table = spine([{"event_timestamp": START, "a": "x"}])
    result = read_all(con, tmp_path, [table], config, views=[nothing], feature_refs=["rates:v"])
    assert result["rates__v"].type == pa.float64()
    assert result["rates__v"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("a", r"entity_df\['a'\]: is varchar, but join key b of view one is bigint"),
        ("c", r"entity_df\['c'\]: missing, view one joins on it"),
    ],
)
def test_key_of_another_kind_is_refused(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig, column: str, problem: str
) -> None:
    pq.write_table(pa.Table.from_pylist([], schema=FEATURES), tmp_path / "features.parquet")
    aliased = view("one", tmp_path / "features.parquet", {"b": Int64})
    aliased.projection.join_key_map = {"b": column}
    table = spine([{"event_timestamp": START, "a": "1"}])
    with pytest.raises(RetrievalError, match=problem):
        read_all(con, tmp_path, [table], config, views=[aliased], feature_refs=["one:v"])


def test_database_spills_within_the_limit_of_the_settings(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = home / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setenv("EVERGREEN_DUCKDB_MEMORY", "64MiB")
    monkeypatch.setenv("EVERGREEN_DUCKDB_SCRATCH", str(scratch))
    evergreen.settings.settings.cache_clear()
    with open_scratch_database(repo_config(tmp_path)) as con:
        assert memory_limit(con) == 2**26
        assert con.sql("SELECT current_setting('threads')").fetchall() == [(1,)]
        con.execute("CREATE TABLE numbers AS SELECT range AS n, hash(range) AS h FROM range(10_000_000)")
        assert sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file()) > 2**26
        assert con.sql("SELECT count(DISTINCT n) FROM numbers WHERE n % 1000 = 0").fetchall() == [(10_000,)]
    assert not list(scratch.iterdir())


def test_configuration_of_feast_goes_before_the_settings(tmp_path: Path) -> None:
    with open_scratch_database(repo_config(tmp_path, memory_limit="96MiB", threads=2)) as con:
        assert memory_limit(con) == 96 * 2**20
        assert con.sql("SELECT current_setting('threads')").fetchall() == [(2,)]
