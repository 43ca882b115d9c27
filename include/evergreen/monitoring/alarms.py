"""Alarms: which changes of a model's data somebody has to hear of. Pure, and causal.

Two rules share a budget of one false alarm per model and year, in expectation, however many columns there are:

- a **drift**, by the e-detector over all series: a change that persists, of the size of what days differ by;
- a **break** on a single day: an effect that is major by itself, and so far out of what days of the reference differ by
  that a year of days of all series has it with a chance of `BREAK_BUDGET` at most, if the tails of what days differ by
  are no heavier than those of the Laplace distribution, P(|X| > k sd) = exp(−√2 k); and `_BEYOND_LARGEST` times as far
  as any earlier day, for tails that are.

A series in alarm is not watched until it has returned, so that one change is one alarm. It has returned, after 14 days
at the earliest, when its days are more likely by far without a change than with one of half the alarm's deviation, in
either direction: by Page's cumulative sum (1954) of log-likelihood ratios, which a change that goes on brings to its
limit once in thirty years at most, in the mean (Lorden 1971).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evergreen.monitoring.baseline import MIN_REFERENCE_DAYS, Baseline, remove_patterns
from evergreen.monitoring.e_detector import Bet, EDetector
from evergreen.monitoring.effect_sizes import FloatValues
from evergreen.monitoring.series import BREAKS_DOWNWARDS, MAJOR_EFFECTS, ONE_SIDED, DailySeries, SeriesName

DRIFT_BUDGET = 0.5
BREAK_BUDGET = 0.1
"""Expected false alarms of a year, of each rule, at most. What they leave of one is for what the reference does not
show exactly: weekdays, memory, and how much days differ (`benchmarks/monitoring.py` measures it)."""

_SHIFT = 1.0  # that is bet on, in standard deviations of innovations
_BEYOND_LARGEST = 3.0
_RECENT_DAYS = 14  # whose mean is what is said of a drift
_MIN_OPEN_DAYS = 14
_RETURN_SHIFTS = (0.75, 1.5)  # between which half of the alarm's deviation is taken
_FALSE_RETURN_YEARS = 30.0
_FINITE = 1e6  # standard deviations that sums are computed with, in place of infinite ones
_NAMED_SHARE = 0.1  # of the strongest evidence of a drift: series with less are not named


@dataclass(frozen=True)
class ChangedSeries:
    """A series in an alarm.

    Attributes:
        deviation: of the last days (of a break, the first day) from what the reference lets expect, in standard
            deviations between days; infinite if the reference has none.
        effect: the same in the unit of the measure: of ranks, √PSI without that of chance, shares, or the logarithm
            of spread or rows.
    """

    name: SeriesName
    deviation: float
    effect: float


@dataclass(frozen=True)
class Alarm:
    """A change of some series. `closed` is the day on which all had returned; None: it goes on."""

    kind: Literal["break", "drift"]
    opened: date
    series: tuple[ChangedSeries, ...]
    closed: date | None = None


@dataclass(frozen=True)
class Judgement:
    """What is known of the days after the reference.

    Attributes:
        days: those that were judged.
        deviations: of shape (days, series), in standard deviations between days.
        evidence: of shape (days,), the e-detector's value, after each day and before it began again; without series
            in alarm, and without those that have had no value for some time.
        threshold: of the evidence.
    """

    alarms: tuple[Alarm, ...]
    days: tuple[date, ...]
    deviations: FloatValues
    evidence: FloatValues
    threshold: float


def days_a_year(days: Sequence[date]) -> float:
    """Return how many such days a year has: 365.25, or a seventh of it where they are weeks."""
    steps = [(later - day).days for day, later in pairwise(days)]
    return 365.25 / min(steps, default=1)


def judge_days(
    series: DailySeries,
    budget_share: float = 1.0,
    *,
    memory_errors: float = 0.0,
    raised: Collection[date] = (),
) -> Judgement:
    """Return the alarms of all days after the reference, oldest first.

    Args:
        series: at least one.
        budget_share: of the model's false alarms, where its series are judged in several groups.
        memory_errors: how many of its standard errors are added to the estimate of the memory.
        raised: days on which a drift was raised by what was known then. It stays, and up to the last one no other is.

    Raises:
        ValueError: the reference has less than `MIN_REFERENCE_DAYS` days.
    """
    if series.reference_days < MIN_REFERENCE_DAYS:
        raise ValueError(
            f"the reference has {series.reference_days} days, and {MIN_REFERENCE_DAYS} are needed to know how much "
            "days differ"
        )
    first = series.reference_days
    baseline = remove_patterns(series.days, series.values, first, series.sampling_variances, memory_errors)
    watch = _Watch(series, baseline, budget_share, raised)
    for number in range(first, len(series.days)):
        watch.add_day(number)
    return Judgement(
        tuple(watch.alarms), series.days[first:], baseline.deviations[first:], np.array(watch.evidence), watch.threshold
    )


class _Watch:
    """The alarms so far, and what the next day is judged by."""

    def __init__(self, series: DailySeries, baseline: Baseline, budget_share: float, raised: Collection[date]):
        first, size, yearly = series.reference_days, len(series.names), days_a_year(series.days)
        self.alarms, self.evidence = list[Alarm](), list[float]()
        self.threshold = yearly / budget_share / DRIFT_BUDGET
        self._series, self._baseline = series, baseline
        self._raised, self._first_new = raised, max(raised, default=date.min)
        self._is_one_sided = np.array([name.measure in ONE_SIDED for name in series.names], bool)
        self._breaks_downwards = np.array([name.measure in BREAKS_DOWNWARDS for name in series.names], bool)
        self._columns = np.unique([name.column for name in series.names], return_inverse=True)[1]
        self._major = np.array([MAJOR_EFFECTS[name.measure] for name in series.names])
        self._limit = np.log(max(size, 1) * yearly / budget_share / BREAK_BUDGET) / np.sqrt(2)
        self._largest = _sizes(baseline.deviations[:first]).max(axis=0)
        self._detector = EDetector(_bets(series), baseline.innovations[:first])
        self._open = _OpenSeries(self._is_one_sided, baseline.memory, np.log(_FALSE_RETURN_YEARS * yearly))

    def add_day(self, number: int) -> None:
        day, residuals, deviations = (
            self._series.days[number],
            self._baseline.residuals[number],
            self._baseline.deviations[number],
        )
        recent = slice(max(number + 1 - _RECENT_DAYS, self._series.reference_days), number + 1)
        recent_deviations, recent_effects = _means(self._baseline.deviations[recent], self._baseline.residuals[recent])
        self._open.add_day(deviations, recent_deviations)
        self._close(day)
        breaks = self._find_breaks(residuals, deviations)
        if breaks.any():
            self._raise("break", day, breaks, deviations, residuals)
        usual = np.where(self._open.is_open, 0.0, _sizes(deviations))
        self._largest = np.maximum(self._largest, usual)
        self._detector.add_day(self._baseline.innovations[number], self._open.is_open)
        # Series in alarm have none. What has had no value cannot be named: its evidence waits for one.
        evidence = np.where(np.isnan(recent_effects), 0.0, self._detector.evidence)
        self.evidence.append(float(evidence.sum()))
        if day in self._raised or (self.evidence[-1] >= self.threshold and day > self._first_new):
            drifted = evidence >= _NAMED_SHARE * evidence.max()
            self._raise("drift", day, drifted, recent_deviations, recent_effects)
            self._detector.restart()

    def _find_breaks(self, residuals: FloatValues, deviations: FloatValues) -> NDArray[np.bool_]:
        sizes = np.where(self._is_one_sided, residuals, np.abs(residuals))
        ratios = np.where(self._is_one_sided, deviations, np.abs(deviations))
        limits = np.maximum(self._limit, _BEYOND_LARGEST * self._largest)
        with np.errstate(invalid="ignore"):
            is_far = (ratios >= limits) & ~self._open.is_open
            is_major = (sizes >= self._major) & ~(self._breaks_downwards & (residuals > 0))
        # What is as far in the same column is the same change, whatever its effect.
        is_same = np.isin(self._columns, self._columns[is_far & is_major])
        return is_far & is_same

    def _raise(
        self,
        kind: Literal["break", "drift"],
        day: date,
        is_changed: NDArray[np.bool_],
        deviations: FloatValues,
        effects: FloatValues,
    ) -> None:
        changed = [
            ChangedSeries(self._series.names[n], float(deviations[n]), float(effects[n]))
            for n in np.flatnonzero(is_changed)
        ]
        self.alarms.append(Alarm(kind, day, tuple(changed)))
        self._open.add_series(is_changed, deviations)
        self._detector.restart(is_changed)

    def _close(self, day: date) -> None:
        open_names = {self._series.names[n] for n in np.flatnonzero(self._open.is_open)}
        for number, alarm in enumerate(self.alarms):
            if alarm.closed is None and not any(changed.name in open_names for changed in alarm.series):
                self.alarms[number] = replace(alarm, closed=day)


class _OpenSeries:
    """The series in alarm, until each has returned.

    Args:
        is_one_sided: of shape (series,): whether less than expected is no change.
        memory: of shape (series,), the coefficient of the day before.
        limit: of a sum of log-likelihood ratios, from which on a series has returned.
    """

    def __init__(self, is_one_sided: NDArray[np.bool_], memory: FloatValues, limit: float):
        self.is_open = np.zeros(len(memory), bool)
        self._is_one_sided, self._limit = is_one_sided, limit
        # The mean of n days that follow one another varies as that of n (1 − φ) / (1 + φ) days that do not.
        self._day_weights = (1 - memory) / (1 + memory)
        self._days = np.zeros(len(memory), np.intp)  # since the alarm, without its own
        self._sizes = np.zeros(len(memory))
        self._ratios = np.zeros((2, len(memory)))  # against a change upwards and downwards

    def add_series(self, is_added: NDArray[np.bool_], deviations: FloatValues) -> None:
        """Open an alarm about series with these `deviations`, of shape (series,)."""
        self.is_open |= is_added
        self._days[is_added], self._ratios[:, is_added] = 0, 0
        self._sizes[is_added] = np.abs(deviations)[is_added]

    def add_day(self, deviations: FloatValues, recent: FloatValues) -> None:
        """Close what has returned by a day's `deviations`; `recent` are the means of the last ones, both (series,)."""
        self._days += 1
        # The days before the alarm have hidden the size of a drift.
        self._sizes = np.fmax(self._sizes, np.where(self._is_one_sided, recent, np.abs(recent)))
        shifts = np.clip(self._sizes / 2, *_RETURN_SHIFTS)
        finite = np.clip(deviations, -_FINITE, _FINITE)
        ratios = self._day_weights * shifts * (shifts / 2 - np.stack([finite, -finite]))
        self._ratios = np.where(np.isnan(ratios), self._ratios, np.clip(self._ratios + ratios, 0, 2 * self._limit))
        # Days of a change upwards are no evidence against one downwards, which may follow.
        is_near = self._is_one_sided | (np.abs(recent) < _RETURN_SHIFTS[0])
        upwards, downwards = self._ratios >= self._limit
        self.is_open &= ~((self._days >= _MIN_OPEN_DAYS) & is_near & upwards & (downwards | self._is_one_sided))


