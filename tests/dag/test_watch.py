"""The tasks `watch` and `measure` of the monitor DAG: what they record, and what a backfill only says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import AirflowSkipException, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, OKResponse

from evergreen import ledger
from evergreen.lake.datasets import open_dataset
from evergreen.ledger import AlarmRaised, RetrainRequested
from evergreen.monitoring.period_rows import RegisteredModels
from evergreen.monitoring.record import read_record
from evergreen.orchestration.dags import monitor
from evergreen.orchestration.handover import LookPlan
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import RetrainPolicy
from evergreen.window import RunReason
from support.ledger_events import MODEL, day, promotion, verdict_event

pytestmark = pytest.mark.dag

FIRST, AS_OF, BROKEN, END = 30, 60, 64, 66


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    use_home(tmp_path)
    run = SimpleNamespace(dag_id=f"{MODEL}.monitor", run_id="a run")
    monkeypatch.setattr(monitor, "get_current_context", lambda: {"dag_run": run})


def promote_and_publish() -> None:
    event = verdict_event(AS_OF).model_copy(update={"candidate_inputs": ("distance",)})
    for item in (event, promotion("1", AS_OF, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, item=item: item)
    dataset = open_dataset(f"features/{MODEL}")
    for number in range(FIRST, END):
        rng = np.random.default_rng(number)
        file = dataset.stage(f"day={day(number)}", f"{number:064x}") / "departures.parquet"
        distances = rng.normal(500 + 10 * rng.standard_normal(), 100, 100) * (1.609 if number >= BROKEN else 1)
        pq.write_table(pa.table({"distance": distances, "late": np.zeros(100)}), file)
        dataset.publish(f"day={day(number)}", f"{number:064x}", {"departures": file}, {})


def watch(end: int, run_reason: RunReason) -> None:
    calendar = feature_spec(load_spec(MODEL)).calendar
    plan = LookPlan(start=day(end - 7), end=day(end), run_reason=run_reason, calendar=calendar)
    monitor.watch.function(MODEL, plan.dump())


class Scheduler:
    """Stands in for Airflow: keeps the runs that exist, and may die before it answers."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.is_dying = False

    def send(self, message: Any) -> Any:
        if self.is_dying:
            raise KeyboardInterrupt
        if (message.dag_id, message.run_id) in self.runs:
            return ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
        self.runs[message.dag_id, message.run_id] = message.conf
        return OKResponse(ok=True)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    scheduler = Scheduler()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", scheduler, raising=False)
    spec = load_spec(MODEL).model_copy(update={"retrain_on": RetrainPolicy(alarms=("break",))})
    monkeypatch.setattr(loader, "load_spec", lambda _name: spec)
    return scheduler


def request_retrain(end: int, run_reason: RunReason) -> str:
    calendar = feature_spec(load_spec(MODEL)).calendar
    plan = LookPlan(start=day(end - 7), end=day(end), run_reason=run_reason, calendar=calendar)
    return str(monitor.request_retrain.function(MODEL, plan.dump()))


def test_a_run_is_asked_for_once_whoever_is_killed(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AirflowSkipException, match="nothing is known of the data of the champion"):
        request_retrain(END, RunReason.ARRIVAL)
    promote_and_publish()
    watch(BROKEN, RunReason.ARRIVAL)
    with pytest.raises(AirflowSkipException, match="no alarm asks for a retrain"):
        request_retrain(BROKEN, RunReason.ARRIVAL)
    watch(END, RunReason.BACKFILL)
    with pytest.raises(AirflowSkipException, match="no alarm asks"):
        request_retrain(END, RunReason.ARRIVAL)

    watch(END, RunReason.ARRIVAL)
    with pytest.raises(AirflowSkipException, match="a backfill asks for no retrain"):
        request_retrain(END, RunReason.BACKFILL)
    with pytest.raises(AirflowSkipException, match="no alarm asks for a retrain"):
        request_retrain(END + 1, RunReason.SCHEDULE)
    assert f"it would fail: features of {day(END)} are not published" in caplog.text
    scheduler.is_dying = True
    with pytest.raises(KeyboardInterrupt):
        request_retrain(END, RunReason.ARRIVAL)
    assert not scheduler.runs
    scheduler.is_dying = False
    run_id = request_retrain(END + 1, RunReason.SCHEDULE)
    assert request_retrain(END, RunReason.ARRIVAL) == run_id
    (entry,) = [entry for entry in ledger.read_state(MODEL).entries if isinstance(entry.event, RetrainRequested)]
    assert scheduler.runs == {(f"{MODEL}.retrain", run_id): {"as_of": day(END), "request": entry.number}}


