"""Is there a part of the rows in which the candidate is worse than the champion?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evergreen.gates import validation
from evergreen.gates.comparisons import Gain, NotComparable, gain
from evergreen.gates.evidence import Evidence, Missing, NoChampion
from evergreen.gates.kinds.shared import (
    beside,
    enough,
    grouped,
    labelled,
    left_out,
    measured,
    not_computed,
    raised,
    reported,
    unopposed,
)
from evergreen.gates.metrics import Floats
from evergreen.gates.verdict import Part, Record
from evergreen.spec.gates import BySlice


def compute(gate: BySlice, evidence: Evidence) -> Record:
    """Passed when no judged slice is shown to fall by more than `gate.margin`; without a champion, passed as well.

    The upper bounds of the gains hold for all judged slices together with `gate.confidence`: each may be wrong with
    a chance of (1 - confidence) / slices (Bonferroni; Dunn 1961, Journal of the American Statistical Association
    56:52-64). A slice with fewer than `gate.min_rows` rows, or, for metrics of classes, with fewer than two rows of
    either class, is reported and not judged. A slice that is large enough but cannot be compared blocks.

    The record's values and interval are those of the slice with the largest fall, of those that fail if any does.
    """
    label, candidate, faults = labelled(gate, evidence)
    champion = None
    if isinstance(evidence.champion, Missing):
        faults.append(f"the champion cannot be compared: {evidence.champion.problem}")
    elif not isinstance(evidence.champion, NoChampion):
        champion = validation.column(evidence.champion)
        faults += validation.score_faults("champion", champion, label, gate.scale.of)
    groups = {} if label is None else grouped(evidence, gate.by, label.size)
    if isinstance(groups, str):
        faults.append(groups)
    if faults or label is None or candidate is None or isinstance(groups, str):
        return not_computed(gate, 0 if label is None else label.size, faults)
    try:
        if champion is None:
            return _first(gate, label, candidate)
        slices = [_Slice(name, label[at], candidate[at], champion[at]) for name, at in groups.items()]
        return _judged(gate, label.size, slices)
    except Exception as error:  # a metric may be the user's own code
        return not_computed(gate, label.size, [raised(gate, error)])


def _first(gate: BySlice, label: Floats, candidate: Floats) -> Record:
    found = measured(gate, label, candidate)
    if found is None:
        return not_computed(gate, label.size, [f"{gate.metric} does not exist on these {label.size:,} rows"])
    return unopposed(gate, found, label.size)


@dataclass(frozen=True, eq=False)
class _Slice:
    name: str
    label: Floats
    candidate: Floats
    champion: Floats


def _judged(gate: BySlice, rows: int, slices: list[_Slice]) -> Record:
    judged = sum(enough(gate, part.label) for part in slices)
    parts: list[Part] = []
    gains: dict[str, Gain] = {}
    faults: list[str] = []
    for part in slices:
        found = _compared(gate, part, (1 - gate.confidence) / judged) if enough(gate, part.label) else None
        parts.append(_part(gate, part, found))
        if isinstance(found, str):
            faults.append(f"{gate.by} {part.name}: {found}")
        elif found:
            gains[part.name] = found
    if not judged:
        most = max(part.label.size for part in slices)
        kinds = " of both classes" if gate.scale.of == "classes" else ""
        faults = [
            f"none of {len(slices):,} slices by {gate.by} has the {gate.min_rows:,} rows{kinds} that it takes to be "
            f"judged: the largest has {most:,}"
        ]
    if faults:
        return not_computed(gate, rows, faults, parts)

    failing = [name for name, found in gains.items() if found.high < gate.limit]
    worst = min(failing or gains, key=lambda name: (gains[name].value, name))
    found_in = next(part for part in parts if part.name == worst)
    return Record(
        gate=gate.name,
        outcome="failed" if failing else "passed",
        candidate=found_in.candidate,
        champion=found_in.champion,
        interval=found_in.interval,
        threshold=gate.limit,
        rows=rows,
        parts=tuple(parts),
        reason=_reason(gate, found_in, failing, judged) + left_out(parts),
    )


def _compared(gate: BySlice, part: _Slice, level: float) -> Gain | str:
    """The gain in one slice; or, in a sentence, why it cannot be told."""
    try:
        found = gain(gate, part.label, part.candidate, part.champion, level, gate.chosen_test)
    except NotComparable as problem:
        return str(problem)
    values = (measured(gate, part.label, scores) for scores in (part.candidate, part.champion))
    if None in values or not np.isfinite([found.value, found.low, found.high]).all():
        return f"{gate.metric} does not exist for both on {part.label.size:,} rows"
    return found


def _part(gate: BySlice, part: _Slice, found: Gain | str | None) -> Part:
    metric = reported if found is None else measured
    return Part(
        name=part.name,
        rows=part.label.size,
        candidate=metric(gate, part.label, part.candidate),
        champion=metric(gate, part.label, part.champion),
        interval=(found.low, found.high) if isinstance(found, Gain) else None,
        judged=found is not None,
    )


def _reason(gate: BySlice, worst: Part, failing: list[str], judged: int) -> str:
    assert worst.interval is not None
    low, high = worst.interval
    sure = f"at {100 * gate.confidence:g} % confidence for all {judged:,} slices judged by {gate.by}"
    values = f"{gate.metric} {worst.candidate:.4g} against the champion's {worst.champion:.4g} on {worst.rows:,} rows"
    if not failing:
        nearest = f"the largest fall is in {worst.name}: {values}, a gain of {low:.4g} to {high:.4g}"
        return f"{sure} none is shown to fall by more than {gate.margin:g}; {nearest}"
    fall = (
        f"{worst.name} falls by at least {beside(-high, gate.margin)} ({gate.margin:g} is allowed): {values}"
    )
    others = [name for name in failing if name != worst.name]
    return f"{sure} {fall}" + (f"; too much fall as well: {', '.join(others)}" if others else "")
