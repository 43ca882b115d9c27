"""From evidence to a champion, in one process on real days: once, by the ledger, and only what was judged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evergreen import evaluation, ledger
from evergreen.errors import InputsChangedError, PromotionRefusedError, RegistryError, SignatureError
from evergreen.gates import BySliceGate, GateResult, MissingEvidence
from evergreen.lake import datasets
from evergreen.ledger import ChampionRolledBack, VersionPromoted
from evergreen.promotion import service
from evergreen.promotion.service import EvaluationContext, PromotionRequest
from evergreen.registry import aliases, versions
from evergreen.reports import gate_report
from evergreen.spec.model import ApprovalPolicy, ModelSpec
from evergreen.window import RunReason
from support.january import JANUARY_MODEL, SPEC, train_candidate
from support.ledgers import was_consistent

pytestmark = pytest.mark.integration

MODEL = JANUARY_MODEL


def case(
    end: int, run: str = "a run", model: ModelSpec = MODEL, origin: RunReason = RunReason.MANUAL
) -> EvaluationContext:
    """A candidate that knows January until `end`, scored against the champion of now."""
    examples, candidate = train_candidate(end, model, origin)
    against = versions.find_champion(model)
    scores = evaluation.collect_evidence(model, examples, candidate, against)
    return EvaluationContext(run, origin, examples, candidate, scores, against.version if against else None)


def registered(case: EvaluationContext, model: ModelSpec = MODEL) -> tuple[int, str]:
    number = service.judge_candidate(model, case)
    report = service.verdict_report_path(model, number)
    return number, versions.register_candidate(model, case.training_set, case.candidate, number, report)


def ask(number: int, version: str) -> str | None:
    return service.promote_version(MODEL, PromotionRequest(number, version, RunReason.MANUAL), actor="a test")


def promoted(end: int, **options: RunReason) -> tuple[int, str]:
    number, version = registered(case(end, **options))
    assert ask(number, version) is None
    return number, version


def test_a_case_is_judged_once_however_often_and_at_once(own_january: Path) -> None:
    promoted(11)
    one = case(15)
    with ThreadPoolExecutor(4) as pool:
        numbers = set(pool.map(lambda _: service.judge_candidate(MODEL, one), range(8)))
    assert len(numbers) == 1
    [number] = numbers
    assert len(ledger.read_state(MODEL.name).comparisons) == 1, "its confidence is spent once"
    judged = ledger.read_verdict_event(MODEL.name, number)
    assert judged.champion_version == "1"
    assert "auc_against_champion" in service.verdict_report_path(MODEL, number).read_text()


def test_report_is_rendered_after_the_verdict_is_recorded(own_january: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the two leaves an entry whose page is rendered from the recorded evidence."""
    context = case(11)
    with monkeypatch.context() as patch:
        patch.setattr(gate_report, "render_gate_report", _crash)
        with pytest.raises(RuntimeError, match="crash"):
            service.judge_candidate(MODEL, context)
    [entry] = ledger.read_state(MODEL.name).entries
    assert not datasets.lake_path(entry.event.evidence["report"]).exists()
    assert service.judge_candidate(MODEL, context) == entry.number
    page = service.verdict_report_path(MODEL, entry.number)
    content = page.read_bytes()
    page.unlink()
    assert service.verdict_report_path(MODEL, entry.number).read_bytes() == content
    page.unlink()
    with pytest.raises(InputsChangedError, match="clear the run from its evaluate task on"):
        service.verdict_report_path(MODEL.model_copy(update={"gates": MODEL.gates[:1]}), entry.number)


