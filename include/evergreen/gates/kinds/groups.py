"""Gates on groups of rows: none falls behind the champion, and all are treated alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evergreen.gates.clusters import TooFewClustersError
from evergreen.gates.comparisons import MetricGain
from evergreen.gates.computation import finite_or_none, format_against_limit, gate_result, no_champion_result
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.judged_rows import JudgedRows, open_rows
from evergreen.gates.score_bins import MetricValue
from evergreen.gates.verdict import GateResult, NotComputedError, SliceResult, join_first
from evergreen.spec.gates import BySliceGate, FairnessGate, MetricGate


def compute_by_slice(gate: BySliceGate, evidence: Evidence) -> GateResult:
    """Pass when no judged slice is shown to fall by more than `gate.margin`; pass while there is no champion.

    The upper bounds of the gains hold for all judged slices together with `gate.confidence`: each may be wrong with
    a chance of (1 - confidence) / slices (Bonferroni; Dunn 1961, Journal of the American Statistical Association
    56:52-64). A slice that is large enough to be judged but cannot be compared blocks. The result's values and interval
    are those of the slice with the largest fall, of those that fail if any does. A slice of too few clusters is
    reported only.
    """
    has_scores = not isinstance(evidence.champion, NoChampion | MissingEvidence)
    references = {"champion": evidence.champion} if has_scores else {}
    rows = open_rows(gate, evidence, references)
    faults = rows.faults(*references)
    if isinstance(evidence.champion, MissingEvidence):
        faults.append(f"the champion cannot be compared: {evidence.champion.problem}")
    faults += rows.cluster_faults() if has_scores else []
    groups = _split_by_group(rows, faults)
    if has_scores:
        return _judge_slices(gate, rows.size, groups)
    measured = rows.metric("candidate")
    if measured is None:
        raise NotComputedError(f"{gate.metric} does not exist on these {rows.size:,} rows")
    assert isinstance(evidence.champion, NoChampion)  # anything else is a fault
    return no_champion_result(gate, evidence.champion, measured.value, rows.size)


def _judge_slices(gate: BySliceGate, row_count: int, groups: Mapping[str, JudgedRows]) -> GateResult:
    large = {name for name, rows in groups.items() if _has_enough_rows(gate, rows)}
    gains: dict[str, MetricGain] = {}
    results, faults, too_few = [], [], []
    for name, rows in groups.items():
        is_judged = name in large
        measured = [rows.metric(scorer, ignore_errors=not is_judged) for scorer in ("candidate", "champion")]
        values = [None if metric is None else metric.value for metric in measured]
        if is_judged:
            try:
                alpha = (1 - gate.confidence) / len(large)
                gain = rows.measure_gain("champion").bounds(alpha, gate.scale.maximum)
                if None in values or not np.isfinite([gain.value, gain.low, gain.high]).all():
                    raise NotComputedError(f"{gate.metric} does not exist for both on {rows.size:,} rows")
                gains[name] = gain
            except TooFewClustersError as error:
                is_judged = False
                too_few.append(f"{gate.group_by} {name}: {error}")
            except NotComputedError as error:
                faults.append(f"{gate.group_by} {name}: {error}")
        interval = (gains[name].low, gains[name].high) if name in gains else None
        fields = {"candidate": values[0], "champion": values[1], "interval": interval}
        results.append(SliceResult(name=name, rows=rows.size, is_judged=is_judged, **fields))
    if not large:
        largest = max(part.rows for part in results)
        classes = " of both classes" if any(rows.label_type == "binary" for rows in groups.values()) else ""
        faults = [
            f"none of {len(results):,} slices by {gate.group_by} has the {gate.min_rows:,} rows{classes} that it takes "
            f"to be judged: the largest has {largest:,}"
        ]
    elif not gains and not faults:
        faults = too_few
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
        rows=row_count,
        slices=tuple(results),
        reason=_describe_slices(gate, result, failing, len(gains))
        + _describe_unjudged_slices(results, "too few rows or clusters"),
    )


def _describe_slices(gate: BySliceGate, worst: SliceResult, failing: list[str], judged_count: int) -> str:
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
    return f"{confidence} {fall}" + (f"; too much fall as well: {join_first(rest, ', ')}" if rest else "")


def compute_fairness(gate: FairnessGate, evidence: Evidence) -> GateResult:
    """Pass when the metric differs by at most `gate.at_most` between any two judged groups.

    With `positive_rate` that is the difference of demographic parity, with recall that of equal opportunity (Hardt,
    Price and Srebro 2016, NeurIPS 29). The value is as measured: the largest difference of many small groups is large
    by chance, so set `min_rows` by what `at_most` needs.
    """
    rows = open_rows(gate, evidence)
    groups = _split_by_group(rows, rows.faults())
    results, values = [], {}
    for name, part in groups.items():
        is_judged = _has_enough_rows(gate, part)
        measured = part.metric("candidate", ignore_errors=not is_judged)
        value = None if measured is None else measured.value
        results.append(SliceResult(name=name, rows=part.size, candidate=value, is_judged=is_judged))
        if is_judged and measured is not None:
            values[name] = measured
    judged = {part.name: part for part in results if part.is_judged}
    faults = [f"{gate.metric} does not exist for {gate.group_by} {name}" for name in judged if name not in values]
    if len(judged) < 2:
        verb = "has" if len(judged) == 1 else "have"
        faults.append(
            f"{len(judged)} of {len(results):,} groups by {gate.group_by} {verb} enough rows "
            f"(at least {gate.min_rows:,}), it takes 2 to compare"
        )
    if faults:
        raise NotComputedError(*faults, slices=tuple(results))
    highest, lowest = (choose(values, key=lambda name: values[name].value) for choose in (max, min))
    high, low = values[highest].value, values[lowest].value
    difference = high - low
    largest_difference = max(value + error for value, error in values.values())
    largest_difference -= min(value - error for value, error in values.values())
    if finite_or_none(difference) is None:
        fault = f"{gate.metric} of {highest} less that of {lowest} is not a finite number"
        raise NotComputedError(fault, slices=tuple(results))
    if highest == lowest:  # all are equal
        finding = f"{gate.metric} is {high:.4g} in all {len(values):,} groups by {gate.group_by}"
    else:
        ends = (f"{name} ({values[name].value:.4g} on {judged[name].rows:,} rows)" for name in (highest, lowest))
        size = format_against_limit(difference, gate.at_most)
        size += MetricValue(difference, largest_difference - difference).describe_error()
        finding = f"{gate.metric} differs by {size} between {gate.group_by} {' and '.join(ends)}"
    return gate_result(
        gate,
        passed=largest_difference <= gate.at_most,
        candidate=difference,
        rows=rows.size,
        slices=tuple(results),
        reason=f"{finding}, at most {gate.at_most:g} is allowed{_describe_unjudged_slices(results, 'too few rows')}",
    )


def _split_by_group(rows: JudgedRows, faults: Sequence[str]) -> dict[str, JudgedRows]:
    """Return the rows of each group, by its name and in order of names.

    Raises:
        NotComputedError: there are `faults` of the rows already, or the groups have one.
    """
    fault = rows.group_fault()
    if faults or fault:
        raise NotComputedError(*faults, *filter(None, [fault]))
    return rows.split_by_group()


def _has_enough_rows(gate: MetricGate, rows: JudgedRows) -> bool:
    """Return whether a group is judged: it has the rows and, if needed, two of each class, or labels that differ."""
    if rows.size < gate.min_rows or not rows.has_metric:
        return False
    ones = rows.count_label_ones()
    return rows.label_type != "binary" or gate.metric == "positive_rate" or min(ones, rows.size - ones) >= 2


def _describe_unjudged_slices(slices: Sequence[SliceResult], problem: str) -> str:
    """Return the part of a sentence about slices that were not judged; empty if all were."""
    small = sum(not part.is_judged for part in slices)
    return f"; {small:,} with {problem} {'is' if small == 1 else 'are'} reported only" if small else ""
