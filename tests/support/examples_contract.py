"""What every engine that joins examples with features has to do. A test class inherits it, with a fixture `engine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float32, Float64, Int32, Int64, String

from evergreen.errors import FaultsError
from evergreen.feature_store.examples import Selection
from evergreen.feature_store.offline_store import RetrievalError
from evergreen.features.served_after import ServedAfter
from evergreen.lake.datasets import Dataset
from evergreen.periods import Duration
from support.calendars import DAYS

UTC_US = pa.timestamp("us", "UTC")
FIRST_DAY = "2024-03-01"
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
Engine = Callable[[Mapping[str, Path], Mapping[str, Selection], Sequence[FeatureView], Sequence[str], Path], Any]
"""Joins spine files by period, and writes a file of each selection to a folder; returns them by name."""


def repo_config(folder: Path, **limits: Any) -> RepoConfig:
    return RepoConfig(
        project="examples",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
        online_store={"type": "sqlite", "path": f"{folder}/online.db"},
        offline_store={"type": "evergreen.feature_store.offline_store.AsofOfflineStore", **limits},
        entity_key_serialization_version=3,
    )


def instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


def instants(*seconds: float | None, dtype: pa.DataType = UTC_US) -> pa.Array:
    return pa.array([instant(value) for value in seconds], UTC_US).cast(dtype)


def view(
    name: str,
    path: Path,
    keys: Mapping[str, Any],
    ttl: timedelta = timedelta(0),
    v: Any = Int64,
    created: str = "",
    columns: Mapping[str, str] | None = None,
    served_after: str | None = None,
) -> FeatureView:
    """Return a view with the feature `v` over the Parquet file, or the published table, at `path`.

    `columns`: names of the files' columns, and what the view calls them.
    """
    entities = [Entity(name=key, join_keys=[key], value_type=TYPES[dtype]) for key, dtype in keys.items()]
    schema = [*(Field(name=key, dtype=dtype) for key, dtype in keys.items()), Field(name="v", dtype=v)]
    source = FileSource(
        name=name,
        path=str(path),
        file_format=ParquetFormat(),
        timestamp_field="ts",
        created_timestamp_column=created,
        field_mapping=dict(columns or {}),
        tags=None if served_after is None else ServedAfter.declare(served_after, DAYS).to_tags(),
    )
    return FeatureView(name=name, entities=entities or None, ttl=ttl, schema=schema, source=source)


def spine(rows: Sequence[Row], schema: pa.Schema = SPINE) -> pa.Table:
    known = {"loss": 1.0, "label_known_at": START}
    return pa.Table.from_pylist([known | row for row in rows], schema=schema)


def latest_values(
    rows: Sequence[Row], features: Sequence[Row], keys: str, ttl: timedelta | None, by_created: bool = False
) -> list[int | None]:
    """Return `v` of the last feature row, by time, perhaps by when it was created, and by place, known for each row."""
    values = []
    for row in rows:
        seen, best = row["event_timestamp"], None
        for place, feature in enumerate(features):
            is_match = seen and all(feature[key] is not None and feature[key] == row[key] for key in keys)
            if is_match and feature["ts"] <= seen and (not ttl or seen <= feature["ts"] + ttl):
                created = (feature["created"] or datetime.min.replace(tzinfo=UTC)) if by_created else None
                best = max(best or (feature["ts"], created, place), (feature["ts"], created, place))
        values.append(features[best[2]]["v"] if best else None)
    return values


def served_values(
    rows: Sequence[Row], features: Sequence[Row], keys: str, ttl: timedelta | None, delay: timedelta
) -> list[int | None]:
    """Return `v` of what the online store has for each row, if it gets each `day` of features a `delay` after its end.

    It has the last row, by time, of all days before the newest that it got; as a server with a TTL, it leaves out an
    old one.
    """
    values = []
    for row in rows:
        now, best = row["event_timestamp"], None
        loaded = [end for end in map(DAYS.end, DAYS.periods_between("2024-02-20", "2024-04-20")) if now >= end + delay]
        for place, feature in enumerate(features):
            is_loaded = loaded and DAYS.end(feature["day"]) <= loaded[-1] and feature["ts"] < loaded[-1]
            is_match = all(feature[key] is not None and feature[key] == row[key] for key in keys)
            if is_loaded and is_match and feature["ts"] <= now:
                best = max(best or (feature["ts"], place), (feature["ts"], place))
        is_valid = best and (not ttl or now <= best[0] + ttl)
        values.append(features[best[1]]["v"] if best and is_valid else None)
    return values


class Published:
    """Spines and tables of features, published by day in a dataset in `folder`."""

    def __init__(self, folder: Path, days: Sequence[Mapping[str, pa.Table]]):
        self.folder, self.dataset = folder, Dataset(folder / "lake")
        self.spines: dict[str, Path] = {}
        for number, tables in enumerate(days):
            day = DAYS.shift(FIRST_DAY, number)
            staged = self.dataset.stage(f"day={day}", "f")
            for name, table in tables.items():
                pq.write_table(table, staged / f"{name}.parquet")
            files = {name: staged / f"{name}.parquet" for name in tables}
            manifest = self.dataset.publish(f"day={day}", "f", files, {})
            if "spine" in tables:
                self.spines[day] = self.dataset.file_path(manifest, "spine")

    def path(self, table: str) -> Path:
        return Path(self.dataset.root / table)

    def join(self, engine: Engine, views: Sequence[FeatureView], selections: Mapping[str, Selection] = ALL) -> Any:
        """Return the files that an engine writes, with the feature `v` of each view."""
        folder = self.folder / "joined"
        folder.mkdir()
        return engine(self.spines, selections, views, [f"{view.name}:v" for view in views], folder)

    def read(self, engine: Engine, *views: FeatureView) -> pa.Table:
        return pq.read_table(self.join(engine, views)["all"])


class ExamplesContract:
    """The rows, and the bytes, that an engine has to write."""

    def test_random_rows_are_joined_as_a_loop_does(self, engine: Engine, tmp_path: Path) -> None:
        """Many small cases at once, in keys of their own: ties of every kind, nulls, rows out of reach, a hot key."""
        rng = np.random.default_rng(43)
        cases, days, views = 40, 3, ("pair", "one", "corrected")
        rows: list[Row] = []
        features: list[Row] = []
        expected: dict[str, dict[int, int | None]] = {name: {} for name in views}
        for case in range(cases):

            def rows_of_case(count: int, case: int = case) -> list[Row]:
                keys = [f"{case} {key}" for key in ("hot", "hot", "hot", "x", "")] + [None]
                return [
                    {
                        "a": keys[rng.integers(len(keys))],
                        "b": [1, 1, 2, None][rng.integers(4)],
                        "day": int(rng.integers(days)),
                        "seconds": int(rng.integers(13)),
                    }
                    for _ in range(count)
                ]

            own = rows_of_case(int(rng.integers(12)))
            own_features = sorted(rows_of_case(int(rng.integers(25))), key=lambda row: row["day"])
            for row in own:
                row |= {"row": len(rows), "event_timestamp": instant(row["seconds"] if rng.integers(8) else None)}
                rows.append(row)
            for row in own_features:
                created = [None, instant(int(rng.integers(3)))][rng.integers(2)]
                row |= {"v": len(features), "ts": instant(row["seconds"]), "created": created}
                features.append(row)
            for name, keys, ttl in (("pair", "ab", TTL), ("one", "a", None), ("corrected", "a", None)):
                values = latest_values(own, own_features, keys, ttl, name == "corrected")
                expected[name] |= zip((row["row"] for row in own), values, strict=True)
        schema = pa.schema([*FEATURES, ("created", UTC_US)])
        published = Published(
            tmp_path,
            [
                {
                    "spine": spine([row for row in rows if row["day"] == day]),
                    "rates": pa.Table.from_pylist([row for row in features if row["day"] == day], schema=schema),
                }
                for day in range(days)
            ],
        )
        path = published.path("rates")
        table = published.read(
            engine,
            view("pair", path, {"a": String, "b": Int64}, TTL),
            view("one", path, {"a": String}),
            view("corrected", path, {"a": String}, created="created"),
            view("none", path, {}),
        )
        ordered = sorted(rows, key=lambda row: (row["event_timestamp"] or datetime.max.replace(tzinfo=UTC), row["day"]))
        assert table["row"].to_pylist() == [row["row"] for row in ordered], "by time, by period, and as they were"
        for name in views:
            assert table[f"{name}__v"].to_pylist() == [expected[name][row["row"]] for row in ordered], name
        in_files = sorted(features, key=lambda row: row["day"])
        assert table["none__v"].to_pylist() == latest_values(ordered, in_files, "", None)

    def test_rows_count_when_they_are_served(self, engine: Engine, tmp_path: Path) -> None:
        """Rows of three days, dated up to a day before and after their own, and requests to the minute of the load."""
        rng, days = np.random.default_rng(69), list(DAYS.periods_between(FIRST_DAY, "2024-03-04"))
        delays = ("0h", "7h", "30h")
        midnights = [DAYS.start(day) for day in [*days, "2024-03-04"]]

        def moment() -> datetime:
            edge = midnights[rng.integers(4)] + Duration.parse(delays[rng.integers(3)]).length
            around = edge + timedelta(minutes=int(rng.integers(-1, 2)))
            return around if rng.integers(2) else midnights[0] + timedelta(minutes=int(rng.integers(4 * 24 * 60)))

        def keys() -> Row:
            return {"a": ["x", "y", "y", None][rng.integers(4)], "b": [1, 2][rng.integers(2)]}

        rows = [keys() | {"row": number, "event_timestamp": moment()} for number in range(300)]
        features = [
            keys() | {"v": number, "day": day, "ts": DAYS.start(day) + timedelta(hours=float(rng.integers(-4, 8) * 6))}
            for number, day in enumerate(np.sort(rng.choice(days, 120)).tolist())
        ]
        published = Published(
            tmp_path,
            [
                {
                    "spine": spine(rows if day == days[0] else []),
                    "rates": pa.Table.from_pylist([row for row in features if row["day"] == day], schema=FEATURES),
                }
                for day in days
            ],
        )
        path, ttl = published.path("rates"), timedelta(hours=40)
        table = published.read(
            engine,
            view("none", path, {}, served_after="0h"),
            view("one", path, {"a": String}, served_after="7h"),
            view("pair", path, {"a": String, "b": Int64}, ttl, served_after="30h"),
            view("dated", path, {"a": String}),
        )
        ordered = [rows[number] for number in table["row"].to_pylist()]
        assert len(ordered) == len(rows)
        cases = ("none", "", None, "0h"), ("one", "a", None, "7h"), ("pair", "ab", ttl, "30h")
        for name, join_keys, holds, delay in cases:
            expected = served_values(ordered, features, join_keys, holds, Duration.parse(delay).length)
            assert table[f"{name}__v"].to_pylist() == expected, name
        assert table["dated__v"].to_pylist() == latest_values(ordered, features, "a", None)
        assert table["dated__v"] != table["one__v"]

    def test_names_of_columns_and_folders_may_be_anything(self, engine: Engine, tmp_path: Path) -> None:
        names = ['key"; --', "row_number", "feature_0", "key_0", "place", "rank", "select", "Ünï `c`.o,d e"]
        names += ["number", "period", "periods", "column_0", "entity_us", "mask_0"]
        rows = [{name: f"{name}{number}" for name in names} for number in range(9)]
        schema = pa.schema([*SPINE, *((name, pa.string()) for name in names)])
        table = spine([row | {"event_timestamp": START} for row in rows], schema)
        features = pa.table({"K.`'": [row[names[0]] for row in rows], "ts": instants(*[0] * 9), "it's v": range(9)})
        folder = tmp_path / "it's [a] {b,c} * é%20"
        folder.mkdir()
        published = Published(folder, [{"spine": table, "rates": features}])
        for file in published.dataset.root.glob("rates/*/*.parquet"):
            decoy = tmp_path / "it's a b * é%20" / "lake" / file.relative_to(published.dataset.root)
            decoy.parent.mkdir(parents=True)
            pq.write_table(features.slice(1), decoy)
        rates = view("rates", published.path("rates"), {names[0]: String}, columns={"K.`'": names[0], "it's v": "v"})
        result = published.read(engine, rates)
        assert result["rates__v"].to_pylist() == list(range(9))
        assert result.select(names).to_pylist() == rows

    def test_columns_of_the_spine_keep_types_and_values(self, engine: Engine, tmp_path: Path) -> None:
        values: dict[str, tuple[pa.DataType, list[Any]]] = {
            "tiny": (pa.int8(), [-128, None]),
            "large": (pa.uint64(), [2**64 - 1, None]),
            "short": (pa.float32(), [0.1, None]),
            "zero": (pa.float64(), [-0.0, None]),
            "price": (pa.decimal128(20, 3), [Decimal("0.125"), None]),
            "born": (pa.date32(), [date(1369, 12, 31), None]),
            "local": (pa.timestamp("us", "Asia/Tokyo"), [START, None]),
            "naive": (pa.timestamp("us"), [datetime(1024, 1, 1), None]),
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
        result = Published(tmp_path, [{"spine": table}, {"spine": wider}]).read(engine)
        assert result.schema.field("b").type == pa.int64(), "which holds the integers of all periods"
        assert result["b"].to_pylist() == [None, None, 2**40]
        names = list(values)
        assert result.select(names).schema.types == [dtype for dtype, _ in values.values()]
        assert result.select(names).slice(0, 2).equals(table.select(names))
        assert str(result["zero"][0].as_py()) == "-0.0"

    def test_files_have_their_examples_in_row_groups(self, engine: Engine, tmp_path: Path) -> None:
        count = 100_000
        schema = pa.schema(
            [field for field in SPINE if field.name in ("event_timestamp", "b", "loss", "label_known_at")]
        )
        times, keys = pa.array([START] * count, UTC_US), pa.array(range(count), pa.int32())
        first = pa.table([times, keys, np.ones(count), times], schema)
        second = pa.table([times, keys, pa.array([None, *np.ones(count - 1)]), times], schema)
        values = np.arange(count, dtype=float)
        rates = pa.table({"b": pa.array(range(count), pa.int64()), "ts": times, "v": values})
        published = Published(
            tmp_path, [{"spine": first, "rates": rates}, {"spine": second, "rates": rates.slice(0, 0)}]
        )
        numbers = view("numbers", published.path("rates"), {"b": Int64})
        selections = {
            "all": Selection("", "9"),
            "known": Selection("2024-03-02", "9", START + timedelta(seconds=1)),
            "late": Selection("", "9", START),
        }
        files = published.join(engine, [numbers], selections)
        expected = {"all": [*values] * 2, "known": [*values][1:], "late": []}
        for name, rows in expected.items():
            file = pq.ParquetFile(files[name])
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            assert groups == [65_536] * (len(rows) // 65_536) + [len(rows) % 65_536], "whatever lies between them"
            assert file.read(["numbers__v"])["numbers__v"].to_pylist() == rows
            assert ("label" in file.schema_arrow.names) == (name != "all")

    def test_values_that_change_are_an_error(self, engine: Engine, tmp_path: Path) -> None:
        values = np.arange(1_000, dtype=float)
        values[[5, 900]] += 0.5
        rates = pa.table({"b": pa.array(range(1_000), pa.int64()), "ts": instants(*[0] * 1_000), "v": values})
        texts = rates.set_column(2, "v", pa.array(["x"] * 1_000))
        table = spine([{"event_timestamp": START, "b": number} for number in [*range(1_000)] * 2])
        published = Published(tmp_path, [{"spine": table, "rates": rates, "texts": texts}])
        views = [view(name, published.path(name), {"b": Int64}) for name in ("rates", "texts")]
        with pytest.raises(RetrievalError) as error:
            published.join(engine, views)
        problems = "; ".join(map(str, error.value.faults))
        assert "double, declared int64, and 4 of 2,000 values would change, such as 5.5" in problems
        assert "texts:v: is string, declared int64" in problems

    def test_features_of_several_types_are_read_as_one(self, engine: Engine, tmp_path: Path) -> None:
        def rates(key: pa.DataType, v: pa.DataType, *values: Any) -> pa.Table:
            keys = pa.array(range(len(values)), pa.int64()).cast(key)
            return pa.table({"b": keys, "ts": instants(*[0] * len(values)), "v": pa.array(values, v)})

        days = [
            {"whole": rates(pa.int32(), pa.int16(), 7), "floats": rates(pa.int64(), pa.float32(), 0.1)},
            {"whole": rates(pa.uint32(), pa.uint32(), 8, 2**32 - 1), "floats": rates(pa.int8(), pa.float64(), 9, 0.1)},
            {"whole": rates(pa.int64(), pa.null()), "floats": rates(pa.int64(), pa.null(), None)},
        ]
        days[0]["spine"] = spine([{"event_timestamp": START, "b": key} for key in (0, 1, 2)])
        published = Published(tmp_path, days)
        views = [
            view("whole", published.path("whole"), {"b": Int64}),
            view("floats", published.path("floats"), {"b": Int64}, v=Float64),
        ]
        result = published.read(engine, *views)
        assert result["whole__v"].to_pylist() == [8, 2**32 - 1, None]
        assert result["floats__v"].to_pylist() == [None, 0.1, None], "the last day's row has no value"

    def test_column_missing_on_a_day_is_an_error(self, engine: Engine, tmp_path: Path) -> None:
        rates = pa.Table.from_pylist([{"a": "x", "ts": START, "v": 1}], schema=FEATURES)
        days = [{"spine": spine([{"event_timestamp": START}]), "rates": rates}, {"rates": rates.drop_columns("v")}]
        published = Published(tmp_path, days)
        with pytest.raises(RetrievalError, match="v: no such column in 1 files, such as .*2024-03-02"):
            published.read(engine, view("rates", published.path("rates"), {"a": String}))

    def test_instants_are_compared_whatever_their_type(self, engine: Engine, tmp_path: Path) -> None:
        """Inclusive at both ends; without a time zone they are UTC. New York changes its clocks on this day."""
        types = {
            "naive": pa.timestamp("us"),
            "millis": pa.timestamp("ms"),
            "local": pa.timestamp("us", "America/New_York"),
            "seconds": pa.timestamp("s", "UTC"),
        }
        begin = (datetime(2024, 3, 10, tzinfo=UTC) - START).total_seconds()
        tables = {
            name: pa.table({"a": ["x", "x"], "ts": instants(begin, begin + 9, dtype=dtype), "v": [1, 2]})
            for name, dtype in types.items()
        }
        tables["dates"] = pa.table({"a": ["x"], "ts": [date(2024, 3, 10)], "v": [1]})
        moments = (-1e-6, 0, 5, 5.000001, 9, 14, 14.000001)
        spines = [{"a": "x", "event_timestamp": instant(begin + moment)} for moment in moments]
        published = Published(tmp_path, [tables | {"spine": spine(spines)}])
        views = [view(name, published.path(name), {"a": String}, TTL) for name in tables]
        result = published.read(engine, *views)
        for name in types:
            assert result[f"{name}__v"].to_pylist() == [None, 1, 1, None, 2, 2, None], name
        assert result["dates__v"].to_pylist() == [None, 1, 1, None, None, None, None]

    def test_numbers_are_compared_whatever_their_type(self, engine: Engine, tmp_path: Path) -> None:
        features = {
            "whole": pa.table({"b": pa.array(range(50), pa.int64()), "ts": instants(*[0] * 50), "v": range(50)}),
            "large": pa.table(
                {"b": pa.array([*range(49), 2**64 - 1], pa.uint64()), "ts": instants(*[0] * 50), "v": range(50)}
            ),
        }
        keys = {
            "floats": pa.array([-0.0, 0.5, float("nan"), None, *map(float, range(4, 51))], pa.float64()),
            "unsigned": pa.array([0, 2**64 - 1, None, 2**63, *range(4, 51)], pa.uint64()),
            "tiny": pa.array([0, -1, None, 127, *range(4, 51)], pa.int8()),
        }
        table = spine([{"event_timestamp": START}] * 51)
        for name, column in keys.items():
            table = table.append_column(name, column)
        published = Published(tmp_path, [features | {"spine": table}])
        views = []
        for key in keys:
            for name in features:
                aliased = view(f"{key}_{name}", published.path(name), {"b": Int64})
                aliased.projection.join_key_map = {"b": key}
                views.append(aliased)
        result = published.read(engine, *views)
        for name in (aliased.name for aliased in views):
            second = 49 if name == "unsigned_large" else None
            last = [49 if name.endswith("whole") else None, None]
            assert result[f"{name}__v"].to_pylist() == [0, second, None, None, *range(4, 49), *last], name

    def test_float_that_may_have_been_another_number_is_an_error(self, engine: Engine, tmp_path: Path) -> None:
        table = spine([{"event_timestamp": START}] * 2).set_column(2, "b", pa.array([2.0**53, float("nan")]))
        rates = pa.Table.from_pylist([{"b": 1, "ts": START, "v": 1}], schema=FEATURES)
        published = Published(tmp_path, [{"spine": table, "rates": rates}])
        with pytest.raises(RetrievalError, match=r"\['b'\]: is double, and 1 of its values may have been rounded"):
            published.read(engine, view("rates", published.path("rates"), {"b": Int64}))

    @pytest.mark.parametrize(
        ("column", "problem"),
        [
            ("a", r"entity_df\['a'\]: is \w+, but join key b of view one is \w+"),
            ("c", r"entity_df\['c'\]: missing, view one joins on it"),
        ],
    )
    def test_key_of_another_kind_is_refused(self, engine: Engine, tmp_path: Path, column: str, problem: str) -> None:
        rates = pa.Table.from_pylist([], schema=FEATURES)
        published = Published(tmp_path, [{"spine": spine([{"event_timestamp": START, "a": "1"}]), "rates": rates}])
        aliased = view("one", published.path("rates"), {"b": Int64})
        aliased.projection.join_key_map = {"b": column}
        with pytest.raises(RetrievalError, match=problem):
            published.read(engine, aliased)

    def test_view_with_nothing_published_is_missing(self, engine: Engine, tmp_path: Path) -> None:
        table = spine([{"event_timestamp": START, "a": "x"}])
        rates = pa.Table.from_pylist([{"a": "x", "ts": START, "v": 1}], schema=FEATURES)
        published = Published(tmp_path, [{"spine": table, "rates": rates, "empty": rates.slice(0, 0)}])
        nothing = view("nothing", published.path("nothing"), {"a": String}, v=Float32)
        empty = view("empty", published.path("empty"), {"a": String})
        rates_view = view("rates", published.path("rates"), {"a": String})
        result = published.read(engine, nothing, empty, rates_view)
        assert result["nothing__v"].type == pa.float32()
        columns = ["nothing__v", "empty__v", "rates__v"]
        assert result.select(columns).to_pylist() == [dict(zip(columns, (None, None, 1), strict=True))]

    def test_periods_without_examples_leave_empty_files(self, engine: Engine, tmp_path: Path) -> None:
        rates = pa.Table.from_pylist([{"a": "x", "ts": START, "v": 1}], schema=FEATURES)
        published = Published(tmp_path, [{"spine": spine([]), "rates": rates}])
        result = published.read(engine, view("rates", published.path("rates"), {"a": String}, TTL))
        assert result.num_rows == 0
        assert result.schema.field("rates__v").type == pa.int64()

    def test_spine_whose_types_differ_is_an_error(self, engine: Engine, tmp_path: Path) -> None:
        table = spine([{"event_timestamp": START, "a": "x"}])
        other = table.set_column(1, "a", pa.array([1]))
        with pytest.raises(FaultsError, match=r"requests.a: has the types int64, string"):
            Published(tmp_path, [{"spine": table}, {"spine": other}]).read(engine)
