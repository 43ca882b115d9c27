"""The checks of real servers: healthy, with a wrong password, of another version, misconfigured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from evergreen.cli import create_console, migrate
from evergreen.cli.doctor import databases, servers
from evergreen.cli.migrate import MigrationError
from evergreen.feature_store.online_backends import connect_redis
from evergreen.settings import SecretUrl
from support import servers as running
from support.checks import failure

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


def test_check_feast_registry(postgres: str) -> None:
    outcome = databases.check_feast_registry(SecretUrl(postgres))  # empty: the first task creates its tables
    assert outcome.message.startswith("Postgres ")
    assert outcome.clock_skew == pytest.approx(0, abs=1)
    problem, fix = failure(databases.check_feast_registry, SecretUrl(postgres.replace(password(postgres), "wrong")))
    assert "authentication failed: " in problem
    assert 'password authentication failed for user "evergreen"' in problem
    assert fix.startswith("correct the password")
    assert (
        'database "nosuch" does not exist'
        in failure(databases.check_feast_registry, SecretUrl(postgres.replace("/mlflow?", "/nosuch?")))[0]
    )
    with sqlalchemy.create_engine(postgres).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE feature_views (name TEXT)")
    problem, fix = failure(databases.check_feast_registry, SecretUrl(postgres))
    assert problem.startswith("tables are missing: ")
    assert "entities" in problem
    assert "create-schema" in fix
    with sqlalchemy.create_engine(postgres).begin() as connection:
        connection.exec_driver_sql("DROP TABLE feature_views")


def test_check_feast_registry_needs_utf8(postgres: str) -> None:
    with sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
    problem, fix = failure(databases.check_feast_registry, SecretUrl(postgres.replace("/mlflow?", "/bytes?")))
    assert problem.startswith("stores text as SQL_ASCII")
    assert "ENCODING 'UTF8'" in fix


def password(url: str) -> str:
    return sqlalchemy.make_url(url).password or ""


def test_check_feast_registry_refuses_an_invalid_url() -> None:
    assert failure(databases.check_feast_registry, SecretUrl("registry.db"))[0].startswith("not a database URL")
    assert failure(databases.check_feast_registry, SecretUrl("oracle+nothing://x"))[0].startswith("not a database URL")
    assert failure(databases.check_feast_registry, SecretUrl("postgresql://u:p@127.0.0.1:9/x"))[0].startswith(
        "does not respond: "
    )


def test_check_online_store_leaves_nothing_behind(redis: str) -> None:
    outcome = databases.check_online_store(SecretUrl(f"{redis}/3"))
    assert outcome.message.endswith("accepts values and keeps them")
    assert outcome.clock_skew == pytest.approx(0, abs=1)
    with connect_redis(f"{redis}/3") as server:
        assert server.dbsize() == 0


def test_check_online_store_reports_a_wrong_password_or_no_server(redis: str) -> None:
    problem, fix = failure(databases.check_online_store, SecretUrl(redis.replace(":right@", ":wrong@")))
    assert problem.startswith("authentication failed")
    assert fix == "correct user and password in EVERGREEN_ONLINE_STORE"
    assert failure(databases.check_online_store, SecretUrl("redis://127.0.0.1:9/0"))[0].startswith("does not respond: ")


def test_check_online_store_reports_eviction_and_full_memory(redis: str) -> None:
    with connect_redis(redis) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
        assert failure(databases.check_online_store, SecretUrl(redis)) == (
            "silently evicts values when its memory is full (maxmemory-policy allkeys-lru)",
            "set maxmemory-policy to noeviction",
        )
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", "1")
        assert failure(databases.check_online_store, SecretUrl(redis))[0].startswith("refuses a value: ")
        server.config_set("maxmemory", "0")
    assert databases.check_online_store(SecretUrl(redis))


def test_check_mlflow_of_a_real_server(tmp_path: Path) -> None:
    with running.mlflow_on("sqlite", tmp_path) as url:
        assert servers.check_mlflow(SecretUrl(url)).message.endswith("reads its registry, stores artifacts")
    assert not list((tmp_path / "mlflow-artifacts").glob("**/probe"))


def test_check_spark_connect_of_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake").mkdir()
    with running.spark(tmp_path / "home") as (url, token):
        monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", token)
        assert servers.check_spark_connect(SecretUrl(url), tmp_path / "lake").message.endswith(
            "reads and writes the lake"
        )
        assert list((tmp_path / "lake").iterdir()) == []
        monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", "wrong")
        problem, fix = failure(servers.check_spark_connect, SecretUrl(url), tmp_path / "lake")
        assert problem.startswith("authentication failed: ")
        assert fix == "set the same SPARK_CONNECT_AUTHENTICATE_TOKEN on both sides"
    assert "SPARK_CONNECT_MODE_ENABLED" not in os.environ  # it would prevent a local session


def test_migrate_upgrades_and_refuses_a_newer_version(
    postgres: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", postgres)
    for _ in range(2):
        migrate.migrate(create_console())
        assert databases.check_mlflow_database(SecretUrl(postgres)).message.startswith("Postgres ")
    with sqlalchemy.create_engine(postgres).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert (
        failure(databases.check_mlflow_database, SecretUrl(postgres))[0]
        == "its schema ffffffffffff belongs to another version of MLflow"
    )
    with pytest.raises(MigrationError, match="belongs to a newer version than this one"):
        migrate.migrate(create_console())
