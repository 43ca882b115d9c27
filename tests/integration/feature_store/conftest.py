"""The online store of a test: once in SQLite, once in Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import servers
from support.online_stores import InRedis, InSqlite, Kept


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its password is as bad as one may be: everything that separates something in an address or in Feast's string."""
    if reason := servers.no_redis():
        pytest.skip(reason)
    with servers.redis(tmp_path_factory.mktemp("redis"), '1,a=b:c@d/e?f#g"h%20é') as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def kept(request: pytest.FixtureRequest, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Kept:
    if request.param == "sqlite":
        return InSqlite(use_home)
    return InRedis(use_home, request.getfixturevalue("redis_server"), monkeypatch)
