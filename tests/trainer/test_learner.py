"""Steps of several processes equal those of one, and the learning rate follows from the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evergreen.training.rows import TrainingRows
from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics, compute_column_statistics
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch
from evergreen_models.flight_delay_net.learner import Learner, learning_rate_share
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.ranks import Ranks
from evergreen_models.flight_delay_net.stream import BatchPlan, BatchStream
from support.training_data import CATEGORIES, INPUTS, net_job, table

pytestmark = pytest.mark.integration


COLUMNS = InputColumns.from_schema(table(1).schema, INPUTS, "label", CATEGORIES)


@pytest.fixture(scope="module")
def statistics(train: Path) -> ColumnStatistics:
    return compute_column_statistics(TrainingRows(train), COLUMNS, min_category_rows=10)


@pytest.fixture
def learner(train: Path, statistics: ColumnStatistics) -> Learner:
    # Without dropout and masking, a part of a batch gives its part of the gradient.
    parameters = NetworkParameters.model_validate(net_job(train, dropout=0.0, mask_rate=1e-9).parameters)
    return Learner(COLUMNS, statistics, parameters, seed=1, gpu=False, ranks=Ranks())


def test_mean_gradient_of_ranks_is_that_of_all_rows(
    train: Path, statistics: ColumnStatistics, learner: Learner
) -> None:
    """DistributedDataParallel averages them, also where one process has a row more than another."""
    plan = BatchPlan((450,) * 8 + (400,), batch_rows=70, shuffle_rows=1_000, seed=1, world_size=3)
    sizes = [[np.diff(plan.batch_range(step, n)).item() for n in range(3)] for step in range(plan.steps_per_epoch)]
    step = next(step for step, rows in enumerate(sizes) if len(set(rows)) > 1)
    parts = [
        next(iter(BatchStream(TrainingRows(train), COLUMNS, statistics, replace(plan, rank=n)).batches(step, step + 1)))
        for n in range(3)
    ]
    batch = RowBatch.concatenate(parts)

    def gradients(rows: RowBatch, count: int) -> list[torch.Tensor]:
        learner.network.zero_grad()
        loss = learner.summed_loss(learner.network, rows) * (count / plan.rows_in_step(step))
        loss.backward()
        return [weight.grad.clone() for weight in learner.network.parameters()]

    rank_gradients = zip(*(gradients(part, 3) for part in parts), strict=True)
    for partial, total in zip(rank_gradients, gradients(batch, 1), strict=True):
        torch.testing.assert_close(torch.stack(partial).mean(0), total, rtol=1e-4, atol=1e-7)


def test_training_reduces_the_loss(train: Path, statistics: ColumnStatistics, learner: Learner) -> None:
    plan = BatchPlan((450,) * 8 + (400,), 256, 1_000, seed=1)
    stream = BatchStream(TrainingRows(train), COLUMNS, statistics, plan)
    before = learner.mean_loss(stream.batches(0, plan.steps_per_epoch))
    for step, batch in enumerate(stream.batches(0, 3 * plan.steps_per_epoch)):
        learner.step(step, 3 * plan.steps_per_epoch, batch, len(batch))
    after = learner.mean_loss(stream.batches(0, plan.steps_per_epoch))
    share = float(np.mean(table(4_000)["label"]))
    prior_loss = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert before == pytest.approx(prior_loss, abs=0.2)
    assert after < 0.9 * prior_loss


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_share(step, 1_000) for step in range(1_000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert max(rates) == rates[49] == 1
    assert rates[-1] < 1e-4
    assert learning_rate_share(0, 1) == 1
