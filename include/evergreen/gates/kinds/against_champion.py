"""The candidate is better than the champion, or not much worse, at a confidence that holds for the model's life."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np

from evergreen.gates.alpha_spending import EarlierComparison, next_alpha
from evergreen.gates.comparisons import check_differing_rows, estimate_gain
from evergreen.gates.computation import (
    compute_gate_metric,
    format_against_limit,
    gate_result,
    no_champion_result,
    validate_rows,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import AgainstChampionGate


def compute(
    gate: AgainstChampionGate, evidence: Evidence, earlier_comparisons: Sequence[EarlierComparison]
) -> GateResult:
    """Pass when the lower bound of the gain reaches the gate's limit; pass at once while there is no champion.

    The bound's level is what `earlier_comparisons` have left of the gate's lifetime budget. A comparison that is not
    computed spends nothing: it cannot pass.
    """
    (label, candidate), faults = validate_rows(gate, evidence, {})
    if faults:
        raise NotComputedError(*faults)
    value = compute_gate_metric(gate, label, candidate)
    if value is None:
        raise NotComputedError(f"the candidate has no {gate.metric} on {label.size:,} rows")
    if isinstance(evidence.champion, NoChampion):
        return no_champion_result(gate, value, label.size)
    if isinstance(evidence.champion, MissingEvidence):
        raise NotComputedError(f"the champion cannot be compared: {evidence.champion.problem}", candidate=value)
    (*_, champion), faults = validate_rows(gate, evidence, {"champion": evidence.champion})
    faults += _days_faults(evidence.days)
    if faults or evidence.days is None:
        raise NotComputedError(*faults, candidate=value)
    champion_value = compute_gate_metric(gate, label, champion)
    if champion_value is None:
        raise NotComputedError(f"the champion has no {gate.metric} on {label.size:,} rows", candidate=value)
    budget = 1 - gate.confidence
    alpha = next_alpha(budget, gate.name, evidence.days, earlier_comparisons)
    try:
        check_differing_rows(gate, candidate, champion, "the two")
        gain = estimate_gain(gate, label, candidate, champion, alpha, gate.chosen_test)
        if not np.isfinite([gain.low, gain.high]).all():
            raise NotComputedError(f"the bounds of the gain in {gate.metric} are infinite")
    except NotComputedError as error:
        raise NotComputedError(str(error), candidate=value, champion=champion_value) from None
    # An equal model is not better.
    passed = gain.low > 0 if gate.must_be == "better" and not gate.margin else gain.low >= gate.limit
    return gate_result(
        gate,
        passed=passed,
        candidate=value,
        champion=champion_value,
        interval=(gain.low, gain.high),
        alpha=alpha,
        rows=label.size,
        reason=f"{gate.metric} {value:.4g} against the champion's {champion_value:.4g} on {label.size:,} rows: "
        f"{_describe_gain(gate, gain.low, passed)}; spends {alpha:.3g} of the lifetime budget {budget:.3g}",
    )


def _describe_gain(gate: AgainstChampionGate, low: float, passed: bool) -> str:
    """Describe the lower bound, with the number on its own side of the limit."""
    size = format_against_limit(abs(low), gate.margin)
    if gate.must_be == "better" and not passed:
        required = f"at least {gate.margin} better" if gate.margin else "better"
        bound = f"only {size} better" if low > 0 else f"up to {size} worse" if low < 0 else "no better"
        return f"it must be {required}, and may be {bound}"
    if low > 0:
        return f"it is at least {size} better"
    if low == 0:
        return "it is no worse"
    return f"it {'is at most' if passed else 'may be up to'} {size} worse ({gate.margin} is allowed)"


def _days_faults(days: tuple[date, date] | None) -> list[str]:
    if days is None:
        return ["the evidence does not say of which days it is: earlier comparisons may have used them"]
    if not days[0] < days[1]:
        return [f"the evidence is of no day: it starts {days[0]} and ends before {days[1]}"]
    return []
