"""Training as a process of its own on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from threading import Event, Timer

from evergreen import storage
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec, Resources
from evergreen.storage import UPath
from evergreen.training import attempt, candidates
from evergreen.training.outcome import AttemptResult, Outcome

_INHERITED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH",
)
_STORE_VARIABLE_PREFIXES = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")
_GRACE_PERIOD_S = 60
_SOURCE_ROOT = Path(__file__).resolve().parents[3]


def trainer_environment() -> dict[str, str]:
    """What a process that trains or loads a model gets of this one's environment; no credential is among it."""
    passed = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
    # The trainer's Python need not have this package installed, and is to run this code and no other.
    return passed | {"PYTHONPATH": os.pathsep.join([str(_SOURCE_ROOT), *filter(None, [passed.get("PYTHONPATH")])])}


def train_in_process(
    model: ModelSpec,
    training_set: datasets.Manifest,
    dataset: datasets.Dataset,
    features: tuple[str, ...],
    dag_run: str = "",
) -> datasets.Manifest:
    """Train here on the file `train` of a training set; publish and give the model.

    Raises:
        TryAgain: the process failed for a reason that may pass.
        TrainingError: it failed for another, or what it left is not a model of this job.
    """
    if done := candidates.find_published_candidate(model, training_set, features):
        print(f"the model {done.partition} is published already with fingerprint {done.fingerprint[:12]}")
        return done
    run_attempts(model, candidates.prepare_job(model, training_set, dataset, features), dag_run)
    return candidates.publish_candidate(model, training_set, features)


def run_attempts(model: ModelSpec, job_file: UPath, dag_run: str) -> None:
    """Attempt the job until it succeeds; one that was asked to leave is followed by another at once.

    Raises:
        TryAgain, TrainingError: as `train`.
    """
    surroundings = trainer_environment() | attempt.attempt_environment(
        dag_run, model.owner, _allocation(model.resources)
    )
    if not storage.is_local(job_file):
        surroundings |= {name: value for name, value in os.environ.items() if name.startswith(_STORE_VARIABLE_PREFIXES)}
    command = [str(settings().trainer), "-m", "evergreen.training", str(job_file)]
    preemptions = 0
    while True:
        ended = _run_attempt(command, surroundings, model.resources.timeout_minutes)
        if ended.outcome is Outcome.SUCCEEDED:
            return
        ended.raise_unless_resumable(model.name, preemptions, model.resources.max_preemptions)
        preemptions += 1
        print(f"attempt {preemptions} was preempted: {ended.message}; the next one goes on", flush=True)


def _allocation(resources: Resources) -> attempt.ResourceAllocation:
    return attempt.ResourceAllocation(
        cpu=resources.cpu, memory_gib=resources.memory_gib, gpu=resources.gpu, gpu_type=resources.gpu_type
    )


def _run_attempt(command: list[str], environment: dict[str, str], minutes: int) -> AttemptResult:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout
        too_long = Event()

        def end_it() -> None:
            too_long.set()
            process.kill()

        late = Timer(60 * minutes, end_it)
        late.start()
        last = ""
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
            code = process.wait()
        except BaseException:
            _terminate(process)  # a task that is ended must not leave its training behind
            raise
        finally:
            late.cancel()
    if too_long.is_set():
        return AttemptResult(
            Outcome.UNKNOWN,
            f"it took longer than resources.timeout_minutes, {minutes}; the next try goes on from there",
        )
    outcome = Outcome.from_exit_code(code)
    if code < 0:
        return AttemptResult(outcome, f"it was ended by signal {-code}")
    return AttemptResult(outcome, last.removeprefix(f"{outcome.label}: "))  # as `python -m evergreen.training` tells it


def _terminate(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_GRACE_PERIOD_S)
    except subprocess.TimeoutExpired:
        process.kill()
