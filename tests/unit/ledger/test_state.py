"""What follows from a ledger's entries, and which entries cannot follow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.errors import LedgerError, PromotionRefusedError
from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.ledger import (
    BacktestRecorded,
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionRejected,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VersionPromoted,
)
from evergreen.ledger import state_at as state_at
from evergreen.ledger.state import EMPTY_STATE, apply_entry, iter_states, replay
from evergreen.promotion import rules
from support.ledger_events import (
    MODEL,
    REIGN,
    START,
    day,
    grown,
    held,
    judged,
    promoted,
    released,
    request,
    rolled_back,
    state_of,
    written,
)

pytestmark = pytest.mark.unit

FROZEN, UNFROZEN = PromotionsFrozen(reason="stocktaking"), PromotionsUnfrozen(reason="done")
REJECTED = PromotionRejected(version="4", verdict_entry=7, rejected_by="grace", reason="not before the holidays")


@pytest.mark.parametrize(
    ("acts", "champion", "previous", "challenger", "barred"),
    [
        ([], None, None, None, ""),
        ([judged(10)], None, None, None, ""),
        (REIGN[:2], "1", None, None, ""),
        (REIGN[:4], "2", "1", None, ""),
        (REIGN, "3", "2", None, ""),
        ([*REIGN, rolled_back("2", "3")], "2", "3", None, "3"),
        ([*REIGN, rolled_back("1", "3")], "1", "3", None, "3"),
        ([*REIGN, rolled_back("2", "3"), rolled_back("1", "2")], "1", "2", None, "23"),
        ([*REIGN, rolled_back("2", "3"), released("3")], "2", "3", None, ""),
        ([*REIGN, judged(40, "3"), held("4", 40, 7)], "3", "2", "4", ""),
        # The newest of two by its data, not by when it was judged.
        ([*REIGN, judged(40, "3"), held("4", 40, 7), judged(35, "3"), held("5", 35, 9)], "3", "2", "4", ""),
        # Promoted itself, overtaken, and not overtaken.
        ([*REIGN, judged(40, "3"), held("4", 40, 7), promoted("4", 40, 7, "3")], "4", "3", None, ""),
        (
            [*REIGN, judged(40, "3"), held("4", 40, 7), judged(41, "3"), promoted("5", 41, 9, "3")],
            *("5", "3", None, ""),
        ),
        ([*REIGN, judged(40, "3"), held("4", 40, 7), rolled_back("2", "3")], "2", "3", "4", "3"),
        ([*REIGN, judged(40, "3"), held("4", 40, 7), REJECTED], "3", "2", None, ""),
    ],
)
def test_fold(
    acts: Sequence[LedgerEvent],
    champion: str | None,
    previous: str | None,
    challenger: str | None,
    barred: str,
) -> None:
    state = state_of(*acts)
    assert (state.champion, state.previous_champion, state.challenger) == (champion, previous, challenger)
    assert state.barred_versions == set(barred)
    assert state.head_number == len(acts)


def test_after_a_rollback_the_champion_knows_as_much_as_when_it_was_promoted() -> None:
    state = state_of(*REIGN, rolled_back("1", "3"))
    assert state.champion_as_of == day(10)
    assert state.last_promoted_as_of == day(30)


def test_a_backtest_changes_nothing() -> None:
    backtested = BacktestRecorded(as_of=day(5), candidate_fingerprint="abc", report_uri="file:///report.html")
    before, now = state_of(*REIGN), state_of(*REIGN, backtested)
    assert (now.tenures, now.barred_versions, now.challenger) == (
        before.tenures,
        before.barred_versions,
        before.challenger,
    )


def test_frozen_and_unfrozen() -> None:
    assert state_of(FROZEN).is_frozen
    assert not state_of(FROZEN, UNFROZEN).is_frozen


def test_comparisons_are_the_verdicts_that_spent_confidence() -> None:
    state = state_of(judged(10), promoted("1", 10, 1), judged(20, "1", level=0.02, passed=False))
    assert state.comparisons == (EarlierComparison(days=(day(13), day(20)), spending=(("auc", 0.02, False),)),)


@pytest.mark.parametrize(
    ("act", "because"),
    [
        (promoted("4", 40, 2, "3"), "verdict in entry 2, which holds none"),
        (promoted("4", 40, 99, "3"), "verdict in entry 99, which holds none"),
        (promoted("4", 40, 8, "3"), "the verdict in entry 8 does not let it"),  # its gates failed
        (promoted("4", 40, 7, "2"), "the verdict in entry 7 does not let it"),  # judged against 3
        (promoted("4", 20, 3, "1"), "the champion was 3"),
        (promoted("4", 30, 7, "3"), "not newer"),
        (promoted("3", 40, 7, "3"), "not newer"),
        (held("3", 40, 7), "cannot be the challenger"),
        (held("4", 40, 1000), "holds none"),
        (rolled_back("1", "2"), "the champion was 3"),
        (rolled_back("3", "3"), "is champion, barred, or has never"),
        (rolled_back("9", "3"), "has never been champion"),
        (released("3"), "was not barred"),
    ],
)
def test_what_cannot_follow(act: LedgerEvent, because: str) -> None:
    acts = [*REIGN, judged(40, "3"), judged(40, "3", passed=False)]
    with pytest.raises(LedgerError, match=rf"entry 9 \({act.kind}, by ada\): .*{because}"):
        state_of(*acts, act)


def test_neither_a_barred_version_nor_any_of_a_frozen_model_is_promoted() -> None:
    barred = [*REIGN, rolled_back("2", "3"), judged(40, "2")]
    with pytest.raises(LedgerError, match="was barred"):
        state_of(*barred, promoted("3", 40, 8, "2"))
    with pytest.raises(LedgerError, match="champion, barred"):
        state_of(*barred, rolled_back("3", "2"))
    with pytest.raises(LedgerError, match="was frozen"):
        state_of(*barred, FROZEN, promoted("4", 40, 8, "2"))


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        (dict(number=3), "stands where entry 2 should"),
        (dict(previous_hash="0" * 64), "entry 1 is not the one"),
        (dict(model="coin"), "are about flight_delay"),
        (dict(recorded_at=START), "older than entry 1"),
    ],
)
def test_an_entry_in_the_wrong_place(changed: dict, because: str) -> None:
    first, second = written([FROZEN, UNFROZEN])
    with pytest.raises(LedgerError, match=because):
        apply_entry(replay([first]), second.model_copy(update=changed), "")


def test_at_a_moment() -> None:
    entries = written([*REIGN, rolled_back("2", "3")])
    champions = [state_at(entries, START + timedelta(minutes=minute)).champion for minute in range(9)]
    assert champions == [None, None, "1", "1", "2", "2", "3", "2", "2"]
    with pytest.raises(LedgerError, match="no time zone"):
        state_at(entries, datetime(2013, 3, 1))


# What people and runs ask for, in any order, as functions of the state.
_WISHES = st.one_of(
    st.tuples(st.just("judge"), st.integers(1, 40), st.booleans()),
    st.tuples(st.just("promote"), st.integers(0, 3), st.integers(0, 20)),
    st.tuples(st.just("rollback"), st.one_of(st.none(), st.integers(0, 8)), st.none()),
    st.tuples(st.just("release"), st.integers(0, 8), st.none()),
    st.tuples(st.just("freeze"), st.none(), st.none()),
    st.tuples(st.just("unfreeze"), st.none(), st.none()),
    st.tuples(st.just("reject"), st.integers(0, 3), st.none()),
)


def _granted(state: LedgerState, wish: tuple) -> LedgerEvent | LedgerEntry | None:
    kind, first, second = wish
    verdicts = [entry.number for entry in state.entries if entry.event.kind == "judged"]
    try:
        match kind:
            case "judge":
                return judged(first, state.champion, passed=second)
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
        return rules.decide_promotion(state, request(state, version, number), cooldown_days=second)
    except PromotionRefusedError:
        return None


@given(st.lists(_WISHES, max_size=40))
def test_whatever_is_asked_for_the_rules_hold(wishes: list[tuple]) -> None:
    state = EMPTY_STATE
    for wish in wishes:
        before, act = state, _granted(state, wish)
        if act is None:
            continue
        if isinstance(act, LedgerEntry):
            assert act in state.entries
            continue
        state = grown(state, act)  # which would raise if a rule granted what cannot follow
        assert state.champion not in state.barred_versions
        if state.champion != before.champion:
            assert isinstance(act, VersionPromoted | ChampionRolledBack)
            if isinstance(act, VersionPromoted):
                assert before.champion_as_of is None or act.as_of > before.champion_as_of
                assert not before.is_frozen
        if state.challenger_as_of and state.champion_as_of:
            assert state.challenger_as_of > state.champion_as_of
            assert state.challenger != state.champion
    assert all(one.version != other.version for one, other in pairwise(state.tenures))
    # Entries are the same after a trip through JSON, and each moment is the fold of what was written by then.
    again = [LedgerEntry.model_validate_json(entry.to_bytes()) for entry in state.entries]
    assert replay(again) == state
    for entry, known in zip(state.entries, iter_states(state.entries), strict=True):
        assert state_at(state.entries, entry.recorded_at).tenures == known.tenures
    assert all(entry.model == MODEL for entry in again)
