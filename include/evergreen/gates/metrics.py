"""The metrics, each for many weightings of the same rows at once.

Every function takes `label` (n,), `score` (n,) and `weight` (k, n), how often each row counts, and returns (k,), one
value per weighting. For binary metrics labels are 0 and 1 and scores are in [0, 1]; for those of counts both are any
number from 0, for continuous ones any number. Rows without a cluster are a weighting, so rows are sorted once for many
of them. A value that does not exist is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pkgutil import resolve_name

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.verdict import NotComputedError, describe_error
from evergreen.spec.gates import MetricGate

FloatArray = NDArray[np.float64]
Metric = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class RatioMetric:
    """A metric that is a ratio of two sums over rows, or the root of one.

    `row_terms` takes labels and scores (n,), with the options of the gate, and returns what each row adds to the
    numerator and to the denominator.
    """

    row_terms: Callable[..., tuple[FloatArray, FloatArray]]
    is_root: bool = False
    options: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, label: FloatArray, score: FloatArray, weight: FloatArray, **options: float) -> FloatArray:
        numerator, denominator = self.terms(label, score, **options)
        # Not `weight @ numerator`: BLAS adds in an order that depends on its number of threads.
        return self.from_sums((weight * numerator).sum(axis=1), (weight * denominator).sum(axis=1))

    def terms(self, label: FloatArray, score: FloatArray, **options: float) -> tuple[FloatArray, FloatArray]:
        """Return what each row (n,) adds to the numerator and to the denominator."""
        return self.row_terms(label, score, **{**self.options, **options})

    def from_sums(self, numerator: FloatArray, denominator: FloatArray) -> FloatArray:
        """Return the metric (k,) of sums (k,). NaN where there is no row to divide by."""
        ratio = _ratio(numerator, denominator)
        return np.sqrt(np.maximum(ratio, 0)) if self.is_root else ratio


def resolve_metric(gate: MetricGate) -> Metric:
    """Return the metric of `gate`, with its `cut` or `quantile` filled in.

    Raises:
        NotComputedError: the custom metric does not exist; or later, it raises.
    """
    if ":" in gate.metric:
        with user_code(gate.metric):
            return partial(_custom_metric, gate.metric, resolve_name(gate.metric))
    metric = METRICS[gate.metric]
    options = {name: value for name in ("cut", "quantile") if (value := getattr(gate, name)) is not None}
    return replace(metric, options=options) if isinstance(metric, RatioMetric) else metric


@contextmanager
def user_code(function: str) -> Iterator[None]:
    """Raise a `NotComputedError` that names `function`, of a model folder, for an error of any class."""
    try:
        yield
    except Exception as error:
        raise NotComputedError(f"{function} raised {describe_error(error)}") from error


def compute_metric(metric: Metric, label: FloatArray, score: FloatArray) -> float:
    """Return the metric with every row counting once."""
    return float(metric(label, score, np.ones((1, label.size)))[0])


def sort_rows(columns: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the same rows, sorted, so that evidence in another order gives the same bits."""
    order = np.lexsort(columns[::-1])
    return [values[order] for values in columns]


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
    probability = np.where(label == 1, score, 1 - score).clip(epsilon, 1 - epsilon)
    return _mean_terms(-np.log(probability))


@RatioMetric
def brier(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of (score - label)² (Brier 1950, Monthly Weather Review 78:1-3)."""
    return _mean_terms((score - label) ** 2)


def calibration_error(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Expected calibration error: over bins, the mean of |share of label 1 - mean score|, by rows in a bin.

    As in Naeini et al. 2015 (AAAI, "Obtaining well calibrated probabilities using Bayesian binning"), but
    with ten bins of equal mass, which are less biased than bins of equal width (Roelofs et al. 2022, AISTATS,
    "Mitigating bias in calibration error estimation"). A row's bin is the tenth of the rows, unweighted, that
    its score's rank falls in; equal scores share a bin, so the order of rows does not matter. Never zero by
    chance alone: a perfectly calibrated scorer shows about 0.8 √(10 · p(1 - p)/n), which is 0.03 for 1,000
    rows at p = 0.2.
    """
    bins = equal_mass_bins(score, CALIBRATION_BINS)
    gap = (label - score) * weight
    gaps = [np.abs(gap[:, bins == number].sum(axis=1)) for number in range(CALIBRATION_BINS)]
    return _ratio(np.sum(gaps, axis=0), weight.sum(axis=1))


def equal_mass_bins(score: FloatArray, bins: int) -> NDArray[np.intp]:
    """Return the bin (n,) of each row: equally many rows in each, but equal scores together, so some may be empty."""
    rank = np.searchsorted(np.sort(score), score, side="left")
    return rank * bins // score.size


@RatioMetric
def accuracy(label: FloatArray, score: FloatArray, cut: float) -> tuple[FloatArray, FloatArray]:
    """Share of rows whose class is predicted correctly; class 1 is a score of at least `cut`."""
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


@RatioMetric
def positive_rate(_label: FloatArray, score: FloatArray, cut: float) -> tuple[FloatArray, FloatArray]:
    """Share of rows with a score of at least `cut`, whatever their labels.

    Its difference between groups is that of demographic parity (Calders, Kamiran and Pechenizkiy 2009, ICDM Workshops,
    13-18).
    """
    return _mean_terms(score >= cut)


@partial(RatioMetric, is_root=True)
def rmse(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Root of the mean of (score - label)², in the label's unit."""
    return _mean_terms((score - label) ** 2)


@RatioMetric
def mae(label: FloatArray, score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of |score - label|, in the label's unit."""
    return _mean_terms(np.abs(score - label))


@RatioMetric
def quantile_loss(label: FloatArray, score: FloatArray, quantile: float) -> tuple[FloatArray, FloatArray]:
    """Mean of `quantile` · (label - score) where the label is above, (1 - `quantile`) · (score - label) below.

    In the label's unit. The check function of Koenker and Bassett 1978, Econometrica 46:33-50; its expectation is
    smallest for the true quantile.
    """
    above = label - score
    return _mean_terms(np.maximum(quantile * above, (quantile - 1) * above))


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
    """Compute a function without weights: it receives each row as often as the row counts."""
    counts = weight.astype(np.intp)
    with user_code(name):
        values = [float(function(np.repeat(label, times), np.repeat(score, times))) for times in counts]
    return np.array(values, dtype=np.float64)


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
    "rmse": rmse,
    "mae": mae,
    "quantile_loss": quantile_loss,
    "poisson_deviance": poisson_deviance,
}
