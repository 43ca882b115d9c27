"""The candidate treats groups of rows alike."""

from __future__ import annotations

from evergreen.gates.computation import (
    compute_gate_metric,
    describe_unjudged_slices,
    finite_or_none,
    format_against_limit,
    gate_result,
    group_rows,
    has_enough_rows,
    metric_error_message,
    not_computed_result,
    validate_label_and_scores,
)
from evergreen.gates.evidence import Evidence
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, SliceResult
from evergreen.spec.gates import FairnessGate


def compute(gate: FairnessGate, evidence: Evidence) -> GateResult:
    """Pass when the metric differs by at most `gate.at_most` between any two judged groups.

    With `positive_rate` that is the difference of demographic parity, with recall that of equal opportunity (Hardt,
    Price and Srebro 2016, NeurIPS 29). A group with fewer than `gate.min_rows` rows, or, for metrics of classes,
    with fewer than two rows of either class, is reported and not judged. The value is as measured: the largest
    difference of many small groups is large by chance, so set `min_rows` by what `at_most` needs.
    """
    label, candidate, faults = validate_label_and_scores(gate, evidence)
    groups = {} if label is None else group_rows(evidence, gate.group_by, label.size)
    if isinstance(groups, str):
        faults.append(groups)
    if faults or label is None or candidate is None or isinstance(groups, str):
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    try:
        results = [_group_result(gate, name, label[i], candidate[i]) for name, i in groups.items()]
    except Exception as error:  # of any class: a custom metric is the user's code
        return not_computed_result(gate, label.size, [metric_error_message(gate, error)])
    return _compare_groups(gate, label.size, results)


def _group_result(gate: FairnessGate, name: str, label: FloatArray, candidate: FloatArray) -> SliceResult:
    judged = has_enough_rows(gate, label)
    value = compute_gate_metric(gate, label, candidate, ignore_errors=not judged)
    return SliceResult(name=name, rows=label.size, candidate=value, is_judged=judged)


def _compare_groups(gate: FairnessGate, rows: int, results: list[SliceResult]) -> GateResult:
    judged = {part.name: part for part in results if part.is_judged}
    values = {name: part.candidate for name, part in judged.items() if part.candidate is not None}
    faults = [f"{gate.metric} does not exist for {gate.group_by} {name}" for name in judged if name not in values]
    if len(judged) < 2:
        verb = "has" if len(judged) == 1 else "have"
        faults.append(
            f"{len(judged)} of {len(results):,} groups by {gate.group_by} {verb} enough rows "
            f"(at least {gate.min_rows:,}), it takes 2 to compare"
        )
    if faults:
        return not_computed_result(gate, rows, faults, results)
    highest, lowest = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    difference = values[highest] - values[lowest]
    if finite_or_none(difference) is None:
        text = f"{gate.metric} of {highest} less that of {lowest} is not a finite number"
        return not_computed_result(gate, rows, [text], results)
    if highest == lowest:  # all are equal
        finding = f"{gate.metric} is {values[highest]:.4g} in all {len(values):,} groups by {gate.group_by}"
    else:
        high, low = (f"{name} ({values[name]:.4g} on {judged[name].rows:,} rows)" for name in (highest, lowest))
        size = format_against_limit(difference, gate.at_most)
        finding = f"{gate.metric} differs by {size} between {gate.group_by} {high} and {low}"
    return gate_result(
        gate,
        passed=difference <= gate.at_most,
        candidate=difference,
        rows=rows,
        slices=tuple(results),
        reason=f"{finding}, at most {gate.at_most:g} is allowed{describe_unjudged_slices(results)}",
    )
