"""Attempts at training a network, as processes and pods make them: alone, with ranks, ended by signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from upath import UPath

from evergreen.training import TrainingResult
from evergreen.training.attempt import trainer_environment
from evergreen.training.outcome import Outcome
from support.training_data import net_job, table, write

pytestmark = pytest.mark.integration


def attempt(folder: Path, train: Path, processes: int) -> subprocess.Popen[str]:
    job = net_job(train, processes, epochs=30).model_copy(update={"checkpoint_seconds": 0.1})
    job.write(UPath(folder / "job.json"))
    command = [sys.executable, "-m", "evergreen.training", str(folder / "job.json")]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=trainer_environment()
    )


def wait(process: subprocess.Popen[str]) -> tuple[Outcome, str]:
    """Return the outcome and the output."""
    output, _ = process.communicate(timeout=120)
    return Outcome.from_exit_code(process.returncode), output


def result(folder: Path) -> TrainingResult:
    return TrainingResult.read(UPath(folder / "output" / "result.json"), UPath(folder))


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("step-*.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(train: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return the folder of an uninterrupted job with so many processes; each is trained once."""

    @cache
    def run(processes: int) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        outcome, output = wait(attempt(folder, train, processes))
        assert outcome is Outcome.SUCCEEDED, output
        return folder

    return run


# With several processes SIGKILL would only end the one that started the others; a pod is killed as a whole.
@pytest.mark.parametrize(("processes", "stop_signal"), [(1, signal.SIGTERM), (1, signal.SIGKILL), (2, signal.SIGTERM)])
def test_next_attempt_resumes_to_the_same_result(
    train: Path, uninterrupted: Callable[[int], Path], tmp_path: Path, processes: int, stop_signal: signal.Signals
) -> None:
    first = attempt(tmp_path, train, processes)
    wait_for_checkpoint(tmp_path, first)
    first.send_signal(stop_signal)
    outcome, output = wait(first)
    assert outcome is (Outcome.PREEMPTED if stop_signal is signal.SIGTERM else Outcome.UNKNOWN), output
    assert not (tmp_path / "output").exists()

    outcome, output = wait(attempt(tmp_path, train, processes))
    assert outcome is Outcome.SUCCEEDED, output
    assert "resuming after step" in output
    assert result(tmp_path) == result(uninterrupted(processes))


def test_ranks_train_one_model_together(uninterrupted: Callable[[int], Path]) -> None:
    alone, together = uninterrupted(1), uninterrupted(2)
    assert [file.name for file in (together / "output").rglob("*.onnx")] == ["model.onnx"]
    # The same number of steps on as many rows, in another order.
    losses = [result(folder).metrics["train_log_loss"] for folder in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_empty_data_ends_all_ranks_with_the_reason(tmp_path: Path) -> None:
    train = write(table(0), tmp_path / "train.parquet", group_rows=10)
    outcome, output = wait(attempt(tmp_path, train, processes=2))
    assert outcome is Outcome.BAD_DATA, output
    assert "has no rows" in output.splitlines()[-1]
