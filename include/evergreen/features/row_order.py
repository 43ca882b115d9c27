"""The order of a table's rows, by their values alone: the same rows give the same file, however Spark divided the work.

Rows are in ascending order of their columns, from the first to the last. Of the values of one column:

- numbers, dates, times and instants are in their own order, text and bytes in that of their bytes;
- floats are in the total order of IEEE 754, which tells values apart that are equal, or not ordered, as numbers:
  negative NaN, −∞, …, −0.0, 0.0, …, ∞, NaN;
- lists are compared item by item, and one that ends first comes first; maps as lists of pairs, structs field by field;
- a null comes last, in lists and structs too.

So two rows are equal only if they are equal in every bit that a file holds, and then either may come first.

Up to a row group of rows is ordered in memory. Of more, DuckDB keeps in memory what its limit allows, and sorts the rest
on disk; it gets each value in a form that it orders just so, and that can be turned back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evergreen.ingest.databases import open_database

ROW_GROUP_ROWS = 2**17
"""Rows of each row group of a file but the last: the most that are in memory as an Arrow table."""

_BATCH_ROWS = 2**15
_MEMORY_MB_PER_THREAD = 64  # to sort; twice as much makes it no faster
_MAX_THREADS = 4  # one thread reads and one writes, so more of them would only need memory
_NULL_RANK = np.iinfo(np.uint64).max
_RANK_BYTES = 8


def write_ordered(file: Path, batches: Iterable[pa.Table], rows: int, scratch: Path) -> None:
    """Write a Parquet file of batches that have `rows` rows together, in order. There is at least one batch.

    `scratch` is a folder for what does not fit into memory.
    """
    batches = iter(batches)
    first = next(batches)
    schema = order_rows(first.slice(0, 0)).schema.remove_metadata()
    plain = (pa.table(batch.cast(schema).columns, schema=schema) for batch in chain([first], batches))
    with pq.ParquetWriter(file, schema) as writer:
        if rows <= ROW_GROUP_ROWS:
            writer.write_table(order_rows(pa.concat_tables(plain)), ROW_GROUP_ROWS)
            return
        for group in _row_groups(_sort_on_disk(plain, schema, scratch)):
            writer.write_table(group, ROW_GROUP_ROWS)


def read_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Return the rows of Parquet files, one after the other, in tables of few rows; the first has none."""
    yield pq.read_schema(files[0]).empty_table().select(columns)
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                # Of a column named `a`, Arrow reads `a.b` too.
                yield pa.Table.from_batches([batch]).select(columns)


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


def _sort_on_disk(batches: Iterable[pa.Table], schema: pa.Schema, scratch: Path) -> Iterator[pa.Table]:
    names = [f"column_{number}" for number in range(len(schema))]  # DuckDB takes names for equal that differ in case

    def encode(table: pa.Table) -> pa.RecordBatch:
        return pa.record_batch([_encode(column.combine_chunks()) for column in table.columns], names)

    encoded_schema = encode(schema.empty_table()).schema
    with open_database(scratch, memory_mb_per_thread=_MEMORY_MB_PER_THREAD, max_threads=_MAX_THREADS) as database:
        reader = pa.RecordBatchReader.from_batches(encoded_schema, (encode(batch) for batch in batches))
        database.register("rows_in_any_order", reader)
        order = ", ".join(f"{name} ASC NULLS LAST" for name in names)
        for batch in database.sql(f"FROM rows_in_any_order ORDER BY {order}").to_arrow_reader(ROW_GROUP_ROWS):
            columns = [_decode(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
            yield pa.table(columns, schema=schema)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Return the rows of `tables` in tables of `ROW_GROUP_ROWS`, each column in one piece."""
    pieces: list[pa.Table] = []
    missing = ROW_GROUP_ROWS
    for table in tables:
        while table.num_rows:
            pieces.append(table.slice(0, missing))
            table = table.slice(missing)
            missing -= pieces[-1].num_rows
            if not missing:
                yield pa.concat_tables(pieces).combine_chunks()
                pieces, missing = [], ROW_GROUP_ROWS
    if pieces:
        yield pa.concat_tables(pieces).combine_chunks()


def _encode(array: pa.Array) -> pa.Array:
    """Return values that DuckDB sorts as those of `array` are ordered; `_decode` returns the array again."""
    kind = array.type
    if pa.types.is_floating(kind):
        return _float_keys(array)
    if pa.types.is_temporal(kind):
        return array.view(f"int{kind.bit_width}")
    if pa.types.is_struct(kind):
        fields = [_encode(field) for field in array.flatten()]
        return pa.StructArray.from_arrays(fields, [f"field_{n}" for n in range(len(fields))], mask=array.is_null())
    if pa.types.is_nested(kind):
        items = _as_list(array)
        return pa.ListArray.from_arrays(_list_offsets(items), _encode(items.flatten()), mask=items.is_null())
    return array


def _decode(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):
        return _floats(array, kind)
    if pa.types.is_temporal(kind):
        return array.view(kind)
    if pa.types.is_struct(kind):
        fields = [_decode(field, kind.field(number).type) for number, field in enumerate(array.flatten())]
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=array.is_null())
    if pa.types.is_map(kind):
        entries = _decode(array.flatten(), pa.struct([kind.key_field, kind.item_field]))
        return pa.MapArray.from_arrays(_list_offsets(array), *entries.flatten(), type=kind, mask=array.is_null())
    if pa.types.is_nested(kind):
        items = _decode(array.flatten(), kind.value_type)
        return pa.ListArray.from_arrays(_list_offsets(array), items, type=kind, mask=array.is_null())
    return array.cast(kind)


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
    return pa.array(_turn_negative(bits), mask=np.asarray(array.is_null()))


def _floats(keys: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return the floats that `_float_keys` has turned into integers."""
    bits = _turn_negative(np.asarray(keys.fill_null(0)))
    return pa.array(bits.view(f"f{kind.bit_width // 8}"), kind, mask=np.asarray(keys.is_null()), from_pandas=False)


def _turn_negative(bits: np.ndarray) -> np.ndarray:
    return np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)


def _struct_keys(array: pa.StructArray) -> pa.Array:
    """Return for each struct the ranks of its fields as bytes: compared as bytes they are compared field by field."""
    ranks = [_rank_values(field) for field in array.flatten()]
    width = _RANK_BYTES * len(ranks)
    offsets = np.arange(len(array) + 1, dtype=np.int64) * width
    return _binary_array(np.stack(ranks, axis=1) if ranks else np.zeros(0), offsets)


def _list_keys(array: pa.Array) -> pa.Array:
    """Return for each list the ranks of its items as bytes: compared as bytes they are compared item by item."""
    items = _as_list(array)
    return _binary_array(_rank_values(items.flatten()), np.asarray(_list_offsets(items), np.int64) * _RANK_BYTES)


def _as_list(array: pa.Array) -> pa.Array:
    if not pa.types.is_map(array.type):
        return array
    return array.cast(pa.list_(pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])))


def _list_offsets(array: pa.Array) -> pa.Array:
    """Return where each list begins and ends in the items of all lists that are not null."""
    lengths = np.asarray(pc.list_value_length(array).fill_null(0), np.int32)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _binary_array(ranks: np.ndarray, offsets: np.ndarray) -> pa.Array:
    data = ranks.astype(f">u{_RANK_BYTES}").tobytes()
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
