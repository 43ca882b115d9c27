"""Scores and labels to the few hundred points that a plot shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from evergreen.gates import validation
from evergreen.gates.metrics import FloatArray, equal_mass_bins


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """What one model said of rows whose truth is known; every number is finite."""

    role: str
    label: FloatArray
    score: FloatArray


@dataclass(frozen=True, eq=False)
class RocCurve:
    """`area` is of all rows; (`x`, `y`), false and true positive rate, of a few of them."""

    false_positive_rate: FloatArray
    true_positive_rate: FloatArray
    auc: float


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose predictions are neighbours: their mean prediction, and what the labels were.

    `middle` is the mean label; `low` and `high` its 95 % bounds for classes, the 10 % and 90 % quantiles of the
    labels for amounts.
    """

    rows: int
    mean_prediction: float
    mean_label: float
    low: float
    high: float


def parse_column(values: object, name: str) -> tuple[FloatArray, str]:
    """(n,) floats, or none and the problem in words."""
    array = validation.to_float_array(values)
    if array is None:
        return np.empty(0), f"the {name} are not one row of numbers"
    return array, "" if array.size else f"there are no {name}"


def select_finite(values: object, name: str) -> tuple[FloatArray, str]:
    """The finite ones of them, and what was left out."""
    array, problem = parse_column(values, name)
    kept = array[_is_plottable(array)]
    if lost := array.size - kept.size:
        problem = f"{lost:,} of {array.size:,} {name} are NaN or infinite"
    return kept, problem


def select_scored_rows(role: str, label: object, score: object, is_binary: bool) -> tuple[ScoredRows | None, str]:
    """Rows with a label (of `classes`: 0 or 1) and a score, and what is wrong with the others; None without any."""
    truth, lost = parse_column(label, "labels")
    said, problem = parse_column(score, f"{role}'s scores")
    if lost or problem:
        return None, lost or problem
    if truth.size != said.size:
        return None, f"the {role} has {said.size:,} scores for {truth.size:,} labels"
    known = np.isin(truth, (0, 1)) if is_binary else _is_plottable(truth)
    kept = known & _is_plottable(said)
    problems = []
    if strange := int(truth.size - known.sum()):
        wanted = "neither 0 nor 1" if is_binary else "NaN or infinite"
        problems.append(f"{strange:,} of {truth.size:,} labels are {wanted}")
    if strange := int(said.size - _is_plottable(said).sum()):
        problems.append(f"{strange:,} of {said.size:,} scores of the {role} are NaN or infinite")
    found = ScoredRows(role, truth[kept], said[kept]) if kept.any() else None
    return found, " and ".join(problems)


def _is_plottable(values: FloatArray) -> NDArray[np.bool_]:
    # Axes cannot be drawn over numbers whose difference overflows.
    return np.isfinite(values) & (np.abs(values) < 1e100)


def roc_curve(rows: ScoredRows, points: int = 512) -> RocCurve | None:
    """The curve, with at most twice `points` of its corners; None when there is only one class.

    Corners are taken at equal steps of x + y, on either side of each. Between two of them that are not neighbours
    the curve rises by at most d = 2 / (points - 1) and stays in their rectangle: at most d² / 8 of area is lost,
    and over all of them 1 / (2 · (points - 1)), here less than 0.001.
    """
    positive = rows.label == 1
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-rows.score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(rows.score[order])), order.size - 1)  # of rows with equal scores
    hits = np.cumsum(positive[order])[last]
    y = np.concatenate([[0.0], hits / hits[-1]])
    misses = last + 1 - hits
    x = np.concatenate([[0.0], misses / misses[-1]])
    area = float(np.trapezoid(y, x))
    wanted = np.linspace(0, 2, points)
    after = np.searchsorted(x + y, wanted, side="left").clip(1, x.size - 1)
    chosen = np.unique(np.concatenate([after - 1, after, [x.size - 1]]))
    return RocCurve(x[chosen], y[chosen], area)


def calibration_bins(rows: ScoredRows, bin_count: int = 10) -> list[CalibrationBin]:
    """Rows of class 0 and 1 by prediction, equally many in a bin, but equal predictions together.

    Bounds: Wilson 1927, Journal of the American Statistical Association 22:209-212.
    """
    made = []
    for predicted, label in _group_by_rank(rows, bin_count):
        hits = int((label == 1).sum())
        bounds = binomtest(hits, label.size).proportion_ci(0.95, method="wilson")
        made.append(
            CalibrationBin(
                label.size, float(predicted.mean()), hits / label.size, float(bounds.low), float(bounds.high)
            )
        )
    return made


def continuous_bins(rows: ScoredRows, bin_count: int = 20) -> list[CalibrationBin]:
    """Rows of amounts by prediction, as `bins`."""
    made = []
    for predicted, label in _group_by_rank(rows, bin_count):
        low, high = np.quantile(label, [0.1, 0.9])
        made.append(CalibrationBin(label.size, float(predicted.mean()), float(label.mean()), float(low), float(high)))
    return made


def _group_by_rank(rows: ScoredRows, bin_count: int) -> list[tuple[FloatArray, FloatArray]]:
    place = equal_mass_bins(rows.score, bin_count)
    return [(rows.score[place == bin_], rows.label[place == bin_]) for bin_ in np.unique(place)]


def sample_evenly(rows: ScoredRows, size: int = 400) -> tuple[FloatArray, FloatArray]:
    """Prediction and label of rows spread evenly over the predictions, whatever the order they come in."""
    order = np.lexsort((rows.label, rows.score))
    chosen = order[np.linspace(0, order.size - 1, min(size, order.size)).astype(int)]
    return rows.score[chosen], rows.label[chosen]


def histogram_edges(*columns: FloatArray, bin_count: int = 40, tail_share: float = 0.0) -> FloatArray:
    """Of bars of equal width over all values, or over all but a share `tails` at either end."""
    values = np.concatenate(columns)
    low, high = np.quantile(values, [tail_share, 1 - tail_share])
    made: FloatArray = np.histogram_bin_edges(values, bins=bin_count, range=(low, high))
    return made


def histogram_percentages(values: FloatArray, edges: FloatArray) -> FloatArray:
    """Per bar, the share of all `values` that lies in it, in %."""
    counts, _ = np.histogram(values, edges)
    return 100 * counts / max(values.size, 1)


def empirical_distribution(values: FloatArray, points: int = 300) -> tuple[FloatArray, FloatArray]:
    """The empirical distribution function: values, and the share of rows at or below each, in %."""
    ordered = np.sort(values)
    share = np.arange(1, ordered.size + 1) / ordered.size
    chosen = np.unique(np.linspace(0, ordered.size - 1, min(points, ordered.size)).astype(int))
    return ordered[chosen], 100 * share[chosen]
