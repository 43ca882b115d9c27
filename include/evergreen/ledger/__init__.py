"""The ledger: per model an append-only record of every verdict and every change of champion.

>>> from evergreen import ledger, promotion
>>> entry = ledger.commit("flight_delay", "ada", lambda state: promotion.freeze(state, "stocktaking"))
>>> ledger.state("flight_delay").frozen
True

A decision is a pure function of the state (evergreen.promotion.rules). `commit` records what it decides; of those who
race, one wins, and the others decide again on what the winner has made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pydantic import TypeAdapter, ValidationError

from evergreen.errors import LedgerError
from evergreen.ledger.entries import (
    BacktestRecorded,
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    PromotionDeferred,
    PromotionRejected,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VerdictRecorded,
    VersionPromoted,
    VersionReleased,
)
from evergreen.ledger.journal import Journal, LedgerConflictError
from evergreen.ledger.state import ChampionTenure, LedgerState, iter_states, replay, state_at
from evergreen.settings import settings
from evergreen.spec.model import Name

__all__ = [
    "BacktestRecorded",
    "ChampionRolledBack",
    "ChampionTenure",
    "LedgerEntry",
    "LedgerEvent",
    "LedgerState",
    "PromotionDeferred",
    "PromotionRejected",
    "PromotionsFrozen",
    "PromotionsUnfrozen",
    "VerdictRecorded",
    "VersionPromoted",
    "VersionReleased",
    "append_decision",
    "iter_states",
    "read_entries",
    "read_state",
    "read_verdict_event",
    "replay",
    "state_at",
]


def read_entries(model_name: str) -> tuple[LedgerEntry, ...]:
    """All that is recorded of the model, oldest first.

    Raises:
        LedgerError: the ledger is damaged.
    """
    return read_state(model_name).entries


def read_verdict_event(model_name: str, entry_number: int) -> VerdictRecorded:
    """The verdict that entry `number` holds.

    Raises:
        LedgerError: it holds none, or the ledger is damaged.
    """
    act = read_state(model_name).find_verdict_event(entry_number)
    if act is None:
        raise LedgerError(f"entry {entry_number} in the ledger of {model_name} holds no verdict")
    return act


def read_state(model_name: str) -> LedgerState:
    """What the entries come to.

    Raises:
        LedgerError: the ledger is damaged.
    """
    return _open_journal(model_name, settings().ledger).read()


def append_decision(
    model_name: str, actor: str, decide: Callable[[LedgerState], LedgerEvent | LedgerEntry]
) -> LedgerEntry:
    """Record what `decide` makes of the present state; gives the entry, which is durable.

    `decide` is asked again each time that somebody else recorded something in between, so it must be pure but
    for what it raises: that goes up, and nothing is recorded. If it gives an entry, that is taken for the
    answer: a retry or a twin finds that its act is recorded already.

    Args:
        by: who or what asks: a run, or a person.

    Raises:
        LedgerError: the ledger is damaged, or the act cannot follow from its entries.
    """
    journal = _open_journal(model_name, settings().ledger)
    while True:
        present = journal.read()
        act = decide(present)
        if isinstance(act, LedgerEntry):
            return act
        try:
            return journal.append(present, actor, act)
        except LedgerConflictError:
            continue


@cache
def _open_journal(model_name: str, ledger: str) -> Journal:
    try:
        TypeAdapter(Name).validate_python(model_name)
    except ValidationError:
        raise LedgerError(
            f"{model_name!r} is no name of a model: lower case letters, digits and _ after a letter"
        ) from None
    return Journal(model_name, ledger)
