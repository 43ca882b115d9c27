"""What waits for a person's approval, a verdict or a rollback: pure functions of the spec and the ledger."""

from __future__ import annotations

from evergreen import ledger
from evergreen.errors import EvergreenError
from evergreen.ledger import LedgerEntry, LedgerState, RollbackRequested, VerdictRecorded
from evergreen.promotion import rollback_rules, rules
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


def find_waiting_approval(model: ModelSpec, state: LedgerState) -> LedgerEntry | None:
    """Return the entry with the newest verdict if it passed and nothing but a person's approval is missing."""
    entry = state.entries.find_last(VerdictRecorded)
    if model.approval is None or entry is None:
        return None
    event = entry.event
    assert isinstance(event, VerdictRecorded)
    # By its content: that of a challenger was registered after the first of its verdicts.
    registration = state.find_registration(event.candidate_content)
    if registration is None:
        return None
    request = rules.PromotionRequest(entry.number, registration.version, event.run_reason)
    try:
        decision = rules.decide_promotion(state, request, model.cooldown, feature_spec(model).calendar)
    except EvergreenError:
        return None  # it may not be promoted, whoever approves
    return entry if isinstance(decision, ledger.VersionPromoted) else None


def find_waiting_rollback(model: ModelSpec, state: LedgerState) -> LedgerEntry | None:
    """Return the entry that asks for an automatic rollback if nothing but a person's approval is missing."""
    entry = state.entries.find_last(RollbackRequested)
    if model.approval is None or entry is None:
        return None
    assert isinstance(entry.event, RollbackRequested)
    return None if rollback_rules.find_obstacle(state, model, entry.event) else entry
