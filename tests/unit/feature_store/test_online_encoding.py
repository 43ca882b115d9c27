"""Columns are encoded as Feast and redis encode their values one by one."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from redis import Connection

from evergreen.feature_store.online_encoding import OnlineColumn, encode_keys, encode_timestamps, encode_values
from evergreen.feature_store.online_writes import OnlineRows, redis_commands
from evergreen.features.types import SUPPORTED_TYPES

pytestmark = pytest.mark.unit

RANDOM = np.random.default_rng(2013)
POWERS = [sign * 2**bit + step for bit in range(63) for sign in (1, -1) for step in (-1, 0, 1)]
VALUES: dict[str, list[Any]] = {
    "Bool": [True, False, None],
    "Int32": [None, 2**31 - 1, -(2**31), *(number for number in POWERS if abs(number) < 2**31)],
    "Int64": [None, 2**63 - 1, -(2**63), *POWERS],
    "Float32": [None, math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, *map(float, RANDOM.normal(size=50))],
    "Float64": [None, math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, *map(float, RANDOM.normal(size=50))],
    "String": [None, "", "\0", "ü" * 64, "\r\n$3\r\n", *("x" * size for size in (1, 127, 128, 16_383, 16_384))],
}
INSTANTS = [
    datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=rest)
    for seconds in (-(10**9) - 1, -1, 0, 1, 10**9, 10**10)
    for rest in (0, 1, 999_999)
]


def column(feast_type: str, values: list[Any]) -> OnlineColumn:
    """Return values in chunks, the first of which begins within an array."""
    kind = SUPPORTED_TYPES[feast_type]
    array = pa.array([values[-1], *values], pa.type_for_alias(kind.arrow))
    return OnlineColumn(pa.chunked_array([array[1:2], array[2:]]), kind.online)


def message(feast_type: str, value: Any) -> Value:
    is_missing = value is None or value != value
    return Value() if is_missing else Value(**{SUPPORTED_TYPES[feast_type].online: value})


@pytest.mark.parametrize("feast_type", SUPPORTED_TYPES)
def test_values_are_messages_of_feast(feast_type: str) -> None:
    values = VALUES[feast_type]
    expected = [message(feast_type, value).SerializeToString() for value in values]
    assert encode_values(column(feast_type, values)).to_pylist() == expected


def test_timestamps_are_messages_of_protobuf() -> None:
    expected = []
    for instant in INSTANTS:
        timestamp = Timestamp()
        timestamp.FromDatetime(instant)
        expected.append(timestamp.SerializeToString())
    column = pa.chunked_array([pa.array(INSTANTS, pa.timestamp("us", "UTC"))])
    assert encode_timestamps(column).to_pylist() == expected


def test_keys_are_those_of_feast() -> None:
    types = {"z": "String", "é": "Int64", "a b": "Int32"}
    rows = {
        name: [value for value in VALUES[feast_type] if value is not None][:9] for name, feast_type in types.items()
    }
    messages = [[message(feast_type, value) for value in rows[name]] for name, feast_type in types.items()]
    expected = [
        serialize_entity_key(EntityKey(join_keys=list(types), entity_values=row), 3)
        for row in zip(*messages, strict=True)
    ]
    columns = {name: column(feast_type, rows[name]) for name, feast_type in types.items()}
    assert encode_keys(columns, 9).to_pylist() == expected


def test_a_view_without_keys_has_one() -> None:
    nobody = EntityKey(join_keys=[DUMMY_ENTITY_ID], entity_values=[Value(string_val=DUMMY_ENTITY_VAL)])
    assert encode_keys({}, 2).to_pylist() == [serialize_entity_key(nobody, 3)] * 2


def test_commands_are_those_of_redis() -> None:
    keys = ["a", "ü\r\n", ""]
    features = {"count": ("Int64", [None, 7, -1]), "text": ("String", ["\r\n", None, "x" * 1000])}
    seconds = pa.chunked_array([pa.array(INSTANTS[:3], pa.timestamp("us", "UTC"))])
    columns = {name: column(*values) for name, values in features.items()}
    commands = redis_commands("ponds", "levels", OnlineRows({"pond": column("String", keys)}, seconds, columns))
    stamps = encode_timestamps(seconds).to_pylist()
    for row, command in enumerate(commands.to_pylist()):
        key = serialize_entity_key(EntityKey(join_keys=["pond"], entity_values=[Value(string_val=keys[row])]), 3)
        words: list[Any] = ["HSET", key + b"ponds", "_ts:levels", stamps[row]]
        for name, (feast_type, values) in features.items():
            words += [_mmh3(f"levels:{name}"), message(feast_type, values[row]).SerializeToString()]
        assert command == b"".join(Connection().pack_command(*words))
