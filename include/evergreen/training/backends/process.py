"""Training as a process of its own on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from threading import Event, Timer

from upath import UPath

from evergreen import storage
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec.model import Model, Resources
from evergreen.training import attempt, candidates
from evergreen.training.outcome import Ended, Outcome

_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH",
)
_OF_STORES = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")
_GRACE_S = 60
_SOURCES = Path(__file__).resolve().parents[3]


def environment() -> dict[str, str]:
    """What a process that trains or loads a model gets of this one's environment; no credential is among it."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # The trainer's Python need not have this package installed, and is to run this code and no other.
    return passed | {
        "PYTHONPATH": os.pathsep.join([str(_SOURCES), *filter(None, [passed.get("PYTHONPATH")])])
    }


def train(
    model: Model,
    training_set: datasets.Manifest,
    source: datasets.Dataset,
    features: tuple[str, ...],
    run: str = "",
) -> datasets.Manifest:
    """Train here on the file `train` of a training set; publish and give the model.

    Raises:
        TryAgain: the process failed for a reason that may pass.
        TrainingError: it failed for another, or what it left is not a model of this job.
    """
    if done := candidates.published(model, training_set, features):
        print(f"the model {done.partition} is published already with fingerprint {done.fingerprint[:12]}")
        return done
    attempts(model, candidates.prepare(model, training_set, source, features), run)
    return candidates.accept(model, training_set, features)


def attempts(model: Model, job_file: UPath, run: str) -> None:
    """Attempt the job until it succeeds; one that was asked to leave is followed by another at once.

    Raises:
        TryAgain, TrainingError: as `train`.
    """
    surroundings = environment() | attempt.environment(run, model.owner, _allotted(model.resources))
    if not storage.is_local(job_file):
        surroundings |= {name: value for name, value in os.environ.items() if name.startswith(_OF_STORES)}
    command = [str(settings().trainer), "-m", "evergreen.training", str(job_file)]
    preemptions = 0
    while True:
        ended = _attempt(command, surroundings, model.resources.minutes)
        if ended.outcome is Outcome.SUCCEEDED:
            return
        ended.again_at_once(model.name, preemptions, model.resources.preemptions)
        preemptions += 1
        print(f"attempt {preemptions} was preempted: {ended.sentence}; the next one goes on", flush=True)


def _allotted(resources: Resources) -> attempt.Allotted:
    return attempt.Allotted(
        cpu=resources.cpu, memory_gib=resources.memory_gib, gpu=resources.gpu, gpu_type=resources.gpu_type
    )


def _attempt(command: list[str], surroundings: dict[str, str], minutes: int) -> Ended:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=surroundings
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
            _end(process)  # a task that is ended must not leave its training behind
            raise
        finally:
            late.cancel()
    if too_long.is_set():
        return Ended(
            Outcome.UNKNOWN,
            f"it took longer than resources.minutes, {minutes}; the next try goes on from there",
        )
    outcome = Outcome.of(code)
    if code < 0:
        return Ended(outcome, f"it was ended by signal {-code}")
    return Ended(
        outcome, last.removeprefix(f"{outcome.words}: ")
    )  # as `python -m evergreen.training` tells it


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
