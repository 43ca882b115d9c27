"""Two Celery workers that share no disk: what is lost with one is done by the other, with the same result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compose.conftest import STATE, LiveStack
from measuring.compose import DockerError, docker
from measuring.stack import environment

pytestmark = pytest.mark.compose

MODEL = "flight_delay"
FILES = "docker-compose.yaml:docker-compose.celery.yaml"
WORKERS = ("worker-1", "worker-2")
KILLED = ("build", "train")
"""Tasks whose worker is killed, each in a week of its own."""


@pytest.fixture(scope="module")
def celery(stack: LiveStack) -> Iterator[LiveStack]:
    """The stack with workers; at the end as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPOSE_FILE", FILES)
        stack.does("up")
        yield stack
    stack.does("up")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What the same weeks leave in a home of this machine, where nothing was killed."""
    home = tmp_path_factory.mktemp("home")
    command = str(Path(sys.executable).parent / "evergreen")

    def run(*words: str, **variables: str) -> str:
        done = subprocess.run(words, env=environment(home, **variables), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        for _ in range(1 + len(KILLED)):
            run(command, "retrain", MODEL)
        addresses = json.loads((home / "stack.json").read_text())["services"]
        yield json.loads(run(sys.executable, str(STATE), EVERGREEN_MLFLOW=addresses["mlflow"]["url"]))
    finally:
        subprocess.run([command, "down"], env=environment(home), capture_output=True)


@pytest.mark.parametrize("task", KILLED)
def test_killed_task_is_finished_by_the_other_worker(celery: LiveStack, tmp_path: Path, task: str) -> None:
    command = celery.run("retrain", MODEL, log=tmp_path / "log")
    assert celery.reaches(task, command), (tmp_path / "log").read_text()
    lost = next(one for one in celery.airflow().task_instances("~", states=["running"]) if one["task_id"] == task)
    assert lost["hostname"] in WORKERS
    celery.kill(lost["hostname"])
    try:
        docker("stop", "--time", "0", celery.container(lost["hostname"], running=False))  # nobody starts it again
        assert command.wait() == 0, (tmp_path / "log").read_text()
    finally:
        docker("start", celery.container(lost["hostname"], running=False))
    instances = celery.airflow().task_instances(lost["dag_id"], lost["dag_run_id"], states=["success"])
    finished = next(one for one in instances if one["task_id"] == task)
    assert finished["try_number"] > lost["try_number"]
    assert finished["hostname"] == next(worker for worker in WORKERS if worker != lost["hostname"])
    assert any(entry["event"] for entry in celery.airflow().log(finished)), "the worker does not serve its log"


def test_the_lake_holds_what_it_holds_where_nothing_is_killed(celery: LiveStack, undisturbed: Any) -> None:
    held = celery.python(STATE.read_text(), service="worker-1")
    assert undisturbed["contents"]
    for what in ("contents", "predictions", "verdicts"):
        assert undisturbed[what] == {name: held[what].get(name) for name in undisturbed[what]}, what
    assert held["promoted"][: len(undisturbed["promoted"])] == undisturbed["promoted"]
    assert held["aliases"] == "right"
    assert held["jobs"] == len(held["models"]), "a model is half there"


def test_workers_see_nothing_of_each_other(celery: LiveStack) -> None:
    for worker, other in (WORKERS, WORKERS[::-1]):
        docker("exec", celery.container(worker), "sh", "-c", "touch /opt/airflow/logs/mine /var/lib/evergreen/mine")
        for folder in ("/opt/airflow/logs", "/var/lib/evergreen"):
            with pytest.raises(DockerError):
                docker("exec", celery.container(other), "test", "-e", f"{folder}/mine")
        docker("exec", celery.container(worker), "sh", "-c", "rm /opt/airflow/logs/mine /var/lib/evergreen/mine")


def test_the_doctor_is_content(celery: LiveStack) -> None:
    assert "checks passed" in celery.does("doctor")
