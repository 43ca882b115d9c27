"""Whether a model fell since it was deployed, and how sure a mean over periods is. Both by the gates' bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from evergreen.gates import metrics, validation
from evergreen.gates.bootstrap import draw_resample_counts, resampling_seed
from evergreen.gates.metrics import FloatArray
from evergreen.spec.gates import MetricGate

CONFIDENCE = 0.95
RESAMPLES = 500  # leaves 25 beyond the bound; a walk may ask for as many tests as it has dates


@dataclass(frozen=True)
class DriftTest:
    """A model's metric on its own holdout (`then`) and now; `change` is positive where it got better.

    `at_most` is the upper bound of the change at 95 % confidence, None where it was not needed or does not exist.
    """

    holdout_value: float
    recent_value: float
    change: float
    upper_bound: float | None

    @property
    def is_significant(self) -> bool:
        return self.upper_bound is not None and self.upper_bound < 0


def backtest_metric(gate: MetricGate, label: FloatArray, score: FloatArray) -> float | None:
    """The metric that `gate` is about, or None where it does not exist: no rows, or rows of one class only."""
    if label.size == 0 or (gate.scale.label_type == "binary" and label.min() == label.max()):
        return None
    found = metrics.compute_metric(metrics.resolve_metric(gate), *validation.sort_rows([label, score]))
    return found if isfinite(found) else None


def run_drift_test(
    gate: MetricGate,
    holdout_sample: tuple[FloatArray, FloatArray],
    recent_sample: tuple[FloatArray, FloatArray],
) -> DriftTest | None:
    """Compare a model with itself, by the metric of `gate`: labels and scores (n,) at deployment, (m,) of late.

    The two-sample bootstrap (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 8): rows of
    either sample are drawn with replacement, independently, and the 95 % percentile (chapter 13) of the changes
    is the one-sided upper bound. It counts the luck of drawing rows, not that of drawing weeks: weeks that
    differ for other reasons than the model's age trigger it too. A metric that did not fall at all is not tested.
    None if the metric does not exist on either side.
    """
    import numpy as np

    before, after = backtest_metric(gate, *holdout_sample), backtest_metric(gate, *recent_sample)
    if before is None or after is None:
        return None
    sign = 1 if gate.scale.higher_is_better else -1
    change = sign * (after - before)
    if change >= 0:
        return DriftTest(before, after, change, None)
    draws = _resample_metric(gate, *holdout_sample), _resample_metric(gate, *recent_sample)
    bound = float(np.quantile(sign * (draws[1] - draws[0]), CONFIDENCE))
    return DriftTest(before, after, change, None if np.isnan(bound) else bound)


def _resample_metric(gate: MetricGate, label: FloatArray, score: FloatArray) -> FloatArray:
    """The metric in each resample of the rows: (RESAMPLES,)."""
    import numpy as np

    label, score = validation.sort_rows([label, score])
    weights = draw_resample_counts(label.size, RESAMPLES, resampling_seed(label, score))
    metric = metrics.resolve_metric(gate)
    return np.concatenate([metric(label, score, weight) for weight in weights])


def mean_with_bounds(values: FloatArray) -> tuple[float, float, float]:
    """The mean of (n,), and its one-sided 95 % lower and upper bounds: periods drawn with replacement.

    Takes periods as independent; where they are alike in a row, the bounds are too narrow.
    """
    import numpy as np

    draws = [
        (counts * values).sum(axis=1)
        for counts in draw_resample_counts(values.size, RESAMPLES, resampling_seed(values))
    ]
    low, high = np.quantile(np.concatenate(draws) / values.size, [1 - CONFIDENCE, CONFIDENCE])
    return float(values.mean()), float(low), float(high)
