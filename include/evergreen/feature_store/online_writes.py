"""Writes of feature values to the online store, in the layout of Feast's own stores, which read them.

Feast's `online_write_batch` takes rows of messages, and encodes each value and each name anew. Here columns are encoded
at once, and to Redis go ready-made commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView
from feast.infra.online_stores.helpers import _mmh3, compute_table_id, compute_versioned_name
from feast.infra.online_stores.sqlite import adapt_datetime_epoch
from feast.utils import to_naive_utc

from evergreen.feature_store.online_backends import RedisBackend, SqliteBackend, online_backend, send_to_redis
from evergreen.feature_store.online_encoding import (
    BYTES,
    OnlineColumn,
    encode_keys,
    encode_timestamps,
    encode_values,
    join_bytes,
)
from evergreen.settings import settings


class OnlineRows(NamedTuple):
    """Rows of a view."""

    keys: Mapping[str, OnlineColumn]
    """No value is null."""
    timestamps: pa.ChunkedArray
    """In microseconds."""
    values: Mapping[str, OnlineColumn]
    """Of each feature."""


def write_online_rows(store: FeatureStore, view: FeatureView, rows: OnlineRows) -> None:
    """Write values of a view to the store in use, over those of the same keys."""
    url = settings().online_store.get_secret_value()
    backend = online_backend(url, store.project)
    if isinstance(backend, RedisBackend):
        name = compute_versioned_name(view, store.config.registry.enable_online_feature_view_versioning)
        send_to_redis(url, redis_commands(store.project, name, rows))
    else:
        _write_sqlite(backend, store, view, rows)


def redis_commands(project: str, view: str, rows: OnlineRows) -> pa.Array:
    """Return the command that writes each row, in the protocol of Redis."""
    keys = join_bytes(encode_keys(rows.keys, len(rows.timestamps)), project.encode())
    words = [b"HSET", keys, f"_ts:{view}".encode(), encode_timestamps(rows.timestamps)]
    for feature, column in rows.values.items():
        words += [_mmh3(f"{view}:{feature}"), encode_values(column)]
    parts: list[bytes | pa.Array] = [b"*%d\r\n" % len(words)]
    for word in words:
        if isinstance(word, bytes):
            parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
        else:
            parts += [b"$", pc.binary_length(word).cast(pa.string()).cast(BYTES), b"\r\n", word, b"\r\n"]
    return join_bytes(*parts)


def _write_sqlite(backend: SqliteBackend, store: FeatureStore, view: FeatureView, rows: OnlineRows) -> None:
    table = compute_table_id(store.project, view, store.config.registry.enable_online_feature_view_versioning)
    quoted = table.replace('"', '""')
    statement = f"""
        INSERT INTO "{quoted}" (entity_key, feature_name, value, value_text, event_ts, created_ts)
        VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT(entity_key, feature_name) DO UPDATE SET
        value = excluded.value, value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = NULL
    """  # noqa: S608
    keys = encode_keys(rows.keys, len(rows.timestamps)).to_pylist()
    timestamps = [adapt_datetime_epoch(to_naive_utc(timestamp)) for timestamp in rows.timestamps.to_pylist()]
    values = [zip(encode_values(column).to_pylist(), _texts(column), strict=True) for column in rows.values.values()]
    parameters = (
        (key, name, content, text, timestamp)
        for key, timestamp, *row in zip(keys, timestamps, *values, strict=True)
        for name, (content, text) in zip(rows.values, row, strict=True)
    )
    with backend.connect() as con:
        con.executemany(statement, parameters)


def _texts(column: OnlineColumn) -> list[str | None]:
    """Return each value as Feast's SQL stores have it beside its message."""
    return [None if value is None or value != value else str(value) for value in column.values.to_pylist()]
