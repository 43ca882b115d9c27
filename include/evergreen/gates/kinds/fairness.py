"""Does the candidate treat groups of rows alike?"""

from __future__ import annotations

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence
from evergreen.gates.kinds.shared import (
    compute_gate_metric,
    describe_unjudged_slices,
    finite_or_none,
    format_against_limit,
    group_rows,
    has_enough_rows,
    metric_error_message,
    not_computed_result,
    try_gate_metric,
)
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, SliceResult
from evergreen.spec.gates import FairnessGate


def compute(gate: FairnessGate, evidence: Evidence) -> GateResult:
    """Passed when the metric differs by at most `gate.at_most` between any two judged groups.

    With `positive_rate` that is the difference of demographic parity, with recall that of equal opportunity (Hardt,
    Price and Srebro 2016, NeurIPS 29). A group with fewer than `gate.min_rows` rows, or, for metrics of classes,
    with fewer than two rows of either class, is reported and not judged. The value is as measured: the largest
    difference of many small groups is large by chance, so set `min_rows` by what `at_most` needs.
    """
    label, candidate = (
        validation.to_float_array(evidence.label),
        validation.to_float_array(evidence.candidate),
    )
    rate = gate.metric == "positive_rate"
    # A rate of predictions asks for no labels of both classes.
    faults = validation.label_faults(label, gate.min_rows, "continuous" if rate else gate.scale.label_type)
    faults += validation.score_faults("candidate", candidate, label, gate.scale.label_type)
    groups = {} if label is None else group_rows(evidence, gate.group_by, label.size)
    if isinstance(groups, str):
        faults.append(groups)
    if faults or label is None or candidate is None or isinstance(groups, str):
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    try:
        parts = [_group_result(gate, name, label[at], candidate[at]) for name, at in groups.items()]
    except Exception as error:  # a metric may be the user's own code
        return not_computed_result(gate, label.size, [metric_error_message(gate, error)])
    return _compare_groups(gate, label.size, parts)


def _group_result(gate: FairnessGate, name: str, label: FloatArray, candidate: FloatArray) -> SliceResult:
    judged = has_enough_rows(gate, label)
    metric = compute_gate_metric if judged else try_gate_metric
    return SliceResult(name=name, rows=label.size, candidate=metric(gate, label, candidate), is_judged=judged)


def _compare_groups(gate: FairnessGate, rows: int, group_results: list[SliceResult]) -> GateResult:
    values = {part.name: part.candidate for part in group_results if part.is_judged}
    known = {name: found for name, found in values.items() if found is not None}
    faults = [
        f"{gate.metric} does not exist for {gate.group_by} {name}" for name, found in values.items() if found is None
    ]
    if len(values) < 2:
        faults.append(
            f"{len(values)} of {len(group_results):,} groups by {gate.group_by} {'has' if len(values) == 1 else 'have'} enough rows "
            f"(at least {gate.min_rows:,}), it takes 2 to compare"
        )
    if faults:
        return not_computed_result(gate, rows, faults, group_results)
    highest, lowest = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    difference = known[highest] - known[lowest]
    if finite_or_none(difference) is None:
        return not_computed_result(
            gate, rows, [f"{gate.metric} of {highest} less that of {lowest} is no number"], group_results
        )
    sizes = {part.name: part.rows for part in group_results}
    between = " and ".join(f"{name} ({known[name]:.4g} on {sizes[name]:,} rows)" for name in (highest, lowest))
    found = (
        f"{gate.metric} differs by {format_against_limit(difference, gate.at_most)} between {gate.group_by} {between}"
    )
    if highest == lowest:  # they are all equal
        found = f"{gate.metric} is {known[highest]:.4g} in all {len(known):,} groups by {gate.group_by}"
    return GateResult(
        gate=gate.name,
        outcome="passed" if difference <= gate.at_most else "failed",
        candidate=difference,
        threshold=gate.limit,
        rows=rows,
        slices=tuple(group_results),
        reason=f"{found}, at most {gate.at_most:g} is allowed{describe_unjudged_slices(group_results)}",
    )
