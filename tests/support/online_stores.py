"""Online stores by backend, for tests of both: their location and content, and how they are lost and restored."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from evergreen.feature_store.online_backends import connect_redis
from evergreen.settings import settings

_MARKER_TABLE = "_evergreen"


class OnlineFixture(Protocol):
    def use(self, home: Path) -> None:
        """Point the settings at `home`, with its own online store."""
        ...

    def contents(self) -> object:
        """Return every value with its event timestamp, for comparisons."""
        ...

    def empty(self) -> None: ...

    def copy(self) -> Any: ...

    def restore(self, copy: Any) -> None: ...


def online_file() -> Path:
    return Path(settings().online_store.get_secret_value()) / "ponds.db"


class SqliteOnline:
    def __init__(self, use_home: Callable[[Path], Path]):
        self.use = use_home

    def contents(self) -> object:
        values = {}
        with closing(sqlite3.connect(online_file())) as con:
            for view in ("levels", "depths"):
                values |= {(view, *row[:2]): row[2:] for row in con.execute(f"SELECT * FROM ponds_{view}")}
        return values

    def empty(self) -> None:
        with suppress(FileNotFoundError):
            online_file().unlink()

    def copy(self) -> bytes:
        return online_file().read_bytes()

    def restore(self, copy: bytes) -> None:
        online_file().write_bytes(copy)


class RedisOnline:
    """One database of the server per home."""

    def __init__(self, use_home: Callable[[Path], Path], url: str, monkeypatch: pytest.MonkeyPatch):
        self._use_home, self._url, self._monkeypatch = use_home, url, monkeypatch
        self._homes: list[Path] = []
        with connect_redis(url) as server:
            server.flushall()

    def use(self, home: Path) -> None:
        if home not in self._homes:
            self._homes.append(home)
        self._monkeypatch.setenv("EVERGREEN_ONLINE_STORE", f"{self._url}/{self._homes.index(home)}")
        self._use_home(home)

    def contents(self) -> object:
        with connect_redis(settings().online_store.get_secret_value()) as server:
            return {key: server.hgetall(key) for key in server.scan_iter() if key != _MARKER_TABLE.encode()}

    def empty(self) -> None:
        with connect_redis(settings().online_store.get_secret_value()) as server:
            server.flushdb()

    def copy(self) -> dict[bytes, bytes]:
        with connect_redis(settings().online_store.get_secret_value()) as server:
            return {key: server.dump(key) for key in server.scan_iter()}

    def restore(self, copy: dict[bytes, bytes]) -> None:
        with connect_redis(settings().online_store.get_secret_value()) as server:
            server.flushdb()
            for key, value in copy.items():
                server.restore(key, 0, value)
