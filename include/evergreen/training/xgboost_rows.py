"""A job's training data for XGBoost, row group by row group."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import xgboost as xgb

from evergreen.training.job import Job
from evergreen.training.rows import TrainingRows


class XGBoostRows(xgb.DataIter):
    """Features and label of rows for a `QuantileDMatrix`, which passes over them several times.

    It keeps a byte per value.
    """

    def __init__(self, rows: TrainingRows, job: Job):
        super().__init__()
        self._rows, self._features, self._label = rows, list(job.features), job.label
        self._tables: Iterator[pa.Table] = iter(())

    def reset(self) -> None:
        """Begin a pass over the rows."""
        self._tables = self._rows.read([*self._features, self._label])

    def next(self, input_data: Callable[..., None]) -> bool:
        """Hand over the next row group; return whether there was one."""
        table = next(self._tables, None)
        if table is not None:
            input_data(data=table.select(self._features), label=table[self._label].to_numpy())
        return table is not None
