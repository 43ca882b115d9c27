"""A challenger gathers evidence on later days by the tasks of its monitor DAG, and is promoted or withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped
from mlflow import MlflowClient

from evergreen import evaluation, ledger
from evergreen.feature_store import training_sets
from evergreen.ledger import LedgerState, VerdictRecorded, VersionPromoted
from evergreen.orchestration.dags import monitor
from evergreen.periods import Calendar
from evergreen.promotion import challengers, looks, service
from evergreen.registry import aliases, versions
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ApprovalPolicy, ModelSpec, MonitorPolicy
from evergreen.training.backends import process
from evergreen.window import RunReason
from support.calendars import later
from support.loans import FIRST, ZONE, window, write_loans

pytestmark = pytest.mark.integration

FIRST_RETRAIN = later(FIRST, 35)
ALL_INPUTS = ("amount", "customers__debt")
GATES = """
dict(kind="threshold", metric="rmse", at_most=100.0),
dict(kind="against_champion", metric="rmse", must_be="better", margin=1.7),
"""


@pytest.fixture
def loans(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    return write_loans(tmp_path, monkeypatch, use_models, GATES, label_delay=2)


def retrain(model: ModelSpec, as_of: str, *inputs: str, seed: int = 0) -> VerdictRecorded:
    """Train on these inputs, judge, register, and promote what passes; return the verdict's event."""
    model = model.model_copy(update={"seed": seed})
    examples = training_sets.build_training_set(model, window(model, as_of))
    candidate = process.train_in_process(model, examples, training_sets.training_set_dataset(model), inputs)
    champion = versions.find_champion(model)
    scores = evaluation.collect_evidence(model, examples, candidate, champion)
    run, compared = f"retrain {as_of}", champion.version if champion else None
    context = service.EvaluationContext(run, RunReason.SCHEDULE, examples, candidate, scores, compared)
    number = service.judge_candidate(model, context)
    page = service.verdict_report_path(model, number)
    version = versions.register_candidate(model, examples, candidate, number, page)
    service.sync_champion_aliases(model)
    request = service.PromotionRequest(number, version, RunReason.SCHEDULE)
    if service.promotion_blocker(model, request) is None:
        service.promote_version(model, request, actor="a test")
    return ledger.read_verdict_event(model.name, number)


