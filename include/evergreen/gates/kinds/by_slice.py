"""The candidate is in no part of the rows worse than the champion."""

from __future__ import annotations

import numpy as np

from evergreen.gates.comparisons import MetricGain, estimate_gain
from evergreen.gates.computation import (
    RowIndices,
    compute_gate_metric,
    describe_unjudged_slices,
    format_against_limit,
    gate_result,
    group_rows,
    has_enough_rows,
    no_champion_result,
    validate_rows,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, NotComputedError, SliceResult
from evergreen.spec.gates import BySliceGate


def compute(gate: BySliceGate, evidence: Evidence) -> GateResult:
    """Pass when no judged slice is shown to fall by more than `gate.margin`; pass while there is no champion.

    The upper bounds of the gains hold for all judged slices together with `gate.confidence`: each may be wrong with
    a chance of (1 - confidence) / slices (Bonferroni; Dunn 1961, Journal of the American Statistical Association
    56:52-64). A slice with fewer than `gate.min_rows` rows, or, for metrics of classes, with fewer than two rows of
    either class, is reported and not judged. A slice that is large enough but cannot be compared blocks.

    The result's values and interval are those of the slice with the largest fall, of those that fail if any does.
    """
    has_scores = not isinstance(evidence.champion, NoChampion | MissingEvidence)
    references = {"champion": evidence.champion} if has_scores else {}
    (label, candidate, *champion), faults = validate_rows(gate, evidence, references)
    if isinstance(evidence.champion, MissingEvidence):
        faults.append(f"the champion cannot be compared: {evidence.champion.problem}")
    groups, group_faults = group_rows(evidence, gate.group_by, label.size)
    if faults or group_faults:
        raise NotComputedError(*faults, *group_faults)
    if champion:
        return _judge_slices(gate, label, candidate, champion[0], groups)
    value = compute_gate_metric(gate, label, candidate)
    if value is None:
        raise NotComputedError(f"{gate.metric} does not exist on these {label.size:,} rows")
    return no_champion_result(gate, value, label.size)


def _judge_slices(
    gate: BySliceGate, label: FloatArray, candidate: FloatArray, champion: FloatArray, groups: dict[str, RowIndices]
) -> GateResult:
    judged = {name for name, rows in groups.items() if has_enough_rows(gate, label[rows])}
    gains: dict[str, MetricGain] = {}
    results: list[SliceResult] = []
    faults: list[str] = []
    for name, rows in groups.items():
        labels, scores, is_judged = label[rows], (candidate[rows], champion[rows]), name in judged
        values = [compute_gate_metric(gate, labels, score, ignore_errors=not is_judged) for score in scores]
        if is_judged:
            try:
                gain = estimate_gain(gate, labels, *scores, (1 - gate.confidence) / len(judged), gate.chosen_test)
                if None in values or not np.isfinite([gain.value, gain.low, gain.high]).all():
                    raise NotComputedError(f"{gate.metric} does not exist for both on {rows.size:,} rows")
                gains[name] = gain
            except NotComputedError as error:
                faults.append(f"{gate.group_by} {name}: {error}")
        interval = (gains[name].low, gains[name].high) if name in gains else None
        results.append(
            SliceResult(
                name=name,
                rows=rows.size,
                candidate=values[0],
                champion=values[1],
                interval=interval,
                is_judged=is_judged,
            )
        )
    if not judged:
        largest = max(part.rows for part in results)
        classes = " of both classes" if gate.scale.label_type == "binary" else ""
        faults = [
            f"none of {len(results):,} slices by {gate.group_by} has the {gate.min_rows:,} rows{classes} that it takes "
            f"to be judged: the largest has {largest:,}"
        ]
    if faults:
        raise NotComputedError(*faults, slices=tuple(results))

    failing = [name for name, gain in gains.items() if gain.high < gate.limit]
    worst = min(failing or gains, key=lambda name: (gains[name].value, name))
    result = next(part for part in results if part.name == worst)
    return gate_result(
        gate,
        passed=not failing,
        candidate=result.candidate,
        champion=result.champion,
        interval=result.interval,
        rows=label.size,
        slices=tuple(results),
        reason=_reason(gate, result, failing, len(judged)) + describe_unjudged_slices(results),
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
