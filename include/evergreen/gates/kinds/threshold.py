"""Is the candidate good enough, whatever the champion?"""

from __future__ import annotations

import numpy as np

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence
from evergreen.gates.kinds.shared import format_against_limit, not_computed_result, validate_label_and_scores
from evergreen.gates.metrics import compute_metric, resolve_metric
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import ThresholdGate


def compute(gate: ThresholdGate, evidence: Evidence) -> GateResult:
    """Passed when the metric on the holdout reaches `at_least`, or stays within `at_most`, to the last bit."""
    label, candidate, faults = validate_label_and_scores(gate, evidence)
    if faults or label is None or candidate is None:
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    measured = compute_metric(resolve_metric(gate), *validation.sort_rows([label, candidate]))
    if not np.isfinite(measured):
        return not_computed_result(gate, label.size, [f"the candidate has no {gate.metric} on {label.size:,} rows"])
    passed = measured >= gate.limit if gate.scale.higher_is_better else measured <= gate.limit
    bound = "at least" if gate.scale.higher_is_better else "at most"
    return GateResult(
        gate=gate.name,
        outcome="passed" if passed else "failed",
        candidate=measured,
        threshold=gate.limit,
        rows=label.size,
        reason=f"{gate.metric} {format_against_limit(measured, gate.limit)} on {label.size:,} rows, "
        f"{bound} {gate.limit} is required",
    )
