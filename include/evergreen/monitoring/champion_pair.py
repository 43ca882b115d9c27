"""The champion and the one that it was promoted over: a pure function of the ledger."""

from __future__ import annotations

from typing import NamedTuple

from evergreen.ledger import LedgerState, VersionPromoted
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


class ChampionPair(NamedTuple):
    """A champion and the one that it was promoted over, by their versions and contents.

    Attributes:
        champion_entry: of the ledger, that promoted it.
        start: the first period that neither has been judged on.
    """

    champion: str
    champion_content: str
    champion_entry: int
    previous: str
    previous_content: str
    start: str


def find_pair(state: LedgerState) -> ChampionPair | None:
    """Return the champion and the one that it was promoted over; None if a rollback or a loss has restored it."""
    tenure, replaced = state.champion_tenure, state.replaced_tenure
    if tenure is None or replaced is None:
        return None
    event = state.entries[tenure.entry_number - 1].event
    assert isinstance(event, VersionPromoted), "nothing else replaces a champion"
    verdict = state.find_verdict_event(event.verdict_entry)
    assert verdict, "the ledger accepts no promotion without its verdict"
    return ChampionPair(
        champion=state.name_of(tenure.content, tenure.version),
        champion_content=tenure.content,
        champion_entry=tenure.entry_number,
        previous=state.name_of(replaced.content, replaced.version),
        previous_content=replaced.content,
        start=verdict.judged_as_of,
    )


def comparison_end(model: ModelSpec, pair: ChampionPair) -> str:
    """Return the first period after those that `auto_rollback` compares."""
    assert model.auto_rollback
    return feature_spec(model).calendar.period_after(pair.start, model.auto_rollback.within)
