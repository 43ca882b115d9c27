"""Online stores for tests: SQLite and Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from support import ponds as ponds_data
from support import servers
from support.online_stores import OnlineFixture, RedisOnline, SqliteOnline


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose password contains every separator of URLs and of Feast's connection strings."""
    if reason := servers.no_redis():
        pytest.skip(reason)
    with servers.redis(tmp_path_factory.mktemp("redis"), '1,a=b:c@d/e?f#g"h%20é') as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def online(
    request: pytest.FixtureRequest, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> OnlineFixture:
    if request.param == "sqlite":
        return SqliteOnline(use_home)
    return RedisOnline(use_home, request.getfixturevalue("redis_server"), monkeypatch)


@pytest.fixture
def ponds(
    online: OnlineFixture, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> Iterator[ModelSpec]:
    """A model with two views of hourly rows, with small definitions and features."""
    (tmp_path / "evergreen_models/ponds").mkdir(parents=True)
    (tmp_path / "evergreen_models/ponds/__init__.py").touch()
    (tmp_path / "evergreen_models/ponds/model.py").write_text(ponds_data.SPEC)
    use_models(tmp_path / "evergreen_models", only=True)
    ponds_data.write_definitions(ponds_data.DEFINITIONS, tmp_path / "feature_repo")
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(tmp_path / "feature_repo"))
    online.use(tmp_path / "home")
    loader.load_spec.cache_clear()
    yield loader.load_spec("ponds")
    loader.load_spec.cache_clear()
