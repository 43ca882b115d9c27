"""Rows in Parquet files, written and read in batches: their number does not change how much memory they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evergreen.gates.evidence import EvidenceRows, MissingEvidence, TextBatch
from evergreen.ingest.row_groups import regroup_rows
from evergreen.scoring.predictions import SCORING_BATCH_ROWS

_READ_ROWS = 131_072


class RowColumn(NamedTuple):
    """A column of a Parquet file with a row for each row of the holdout."""

    file: Path
    name: str


def iter_tables(
    file: Path, columns: Sequence[str] | None = None, batch_rows: int = SCORING_BATCH_ROWS
) -> Iterator[pa.Table]:
    """Yield the rows of a file in tables of `batch_rows`, the last one of fewer; of an empty file, an empty one.

    So batches do not depend on the row groups that the file happens to have.
    """
    with pq.ParquetFile(file, pre_buffer=False) as source:  # else it reads all row groups ahead
        names = source.schema_arrow.names if columns is None else list(columns)
        if not source.metadata.num_rows:
            yield source.read(names)
            return
        batches = source.iter_batches(batch_rows, columns=names)
        yield from regroup_rows((pa.Table.from_batches([batch]) for batch in batches), batch_rows)


def write_column(file: Path, type_: pa.DataType, batches: Iterable[pa.Array | pa.ChunkedArray]) -> RowColumn:
    """Write a file with one column of these values."""
    schema = pa.schema([("value", type_)])
    with pq.ParquetWriter(file, schema) as writer:
        for values in batches:
            writer.write_table(pa.table([values], schema=schema))
    return RowColumn(file, "value")


def write_converted_column(
    target: Path,
    type_: pa.DataType,
    file: Path,
    name: str,
    convert: Callable[[pa.ChunkedArray, str], pa.ChunkedArray | pa.Array | MissingEvidence],
) -> RowColumn | MissingEvidence:
    """Write what becomes of a column of the file, unless something in it cannot be converted."""
    problems: list[MissingEvidence] = []

    def batches() -> Iterator[pa.ChunkedArray | pa.Array]:
        for table in iter_tables(file, [name]):
            values = convert(table[name], name)
            if isinstance(values, MissingEvidence):
                problems.append(values)
                return
            yield values

    column = write_column(target, type_, batches())
    return problems[0] if problems else column


def predictions_type(outputs: int) -> pa.DataType:
    """Return the type of a column of predictions with so many numbers per row; 0 for a single number."""
    return pa.list_(pa.float64(), outputs) if outputs else pa.float64()


def predictions_array(predictions: NDArray[np.float64]) -> pa.Array:
    """Return predictions (n,) or (n, outputs) as a column."""
    if predictions.ndim == 1:
        return pa.array(predictions)
    return pa.FixedSizeListArray.from_arrays(pa.array(predictions.ravel()), predictions.shape[1])


def read_numbers(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers as (n,), or of predictions as (n, outputs)."""
    if pa.types.is_fixed_size_list(column.type):
        rows = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        values: NDArray[Any] = rows.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return numbers


def read_values(column: pa.ChunkedArray) -> NDArray[Any] | list[str | None]:
    """Return a column of texts as a list, and one of numbers as `read_numbers` does."""
    if not pa.types.is_string(column.type):
        return read_numbers(column)
    texts: list[str | None] = column.to_pylist()
    return texts


def write_rows(file: Path, columns: Mapping[str, RowColumn]) -> Path:
    """Write a file with columns of others, all of as many rows, under new names."""
    readers = [iter_tables(column.file, [column.name]) for column in columns.values()]
    writer: pq.ParquetWriter | None = None
    try:
        for tables in zip(*readers, strict=True):
            arrays = [table[column.name] for table, column in zip(tables, columns.values(), strict=True)]
            batch = pa.table(arrays, names=list(columns))
            writer = writer or pq.ParquetWriter(file, batch.schema)
            writer.write_table(batch)
    finally:
        if writer:
            writer.close()
    return file


@dataclass(frozen=True, eq=False)
class EvidenceFile(EvidenceRows):
    """The rows of a published file."""

    file: Path

    @cached_property
    def count(self) -> int:
        rows: int = pq.read_metadata(self.file).num_rows
        return rows

    def batches(self, numbers: Sequence[str], texts: Sequence[str] = ()) -> Iterator[tuple[list[Any], list[TextBatch]]]:
        names = list(dict.fromkeys([*numbers, *texts]))
        with pq.ParquetFile(self.file, read_dictionary=list(texts), pre_buffer=False) as source:
            for batch in source.iter_batches(_READ_ROWS, columns=names):
                values = [read_numbers(batch.column(name)) for name in numbers]
                yield values, [_text_batch(batch.column(name)) for name in texts]


def _text_batch(column: pa.Array) -> TextBatch:
    encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return TextBatch(codes.astype(np.int64), encoded.dictionary.to_pylist())
