"""Whether the gain of a candidate suffices: at one look, or at one of several as evidence grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np

from evergreen.gates.alpha_spending import DayCorrelation, EarlierComparison, earlier_day_correlations, next_alpha
from evergreen.gates.comparisons import EstimatedGain, MetricGain
from evergreen.gates.day_correlation import weigh_correlated_days
from evergreen.gates.group_sequential import is_hopeless, look_levels, max_days
from evergreen.gates.verdict import GateResult, Look, NotComputedError
from evergreen.spec.gates import AgainstChampionGate


@dataclass(frozen=True)
class JudgedGain:
    """What a look decides, with the bounds of the gain at its level, and all looks so far.

    `alpha` is that of the whole comparison. With one look only, there are no `looks`.
    """

    outcome: Literal["passed", "failed", "inconclusive"]
    gain: MetricGain
    alpha: float
    looks: tuple[Look, ...]
    last_day: int


def judge_gain(
    gate: AgainstChampionGate,
    estimate: EstimatedGain,
    period: tuple[date, date],
    days: int,
    earlier_comparisons: Sequence[EarlierComparison],
    accumulates: bool = False,
    previous: GateResult | None = None,
) -> JudgedGain:
    """Judge the estimate of a candidate's gain on `days` days of the `period`, first ≤ day < end.

    Args:
        gate: what has to be shown.
        estimate: of all evidence so far, including that of earlier looks.
        period: the days of all evidence so far.
        days: their number: that of clusters, where days are clusters.
        earlier_comparisons: those that had ended before the first look, oldest first.
        accumulates: whether later looks may follow.
        previous: the result of the look before, if there was one.

    Raises:
        NotComputedError: no day is new since the look before, or a bound is infinite.
    """
    earlier_looks = previous.looks if previous else ()
    if earlier_looks and days <= earlier_looks[-1].days:
        raise NotComputedError(f"there are {days} days of evidence, no more than at the look before")
    alpha = previous.alpha if previous else None
    if alpha is None:
        alpha = next_alpha(1 - gate.confidence, gate.name, period, earlier_comparisons, gate.guarantee)
    correlated = _weigh_correlation(gate, estimate, earlier_comparisons)
    look_days = (*(look.days for look in earlier_looks), days)
    last_day = max_days(alpha, look_days[0]) if accumulates else days
    accumulates = accumulates and look_days[0] < last_day  # a first look that has all its days decides
    level = look_levels(alpha, look_days, last_day)[-1]
    gain = estimate.bounds(level, gate.scale.maximum, correlated)
    if not np.isfinite([gain.low, gain.high]).all():
        raise NotComputedError(f"the bounds of the gain in {gate.metric} are infinite")
    # An equal model is not better.
    passed = gain.low > 0 if gate.must_be == "better" and not gate.margin else gain.low >= gate.limit
    if not accumulates:
        return JudgedGain("passed" if passed else "failed", gain, alpha, (), last_day)
    looks = (*earlier_looks, Look(end=period[1], days=days, level=level, gain=gain.value, low=gain.low))
    if passed:
        return JudgedGain("passed", gain, alpha, looks, last_day)
    is_last = days >= last_day
    if is_last or is_hopeless(alpha, look_days, last_day, estimate.significance(gate.limit, correlated)):
        return JudgedGain("failed", gain, alpha, looks, last_day)
    return JudgedGain("inconclusive", gain, alpha, looks, last_day)


def _weigh_correlation(
    gate: AgainstChampionGate, estimate: EstimatedGain, earlier_comparisons: Sequence[EarlierComparison]
) -> float:
    measured = list(earlier_day_correlations(gate.name, earlier_comparisons))
    if estimate.day_correlation is not None:
        measured.append(DayCorrelation(gate.name, estimate.days, estimate.day_correlation))
    return weigh_correlated_days(measured)
