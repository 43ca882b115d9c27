"""The gain of one scorer over another on the same rows, with confidence bounds by clusters of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.clusters import (
    ClusterCodes,
    ClusterCounts,
    ClusteredVariance,
    RowClusters,
    RowVariance,
    degrees_of_freedom,
)
from evergreen.gates.day_correlation import (
    ErrorCase,
    chance_beyond,
    distance_at,
    measure_day_correlation,
    possible_errors,
)
from evergreen.gates.metric_rows import RowDetails
from evergreen.gates.metrics import FloatArray, SumMetric, compute_metric, decide, resolve_metric, sort_keys
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import PairedComparisonGate
from evergreen.spec.prediction_type import PredictionType

# With fewer, the spread between clusters does not measure the error: without any such row it is zero.
MIN_DIFFERING_ROWS = 30

# A function of the model folder is called once per group of clusters and scorer.
MAX_JACKKNIFE_GROUPS = 200

# An error that is smaller, beside the gain, is one of rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MetricGain:
    """The gain of one scorer over another, in the metric's own unit; positive is better.

    `low` and `high` are one-sided confidence bounds of the gain: each is wrong with a chance of at most alpha.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EstimatedGain:
    """A gain, its standard error with independent days, and the degrees of freedom of that error.

    Attributes:
        days: the number of days that are clusters; 0 if days are none.
        day_variance: the part of the error's square that comes from the spread between days.
        day_correlation: the correlation of neighbouring days, if they are enough to measure it.
        resolution: by how much the gain may be wrong besides, where ranks are known by bins of scores only.
    """

    gain: float
    standard_error: float
    degrees_of_freedom: float
    days: int = 0
    day_variance: float = 0.0
    day_correlation: float | None = None
    resolution: float = 0.0

    def error_cases(self, correlated_weight: float) -> list[ErrorCase]:
        """Return the possible errors: that of independent days, and that of correlated ones with this weight."""
        error, freedom = self.standard_error, self.degrees_of_freedom
        if not correlated_weight or not self.day_variance:
            return [ErrorCase(1.0, error, freedom)]
        return possible_errors(error, freedom, self.days, self.day_variance, correlated_weight)

    def bounds(self, alpha: float, maximum: float, correlated_weight: float = 0.0) -> MetricGain:
        """Return the gain with bounds, not beyond the possible differences between values from 0 to `maximum`."""
        width = distance_at(alpha, self.error_cases(correlated_weight)) if self.standard_error else 0.0
        width += self.resolution
        return MetricGain(self.gain, max(self.gain - width, -maximum), min(self.gain + width, maximum))

    def significance(self, limit: float, correlated_weight: float = 0.0) -> float:
        """Return the one-sided p-value of a true gain of `limit`: at most alpha if the lower bound is above it."""
        gain = self.gain - self.resolution
        if not self.standard_error:
            return 0.0 if gain > limit else 1.0
        return float(chance_beyond(gain - limit, self.error_cases(correlated_weight)))


NO_DIFFERENCE = EstimatedGain(0.0, 0.0, inf)
"""Of two scorers that are the same for every row."""


def check_differing_rows(gate: PairedComparisonGate, differing_rows: int, rows: int, pair: str) -> None:
    """Refuse to compare by too few rows that differ.

    Raises:
        NotComputedError: there are some, and too few. The message begins with `pair`.
    """
    if gate.metric not in ("auc", "auc_ovr") and 0 < differing_rows < MIN_DIFFERING_ROWS:
        text = f"{pair} differ in {differing_rows:,} of {rows:,} rows: too few to estimate the error of the gain"
        raise NotComputedError(f"{text}, at least {MIN_DIFFERING_ROWS} are needed")


