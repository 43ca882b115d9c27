"""Which runs `evergreen retrain` starts, which it waits for, and which it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evergreen import ledger
from evergreen.ledger import PromotionsFrozen, PromotionsUnfrozen, VersionPromoted
from evergreen.orchestration.handover import JudgedCandidate, RetrainPlan
from evergreen.periods import Calendar
from evergreen.promotion.challengers import training_pause
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason
from evergreen_local import earlier_runs, retraining
from evergreen_local.backfilling import RunFailedError
from support import tills
from support.published_retrains import AS_OF, TRAIN, publish_retrain
from support.published_retrains import DAYS as TILL_DAYS

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


DAG_ID = "tills.retrain"


class RetrainRuns:
    """Airflow with one retrain DAG, each run of which ends at once, with what the code of that moment makes."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.results: dict[tuple[str, str], Any] = {}
        self.state = "success"
        self.cleared: list[str] = []

    def dag_runs(self, dag_id: str) -> list[dict[str, Any]]:
        assert dag_id == DAG_ID
        return list(self.runs.values())

    def dag_run(self, _dag_id: str, run_id: str) -> dict[str, Any] | None:
        return self.runs.get(run_id)

    def trigger_dag_run(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        assert run_id not in self.runs
        at = f"2026-01-01T00:{len(self.runs):02}:00Z"
        self.runs[run_id] = {"dag_id": dag_id, "dag_run_id": run_id, "conf": conf, "run_after": at}
        self.run(run_id)

    def run(self, run_id: str) -> None:
        self.runs[run_id]["state"] = self.state
        model = tills.reload_spec()
        pause = training_pause(ledger.read_state("tills"), model, AS_OF)
        plan = RetrainPlan(start=TILL_DAYS[0], end=AS_OF, run_reason=RunReason.MANUAL, calendar=DAYS, pause=pause)
        self.results[run_id, "plan"] = plan.dump()
        if pause:
            return
        made = publish_retrain(model)
        assert made.candidate
        assert made.evaluation
        assert made.verdict_entry
        judged = JudgedCandidate(
            training_set_reference=dict(made.training_set),
            candidate_reference=dict(made.candidate),
            evaluation_reference=dict(made.evaluation),
            entry=made.verdict_entry,
            report="report.html",
        ).dump()
        if self.state == "success":
            self.results[run_id, "judge"] = judged
        self.results[run_id, "training_set"] = judged["training_set_reference"]

    def clear_tasks(self, _dag_id: str, run_id: str, *, only_failed: bool) -> None:
        assert only_failed
        self.cleared.append(run_id)
        self.run(run_id)

    def xcom(self, _dag_id: str, run_id: str, task_id: str) -> Any:
        return self.results.get((run_id, task_id))

    def task_ids(self, _dag_id: str) -> list[str]:
        return ["judge"]

    def task_instances(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return []

    def check_scheduler(self) -> None:
        raise AssertionError("every run has ended")


@pytest.fixture
def folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tills.write_model(tmp_path, monkeypatch, use_models, has_views=True)
    (folder / "train.py").write_text(TRAIN)
    tills.deliver(7)
    tills.publish(tills.change_spec(folder, 'train="5d"', 'parameters=dict(rounds=3), train="5d"'), TILL_DAYS)
    return folder


@pytest.fixture
def runs() -> RetrainRuns:
    return RetrainRuns()


def test_active_runs_are_waited_for_if_they_may_publish_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that begin later: data may arrive for ever."""
    looks: Any = None

    def dag_runs(dag_id: str, state: list[str]) -> list[dict[str, str]]:
        assert (dag_id, state) == ("tills.features", ["queued", "running"])
        return [{"dag_run_id": run} for run in next(looks)]

    def remaining_looks(model: ModelSpec) -> list[list[str]]:
        nonlocal looks
        looks = iter([["arrival", "backfill"], ["arrival", "later"], ["later", "latest"]])
        retraining._wait_for_active_runs(airflow, "tills.features", model, TILL_DAYS, PROGRESS)
        return list(looks)

    airflow: Any = SimpleNamespace(dag_runs=dag_runs, check_scheduler=lambda: None)
    monkeypatch.setattr(retraining, "POLL_INTERVAL_S", 0)
    model = tills.reload_spec()
    assert len(remaining_looks(model)) == 2, "all is published as it would be now"
    monkeypatch.setenv("EVERGREEN_AIRFLOW", "http://elsewhere:8080")
    settings.cache_clear()
    assert remaining_looks(model) == [], "what the workers of another machine have is not known"
    monkeypatch.delenv("EVERGREEN_AIRFLOW")
    settings.cache_clear()
    tills.deliver(7, raise_by=1.0)
    assert remaining_looks(model) == [], "a run may be building what was delivered again"


def edit_trainer(folder: Path, number: int) -> None:
    (folder / "train.py").write_text(f"{TRAIN}EDITED = {number}\n")


def retrain(runs: Any) -> tuple[str, str]:
    """Retrain as the command does; return the run that it shows, and what it has said."""
    said: list[str] = []
    progress: Any = SimpleNamespace(
        update=lambda _: None, clear=lambda: None, print=lambda text, **_: said.append(str(text))
    )
    run_id = retraining._retrain_as_of(runs, DAG_ID, tills.reload_spec(), AS_OF, progress)
    return run_id, "\n".join(said)


def test_a_retrain_after_an_edit_is_another_run(folder: Path, runs: RetrainRuns) -> None:
    assert retrain(runs)[0] == f"as_of_{AS_OF}"
    for number in (2, 3):
        edit_trainer(folder, number)
        run_id, text = retrain(runs)
        assert run_id == f"as_of_{AS_OF}_again_{number}"
        assert f"tills.retrain as of {AS_OF} has run before, and is run again: tills/train.py has changed" in text
    run_id, text = retrain(runs)
    assert run_id == f"as_of_{AS_OF}_again_3"
    assert "has run before, and nothing that it uses has changed since" in text
    assert len(runs.runs) == 3


def test_without_newer_data_the_last_retrain_is_repeated_if_outdated(
    folder: Path, runs: RetrainRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_delivered_periods", lambda _model: set(TILL_DAYS))
    monkeypatch.setattr(retraining, "_finished_as_of_periods", lambda *_: {AS_OF})
    said: list[str] = []
    progress: Any = SimpleNamespace(print=said.append)

    def due() -> list[str]:
        return retraining._next_as_of_periods(runs, DAG_ID, tills.reload_spec(), None, progress)  # type: ignore[arg-type]

    retrain(runs)
    assert due() == []
    assert f"`evergreen retrain tills --as-of {AS_OF}` shows it" in said[-1]
    edit_trainer(folder, 2)
    assert due() == [AS_OF]
    runs.trigger_dag_run(DAG_ID, f"as_of_{AS_OF}_again_2", {"as_of": AS_OF})
    assert due() == []
    for state in ("failed", "running"):  # after an edit with a mistake; or in another terminal
        runs.runs[f"as_of_{AS_OF}_again_2"]["state"] = state
        assert due() == [AS_OF]


def test_what_only_newer_data_can_promote_is_told_beforehand(folder: Path, runs: RetrainRuns) -> None:
    retrain(runs)
    event = VersionPromoted(version="1", previous_champion=None, as_of=AS_OF, verdict_entry=1)
    ledger.append_decision("tills", "ada", lambda _state: event)
    assert "can replace it" not in retrain(runs)[1]
    edit_trainer(folder, 2)
    assert f"version 1, has data until {AS_OF}: a version as of {AS_OF} is judged, and only one" in retrain(runs)[1]


def test_a_run_that_failed_goes_on_unless_its_data_is_outdated(folder: Path, runs: RetrainRuns) -> None:
    runs.state = "failed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retraining, "describe_failure", lambda *_: RuntimeError("failed"))
        with pytest.raises(RuntimeError):
            retrain(runs)
    runs.state = "success"
    edit_trainer(folder, 2)  # it had not come to the training
    assert retrain(runs)[0] == f"as_of_{AS_OF}"
    assert runs.cleared == [f"as_of_{AS_OF}"]
    del runs.results[f"as_of_{AS_OF}", "judge"]
    runs.runs[f"as_of_{AS_OF}"]["state"] = "failed"
    tills.deliver(7, raise_by=1.0)
    tills.publish(tills.reload_spec(), TILL_DAYS, tills.NO_ROWS_OF_VIEWS)
    run_id, text = retrain(runs)
    assert run_id == f"as_of_{AS_OF}_again_2"
    assert "features of 7 days" in text


def test_a_run_that_was_held_back_is_repeated_when_nothing_does(folder: Path, runs: RetrainRuns) -> None:
    ledger.append_decision("tills", "ada", lambda _state: PromotionsFrozen(reason="an audit"))
    assert retrain(runs)[0] == retrain(runs)[0] == f"as_of_{AS_OF}"
    ledger.append_decision("tills", "ada", lambda _state: PromotionsUnfrozen(reason="it is over"))
    run_id, text = retrain(runs)
    assert run_id == f"as_of_{AS_OF}_again_2"
    assert "what held it back is over" in text


def test_the_newest_run_is_shown_whoever_asked_for_it(folder: Path, runs: RetrainRuns) -> None:
    retrain(runs)
    edit_trainer(folder, 2)
    runs.trigger_dag_run(DAG_ID, "by_hand", {"as_of": AS_OF})
    runs.trigger_dag_run(DAG_ID, "another", {"as_of": "2024-01-07"})
    assert retrain(runs)[0] == "by_hand"
    assert earlier_runs.unused_run_id(runs, DAG_ID, AS_OF) == f"as_of_{AS_OF}_again_2"  # type: ignore[arg-type]


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
    monkeypatch.setattr(retraining, "_wait_for_run", lambda airflow, run, *_: steps.append(run.run_id))
    retraining._build_features(None, "shops.features", None, days, PROGRESS)  # type: ignore[arg-type]
    assert steps == [
        "start 2013-01-01",
        "start 2013-01-04",
        "from_2013-01-01_to_2013-01-03",
        "start 2013-01-07",
        "from_2013-01-04_to_2013-01-06",
        "from_2013-01-07_to_2013-01-09",
    ]


def test_a_run_that_fails_is_told_while_another_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further run is started for what would be in vain."""
    runs = {name: {"dag_id": "shops.features", "dag_run_id": name, "state": "running"} for name in ("first", "second")}
    airflow: Any = SimpleNamespace(
        task_ids=lambda _dag_id: ["build"],
        dag_run=lambda _dag_id, run_id: runs[run_id],
        task_instances=lambda *_, **__: [],
        check_scheduler=lambda: runs["second"].update(state="failed"),
        run_page_url=lambda _dag_id, run_id: f"http://airflow/{run_id}",
    )
    monkeypatch.setattr(retraining, "POLL_INTERVAL_S", 0)
    awaited, other = (retraining._Run("shops.features", name, {}, name) for name in runs)
    with pytest.raises(RunFailedError, match="second failed, run second"):
        retraining._wait_for_run(airflow, awaited, PROGRESS, [other])
