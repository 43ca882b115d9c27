"""The task `plan` of the retrain DAG: what it skips while the model is frozen or cooling down, however a run starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import DownstreamTasksSkipped

from evergreen import ledger
from evergreen.errors import StaleFeaturesError, WindowError
from evergreen.features import inputs
from evergreen.ledger import AlarmRaised, PromotionsFrozen, RetrainRequested
from evergreen.orchestration.dags import retrain
from evergreen.orchestration.handover import RetrainPlan
from evergreen.periods import Calendar, Duration
from evergreen.promotion import challengers
from evergreen.registry import versions
from evergreen.scoring.predictions import Champion
from evergreen.spec import loader
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.model import MonitorPolicy, RetrainPolicy
from evergreen.window import RunReason
from support.ledger_events import content, look_event, promotion, registration, verdict_event

pytestmark = pytest.mark.dag

PAUSED = {"rebuild", "training_set", "train", "backtest", "evaluate", "judge", "register", "promote"}
BACKTEST = {"materialize", "evaluate", "judge", "register", "promote"}
CALENDAR = Calendar("1d", "America/New_York")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    use_home(tmp_path)
    champion = Champion("1", "2013-01-04", content="a hash")
    monkeypatch.setattr(versions, "find_champion", lambda _model: champion)


def record(*events: ledger.LedgerEvent) -> None:
    for event in events:
        ledger.append_decision("coin", "ada", lambda _state, event=event: event)


def configure(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    load_spec = loader.load_spec
    spec = load_spec("coin").model_copy(update=changes)
    monkeypatch.setattr(loader, "load_spec", lambda name: spec if name == "coin" else load_spec(name))


def publish_stale_days(*days: int) -> None:
    """Publish days of January that nothing of today's code, parameters or registers has made."""
    dataset = inputs.features_dataset(loader.load_spec("coin"))
    for day in days:
        dataset.publish(f"day=2013-01-{day:02}", "otherwise", {}, {"code": {"pyspark": "3.5.0"}})


def plan(
    monkeypatch: pytest.MonkeyPatch, as_of: str, run_type: str = "manual", **params: Any
) -> tuple[RetrainPlan, set[str]]:
    """Run the task; return its result and the tasks that it skips."""
    end = CALENDAR.start(as_of)
    results: list[Any] = []
    run = SimpleNamespace(
        run_type=SimpleNamespace(value=run_type),
        data_interval_start=end - timedelta(7),
        data_interval_end=end,
        logical_date=end - timedelta(7) if run_type != "manual" else None,
        run_after=datetime(2013, 2, 20, tzinfo=UTC),
        run_id="a run",
        start_date=None,
        consumed_asset_events=[SimpleNamespace(source_run_id="a run", extra={"data_end": str(as_of)})]
        if run_type == "asset_triggered"
        else [],
    )
    if run_type in ("manual", "asset_triggered"):
        run.data_interval_start = run.data_interval_end = None
    if run_type == "manual":
        params["as_of"] = str(as_of)
    instance = SimpleNamespace(xcom_push=lambda _key, value: results.append(value))
    monkeypatch.setattr(
        retrain, "get_current_context", lambda: {"dag_run": run, "params": {"promote": False, **params}, "ti": instance}
    )
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        retrain.plan.function("coin")
    return RetrainPlan.load(results[0]), set(skipped.value.tasks)


