"""The tasks of the monitor DAG that roll a champion back: who acts on what, and when they are skipped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.gates.verdict import Look
from evergreen.ledger import RollbackRejected, RollbackRequested
from evergreen.monitoring import record as records
from evergreen.monitoring.record import MonitoringRecord
from evergreen.orchestration.dags import monitor
from evergreen.orchestration.handover import LookPlan
from evergreen.promotion import auto_rollback, service
from evergreen.spec import loader
from evergreen.spec.auto_rollback import AutoRollbackPolicy
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ApprovalPolicy, ModelSpec
from evergreen.window import RunReason
from support.ledger_events import MODEL, THREE_CHAMPIONS, content, day

pytestmark = pytest.mark.dag

END = 40
REQUEST = RollbackRequested(
    champion="3",
    champion_entry=6,
    previous="2",
    previous_content=content(20),
    as_of=day(END),
    days=(date.fromisoformat(day(30)), date.fromisoformat(day(END))),
    look=Look(end=date.fromisoformat(day(END)), days=10, level=0.001, gain=0.1, low=0.01),
    alpha=0.01,
    metric="a digest",
    rows=100,
    reason="version 2 does better",
)


@pytest.fixture(autouse=True)
def model(tmp_path: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    use_home(tmp_path)
    spec = load_spec(MODEL).model_copy(
        update={"auto_rollback": AutoRollbackPolicy(metric="log_loss"), "approval": ApprovalPolicy(timeout_hours=2)}
    )
    monkeypatch.setattr(loader, "load_spec", lambda _name: spec)
    run = SimpleNamespace(dag_id=f"{MODEL}.monitor", run_id="a run", triggering_user_name=None)
    monkeypatch.setattr(monitor, "get_current_context", lambda: {"dag_run": run})
    for event in THREE_CHAMPIONS:
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)
    return spec


def compare(run_reason: RunReason = RunReason.ARRIVAL) -> Any:
    calendar = feature_spec(load_spec(MODEL)).calendar
    plan = LookPlan(start=day(END - 7), end=day(END), run_reason=run_reason, calendar=calendar)
    return monitor.compare_previous.function(MODEL, plan.dump())


def publish_record(monkeypatch: pytest.MonkeyPatch) -> None:
    record = MonitoringRecord(
        champion_version="3",
        champion_content=content(30),
        as_of=day(30),
        reference_days=30,
        judged_until=date.fromisoformat(day(END - 1)),
        periods=10,
        alarms=(),
        problems=(),
    )
    monkeypatch.setattr(records, "read_record", lambda *_: record)


def request() -> int:
    return ledger.append_decision(MODEL, "a run", lambda _: REQUEST).number


def test_who_comes_after_whom(model: ModelSpec) -> None:
    def upstream(spec: ModelSpec) -> dict[str, set[str]]:
        dag = monitor.monitor_dag(spec)
        names = ("compare_previous", "approve_rollback", "roll_back")
        return {name: dag.get_task(name).upstream_task_ids for name in names if name in dag.task_ids}

    assert upstream(model) == {
        "compare_previous": {"watch", "measure"},
        "approve_rollback": {"compare_previous"},
        "roll_back": {"compare_previous", "approve_rollback"},
    }
    assert upstream(model.model_copy(update={"approval": None})) == {
        "compare_previous": {"watch", "measure"},
        "roll_back": {"compare_previous"},
    }
    assert upstream(model.model_copy(update={"auto_rollback": None})) == {}


def test_a_backfill_rolls_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowSkipException, match="nothing is known of the data of the champion"):
        compare()
    publish_record(monkeypatch)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("it compares")

    monkeypatch.setattr(auto_rollback, "request_rollback", fail)
    with pytest.raises(AirflowSkipException, match="a backfill rolls nothing back"):
        compare(RunReason.BACKFILL)


def test_it_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_record(monkeypatch)
    with pytest.raises(
        AirflowSkipException, match="nothing is rolled back: versions 3 and 2 are not compared yet: 0 of"
    ):
        compare()


def test_the_entry_is_handed_on_and_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_record(monkeypatch)

    def append(*_: Any, actor: str, **__: Any) -> ledger.LedgerEntry:
        return ledger.append_decision(MODEL, actor, lambda _: REQUEST)

    monkeypatch.setattr(auto_rollback, "request_rollback", append)
    number = compare()
    assert number == 7
    with pytest.raises(AirflowSkipException, match="the champion stays: .* nobody has approved the rollback"):
        monitor.roll_back.function(MODEL, number, None)
    calls = list[dict[str, Any]]()

    def roll_back(*_: Any, **options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(restored_version="2", barred_version="3")

    monkeypatch.setattr(service, "roll_back_champion", roll_back)
    answer = {"responded_by_user": {"id": "7", "name": "grace"}}
    assert monitor.roll_back.function(MODEL, number, answer) == "2"
    [call] = calls
    assert call["request"] == service.RollbackRequest(7, "grace")
    assert call["expected_champion"] == "3"
    assert call["find_obstacle"](ledger.read_state(MODEL)) is None


@pytest.mark.parametrize(
    ("user", "expected"), [(None, ("nobody", "nobody responded in time")), ({"id": "7"}, ("7", "rejected"))]
)
def test_a_rejection_is_recorded(
    model: ModelSpec, user: dict[str, str] | None, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = request()
    approve: Any = monitor.monitor_dag(model).get_task("approve_rollback")
    assert (approve.defaults, approve.response_timeout.total_seconds()) == (["Reject"], 7200)
    approve.request_entry = number
    run = SimpleNamespace(dag_id=f"{MODEL}.monitor", run_id="a_run", triggering_user_name=None)
    skipped = list[str]()
    monkeypatch.setattr(type(approve), "skip", lambda _, ti, tasks: skipped.extend(item.task_id for item in tasks))
    context: Any = {"dag_run": run, "ti": SimpleNamespace(task=approve), "task": approve}
    event = {
        "chosen_options": ["Reject"],
        "params_input": {},
        "responded_at": datetime.now(UTC),
        "responded_by_user": user,
        "timedout": user is None,
    }
    with suppress(DownstreamTasksSkipped):  # how the operator ends where something comes after it
        approve.execute_complete(context, event)
    assert skipped == ["roll_back"]
    rejected = ledger.read_state(MODEL).entries[-1].event
    assert isinstance(rejected, RollbackRejected)
    assert (rejected.request_entry, rejected.rejected_by, rejected.reason) == (number, *expected)
    with pytest.raises(PromotionRefusedError, match="did not approve a rollback of version 3"):
        auto_rollback.roll_back(model, number, actor="a run", approved_by="ada")
