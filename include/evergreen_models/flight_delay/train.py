"""Gradient boosting on the joined features. Runs in the training process or pod; knows nothing of Airflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xgboost as xgb

from evergreen import storage
from evergreen.errors import TrainingDataError
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import Job

_MODEL = "model.ubj"


def fit(job: Job, output: Path, checkpoints: Checkpoints) -> Mapping[str, float]:
    """Train on all rows of the job and write `model.ubj`, XGBoost's own format, which holds no code.

    Missing features stay missing: the trees learn where they go. An attempt that goes on from a checkpoint grows
    the trees, to the last bit, that it would have grown undisturbed.
    """
    table = _read(job)
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=table[job.label].to_numpy(), nthread=job.threads)
    rounds = int(job.parameters["rounds"])
    done = checkpoints.load_latest()
    first = done.step if done else 0
    booster = xgb.Booster(
        _booster_parameters(job), cache=[data], model_file=bytearray(done.files[_MODEL]) if done else None
    )
    progress = _Progress(rounds, first, table.num_rows)
    for turn in range(first, rounds):
        # Rows and columns are drawn by generators that live on from round to round, and no checkpoint holds them.
        # With its configuration loaded, a booster sets them up anew, from the seed and the number of the round.
        booster.load_config(booster.save_config())
        booster.update(data, turn)
        if progress.is_due(turn + 1):
            progress.report(turn + 1, _log_loss(booster, data))
        checkpoints.record_step(turn + 1, lambda: {_MODEL: bytes(booster.save_raw("ubj"))})
    booster.save_model(output / _MODEL)
    return {"train_log_loss": _log_loss(booster, data), "train_rows": float(table.num_rows)}


def _read(job: Job) -> pa.Table:
    """Raises:
    TrainingDataError: there are no rows, or a label is not known.
    """
    with storage.storage_path(job.training_data).open("rb") as file:
        table = pq.read_table(file, columns=[*job.features, job.label])
    if not table.num_rows:
        raise TrainingDataError(
            f"{job.training_data} has no rows: no label of its days was known; train as of a later day"
        )
    unknown = pc.sum(pc.invert(pc.is_in(table[job.label], pa.array([0, 1], table[job.label].type)))).as_py()
    if unknown:
        raise TrainingDataError(
            f"{job.training_data}: {unknown} of {table.num_rows} rows have a {job.label} that is neither 0 nor 1"
        )
    return table


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
    """Of the rows it was trained on."""
    return float(booster.eval(data, "train").rpartition(":")[2])


class _Progress:
    """A line for who watches, at most every two seconds."""

    def __init__(self, rounds: int, first_round: int, rows: int):
        self.rounds, self.first_round, self.rows = rounds, first_round, rows
        self.start = self.last_report = time.monotonic()

    def is_due(self, completed_rounds: int) -> bool:
        return completed_rounds == self.rounds or time.monotonic() - self.last_report >= 2

    def report(self, completed_rounds: int, loss: float) -> None:
        self.last_report = time.monotonic()
        speed = (completed_rounds - self.first_round) / (self.last_report - self.start)
        print(
            f"round {completed_rounds}/{self.rounds}  log loss {loss:.4f}  {speed * self.rows:,.0f} rows/s  "
            f"{(self.rounds - completed_rounds) / speed:.0f} s left",
            flush=True,
        )
