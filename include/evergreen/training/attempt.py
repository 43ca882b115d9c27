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

from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from evergreen import storage
from evergreen.training.job import ATTEMPTS
from evergreen.training.outcome import Outcome

BEAT_S = 5.0

ID = "EVERGREEN_ATTEMPT"
"""Variable that names an attempt; without it, one finds a name of its own."""
_RUN, _TEAM, _ALLOTTED = (f"{ID}_{part}" for part in ("RUN", "TEAM", "ALLOTTED"))


class Allotted(BaseModel):
    """What one attempt has to itself, and so is paid for. Handed to it in its environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: float = 0
    memory_gib: float = 0
    gpu: int = 0
    gpu_type: str | None = None
    spot: bool = False


class Attempt(BaseModel):
    """The record. `seen` is when it was last known to live, `ended` and `outcome` are None until it says so itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    run: str = Field(description="of Airflow's, that asked for it")
    model: str
    team: str
    allotted: Allotted
    started: datetime
    seen: datetime
    resumed_at: int = Field(0, description="step of the checkpoint it went on from")
    step: int = Field(0, description="the last step it is known to have done")
    ended: datetime | None = None
    outcome: Outcome | None = None
    sentence: str = ""

    @property
    def seconds(self) -> float:
        return ((self.ended or self.seen) - self.started).total_seconds()

    def put(self, job_folder: UPath) -> None:
        storage.put(job_folder / ATTEMPTS / f"{self.id}.json", self.model_dump_json(indent=1).encode())

    @classmethod
    def from_environment(cls, model: str) -> Self:
        """What whoever started this process says of it; see `environment`."""
        now = datetime.now(UTC)
        return cls(
            id=os.environ.get(ID) or uuid.uuid4().hex,
            run=os.environ.get(_RUN, ""),
            model=model,
            team=os.environ.get(_TEAM, ""),
            allotted=Allotted.model_validate_json(os.environ.get(_ALLOTTED, "{}")),
            started=now,
            seen=now,
        )


def environment(run: str, team: str, allotted: Allotted) -> dict[str, str]:
    """Variables that tell an attempt what it is."""
    return {_RUN: run, _TEAM: team, _ALLOTTED: allotted.model_dump_json()}


def attempts(job_folder: UPath) -> list[Attempt]:
    """All attempts at a job, in the order they began."""
    folder = job_folder / ATTEMPTS
    found = [Attempt.model_validate_json((folder / name).read_bytes()) for name in storage.names(folder)]
    return sorted(found, key=lambda attempt: attempt.started)


@contextmanager
def recorded(
    attempt: Attempt, job_folder: UPath, now: Callable[[], Mapping[str, int]]
) -> Iterator[Callable[..., None]]:
    """Keep the record of `attempt` up to date until the context ends; `now` gives its steps.

    Gives a function that says how it ended: `end(outcome, sentence)`. A record that cannot be written is told
    about, and stops nothing.
    """
    over = Event()
    last: dict[str, object] = {}

    def write(**more: object) -> None:
        fields = {"seen": datetime.now(UTC), **now(), **last, **more}
        try:
            attempt.model_copy(update=fields).put(job_folder)
        except OSError as error:
            print(f"the record of this attempt was not written: {error}", flush=True)

    def beat() -> None:
        while not over.wait(BEAT_S):
            write()

    def end(outcome: Outcome, sentence: str) -> None:
        last.update(ended=datetime.now(UTC), outcome=outcome, sentence=sentence)

    write()
    thread = Thread(target=beat, name="attempt", daemon=True)
    thread.start()
    try:
        yield end
    finally:
        over.set()
        thread.join()
        write()
