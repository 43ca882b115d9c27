"""The deadline of a retrain: in the DAG as the scheduler reads it, and what its callback says in the triggerer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import DeadlineReference
from airflow.sdk.definitions.deadline import DeadlineAlert
from airflow.serialization.serialized_objects import DagSerialization
from airflow.triggers.callback import CallbackTrigger

from evergreen.orchestration.dags.retrain import retrain_dag
from evergreen.orchestration.deadlines import retrain_deadline
from support import tills

pytestmark = pytest.mark.dag


@pytest.fixture
def model_folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    return tills.write_model(tmp_path, monkeypatch, use_models)


def test_a_model_without_a_deadline_has_none(model_folder: Path) -> None:
    assert not retrain_dag(tills.reload_spec()).deadline


def test_the_deadline_is_that_of_the_spec(model_folder: Path) -> None:
    model = tills.change_spec(model_folder, 'train="5d",', 'train="5d", deadline="90min",')
    dag = retrain_dag(model)
    [deadline] = dag.deadline
    assert isinstance(deadline, DeadlineAlert)
    assert deadline.interval == timedelta(minutes=90)
    # Runs that an asset event starts have no logical date.
    assert isinstance(deadline.reference, type(DeadlineReference.DAGRUN_QUEUED_AT))
    assert "deadline" in DagSerialization.to_dict(dag)["dag"]


@pytest.mark.parametrize(
    ("run_type", "level"),
    [("scheduled", logging.ERROR), ("asset_triggered", logging.ERROR), ("backfill", logging.INFO)],
)
def test_the_triggerer_reports_a_missed_deadline(
    model_folder: Path, run_type: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = tills.change_spec(model_folder, 'train="5d",', 'train="5d", deadline="90min",')
    deadline = retrain_deadline(model)
    assert deadline
    run = {"dag_id": "tills.retrain", "dag_run_id": "scheduled__1", "run_type": run_type}
    callback = deadline.callback
    trigger = CallbackTrigger(
        callback_path=callback.path, callback_kwargs={**callback.kwargs, "context": {"dag_run": run}}
    )

    async def states() -> list[str]:
        return [event.payload["state"] async for event in trigger.run()]

    with caplog.at_level(logging.INFO):
        assert asyncio.run(states())[-1] == "success"
    [record] = [record for record in caplog.records if record.name == "evergreen.orchestration.deadlines"]
    assert record.levelno == level
    assert "tills.retrain scheduled__1" in record.getMessage()
    assert "90min" in record.getMessage()
