"""Rollbacks that matured labels ask for. Rules are pure (`rollback_rules`), and each step is one entry of the ledger.

The evidence is recorded first, as a request, and the rollback follows from its entry: by the function that a person's
rollback uses, and once, whoever is killed in between or runs at the same time. Only a champion that was promoted over
another one is compared with it, so what a rollback has restored is not rolled back in turn.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.gates.alpha_spending import earlier_day_correlations
from evergreen.ledger import ChampionRolledBack, LedgerEntry, LedgerState, RollbackRejected, RollbackRequested
from evergreen.monitoring.champion_pair import ChampionPair, find_pair
from evergreen.monitoring.matured import digest_metric
from evergreen.monitoring.paired_days import DaysLook, PairedDays, judge_paired_days
from evergreen.monitoring.paired_periods import add_up_days, measure_pair
from evergreen.monitoring.record import MonitoringRecord, is_newest
from evergreen.promotion import rollback_rules, service
from evergreen.spec.auto_rollback import rollback_gate
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

log = logging.getLogger(__name__)


def request_rollback(model: ModelSpec, record: MonitoringRecord, end: str, *, actor: str) -> LedgerEntry:
    """Compare the champion with the one that it replaced; record that it is worse, if that is shown. Return the entry.

    Only periods whose features or labels are new since the run before cost something. The same evidence is recorded
    once.

    Raises:
        PromotionRefusedError: it is not shown, or something holds a rollback back; says what.
    """
    state, calendar = ledger.read_state(model.name), feature_spec(model).calendar
    pair = find_pair(state)
    if pair is None:
        raise PromotionRefusedError("the champion was not promoted over another one: there is nothing to compare")
    if record.champion_content != pair.champion_content or not is_newest(record, end, calendar):
        raise PromotionRefusedError(f"as of {end} is not the newest that is known of the champion")
    if problem := rollback_rules.closed_reason(state, model, pair, end):
        raise PromotionRefusedError(problem)
    assert model.auto_rollback
    gate = rollback_gate(model.auto_rollback, model.gates, model.prediction_type)
    measured = measure_pair(model, gate, pair, end)
    for problem in measured.problems:
        log.warning("%s", problem)
    if not measured.is_current:
        raise PromotionRefusedError(f"a run that knows more than one as of {end} has compared them")
    paired = add_up_days(measured.periods, calendar)
    look = judge_pair(model, gate, paired, state)
    notes = "".join(f"; {problem}" for problem in measured.problems)
    if isinstance(look, str):
        raise PromotionRefusedError(f"versions {pair.champion} and {pair.previous} are not compared yet: {look}{notes}")
    reason = describe_look(gate, pair, paired, look, end)
    if not look.is_better:
        raise PromotionRefusedError(f"version {pair.champion} stays: {reason}{notes}")
    request = RollbackRequested(
        champion=pair.champion,
        champion_entry=pair.champion_entry,
        previous=pair.previous,
        previous_content=pair.previous_content,
        as_of=end,
        days=(paired.days[0], look.look.end),
        look=look.look,
        alpha=look.alpha,
        metric=digest_metric(model, gate),
        rows=paired.rows,
        reason=reason,
    )
    return ledger.append_decision(
        model.name, actor, lambda state: rollback_rules.decide_rollback_request(state, model, request)
    )


def roll_back(
    model: ModelSpec, request_entry: int, *, actor: str, approved_by: str | None = None
) -> ChampionRolledBack:
    """Restore the version that a request in an entry of the ledger asks for, and bar the champion.

    Raises:
        PromotionRefusedError: something holds the rollback back, or a person has to approve it.
        SignatureError: the files of the version to restore are not those that were registered and signed.
    """
    state = ledger.read_state(model.name)
    request = rollback_rules.read_request(state, request_entry)
    if model.approval and not approved_by:
        raise PromotionRefusedError("the model's spec requires approval, and nobody has approved the rollback")
    tenure = next(item for item in state.tenures if item.entry_number == request.champion_entry)
    return service.roll_back_champion(
        model,
        state.name_of(request.previous_content, request.previous),
        request.reason,
        actor=actor,
        expected_champion=state.name_of(tenure.content, tenure.version),
        request=service.RollbackRequest(request_entry, approved_by),
        find_obstacle=lambda state: rollback_rules.find_obstacle(state, model, request),
    )


def reject_rollback(model: ModelSpec, request_entry: int, *, actor: str, rejected_by: str, reason: str) -> None:
    """Record that a person, or a timeout, rejected a rollback: nobody is asked again about this champion."""
    event = RollbackRejected(request_entry=request_entry, rejected_by=rejected_by, reason=reason)
    ledger.append_decision(
        model.name,
        actor,
        lambda state: state.entries.find_last(RollbackRejected, request_entry=request_entry) or event,
    )


def judge_pair(model: ModelSpec, gate: AgainstChampionGate, paired: PairedDays, state: LedgerState) -> DaysLook | str:
    """Return what a look at the days so far decides, or why there is none yet."""
    policy, calendar = model.auto_rollback, feature_spec(model).calendar
    assert policy
    # Gains of the model's candidates by the same metric show how much its days are alike.
    digest = digest_metric(model, gate)
    correlations = [
        measured
        for compared in model.gates
        if isinstance(compared, AgainstChampionGate) and digest_metric(model, compared) == digest
        for measured in earlier_day_correlations(compared.name, state.comparisons)
    ]
    unit = timedelta(weeks=1) if calendar.unit == "week" else timedelta(days=1)
    last_day = policy.count_days(calendar)
    return judge_paired_days(gate, paired, policy.min_days, last_day, model.prediction_type, correlations, unit)


def describe_look(gate: AgainstChampionGate, pair: ChampionPair, paired: PairedDays, look: DaysLook, end: str) -> str:
    """Return what a look shows, in a sentence for the ledger."""
    verb = "does better" if look.is_better else "is not shown to do better"
    return (
        f"version {pair.previous} {verb} than version {pair.champion}, which replaced it, by {gate.metric} on matured "
        f"labels: gain {look.look.gain:.4g}, lower bound {look.look.low:.4g} at level {look.look.level:.2g}, on "
        f"{paired.rows:,} rows of {look.look.days} days from {paired.days[0]} on, with labels known until {end}"
    )
