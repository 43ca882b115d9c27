"""The candidate is good enough, whatever the champion."""

from __future__ import annotations

from evergreen.gates.computation import (
    compute_gate_metric,
    format_against_limit,
    gate_result,
    validate_rows,
)
from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import ThresholdGate


def compute(gate: ThresholdGate, evidence: Evidence) -> GateResult:
    """Pass when the metric on the holdout reaches `at_least`, or stays within `at_most`, to the last bit."""
    (label, candidate), faults = validate_rows(gate, evidence, {})
    if faults:
        raise NotComputedError(*faults)
    value = compute_gate_metric(gate, label, candidate)
    if value is None:
        raise NotComputedError(f"the candidate has no {gate.metric} on {label.size:,} rows")
    if gate.scale.higher_is_better:
        passed, bound = value >= gate.limit, "at least"
    else:
        passed, bound = value <= gate.limit, "at most"
    text = format_against_limit(value, gate.limit)
    reason = f"{gate.metric} {text} on {label.size:,} rows, {bound} {gate.limit} is required"
    return gate_result(gate, passed=passed, candidate=value, rows=label.size, reason=reason)
