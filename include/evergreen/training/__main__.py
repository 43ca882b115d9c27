"""Makes one attempt at a job: `python -m evergreen.training <URI of job.json>`. Its exit code is its outcome's."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from evergreen import storage
from evergreen.training import attempt, runner, torchrun
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import CHECKPOINTS, Job
from evergreen.training.outcome import Ended, Outcome, Preempted

_TERMINATION_MESSAGE = Path("/dev/termination-log")  # where Kubernetes reads a container's last words


def main(uri: str) -> Outcome:
    """Make an attempt, tell how it ended, and give that."""
    file = storage.path(uri)
    try:
        job = Job.read(file)
    except (OSError, ValidationError) as error:
        return _told(Ended(Outcome.REFUSED, f"{uri}: no training job can be read: {error}"))
    rank = torchrun.rank()
    checkpoints = Checkpoints(
        file.parent / CHECKPOINTS, job.fingerprint, job.checkpoint_seconds, writes=not rank
    )
    if rank is not None:  # one of several; whoever started it keeps the record
        ended = _attempted(job, uri, checkpoints)
        torchrun.report(rank, ended, checkpoints)
        return ended.outcome
    about = attempt.Attempt.from_environment(job.model)
    with attempt.recorded(about, file.parent, lambda: _steps(checkpoints)) as end:
        ended = _attempted(job, uri, checkpoints)
        end(ended.outcome, ended.sentence)
    return _told(ended)


def _attempted(job: Job, uri: str, checkpoints: Checkpoints) -> Ended:
    try:
        signal.signal(signal.SIGTERM, _leave(checkpoints))
        if job.processes > 1 and torchrun.rank() is None:
            return torchrun.run(uri, job.processes, checkpoints)
        runner.fit(job, storage.path(uri).parent, checkpoints)
    except (Exception, Preempted) as error:
        outcome, sentence = Outcome.of_error(error)
        if outcome is not Outcome.PREEMPTED:
            traceback.print_exc()
        return Ended(outcome, sentence)
    return Ended(Outcome.SUCCEEDED, "")


def _leave(checkpoints: Checkpoints) -> Callable[[int, FrameType | None], None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        checkpoints.stop()
        if checkpoints.step == checkpoints.resumed_at:
            raise Preempted("asked to leave before its first step")  # which may be long in coming

    return handle


def _steps(checkpoints: Checkpoints) -> dict[str, int]:
    return {"resumed_at": checkpoints.resumed_at, "step": checkpoints.step}


def _told(ended: Ended) -> Outcome:
    if ended.sentence:
        print(f"{ended.outcome.words}: {ended.sentence}", flush=True)
        if _TERMINATION_MESSAGE.exists():
            _TERMINATION_MESSAGE.write_text(ended.sentence[:2000])
    return ended.outcome


if __name__ == "__main__":
    code = main(sys.argv[1]).exit_code
    sys.stdout.flush()
    os._exit(code)  # threads of engines that are still at work must not hold it up, or change the code
