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
    validate_rows,
)
from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import GateResult, NotComputedError, SliceResult
from evergreen.spec.gates import FairnessGate


def compute(gate: FairnessGate, evidence: Evidence) -> GateResult:
    """Pass when the metric differs by at most `gate.at_most` between any two judged groups.

    With `positive_rate` that is the difference of demographic parity, with recall that of equal opportunity (Hardt,
    Price and Srebro 2016, NeurIPS 29). A group with fewer than `gate.min_rows` rows, or, for metrics of classes,
    with fewer than two rows of either class, is reported and not judged. The value is as measured: the largest
    difference of many small groups is large by chance, so set `min_rows` by what `at_most` needs.
    """
    (label, candidate), faults = validate_rows(gate, evidence, {})
    groups, group_faults = group_rows(evidence, gate.group_by, label.size)
    if faults or group_faults:
        raise NotComputedError(*faults, *group_faults)
    results = []
    for name, rows in groups.items():
        is_judged = has_enough_rows(gate, label[rows])
        value = compute_gate_metric(gate, label[rows], candidate[rows], ignore_errors=not is_judged)
        results.append(SliceResult(name=name, rows=rows.size, candidate=value, is_judged=is_judged))
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
        raise NotComputedError(*faults, slices=tuple(results))
    highest, lowest = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    difference = values[highest] - values[lowest]
    if finite_or_none(difference) is None:
        fault = f"{gate.metric} of {highest} less that of {lowest} is not a finite number"
        raise NotComputedError(fault, slices=tuple(results))
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
        rows=label.size,
        slices=tuple(results),
        reason=f"{finding}, at most {gate.at_most:g} is allowed{describe_unjudged_slices(results)}",
    )