@pytest.mark.parametrize("run_type", ["scheduled", "manual"])
def test_plan_trains_nothing_while_the_model_is_frozen(
    run_type: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record(PromotionsFrozen(reason="stocktaking"))
    with caplog.at_level(logging.INFO):
        planned, skipped = plan(monkeypatch, "2013-01-18", run_type)
    assert skipped == PAUSED, "the online store stays fresh"
    reason = "the model was frozen by ada: stocktaking; unfreeze it, then clear this run"
    assert planned.pause == reason
    assert f"nothing is trained or compared: {reason}" in caplog.text


def test_plan_says_so_too_when_data_arrives(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    record(PromotionsFrozen(reason="stocktaking"))
    configure(monkeypatch, retrain_after=Duration(3, "d"))
    with caplog.at_level(logging.INFO):
        planned, skipped = plan(monkeypatch, "2013-01-18", "asset_triggered")
    assert skipped == PAUSED | {"materialize"}, "of 0 new days"
    assert planned.pause
    assert "stocktaking" in caplog.text


def test_plan_trains_nothing_until_the_cooldown_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    record(verdict_event(10), promotion("1", 10, 1))  # as of 11 January
    configure(monkeypatch, cooldown=Duration(28, "d"))
    for as_of, is_paused in (("2013-02-07", True), ("2013-02-08", False)):
        planned, skipped = plan(monkeypatch, as_of)
        assert skipped == (PAUSED if is_paused else {"backtest"})
        assert bool(planned.pause) == is_paused
    assert "a run as of 2013-02-08 or later may promote" in (plan(monkeypatch, "2013-02-07")[0].pause or "")


def test_plan_trains_during_a_freeze_if_the_spec_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    record(PromotionsFrozen(reason="stocktaking"))
    configure(monkeypatch, keep_candidates_ready=True)
    planned, skipped = plan(monkeypatch, "2013-01-18")
    assert (skipped, planned.pause, planned.champion_version) == ({"backtest"}, None, "1")


@pytest.mark.parametrize(("promotes", "skips"), [(False, BACKTEST), (True, PAUSED)])
def test_a_frozen_model_is_backtested_but_not_promoted_by_a_backfill(
    promotes: bool, skips: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(PromotionsFrozen(reason="stocktaking"))
    _, skipped = plan(monkeypatch, "2013-01-18", "backfill", promote=promotes)
    assert skipped == skips


def test_plan_trains_nothing_while_a_challenger_gathers_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loader.load_spec("coin")
    gates = (AgainstChampionGate(metric="auc", must_be="better"),)
    configure(monkeypatch, gates=gates, keep_candidates_ready=True)
    fingerprint = challengers.gates_fingerprint(spec.model_copy(update={"gates": gates}))
    judged = verdict_event(20, "1").model_copy(update={"fingerprints": {"gates": fingerprint}})
    record(verdict_event(10), promotion("1", 10, 1), look_event(judged, "inconclusive"), registration("2", 3))
    planned, skipped = plan(monkeypatch, "2013-02-01")
    assert skipped == PAUSED
    assert planned.pause
    assert "version 2 gathers evidence until 2013-02-11" in planned.pause
    configure(monkeypatch, gates=gates, monitor=MonitorPolicy(replaceable=True))
    assert plan(monkeypatch, "2013-02-01")[1] == {"backtest"}


@pytest.mark.parametrize("run_type", ["scheduled", "manual", "asset_triggered", "backfill"])
def test_plan_refuses_to_mix_stale_days(
    run_type: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish_stale_days(8, 9, 10)
    configure(monkeypatch, stale_features="refuse")
    with caplog.at_level(logging.WARNING), pytest.raises(StaleFeaturesError) as refused:
        plan(monkeypatch, "2013-01-11", run_type)
    text = str(refused.value)
    assert text.startswith("coin: 3 of 3 days of features are stale: 1 fault\n  - 3 days, 2013-01-08 – 2013-01-10: ")
    for part in (
        "pyspark was 3.5.0 and is ",
        "flight_delay/features.py is new",
        "Evergreen's own code has changed",
        "run `evergreen backfill flight_delay --from 2013-01-08 --to 2013-01-10`",
    ):
        assert part in text
    assert "3 of 3 days of features of flight_delay are stale" in caplog.text


def test_a_backfill_that_promotes_refuses_stale_days_too(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_stale_days(8)
    configure(monkeypatch, stale_features="refuse")
    with pytest.raises(StaleFeaturesError):
        plan(monkeypatch, "2013-01-11", "backfill", promote=True)


def test_plan_refuses_nothing_where_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish_stale_days(8)
    record(PromotionsFrozen(reason="stocktaking"))
    configure(monkeypatch, stale_features="refuse")
    assert plan(monkeypatch, "2013-01-11")[1] == PAUSED - {"rebuild"}
    configure(monkeypatch, stale_features="refuse", retrain_after=Duration(3, "d"), keep_candidates_ready=True)
    assert plan(monkeypatch, "2013-01-11", "asset_triggered")[1] == PAUSED - {"rebuild"} | {"materialize"}
    assert caplog.text.count("1 of 1 days of features of flight_delay are stale") == 2


def test_days_outside_of_the_window_may_be_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_stale_days(12, 13)
    assert plan(monkeypatch, "2013-01-11")[1] == {"backtest"}


def test_plan_leaves_stale_days_to_the_task_that_rebuilds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_stale_days(8)
    assert plan(monkeypatch, "2013-01-11")[1] == {"backtest"}
    assert plan(monkeypatch, "2013-01-11", "backfill")[1] == BACKTEST
    record(PromotionsFrozen(reason="stocktaking"))
    assert plan(monkeypatch, "2013-01-11")[1] == PAUSED, "the online store stays fresh"


def test_plan_knows_the_alarms_that_ask_for_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record(verdict_event(10), promotion("1", 10, 1))
    alarm = AlarmRaised(
        champion="1", champion_content=content(10), rule="drift", day=date(2013, 1, 15), changes=("flights.x level",)
    )
    cause = "drift since 2013-01-15: flights.x level (alarm in entry 3)"
    record(alarm, RetrainRequested(alarm_entries=(3,), as_of="2013-01-18", cause=cause))
    with caplog.at_level(logging.INFO):
        planned, _ = plan(monkeypatch, "2013-01-18", request=4)
    assert (planned.run_reason, planned.cause, planned.end) == (RunReason.ALARM, cause, "2013-01-18")
    assert planned.window().cause == cause
    assert f"alarms ask for this run: {cause}" in caplog.text
    assert plan(monkeypatch, "2013-01-18", request=None)[0].cause is None
    with pytest.raises(WindowError, match="entry 3 of the ledger of coin asks for no retrain"):
        plan(monkeypatch, "2013-01-18", request=3)


def test_without_the_clock_only_a_first_champion_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, retrain_on=RetrainPolicy(schedule=False, alarms=("drift",)))
    assert plan(monkeypatch, "2013-01-18", "scheduled")[1] == {"backtest"}
    record(verdict_event(10), promotion("1", 10, 1))
    planned, skipped = plan(monkeypatch, "2013-01-18", "scheduled")
    assert skipped == PAUSED, "the online store stays fresh"
    assert "retrain_on has schedule=False" in (planned.pause or "")
    assert plan(monkeypatch, "2013-01-18")[1] == {"backtest"}, "a person retrains"
    assert plan(monkeypatch, "2013-01-18", "backfill")[1] == BACKTEST
