"""Which model is live when, by which policy: against an oracle, in any order, never with a look ahead."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.backtest import walk_forward as walk
from evergreen.backtest.statistics import backtest_metric, mean_with_bounds, run_drift_test
from evergreen.backtest.walk_forward import BacktestPoint, Deployment, MeasurementPeriod
from evergreen.gates import ThresholdGate

pytestmark = pytest.mark.unit

FIRST = date(2013, 3, 1)
AUC = ThresholdGate(metric="auc", at_least=0.6)
LOG_LOSS = ThresholdGate(metric="log_loss", at_most=0.6)


def points_on(days: list[int], holdout: int = 7) -> list[BacktestPoint]:
    dates = [FIRST + timedelta(day) for day in days]
    return [BacktestPoint(day, day - timedelta(holdout)) for day in dates]


WEEKLY = points_on([0, 7, 14, 21, 28, 35])
uneven = st.builds(
    points_on,
    st.lists(st.integers(0, 200), min_size=1, max_size=25, unique=True),
    st.integers(1, 20),
)


def lives(deployed: tuple[Deployment, ...]) -> list[tuple[int, int | None]]:
    """First and last day of each deployment, counted from the first date."""
    return [((d.point.as_of - FIRST).days, (d.end - FIRST).days if d.end else None) for d in deployed]


def test_dates_a_holdout_apart_are_measured_on_whole_holdouts() -> None:
    for period, following in zip(walk.measurement_periods(WEEKLY), WEEKLY[1:], strict=True):
        assert (period.start, period.end) == (following.holdout_start, following.as_of)
        assert period.start == period.live_as_of


def test_closer_dates_share_no_day_and_days_in_gaps_are_not_measured() -> None:
    close = walk.measurement_periods(points_on([0, 3, 6], holdout=7))
    assert [(p.end - p.start).days for p in close] == [3, 3]
    far = walk.measurement_periods(points_on([0, 30], holdout=7))
    assert far == (MeasurementPeriod(FIRST + timedelta(23), FIRST + timedelta(30), live_as_of=FIRST),)


def test_the_simple_policies() -> None:
    assert lives(walk.simulate_policy(WEEKLY, walk.deploy_every_date)) == [
        (0, 7), (7, 14), (14, 21), (21, 28), (28, 35), (35, None),
    ]  # fmt: skip
    assert lives(walk.simulate_policy(WEEKLY, walk.deploy_monthly)) == [(0, 28), (28, None)]
    assert lives(walk.simulate_policy(WEEKLY, walk.deploy_first_only)) == [(0, None)]


def test_drift_asks_about_the_live_model_and_the_period_that_just_ended() -> None:
    asked = []

    def fell(live: BacktestPoint, latest: MeasurementPeriod) -> str | None:
        asked.append(((live.as_of - FIRST).days, (latest.start - FIRST).days, (latest.end - FIRST).days))
        return "fell" if latest.end == FIRST + timedelta(21) else None

    deployed = walk.simulate_policy(WEEKLY, walk.deploy_on_drift(WEEKLY, fell))
    assert lives(deployed) == [(0, 21), (21, None)]
    assert deployed[1].reason == "fell"
    assert asked == [(0, 0, 7), (0, 7, 14), (0, 14, 21), (21, 21, 28), (21, 28, 35)]


def test_the_champion_is_the_last_that_passed_and_none_before_the_first() -> None:
    passing = {FIRST + timedelta(7), FIRST + timedelta(28)}
    against = []

    def gates(candidate: BacktestPoint, champion: BacktestPoint | None) -> str | None:
        against.append(champion and (champion.as_of - FIRST).days)
        return "passed" if candidate.as_of in passing else None

    deployed = walk.simulate_policy(WEEKLY, gates)
    assert lives(deployed) == [(7, 28), (28, None)]
    assert against == [None, None, 7, 7, 7, 28]
    first, second, *_ = walk.measurement_periods(WEEKLY)
    assert walk.find_live_point(deployed, first) is None
    assert walk.find_live_point(deployed, second) == WEEKLY[1]


def test_two_candidates_for_one_date_are_refused() -> None:
    with pytest.raises(ValueError, match="two candidates as of 2013-03-01"):
        walk.sort_points([BacktestPoint(FIRST, FIRST - timedelta(7)), BacktestPoint(FIRST, FIRST - timedelta(3))])
    with pytest.raises(ValueError, match="holds no day"):
        BacktestPoint(FIRST, FIRST)


@settings(max_examples=40)
@given(uneven, st.randoms(use_true_random=False))
def test_the_order_in_which_candidates_come_does_not_matter(points: list[BacktestPoint], random: Random) -> None:
    shuffled = random.sample(points, len(points))
    assert walk.measurement_periods(shuffled) == walk.measurement_periods(points)
    for rule in (walk.deploy_every_date, walk.deploy_monthly, walk.deploy_first_only):
        assert walk.simulate_policy(shuffled, rule) == walk.simulate_policy(points, rule)


@settings(max_examples=40)
@given(uneven, st.sets(st.integers(0, 24)))
def test_no_model_is_measured_on_a_day_before_its_own_date(points: list[BacktestPoint], chosen: set[int]) -> None:
    ordered = sorted(points)
    wanted = {point.as_of for number, point in enumerate(ordered) if number in chosen}
    deployed = walk.simulate_policy(points, lambda candidate, _: "chosen" if candidate.as_of in wanted else None)
    measured = set()
    for period in walk.measurement_periods(points):
        days = {period.start + timedelta(n) for n in range((period.end - period.start).days)}
        assert days
        assert not days & measured
        measured |= days
        # The oracle: of those deployed on or before the date, the newest.
        live = max((day for day in wanted if day <= period.live_as_of), default=None)
        found = walk.find_live_point(deployed, period)
        assert (found and found.as_of) == live
        assert live is None or min(days) >= live
        # What labels them is the holdout of the date that ends the period.
        assert min(days) >= next(p.holdout_start for p in points if p.as_of == period.end)


def test_a_look_ahead_is_an_error() -> None:
    deployed = walk.simulate_policy(WEEKLY, walk.deploy_every_date)
    with pytest.raises(AssertionError, match="may have seen"):
        walk.find_live_point(deployed, MeasurementPeriod(FIRST, FIRST + timedelta(14), live_as_of=FIRST + timedelta(7)))


def sample(signal: float, rows: int = 3000, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    label = (random.random(rows) < 0.25).astype(float)
    return label, 1 / (1 + np.exp(-(signal * label + random.normal(size=rows))))


def test_a_fall_is_significant_when_it_is_large_and_not_when_it_is_luck() -> None:
    fell = run_drift_test(AUC, sample(1.0), sample(0.3, seed=2))
    assert fell is not None
    assert fell.is_significant
    assert fell.change == pytest.approx(fell.recent_value - fell.holdout_value)
    luck = run_drift_test(AUC, sample(1.0, rows=300), sample(0.98, rows=300, seed=8))
    assert luck is not None
    assert not luck.is_significant
    risen = run_drift_test(LOG_LOSS, sample(0.3), sample(1.0, seed=2))
    assert risen is not None
    assert not risen.is_significant
    assert risen.change > 0


def test_a_stable_model_is_rarely_said_to_have_fallen() -> None:
    falls = [run_drift_test(AUC, sample(1.0, 400, seed), sample(1.0, 400, 1000 + seed)) for seed in range(40)]
    assert 0 < sum(found is not None and found.is_significant for found in falls) <= 6


def test_what_cannot_be_measured_is_none() -> None:
    label, score = sample(1.0)
    assert backtest_metric(AUC, label[:0], score[:0]) is None
    assert backtest_metric(AUC, np.ones(10), score[:10]) is None
    assert run_drift_test(AUC, (label, score), (label[:0], score[:0])) is None


def test_the_bounds_of_a_mean() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.05, 200)
    mean, low, high = mean_with_bounds(values)
    error = 1.645 * values.std() / np.sqrt(200)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == (pytest.approx(mean - error, abs=0.002), pytest.approx(mean + error, abs=0.002))
