"""What remains of a daily series without its week, its year and its memory, so that days can be compared.

Days are clusters: all rows of a day share its weather and its errors, so a day is one observation, however many rows
it has. How much days differ is taken from the reference, day by day, and not from the number of rows.

1. The means of weekdays, and with a year of reference one wave a year, are estimated on the reference, by least
   squares, and subtracted.
2. What is left follows the day before: a first-order autoregression, whose coefficient is that of the reference,
   without the bias of small samples. Its *innovations* have no memory: they are exchangeable while nothing changes.

A day of few rows deviates by chance. What its rows let expect beyond those of a day of the reference adds to the
variance between days, and the day counts for less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evergreen.monitoring.effect_sizes import FloatValues

MIN_REFERENCE_DAYS = 28
"""Four of each weekday: with fewer, nobody knows how much days differ."""

_ROUNDING = 1e-9  # of the size of a series: residuals below it are none
_YEAR_DAYS = 365.25
MAX_MEMORY = 0.9
_WEEK = 7


@dataclass(frozen=True)
class Baseline:
    """What remains of `n` series on all days.

    Attributes:
        residuals: of shape (days, n), in units of the series; NaN where a series has no value.
        deviations: the same, in standard deviations between days, as the day's rows let expect them; infinite where
            the reference has none.
        innovations: of days as if all had the rows of the reference's, without what the day before explains.
        scales: of shape (n,), the standard deviation of the residuals of the reference: that *between days*.
        memory: of shape (n,), the coefficient of the day before.
    """

    residuals: FloatValues
    deviations: FloatValues
    innovations: FloatValues
    scales: FloatValues
    memory: FloatValues


def remove_patterns(
    days: Sequence[date],
    values: FloatValues,
    reference_days: int,
    sampling_variances: FloatValues | None = None,
    memory_errors: float = 0.0,
) -> Baseline:
    """Return what remains of series without the patterns that their first `reference_days` days have.

    Args:
        days: in order, not necessarily without gaps. If they are a week apart, they have no weekdays.
        values: of shape (days, n); NaN where there is none.
        reference_days: at least `MIN_REFERENCE_DAYS`.
        sampling_variances: of the values, of the same shape, by the number of rows of a day; None: all alike.
        memory_errors: how many of its standard errors are added to the estimate of the memory.
    """
    design = _design(days, reference_days)
    residuals, scales, memory = np.full_like(values, np.nan), np.zeros(values.shape[1]), np.zeros(values.shape[1])
    step = min(((later - day).days for day, later in pairwise(days)), default=1)
    follows = np.array([False, *((later - day).days == step for day, later in pairwise(days))])
    sizes = np.abs(np.nan_to_num(values[:reference_days])).max(axis=0)
    # Most series have a value on each day of the reference: these are solved at once.
    is_known = ~np.isnan(values[:reference_days])
    for pattern in np.unique(is_known, axis=1).T:
        columns = np.flatnonzero((is_known == pattern[:, None]).all(axis=0))
        rows = np.flatnonzero(pattern)
        if len(rows) < MIN_REFERENCE_DAYS:
            continue
        fitted = design[rows]
        solution, _, rank, _ = np.linalg.lstsq(fitted, values[np.ix_(rows, columns)], rcond=None)
        residuals[:, columns] = values[:, columns] - design @ solution
        # A day of the reference is compared with an estimate that it is part of, a later one is not: without the
        # factor, all later ones would be farther from their weekday than those of the reference are.
        leverage = np.einsum("ij,jk,ik->i", fitted, np.linalg.pinv(fitted.T @ fitted), fitted)
        residuals[np.ix_(rows, columns)] /= np.maximum(1 - leverage, 1 / len(rows))[:, None]
        # Rounding has a rank as well: that of a constant would be the same day after day.
        residuals[:, columns] = np.where(
            np.abs(residuals[:, columns]) <= _ROUNDING * sizes[columns], 0.0, residuals[:, columns]
        )
        reference = residuals[:reference_days, columns]
        degrees = max(len(rows) - rank, 1)
        scales[columns] = np.sqrt(((reference[rows] * (1 - leverage)[:, None]) ** 2).sum(axis=0) / degrees)
        memory[columns] = _estimate_memory(reference, follows[:reference_days], memory_errors)
    expected = np.sqrt(scales**2 + _excess_variances(values, reference_days, sampling_variances))
    with np.errstate(divide="ignore", invalid="ignore"):
        deviations = np.where(residuals == 0, 0.0, residuals / expected)
        # Most days of a series of shares may be one value, such as none: these stay what they are.
        medians = np.nanmedian(np.where(scales > 0, residuals[:reference_days], 0.0), axis=0)
        alike = np.where(scales > 0, medians + (residuals - medians) * (scales / expected), residuals)
    return Baseline(residuals, deviations, _innovations(alike, follows, memory), scales, memory)


def _excess_variances(values: FloatValues, reference_days: int, sampling_variances: FloatValues | None) -> FloatValues:
    """Return by how much the sampling variances exceed their mean over the reference, which is in the scales."""
    if sampling_variances is None:
        return np.zeros_like(values)
    is_known = ~np.isnan(values[:reference_days])
    total = np.where(is_known, sampling_variances[:reference_days], 0).sum(axis=0)
    excess: FloatValues = np.maximum(np.nan_to_num(sampling_variances) - total / np.maximum(is_known.sum(axis=0), 1), 0)
    return excess


def _design(days: Sequence[date], reference_days: int) -> FloatValues:
    """Return the matrix (days, terms) of the patterns that the reference is long enough to show."""
    columns = [np.ones(len(days))]
    weekdays = np.array([day.weekday() for day in days])
    counts = np.bincount(weekdays[:reference_days], minlength=_WEEK)
    if (counts >= 3).all():
        columns = [(weekdays == weekday).astype(np.float64) for weekday in range(_WEEK)]
    elapsed = np.array([(day - days[0]).days for day in days], np.float64)
    if elapsed[reference_days - 1] >= _YEAR_DAYS - 1:
        angle = 2 * np.pi * elapsed / _YEAR_DAYS
        columns += [np.sin(angle), np.cos(angle)]
    return np.stack(columns, axis=1)


def _estimate_memory(residuals: FloatValues, follows: NDArray[np.bool_], errors: float) -> FloatValues:
    """Return the coefficient of the day before, of each series, and so many standard errors more; at least 0.

    The bias of the estimate from n pairs is −(1 + 3φ) / n (Kendall 1954, Marriott & Pope 1954), its variance
    (1 − φ²) / n (Bartlett 1946). Of few pairs nothing is known: it is 0, or the largest one with errors.
    """
    pairs = np.flatnonzero(follows)
    if len(pairs) < MIN_REFERENCE_DAYS // 2:
        return np.full(residuals.shape[1], MAX_MEMORY if errors else 0.0)
    previous, current = residuals[pairs - 1], residuals[pairs]
    is_pair = ~np.isnan(previous) & ~np.isnan(current)
    count = np.maximum(is_pair.sum(axis=0), 4)
    products = np.where(is_pair, previous * current, 0).sum(axis=0)
    squares = np.where(is_pair, previous**2, 0).sum(axis=0)
    estimate = products / np.where(squares > 0, squares, 1)
    memory = np.clip((count * estimate + 1) / (count - 3), 0, MAX_MEMORY)
    return np.minimum(memory + errors * np.sqrt((1 - memory**2) / count), MAX_MEMORY)


def _innovations(residuals: FloatValues, follows: NDArray[np.bool_], memory: FloatValues) -> FloatValues:
    previous = np.vstack([np.full((1, residuals.shape[1]), np.nan), residuals[:-1]])
    previous[~follows] = np.nan
    # Where the day before is not known, the residual itself has as much variance as an innovation, once scaled.
    alone = residuals * np.sqrt(1 - memory**2)
    innovations: FloatValues = np.where(np.isnan(previous), alone, residuals - memory * previous)
    return innovations
