"""Reduce scores and labels to the few hundred points that a plot shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evergreen.gates import computation
from evergreen.gates.clusters import (
    NO_CLUSTERS,
    ClusterCodes,
    ClusteredVariance,
    RowClusters,
    TooFewClustersError,
    degrees_of_freedom,
    parse_clusters,
)
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.judged_rows import LoadedRows, open_rows
from evergreen.gates.metrics import FloatArray, equal_mass_bins
from evergreen.spec.gates import DAY_CLUSTER, PairedComparisonGate

MAX_CLUSTERS = 60


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Labels and scores of one model, (n,) each; every number is finite. Without clusters, no error is known."""

    role: str
    label: FloatArray
    score: FloatArray
    clusters: RowClusters = NO_CLUSTERS


@dataclass(frozen=True, eq=False)
class RocCurve:
    """The corners of a ROC curve that a plot needs; `auc` is that of all rows."""

    false_positive_rate: FloatArray
    true_positive_rate: FloatArray
    auc: float


@dataclass(frozen=True)
class CalibrationBin:
    """Rows with neighbouring predictions.

    `low` and `high` are 95 % bounds of the mean label by clusters for binary labels, else the labels' 10 % and 90 %
    quantiles.
    """

    rows: int
    mean_prediction: float
    mean_label: float
    low: float
    high: float


def parse_column(values: object, name: str) -> tuple[FloatArray, str]:
    """Return (n,) floats and an empty problem, or no floats and the problem."""
    if isinstance(values, MissingEvidence):
        return np.empty(0), f"no {name}: {values.problem}"
    array = computation.to_float_array(values)
    if array is None:
        return np.empty(0), f"the {name} are not one row of numbers"
    return array, "" if array.size else f"there are no {name}"


def select_finite(values: object, name: str) -> tuple[FloatArray, str]:
    """Return the finite values, and what was left out."""
    array, problem = parse_column(values, name)
    finite = array[_is_plottable(array)]
    if lost := array.size - finite.size:
        problem = f"{lost:,} of {array.size:,} {name} are NaN or infinite"
    return finite, problem


def select_scored_rows(
    role: str, label: object, score: object, clusters: RowClusters, is_binary: bool
) -> tuple[ScoredRows | None, str]:
    """Return the rows with a label (if binary: 0 or 1) and a score, None without any, and the problem of the others."""
    labels, label_problem = parse_column(label, "labels")
    scores, score_problem = parse_column(score, f"{role}'s scores")
    if label_problem or score_problem:
        return None, label_problem or score_problem
    if labels.size != scores.size:
        return None, f"the {role} has {scores.size:,} scores for {labels.size:,} labels"
    has_label = np.isin(labels, (0, 1)) if is_binary else _is_plottable(labels)
    has_score = _is_plottable(scores)
    problems = []
    if lost := int((~has_label).sum()):
        problems.append(
            f"{lost:,} of {labels.size:,} labels are {'neither 0 nor 1' if is_binary else 'NaN or infinite'}"
        )
    if lost := int((~has_score).sum()):
        problems.append(f"{lost:,} of {scores.size:,} scores of the {role} are NaN or infinite")
    usable = has_label & has_score
    if not usable.any():
        return None, " and ".join(problems)
    rows = ScoredRows(role, labels[usable], scores[usable], clusters.take(np.flatnonzero(usable)))
    return rows, " and ".join(problems)


def _is_plottable(values: FloatArray) -> NDArray[np.bool_]:
    # Axes cannot be drawn over numbers whose difference overflows.
    return np.isfinite(values) & (np.abs(values) < 1e100)


