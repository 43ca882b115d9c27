"""Is the candidate good enough, whatever the champion?"""

from __future__ import annotations

import numpy as np

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence
from evergreen.gates.kinds.shared import beside, labelled, not_computed
from evergreen.gates.metrics import measure, value
from evergreen.gates.verdict import Record
from evergreen.spec.gates import Threshold


def compute(gate: Threshold, evidence: Evidence) -> Record:
    """Passed when the metric on the holdout reaches `at_least`, or stays within `at_most`, to the last bit."""
    label, candidate, faults = labelled(gate, evidence)
    if faults or label is None or candidate is None:
        return not_computed(gate, 0 if label is None else label.size, faults)
    measured = value(measure(gate), *validation.in_canonical_order([label, candidate]))
    if not np.isfinite(measured):
        return not_computed(gate, label.size, [f"the candidate has no {gate.metric} on {label.size:,} rows"])
    passed = measured >= gate.limit if gate.scale.higher_is_better else measured <= gate.limit
    bound = "at least" if gate.scale.higher_is_better else "at most"
    return Record(
        gate=gate.name,
        outcome="passed" if passed else "failed",
        candidate=measured,
        threshold=gate.limit,
        rows=label.size,
        reason=f"{gate.metric} {beside(measured, gate.limit)} on {label.size:,} rows, "
        f"{bound} {gate.limit} is required",
    )
