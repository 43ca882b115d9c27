"""Evidence that grows: a comparison that is looked at again whenever more days have their labels.

To look every week, and to promote as soon as one look suffices, are many tests. So the alpha of a comparison is divided
among its looks by a spending function (Lan and DeMets 1983, Biometrika 70:659-663): after a share t of the days
that a comparison may take, `spent_alpha` has been spent. Looks may come at any time, also unplanned, as long as the
gain that was seen does not choose the time.

- The spending function is of the shape of O'Brien and Fleming: early looks rest on few days, and receive little.
- Each look is a test of all days so far, at a level of its own. Levels follow from the joint distribution of the looks,
  by numerical integration (Armitage, McPherson and Rowe 1969, Journal of the Royal Statistical Society A 132:235-244);
  z and t are exchanged by their tail probabilities (Jennison and Turnbull 2000, "Group Sequential Methods with
  Applications to Clinical Trials", section 11.5).
- A comparison that has become hopeless may end early. That can only make errors rarer: levels are those of a
  comparison that goes on to the end (non-binding futility).

Levels depend on alpha and on the days of the looks so far, and on nothing else: the same looks give the same levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf, log, pi, sqrt
from sys import float_info

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from evergreen.gates.day_correlation import Numbers
from evergreen.gates.metrics import FloatArray

# A comparison ends after so many days; after more of them if its alpha is small, and each look tells less.
MAX_DAYS = 28
MAX_DAYS_OF_SMALL_ALPHA = 49
SMALL_ALPHA = 1e-4

# Hopeless: with a smaller chance of a promotion at the last look.
_HOPE = 0.05

_LOWEST_Z = -8.0  # the chance of less is 6e-16
_GRID_STEP = 0.05  # in standard deviations of a look, or a fifth of the one between two looks
_MAX_Z = 38.0  # the chance of more is the smallest number


def max_days(alpha: float, first_days: int) -> int:
    """Return the days after which a comparison at `alpha` ends, if its first look is on `first_days`."""
    return max(MAX_DAYS if alpha >= SMALL_ALPHA else MAX_DAYS_OF_SMALL_ALPHA, first_days)


def spent_alpha(alpha: float, share: float) -> float:
    """Return what a comparison has spent of `alpha` after a share of its days, 2 - 2Φ(z/√share): all of it at 1."""
    if share >= 1:
        return alpha
    return 2 * float(special.ndtr(float(special.ndtri(alpha / 2)) / sqrt(share)))


@lru_cache(maxsize=4096)
def look_levels(alpha: float, look_days: tuple[int, ...], last_day: int) -> tuple[float, ...]:
    """Return the one-sided significance level of each look, (looks,), in order.

    `look_days` are the days of evidence at each look, increasing; `last_day` is that of the last possible one. Looks
    are taken as sums of independent days. If neighbouring days are alike, looks are too, and errors are rarer.
    """
    if len(look_days) == 1 and look_days[0] >= last_day:
        return (alpha,)
    levels: list[float] = []
    spent, time_before = 0.0, 0.0
    scores, density = np.zeros(1), np.ones(1)  # of the sum of gains at the look before, where it did not suffice
    for number, days in enumerate(look_days):
        time = min(days / last_day, 1.0)
        total = spent_alpha(alpha, time)
        target, spent, step = max(total - spent, 0.0), total, sqrt(time - time_before)
        root = sqrt(time)
        z = _crossing_z(target, scores, density, root, step)
        # Never 0: a level is a chance, and the smallest number changes no sum.
        levels.append(max(float(special.ndtr(-z)), float_info.min))
        if number + 1 < len(look_days):
            gap = sqrt(max(min(look_days[number + 1] / last_day, 1.0) - time, 1e-9) / time)
            grid, weight = _simpson_grid(_LOWEST_Z, min(z, _MAX_Z), min(_GRID_STEP, gap / 5))
            grid = grid * root
            kernel = np.exp(-(((grid[:, None] - scores) / step) ** 2) / 2) / (step * sqrt(2 * pi))
            scores, density, time_before = grid, weight * root * (kernel @ density), time
    return tuple(levels)


def _crossing_z(target: float, scores: FloatArray, density: FloatArray, root: float, step: float) -> float:
    """Return the z that a look exceeds for the first time with the chance `target`."""
    if target <= 0:
        return inf

    def excess(z: float) -> float:
        chance = float(density @ special.ndtr((scores - z * root) / step))
        return log(max(chance, 1e-323)) - log(target)

    if excess(_MAX_Z) >= 0:
        return inf
    return float(optimize.brentq(excess, _LOWEST_Z, _MAX_Z, xtol=1e-11))


def _simpson_grid(low: float, high: float, step: float) -> tuple[FloatArray, FloatArray]:
    intervals = 2 * int(np.ceil((high - low) / step / 2))
    weight = np.full(intervals + 1, 2.0)
    weight[1::2], weight[0], weight[-1] = 4.0, 1.0, 1.0
    return np.linspace(low, high, intervals + 1), weight * (high - low) / intervals / 3


def chance_to_suffice(alpha: float, look_days: Sequence[int], last_day: int, significance: Numbers) -> FloatArray:
    """Return the predicted chance that the look on `last_day` suffices.

    `significance` is the one-sided p-value of the last of the looks so far. The true gain is as uncertain as the days
    so far leave it (Spiegelhalter, Freedman and Blackburn 1986, Controlled Clinical Trials 7:8-17): the last z is
    normal with mean z/√t and variance (1 - t)/t, where t is the share of days so far.
    """
    time = look_days[-1] / last_day
    level = look_levels(alpha, (*look_days, last_day), last_day)[-1]
    z, last_z = (-special.ndtri(np.clip(chance, 1e-300, 1 - 1e-16)) for chance in (significance, level))
    return np.asarray(special.ndtr((z / sqrt(time) - last_z) / sqrt((1 - time) / time)))


def is_hopeless(alpha: float, look_days: Sequence[int], last_day: int, significance: Numbers) -> NDArray[np.bool_]:
    """Whether a comparison should end, of whose looks none sufficed and the last is before `last_day`."""
    return chance_to_suffice(alpha, look_days, last_day, significance) < _HOPE
