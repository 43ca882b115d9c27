"""`evergreen status MODEL`: how fresh a model is, what is missing or stale, and what runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evergreen import ledger
from evergreen.cli import app, load_commands
from evergreen.errors import EvergreenError
from evergreen.gates.verdict import Look
from evergreen.ledger import (
    AlarmRaised,
    ChampionRolledBack,
    PromotionsFrozen,
    RetrainRefused,
    RetrainRequested,
    RollbackRejected,
    RollbackRequested,
)
from evergreen.monitoring.record import (
    RECORD_FILE,
    AlarmRecord,
    ChangeRecord,
    MonitoringRecord,
    monitoring_dataset,
    record_partition,
)
from evergreen.spec.auto_rollback import AutoRollbackPolicy
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ApprovalPolicy, ModelSpec
from evergreen_local import model_status
from evergreen_local.model_status import collect_model_status, describe_status
from support import tills
from support.airflow_api import SimulatedAirflow
from support.ledger_events import THREE_CHAMPIONS, content, promotion, registration, verdict_event

pytestmark = pytest.mark.unit

NOW = datetime(2024, 1, 7, 15, tzinfo=UTC)
load_commands()


@pytest.fixture
def model_folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tills.write_model(tmp_path, monkeypatch, use_models, has_views=True)
    tills.deliver(6)
    return folder


@pytest.fixture
def airflow(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedAirflow:
    model = tills.reload_spec()
    simulated = SimulatedAirflow(feature_spec(model).calendar, lambda days: tills.publish(model, days))
    monkeypatch.setattr(model_status, "connect_to_airflow", lambda *_: simulated.client())
    return simulated


def lines(model: ModelSpec) -> list[str]:
    return describe_status(collect_model_status(model, NOW), feature_spec(model).calendar, NOW)


def test_a_model_without_anything(airflow: SimulatedAirflow) -> None:
    assert lines(tills.reload_spec()) == [
        "features of tills: none are published",
        "champion: none",
        "last verdict: none",
        "runs: tills.features: no active run, paused: nothing starts it",
        "runs: tills.retrain: no active run, paused: nothing starts it",
        "runs: tills.monitor: no active run, paused: nothing starts it",
    ]


def test_what_is_missing_and_what_is_stale(model_folder: Path, airflow: SimulatedAirflow) -> None:
    days = tills.days(5)
    tills.publish(tills.reload_spec(), [days[0], days[2], days[4]])
    missing = "missing: 3 days, 2024-01-02 – 2024-01-06; `evergreen backfill tills --from 2024-01-02 --to 2024-01-06`"
    first, second, *_ = lines(tills.reload_spec())
    assert first == "features of tills: fresh until 2024-01-06, 3 days are published"
    assert second == f"{missing} builds them"
    file = model_folder / "features.py"
    file.write_text(file.read_text().replace("> 5", "> 6"))
    stale, command = lines(tills.reload_spec())[2:4]
    assert stale.startswith("stale: 3 of 3 days of features of tills are stale; 3 days, ")
    assert "tills/features.py has changed" in stale
    mended = "stale: `evergreen backfill tills --from 2024-01-01 --to 2024-01-05` builds them again"
    assert command == mended
    rebuilding = tills.change_spec(model_folder, "schedule=", 'stale_features="rebuild", schedule=')
    assert f"{mended}; the next retrain does so, too" in lines(rebuilding)


def test_champion_verdict_and_runs(airflow: SimulatedAirflow, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_at = NOW - timedelta(days=3)
    monkeypatch.setattr("evergreen.ledger.journal.utc_now", lambda: recorded_at)
    for event in (verdict_event(10), registration("1", 1), promotion("1", 10, 1)):
        ledger.append_decision("tills", "ada", lambda _, event=event: event)
    airflow.is_paused = False
    airflow.runs = {
        day: {
            "dag_run_id": f"backfill__{day}",
            "state": "running",
            "data_interval_start": f"{day}T00:00:00+00:00",
        }
        for day in tills.days(7)
    }
    text = lines(tills.reload_spec())
    assert "champion: version 1, for 3 days, with data until 2013-01-11" in text
    [verdict] = [line for line in text if line.startswith("last verdict")]
    assert verdict.startswith("last verdict: as of 2013-01-11, 3 days ago, in entry 1: ")
    assert "gate passed" in verdict
    [run] = [line for line in text if line.startswith("runs: tills.features")]
    assert run.startswith("runs: tills.features: backfill__2024-01-01 running, ")
    assert run.endswith(", and 2 more")


def test_open_alarms_of_the_champion(airflow: SimulatedAirflow) -> None:
    for event in (verdict_event(10), promotion("1", 10, 1)):
        ledger.append_decision("tills", "ada", lambda _, event=event: event)
    publish_record(AlarmRecord(rule="drift", opened=date(2013, 1, 12), closed=date(2013, 2, 1), changes=(CHANGE,)))
    assert "monitoring: no alarm is open, as of 2013-02-09" in lines(tills.reload_spec())
    publish_record(AlarmRecord(rule="break", opened=date(2013, 2, 8), closed=None, changes=(CHANGE,) * 5))
    text = lines(tills.reload_spec())
    [line] = [line for line in text if line.startswith("ALARM: ")]
    assert line.startswith("ALARM: break since 2013-02-08: sales.amount missing (+12.5 sd between days), ")
    assert line.endswith(" and 2 more")
    assert not any("no alarm is open" in line for line in text)
    assert not any(line.startswith("alarms and retrains") for line in text)


def test_what_alarms_have_asked_for(airflow: SimulatedAirflow) -> None:
    alarm = AlarmRaised(
        champion="1", champion_content=content(10), rule="drift", day=date(2013, 2, 8), changes=("sales.amount level",)
    )
    request = RetrainRequested(alarm_entries=(3,), as_of="2013-02-10", cause="drift since 2013-02-08")
    refusal = RetrainRefused(alarm_entries=(3,), as_of="2013-02-20", obstacle="budget", reason="the budget is spent")

    def newest(*events: ledger.LedgerEvent) -> list[str]:
        for event in events:
            ledger.append_decision("tills", "ada", lambda _, event=event: event)
        return [line for line in lines(tills.reload_spec()) if line.startswith("alarms and retrains: ")]

    assert newest(verdict_event(10), promotion("1", 10, 1), alarm) == []
    asked = "alarms and retrains: one as of 2013-02-10 was asked for in entry 4: drift since 2013-02-08"
    assert newest(request) == [asked]
    assert newest(refusal) == ["alarms and retrains: none as of 2013-02-20, in entry 5: the budget is spent"]


@pytest.mark.parametrize("is_rejected", [True, False], ids=["rejected", "followed"])
def test_a_rollback_that_is_pending(airflow: SimulatedAirflow, is_rejected: bool) -> None:
    for event in THREE_CHAMPIONS[:4]:
        ledger.append_decision("tills", "ada", lambda _, event=event: event)
    day = date(2013, 2, 8)
    request = RollbackRequested(
        champion="2",
        champion_entry=4,
        previous="1",
        previous_content=content(10),
        as_of="2013-02-09",
        days=(date(2013, 1, 30), day),
        look=Look(end=day, days=9, level=0.001, gain=0.1, low=0.01),
        alpha=0.01,
        metric="a digest",
        rows=100,
        reason="version 1 does better",
    )
    model = tills.reload_spec().model_copy(update={"auto_rollback": AutoRollbackPolicy(metric="auc")})
    approved = model.model_copy(update={"approval": ApprovalPolicy(timeout_hours=2)})

    def newest(model: ModelSpec, event: ledger.LedgerEvent | None = None) -> list[str]:
        if event:
            ledger.append_decision("tills", "ada", lambda _: event)
        return [line for line in lines(model) if line.startswith("ROLLBACK: ")]

    asked = "ROLLBACK: one as of 2013-02-09 was asked for in entry 5, and it "
    assert newest(model) == []
    assert newest(model, request) == [f"{asked}follows in tills.monitor: version 1 does better"]
    assert newest(approved) == [f"{asked}waits for approval, in tills.monitor: version 1 does better"]
    rolled_back = ChampionRolledBack(restored_version="1", barred_version="2", reason="so", request_entry=5)
    frozen = f"{asked}is held back: the model is frozen: version 1 does better"
    assert newest(model, PromotionsFrozen(reason="an audit")) == [frozen]
    rejection = RollbackRejected(request_entry=5, rejected_by="grace", reason="a holiday")
    assert newest(approved, rejection if is_rejected else rolled_back) == []


CHANGE = ChangeRecord(column="sales.amount", measure="missing", deviation=12.5, effect=0.9)


def publish_record(*alarms: AlarmRecord) -> None:
    champion = ledger.read_state("tills").champion_content
    assert champion
    record = MonitoringRecord(
        champion_version="1",
        champion_content=champion,
        as_of="2013-01-11",
        reference_days=60,
        judged_until=date(2013, 2, 9),
        periods=30,
        alarms=alarms,
        problems=(),
    )
    dataset, partition, fingerprint = monitoring_dataset("tills"), record_partition(champion), f"{len(str(record)):064}"
    file = dataset.stage(partition, fingerprint) / "record.json"
    file.write_text(record.model_dump_json())
    dataset.publish(partition, fingerprint, {RECORD_FILE: file}, {})


def test_without_airflow_the_rest_is_told(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EvergreenError("no Airflow is running here\nnor anywhere")

    monkeypatch.setattr(model_status, "connect_to_airflow", fail)
    tills.publish(tills.reload_spec(), tills.days(2))
    assert lines(tills.reload_spec())[-1] == "runs: not known: no Airflow is running here"
    result = CliRunner().invoke(app, ["status", "tills", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["features"]["fresh_until"] == "2024-01-03"
    assert record["runs_problem"] == "no Airflow is running here"


def test_what_is_late_by_the_spec_is_told_without_any_run(model_folder: Path, airflow: SimulatedAirflow) -> None:
    tills.change_spec(model_folder, 'spine="receipts",', 'spine="receipts", fresh_within="6h",')
    tills.publish(tills.change_spec(model_folder, 'train="5d",', 'train="5d", fresh_within="4d",'), tills.days(4))
    text = lines(tills.reload_spec())
    assert "late: features, due by 2024-01-06 06:00 UTC, 33 h ago" in text
    assert "late: champion, there is none" in text
    tills.publish(tills.reload_spec(), tills.days(6)[4:])
    assert not [line for line in lines(tills.reload_spec()) if line.startswith("late: features")]
    for event in (verdict_event(10), registration("1", 1), promotion("1", 10, 1)):
        ledger.append_decision("tills", "ada", lambda _, event=event: event)
    [late] = [line for line in lines(tills.reload_spec()) if line.startswith("late: champion")]
    assert late.startswith("late: champion, due by 2013-01-15 00:00 UTC, ")
