"""One attempt, as the process that a backend starts: how it ends, what it leaves, and what its record says."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.training.conftest import Make

from evergreen import storage
from evergreen.training import Job, runner
from evergreen.training.attempt import ResourceAllocation, attempt_environment, read_attempts
from evergreen.training.backends import process
from evergreen.training.outcome import Outcome

pytestmark = pytest.mark.unit


def start(job: Job, folder: Path) -> subprocess.Popen[str]:
    job.write(storage.storage_path(str(folder / "job.json")))
    told = attempt_environment("coin.retrain scheduled", "tests", ResourceAllocation(cpu=2, memory_gib=1, spot=True))
    return subprocess.Popen(
        [sys.executable, "-m", "evergreen.training", str(folder / "job.json")],
        env=process.trainer_environment() | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process_: subprocess.Popen[str], line: str) -> None:
    assert process_.stdout
    assert any(line in said for said in process_.stdout), f"it never said {line!r}"


def test_an_attempt_leaves_its_model_and_a_record(make_job: Make, tmp_path: Path) -> None:
    attempt = start(make_job(), tmp_path)
    said, _ = attempt.communicate(timeout=60)
    assert attempt.returncode == 0, said
    assert runner.is_training_complete("f" * 64, storage.storage_path(str(tmp_path)))
    [record] = read_attempts(storage.storage_path(str(tmp_path)))
    assert (record.outcome, record.step, record.resumed_step) == (Outcome.SUCCEEDED, 5, 0)
    assert (record.dag_run, record.team, record.allocation.spot) == ("coin.retrain scheduled", "tests", True)
    assert record.ended_at
    assert 0 < record.duration_seconds < 60


def test_who_is_asked_to_leave_goes_on_later_to_the_same_bytes(make_job: Make, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = make_job(parameters={"steps": 12, "pause": 0.05})
    assert start(job, whole).wait(60) == 0

    first = start(job, parts)
    until(first, "step 4")
    first.send_signal(signal.SIGTERM)
    assert Outcome.from_exit_code(first.wait(60)) is Outcome.PREEMPTED
    second = start(job, parts)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0

    assert "step 3\n" not in said
    one, two = read_attempts(storage.storage_path(str(parts)))
    assert one.outcome is Outcome.PREEMPTED
    assert two.resumed_step == one.step >= 4, "nothing is lost"
    results = [(folder / "output" / "result.json").read_text() for folder in (whole, parts)]
    assert results[0] == results[1]


def test_who_is_killed_is_known_to_have_lived(make_job: Make, tmp_path: Path) -> None:
    attempt = start(make_job(parameters={"steps": 100, "pause": 0.1}), tmp_path)
    until(attempt, "step 2")
    attempt.kill()
    attempt.wait()
    [record] = read_attempts(storage.storage_path(str(tmp_path)))
    assert record.outcome is None
    assert record.ended_at is None
    assert not runner.is_training_complete("f" * 64, storage.storage_path(str(tmp_path)))


def test_who_is_asked_to_leave_before_the_first_step_leaves_at_once(make_job: Make, tmp_path: Path) -> None:
    problem = "print('reading', flush=True); time.sleep(60)"
    attempt = start(make_job(parameters={"steps": 1, "problem": problem}), tmp_path)
    until(attempt, "reading")
    asked = time.monotonic()
    attempt.send_signal(signal.SIGTERM)
    assert Outcome.from_exit_code(attempt.wait(60)) is Outcome.PREEMPTED
    assert time.monotonic() - asked < 20


@pytest.mark.parametrize(
    ("problem", "outcome", "said"),
    [
        ("raise TypeError('no such layer')", Outcome.BAD_CODE, "TypeError: no such layer"),
        ("raise MemoryError", Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        (
            "import pyarrow; raise pyarrow.ArrowInvalid('torn')",
            Outcome.BAD_DATA,
            "training data cannot be read",
        ),
        ("raise ConnectionError('gone')", Outcome.UNKNOWN, "ConnectionError: gone"),
        ("import os; os.kill(os.getpid(), 9)", Outcome.UNKNOWN, ""),
    ],
)
def test_the_exit_code_tells_what_ended_it(
    make_job: Make, tmp_path: Path, problem: str, outcome: Outcome, said: str
) -> None:
    attempt = start(make_job(parameters={"steps": 1, "problem": problem}), tmp_path)
    lines, _ = attempt.communicate(timeout=60)
    assert Outcome.from_exit_code(attempt.returncode) is outcome
    assert said in lines


def test_other_code_is_refused_before_anything_is_read(make_job: Make, tmp_path: Path) -> None:
    attempt = start(make_job(modules={}), tmp_path)
    lines, _ = attempt.communicate(timeout=60)
    assert Outcome.from_exit_code(attempt.returncode) is Outcome.BAD_CODE
    assert "differs from what the job was planned with: evergreen_models.hashing.train" in lines


@pytest.mark.parametrize("text", [None, "{"])
def test_without_a_job_nothing_begins(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "job.json").write_text(text)
    command = [sys.executable, "-m", "evergreen.training", str(tmp_path / "job.json")]
    done = subprocess.run(
        command, env=process.trainer_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert Outcome.from_exit_code(done.returncode) is Outcome.BAD_CONFIG
    assert "no training job can be read" in done.stdout