def measure_gain(
    gate: PairedComparisonGate,
    label: FloatArray,
    candidate: FloatArray,
    reference: FloatArray,
    clusters: RowClusters,
    prediction: PredictionType | None = None,
    weights: FloatArray | None = None,
    details: RowDetails | None = None,
) -> EstimatedGain:
    """Estimate the gain of `candidate` over `reference`, (n,) each, by the metric of `gate`, in any order of rows.

    Of several classes scores are (n, classes). Each row counts as often as its weight (n,) says. The error of AUC is by
    `delong`, that of its mean over classes by `delong_ovr`, that of all other metrics, and of rows with weights, by
    `jackknife`. All are by clusters and have formulas: nothing is drawn, so an alpha of 10⁻⁵, which the hundredth
    comparison of a model's life may have, is as exact as any. Bounds assume that the sum over clusters is nearly
    normal. Where no row differs the gain is 0, with an error of 0.

    Raises:
        NotComputedError: the metric does not exist for these rows, or its error cannot be estimated, because there are
            too few clusters for example.
    """
    if not count_differing_rows(gate, candidate, reference, prediction):
        return NO_DIFFERENCE
    is_weighted = weights is not None and weights.min() < weights.max()  # equal ones say what none say
    if is_weighted or gate.metric not in ("auc", "auc_ovr"):
        return jackknife(gate, label, candidate, reference, clusters, prediction, weights, details)
    if gate.metric == "auc":
        return delong(label, candidate, reference, clusters)
    return delong_ovr(label, candidate, reference, clusters)


def estimate_with_days(gain: float, error: float, variance: RowVariance, clusters: ClusterCounts) -> EstimatedGain:
    """Return the estimate with the part of its error that comes from days, and how neighbouring days correlate."""
    freedom, by_days = variance.degrees_of_freedom, variance.by_days
    if by_days is None or not clusters.days or not error:
        return EstimatedGain(gain, error, freedom)
    measured = measure_day_correlation(by_days.changes)
    return EstimatedGain(gain, error, freedom, clusters.days, by_days.variance, measured)


def count_differing_rows(
    gate: PairedComparisonGate,
    candidate: FloatArray,
    reference: FloatArray,
    prediction: PredictionType | None = None,
) -> int:
    """Return the number of rows that `is_differing` finds."""
    return int(np.count_nonzero(is_differing(gate, candidate, reference, prediction)))


def is_differing(
    gate: PairedComparisonGate,
    candidate: FloatArray,
    reference: FloatArray,
    prediction: PredictionType | None = None,
) -> NDArray[np.bool_]:
    """Return which rows (n,) have different scores, or decisions if that is all that the metric uses of them."""
    differs: NDArray[np.bool_] = decide(gate, candidate, prediction) != decide(gate, reference, prediction)
    return np.logical_or.reduce(differs, axis=1) if differs.ndim == 2 else differs


def delong(label: FloatArray, candidate: FloatArray, reference: FloatArray, clusters: RowClusters) -> EstimatedGain:
    """Return the AUC of `candidate` minus that of `reference`, (n,) each, with the error of paired AUCs by clusters.

    A row's placement is the share of rows of the other class that it is correctly ordered with, ties half. The AUC is
    the mean placement of either class. Its variance is that of sums of placements by cluster, of both classes and of
    what both share (Obuchowski 1997, Biometrics 53:567-578). With one row per cluster that is the variance of DeLong,
    DeLong and Clarke-Pearson (1988, Biometrics 44:837-845). Placements come from midranks in O(n log n) (Sun and Xu
    2014, IEEE Signal Processing Letters 21:1389-1393), here of a single sort per scorer.

    Degrees of freedom: `degrees_of_freedom`, from the rows of either class in each cluster. Equal clusters have their
    number less 1; with one row per cluster they are those of Welch and Satterthwaite, as for placements in Brunner and
    Munzel (2000, Biometrical Journal 42:17-25).

    Raises:
        NotComputedError: fewer than two rows of a class; too few clusters; or the two differ, by the same amount in
            every cluster.
    """
    positive = label == 1
    positives = int(np.count_nonzero(positive))
    negatives = label.size - positives
    check_class_sizes(positives, negatives)
    ahead = _doubled_placements(positive, candidate) - _doubled_placements(positive, reference)
    total = int(ahead[positive].sum())
    gain = total / (2 * positives * negatives)

    def one_way(codes: ClusterCodes) -> ClusteredVariance:
        sums = []
        for rows in (positive, ~positive):
            sizes = np.bincount(codes[rows], minlength=int(codes.max()) + 1).astype(np.float64)
            # Sums of whole numbers, so exact in any order of rows.
            sums.append((sizes, np.bincount(codes[rows], ahead[rows], minlength=sizes.size).astype(np.float64)))
        return placement_way(sums[0], sums[1], gain)

    return estimate_auc_gain(total, positives, negatives, clusters.variance(one_way), clusters)


