"""Several processes that train one model together: torchrun starts them, and each reports its result in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import Job
from evergreen.training.outcome import AttemptResult, Outcome
from evergreen.training.rows import verify_training_data

_REPORTS_VARIABLE = "EVERGREEN_RANK_REPORTS"  # folder with one file per process


def get_rank() -> int | None:
    """Return the rank of this process among those that torchrun started, or None if it trains alone."""
    return int(os.environ["RANK"]) if _REPORTS_VARIABLE in os.environ else None


def write_rank_report(rank: int, result: AttemptResult, checkpoints: Checkpoints) -> None:
    """Report the result to the process that started the ranks: torchrun itself only knows that one failed."""
    report = [result.outcome.value, result.message, checkpoints.resumed_step, checkpoints.last_step]
    Path(os.environ[_REPORTS_VARIABLE], str(rank)).write_text(json.dumps(report))


def run_ranks(uri: str, job: Job, checkpoints: Checkpoints) -> AttemptResult:
    """Train the job at `uri` with its processes, copy the first one's steps to `checkpoints`, return the result.

    Raises what `verify_training_data` raises.
    """
    environment = os.environ | verify_training_data(job)  # once, and not in each process
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={job.processes}", "-m", "evergreen.training", uri]
        stop_requested = False
        with subprocess.Popen(command, env={**environment, _REPORTS_VARIABLE: folder}) as launcher:

            def stop(*_: object) -> None:
                nonlocal stop_requested
                stop_requested = True
                launcher.terminate()

            signal.signal(signal.SIGTERM, stop)
            code = launcher.wait()
        reports = {int(file.name): json.loads(file.read_text()) for file in Path(folder).iterdir()}
    if 0 in reports:
        _, _, checkpoints.resumed_step, checkpoints.last_step = reports[0]
    results = [AttemptResult(Outcome(value), message) for _, (value, message, *_) in sorted(reports.items())]
    failures = [result for result in results if result.outcome is not Outcome.SUCCEEDED]
    if code == 0 and results and not failures:
        return results[0]
    preempted = [result for result in failures if result.outcome is Outcome.PREEMPTED]
    if stop_requested:
        # A rank before its first step, or one that the others have left, may end in any retryable way.
        lasting = [result for result in failures if not result.outcome.is_retryable]
        return [*lasting, *preempted, AttemptResult(Outcome.PREEMPTED, "asked to leave before its first step")][0]
    # When one rank fails, torchrun stops the others: their preemptions are not the cause.
    unknown = f"torchrun ended with exit code {code}, and no process reported why: one was killed"
    causes = (result for result in failures if result not in preempted)
    return next(causes, AttemptResult(Outcome.UNKNOWN, unknown))
