"""The ledger: per model an append-only record of every verdict and every change of champion.

>>> from evergreen import ledger
>>> from evergreen.promotion import rules
>>> entry = ledger.append_decision("flight_delay", "ada", lambda state: rules.decide_freeze(state, "stocktaking"))
>>> ledger.read_state("flight_delay").is_frozen
True

A decision is a pure function of the state (`evergreen.promotion.rules`). `append_decision` records its result; of
racing callers one wins, and the others decide again on the new state. Every function raises LedgerError if the ledger
is damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pydantic import TypeAdapter, ValidationError

from evergreen.errors import LedgerError
from evergreen.ledger.entries import (
    AlarmRaised,
    BacktestRecorded,
    ChallengerWithdrawn,
    ChampionLost,
    ChampionRolledBack,
    ChangeAccepted,
    LaterLook,
    LedgerEntry,
    LedgerEvent,
    PromotionDeferred,
    PromotionRejected,
    PromotionsFrozen,
    PromotionsUnfrozen,
    RetrainRefused,
    RetrainRequested,
    RollbackRejected,
    RollbackRequested,
    VerdictRecorded,
    VersionPromoted,
    VersionRegistered,
    VersionReleased,
    hash_model,
)
from evergreen.ledger.journal import Journal, LedgerConflictError
from evergreen.ledger.state import ChampionTenure, LedgerState, Registration, iter_states, replay, state_at
from evergreen.settings import settings
from evergreen.spec import Name

__all__ = [
    "AlarmRaised",
    "BacktestRecorded",
    "ChallengerWithdrawn",
    "ChampionLost",
    "ChampionRolledBack",
    "ChampionTenure",
    "ChangeAccepted",
    "LaterLook",
    "LedgerEntry",
    "LedgerEvent",
    "LedgerState",
    "PromotionDeferred",
    "PromotionRejected",
    "PromotionsFrozen",
    "PromotionsUnfrozen",
    "Registration",
    "RetrainRefused",
    "RetrainRequested",
    "RollbackRejected",
    "RollbackRequested",
    "VerdictRecorded",
    "VersionPromoted",
    "VersionRegistered",
    "VersionReleased",
    "append_decision",
    "hash_model",
    "iter_states",
    "read_state",
    "read_verdict_event",
    "replay",
    "state_at",
    "verify_ledger",
]


def read_verdict_event(model_name: str, entry_number: int) -> VerdictRecorded:
    """Return the verdict in entry `entry_number`.

    Raises:
        LedgerError: the entry holds no verdict.
    """
    if event := read_state(model_name).find_verdict_event(entry_number):
        return event
    raise LedgerError(f"entry {entry_number} in the ledger of {model_name} holds no verdict")


def read_state(model_name: str) -> LedgerState:
    """Return the model's state after all entries."""
    return _open_journal(model_name, settings().ledger).read()


def verify_ledger(model_name: str) -> LedgerState:
    """Replay every entry, also those that a snapshot covers, and return the model's state after all."""
    return _open_journal(model_name, settings().ledger).verify()


def append_decision(
    model_name: str, actor: str, decide: Callable[[LedgerState], LedgerEvent | LedgerEntry]
) -> LedgerEntry:
    """Append the event returned by `decide(state)` and return the stored entry.

    `decide` is called again after every entry that another writer adds first, so it must be pure. If it raises,
    nothing is recorded. If it returns an existing entry, so does this function: a retry or a concurrent caller finds
    its event recorded already. `actor` is the run or the person that decides.

    Raises:
        LedgerError: the event cannot follow from the entries.
    """
    journal = _open_journal(model_name, settings().ledger)
    while True:
        state = journal.read()
        event = decide(state)
        if isinstance(event, LedgerEntry):
            return event
        try:
            return journal.append(state, actor, event)
        except LedgerConflictError:
            continue


@cache
def _open_journal(model_name: str, ledger: str) -> Journal:
    try:
        TypeAdapter(Name).validate_python(model_name)
    except ValidationError:
        raise LedgerError(f"{model_name!r} is not a model name: a lower case letter, then letters, digits, _") from None
    return Journal(model_name, ledger)
