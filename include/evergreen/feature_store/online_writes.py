"""Writes of feature values to the online store, in the layout of Feast's own stores, which read them.

Feast's `online_write_batch` takes rows of messages, and encodes each value and each name anew. Here equal values of a
batch are encoded once, and names once for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple, TypeVar

from feast import FeatureStore, FeatureView
from feast.infra.online_stores.helpers import _mmh3, compute_table_id, compute_versioned_name, extract_text_and_num
from feast.infra.online_stores.sqlite import adapt_datetime_epoch
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import to_naive_utc
from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.feature_store.online_backends import RedisBackend, SqliteBackend, connect_redis, online_backend
from evergreen.settings import settings

_Encoded = TypeVar("_Encoded")


class DistinctValues(NamedTuple):
    """A feature of some rows."""

    messages: Sequence[Value]
    indices: Sequence[int]
    """Which message each row has."""

    def encode(self, encode_message: Callable[[Value], _Encoded]) -> list[_Encoded]:
        """Return the code of each row's value."""
        encoded = [encode_message(message) for message in self.messages]
        return [encoded[index] for index in self.indices]


class OnlineRows(NamedTuple):
    """Rows of a view. All parts have an item per row."""

    keys: Sequence[bytes]
    """As Feast's `serialize_entity_key` makes them."""
    timestamps: Sequence[datetime]
    values: Mapping[str, DistinctValues]
    """Of each feature."""


def write_online_rows(store: FeatureStore, view: FeatureView, rows: OnlineRows) -> None:
    """Write values of a view to the store in use, over those of the same keys."""
    url = settings().online_store.get_secret_value()
    backend = online_backend(url, store.project)
    if isinstance(backend, RedisBackend):
        _write_redis(url, store, view, rows)
    else:
        _write_sqlite(backend, store, view, rows)


def _write_redis(url: str, store: FeatureStore, view: FeatureView, rows: OnlineRows) -> None:
    name = compute_versioned_name(view, store.config.registry.enable_online_feature_view_versioning)
    fields = [_mmh3(f"{name}:{feature}") for feature in rows.values]
    project = store.project.encode()
    values = [value.encode(lambda message: message.SerializeToString()) for value in rows.values.values()]
    timestamps = {}
    for timestamp in set(rows.timestamps):
        message = Timestamp()
        message.FromDatetime(timestamp)
        timestamps[timestamp] = message.SerializeToString()
    with connect_redis(url) as server, server.pipeline(transaction=False) as pipeline:
        for key, timestamp, *row in zip(rows.keys, rows.timestamps, *values, strict=True):
            pairs = chain.from_iterable(zip(fields, row, strict=True))
            pipeline.execute_command("HSET", key + project, f"_ts:{name}", timestamps[timestamp], *pairs)
        pipeline.execute()


def _write_sqlite(backend: SqliteBackend, store: FeatureStore, view: FeatureView, rows: OnlineRows) -> None:
    table = compute_table_id(store.project, view, store.config.registry.enable_online_feature_view_versioning)
    quoted = table.replace('"', '""')
    statement = f"""
        INSERT INTO "{quoted}" (entity_key, feature_name, value, value_text, event_ts, created_ts)
        VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT(entity_key, feature_name) DO UPDATE SET
        value = excluded.value, value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = NULL
    """  # noqa: S608
    timestamps = [adapt_datetime_epoch(to_naive_utc(timestamp)) for timestamp in rows.timestamps]
    values = [
        value.encode(lambda message: (message.SerializeToString(), extract_text_and_num(message, False)[0]))
        for value in rows.values.values()
    ]
    parameters = (
        (key, name, content, text, timestamp)
        for key, timestamp, *row in zip(rows.keys, timestamps, *values, strict=True)
        for name, (content, text) in zip(rows.values, row, strict=True)
    )
    with backend.connect() as con:
        con.executemany(statement, parameters)
