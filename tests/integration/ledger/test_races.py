"""Sixteen processes promote at once, against a real MLflow server: one wins, and the aliases say so.

`python benchmarks/races.py` runs a thousand rounds of it, and the same race with bare MLflow aliases.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from evergreen import ledger
from evergreen.ledger import VerdictRecorded, VersionPromoted
from evergreen.ledger.journal import Journal
from support import promotion_races
from support.promotion_races import AGAINST_ANOTHER, NOT_NEWER, Place, Round, Told, race

pytestmark = pytest.mark.integration

ROUNDS = 50
ROUNDS_AGAIN = 10  # they take longer: every one who comes too late judges again


def test_one_of_sixteen_wins_and_the_aliases_are_the_ledgers(place: Place) -> None:
    versions = place.register(2 * promotion_races.RACERS)
    history: list[str | None] = [None]
    decisions = 0
    for was in race(place, promotion_races.evergreen, versions, ROUNDS):
        [winner] = was.promoted
        assert winner.replaced == was.before == history[-1]
        for loser in set(was.told) - {winner}:
            # Racers are in the order of their data: an older one is refused for that.
            older = was.told.index(loser) < was.told.index(winner)
            assert (NOT_NEWER if older else AGAINST_ANOTHER) in loser.reason
        history.append(winner.version)
        state = ledger.read_state(place.model)
        assert (state.champion, state.previous_champion) == (history[-1], history[-2])
        assert was.aliases == promotion_races.by_ledger(state)
        assert was.serial
        decisions += sum(told.decisions for told in was.told)
    # The proof that they raced: somebody had decided to promote, and was not the first to write it.
    assert decisions > ROUNDS * promotion_races.RACERS
    entries = Journal(place.model, str(place.ledger)).read().entries  # the whole chain, read afresh
    assert [e.event.version for e in entries if isinstance(e.event, VersionPromoted)] == history[1:]
    assert sum(isinstance(e.event, VerdictRecorded) for e in entries) == ROUNDS * promotion_races.RACERS
    assert len(entries) == ROUNDS * (promotion_races.RACERS + 1)


def test_of_those_who_judge_again_the_newest_ends_as_champion(place: Place) -> None:
    versions = place.register(2 * promotion_races.RACERS)
    promotions = 0
    for was in race(place, promotion_races.judging_again, versions, ROUNDS_AGAIN):
        assert was.told[-1].promoted
        assert was.aliases["champion"] == was.told[-1].version
        assert was.aliases == promotion_races.by_ledger(ledger.read_state(place.model))
        assert was.serial
        promotions += len(was.promoted)
    assert promotions > ROUNDS_AGAIN, "in no round did the aliases change twice: nothing raced"
    entries = Journal(place.model, str(place.ledger)).read().entries
    assert sum(isinstance(entry.event, VersionPromoted) for entry in entries) == promotions


# What tells a lost update must be able to tell one.


def told(version: str, replaced: str | None) -> Told:
    return Told(version, replaced, promoted=True)


IN_TURN = Round("1", (told("3", "2"), told("2", "1")), {"champion": "3", "previous": "2"})


def test_a_serial_order_explains_who_came_one_after_the_other() -> None:
    assert IN_TURN.serial
    assert (IN_TURN.unseen, IN_TURN.contradicts) == (0, False)


def test_no_serial_order_explains_two_who_replaced_the_same() -> None:
    both = replace(IN_TURN, told=(told("3", "1"), told("2", "1")), aliases={"champion": "3", "previous": "1"})
    assert not both.serial
    assert (both.unseen, both.contradicts) == (1, False)


def test_no_serial_order_explains_aliases_of_two_different_promotions() -> None:
    torn = replace(IN_TURN, aliases={"champion": "3", "previous": "1"})
    assert not torn.serial
    assert torn.contradicts
