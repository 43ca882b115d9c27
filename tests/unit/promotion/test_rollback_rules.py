"""What holds an automatic rollback back, and which entries of it a ledger accepts."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from evergreen.errors import LedgerError, PromotionRefusedError
from evergreen.gates.verdict import Look
from evergreen.ledger import (
    ChampionRolledBack,
    LedgerEvent,
    LedgerState,
    PromotionsFrozen,
    RollbackRejected,
    RollbackRequested,
)
from evergreen.monitoring.champion_pair import find_pair
from evergreen.promotion.approvals import find_waiting_rollback
from evergreen.promotion.rollback_rules import closed_reason, decide_rollback_request, find_obstacle
from evergreen.spec.auto_rollback import AutoRollbackPolicy
from evergreen.spec.model import ApprovalPolicy, ModelSpec
from support.ledger_events import (
    MODEL,
    THREE_CHAMPIONS,
    append_event,
    build_state,
    content,
    day,
    look_event,
    loss,
    promotion,
    release,
    rollback,
    verdict_event,
)
from support.ledgers import ledger_model

pytestmark = pytest.mark.unit

LOSS = {"kind": "against_champion", "metric": "log_loss", "must_be": "better"}
TWO = THREE_CHAMPIONS[:4]


def spec(**policy: Any) -> ModelSpec:
    return ledger_model(MODEL, gates=(LOSS,)).model_copy(update={"auto_rollback": AutoRollbackPolicy(**policy)})


def requested(as_of: int = 30, champion: int = 2, entry: int = 4, **changes: Any) -> RollbackRequested:
    """Return a request to roll version `champion` back, which was promoted in `entry`, to the one before."""
    look = Look(end=date.fromisoformat(day(as_of)), days=10, level=0.001, gain=0.1, low=0.01)
    fields = {
        "champion": str(champion),
        "champion_entry": entry,
        "previous": str(champion - 1),
        "previous_content": content(10 * (champion - 1)),
        "as_of": day(as_of),
        "days": (date.fromisoformat(day(as_of - 10)), date.fromisoformat(day(as_of))),
        "look": look,
        "alpha": 0.01,
        "metric": "a digest",
        "rows": 100,
        "reason": "it does better",
    }
    return RollbackRequested(**fields | changes)


def automatic(request_entry: int | None, restored: str = "1", barred: str = "2") -> ChampionRolledBack:
    return ChampionRolledBack(
        restored_version=restored, barred_version=barred, reason="it does better", request_entry=request_entry
    )


def test_the_pair_is_the_champion_and_the_one_that_it_replaced() -> None:
    pair = find_pair(build_state(*THREE_CHAMPIONS))
    assert pair
    assert (pair.champion, pair.previous, pair.champion_entry, pair.start) == ("3", "2", 6, day(30))
    assert (pair.champion_content, pair.previous_content) == (content(30), content(20))


def test_a_later_look_has_judged_the_first_days() -> None:
    base = verdict_event(20, "1")
    events = [*TWO[:2], look_event(base, "inconclusive"), look_event(base, "passed", 2, first_entry=3)]
    pair = find_pair(build_state(*events, promotion("2", 20, 4, "1")))
    assert pair
    assert pair.start == day(20 + 7)


@pytest.mark.parametrize(
    "events",
    [(), TWO[:2], (*TWO, rollback("1", "2")), (*THREE_CHAMPIONS, loss("3", "2")), (*TWO, loss("2", None))],
)
def test_what_was_not_promoted_over_another_is_no_pair(events: tuple[LedgerEvent, ...]) -> None:
    assert find_pair(build_state(*events)) is None


def test_after_a_loss_of_all_the_next_champion_replaces_none() -> None:
    state = build_state(*TWO, loss("2", None), verdict_event(30), promotion("3", 30, 6))
    assert find_pair(state) is None


def find(state: LedgerState, model: ModelSpec, **request: Any) -> str | None:
    return find_obstacle(state, model, requested(**request))


def test_nothing_holds_back_what_the_evidence_asks_for() -> None:
    state = build_state(*TWO)
    assert find(state, spec()) is None
    assert decide_rollback_request(state, spec(), requested()) == requested()
    after = append_event(state, requested())
    assert decide_rollback_request(after, spec(), requested()) == after.entries[-1]
    assert decide_rollback_request(after, spec(), requested(31)) == requested(31)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([PromotionsFrozen(reason="stocktaking")], "the model is frozen"),
        ([look_event(verdict_event(30, "2"), "inconclusive")], "gathers evidence against the champion"),
        ([verdict_event(30, "2"), promotion("3", 30, 5, "2")], "the champion has changed: version 3 is now"),
        ([rollback("1", "2")], "the champion has changed: version 1 is now"),
        ([loss("2", None)], "the champion has changed: there is none now"),
        (
            [requested(), RollbackRejected(request_entry=5, rejected_by="grace", reason="no")],
            "grace did not approve a rollback of version 2: no",
        ),
    ],
)
def test_what_holds_it_back(events: list[LedgerEvent], reason: str) -> None:
    state, model = build_state(*TWO, *events), spec().model_copy(update={"approval": ApprovalPolicy()})
    assert reason in str(find(state, model))
    with pytest.raises(PromotionRefusedError, match="it does better; it is not rolled back: .*"):
        decide_rollback_request(state, model, requested(31))
    assert find_waiting_rollback(model, state) is None


def test_a_version_that_was_at_fault_itself_is_not_restored() -> None:
    """Version 1 was barred, released and restored by a person who named it; then version 3 was promoted over it."""
    events = [
        verdict_event(10),
        promotion("1", 10, 1),
        verdict_event(20, "1"),
        promotion("2", 20, 3, "1"),
        rollback("1", "2"),
        release("2"),
        rollback("2", "1"),
        verdict_event(30, "2"),
        promotion("3", 30, 8, "2"),
    ]
    state = build_state(*events)
    pair = find_pair(state)
    assert pair
    assert "version 2 was barred or lost itself" in str(closed_reason(state, spec(), pair, day(40)))


def test_it_is_asked_for_a_stated_time_only() -> None:
    state = build_state(*TWO)
    pair, model = find_pair(state), spec(within="10d").model_copy(update={"label_delay": spec().train.parse("3d")})
    assert pair
    assert closed_reason(state, model, pair, day(33)) is None
    assert "for 10d after its promotion: that was over as of " in str(closed_reason(state, model, pair, day(34)))
    model = model.model_copy(update={"auto_rollback": None})
    assert closed_reason(state, model, pair, day(33)) == "the spec asks for no automatic rollback"


def test_the_budget_counts_automatic_rollbacks_in_time_of_data() -> None:
    """Those of persons do not count, nor requests that rolled nothing back."""
    events = [
        *TWO,
        requested(30),
        automatic(5),
        verdict_event(40, "1"),
        promotion("4", 40, 7, "1"),
        rollback("1", "4"),
        verdict_event(50, "1"),
        promotion("5", 50, 10, "1"),
    ]
    state = build_state(*events)
    request = requested(60, 5, 11, previous="1", previous_content=content(10))
    spent = "the budget of 1 in 30d is spent, by the rollback of version 2"
    for days, is_spent in ((30, False), (31, True)):
        obstacle = find_obstacle(state, spec(budget_time=f"{days}d"), request)
        assert obstacle == (spent.replace("30d", "31d") if is_spent else None)
    assert find_obstacle(state, spec(budget_time="31d", budget=2), request) is None


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([requested(entry=2)], "the champion is not that of entry 2"),
        ([requested(previous_content=content(40))], "the champion was not promoted over version 1"),
        ([rollback("1", "2"), requested()], "the champion is not that of entry 4"),
        ([requested(9999)], "it claims data until"),
        ([automatic(3)], "entry 3 asks for no rollback"),
        ([automatic(99)], "entry 99 asks for no rollback"),
        ([RollbackRejected(request_entry=3, rejected_by="grace", reason="no")], "entry 3 asks for no rollback"),
        (
            [requested(), RollbackRejected(request_entry=5, rejected_by="grace", reason="no"), automatic(5)],
            "it was rejected in entry 6",
        ),
        (
            [requested(), verdict_event(30, "2"), promotion("3", 30, 6, "2"), automatic(5, "2", "3")],
            "of entry 5, the champion is not that of entry 4",
        ),
    ],
)
def test_a_ledger_refuses_what_does_not_follow(events: list[LedgerEvent], problem: str) -> None:
    state = build_state(*TWO, *events[:-1])
    with pytest.raises(LedgerError, match=problem):
        append_event(state, events[-1])


def test_an_automatic_rollback_restores_what_was_compared() -> None:
    state = build_state(*THREE_CHAMPIONS, requested(40, 3, 6))
    with pytest.raises(LedgerError, match="entry 7 asks for version 2"):
        append_event(state, automatic(7, "1", "3"))
    assert append_event(state, automatic(7, "2", "3")).champion == "2"


def test_entries_of_rollbacks_by_persons_are_what_they_were() -> None:
    """Their bytes are hashed: an earlier version of Evergreen has written them."""
    assert rollback("1", "2").model_dump(mode="json").keys() == {
        "kind",
        "restored_version",
        "barred_version",
        "reason",
    }
