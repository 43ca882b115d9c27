"""An MLflow server on each supported database, and a new model for every test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergreen.settings import settings
from support import servers
from support.promotion_races import Place

# Of the two, the one that deployments have, where it is installed.
_SQLITE = pytest.param("sqlite", marks=[] if servers.no_postgres() else pytest.mark.slow)


@pytest.fixture(scope="session", params=[_SQLITE, "postgres"])
def mlflow_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of an MLflow server, once on SQLite and once on Postgres."""
    if request.param == "postgres" and (reason := servers.no_postgres()):
        pytest.skip(reason)
    with servers.mlflow_on(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield url


@pytest.fixture
def place(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Return a new model, without versions or entries, in the registry and ledger of the settings."""
    place = Place(mlflow_server, tmp_path / "ledger", f"m{uuid.uuid4().hex}")
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    yield place
    monkeypatch.undo()
    settings.cache_clear()
