"""Gradient boosting on the joined features. Runs in the training process or pod, without Airflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import xgboost as xgb

from evergreen.errors import TrainingDataError
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import Job
from evergreen.training.rows import TrainingRows, open_training_rows
from evergreen.training.xgboost_rows import XGBoostRows

_MODEL = "model.ubj"
_REPORT_INTERVAL_S = 2

log = logging.getLogger(__name__)


def fit(job: Job, output: Path, checkpoints: Checkpoints) -> Mapping[str, float]:
    """Train on all rows of the job and write `model.ubj`, XGBoost's own format, which contains no code.

    Missing features stay missing: the trees learn a direction for them. An attempt that resumes from a checkpoint grows
    the same trees, to the last bit, as one that was never interrupted.
    """
    with open_training_rows(job) as rows:
        _check_labels(rows, job.label)
        data = xgb.QuantileDMatrix(XGBoostRows(rows, job), nthread=job.threads)
    rounds = int(job.parameters["rounds"])
    checkpoint = checkpoints.load_latest()
    first_round = checkpoint.step if checkpoint else 0
    saved_model = bytearray(checkpoint.files[_MODEL]) if checkpoint else None
    booster = xgb.Booster(_booster_parameters(job), cache=[data], model_file=saved_model)
    progress = _Progress(rounds, first_round, rows.count)
    for number in range(first_round, rounds):
        # The generators that sample rows and columns keep their state between rounds, and no checkpoint contains it.
        # Loading its own configuration makes a booster seed them again, from the seed and the number of the round.
        booster.load_config(booster.save_config())
        booster.update(data, number)
        if progress.is_due(number + 1):
            progress.report(number + 1, _log_loss(booster, data))
        checkpoints.record_step(number + 1, lambda: {_MODEL: bytes(booster.save_raw("ubj"))})
    booster.save_model(output / _MODEL)
    return {"train_log_loss": _log_loss(booster, data), "train_rows": float(rows.count)}


def _check_labels(rows: TrainingRows, label: str) -> None:
    """Raise unless there are rows, and each label is 0 or 1.

    Raises:
        TrainingDataError: says which.
    """
    if not rows.count:
        raise TrainingDataError(f"{rows.source} has no rows: no label of its days was known; train as of a later day")
    invalid = 0
    for table in rows.read([label]):
        labels = table[label]
        invalid += pc.sum(pc.invert(pc.is_in(labels, pa.array([0, 1], labels.type)))).as_py()
    if invalid:
        raise TrainingDataError(f"{rows.source}: {invalid} of {rows.count} rows have a {label} that is neither 0 nor 1")


def _booster_parameters(job: Job) -> dict[str, object]:
    return {name: value for name, value in job.parameters.items() if name != "rounds"} | {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "device": "cuda" if job.gpu else "cpu",
        "nthread": job.threads,
        "seed": job.seed,
        "seed_per_iteration": True,
    }


def _log_loss(booster: xgb.Booster, data: xgb.DMatrix) -> float:
    return float(booster.eval(data, "train").rpartition(":")[2])


class _Progress:
    """Logs progress, at most every two seconds."""

    def __init__(self, rounds: int, first_round: int, rows: int):
        self.rounds, self.first_round, self.rows = rounds, first_round, rows
        self.start = self.last_report = time.monotonic()

    def is_due(self, completed_rounds: int) -> bool:
        return completed_rounds == self.rounds or time.monotonic() - self.last_report >= _REPORT_INTERVAL_S

    def report(self, completed_rounds: int, loss: float) -> None:
        self.last_report = time.monotonic()
        speed = (completed_rounds - self.first_round) / (self.last_report - self.start)
        rows_per_second, seconds_left = f"{speed * self.rows:,.0f}", (self.rounds - completed_rounds) / speed
        log.info(
            "round %s/%s  log loss %.4f  %s rows/s  %.0f s left",
            completed_rounds,
            self.rounds,
            loss,
            rows_per_second,
            seconds_left,
        )
