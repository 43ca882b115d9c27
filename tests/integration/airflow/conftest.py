"""A real Airflow with its scheduler, a Spark Connect server and an MLflow server, over 17 days of flights."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest

from evergreen import features, lake
from evergreen import model as models
from evergreen.cli import stack
from evergreen.cli.airflow import Airflow
from evergreen.cli.progress import Progress
from evergreen.settings import settings
from evergreen.window import midnight

TESTS = Path(__file__).parents[2]
ZONE = "America/New_York"
FEATURES, RETRAIN = "flight_delay.features", "flight_delay.retrain"
PATIENCE = 300


@dataclass
class Chain:
    """A running stack, the home that it works on, and the undisturbed results that it must equal."""

    airflow: Airflow
    home: Path
    undisturbed: dict[str, lake.Manifest]

    def forget(self, *days: date) -> None:
        """Make days as if they had never been published or checked."""
        dataset = features.dataset(models.load("flight_delay"))
        for day in days:
            (dataset.root / "_manifests" / f"{lake.day_partition(day)}.json").unlink()
            for source in ("flights", "weather"):
                checked = self.home / f"lake/checks/flight_delay/_manifests/{source}-{day}.json"
                checked.unlink(missing_ok=True)

    def backfill(self, first: date, last: date) -> None:
        self.airflow.backfill(FEATURES, midnight(first, ZONE), midnight(last, ZONE), "completed", 2)

    def wait(self, dag_id: str, runs: int = 1, run_id: str | None = None) -> list[str]:
        """States of the runs asked for since the last call, once none is under way."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if run_id:
                found = [self.airflow.run(dag_id, run_id)]
            else:
                found = [] if self.airflow.active_backfill(dag_id) else self.airflow.runs(dag_id)
            states = [run["state"] for run in found if run]
            if len(states) >= runs and not {"queued", "running"} & set(states):
                return states
            time.sleep(1)
        raise TimeoutError(f"{dag_id} is not done after {PATIENCE} s")

    def published(self, *days: date) -> dict[str, lake.Manifest | None]:
        dataset = features.dataset(models.load("flight_delay"))
        return {str(day): dataset.manifest(lake.day_partition(day)) for day in days}

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        return {i["task_id"]: i["state"] for i in self.airflow.task_instances(dag_id, run_id)}


@pytest.fixture(scope="module")
def chain(january: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    home = tmp_path_factory.mktemp("chain") / "home"
    shutil.copytree(january, home)
    before = dict(os.environ)
    os.environ["EVERGREEN_HOME"] = str(home)
    os.environ["PYTHONPATH"] = str(TESTS)  # the second model
    settings.cache_clear()
    try:
        with Progress() as progress:
            addresses = stack.up(progress)
            airflow = Airflow(addresses.airflow)
            deadline = time.monotonic() + 120
            for dag_id in (FEATURES, RETRAIN, "coin.retrain"):
                while airflow.dag(dag_id) is None:
                    assert time.monotonic() < deadline, airflow.import_errors()
                    time.sleep(1)
                airflow.pause(dag_id, False)
            undisturbed = {
                manifest.partition: manifest
                for manifest in features.dataset(models.load("flight_delay")).manifests()
            }
            os.environ["EVERGREEN_MLFLOW"] = addresses.mlflow
            settings.cache_clear()
            yield Chain(airflow, home, undisturbed)
    finally:
        with Progress() as progress:
            stack.stop(progress)
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def days(first: int, last: int) -> list[date]:
    return [date(2013, 1, first) + timedelta(n) for n in range(last - first + 1)]
