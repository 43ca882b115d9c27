"""How much neighbouring days are alike, and what that adds to the error of a gain.

Weather lasts. If a model gains on Monday, it gains on Tuesday rather than not, and fourteen days say less than fourteen
independent ones. With a correlation of 0.3 from day to day the variance of a mean is up to 1.86 times as large, and a
test at a level of 10⁻⁴ errs twenty times as often.

A holdout is too short to tell: the correlation of fourteen days has an error of 0.27. So it is learned from all
comparisons of the model together, and until they tell, it is taken to be large:

- `day_autocorrelation` takes the first autocorrelation of the daily gains, with its bias removed.
- Two cases are possible: days are independent, or they are correlated by `_CORRELATION`. Each has a prior weight, and
  the measured correlations, of this comparison and all earlier ones, are normal numbers around the true one (Bartlett
  1946, Supplement to the Journal of the Royal Statistical Society 8:27-41). That gives either case its weight.
- A bound is a quantile of the mixture of the two Student distributions: of the gain with independent days, and of the
  gain with correlated ones, where the variance is that of a first-order autoregression.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from evergreen.gates.alpha_spending import DayCorrelation
from evergreen.gates.metrics import FloatArray

# By simulation (benchmarks/gates.py): with these, a life keeps its budget for correlations from 0 to 0.3, and a model
# with independent days soon pays nothing.
_CORRELATION = 0.38
_PRIOR_WEIGHT = 0.78

# The bias of the autocorrelation of n days takes four of them.
_LOST_DAYS = 4


Numbers = float | FloatArray
"""One number, or an array of them, such as one per simulated comparison."""


class ErrorCase(NamedTuple):
    """One possible error of a gain: its weight, its size, and its degrees of freedom. Weights add up to 1."""

    weight: Numbers
    standard_error: Numbers
    degrees_of_freedom: float


def measure_day_correlation(daily_changes: FloatArray) -> float | None:
    """Return the correlation of neighbouring days, of what each changes of a gain (days,), in order.

    None if days are too few to remove its bias.
    """
    if daily_changes.size <= _LOST_DAYS or daily_changes.min() == daily_changes.max():
        return None
    return float(day_autocorrelation(daily_changes))


def day_autocorrelation(daily_changes: FloatArray) -> FloatArray:
    """Return the first autocorrelation of days (…, days), in order, without its bias.

    The bias is -(1 + 4ρ)/n for n days (Kendall 1954; Marriott and Pope 1954, Biometrika 41:390-402). Without it,
    correlations of several comparisons can be averaged.
    """
    deviations = daily_changes - daily_changes.mean(axis=-1, keepdims=True)
    first = (deviations[..., 1:] * deviations[..., :-1]).sum(axis=-1) / (deviations**2).sum(axis=-1)
    days = deviations.shape[-1]
    return np.asarray((first + 1 / days) / (1 - _LOST_DAYS / days))


def weigh_correlated_days(correlations: Sequence[DayCorrelation]) -> float:
    """Return the weight, in [0, 1], of the case that days are correlated, after what was measured."""
    days = [count_informative_days(measured.days) for measured in correlations]
    total = sum(days)
    mean = sum(n * measured.value for n, measured in zip(days, correlations, strict=True)) / total if total else 0.0
    return float(correlated_weight(total, mean))


def count_informative_days(days: int) -> int:
    """Return the number of days that a correlation without bias is worth."""
    return max(days - _LOST_DAYS, 0)


def correlated_weight(days: Numbers, mean_correlation: Numbers) -> Numbers:
    """Return the weight of the case that days are correlated, if so many days had this correlation on average."""
    variance = 1 - _CORRELATION**2
    # The logarithm of the ratio of two normal densities, with variances 1/n and (1 - ρ²)/n.
    ratio = days / 2 * (mean_correlation**2 - (mean_correlation - _CORRELATION) ** 2 / variance)
    prior = log(_PRIOR_WEIGHT / (1 - _PRIOR_WEIGHT))
    return special.expit(prior + ratio - np.where(np.asarray(days) > 0, log(variance) / 2, 0.0))


def possible_errors(
    standard_error: Numbers, freedom: float, days: int, day_variance: Numbers, correlated_weight: Numbers
) -> list[ErrorCase]:
    """Return the error of a gain with independent days, and with correlated ones.

    `standard_error` and its degrees of freedom are those of independent days; `day_variance` is the part of its square
    that comes from the spread between `days`.

    With correlated ones its factor is that of the true variance, over that of the estimate by the spread, which is too
    small itself: V (n - 1)/(n - V) for n days, with V = 1 + 2 Σ (1 - k/n) ρᵏ (Anderson 1971, "The Statistical Analysis
    of Time Series", section 8.2). Degrees of freedom are (1 - ρ²)/(1 + ρ²) times as many (Bayley and Hammersley 1946,
    Supplement to the Journal of the Royal Statistical Society 8:184-197).
    """
    lags = np.arange(1, days)
    factor = 1 + 2 * float(((1 - lags / days) * _CORRELATION**lags).sum())
    added = (factor * (days - 1) / (days - factor) - 1) * day_variance
    correlated_freedom = freedom * (1 - _CORRELATION**2) / (1 + _CORRELATION**2)
    return [
        ErrorCase(1 - correlated_weight, standard_error, freedom),
        ErrorCase(correlated_weight, np.sqrt(np.square(standard_error) + added), correlated_freedom),
    ]


def chance_beyond(distance: Numbers, cases: Sequence[ErrorCase]) -> Numbers:
    """Return the chance of an estimate that is at least `distance` too large, on the average of the cases."""
    chances = [case.weight * special.stdtr(case.degrees_of_freedom, -distance / case.standard_error) for case in cases]
    return np.sum(chances, axis=0)


def distance_at(alpha: float, cases: Sequence[ErrorCase]) -> float:
    """Return the distance whose `chance_beyond` is `alpha`, in (0, 0.5]."""
    distances = [float(-special.stdtrit(case.degrees_of_freedom, alpha) * case.standard_error) for case in cases]
    low, high = min(distances), max(distances)
    if len(cases) == 1 or not low < high < inf:
        return high

    def excess(distance: float) -> float:
        return log(max(float(chance_beyond(distance, cases)), 1e-323)) - log(alpha)

    if excess(low) <= 0:  # the other case has no weight
        return low
    return float(optimize.brentq(excess, low, high, xtol=1e-12 * high)) if excess(high) < 0 else high
