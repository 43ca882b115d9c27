"""What Airflow does after an error: an EvergreenError fails the task at once, anything else is retried."""

from __future__ import annotations

import pytest
from airflow.sdk import DAG, RetryAction

from evergreen.errors import EvergreenError, InputsChangedError, PromotionRefusedError, RawDataError, TrainingError
from evergreen.orchestration.dags.features import features_dag
from evergreen.orchestration.dags.retrain import retrain_dag
from evergreen.orchestration.dags.rollback import rollback_dag
from evergreen.spec import loader
from evergreen.spec.model import ApprovalPolicy
from evergreen.training.outcome import RetryableTrainingError

pytestmark = pytest.mark.dag


@pytest.fixture(scope="module")
def dags() -> list[DAG]:
    model = loader.load_spec("flight_delay")
    model = model.model_copy(update={"approval": ApprovalPolicy(approvers=("Ada",))})
    return [features_dag(model), retrain_dag(model), rollback_dag(model)]


def action(task: object, error: Exception) -> RetryAction:
    return task.retry_policy.evaluate(error, 1, 4).action  # type: ignore[attr-defined]


def test_every_task_fails_at_once_for_an_evergreen_error(dags: list[DAG]) -> None:
    errors = [RawDataError("raw data", []), InputsChangedError(), TrainingError(), PromotionRefusedError()]
    tasks = [task for dag in dags for task in dag.tasks]
    assert "approve" in {task.task_id for task in tasks}
    for task in tasks:
        assert {action(task, error) for error in errors} == {RetryAction.FAIL}, task
        assert task.retries, task


def test_other_errors_are_retried(dags: list[DAG]) -> None:
    assert not issubclass(RetryableTrainingError, EvergreenError)
    for task in (task for dag in dags for task in dag.tasks):
        for error in (OSError(), RetryableTrainingError()):
            assert action(task, error) is RetryAction.DEFAULT, task
