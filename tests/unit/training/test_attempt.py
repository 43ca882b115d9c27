"""One attempt in a process of its own: its exit code, the model it leaves, and its record."""

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
from evergreen.training.attempt import ResourceAllocation, attempt_environment, read_attempts, trainer_environment
from evergreen.training.outcome import Outcome

pytestmark = pytest.mark.unit


def start(job: Job, folder: Path) -> subprocess.Popen[str]:
    job.write(storage.storage_path(str(folder / "job.json")))
    about = attempt_environment("coin.retrain scheduled", "tests", ResourceAllocation(cpu=2, memory_gib=1, spot=True))
    return subprocess.Popen(
        [sys.executable, "-m", "evergreen.training", str(folder / "job.json")],
        env=trainer_environment() | about,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout
    assert any(text in line for line in process.stdout), f"it never logged {text!r}"


def test_attempt_leaves_model_and_record(make_job: Make, tmp_path: Path) -> None:
    attempt = start(make_job(), tmp_path)
    output, _ = attempt.communicate(timeout=60)
    assert attempt.returncode == 0, output
    assert runner.is_training_complete("f" * 64, storage.storage_path(str(tmp_path)))
    [record] = read_attempts(storage.storage_path(str(tmp_path)))
    assert (record.outcome, record.step, record.resumed_step) == (Outcome.SUCCEEDED, 5, 0)
    assert (record.dag_run, record.team, record.allocation.spot) == ("coin.retrain scheduled", "tests", True)
    assert record.ended_at
    assert 0 < record.duration_seconds < 60


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("(output / 'vocabulary').mkdir()", "output 'vocabulary': is a folder"),
        ("(output / 'passwords').symlink_to('/etc/passwd')", "output 'passwords': is a link"),
    ],
)
def test_refused_output_ends_the_attempt_as_bad_code(
    make_job: Make, tmp_path: Path, problem: str, message: str
) -> None:
    attempt = start(make_job(parameters={"steps": 1, "problem": problem}), tmp_path)
    output, _ = attempt.communicate(timeout=60)
    assert Outcome.from_exit_code(attempt.returncode) is Outcome.BAD_CODE
    assert f"bad code: fit's output is refused: {message}" in output
    [record] = read_attempts(storage.storage_path(str(tmp_path)))
    assert record.outcome is Outcome.BAD_CODE
    assert message in record.message


def test_preempted_attempt_resumes_to_the_same_bytes(make_job: Make, tmp_path: Path) -> None:
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    job = make_job(parameters={"steps": 12, "pause": 0.05})
    assert start(job, uninterrupted).wait(60) == 0

    first = start(job, resumed)
    wait_for_line(first, "step 4")
    first.send_signal(signal.SIGTERM)
    assert Outcome.from_exit_code(first.wait(60)) is Outcome.PREEMPTED
    second = start(job, resumed)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0

    assert "step 3\n" not in output
    record, next_record = read_attempts(storage.storage_path(str(resumed)))
    assert record.outcome is Outcome.PREEMPTED
    assert next_record.resumed_step == record.step >= 4, "nothing is lost"
    results = [(folder / "output" / "result.json").read_text() for folder in (uninterrupted, resumed)]
    assert results[0] == results[1]


def test_killed_attempt_has_a_record_without_end(make_job: Make, tmp_path: Path) -> None:
    attempt = start(make_job(parameters={"steps": 100, "pause": 0.1}), tmp_path)
    wait_for_line(attempt, "step 2")
    attempt.kill()
    attempt.wait()
    [record] = read_attempts(storage.storage_path(str(tmp_path)))
    assert record.outcome is None
    assert record.ended_at is None
    assert not runner.is_training_complete("f" * 64, storage.storage_path(str(tmp_path)))


def test_preemption_before_the_first_step_ends_at_once(make_job: Make, tmp_path: Path) -> None:
    problem = "print('reading', flush=True); time.sleep(60)"
    attempt = start(make_job(parameters={"steps": 1, "problem": problem}), tmp_path)
    wait_for_line(attempt, "reading")
    start_time = time.monotonic()
    attempt.send_signal(signal.SIGTERM)
    assert Outcome.from_exit_code(attempt.wait(60)) is Outcome.PREEMPTED
    assert time.monotonic() - start_time < 20


@pytest.mark.parametrize(
    ("problem", "outcome", "message"),
    [
        ("raise TypeError('no such layer')", Outcome.BAD_CODE, "TypeError: no such layer"),
        ("raise MemoryError", Outcome.OUT_OF_MEMORY, "raise resources.memory_gib"),
        ("import pyarrow; raise pyarrow.ArrowInvalid('torn')", Outcome.BAD_DATA, "training data cannot be read"),
        ("raise ConnectionError('gone')", Outcome.UNKNOWN, "ConnectionError: gone"),
        ("import os; os.kill(os.getpid(), 9)", Outcome.UNKNOWN, ""),
    ],
)
def test_exit_code_is_the_outcome(make_job: Make, tmp_path: Path, problem: str, outcome: Outcome, message: str) -> None:
    attempt = start(make_job(parameters={"steps": 1, "problem": problem}), tmp_path)
    output, _ = attempt.communicate(timeout=60)
    assert Outcome.from_exit_code(attempt.returncode) is outcome
    assert message in output


def test_different_code_is_refused_before_data_is_read(make_job: Make, tmp_path: Path) -> None:
    attempt = start(make_job(modules={}), tmp_path)
    output, _ = attempt.communicate(timeout=60)
    assert Outcome.from_exit_code(attempt.returncode) is Outcome.BAD_CODE
    assert "differs from what the job was planned with: " in output
    assert "evergreen_models.hashing.train" in output


@pytest.mark.parametrize("text", [None, "{"])
def test_missing_or_invalid_job_is_bad_config(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "job.json").write_text(text)
    command = [sys.executable, "-m", "evergreen.training", str(tmp_path / "job.json")]
    process = subprocess.run(
        command, env=trainer_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert Outcome.from_exit_code(process.returncode) is Outcome.BAD_CONFIG
    assert "no training job can be read" in process.stdout


def test_threads_wait_as_long_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert trainer_environment()["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinity")
    assert trainer_environment()["GOMP_SPINCOUNT"] == "infinity"


def test_attempt_imports_only_what_it_needs() -> None:
    code = "import sys, evergreen.training.__main__; print(*sorted(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], env=trainer_environment(), capture_output=True, text=True, timeout=60, check=True
    )
    modules = {name.split(".")[0] for name in process.stdout.split()}
    assert not modules & {
        "airflow",
        "duckdb",
        "feast",
        "great_expectations",
        "mlflow",
        "pandas",
        "pyspark",
        "sqlalchemy",
    }
    packages = {name.split(".")[1] for name in process.stdout.split() if name.startswith("evergreen.")}
    assert packages == {"errors", "lake", "periods", "settings", "spec", "storage", "training"}