def look(
    monkeypatch: pytest.MonkeyPatch, as_of: str, run_type: str = "scheduled", approval: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run the tasks of the monitor DAG as Airflow does; return the result of each, or why it was skipped."""
    end = Calendar("1d", ZONE).start(as_of)
    run = SimpleNamespace(
        run_type=SimpleNamespace(value=run_type),
        data_interval_start=end - timedelta(7),
        data_interval_end=end,
        logical_date=end - timedelta(7),
        run_after=end,
        run_id=f"{run_type} {as_of}",
        dag_id="loans.monitor",
        start_date=None,
        consumed_asset_events=[],
        triggering_user_name=None,
    )
    pushed: list[Any] = []
    instance = SimpleNamespace(xcom_push=lambda _key, value: pushed.append(value))
    monkeypatch.setattr(monitor, "get_current_context", lambda: {"dag_run": run, "params": {}, "ti": instance})
    results: dict[str, Any] = {}
    skipped: set[str] = set()

    def run_task(name: str, *inputs: Any) -> None:
        if name in skipped:
            results[name] = None
            return
        try:
            results[name] = getattr(monitor, name).function("loans", *inputs)
        except DownstreamTasksSkipped as stop:
            results[name] = pushed[-1]
            skipped.update(stop.tasks)
        except AirflowSkipException as skip:
            results[name], results[f"{name} skipped"] = None, str(skip)

    run_task("plan")
    run_task("examples", results["plan"])
    run_task("evaluate", results["plan"], results["examples"])
    run_task("judge", results["plan"], results["evaluate"])
    run_task("conclude", results["plan"], results["judge"], approval)
    return results


def read() -> LedgerState:
    return ledger.read_state("loans")


def aliases_in_mlflow() -> dict[str, str]:
    found = MlflowClient(settings().mlflow.get_secret_value()).get_registered_model("loans").aliases
    return {name: str(version) for name, version in found.items() if name != "candidate"}


def kinds() -> list[str]:
    return [entry.event.kind for entry in read().entries]


def test_a_better_challenger_is_promoted_when_evidence_suffices(
    loans: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert retrain(loans, FIRST_RETRAIN, "amount").verdict.promote
    start = later(FIRST_RETRAIN, 7)
    first = retrain(loans, start, *ALL_INPUTS)
    assert first.verdict.is_inconclusive, first.verdict.reason
    assert aliases_in_mlflow() == {"champion": "1", "challenger": "2"}
    wait = challengers.evidence_wait(read(), loans, start)
    assert wait
    assert "version 2 gathers evidence until" in wait

    again = retrain(loans, later(start, 7), *ALL_INPUTS, seed=1)
    assert not again.spends_alpha, "nothing is compared while a challenger gathers evidence"

    early = look(monkeypatch, later(start, 3))
    assert early["examples"] is None, "three days are too few for another look"
    assert read().head_number == 7

    assert look(monkeypatch, start, "backfill")["examples"] is None, "there was no challenger yet"
    backfilled = look(monkeypatch, later(start, 7), "backfill")
    assert backfilled["judge"] is None
    assert read().head_number == 7, "a backfill tells, and records nothing"

    promoted_on = None
    for week in range(1, 5):
        results = look(monkeypatch, later(start, 7 * week))
        event = read().entries[-1].event
        if results["conclude"]:
            promoted_on = later(start, 7 * week)
            break
        assert isinstance(event, VerdictRecorded)
        assert event.verdict.is_inconclusive, event.verdict.reason
        assert "it gathers evidence until" in results["conclude skipped"]
        count = read().head_number
        assert look(monkeypatch, later(start, 7 * week))["conclude"] is None
        assert read().head_number == count, "a look is recorded once"
        with monkeypatch.context() as patch:  # as a run that was planned before this look
            patch.setattr(challengers, "look_wait", lambda *_: None)
            late = look(patch, later(start, 7 * week - 1))
            assert "a look as of" in late["judge skipped"]
            assert late["conclude skipped"] == "the champion stays: nothing was judged"
    assert promoted_on
    assert results["conclude"] == "2"
    assert aliases_in_mlflow() == {"champion": "2", "previous": "1"}
    assert kinds()[-2:] == ["judged", "promoted"]
    state = read()
    assert state.last_promoted_as_of == promoted_on
    assert state.champion_as_of == start
    verdict_event = state.find_verdict_event(state.head_number - 1)
    assert verdict_event
    [result] = [r for r in verdict_event.verdict.results if r.looks]
    assert verdict_event.holdout == (first.holdout[0], later(promoted_on, -2))
    assert len(result.looks) > 2
    assert [r.days for r in result.looks] == [7 * n for n in range(1, len(result.looks) + 1)]
    [comparison] = state.comparisons
    assert comparison.promoted
    assert comparison.look_ends == tuple(r.end for r in result.looks)
    report = Path(results["judge"]["report"]).read_text()
    assert "Evidence so far: rmse_against_champion" in report

    rows = training_sets.look_dataset(loans).resolve(results["examples"])
    table = pq.read_table(training_sets.look_dataset(loans).file_path(rows, "holdout"))
    assert max(table["label_known_at"].to_pylist()) < Calendar("1d", ZONE).start(promoted_on)
    assert str(min(table["day"].to_pylist())) == first.holdout[0]
    assert look(monkeypatch, promoted_on)["examples"] is None, "there is no challenger any more"


def test_a_killed_look_is_completed_by_the_next_run(loans: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    retrain(loans, FIRST_RETRAIN, "amount")
    start = later(FIRST_RETRAIN, 7)
    retrain(loans, start, *ALL_INPUTS)
    as_of = later(start, 21)  # one look, on 28 days
    with monkeypatch.context() as patch:
        patch.setattr(service, "promote_version", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            look(patch, as_of)
    assert read().challenger_verdict == read().head_number
    assert not read().open_comparison, "it has passed"
    assert challengers.challenger_wait(read(), loans) == "it passed its gates, and waits for its promotion"
    service.freeze_promotions(loans, "audit", actor="ada")
    assert "frozen by ada" in look(monkeypatch, as_of)["conclude skipped"]
    assert aliases_in_mlflow()["challenger"] == "2"
    service.unfreeze_promotions(loans, "done", actor="ada")
    assert look(monkeypatch, as_of)["conclude"] == "2"
    assert aliases_in_mlflow()["champion"] == "2"


def test_a_run_killed_anywhere_leaves_the_same_entries(loans: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    retrain(loans, FIRST_RETRAIN, "amount")
    start = later(FIRST_RETRAIN, 7)
    retrain(loans, start, *ALL_INPUTS)
    before = kinds()

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    kill_points: list[tuple[Any, str]] = [
        (training_sets, "build_look_set"),
        (evaluation, "collect_look_evidence"),
        (looks, "judge_look"),
        (aliases, "sync_aliases"),  # the verdict is recorded
        (service, "verdict_report_path"),
        (service, "promote_version"),
        (aliases, "sync_aliases"),  # the promotion is recorded
    ]
    for module, function in kill_points:
        with monkeypatch.context() as patch:
            patch.setattr(module, function, die)
            with pytest.raises(KeyboardInterrupt):
                look(patch, later(start, 21))
    assert aliases_in_mlflow() == {"champion": "1", "challenger": "2"}, "they follow"
    look(monkeypatch, later(start, 21))
    assert aliases_in_mlflow() == {"champion": "2", "previous": "1"}
    assert kinds() == [*before, "judged", "promoted"]


def test_a_challenger_is_withdrawn_when_its_days_are_over(loans: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    retrain(loans, FIRST_RETRAIN, "customers__debt")
    start = later(FIRST_RETRAIN, 7)
    retrain(loans, start, *ALL_INPUTS)
    end = challengers.evidence_end(read(), loans)
    with monkeypatch.context() as patch:  # as where no day of features was published since
        event = read().challenger_event
        assert event
        patch.setattr(training_sets, "look_end", lambda *_: event.holdout[1])
        assert look(patch, later(end, -1))["conclude"] is None
        assert read().open_comparison
        text = look(patch, end)["conclude skipped"]
    assert "version 2 is withdrawn: its evidence does not suffice, and the days of its comparison were over" in text
    assert aliases_in_mlflow() == {"champion": "1"}
    assert [c.promoted for c in read().comparisons] == [False]


def test_a_challenger_is_withdrawn_when_the_champion_changes(loans: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    retrain(loans, FIRST_RETRAIN, "amount")
    start = later(FIRST_RETRAIN, 7)
    retrain(loans, start, *ALL_INPUTS)
    monkeypatch.setattr(service, "_has_files", lambda *_: False)
    service.declare_champion_lost(loans, "the disk broke", actor="ada", is_restoring=False)
    assert challengers.evidence_wait(read(), loans, start) is None, "it holds up no other candidate"
    assert look(monkeypatch, later(start, 7), "backfill")["examples"] is None, "it has nothing to tell"
    text = look(monkeypatch, later(start, 7))["conclude skipped"]
    assert "version 2 is withdrawn: it was judged against version 1, but no version is champion now" in text
    assert kinds()[-1] == "withdrawn"
    assert "challenger" not in aliases_in_mlflow()


def test_a_later_candidate_replaces_a_replaceable_challenger(loans: ModelSpec) -> None:
    model = loans.model_copy(update={"monitor": MonitorPolicy(replaceable=True)})
    retrain(model, FIRST_RETRAIN, "amount")
    start = later(FIRST_RETRAIN, 7)
    first = retrain(model, start, *ALL_INPUTS)
    second = retrain(model, later(start, 7), *ALL_INPUTS)
    assert first.verdict.is_inconclusive
    assert second.verdict.is_inconclusive
    withdrawn = read().entries.find_last(ledger.ChallengerWithdrawn, version="2")
    assert withdrawn
    assert withdrawn.event.reason.startswith("replaced by the candidate of retrain")
    assert (read().challenger, aliases_in_mlflow()["challenger"]) == ("3", "3")
    assert len(read().comparisons) == 1, "what the first has spent does not come back"
    alphas = [next(r.alpha for r in event.verdict.results if r.alpha) for event in (first, second)]
    assert alphas[1] < alphas[0] / 3


def test_a_person_approves_a_challenger_that_has_passed(loans: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    retrain(loans, FIRST_RETRAIN, "amount")
    start = later(FIRST_RETRAIN, 7)
    retrain(loans, start, *ALL_INPUTS)
    model = loans.model_copy(update={"approval": ApprovalPolicy()})
    as_of = later(start, 21)
    with monkeypatch.context() as patch:
        patch.setattr(loader, "load_spec", lambda _: model)
        assert "the model's spec requires approval" in look(patch, as_of)["conclude skipped"]
        assert read().challenger == "2"
        approved = look(patch, as_of, approval={"responded_by_user": {"name": "grace"}})
    assert approved["examples"] is None, "it has passed: nothing is looked at again"
    assert approved["conclude"] == "2"
    promoted = read().entries[-1].event
    assert isinstance(promoted, VersionPromoted)
    assert promoted.approved_by == "grace"
