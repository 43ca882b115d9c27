"""Trains the network in batches, on a CPU or GPUs, in one process or several. Runs without Airflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evergreen.training.checkpoints import Checkpoint, Checkpoints, StateProvider
from evergreen.training.job import Job
from evergreen.training.outcome import TrainingPreempted
from evergreen.training.rows import TrainingRows, open_training_rows
from evergreen_models.flight_delay_net import export
from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics, compute_column_statistics
from evergreen_models.flight_delay_net.columns import InputColumns
from evergreen_models.flight_delay_net.learner import CHECKPOINT_FILES, Learner
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.ranks import Ranks, join_ranks
from evergreen_models.flight_delay_net.stream import BatchPlan, BatchStream

_REPORT_INTERVAL_S = 2

log = logging.getLogger(__name__)


def fit(job: Job, output: Path, checkpoints: Checkpoints) -> Mapping[str, float]:
    """Train on all rows of the job and write `model.onnx`.

    On CPUs an attempt that resumes from a checkpoint writes the same bytes as one that was never interrupted.
    """
    parameters = NetworkParameters.model_validate(job.parameters)
    if not job.gpu:
        torch.use_deterministic_algorithms(True)
    with open_training_rows(job) as rows, join_ranks(gpu=job.gpu > 0) as ranks:
        # One thread decodes the next batches: in steps this small, waiting for a thread that shares its core costs more
        # than another thread gains.
        torch.set_num_threads(max(1, job.threads // ranks.world_size - 1))
        metadata = rows.metadata
        schema = metadata.schema.to_arrow_schema()
        columns = InputColumns.from_schema(schema, job.features, job.label, parameters.embedding_sizes)
        checkpoint = _resume_checkpoint(checkpoints, ranks)
        statistics = (
            Learner.load_statistics(checkpoint) if checkpoint else _share_statistics(rows, columns, parameters, ranks)
        )
        learner = Learner(columns, statistics, parameters, seed=job.seed, gpu=job.gpu > 0, ranks=ranks)
        if checkpoint:
            learner.restore(checkpoint)
        plan = BatchPlan(
            tuple(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)),
            parameters.batch_rows,
            parameters.shuffle_rows,
            job.seed,
            ranks.rank,
            ranks.world_size,
        )
        stream = BatchStream(rows, columns, statistics, plan)
        _train(learner, stream, parameters.epochs, checkpoint.step if checkpoint else 0, checkpoints, ranks)
        loss = learner.mean_loss(stream.batches(0, plan.steps_per_epoch))
        if ranks.rank == 0:
            network = learner.network.cpu().eval()
            (output / "model.onnx").write_bytes(export.export_onnx(job.model, network, columns, statistics))
        return {"train_log_loss": loss, "train_rows": float(plan.rows)}


def _train(
    learner: Learner, stream: BatchStream, epochs: int, first_step: int, checkpoints: Checkpoints, ranks: Ranks
) -> None:
    plan, steps = stream.plan, epochs * stream.plan.steps_per_epoch
    progress = _Progress(epochs, first_step, plan, quiet=ranks.rank > 0)
    for step, batch in enumerate(stream.batches(first_step, steps), first_step):
        loss = learner.step(step, steps, batch, plan.rows_in_step(step))
        progress.report(step + 1, loss)
        _checkpoint_step(checkpoints, ranks, step + 1, learner.checkpoint_state)


def _checkpoint_step(checkpoints: Checkpoints, ranks: Ranks, step: int, state: StateProvider) -> None:
    """Call `checkpoints.record_step`, and stop all processes at the same step.

    Each gets the request to stop at a different time. One that stopped a step earlier than the others would leave them
    waiting for its gradients.
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
    """Return the checkpoint that rank 0 loads: the others might find another one by now."""
    latest = checkpoints.load_latest() if ranks.rank == 0 else None
    step = ranks.broadcast_first(str(latest.step).encode() if latest else None)
    if step is None:
        return None
    files = {name: ranks.broadcast_first(latest.files[name] if latest else None) or b"" for name in CHECKPOINT_FILES}
    checkpoints.last_step = checkpoints.resumed_step = int(step)
    return Checkpoint(int(step), files)


def _share_statistics(
    rows: TrainingRows, columns: InputColumns, parameters: NetworkParameters, ranks: Ranks
) -> ColumnStatistics:
    """Return the statistics that rank 0 computes, so that only one process reads all data for them."""
    data = None
    if ranks.rank == 0:
        data = compute_column_statistics(rows, columns, parameters.min_category_rows).to_json()
    shared = ranks.broadcast_first(data)
    assert shared is not None
    return ColumnStatistics.from_json(shared)


class _Progress:
    """Logs progress, at most every two seconds."""

    def __init__(self, epochs: int, first_step: int, plan: BatchPlan, *, quiet: bool):
        self._epochs, self._first_step, self._plan, self._quiet = epochs, first_step, plan, quiet
        self._start = self._last_report = time.monotonic()

    def report(self, step: int, loss: Tensor) -> None:
        now, plan = time.monotonic(), self._plan
        steps = self._epochs * plan.steps_per_epoch
        if self._quiet or (now - self._last_report < _REPORT_INTERVAL_S and step < steps):
            return
        self._last_report = now
        speed = (step - self._first_step) / (now - self._start)
        epoch, rows_per_second = (step - 1) // plan.steps_per_epoch + 1, speed * plan.rows / plan.steps_per_epoch
        log.info(
            "epoch %s/%s  log loss %.4f  %s rows/s  %.0f s left",
            epoch,
            self._epochs,
            float(loss),
            f"{rows_per_second:,.0f}",
            (steps - step) / speed,
        )
