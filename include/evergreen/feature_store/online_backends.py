"""What keeps the online features, by the setting `online_store`: how Feast is told of it, and marks left in it.

A mark lies among the values and is lost with them, so whoever finds his mark knows that what he wrote is there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from evergreen.settings import redact_url

_MARKER_TABLE = "_evergreen"  # SQLite's table, Redis' hash


class OnlineStoreResetError(Exception):
    """The online store lost what was in it while it was written. No refusal: the next try writes it anew."""


class OnlineBackend(Protocol):
    def feast_config(self) -> dict[str, Any]:
        """What stands under `online_store` in Feast's configuration."""
        ...

    def prepare_markers(self) -> None:
        """Let it take marks, from now until it is emptied."""
        ...

    def read_marker(self, name: str) -> str | None:
        """The mark left last under `name`; None if there is none, also because the store was emptied."""
        ...

    def write_marker(self, name: str, marker: str) -> None:
        """Raises:
        Emptied: it was emptied since `prepare`: what the mark would say was written may be gone.
        """
        ...


def online_backend(url: str) -> OnlineBackend:
    """The store at `url`, a value of the setting `online_store`."""
    return RedisBackend(url) if url.startswith(("redis://", "rediss://")) else SqliteBackend(Path(url))


class SqliteBackend:
    """A file on this machine."""

    _BUSY_TIMEOUT_S = 60  # seconds to wait for another writer

    def __init__(self, file: Path):
        self._file = file

    def feast_config(self) -> dict[str, Any]:
        return {"type": "sqlite", "path": str(self._file)}

    def prepare_markers(self) -> None:
        with self._connect() as con:
            con.execute(f"CREATE TABLE IF NOT EXISTS {_MARKER_TABLE} (name TEXT PRIMARY KEY, mark TEXT)")

    def read_marker(self, name: str) -> str | None:
        if not self._file.exists():  # connecting would create it
            return None
        with self._connect() as con:
            if not con.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [_MARKER_TABLE]).fetchone():
                return None
            row = con.execute(f"SELECT mark FROM {_MARKER_TABLE} WHERE name = ?", [name]).fetchone()  # noqa: S608
        return row[0] if row else None

    def write_marker(self, name: str, marker: str) -> None:
        try:
            with self._connect() as con:
                con.execute(f"INSERT OR REPLACE INTO {_MARKER_TABLE} VALUES (?, ?)", [name, marker])  # noqa: S608
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            raise OnlineStoreResetError(_RESET_MESSAGE.format(self._file)) from None

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file, timeout=self._BUSY_TIMEOUT_S)) as con, con:
            yield con


class RedisBackend:
    """A server that may be emptied, restarted without its data, or replaced at any moment."""

    def __init__(self, url: str):
        self._url = url

    def feast_config(self) -> dict[str, Any]:
        return {
            "type": "redis",
            "connection_string": self._connection_string(),
            # Without it Feast keeps a value of the same instant, and with it what was wrong before a correction.
            # Which of two values is newer is decided before anything is written (evergreen.feature_store.online_store).
            "skip_dedup": True,
        }

    def prepare_markers(self) -> None:
        with connect_redis(self._url) as server:
            server.hset(_MARKER_TABLE, "", "")

    def read_marker(self, name: str) -> str | None:
        with connect_redis(self._url) as server:
            found: bytes | None = server.hget(_MARKER_TABLE, name)
        return found.decode() if found is not None else None

    def write_marker(self, name: str, marker: str) -> None:
        def act(pipeline: Any) -> None:
            if not pipeline.hexists(_MARKER_TABLE, ""):
                raise OnlineStoreResetError(_RESET_MESSAGE.format(redact_url(self._url)))
            pipeline.multi()
            pipeline.hset(_MARKER_TABLE, name, marker)

        with connect_redis(self._url) as server:
            server.transaction(act, _MARKER_TABLE)  # done again if somebody has touched the marks in between

    def _connection_string(self) -> str:
        """`host:port,key=value,…`: each value is read as JSON, and a comma ends it, so none may stand in it."""
        parts = urlsplit(self._url)
        options: dict[str, Any] = {"db": int(parts.path.strip("/") or 0)}
        if parts.scheme == "rediss":
            options["ssl"] = True
        options |= {
            name: unquote(value)
            for name, value in (("username", parts.username), ("password", parts.password))
            if value
        }
        texts = {name: json.dumps(value).replace(",", "\\u002c") for name, value in options.items()}
        texts |= {name: str(seconds) for name, seconds in _TIMEOUTS.items()} | dict(parse_qsl(parts.query))
        pairs = [f"{name}={text}" for name, text in texts.items()]
        return ",".join([f"{parts.hostname}:{parts.port or 6379}", *pairs])


@contextmanager
def connect_redis(url: str, **options: Any) -> Iterator[Any]:
    """A client of the Redis at `url`; its own annotations leave open whether what it gives must be awaited."""
    import redis  # only where it is the online store

    server = redis.Redis.from_url(url, **(_TIMEOUTS | options))
    try:
        yield server
    finally:
        server.close()


# A server that is gone without a word must not hold a task for ever.
_TIMEOUTS = {"socket_connect_timeout": 10.0, "socket_timeout": 60.0}
_RESET_MESSAGE = "the online store {} was emptied while it was written: the next try writes it anew"
