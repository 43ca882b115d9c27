"""Which features runs `evergreen retrain` starts, and which it waits for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evergreen.periods import Calendar
from evergreen_local import retraining

pytestmark = pytest.mark.unit

PROGRESS: Any = SimpleNamespace(update=lambda _: None, clear=lambda: None, print=lambda _: None)
DAYS, HOURS = Calendar("1d", "America/New_York"), Calendar("1h", "America/New_York")


def test_a_run_is_about_missing_periods_that_follow_one_another() -> None:
    """A run builds all periods between two dates: those that are published are not to be among them."""
    days = ["2013-03-01", "2013-03-02", "2013-03-05", "2013-03-07", "2013-03-08", "2013-03-09"]
    assert retraining._split_into_stretches(DAYS, days, 2) == [days[:2], days[2:3], days[3:5], days[5:]]
    assert retraining._split_into_stretches(DAYS, days, 31) == [days[:2], days[2:3], days[3:]]
    assert retraining._split_into_stretches(DAYS, [], 31) == []
    spring = list(HOURS.periods_between("2013-03-10T05:00Z", "2013-03-10T09:00Z"))  # clocks skip an hour
    assert retraining._split_into_stretches(HOURS, spring, 31) == [spring]


def test_runs_that_are_active_now_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that begin later: data may arrive for ever."""
    looks = iter([["arrival", "backfill"], ["arrival", "later"], ["later", "latest"]])

    def dag_runs(dag_id: str, state: list[str]) -> list[dict[str, str]]:
        assert (dag_id, state) == ("shops.features", ["queued", "running"])
        return [{"dag_run_id": run} for run in next(looks)]

    airflow: Any = SimpleNamespace(dag_runs=dag_runs, check_scheduler=lambda: None)
    monkeypatch.setattr(retraining, "POLL_INTERVAL_S", 0)
    retraining._wait_for_active_runs(airflow, "shops.features", PROGRESS)
    assert list(looks) == []
