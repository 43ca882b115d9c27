"""A network that is trained in several sittings is, to the last bit, the one that is trained in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from upath import UPath

from evergreen.training import Checkpoints
from evergreen.training.outcome import TrainingPreempted
from evergreen_models.flight_delay_net.train import fit
from support.interruptions import LeavesAfter
from support.training_data import net_job

pytestmark = pytest.mark.integration

STEPS = 3 * 16  # epochs × batches of 250 rows


@pytest.fixture(scope="module")
def undisturbed(train: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    metrics = fit(net_job(train), folder, LeavesAfter(folder))
    return (folder / "model.onnx").read_bytes(), dict(metrics)


# The first step; within an epoch; where a window, and where an epoch, ends; the last step.
@pytest.mark.parametrize("steps", [[1], [5], [16], [17], [STEPS - 1], [STEPS], [2, 3, 30]])
def test_whatever_interrupts_it_the_model_and_its_loss_are_the_same(
    train: Path, undisturbed: tuple[bytes, dict[str, float]], tmp_path: Path, steps: list[int]
) -> None:
    for step in steps:
        with pytest.raises(TrainingPreempted):
            fit(net_job(train), tmp_path, LeavesAfter(tmp_path, step))
        assert not (tmp_path / "model.onnx").exists()
    metrics = fit(net_job(train), tmp_path, LeavesAfter(tmp_path))
    assert ((tmp_path / "model.onnx").read_bytes(), metrics) == undisturbed
    assert metrics["train_rows"] == 4_000


def test_it_is_the_seed_that_makes_the_model(
    train: Path, undisturbed: tuple[bytes, dict[str, float]], tmp_path: Path
) -> None:
    other = net_job(train).model_copy(update={"seed": 1})
    fit(other, tmp_path, LeavesAfter(tmp_path))
    assert (tmp_path / "model.onnx").read_bytes() != undisturbed[0]


def test_a_checkpoint_holds_copies_that_later_steps_do_not_change(train: Path, tmp_path: Path) -> None:
    kept: list[tuple[dict[str, torch.Tensor], object]] = []

    class Keeps(Checkpoints):
        def after(self, step, state) -> None:
            if step == 3:
                parts = state()
                kept.append((load(parts["tensors.safetensors"]()), parts["tensors.safetensors"]))

    fit(net_job(train), tmp_path, Keeps(UPath(tmp_path), "f" * 64, 3600))
    [(then, serialise)] = kept
    now = load(serialise())
    assert all(torch.equal(then[name], now[name]) for name in then)
