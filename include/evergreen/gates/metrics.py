"""The metrics, each for many weightings of the same rows at once.

Every function takes `label` (n,) of 0 and 1, `score` (n,) in [0, 1] and `weight` (k, n), how often each row
counts, and returns (k,), one value per weighting. A bootstrap resample is a weighting, so rows are sorted
once for many resamples. A value that does not exist is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.spec import MetricName

Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats, Floats], Floats]

CALIBRATION_BINS = 10


def auc(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Area under the ROC curve: the chance that a row of class 1 scores above one of class 0, ties half.

    The Mann-Whitney form (Hanley and McNeil 1982, Radiology 143:29-36), exact for whole weights.
    NaN for a weighting without one of the classes.
    """
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    negative = negative[np.argsort(score[negative])]
    below = np.searchsorted(score[negative], score[positive], side="left")
    up_to = np.searchsorted(score[negative], score[positive], side="right")
    weight_positive = weight[:, positive]
    # beaten[:, j] is the weight of the j lowest rows of class 0.
    beaten = np.zeros((len(weight), negative.size + 1))
    np.cumsum(weight[:, negative], axis=1, out=beaten[:, 1:])
    wins = ((beaten[:, below] + beaten[:, up_to]) * weight_positive).sum(axis=1) / 2
    with np.errstate(invalid="ignore"):
        share: Floats = wins / (weight_positive.sum(axis=1) * beaten[:, -1])
    return share


def log_loss(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean of -log(probability given to what happened), in nats.

    Scores are kept the machine epsilon away from 0 and 1, so one row costs at most 36 nats, not infinity.
    """
    epsilon = np.finfo(np.float64).eps
    given = np.where(label == 1, score, 1 - score).clip(epsilon, 1 - epsilon)
    return _mean(-np.log(given), weight)


def brier(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Mean of (score - label)² (Brier 1950, Monthly Weather Review 78:1-3)."""
    return _mean((score - label) ** 2, weight)


def calibration_error(label: Floats, score: Floats, weight: Floats) -> Floats:
    """Expected calibration error: over bins, the mean of |share of label 1 - mean score|, by rows in a bin.

    As in Naeini et al. 2015 (AAAI, "Obtaining well calibrated probabilities using Bayesian binning"), but
    with ten bins of equal mass, which are less biased than bins of equal width (Roelofs et al. 2022, AISTATS,
    "Mitigating bias in calibration error estimation"). A row's bin is the tenth of the rows, unweighted, that
    its score's rank falls in; equal scores share a bin, so the order of rows does not matter. Never zero by
    chance alone: a perfectly calibrated scorer shows about 0.8 √(10 · p(1 - p)/n), which is 0.03 for 1,000
    rows at p = 0.2.
    """
    rank = np.searchsorted(np.sort(score), score, side="left")
    bins = rank * CALIBRATION_BINS // score.size
    gap = (label - score) * weight
    gaps = [np.abs(gap[:, bins == number].sum(axis=1)) for number in range(CALIBRATION_BINS)]
    total: Floats = np.sum(gaps, axis=0) / weight.sum(axis=1)
    return total


def _mean(loss: Floats, weight: Floats) -> Floats:
    # Not `weight @ loss`: BLAS adds in an order that depends on its number of threads.
    total: Floats = (weight * loss).sum(axis=1) / weight.sum(axis=1)
    return total


METRICS: Mapping[MetricName, Metric] = {
    "auc": auc,
    "log_loss": log_loss,
    "brier": brier,
    "calibration_error": calibration_error,
}


def value(metric: Metric, label: Floats, score: Floats) -> float:
    """The metric with every row counting once."""
    return float(metric(label, score, np.ones((1, label.size)))[0])
