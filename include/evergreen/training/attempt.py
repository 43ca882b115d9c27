"""One attempt at a job: when it ran, with what, and how it ended; what its cost is computed from.

The attempt itself keeps its record, beside the job, and renews it while it lives: so there is one whatever ends
it, and nobody else has to be alive to write it. One that was killed is known until at most `BEAT_S` before.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Self

from pydantic import Field

from evergreen import storage
from evergreen.spec import Frozen
from evergreen.storage import UPath
from evergreen.training.job import ATTEMPTS_FOLDER
from evergreen.training.outcome import Outcome

HEARTBEAT_S = 5.0

ATTEMPT_ID_VARIABLE = "EVERGREEN_ATTEMPT_ID"
"""Variable that names an attempt; without it, one finds a name of its own."""
_RUN_VARIABLE = "EVERGREEN_ATTEMPT_RUN"
_TEAM_VARIABLE = "EVERGREEN_ATTEMPT_TEAM"
_ALLOCATION_VARIABLE = "EVERGREEN_ATTEMPT_ALLOCATION"


class ResourceAllocation(Frozen):
    """What one attempt has to itself, and so is paid for. Handed to it in its environment."""

    cpu: float = 0
    memory_gib: float = 0
    gpu: int = 0
    gpu_type: str | None = None
    spot: bool = False


class Attempt(Frozen):
    """The record. `seen` is when it was last known to live, `ended` and `outcome` are None until it says so itself."""

    id: str
    dag_run: str = Field(description="of Airflow's, that asked for it")
    model: str
    team: str
    allocation: ResourceAllocation
    started_at: datetime
    last_heartbeat: datetime
    resumed_step: int = Field(0, description="step of the checkpoint it went on from")
    step: int = Field(0, description="the last step it is known to have done")
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    message: str = ""

    @property
    def duration_seconds(self) -> float:
        return ((self.ended_at or self.last_heartbeat) - self.started_at).total_seconds()

    def write(self, job_folder: UPath) -> None:
        storage.put(job_folder / ATTEMPTS_FOLDER / f"{self.id}.json", self.model_dump_json(indent=1).encode())

    @classmethod
    def from_environment(cls, model: str) -> Self:
        """What whoever started this process says of it; see `environment`."""
        now = datetime.now(UTC)
        return cls(
            id=os.environ.get(ATTEMPT_ID_VARIABLE) or uuid.uuid4().hex,
            dag_run=os.environ.get(_RUN_VARIABLE, ""),
            model=model,
            team=os.environ.get(_TEAM_VARIABLE, ""),
            allocation=ResourceAllocation.model_validate_json(os.environ.get(_ALLOCATION_VARIABLE, "{}")),
            started_at=now,
            last_heartbeat=now,
        )


def attempt_environment(dag_run: str, team: str, allocation: ResourceAllocation) -> dict[str, str]:
    """Variables that tell an attempt what it is."""
    return {_RUN_VARIABLE: dag_run, _TEAM_VARIABLE: team, _ALLOCATION_VARIABLE: allocation.model_dump_json()}


def read_attempts(job_folder: UPath) -> list[Attempt]:
    """All attempts at a job, in the order they began."""
    folder = job_folder / ATTEMPTS_FOLDER
    found = [Attempt.model_validate_json((folder / name).read_bytes()) for name in storage.list_names(folder)]
    return sorted(found, key=lambda attempt: attempt.started_at)


@contextmanager
def record_attempt(
    attempt: Attempt, job_folder: UPath, read_progress: Callable[[], Mapping[str, int]]
) -> Iterator[Callable[..., None]]:
    """Keep the record of `attempt` up to date until the context ends; `now` gives its steps.

    Gives a function that says how it ended: `end(outcome, message)`. A record that cannot be written is told
    about, and stops nothing.
    """
    over = Event()
    last: dict[str, object] = {}

    def write(**more: object) -> None:
        fields = {"last_heartbeat": datetime.now(UTC), **read_progress(), **last, **more}
        try:
            attempt.model_copy(update=fields).write(job_folder)
        except OSError as error:
            print(f"the record of this attempt was not written: {error}", flush=True)

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            write()

    def end(outcome: Outcome, message: str) -> None:
        last.update(ended_at=datetime.now(UTC), outcome=outcome, message=message)

    write()
    thread = Thread(target=beat, name="attempt", daemon=True)
    thread.start()
    try:
        yield end
    finally:
        over.set()
        thread.join()
        write()
