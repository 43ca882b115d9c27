"""Whether the champion before is shown to be better: rarely by chance, however often one looks, and soon if it is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from evergreen.gates.alpha_spending import DayCorrelation
from evergreen.gates.day_correlation import weigh_correlated_days
from evergreen.gates.metrics import SumMetric, resolve_metric
from evergreen.monitoring.paired_days import DaysLook, PairedDays, judge_paired_days
from evergreen.spec.gates import SUM_METRICS, AgainstChampionGate
from evergreen.spec.prediction_type import PredictionType

pytestmark = pytest.mark.unit

FIRST_LOOK, LAST_DAY, ROWS = 7, 21, 200
START = date(2013, 3, 1)


def gate(confidence: float = 0.9, **options: Any) -> AgainstChampionGate:
    fields = {"metric": "mae", "must_be": "better", "name": "auto_rollback", **options}
    return AgainstChampionGate(confidence=confidence, **fields)


def simulate(seed: int, gain: float, memory: float = 0.0, days: int = LAST_DAY) -> PairedDays:
    """Return days with a mean gain, of which each varies by 1; a season and bad days are common to both models."""
    rng = np.random.default_rng(seed)
    noise, gains = rng.normal(size=days), np.empty(days)
    gains[0] = noise[0]
    for day in range(1, days):
        gains[day] = memory * gains[day - 1] + np.sqrt(1 - memory**2) * noise[day]
    losses, rows = 20 + 5 * rng.normal(size=days), np.full(days, float(ROWS))
    champion, previous = (np.column_stack([loss * rows, rows]) for loss in (losses, losses - gain - gains))
    return paired(champion, previous)


def paired(champion: np.ndarray, previous: np.ndarray, differing: int | None = None) -> PairedDays:
    days = tuple(START + timedelta(number) for number in range(len(champion)))
    rows = ROWS * len(days)
    return PairedDays(days, champion, previous, rows, rows if differing is None else differing)


def first_days(life: PairedDays, size: int) -> PairedDays:
    return paired(life.champion[:size], life.previous[:size])


def judge(days: PairedDays, confidence: float = 0.9, **options: Any) -> DaysLook | str:
    return judge_paired_days(gate(confidence), days, FIRST_LOOK, LAST_DAY, **options)


def decided_on(life: PairedDays) -> int | None:
    """Return the number of days after which the daily look says that the one before is better."""
    for size in range(1, len(life.days) + 1):
        look = judge(first_days(life, size))
        if isinstance(look, DaysLook) and look.is_better:
            return size
    return None


@pytest.mark.parametrize("memory", [0.0, 0.3])
def test_equal_models_are_exchanged_at_most_as_often_as_stated(memory: float) -> None:
    """150 lives of 21 days with a look at each: 15 are expected at most, and 23 have a chance of 2 % then."""
    decided = [decided_on(simulate(seed, 0.0, memory)) for seed in range(150)]
    assert 0 < sum(size is not None for size in decided) <= 22


def test_a_model_that_is_better_is_found_sooner_the_better_it_is() -> None:
    found = [[decided_on(simulate(seed, gain)) for seed in range(20)] for gain in (8.0, 2.0)]
    assert all(size is not None for sizes in found for size in sizes)
    medians = [np.median([size for size in sizes if size]) for sizes in found]
    assert medians[0] < 9
    assert medians[0] < medians[1] < 14


def test_the_look_is_the_paired_t_test_of_days_at_its_level() -> None:
    """With equal days and no memory, on the last day, the only look: all of alpha is there."""
    life, alpha = simulate(5, 0.6), 0.1
    independent = [DayCorrelation("auto_rollback", 10**6, 0.0)]
    look = judge_paired_days(gate(), life, LAST_DAY, LAST_DAY, correlations=independent)
    assert isinstance(look, DaysLook)
    gains = (life.champion[:, 0] - life.previous[:, 0]) / ROWS
    interval = stats.ttest_1samp(gains, 0.0, alternative="greater").confidence_interval(1 - alpha)
    assert weigh_correlated_days(independent) < 1e-9
    assert look.look.gain == pytest.approx(gains.mean())
    assert look.look.low == pytest.approx(interval.low)
    assert (look.look.level, look.alpha) == (pytest.approx(alpha), pytest.approx(alpha))
    assert (look.look.days, look.look.end) == (LAST_DAY, START + timedelta(LAST_DAY))


def test_early_looks_have_little_of_alpha() -> None:
    life = simulate(5, 0.6)
    levels = []
    for size in (FIRST_LOOK, 14, LAST_DAY):
        look = judge(first_days(life, size))
        assert isinstance(look, DaysLook)
        levels.append(look.look.level)
    assert levels == sorted(levels)
    assert levels[0] < 0.005
    assert levels[-1] < 0.1


def test_a_champion_that_is_better_stays() -> None:
    look = judge(simulate(1, -3.0))
    assert isinstance(look, DaysLook)
    assert look.look.gain < 0
    assert not look.is_better


def test_what_cannot_be_compared_is_named() -> None:
    life = simulate(1, 3.0)
    assert judge(first_days(life, 6)) == "6 of 7 days have matured labels"
    same = judge(paired(life.champion, life.champion, differing=0))
    assert isinstance(same, DaysLook)
    assert (same.look.gain, same.is_better) == (0.0, False)
    few = judge(paired(life.champion, life.previous, differing=29))
    assert "differ in 29 of" in str(few)
    assert judge_paired_days(gate(min_rows=5000), life, 7, 21) == "4,200 of 5,000 rows have matured labels"
    unequal = np.ones(LAST_DAY)
    unequal[0] = 1e4
    weighed = judge(paired(life.champion * unequal[:, None], life.previous * unequal[:, None]))
    assert "too few to know the error" in str(weighed)
    assert "raise holdout" not in str(weighed)
    constant = judge(paired(life.champion, life.champion - [ROWS, 0]))
    assert "its error is not known" in str(constant)


def weekly_look(unit: timedelta) -> date:
    look = judge(first_days(simulate(1, 3.0), FIRST_LOOK), unit=unit)
    assert isinstance(look, DaysLook)
    return look.look.end


def test_the_last_day_of_a_weekly_model_is_a_week() -> None:
    assert weekly_look(timedelta(weeks=1)) - weekly_look(timedelta(days=1)) == timedelta(6)


def multiclass() -> PredictionType:
    return PredictionType(kind="multiclass", classes=("a", "b", "c"))


OF_KINDS: Mapping[str, tuple[dict[str, Any], PredictionType | None]] = {
    "binary": ({"metric": "log_loss"}, PredictionType(kind="binary")),
    "undeclared": ({"metric": "brier"}, None),
    "regression": ({"metric": "rmse"}, PredictionType(kind="regression")),
    "multiclass": ({"metric": "log_loss"}, multiclass()),
    "macro f1": ({"metric": "macro_f1"}, multiclass()),
    "quantile": ({"metric": "quantile_loss"}, PredictionType(kind="quantile", quantiles=(0.1, 0.5, 0.9))),
}


@pytest.mark.parametrize("kind", OF_KINDS)
def test_every_kind_is_compared_by_the_sums_of_its_metric(kind: str) -> None:
    """The one before predicts with less noise; its gain is that of the metric on all rows."""
    options, prediction = OF_KINDS[kind]
    metric = resolve_metric(gate(**options), prediction)
    assert isinstance(metric, SumMetric)
    rng, sums, rows = np.random.default_rng(2), dict[float, list[list[float]]](), dict[float, list[Any]]()
    for _ in range(LAST_DAY):
        label = rng.integers(0, 3 if prediction == multiclass() else 2, ROWS).astype(float)
        outputs = len(prediction.outputs) if prediction else 0
        for noise in (0.8, 0.2):
            score = np.clip(label * 0.8 + 0.1 + noise * rng.normal(size=ROWS), 0.01, 0.99)
            if outputs == 3 and prediction == multiclass():
                logits = np.eye(3)[label.astype(int)] + 2 * noise * rng.normal(size=(ROWS, 3))
                score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            elif outputs:
                score = score[:, None] + np.array([-0.1, 0.0, 0.1])
            sums.setdefault(noise, []).append([float(part.sum()) for part in metric.terms(label, score)])
            rows.setdefault(noise, []).append((label, score))
    look = judge_paired_days(
        gate(**options), paired(np.array(sums[0.8]), np.array(sums[0.2])), FIRST_LOOK, LAST_DAY, prediction
    )
    assert isinstance(look, DaysLook)
    assert look.is_better
    if kind == "binary":
        losses = [
            metrics.log_loss(*(np.concatenate(part) for part in zip(*rows[noise], strict=True))) for noise in (0.8, 0.2)
        ]
        assert look.look.gain == pytest.approx(losses[0] - losses[1])


def test_metrics_that_add_up_are_those_that_are_sums() -> None:
    from evergreen.gates.metrics import METRICS

    compared = {name for name in SUM_METRICS if isinstance(METRICS[name], SumMetric)}
    assert compared == set(SUM_METRICS)
