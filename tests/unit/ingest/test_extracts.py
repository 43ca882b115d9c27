"""Queries on DuckDB and tables of Delta and Iceberg: what is read, once, what is read again, and what is refused.

docs/data.md counts the inputs of these tables. tests/integration/ingest asks Postgres.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.expressions import EqualTo
from pyroaring import BitMap

from evergreen.errors import Fault
from evergreen.ingest.announcements import AnnouncementStore
from evergreen.ingest.declared_files import read_as_declared
from evergreen.ingest.extracts import refresh_extracts, reread_query
from evergreen.ingest.raw_files import RawFile, find_parts, hash_raw_files, missing_fault
from evergreen.ingest.watcher import RawDataWatcher, WatchedSource
from evergreen.lake.datasets import Dataset
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen.spec.model import FeatureSpec, RawSource

pytestmark = pytest.mark.unit

FIRST, SECOND = "2013-03-01", "2013-03-02"
ZONE = "America/New_York"  # five hours after UTC


def a_spec(columns: Mapping[str, Any], **fields: Any) -> FeatureSpec:
    source = RawSource(name="rides", columns=columns, **fields)
    return FeatureSpec(timezone=ZONE, first_day=FIRST, sources=(source,), views=("v",), spine="s")


def refresh(spec: FeatureSpec, *periods: str) -> list[Fault]:
    files = [RawFile.from_source(spec.sources[0], period) for period in periods]
    return [fault for faults in refresh_extracts(spec, files).values() for fault in faults]


def rows_of(spec: FeatureSpec, tmp_path: Path, period: str | None = FIRST) -> dict[str, list[Any]]:
    file = RawFile.from_source(spec.sources[0], period)
    declared = read_as_declared(spec.sources[0], file, hash_raw_files([file])[file], Dataset(tmp_path / "copies"))
    assert declared.faults == ()
    return pq.read_table(declared.path).to_pydict()


# Queries


@pytest.fixture
def database(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Execute SQL in a database that the connection `shop` names."""
    file = tmp_path / "shop.db"
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", f"duckdb:///{file}")
    settings.cache_clear()

    def execute(sql: str) -> None:
        with duckdb.connect(str(file)) as connection:
            connection.execute(sql)

    execute("SET TimeZone='UTC'; CREATE TABLE rides (left_at TIMESTAMPTZ, x BIGINT, loaded TIMESTAMPTZ)")
    execute(
        "INSERT INTO rides SELECT TIMESTAMPTZ '2013-03-01 00:00:00Z' + INTERVAL (h) HOUR, h, now() FROM range(72) t(h)"
    )
    return execute


SQL = "SELECT x, left_at FROM rides WHERE left_at >= :start AND left_at < :end ORDER BY left_at"
COLUMNS = {"x": "int64", "left_at": "timestamp[us, tz=UTC]"}


def test_a_query_is_bound_to_the_period(database: Callable[[str], None], tmp_path: Path) -> None:
    spec = a_spec(COLUMNS, query=dict(connection="shop", sql=SQL))
    assert refresh(spec, FIRST, SECOND) == []
    assert rows_of(spec, tmp_path)["x"] == list(range(5, 29)), "a day of New York"
    assert rows_of(spec, tmp_path, SECOND)["x"] == list(range(29, 53))


def test_a_query_is_bound_to_an_hour(database: Callable[[str], None], tmp_path: Path) -> None:
    fields = a_spec(COLUMNS, query=dict(connection="shop", sql=SQL)).model_dump(exclude_unset=True)
    spec = FeatureSpec(**fields | {"period": "6h"})
    assert refresh(spec, "2013-03-01T06:00Z") == []
    assert rows_of(spec, tmp_path, "2013-03-01T06:00Z")["x"] == [6, 7, 8, 9, 10, 11]


