"""The candidate is good enough, whatever the champion."""

from __future__ import annotations

from evergreen.gates.computation import (
    compute_gate_metric,
    format_against_limit,
    gate_result,
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
    if gate.scale.higher_is_better:
        passed, bound = value >= gate.limit, "at least"
    else:
        passed, bound = value <= gate.limit, "at most"
    text = f"{gate.metric} {format_against_limit(value, gate.limit)} on {label.size:,} rows"
    reason = f"{text}, {bound} {gate.limit} is required"
    return gate_result(gate, passed=passed, candidate=value, rows=label.size, reason=reason)
