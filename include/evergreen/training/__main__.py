"""Makes one attempt at a job: `python -m evergreen.training <URI of job.json>`. Its exit code is its outcome's."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from evergreen import storage
from evergreen.training import attempt, runner, torchrun
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import CHECKPOINTS_FOLDER, Job
from evergreen.training.outcome import AttemptResult, Outcome, TrainingPreempted

_TERMINATION_LOG = Path("/dev/termination-log")  # where Kubernetes reads a container's last words


def main(uri: str) -> Outcome:
    """Make an attempt, tell how it ended, and give that."""
    file = storage.storage_path(uri)
    try:
        job = Job.read(file)
    except (OSError, ValidationError) as error:
        return _report_result(AttemptResult(Outcome.BAD_CONFIG, f"{uri}: no training job can be read: {error}"))
    rank = torchrun.get_rank()
    checkpoints = Checkpoints(
        file.parent / CHECKPOINTS_FOLDER, job.fingerprint, job.checkpoint_seconds, is_writer=not rank
    )
    if rank is not None:  # one of several; whoever started it keeps the record
        ended = _run_attempt(job, uri, checkpoints)
        torchrun.write_rank_report(rank, ended, checkpoints)
        return ended.outcome
    about = attempt.Attempt.from_environment(job.model)
    with attempt.record_attempt(about, file.parent, lambda: _progress(checkpoints)) as end:
        ended = _run_attempt(job, uri, checkpoints)
        end(ended.outcome, ended.message)
    return _report_result(ended)


def _run_attempt(job: Job, uri: str, checkpoints: Checkpoints) -> AttemptResult:
    try:
        signal.signal(signal.SIGTERM, _stop_handler(checkpoints))
        if job.processes > 1 and torchrun.get_rank() is None:
            return torchrun.run_ranks(uri, job.processes, checkpoints)
        runner.run_training(job, storage.storage_path(uri).parent, checkpoints)
    except (Exception, TrainingPreempted) as error:
        outcome, sentence = Outcome.from_error(error)
        if outcome is not Outcome.PREEMPTED:
            traceback.print_exc()
        return AttemptResult(outcome, sentence)
    return AttemptResult(Outcome.SUCCEEDED, "")


def _stop_handler(checkpoints: Checkpoints) -> Callable[[int, FrameType | None], None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        checkpoints.request_stop()
        if checkpoints.last_step == checkpoints.resumed_step:
            raise TrainingPreempted("asked to leave before its first step")  # which may be long in coming

    return handle


def _progress(checkpoints: Checkpoints) -> dict[str, int]:
    return {"resumed_step": checkpoints.resumed_step, "step": checkpoints.last_step}


def _report_result(ended: AttemptResult) -> Outcome:
    if ended.message:
        print(f"{ended.outcome.label}: {ended.message}", flush=True)
        if _TERMINATION_LOG.exists():
            with suppress(OSError):  # on a full disk the log has it
                _TERMINATION_LOG.write_text(ended.message[:2000])
    return ended.outcome


if __name__ == "__main__":
    code = main(sys.argv[1]).exit_code
    sys.stdout.flush()
    os._exit(code)  # threads of engines that are still at work must not hold it up, or change the code