def test_report_shows_slices_that_are_in_the_lake(own_january: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(11)
    by_origin = BySliceGate(metric="auc", group_by="origin", margin=0.5)
    model = MODEL.model_copy(update={"gates": (*MODEL.gates, by_origin)})
    context = case(15, model=model)
    whole = service.verdict_report_path(model, service.judge_candidate(model, context)).read_text()
    for file in (own_january / "ledger" / MODEL.name).rglob("*4.json"):
        file.unlink()
    ledger._open_journal.cache_clear()
    monkeypatch.setattr("evergreen.promotion.slices.MAX_ENTRY_SLICES", 1)
    number = service.judge_candidate(model, context)
    page = service.verdict_report_path(model, number)
    page.unlink()
    event = ledger.read_verdict_event(MODEL.name, number)
    assert any(result.stored_slices for result in event.verdict.results)
    assert service.verdict_report_path(model, number).read_text() == whole
    page.unlink()
    datasets.lake_path(event.evidence["slices"]).unlink()
    assert service.verdict_report_path(model, number).read_text() == whole, "computed again from the evaluation"
    assert datasets.lake_path(event.evidence["slices"]).exists()


def test_the_lake_moves_with_its_evidence(own_january: Path, use_home: Callable[[Path], Path], tmp_path: Path) -> None:
    number, _ = promoted(11)
    before = service.verdict_report_path(MODEL, number)
    content = before.read_bytes()
    for entry in (own_january / "ledger" / MODEL.name).rglob("*.json"):
        assert str(own_january) not in entry.read_text()
    moved = own_january.rename(tmp_path / "moved")
    use_home(moved)
    page = service.verdict_report_path(MODEL, number)
    assert page == moved / before.relative_to(own_january)
    assert page.read_bytes() == content
    page.unlink()
    assert service.verdict_report_path(MODEL, number).read_bytes() == content, "rendered from the evaluation"
    evaluation_path = ledger.read_verdict_event(MODEL.name, number).evidence["evaluation"]
    assert evaluation.evaluation_dataset(MODEL).manifest(Path(evaluation_path).name)


def _crash(*_: object) -> str:
    raise RuntimeError("crash")


def test_each_change_is_recorded_and_shown_by_the_aliases(own_january: Path) -> None:
    number, first = promoted(11)
    again = ask(number, first)
    assert again is None, "a retry, or a twin, finds that it is done"
    _, second = promoted(15)
    state = ledger.read_state(MODEL.name)
    assert (state.champion, state.previous_champion) == (second, first)
    assert sum(isinstance(entry.event, VersionPromoted) for entry in state.entries) == 2

    act = service.roll_back_champion(MODEL, None, "it was wrong", actor="a person", expected_champion=second)
    assert act == ChampionRolledBack(restored_version=first, barred_version=second, reason="it was wrong")
    again = service.roll_back_champion(MODEL, None, "it was wrong", actor="a person", expected_champion=second)
    assert again == act, "one who asks twice goes back once"
    present = versions.get_champion_version(MODEL)
    assert present is not None
    assert str(present.version) == first
    assert was_consistent(aliases.repair_aliases(MODEL.name))


def test_what_was_judged_against_another_champion_is_not_promoted(own_january: Path) -> None:
    promoted(11)
    lenient = MODEL.model_copy(update={"gates": MODEL.gates[:1]})
    late, version = registered(case(17, model=lenient), lenient)
    promoted(15)
    with pytest.raises(PromotionRefusedError, match="judged against version 1, but version 3 is champion now"):
        ask(late, version)


def test_a_frozen_model_keeps_its_champion_and_names_the_challenger(own_january: Path) -> None:
    promoted(11)
    number, version = registered(case(15))
    service.freeze_promotions(MODEL, "an audit", actor="a person")
    assert "an audit" in (service.promotion_blocker(MODEL, PromotionRequest(number, version, RunReason.MANUAL)) or "")
    # The freeze is the reason, and not that nobody has approved.
    cautious = MODEL.model_copy(update={"approval": ApprovalPolicy()})
    for model in (MODEL, cautious):
        held = service.promote_version(model, PromotionRequest(number, version, RunReason.MANUAL), actor="a test")
        assert held is not None
        assert "an audit" in held
        assert ledger.read_state(MODEL.name).challenger == version
    service.unfreeze_promotions(MODEL, "it is over", actor="a person")
    with pytest.raises(PromotionRefusedError, match="nobody has approved"):
        service.promote_version(cautious, PromotionRequest(number, version, RunReason.MANUAL), actor="a test")
    assert ask(number, version) is None
    assert ledger.read_state(MODEL.name).champion == version


@pytest.mark.slow
def test_nothing_is_compared_while_the_model_is_frozen(own_january: Path) -> None:
    promoted(11)
    service.freeze_promotions(MODEL, "an audit", actor="a person")
    context = case(15)
    number, version = registered(context)
    assert service.judge_candidate(MODEL, context) == number, "judged once"
    result = comparison(number)
    assert (result.outcome, result.alpha) == ("not_computed", None)
    assert "an audit" in result.reason
    with pytest.raises(PromotionRefusedError, match="the model was frozen by a person: an audit"):
        ask(number, version)
    assert not ledger.read_state(MODEL.name).comparisons

    ready = MODEL.model_copy(update={"keep_candidates_ready": True})
    compared = service.judge_candidate(ready, context)
    assert comparison(compared).alpha is not None
    assert service.verdict_report_path(ready, compared) != service.verdict_report_path(MODEL, number)


@pytest.mark.slow
def test_a_run_cleared_after_a_freeze_is_judged_anew(own_january: Path) -> None:
    promoted(11)
    service.freeze_promotions(MODEL, "an audit", actor="a person")
    number, version = registered(case(15))
    service.unfreeze_promotions(MODEL, "it is over", actor="a person")
    again, same_version = registered(case(15))
    assert (again, same_version) == (number + 3, version)
    assert "an audit" not in service.verdict_report_path(MODEL, again).read_text()
    assert ask(again, version) is None


@pytest.mark.parametrize("seed", [SPEC.seed, SPEC.seed + 1], ids=["the champion itself", "another one"])
def test_the_same_window_again_spends_nothing(own_january: Path, seed: int) -> None:
    """A candidate that is the champion, byte for byte, or that is not newer, is not compared."""
    promoted(11)
    model = MODEL.model_copy(update={"seed": seed})
    context = case(11, model=model)
    number, version = registered(context, model)
    result = comparison(number)
    assert (result.outcome, result.alpha) == ("not_computed", None)
    assert "not newer" in result.reason
    assert not ledger.read_state(MODEL.name).comparisons
    with pytest.raises(PromotionRefusedError, match=f"version {version} is not promoted: .*not newer"):
        ask(number, version)
    champion = evaluation.load_evidence(model, context.evaluation).champion
    is_candidate = seed == SPEC.seed
    assert isinstance(champion, MissingEvidence) == is_candidate
    if is_candidate:
        assert champion == MissingEvidence("version 1 is the candidate itself, byte for byte")
        assert version == "1"


def comparison(number: int) -> GateResult:
    """The result of the gate that compares with the champion."""
    return ledger.read_verdict_event(MODEL.name, number).verdict.results[1]


def test_a_backfill_is_promoted_only_if_it_asks(own_january: Path) -> None:
    number, version = registered(case(11, origin=RunReason.BACKFILL))
    with pytest.raises(PromotionRefusedError, match="a backfill leaves evidence"):
        service.promote_version(MODEL, PromotionRequest(number, version, RunReason.BACKFILL), actor="a test")
    asking = PromotionRequest(number, version, RunReason.BACKFILL, promote_backfill=True)
    assert service.promote_version(MODEL, asking, actor="a test") is None


@pytest.mark.slow
def test_a_verdict_of_a_backfill_serves_a_run_by_hand(own_january: Path) -> None:
    number, _ = registered(case(11, "a backfill", origin=RunReason.BACKFILL))
    again, version = registered(case(11, "a run"))
    assert again == number, "the same evidence is judged once"
    assert ask(number, version) is None


def test_verdict_promotes_only_the_candidate_that_it_judged(own_january: Path) -> None:
    number, _ = registered(case(11))
    _, another = registered(case(15))
    with pytest.raises(RegistryError, match=f"version {another} of flight_delay is candidate"):
        ask(number, another)
    assert ledger.read_state(MODEL.name).champion is None


def test_a_version_that_is_not_what_was_judged_is_refused(own_january: Path) -> None:
    number, version = registered(case(11))
    [file] = own_january.glob("mlflow-artifacts/**/requirements.txt")
    file.write_text("evil")
    with pytest.raises(SignatureError, match="requirements.txt: was changed"):
        ask(number, version)
    assert ledger.read_state(MODEL.name).champion is None
