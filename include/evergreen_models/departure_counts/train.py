"""Gradient boosting of counts on the joined features. Runs in the training process or pod, without Airflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import xgboost as xgb

from evergreen.errors import TrainingDataError
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import Job
from evergreen.training.rows import TrainingRows, open_training_rows


def fit(job: Job, output: Path, _: Checkpoints) -> Mapping[str, float]:
    """Train on all rows of the job, in seconds and so without a checkpoint, and write `model.ubj`.

    The trees add up to the logarithm of the expected count: the loss is that of the Poisson distribution.

    Raises:
        TrainingDataError: there are no rows.
    """
    with open_training_rows(job) as rows:
        if not rows.count:
            raise TrainingDataError(f"{rows.source} has no rows: train as of a later hour")
        data = xgb.QuantileDMatrix(_RowGroups(rows, job), nthread=job.threads)
    parameters = {name: value for name, value in job.parameters.items() if name != "rounds"} | {
        "objective": "count:poisson",
        "eval_metric": "poisson-nloglik",
        "tree_method": "hist",
        "device": "cuda" if job.gpu else "cpu",
        "nthread": job.threads,
        "seed": job.seed,
    }
    booster = xgb.train(parameters, data, num_boost_round=int(job.parameters["rounds"]))
    booster.save_model(output / "model.ubj")
    loss = float(booster.eval(data, "train").rpartition(":")[2])
    return {"train_poisson_loss": loss, "train_rows": float(rows.count)}


class _RowGroups(xgb.DataIter):
    """The rows of a job for XGBoost, which passes over them several times and keeps a byte per value."""

    def __init__(self, rows: TrainingRows, job: Job):
        super().__init__()
        self._rows, self._features, self._label = rows, list(job.features), job.label
        self._tables: Iterator[pa.Table] = iter(())

    def reset(self) -> None:
        self._tables = self._rows.read([*self._features, self._label])

    def next(self, input_data: Callable[..., None]) -> bool:
        table = next(self._tables, None)
        if table is not None:
            input_data(data=table.select(self._features), label=table[self._label].to_numpy())
        return table is not None
