"""Attempts at training a network as processes and pods make them: alone, several together, ended by signals."""

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
from evergreen.training.backends import process
from evergreen.training.outcome import Outcome
from support.training_data import net_job, table, write

pytestmark = pytest.mark.integration


def attempt(folder: Path, train: Path, processes: int) -> subprocess.Popen[str]:
    job = net_job(train, processes, epochs=30).model_copy(update={"checkpoint_seconds": 0.1})
    job.write(UPath(folder / "job.json"))
    command = [sys.executable, "-m", "evergreen.training", str(folder / "job.json")]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=process.trainer_environment(),
    )


def end(running: subprocess.Popen[str]) -> tuple[Outcome, str]:
    said, _ = running.communicate(timeout=120)
    return Outcome.from_exit_code(running.returncode), said


def result(folder: Path) -> TrainingResult:
    return TrainingResult.read(UPath(folder / "output" / "result.json"))


def until_there_is_a_checkpoint(folder: Path, running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("step-*.json")):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(train: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, str]]:
    """Where a job of so many processes lies that nothing disturbed, and what it said; each is done once."""

    @cache
    def done(processes: int) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp("whole")
        outcome, said = end(attempt(folder, train, processes))
        assert outcome is Outcome.SUCCEEDED, said
        return folder, said

    return done


# Of several, only the one that started the others would die at once of SIGKILL; a pod dies as a whole.
@pytest.mark.parametrize(("processes", "how"), [(1, signal.SIGTERM), (1, signal.SIGKILL), (2, signal.SIGTERM)])
def test_one_that_is_ended_is_followed_by_one_that_ends_as_if_nothing_had_been(
    train: Path,
    whole: Callable[[int], tuple[Path, str]],
    tmp_path: Path,
    processes: int,
    how: signal.Signals,
) -> None:
    first = attempt(tmp_path, train, processes)
    until_there_is_a_checkpoint(tmp_path, first)
    first.send_signal(how)
    outcome, said = end(first)
    assert outcome is (Outcome.PREEMPTED if how is signal.SIGTERM else Outcome.UNKNOWN), said
    assert not (tmp_path / "output").exists()

    outcome, said = end(attempt(tmp_path, train, processes))
    assert outcome is Outcome.SUCCEEDED, said
    assert "going on after step" in said
    assert result(tmp_path) == result(whole(processes)[0])


def test_several_train_one_model_together(whole: Callable[[int], tuple[Path, str]]) -> None:
    (alone, _), (together, _) = whole(1), whole(2)
    assert [file.name for file in (together / "output").rglob("*.onnx")] == ["model.onnx"]
    # The same number of steps on as many rows, drawn otherwise.
    losses = [result(folder).metrics["train_log_loss"] for folder in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_data_that_teaches_nothing_ends_all_of_them_and_it_is_told_why(tmp_path: Path) -> None:
    train = write(table(0), tmp_path / "train.parquet", group_rows=10)
    outcome, said = end(attempt(tmp_path, train, processes=2))
    assert outcome is Outcome.BAD_DATA, said
    assert "has no rows" in said.splitlines()[-1]
