"""A real Airflow trains in pods, and loses its parts meanwhile, or somebody who looks at it loses patience."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from kubernetes import client

from evergreen import ledger, storage
from evergreen.client.airflow import AirflowClient
from evergreen.feature_store import training_sets
from evergreen.lake import fingerprints
from evergreen.registry import versions
from evergreen.scoring import predictions
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.training import candidates
from evergreen.training.attempt import read_attempts
from evergreen.training.backends import pod, process
from evergreen_local import stack
from evergreen_local.progress import Progress
from integration.airflow.conftest import Chain
from integration.conftest import january  # noqa: F401 - a fixture
from support.cluster import Cluster
from support.kills import kill_component, running_tasks
from support.projects import make_project, models_with_short_holdout
from support.training_tasks import STEP_S, expected, template
from support.waiting import eventually

pytestmark = pytest.mark.kubernetes

SLOW, STEPS = "slow.retrain", 80
LOST_AT_MOST = 2 / STEP_S  # a checkpoint a second, each takes half of one to write


class Stack(Chain):
    """Training runs of `slow`, each as of another day, and so each another job."""

    cluster: Cluster

    def begin(self, day: int) -> str:
        run = f"as-of-{day}"
        self.airflow.trigger_dag_run(SLOW, run, {"as_of": f"2013-01-{day}"})
        return run

    def job(self, day: int) -> Path:
        """The folder of the run's job, once it is known."""
        model = loader.load_spec("slow")

        def found() -> Path | None:
            examples = training_sets.training_set_dataset(model).manifest(f"as_of=2013-01-{day}")
            if examples is None:
                return None
            features = training_sets.model_input_columns(model)
            mark = fingerprints.compute_fingerprint(candidates.candidate_inputs(model, examples, features))
            return Path(candidates.job_folder(model, mark))

        return eventually("its training set is there", found)

    def pod_of(self, day: int, after: client.V1Pod | None = None, step: int = 0) -> tuple[client.V1Pod, int]:
        """The pod of the run's job that comes `after`, once it has done `step`; and the step that it has done."""
        name = pod.pod_name("slow", self.job(day).name)
        if not step:
            return self.cluster.made(name, after), 0
        return self.cluster.at_work(name, after, step)

    def train_task(self, run: str) -> str:
        return self.states(SLOW, run).get("train", "")

    def ends_well(self, day: int, run: str) -> None:
        """Training succeeds, and has learned what it would have learned undisturbed."""
        eventually("training succeeds", lambda: self.train_task(run) == "success")
        model = loader.load_spec("slow")
        made = candidates.candidate_dataset(model).manifest(f"as_of=2013-01-{day}")
        assert made is not None
        assert made.fingerprint == self.job(day).name
        assert float(candidates.candidate_dataset(model).file_path(made, "value.json").read_text()) == expected(STEPS)

    @contextmanager
    def hold_last_step(self) -> Iterator[None]:
        """Meanwhile training does not end, however long Airflow takes to do what it is asked for."""
        file = Path(settings().lake, "hold")
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    def mark_failed(self, run: str) -> None:
        """What a person does with the button Mark as failed."""
        where = f"/api/v2/dags/{SLOW}/dagRuns/{run}/taskInstances/train"
        self.airflow._request("PATCH", where, json={"new_state": "failed"})

    def clear_task(self, run: str) -> None:
        body = {"dry_run": False, "dag_run_id": run, "task_ids": ["train"], "only_failed": False}
        self.airflow._request("POST", f"/api/v2/dags/{SLOW}/clearTaskInstances", json=body)

    def kill_task(self) -> None:
        """Kill -9 the process of a running task, and what watches over it lives on."""
        [task] = eventually("a task is running", lambda: running_tasks(self.home))
        task.kill()


@pytest.fixture(scope="module", params=[pytest.param("sync", marks=pytest.mark.slow), "deferrable"])
def airflow(
    request: pytest.FixtureRequest,
    january: Path,  # noqa: F811
    shared: Path,
    cluster: Cluster,
) -> Iterator[Stack]:
    home = shared / request.param
    shutil.copytree(january, home)
    before = dict(os.environ)
    os.environ |= {
        "EVERGREEN_HOME": str(home),
        "EVERGREEN_PROJECT": str(make_project(shared / f"{request.param}-project", "slow")),
        "EVERGREEN_TRAINING_BACKEND": "pod",
        "EVERGREEN_PODS__IMAGE": cluster.image,
        "EVERGREEN_PODS__NAMESPACE": cluster.namespace,
        "EVERGREEN_PODS__TEMPLATE": str(template(shared / "airflow.yaml", shared, baked=True)),
        "EVERGREEN_PODS__DEFERRABLE": str(request.param == "deferrable"),
        "EVERGREEN_PODS__STARTUP_TIMEOUT_MINUTES": "1",
        "EVERGREEN_PODS__LOGGING_INTERVAL_SECONDS": "2",
    }
    short_holdout = ExitStack()
    short_holdout.enter_context(models_with_short_holdout(shared / f"{request.param}-models", days=7))
    settings.cache_clear()
    try:
        with Progress() as progress:
            addresses = stack.bring_up_stack(progress)
        found = Stack(AirflowClient(addresses.airflow), home, {})
        found.cluster = cluster
        for dag_id in (SLOW, "flight_delay.retrain", "flight_delay_net.retrain"):
            eventually(f"{dag_id} is parsed", lambda dag_id=dag_id: found.airflow.dag(dag_id))
            found.airflow.set_dag_paused(dag_id, False)
        os.environ["EVERGREEN_MLFLOW"] = addresses.mlflow.get_secret_value()
        settings.cache_clear()
        yield found
    finally:
        with Progress() as progress:
            stack.stop_stack(progress)
        short_holdout.close()
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def bring_back() -> None:
    with Progress() as progress:
        stack.bring_up_stack(progress)


