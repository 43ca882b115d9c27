"""A training task run as Airflow runs it, but without Airflow: in a thread, and in a new process per deferral."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import TaskDeferred

from evergreen.feature_store import training_sets
from evergreen.lake import fingerprints
from evergreen.orchestration.handover import TrainedCandidate
from evergreen.orchestration.operators.train import TrainOperator
from evergreen.settings import REPOSITORY
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates
from evergreen.training.attempt import Attempt, read_attempts
from evergreen.training.backends import pod

STEP_S = 0.1
_PATIENCE_S = 300


class Trial(threading.Thread):
    """A training task, run as Airflow's workers and its triggerer run it, in a thread.

    One that is not `watched` ends when it is deferred, as if the triggerer were dead.
    """

    def __init__(self, model: ModelSpec, examples: dict[str, str], watched: bool = True):
        super().__init__(daemon=True)
        self.model, self.examples, self.watched = model, examples, watched
        source = training_sets.training_set_dataset(model)
        inputs = (model, source.resolve(examples), training_sets.model_input_columns(model))
        # Before the thread starts: parsing sources in two threads at once trips Python 3.11.
        self.folder = candidates.job_folder(
            model, fingerprints.compute_fingerprint(candidates.candidate_inputs(*inputs))
        )
        self.result: Any = None
        self.problem: BaseException | None = None
        self.start()

    def again(self) -> Trial:
        """What clearing the task does."""
        return Trial(self.model, self.examples)

    @property
    def pod(self) -> str:
        return pod.pod_name("slow", self.folder.name)

    @property
    def attempts(self) -> list[Attempt]:
        return read_attempts(self.folder)

    def value(self) -> float:
        """What the published model has learned, once the task has succeeded."""
        reference = self._end()
        dataset = candidates.candidate_dataset(self.model)
        candidate = TrainedCandidate.load(reference).candidate(self.model)
        return json.loads(dataset.file_path(candidate, "value.json").read_text())

    def error(self) -> Exception:
        """What the task has failed with."""
        with pytest.raises(Exception) as raised:  # noqa: PT011 - the caller looks at it
            self._end()
        assert not isinstance(raised.value, AssertionError), raised.value
        return raised.value

    def run(self) -> None:
        about, method, event = context(), "", None
        try:
            while self.result is None:
                self.task = self.in_a_new_process()
                try:
                    if event is None:
                        self.result = self.task.execute(about)
                    else:
                        self.result = self.task.resume_execution(method, {"event": event}, about)
                except TaskDeferred as deferred:
                    if not self.watched:
                        return
                    method = deferred.method_name
                    event = asyncio.run(_first_event(*deferred.trigger.serialize()))
        except BaseException as error:
            self.problem = error

    def in_a_new_process(self) -> TrainOperator:
        """The operator as a worker finds it."""
        return TrainOperator(task_id="train", model=self.model, training_set_reference=self.examples)

    def _end(self) -> Any:
        self.join(_PATIENCE_S)
        assert not self.is_alive(), f"the task is not over after {_PATIENCE_S} s"
        if self.problem:
            raise self.problem
        return self.result


def context() -> Any:
    """Return the part of a task's context that training uses."""
    instance = SimpleNamespace(
        dag_id="slow.retrain",
        task_id="train",
        run_id="manual__2013-01-18T00:00:00+00:00",
        map_index=-1,
        try_number=1,
        start_date=datetime.now(UTC),
        xcom_push=lambda key, value: None,
    )
    return {
        "ti": instance,
        "run_id": instance.run_id,
        "dag_run": SimpleNamespace(dag_id=instance.dag_id, run_id=instance.run_id),
        "dag": SimpleNamespace(),
    }


async def _first_event(path: str, arguments: dict[str, Any]) -> Any:
    module, _, name = path.rpartition(".")
    async for event in getattr(import_module(module), name)(**arguments).run():
        return event.payload


def training_set(spec: ModelSpec, **behavior: Any) -> dict[str, str]:
    """Publish a new training set of one row, which sets the trainer's behavior."""
    row = {"steps": 30, "step_seconds": STEP_S, "write_seconds": 0.0, "misbehaves": "", **behavior}
    row["nonce"] = uuid.uuid4().hex
    dataset, fingerprint = training_sets.training_set_dataset(spec), fingerprints.compute_fingerprint(row)
    partition = f"as_of={row['nonce']}"
    file = dataset.stage(partition, fingerprint) / "train.parquet"
    pq.write_table(pa.Table.from_pylist([row]), file)
    return dataset.publish(partition, fingerprint, {"train": file}, {"behavior": row}).reference


def expected(steps: int) -> float:
    """Return what an uninterrupted trainer learns."""
    value = 0.5
    for _ in range(steps):
        value = 3.9 * value * (1 - value)
    return value


def template(file: Path, home: Path, *, baked: bool = False, **more: Any) -> Path:
    """Write a pod template that mounts the home, and the sources of this checkout, under their paths here.

    With `baked`, only the tests are mounted: the library and its models are those of the image.
    """
    sources = [str(REPOSITORY / "tests")] + ([] if baked else [str(REPOSITORY / "include")])
    mounts = [{"name": "home", "mountPath": str(home)}]
    volumes = [{"name": "home", "hostPath": {"path": str(home)}}, *more.pop("volumes", [])]
    for number, path in enumerate(sources):
        mounts.append({"name": f"sources-{number}", "mountPath": path, "readOnly": True})
        volumes.append({"name": f"sources-{number}", "hostPath": {"path": path}})
    path = [*sources, "/opt/evergreen/include"] if baked else sources
    models = [f"{path[-1]}/evergreen_models", f"{REPOSITORY}/tests/evergreen_models"]
    variables = [
        {"name": "PYTHONPATH", "value": ":".join(path)},
        {"name": "EVERGREEN_MODELS", "value": ":".join(models)},
    ]
    container = {"name": "trainer", "env": variables, "volumeMounts": mounts}
    spec = {"containers": [container], "volumes": volumes, **more}
    file.write_text(json.dumps({"kind": "Pod", "spec": spec}))  # JSON is YAML
    return file
