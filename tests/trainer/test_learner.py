"""Steps of several processes are those of one, and the learning rate follows from the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evergreen_models.flight_delay_net import scales
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch
from evergreen_models.flight_delay_net.learner import Learner, learning_rate_share
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.ranks import Ranks
from evergreen_models.flight_delay_net.stream import BatchPlan, BatchStream
from support.training_data import CATEGORIES, INPUTS, net_job, table

pytestmark = pytest.mark.integration


COLUMNS = InputColumns.from_schema(table(1).schema, INPUTS, "label", CATEGORIES)


@pytest.fixture(scope="module")
def known(train: Path) -> scales.ColumnStatistics:
    return scales.compute_column_statistics(str(train), COLUMNS, min_category_rows=10)


@pytest.fixture
def learner(train: Path, known: scales.ColumnStatistics) -> Learner:
    # Nothing is hidden or left out, so that a part of a batch gives its part of the gradient.
    parameters = NetworkParameters.model_validate(net_job(train, dropout=0.0, masked=1e-9).parameters)
    return Learner(COLUMNS, known, parameters, seed=1, gpu=False, ranks=Ranks())


def test_the_mean_of_the_processes_gradients_is_that_of_all_rows(
    train: Path, known: scales.ColumnStatistics, learner: Learner
) -> None:
    """As DistributedDataParallel averages them, also where one process has a row more than another."""
    order = BatchPlan((450,) * 8 + (400,), batch_rows=70, shuffle_rows=1_000, seed=1, world_size=3)
    sizes = [[np.diff(order.batch_range(step, n)).item() for n in range(3)] for step in range(order.steps_per_epoch)]
    step = next(step for step, rows in enumerate(sizes) if len(set(rows)) > 1)
    parts = [
        next(iter(BatchStream(str(train), COLUMNS, known, replace(order, process=n)).batches(step, step + 1)))
        for n in range(3)
    ]
    whole = RowBatch.concatenate(parts)

    def gradients(batch: RowBatch, count: int) -> list[torch.Tensor]:
        learner.network.zero_grad()
        loss = learner.summed_loss(learner.network, batch) * (count / order.rows_in_step(step))
        loss.backward()
        return [weight.grad.clone() for weight in learner.network.parameters()]

    each = [gradients(part, 3) for part in parts]
    for one, of_all in zip(zip(*each, strict=True), gradients(whole, 1), strict=True):
        torch.testing.assert_close(torch.stack(one).mean(0), of_all, rtol=1e-4, atol=1e-7)


def test_it_learns(train: Path, known: scales.ColumnStatistics, learner: Learner) -> None:
    order = BatchPlan((450,) * 8 + (400,), 256, 1_000, seed=1)
    stream = BatchStream(str(train), COLUMNS, known, order)
    before = learner.mean_loss(stream.batches(0, order.steps_per_epoch))
    for step, batch in enumerate(stream.batches(0, 3 * order.steps_per_epoch)):
        learner.step(step, 3 * order.steps_per_epoch, batch, len(batch))
    after = learner.mean_loss(stream.batches(0, order.steps_per_epoch))
    share = float(np.mean(table(4_000)["label"]))
    guessing = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert before == pytest.approx(guessing, abs=0.2)
    assert after < 0.9 * guessing


def test_the_learning_rate_rises_and_falls_with_the_steps() -> None:
    rates = [learning_rate_share(step, 1_000) for step in range(1_000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert max(rates) == rates[49] == 1
    assert rates[-1] < 1e-4
    assert learning_rate_share(0, 1) == 1