def _sizes(deviations: FloatValues) -> FloatValues:
    """Return absolute deviations; 0 where none is known, and where a constant reference leaves it without a size."""
    sizes: FloatValues = np.abs(np.nan_to_num(deviations, posinf=0, neginf=0))
    return sizes


def _means(deviations: FloatValues, effects: FloatValues) -> tuple[FloatValues, FloatValues]:
    """Return the means of days, of shape (series,), without those without a value; NaN if all are."""
    is_known = ~np.isnan(effects)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_deviations, mean_effects = (
            np.where(is_known, values, 0).sum(axis=0) / is_known.sum(axis=0) for values in (deviations, effects)
        )
    # Infinite ones of both signs have no mean.
    is_undefined = np.isnan(mean_deviations) & ~np.isnan(mean_effects)
    return np.where(is_undefined, np.copysign(np.inf, mean_effects), mean_deviations), mean_effects


def _bets(series: DailySeries) -> list[Bet]:
    bets = []
    for number, (name, weight) in enumerate(zip(series.names, series.weights, strict=True)):
        if name.measure in ONE_SIDED:
            bets.append(Bet(number, _SHIFT, float(weight)))
        else:
            bets += [Bet(number, shift, float(weight) / 2) for shift in (_SHIFT, -_SHIFT)]
    return bets
