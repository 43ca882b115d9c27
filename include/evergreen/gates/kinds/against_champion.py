"""Is the candidate better than the champion, or no worse than may be, at a confidence that lasts for life?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np

from evergreen.gates import validation
from evergreen.gates.alpha_spending import EarlierComparison, next_alpha
from evergreen.gates.comparisons import MetricGain, NotComparableError, estimate_gain
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.kinds.shared import (
    count_differences,
    format_against_limit,
    no_champion_result,
    not_computed_result,
    shown,
    validate_label_and_scores,
)
from evergreen.gates.metrics import FloatArray, Metric, compute_metric, resolve_metric
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import AgainstChampionGate

# With fewer the spread over resamples is no measure of the error: with no such row at all it is zero.
MIN_DIFFERING_ROWS = 30


def compute(
    gate: AgainstChampionGate, evidence: Evidence, earlier_comparisons: Sequence[EarlierComparison]
) -> GateResult:
    """Passed when the lower bound of the gain reaches the gate's limit; without a champion yet, passed at once.

    The bound's level is what `past` has left of the gate's lifetime budget. A comparison that could not be computed
    spends nothing: it cannot pass.
    """
    label, candidate, faults = validate_label_and_scores(gate, evidence)
    if faults or label is None or candidate is None:
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    metric = resolve_metric(gate)
    ours = _compute_value(gate, metric, label, candidate)
    theirs = None

    def blocked(*faults: str) -> GateResult:
        known = {"candidate": shown(ours), "champion": shown(theirs)}
        return not_computed_result(gate, label.size, faults).model_copy(update=known)

    if not np.isfinite(ours):
        return blocked(f"the candidate has no {gate.metric} on {label.size:,} rows")
    if isinstance(evidence.champion, NoChampion):
        return no_champion_result(gate, ours, label.size)
    if isinstance(evidence.champion, MissingEvidence):
        return blocked(f"the champion cannot be compared: {evidence.champion.problem}")
    champion = validation.to_float_array(evidence.champion)
    faults = validation.score_faults("champion", champion, label, gate.scale.label_type) + _days_faults(evidence.days)
    if faults or champion is None or evidence.days is None:
        return blocked(*faults)
    theirs = _compute_value(gate, metric, label, champion)
    if not np.isfinite(theirs):
        return blocked(f"the champion has no {gate.metric} on {label.size:,} rows")
    if few := _too_few_differences(gate, candidate, champion):
        return blocked(few)
    error = 1 - gate.confidence
    spent = next_alpha(error, gate.name, evidence.days, earlier_comparisons)
    try:
        found = estimate_gain(gate, label, candidate, champion, spent, gate.chosen_test)
    except NotComparableError as problem:
        return blocked(str(problem))
    if not np.isfinite([found.low, found.high]).all():
        return blocked(f"the bounds of the gain in {gate.metric} are infinite")
    passed = _passes(gate, found)
    return GateResult(
        gate=gate.name,
        outcome="passed" if passed else "failed",
        candidate=ours,
        champion=theirs,
        interval=(found.low, found.high),
        threshold=gate.limit,
        alpha=spent,
        rows=label.size,
        reason=f"{gate.metric} {ours:.4g} against the champion's {theirs:.4g} on {label.size:,} rows: "
        f"{_describe_gain(gate, found.low, passed)}; spends {spent:.3g} of the lifetime budget {error:.3g}",
    )


def _compute_value(gate: AgainstChampionGate, metric: Metric, label: FloatArray, score: FloatArray) -> float:
    if gate.metric == "auc":  # counts pairs, and so is exact in any order: no need to sort rows
        return compute_metric(metric, label, score)
    return compute_metric(metric, *validation.sort_rows([label, score]))


def _passes(gate: AgainstChampionGate, gain: MetricGain) -> bool:
    if gate.must_be == "better" and not gate.margin:
        return gain.low > 0  # as good is not better
    return gain.low >= gate.limit


def _describe_gain(gate: AgainstChampionGate, low: float, passed: bool) -> str:
    """What the lower bound says, with the number on its own side of the limit."""
    size = format_against_limit(abs(low), gate.margin)
    if gate.must_be == "better" and not passed:
        wanted = f"at least {gate.margin} better" if gate.margin else "better"
        may_be = f"only {size} better" if low > 0 else f"up to {size} worse" if low < 0 else "no better"
        return f"it must be {wanted}, and may be {may_be}"
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


def _too_few_differences(gate: AgainstChampionGate, candidate: FloatArray, champion: FloatArray) -> str:
    """Why a bootstrap would be too sure; empty when it would not. The other tests know what few rows tell."""
    if gate.chosen_test != "bootstrap" or np.array_equal(candidate, champion):
        return ""
    differ = count_differences(gate, candidate, champion)
    if differ >= MIN_DIFFERING_ROWS:
        return ""
    text = f"the two differ in {differ:,} of {candidate.size:,} rows"
    return f"{text}: too few to tell how sure the gain is, at least {MIN_DIFFERING_ROWS} are needed"
