"""How much neighbouring days are alike, and what that adds to the error of a gain.

Weather lasts. If a model gains on Monday, it gains on Tuesday rather than not, and fourteen days say less than fourteen
independent ones. With a correlation of 0.3 from day to day the variance of a mean is up to 1.86 times as large, and a
test at a level of 10⁻⁴ errs twenty times as often.

A holdout is too short to tell: the correlation of fourteen days has an error of 0.27. So it is learned from all
comparisons of the model together, and until they tell, it is taken to be large:

- `measure_day_correlation` takes the first autocorrelation of the daily gains, with its bias removed.
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
_CORRELATION = 0.36
_PRIOR_WEIGHT = 0.8

# The bias of the autocorrelation of n days takes four of them.
_LOST_DAYS = 4


class ErrorCase(NamedTuple):
    """One possible error of a gain: its weight, its size, and its degrees of freedom. Weights add up to 1."""

    weight: float
    standard_error: float
    degrees_of_freedom: float


def measure_day_correlation(daily_gains: FloatArray) -> float | None:
    """Return the correlation of neighbouring days, of what each adds to a gain (days,), in order.

    The bias of the first autocorrelation, -(1 + 4ρ)/n for n days (Kendall 1954; Marriott and Pope 1954, Biometrika
    41:390-402), is removed, so that correlations of several comparisons can be averaged. None if days are too few.
    """
    deviations = daily_gains - daily_gains.mean()
    days, total = deviations.size, float((deviations**2).sum())
    if days <= _LOST_DAYS or not total:
        return None
    first = float((deviations[1:] * deviations[:-1]).sum()) / total
    return float((first + 1 / days) / (1 - _LOST_DAYS / days))


def weigh_correlated_days(correlations: Sequence[DayCorrelation]) -> float:
    """Return the weight, in [0, 1], of the case that days are correlated."""
    weights = [measured.days - _LOST_DAYS for measured in correlations]
    if not (total := sum(weights)):
        return _PRIOR_WEIGHT
    mean = sum(weight * measured.value for weight, measured in zip(weights, correlations, strict=True)) / total
    variance = 1 - _CORRELATION**2
    # The logarithm of the ratio of two normal densities, with variances 1/n and (1 - ρ²)/n.
    evidence = total / 2 * (mean**2 - (mean - _CORRELATION) ** 2 / variance) - log(variance) / 2
    odds = log(_PRIOR_WEIGHT / (1 - _PRIOR_WEIGHT)) + evidence
    return float(special.expit(odds))


def inflate_variance(days: int, correlation: float = _CORRELATION) -> float:
    """Return the factor of the variance of a mean of days that are a first-order autoregression.

    It is the factor of the true variance, over that of the estimate by the spread between days, which is too small
    itself: T V / (T - V) (T - 1) / T with V = 1 + 2 Σ (1 - k/T) ρᵏ (Anderson 1971, "The Statistical Analysis of Time
    Series", section 8.3).
    """
    lags = np.arange(1, days)
    factor = 1 + 2 * float(((1 - lags / days) * correlation**lags).sum())
    return factor * (days - 1) / (days - factor)


def correlated_freedom(freedom: float, correlation: float = _CORRELATION) -> float:
    """Return the degrees of freedom of the spread between correlated days, from those that independent ones have.

    Bayley and Hammersley 1946, Supplement to the Journal of the Royal Statistical Society 8:184-197.
    """
    return freedom * (1 - correlation**2) / (1 + correlation**2)


def chance_beyond(distance: float, cases: Sequence[ErrorCase]) -> float:
    """Return the chance of an estimate that is at least `distance` too large, on the average of the cases."""
    return sum(
        case.weight * float(special.stdtr(case.degrees_of_freedom, -distance / case.standard_error)) for case in cases
    )


def distance_at(alpha: float, cases: Sequence[ErrorCase]) -> float:
    """Return the distance whose `chance_beyond` is `alpha`, in (0, 0.5]."""
    distances = [-float(special.stdtrit(case.degrees_of_freedom, alpha)) * case.standard_error for case in cases]
    low, high = min(distances), max(distances)
    if len(cases) == 1 or not low < high < inf:
        return high

    def excess(distance: float) -> float:
        return log(max(chance_beyond(distance, cases), 1e-323)) - log(alpha)

    if excess(low) <= 0:  # the other case has no weight
        return low
    return float(optimize.brentq(excess, low, high, xtol=1e-12 * high)) if excess(high) < 0 else high
