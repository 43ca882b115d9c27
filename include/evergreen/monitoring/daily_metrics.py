"""The value of a gate's metric on each day, as sums that add up to those of longer times.

A metric that is a function of sums over rows is kept as these sums. Of all others, such as AUC, it is the value times
what it rests on, and that: the mean over days of the metric within each, by the weight of their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from evergreen.gates.computation import ColumnStats, label_type
from evergreen.gates.evidence import Evidence, MissingEvidence, StreamedColumn
from evergreen.gates.judged_rows import JudgedRows, LoadedRows, open_rows
from evergreen.gates.metrics import SumMetric, resolve_metric
from evergreen.gates.queries import QueryRows
from evergreen.gates.streams import StreamedRows
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import DAY_CLUSTER, MetricGate
from evergreen.spec.prediction_type import PredictionType

DailySums = dict[str, tuple[float, ...]]
"""The sums of each day with a value, by its name. The last one is what the value rests on: rows, or their weights."""


def sum_rows(gate: MetricGate, evidence: Evidence) -> tuple[float, ...] | None:
    """Return the sums of the candidate's metric over all rows; None if it does not exist for them.

    Raises:
        NotComputedError: labels or weights are missing or invalid, or the metric is for models of another kind.
    """
    rows = open_rows(gate, evidence)
    _check_rows(gate, evidence, rows)
    return _sum_rows(gate, evidence, rows)


def sum_by_day(gate: MetricGate, evidence: Evidence, failed: dict[str, str] | None = None) -> DailySums:
    """Return the sums of the candidate's metric on each day, by the clusters `day` of the evidence.

    Days on which the metric does not exist are left out, such as those with one class, of AUC.

    Args:
        gate: whose metric it is.
        evidence: the rows.
        failed: if given, days on which a function of the model folder raises are left out, and added with what it said.

    Raises:
        NotComputedError: as `sum_rows`, or the days of the rows are not known.
    """
    days = evidence.clusters.get(DAY_CLUSTER, MissingEvidence("they are not among the clusters"))
    if isinstance(days, MissingEvidence):
        raise NotComputedError(f"the days of the rows are not known: {days.problem}")
    rows = open_rows(gate, evidence)
    _check_rows(gate, evidence, rows)
    parts: dict[str, JudgedRows]
    if isinstance(rows, StreamedRows):
        assert isinstance(days, StreamedColumn)  # of the same file
        rows = replace(rows, passes=replace(rows.passes, group=days.name))
        parts = rows.split_by_group()
    else:
        assert isinstance(rows, LoadedRows)
        by_row = np.asarray(rows.evidence.clusters[DAY_CLUSTER])
        if by_row.shape != (rows.size,):  # rows of a query differ, or labels and scores are not of the same rows
            raise NotComputedError("the days of the rows are not known: there is not one for each")
        parts = {str(day): rows.select(by_row == day) for day in np.unique(by_row)}
    by_day: DailySums = {}
    for day, part in parts.items():
        try:
            sums = _sum_rows(gate, evidence, part)
        except NotComputedError as error:
            if failed is None or not is_of_user_code(error):
                raise
            failed[day] = str(error)
        else:
            if sums:
                by_day[day] = sums
    return by_day


def is_of_user_code(error: NotComputedError) -> bool:
    """Return whether a function of the model folder raised it: it may succeed another time."""
    return error.__cause__ is not None


def add_sums(parts: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the sums of a longer time."""
    return tuple(float(total) for total in np.sum(np.asarray(parts), axis=0))


def metric_of_sums(gate: MetricGate, sums: Sequence[float], prediction: PredictionType | None = None) -> float:
    """Return the metric of a time with these sums; NaN if it does not exist."""
    metric = None if ":" in gate.metric else resolve_metric(gate, prediction)  # code of users is not needed here
    if isinstance(metric, SumMetric):
        return float(metric.from_sums(*(np.array([part]) for part in sums))[0])
    return sums[0] / sums[1] if sums[1] else float("nan")


def _sum_rows(gate: MetricGate, evidence: Evidence, rows: JudgedRows) -> tuple[float, ...] | None:
    if isinstance(rows, StreamedRows) and rows.passes.metric:
        passes = rows.passes
        keys, sums = passes.counts.by_group.result()
        first = 1 + len(passes.scorers)  # after rows, and labels of 1
        chosen = keys == rows.group if rows.group is not None else slice(None)
        return tuple(map(float, sums[first : first + passes.counts.terms, chosen].sum(axis=1)))
    weights = rows.weights if isinstance(rows, LoadedRows) else None
    if isinstance(rows, LoadedRows):
        metric = resolve_metric(gate, evidence.prediction_type, rows.details)
        if isinstance(metric, SumMetric):
            label, score = rows.label_column, rows.score_columns["candidate"]
            assert label is not None  # else a fault
            assert score is not None
            parts = (part if weights is None else part * weights for part in metric.terms(label, score))
            return tuple(float(part.sum()) for part in parts)
    value, weight = rows.metric("candidate"), float(rows.size if weights is None else weights.sum())
    return None if value is None else (value.value * weight, weight)


def _check_rows(gate: MetricGate, evidence: Evidence, rows: JudgedRows) -> None:
    """Refuse invalid labels and scores; other than a gate, a day may have few rows, or one class only."""
    if faults := list(_faults(gate, evidence, rows)):
        raise NotComputedError(*faults)


def _faults(gate: MetricGate, evidence: Evidence, rows: JudgedRows) -> Iterator[str]:
    if isinstance(rows, StreamedRows):
        label, score = rows.passes.counts.stats[""], rows.passes.counts.stats["candidate"]
    else:
        assert isinstance(rows, LoadedRows)
        if isinstance(rows, QueryRows):
            if rows.query_fault:
                yield rows.query_fault
                return
            assert rows.rows
            rows = rows.rows
        if rows.has_size_fault or rows.label_column is None:
            yield "labels and scores are not one row each for the same rows"
            return
        label, values = ColumnStats.from_array(rows.label_column), rows.score_columns["candidate"]
        score = ColumnStats.from_array(np.ravel(values) if values is not None else np.empty(0))
    assert isinstance(label, ColumnStats)
    prediction, kind = evidence.prediction_type, label_type(gate, evidence.prediction_type)
    if label.infinite:
        yield f"{label.infinite:,} of {label.size:,} labels are NaN or infinite"
    elif kind == "binary" and (invalid := label.size - label.zeros - label.ones):
        yield f"{invalid:,} of {label.size:,} labels are neither 0 nor 1"
    elif kind == "count" and label.negative:
        yield f"{label.negative:,} of {label.size:,} labels are below 0, down to {label.low:g}"
    elif kind == "class" and prediction and label.size and (label.low < 0 or label.high >= len(prediction.classes)):
        yield f"the labels are not all numbers of the {len(prediction.classes)} classes, from 0 on"
    if isinstance(score, ColumnStats) and score.infinite:
        yield f"{score.infinite:,} of {score.size:,} predictions are NaN or infinite"
