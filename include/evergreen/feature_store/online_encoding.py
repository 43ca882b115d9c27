"""Keys, timestamps and values as the bytes that Feast's online stores have, whole columns at once.

Feast makes a message of protobuf for each of them, in Python, which takes longer than a store takes to write it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.protos.feast.types.Value_pb2 import Value, ValueType

BYTES = pa.large_binary()
"""Of all results here: the bytes of one batch may be more than 2 GiB."""

_VARINT, _FIXED_64, _DELIMITED, _FIXED_32 = 0, 1, 2, 5  # wire types of protobuf
_VARINT_BYTES = 10  # of a number of 64 bits, 7 in each
_KEY_VERSION = 3  # that of the repository's configuration
_KEY_TYPES = {
    "string_val": ValueType.STRING,
    "int32_val": ValueType.INT32,
    "int64_val": ValueType.INT64,
}


class OnlineColumn(NamedTuple):
    """Values of some rows."""

    values: pa.ChunkedArray
    field: str
    """That of Feast's message `Value` which has them."""


def join_bytes(*parts: bytes | pa.Array) -> pa.Array:
    """Return the parts of each row, one after the other. Constants are the same in all rows."""
    scalars = [pa.scalar(part, BYTES) if isinstance(part, bytes) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(b"", BYTES))


def encode_values(column: OnlineColumn) -> pa.Array:
    """Return each value as Feast's message `Value`.

    A missing value, null or NaN, is a message without content: no bytes.
    """
    values = column.values.combine_chunks()
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    number = Value.DESCRIPTOR.fields_by_name[column.field].number
    if pa.types.is_string(values.type):
        text = values.fill_null("").cast(BYTES)
        encoded = join_bytes(_tag(number, _DELIMITED), _varints(_whole(pc.binary_length(text))), text)
    elif pa.types.is_floating(values.type):
        wire_type = _FIXED_64 if pa.types.is_float64(values.type) else _FIXED_32
        encoded = join_bytes(_tag(number, wire_type), _little_endian(values.fill_null(0)))
    else:
        whole = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
        encoded = join_bytes(_tag(number, _VARINT), _varints(_whole(whole.fill_null(0))))
    return pc.if_else(values.is_valid(), encoded, pa.scalar(b"", BYTES))


def encode_timestamps(column: pa.ChunkedArray) -> pa.Array:
    """Return each instant, in microseconds, as protobuf's message `Timestamp`."""
    microseconds = _whole(column.combine_chunks().cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    seconds, rest = np.divmod(microseconds, 1_000_000)
    parts = []
    for number, values in ((1, seconds), (2, rest * 1_000)):
        encoded = join_bytes(_tag(number, _VARINT), _varints(values))
        parts.append(pc.if_else(pa.array(values != 0), encoded, pa.scalar(b"", BYTES)))  # a zero is left out
    return join_bytes(*parts)


def encode_keys(columns: Mapping[str, OnlineColumn], rows: int) -> pa.Array:
    """Return the key of each row as Feast's `serialize_entity_key` makes it; no value is null.

    A view without keys has one for all rows.
    """
    if not columns:
        nobody = pa.chunked_array([pa.repeat(DUMMY_ENTITY_VAL, rows)])
        columns = {DUMMY_ENTITY_ID: OnlineColumn(nobody, "string_val")}
    parts: list[bytes | pa.Array] = [serialize_entity_key_prefix(list(columns), _KEY_VERSION)]
    for name in sorted(columns):
        values, field = columns[name].values.combine_chunks(), columns[name].field
        encoded = values.cast(BYTES) if pa.types.is_string(values.type) else _little_endian(values)
        sizes = _little_endian(pc.binary_length(encoded).cast(pa.uint32()))
        parts += [struct.pack("<I", _KEY_TYPES[field]), sizes, encoded]
    return join_bytes(*parts)


def _whole(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(np.int64)


def _tag(number: int, wire_type: int) -> bytes:
    """Return the tag of a field, whose number is less than 16."""
    return bytes([number << 3 | wire_type])


def _varints(values: np.ndarray) -> pa.Array:
    """Return whole numbers as protobuf has them: groups of 7 bits, the lowest first, and a bit that says "more"."""
    groups = np.empty((len(values), _VARINT_BYTES), np.uint8)
    rest = values.astype(np.int64).view(np.uint64)
    sizes = np.ones(len(values), np.int64)
    for place in range(_VARINT_BYTES):
        has_more = rest > 0x7F
        groups[:, place] = (rest & 0x7F) | (has_more * np.uint64(0x80))
        sizes += has_more
        rest >>= np.uint64(7)
    used = groups[np.arange(_VARINT_BYTES) < sizes[:, None]]
    return _slices(np.concatenate([[0], np.cumsum(sizes)]), used)


def _little_endian(values: pa.Array) -> pa.Array:
    """Return numbers without nulls as their bytes."""
    numbers = values.to_numpy(zero_copy_only=False)
    width = numbers.dtype.itemsize
    return _slices(np.arange(len(numbers) + 1) * width, np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")))


def _slices(offsets: np.ndarray, content: np.ndarray) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(content)]
    return pa.Array.from_buffers(BYTES, len(offsets) - 1, buffers)
