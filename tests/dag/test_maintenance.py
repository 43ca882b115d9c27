"""The tasks of the maintenance DAG: the first lists, the second removes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import DownstreamTasksSkipped

from evergreen.errors import EvergreenError
from evergreen.lake.datasets import open_dataset
from evergreen.orchestration.dags import maintenance
from evergreen.settings import settings

pytestmark = pytest.mark.dag

PARTITION = "flights-2013-01-01"


class TaskInstance:
    """What a task hands over before it skips others."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed = (key, value)


@pytest.fixture
def context(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The context of a task, in a deployment whose lake has one old report."""
    monkeypatch.setenv("EVERGREEN_RETENTION__LEFTOVERS_DAYS", "7")
    monkeypatch.setenv("EVERGREEN_RETENTION__CHECKS_DAYS", "30")
    settings.cache_clear()
    dataset = open_dataset("checks/flight_delay")
    report = dataset.stage(PARTITION, "a") / "report.json"
    report.write_text("{}")
    os.utime(dataset.manifest_path(dataset.publish(PARTITION, "a", {"report": report}, {}).partition), (0, 0))
    context = {"params": {"dry_run": False}, "ti": TaskInstance()}
    monkeypatch.setattr(maintenance, "get_current_context", lambda: context)
    return context


def test_plan_lists_and_remove_removes(context: dict[str, Any]) -> None:
    sizes = {"checks/flight_delay": 2}
    assert maintenance.plan.function() == sizes
    assert open_dataset("checks/flight_delay").partitions() == [PARTITION]
    assert maintenance.remove.function() == sizes
    assert open_dataset("checks/flight_delay").partitions() == []


def test_a_dry_run_skips_remove(context: dict[str, Any]) -> None:
    context["params"]["dry_run"] = True
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        maintenance.plan.function()
    assert skipped.value.tasks == ["remove"]
    assert context["ti"].pushed == ("return_value", {"checks/flight_delay": 2})


def test_a_task_fails_after_it_has_removed_the_rest(context: dict[str, Any]) -> None:
    manifests = settings().lake / "checks/other/_manifests"
    manifests.mkdir(parents=True)
    (manifests / "a.json").write_text("{")
    with pytest.raises(EvergreenError, match="checks/other is not cleaned up: .* is no manifest"):
        maintenance.remove.function()
    assert open_dataset("checks/flight_delay").partitions() == []
