"""Gradient boosting on the joined features. Runs in the training process or pod; knows nothing of Airflow."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xgboost as xgb

from evergreen.training import Job


def fit(job: Job, output: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Train on all rows of the job and write `model.ubj`, XGBoost's own format, which holds no code.

    Missing features stay missing: the trees learn where they go.
    """
    table = pq.read_table(job.train, columns=[*job.features, job.label])
    data = xgb.QuantileDMatrix(
        table.select(list(job.features)).to_pandas(),
        label=table[job.label].to_numpy(),
        nthread=job.threads,
    )
    rounds = int(job.parameters["rounds"])
    settings = {name: value for name, value in job.parameters.items() if name != "rounds"}
    settings |= {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "device": "cuda" if job.gpu else "cpu",
        "nthread": job.threads,
        "seed": job.seed,
    }
    losses: dict[str, dict[str, list[float]]] = {}
    booster = xgb.train(
        settings,
        data,
        rounds,
        evals=[(data, "train")],
        evals_result=losses,
        callbacks=[_Progress(rounds, table.num_rows)],
        verbose_eval=False,
    )
    booster.save_model(output / "model.ubj")
    metrics = {"train_log_loss": losses["train"]["logloss"][-1], "train_rows": float(table.num_rows)}
    return metrics, {"python": platform.python_version(), "xgboost": xgb.__version__}


class _Progress(xgb.callback.TrainingCallback):
    def __init__(self, rounds: int, rows: int):
        self.rounds, self.rows, self.start, self.said = rounds, rows, time.monotonic(), 0.0

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:
        now = time.monotonic()
        done = epoch + 1
        if now - self.said >= 2 or done == self.rounds:
            self.said = now
            speed = done / (now - self.start)
            loss = evals_log["train"]["logloss"][-1]
            print(
                f"round {done}/{self.rounds}  log loss {loss:.4f}  {speed * self.rows:,.0f} rows/s  "
                f"{(self.rounds - done) / speed:.0f} s left",
                flush=True,
            )
        return False
