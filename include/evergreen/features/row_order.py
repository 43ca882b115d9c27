"""The order of a table's rows, by their values alone: the same rows give the same file, however Spark divided the work.

Rows are in ascending order of their columns, from the first to the last. Of the values of one column:

- numbers, dates, times and instants are in their own order, text and bytes in that of their bytes;
- floats are in the total order of IEEE 754, which tells values apart that are equal, or not ordered, as numbers:
  negative NaN, −∞, …, −0.0, 0.0, …, ∞, NaN;
- lists are compared item by item, and one that ends first comes first; maps as lists of pairs, structs field by field;
- a null comes last, in lists and structs too.

So two rows are equal only if they are equal in every bit that a file holds, and then either may come first.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NULL_RANK = np.iinfo(np.uint64).max
_RANK_BYTES = 8


def order_rows(table: pa.Table) -> pa.Table:
    """Return `table` with its rows in order.

    Each column is in one piece and without a dictionary: a Parquet file would show either.
    """
    if not table.num_columns:
        return table
    names = table.column_names
    columns = [column.combine_chunks() for column in table.columns]
    columns = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in columns]
    table = pa.table(columns, names)
    keys = pa.table([_sort_keys(column) for column in columns], names)
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in names])
    return table.take(order).combine_chunks()


def _sort_keys(array: pa.Array) -> pa.Array:
    """Return values that Arrow can sort, and sorts as the values of `array` are ordered; nulls are null or the last."""
    kind = array.type
    if pa.types.is_floating(kind):
        return _float_keys(array)
    if pa.types.is_nested(kind):
        return pa.array(_rank_values(array))
    return array


def _rank_values(array: pa.Array) -> np.ndarray:
    """Return for each value the number of different values up to it; a null has the highest of all numbers."""
    present = array.drop_null()
    if pa.types.is_struct(array.type):
        keys = _struct_keys(present)
    elif pa.types.is_nested(array.type):
        keys = _list_keys(present)
    else:
        keys = _sort_keys(present)
    ranks = np.full(len(array), _NULL_RANK, np.uint64)
    ranks[np.asarray(array.is_valid())] = pc.rank(keys, tiebreaker="dense") if len(keys) else []
    return ranks


def _float_keys(array: pa.Array) -> pa.Array:
    """Return integers in the order of IEEE 754: the bits of the floats, those of the magnitude turned if negative."""
    bits = np.asarray(array.fill_null(0)).view(f"i{array.type.bit_width // 8}")
    keys = np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
    return pa.array(keys, mask=np.asarray(array.is_null()))


def _struct_keys(array: pa.StructArray) -> pa.Array:
    """Return for each struct the ranks of its fields as bytes: compared as bytes they are compared field by field."""
    ranks = [_rank_values(field) for field in array.flatten()]
    width = _RANK_BYTES * len(ranks)
    offsets = np.arange(len(array) + 1, dtype=np.int64) * width
    return _binary_array(np.stack(ranks, axis=1) if ranks else np.zeros(0), offsets)


def _list_keys(array: pa.Array) -> pa.Array:
    """Return for each list the ranks of its items as bytes: compared as bytes they are compared item by item."""
    if pa.types.is_map(array.type):
        fields = [("key", array.type.key_type), ("value", array.type.item_type)]
        array = array.cast(pa.list_(pa.struct(fields)))
    lengths = np.asarray(pc.list_value_length(array), np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]) * _RANK_BYTES
    return _binary_array(_rank_values(array.flatten()), offsets)


def _binary_array(ranks: np.ndarray, offsets: np.ndarray) -> pa.Array:
    data = ranks.astype(f">u{_RANK_BYTES}").tobytes()
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
