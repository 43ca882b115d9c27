"""Trains the network in batches, on a CPU or GPUs, alone or with others. Knows nothing of Airflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from evergreen import storage
from evergreen.training.checkpoints import Checkpoint, Checkpoints, State
from evergreen.training.job import Job
from evergreen.training.outcome import Preempted
from evergreen_models.flight_delay_net import export, scales
from evergreen_models.flight_delay_net.columns import Columns
from evergreen_models.flight_delay_net.learner import FILES, Learner
from evergreen_models.flight_delay_net.parameters import Parameters
from evergreen_models.flight_delay_net.ranks import Ranks, together
from evergreen_models.flight_delay_net.stream import Order, Stream


def fit(job: Job, output: Path, checkpoints: Checkpoints) -> Mapping[str, float]:
    """Train on all rows of the job and write `model.onnx`.

    On CPUs an attempt that goes on from a checkpoint ends with the bytes that it would have ended with undisturbed.
    """
    parameters = Parameters.model_validate(job.parameters)
    if not job.gpu:
        torch.use_deterministic_algorithms(True)
    with together(gpu=job.gpu > 0) as ranks:
        # One of them decodes what comes next: steps this small wait longer for a thread that shares its core than they
        # gain from it.
        torch.set_num_threads(max(1, job.threads // ranks.count - 1))
        with storage.path(job.train).open("rb") as file:
            about = pq.ParquetFile(file).metadata
        columns = Columns.of(about.schema.to_arrow_schema(), job.features, job.label, parameters.embedding)
        done = _newest(checkpoints, ranks)
        known = Learner.scales_of(done) if done else _learn_scales(job, columns, parameters, ranks)
        learner = Learner(columns, known, parameters, seed=job.seed, gpu=job.gpu > 0, ranks=ranks)
        if done:
            learner.restore(done)
        order = Order(
            tuple(about.row_group(n).num_rows for n in range(about.num_row_groups)),
            parameters.batch_rows,
            parameters.window_rows,
            job.seed,
            ranks.rank,
            ranks.count,
        )
        stream = Stream(job.train, columns, known, order)
        _train(learner, stream, parameters.epochs, done.step if done else 0, checkpoints, ranks)
        loss = learner.loss(stream.batches(0, order.steps))
        if ranks.rank == 0:
            network = learner.network.cpu().eval()
            (output / "model.onnx").write_bytes(export.to_onnx(job.model, network, columns, known))
        return {"train_log_loss": loss, "train_rows": float(order.rows)}


def _train(
    learner: Learner, stream: Stream, epochs: int, first: int, checkpoints: Checkpoints, ranks: Ranks
) -> None:
    order, steps = stream.order, epochs * stream.order.steps
    progress = _Progress(epochs, first, order, quiet=ranks.rank > 0)
    for step, batch in enumerate(stream.batches(first, steps), first):
        loss = learner.step(step, steps, batch, order.rows_of(step))
        progress.after(step + 1, loss)
        _after(checkpoints, ranks, step + 1, learner.state)


def _after(checkpoints: Checkpoints, ranks: Ranks, step: int, state: State) -> None:
    """As `checkpoints.after`; but when one is asked to leave, which each hears at another moment, all leave.

    One that left a step earlier than the others would leave them waiting for its gradients.
    """
    try:
        checkpoints.after(step, state)
    except Preempted:
        ranks.any(True)
        raise
    if ranks.any(False):
        checkpoints.stop()
        checkpoints.after(step, state)


def _newest(checkpoints: Checkpoints, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint that all go on from: the first tells the others, who might find another one by now."""
    found = checkpoints.newest() if ranks.rank == 0 else None
    step = ranks.of_first(str(found.step).encode() if found else None)
    if step is None:
        return None
    files = {name: ranks.of_first(found.files[name] if found else None) or b"" for name in FILES}
    checkpoints.step = checkpoints.resumed_at = int(step)
    return Checkpoint(int(step), files)


def _learn_scales(job: Job, columns: Columns, parameters: Parameters, ranks: Ranks) -> scales.Scales:
    """One reads the data for it, and tells the others."""
    found = scales.learn(job.train, columns, parameters.rare).to_json() if ranks.rank == 0 else None
    told = ranks.of_first(found)
    assert told is not None
    return scales.Scales.from_json(told)


class _Progress:
    """A line for who watches, at most every two seconds."""

    def __init__(self, epochs: int, first: int, order: Order, *, quiet: bool):
        self._epochs, self._first, self._order, self._quiet = epochs, first, order, quiet
        self._start = self._said = time.monotonic()

    def after(self, step: int, loss: Tensor) -> None:
        now, order = time.monotonic(), self._order
        last = self._epochs * order.steps
        if self._quiet or (now - self._said < 2 and step < last):
            return
        self._said = now
        speed = (step - self._first) / (now - self._start)
        print(
            f"epoch {(step - 1) // order.steps + 1}/{self._epochs}  log loss {float(loss):.4f}  "
            f"{speed * order.rows / order.steps:,.0f} rows/s  {(last - step) / speed:.0f} s left",
            flush=True,
        )
