"""The metrics, each for many weightings of the same rows at once.

Every function takes `label` (n,), `score` (n,) and `weight` (k, n), how often each row counts, and returns (k,), one
value per weighting. For binary metrics labels are 0 and 1 and scores are in [0, 1]; for continuous ones both are any
number. A bootstrap resample is a weighting, so rows are sorted once for many resamples. A value that does not exist
is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pkgutil import resolve_name

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.verdict import NotComputedError, describe_error
from evergreen.spec.gates import MetricGate

FloatArray = NDArray[np.float64]
Metric = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

CALIBRATION_BINS = 10


def resolve_metric(gate: MetricGate) -> Metric:
    """Return the metric of `gate`, with its `cut` or `quantile` filled in.

    Raises:
        NotComputedError: the custom metric does not exist; or later, it raises.
    """
    if ":" in gate.metric:
        with user_code(gate.metric):
            return partial(_custom_metric, gate.metric, resolve_name(gate.metric))
    metric = METRICS[gate.metric]
    if gate.cut is not None:
        return partial(metric, cut=gate.cut)
    if gate.quantile is not None:
        return partial(metric, quantile=gate.quantile)
    return metric


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


def log_loss(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean of -log(probability of the actual class), in nats (Good 1952, J. Royal Statistical Society B 14:107-114).

    Scores are kept the machine epsilon away from 0 and 1, so one row costs at most 36 nats, not infinity.
    """
    epsilon = np.finfo(np.float64).eps
    probability = np.where(label == 1, score, 1 - score).clip(epsilon, 1 - epsilon)
    return _weighted_mean(-np.log(probability), weight)


def brier(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean of (score - label)² (Brier 1950, Monthly Weather Review 78:1-3)."""
    return _weighted_mean((score - label) ** 2, weight)


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


def accuracy(label: FloatArray, score: FloatArray, weight: FloatArray, *, cut: float) -> FloatArray:
    """Share of rows whose class is predicted correctly; class 1 is a score of at least `cut`."""
    return _weighted_mean((score >= cut) == (label == 1), weight)


def precision(label: FloatArray, score: FloatArray, weight: FloatArray, *, cut: float) -> FloatArray:
    """Of the rows predicted as class 1 (score at least `cut`), the share that are. NaN if there are none.

    As recall, of Cleverdon, Mills and Keen 1966, "Factors determining the performance of indexing systems".
    """
    predicted = weight[:, score >= cut].sum(axis=1)
    return _ratio(weight[:, (score >= cut) & (label == 1)].sum(axis=1), predicted)


def recall(label: FloatArray, score: FloatArray, weight: FloatArray, *, cut: float) -> FloatArray:
    """Of the rows of class 1, the share with a score of at least `cut`. NaN if there are none."""
    positives = weight[:, label == 1].sum(axis=1)
    return _ratio(weight[:, (score >= cut) & (label == 1)].sum(axis=1), positives)


def positive_rate(_label: FloatArray, score: FloatArray, weight: FloatArray, *, cut: float) -> FloatArray:
    """Share of rows with a score of at least `cut`, whatever their labels.

    Its difference between groups is that of demographic parity (Calders, Kamiran and Pechenizkiy 2009, ICDM Workshops,
    13-18).
    """
    return _weighted_mean(score >= cut, weight)


def rmse(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Root of the mean of (score - label)², in the label's unit."""
    return np.sqrt(_weighted_mean((score - label) ** 2, weight))


def mae(label: FloatArray, score: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean of |score - label|, in the label's unit."""
    return _weighted_mean(np.abs(score - label), weight)


def quantile_loss(label: FloatArray, score: FloatArray, weight: FloatArray, *, quantile: float) -> FloatArray:
    """Mean of `quantile` · (label - score) where the label is above, (1 - `quantile`) · (score - label) below.

    In the label's unit. The check function of Koenker and Bassett 1978, Econometrica 46:33-50; its expectation is
    smallest for the true quantile.
    """
    above = label - score
    return _weighted_mean(np.maximum(quantile * above, (quantile - 1) * above), weight)


def _custom_metric(
    name: str, function: Callable[..., float], label: FloatArray, score: FloatArray, weight: FloatArray
) -> FloatArray:
    """Compute a function without weights: it receives each row as often as the row counts."""
    counts = weight.astype(np.intp)
    with user_code(name):
        values = [float(function(np.repeat(label, times), np.repeat(score, times))) for times in counts]
    return np.array(values, dtype=np.float64)


def _weighted_mean(loss: NDArray[np.float64] | NDArray[np.bool_], weight: FloatArray) -> FloatArray:
    # Not `weight @ loss`: BLAS adds in an order that depends on its number of threads.
    return _ratio((weight * loss).sum(axis=1), weight.sum(axis=1))


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        share: FloatArray = part / whole
    return share


_PROBABILITY_METRICS = (auc, log_loss, brier, calibration_error, accuracy, precision, recall, positive_rate)
METRICS: Mapping[str, Callable[..., FloatArray]] = {
    metric.__name__: metric for metric in (*_PROBABILITY_METRICS, rmse, mae, quantile_loss)
}
