"""A sequential detector of changes in many series, with a bound on its false alarms that holds for any number of them.

Each day, each series is ranked among all its earlier days. As long as days are exchangeable, the rank is uniform and
independent of all earlier ranks (Vovk, Nouretdinov & Gammerman 2003; Vovk et al., "Retrain or not retrain: conformal
test martingales for change-point detection", 2021, arXiv:2102.10439). So bets on the rank are *e-values*: whatever is
staked, the expected return is 1 at most. Since earlier days include all that were seen, and no mean is estimated, an
error of the reference cannot add up day after day.

The returns e of a series make a Shiryaev–Roberts process, M ← (M + 1) e: the sum of all bets that began on any day, an
*e-detector* (Shin, Ramdas & Rinaldo 2023, arXiv:2203.03532). A mean of e-detectors, with any fixed weights and any
dependence between the series, is an e-detector, M: the expectation of M − (days) does not grow.

**Bound.** An alarm is raised when M ≥ c, and all processes begin again at 0. Then M + c (alarms) − (days) is a
supermartingale, since an alarm takes at least c from M. So in N days there are at most N / c false alarms in
expectation. This holds also where processes begin again for other reasons that do not look ahead, such as a new
champion, and where an alarm takes a part of M that is c by itself.

**Ties.** The return of tied days is the mean over their ranks: what is expected of them in random order. So each
product of returns has an expectation of 1, ties or not, and M that of the number of days. With ties this is of a fixed
number of days only, since ties tell more of a series than random ranks do; simulations count the false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evergreen.monitoring.effect_sizes import FloatValues


class Bet(NamedTuple):
    """One process: a series, the shift of its innovations that is bet on, in standard deviations, and its weight."""

    series: int
    shift: float
    weight: float


class EDetector:
    """The processes of all bets, and their weighted mean.

    Args:
        bets: with weights that add up to 1 at most.
        innovations: of shape (days, series), those of the reference: exchangeable, and NaN where there is none.
    """

    def __init__(self, bets: Sequence[Bet], innovations: FloatValues):
        self.series = np.array([bet.series for bet in bets], np.intp)
        self.shifts = np.array([bet.shift for bet in bets])
        self.weights = np.array([bet.weight for bet in bets])
        if self.weights.sum() > 1 + 1e-9:
            raise ValueError(f"the weights of bets add up to {self.weights.sum()}, and may add up to 1 at most")
        self._earlier = innovations.copy()
        self.processes = np.zeros(len(bets))

    @property
    def evidence(self) -> FloatValues:
        """The part of each series in the weighted mean M, of shape (series,): their sum."""
        evidence = np.zeros(self._earlier.shape[1])
        np.add.at(evidence, self.series, self.weights * self.processes)
        return evidence

    def add_day(self, innovations: FloatValues, is_excluded: NDArray[np.bool_]) -> None:
        """Bet on the ranks of a day's `innovations`, of shape (series,); NaN, or excluded: nothing is staked."""
        day = np.where(is_excluded, np.nan, innovations)
        returns = rank_bets(day, self._earlier, self.series, self.shifts)
        # Without a stake a process stays: one that never can tell anything would grow by 1 a day, up to an alarm.
        self.processes = np.where(np.isnan(returns), self.processes, (self.processes + 1) * returns)
        self._earlier = np.vstack([self._earlier, day])

    def restart(self, is_restarted: NDArray[np.bool_] | None = None) -> None:
        """Begin again, as after an alarm; with `is_restarted`, of shape (series,), these series only."""
        self.processes[slice(None) if is_restarted is None else is_restarted[self.series]] = 0


def rank_bets(day: FloatValues, earlier: FloatValues, series: NDArray[np.intp], shifts: FloatValues) -> FloatValues:
    """Return the e-value of each bet, of shape (bets,); NaN where there is nothing to rank.

    That is a series without a value, without an earlier one, or with equal values only.

    The bet on a shift s is the ratio of two densities at the rank u of the day, of a normal value shifted by s and of
    one that is not: exp(s Φ⁻¹(u) − s² / 2). It is divided by its mean over all n + 1 ranks, so that its expectation is
    1 exactly, whatever n. Of tied days it is the mean over their ranks.

    Args:
        day: of shape (series,).
        earlier: of shape (days, series).
        series: of each bet, (bets,).
        shifts: that are bet on, (bets,).
    """
    is_known = ~np.isnan(earlier)
    count = is_known.sum(axis=0) + 1
    with np.errstate(invalid="ignore"):
        below = (earlier < day).sum(axis=0)
        ties = (earlier == day).sum(axis=0) + 1
    returns = np.empty(len(shifts))
    for shift, size in {(shift, size) for shift, size in zip(shifts.tolist(), count[series].tolist(), strict=True)}:
        is_alike = (shifts == shift) & (count[series] == size)
        # The sums of the ratio over the lowest ranks, up to a factor.
        sums = np.append(0.0, np.cumsum(np.exp(shift * special.ndtri((np.arange(size) + 0.5) / size))))
        first, tied = below[series[is_alike]], ties[series[is_alike]]
        returns[is_alike] = (sums[first + tied] - sums[first]) / tied * size / sums[-1]
    cannot_rank = np.isnan(day) | (ties == count)
    returns[cannot_rank[series]] = np.nan
    return returns