def roc_curve(rows: ScoredRows, points: int = 512) -> RocCurve | None:
    """Return the curve with at most twice `points` of its corners; None if there is only one class.

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
    following = np.searchsorted(x + y, np.linspace(0, 2, points), side="left").clip(1, x.size - 1)
    corners = np.unique(np.concatenate([following - 1, following, [x.size - 1]]))
    return RocCurve(x[corners], y[corners], float(np.trapezoid(y, x)))


def calibration_bins(rows: ScoredRows, bin_count: int = 10) -> list[CalibrationBin]:
    """Return rows with labels 0 and 1 by prediction, equally many in a bin, but equal predictions together.

    Bounds: of Wilson (1927, Journal of the American Statistical Association 22:209-212) for as many independent rows
    as tell as much as these do in their clusters (Korn and Graubard 1998, Survey Methodology 24:193-201). Of too few
    clusters anything is possible.
    """
    return _bins(rows, bin_count, _share_bounds)


def continuous_bins(rows: ScoredRows, bin_count: int = 20) -> list[CalibrationBin]:
    """Return rows with continuous labels by prediction, in bins as `calibration_bins` has."""
    return _bins(rows, bin_count, lambda label, _: np.quantile(label, [0.1, 0.9]))


def _share_bounds(label: FloatArray, clusters: RowClusters) -> tuple[float, float]:
    """Return 95 % bounds of the mean of labels 0 and 1, (n,)."""
    share = float(label.mean())

    def one_way(codes: ClusterCodes) -> ClusteredVariance:
        sizes, ones = np.bincount(codes).astype(np.float64), np.bincount(codes, label)
        if sizes.size < 2:
            return ClusteredVariance(0.0, 0.0)
        changes = (label.sum() - ones) / (label.size - sizes) - share
        variance = (sizes.size - 1) / sizes.size * float((changes**2).sum())
        return ClusteredVariance(variance, degrees_of_freedom(sizes))

    try:
        variance, freedom, _ = clusters.variance(one_way)
    except TooFewClustersError:
        return 0.0, 1.0
    z = float(special.ndtri(0.975))
    independent = share * (1 - share) / label.size
    rows = label.size / max(variance / independent, 1.0) if independent else float(label.size)
    rows *= (z / float(special.stdtrit(freedom, 0.975))) ** 2
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    width = z * float(np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))) / (1 + z**2 / rows)
    return max(middle - width, 0.0), min(middle + width, 1.0)


def _bins(
    rows: ScoredRows, bin_count: int, bounds: Callable[[FloatArray, RowClusters], Iterable[float]]
) -> list[CalibrationBin]:
    numbers, bins = equal_mass_bins(rows.score, bin_count), []
    for number in np.unique(numbers):
        members = np.flatnonzero(numbers == number)
        prediction, label = rows.score[members], rows.label[members]
        low, high = map(float, bounds(label, rows.clusters.take(members)))
        bins.append(CalibrationBin(label.size, float(prediction.mean()), float(label.mean()), low, high))
    return bins


class ClusterGain(NamedTuple):
    """The candidate's gain over the champion in one cluster; None where the metric does not exist."""

    name: str
    rows: int
    gain: float | None


def cluster_gains(gate: PairedComparisonGate, evidence: Evidence) -> tuple[str, list[ClusterGain], int]:
    """Return by what the rows are clustered, the gain in each cluster by name, and how many more there are.

    By day if that is one of two ways. Of many clusters, only the `MAX_CLUSTERS` last days, or entities with most rows.
    For evidence that could be judged.
    """
    loaded = open_rows(gate, evidence, {"champion": evidence.champion})  # queries of a ranking, rows of a horizon
    assert isinstance(loaded, LoadedRows)
    evidence, scores = loaded.evidence, loaded.score_columns
    label, candidate, champion = (
        np.asarray(values) for values in (loaded.label_column, scores["candidate"], scores["champion"])
    )
    clusters, _ = parse_clusters(evidence, label.size)
    way = DAY_CLUSTER if DAY_CLUSTER in clusters.names else clusters.names[0]
    names = np.asarray(evidence.clusters[way], dtype=str)
    sizes = Counter(names.tolist())
    largest = sizes if way == DAY_CLUSTER else [name for name, _ in sizes.most_common(MAX_CLUSTERS)]
    chosen = sorted(largest)[-MAX_CLUSTERS:]
    sign = 1 if gate.scale.higher_is_better else -1
    gains = []
    for name in chosen:
        rows = names == name
        values = [
            computation.compute_gate_metric(
                gate,
                label[rows],
                scores[rows],
                evidence.prediction_type,
                weights=None if loaded.weights is None else loaded.weights[rows],
                details=loaded.details and loaded.details.take(rows),
                ignore_errors=True,
            )
            for scores in (candidate, champion)
        ]
        gain = None if values[0] is None or values[1] is None else sign * (values[0] - values[1])
        gains.append(ClusterGain(name, sizes[name], gain))
    return way, gains, len(sizes) - len(chosen)


def sample_evenly(rows: ScoredRows, size: int = 400) -> tuple[FloatArray, FloatArray]:
    """Return prediction and label of rows spread evenly over the predictions, whatever the order of rows."""
    order = np.lexsort((rows.label, rows.score))
    chosen = order[np.linspace(0, order.size - 1, min(size, order.size)).astype(int)]
    return rows.score[chosen], rows.label[chosen]


def histogram_edges(*columns: FloatArray, bin_count: int = 40, tail_share: float = 0.0) -> FloatArray:
    """Return the edges of bars of equal width over all values but a share of `tail_share` at either end."""
    values = np.concatenate(columns)
    low, high = np.quantile(values, [tail_share, 1 - tail_share])
    return np.histogram_bin_edges(values, bins=bin_count, range=(low, high))


def histogram_percentages(values: FloatArray, edges: FloatArray) -> FloatArray:
    """Return per bar the share of all `values` that lies in it, in %."""
    counts, _ = np.histogram(values, edges)
    return 100 * counts / max(values.size, 1)


def empirical_distribution(values: FloatArray, points: int = 300) -> tuple[FloatArray, FloatArray]:
    """Return the empirical distribution function: values, and the share of rows at or below each, in %."""
    ordered = np.sort(values)
    share = np.arange(1, ordered.size + 1) / ordered.size
    chosen = np.unique(np.linspace(0, ordered.size - 1, min(points, ordered.size)).astype(int))
    return ordered[chosen], 100 * share[chosen]
