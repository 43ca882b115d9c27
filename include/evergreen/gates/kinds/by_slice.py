"""The candidate is in no part of the rows worse than the champion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evergreen.gates import validation
from evergreen.gates.comparisons import MetricGain, NotComparableError, estimate_gain
from evergreen.gates.computation import (
    compute_gate_metric,
    describe_unjudged_slices,
    format_against_limit,
    gate_result,
    group_rows,
    has_enough_rows,
    metric_error_message,
    no_champion_result,
    not_computed_result,
    validate_label_and_scores,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, SliceResult
from evergreen.spec.gates import BySliceGate


def compute(gate: BySliceGate, evidence: Evidence) -> GateResult:
    """Pass when no judged slice is shown to fall by more than `gate.margin`; pass while there is no champion.

    The upper bounds of the gains hold for all judged slices together with `gate.confidence`: each may be wrong with
    a chance of (1 - confidence) / slices (Bonferroni; Dunn 1961, Journal of the American Statistical Association
    56:52-64). A slice with fewer than `gate.min_rows` rows, or, for metrics of classes, with fewer than two rows of
    either class, is reported and not judged. A slice that is large enough but cannot be compared blocks.

    The result's values and interval are those of the slice with the largest fall, of those that fail if any does.
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
        slices = [_Slice(name, label[i], candidate[i], champion[i]) for name, i in groups.items()]
        return _judge_slices(gate, label.size, slices)
    except Exception as error:  # of any class: a custom metric is the user's code
        return not_computed_result(gate, label.size, [metric_error_message(gate, error)])


def _result_without_champion(gate: BySliceGate, label: FloatArray, candidate: FloatArray) -> GateResult:
    value = compute_gate_metric(gate, label, candidate)
    if value is None:
        return not_computed_result(gate, label.size, [f"{gate.metric} does not exist on these {label.size:,} rows"])
    return no_champion_result(gate, value, label.size)


@dataclass(frozen=True, eq=False)
class _Slice:
    name: str
    label: FloatArray
    candidate: FloatArray
    champion: FloatArray


def _judge_slices(gate: BySliceGate, rows: int, slices: list[_Slice]) -> GateResult:
    judged = [part for part in slices if has_enough_rows(gate, part.label)]
    gains: dict[str, MetricGain] = {}
    faults: list[str] = []
    for part in judged:
        try:
            gains[part.name] = _estimate_slice_gain(gate, part, (1 - gate.confidence) / len(judged))
        except NotComparableError as error:
            faults.append(f"{gate.group_by} {part.name}: {error}")
    results = [_slice_result(gate, part, part in judged, gains.get(part.name)) for part in slices]
    if not judged:
        largest = max(part.label.size for part in slices)
        classes = " of both classes" if gate.scale.label_type == "binary" else ""
        faults = [
            f"none of {len(slices):,} slices by {gate.group_by} has the {gate.min_rows:,} rows{classes} that it takes "
            f"to be judged: the largest has {largest:,}"
        ]
    if faults:
        return not_computed_result(gate, rows, faults, results)

    failing = [name for name, gain in gains.items() if gain.high < gate.limit]
    worst = min(failing or gains, key=lambda name: (gains[name].value, name))
    result = next(part for part in results if part.name == worst)
    return gate_result(
        gate,
        passed=not failing,
        candidate=result.candidate,
        champion=result.champion,
        interval=result.interval,
        rows=rows,
        slices=tuple(results),
        reason=_reason(gate, result, failing, len(judged)) + describe_unjudged_slices(results),
    )


def _estimate_slice_gain(gate: BySliceGate, part: _Slice, alpha: float) -> MetricGain:
    """Estimate the gain in one slice.

    Raises:
        NotComparableError: it cannot be estimated.
    """
    gain = estimate_gain(gate, part.label, part.candidate, part.champion, alpha, gate.chosen_test)
    values = [compute_gate_metric(gate, part.label, scores) for scores in (part.candidate, part.champion)]
    if None in values or not np.isfinite([gain.value, gain.low, gain.high]).all():
        raise NotComparableError(f"{gate.metric} does not exist for both on {part.label.size:,} rows")
    return gain


def _slice_result(gate: BySliceGate, part: _Slice, is_judged: bool, gain: MetricGain | None) -> SliceResult:
    values = (
        compute_gate_metric(gate, part.label, scores, ignore_errors=not is_judged)
        for scores in (part.candidate, part.champion)
    )
    return SliceResult(
        name=part.name,
        rows=part.label.size,
        candidate=next(values),
        champion=next(values),
        interval=(gain.low, gain.high) if gain else None,
        is_judged=is_judged,
    )


def _reason(gate: BySliceGate, worst: SliceResult, failing: list[str], judged_count: int) -> str:
    assert worst.interval is not None
    low, high = worst.interval
    confidence = f"at {100 * gate.confidence:g} % confidence for all {judged_count:,} slices judged by {gate.group_by}"
    values = f"{gate.metric} {worst.candidate:.4g} against the champion's {worst.champion:.4g} on {worst.rows:,} rows"
    if not failing:
        nearest = f"the largest fall is in {worst.name}: {values}, a gain of {low:.4g} to {high:.4g}"
        return f"{confidence} none is shown to fall by more than {gate.margin:g}; {nearest}"
    size = format_against_limit(-high, gate.margin)
    fall = f"{worst.name} falls by at least {size} ({gate.margin:g} is allowed): {values}"
    rest = [name for name in failing if name != worst.name]
    return f"{confidence} {fall}" + (f"; too much fall as well: {', '.join(rest)}" if rest else "")
