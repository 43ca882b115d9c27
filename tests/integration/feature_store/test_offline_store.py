"""The ASOF store returns what Feast's stock DuckDB store returns, and what a loop in Python returns.

The stock store is the reference for the semantics. The loop (`oracle`) is the reference where the stock store is none:
it picks any of several rows with equal timestamps, and it fails in the ways named at each test.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.errors import FeatureNameCollisionError
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String, UnixTimestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.feature_store import offline_store
from evergreen.feature_store.offline_store import RetrievalError, check_row_numbers
from evergreen.lake.datasets import Dataset, Manifest

pytestmark = pytest.mark.integration

ASOF, STOCK = "evergreen.feature_store.offline_store.AsofOfflineStore", "duckdb"
UTC_US = pa.timestamp("us", "UTC")
TTL = timedelta(seconds=10)
Row = dict[str, Any]


def instant(seconds: float) -> datetime:
    return datetime(2024, 3, 10, tzinfo=UTC) + timedelta(seconds=seconds)


def feast(folder: Path, offline_store: str, **limits: Any) -> FeatureStore:
    """A repository with its own online store, and the registry that all repositories in `folder` share."""
    return FeatureStore(
        config=RepoConfig(
            project="semantics",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
            online_store={"type": "sqlite", "path": f"{folder}/online-{offline_store[-6:]}.db"},
            offline_store={"type": offline_store, **limits},
            entity_key_serialization_version=3,
        )
    )


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ibis calls what DuckDB deprecated
        yield


@pytest.fixture(autouse=True)
def _ties_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where entity rows are few, all rows would be ranked: here, where there are fewer than half the feature rows."""
    monkeypatch.setattr(offline_store, "_FEW_ENTITY_ROWS", 0)


# Two keys of text, two timestamps, and features of several types. `v` numbers the rows of a file.
SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("ts", UTC_US),
        ("created", UTC_US),
        ("raw_v", pa.int64()),
        ("share", pa.float64()),
        ("kind", pa.string()),
        ("when", UTC_US),
        ("trail", pa.list_(pa.float64())),
    ]
)


def feature_row(v: int, a: str | None, b: str | None, ts: float, created: float | None) -> Row:
    return {
        "a": a,
        "b": b,
        "ts": instant(ts),
        "created": None if created is None else instant(created),
        "raw_v": v,
        "share": None if v % 3 == 0 else v / 7,
        "kind": None if v % 5 == 0 else f"kind {v}",
        "when": instant(v),
        "trail": [float(v), 0.5],
    }


