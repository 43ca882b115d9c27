"""The metrics, each for many weightings of the same rows at once.

Every function takes `label` (n,), `score` (n,) and `weight` (k, n), how often each row counts, and returns (k,), one
value per weighting. For binary metrics labels are 0 and 1 and scores are in [0, 1]; for those of counts both are any
number from 0, for continuous ones any number. Of several classes labels are their numbers, and scores (n, classes) are
probabilities. Rows without a cluster are a weighting, so rows are sorted once for many of them. A value that does not
exist is NaN.

They are not scikit-learn's, which has no sums by cluster: an error by leaving out clusters needs these, and so do rows
that are read in batches. The tests hold each to scikit-learn's value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import Parameter, signature
from pkgutil import resolve_name
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.evidence import MetricRows
from evergreen.gates.metric_rows import RowDetails
from evergreen.gates.verdict import NotComputedError, describe_error
from evergreen.spec.gates import MetricGate
from evergreen.spec.prediction_type import PredictionType

FloatArray = NDArray[np.float64]
Metric = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

CALIBRATION_BINS = 10

# Of labels, as a share of their squares: sums of 64-bit numbers know a smaller one to less than six digits.
_SMALLEST_SPREAD = 1e-9

# Of rows that are repeated for a function without weights, since memory is for rows, whatever they weigh. A resample of
# few days may repeat all rows of one of them.
_MAX_REPEATS = 20
_FEW_ROWS = 10_000

_METRICS_OF_CLASSES = ("accuracy", "macro_f1", "weighted_f1")
"""Of several classes, they use the most probable one only."""


@dataclass(frozen=True)
class SumMetric(ABC):
    """A metric that is a function of sums over rows.

    `row_terms` takes labels and scores, with the options of the gate, and returns what each row adds to each sum, (n,)
    each. The last one is what the row weighs in the metric.
    """

    row_terms: Callable[..., Iterable[FloatArray]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, label: FloatArray, score: FloatArray, weight: FloatArray, **options: Any) -> FloatArray:
        # Not `weight @ term`: BLAS adds in an order that depends on its number of threads.
        return self.from_sums(*((weight * term).sum(axis=1) for term in self.terms(label, score, **options)))

    def terms(self, label: FloatArray, score: FloatArray, **options: Any) -> Iterable[FloatArray]:
        """Return what each row (n,) adds to each sum."""
        return self.row_terms(label, score, **{**self.options, **options})

    @abstractmethod
    def from_sums(self, *sums: FloatArray) -> FloatArray:
        """Return the metric (k,) of sums (k,). NaN where there is no row to divide by."""


@dataclass(frozen=True)
class RatioMetric(SumMetric):
    """A metric that is a ratio of two sums over rows, or the root of one."""

    is_root: bool = False

    def from_sums(self, *sums: FloatArray) -> FloatArray:
        ratio = _ratio(*sums)
        return np.sqrt(np.maximum(ratio, 0)) if self.is_root else ratio


@dataclass(frozen=True)
class F1Metric(SumMetric):
    """A mean of F1 over classes: 2 · hits / (rows of the class + rows predicted as it), in [0, 1].

    Its sums are, of each class, the hits, the rows predicted as it and the rows of it; and all rows. A class without
    any of these has no F1, and does not count (van Rijsbergen 1979, "Information retrieval", chapter 7).
    """

    is_weighted: bool = False

    def from_sums(self, *sums: FloatArray) -> FloatArray:
        hits, predicted, actual = np.stack(sums[:-1]).reshape(-1, 3, np.size(sums[-1])).swapaxes(0, 1)
        exists = predicted + actual > 0
        values = np.where(exists, 2 * hits / np.where(exists, predicted + actual, 1), 0.0)
        weight = actual if self.is_weighted else exists.astype(np.float64)
        return _ratio((values * weight).sum(axis=0), weight.sum(axis=0))


@dataclass(frozen=True)
class CoverageGapMetric(RatioMetric):
    """How far the share of labels within an interval is from what its quantiles promise: |share - promise|."""

    def from_sums(self, *sums: FloatArray) -> FloatArray:
        quantiles = self.options["quantiles"]
        error: FloatArray = np.abs(_ratio(*sums) - (quantiles[-1] - quantiles[0]))
        return error


def resolve_metric(
    gate: MetricGate, prediction: PredictionType | None = None, details: RowDetails | None = None
) -> Metric:
    """Return the metric of `gate`, with its own options and the model's quantiles filled in.

    It is for the rows of `details`, in their order, which a metric of the model folder may ask for.

    Raises:
        NotComputedError: the custom metric does not exist; or later, it raises.
    """
    if ":" in gate.metric:
        with user_code(gate.metric):
            function = resolve_name(gate.metric)
            takes_rows = _takes_rows(function)
        if takes_rows or gate.columns:
            return partial(_metric_of_rows, gate.metric, function, details)
        return partial(_custom_metric, gate.metric, function)
    metric = METRICS[gate.metric]
    options = {name: value for name in ("cut", "quantile", "costs") if (value := getattr(gate, name)) is not None}
    if prediction and prediction.quantiles:
        options["quantiles"] = prediction.quantiles
    if isinstance(metric, SumMetric):
        return replace(metric, options=options)
    return partial(metric, recall=gate.recall) if gate.recall is not None else metric


def decide(
    gate: MetricGate, score: FloatArray, prediction: PredictionType | None = None
) -> FloatArray | NDArray[np.integer] | NDArray[np.bool_]:
    """Return all that the gate's metric uses of each row's prediction: its decision, (n,), or the prediction itself.

    Rows with the same decision do not tell two scorers apart, whatever their probabilities are.
    """
    if gate.costs is not None:
        return least_cost(score, gate.costs)
    if gate.cut is not None:
        return score >= gate.cut
    if gate.quantile is not None and prediction and prediction.quantiles:
        return score[:, prediction.quantiles.index(gate.quantile)]
    return score.argmax(axis=1) if score.ndim == 2 and gate.metric in _METRICS_OF_CLASSES else score


def least_cost(score: FloatArray, costs: Sequence[Sequence[float]]) -> NDArray[np.integer]:
    """Return the decision (n,) with the least expected cost by a model's own probabilities; of equal ones the first.

    `costs` are those of each decision, by actual class (Elkan 2001, IJCAI, "The foundations of cost-sensitive
    learning").
    """
    matrix = np.asarray(costs, dtype=np.float64)
    probabilities = score if score.ndim == 2 else np.column_stack([1 - score, score])
    # Not `@`: BLAS may round otherwise with another number of threads.
    expected = [(probabilities * decision_costs).sum(axis=1) for decision_costs in matrix.T]
    return np.argmin(expected, axis=0)


@contextmanager
def user_code(function: str) -> Iterator[None]:
    """Raise a `NotComputedError` that names `function`, of a model folder, for an error of any class."""
    try:
        yield
    except Exception as error:
        raise NotComputedError(f"{function} raised {describe_error(error)}") from error


def compute_metric(metric: Metric, label: FloatArray, score: FloatArray, weight: FloatArray | None = None) -> float:
    """Return the metric with every row counting once, or as often as its weight (n,) says."""
    if weight is None:
        return float(metric(label, score, np.ones((1, label.size)))[0])
    return float(weigh_bins(metric, weight)(label, score, weight[None])[0])


def weigh_bins(metric: Metric, weight: FloatArray) -> Metric:
    """Return the metric for rows with these weights (n,): bins, if it has some, are of equal weight."""
    return partial(calibration_error, row_weight=weight) if metric is calibration_error else metric


def sort_order(columns: Sequence[FloatArray]) -> NDArray[np.intp]:
    """Return an order of rows (n,) in which evidence in another order gives the same bits."""
    order: NDArray[np.intp] = np.lexsort(sort_keys(columns)[::-1])
    return order


def sort_keys(columns: Sequence[FloatArray]) -> list[FloatArray]:
    """Return columns (n,) or (n, m) as (n,) each."""
    return [key for column in columns for key in (column.T if column.ndim == 2 else [column])]


def auc(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Area under the ROC curve: the chance that a row of class 1 scores above one of class 0, ties half.

    The Mann-Whitney form (Hanley and McNeil 1982, Radiology 143:29-36), exact for whole weights.
    NaN for a weighting without one of the classes.
    """
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    negative, positive = (rows[np.argsort(score[rows])] for rows in (negative, positive))
    below = np.searchsorted(score[negative], score[positive], side="left")
    up_to = np.searchsorted(score[negative], score[positive], side="right")
    weight_positive = weight[:, positive]
    # beaten[:, j] is the weight of the j lowest rows of class 0.
    beaten = np.zeros((len(weight), negative.size + 1))
    np.cumsum(weight[:, negative], axis=1, out=beaten[:, 1:])
    wins = ((beaten[:, below] + beaten[:, up_to]) * weight_positive).sum(axis=1) / 2
    return _ratio(wins, weight_positive.sum(axis=1) * beaten[:, -1])


@RatioMetric
def log_loss(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of -log(probability of the actual class), in nats (Good 1952, J. Royal Statistical Society B 14:107-114).

    Scores are kept the machine epsilon away from 0 and 1, so one row costs at most 36 nats, not infinity.
    """
    epsilon = np.finfo(np.float64).eps
    if score.ndim == 2:
        probability = score[np.arange(label.size), _class_numbers(label, score)]
    else:
        probability = np.where(label == 1, score, 1 - score)
    probability = probability.clip(epsilon, 1 - epsilon)
    return _mean_terms(-np.log(probability))


@RatioMetric
def brier(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of (score - label)² (Brier 1950, Monthly Weather Review 78:1-3)."""
    return _mean_terms((score - label) ** 2)


def calibration_error(
    label: FloatArray, score: FloatArray, weight: FloatArray, row_weight: FloatArray | None = None
) -> FloatArray:
    """Expected calibration error: over bins, the mean of |share of label 1 - mean score|, by rows in a bin.

    As in Naeini et al. 2015 (AAAI, "Obtaining well calibrated probabilities using Bayesian binning"), but
    with ten bins of equal mass, which are less biased than bins of equal width (Roelofs et al. 2022, AISTATS,
    "Mitigating bias in calibration error estimation"). A row's bin is the tenth of the rows, weighted by
    `row_weight` only, that its score's rank falls in; equal scores share a bin, so the order of rows does not matter.
    Never zero by chance alone: a perfectly calibrated scorer shows about 0.8 √(10 · p(1 - p)/n), which is 0.03 for
    1,000 rows at p = 0.2.
    """
    bins = equal_mass_bins(score, CALIBRATION_BINS, row_weight)
    gap = (label - score) * weight
    gaps = [np.abs(gap[:, bins == number].sum(axis=1)) for number in range(CALIBRATION_BINS)]
    return _ratio(np.sum(gaps, axis=0), weight.sum(axis=1))


def equal_mass_bins(score: FloatArray, bins: int, weight: FloatArray | None = None) -> NDArray[np.intp]:
    """Return the bin (n,) of each row: equally many rows in each, but equal scores together, so some may be empty.

    With weights (n,), each has equal weight.
    """
    order = np.argsort(score, kind="stable")
    rank = np.searchsorted(score[order], score, side="left")
    if weight is None:
        return rank * bins // score.size
    below = np.append(0.0, np.cumsum(weight[order]))
    return np.minimum(below[rank] * bins // below[-1], bins - 1).astype(np.intp)


@RatioMetric
def accuracy(label: FloatArray, score: FloatArray, cut: float | None = None) -> tuple[FloatArray, FloatArray]:
    """Share of rows whose class is predicted correctly.

    Class 1 is a score of at least `cut`; of several classes the most probable one is predicted, of equal ones the
    first.
    """
    if score.ndim == 2:
        return _mean_terms(score.argmax(axis=1) == label)
    assert cut is not None  # of two classes, it is required
    return _mean_terms((score >= cut) == (label == 1))


@RatioMetric
def precision(label: FloatArray, score: FloatArray, cut: float) -> tuple[FloatArray, FloatArray]:
    """Of the rows predicted as class 1 (score at least `cut`), the share that are. NaN if there are none.

    As recall, of Cleverdon, Mills and Keen 1966, "Factors determining the performance of indexing systems".
    """
    return ((score >= cut) & (label == 1)).astype(np.float64), (score >= cut).astype(np.float64)


@RatioMetric
def recall(label: FloatArray, score: FloatArray, cut: float) -> tuple[FloatArray, FloatArray]:
    """Of the rows of class 1, the share with a score of at least `cut`. NaN if there are none."""
    return ((score >= cut) & (label == 1)).astype(np.float64), (label == 1).astype(np.float64)


def average_precision(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Area under the precision-recall curve, as a sum of steps: over cuts, precision times the recall that it adds.

    Not by trapezoids, which is too optimistic (Davis and Goadrich 2006, ICML, 233-240). NaN without a row of class 1.
    """
    precision, recall = _precision_recall(label, score, weight)
    steps = np.diff(recall, axis=1, prepend=0)
    return (np.where(steps > 0, precision, 0) * steps).sum(axis=1)


def precision_at_recall(label: FloatArray, score: FloatArray, weight: FloatArray, recall: float) -> FloatArray:
    """The highest precision of any cut that finds at least the share `recall` of the rows of class 1.

    NaN without a row of class 1.
    """
    precision, reached = _precision_recall(label, score, weight)
    # As many rows, added up in another order, may miss a recall of 1 by a rounding.
    is_reached = reached >= recall * (1 - 1e-12)
    best = np.where(is_reached, np.nan_to_num(precision), -1.0).max(axis=1)
    return np.where(is_reached.any(axis=1), best, np.nan)


def _precision_recall(label: FloatArray, score: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return precision and recall (k, cuts) where each different score is the cut, from the highest on."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), order.size - 1)  # of rows with equal scores
    ordered = weight[:, order]
    hits = np.cumsum(ordered * (label[order] == 1), axis=1)[:, last]
    return _ratio(hits, np.cumsum(ordered, axis=1)[:, last]), _ratio(hits, hits[:, -1:])


@RatioMetric
def positive_rate(_label: FloatArray, score: FloatArray, cut: float) -> tuple[FloatArray, FloatArray]:
    """Share of rows with a score of at least `cut`, whatever their labels.

    Its difference between groups is that of demographic parity (Calders, Kamiran and Pechenizkiy 2009, ICDM Workshops,
    13-18).
    """
    return _mean_terms(score >= cut)


@RatioMetric
def expected_cost(
    label: FloatArray, score: FloatArray, costs: Sequence[Sequence[float]]
) -> tuple[FloatArray, FloatArray]:
    """Mean cost of the decisions of `least_cost`, in the unit of `costs`."""
    matrix = np.asarray(costs, dtype=np.float64)
    actual = _class_numbers(label, matrix)
    return _mean_terms(matrix[actual, least_cost(score, costs)])


def _f1_terms(label: FloatArray, score: FloatArray) -> Iterator[FloatArray]:
    predicted = score.argmax(axis=1)
    for number in range(score.shape[1]):
        is_predicted, is_actual = predicted == number, label == number
        for rows in (is_predicted & is_actual, is_predicted, is_actual):
            yield rows.astype(np.float64)
    yield np.ones(label.size)


def auc_ovr(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean over classes of the AUC of a class's probability, against all other rows.

    One against the rest, unweighted (Provost and Domingos 2000, "Well-trained PETs"). NaN where a class has no row.
    """
    numbers = range(score.shape[1])
    return np.mean([auc((label == n).astype(np.float64), score[:, n], weight) for n in numbers], axis=0)


@partial(RatioMetric, is_root=True)
def rmse(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Root of the mean of (score - label)², in the label's unit."""
    return _mean_terms((score - label) ** 2)


@RatioMetric
def mae(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of |score - label|, in the label's unit."""
    return _mean_terms(np.abs(score - label))


@RatioMetric
def smape(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of 2 · |score - label| / (|score| + |label|), from 0 to 2; 0 where both are 0.

    As in the M4 competition, but no percentage (Makridakis, Spiliotis and Assimakopoulos 2020, International Journal of
    Forecasting 36:54-74).
    """
    size = np.abs(score) + np.abs(label)
    return _mean_terms(2 * np.abs(score - label) / np.where(size > 0, size, 1))


def _r2_terms(label: FloatArray, score: FloatArray) -> tuple[FloatArray, ...]:
    return (score - label) ** 2, label, label**2, np.ones(label.size)


@dataclass(frozen=True)
class R2Metric(SumMetric):
    """Share of the variance of the labels that is explained: 1 - Σ (score - label)² / Σ (label - mean label)².

    The coefficient of determination (Kvålseth 1985, The American Statistician 39:279-285, R² number 1). Below 0 where
    the mean label would be better. NaN where labels are constant, or differ by so little beside their size that sums
    cannot tell: subtract a constant from them.
    """

    def from_sums(self, *sums: FloatArray) -> FloatArray:
        errors, total, squares, rows = sums
        spread = squares - _ratio(total**2, rows)
        is_known = spread > _SMALLEST_SPREAD * squares
        return np.where(is_known, 1 - errors / np.where(is_known, spread, 1), np.nan)


@RatioMetric
def quantile_loss(
    label: FloatArray, score: FloatArray, quantile: float | None = None, quantiles: Sequence[float] = ()
) -> tuple[FloatArray, FloatArray]:
    """Mean of `quantile` · (label - score) where the label is above, (1 - `quantile`) · (score - label) below.

    In the label's unit. The check function of Koenker and Bassett 1978, Econometrica 46:33-50; its expectation is
    smallest for the true quantile. Of scores (n, quantiles) it is that of `quantile`, or else the mean over all.
    """
    if score.ndim == 2 and quantile is not None:
        score = score[:, list(quantiles).index(quantile)]
    if score.ndim == 1:
        assert quantile is not None  # of a single one, it is required
        above = label - score
        return _mean_terms(np.maximum(quantile * above, (quantile - 1) * above))
    levels, above = np.asarray(quantiles), label[:, None] - score
    return _mean_terms(np.maximum(levels * above, (levels - 1) * above).mean(axis=1))


@RatioMetric
def interval_score(label: FloatArray, score: FloatArray, quantiles: Sequence[float]) -> tuple[FloatArray, FloatArray]:
    """Mean width of the interval from the lowest to the highest quantile, and what labels outside cost, in their unit.

    A label that is d below the interval adds d / lowest, one that is d above adds d / (1 - highest): with quantiles as
    far from 0 as from 1, the interval score of Gneiting and Raftery 2007, Journal of the American Statistical
    Association 102:359-378, section 6.2. It is smallest for the true quantiles.
    """
    low, high = score[:, 0], score[:, -1]
    below, above = np.maximum(low - label, 0), np.maximum(label - high, 0)
    return _mean_terms(high - low + below / quantiles[0] + above / (1 - quantiles[-1]))


@RatioMetric
def coverage(
    label: FloatArray,
    score: FloatArray,
    quantiles: Sequence[float],  # noqa: ARG001 - as all metrics of quantiles
) -> tuple[FloatArray, FloatArray]:
    """Share of labels from the lowest to the highest quantile, both included."""
    return _mean_terms((score[:, 0] <= label) & (label <= score[:, -1]))


@RatioMetric
def crossing_rate(
    label: FloatArray,  # noqa: ARG001 - labels do not matter
    score: FloatArray,
    quantiles: Sequence[float],  # noqa: ARG001 - as all metrics of quantiles
) -> tuple[FloatArray, FloatArray]:
    """Share of rows in which a quantile is below a lower one."""
    return _mean_terms(np.logical_or.reduce(np.diff(score, axis=1) < 0, axis=1))


@RatioMetric
def mean_over_queries(_label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of a value of each query (`evergreen.gates.queries`), which is its score."""
    return _mean_terms(score)


@RatioMetric
def poisson_deviance(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of 2 · (label · log(label / score) - label + score), for counts and other numbers from 0.

    Twice the loss of log likelihood against a perfect score, if labels have a Poisson distribution (Nelder and
    Wedderburn 1972, J. Royal Statistical Society A 135:370-384). Scores are kept the machine epsilon above 0, so a row
    of score 0 costs some 72 times its label, not infinity.
    """
    mean = np.maximum(score, np.finfo(np.float64).eps)
    return _mean_terms(2 * (label * np.log(np.where(label > 0, label, 1) / mean) - label + mean))


def _custom_metric(
    name: str, function: Callable[..., float], label: FloatArray, score: FloatArray, weight: FloatArray
) -> FloatArray:
    """Compute a function without weights: it receives each row as often as the row counts.

    Raises:
        NotComputedError: rows do not count a whole number of times, or are too many together.
    """
    fix = "let it take one object, `MetricRows`"
    if (weight != np.floor(weight)).any():
        raise NotComputedError(f"{name} takes no weights, and rows do not count a whole number of times: {fix}")
    total, limit = float(weight.sum(axis=1).max(initial=0.0)), _MAX_REPEATS * max(label.size, _FEW_ROWS)
    if total > limit:
        text = f"{name} takes no weights, and {label.size:,} rows count as {total:,.0f}"
        raise NotComputedError(f"{text}, more than the {limit:,} that are repeated in memory: {fix}")
    counts = weight.astype(np.intp)
    with user_code(name):
        values = [float(function(np.repeat(label, times), np.repeat(score, times, axis=0))) for times in counts]
    return np.array(values, dtype=np.float64)


def _takes_rows(function: Callable[..., float]) -> bool:
    """Return whether a metric takes one object, not labels and predictions."""
    required = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return False  # of code that is not Python's
    if any(parameter.kind == Parameter.VAR_POSITIONAL for parameter in parameters):
        return False
    return sum(parameter.kind in required and parameter.default is Parameter.empty for parameter in parameters) == 1


def _metric_of_rows(
    name: str,
    function: Callable[[MetricRows], float],
    details: RowDetails | None,
    label: FloatArray,
    score: FloatArray,
    weight: FloatArray,
) -> FloatArray:
    """Compute a function that takes the rows as one object, once for each weighting."""
    details = details or RowDetails(np.arange(label.size))
    with user_code(name):
        values = [float(function(details.describe(label, score, row_weight))) for row_weight in weight]
    return np.array(values, dtype=np.float64)


def _class_numbers(label: FloatArray, columns: FloatArray) -> NDArray[np.intp]:
    """Return the column of each row's class; 0 for a label that is none, which is a fault elsewhere."""
    exists = (label >= 0) & (label < columns.shape[1])
    return np.where(exists, label, 0).astype(np.intp)


def _mean_terms(loss: NDArray[np.float64] | NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    return loss.astype(np.float64), np.ones(loss.size)


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        share: FloatArray = part / whole
    return share


METRICS: Mapping[str, Callable[..., FloatArray]] = {
    "auc": auc,
    "log_loss": log_loss,
    "brier": brier,
    "calibration_error": calibration_error,
    "accuracy": accuracy,
    "precision": precision,
    "recall": recall,
    "positive_rate": positive_rate,
    "average_precision": average_precision,
    "precision_at_recall": precision_at_recall,
    "expected_cost": expected_cost,
    "macro_f1": F1Metric(_f1_terms),
    "weighted_f1": F1Metric(_f1_terms, is_weighted=True),
    "auc_ovr": auc_ovr,
    "rmse": rmse,
    "mae": mae,
    "smape": smape,
    "r2": R2Metric(_r2_terms),
    "mase": RatioMetric(mae.row_terms),  # of rows that were divided by their scale (evergreen.gates.forecasts)
    "quantile_loss": quantile_loss,
    "poisson_deviance": poisson_deviance,
    "ndcg": mean_over_queries,
    "map": mean_over_queries,
    "mrr": mean_over_queries,
    "recall_at_k": mean_over_queries,
    "interval_score": interval_score,
    "coverage": coverage,
    "coverage_error": CoverageGapMetric(coverage.row_terms),
    "crossing_rate": crossing_rate,
}
