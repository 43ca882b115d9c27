"""Training in a process on this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from contextlib import suppress
from threading import Timer

from evergreen import storage
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.training import candidates
from evergreen.training.attempt import ResourceAllocation, attempt_environment, trainer_environment
from evergreen.training.outcome import AttemptResult, Outcome

_STORE_VARIABLE_PREFIXES = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")
_GRACE_PERIOD_S = 60

log = logging.getLogger(__name__)


def train_in_process(
    model: ModelSpec,
    training_set: datasets.Manifest,
    dataset: datasets.Dataset,
    features: tuple[str, ...],
    dag_run: str = "",
) -> datasets.Manifest:
    """Return the candidate of `train_candidate`; its attempts are processes, see `run_attempts`."""
    return candidates.train_candidate(
        model, training_set, dataset, features, lambda job_file: run_attempts(model, job_file, dag_run)
    )


def run_attempts(model: ModelSpec, job_file: UPath, dag_run: str) -> None:
    """Attempt the job until it succeeds. After a preemption the next attempt starts at once.

    Raises:
        RetryableTrainingError: the process failed for a reason that may pass.
        TrainingError: it failed for another reason.
    """
    allocation = ResourceAllocation.from_resources(model.resources)
    environment = trainer_environment() | attempt_environment(dag_run, model.owner, allocation)
    if not storage.is_local(job_file):
        environment |= {name: value for name, value in os.environ.items() if name.startswith(_STORE_VARIABLE_PREFIXES)}
    command = [str(settings().trainer), "-m", "evergreen.training", str(job_file)]
    preemptions = 0
    while True:
        result = _run_attempt(command, environment, model.resources.timeout_minutes)
        if result.outcome is Outcome.SUCCEEDED:
            return
        result.raise_unless_resumable(model.name, preemptions, model.resources.max_preemptions)
        preemptions += 1
        log.info("attempt %s was preempted: %s; the next one starts now", preemptions, result.message)


def _run_attempt(command: list[str], environment: dict[str, str], timeout_minutes: int) -> AttemptResult:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout
        deadline = time.monotonic() + 60 * timeout_minutes
        timer = Timer(60 * timeout_minutes, process.kill)
        timer.start()
        last_line = ""
        try:
            for line in process.stdout:
                log.info("%s", line.rstrip("\n"))
                last_line = line.strip() or last_line
            code = process.wait()
        except BaseException:  # a task that is stopped must not leave its training running
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_PERIOD_S)
            process.kill()
            raise
        finally:
            timer.cancel()
    if code == -signal.SIGKILL and time.monotonic() >= deadline:
        message = f"it took longer than resources.timeout_minutes, {timeout_minutes}; the next try goes on from there"
        return AttemptResult(Outcome.UNKNOWN, message)
    outcome = Outcome.from_exit_code(code)
    if code < 0:
        return AttemptResult(outcome, f"it was ended by signal {-code}")
    return AttemptResult(outcome, last_line.removeprefix(f"{outcome.label}: "))  # as evergreen.training logs it
