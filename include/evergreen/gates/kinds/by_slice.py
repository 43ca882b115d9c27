"""Is there a part of the rows in which the candidate is worse than the champion?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evergreen.gates import validation
from evergreen.gates.comparisons import MetricGain, NotComparableError, estimate_gain
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.kinds.shared import (
    compute_gate_metric,
    describe_unjudged_slices,
    format_against_limit,
    group_rows,
    has_enough_rows,
    metric_error_message,
    no_champion_result,
    not_computed_result,
    try_gate_metric,
    validate_label_and_scores,
)
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, SliceResult
from evergreen.spec.gates import BySliceGate


def compute(gate: BySliceGate, evidence: Evidence) -> GateResult:
    """Passed when no judged slice is shown to fall by more than `gate.margin`; without a champion, passed as well.

    The upper bounds of the gains hold for all judged slices together with `gate.confidence`: each may be wrong with
    a chance of (1 - confidence) / slices (Bonferroni; Dunn 1961, Journal of the American Statistical Association
    56:52-64). A slice with fewer than `gate.min_rows` rows, or, for metrics of classes, with fewer than two rows of
    either class, is reported and not judged. A slice that is large enough but cannot be compared blocks.

    The record's values and interval are those of the slice with the largest fall, of those that fail if any does.
    """
    label, candidate, faults = validate_label_and_scores(gate, evidence)
    champion = None
    if isinstance(evidence.champion, MissingEvidence):
        faults.append(f"the champion cannot be compared: {evidence.champion.problem}")
    elif not isinstance(evidence.champion, NoChampion):
        champion = validation.to_float_array(evidence.champion)
        faults += validation.score_faults("champion", champion, label, gate.scale.label_type)
    groups = {} if label is None else group_rows(evidence, gate.group_by, label.size)
    if isinstance(groups, str):
        faults.append(groups)
    if faults or label is None or candidate is None or isinstance(groups, str):
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    try:
        if champion is None:
            return _result_without_champion(gate, label, candidate)
        slices = [_Slice(name, label[at], candidate[at], champion[at]) for name, at in groups.items()]
        return _judge_slices(gate, label.size, slices)
    except Exception as error:  # a metric may be the user's own code
        return not_computed_result(gate, label.size, [metric_error_message(gate, error)])


def _result_without_champion(gate: BySliceGate, label: FloatArray, candidate: FloatArray) -> GateResult:
    found = compute_gate_metric(gate, label, candidate)
    if found is None:
        return not_computed_result(gate, label.size, [f"{gate.metric} does not exist on these {label.size:,} rows"])
    return no_champion_result(gate, found, label.size)


@dataclass(frozen=True, eq=False)
class _Slice:
    name: str
    label: FloatArray
    candidate: FloatArray
    champion: FloatArray


def _judge_slices(gate: BySliceGate, rows: int, slices: list[_Slice]) -> GateResult:
    judged = sum(has_enough_rows(gate, part.label) for part in slices)
    parts: list[SliceResult] = []
    gains: dict[str, MetricGain] = {}
    faults: list[str] = []
    for part in slices:
        found = (
            _compare_slice(gate, part, (1 - gate.confidence) / judged) if has_enough_rows(gate, part.label) else None
        )
        parts.append(_slice_result(gate, part, found))
        if isinstance(found, str):
            faults.append(f"{gate.group_by} {part.name}: {found}")
        elif found:
            gains[part.name] = found
    if not judged:
        most = max(part.label.size for part in slices)
        kinds = " of both classes" if gate.scale.label_type == "binary" else ""
        faults = [
            f"none of {len(slices):,} slices by {gate.group_by} has the {gate.min_rows:,} rows{kinds} that it takes to be "
            f"judged: the largest has {most:,}"
        ]
    if faults:
        return not_computed_result(gate, rows, faults, parts)

    failing = [name for name, found in gains.items() if found.high < gate.limit]
    worst = min(failing or gains, key=lambda name: (gains[name].value, name))
    found_in = next(part for part in parts if part.name == worst)
    return GateResult(
        gate=gate.name,
        outcome="failed" if failing else "passed",
        candidate=found_in.candidate,
        champion=found_in.champion,
        interval=found_in.interval,
        threshold=gate.limit,
        rows=rows,
        slices=tuple(parts),
        reason=_reason(gate, found_in, failing, judged) + describe_unjudged_slices(parts),
    )


def _compare_slice(gate: BySliceGate, part: _Slice, alpha: float) -> MetricGain | str:
    """The gain in one slice; or, in a sentence, why it cannot be told."""
    try:
        found = estimate_gain(gate, part.label, part.candidate, part.champion, alpha, gate.chosen_test)
    except NotComparableError as problem:
        return str(problem)
    values = (compute_gate_metric(gate, part.label, scores) for scores in (part.candidate, part.champion))
    if None in values or not np.isfinite([found.value, found.low, found.high]).all():
        return f"{gate.metric} does not exist for both on {part.label.size:,} rows"
    return found


def _slice_result(gate: BySliceGate, part: _Slice, gain: MetricGain | str | None) -> SliceResult:
    metric = try_gate_metric if gain is None else compute_gate_metric
    return SliceResult(
        name=part.name,
        rows=part.label.size,
        candidate=metric(gate, part.label, part.candidate),
        champion=metric(gate, part.label, part.champion),
        interval=(gain.low, gain.high) if isinstance(gain, MetricGain) else None,
        is_judged=gain is not None,
    )


def _reason(gate: BySliceGate, worst: SliceResult, failed_slices: list[str], judged_count: int) -> str:
    assert worst.interval is not None
    low, high = worst.interval
    sure = f"at {100 * gate.confidence:g} % confidence for all {judged_count:,} slices judged by {gate.group_by}"
    values = f"{gate.metric} {worst.candidate:.4g} against the champion's {worst.champion:.4g} on {worst.rows:,} rows"
    if not failed_slices:
        nearest = f"the largest fall is in {worst.name}: {values}, a gain of {low:.4g} to {high:.4g}"
        return f"{sure} none is shown to fall by more than {gate.margin:g}; {nearest}"
    fall = f"{worst.name} falls by at least {format_against_limit(-high, gate.margin)} ({gate.margin:g} is allowed): {values}"
    others = [name for name in failed_slices if name != worst.name]
    return f"{sure} {fall}" + (f"; too much fall as well: {', '.join(others)}" if others else "")
