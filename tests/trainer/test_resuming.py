"""A network trained by several attempts equals, to the last bit, one trained by one attempt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from upath import UPath

from evergreen.training import Checkpoints
from evergreen.training.checkpoints import StateProvider
from evergreen.training.outcome import TrainingPreempted
from evergreen_models.flight_delay_net.train import fit
from support.interruptions import StopAfter
from support.training_data import net_job

pytestmark = pytest.mark.integration

STEPS = 3 * 16  # epochs × batches of 250 rows


@pytest.fixture(scope="module")
def uninterrupted(train: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, float]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    metrics = fit(net_job(train), folder, StopAfter(folder))
    return (folder / "model.onnx").read_bytes(), dict(metrics)


# The first step; within an epoch; where a window, and where an epoch, ends; the last step.
@pytest.mark.parametrize("steps", [[1], [5], [16], [17], [STEPS - 1], [STEPS], [2, 3, 30]])
def test_interrupted_training_gives_the_same_model(
    train: Path, uninterrupted: tuple[bytes, dict[str, float]], tmp_path: Path, steps: list[int]
) -> None:
    for step in steps:
        with pytest.raises(TrainingPreempted):
            fit(net_job(train), tmp_path, StopAfter(tmp_path, step))
        assert not (tmp_path / "model.onnx").exists()
    metrics = fit(net_job(train), tmp_path, StopAfter(tmp_path))
    assert ((tmp_path / "model.onnx").read_bytes(), metrics) == uninterrupted
    assert metrics["train_rows"] == 4_000


def test_another_seed_gives_another_model(
    train: Path, uninterrupted: tuple[bytes, dict[str, float]], tmp_path: Path
) -> None:
    job = net_job(train).model_copy(update={"seed": 1})
    fit(job, tmp_path, StopAfter(tmp_path))
    assert (tmp_path / "model.onnx").read_bytes() != uninterrupted[0]


def test_checkpoint_holds_copies(train: Path, tmp_path: Path) -> None:
    states: list[tuple[dict[str, torch.Tensor], Callable[[], bytes]]] = []

    class Recording(Checkpoints):
        def record_step(self, step: int, state_provider: StateProvider) -> None:
            if step == 3:
                serialize = state_provider()["tensors.safetensors"]
                assert callable(serialize)
                states.append((load(serialize()), serialize))

    fit(net_job(train), tmp_path, Recording(UPath(tmp_path), "f" * 64, 3600))
    [(at_the_step, serialize)] = states
    after_training = load(serialize())
    assert all(torch.equal(at_the_step[name], after_training[name]) for name in at_the_step)
