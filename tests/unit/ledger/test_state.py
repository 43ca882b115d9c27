"""What follows from a ledger's entries, and which entries cannot follow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.errors import LedgerError, PromotionRefused
from evergreen.gates.alpha_spending import Comparison
from evergreen.ledger import Act, Backtested, Entry, Frozen, Promoted, Rejected, RolledBack, State, Unfrozen
from evergreen.ledger import at as state_at
from evergreen.ledger.state import EMPTY, after, fold, history
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

FROZEN, UNFROZEN = Frozen(reason="stocktaking"), Unfrozen(reason="done")
REJECTED = Rejected(version="4", judged=7, by_whom="grace", reason="not before the holidays")


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
    acts: Sequence[Act], champion: str | None, previous: str | None, challenger: str | None, barred: str
) -> None:
    state = state_of(*acts)
    assert (state.champion, state.previous, state.challenger) == (champion, previous, challenger)
    assert state.barred == set(barred)
    assert state.head == len(acts)


def test_after_a_rollback_the_champion_knows_as_much_as_when_it_was_promoted() -> None:
    state = state_of(*REIGN, rolled_back("1", "3"))
    assert state.champion_as_of == day(10)
    assert state.last_promoted_as_of == day(30)


def test_a_backtest_changes_nothing() -> None:
    backtested = Backtested(as_of=day(5), candidate="abc", report="file:///report.html")
    before, now = state_of(*REIGN), state_of(*REIGN, backtested)
    assert (now.reigns, now.barred, now.challenger) == (before.reigns, before.barred, before.challenger)


def test_frozen_and_unfrozen() -> None:
    assert state_of(FROZEN).frozen
    assert not state_of(FROZEN, UNFROZEN).frozen


def test_comparisons_are_the_verdicts_that_spent_confidence() -> None:
    state = state_of(judged(10), promoted("1", 10, 1), judged(20, "1", level=0.02, passed=False))
    assert state.comparisons == (Comparison(days=(day(13), day(20)), gates=(("auc", 0.02, False),)),)


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
def test_what_cannot_follow(act: Act, because: str) -> None:
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
        (dict(before="0" * 64), "entry 1 is not the one"),
        (dict(model="coin"), "are about flight_delay"),
        (dict(at=START), "older than entry 1"),
    ],
)
def test_an_entry_in_the_wrong_place(changed: dict, because: str) -> None:
    first, second = written([FROZEN, UNFROZEN])
    with pytest.raises(LedgerError, match=because):
        after(fold([first]), second.model_copy(update=changed), "")


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


def _granted(state: State, wish: tuple) -> Act | Entry | None:
    kind, first, second = wish
    verdicts = [entry.number for entry in state.entries if entry.act.kind == "judged"]
    try:
        match kind:
            case "judge":
                return judged(first, state.champion, passed=second)
            case "rollback":
                return rules.rollback(state, None if first is None else str(first), "late")
            case "release":
                return rules.release(state, str(first), "early")
            case "freeze":
                return rules.freeze(state, "cold")
            case "unfreeze":
                return rules.unfreeze(state, "warm")
        if len(verdicts) <= first:
            return None
        number = verdicts[-1 - first]  # the newest verdict, or one of the few before
        version = str(verdicts.index(number))
        if kind == "reject":
            return rules.reject(state, version, number, "grace", "no")
        return rules.decide(state, request(state, version, number), cooldown_days=second)
    except PromotionRefused:
        return None


@given(st.lists(_WISHES, max_size=40))
def test_whatever_is_asked_for_the_rules_hold(wishes: list[tuple]) -> None:
    state = EMPTY
    for wish in wishes:
        before, act = state, _granted(state, wish)
        if act is None:
            continue
        if isinstance(act, Entry):
            assert act in state.entries
            continue
        state = grown(state, act)  # which would raise if a rule granted what cannot follow
        assert state.champion not in state.barred
        if state.champion != before.champion:
            assert isinstance(act, Promoted | RolledBack)
            if isinstance(act, Promoted):
                assert before.champion_as_of is None or act.as_of > before.champion_as_of
                assert not before.frozen
        if state.challenger_as_of and state.champion_as_of:
            assert state.challenger_as_of > state.champion_as_of
            assert state.challenger != state.champion
    assert all(one.version != other.version for one, other in pairwise(state.reigns))
    # Entries are the same after a trip through JSON, and each moment is the fold of what was written by then.
    again = [Entry.model_validate_json(entry.to_bytes()) for entry in state.entries]
    assert fold(again) == state
    for entry, known in zip(state.entries, history(state.entries), strict=True):
        assert state_at(state.entries, entry.at).reigns == known.reigns
    assert all(entry.model == MODEL for entry in again)
