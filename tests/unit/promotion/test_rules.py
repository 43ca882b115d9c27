"""Rules of promotion, deferral and rollback."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evergreen.errors import PromotionRefusedError
from evergreen.ledger import (
    ChampionLost,
    ChampionRolledBack,
    ChangeAccepted,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VersionPromoted,
    VersionReleased,
)
from evergreen.periods import Duration
from evergreen.promotion import challengers, rules
from evergreen.promotion.rules import decide_promotion
from evergreen.spec import loader
from evergreen.window import RunReason
from support.calendars import cooldown
from support.ledger_events import (
    THREE_CHAMPIONS,
    append_event,
    build_state,
    content,
    day,
    deferral,
    loss,
    promotion,
    registration,
    release,
    request,
    rollback,
    verdict_event,
)

pytestmark = pytest.mark.unit

FROZEN, UNFROZEN = PromotionsFrozen(reason="stocktaking"), PromotionsUnfrozen(reason="done")
JUDGED = build_state(*THREE_CHAMPIONS, verdict_event(40, "3"))  # the verdict on version 4 is entry 7


def test_decide_promotion_promotes_first_champion() -> None:
    state = build_state(verdict_event(10))
    event = decide_promotion(state, request(state, "1", 1), **cooldown(30))
    assert event == VersionPromoted(version="1", previous_champion=None, as_of=day(10), verdict_entry=1)


def test_decide_promotion_replaces_compared_champion() -> None:
    event = decide_promotion(JUDGED, request(JUDGED, "4", 7, approved_by="grace"), **cooldown(10))
    assert event == VersionPromoted(
        version="4", previous_champion="3", as_of=day(40), verdict_entry=7, approved_by="grace"
    )


@pytest.mark.parametrize(
    ("verdict_entry", "earlier", "problem"),
    [
        (verdict_event(40, "3", passed=False), [], "auc 0.7"),
        (
            verdict_event(30, "3", model=4),
            [],
            "not newer.* version 3, has data until 2013-01-31, this version until 2013-01-31",
        ),
        (verdict_event(29, "3"), [], "retrain as of a later one"),
        (verdict_event(40, "2"), [], "judged against version 2, but version 3 is champion now"),
        (verdict_event(40, None), [], "judged against no version, but version 3"),
        (verdict_event(40, "3", run_reason=RunReason.BACKFILL), [], "a backfill leaves evidence"),
        (verdict_event(40, "2", model=30), [rollback("2", "3")], "barred"),
    ],
)
def test_decide_promotion_refuses(verdict_entry: LedgerEvent, earlier: list[LedgerEvent], problem: str) -> None:
    state = build_state(*THREE_CHAMPIONS, *earlier, verdict_entry)
    version = "3" if earlier else "4"
    with pytest.raises(PromotionRefusedError, match=rf"^version {version} is not promoted: .*{problem}"):
        decide_promotion(state, request(state, version, state.head_number), **cooldown(0))


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (0, "entry 0 of the ledger holds no verdict"),
        (1, "not newer"),  # an earlier verdict
        (2, "entry 2 of the ledger holds no verdict"),
        (5, "champion already"),
        (8, "entry 8 of the ledger holds no verdict"),
    ],
)
def test_decide_promotion_uses_only_the_recorded_verdict(number: int, problem: str) -> None:
    with pytest.raises(PromotionRefusedError, match=problem):
        decide_promotion(JUDGED, request(JUDGED, "4", 7, verdict_entry=number), **cooldown(0))


def test_decide_promotion_backfill_if_requested() -> None:
    state = build_state(*THREE_CHAMPIONS, verdict_event(40, "3", run_reason=RunReason.BACKFILL))
    assert isinstance(
        decide_promotion(state, request(state, "4", 7, promote_backfill=True), **cooldown(0)),
        VersionPromoted,
    )


def test_decide_promotion_refuses_older_backfill() -> None:
    state = build_state(*THREE_CHAMPIONS, verdict_event(20, "3", run_reason=RunReason.BACKFILL))
    with pytest.raises(PromotionRefusedError, match="not newer"):
        decide_promotion(state, request(state, "4", 7, promote_backfill=True), **cooldown(0))


@pytest.mark.parametrize(("days", "is_promoted"), [(0, True), (10, True), (11, False)])
def test_decide_promotion_cooldown_counts_days_of_data(days: int, is_promoted: bool) -> None:
    event = decide_promotion(JUDGED, request(JUDGED, "4", 7), **cooldown(days))
    if is_promoted:
        assert isinstance(event, VersionPromoted)
    else:
        assert isinstance(event, PromotionDeferred)
        assert "a run as of 2013-02-11 or later may promote" in event.reason


def test_decide_promotion_defers_while_frozen() -> None:
    state = append_event(JUDGED, FROZEN)
    event = decide_promotion(state, request(state, "4", 7), **cooldown(0))
    assert isinstance(event, PromotionDeferred)
    assert event.reason == "the model was frozen by ada: stocktaking; unfreeze it, then clear this run"
    # Requested again, first while the model is frozen and then after.
    state = append_event(state, event)
    assert decide_promotion(state, request(state, "4", 7), **cooldown(0)) == state.entries[-1]
    state = append_event(state, UNFROZEN)
    assert isinstance(decide_promotion(state, request(state, "4", 7), **cooldown(0)), VersionPromoted)


def test_decide_promotion_refuses_before_it_defers() -> None:
    state = build_state(*THREE_CHAMPIONS, FROZEN, verdict_event(40, "3", passed=False))
    with pytest.raises(PromotionRefusedError, match="auc 0.7"):
        decide_promotion(state, request(state, "4", 8), **cooldown(99))


def test_decide_promotion_needs_approval() -> None:
    with pytest.raises(PromotionRefusedError, match="nobody has approved"):
        decide_promotion(JUDGED, request(JUDGED, "4", 7), **cooldown(0), needs_approval=True)
    approved = request(JUDGED, "4", 7, approved_by="grace")
    assert isinstance(decide_promotion(JUDGED, approved, **cooldown(0), needs_approval=True), VersionPromoted)
    rejected = append_event(JUDGED, rules.decide_rejection(JUDGED, "4", 7, "grace", "not before the holidays"))
    with pytest.raises(PromotionRefusedError, match="grace did not approve: not before the holidays"):
        decide_promotion(rejected, approved, **cooldown(0), needs_approval=True)
    assert rules.decide_rejection(rejected, "4", 7, "nobody", "time is over") == rejected.entries[-1]


@pytest.mark.parametrize(
    ("state", "cooldown_days", "reason"),
    [(append_event(JUDGED, FROZEN), 0, "frozen by ada: stocktaking"), (JUDGED, 11, "cooldown is 11d")],
    ids=["frozen", "cooling down"],
)
def test_a_pause_is_the_reason_though_nobody_has_approved(state: LedgerState, cooldown_days: int, reason: str) -> None:
    for approved_by in (None, "grace"):
        wanted = request(state, "4", 7, approved_by=approved_by)
        event = decide_promotion(state, wanted, **cooldown(cooldown_days), needs_approval=True)
        assert isinstance(event, PromotionDeferred)
        assert reason in event.reason
        assert append_event(state, event).challenger == "4"


def test_promotion_pause_says_until_when() -> None:
    assert rules.promotion_pause(JUDGED, day(40), **cooldown(0)) is None
    assert rules.promotion_pause(JUDGED, day(41), **cooldown(11)) is None
    assert "a run as of 2013-02-11 or later may promote" in (
        rules.promotion_pause(JUDGED, day(40), **cooldown(11)) or ""
    )
    frozen = append_event(JUDGED, FROZEN)
    assert "by ada: stocktaking; unfreeze it, then clear this run" in (
        rules.promotion_pause(frozen, day(99), **cooldown(0)) or ""
    )
    assert rules.promotion_pause(build_state(), day(10), **cooldown(99)) is None, "the first champion needs no cooldown"


@pytest.mark.parametrize(
    ("as_of", "compared", "changes", "events", "obstacle"),
    [
        (40, "3", {}, [], None),
        (30, "3", {}, [], "not newer"),
        (40, "2", {}, [], "judged against version 2, but version 3 is champion now"),
        (40, "3", {"cooldown": Duration(11, "d")}, [], "cooldown is 11d"),
        (40, "3", {}, [FROZEN], "stocktaking"),
        (40, "3", {}, [FROZEN, UNFROZEN], None),
        (40, "3", {"cooldown": Duration(11, "d"), "keep_candidates_ready": True}, [FROZEN], None),
        (30, "3", {"keep_candidates_ready": True}, [FROZEN], "not newer"),
    ],
)
def test_comparison_obstacle_names_what_makes_it_vain(
    as_of: int, compared: str, changes: dict[str, object], events: list[LedgerEvent], obstacle: str | None
) -> None:
    model = loader.load_spec("flight_delay").model_copy(update=changes)
    state = build_state(*THREE_CHAMPIONS, *events)
    found = challengers.comparison_obstacle(
        state, day(as_of), content(40), compared, content(int(compared) * 10), model
    )
    assert found == obstacle if obstacle is None else obstacle in (found or "")


def test_comparison_obstacle_knows_barred_contents() -> None:
    state = build_state(*THREE_CHAMPIONS, rollback("2", "3"))
    model = loader.load_spec("flight_delay")
    assert "its content is barred by a rollback" in (
        challengers.comparison_obstacle(state, day(40), content(30), "2", content(20), model) or ""
    )
    assert challengers.comparison_obstacle(state, day(40), content(40), "2", content(20), model) is None


def test_decide_rejection_refuses_promoted_version() -> None:
    state = append_event(JUDGED, promotion("4", 40, 7, "3"))
    with pytest.raises(PromotionRefusedError, match="was promoted by ada already: roll back instead"):
        rules.decide_rejection(state, "4", 7, "grace", "too late")


@pytest.mark.parametrize(
    "later", [[], [FROZEN], [verdict_event(50, "4"), promotion("5", 50, 9, "4")], [verdict_event(41, "4")]]
)
def test_decide_promotion_retry_returns_recorded_entry(later: list[LedgerEvent]) -> None:
    state = build_state(*THREE_CHAMPIONS, verdict_event(40, "3"), promotion("4", 40, 7, "3"), *later)
    assert decide_promotion(state, request(state, "4", 7), **cooldown(99)) == state.entries[7]


def test_decide_promotion_retry_does_not_undo_rollback() -> None:
    state = build_state(*THREE_CHAMPIONS, verdict_event(40, "3"), promotion("4", 40, 7, "3"), rollback("3", "4"))
    with pytest.raises(PromotionRefusedError, match="barred"):
        decide_promotion(state, request(state, "4", 7), **cooldown(0))
    state = append_event(state, release("4"))
    with pytest.raises(PromotionRefusedError, match="barred or lost until entry 10, after its verdict; retrain"):
        decide_promotion(state, request(state, "4", 7), **cooldown(0))
    state = append_event(state, verdict_event(50, "3", model=40))
    assert isinstance(decide_promotion(state, request(state, "4", 11), **cooldown(0)), VersionPromoted)


def test_decide_promotion_after_rollback() -> None:
    state = build_state(*THREE_CHAMPIONS, rollback("2", "3"), verdict_event(25, "2"))
    event = decide_promotion(state, request(state, "4", 8), **cooldown(0))
    assert event == VersionPromoted(version="4", previous_champion="2", as_of=day(25), verdict_entry=8)


@pytest.mark.parametrize(
    ("later", "target", "restored"),
    [
        ([], None, "2"),
        ([], "1", "1"),
        ([rollback("2", "3")], None, "1"),  # not to 3, which is barred
        ([rollback("2", "3"), release("3")], None, "1"),  # nor to 3, which no newer verdict has promoted
        ([rollback("2", "3"), release("3")], "3", "3"),
        ([rollback("2", "3"), verdict_event(40, "2"), promotion("4", 40, 8, "2")], None, "2"),
        ([FROZEN], None, "2"),  # a rollback is always possible
    ],
)
def test_decide_rollback_restores(later: list[LedgerEvent], target: str | None, restored: str) -> None:
    state = build_state(*THREE_CHAMPIONS, *later)
    champion = state.champion
    event = rules.decide_rollback(state, target, "late flights")
    assert event == ChampionRolledBack(restored_version=restored, barred_version=champion, reason="late flights")
    assert champion in append_event(state, event).barred_versions


@pytest.mark.parametrize(
    ("events", "target", "problem"),
    [
        ([], None, "no champion to roll back from"),
        (THREE_CHAMPIONS[:2], None, "no version to restore instead of version 1"),
        ([*THREE_CHAMPIONS[:4], rollback("1", "2")], None, r"barred or lost since \(barred: 2\)"),
        ([*THREE_CHAMPIONS[:4], rollback("1", "2"), release("2")], None, "barred or lost since; retrain"),
        (THREE_CHAMPIONS, "3", "version 3 is champion already"),
        (THREE_CHAMPIONS, "9", "version 9 has never been champion"),
        ([*THREE_CHAMPIONS, rollback("2", "3")], "3", "version 3 is barred"),
    ],
)
def test_decide_rollback_refuses(events: list[LedgerEvent], target: str | None, problem: str) -> None:
    with pytest.raises(PromotionRefusedError, match=problem):
        rules.decide_rollback(build_state(*events), target, "late flights")


@pytest.mark.parametrize("target", [None, "2"])
def test_decide_rollback_once_with_expected_champion(target: str | None) -> None:
    state = build_state(*THREE_CHAMPIONS)
    event = rules.decide_rollback(state, target, "late", expected_champion="3")
    state = append_event(state, event)
    assert rules.decide_rollback(state, target, "late", expected_champion="3") == state.entries[-1]
    # Also after a later promotion.
    state = append_event(append_event(state, verdict_event(40, "2")), promotion("4", 40, 8, "2"))
    assert rules.decide_rollback(state, target, "late", expected_champion="3") == state.entries[6]


@pytest.mark.parametrize(("expected", "target"), [("1", None), ("9", None), ("3", "1")])
def test_decide_rollback_refuses_other_champion(expected: str, target: str | None) -> None:
    state = build_state(*THREE_CHAMPIONS, rollback("2", "3"))
    with pytest.raises(PromotionRefusedError, match=f"version {expected} is not champion any more, version 2 is"):
        rules.decide_rollback(state, target, "late", expected_champion=expected)


def test_decide_release() -> None:
    state = build_state(*THREE_CHAMPIONS, rollback("2", "3"))
    event = rules.decide_release(state, "3", " it was the weather ")
    assert event == VersionReleased(version="3", reason="it was the weather")
    state = append_event(state, event)
    assert rules.decide_release(state, "3", "again") == state.entries[-1]
    with pytest.raises(PromotionRefusedError, match="version 2 is not barred: there is nothing"):
        rules.decide_release(state, "2", "reason")


def test_decide_change_acceptance_names_the_champion() -> None:
    state = build_state(*THREE_CHAMPIONS)
    for version in ("2", "4"):
        with pytest.raises(PromotionRefusedError, match=f"version 3 is champion, not version {version}"):
            rules.decide_change_acceptance(state, version, "reason")
    with pytest.raises(PromotionRefusedError, match="no version is champion"):
        rules.decide_change_acceptance(build_state(), "1", "reason")
    event = rules.decide_change_acceptance(state, "3", " the source was closed ")
    assert event == ChangeAccepted(champion="3", reason="the source was closed")
    state = append_event(state, event)
    assert rules.decide_change_acceptance(state, "3", "again") == state.entries[-1]


def test_decide_freeze_and_unfreeze_twice() -> None:
    state = build_state()
    with pytest.raises(PromotionRefusedError, match="not frozen"):
        rules.decide_unfreeze(state, "warm")
    state = append_event(state, rules.decide_freeze(state, "cold"))
    assert rules.decide_freeze(state, "colder") == state.entries[-1]
    state = append_event(state, rules.decide_unfreeze(state, "warm"))
    assert rules.decide_unfreeze(state, "warmer") == state.entries[-1]
    assert isinstance(rules.decide_freeze(state, "cold again"), PromotionsFrozen)


Change = Callable[[LedgerState, str], LedgerEvent | LedgerEntry]


@pytest.mark.parametrize(
    "change",
    [
        lambda state, reason: rules.decide_rollback(state, None, reason),
        lambda state, reason: rules.decide_release(state, "3", reason),
        rules.decide_freeze,
        lambda state, reason: rules.decide_unfreeze(append_event(state, FROZEN), reason),
        lambda state, reason: rules.decide_rejection(state, "4", 8, "grace", reason),
        lambda state, reason: rules.decide_change_acceptance(state, "2", reason),
    ],
)
def test_decisions_require_a_reason(change: Change) -> None:
    with pytest.raises(PromotionRefusedError, match="say why"):
        change(build_state(*THREE_CHAMPIONS, rollback("2", "3"), verdict_event(40, "2")), " ")


def test_decide_promotion_refuses_overtaken_challenger() -> None:
    state = build_state(
        *THREE_CHAMPIONS,
        verdict_event(40, "3"),
        deferral("4", 40, 7),
        verdict_event(41, "3"),
        promotion("5", 41, 9, "3"),
    )
    with pytest.raises(PromotionRefusedError, match="not newer"):
        decide_promotion(state, request(state, "4", 7), **cooldown(0))
    assert "2013-02-11" == state.champion_as_of


def test_decide_promotion_refuses_barred_content_under_another_number() -> None:
    state = build_state(*THREE_CHAMPIONS, registration("3", 5), rollback("2", "3"), registration("4", 5))
    with pytest.raises(PromotionRefusedError, match="version 4 is not promoted: its content is barred by a rollback"):
        decide_promotion(state, request(state, "4", 5), **cooldown(0))
    assert rules.decide_release(state, "4", "weather") == VersionReleased(version="4", reason="weather")
    assert rules.decide_release(state, "3", "weather") == VersionReleased(version="3", reason="weather")


def test_decide_promotion_retry_finds_the_entry_under_another_number() -> None:
    """A run is cleared after its version was deleted: it registers the champion again."""
    state = build_state(*THREE_CHAMPIONS, registration("3", 5), registration("7", 5, "again"))
    assert state.champion == "7"
    assert decide_promotion(state, request(state, "7", 5), **cooldown(0)) == state.entries[5]
    judged = append_event(state, verdict_event(40, "7"))
    assert judged.entries[-1].event.champion_content == content(30)
    event = decide_promotion(judged, request(judged, "8", 9), **cooldown(0))
    assert event == VersionPromoted(version="8", previous_champion="7", as_of=day(40), verdict_entry=9)


def test_decide_promotion_refuses_version_of_another_candidate() -> None:
    state = build_state(
        *THREE_CHAMPIONS, verdict_event(40, "3"), verdict_event(41, "3"), registration("4", 7), registration("5", 8)
    )
    with pytest.raises(PromotionRefusedError, match="not the candidate that the verdict in entry 7 is about"):
        decide_promotion(state, request(state, "5", 7), **cooldown(0))


def test_decide_promotion_of_the_champions_own_content() -> None:
    state = build_state(*THREE_CHAMPIONS, verdict_event(40, "3", model=30), registration("4", 7))
    with pytest.raises(PromotionRefusedError, match="it is champion already"):
        decide_promotion(state, request(state, "4", 7), **cooldown(0))


def test_default_rollback_skips_a_released_version() -> None:
    events = [
        *THREE_CHAMPIONS[:4],
        rollback("1", "2"),
        release("2"),
        verdict_event(30, "1"),
        promotion("3", 30, 7, "1"),
    ]
    state = build_state(*events)
    assert rules.decide_rollback(state, None, "late").restored_version == "1"
    assert rules.decide_rollback(state, "2", "a person names it").restored_version == "2"
    # A newer verdict promotes version 2 again, before version 3.
    events[6:] = [verdict_event(25, "1", model=20), promotion("2", 25, 7, "1"), verdict_event(30, "2")]
    state = build_state(*events, promotion("3", 30, 9, "2"))
    assert rules.decide_rollback(state, None, "late").restored_version == "2"


def test_decide_loss() -> None:
    state = build_state(*THREE_CHAMPIONS)
    assert list(rules.restorable_versions(state)) == ["2", "1"]
    event = rules.decide_loss(state, "2", " the bucket was emptied ", expected_champion="3")
    assert event == ChampionLost(lost_version="3", restored_version="2", reason="the bucket was emptied")
    state = append_event(state, event)
    assert rules.decide_loss(state, "2", "again", expected_champion="3") == state.entries[-1]
    with pytest.raises(PromotionRefusedError, match="version 3 is not champion any more, version 2 is"):
        rules.decide_loss(state, None, "again", expected_champion="3")
    with pytest.raises(PromotionRefusedError, match="version 3 was recorded as lost: clear the register task"):
        rules.decide_rollback(state, "3", "back")
    assert list(rules.restorable_versions(state)) == ["1"]


@pytest.mark.parametrize(("restored", "problem"), [("3", "champion already"), ("9", "never been"), ("2", "is barred")])
def test_decide_loss_refuses_to_restore(restored: str, problem: str) -> None:
    state = build_state(*THREE_CHAMPIONS[:4], rollback("1", "2"), verdict_event(30, "1"), promotion("3", 30, 6, "1"))
    with pytest.raises(PromotionRefusedError, match=problem):
        rules.decide_loss(state, restored, "gone", expected_champion="3")


def test_after_a_loss_the_next_candidate_is_the_first() -> None:
    state = build_state(*THREE_CHAMPIONS, loss("3", None))
    with pytest.raises(PromotionRefusedError, match="there is no champion to roll back from"):
        rules.decide_rollback(state, None, "late")
    early = build_state(verdict_event(10), verdict_event(11), promotion("1", 10, 1), loss("1", None))
    with pytest.raises(PromotionRefusedError, match="judged before the champion was lost"):
        decide_promotion(early, request(early, "2", 2), **cooldown(0))
    state = append_event(state, verdict_event(25))
    event = decide_promotion(state, request(state, "4", 8), **cooldown(0))
    assert event == VersionPromoted(version="4", previous_champion=None, as_of=day(25), verdict_entry=8)


def test_decide_rejection_needs_a_verdict() -> None:
    with pytest.raises(PromotionRefusedError, match="entry 2 of the ledger holds no verdict"):
        rules.decide_rejection(JUDGED, "1", 2, "grace", "no")
