"""The order of a table's rows, by their values alone: the same rows give the same file, however Spark divided the work.

Rows are in ascending order of their columns, from the first to the last. Of the values of one column:

- numbers, dates, times and instants are in their own order, text and bytes in that of their bytes;
- floats are in the total order of IEEE 754, which tells values apart that are equal, or not ordered, as numbers:
  negative NaN, −∞, …, −0.0, 0.0, …, ∞, NaN;
- lists are compared item by item, and one that ends first comes first; maps as lists of pairs, structs field by field;
- a null comes last, in lists and structs too.

So two rows are equal only if they are equal in every bit that a file holds, and then either may come first.

Memory does not grow with rows: runs of them are sorted one by one, kept on disk, and merged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evergreen.ingest.row_groups import ROW_GROUP_ROWS, regroup_rows

_BATCH_ROWS = 2**13
_BUFFER_BYTES = 2**20  # of each column; without, Arrow has the whole row group in memory, as large as Spark made it
_RUN_BYTES = 2**23  # of rows that are sorted in memory, which takes about four times as much
_BLOCKS_PER_RUN = 128  # the parts of a run on disk, of which a merge has one or two in memory
_MERGED_BYTES = 2**22  # of blocks that are merged at a time
_NULL_RANK = np.iinfo(np.uint64).max
_RANK_BYTES = 8


def write_ordered(file: Path, batches: Iterable[pa.Table], scratch: Path) -> None:
    """Write a Parquet file with the rows of `batches`, at least one, in order. `scratch` is a folder for runs."""
    batches = iter(batches)
    first = next(batches)
    schema = order_rows(first.slice(0, 0)).schema.remove_metadata()
    # Batches may differ in what only Arrow tells apart: which columns have nulls, and which a dictionary.
    plain = (pa.table(batch.cast(schema).columns, schema=schema) for batch in chain([first], batches))
    with pq.ParquetWriter(file, schema) as writer:
        for group in regroup_rows(_merge_runs(_split_into_runs(plain), scratch), ROW_GROUP_ROWS):
            writer.write_table(group, ROW_GROUP_ROWS)


def read_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Return the rows of Parquet files, one after the other, in tables of few rows; the first has none."""
    yield pq.read_schema(files[0]).empty_table().select(columns)
    for file in files:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                # Of a column named `a`, Arrow reads `a.b` too.
                yield pa.Table.from_batches([batch]).select(columns)


def order_rows(table: pa.Table) -> pa.Table:
    """Return `table` with its rows in order.

    Each column is in one piece and without a dictionary: a Parquet file would show either.
    """
    if not table.num_columns:
        return table
    table = _in_one_piece(table)
    return table.take(_row_order(table)).combine_chunks()


def _split_into_runs(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Return the rows in tables of `_RUN_BYTES`, the last one of fewer; at least one."""
    run: list[pa.Table] = []
    size = 0
    for batch in batches:
        if run and size + batch.nbytes > _RUN_BYTES:
            yield pa.concat_tables(run)
            run, size = [], 0
        run.append(batch)
        size += batch.nbytes
    yield pa.concat_tables(run)


def _merge_runs(runs: Iterator[pa.Table], scratch: Path) -> Iterator[pa.Table]:
    """Return the rows of all runs in order, in tables; a single run never leaves the memory."""
    first = order_rows(next(runs))
    second = next(runs, None)
    if second is None:
        yield first
        return
    with tempfile.TemporaryDirectory(prefix="runs-", dir=scratch) as folder:
        spill = Path(folder, "blocks.arrow")
        yield from _merge_blocks(spill, _write_blocks(spill, chain([first], map(order_rows, chain([second], runs)))))


def _write_blocks(spill: Path, runs: Iterable[pa.Table]) -> pa.Table:
    """Write runs, each in order, in blocks, and return the first row of each block."""
    first_rows = []
    with pa.OSFile(str(spill), "wb") as sink:
        writer = None
        for run in runs:
            writer = writer or pa.ipc.new_file(sink, run.schema)
            block_rows = max(1, len(run) // _BLOCKS_PER_RUN)
            writer.write_table(run, max_chunksize=block_rows)
            first_rows.append(run.take(pa.array(range(0, len(run), block_rows), pa.int64())))
        assert writer is not None
        writer.close()
    return pa.concat_tables(first_rows)


def _merge_blocks(spill: Path, first_rows: pa.Table) -> Iterator[pa.Table]:
    """Return the rows of all blocks in order.

    Blocks are read in the order of their first rows. Whatever is not after the first row of the next block is complete.
    The rest is at most one block of each run, because the blocks of a run before its last one that is read are not
    after the first row of that.
    """
    order = _row_order(_in_one_piece(first_rows)).to_pylist()
    with pa.OSFile(str(spill)) as source, pa.ipc.open_file(source) as blocks:
        rest, pending, pending_bytes = first_rows.slice(0, 0), list[pa.Table](), 0
        for block, next_block in zip(order, [*order[1:], None], strict=True):
            pending.append(pa.Table.from_batches([blocks.get_batch(block)]))
            pending_bytes += pending[-1].nbytes
            if next_block is None:
                yield order_rows(pa.concat_tables([rest, *pending]))
            elif pending_bytes >= max(_MERGED_BYTES, rest.nbytes):
                table = _in_one_piece(pa.concat_tables([rest, *pending, first_rows.slice(next_block, 1)]))
                rows = _row_order(table).to_numpy()  # of equal rows the earlier comes first
                [end] = np.flatnonzero(rows == len(table) - 1)
                yield table.take(pa.array(rows[:end]))
                rest, pending, pending_bytes = table.take(pa.array(rows[end + 1 :])), [], 0


def _in_one_piece(table: pa.Table) -> pa.Table:
    columns = [column.combine_chunks() for column in table.columns]
    columns = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in columns]
    return pa.table(columns, table.column_names)


def _row_order(table: pa.Table) -> pa.Array:
    """Return the numbers of the rows in their order. Each column is in one piece and without a dictionary."""
    keys = pa.table([_sort_keys(column.chunk(0)) for column in table.columns], table.column_names)
    return pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in table.column_names])


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
