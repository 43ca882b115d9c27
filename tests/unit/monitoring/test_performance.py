"""A loss of performance: found, closed when it ends, and rarely seen where there is none."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evergreen.monitoring.alarms import Alarm
from evergreen.monitoring.baseline import MAX_MEMORY, MIN_REFERENCE_DAYS
from evergreen.monitoring.performance import DailyMetric, daily_metric, judge_performance, running_mean

pytestmark = pytest.mark.unit

Array = NDArray[np.float64]
FIRST = date(2024, 1, 1)


def metric(values: Array, holdout_days: int, *, name: str = "log_loss", weights: Array | None = None) -> DailyMetric:
    days = tuple(FIRST + timedelta(number) for number in range(len(values)))
    rows = np.full(len(values), 1000.0) if weights is None else weights
    return DailyMetric(name, name == "auc", days, holdout_days, values, rows)


def draw(seed: int, days: int, memory: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    noise, values = rng.standard_normal(days), np.empty(days)
    values[0] = noise[0]
    for day in range(1, days):
        values[day] = memory * values[day - 1] + np.sqrt(1 - memory**2) * noise[day]
    return values


def alarms(judged: DailyMetric, metrics: int = 1, raised: tuple[date, ...] = ()) -> tuple[Alarm, ...]:
    result = judge_performance(judged, metrics, raised)
    assert not isinstance(result, str), result
    return result[1].alarms


@pytest.mark.parametrize("name", ["log_loss", "auc"])
def test_a_clear_loss_is_found_in_the_direction_that_is_worse(name: str) -> None:
    values = 0.5 + 0.05 * draw(1, 14 + 60)
    values[14 + 20 :] += 0.15 if name == "log_loss" else -0.15
    (alarm,) = alarms(metric(values, 14, name=name))
    assert FIRST + timedelta(34) < alarm.opened <= FIRST + timedelta(34 + 14)
    assert [changed.name.column for changed in alarm.series] == [name]
    assert alarm.series[0].effect > 0
    assert alarm.closed is None
    assert not alarms(metric(1 - values, 14, name=name)), "a gain is no loss"


def test_an_alarm_is_closed_when_the_loss_ends_and_not_before() -> None:
    values = draw(2, 14 + 150)
    values[40:80] += 3
    (alarm,) = alarms(metric(values, 14))
    assert alarm.closed
    assert FIRST + timedelta(80) < alarm.closed < FIRST + timedelta(130)
    (still_open,) = alarms(metric(values[:80], 14))
    assert (still_open.opened, still_open.closed) == (alarm.opened, None)


def test_what_is_said_of_a_day_depends_on_no_later_day() -> None:
    values = draw(3, 14 + 100)
    values[60:] += 2.5
    (found,) = alarms(metric(values, 14))
    until = (found.opened - FIRST).days + 1
    assert alarms(metric(values[:until], 14)) == (found,)
    assert not alarms(metric(values[: until - 1], 14))


def test_a_short_holdout_is_completed_by_the_first_days() -> None:
    values = draw(4, 60)
    short = metric(values, 5)
    assert short.reference_days == MIN_REFERENCE_DAYS
    judged = judge_performance(short, 1)
    assert not isinstance(judged, str)
    assert judged[1].days[0] == FIRST + timedelta(MIN_REFERENCE_DAYS)
    assert judge_performance(metric(values[:27], 5), 1) == "27 days are known to compare with, and 28 are needed"
    gaps = values.copy()
    gaps[[2, 9]] = np.nan
    assert metric(gaps, 5).reference_days == MIN_REFERENCE_DAYS + 2
    assert metric(np.full(40, np.nan), 5).reference_days is metric(np.empty(0), 0).reference_days is None


def test_an_alarm_that_was_raised_stays_when_labels_are_revised() -> None:
    values = draw(3, 28 + 300)
    values[60:] += 3
    (raised,) = alarms(metric(values, 28))
    revised = draw(3, 28 + 300)
    revised[250:] += 3
    (moved,) = alarms(metric(revised, 28))
    assert moved.opened > raised.opened
    first, second = alarms(metric(revised, 28), raised=(raised.opened,))
    assert (first.opened, first.series[0].name) == (raised.opened, raised.series[0].name)
    assert first.closed
    assert raised.opened < first.closed < FIRST + timedelta(250)
    assert second.opened > FIRST + timedelta(250), "a loss after it is another alarm"
    earlier = draw(3, 28 + 300)
    earlier[40:] += 3
    (only,) = alarms(metric(earlier, 28), raised=(raised.opened,))
    assert only.opened == raised.opened, "what was raised of a loss is not raised again for an earlier day"


def test_days_that_are_too_much_alike_raise_nothing_and_it_is_said() -> None:
    alike = np.repeat(draw(12, 40), 5) + 0.01 * draw(13, 200)
    assert "may be correlated by" in str(judge_performance(metric(alike, 100), 1))
    every_second = metric(draw(14, 60), 56)
    days = tuple(FIRST + timedelta(2 * number + number // 9) for number in range(60))
    sparse = DailyMetric("log_loss", False, days, 56, every_second.values, every_second.weights)
    assert sparse.memory < MAX_MEMORY
    days = tuple(FIRST + timedelta(number * 3 + (number % 5 == 0)) for number in range(60))
    assert DailyMetric("auc", True, days, 56, every_second.values, every_second.weights).memory == MAX_MEMORY


def test_days_without_a_value_and_constant_ones_raise_nothing() -> None:
    values = draw(5, 60)
    values[20:50] = np.nan
    assert not alarms(metric(values, 14))
    assert not alarms(metric(np.full(60, 1.0), 14, name="auc"))


def test_a_day_of_few_rows_counts_for_less() -> None:
    values, weights = draw(6, 28 + 30), np.full(58, 1000.0)
    values[28:] += 4
    weights[28:] = 10
    assert alarms(metric(values, 28))
    assert not alarms(metric(values, 28, weights=weights))


def test_several_metrics_share_the_budget() -> None:
    bad = draw(7, 28 + 60)
    bad[50:] += 3
    (alone,), (one_of_two,), (one_of_many,) = (alarms(metric(bad, 28), count) for count in (1, 2, 1000))
    assert alone.opened <= one_of_two.opened < one_of_many.opened


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.7])
def test_false_alarms_keep_the_budget(memory: float) -> None:
    years = 10
    judged = [judge_performance(metric(draw(1000 + year, 28 + 365, memory), 28), 1) for year in range(years)]
    raised = sum(len(item[1].alarms) for item in judged if not isinstance(item, str))
    # 0.1 a year are expected at most, and more than 4 have a chance of 0.004 then. The benchmark has more years.
    assert raised <= 4, raised / years


def test_memory_has_its_standard_error_and_is_the_largest_if_unknown() -> None:
    independent, alike = ([metric(draw(n, 300, phi), 300).memory for n in range(8)] for phi in (0.0, 0.5))
    assert np.mean(independent) == pytest.approx(1 / np.sqrt(300), abs=0.05)
    assert np.mean(alike) == pytest.approx(0.5 + np.sqrt(0.75 / 300), abs=0.06)
    assert metric(draw(1, 27), 5).memory == MAX_MEMORY
    later = draw(1, 100)
    later[60:] += 5
    assert metric(later, 28).memory == metric(later[:40], 28).memory, "it depends on no later day"


def test_the_interval_of_a_mean_holds_on_all_days_together() -> None:
    missed = 0
    for seed in range(300):
        running = running_mean(5 + draw(seed, 120), alpha=0.1)
        missed += bool(((running.low > 5) | (running.high < 5)).any())
    assert 0 < missed <= 45, "at most 10 %, and 15 % have a chance of 0.01"
    assert np.isinf(running.high[0])
    widths = running.high - running.low
    assert widths[-1] < widths[20] / 2 < np.inf
    assert running.mean[-1] == pytest.approx((5 + draw(299, 120)).mean())
    wider = running_mean(5 + draw(299, 120), memory=0.3, alpha=0.1)
    assert (wider.high - wider.low)[-1] == pytest.approx((running.high - running.low)[-1] * np.sqrt(1.3 / 0.7))


def test_the_interval_is_that_of_the_mixture() -> None:
    """The likelihood ratio of a mixture over effects is 1 / alpha at its ends (by integration)."""
    from scipy import integrate, stats

    values = 3 + draw(9, 12)
    running = running_mean(values, alpha=0.05)
    count, error = len(values), values.std(ddof=1)
    statistic = np.sqrt(count) * (values.mean() - running.low[-1]) / error

    def mixed(effect: float) -> Any:
        return stats.nct.pdf(statistic, count - 1, effect * np.sqrt(count)) * stats.norm.pdf(effect)

    ratio = integrate.quad(mixed, -6, 6)[0] / stats.t.pdf(statistic, count - 1)
    assert ratio == pytest.approx(1 / 0.05, rel=1e-4)


def test_days_without_values_move_no_interval() -> None:
    values = draw(10, 30)
    with_gap = np.insert(values, 10, np.nan)
    assert running_mean(with_gap).low[-1] == pytest.approx(running_mean(values).low[-1])
    assert np.isnan(running_mean(np.full(3, np.nan)).mean).all()
    assert running_mean(np.empty(0)).mean.size == 0


def test_days_of_the_holdout_are_not_counted_twice() -> None:
    holdout = {FIRST: (1.0, 10.0), FIRST + timedelta(2): (2.0, 10.0)}
    since = {FIRST + timedelta(1): (9.0, 1.0), FIRST + timedelta(2): (9.0, 1.0), FIRST + timedelta(3): (3.0, 5.0)}
    joined = daily_metric("auc", True, holdout, since)
    assert (joined.values.tolist(), joined.weights.tolist()) == ([1.0, 2.0, 3.0], [10.0, 10.0, 5.0])
    assert (joined.holdout_days, joined.holdout_mean, joined.since.tolist()) == (2, 1.5, [3.0])
    nothing = daily_metric("auc", True, {}, {})
    assert (nothing.days, nothing.holdout_mean) == ((), None)
