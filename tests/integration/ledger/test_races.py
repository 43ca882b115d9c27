"""Sixteen processes promote at once, against a real MLflow server: one wins, and the aliases show it.

`python benchmarks/races.py` runs a thousand rounds, and the same race with MLflow aliases alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from evergreen import ledger
from evergreen.ledger import VerdictRecorded, VersionPromoted
from evergreen.ledger.journal import Journal
from support import promotion_races
from support.promotion_races import AGAINST_ANOTHER, NOT_NEWER, Place, RaceResult, Round, race

pytestmark = pytest.mark.integration

ROUNDS = 15
ROUNDS_AGAIN = 5  # they take longer: every loser judges again


def test_one_of_sixteen_racing_promotions_wins(place: Place) -> None:
    versions = place.register(2 * promotion_races.RACERS)
    history: list[str | None] = [None]
    decisions = 0
    for round_ in race(place, promotion_races.evergreen, versions, ROUNDS):
        [winner] = round_.promoted
        assert winner.previous_champion == round_.champion_before == history[-1]
        for loser in set(round_.results) - {winner}:
            # Racers are in the order of their data: an older one is refused for that.
            older = round_.results.index(loser) < round_.results.index(winner)
            assert (NOT_NEWER if older else AGAINST_ANOTHER) in loser.reason
        history.append(winner.version)
        state = ledger.read_state(place.model)
        assert (state.champion, state.previous_champion) == (history[-1], history[-2])
        assert round_.aliases == promotion_races.by_ledger(state)
        assert round_.is_serial
        decisions += sum(result.decisions for result in round_.results)
    # The proof that they raced: some decided to promote, and were not the first to write.
    assert decisions > ROUNDS * promotion_races.RACERS
    entries = Journal(place.model, str(place.ledger)).read().entries  # the whole chain, read afresh
    assert [e.event.version for e in entries if isinstance(e.event, VersionPromoted)] == history[1:]
    assert sum(isinstance(e.event, VerdictRecorded) for e in entries) == ROUNDS * promotion_races.RACERS
    assert len(entries) == ROUNDS * (promotion_races.RACERS + 1) + len(versions), "each was registered once"


def test_newest_becomes_champion_when_losers_judge_again(place: Place) -> None:
    versions = place.register(2 * promotion_races.RACERS)
    promotions = 0
    for round_ in race(place, promotion_races.evergreen_with_retry, versions, ROUNDS_AGAIN):
        assert round_.results[-1].promoted
        assert round_.aliases["champion"] == round_.results[-1].version
        assert round_.aliases == promotion_races.by_ledger(ledger.read_state(place.model))
        assert round_.is_serial
        promotions += len(round_.promoted)
    assert promotions > ROUNDS_AGAIN, "in no round did the aliases change twice: nothing raced"
    entries = Journal(place.model, str(place.ledger)).read().entries
    assert sum(isinstance(entry.event, VersionPromoted) for entry in entries) == promotions


# The check for lost updates must be able to detect one.


def result(version: str, previous_champion: str | None) -> RaceResult:
    return RaceResult(version, previous_champion, promoted=True)


IN_TURN = Round("1", (result("3", "2"), result("2", "1")), {"champion": "3", "previous": "2"})


def test_round_is_serial_for_successive_promotions() -> None:
    assert IN_TURN.is_serial
    assert (IN_TURN.lost_promotions, IN_TURN.has_mixed_aliases) == (0, False)


def test_round_is_not_serial_if_two_replace_the_same() -> None:
    round_ = replace(IN_TURN, results=(result("3", "1"), result("2", "1")), aliases={"champion": "3", "previous": "1"})
    assert not round_.is_serial
    assert (round_.lost_promotions, round_.has_mixed_aliases) == (1, False)


def test_round_is_not_serial_for_mixed_aliases() -> None:
    torn = replace(IN_TURN, aliases={"champion": "3", "previous": "1"})
    assert not torn.is_serial
    assert torn.has_mixed_aliases
