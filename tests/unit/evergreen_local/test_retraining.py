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


def test_two_runs_of_features_are_active_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One computes while the other waits for Airflow; more would share the memory of this machine."""
    days = [f"2013-01-{day:02}" for day in range(1, 10)]
    steps: list[str] = []
    looks = iter([days, []])
    monkeypatch.setattr(retraining, "periods_without_features", lambda model, periods: next(looks))
    monkeypatch.setattr(retraining, "feature_spec", lambda model: SimpleNamespace(calendar=DAYS))
    monkeypatch.setattr(retraining, "require_published", lambda *arguments: None)
    monkeypatch.setattr(retraining.inputs, "max_periods_per_run", lambda spec: 3)

    def start(airflow: Any, run: Any, progress: Any, *, whole: bool) -> None:
        steps.append(f"start {run.conf['start']}")

    monkeypatch.setattr(retraining, "_start_run", start)
    monkeypatch.setattr(retraining, "_wait_for_run", lambda airflow, run, progress: steps.append(run.run_id))
    retraining._build_features(None, "shops.features", None, days, PROGRESS)  # type: ignore[arg-type]
    assert steps == [
        "start 2013-01-01",
        "start 2013-01-04",
        "from_2013-01-01_to_2013-01-03",
        "start 2013-01-07",
        "from_2013-01-04_to_2013-01-06",
        "from_2013-01-07_to_2013-01-09",
    ]