def delong_ovr(label: FloatArray, candidate: FloatArray, reference: FloatArray, clusters: RowClusters) -> EstimatedGain:
    """Return the mean over classes of the gains in AUC of a class against the rest; scores are (n, classes).

    A cluster's part of the mean is the mean of its parts of the classes' gains, as in `delong`: so what rows of a
    cluster have in common across classes counts. Their squares add up to the variance, times k / (k - 1) for k
    clusters. Degrees of freedom are those of clusters that weigh their rows of a class, of the class with the fewest.

    Raises:
        NotComputedError: fewer than two rows of a class, or of all others; or as `delong`.
    """
    clusters, (label, candidate, reference) = _sort_rows(clusters, [label, candidate, reference])
    classes = candidate.shape[1]
    gains, placements = [], []
    for number in range(classes):
        positive = label == number
        positives = int(np.count_nonzero(positive))
        if min(positives, label.size - positives) < 2:
            text = f"{positives:,} of {label.size:,} rows are of class number {number + 1}"
            raise NotComputedError(f"{text}: AUC needs 2 of each class, and 2 others")
        ahead = _doubled_placements(positive, candidate[:, number]) - _doubled_placements(
            positive, reference[:, number]
        )
        shares = ahead / (2 * np.where(positive, label.size - positives, positives))
        gains.append(float(shares[positive].mean()))
        sizes = np.where(positive, positives, label.size - positives)
        placements.append((shares - gains[-1]) / sizes)
    gain = float(np.mean(gains))
    parts = np.mean(placements, axis=0)

    def one_way(codes: ClusterCodes) -> ClusteredVariance:
        sizes = np.bincount(codes).astype(np.float64)
        freedom = _class_freedom(codes, label)
        if not freedom:
            return ClusteredVariance(0.0, 0.0)
        changes = np.bincount(codes, parts).astype(np.float64)
        return ClusteredVariance(sizes.size / (sizes.size - 1) * float((changes**2).sum()), freedom, changes)

    return estimate_jackknife_gain(gain, clusters.variance(one_way), clusters)


