"""Gradient boosting of counts on the joined features. Runs in the training process or pod, without Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import xgboost as xgb

from evergreen.errors import TrainingDataError
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import Job
from evergreen.training.rows import open_training_rows
from evergreen.training.xgboost_rows import XGBoostRows


def fit(job: Job, output: Path, _: Checkpoints) -> Mapping[str, float]:
    """Train on all rows of the job, in seconds and so without a checkpoint, and write `model.ubj`.

    The trees add up to the logarithm of the expected count: the loss is that of the Poisson distribution.

    Raises:
        TrainingDataError: there are no rows.
    """
    with open_training_rows(job) as rows:
        if not rows.count:
            raise TrainingDataError(f"{rows.source} has no rows: train as of a later hour")
        data = xgb.QuantileDMatrix(XGBoostRows(rows, job), nthread=job.threads)
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
