"""The task that rebuilds stale features: what it asks of the features DAG, and what it does about its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time import task_runner

from evergreen.errors import StaleFeaturesError
from evergreen.feature_store import online_store
from evergreen.features import inputs
from evergreen.lake import datasets
from evergreen.orchestration.dags.retrain import retrain_dag
from evergreen.orchestration.handover import RetrainPlan
from evergreen.orchestration.operators.rebuild import RebuildFeaturesOperator
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason
from support import tills

pytestmark = pytest.mark.dag

DAYS = tills.days(5)
PLAN = RetrainPlan(start=DAYS[0], end="2024-01-06", run_reason=RunReason.MANUAL, calendar=Calendar("1d", "UTC")).dump()


class Scheduler:
    """Stands in for Airflow: takes requests for runs, and says whether the DAG is paused."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.is_paused = False

    def send(self, message: Any) -> None:
        self.requests.append(message)

    def context(self) -> dict[str, Any]:
        instance = SimpleNamespace(get_dag=lambda _dag_id: SimpleNamespace(is_paused=self.is_paused))
        return {"ti": instance, "dag_run": SimpleNamespace(dag_id="tills.retrain")}


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    scheduler = Scheduler()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", scheduler, raising=False)
    return scheduler


@pytest.fixture
def model(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model with five published days; all are stale once its features.py changes."""
    folder = tills.write_model(tmp_path, monkeypatch, use_models)
    model = tills.change_spec(folder, "train=", 'stale_features="rebuild", train=')
    tills.deliver(5)
    tills.publish(model, DAYS)
    monkeypatch.setenv("EVERGREEN_MAX_DAYS_PER_RUN", "2")
    settings.cache_clear()
    (folder / "features.py").write_text((folder / "features.py").read_text() + "A = 1\n")
    return model


def operator() -> RebuildFeaturesOperator:
    with DAG("tills.retrain"):
        return RebuildFeaturesOperator(task_id="rebuild", model="tills", plan=PLAN)


def test_stale_days_are_rebuilt_batch_by_batch(model: ModelSpec, scheduler: Scheduler) -> None:
    state: dict[str, Any] = {}
    for first, last in ((0, 1), (2, 3), (4, 4)):
        with pytest.raises(TaskDeferred) as deferred:
            operator().execute(scheduler.context(), **state)
        request = scheduler.requests[-1]
        assert (request.dag_id, request.logical_date) == ("tills.features", None)
        assert request.conf == {"start": str(DAYS[first]), "end": str(DAYS[last]), "announce": False}
        assert request.run_id.startswith(f"rebuild__tills.retrain__{DAYS[first]}__")
        path, arguments = deferred.value.trigger.serialize()
        assert path.endswith(".DagRunsFinishedTrigger")
        assert arguments == {"dag_id": "tills.features", "run_ids": [request.run_id]}
        assert deferred.value.method_name == "execute"
        state = {"event": [request.run_id], **(deferred.value.kwargs or {})}
        tills.publish(model, DAYS[first : last + 1])  # as the run does
    assert operator().execute(scheduler.context(), **state) is None
    assert len({request.run_id for request in scheduler.requests}) == 3


def test_a_killed_task_goes_on_with_what_is_left(model: ModelSpec, scheduler: Scheduler) -> None:
    with pytest.raises(TaskDeferred):
        operator().execute(scheduler.context())
    tills.publish(model, DAYS[:2])
    with pytest.raises(TaskDeferred):  # a new try, which knows nothing of the first
        operator().execute(scheduler.context())
    assert scheduler.requests[-1].conf["start"] == str(DAYS[2])


def test_nothing_stale_asks_for_nothing(model: ModelSpec, scheduler: Scheduler) -> None:
    tills.publish(model, DAYS)
    scheduler.is_paused = True
    assert operator().execute(scheduler.context()) is None
    assert not scheduler.requests


def test_a_day_that_is_not_published_is_left_to_training_set(model: ModelSpec, scheduler: Scheduler) -> None:
    (inputs.features_dataset(model).root / f"_manifests/{datasets.period_partition(DAYS[1])}.json").unlink()
    with pytest.raises(TaskDeferred):
        operator().execute(scheduler.context())
    assert scheduler.requests[-1].conf == {"start": str(DAYS[0]), "end": str(DAYS[0]), "announce": False}


def test_days_that_only_the_online_store_reads_are_rebuilt_too(
    model: ModelSpec, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one after the window: a new column would be missing there, and nothing could be loaded."""
    tills.publish(model, DAYS[:3])
    window = RetrainPlan(start=DAYS[0], end=DAYS[3], run_reason=RunReason.MANUAL, calendar=Calendar("1d", "UTC"))
    plan = window.dump()
    monkeypatch.setattr(online_store, "periods_to_load", lambda _model, window: [*window.periods[1:], DAYS[3]])
    with DAG("tills.retrain"), pytest.raises(TaskDeferred):
        RebuildFeaturesOperator(task_id="rebuild", model="tills", plan=plan).execute(scheduler.context())
    assert scheduler.requests[-1].conf == {"start": DAYS[3], "end": DAYS[3], "announce": False}
    tills.publish(model, DAYS[3:4])
    with DAG("tills.retrain"):
        assert RebuildFeaturesOperator(task_id="rebuild", model="tills", plan=plan).execute(scheduler.context()) is None


def test_days_that_a_run_has_not_rebuilt_fail_the_task(model: ModelSpec, scheduler: Scheduler) -> None:
    """Its run failed, or was deleted, or its code is another version than this task's."""
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(scheduler.context())
    tills.publish(model, DAYS[:1])
    with pytest.raises(StaleFeaturesError) as refused:
        operator().execute(scheduler.context(), event=[], **(deferred.value.kwargs or {}))
    run_id = scheduler.requests[0].run_id
    assert f"tills.features: its run {run_id} has ended, and 1 of its days are stale still" in str(refused.value)
    assert "the log of that run says why; correct it, then clear this task" in str(refused.value)


def test_a_paused_features_dag_fails_the_task(model: ModelSpec, scheduler: Scheduler) -> None:
    scheduler.is_paused = True
    with pytest.raises(StaleFeaturesError, match="tills.features: it is paused"):
        operator().execute(scheduler.context())
    assert not scheduler.requests


def test_only_models_that_rebuild_have_the_task(model: ModelSpec) -> None:
    def order(spec: ModelSpec) -> list[str]:
        return [task.task_id for task in retrain_dag(spec).topological_sort()]

    assert order(model)[:4] == ["plan", "rebuild", "materialize", "training_set"]
    assert "rebuild" not in order(model.model_copy(update={"stale_features": "refuse"}))
    dag = retrain_dag(model)
    assert dag.get_task("rebuild").doc_md
    assert dag.get_task("rebuild").execution_timeout
    for task_id in ("materialize", "training_set"):  # where nothing is rebuilt, they run all the same
        assert dag.get_task(task_id).trigger_rule == "none_failed"
