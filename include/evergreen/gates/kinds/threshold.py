"""Is the candidate good enough, whatever the champion?"""

from __future__ import annotations

from evergreen.gates.computation import (
    compute_gate_metric,
    format_against_limit,
    not_computed_result,
    validate_label_and_scores,
)
from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import ThresholdGate


def compute(gate: ThresholdGate, evidence: Evidence) -> GateResult:
    """Pass when the metric on the holdout reaches `at_least`, or stays within `at_most`, to the last bit."""
    label, candidate, faults = validate_label_and_scores(gate, evidence)
    if faults or label is None or candidate is None:
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    value = compute_gate_metric(gate, label, candidate)
    if value is None:
        return not_computed_result(gate, label.size, [f"the candidate has no {gate.metric} on {label.size:,} rows"])
    passed = value >= gate.limit if gate.scale.higher_is_better else value <= gate.limit
    bound = "at least" if gate.scale.higher_is_better else "at most"
    return GateResult(
        gate=gate.name,
        outcome="passed" if passed else "failed",
        candidate=value,
        threshold=gate.limit,
        rows=label.size,
        reason=f"{gate.metric} {format_against_limit(value, gate.limit)} on {label.size:,} rows, "
        f"{bound} {gate.limit} is required",
    )