def test_a_query_is_read_once_unless_it_is_asked_for(database: Callable[[str], None], tmp_path: Path) -> None:
    spec = a_spec(COLUMNS, query=dict(connection="shop", sql=SQL))
    refresh(spec, FIRST)
    file = RawFile.from_source(spec.sources[0], FIRST)
    first = hash_raw_files([file])
    database("UPDATE rides SET x = -x")
    refresh(spec, FIRST)
    assert hash_raw_files([file]) == first
    assert reread_query(spec, file) == []
    assert hash_raw_files([file]) != first
    assert rows_of(spec, tmp_path)["x"][0] == -5
    database("DROP TABLE rides")
    (fault,) = reread_query(spec, file)
    assert "cannot be queried" in fault.problem
    assert rows_of(spec, tmp_path)["x"][0] == -5, "what was read stays"


def test_another_query_or_time_zone_is_read_anew(database: Callable[[str], None], tmp_path: Path) -> None:
    spec = a_spec(COLUMNS, query=dict(connection="shop", sql=SQL))
    refresh(spec, FIRST)
    other = a_spec(COLUMNS, query=dict(connection="shop", sql=SQL.replace("x,", "x + 100 AS x,")))
    assert find_parts(RawFile.from_source(other.sources[0], FIRST)) is None
    refresh(other, FIRST)
    assert rows_of(other, tmp_path)["x"][0] == 105
    utc = spec.model_copy(update={"timezone": "UTC"})
    refresh(utc, FIRST)
    assert rows_of(utc, tmp_path)["x"][0] == 0


def test_a_query_for_all_days_has_no_parameters(database: Callable[[str], None], tmp_path: Path) -> None:
    spec = a_spec(
        {"x": "int64"}, is_register=True, query=dict(connection="shop", sql="SELECT count(*) AS x FROM rides")
    )
    file = RawFile.from_source(spec.sources[0], None)
    assert refresh_extracts(spec, [file]) == {}
    assert rows_of(spec, tmp_path, None) == {"x": [72]}


QUERY_FAULTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "an unknown column": ("SELECT nothing AS x, :start, :end FROM rides", {"x": "int64"}, {}, "cannot be queried"),
    "an unknown table": (
        SQL.replace("FROM rides", "FROM no_rides"),
        {"x": "int64"},
        {},
        "no_rides",
    ),
    "a syntax error": (
        SQL.replace("SELECT", "SELEC"),
        {"x": "int64"},
        {},
        "cannot be queried",
    ),
    "an empty result": (f"SELECT * FROM ({SQL.replace('ORDER BY left_at', 'AND x < 0')})", COLUMNS, {}, "has no rows"),
    "a missing column": (SQL, {"y": "int64"}, {}, "1 declared columns are missing: y; it has undeclared x, left_at"),
    "columns twice": (SQL.replace("x, left_at", "x, x"), {"x": "int64"}, {}, "has columns twice: x"),
    "an undeclared column": (SQL, {"x": "int64"}, {"extra_columns": "refuse"}, "has 1 undeclared columns: left_at"),
    "fractions for integers": (SQL.replace("x,", "x / 2.0 AS x,"), {"x": "int64"}, {}, "x: 12 values of 24 rows"),
    "times without a zone": (
        SQL.replace("x, left_at", "x, left_at::TIMESTAMP AS left_at"),
        COLUMNS,
        {},
        "has timestamp[us]",
    ),
    "integers beyond": (SQL.replace("x,", "x + 9000000000 AS x,"), {"x": "int32"}, {}, "24 values of 24 rows"),
    "nulls that are required": (
        SQL.replace("x,", "nullif(x, 7) AS x,"),
        {"x": dict(type="int64", nullable=False)},
        {},
        "1 of 24 rows have no value",
    ),
    "an error in a row": (SQL.replace("x,", "error('bad ' || x) AS x,"), {"x": "int64"}, {}, "bad 5"),
    "no such connection": (SQL, COLUMNS, {"connection": "till"}, "EVERGREEN_CONNECTIONS__TILL is not set"),
    "a watermark before the end": (SQL, COLUMNS, {"watermark": "SELECT min(left_at) FROM rides"}, "is not complete"),
    "a watermark that is null": (SQL, COLUMNS, {"watermark": "SELECT max(left_at) FROM rides WHERE x < 0"}, "is None"),
    "a watermark that is no instant": (SQL, COLUMNS, {"watermark": "SELECT 7"}, "the watermark is 7"),
    "a period that is not over": (SQL, COLUMNS, {"delay_minutes": 60 * 24 * 365 * 90}, "is not complete before 2103"),
}


