"""One attempt at a job: the environment it is given, and the record it keeps, from which its cost is computed.

The attempt itself writes its record beside the job and renews it every `HEARTBEAT_S` seconds. So there is a record
whatever ends the attempt, and no other process has to be alive to write it.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

from pydantic import AwareDatetime, Field, ValidationError

from evergreen import storage
from evergreen.errors import validation_problem
from evergreen.settings import IS_CHECKOUT, settings, variable_name
from evergreen.spec import Frozen
from evergreen.storage import UPath
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import ATTEMPTS_FOLDER, JsonFile, jobs_root
from evergreen.training.outcome import AttemptResult, Outcome

if TYPE_CHECKING:
    from evergreen.spec.model import Resources

HEARTBEAT_S = 5.0
MAX_ATTEMPTS = 10_000
"""Of one job, that `read_attempts` reads."""

ATTEMPT_ID_VARIABLE = "EVERGREEN_ATTEMPT_ID"
"""Names an attempt; an attempt without it generates its own id."""
_RUN_VARIABLE = "EVERGREEN_ATTEMPT_RUN"
_TEAM_VARIABLE = "EVERGREEN_ATTEMPT_TEAM"
_ALLOCATION_VARIABLE = "EVERGREEN_ATTEMPT_ALLOCATION"

THREAD_VARIABLES = {"GOMP_SPINCOUNT": "1000"}
"""Threads of OpenMP (XGBoost, LightGBM, PyTorch) wait for one another in a loop of 300,000 turns by default. Where
other processes want the same cores, most of their time goes into that (`benchmarks/shared_cores.py`)."""
_INHERITED_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    *THREAD_VARIABLES,
)
_SOURCE_ROOT = Path(__file__).resolve().parents[2]

log = logging.getLogger(__name__)


class ResourceAllocation(Frozen):
    """The resources that one attempt occupies, and that are paid for. Passed to it in its environment."""

    cpu: float = Field(0, ge=0, allow_inf_nan=False)
    memory_gib: float = Field(0, ge=0, allow_inf_nan=False)
    gpu: int = Field(0, ge=0)
    gpu_type: str | None = None
    spot: bool = False

    @classmethod
    def from_resources(cls, resources: Resources, *, spot: bool = False) -> Self:
        return cls(**resources.model_dump(include={"cpu", "memory_gib", "gpu", "gpu_type"}), spot=spot)


class Attempt(JsonFile):
    """The record of an attempt. `ended_at` and `outcome` are None until the attempt itself ends."""

    id: str
    dag_run: str = Field(description="the run of Airflow that requested it")
    model: str
    team: str
    allocation: ResourceAllocation
    started_at: AwareDatetime
    last_heartbeat: AwareDatetime
    resumed_step: int = Field(0, description="step of the checkpoint that it resumed from")
    step: int = Field(0, description="last step that it is known to have completed")
    ended_at: AwareDatetime | None = None
    outcome: Outcome | None = None
    message: str = ""

    @property
    def duration_seconds(self) -> float:
        return ((self.ended_at or self.last_heartbeat) - self.started_at).total_seconds()

    @classmethod
    def from_environment(cls, model: str) -> Self:
        """Return the record of this process, which starts now; see `attempt_environment`."""
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
    """Return the variables that tell an attempt which run and team it belongs to, and what it occupies."""
    return {_RUN_VARIABLE: dag_run, _TEAM_VARIABLE: team, _ALLOCATION_VARIABLE: allocation.model_dump_json()}


def trainer_environment() -> dict[str, str]:
    """Return the variables that a process which trains or loads a model inherits; no credential is among them."""
    # In a checkout, the trainer's Python need not have this package installed, and must run this code and no other. An
    # installed package has libraries beside it that the trainer has in versions of its own.
    path = [*([str(_SOURCE_ROOT)] if IS_CHECKOUT else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
    models = {
        variable_name("project"): str(settings().project),
        variable_name("models"): os.pathsep.join(map(str, settings().models)),
    }
    return THREAD_VARIABLES | inherited | models | {"PYTHONPATH": os.pathsep.join(path)}


def read_attempts(job_folder: UPath, max_attempts: int = MAX_ATTEMPTS) -> list[Attempt]:
    """Return the attempts at a job, in the order in which they started.

    Pods write the records: one that is damaged is logged and skipped, and only the first `max_attempts` are read.
    """
    folder, root = job_folder / ATTEMPTS_FOLDER, jobs_root(job_folder)
    names = [name for name in storage.list_names(folder) if not name.startswith(".")]  # one that is being written
    if len(names) > max_attempts:
        log.warning("%s has %s files: only %s of them count", folder, len(names), max_attempts)
    attempts = []
    for name in names[:max_attempts]:
        try:
            attempts.append(Attempt.read(folder / storage.check_file_name(name), root))
        except (OSError, ValueError) as error:
            problem = validation_problem(error) if isinstance(error, ValidationError) else error
            log.warning("%s: %a is no record of an attempt, and does not count: %s", folder, name, problem)
    return sorted(attempts, key=lambda attempt: attempt.started_at)


@contextmanager
def record_attempt(
    attempt: Attempt, job_folder: UPath, checkpoints: Checkpoints
) -> Iterator[Callable[[AttemptResult], None]]:
    """Keep the record of `attempt` up to date until the context ends; yields a function that records the result.

    A record that cannot be written is logged, and does not stop the training.
    """
    stopped = Event()
    file = job_folder / ATTEMPTS_FOLDER / f"{attempt.id}.json"
    end: dict[str, object] = {}

    def write() -> None:
        progress = {"resumed_step": checkpoints.resumed_step, "step": checkpoints.last_step}
        try:
            attempt.model_copy(update={"last_heartbeat": datetime.now(UTC), **progress, **end}).write(file)
        except OSError as error:
            log.warning("the record of this attempt was not written: %s", error)

    def write_heartbeats() -> None:
        while not stopped.wait(HEARTBEAT_S):
            write()

    def record_end(result: AttemptResult) -> None:
        end.update(ended_at=datetime.now(UTC), outcome=result.outcome, message=result.message)

    write()
    thread = Thread(target=write_heartbeats, name="attempt", daemon=True)
    thread.start()
    try:
        yield record_end
    finally:
        stopped.set()
        thread.join()
        write()
