"""A real Airflow with its scheduler, a Spark Connect server and an MLflow server, over 17 days of flights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from evergreen.client.airflow import AirflowClient, AirflowConflictError, Json
from evergreen.features import inputs
from evergreen.lake import datasets
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen_local import stack
from evergreen_local.backfilling import wait_until_parsed
from evergreen_local.progress import Progress
from support import changing_keys, pumps
from support.calendars import later
from support.projects import make_project, models_with_short_holdout

ZONE = "America/New_York"
FEATURES, RETRAIN = "flight_delay.features", "flight_delay.retrain"
PATIENCE = 600  # other tests share the cores
NEW_RUN_PATIENCE = 300

SCHEDULED = """
import sys
from datetime import datetime, timezone
from airflow.models.serialized_dag import SerializedDagModel
from airflow.timetables.base import DataInterval
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
import pendulum

dag_id, start, end = sys.argv[1], *map(pendulum.parse, sys.argv[2:])
run_id = f"scheduled__{start.isoformat()}"
with create_session() as session:
    SerializedDagModel.get_dag(dag_id, session=session).create_dagrun(
        run_id=run_id, logical_date=start, data_interval=DataInterval(start, end), run_after=end,
        run_type=DagRunType.SCHEDULED, triggered_by=DagRunTriggeredByType.TIMETABLE,
        state=DagRunState.QUEUED, session=session,
    )
print(run_id)
"""

STARTER = """
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG

with DAG("starter", schedule=None):
    TriggerDagRunOperator(
        task_id="start", trigger_dag_id="flight_delay.features", conf={"start": "2013-01-03"}, logical_date=None
    )
