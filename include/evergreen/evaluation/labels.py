"""Labels as gates take them: of several classes, the number of each row's class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evergreen.evaluation.row_files import RowColumn, write_converted_column
from evergreen.gates.evidence import MissingEvidence
from evergreen.spec.prediction_type import PredictionType

_MAX_NAMED = 5


def compute_labels(column: pa.ChunkedArray, prediction: PredictionType | None) -> NDArray[np.generic] | MissingEvidence:
    """Return the labels (n,): of classes their numbers, from 0 on, in the order in which they are declared."""
    if prediction is None or not prediction.classes:
        return column.to_numpy()
    numbers = class_numbers(column, prediction)
    return numbers if isinstance(numbers, MissingEvidence) else numbers.to_numpy()


def write_labels(file: Path, prediction: PredictionType | None, folder: Path) -> RowColumn | MissingEvidence:
    """Return where the labels of the rows of a Parquet file are, as `compute_labels` returns them."""
    if prediction is None or not prediction.classes:
        return RowColumn(file, "label")
    target = folder / "labels.parquet"
    return write_converted_column(
        target, pa.float64(), file, "label", lambda column, _: class_numbers(column, prediction)
    )


def class_numbers(column: pa.ChunkedArray, prediction: PredictionType) -> pa.ChunkedArray | MissingEvidence:
    """Return the number of each row's class, as float64; or what is wrong with the labels."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = isinstance(prediction.classes[0], str)
    if not (_is_text if is_text else pa.types.is_integer)(column.type):
        kind = "texts" if is_text else "whole numbers"
        fix = "write `classes` as they are in the column"
        if pa.types.is_floating(column.type):  # no class is a fraction; in pandas, whole numbers with a null are floats
            fix = "let features.py return whole numbers or texts as labels, in pandas as Int64 or string"
        return MissingEvidence(f"labels are {column.type}, and the declared classes are {kind}: {fix}")
    type_ = pa.string() if is_text else pa.int64()
    numbers = pc.index_in(column.cast(type_), pa.array(prediction.classes, type_))
    if numbers.null_count:
        return _undeclared(column.filter(pc.is_null(numbers)), len(column))
    return numbers.cast(pa.float64())


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _undeclared(labels: pa.ChunkedArray, rows: int) -> MissingEvidence:
    names = sorted({repr(value) for value in labels.unique().to_pylist()})
    listed = ", ".join(name[:40] for name in names[:_MAX_NAMED])
    listed += f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return MissingEvidence(
        f"{len(labels):,} of {rows:,} labels are no declared class: {listed}; add them to `classes` and train again, "
        "or correct the label"
    )
