"""How far what a server used, and what it predicted, is from what the offline store and the model give. Pure.

Numbers are equal in single precision, as servers send them; two missing values are equal, and NaN is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evergreen.monitoring.effect_sizes import FloatValues

Mask = NDArray[np.bool_]

VALUE_TOLERANCE = 1e-6
"""Of a feature, relative: single precision on one side is no difference."""
PREDICTION_TOLERANCE = 1e-4
"""Of a prediction, relative, beside `PREDICTION_FLOOR`: other hardware adds in another order."""
PREDICTION_FLOOR = 1e-6

_MAX_LENGTH = 40  # of a value in a message


@dataclass(frozen=True)
class ColumnDifference:
    """A column of which some rows differ: `differs` (n,), and where only one side has a value."""

    column: str
    differs: Mask
    only_served: Mask
    only_offline: Mask


def find_differences(served: pa.Table, offline: pa.Table, columns: Sequence[str]) -> list[ColumnDifference]:
    """Return in which rows (n,) the `columns` of two tables differ; a column without a difference has no entry."""
    differences = []
    for name in columns:
        used, expected = _values(served[name]), _values(offline[name])
        if used.dtype != expected.dtype:  # one of them has no value at all, or another type
            used, expected = (_as_objects(served[name]), _as_objects(offline[name]))
        is_missing = _is_missing(used), _is_missing(expected)
        differs = ~(is_missing[0] & is_missing[1]) & ~_are_equal(used, expected)
        if differs.any():
            differences.append(
                ColumnDifference(name, differs, differs & is_missing[1], differs & is_missing[0]),
            )
    return differences


def find_other_predictions(logged: FloatValues, computed: FloatValues) -> Mask:
    """Return of which rows (n,) the logged prediction, (n,) or (n, k), is not the computed one; one without differs."""
    with np.errstate(invalid="ignore"):
        is_close = np.abs(logged - computed) <= PREDICTION_TOLERANCE * np.abs(computed) + PREDICTION_FLOOR
    return np.array(~is_close.reshape(len(logged), -1).all(axis=1), bool)


def value_text(table: pa.Table, column: str, row: int) -> str:
    """Return a value as a message shows it: it comes from others, so it is short, and on one line."""
    value = table[column][row].as_py()
    if value is None or value != value:
        return "nothing"
    text = value.isoformat() if hasattr(value, "isoformat") else ascii(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def describe_row(table: pa.Table, row: int, names: Mapping[str, str]) -> str:
    """Return what names a row: `names` has the words by column."""
    return ", ".join(f"{word} {value_text(table, column, row)}" for column, word in names.items())


def _values(column: pa.ChunkedArray) -> NDArray[np.generic]:
    """Return numbers as float64 with NaN for missing ones, and all others as objects."""
    types, dtype = pa.types, column.type
    if types.is_integer(dtype) or types.is_floating(dtype) or types.is_decimal(dtype):
        floats = pc.cast(column, pa.float64(), safe=False)
        values: NDArray[np.generic] = floats.to_numpy(zero_copy_only=False).astype(np.float64)
        return values
    return _as_objects(column)


def _as_objects(column: pa.ChunkedArray) -> NDArray[np.generic]:
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("us", column.type.tz), safe=False)
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values


def _is_missing(values: NDArray[np.generic]) -> Mask:
    if values.dtype == object:
        return np.array([value is None or value != value for value in values], bool)
    return np.isnan(values.astype(np.float64))


def _are_equal(first: NDArray[np.generic], second: NDArray[np.generic]) -> Mask:
    if first.dtype == object:
        return np.array([bool(a == b) for a, b in zip(first, second, strict=True)], bool)
    a, b = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore"):
        is_close: Mask = np.abs(a - b) <= VALUE_TOLERANCE * np.maximum(np.abs(a), np.abs(b))
    return is_close & np.isfinite(a) & np.isfinite(b) | (a == b)