@pytest.mark.parametrize("name", QUERY_FAULTS)
def test_faults_of_a_query_are_told(database: Callable[[str], None], name: str) -> None:
    sql, columns, options, problem = QUERY_FAULTS[name]
    options = dict(options)
    fields = {"extra_columns": options.pop("extra_columns")} if "extra_columns" in options else {}
    spec = a_spec(columns, query={"connection": "shop", "sql": sql, **options}, **fields)
    faults = refresh(spec, FIRST)
    text = "\n".join(map(str, faults))
    assert problem in text
    assert "\n" not in str(faults[0])
    assert all(fault.location.startswith("rides-2013-03-01 (query on ") and fault.fix for fault in faults)
    file = RawFile.from_source(spec.sources[0], FIRST)
    assert find_parts(file) is None
    assert "has not been read yet" in str(missing_fault(file))


def test_an_empty_result_may_be_allowed(database: Callable[[str], None], tmp_path: Path) -> None:
    sql = SQL.replace("ORDER BY left_at", "AND x < 0")
    spec = a_spec(COLUMNS, empty_periods="delivered", query=dict(connection="shop", sql=sql))
    assert refresh(spec, FIRST) == []
    assert rows_of(spec, tmp_path) == {"x": [], "left_at": []}


@pytest.mark.parametrize(
    ("sql", "is_register", "problem"),
    [
        ("SELECT 1 WHERE now() > :start", False, "has parameters start: it needs :start and :end"),
        ("SELECT 1", False, "has parameters none"),
        ("SELECT 1 WHERE now() BETWEEN :start AND :end AND x = :x", False, "has parameters end, start, x"),
        ("SELECT 1 WHERE now() > :start", True, "needs no parameter"),
    ],
)
def test_parameters_are_checked_with_the_spec(sql: str, is_register: bool, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        a_spec(COLUMNS, is_register=is_register, query=dict(connection="shop", sql=sql))


def test_a_cast_and_a_time_are_no_parameters(database: Callable[[str], None], tmp_path: Path) -> None:
    sql = SQL.replace("x,", "x::BIGINT AS x,").replace("ORDER", "AND '12:30' = '12:30' AND '\\:a' <> '' ORDER")
    spec = a_spec(COLUMNS, query=dict(connection="shop", sql=sql))
    assert refresh(spec, FIRST) == []
    assert len(rows_of(spec, tmp_path)["x"]) == 24


def announced(spec: FeatureSpec, tmp_path: Path, now: datetime) -> tuple[RawDataWatcher, list[str]]:
    watcher = RawDataWatcher(
        str(settings().raw),
        {source.name: WatchedSource.from_json(WatchedSource.from_source(source).to_json()) for source in spec.sources},
        AnnouncementStore(tmp_path / "records"),
        calendar=Calendar("1d", ZONE),
        first=FIRST,
        clock=lambda: now,
    )
    return watcher, list(watcher.poll())


def test_a_period_of_a_query_is_announced_when_it_is_over(database: Callable[[str], None], tmp_path: Path) -> None:
    spec = a_spec(COLUMNS, query=dict(connection="shop", sql=SQL, delay_minutes=60))
    end = datetime(2013, 3, 2, 5, tzinfo=UTC)
    assert announced(spec, tmp_path / "a", end + timedelta(minutes=59))[1] == []
    assert announced(spec, tmp_path / "b", end + timedelta(minutes=60))[1] == ["2013-03-01"]


def test_a_period_is_announced_when_the_watermark_is_past(database: Callable[[str], None], tmp_path: Path) -> None:
    spec = a_spec(COLUMNS, query=dict(connection="shop", sql=SQL, watermark="SELECT max(left_at) FROM rides"))
    now = datetime(2013, 3, 20, tzinfo=UTC)
    assert announced(spec, tmp_path / "a", now)[1] == ["2013-03-01", "2013-03-02"]
    database("DELETE FROM rides WHERE left_at > '2013-03-03 00:00:00Z'")
    assert announced(spec, tmp_path / "b", now)[1] == ["2013-03-01"]


# Tables


def hours(first: int, count: int, **columns: Any) -> pa.Table:
    start = datetime(2013, 3, 1, tzinfo=UTC)
    left_at = [start + timedelta(hours=first + hour) for hour in range(count)]
    table = {
        "left_at": pa.array(left_at, pa.timestamp("us", "UTC")),
        "x": pa.array(range(first, first + count), pa.int64()),
    }
    return pa.table(table | columns)


class Lakehouse:
    """A table of rides in one of the formats."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder = kind, folder
        self.fields: dict[str, Any] = {"format": kind, "location": "rides", "time_column": "left_at"}
        if kind == "iceberg":
            self.fields |= {"location": "shop.rides", "catalog": "lake"}

    def catalog(self) -> Catalog:
        home = settings().home
        return load_catalog("lake", uri=f"sqlite:///{home}/catalog.db", warehouse=f"file://{home}/warehouse")

    def append(self, rows: pa.Table) -> None:
        if self.kind == "delta":
            write_deltalake(self.folder / "rides", rows, mode="append", schema_mode="merge")
            return
        catalog = self.catalog()
        catalog.create_namespace_if_not_exists("shop")
        table = catalog.create_table_if_not_exists("shop.rides", schema=rows.schema)
        with table.update_schema() as update:
            update.union_by_name(rows.schema)
        table.append(rows)

    def delete(self, x: int) -> None:
        if self.kind == "delta":
            DeltaTable(self.folder / "rides").delete(f"x = {x}")
        else:
            self.catalog().load_table("shop.rides").delete(EqualTo("x", x))

    def spec(self, columns: Mapping[str, Any] = COLUMNS, **fields: Any) -> FeatureSpec:
        options = {name: fields.pop(name) for name in list(fields) if name in ("time_column", "location", "catalog")}
        return a_spec(columns, table=self.fields | options, **fields)


@pytest.fixture(params=["delta", "iceberg"])
def lakehouse(request: pytest.FixtureRequest, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Lakehouse:
    folder = settings().lake / "raw"
    folder.mkdir(parents=True)
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__LAKE", f"sqlite:///{settings().home}/catalog.db")
    settings.cache_clear()
    return Lakehouse(request.param, folder)


def versions(spec: FeatureSpec) -> list[str]:
    return list(hash_raw_files(RawFile.from_source(spec.sources[0], day) for day in (FIRST, SECOND)).values())


def test_a_table_is_read_by_period(lakehouse: Lakehouse, tmp_path: Path) -> None:
    lakehouse.append(hours(0, 40))
    lakehouse.append(hours(40, 32))
    spec = lakehouse.spec()
    assert refresh(spec, FIRST, SECOND) == []
    assert sorted(rows_of(spec, tmp_path)["x"]) == list(range(5, 29))
    assert sorted(rows_of(spec, tmp_path, SECOND)["x"]) == list(range(29, 53))


def test_a_table_is_read_by_hour(lakehouse: Lakehouse, tmp_path: Path) -> None:
    lakehouse.append(hours(0, 40))
    spec = FeatureSpec(**lakehouse.spec().model_dump(exclude_unset=True) | {"period": "1h"})
    assert refresh(spec, "2013-03-01T06:00Z", "2013-03-01T07:00Z") == []
    assert rows_of(spec, tmp_path, "2013-03-01T07:00Z")["x"] == [7]
    before = hash_raw_files([RawFile.from_source(spec.sources[0], "2013-03-01T06:00Z")])
    lakehouse.append(hours(100, 1))
    refresh(spec, "2013-03-01T06:00Z")
    assert hash_raw_files([RawFile.from_source(spec.sources[0], "2013-03-01T06:00Z")]) == before


def test_a_date_tells_no_hours(lakehouse: Lakehouse) -> None:
    lakehouse.append(pa.table({"day": pa.array([datetime(2013, 3, 1).date()]), "x": [1]}))
    fields = lakehouse.spec({"x": "int64"}, time_column="day").model_dump(exclude_unset=True)
    (fault,) = refresh(FeatureSpec(**fields | {"period": "1h"}), "2013-03-01T06:00Z")
    assert "day is a date, and a period is 1h" in fault.problem


def test_a_correction_is_noticed_where_it_is(lakehouse: Lakehouse, tmp_path: Path) -> None:
    lakehouse.append(hours(5, 24))
    lakehouse.append(hours(29, 24))
    spec = lakehouse.spec()
    refresh(spec, FIRST, SECOND)
    first, second = versions(spec)
    lakehouse.append(hours(100, 1))
    refresh(spec, FIRST, SECOND)
    assert versions(spec) == [first, second], "a commit to another day"
    lakehouse.delete(30)
    refresh(spec, FIRST, SECOND)
    assert versions(spec)[0] == first
    assert versions(spec)[1] != second
    assert sorted(rows_of(spec, tmp_path, SECOND)["x"]) == [29, *range(31, 53)]


def test_a_new_version_announces_the_days_that_it_changes(lakehouse: Lakehouse, tmp_path: Path) -> None:
    lakehouse.append(hours(5, 24))
    lakehouse.append(hours(29, 24))
    spec, now = lakehouse.spec(), datetime(2013, 3, 3, 12, tzinfo=UTC)
    watcher, days = announced(spec, tmp_path, now)
    assert days == ["2013-03-01", "2013-03-02"]
    lakehouse.delete(30)
    assert watcher.poll() == {}, "it was looked at just now"
    watcher.clock = lambda: now + timedelta(seconds=11)
    assert list(watcher.poll()) == ["2013-03-02"]


def test_columns_that_came_later_are_null_before(lakehouse: Lakehouse, tmp_path: Path) -> None:
    lakehouse.append(hours(5, 24))
    lakehouse.append(hours(29, 24, y=pa.array(["a"] * 24)))
    spec = lakehouse.spec(COLUMNS | {"y": "string"})
    assert refresh(spec, FIRST, SECOND) == []
    assert rows_of(spec, tmp_path)["y"] == [None] * 24
    assert rows_of(spec, tmp_path, SECOND)["y"] == ["a"] * 24


def test_a_table_for_all_days_is_read_as_a_whole(lakehouse: Lakehouse, tmp_path: Path) -> None:
    lakehouse.append(hours(0, 3))
    spec = lakehouse.spec({"x": "int64"}, is_register=True, time_column=None)
    file = RawFile.from_source(spec.sources[0], None)
    refresh_extracts(spec, [file])
    before = hash_raw_files([file])
    lakehouse.append(hours(3, 1))
    refresh_extracts(spec, [file])
    assert hash_raw_files([file]) != before
    assert sorted(rows_of(spec, tmp_path, None)["x"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["date32", "timestamp[us]"])
def test_a_time_column_may_be_a_date_or_on_a_clock(lakehouse: Lakehouse, tmp_path: Path, kind: str) -> None:
    clock = [datetime(2013, 3, 1, 23), datetime(2013, 3, 2), datetime(2013, 3, 2, 23)]
    left_at = pa.array([moment.date() if kind == "date32" else moment for moment in clock])
    lakehouse.append(pa.table({"left_at": left_at, "x": pa.array([1, 2, 3], pa.int64())}))
    spec = lakehouse.spec({"x": "int64", "left_at": kind})
    assert refresh(spec, FIRST, SECOND) == []
    assert rows_of(spec, tmp_path)["x"] == [1]
    assert sorted(rows_of(spec, tmp_path, SECOND)["x"]) == [2, 3]


TABLE_FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no such table": (COLUMNS, {"location": "shop.cars"}, "no table"),
    "no such time column": (COLUMNS, {"time_column": "day"}, "has no column day; it has left_at, x"),
    "a time column of numbers": (COLUMNS, {"time_column": "x"}, "x is int64, and no date or instant"),
    "a missing column": ({"y": "int64"}, {}, "1 declared columns are missing: y"),
    "a column that does not fit": ({"x": "string"}, {}, "24 values of 24 rows cannot be read as string"),
    "an undeclared column": ({"x": "int64"}, {"extra_columns": "refuse"}, "has 1 undeclared columns: left_at"),
    "nulls that are required": (
        {"x": dict(type="int64", nullable=False)},
        {"nulls": True},
        "1 of 25 rows have no value",
    ),
    "no rows": (COLUMNS, {"day": "2013-04-01"}, "has no rows"),
}


@pytest.mark.parametrize("name", TABLE_FAULTS)
def test_faults_of_a_table_are_told(lakehouse: Lakehouse, name: str) -> None:
    columns, options, problem = TABLE_FAULTS[name]
    options = dict(options)
    lakehouse.append(hours(0, 72))
    if options.pop("nulls", False):
        lakehouse.append(hours(6, 1, x=pa.array([None], pa.int64())))
    day = options.pop("day", FIRST)
    spec = lakehouse.spec(columns, **options)
    faults = refresh(spec, day)
    assert problem in "\n".join(map(str, faults))
    assert all(fault.fix and f"rides-{day} (table" in fault.location for fault in faults)


def test_a_catalog_that_is_not_set_is_told(lakehouse: Lakehouse) -> None:
    if lakehouse.kind == "iceberg":
        (fault,) = refresh(lakehouse.spec(catalog="pond"), FIRST)
        assert fault.fix == "set EVERGREEN_CONNECTIONS__POND"


def test_deletion_vectors_are_honoured(home: Path, tmp_path: Path) -> None:
    """Written by hand, because delta-rs writes none: rows 0 and 3 of the file are deleted."""
    folder = settings().lake / "raw/rides"
    write_deltalake(folder, hours(5, 24), configuration={"delta.enableDeletionVectors": "true"})
    log = folder / "_delta_log"
    spec = a_spec(COLUMNS, table=dict(format="delta", location="rides", time_column="left_at"))
    refresh(spec, FIRST)
    assert len(rows_of(spec, tmp_path)["x"]) == 24
    add = next(entry["add"] for entry in map(json.loads, (log / f"{0:020}.json").open()) if "add" in entry)
    remove = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True, "partitionValues": {}}
    actions = [{"remove": remove}, {"add": add | {"deletionVector": deletion_vector([0, 3])}}]
    (log / f"{1:020}.json").write_text("\n".join(map(json.dumps, actions)))
    assert refresh(spec, FIRST) == []
    assert sorted(rows_of(spec, tmp_path)["x"]) == [6, 7, *range(9, 29)]


def deletion_vector(rows: list[int]) -> dict[str, Any]:
    """Return an inline deletion vector: a 64-bit roaring bitmap of one part, in base 85."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    content = struct.pack("<iQI", 1681511377, 1, 0) + BitMap(rows).serialize()
    text = ""
    for start in range(0, len(content), 4):
        number = int.from_bytes(content[start : start + 4].ljust(4, b"\0"), "big")
        text += "".join(digits[number // 85**power % 85] for power in range(4, -1, -1))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(content), "cardinality": len(rows)}
