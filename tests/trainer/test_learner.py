"""Steps of several processes are those of one, and the learning rate follows from the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evergreen_models.flight_delay_net import scales
from evergreen_models.flight_delay_net.columns import Columns, Rows
from evergreen_models.flight_delay_net.learner import Learner, schedule
from evergreen_models.flight_delay_net.parameters import Parameters
from evergreen_models.flight_delay_net.ranks import Ranks
from evergreen_models.flight_delay_net.stream import Order, Stream
from support.training_data import CATEGORIES, INPUTS, net_job, table

pytestmark = pytest.mark.integration


COLUMNS = Columns.of(table(1).schema, INPUTS, "label", CATEGORIES)


@pytest.fixture(scope="module")
def known(train: Path) -> scales.Scales:
    return scales.learn(str(train), COLUMNS, rare=10)


@pytest.fixture
def learner(train: Path, known: scales.Scales) -> Learner:
    # Nothing is hidden or left out, so that a part of a batch gives its part of the gradient.
    parameters = Parameters.model_validate(net_job(train, dropout=0.0, masked=1e-9).parameters)
    return Learner(COLUMNS, known, parameters, seed=1, gpu=False, ranks=Ranks())


def test_the_mean_of_the_processes_gradients_is_that_of_all_rows(
    train: Path, known: scales.Scales, learner: Learner
) -> None:
    """As DistributedDataParallel averages them, also where one process has a row more than another."""
    order = Order((450,) * 8 + (400,), batch_rows=70, window_rows=1_000, seed=1, processes=3)
    sizes = [[np.diff(order.batch(step, n)).item() for n in range(3)] for step in range(order.steps)]
    step = next(step for step, rows in enumerate(sizes) if len(set(rows)) > 1)
    parts = [
        next(iter(Stream(str(train), COLUMNS, known, replace(order, process=n)).batches(step, step + 1)))
        for n in range(3)
    ]
    whole = Rows.together(parts)

    def gradients(batch: Rows, count: int) -> list[torch.Tensor]:
        learner.network.zero_grad()
        loss = learner.summed_loss(learner.network, batch) * (count / order.rows_of(step))
        loss.backward()
        return [weight.grad.clone() for weight in learner.network.parameters()]

    each = [gradients(part, 3) for part in parts]
    for one, of_all in zip(zip(*each, strict=True), gradients(whole, 1), strict=True):
        torch.testing.assert_close(torch.stack(one).mean(0), of_all, rtol=1e-4, atol=1e-7)


def test_it_learns(train: Path, known: scales.Scales, learner: Learner) -> None:
    order = Order((450,) * 8 + (400,), 256, 1_000, seed=1)
    stream = Stream(str(train), COLUMNS, known, order)
    before = learner.loss(stream.batches(0, order.steps))
    for step, batch in enumerate(stream.batches(0, 3 * order.steps)):
        learner.step(step, 3 * order.steps, batch, len(batch))
    after = learner.loss(stream.batches(0, order.steps))
    share = float(np.mean(table(4_000)["label"]))
    guessing = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert before == pytest.approx(guessing, abs=0.2)
    assert after < 0.9 * guessing


def test_the_learning_rate_rises_and_falls_with_the_steps() -> None:
    rates = [schedule(step, 1_000) for step in range(1_000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert max(rates) == rates[49] == 1
    assert rates[-1] < 1e-4
    assert schedule(0, 1) == 1
