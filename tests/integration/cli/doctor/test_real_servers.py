"""The doctor before real servers: right, with a wrong password, of another version, and half broken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from evergreen.cli import migrate
from evergreen.cli.doctor import databases, servers
from evergreen.cli.migrate import MigrationError
from evergreen.cli.progress import Progress
from evergreen.feature_store.online_backends import connect_redis
from support import servers as running
from support.checks import wrong

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if reason := running.no_postgres():
        pytest.skip(reason)
    with running.postgres() as url:
        yield url


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := running.no_redis():
        pytest.skip(reason)
    with running.redis(tmp_path_factory.mktemp("redis"), "right") as url:
        yield url


def test_a_registry_that_is_right_and_each_way_in_which_it_is_not(postgres: str) -> None:
    seen = databases.check_feast_registry(postgres)  # empty: the first task makes its tables
    assert seen.message.startswith("Postgres ")
    assert seen.clock_skew == pytest.approx(0, abs=1)
    what, way_out = wrong(databases.check_feast_registry, postgres.replace(password(postgres), "wrong"))
    assert "does not let us in: " in what
    assert 'password authentication failed for user "evergreen"' in what
    assert way_out.startswith("correct the password")
    assert (
        'database "nosuch" does not exist'
        in wrong(databases.check_feast_registry, postgres.replace("/mlflow?", "/nosuch?"))[0]
    )
    with sqlalchemy.create_engine(postgres).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE feature_views (name TEXT)")
    what, way_out = wrong(databases.check_feast_registry, postgres)
    assert what.startswith("lacks the tables ")
    assert "entities" in what
    assert "create-schema" in way_out
    with sqlalchemy.create_engine(postgres).begin() as connection:
        connection.exec_driver_sql("DROP TABLE feature_views")


def test_a_database_that_keeps_bytes_and_no_text(postgres: str) -> None:
    with sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
    what, way_out = wrong(databases.check_feast_registry, postgres.replace("/mlflow?", "/bytes?"))
    assert what.startswith("keeps text as SQL_ASCII")
    assert "ENCODING 'UTF8'" in way_out


def password(url: str) -> str:
    return sqlalchemy.make_url(url).password or ""


def test_something_that_is_no_database() -> None:
    assert wrong(databases.check_feast_registry, "registry.db")[0].startswith("is no address of a database")
    assert wrong(databases.check_feast_registry, "oracle+nothing://x")[0].startswith("is no address of a database")
    assert wrong(databases.check_feast_registry, "postgresql://u:p@127.0.0.1:9/x")[0].startswith("does not answer: ")


def test_a_redis_that_is_right_is_left_as_it_was(redis: str) -> None:
    seen = databases.check_online_store(f"{redis}/3")
    assert seen.message.endswith("keeps what it is given")
    assert seen.clock_skew == pytest.approx(0, abs=1)
    with connect_redis(f"{redis}/3") as server:
        assert server.dbsize() == 0


def test_a_redis_that_does_not_let_us_in_or_is_not_there(redis: str) -> None:
    what, way_out = wrong(databases.check_online_store, redis.replace(":right@", ":wrong@"))
    assert what.startswith("does not let us in")
    assert way_out == "correct user and password in EVERGREEN_ONLINE_STORE"
    assert wrong(databases.check_online_store, "redis://127.0.0.1:9/0")[0].startswith("does not answer: ")


def test_a_redis_that_forgets_or_is_full(redis: str) -> None:
    with connect_redis(redis) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
        assert wrong(databases.check_online_store, redis) == (
            "forgets values when its memory is full (maxmemory-policy allkeys-lru), and nobody would notice",
            "set maxmemory-policy to noeviction",
        )
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", "1")
        assert wrong(databases.check_online_store, redis)[0].startswith("refuses a value: ")
        server.config_set("maxmemory", "0")
    assert databases.check_online_store(redis)


def test_a_real_mlflow_is_right_and_left_as_it_was(tmp_path: Path) -> None:
    with running.mlflow_on("sqlite", tmp_path) as url:
        assert servers.check_mlflow(url).message.endswith("reads its registry, keeps artifacts")
    assert not list((tmp_path / "mlflow-artifacts").glob("**/probe"))


def test_a_real_spark_reads_and_writes_the_same_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake").mkdir()
    with running.spark(tmp_path / "home") as (url, token):
        monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", token)
        assert servers.check_spark_connect(url, tmp_path / "lake").message.endswith("reads and writes the lake")
        assert list((tmp_path / "lake").iterdir()) == []
        monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", "wrong")
        what, way_out = wrong(servers.check_spark_connect, url, tmp_path / "lake")
        assert what.startswith("does not let us in: ")
        assert way_out == "give both the same SPARK_CONNECT_AUTHENTICATE_TOKEN"
    assert "SPARK_CONNECT_MODE_ENABLED" not in os.environ  # or this process could have no Spark of its own


def test_databases_are_migrated_and_those_of_a_newer_version_are_left(
    postgres: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", postgres)
    for _ in range(2):
        with Progress() as progress:
            migrate.migrate(progress)
        assert databases.check_mlflow_database(postgres).message.startswith("Postgres ")
    with sqlalchemy.create_engine(postgres).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert (
        wrong(databases.check_mlflow_database, postgres)[0]
        == "its schema is ffffffffffff, of another version of MLflow"
    )
    with Progress() as progress, pytest.raises(MigrationError, match="is of a newer version than this one"):
        migrate.migrate(progress)
