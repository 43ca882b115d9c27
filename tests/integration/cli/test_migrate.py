"""What `evergreen migrate` upgrades and creates, and what it refuses before it changes anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from evergreen.cli import create_console, migrate
from evergreen.cli.doctor import ChecksFailedError
from evergreen.cli.migrate import MigrationError
from evergreen.settings import SecretUrl, Settings, settings
from support import s3_server
from support.s3_server import S3

pytestmark = pytest.mark.integration


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server.running() as running:
        running.use(monkeypatch)
        yield running


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_CONNECT_TIMEOUT_S", 1.0)


def migration_failure() -> str:
    settings.cache_clear()
    with pytest.raises(ChecksFailedError) as caught:
        migrate.migrate(create_console())
    return str(caught.value)


def test_configured_databases_are_those_of_the_environment() -> None:
    assert migrate.configured_databases({"MLFLOW_BACKEND_STORE_URI": "", "OTHER": "x"}) == {}
    assert migrate.configured_databases({"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://x"}) == {
        "Airflow": SecretUrl("postgresql://x")
    }


def test_configured_buckets_leave_out_folders(home: Path) -> None:
    assert migrate.configured_buckets({"MLFLOW_ARTIFACTS_DESTINATION": "/srv/mlflow"}, Settings()) == {}
    config = Settings(lake="s3://c/lake", ledger="s3://a/ledger", jobs="file:///srv/jobs")
    assert migrate.configured_buckets({"MLFLOW_ARTIFACTS_DESTINATION": "s3://b/mlflow"}, config) == {
        "lake": "s3://c/lake",
        "ledger": "s3://a/ledger",
        "artifacts": "s3://b/mlflow",
    }


def test_migrate_creates_buckets(home: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_LEDGER", "s3://evergreen/ledger")
    monkeypatch.setenv("EVERGREEN_JOBS", "s3://other/jobs")
    monkeypatch.setenv("EVERGREEN_LAKE", "s3://third/lake")
    for _ in range(2):
        settings.cache_clear()
        migrate.migrate(create_console())
    assert s3.buckets == {"evergreen": {}, "other": {}, "third": {}}


def test_migrate_refuses_a_store_that_loses_promotions(home: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.conditions = "ignored"
    monkeypatch.setenv("EVERGREEN_LEDGER", "s3://evergreen/ledger")
    assert "ledger, s3://evergreen/ledger: 16 of 16 concurrent writers created the same object" in migration_failure()


def test_migrate_names_servers_that_are_down_and_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as con, con:
        con.execute("CREATE TABLE mine (i INT)")
    before = database.read_bytes()
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{database}")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://airflow:secret@127.0.0.1:9/airflow")
    message = migration_failure()
    assert message.splitlines()[0] == "nothing was migrated: 1 fault"
    assert "Airflow's database, postgresql://127.0.0.1:9/airflow: does not respond: " in message
    assert "secret" not in message
    assert database.read_bytes() == before


def test_wait_for_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", url)
    monkeypatch.setattr(migrate, "_MIGRATION_TIMEOUT_S", 1.0)
    with pytest.raises(MigrationError, match="MLflow's database .*: run `evergreen migrate`"):
        migrate.wait_for_migration(create_console())
    assert "waiting: MLflow's database" in capsys.readouterr().out

    monkeypatch.setattr(migrate, "_MIGRATION_TIMEOUT_S", 120.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(migrate.wait_for_migration, create_console())
        migrate._migrate_database("MLflow", url)
        waiting.result()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as con, con:
        con.execute("UPDATE alembic_version SET version_num = 'another'")
    monkeypatch.setattr(migrate, "_MIGRATION_TIMEOUT_S", 1.0)
    with pytest.raises(MigrationError):
        migrate.wait_for_migration(create_console())
    assert "belongs to another version" in capsys.readouterr().out
