"""Classes, quantiles, horizons and rankings as tables: what each number that a model predicts is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.computation import to_float_array, to_predictions
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, StreamedColumn
from evergreen.gates.metrics import FloatArray, auc, compute_metric, mae, quantile_loss, rmse, smape
from evergreen.gates.queries import query_values
from evergreen.spec.gates import PRIOR_BASELINE, ThresholdGate
from evergreen.spec.prediction_type import PredictionType


@dataclass(frozen=True)
class OutputTable:
    """A table of numbers by class, quantile, horizon or length of a ranking; None is a number that does not exist."""

    heading: str
    """What a row is about, besides its model."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[float | None, ...]], ...]
    """Model, class (or quantile, horizon, or length), and its numbers."""
    problems: tuple[str, ...] = ()


def tabulate_outputs(evidence: Evidence) -> OutputTable | None:
    """Return the table of a kind that has one; None of others. Never raises because of the evidence."""
    prediction = evidence.prediction_type
    if prediction is None or prediction.kind not in _TABLES:
        return None
    heading, columns, measure = _TABLES[prediction.kind]
    if isinstance(evidence.label, MissingEvidence):
        return OutputTable(heading, columns, (), (evidence.label.problem,))
    if prediction.kind == "ranking" and isinstance(evidence.queries, StreamedColumn | MissingEvidence):
        streamed = "rows are read in batches, and the rows of a query are needed at once"
        problem = streamed if isinstance(evidence.queries, StreamedColumn) else evidence.queries.problem
        return OutputTable(heading, columns, (), (f"the queries are not known: {problem}",))
    label = to_float_array(evidence.label)
    rows: list[tuple[str, str, tuple[float | None, ...]]] = []
    problems = []
    models: dict[str, Any] = {"candidate": evidence.candidate, "champion": evidence.champion}
    if prediction.kind == "forecast" and PRIOR_BASELINE in evidence.baselines:
        models["seasonal naive"] = evidence.baselines[PRIOR_BASELINE]
    for role, column in models.items():
        if isinstance(column, NoChampion | MissingEvidence):
            reason = column.reason if isinstance(column, NoChampion) else column.problem
            problems.append(f"no predictions of the {role}: {reason}")
            continue
        scores = to_predictions(column, prediction)
        if label is None or scores is None or len(scores) != label.size or not label.size:
            problems.append(f"labels and predictions of the {role} are not of the same rows")
            continue
        usable = np.isfinite(label) & np.isfinite(scores.reshape(label.size, -1)).all(axis=1)
        if lost := int(np.count_nonzero(~usable)):
            problems.append(f"{lost:,} of {label.size:,} rows of the {role} have a number that is NaN or infinite")
        if prediction.kind == "quantile":
            problems += _crossings(role, scores[usable], prediction)
        for output, *numbers in measure(label, scores, usable, evidence):
            rows.append((role, output, tuple(number if isfinite(number) else None for number in numbers)))
    if prediction.kind == "forecast" and (problem := _describe_scales(evidence, label)):
        problems.append(problem)
    return OutputTable(heading, columns, tuple(rows), tuple(dict.fromkeys(problems)))


_Rows = Iterator[tuple[Any, ...]]
"""Of each row of a table, its name and its numbers."""


_CLASS_COLUMNS = ("rows", "share", "mean probability", "precision", "recall", "F1", "AUC against the rest")


def _measure_classes(label: FloatArray, scores: FloatArray, usable: NDArray[np.bool_], evidence: Evidence) -> _Rows:
    """Yield the numbers of each class; the most probable one is predicted."""
    assert evidence.prediction_type
    label, scores = label[usable], scores[usable]
    predicted = scores.argmax(axis=1)
    for number, name in enumerate(evidence.prediction_type.outputs):
        is_actual, is_predicted = label == number, predicted == number
        hits, actual, claimed = (
            int(np.count_nonzero(rows)) for rows in (is_actual & is_predicted, is_actual, is_predicted)
        )
        yield (
            name,
            float(actual),
            actual / label.size if label.size else np.nan,
            float(scores[:, number].mean()) if label.size else np.nan,
            hits / claimed if claimed else np.nan,
            hits / actual if actual else np.nan,
            2 * hits / (actual + claimed) if actual + claimed else np.nan,
            compute_metric(auc, is_actual.astype(np.float64), scores[:, number]),
        )


_QUANTILE_COLUMNS = ("rows", "share of labels up to it", "mean prediction", "quantile loss")


def _measure_quantiles(label: FloatArray, scores: FloatArray, usable: NDArray[np.bool_], evidence: Evidence) -> _Rows:
    """Yield the numbers of each quantile. Of a true one, the share of labels up to it is the quantile itself."""
    assert evidence.prediction_type
    label, scores = label[usable], scores[usable]
    for number, quantile in enumerate(evidence.prediction_type.quantiles):
        score = scores[:, number]
        loss, rows = quantile_loss.terms(label, score, quantile=quantile)
        yield (
            f"{quantile:g}",
            float(label.size),
            float((label <= score).mean()) if label.size else np.nan,
            float(score.mean()) if label.size else np.nan,
            float(loss.sum() / rows.sum()) if label.size else np.nan,
        )


