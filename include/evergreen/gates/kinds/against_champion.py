"""The candidate is better than the champion, or not much worse, at a confidence that holds for the model's life."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np

from evergreen.gates import validation
from evergreen.gates.alpha_spending import EarlierComparison, next_alpha
from evergreen.gates.comparisons import NotComparableError, check_differing_rows, estimate_gain
from evergreen.gates.computation import (
    compute_gate_metric,
    format_against_limit,
    gate_result,
    no_champion_result,
    not_computed_result,
    validate_label_and_scores,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import AgainstChampionGate


def compute(
    gate: AgainstChampionGate, evidence: Evidence, earlier_comparisons: Sequence[EarlierComparison]
) -> GateResult:
    """Pass when the lower bound of the gain reaches the gate's limit; pass at once while there is no champion.

    The bound's level is what `earlier_comparisons` have left of the gate's lifetime budget. A comparison that is not
    computed spends nothing: it cannot pass.
    """
    label, candidate, faults = validate_label_and_scores(gate, evidence)
    if faults or label is None or candidate is None:
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    value = compute_gate_metric(gate, label, candidate)
    champion_value = None

    def blocked(*faults: str) -> GateResult:
        values = {"candidate": value, "champion": champion_value}
        return not_computed_result(gate, label.size, faults).model_copy(update=values)

    if value is None:
        return blocked(f"the candidate has no {gate.metric} on {label.size:,} rows")
    if isinstance(evidence.champion, NoChampion):
        return no_champion_result(gate, value, label.size)
    if isinstance(evidence.champion, MissingEvidence):
        return blocked(f"the champion cannot be compared: {evidence.champion.problem}")
    champion = validation.to_float_array(evidence.champion)
    faults = validation.score_faults("champion", champion, label, gate.scale.label_type) + _days_faults(evidence.days)
    if faults or champion is None or evidence.days is None:
        return blocked(*faults)
    champion_value = compute_gate_metric(gate, label, champion)
    if champion_value is None:
        return blocked(f"the champion has no {gate.metric} on {label.size:,} rows")
    budget = 1 - gate.confidence
    alpha = next_alpha(budget, gate.name, evidence.days, earlier_comparisons)
    try:
        check_differing_rows(gate, candidate, champion, "the two")
        gain = estimate_gain(gate, label, candidate, champion, alpha, gate.chosen_test)
    except NotComparableError as error:
        return blocked(str(error))
    if not np.isfinite([gain.low, gain.high]).all():
        return blocked(f"the bounds of the gain in {gate.metric} are infinite")
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
