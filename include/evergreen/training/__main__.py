"""Make one attempt at a job: `python -m evergreen.training <URI of job.json>`. The exit code names its outcome."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from evergreen import storage
from evergreen.training import runner, torchrun
from evergreen.training.attempt import Attempt, record_attempt
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import CHECKPOINTS_FOLDER, Job, jobs_root
from evergreen.training.outcome import AttemptResult, Outcome, TrainingPreempted

_TERMINATION_LOG = Path("/dev/termination-log")  # Kubernetes shows what a container writes here in the pod's status

log = logging.getLogger("evergreen.training")


def make_attempt(uri: str) -> Outcome:
    """Make an attempt, log its result, and return the outcome."""
    file = storage.storage_path(uri)
    try:
        job = Job.read(file, jobs_root(file.parent))
    except (OSError, ValidationError) as error:
        return _report_result(AttemptResult(Outcome.BAD_CONFIG, f"{uri}: no training job can be read: {error}"))
    rank = torchrun.get_rank()
    checkpoints = Checkpoints(
        file.parent / CHECKPOINTS_FOLDER, job.fingerprint, job.checkpoint_seconds, is_writer=not rank
    )
    if rank is not None:  # the process that started the ranks records the attempt
        result = _run_attempt(job, uri, checkpoints)
        torchrun.write_rank_report(rank, result, checkpoints)
        return result.outcome
    with record_attempt(Attempt.from_environment(job.model), file.parent, checkpoints) as record_end:
        result = _run_attempt(job, uri, checkpoints)
        record_end(result)
    return _report_result(result)


def _run_attempt(job: Job, uri: str, checkpoints: Checkpoints) -> AttemptResult:
    def stop(*_: object) -> None:
        checkpoints.request_stop()
        if checkpoints.last_step == checkpoints.resumed_step:  # the first step may take long
            raise TrainingPreempted("asked to leave before its first step")

    try:
        signal.signal(signal.SIGTERM, stop)
        if job.processes > 1 and torchrun.get_rank() is None:
            return torchrun.run_ranks(uri, job, checkpoints)
        runner.run_training(job, storage.storage_path(uri).parent, checkpoints)
    except (Exception, TrainingPreempted) as error:
        result = AttemptResult.from_error(error)
        if result.outcome is not Outcome.PREEMPTED:
            log.exception("training failed")
        return result
    return AttemptResult(Outcome.SUCCEEDED, "")


def _report_result(result: AttemptResult) -> Outcome:
    if result.message:
        log.info("%s: %s", result.outcome.label, result.message)
        if _TERMINATION_LOG.exists():
            with suppress(OSError):  # on a full disk the log has it
                _TERMINATION_LOG.write_text(result.message[:2000])
    return result.outcome


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    code = make_attempt(sys.argv[1]).value
    sys.stdout.flush()
    os._exit(code)  # threads of libraries that are still running must not delay the exit or change the code