_FORECAST_COLUMNS = ("rows", "MASE", "MAE", "RMSE", "SMAPE", "mean label", "mean prediction")
_MAX_HORIZONS = 60


def _measure_horizons(label: FloatArray, scores: FloatArray, usable: NDArray[np.bool_], evidence: Evidence) -> _Rows:
    """Yield the numbers of each horizon, and of all. The means tell a bias: of a calibrated forecast they are equal."""
    horizons, scales = (to_float_array(column) for column in (evidence.horizons, evidence.scales))
    parts = {"all": usable}
    if horizons is not None and horizons.shape == label.shape:
        numbers = np.unique(horizons[usable & np.isfinite(horizons)])[:_MAX_HORIZONS]
        parts = {f"{horizon:g}": usable & (horizons == horizon) for horizon in numbers} | parts
    for name, rows in parts.items():
        scaled = np.nan
        if scales is not None and scales.shape == label.shape:
            has_scale = rows & np.isfinite(scales) & (scales > 0)
            if has_scale.any():
                scale = scales[has_scale]
                scaled = compute_metric(mae, label[has_scale] / scale, scores[has_scale] / scale)
        values = [compute_metric(metric, label[rows], scores[rows]) for metric in (mae, rmse, smape)]
        means = [float(values.mean()) if values.size else np.nan for values in (label[rows], scores[rows])]
        yield name, float(np.count_nonzero(rows)), scaled, *values, *means


def _describe_scales(evidence: Evidence, label: FloatArray | None) -> str:
    """Return in how many rows MASE does not exist; empty if it does in all."""
    if isinstance(evidence.scales, MissingEvidence):
        return f"there is no MASE: {evidence.scales.problem}"
    scales = to_float_array(evidence.scales)
    if scales is None or label is None or scales.shape != label.shape:
        return "there is no MASE: scales and labels are not of the same rows"
    lost = int(np.count_nonzero(~(np.isfinite(scales) & (scales > 0))))
    text = f"{lost:,} of {label.size:,} rows do not count for MASE"
    return f"{text}: their series are new, or were constant before the holdout" if lost else ""


_RANKING_COLUMNS = ("queries", "NDCG", "MAP", "MRR", "recall")
_LENGTHS = (1, 3, 5, 10, 20)


def _measure_ranking(label: FloatArray, scores: FloatArray, usable: NDArray[np.bool_], evidence: Evidence) -> _Rows:
    """Yield the means over queries, of the first rows of each."""
    queries = np.asarray(evidence.queries, dtype=object)
    if queries.shape != label.shape:
        return
    codes = np.unique(queries[usable].astype(str), return_inverse=True)[1].ravel()
    for k in _LENGTHS:
        values = []
        for metric in ("ndcg", "map", "mrr", "recall_at_k"):
            gate = ThresholdGate(metric=metric, k=k, at_least=1.0)
            by_query = query_values(gate, label[usable], scores[usable], codes)
            values.append(by_query[np.isfinite(by_query)])
        count = values[0].size
        yield f"first {k}", float(count), *(float(value.mean()) if count else np.nan for value in values)


_TABLES: Mapping[str, tuple[str, tuple[str, ...], Callable[..., _Rows]]] = {
    "multiclass": ("class", _CLASS_COLUMNS, _measure_classes),
    "quantile": ("quantile", _QUANTILE_COLUMNS, _measure_quantiles),
    "forecast": ("horizon", _FORECAST_COLUMNS, _measure_horizons),
    "ranking": ("of each query", _RANKING_COLUMNS, _measure_ranking),
}


def _crossings(role: str, scores: FloatArray, prediction: PredictionType) -> list[str]:
    """Return a sentence for each quantile that is below a lower one in some rows."""
    names = prediction.outputs
    counts = np.count_nonzero(np.diff(scores, axis=1) < 0, axis=0).tolist()
    return [
        f"in {count:,} of {len(scores):,} rows of the {role} the quantile {names[n + 1]} is below that of {names[n]}"
        for n, count in enumerate(counts)
        if count
    ]


def compare_means(evidence: Evidence) -> list[tuple[str, float, float]] | MissingEvidence:
    """Return the mean prediction of each class or quantile on the holdout, and on the most recent day."""
    prediction, recent = evidence.prediction_type, evidence.recent_predictions
    if prediction is None or not prediction.outputs:
        return []
    if isinstance(recent, MissingEvidence):
        return MissingEvidence(f"no predictions of a recent day: {recent.problem}")
    columns = [to_predictions(column, prediction) for column in (evidence.candidate, recent)]
    if any(column is None or not len(column) for column in columns):
        return MissingEvidence("the predictions have no rows of the declared numbers")
    means = [column.mean(axis=0).tolist() for column in columns if column is not None]
    return list(zip(prediction.outputs, *means, strict=True))
