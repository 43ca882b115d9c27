"""Online stores for tests: SQLite and Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
