"""One gate and the evidence, to one record."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evergreen.gates import usable
from evergreen.gates.bootstrap import differences
from evergreen.gates.evidence import Evidence, NoChampion, NotComparable
from evergreen.gates.metrics import METRICS, Floats, value
from evergreen.gates.spec import Gate, NotWorseThanChampion, Threshold
from evergreen.gates.verdict import Outcome, Record


def evaluate(gate: Gate, evidence: Evidence) -> Record:
    """The record of `gate`: passed, failed, or not_computed with all that is wrong; never an exception."""
    label, candidate = usable.column(evidence.label), usable.column(evidence.candidate)
    faults = usable.label_faults(label, gate.min_rows) + usable.score_faults("candidate", candidate, label)
    if faults or label is None or candidate is None:
        rows = 0 if label is None else label.size
        return Record(
            gate=gate.name, outcome="not_computed", threshold=gate.limit, rows=rows, reason="; ".join(faults)
        )
    match gate:
        case Threshold():
            return _threshold(gate, label, candidate)
        case NotWorseThanChampion():
            return _not_worse(gate, label, candidate, evidence.champion)


def _threshold(gate: Threshold, label: Floats, candidate: Floats) -> Record:
    measured = value(METRICS[gate.metric], *usable.in_canonical_order([label, candidate]))
    passed = measured >= gate.limit if gate.scale.higher_is_better else measured <= gate.limit
    bound = "at least" if gate.scale.higher_is_better else "at most"
    shown = _on_its_side(measured, gate.limit)
    return Record(
        gate=gate.name,
        outcome="passed" if passed else "failed",
        candidate=measured,
        threshold=gate.limit,
        rows=label.size,
        reason=f"{gate.metric} {shown} on {label.size:,} rows, {bound} {gate.limit} is required",
    )


def _not_worse(
    gate: NotWorseThanChampion,
    label: Floats,
    candidate: Floats,
    champion: ArrayLike | NoChampion | NotComparable,
) -> Record:
    metric = METRICS[gate.metric]
    measured = value(metric, *usable.in_canonical_order([label, candidate]))

    def record(
        outcome: Outcome,
        reason: str,
        theirs: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Record:
        return Record(
            gate=gate.name,
            outcome=outcome,
            candidate=measured,
            champion=theirs,
            interval=interval,
            threshold=gate.limit,
            rows=label.size,
            reason=reason,
        )

    if isinstance(champion, NoChampion):
        return record("passed", "no champion yet: nothing to compare with")
    if isinstance(champion, NotComparable):
        return record("not_computed", f"the champion cannot be compared: {champion.problem}")
    scores = usable.column(champion)
    faults = usable.score_faults("champion", scores, label)
    if faults or scores is None:
        return record("not_computed", "; ".join(faults))

    label, candidate, scores = usable.in_canonical_order([label, candidate, scores])
    theirs = value(metric, label, scores)
    first, second = (candidate, scores) if gate.scale.higher_is_better else (scores, candidate)
    gains = differences(metric, label, first, second, gate.resamples)
    if lost := int(np.count_nonzero(np.isnan(gains))):
        rare = int(min(label.sum(), label.size - label.sum()))
        return record(
            "not_computed",
            f"{lost:,} of {gate.resamples:,} resamples drew labels of one class only: "
            f"{rare:,} rows of the rarer class are too few to compare on",
            theirs,
        )
    low, high = (float(bound) for bound in np.quantile(gains, [1 - gate.confidence, gate.confidence]))
    passed = low >= gate.limit
    if low > 0:
        finding = f"it is at least {low:.4g} better"
    elif low == 0:
        finding = "it is no worse"
    else:
        claim = "it is at most" if passed else "it may be up to"
        finding = f"{claim} {_on_its_side(-low, gate.margin)} worse ({gate.margin} is allowed)"
    return record(
        "passed" if passed else "failed",
        f"{gate.metric} {measured:.4g} against the champion's {theirs:.4g} on {label.size:,} rows: "
        f"at {100 * gate.confidence:g} % confidence {finding}",
        theirs,
        (low, high),
    )


def _on_its_side(number: float, limit: float) -> str:
    """Short, but never rounded onto or over the limit: "0.6 is below 0.6" helps nobody."""
    for digits in (4, 8):
        text = f"{number:.{digits}g}"
        if np.sign(float(text) - limit) == np.sign(number - limit):
            return text
    return repr(number)
