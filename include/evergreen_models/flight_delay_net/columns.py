"""The columns that a network reads, and rows of them as arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen.errors import TrainingDataError

Float32Array = NDArray[np.float32]
CodeArray = NDArray[np.int32]

UNKNOWN_CODE = 0
"""Code of a category that is missing, rare, or was never seen; codes of the vocabulary start at 1."""

_INTERLEAVE_ROWS = 4096  # so many rows of some dozens of columns stay in the processor's cache


@dataclass(frozen=True)
class InputColumns:
    """The inputs in the model's order: all of them, and by type."""

    inputs: tuple[str, ...]
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    label: str

    @classmethod
    def from_schema(
        cls, schema: pa.Schema, features: Sequence[str], label: str, embedded_columns: Collection[str]
    ) -> Self:
        """Return the columns of a file with this schema: texts are categories, the others numbers.

        Raises:
            TrainingDataError: columns are missing, have another type, or do not match `embedding_sizes`; all are named.
        """
        faults = [f"{name} is missing" for name in (*features, label) if name not in schema.names]
        types = {name: schema.field(name).type for name in features if name in schema.names}
        numbers = tuple(name for name in types if _is_number(types[name]))
        categories = tuple(name for name in types if _is_text(types[name]))
        faults += [
            f"{name} holds {types[name]}, neither numbers nor texts"
            for name in types
            if name not in (*numbers, *categories)
        ]
        faults += [
            f"{name} holds texts: add it to `embedding_sizes`" for name in categories if name not in embedded_columns
        ]
        faults += [
            f"`embedding_sizes` names {name}, which is no input that holds texts"
            for name in embedded_columns
            if name not in categories
        ]
        if faults:
            raise TrainingDataError(f"a network cannot learn from these columns: {'; '.join(faults)}")
        return cls(tuple(features), numbers, categories, label)

    @property
    def names(self) -> list[str]:
        return [*self.inputs, self.label]


@dataclass(frozen=True)
class RowBatch:
    """Rows as the inputs of a network.

    Attributes:
        numbers: (rows, numbers), NaN where missing.
        categories: (rows, categories), codes.
        labels: (rows,), 0 or 1.
    """

    numbers: Float32Array
    categories: CodeArray
    labels: Float32Array

    @classmethod
    def allocate(cls, rows: int, columns: InputColumns) -> Self:
        return cls(
            np.empty((rows, len(columns.numbers)), np.float32),
            np.empty((rows, len(columns.categories)), np.int32),
            np.empty(rows, np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RowBatch]) -> RowBatch:
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.categories for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> RowBatch:
        """Return copies of the rows at `indices`, in that order."""
        # ndarray.take is several times as fast as indexing.
        return RowBatch(
            self.numbers.take(indices, axis=0), self.categories.take(indices, axis=0), self.labels.take(indices)
        )


def to_float32(column: pa.ChunkedArray) -> Float32Array:
    """Return the values, (rows,), NaN where missing."""
    column = column.cast(pa.float32(), safe=False)
    if column.null_count:
        column = column.fill_null(float("nan"))
    return column.to_numpy()


def interleave(columns: Sequence[Float32Array] | Sequence[CodeArray], target: Float32Array | CodeArray) -> None:
    """Write columns, each (rows,), side by side into `target`, (rows, columns)."""
    if columns:
        for start in range(0, len(target), _INTERLEAVE_ROWS):
            part = slice(start, start + _INTERLEAVE_ROWS)
            np.stack([column[part] for column in columns], axis=1, out=target[part])


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    return any(check(kind) for check in checks)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
