"""Trains the network in batches, on a CPU or GPUs, alone or with others. Knows nothing of Airflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from evergreen import storage
from evergreen.training.checkpoints import Checkpoint, Checkpoints, StateProvider
from evergreen.training.job import Job
from evergreen.training.outcome import TrainingPreempted
from evergreen_models.flight_delay_net import export, scales
from evergreen_models.flight_delay_net.columns import InputColumns
from evergreen_models.flight_delay_net.learner import CHECKPOINT_FILES, Learner
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.ranks import Ranks, join_ranks
from evergreen_models.flight_delay_net.stream import BatchPlan, BatchStream


def fit(job: Job, output: Path, checkpoints: Checkpoints) -> Mapping[str, float]:
    """Train on all rows of the job and write `model.onnx`.

    On CPUs an attempt that goes on from a checkpoint ends with the bytes that it would have ended with undisturbed.
    """
    parameters = NetworkParameters.model_validate(job.parameters)
    if not job.gpu:
        torch.use_deterministic_algorithms(True)
    with join_ranks(gpu=job.gpu > 0) as ranks:
        # One of them decodes what comes next: steps this small wait longer for a thread that shares its core than they
        # gain from it.
        torch.set_num_threads(max(1, job.threads // ranks.world_size - 1))
        with storage.storage_path(job.training_data).open("rb") as file:
            about = pq.ParquetFile(file).metadata
        columns = InputColumns.from_schema(
            about.schema.to_arrow_schema(), job.features, job.label, parameters.embedding_sizes
        )
        done = _resume_checkpoint(checkpoints, ranks)
        known = Learner.load_statistics(done) if done else _share_statistics(job, columns, parameters, ranks)
        learner = Learner(columns, known, parameters, seed=job.seed, gpu=job.gpu > 0, ranks=ranks)
        if done:
            learner.restore(done)
        order = BatchPlan(
            tuple(about.row_group(n).num_rows for n in range(about.num_row_groups)),
            parameters.batch_rows,
            parameters.shuffle_rows,
            job.seed,
            ranks.rank,
            ranks.world_size,
        )
        stream = BatchStream(job.training_data, columns, known, order)
        _train(learner, stream, parameters.epochs, done.step if done else 0, checkpoints, ranks)
        loss = learner.mean_loss(stream.batches(0, order.steps_per_epoch))
        if ranks.rank == 0:
            network = learner.network.cpu().eval()
            (output / "model.onnx").write_bytes(export.export_onnx(job.model, network, columns, known))
        return {"train_log_loss": loss, "train_rows": float(order.rows)}


def _train(
    learner: Learner,
    stream: BatchStream,
    epochs: int,
    first_step: int,
    checkpoints: Checkpoints,
    ranks: Ranks,
) -> None:
    order, steps = stream.plan, epochs * stream.plan.steps_per_epoch
    progress = _Progress(epochs, first_step, order, quiet=ranks.rank > 0)
    for step, batch in enumerate(stream.batches(first_step, steps), first_step):
        loss = learner.step(step, steps, batch, order.rows_in_step(step))
        progress.report(step + 1, loss)
        _checkpoint_step(checkpoints, ranks, step + 1, learner.checkpoint_state)


def _checkpoint_step(checkpoints: Checkpoints, ranks: Ranks, step: int, state: StateProvider) -> None:
    """As `checkpoints.after`; but when one is asked to leave, which each hears at another moment, all leave.

    One that left a step earlier than the others would leave them waiting for its gradients.
    """
    try:
        checkpoints.record_step(step, state)
    except TrainingPreempted:
        ranks.any_rank(True)
        raise
    if ranks.any_rank(False):
        checkpoints.request_stop()
        checkpoints.record_step(step, state)


def _resume_checkpoint(checkpoints: Checkpoints, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint that all go on from: the first tells the others, who might find another one by now."""
    found = checkpoints.load_latest() if ranks.rank == 0 else None
    step = ranks.broadcast_first(str(found.step).encode() if found else None)
    if step is None:
        return None
    files = {name: ranks.broadcast_first(found.files[name] if found else None) or b"" for name in CHECKPOINT_FILES}
    checkpoints.last_step = checkpoints.resumed_step = int(step)
    return Checkpoint(int(step), files)


def _share_statistics(
    job: Job, columns: InputColumns, parameters: NetworkParameters, ranks: Ranks
) -> scales.ColumnStatistics:
    """One reads the data for it, and tells the others."""
    found = (
        scales.compute_column_statistics(job.training_data, columns, parameters.min_category_rows).to_json()
        if ranks.rank == 0
        else None
    )
    told = ranks.broadcast_first(found)
    assert told is not None
    return scales.ColumnStatistics.from_json(told)


class _Progress:
    """A line for who watches, at most every two seconds."""

    def __init__(self, epochs: int, first_step: int, plan: BatchPlan, *, quiet: bool):
        self._epochs, self._first_step, self._plan, self._quiet = epochs, first_step, plan, quiet
        self._start = self._last_report = time.monotonic()

    def report(self, step: int, loss: Tensor) -> None:
        now, order = time.monotonic(), self._plan
        last = self._epochs * order.steps_per_epoch
        if self._quiet or (now - self._last_report < 2 and step < last):
            return
        self._last_report = now
        speed = (step - self._first_step) / (now - self._start)
        print(
            f"epoch {(step - 1) // order.steps_per_epoch + 1}/{self._epochs}  log loss {float(loss):.4f}  "
            f"{speed * order.rows / order.steps_per_epoch:,.0f} rows/s  {(last - step) / speed:.0f} s left",
            flush=True,
        )
