"""Several processes that train one model together: torchrun starts them, and they report how they ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from evergreen.training.checkpoints import Checkpoints
from evergreen.training.outcome import AttemptResult, Outcome

_REPORTS_VARIABLE = "EVERGREEN_RANK_REPORTS"  # folder of one file per process


def get_rank() -> int | None:
    """Which one of several this process is, or None if it is on its own."""
    return int(os.environ["RANK"]) if _REPORTS_VARIABLE in os.environ else None


def write_rank_report(rank: int, result: AttemptResult, checkpoints: Checkpoints) -> None:
    """Tell who started this process how it ended: torchrun itself knows only that something failed."""
    about = {
        "outcome": result.outcome.value,
        "message": result.message,
        "resumed_step": checkpoints.resumed_step,
        "step": checkpoints.last_step,
    }
    Path(os.environ[_REPORTS_VARIABLE], str(rank)).write_text(json.dumps(about))


def run_ranks(uri: str, processes: int, checkpoints: Checkpoints) -> AttemptResult:
    """Train the job at `uri` with so many processes, and give how that ended; `checkpoints` learns the steps."""
    with tempfile.TemporaryDirectory() as reports:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "evergreen.training", uri]
        asked_to_leave = False
        with subprocess.Popen(command, env={**os.environ, _REPORTS_VARIABLE: reports}) as together:

            def leave(*_: object) -> None:
                nonlocal asked_to_leave
                asked_to_leave = True
                together.terminate()

            signal.signal(signal.SIGTERM, leave)
            code = together.wait()
        found = {int(file.name): json.loads(file.read_text()) for file in sorted(Path(reports).iterdir())}
    if first := found.get(0):
        checkpoints.resumed_step, checkpoints.last_step = first["resumed_step"], first["step"]
    ends = [AttemptResult(Outcome(about["outcome"]), about["message"]) for _, about in sorted(found.items())]
    if code == 0 and ends and all(end.outcome is Outcome.SUCCEEDED for end in ends):
        return ends[0]
    reasons = [end for end in ends if end.outcome is not Outcome.SUCCEEDED]
    if asked_to_leave:
        # Who is not at its first step yet, or is left alone by the others, may end in any way.
        lasting = [end for end in reasons if not end.outcome.is_retryable]
        left = [end for end in reasons if end.outcome is Outcome.PREEMPTED]
        return (lasting or left or [AttemptResult(Outcome.PREEMPTED, "asked to leave before its first step")])[0]
    # When one fails torchrun asks the others to leave: what they say then is not why.
    told = [end for end in reasons if end.outcome is not Outcome.PREEMPTED]
    if told:
        return told[0]
    return AttemptResult(
        Outcome.UNKNOWN, f"torchrun ended with exit code {code}, and no process says why: one was killed"
    )
