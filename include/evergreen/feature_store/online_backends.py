"""Online stores, by the setting `online_store`: their part of Feast's configuration, and markers stored in them.

A marker is stored among the values and is lost with them. So if it is there, the values written before it are too.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa

from evergreen.settings import redact_url

_MARKER_TABLE = "_evergreen"  # SQLite's table, Redis' hash
_SQLITE_TIMEOUT_S = 60  # to wait for another writer
# A server that vanishes without closing its connections must not block a task for ever.
_REDIS_TIMEOUTS = {"socket_connect_timeout": 10.0, "socket_timeout": 60.0}
_REDIS_PART_BYTES = 1 << 20  # the timeout is that of a part
_RESET_MESSAGE = "the online store {} was emptied while it was written: the next try writes it again"


class OnlineStoreResetError(Exception):
    """The online store lost its content while it was written. Retryable: the next try writes it again."""


def online_backend(url: str, project: str) -> SqliteBackend | RedisBackend:
    """Return the backend for a Feast project and `url`, a value of the setting `online_store`.

    In SQLite, a project has a file of its own: Feast names tables `<project>_<view>`, which may be equal for two.
    """
    if url.startswith(("redis://", "rediss://")):
        return RedisBackend(url)
    return SqliteBackend(Path(url) / f"{project}.db")


class SqliteBackend:
    """A file on this machine, as Feast and the markers use it. `RedisBackend` has the same methods."""

    wants_key_order = True
    """Whether rows in the order of their keys are written faster: here, they are in the same pages of an index."""

    def __init__(self, file: Path):
        self._file = file

    def feast_config(self) -> dict[str, Any]:
        """Return the section `online_store` of Feast's configuration."""
        return {"type": "sqlite", "path": str(self._file)}

    def prepare_markers(self) -> None:
        """Allow markers to be written, until the store is emptied."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self.connect() as con:
            con.execute(f"CREATE TABLE IF NOT EXISTS {_MARKER_TABLE} (name TEXT PRIMARY KEY, marker TEXT)")

    def read_marker(self, name: str) -> str | None:
        """Return the last marker written under `name`; None if there is none, also because the store was emptied."""
        if not self._file.exists():  # connecting would create it
            return None
        with self.connect() as con:
            if not con.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [_MARKER_TABLE]).fetchone():
                return None
            row = con.execute(f"SELECT marker FROM {_MARKER_TABLE} WHERE name = ?", [name]).fetchone()  # noqa: S608
        return row[0] if row else None

    def write_marker(self, name: str, marker: str) -> None:
        """Write a marker.

        Raises:
            OnlineStoreResetError: the store was emptied since `prepare_markers`; the values may be gone too.
        """
        try:
            with self.connect() as con:
                con.execute(f"INSERT OR REPLACE INTO {_MARKER_TABLE} VALUES (?, ?)", [name, marker])  # noqa: S608
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            raise OnlineStoreResetError(_RESET_MESSAGE.format(self._file)) from None

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction; other writers are waited for."""
        with closing(sqlite3.connect(self._file, timeout=_SQLITE_TIMEOUT_S)) as con, con:
            yield con


class RedisBackend:
    """A server that may be emptied, restarted without its data, or replaced at any time."""

    wants_key_order = False

    def __init__(self, url: str):
        self._url = url

    def feast_config(self) -> dict[str, Any]:
        return {
            "type": "redis",
            "connection_string": self._connection_string(),
            # Otherwise Feast would keep an existing value of the same timestamp, and so the value before a correction.
            # evergreen.feature_store.online_store decides which value is newer before anything is written.
            "skip_dedup": True,
        }

    def prepare_markers(self) -> None:
        with connect_redis(self._url) as server:
            server.hset(_MARKER_TABLE, "", "")

    def read_marker(self, name: str) -> str | None:
        with connect_redis(self._url) as server:
            marker: bytes | None = server.hget(_MARKER_TABLE, name)
        return marker.decode() if marker is not None else None

    def write_marker(self, name: str, marker: str) -> None:
        def write(pipeline: Any) -> None:
            if not pipeline.hexists(_MARKER_TABLE, ""):
                raise OnlineStoreResetError(_RESET_MESSAGE.format(redact_url(self._url)))
            pipeline.multi()
            pipeline.hset(_MARKER_TABLE, name, marker)

        with connect_redis(self._url) as server:
            server.transaction(write, _MARKER_TABLE)  # runs again if another client changed the markers meanwhile

    def _connection_string(self) -> str:
        """Return `host:port,key=value,…`: Feast reads each value as JSON and splits at commas, so they are escaped."""
        parts = urlsplit(self._url)
        options: dict[str, Any] = {"db": int(parts.path.strip("/") or 0)}
        if parts.scheme == "rediss":
            options["ssl"] = True
        credentials = {"username": parts.username, "password": parts.password}
        options |= {name: unquote(value) for name, value in credentials.items() if value}
        texts = {name: json.dumps(value).replace(",", "\\u002c") for name, value in options.items()}
        texts |= {name: str(seconds) for name, seconds in _REDIS_TIMEOUTS.items()} | dict(parse_qsl(parts.query))
        pairs = [f"{name}={text}" for name, text in texts.items()]
        return ",".join([f"{parts.hostname}:{parts.port or 6379}", *pairs])


def connect_redis(url: str, **options: Any) -> Any:
    """Return a client of the Redis server at `url`. It is untyped: redis annotates results as possibly awaitable."""
    import redis  # only where it is the online store

    return redis.Redis.from_url(url, **(_REDIS_TIMEOUTS | options))


def send_to_redis(url: str, commands: pa.Array) -> None:
    """Send commands, which are in the protocol of Redis, at once; tried again as redis' own pipelines are.

    Raises:
        redis.ResponseError: the server refused a command, the first one that it refused.
    """
    from redis import ResponseError

    content = memoryview(commands.buffers()[2])
    parts = [content[start : start + _REDIS_PART_BYTES] for start in range(0, len(content), _REDIS_PART_BYTES)]

    def exchange() -> None:
        connection.send_packed_command(parts)
        refusals = []
        for _ in range(len(commands)):
            try:
                connection.read_response()
            except ResponseError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    with connect_redis(url) as server:
        connection = server.connection_pool.get_connection()
        try:
            connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())
        finally:
            server.connection_pool.release(connection)
