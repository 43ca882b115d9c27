"""When a candidate becomes champion, when it is held back, and how one goes back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from evergreen.errors import PromotionRefusedError
from evergreen.ledger import (
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VersionPromoted,
    VersionReleased,
)
from evergreen.promotion import rules
from evergreen.promotion.rules import decide_promotion
from evergreen.window import RunReason
from support.ledger_events import (
    REIGN,
    day,
    grown,
    held,
    judged,
    promoted,
    released,
    request,
    rolled_back,
    state_of,
    verdict,
)

pytestmark = pytest.mark.unit

FROZEN, UNFROZEN = PromotionsFrozen(reason="stocktaking"), PromotionsUnfrozen(reason="done")
READY = state_of(*REIGN, judged(40, "3"))  # the verdict on version 4 is entry 7


def test_the_first_champion() -> None:
    state = state_of(judged(10))
    act = decide_promotion(state, request(state, "1", 1), cooldown_days=30)
    assert act == VersionPromoted(version="1", previous_champion=None, as_of=day(10), verdict_entry=1)


def test_a_newer_one_that_passed_replaces_the_champion_it_was_judged_against() -> None:
    act = decide_promotion(READY, request(READY, "4", 7, approved_by="grace"), cooldown_days=10)
    assert act == VersionPromoted(
        version="4", previous_champion="3", as_of=day(40), verdict_entry=7, approved_by="grace"
    )


@pytest.mark.parametrize(
    ("verdict_entry", "before", "because"),
    [
        (judged(40, "3", passed=False), [], "auc 0.7"),
        (
            judged(30, "3"),
            [],
            "not newer.* version 3, knows data until 2013-01-31, this one until 2013-01-31",
        ),
        (judged(29, "3"), [], "retrain as of a later day"),
        (judged(40, "2"), [], "judged against version 2, but version 3 is champion now"),
        (judged(40, None), [], "judged against no version, but version 3"),
        (judged(40, "3", run_reason=RunReason.BACKFILL), [], "a backfill leaves evidence"),
        (judged(40, "2"), [rolled_back("2", "3")], "barred"),
    ],
)
def test_refused(verdict_entry: LedgerEvent, before: list[LedgerEvent], because: str) -> None:
    state = state_of(*REIGN, *before, verdict_entry)
    version = "3" if before else "4"
    with pytest.raises(PromotionRefusedError, match=rf"^version {version} is not promoted: .*{because}"):
        decide_promotion(state, request(state, version, state.head_number), cooldown_days=0)


@pytest.mark.parametrize(
    "changed",
    [
        dict(verdict_entry=1),
        dict(verdict_entry=2),
        dict(verdict_entry=8),
        dict(as_of=day(50)),
        dict(champion_version="2"),
        dict(verdict=verdict(level=0.01)),
    ],
)
def test_a_verdict_counts_only_as_it_is_recorded(changed: dict) -> None:
    with pytest.raises(PromotionRefusedError, match="does not hold its verdict"):
        decide_promotion(READY, request(READY, "4", 7, **changed), cooldown_days=0)


def test_a_backfill_promotes_if_it_is_asked_to() -> None:
    state = state_of(*REIGN, judged(40, "3", run_reason=RunReason.BACKFILL))
    assert isinstance(
        decide_promotion(state, request(state, "4", 7, promote_backfill=True), cooldown_days=0),
        VersionPromoted,
    )


def test_never_backwards_even_if_a_backfill_asks_for_it() -> None:
    state = state_of(*REIGN, judged(20, "3", run_reason=RunReason.BACKFILL))
    with pytest.raises(PromotionRefusedError, match="not newer"):
        decide_promotion(state, request(state, "4", 7, promote_backfill=True), cooldown_days=0)


@pytest.mark.parametrize(("days", "promotes"), [(0, True), (10, True), (11, False)])
def test_cooldown_counts_days_of_data(days: int, promotes: bool) -> None:
    act = decide_promotion(READY, request(READY, "4", 7), cooldown_days=days)
    if promotes:
        assert isinstance(act, VersionPromoted)
    else:
        assert isinstance(act, PromotionDeferred)
        assert "a run as of 2013-02-11 or later may promote" in act.reason


def test_a_frozen_model_stays_frozen() -> None:
    state = grown(READY, FROZEN)
    act = decide_promotion(state, request(state, "4", 7), cooldown_days=0)
    assert isinstance(act, PromotionDeferred)
    assert act.reason == "the model was frozen by ada: stocktaking; unfreeze it, then clear this task"
    # Asked again, while it still holds and when it does not any more.
    state = grown(state, act)
    assert decide_promotion(state, request(state, "4", 7), cooldown_days=0) == state.entries[-1]
    state = grown(state, UNFROZEN)
    assert isinstance(decide_promotion(state, request(state, "4", 7), cooldown_days=0), VersionPromoted)


def test_a_refusal_counts_before_a_rule_that_only_holds_back() -> None:
    state = state_of(*REIGN, FROZEN, judged(40, "3", passed=False))
    with pytest.raises(PromotionRefusedError, match="auc 0.7"):
        decide_promotion(state, request(state, "4", 8), cooldown_days=99)


def test_approval() -> None:
    with pytest.raises(PromotionRefusedError, match="nobody has approved"):
        decide_promotion(READY, request(READY, "4", 7), cooldown_days=0, needs_approval=True)
    approved = request(READY, "4", 7, approved_by="grace")
    assert isinstance(decide_promotion(READY, approved, cooldown_days=0, needs_approval=True), VersionPromoted)
    rejected = grown(READY, rules.decide_rejection(READY, "4", 7, "grace", "not before the holidays"))
    with pytest.raises(PromotionRefusedError, match="grace did not approve: not before the holidays"):
        decide_promotion(rejected, approved, cooldown_days=0, needs_approval=True)
    assert rules.decide_rejection(rejected, "4", 7, "nobody", "time is over") == rejected.entries[-1]


def test_what_is_promoted_cannot_be_rejected() -> None:
    state = grown(READY, promoted("4", 40, 7, "3"))
    with pytest.raises(PromotionRefusedError, match="was promoted by ada already: roll back instead"):
        rules.decide_rejection(state, "4", 7, "grace", "too late")


@pytest.mark.parametrize("since", [[], [FROZEN], [judged(50, "4"), promoted("5", 50, 9, "4")], [judged(41, "4")]])
def test_a_retry_ends_as_the_attempt_that_was_recorded(since: list[LedgerEvent]) -> None:
    state = state_of(*REIGN, judged(40, "3"), promoted("4", 40, 7, "3"), *since)
    assert decide_promotion(state, request(state, "4", 7), cooldown_days=99) == state.entries[7]


def test_a_retry_does_not_undo_a_rollback() -> None:
    state = state_of(*REIGN, judged(40, "3"), promoted("4", 40, 7, "3"), rolled_back("3", "4"))
    with pytest.raises(PromotionRefusedError, match="barred"):
        decide_promotion(state, request(state, "4", 7), cooldown_days=0)
    state = grown(state, released("4"))
    assert isinstance(decide_promotion(state, request(state, "4", 7), cooldown_days=0), VersionPromoted)


def test_after_a_rollback_a_newer_candidate_may_be_promoted() -> None:
    state = state_of(*REIGN, rolled_back("2", "3"), judged(25, "2"))
    act = decide_promotion(state, request(state, "4", 8), cooldown_days=0)
    assert act == VersionPromoted(version="4", previous_champion="2", as_of=day(25), verdict_entry=8)


@pytest.mark.parametrize(
    ("since", "to", "back_to"),
    [
        ([], None, "2"),
        ([], "1", "1"),
        ([rolled_back("2", "3")], None, "1"),  # not to 3, which is barred
        ([rolled_back("2", "3"), released("3")], None, "3"),
        ([rolled_back("2", "3"), released("3")], "3", "3"),
        ([rolled_back("2", "3"), judged(40, "2"), promoted("4", 40, 8, "2")], None, "2"),
        ([FROZEN], None, "2"),  # to go back is always possible
    ],
)
def test_rollback(since: list[LedgerEvent], to: str | None, back_to: str) -> None:
    state = state_of(*REIGN, *since)
    champion = state.champion
    act = rules.decide_rollback(state, to, "late flights")
    assert act == ChampionRolledBack(restored_version=back_to, barred_version=champion, reason="late flights")
    assert champion in grown(state, act).barred_versions


@pytest.mark.parametrize(
    ("acts", "to", "because"),
    [
        ([], None, "no champion to go back from"),
        (REIGN[:2], None, "nothing to go back to from version 1"),
        ([*REIGN[:4], rolled_back("1", "2")], None, r"barred \(barred: 2\)"),
        (REIGN, "3", "version 3 is champion already"),
        (REIGN, "9", "version 9 has never been champion"),
        ([*REIGN, rolled_back("2", "3")], "3", "version 3 is barred"),
    ],
)
def test_no_rollback(acts: list[LedgerEvent], to: str | None, because: str) -> None:
    with pytest.raises(PromotionRefusedError, match=because):
        rules.decide_rollback(state_of(*acts), to, "late flights")


@pytest.mark.parametrize("to", [None, "2"])
def test_who_has_seen_the_champion_leaves_it_once(to: str | None) -> None:
    state = state_of(*REIGN)
    act = rules.decide_rollback(state, to, "late", expected_champion="3")
    state = grown(state, act)
    assert rules.decide_rollback(state, to, "late", expected_champion="3") == state.entries[-1]
    # Whatever has become of it since.
    state = grown(grown(state, judged(40, "2")), promoted("4", 40, 8, "2"))
    assert rules.decide_rollback(state, to, "late", expected_champion="3") == state.entries[6]


@pytest.mark.parametrize(("leaving", "to"), [("1", None), ("9", None), ("3", "1")])
def test_a_champion_that_was_left_otherwise_is_not_gone_back_from(leaving: str, to: str | None) -> None:
    state = state_of(*REIGN, rolled_back("2", "3"))
    with pytest.raises(PromotionRefusedError, match=f"version {leaving} is not champion any more, version 2 is"):
        rules.decide_rollback(state, to, "late", expected_champion=leaving)


def test_release() -> None:
    state = state_of(*REIGN, rolled_back("2", "3"))
    act = rules.decide_release(state, "3", " it was the weather ")
    assert act == VersionReleased(version="3", reason="it was the weather")
    state = grown(state, act)
    assert rules.decide_release(state, "3", "again") == state.entries[-1]
    with pytest.raises(PromotionRefusedError, match="version 2 is not barred: there is nothing"):
        rules.decide_release(state, "2", "why")


def test_freeze_and_unfreeze_twice() -> None:
    state = state_of()
    with pytest.raises(PromotionRefusedError, match="not frozen"):
        rules.decide_unfreeze(state, "warm")
    state = grown(state, rules.decide_freeze(state, "cold"))
    assert rules.decide_freeze(state, "colder") == state.entries[-1]
    state = grown(state, rules.decide_unfreeze(state, "warm"))
    assert rules.decide_unfreeze(state, "warmer") == state.entries[-1]
    assert isinstance(rules.decide_freeze(state, "cold again"), PromotionsFrozen)


Change = Callable[[LedgerState, str], LedgerEvent | LedgerEntry]


@pytest.mark.parametrize(
    "change",
    [
        lambda state, why: rules.decide_rollback(state, None, why),
        lambda state, why: rules.decide_release(state, "3", why),
        rules.decide_freeze,
        lambda state, why: rules.decide_unfreeze(grown(state, FROZEN), why),
        lambda state, why: rules.decide_rejection(state, "4", 8, "grace", why),
    ],
)
def test_a_reason_is_wanted(change: Change) -> None:
    with pytest.raises(PromotionRefusedError, match="say why"):
        change(state_of(*REIGN, rolled_back("2", "3"), judged(40, "2")), " ")


def test_a_challenger_that_is_overtaken_says_so() -> None:
    state = state_of(*REIGN, judged(40, "3"), held("4", 40, 7), judged(41, "3"), promoted("5", 41, 9, "3"))
    with pytest.raises(PromotionRefusedError, match="not newer"):
        decide_promotion(state, request(state, "4", 7), cooldown_days=0)
    assert date(2013, 2, 11) == state.champion_as_of
