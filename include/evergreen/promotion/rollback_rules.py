"""When an automatic rollback may happen, and why not: pure functions of the ledger's state and the spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from evergreen.errors import LedgerError, PromotionRefusedError
from evergreen.ledger import ChampionRolledBack, LedgerEntry, LedgerState, RollbackRejected, RollbackRequested
from evergreen.monitoring.champion_pair import ChampionPair, comparison_end, find_pair
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

_Event = TypeVar("_Event", RollbackRejected, ChampionRolledBack)


def decide_rollback_request(
    state: LedgerState, model: ModelSpec, request: RollbackRequested
) -> RollbackRequested | LedgerEntry:
    """Return the request, or the entry that has recorded it.

    Raises:
        PromotionRefusedError: the champion has changed since it was compared, or something holds the rollback back.
    """
    if entry := state.entries.find_last(RollbackRequested, **dict(request)):
        return entry
    if problem := find_obstacle(state, model, request):
        raise PromotionRefusedError(f"{request.reason}; it is not rolled back: {problem}")
    return request


def read_request(state: LedgerState, number: int) -> RollbackRequested:
    """Return the request in an entry.

    Raises:
        LedgerError: it holds none.
    """
    event = state.entries[number - 1].event if 1 <= number <= state.head_number else None
    if isinstance(event, RollbackRequested):
        return event
    raise LedgerError(f"entry {number} of the ledger asks for no rollback")


def find_pending_rollback(state: LedgerState) -> LedgerEntry | None:
    """Return the newest request if it is about the present champion, and was neither followed nor rejected."""
    entry = state.entries.find_last(RollbackRequested)
    if entry is None or state.entries.find_last(RollbackRejected, request_entry=entry.number):
        return None
    pair, request = find_pair(state), read_request(state, entry.number)
    is_present = pair and (pair.champion_entry, pair.previous_content) == (
        request.champion_entry,
        request.previous_content,
    )
    return entry if is_present else None


def closed_reason(state: LedgerState, model: ModelSpec, pair: ChampionPair, end: str) -> str | None:
    """Return why the champion is not compared with the one before as of `end`, nor later; None if it is."""
    calendar, policy = feature_spec(model).calendar, model.auto_rollback
    if policy is None:
        return "the spec asks for no automatic rollback"
    if end > (last := calendar.period_after(comparison_end(model, pair), model.label_delay)):
        return (
            f"version {pair.champion} is compared with version {pair.previous} for {policy.within} after its "
            f"promotion: that was over as of {last}"
        )
    if pair.previous_content in state.suspect_contents:
        return f"version {pair.previous} was barred or lost itself: a person may name it in a rollback"
    for event in _iter_events(state, RollbackRejected):
        if read_request(state, event.request_entry).champion_entry == pair.champion_entry:
            return f"{event.rejected_by} did not approve a rollback of version {pair.champion}: {event.reason}"
    return None


def find_obstacle(state: LedgerState, model: ModelSpec, request: RollbackRequested) -> str | None:
    """Return what holds a rollback back that the evidence asks for; None if nothing does."""
    pair = find_pair(state)
    if pair is None or (pair.champion_entry, pair.previous_content) != (
        request.champion_entry,
        request.previous_content,
    ):
        return f"the champion has changed: {f'version {state.champion} is' if state.champion else 'there is none'} now"
    if problem := closed_reason(state, model, pair, request.as_of):
        return problem
    if state.is_frozen:
        return "the model is frozen"
    if state.open_comparison:
        return f"version {state.challenger} gathers evidence against the champion, which a rollback would void"
    policy = model.auto_rollback
    assert policy, "closed_reason has asked"
    start = feature_spec(model).calendar.period_before(request.as_of, policy.budget_time)
    spent = [
        event.barred_version
        for event in _iter_events(state, ChampionRolledBack)
        if event.request_entry and read_request(state, event.request_entry).as_of > start
    ]
    if len(spent) >= policy.budget:
        versions = ", ".join(spent)
        return f"the budget of {policy.budget} in {policy.budget_time} is spent, by the rollback of version {versions}"
    return None


def _iter_events(state: LedgerState, kind: type[_Event]) -> Iterator[_Event]:
    """Yield the events of a kind, the newest first."""
    name = kind.model_fields["kind"].default
    for number, record in zip(range(state.head_number, 0, -1), reversed(state.entries.records), strict=True):
        if record.kind == name:
            event = state.entries[number - 1].event
            assert isinstance(event, kind)
            yield event
