"""The task that trains, as far as no cluster is asked."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk import DAG

from evergreen.orchestration.operators.train import TrainOperator, training_timeout
from evergreen.spec import loader
from evergreen.training.outcome import RetryableTrainingError

pytestmark = pytest.mark.dag


def test_one_try_has_time_for_all_its_attempts() -> None:
    model = loader.load_spec("flight_delay")
    with DAG("any", default_args={"execution_timeout": timedelta(minutes=1), "retry_delay": timedelta(seconds=7)}):
        task = TrainOperator(task_id="train", model=model, training_set_reference={})
    attempts = model.resources.max_preemptions + 1
    assert (
        task.execution_timeout
        == training_timeout(model)
        >= timedelta(minutes=attempts * model.resources.timeout_minutes)
    )
    assert task.retry_delay == timedelta(seconds=7)
    assert task.doc_md


def test_a_training_process_is_ended_with_its_task() -> None:
    """The signal's handler calls `on_kill`; what it raises unwinds the wait for the process, which ends that."""
    with pytest.raises(RetryableTrainingError, match="ended from outside"):
        TrainOperator(task_id="train", model=loader.load_spec("flight_delay"), training_set_reference={}).on_kill()
