"""Views of one retrieval are joined side by side, each by a connection of its own to one database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from evergreen.errors import Fault
from evergreen.feature_store.offline_store import RetrievalError, _join_side_by_side

pytestmark = pytest.mark.unit

Columns = list[pa.ChunkedArray]
LIMIT_S = 20


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 2}) as con:
        yield con


def read(con: duckdb.DuckDBPyConnection, query: str) -> Columns:
    return con.sql(query).to_arrow_table().columns


def test_joins_run_at_the_same_time_and_return_in_order(database: duckdb.DuckDBPyConnection) -> None:
    both_run = threading.Barrier(2, timeout=LIMIT_S)

    def join(con: duckdb.DuckDBPyConnection, number: int) -> Columns:
        con.register("entities", pa.table({"number": [number]}))
        both_run.wait()
        return read(con, "FROM entities")

    results = _join_side_by_side(database, [lambda con: join(con, 1), lambda con: join(con, 2)])
    assert [columns[0].to_pylist() for columns in results] == [[1], [2]]


def test_a_database_of_one_thread_joins_one_view_at_a_time(database: duckdb.DuckDBPyConnection) -> None:
    database.execute("SET threads = 1")
    running, most = 0, []

    def join(con: duckdb.DuckDBPyConnection) -> Columns:
        nonlocal running
        running += 1
        most.append(running)
        time.sleep(0.05)  # another would begin meanwhile
        running -= 1
        return read(con, "SELECT 1")

    _join_side_by_side(database, [join] * 3)
    assert max(most) == 1


def test_no_views_are_no_joins(database: duckdb.DuckDBPyConnection) -> None:
    assert _join_side_by_side(database, []) == []


@pytest.mark.parametrize(
    "joins",
    [
        pytest.param(lambda fail, run: [fail, run, run], id="of the first view"),  # the last one need not begin
        pytest.param(lambda fail, run: [run, fail, run], id="of a later view"),
    ],
)
def test_an_error_interrupts_the_other_joins(
    database: duckdb.DuckDBPyConnection, joins: Callable[..., Sequence[Callable[..., Columns]]]
) -> None:
    other_runs, ends = threading.Event(), list[str]()

    def fail(_: duckdb.DuckDBPyConnection) -> Columns:
        assert other_runs.wait(LIMIT_S)
        raise RetrievalError("View plane", [Fault("key", "cannot be compared")])

    def run_for_hours(con: duckdb.DuckDBPyConnection) -> Columns:
        other_runs.set()
        try:
            return read(con, "SELECT sum(hash(range)) FROM range(10_000_000_000_000)")
        except duckdb.InterruptException:
            ends.append("interrupted")
            raise

    with pytest.raises(RetrievalError, match="View plane"):
        _join_side_by_side(database, joins(fail, run_for_hours))
    assert ends[:1] == ["interrupted"]


def test_joins_are_in_utc_whatever_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from feast import RepoConfig

    from evergreen.feature_store.offline_store import _connect_duckdb

    config = RepoConfig(
        project="p",
        provider="local",
        registry="registry.db",
        offline_store={"type": "evergreen.feature_store.offline_store.AsofOfflineStore"},
        entity_key_serialization_version=3,
    )
    connect = duckdb.connect

    def connect_elsewhere(**options: Any) -> duckdb.DuckDBPyConnection:
        con = connect(**options)
        con.execute("SET GLOBAL TimeZone = 'America/New_York'")
        return con

    monkeypatch.setattr(duckdb, "connect", connect_elsewhere)
    with _connect_duckdb(config) as con:
        [[zone]] = _join_side_by_side(con, [lambda own: read(own, "SELECT current_setting('TimeZone') AS zone")])
    assert zone.to_pylist() == ["UTC"]
