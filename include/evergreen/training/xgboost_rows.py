"""A job's training data for XGBoost, row group by row group."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xgboost as xgb
from numpy.typing import NDArray

from evergreen.errors import TrainingDataError
from evergreen.training.categories import Categories
from evergreen.training.job import Job
from evergreen.training.rows import TrainingRows


class XGBoostRows(xgb.DataIter):
    """Features and label of rows for a `QuantileDMatrix`, which passes over them several times.

    It keeps a byte per value. With `categories`, text columns are handed over as categories, for a
    `QuantileDMatrix(…, enable_categorical=True)`. The label of a job with `classes` is the number of its class. Rows of
    a job with a `weight` have theirs.
    """

    def __init__(self, rows: TrainingRows, job: Job, categories: Categories | None = None):
        """Take the rows of a job.

        Raises:
            TrainingDataError: the job ranks the rows of queries, which may go on in the next row group.
        """
        super().__init__()
        if job.query:
            raise TrainingDataError(
                f"XGBoostRows hands over no queries, and the job ranks rows by {job.query}: read all rows by "
                "`rows.read` into a DMatrix with `qid`"
            )
        self._classes = pa.array(job.classes) if job.classes else None
        self._categories = categories or Categories({})
        self._rows, self._features, self._label = rows, list(job.features), job.label
        self._weight = job.weight
        self._tables: Iterator[pa.Table] = iter(())

    def reset(self) -> None:
        """Begin a pass over the rows."""
        row_columns = [self._label, *([self._weight] if self._weight else [])]
        self._tables = self._rows.read(list(dict.fromkeys([*self._features, *row_columns])))

    def next(self, input_data: Callable[..., None]) -> bool:
        """Hand over the next row group; return whether there was one."""
        table = next(self._tables, None)
        if table is not None:
            features = self._categories.encode(table.select(self._features))
            weights = {"weight": table[self._weight].to_numpy()} if self._weight else {}
            input_data(data=features, label=self._labels(table[self._label]), **weights)
        return table is not None

    def _labels(self, column: pa.ChunkedArray) -> NDArray[np.generic]:
        """Return the label (n,), or the number of its class.

        Raises:
            TrainingDataError: a label is no class.
        """
        if self._classes is None:
            return column.to_numpy()
        try:
            values = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            codes = pc.index_in(values.cast(self._classes.type), value_set=self._classes)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise TrainingDataError(
                f"{self._rows.source}: {self._label} is {column.type}, and the spec's classes are {self._classes.type}"
            ) from None
        if codes.null_count:
            unknown_label = pc.filter(column, pc.is_null(codes))[0].as_py()
            raise TrainingDataError(
                f"{self._rows.source}: {self._label} is {unknown_label!r}, which is none of the spec's classes: add "
                "it to them, or leave such rows out of the spine"
            )
        return codes.to_numpy()