def alarms() -> list[AlarmRaised]:
    return [entry.event for entry in ledger.read_state(MODEL).entries if isinstance(entry.event, AlarmRaised)]


def test_a_backfill_says_what_was_known_then_and_records_nothing(caplog: pytest.LogCaptureFixture) -> None:
    promote_and_publish()
    champion = ledger.read_state(MODEL).champion_content
    assert champion
    with caplog.at_level(logging.INFO):
        watch(END, RunReason.BACKFILL)
    assert f"ALARM break since {day(BROKEN)}" in caplog.text
    assert f"nothing is recorded: this is what was known at the start of {day(END)}" in caplog.text
    assert (alarms(), read_record(MODEL, champion)) == ([], None)

    watch(END, RunReason.ARRIVAL)
    assert [event.day.isoformat() for event in alarms()] == [day(BROKEN)]
    assert read_record(MODEL, champion)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        watch(BROKEN, RunReason.BACKFILL)
    assert "ALARM" not in caplog.text, "the day before it broke"
    assert f"{BROKEN - AS_OF} periods from {day(AS_OF)} on, 0 alarms, 0 of them open" in caplog.text


def test_performance_is_measured_after_the_data_is_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of features without labels it is a problem, which `watch` does not know; a backfill records none of it."""
    promote_and_publish()
    champion = ledger.read_state(MODEL).champion_content
    assert champion
    watch(END, RunReason.ARRIVAL)
    recorded = read_record(MODEL, champion)
    assert recorded
    assert not any("cannot be measured" in problem for problem in recorded.problems)
    monkeypatch.setattr(RegisteredModels, "open", lambda *_: None)
    measure(END, RunReason.BACKFILL)
    assert "the table departures has no column label_known_at" in caplog.text
    assert read_record(MODEL, champion) == recorded
    measure(END, RunReason.ARRIVAL)
    measured = read_record(MODEL, champion)
    assert measured
    assert any("the table departures has no column label_known_at" in problem for problem in measured.problems)
    assert measured.alarms == recorded.alarms


def measure(end: int, run_reason: RunReason) -> None:
    calendar = feature_spec(load_spec(MODEL)).calendar
    plan = LookPlan(start=day(end - 7), end=day(end), run_reason=run_reason, calendar=calendar)
    monitor.measure.function(MODEL, plan.dump())


def test_a_retrain_waits_for_performance_and_does_not_need_it() -> None:
    """By `all_done_min_one_success` it is run if `watch` succeeds, whatever becomes of `measure`.

    If `watch` fails, `measure` has no success either. Another upstream task, such as `plan`, would have one.
    """
    spec = load_spec(MODEL).model_copy(update={"retrain_on": RetrainPolicy(alarms=("break",))})
    dag = monitor.monitor_dag(spec)
    task = dag.get_task("request_retrain")
    assert (task.trigger_rule, task.upstream_task_ids) == ("all_done_min_one_success", {"watch", "measure"})
    measuring = dag.get_task("measure")
    assert (measuring.trigger_rule, measuring.upstream_task_ids) == ("all_success", {"watch"})
    assert measuring.retries == 1


def test_watch_hands_its_plan_on() -> None:
    promote_and_publish()
    calendar = feature_spec(load_spec(MODEL)).calendar
    plan = LookPlan(start=day(END - 7), end=day(END), run_reason=RunReason.ARRIVAL, calendar=calendar).dump()
    assert monitor.watch.function(MODEL, plan) == plan


@pytest.mark.parametrize("run_reason", [RunReason.BACKFILL, RunReason.SCHEDULE])
def test_without_a_champion_they_are_skipped(run_reason: RunReason) -> None:
    for run in (watch, measure):
        with pytest.raises(AirflowSkipException, match="has no champion"):
            run(END, run_reason)
