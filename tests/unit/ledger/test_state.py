"""The state that follows from a ledger's entries, and entries that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evergreen.errors import LedgerError, PromotionRefusedError
from evergreen.gates.alpha_spending import DayCorrelation, EarlierComparison
from evergreen.ledger import (
    AlarmRaised,
    BacktestRecorded,
    ChampionRolledBack,
    ChangeAccepted,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionRejected,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VerdictRecorded,
    VersionPromoted,
)
from evergreen.ledger import state_at as state_at
from evergreen.ledger.state import apply_entry, iter_states, replay
from evergreen.promotion import rules
from support.calendars import DAYS, cooldown
from support.ledger_events import (
    MODEL,
    START,
    THREE_CHAMPIONS,
    append_event,
    build_entries,
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
DEFERRED = [*THREE_CHAMPIONS, verdict_event(40, "3"), deferral("4", 40, 7)]
REJECTED = PromotionRejected(version="4", verdict_entry=7, rejected_by="grace", reason="not before the holidays")


@pytest.mark.parametrize(
    ("events", "champion", "previous", "challenger", "barred"),
    [
        ([], None, None, None, ""),
        ([verdict_event(10)], None, None, None, ""),
        (THREE_CHAMPIONS[:2], "1", None, None, ""),
        (THREE_CHAMPIONS[:4], "2", "1", None, ""),
        (THREE_CHAMPIONS, "3", "2", None, ""),
        ([*THREE_CHAMPIONS, rollback("2", "3")], "2", "3", None, "3"),
        ([*THREE_CHAMPIONS, rollback("1", "3")], "1", "3", None, "3"),
        ([*THREE_CHAMPIONS, rollback("2", "3"), rollback("1", "2")], "1", "2", None, "23"),
        ([*THREE_CHAMPIONS, rollback("2", "3"), release("3")], "2", "3", None, ""),
        ([*DEFERRED], "3", "2", "4", ""),
        # The newest of two by its data, not by when it was judged.
        (
            [
                *THREE_CHAMPIONS,
                verdict_event(40, "3"),
                deferral("4", 40, 7),
                verdict_event(35, "3"),
                deferral("5", 35, 9),
            ],
            "3",
            "2",
            "4",
            "",
        ),
        # Promoted itself, overtaken, and not overtaken.
        (
            [*DEFERRED, promotion("4", 40, 7, "3")],
            "4",
            "3",
            None,
            "",
        ),
        (
            [
                *THREE_CHAMPIONS,
                verdict_event(40, "3"),
                deferral("4", 40, 7),
                verdict_event(41, "3"),
                promotion("5", 41, 9, "3"),
            ],
            *("5", "3", None, ""),
        ),
        ([*DEFERRED, rollback("2", "3")], "2", "3", "4", "3"),
        ([*DEFERRED, REJECTED], "3", "2", None, ""),
    ],
)
def test_replay(
    events: Sequence[LedgerEvent],
    champion: str | None,
    previous: str | None,
    challenger: str | None,
    barred: str,
) -> None:
    state = build_state(*events)
    assert (state.champion, state.previous_champion, state.challenger) == (champion, previous, challenger)
    assert state.barred_versions == set(barred)
    assert state.head_number == len(events)


def test_rollback_restores_as_of_of_the_champion() -> None:
    state = build_state(*THREE_CHAMPIONS, rollback("1", "3"))
    assert state.champion_as_of == day(10)
    assert state.last_promoted_as_of == day(30)


def test_backtest_changes_no_champion() -> None:
    backtested = BacktestRecorded(as_of=day(5), candidate_fingerprint="abc", report="backtests/x/report.html")
    earlier, state = build_state(*THREE_CHAMPIONS), build_state(*THREE_CHAMPIONS, backtested)
    assert (state.tenures, state.barred_versions, state.challenger) == (
        earlier.tenures,
        earlier.barred_versions,
        earlier.challenger,
    )


def alarm(champion: str, model: int, day_: int) -> AlarmRaised:
    return AlarmRaised(
        champion=champion,
        champion_content=content(model),
        rule="break",
        day=date.fromisoformat(day(day_)),
        changes=("flights.distance level",),
    )


def test_an_alarm_changes_nothing() -> None:
    raised = alarm("1", 10, 31)  # about a champion of before
    earlier, state = build_state(*THREE_CHAMPIONS), build_state(*THREE_CHAMPIONS, raised)
    assert replace(state, entries=earlier.entries) == earlier
    assert state.entries.find_last(AlarmRaised, **dict(raised)) == state.entries[-1]


def test_freeze_and_unfreeze_set_is_frozen() -> None:
    assert build_state(FROZEN).is_frozen
    assert not build_state(FROZEN, UNFROZEN).is_frozen


def test_accepted_change_ends_with_the_champion() -> None:
    accepted = ChangeAccepted(champion="3", reason="the source was closed")
    state = build_state(*THREE_CHAMPIONS, accepted)
    assert state.accepted_change == "ada accepted the change in entry 7: the source was closed"
    after = [
        rollback("2", "3"),
        verdict_event(40, "3"),
        promotion("4", 40, 8, "3"),
    ]
    assert build_state(*THREE_CHAMPIONS, accepted, after[0]).accepted_change is None
    assert build_state(*THREE_CHAMPIONS, accepted, *after[1:]).accepted_change is None
    with pytest.raises(LedgerError, match="it is about version 3, not the champion, 2"):
        build_state(*THREE_CHAMPIONS, rollback("2", "3"), accepted)


def test_comparisons_are_verdicts_that_spent_alpha() -> None:
    state = build_state(verdict_event(10), promotion("1", 10, 1), verdict_event(20, "1", level=0.02, passed=False))
    assert state.comparisons == (
        EarlierComparison(days=DAYS.dates(day(13), day(20)), spending=(("auc", 0.02, False),)),
    )


def test_comparisons_keep_promotions_and_what_days_told() -> None:
    event = verdict_event(20, "1", level=0.02)
    [result] = event.verdict.results
    measured = result.model_copy(update={"days": 14, "day_correlation": 0.2})
    verdict = event.verdict.model_copy(update={"results": (measured,)})
    event = event.model_copy(update={"verdict": verdict})
    [comparison] = build_state(verdict_event(10), promotion("1", 10, 1), event).comparisons
    assert comparison.promoted
    assert comparison.day_correlations == (DayCorrelation("auc", 14, 0.2),)


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (promotion("4", 40, 2, "3"), "verdict in entry 2, which holds none"),
        (promotion("4", 40, 99, "3"), "verdict in entry 99, which holds none"),
        (promotion("4", 40, 8, "3"), "the verdict in entry 8 does not let it"),  # its gates failed
        (promotion("4", 40, 7, "2"), "it replaces version 2, but the champion was 3"),
        (promotion("4", 20, 3, "1"), "the verdict in entry 3 does not let it"),  # judged against 1
        (promotion("4", 30, 7, "3"), "it is as of 2013-01-31, and the verdict in entry 7 as of 2013-02-10"),
        (deferral("4", 41, 7), "it is as of 2013-02-11, and the verdict in entry 7 as of 2013-02-10"),
        (promotion("3", 40, 7, "3"), "version 3 is not the candidate that the verdict in entry 7 is about"),
        (deferral("3", 40, 7), "version 3 is not the candidate that the verdict in entry 7 is about"),
        (promotion("2", 20, 3, "3"), "the verdict in entry 3 does not let it"),
        (deferral("4", 40, 8), "the verdict in entry 8 does not let it"),
        (deferral("4", 40, 1000), "holds none"),
        (rollback("1", "2"), "the champion was 3"),
        (rollback("3", "3"), "is champion, barred, or has never"),
        (rollback("9", "3"), "has never been champion"),
        (release("3"), "was not barred"),
    ],
)
def test_replay_refuses_impossible_event(event: LedgerEvent, problem: str) -> None:
    events = [*THREE_CHAMPIONS, verdict_event(40, "3"), verdict_event(40, "3", passed=False)]
    with pytest.raises(LedgerError, match=rf"entry 9 \({event.kind}, by ada\): .*{problem}"):
        build_state(*events, event)


def test_replay_refuses_barred_version_and_frozen_model() -> None:
    barred = [*THREE_CHAMPIONS, rollback("2", "3"), verdict_event(40, "2", model=30)]
    for version in ("3", "4"):  # also under a new number
        with pytest.raises(LedgerError, match="was barred"):
            build_state(*barred, promotion(version, 40, 8, "2"))
        with pytest.raises(LedgerError, match="was barred"):
            build_state(*barred, deferral(version, 40, 8))
    with pytest.raises(LedgerError, match="champion, barred"):
        build_state(*barred, rollback("3", "2"))
    with pytest.raises(LedgerError, match="was frozen"):
        build_state(*barred, verdict_event(41, "2"), FROZEN, promotion("4", 41, 9, "2"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(as_of="2030-01-01"), "claims data until 2030-01-01, and was recorded on 2013-03-01"),
        (dict(as_of="2013-03-02"), None),  # in Auckland it was
        (dict(as_of="2013-03-03"), "claims data until 2013-03-03"),
        (dict(holdout=(day(33), day(41))), "does not end by 2013-02-10"),
        (dict(holdout=(day(40), day(40))), "does not end by"),
        (dict(holdout=(day(30), day(35))), None),  # labels come later
        (dict(champion_content="0" * 64), "compares with version 3, whose content was never champion"),
        (dict(champion_content=content(10)), None),  # it was champion when the run was planned
    ],
)
def test_replay_refuses_a_verdict_that_cannot_be(changes: dict, problem: str | None) -> None:
    verdict = verdict_event(40, "3").model_copy(update=changes)
    entry = build_entries([*THREE_CHAMPIONS, FROZEN])[-1].model_copy(
        update={"event": verdict, "recorded_at": datetime(2013, 3, 1, 11, tzinfo=UTC)}
    )
    with pytest.raises(LedgerError, match=problem) if problem else nullcontext():
        apply_entry(build_state(*THREE_CHAMPIONS), entry, "")


def test_verdict_names_the_content_of_its_champion() -> None:
    for champion, champion_content in ((None, content(10)), ("1", None)):
        with pytest.raises(ValidationError, match="given together"):
            VerdictRecorded.model_validate(
                verdict_event(40).model_dump() | {"champion_version": champion, "champion_content": champion_content}
            )


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([BacktestRecorded(as_of="2030-01-01", candidate_fingerprint="a", report="b")], "claims data until 2030"),
        ([alarm("9", 9, 31)], "content was never champion"),
        ([alarm("3", 30, 9999)], "claims data until 2040"),
        ([FROZEN, FROZEN], "was frozen already"),
        ([UNFROZEN], "was not frozen"),
        ([registration("1", 2)], "holds none"),
        ([loss("2", "1")], "it loses version 2, but the champion was 3"),
        ([loss("3", "3")], "is champion, barred, or has never"),
        ([loss("3", "9")], "is champion, barred, or has never"),
        ([rollback("2", "3"), loss("2", "3")], "is champion, barred, or has never"),
        ([loss("3", "2"), rollback("3", "2")], "version 3 was lost"),
        ([loss("3", None), loss("3", None)], "the champion was none"),
        ([loss("3", None), rollback("2", "3")], "the champion was none"),
        ([verdict_event(40, "3"), REJECTED, REJECTED], "has promoted, or was rejected, before"),
        ([verdict_event(40, "3"), REJECTED, promotion("4", 40, 7, "3")], "has promoted, or was rejected, before"),
        ([verdict_event(40, "3"), REJECTED, deferral("4", 40, 7)], "has promoted, or was rejected, before"),
        ([verdict_event(40, "3"), promotion("4", 40, 7, "3"), REJECTED], "has promoted, or was rejected, before"),
    ],
)
def test_replay_refuses_what_its_kind_may_not_claim(events: list[LedgerEvent], problem: str) -> None:
    with pytest.raises(LedgerError, match=problem):
        build_state(*THREE_CHAMPIONS, *events)


def test_bar_is_on_the_content_whatever_its_version() -> None:
    """Rolled back and deleted in MLflow, the same model is registered again under another number."""
    state = build_state(*THREE_CHAMPIONS, registration("3", 5), rollback("2", "3"), registration("4", 5, "another"))
    assert state.barred_versions == {"4"}
    assert state.content_of("3") == state.content_of("4") == content(30)
    again = [*(entry.event for entry in state.entries), verdict_event(40, "2", model=30)]
    with pytest.raises(LedgerError, match="was barred"):
        build_state(*again, promotion("4", 40, 10, "2"))
    released = [*again, release("4"), verdict_event(41, "2", model=30)]
    with pytest.raises(LedgerError, match="was barred or lost in entry 11, after its verdict"):
        build_state(*released, promotion("4", 40, 10, "2"))
    promoted = build_state(*released, promotion("4", 41, 12, "2"))
    assert (promoted.champion, promoted.suspect_contents) == ("4", {})


def test_number_given_again_does_not_become_champion() -> None:
    """The registered model is deleted, and a run under way registers another candidate as version 1."""
    state = build_state(
        *THREE_CHAMPIONS[:2], registration("1", 1), verdict_event(20, "1", passed=False), registration("1", 4, "new")
    )
    assert state.champion_content == content(10)
    assert state.champion == content(10)[:12], "version 1 is another candidate now"
    assert state.content_of("1") == content(20)
    assert state.find_registration(content(10)) is None
    assert state.content_of(content(10)[:12]) == content(10)
    events = [entry.event for entry in state.entries]
    with pytest.raises(LedgerError, match="does not let it"):
        build_state(*events, promotion("1", 20, 4, content(10)[:12]))
    again = build_state(*events, registration("2", 1, "again"))
    assert again.champion == "2"


def test_loss_restores_an_earlier_champion_or_none() -> None:
    state = build_state(*THREE_CHAMPIONS, loss("3", "2"))
    assert (state.champion, state.champion_as_of, state.previous_champion) == ("2", day(20), "1")
    state = build_state(*THREE_CHAMPIONS, loss("3", None))
    assert (state.champion, state.champion_as_of, state.previous_champion) == (None, None, "2")
    assert state.lost_contents == {content(30)}
    first = build_state(*THREE_CHAMPIONS, loss("3", None), verdict_event(25), promotion("4", 25, 8))
    assert (first.champion, first.vacant_since, first.previous_champion) == ("4", None, "2")


def test_verdict_before_a_loss_promotes_nothing_after_it() -> None:
    events = [verdict_event(10), verdict_event(11), promotion("1", 10, 1), loss("1", None)]
    with pytest.raises(LedgerError, match="is older than the loss of the champion in entry 4"):
        build_state(*events, promotion("2", 11, 2))
    with pytest.raises(LedgerError, match="was barred or lost in entry 4, after its verdict"):
        build_state(*events, promotion("1", 10, 1))


def test_registered_again_is_not_lost_any_more() -> None:
    state = build_state(*THREE_CHAMPIONS, loss("3", "2"), registration("4", 5))
    assert state.lost_contents == frozenset()
    assert build_state(*(entry.event for entry in state.entries), rollback("4", "2")).champion_content == content(30)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(number=3), "is in the place of entry 2"),
        (dict(previous_hash="0" * 64), "entry 1 is not the entry"),
        (dict(model="coin"), "are about flight_delay"),
        (dict(recorded_at=START), "older than entry 1"),
    ],
)
def test_apply_entry_refuses_entry_out_of_sequence(changes: dict, problem: str) -> None:
    first, second = build_entries([FROZEN, UNFROZEN])
    with pytest.raises(LedgerError, match=problem):
        apply_entry(replay([first]), second.model_copy(update=changes), "")


def test_state_at_returns_champion_of_that_instant() -> None:
    entries = build_entries([*THREE_CHAMPIONS, rollback("2", "3")])
    champions = [state_at(entries, START + timedelta(minutes=minute)).champion for minute in range(9)]
    assert champions == [None, None, "1", "1", "2", "2", "3", "2", "2"]
    with pytest.raises(LedgerError, match="no time zone"):
        state_at(entries, datetime(2013, 3, 1))


# Requests of people and runs, in any order.
_REQUESTS = st.one_of(
    st.tuples(st.just("judge"), st.integers(1, 40), st.booleans()),
    st.tuples(st.just("promote"), st.integers(0, 3), st.integers(0, 20)),
    st.tuples(st.just("rollback"), st.one_of(st.none(), st.integers(0, 8)), st.none()),
    st.tuples(st.just("release"), st.integers(0, 8), st.none()),
    st.tuples(st.just("freeze"), st.none(), st.none()),
    st.tuples(st.just("unfreeze"), st.none(), st.none()),
    st.tuples(st.just("reject"), st.integers(0, 3), st.none()),
)


def _decide(state: LedgerState, request_: tuple) -> LedgerEvent | LedgerEntry | None:
    kind, first, second = request_
    verdicts = [entry.number for entry in state.entries if entry.event.kind == "judged"]
    try:
        match kind:
            case "judge":
                return verdict_event(first, state.champion, passed=second)
            case "rollback":
                return rules.decide_rollback(state, None if first is None else str(first), "late")
            case "release":
                return rules.decide_release(state, str(first), "early")
            case "freeze":
                return rules.decide_freeze(state, "cold")
            case "unfreeze":
                return rules.decide_unfreeze(state, "warm")
        if len(verdicts) <= first:
            return None
        number = verdicts[-1 - first]  # the newest verdict, or one of the few before
        version = str(verdicts.index(number))
        if kind == "reject":
            return rules.decide_rejection(state, version, number, "grace", "no")
        return rules.decide_promotion(state, request(state, version, number), **cooldown(second))
    except PromotionRefusedError:
        return None


@settings(deadline=None)
@given(st.lists(_REQUESTS, max_size=40))
def test_rules_hold_for_any_sequence_of_requests(requests: list[tuple]) -> None:
    state = LedgerState()
    for request_ in requests:
        earlier, event = state, _decide(state, request_)
        if event is None:
            continue
        if isinstance(event, LedgerEntry):
            assert event in state.entries
            continue
        state = append_event(state, event)  # which would raise if a rule granted what cannot follow
        assert state.champion not in state.barred_versions
        if state.champion != earlier.champion:
            assert isinstance(event, VersionPromoted | ChampionRolledBack)
            if isinstance(event, VersionPromoted):
                assert earlier.champion_as_of is None or event.as_of > earlier.champion_as_of
                assert not earlier.is_frozen
        if state.challenger_as_of and state.champion_as_of:
            assert state.challenger_as_of > state.champion_as_of
            assert state.challenger != state.champion
    assert all(tenure.version != successor.version for tenure, successor in pairwise(state.tenures))
    # Entries are the same after a trip through JSON, and each moment is the fold of what was written by then.
    parsed = [LedgerEntry.model_validate_json(entry.to_bytes()) for entry in state.entries]
    assert replay(parsed) == state
    for entry, expected in zip(state.entries, iter_states(state.entries), strict=True):
        assert state_at(state.entries, entry.recorded_at).tenures == expected.tenures
    assert all(entry.model == MODEL for entry in parsed)