def test_killed_components_recover_while_the_pod_keeps_working(airflow: Stack) -> None:
    run = airflow.begin(13)
    made, _ = airflow.pod_of(13)
    if airflow.train_task(run) == "running":  # a deferred one has no process
        airflow.kill_task()
    part = "trigger" if settings().pods.deferrable else "schedule"
    airflow.pod_of(13, step=20)
    if part == "schedule":
        eventually("the next try has begun", lambda: airflow.train_task(run) == "running")
        airflow.kill_task()
    kill_component(airflow.home, part)
    bring_back()

    airflow.ends_well(13, run)
    assert [attempt.id for attempt in read_attempts(storage.storage_path(str(airflow.job(13))))] == [made.metadata.uid]


@pytest.mark.slow
@pytest.mark.parametrize("airflow", ["deferrable"], indirect=True)  # the test above kills it otherwise
def test_a_killed_scheduler_is_brought_back_while_a_pod_is_waited_for(airflow: Stack) -> None:
    run = airflow.begin(14)
    airflow.pod_of(14, step=20)
    kill_component(airflow.home, "schedule")
    time.sleep(3)
    bring_back()
    airflow.ends_well(14, run)
    for before, after in zip(
        found := read_attempts(storage.storage_path(str(airflow.job(14)))), found[1:], strict=False
    ):
        assert after.resumed_step >= before.step - LOST_AT_MOST


@pytest.mark.parametrize(
    ("day", "moment"), [pytest.param(15, 0, marks=pytest.mark.slow), (16, 30)], ids=["at start-up", "in the midst"]
)
def test_task_failed_by_hand_leaves_no_pod_and_resumes_when_cleared(airflow: Stack, day: int, moment: int) -> None:
    with airflow.hold_last_step():
        run = airflow.begin(day)
        first, done = airflow.pod_of(day, step=moment)
        airflow.mark_failed(run)
        eventually("its pod is gone", lambda: airflow.cluster.pod(first.metadata.name) is None)
        eventually("the run has failed", lambda: (airflow.airflow.dag_run(SLOW, run) or {})["state"] == "failed")

        airflow.clear_task(run)
        airflow.pod_of(day, after=first, step=1)
    airflow.ends_well(day, run)
    assert read_attempts(storage.storage_path(str(airflow.job(day))))[-1].resumed_step >= done - LOST_AT_MOST


def test_task_cleared_by_hand_replaces_its_pod_by_one_that_resumes(airflow: Stack) -> None:
    with airflow.hold_last_step():
        run = airflow.begin(17)
        first, done = airflow.pod_of(17, step=30)
        airflow.clear_task(run)
        airflow.pod_of(17, after=first, step=1)
    airflow.ends_well(17, run)
    last = read_attempts(storage.storage_path(str(airflow.job(17))))[-1]
    assert last.id != first.metadata.uid
    assert last.resumed_step >= done - LOST_AT_MOST


@pytest.mark.parametrize("airflow", ["deferrable"], indirect=True)
@pytest.mark.parametrize("name", ["flight_delay", pytest.param("flight_delay_net", marks=pytest.mark.slow)])
@pytest.mark.cpus(2)
def test_a_pod_trains_what_a_process_here_trains(airflow: Stack, name: str, tmp_path: Path) -> None:
    dag_id = f"{name}.retrain"
    airflow.airflow.trigger_dag_run(dag_id, "first", {"as_of": "2013-01-18"})
    assert airflow.wait(dag_id, run_id="first") == ["success"], airflow.states(dag_id, "first")
    model = loader.load_spec(name)
    made = candidates.candidate_dataset(model).manifest("as_of=2013-01-18")
    examples = training_sets.training_set_dataset(model).manifest("as_of=2013-01-18")
    assert made is not None
    assert examples is not None
    if name == "flight_delay":
        champion = versions.get_champion_version(model)
        assert champion is not None
        assert champion.tags["evergreen.fingerprint"] == made.fingerprint
        assert champion.tags["evergreen.team"] == model.owner
        assert champion.tags["evergreen.cost"].startswith("0.00 GPU hours, 0.0")
        assert [entry.event.kind for entry in ledger.read_state(name).entries].count("promoted") == 1

    # The same job, by the other backend.
    here = storage.storage_path(str(tmp_path / "job.json"))
    storage.put(here, (candidates.job_folder(model, made.fingerprint) / "job.json").read_bytes())
    process.run_attempts(model, here, "here")
    own = tmp_path / "own"
    own.mkdir()
    for file in tmp_path.glob("output/*/*"):
        shutil.copy(file, own)
    holdout = pq.read_table(training_sets.training_set_dataset(model).file_path(examples, "holdout"))
    inputs = tuple(made.inputs["features"])
    with predictions.candidate_folder(model, made) as folder:
        there = predictions.score_table(folder, holdout, inputs)
        if name == "flight_delay":
            assert (own / "model.ubj").read_bytes() == (folder / "model.ubj").read_bytes()
    np.testing.assert_allclose(predictions.score_table(own, holdout, inputs), there, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_log_of_a_task_has_every_line_of_its_pod_once(airflow: Stack) -> None:
    run = airflow.begin(18)
    airflow.ends_well(18, run)
    told = re.findall(r"step (\d+) of", airflow.log(SLOW, run, "train"))
    assert [int(step) for step in told] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("airflow", ["deferrable"], indirect=True)
@pytest.mark.cpus(0)
def test_the_log_tells_how_far_training_is(airflow: Stack) -> None:
    log = airflow.log("flight_delay.retrain", "first", "train")
    assert "log loss" in log
    assert "rows/s" in log
    assert "s left" in log
