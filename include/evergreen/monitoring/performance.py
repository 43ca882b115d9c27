"""Whether a champion does worse than when it was judged, by the labels of later days. Pure, and causal.

Days are clusters: all rows of a day share what makes it easy or hard. So a day is one observation of each metric, and
what days of the champion's holdout differ by is what later days are held against. A loss is found by the e-detector
that finds drifts (`e_detector`): each day is ranked among those of the holdout and all since, and bets are on more loss
only. Each metric is judged by itself, with an equal part of the budget: its reference depends on no other metric, and
on no later day.

Neighbouring days are alike. What the day before explains is taken out, as of drifts; but a holdout is short, and a
memory that is taken for too small raises false alarms. So a standard error is added to its estimate, and no alarm is
raised where that is above `MAX_LEARNED_MEMORY`.

The mean of the days so far has an interval that holds on all days together, however often one looks: the confidence
sequence of a normal mean with unknown variance (Lai 1976, Annals of Statistics 4:265-280; Wang and Ramdas 2025,
Sequential Analysis 44:56-110, theorem 4.9 with a Gaussian mixture).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np

from evergreen.monitoring.alarms import DRIFT_BUDGET, Judgement, judge_days
from evergreen.monitoring.baseline import MAX_MEMORY, MIN_REFERENCE_DAYS, remove_patterns
from evergreen.monitoring.effect_sizes import FloatValues
from evergreen.monitoring.series import DailySeries, SeriesName

PERFORMANCE_BUDGET = 0.1
"""Expected false alarms of a year, of all metrics together, at most. Those of data are beside it (`alarms`)."""
MAX_LEARNED_MEMORY = 0.8
"""Of neighbouring days, its standard error included: with more, no alarm is raised (`benchmarks/performance_alarms.py`
measures what is raised below)."""
INTERVAL_ALPHA = 0.05

_MEMORY_ERRORS = 1.0  # that are added to its estimate
_PRIOR_DAYS = 1.0  # the variance of a mean before the first day, in that of one day


@dataclass(frozen=True)
class DailyMetric:
    """A metric of a champion, day by day.

    Attributes:
        name: of the gate that computes it.
        days: in order: those of its holdout, then those since whose labels have matured.
        holdout_days: how many of them are of the holdout.
        values: of shape (days,); NaN where it does not exist.
        weights: of shape (days,), the rows that values rest on, or their weights.
    """

    name: str
    higher_is_better: bool
    days: tuple[date, ...]
    holdout_days: int
    values: FloatValues
    weights: FloatValues

    @property
    def since(self) -> FloatValues:
        """The values of the days that are not of the holdout."""
        return self.values[self.holdout_days :]

    @property
    def reference_days(self) -> int | None:
        """How many days are the reference: the holdout, and as many more as it takes; None: there are too few."""
        counts = np.cumsum(~np.isnan(self.values))
        if not counts.size or counts[-1] < MIN_REFERENCE_DAYS:
            return None
        return max(self.holdout_days, int(np.searchsorted(counts, MIN_REFERENCE_DAYS)) + 1)

    @property
    def memory(self) -> float:
        """The correlation of neighbouring days, and its standard error; the largest one where days are too few."""
        if (size := self.reference_days) is None:
            return MAX_MEMORY
        baseline = remove_patterns(self.days, self.values[:, None], size, memory_errors=_MEMORY_ERRORS)
        return float(baseline.memory[0])

    @property
    def holdout_mean(self) -> float | None:
        """The mean over days of the holdout; None without any value."""
        present = self.values[: self.holdout_days]
        present = present[~np.isnan(present)]
        return float(present.mean()) if present.size else None


@dataclass(frozen=True)
class RunningMean:
    """The mean of the days so far, after each, and its interval; of shape (days,), infinite where it has none yet."""

    mean: FloatValues
    low: FloatValues
    high: FloatValues


def judge_performance(
    metric: DailyMetric, metrics: int, raised: Collection[date] = ()
) -> tuple[DailySeries, Judgement] | str:
    """Return what the days after the reference say of a loss, or why they say nothing yet.

    Args:
        metric: of a champion.
        metrics: how many of it are judged: each has an equal part of the budget.
        raised: days on which a loss was raised by what was known then, which stays.
    """
    if (size := metric.reference_days) is None:
        present = int((~np.isnan(metric.values)).sum())
        return f"{present} days are known to compare with, and {MIN_REFERENCE_DAYS} are needed"
    if (memory := metric.memory) > MAX_LEARNED_MEMORY and not raised:
        return (
            f"neighbouring days may be correlated by {memory:.2f}, and above {MAX_LEARNED_MEMORY} a lasting loss "
            "cannot be told from bad days that follow one another"
        )
    sign = -1.0 if metric.higher_is_better else 1.0
    values, weights = metric.values[:, None] * sign, metric.weights[:, None]
    series = DailySeries(
        days=metric.days,
        reference_days=size,
        names=(SeriesName(metric.name, "performance"),),
        weights=np.ones(1),
        values=values,
        sampling_variances=_sampling_variances(values, weights, size),
    )
    share = PERFORMANCE_BUDGET / DRIFT_BUDGET / metrics
    return series, judge_days(series, share, memory_errors=_MEMORY_ERRORS, raised=raised)


def running_mean(values: FloatValues, memory: float = 0.0, alpha: float = INTERVAL_ALPHA) -> RunningMean:
    """Return the mean of days (n,) after each, with an interval that holds for all of them together.

    If days are normal with one mean, it leaves the interval ever with a chance of `alpha` at most. Days with a memory
    weigh like (1 − φ) / (1 + φ) as many. NaN is no day.
    """
    is_known = ~np.isnan(values)
    count, filled = np.cumsum(is_known), np.where(is_known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.cumsum(filled) / count
        # Around the first one: squares of large numbers would lose digits.
        shifted = np.where(is_known, values - (values[is_known][:1].sum() if is_known.any() else 0.0), 0.0)
        squares = np.maximum(np.cumsum(shifted**2) - np.cumsum(shifted) ** 2 / count, 0)
        spread = 1 + _PRIOR_DAYS * count
        bound = (np.sqrt(spread) / alpha) ** (2 / np.maximum(count, 1))
        # The mixture's likelihood ratio reaches 1 / alpha where T² / (count - 1) is this.
        ratio = np.where(bound < spread, (bound - 1) / (1 - bound / spread), np.inf)
        width = np.sqrt(ratio * squares / count * (1 + memory) / (1 - memory))
    width = np.where((count > 1) & np.isfinite(width), width, np.inf)
    return RunningMean(mean, mean - width, mean + width)


def _sampling_variances(values: FloatValues, weights: FloatValues, reference_days: int) -> FloatValues:
    """Return what a day of few rows varies by, as if rows by chance were all that days of the reference differ by."""
    reference, usual = values[:reference_days], weights[:reference_days]
    is_known = ~np.isnan(reference)
    count = is_known.sum(axis=0)
    mean = np.where(is_known, reference, 0).sum(axis=0) / count
    variance = (np.where(is_known, reference - mean, 0) ** 2).sum(axis=0) / np.maximum(count - 1, 1)
    usual_weight = np.where(is_known, usual, 0).sum(axis=0) / count
    expected: FloatValues = variance * usual_weight / np.where(weights > 0, weights, np.inf)
    return expected


def daily_metric(
    name: str,
    higher_is_better: bool,
    holdout: Mapping[date, tuple[float, float]],
    since: Mapping[date, tuple[float, float]],
) -> DailyMetric:
    """Return a metric from the value and the weight of each day; days up to the holdout's last are not `since`."""
    last = max(holdout, default=date.min)
    days = [*sorted(holdout), *(day for day in sorted(since) if day > last)]
    pairs = np.array([holdout[day] if day in holdout else since[day] for day in days], np.float64).reshape(-1, 2)
    return DailyMetric(name, higher_is_better, tuple(days), len(holdout), pairs[:, 0], pairs[:, 1])