def write(path: Path, rows: Sequence[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path)


class Repo:
    """Both stores over one file. Views: `one` by a, `pair` by a and b, `brief` = pair with a TTL of 10 s,
    `loose` = one without created timestamp and with a TTL."""

    def __init__(self, folder: Path, path: str | None = None):
        self.file = folder / "features.parquet"
        self.path = path or str(self.file)
        a, b = (Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in "ab")
        self.a, self.b = a, b
        self.one = self.view("one", [a])
        self.pair = self.view("pair", [a, b])
        self.brief = self.view("brief", [a, b], TTL)
        self.loose = self.view("loose", [a], TTL, created="")
        self.asof = feast(folder, ASOF, threads=2, memory_limit="500MB")
        self.asof.apply([a, b, self.one, self.pair, self.brief, self.loose])
        self.stock = feast(folder, STOCK)

    def view(
        self, name: str, entities: list[Entity], ttl: timedelta = timedelta(0), created: str = "created"
    ) -> FeatureView:
        return FeatureView(
            name=name,
            entities=entities,
            ttl=ttl,
            schema=[
                *(Field(name=entity.name, dtype=String) for entity in entities),
                Field(name="v", dtype=Int64),
                Field(name="share", dtype=Float64),
                Field(name="kind", dtype=String),
                Field(name="when", dtype=UnixTimestamp),
                Field(name="trail", dtype=Array(Float64)),
            ],
            source=FileSource(
                name=f"{name}_source",
                path=self.path,
                file_format=ParquetFormat(),  # without it, the stock store reads only paths in .parquet
                timestamp_field="ts",
                created_timestamp_column=created,
                field_mapping={"raw_v": "v"},
            ),
        )


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """One for the module: what differs between tests is the file, which each writes for itself."""
    return Repo(tmp_path_factory.mktemp("repo"))


def entities(*rows: tuple[str | None, str | None, float | None]) -> pd.DataFrame:
    """Entity rows (a, b, seconds), numbered in the column `row`."""
    return pd.DataFrame(
        {
            "row": range(len(rows)),
            "a": pd.Series([a for a, _, _ in rows], dtype=object),
            "b": pd.Series([b for _, b, _ in rows], dtype=object),
            "event_timestamp": pd.Series(
                [pd.NaT if ts is None else instant(ts) for _, _, ts in rows], dtype="datetime64[us, UTC]"
            ),
        }
    )


def retrieve(store: FeatureStore, entity_df: pd.DataFrame, features: list[str], **options: Any) -> pa.Table:
    return store.get_historical_features(entity_df, features, **options).to_arrow()


def columns(table: pa.Table, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The values of `names`, by the column `row`; the stock store gives rows in any order."""
    ordered = table.sort_by("row")
    return list(zip(*(ordered[name].to_pylist() for name in names), strict=True))


def assert_same(repo: Repo, entity_df: pd.DataFrame, features: list[str], **options: Any) -> list[tuple[Any, ...]]:
    """Both stores return the same columns, types and values; the ASOF store in the order of `entity_df`."""
    actual, expected = (retrieve(store, entity_df, features, **options) for store in (repo.asof, repo.stock))
    assert actual.column_names == expected.column_names
    assert actual["row"].to_pylist() == entity_df["row"].tolist()
    assert actual.schema.types == expected.schema.types
    assert columns(actual, actual.column_names) == columns(expected, actual.column_names)
    return columns(actual, [name for name in actual.column_names if name not in entity_df.columns])


def values(repo: Repo, entity_df: pd.DataFrame, feature: str, **options: Any) -> list[Any]:
    """One feature of both stores, after `assert_same`."""
    return [value for (value,) in assert_same(repo, entity_df, [feature], **options)]


def oracle(
    rows: Sequence[Row],
    entity_df: pd.DataFrame,
    keys: Sequence[str],
    ttl: timedelta | None = None,
    created: bool = True,
    known_only: bool = False,
) -> list[int | None]:
    """Return `v` for each entity row, by looking at every feature row."""
    matches = []
    for entity in entity_df.to_dict("records"):
        timestamp, best = entity["event_timestamp"], None
        for position, row in enumerate(rows):
            if pd.isna(timestamp) or any(row[key] is None or row[key] != entity[key] for key in keys):
                continue
            if row["ts"] > timestamp or (ttl and row["ts"] + ttl < timestamp):
                continue
            if known_only and (row["created"] is None or row["created"] > timestamp):
                continue
            created_rank = row["created"].timestamp() if created and row["created"] else float("-inf")
            rank = (row["ts"], created_rank, position)
            if best is None or rank > best[0]:
                best = (rank, row["raw_v"])
        matches.append(best[1] if best else None)
    return matches


# Edge cases by hand, each entity_df of both stores.


def test_boundaries_are_inclusive_at_both_ends(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    micro = 1e-6
    entity_df = entities(*(("x", "y", ts) for ts in (-micro, 0, micro, 10 - micro, 10, 10 + micro)))
    assert values(repo, entity_df, "brief:v") == [None, 1, 1, 1, 1, None]
    assert values(repo, entity_df, "loose:v") == [None, 1, 1, 1, 1, None]


def test_ttl_of_zero_is_no_ttl(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    assert values(repo, entities(("x", "y", 10**9)), "one:v") == [1]


def test_expired_row_hides_older_rows(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0), feature_row(2, "x", "y", 1, 1)])
    assert values(repo, entities(("x", "y", 11), ("x", "y", 12)), "brief:v") == [2, None]


def test_latest_event_wins_over_later_created(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 9), feature_row(2, "x", "y", 1, 2)])
    assert values(repo, entities(("x", "y", 20)), "one:v") == [2]


def test_latest_created_wins_among_equal_events(repo: Repo) -> None:
    write(repo.file, [feature_row(v, "x", "y", 0, created) for v, created in [(1, 5), (2, 9), (4, 7)]])
    assert values(repo, entities(("x", "y", 0), ("x", "y", 6)), "one:v") == [2, 2]


def test_created_timestamp_wins_over_null(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, None), feature_row(2, "x", "y", 0, -99)])
    assert values(repo, entities(("x", "y", 0)), "one:v") == [2]


def test_duplicates_do_not_multiply_rows(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)] * 5)
    entity_df = entities(*[("x", "y", 1)] * 3)
    assert (
        assert_same(repo, entity_df, ["one:v", "pair:share", "brief:kind", "loose:when"])
        == [(1, 1 / 7, "kind 1", instant(1))] * 3
    )


def test_equal_entity_rows_are_all_returned(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    entity_df = entities(*[("x", "y", 1)] * 4, *[("x", "y", -1)] * 3, *[("nobody", "y", 1)] * 2)
    assert values(repo, entity_df, "one:v") == [1] * 4 + [None] * 5


def test_null_keys_and_timestamps_match_nothing(repo: Repo) -> None:
    write(repo.file, [feature_row(1, None, "y", 0, 0), feature_row(2, "x", None, 0, 0), feature_row(4, "x", "y", 0, 0)])
    entity_df = entities((None, "y", 1), ("x", None, 1), (None, None, 1), ("x", "y", None), ("x", "y", 1))
    assert values(repo, entity_df, "pair:v") == [None, None, None, None, 4]
    assert values(repo, entity_df, "brief:v") == [None, None, None, None, 4]


def test_entities_without_any_timestamp(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    entity_df = entities(("x", "y", None))
    assert assert_same(repo, entity_df, ["one:v", "brief:kind"]) == [(None, None)]


def test_joint_keys_are_not_concatenated(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "1", "11", 0, 0), feature_row(2, "11", "1", 0, 0)])
    assert values(repo, entities(("1", "11", 1), ("11", "1", 1), ("111", "", 1)), "pair:v") == [1, 2, None]


def test_several_views_with_full_feature_names(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0), feature_row(2, "x", "z", 1, 1)])
    entity_df = entities(("x", "y", 5), ("x", "y", 99))
    refs = ["one:v", "pair:v", "brief:v", "loose:v", "one:share", "one:trail"]
    actual = assert_same(repo, entity_df, refs, full_feature_names=True)
    assert actual == [(2, 2 / 7, [2.0, 0.5], 1, 1, 2), (2, 2 / 7, [2.0, 0.5], 1, None, None)]
    with pytest.raises(FeatureNameCollisionError):
        retrieve(repo.asof, entity_df, refs)


def test_empty_entity_df(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    actual = retrieve(repo.asof, entities(), ["one:v", "brief:kind"])
    assert actual.num_rows == 0
    assert actual.schema.field("v").type == pa.int64()
    assert actual.schema.field("event_timestamp").type == UTC_US


def test_no_reachable_feature_row(repo: Repo) -> None:
    write(repo.file, [])
    assert assert_same(repo, entities(("x", "y", 5)), ["one:v", "one:kind"]) == [(None, None)]


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda s: s, id="aware"),
        pytest.param(lambda s: s.dt.tz_localize(None), id="naive is UTC"),
        pytest.param(lambda s: s.dt.tz_convert("America/New_York"), id="another zone"),
        pytest.param(
            lambda s: s.dt.tz_convert("Europe/Berlin").map(lambda t: t.isoformat(timespec="microseconds")), id="text"
        ),
        pytest.param(lambda s: s.astype(object), id="objects"),
        pytest.param(lambda s: s.dt.as_unit("ns"), id="nanoseconds"),
    ],
)
def test_entity_timestamps(repo: Repo, written: Callable[[pd.Series], pd.Series]) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    entity_df = entities(("x", "y", 0), ("x", "y", -1e-6))
    entity_df["event_timestamp"] = written(entity_df["event_timestamp"])
    # 10 March 2024 is when New York changes its clocks: a local comparison would be an hour off.
    assert values(repo, entity_df, "one:v") == [1, None]
    assert retrieve(repo.asof, entity_df, ["one:v"])["event_timestamp"].to_pylist() == [instant(0), instant(-1e-6)]


@pytest.mark.parametrize(
    "dtype", [pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "Asia/Tokyo")]
)
def test_feature_timestamps(repo: Repo, dtype: pa.DataType) -> None:
    table = pa.Table.from_pylist([feature_row(1, "x", "y", 0, 0), feature_row(2, "x", "y", 5, 5)], schema=SCHEMA)
    for name in ("ts", "created"):
        instants = table[name].cast(pa.timestamp("us"))  # the same wall clock in UTC
        typed = instants.cast(dtype) if dtype.tz is None else table[name].cast(dtype)
        table = table.set_column(table.column_names.index(name), name, typed)
    pq.write_table(table, repo.file)
    entity_df = entities(("x", "y", -1e-6), ("x", "y", 0), ("x", "y", 5), ("x", "y", 15), ("x", "y", 15.000001))
    assert values(repo, entity_df, "brief:v") == [None, 1, 2, 2, None]


def test_timestamp_column_with_another_name(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    assert values(repo, entities(("x", "y", 1)).rename(columns={"event_timestamp": "seen"}), "one:v") == [1]


def test_entity_columns_are_unchanged(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    entity_df = entities(("x", "y", 1), (None, "y", 2), ("x", "y", 3)).assign(
        label=np.array([1, 0, 1], "int8"),
        weight=np.array([0.5, np.nan, 2], "float32"),
        flag=[True, False, True],
        note=pd.Series(["ä", None, ""], dtype=object),
        nothing=None,
        kind_of=pd.Categorical(["p", "q", "p"]),
    )
    entity_df.index = [7, 7, 7]  # as a concatenation leaves it
    before = entity_df.copy()
    actual = retrieve(repo.asof, entity_df, ["one:share"])
    expected = pa.Table.from_pandas(before, preserve_index=False)
    assert actual.drop_columns("share").equals(expected.replace_schema_metadata(None))
    pd.testing.assert_frame_equal(entity_df, before)
    frame = repo.asof.get_historical_features(entity_df, ["one:share"]).to_df()
    assert list(frame.index) == [0, 1, 2]
    assert str(frame["event_timestamp"].dt.tz) == "UTC"


@pytest.mark.parametrize("dtype", ["string", pd.StringDtype("pyarrow", na_value=np.nan)], ids=["string", "pandas 3"])
def test_text_keys_of_every_type_give_the_same_table(repo: Repo, dtype: Any) -> None:
    write(repo.file, [feature_row(1, "x", "y", 0, 0)])
    entity_df = entities(("x", "y", 1), (None, "y", 2), ("x", None, 3))
    typed = entity_df.astype({"a": dtype, "b": dtype})
    expected = retrieve(repo.asof, entity_df, ["one:share", "pair:v"])
    assert retrieve(repo.asof, typed, ["one:share", "pair:v"]).equals(expected)
    assert [str(typed[name].dtype) for name in "ab"] == [str(dtype)] * 2


def test_keys_of_other_types(tmp_path: Path) -> None:
    file = tmp_path / "typed.parquet"
    pq.write_table(
        pa.table(
            {
                "id": pa.array([1, 2], pa.int32()),
                "ts": pa.array([instant(0), instant(0)], UTC_US),
                "v": pa.array([10, 20]),
            }
        ),
        file,
    )
    key = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="typed",
        entities=[key],
        schema=[Field(name="id", dtype=Int64), Field(name="v", dtype=Int64)],
        source=FileSource(path=str(file), timestamp_field="ts"),
    )
    asof = feast(tmp_path, ASOF)
    asof.apply([key, view])
    base = entities(("x", "y", 1), ("x", "y", 1), ("x", "y", 1))
    for ids in ([1, 2, 3], [1.0, 2.0, np.nan], pd.array([1, 2, None], "Int64")):
        for store in (asof, feast(tmp_path, STOCK)):
            actual = retrieve(store, base.assign(id=ids), ["typed:v"])
            assert columns(actual, ["v"]) == [(10,), (20,), (None,)]
    # "01" must not find 1. The stock store refuses as well.
    with pytest.raises(RetrievalError, match="varchar, but join key id of view typed is integer"):
        retrieve(asof, base.assign(id=["01", "2", "3"]), ["typed:v"])


def test_entity_aliases(repo: Repo) -> None:
    write(repo.file, [feature_row(1, "x", "p", 0, 0), feature_row(2, "y", "q", 0, 0)])
    origin = repo.one.with_name("origin").with_join_key_map({"a": "from"})
    target = repo.one.with_name("target").with_join_key_map({"a": "to"})
    service = FeatureService(name="trip", features=[origin[["v"]], target[["v", "kind"]]])
    for store in (repo.asof, repo.stock):
        store.apply([service])
    entity_df = entities((None, None, 1), (None, None, 1)).assign(**{"from": ["x", "y"], "to": ["y", "nobody"]})
    stores = (repo.asof, repo.stock)
    actual, expected = (retrieve(store, entity_df, service, full_feature_names=True) for store in stores)  # type: ignore[arg-type]
    names = ["origin__v", "target__v", "target__kind"]
    assert columns(actual, names) == columns(expected, names) == [(1, 2, "kind 2"), (2, None, None)]
    assert actual.column_names == expected.column_names


def test_alias_for_one_of_two_joint_keys(repo: Repo) -> None:
    # The stock store joins on the aliased key only, forgets the other, and so takes another pair's features.
    write(repo.file, [feature_row(1, "x", "p", 0, 0), feature_row(2, "x", "q", 0, 9)])
    service = FeatureService(
        name="half", features=[repo.pair.with_name("half").with_join_key_map({"a": "from"})[["v"]]]
    )
    repo.asof.apply([service])
    entity_df = entities((None, "p", 1), (None, "q", 1)).assign(**{"from": "x"})
    assert columns(retrieve(repo.asof, entity_df, service), ["v"]) == [(1,), (2,)]  # type: ignore[arg-type]


def test_feature_name_that_ends_in_y(tmp_path: Path) -> None:
    # The stock store drops every column that ends in _y, the suffix of its own join, and then fails.
    file = tmp_path / "y.parquet"
    pq.write_table(pa.table({"a": ["x"], "ts": pa.array([instant(0)], UTC_US), "delay_y": [1.5]}), file)
    key = Entity(name="a", join_keys=["a"], value_type=ValueType.STRING)
    view = FeatureView(
        name="suffix",
        entities=[key],
        schema=[Field(name="a", dtype=String), Field(name="delay_y", dtype=Float64)],
        source=FileSource(path=str(file), timestamp_field="ts"),
    )
    asof = feast(tmp_path, ASOF)
    asof.apply([key, view])
    assert columns(retrieve(asof, entities(("x", "y", 1)), ["suffix:delay_y"]), ["delay_y"]) == [(1.5,)]


def test_view_without_entities(tmp_path: Path) -> None:
    file = tmp_path / "world.parquet"
    pq.write_table(pa.table({"ts": pa.array([instant(0), instant(5)], UTC_US), "price": [1.0, 2.0]}), file)
    view = FeatureView(
        name="world",
        entities=[],
        ttl=TTL,
        schema=[Field(name="price", dtype=Float64)],
        source=FileSource(path=str(file), timestamp_field="ts"),
    )
    asof = feast(tmp_path, ASOF)
    asof.apply([view])
    entity_df = entities((None, None, -1), (None, None, 4), (None, None, 15), (None, None, 16))
    for store in (asof, feast(tmp_path, STOCK)):
        assert columns(retrieve(store, entity_df, ["world:price"]), ["price"]) == [(None,), (1.0,), (2.0,), (None,)]


def test_filter_by_created_timestamp(repo: Repo) -> None:
    rows = [
        feature_row(1, "x", "y", 0, 1),
        feature_row(2, "x", "y", 0, 8),  # a correction of the first
        feature_row(4, "x", "y", 5, 6),
        feature_row(5, "x", "y", 5, None),
        feature_row(7, "x", "y", 4, 30),  # of the past, and late
    ]
    write(repo.file, rows)
    entity_df = entities(*(("x", "y", ts) for ts in (0, 1, 5, 6, 8, 14, 15, 16, 31)))
    known = values(repo, entity_df, "brief:v", filter_by_created_timestamp=True)
    assert known == [None, 1, 1, 4, 4, 4, 4, None, None]
    assert known == oracle(rows, entity_df, "ab", TTL, known_only=True)
    assert values(repo, entity_df, "brief:v") == [2, 2, 4, 4, 4, 4, 4, None, None]


def test_on_demand_views(repo: Repo) -> None:
    write(repo.file, [feature_row(2, "x", "y", 0, 0)])

    @on_demand_feature_view(sources=[repo.one], schema=[Field(name="twice", dtype=Int64)], mode="pandas")  # type: ignore[untyped-decorator]
    def derived(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": inputs["v"] * 2})

    for store in (repo.asof, repo.stock):
        store.apply([derived])
    entity_df = entities(("x", "y", 1))
    for store in (repo.asof, repo.stock):
        assert columns(retrieve(store, entity_df, ["one:v", "derived:twice"]), ["v", "twice"]) == [(2, 4)]


# Random data, entity_df of both stores and of the oracle.

INSTANTS = st.integers(0, 24)
FEATURE_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["1", "11", "111", None]),
        st.sampled_from(["1", "11", "", None]),
        INSTANTS,
        st.one_of(st.none(), st.integers(0, 4)),
    ),
    max_size=30,
)
ENTITY_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["1", "11", "111", "?", None]),
        st.sampled_from(["1", "11", "", None]),
        st.one_of(INSTANTS, INSTANTS.map(lambda s: s + 1e-6), INSTANTS.map(lambda s: s - 1e-6), st.none()),
    ),
    min_size=1,
    max_size=30,
)
RANDOM = settings(
    deadline=None,
    derandomize=True,  # the same examples everywhere; what a random run finds belongs above, with a name
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
REFS = ["one:v", "pair:v", "brief:v", "loose:v"]


@settings(RANDOM, max_examples=15)
@given(feature_rows=FEATURE_ROWS, entity_rows=ENTITY_ROWS, known_only=st.booleans())
def test_random_data_equals_the_stock_store(
    repo: Repo, feature_rows: list[Any], entity_rows: list[Any], known_only: bool
) -> None:
    # Where rows tie in all that the stock store looks at, it takes any: give it one of them, twice.
    rows: dict[tuple[str | None, int], Row] = {}
    for v, (a, b, ts, delay) in enumerate(feature_rows):
        rows.setdefault((a, ts), feature_row(v, a, b, ts, None if delay is None else ts + delay))
    write(repo.file, [*rows.values(), *rows.values()])
    entity_df = entities(*entity_rows)
    options = {"full_feature_names": True, "filter_by_created_timestamp": known_only}
    assert_same(repo, entity_df, [*REFS, "pair:kind", "pair:share"], **options)


@settings(RANDOM, max_examples=60)
@given(feature_rows=FEATURE_ROWS, entity_rows=ENTITY_ROWS, known_only=st.booleans())
def test_random_data_equals_the_oracle(
    repo: Repo, feature_rows: list[Any], entity_rows: list[Any], known_only: bool
) -> None:
    """With ties of every kind, down to rows that differ in nothing but their place in the file."""
    rows = [
        feature_row(v, a, b, ts, None if delay is None else ts + delay)
        for v, (a, b, ts, delay) in enumerate(feature_rows)
    ]
    write(repo.file, rows)
    entity_df = entities(*entity_rows)
    actual = retrieve(repo.asof, entity_df, REFS, full_feature_names=True, filter_by_created_timestamp=known_only)
    assert actual["row"].to_pylist() == entity_df["row"].tolist()
    assert actual["one__v"].to_pylist() == oracle(rows, entity_df, "a", known_only=known_only)
    assert actual["pair__v"].to_pylist() == oracle(rows, entity_df, "ab", known_only=known_only)
    assert actual["brief__v"].to_pylist() == oracle(rows, entity_df, "ab", TTL, known_only=known_only)
    assert actual["loose__v"].to_pylist() == oracle(rows, entity_df, "a", TTL, created=False)


def many(rows: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        feature_row(v, f"k{k}", "y", int(ts), None)
        for v, (k, ts) in enumerate(zip(rng.integers(0, 50, rows), rng.integers(0, 40, rows), strict=True))
    ]


def test_ties_over_many_files_are_repeatable(tmp_path: Path) -> None:
    # The stock store, and a plain ASOF join, give other values in every run.
    files = tmp_path / "parts"
    files.mkdir()
    newest: dict[tuple[str, datetime], int] = {}
    for part in range(12):
        rows = many(5_000, part)
        for row in rows:
            row["raw_v"] += part * 5_000
            newest[row["a"], row["ts"]] = row["raw_v"]
        write(files / f"{part:02}.parquet", rows)
    repo = Repo(tmp_path, path=f"{files}/*.parquet")
    requests = [(f"k{i % 60}", i % 55) for i in range(3_000)]
    expected = [
        next((newest[key, instant(ts - age)] for age in range(11) if (key, instant(ts - age)) in newest), None)
        for key, ts in requests
    ]
    entity_df = entities(*((key, "y", ts) for key, ts in requests))
    for _ in range(4):
        assert retrieve(repo.asof, entity_df, ["loose:v"])["v"].to_pylist() == expected


def test_result_rows_are_the_entity_rows_in_order(repo: Repo) -> None:
    write(repo.file, many(5_000, 0))
    entity_df = entities(*((f"k{i % 71}", "y", i % 97 - 5) for i in range(20_000)))
    shuffled = entity_df.sample(frac=1, random_state=2)
    actual = retrieve(repo.asof, shuffled, ["one:v", "pair:share", "brief:kind", "loose:when"])
    assert actual["row"].to_pylist() == shuffled["row"].tolist()


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2, 2], [0, 2, 1]])
def test_lost_duplicate_or_moved_rows_are_an_error(rows: list[int]) -> None:
    with pytest.raises(RetrievalError, match=f"3 entity rows in, {len(rows)} rows out"):
        check_row_numbers("one", np.array(rows), 3)


# Sources.


def test_glob_directory_and_file_are_read_alike(tmp_path: Path) -> None:
    rows = [feature_row(v, "x", "y", v, v) for v in range(4)]
    (tmp_path / "parts").mkdir()
    write(tmp_path / "all.parquet", rows)
    for v in range(4):
        write(tmp_path / "parts" / f"{v}.parquet", rows[v : v + 1])
    entity_df = entities(*(("x", "y", ts) for ts in range(-1, 15)))
    answers: list[list[Any]] = []
    for name in ("all.parquet", "parts", "parts/*.parquet"):
        folder = tmp_path / f"repo-{len(answers)}"
        folder.mkdir()
        answers.append(values(Repo(folder, path=str(tmp_path / name)), entity_df, "brief:v"))
    assert answers == [oracle(rows, entity_df, "ab", TTL)] * 3


@pytest.fixture
def lake(tmp_path: Path) -> tuple[Dataset, Repo]:
    dataset = Dataset(tmp_path / "lake" / "flights")
    (dataset.root / "_manifests").mkdir(parents=True)
    return dataset, Repo(tmp_path, path=str(dataset.root / "delays"))


def publish(dataset: Dataset, day: str, rows: list[Row], fingerprint: str = "1") -> None:
    staged = dataset.stage(f"day={day}", fingerprint) / "delays.parquet"
    write(staged, rows)
    dataset.publish(f"day={day}", fingerprint, {"delays": staged}, {})


def test_lake_dataset_is_read_through_its_manifests(lake: tuple[Dataset, Repo]) -> None:
    dataset, repo = lake
    publish(dataset, "2024-03-09", [feature_row(1, "x", "y", 0, 0)])
    publish(dataset, "2024-03-10", [feature_row(2, "x", "y", 5, 5)])
    entity_df = entities(("x", "y", 4), ("x", "y", 6))
    assert columns(retrieve(repo.asof, entity_df, ["one:v"]), ["v"]) == [(1,), (2,)]
    # A corrected day: its old file still lies there. So does one that nobody published.
    publish(dataset, "2024-03-10", [feature_row(4, "x", "y", 5, 4)], fingerprint="2")
    write(dataset.root / "delays" / "day=2024-03-10" / "stray.parquet", [feature_row(8, "x", "y", 5.5, 9)])
    assert columns(retrieve(repo.asof, entity_df, ["one:v"]), ["v"]) == [(1,), (4,)]


def test_views_of_one_retrieval_see_one_state(lake: tuple[Dataset, Repo], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, repo = lake
    publish(dataset, "2024-03-09", [feature_row(1, "x", "y", 0, 0)])
    reads: list[int] = []
    read_manifests = Dataset.manifests

    def read_and_correct(read: Dataset) -> list[Manifest]:
        manifests = read_manifests(read)
        reads.append(len(manifests))
        publish(dataset, "2024-03-09", [feature_row(len(reads) + 1, "x", "y", 0, 0)], fingerprint=str(len(reads) + 1))
        return manifests

    monkeypatch.setattr(Dataset, "manifests", read_and_correct)
    entity_df = entities(("x", "y", 4))
    for value in (1, 2):
        table = retrieve(repo.asof, entity_df, ["one:v", "pair:v"], full_feature_names=True)
        assert columns(table, ["one__v", "pair__v"]) == [(value, value)]
    assert reads == [1, 1]


def test_lake_dataset_without_published_days_gives_nulls(lake: tuple[Dataset, Repo]) -> None:
    _, repo = lake
    entity_df = entities(("x", "y", 4), ("x", "y", None))
    actual = retrieve(repo.asof, entity_df, ["one:v", "one:kind", "one:share", "one:when", "one:trail"])
    assert columns(actual, ["row", "v", "kind", "share", "when", "trail"]) == [
        (row, None, None, None, None, None) for row in (0, 1)
    ]
    assert actual.schema.field("v").type == pa.int64()
    assert actual.schema.field("kind").type == pa.string()
    repo.asof.materialize(instant(-10), instant(10), feature_views=["one"])  # nothing to do, no error
    assert repo.asof.get_online_features(["one:v"], [{"a": "x"}]).to_dict()["v"] == [None]


def test_lake_folders_do_not_replace_columns(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "lake" / "flights")
    staged = dataset.stage("day=2024-03-10", "1") / "delays.parquet"
    pq.write_table(pa.table({"a": ["x"], "ts": pa.array([instant(0)], UTC_US), "day": ["Sunday"]}), staged)
    dataset.publish("day=2024-03-10", "1", {"delays": staged}, {})
    key = Entity(name="a", join_keys=["a"], value_type=ValueType.STRING)
    view = FeatureView(
        name="days",
        entities=[key],
        schema=[Field(name="a", dtype=String), Field(name="day", dtype=String)],
        source=FileSource(path=str(dataset.root / "delays"), timestamp_field="ts"),
    )
    asof = feast(tmp_path, ASOF)
    asof.apply([key, view])
    assert columns(retrieve(asof, entities(("x", "y", 1)), ["days:day"]), ["day"]) == [("Sunday",)]


# Materialization.


@pytest.mark.parametrize("pull_latest", [False, True])
def test_materialize_and_online_reads(tmp_path: Path, pull_latest: bool) -> None:
    repo = Repo(tmp_path)
    rows = [
        feature_row(1, "x", "p", 0, 0),
        feature_row(2, "x", "p", 5, 6),
        feature_row(4, "x", "p", 5, 9),  # a correction
        feature_row(5, "x", "p", 5, None),
        feature_row(7, "x", "q", 10, 1),  # at the end of the window: inside
        feature_row(8, "y", "p", 11, 1),  # after it
        feature_row(10, "z", "p", -1, 1),  # before it
        feature_row(11, "z", "q", 0, 1),  # at its start: inside
    ]
    write(repo.file, rows)
    entity_df = [{"a": a, "b": b} for a in "xyz" for b in "pq"]
    answers = []
    repo.stock.apply([repo.a, repo.b, repo.one, repo.pair])  # makes the tables of its online store
    for store in (repo.asof, repo.stock):
        store.config.materialization_config.pull_latest_features = pull_latest
        store.materialize(instant(0), instant(10), feature_views=["one", "pair"])
        read = store.get_online_features([*REFS[:2], "pair:kind", "pair:when"], entity_df, full_feature_names=True)
        answers.append(read.to_dict())
    assert answers[0] == answers[1]
    assert answers[0]["one__v"] == [7, 7, None, None, 11, 11]
    assert answers[0]["pair__v"] == [4, 7, None, None, None, 11]


@pytest.mark.parametrize("latest", [False, True])
def test_pulls_equal_those_of_the_stock_store(repo: Repo, latest: bool) -> None:
    write(repo.file, [feature_row(v, "xyz"[v % 3], None, v % 7, v) for v in range(40)])
    source = repo.one.batch_source
    assert source is not None
    common = (source, ["a"], ["raw_v", "share"], "ts", "created", instant(2), instant(5))
    pulls = []
    for store in (repo.asof, repo.stock):
        engine = store._get_provider().offline_store
        pull = engine.pull_latest_from_table_or_query if latest else engine.pull_all_from_table_or_query
        pulls.append(pull(store.config, *common).to_arrow())
    assert pulls[0].schema == pulls[1].schema
    assert pulls[0].sort_by("raw_v").to_pylist() == pulls[1].sort_by("raw_v").to_pylist()


def test_pull_latest_takes_the_last_of_equal_rows(repo: Repo) -> None:
    # The stock store takes any of them.
    write(repo.file, [feature_row(v, f"k{v % 5}", "y", 1, 2) for v in range(50)])
    source, engine = repo.one.batch_source, repo.asof._get_provider().offline_store
    assert source is not None
    job = engine.pull_latest_from_table_or_query(
        repo.asof.config, source, ["a"], ["raw_v"], "ts", "created", instant(0), instant(9)
    )
    assert sorted(job.to_arrow()["raw_v"].to_pylist()) == [45, 46, 47, 48, 49]


# Refusals.


def test_entity_df_must_be_a_data_frame(repo: Repo) -> None:
    # The stock store fails on text with an AttributeError, and on a range with a TypeError.
    with pytest.raises(RetrievalError, match="SQL string"):
        repo.asof.get_historical_features("SELECT 1", ["one:v"])
    with pytest.raises(RetrievalError, match="no entity_df"):
        repo.asof.get_historical_features(None, ["one:v"], start_date=instant(0), end_date=instant(1))


def test_all_faults_of_an_entity_df_are_reported(repo: Repo) -> None:
    write(repo.file, [])
    entity_df = entities(("x", "y", 1)).drop(columns=["a", "b"]).assign(kind="mine")
    with pytest.raises(RetrievalError) as refused:
        retrieve(repo.asof, entity_df, ["pair:v", "pair:kind"])
    assert [fault.location for fault in refused.value.faults] == [f"entity_df[{c!r}]" for c in ("a", "b", "kind")]


def test_missing_source_columns_are_reported(repo: Repo) -> None:
    # DuckDB does not tell `Kind` from `kind`; Feast does.
    table = pa.Table.from_pylist([feature_row(1, "x", "y", 0, 0)], schema=SCHEMA)
    pq.write_table(table.rename_columns({"kind": "Kind", "share": "sharing"}), repo.file)
    with pytest.raises(RetrievalError) as refused:
        retrieve(repo.asof, entities(("x", "y", 1)), ["one:v", "one:kind", "one:share"])
    assert {fault.location for fault in refused.value.faults} == {"kind", "share"}


def test_unsupported_operations_raise(repo: Repo, tmp_path: Path) -> None:
    write(repo.file, [])
    job = repo.asof.get_historical_features(entities(("x", "y", 1)), ["one:v"])
    with pytest.raises(NotImplementedError, match="saves no datasets"):
        job.persist(SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet")))
    with pytest.raises(NotImplementedError, match="timeout"):
        job.to_arrow(timeout=1)
    with pytest.raises(NotImplementedError, match="several statements"):
        job.to_sql()
    with pytest.raises(NotImplementedError, match="only reads"):
        repo.asof.write_to_offline_store("one", pd.DataFrame([feature_row(1, "x", "y", 0, 0)]))


def test_memory_limit_applies(tmp_path: Path) -> None:
    repo = Repo(tmp_path)
    write(repo.file, many(200, 0))
    tight = feast(tmp_path, ASOF, memory_limit="1MB", threads=1, temp_directory=str(tmp_path / "spill"))
    with pytest.raises(Exception, match="memory"):
        retrieve(tight, entities(*[("k1", "y", 1)] * 200_000), ["one:v"])
