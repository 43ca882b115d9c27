"""Make one attempt at a job that is interrupted: `python -m evergreen.training.interruption <URI of job.json> STEPS`.

It is asked to stop at the STEPS-th step that its trainer records, as by a signal, or never if STEPS is 0. The last line
that it prints is JSON: from which step it has resumed, and how many steps it has recorded.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

from evergreen import storage
from evergreen.training import runner
from evergreen.training.checkpoints import Checkpoints, StateProvider
from evergreen.training.job import CHECKPOINTS_FOLDER, Job, jobs_root
from evergreen.training.outcome import TrainingPreempted


class InterruptedCheckpoints(Checkpoints):
    """Checkpoints that are asked to stop at a step of the attempt, by its number from 1 on; 0: at none."""

    stop_after = 0
    recorded_steps = 0

    def record_step(self, step: int, state_provider: StateProvider) -> None:
        self.recorded_steps += 1
        if self.recorded_steps == self.stop_after:
            self.request_stop()
        super().record_step(step, state_provider)


def make_interrupted_attempt(uri: str, steps: str) -> None:
    file = storage.storage_path(uri)
    job = Job.read(file, jobs_root(file.parent))
    checkpoints = InterruptedCheckpoints(file.parent / CHECKPOINTS_FOLDER, job.fingerprint, job.checkpoint_seconds)
    checkpoints.stop_after = int(steps)
    with suppress(TrainingPreempted):
        runner.run_training(job, file.parent, checkpoints)
    result = {"resumed_step": checkpoints.resumed_step, "recorded_steps": checkpoints.recorded_steps}
    sys.stdout.write(f"\n{json.dumps(result)}\n")
    sys.stdout.flush()
    os._exit(0)  # threads of libraries that are still running must not delay the exit


if __name__ == "__main__":
    make_interrupted_attempt(*sys.argv[1:])
