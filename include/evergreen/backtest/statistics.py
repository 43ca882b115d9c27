"""Loss of a live model, and bounds of a mean over periods; both by the bootstrap."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evergreen.gates import metrics
from evergreen.gates.computation import label_type
from evergreen.gates.metric_rows import RowDetails
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import MetricGate
from evergreen.spec.prediction_type import PredictionType

log = logging.getLogger(__name__)

CONFIDENCE = 0.95
RESAMPLES = 500  # leaves 25 beyond the bound; a backtest runs up to one test per date
_CHUNK_SIZE = 2**19  # numbers per array while resampling: 4 MiB


@dataclass(frozen=True)
class LossTest:
    """A model's metric on its own holdout and recently; `change` is positive if the model got better.

    `upper_bound` of the change is at 95 % confidence; None if the model did not get worse, or if it does not exist.
    """

    holdout_value: float
    recent_value: float
    change: float
    upper_bound: float | None

    @property
    def is_significant(self) -> bool:
        """Whether the model got worse at 95 % confidence."""
        return self.upper_bound is not None and self.upper_bound < 0


class ScoredSample(NamedTuple):
    """Labels, scores, days and weights, (n,) each; without weights each row counts once."""

    label: FloatArray
    score: FloatArray
    days: ArrayLike
    weights: FloatArray | None = None
    details: RowDetails | None = None
    """What a metric of the model folder may ask for."""

    @property
    def columns(self) -> list[FloatArray]:
        """Labels and scores, and weights if there are some."""
        return [self.label, self.score, *([] if self.weights is None else [self.weights])]


def backtest_metric(gate: MetricGate, sample: ScoredSample, prediction: PredictionType | None = None) -> float | None:
    """Return the metric of `gate`.

    None where it does not exist: no rows, or rows of one class only, or a metric of the model folder that raises.
    """
    label = sample.label
    if label.size == 0 or not np.isfinite(label).all():
        return None
    if label_type(gate, prediction) in ("binary", "class") and label.min() == label.max():
        return None
    order = metrics.sort_order(sample.columns)
    try:
        metric = metrics.resolve_metric(gate, prediction, sample.details and sample.details.take(order))
        value = metrics.compute_metric(metric, *(column[order] for column in sample.columns))
    except NotComputedError as error:
        log.warning("%s is not measured on %s rows: %s", gate.metric, f"{label.size:,}", error)
        return None
    return value if isfinite(value) else None


def run_loss_test(
    gate: MetricGate,
    holdout_sample: ScoredSample,
    recent_sample: ScoredSample,
    prediction: PredictionType | None = None,
) -> LossTest | None:
    """Compare a model with itself, by the metric of `gate`: labels, scores and days (n,) at deployment, (m,) recently.

    The two-sample bootstrap (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 8): days of
    each sample are drawn with replacement, with all of their rows, independently, and the 95 % percentile (chapter 13)
    of the changes is the one-sided upper bound. It accounts for the chance in drawing days, not in drawing seasons:
    times that differ for other reasons than the model's age trigger it too. A metric that did not get worse is not
    tested.

    Return None if the metric does not exist for one of the samples.
    """
    holdout_value, recent_value = (
        backtest_metric(gate, sample, prediction) for sample in (holdout_sample, recent_sample)
    )
    if holdout_value is None or recent_value is None:
        return None
    sign = 1 if gate.scale.higher_is_better else -1
    change = sign * (recent_value - holdout_value)
    if change >= 0:
        return LossTest(holdout_value, recent_value, change, None)
    try:
        draws = [_resample_metric(gate, prediction, sample) for sample in (holdout_sample, recent_sample)]
    except NotComputedError as error:  # a metric of the model folder may exist for all days, and not without some
        log.warning("No bound of the change in %s: %s", gate.metric, error)
        return LossTest(holdout_value, recent_value, change, None)
    bound = float(np.quantile(sign * (draws[1] - draws[0]), CONFIDENCE))
    return LossTest(holdout_value, recent_value, change, None if np.isnan(bound) else bound)


def _resample_metric(gate: MetricGate, prediction: PredictionType | None, sample: ScoredSample) -> FloatArray:
    """Return the metric in each resample of the days: (RESAMPLES,)."""
    unique_days, codes = np.unique(np.asarray(sample.days), return_inverse=True)
    label, score, *rest = sample.columns
    order = np.lexsort((*rest, *metrics.sort_keys([score]), label, codes))
    label, score, codes = label[order], score[order], codes[order]
    weights: FloatArray | float = 1.0
    counts = _resample_counts(unique_days.size, label, score)
    metric = metrics.resolve_metric(gate, prediction, sample.details and sample.details.take(order))
    size = max(1, _CHUNK_SIZE // label.size)
    if rest:
        weights = rest[0][order]
        metric = metrics.weigh_bins(metric, weights)
    chunks = (counts[start : start + size, codes] * weights for start in range(0, RESAMPLES, size))
    return np.concatenate([metric(label, score, weights) for weights in chunks])


def _resample_counts(size: int, *evidence: FloatArray) -> FloatArray:
    """Return how often each of `size` items is drawn in each resample, (RESAMPLES, size); equal for equal evidence."""
    digest = sha256(b"".join(column.astype("<f8").tobytes() for column in evidence)).digest()
    random = np.random.default_rng(int.from_bytes(digest, "big"))
    return random.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64)


def mean_with_bounds(values: FloatArray) -> tuple[float, float, float]:
    """Return the mean of (n,) and its one-sided 95 % lower and upper bounds, by drawing periods with replacement.

    Periods are taken as independent; where neighbours are alike, the bounds are too narrow.
    """
    draws = (_resample_counts(values.size, values) * values).sum(axis=1)
    low, high = np.quantile(draws / values.size, [1 - CONFIDENCE, CONFIDENCE])
    return float(values.mean()), float(low), float(high)
