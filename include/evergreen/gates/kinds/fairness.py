"""Does the candidate treat groups of rows alike?"""

from __future__ import annotations

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence
from evergreen.gates.kinds.shared import (
    beside,
    enough,
    finite,
    grouped,
    left_out,
    measured,
    not_computed,
    raised,
    reported,
)
from evergreen.gates.metrics import Floats
from evergreen.gates.verdict import Part, Record
from evergreen.spec.gates import Fairness


def compute(gate: Fairness, evidence: Evidence) -> Record:
    """Passed when the metric differs by at most `gate.at_most` between any two judged groups.

    With `positive_rate` that is the difference of demographic parity, with recall that of equal opportunity (Hardt,
    Price and Srebro 2016, NeurIPS 29). A group with fewer than `gate.min_rows` rows, or, for metrics of classes,
    with fewer than two rows of either class, is reported and not judged. The value is as measured: the largest
    difference of many small groups is large by chance, so set `min_rows` by what `at_most` needs.
    """
    label, candidate = validation.column(evidence.label), validation.column(evidence.candidate)
    rate = gate.metric == "positive_rate"
    # A rate of predictions asks for no labels of both classes.
    faults = validation.label_faults(label, gate.min_rows, "amounts" if rate else gate.scale.of)
    faults += validation.score_faults("candidate", candidate, label, gate.scale.of)
    groups = {} if label is None else grouped(evidence, gate.by, label.size)
    if isinstance(groups, str):
        faults.append(groups)
    if faults or label is None or candidate is None or isinstance(groups, str):
        return not_computed(gate, 0 if label is None else label.size, faults)
    try:
        parts = [_part(gate, name, label[at], candidate[at]) for name, at in groups.items()]
    except Exception as error:  # a metric may be the user's own code
        return not_computed(gate, label.size, [raised(gate, error)])
    return _judged(gate, label.size, parts)


def _part(gate: Fairness, name: str, label: Floats, candidate: Floats) -> Part:
    judged = enough(gate, label)
    metric = measured if judged else reported
    return Part(name=name, rows=label.size, candidate=metric(gate, label, candidate), judged=judged)


def _judged(gate: Fairness, rows: int, parts: list[Part]) -> Record:
    values = {part.name: part.candidate for part in parts if part.judged}
    known = {name: found for name, found in values.items() if found is not None}
    faults = [
        f"{gate.metric} does not exist for {gate.by} {name}"
        for name, found in values.items()
        if found is None
    ]
    if len(values) < 2:
        faults.append(
            f"{len(values)} of {len(parts):,} groups by {gate.by} {'has' if len(values) == 1 else 'have'} enough rows "
            f"(at least {gate.min_rows:,}), it takes 2 to compare"
        )
    if faults:
        return not_computed(gate, rows, faults, parts)
    highest, lowest = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    difference = known[highest] - known[lowest]
    if finite(difference) is None:
        return not_computed(
            gate, rows, [f"{gate.metric} of {highest} less that of {lowest} is no number"], parts
        )
    sizes = {part.name: part.rows for part in parts}
    between = " and ".join(
        f"{name} ({known[name]:.4g} on {sizes[name]:,} rows)" for name in (highest, lowest)
    )
    found = f"{gate.metric} differs by {beside(difference, gate.at_most)} between {gate.by} {between}"
    if highest == lowest:  # they are all equal
        found = f"{gate.metric} is {known[highest]:.4g} in all {len(known):,} groups by {gate.by}"
    return Record(
        gate=gate.name,
        outcome="passed" if difference <= gate.at_most else "failed",
        candidate=difference,
        threshold=gate.limit,
        rows=rows,
        parts=tuple(parts),
        reason=f"{found}, at most {gate.at_most:g} is allowed{left_out(parts)}",
    )
