"""What a challenger waits for, and who waits for it: pure functions of the ledger's state and the spec."""

from __future__ import annotations

from math import ceil
from typing import Any

from evergreen import ledger
from evergreen.lake import fingerprints
from evergreen.periods import Duration
from evergreen.promotion import rules
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason


def comparison_obstacle(
    state: ledger.LedgerState,
    as_of: str,
    candidate_content: str,
    compared_version: str,
    compared_content: str,
    model: ModelSpec,
) -> str | None:
    """Return why to compare the candidate with this model would be spent in vain: it promotes nothing; else None."""
    if candidate_content in state.barred_contents:
        return f"the candidate cannot be promoted: {rules.BARRED}"
    if state.open_comparison and candidate_content == state.challenger_content:
        return "the candidate is the challenger already, byte for byte, and gathers evidence"
    if problem := rules.champion_problem(state, as_of, compared_version, compared_content):
        return problem
    return training_pause(state, model, as_of)


def evidence_wait(state: ledger.LedgerState, model: ModelSpec, as_of: str) -> str | None:
    """Return why no other candidate is trained or compared while a challenger gathers evidence; None if one may be."""
    is_replaceable = model.monitor is not None and model.monitor.replaceable
    if not state.open_comparison or is_replaceable or neglect_reason(state, model, as_of):
        return None
    return (
        f"version {state.challenger} gathers evidence until {evidence_end(state, model)}, when {model.name}.monitor "
        f"withdraws it if it is not champion; for another candidate now, `evergreen withdraw {model.name} --reason …`"
    )


def training_pause(state: ledger.LedgerState, model: ModelSpec, as_of: str) -> str | None:
    """Return why a retrain trains nothing for now: a challenger gathers evidence, a freeze, the cooldown; else None."""
    pause = evidence_wait(state, model, as_of)
    return pause if pause or model.keep_candidates_ready else _promotion_pause(state, model, as_of)


def neglect_reason(state: ledger.LedgerState, model: ModelSpec, as_of: str) -> str | None:
    """Return why a run that retrains withdraws the challenger: as `withdrawal_reason`, but it leaves time for a look.

    So a monitor DAG that is paused holds up no candidate for ever.
    """
    if model.monitor:
        as_of = feature_spec(model).calendar.period_before(as_of, model.monitor.look_after)
    return withdrawal_reason(state, model, as_of)


def withdrawal_reason(state: ledger.LedgerState, model: ModelSpec, as_of: str | None = None) -> str | None:
    """Return why the challenger can become champion no more, whatever later days show; None if it can.

    With `as_of`, until when the caller knows the data, also where the comparison has had its days.
    """
    event = state.challenger_event
    if event is None:
        return None
    if not state.open_comparison:
        assert state.challenger
        assert state.challenger_verdict
        request = rules.PromotionRequest(state.challenger_verdict, state.challenger, RunReason.SCHEDULE)
        return rules.refusal_reason(state, request)
    if problem := rules.champion_problem(state, event.as_of, event.champion_version, event.champion_content):
        return problem
    if event.candidate_content in state.barred_contents:
        return rules.BARRED
    if not model.gathers_evidence:
        return "the spec lets no candidate gather evidence any more"
    if event.fingerprints.get("gates") != gates_fingerprint(model):
        return "the model's gates have changed since its first look: evidence by other gates does not count"
    if as_of and as_of >= (end := evidence_end(state, model)):
        return f"its evidence does not suffice, and the days of its comparison were over on {end}"
    return None


def evidence_end(state: ledger.LedgerState, model: ModelSpec) -> str:
    """Return the period from which on the challenger's comparison has had its days: their labels are complete then.

    Days without rows do not count; of later ones, as many are expected to have none as of those of the first look.
    """
    from evergreen.gates.group_sequential import max_days  # here: it loads scipy

    event = state.challenger_event
    assert event
    start, calendar = event.days[0], feature_spec(model).calendar
    days = [
        ceil(max_days(result.alpha, first.days) * (first.end - start).days / first.days)
        for result in event.verdict.results
        if result.outcome == "inconclusive" and result.alpha
        for first in result.looks[:1]
    ]
    return calendar.period_after(calendar.period_after(event.holdout[0], Duration(max(days), "d")), model.label_delay)


def look_wait(state: ledger.LedgerState, model: ModelSpec, as_of: str, labelled_end: str) -> str | None:
    """Return why no look at the challenger is taken, with evidence until `labelled_end`; None if one is due."""
    event = state.challenger_event
    assert event
    assert model.monitor
    calendar, look_after = feature_spec(model).calendar, model.monitor.look_after
    new_periods = calendar.count(event.holdout[1], labelled_end)
    if new_periods <= 0 or as_of <= event.judged_as_of:
        return f"no day has labels that had none at the look before, until {event.holdout[1]}"
    end = evidence_end(state, model)
    is_last = as_of >= end or labelled_end >= calendar.period_before(end, model.label_delay)
    if labelled_end < calendar.period_after(event.holdout[1], look_after) and not is_last:
        return f"{new_periods} {calendar.unit}s are new since the look before, of {look_after}"
    return None


def challenger_wait(state: ledger.LedgerState, model: ModelSpec) -> str:
    """Return what the challenger waits for: more days of evidence, or its promotion, with the reason."""
    event = state.challenger_event
    if event is None:
        return "there is none"
    if state.open_comparison:
        end = evidence_end(state, model)
        return f"it gathers evidence until {end} at most, and has that of days until {event.holdout[1]}"
    deferral = state.entries.find_last(ledger.PromotionDeferred, verdict_entry=state.challenger_verdict)
    if deferral is None:
        return "it passed its gates, and waits for its promotion"
    assert isinstance(deferral.event, ledger.PromotionDeferred)
    return f"it passed its gates, and its promotion is held back: {deferral.event.reason}"


def _promotion_pause(state: ledger.LedgerState, model: ModelSpec, as_of: str) -> str | None:
    return rules.promotion_pause(state, as_of, model.cooldown, feature_spec(model).calendar)


def gates_fingerprint(model: ModelSpec) -> str:
    """Return the fingerprint of the specs of the model's gates, and of what else in its spec every look measures by."""
    content: list[Any] = [gate.model_dump(mode="json") for gate in model.gates]
    # Only where they are set, so that models without them keep their fingerprint.
    if model.weight:
        content.append({"weight": model.weight})
    if model.forecast:
        content.append({"forecast": model.forecast.model_dump(mode="json")})
    return fingerprints.compute_fingerprint(content)