def _class_freedom(codes: ClusterCodes, label: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the degrees of freedom of an AUC by clusters that weigh their rows of a class: of that with the fewest.

    A class that few clusters have is known from these only: its rows add up to 0 in the only one.
    """
    freedoms = []
    for number in np.unique(label):
        rows = label == number
        by_cluster = np.bincount(codes[rows], None if weights is None else weights[rows])
        freedoms.append(degrees_of_freedom(by_cluster.astype(np.float64)))
    return min(freedoms)


def check_class_sizes(positives: int, negatives: int) -> None:
    """Refuse an AUC of fewer than two rows of a class; raises a NotComputedError."""
    if min(positives, negatives) < 2:
        raise NotComputedError(f"{positives:,} rows of class 1 and {negatives:,} of class 0: AUC needs 2 of each")


def placement_way(
    positive: tuple[FloatArray, FloatArray], negative: tuple[FloatArray, FloatArray], gain: float
) -> ClusteredVariance:
    """Return the variance of a gain in AUC, by clusters (k,).

    For either class: its rows in each cluster, and the sum there of how many more rows of the other class, doubled, the
    candidate orders correctly than the reference.
    """
    parts = []
    for (sizes, ahead), (opponents, _) in ((positive, negative), (negative, positive)):
        sums = ahead / (2 * int(opponents.sum()))
        parts.append((sizes / sizes.sum(), (sums - sizes * gain) / sizes.sum()))
    return _placement_variance(*parts)


def estimate_auc_gain(
    total: int, positives: int, negatives: int, by_clusters: RowVariance, clusters: ClusterCounts
) -> EstimatedGain:
    """Return the gain whose doubled placements add up to `total`.

    Raises:
        NotComputedError: the gain is the same in each cluster.
    """
    gain = total / (2 * positives * negatives)
    error = sqrt(max(by_clusters.variance, 0.0))
    if error <= _ROUNDING * max(abs(gain), 1 / (positives + negatives)):
        if total:
            raise NotComputedError(f"the gain is the same in all of {clusters.describe()}: its error is not known")
        error = 0.0
    return estimate_with_days(gain, error, by_clusters, clusters)


def _placement_variance(
    positive: tuple[FloatArray, FloatArray], negative: tuple[FloatArray, FloatArray]
) -> ClusteredVariance:
    """Return the variance of an AUC from either class's share of rows and deviation, (k,) each, by cluster."""
    counts = [int(np.count_nonzero(shares)) for shares, _ in (positive, negative)]
    if min(counts) < 2:
        return ClusteredVariance(0.0, 0.0)  # one cluster has a whole class
    factors = [count / (count - 1) for count in counts]
    variances = [
        factor * float((deviations**2).sum())
        for factor, (_, deviations) in zip(factors, (positive, negative), strict=True)
    ]
    clusters = positive[0].size
    shared = clusters / (clusters - 1) * float((positive[1] * negative[1]).sum())
    # What each cluster is expected to add: to either class in proportion to its rows², squared.
    added = [
        variance * shares**2 / (shares**2).sum()
        for variance, (shares, _) in zip(variances, (positive, negative), strict=True)
    ]
    if not sum(variances):
        return ClusteredVariance(0.0, degrees_of_freedom(positive[0] + negative[0]))
    spread = sum(factor * float((sum(added) * part).sum()) for factor, part in zip(factors, added, strict=True))
    changes = positive[1] + negative[1]
    return ClusteredVariance(sum(variances) + 2 * shared, sum(variances) ** 2 / spread, changes)


def jackknife(
    gate: PairedComparisonGate,
    label: FloatArray,
    candidate: FloatArray,
    reference: FloatArray,
    clusters: RowClusters,
    prediction: PredictionType | None = None,
    weights: FloatArray | None = None,
    details: RowDetails | None = None,
) -> EstimatedGain:
    """Return the gain of `candidate` over `reference`, (n,) each, and its error by leaving out one cluster at a time.

    With k clusters the variance is (k - 1)/k times the sum of squares of what each changes (Quenouille 1956, Tukey
    1958; of clusters: Bell and McCaffrey 2002, Survey Methodology 28:169-181). For a mean over clusters of equal size
    that is exactly the variance of a mean of cluster means, so that the bounds are those of a paired t test (Student
    1908); with unequal sizes it is rather too large than too small. Degrees of freedom are those of clusters that
    weigh their rows; of AUC, those of a class, of the class with the fewest, as in `delong_ovr`. A function of the
    model folder is called for groups of clusters, where there are more than 200 (Kott 2001, Journal of Official
    Statistics 17:521-526).

    Raises:
        NotComputedError: the metric does not exist for these rows, or without a cluster; there are too few clusters; or
            the gain is the same in each.
    """
    columns = [label, candidate, reference, *([] if weights is None else [weights])]
    order = _sort_order(clusters, columns)
    clusters, (label, candidate, reference, *rest) = clusters.take(order), [values[order] for values in columns]
    weights = rest[0] if rest else None
    metric = resolve_metric(gate, prediction, details and details.take(order))
    sign = 1 if gate.scale.higher_is_better else -1
    values = [compute_metric(metric, label, score, weights) for score in (candidate, reference)]
    gain = sign * (values[0] - values[1])
    check_gain_exists(gate, gain, label.size)

    def one_way(codes: ClusterCodes) -> ClusteredVariance:
        if isinstance(metric, SumMetric):
            sums = [
                [np.bincount(codes, part).astype(np.float64) for part in _weighted_terms(metric, label, score, weights)]
                for score in (candidate, reference)
            ]
            return sums_way(gate, metric, sums[0], sums[1], gain)
        days = int(codes.max()) + 1
        codes = _group_clusters(codes)
        weight = np.bincount(codes, weights).astype(np.float64)
        counts = 1.0 if weights is None else weights
        if weight.size < 2:
            return ClusteredVariance(0.0, 0.0)  # no rows are left without it
        candidate_values, reference_values = (
            np.array([metric(label, score, ((codes != code) * counts)[None])[0] for code in range(weight.size)])
            for score in (candidate, reference)
        )
        freedom = degrees_of_freedom(weight)
        if gate.metric in ("auc", "auc_ovr"):
            freedom = _class_freedom(codes, label, weights)
        way = jackknife_way(gate, sign * (candidate_values - reference_values) - gain, freedom)
        # Groups of days are not in the order of days.
        return way if weight.size == days else way._replace(changes=np.empty(0))

    by_clusters = clusters.variance(one_way, subtract_pairs=isinstance(metric, SumMetric))
    return estimate_jackknife_gain(gain, by_clusters, clusters)


def _weighted_terms(
    metric: SumMetric, label: FloatArray, score: FloatArray, weights: FloatArray | None
) -> Iterator[FloatArray]:
    """Yield what each row (n,) adds to each sum of the metric."""
    for part in metric.terms(label, score):
        yield part if weights is None else part * weights


def check_gain_exists(gate: PairedComparisonGate, gain: float, rows: int) -> None:
    """Refuse a gain that is no number; raises a NotComputedError."""
    if not np.isfinite(gain):
        raise NotComputedError(f"{gate.metric} does not exist for both on these {rows:,} rows")


def sums_way(
    gate: PairedComparisonGate,
    metric: SumMetric,
    candidate: Sequence[FloatArray],
    reference: Sequence[FloatArray],
    gain: float,
) -> ClusteredVariance:
    """Return the variance of the gain in a metric of sums, from both scorers' sums by clusters (k,).

    Raises:
        NotComputedError: the metric does not exist without one of the clusters.
    """
    values = []
    for sums in (candidate, reference):
        values.append(metric.from_sums(*(part.sum() - part for part in sums)))
    sign = 1 if gate.scale.higher_is_better else -1
    freedom = degrees_of_freedom(candidate[-1] + reference[-1])
    return jackknife_way(gate, sign * (values[0] - values[1]) - gain, freedom)


def jackknife_way(gate: PairedComparisonGate, changes: FloatArray, freedom: float) -> ClusteredVariance:
    """Return the variance of a gain by what each cluster (k,) changes of it, when it is left out."""
    if not freedom:
        return ClusteredVariance(0.0, 0.0)  # one cluster has it all
    if undefined := int(np.count_nonzero(~np.isfinite(changes))):
        text = f"without {undefined:,} of {changes.size:,} clusters {gate.metric} does not exist"
        raise NotComputedError(f"{text}: it rests on too few")
    variance = (changes.size - 1) / changes.size * float((changes**2).sum())
    return ClusteredVariance(variance, freedom, changes)


def estimate_jackknife_gain(gain: float, by_clusters: RowVariance, clusters: ClusterCounts) -> EstimatedGain:
    """Return the gain with its error by leaving out clusters.

    Raises:
        NotComputedError: the gain is the same in each cluster.
    """
    error = sqrt(by_clusters.variance)
    if gain and error <= _ROUNDING * abs(gain):
        text = f"the gain is {gain:g} in all of {clusters.describe()}: its error is not known"
        raise NotComputedError(text)
    return estimate_with_days(gain, error, by_clusters, clusters)


def _group_clusters(codes: ClusterCodes) -> ClusterCodes:
    """Return the clusters, put into `MAX_JACKKNIFE_GROUPS` groups at random where there are more."""
    count = int(codes.max()) + 1
    if count <= MAX_JACKKNIFE_GROUPS:
        return codes
    groups = np.random.default_rng(0).permutation(count) % MAX_JACKKNIFE_GROUPS
    return groups[codes]


def _sort_rows(clusters: RowClusters, columns: list[FloatArray]) -> tuple[RowClusters, list[FloatArray]]:
    """Return the same rows, sorted, so that evidence in another order gives the same bits."""
    order = _sort_order(clusters, columns)
    return clusters.take(order), [values[order] for values in columns]


def _sort_order(clusters: RowClusters, columns: list[FloatArray]) -> NDArray[np.intp]:
    order: NDArray[np.intp] = np.lexsort([*clusters.codes, *sort_keys(columns)[::-1]])
    return order


def _doubled_placements(positive: NDArray[np.bool_], score: FloatArray) -> NDArray[np.int64]:
    """Return, for each row, twice the number of rows of the other class that it is correctly ordered with.

    Rows of class 1 belong above those of class 0; a tie counts one.
    """
    order = score.argsort()
    ordered, is_one = score[order], positive[order]
    ones, zeros = np.flatnonzero(is_one), np.flatnonzero(~is_one)  # places in the order
    ahead = np.empty(score.size, dtype=np.int64)
    changes = ordered[1:] != ordered[:-1]
    if changes.all():
        ahead[order[ones]] = 2 * (ones - np.arange(ones.size))
        ahead[order[zeros]] = 2 * (ones.size + np.arange(zeros.size) - zeros)
        return ahead
    # Equal scores are a run, [start, end), and share the rows below: half at its start, half at its end.
    edges = np.concatenate(([0], np.flatnonzero(changes) + 1, [score.size]))
    one_below = np.searchsorted(ones, edges)
    twice_ones = np.repeat(one_below[:-1] + one_below[1:], np.diff(edges))
    twice_all = np.repeat(edges[:-1] + edges[1:], np.diff(edges))
    ahead[order] = np.where(is_one, twice_all - twice_ones, 2 * ones.size - twice_ones)
    return ahead
