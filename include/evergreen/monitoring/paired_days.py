"""Whether the champion before does better than the champion, day by day since the promotion. Pure.

It is the comparison of the gates, with the roles exchanged: the one before is the candidate. A day is a cluster, and
the error of the gain is by leaving out one day at a time (`evergreen.gates.comparisons`). A test of all days so far on
each new day is many tests, so the chance of an error is divided among them (`evergreen.gates.group_sequential`: Lan and
DeMets 1983, Biometrika 70:659-663), up to the last day that the comparison may take. Neighbouring days are alike as
`evergreen.gates.day_correlation` weighs it.

The last look alone decides: what an earlier one saw, and later days have not confirmed, is not acted on any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from evergreen.gates.alpha_spending import DayCorrelation
from evergreen.gates.clusters import HOLDOUT_ADVICE, RowClusters
from evergreen.gates.comparisons import (
    NO_DIFFERENCE,
    EstimatedGain,
    check_differing_rows,
    check_gain_exists,
    estimate_jackknife_gain,
    sums_way,
)
from evergreen.gates.day_correlation import weigh_correlated_days
from evergreen.gates.group_sequential import look_levels
from evergreen.gates.metrics import FloatArray, SumMetric, resolve_metric
from evergreen.gates.verdict import Look, NotComputedError
from evergreen.spec.gates import DAY_CLUSTER, AgainstChampionGate
from evergreen.spec.prediction_type import PredictionType


@dataclass(frozen=True)
class PairedDays:
    """How two champions did on the same rows of each day.

    Attributes:
        days: in order; of a weekly model, the first days of weeks.
        champion: of shape (days, sums), the sums of the metric; the last one is the rows, or their weights.
        previous: the same of the one before.
        rows: that both were measured on.
        differing: of these, rows that the two predict differently.
    """

    days: tuple[date, ...]
    champion: FloatArray
    previous: FloatArray
    rows: int
    differing: int


@dataclass(frozen=True)
class DaysLook:
    """What a look at all days so far decides: whether the one before is shown to be better.

    Attributes:
        look: its gain, with the lower bound at the level of this look.
        alpha: of all looks together.
    """

    look: Look
    alpha: float
    is_better: bool


def judge_paired_days(
    gate: AgainstChampionGate,
    paired: PairedDays,
    first_look: int,
    last_day: int,
    prediction: PredictionType | None = None,
    correlations: Sequence[DayCorrelation] = (),
    unit: timedelta = timedelta(days=1),
) -> DaysLook | str:
    """Return what a look at these days decides, or why there is none.

    Args:
        gate: with the metric and the confidence.
        paired: at most `last_day` of them.
        first_look: the number of days of the first look; there is one at each day from then on.
        last_day: the number of days of the last look.
        prediction: what the models predict.
        correlations: of neighbouring days, as earlier comparisons have measured them.
        unit: how long a day is: a week, of a weekly model.
    """
    days = len(paired.days)
    if days < first_look:
        return f"{days} of {first_look} days have matured labels"
    if paired.rows < gate.min_rows:
        return f"{paired.rows:,} of {gate.min_rows:,} rows have matured labels"
    try:
        estimate = _estimate(gate, paired, prediction)
        level = look_levels(1 - gate.confidence, tuple(range(first_look, days + 1)), last_day)[-1]
        measured = list(correlations)
        if estimate.day_correlation is not None:
            measured.append(DayCorrelation(gate.name, estimate.days, estimate.day_correlation))
        gain = estimate.bounds(level, gate.scale.maximum, weigh_correlated_days(measured))
        if not np.isfinite(gain.low):
            return f"{days} days do not bound the gain at the level of this look yet"
    except NotComputedError as error:
        return str(error).removesuffix(HOLDOUT_ADVICE[0])
    look = Look(end=paired.days[-1] + unit, days=days, level=level, gain=gain.value, low=gain.low)
    return DaysLook(look, 1 - gate.confidence, is_better=gain.low > 0)


def _estimate(gate: AgainstChampionGate, paired: PairedDays, prediction: PredictionType | None) -> EstimatedGain:
    """Return the gain of the one before over the champion.

    Raises:
        NotComputedError: its error cannot be estimated.
    """
    check_differing_rows(gate, paired.differing, paired.rows, "the champion and the one before")
    if not paired.differing:
        return NO_DIFFERENCE
    metric = resolve_metric(gate, prediction)
    assert isinstance(metric, SumMetric), "the spec accepts no other"
    previous, champion = ([*np.moveaxis(sums, 1, 0)] for sums in (paired.previous, paired.champion))
    values = [float(metric.from_sums(*(np.array([part.sum()]) for part in sums))[0]) for sums in (previous, champion)]
    gain = (1 if gate.scale.higher_is_better else -1) * (values[0] - values[1])
    check_gain_exists(gate, gain, paired.rows)
    clusters = RowClusters((DAY_CLUSTER,), (np.arange(len(paired.days)),))
    variance = clusters.variance(lambda _: sums_way(gate, metric, previous, champion, gain))
    return estimate_jackknife_gain(gain, variance, clusters)