"""

PATIENT = """
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="patient", owner="tests", features="flight_delay", feature_service="flight_delay",
    request_columns=["departure_minute"], label="late", schedule="0 0 * * 1",
    train="4d", holdout="6d", parameters=dict({parameters}),
    # Six days cannot tell, ten can.
    gates=[
        dict(kind="threshold", metric="brier", at_most=0.9),
        dict(kind="against_champion", metric="brier", must_be="better", confidence=0.8),
    ],
    monitor=dict(look_after="4d"), retrain_on=dict(alarms=["drift"], budget=1), score=dict(columns=["flight_id"]),
)
"""
METRICS_TOKEN = "metrics-of-a-test-stack"
_RUNNING = ExitStack()
# A champion that gives nearly every flight one chance in two of being late.
CHAMPION_PARAMETERS = "rounds=1, max_depth=1, base_score=0.5, learning_rate=0.01"


def write_patient(models: Path, parameters: str) -> None:
    """Write the spec of a model whose candidates gather evidence, or change its parameters as a person does."""
    folder = models / "patient"
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(PATIENT.format(parameters=parameters))
    (folder / "train.py").write_text("from evergreen_models.flight_delay.train import fit as fit\n")


@dataclass
class Chain:
    """A running stack, the home that it works on, and the undisturbed results that it must equal."""

    airflow: AirflowClient
    home: Path
    undisturbed: dict[str, datasets.Manifest]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that select the database of this stack's Airflow."""
        return {"AIRFLOW_HOME": str(self.home / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

    def forget(self, *days: str) -> None:
        """Undo publishing and validating of days."""
        dataset = inputs.features_dataset(loader.load_spec("flight_delay"))
        for day in days:
            (dataset.root / "_manifests" / f"{datasets.period_partition(day)}.json").unlink()
            for source in ("flights", "weather"):
                checked = self.home / f"lake/checks/flight_delay/_manifests/{source}-{day}.json"
                checked.unlink(missing_ok=True)

    def backfill(self, first: str, last: str) -> None:
        """Create a backfill; retried, because one that SQLite was too busy to create exists by half for a moment."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.airflow.create_backfill(
                    FEATURES, Calendar("1d", ZONE).start(first), Calendar("1d", ZONE).start(last), "completed", 4
                )
                return
            except AirflowConflictError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)  # as often as all that waits here looks

    def backfill_announced(self, day: str) -> None:
        """A backfill whose conf lets it start other DAGs."""
        body = {
            "dag_id": FEATURES,
            "from_date": Calendar("1d", ZONE).start(day).isoformat(),
            "to_date": Calendar("1d", ZONE).start(day).isoformat(),
            "reprocess_behavior": "completed",
            "max_active_runs": 1,
            "dag_run_conf": {"announce": True},
        }
        self.airflow.set_dag_paused(FEATURES, True)  # as the CLI does: SQLite and a busy scheduler do not go together
        try:
            self.airflow._request("POST", "/api/v2/backfills", json=body)
        finally:
            self.airflow.set_dag_paused(FEATURES, False)

    @contextmanager
    def unpaused(self, *dag_ids: str) -> Iterator[None]:
        """Wait until Airflow has parsed these DAGs; they are unpaused in the context."""
        with Progress() as progress:
            wait_until_parsed(self.airflow, dag_ids, progress)
        try:
            yield
        finally:
            for dag_id in dag_ids:
                self.airflow.set_dag_paused(dag_id, True)

    def clear(self, dag_id: str, run_id: str) -> None:
        """Clear a run, as the button does."""
        self.airflow._request(
            "POST",
            f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/clear",
            json={"dry_run": False, "only_failed": False},
        )

    def post_event(self, asset: str, extra: Json) -> None:
        """Post an asset event, as an external system does after delivering days."""
        body = {"asset_id": self.asset_id(asset), "extra": extra}
        self.airflow._request("POST", "/api/v2/assets/events", json=body)

    def materialize(self, asset: str, conf: Json) -> None:
        """Start the DAG that updates an asset, as the button does."""
        self.airflow._request("POST", f"/api/v2/assets/{self.asset_id(asset)}/materialize", json={"conf": conf})

    def asset_id(self, name: str) -> int:
        assets = self.airflow._request("GET", "/api/v2/assets", params={"name_pattern": name})["assets"]
        [number] = [asset["id"] for asset in assets if asset["name"] == name]
        return number

    def wait(self, dag_id: str, runs: int = 1, run_id: str | None = None) -> list[str]:
        """Wait for the run, or for all backfilled ones; return their states."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if run_id:
                found = [self.airflow.dag_run(dag_id, run_id)]
            else:
                all_runs = [] if self.airflow.active_backfill(dag_id) else self.airflow.dag_runs(dag_id)
                found = [run for run in all_runs if run["run_type"] == "backfill"]
            states = [run["state"] for run in found if run]
            if len(states) >= runs and not {"queued", "running"} & set(states):
                return states
            time.sleep(1)
        raise TimeoutError(f"{dag_id} is not done after {PATIENCE} s")

    def quiet(self, dag_id: str) -> None:
        """Wait until no run is active, and no asset event is about to start one."""
        deadline = time.monotonic() + PATIENCE
        # In this order: Airflow removes events from the queue when it creates their run.
        while self.queued_events(dag_id) or any(
            run["state"] in ("queued", "running") for run in self.airflow.dag_runs(dag_id)
        ):
            assert time.monotonic() < deadline, f"{dag_id} is still busy"
            time.sleep(1)

    def queued_events(self, dag_id: str) -> list[Json]:
        """Asset events for which the scheduler has not created a run yet."""
        queue = self.airflow._request("GET", f"/api/v2/dags/{dag_id}/assets/queuedEvents", allow_missing=True)
        return queue["queued_events"] if queue else []

    def new_runs(self, dag_id: str, known: set[str], run_type: str) -> list[Json]:
        """Wait for runs of this type that are not `known`; return them once none is active."""
        deadline = time.monotonic() + NEW_RUN_PATIENCE
        while time.monotonic() < deadline:
            found = [r for r in self.airflow.dag_runs(dag_id) if r["dag_run_id"] not in known]
            found = [r for r in found if r["run_type"] == run_type]
            if found and not {"queued", "running"} & {r["state"] for r in found}:
                return found
            time.sleep(0.5)
        raise TimeoutError(f"no {run_type} run of {dag_id} is done after {NEW_RUN_PATIENCE} s")

    def backfilled(self, dag_id: str, day: str) -> Json:
        """The backfilled run whose data interval begins with `day`. (Its id contains the end of that interval.)"""
        [run] = self.airflow.dag_runs(
            dag_id,
            logical_date_gte=Calendar("1d", ZONE).start(day).isoformat(),
            logical_date_lte=Calendar("1d", ZONE).start(day).isoformat(),
            run_type=["backfill"],
        )
        return run

    def run_ids(self, dag_id: str) -> set[str]:
        return {run["dag_run_id"] for run in self.airflow.dag_runs(dag_id)}

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """The log of the newest try of a task."""
        [instance] = [i for i in self.airflow.task_instances(dag_id, run_id) if i["task_id"] == task_id]
        return "\n".join(json.dumps(line) for line in self.airflow.log(instance))

    def scheduled(self, dag_id: str, start: datetime, end: datetime) -> str:
        """Create a run as the scheduler does by the clock; these DAGs end in 2013, so it creates none."""
        made = subprocess.run(
            [sys.executable, "-c", SCHEDULED, dag_id, start.isoformat(), end.isoformat()],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        return made.stdout.strip().splitlines()[-1]

    def published(self, *days: str) -> dict[str, datasets.Manifest | None]:
        dataset = inputs.features_dataset(loader.load_spec("flight_delay"))
        return {str(day): dataset.manifest(datasets.period_partition(day)) for day in days}

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        return {i["task_id"]: i["state"] for i in self.airflow.task_instances(dag_id, run_id)}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Stop the stack after the last test of this folder.

    A fixture of this scope would keep it, and the environment that names it, for the files that come next in this
    process: without `__init__.py` there are no packages, and pytest takes `package` for the whole session.
    """
    try:
        return (yield)
    finally:
        if nextitem is None or not nextitem.path.is_relative_to(Path(__file__).parent):
            _RUNNING.close()


@pytest.fixture(scope="session")
def chain(january: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return _RUNNING.enter_context(running_chain(january, tmp_path_factory.mktemp("chain") / "home"))


@contextmanager
def running_chain(january: Path, home: Path) -> Iterator[Chain]:
    shutil.copytree(january, home)
    before = dict(os.environ)
    os.environ["EVERGREEN_HOME"] = str(home)
    token = home.parent / "metrics-token"
    token.write_text(METRICS_TOKEN)
    os.environ["EVERGREEN_METRICS_TOKEN"] = str(token)
    project = make_project(home.parent / "project", "coin", "cautious", "patient", pumps.NAME, *changing_keys.CALENDARS)
    (project / "dags/starter.py").write_text(STARTER)
    os.environ["EVERGREEN_PROJECT"] = str(project)
    short_holdout = ExitStack()
    short_holdout.enter_context(models_with_short_holdout(home.parent / "models", days=7))
    write_patient(home.parent / "models", CHAMPION_PARAMETERS)
    changing_keys.write_models(home.parent / "models", project / "feature_repo")
    pumps.write_model(home.parent / "models", project / "feature_repo")
    settings.cache_clear()
    try:
        with Progress() as progress:
            addresses = stack.bring_up_stack(progress)
            airflow = AirflowClient(addresses.airflow)
            wait_until_parsed(airflow, (FEATURES, RETRAIN, "coin.retrain", "starter"), progress)
            undisturbed = {
                manifest.partition: manifest
                for manifest in inputs.features_dataset(loader.load_spec("flight_delay")).manifests()
            }
            os.environ["EVERGREEN_MLFLOW"] = addresses.mlflow.get_secret_value()
            settings.cache_clear()
            yield Chain(airflow, home, undisturbed)
    finally:
        with Progress() as progress:
            stack.stop_stack(progress)
        short_holdout.close()
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def days(first: int, last: int) -> list[str]:
    return [later(f"2013-01-{first:02d}", n) for n in range(last - first + 1)]
