"""From evidence to a champion, in one process on real days: once, by the ledger, and only what was judged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from evergreen import evaluation, ledger
from evergreen.errors import EvergreenError, PromotionRefused, RegistryError
from evergreen.feature_store import training_sets
from evergreen.gates import AgainstChampion, Threshold
from evergreen.ledger import Promoted, RolledBack
from evergreen.promotion import service
from evergreen.promotion.service import Case, Claim
from evergreen.registry import versions
from evergreen.spec import loader
from evergreen.spec.model import Model
from evergreen.training.backends import process
from evergreen.window import Origin, Window

pytestmark = pytest.mark.integration

SPEC = loader.load("flight_delay")
MODEL = SPEC.model_copy(
    update={
        "gates": (
            Threshold(metric="auc", at_least=0.5),
            AgainstChampion(metric="auc", must_be="not_worse", margin=0.2),
        ),
        "holdout_days": 3,
        "parameters": {**SPEC.parameters, "rounds": 12},
    }
)


def case(end: int, run: str = "a run", model: Model = MODEL, origin: Origin = Origin.MANUAL) -> Case:
    """A candidate that knows January until `end`, scored against the champion of now."""
    window = Window.between(date(2013, 1, 1), date(2013, 1, end), origin, "America/New_York")
    examples = training_sets.build(model, window)
    source = training_sets.dataset(model)
    candidate = process.train(model, examples, source, training_sets.feature_columns(model))
    present = versions.champion(model)
    against = present and evaluation.Champion(str(present.version), versions.holdout_start(present))
    scores = evaluation.evaluate(model, examples, candidate, against or None)
    return Case(run, origin, examples, candidate, scores, against.version if against else None)


def registered(case: Case, model: Model = MODEL) -> tuple[int, str]:
    number = service.judge(model, case)
    verdict = ledger.judged(model.name, number).verdict
    report = service.report(model, number)
    return number, versions.register(model, case.training_set, case.candidate, verdict, report)


def ask(number: int, version: str) -> str | None:
    return service.promote(MODEL, Claim(number, version, Origin.MANUAL), by="a test")


def promoted(end: int, **options: Origin) -> tuple[int, str]:
    number, version = registered(case(end, **options))
    assert ask(number, version) is None
    return number, version


def test_a_case_is_judged_once_however_often_and_at_once(own_january: Path) -> None:
    promoted(11)
    one = case(15)
    with ThreadPoolExecutor(4) as pool:
        numbers = set(pool.map(lambda _: service.judge(MODEL, one), range(8)))
    assert len(numbers) == 1
    [number] = numbers
    assert len(ledger.state(MODEL.name).comparisons) == 1, "its confidence is spent once"
    judged = ledger.judged(MODEL.name, number)
    assert judged.champion == "1"
    assert "auc_against_champion" in service.report(MODEL, number).read_text()


def test_each_change_is_recorded_and_shown_by_the_aliases(own_january: Path) -> None:
    number, first = promoted(11)
    again = ask(number, first)
    assert again is None, "a retry, or a twin, finds that it is done"
    _, second = promoted(15)
    state = ledger.state(MODEL.name)
    assert (state.champion, state.previous) == (second, first)
    assert sum(isinstance(entry.act, Promoted) for entry in state.entries) == 2

    act = service.rollback(MODEL, None, "it was wrong", by="a person", leaving=second)
    assert act == RolledBack(to=first, barred=second, reason="it was wrong")
    again = service.rollback(MODEL, None, "it was wrong", by="a person", leaving=second)
    assert again == act, "one who asks twice goes back once"
    present = versions.champion(MODEL)
    assert present is not None
    assert str(present.version) == first
    assert versions.repair(MODEL.name).was_right


def test_what_was_judged_against_another_champion_is_not_promoted(own_january: Path) -> None:
    promoted(11)
    late, version = registered(case(17))
    promoted(15)
    with pytest.raises(PromotionRefused, match="judged against version 1, but version 3 is champion now"):
        ask(late, version)


def test_a_frozen_model_keeps_its_champion_and_names_the_challenger(own_january: Path) -> None:
    promoted(11)
    service.freeze(MODEL, "an audit", by="a person")
    number, version = registered(case(15))
    assert "an audit" in (service.may_promote(MODEL, Claim(number, version, Origin.MANUAL)) or "")
    held = ask(number, version)
    assert held is not None
    assert ledger.state(MODEL.name).challenger == version
    service.unfreeze(MODEL, "it is over", by="a person")
    assert ask(number, version) is None
    assert ledger.state(MODEL.name).champion == version


def test_a_backfill_is_promoted_only_if_it_asks(own_january: Path) -> None:
    number, version = registered(case(11, origin=Origin.BACKFILL))
    with pytest.raises(PromotionRefused, match="a backfill leaves evidence"):
        service.promote(MODEL, Claim(number, version, Origin.BACKFILL), by="a test")
    asking = Claim(number, version, Origin.BACKFILL, promote_backfill=True)
    assert service.promote(MODEL, asking, by="a test") is None


def test_a_verdict_of_a_backfill_serves_a_run_by_hand(own_january: Path) -> None:
    number, _ = registered(case(11, "a backfill", origin=Origin.BACKFILL))
    again, version = registered(case(11, "a run"))
    assert again == number, "the same evidence is judged once"
    assert ask(number, version) is None


def test_a_verdict_promotes_the_candidate_that_it_is_about_and_no_other(own_january: Path) -> None:
    number, _ = registered(case(11))
    _, another = registered(case(15))
    with pytest.raises(RegistryError, match=f"version {another} of flight_delay is candidate"):
        ask(number, another)
    assert ledger.state(MODEL.name).champion is None


def test_a_version_that_is_not_what_was_judged_is_refused(own_january: Path) -> None:
    import mlflow

    number, version = registered(case(11))
    mlflow.MlflowClient().set_model_version_tag(MODEL.name, version, "evergreen.fingerprint", "0" * 64)
    with pytest.raises(EvergreenError):
        ask(number, version)
    assert ledger.state(MODEL.name).champion is None
