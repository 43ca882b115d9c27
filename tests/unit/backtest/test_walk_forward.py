"""Policies deploy what an oracle says, in any order of candidates, and never look ahead."""

from __future__ import annotations

import sys
from random import Random
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.backtest import walk_forward as walk
from evergreen.backtest.statistics import ScoredSample, backtest_metric, mean_with_bounds, run_loss_test
from evergreen.backtest.walk_forward import BacktestPoint, Deployment, MeasurementPeriod
from evergreen.gates import ThresholdGate
from evergreen.periods import days_from
from support.calendars import DAYS, later

pytestmark = pytest.mark.unit

FIRST = "2013-03-01"
AUC = ThresholdGate(metric="auc", at_least=0.6)
LOG_LOSS = ThresholdGate(metric="log_loss", at_most=0.6)


def points_on(days: list[int], holdout: int = 7) -> list[BacktestPoint]:
    dates = [later(FIRST, day) for day in days]
    return [BacktestPoint(day, later(day, -holdout), day) for day in dates]


WEEKLY = points_on([0, 7, 14, 21, 28, 35])
uneven = st.builds(
    points_on,
    st.lists(st.integers(0, 200), min_size=1, max_size=25, unique=True),
    st.integers(1, 20),
)


def live_days(deployments: tuple[Deployment, ...]) -> list[tuple[int, int | None]]:
    """First and last day of each deployment, counted from the first date."""
    return [(days_from(FIRST, d.point.as_of), days_from(FIRST, d.end) if d.end else None) for d in deployments]


def test_measurement_periods_a_holdout_apart_are_whole() -> None:
    for period, following in zip(walk.measurement_periods(WEEKLY), WEEKLY[1:], strict=True):
        assert (period.start, period.end) == (following.holdout_start, following.as_of)
        assert period.start == period.live_as_of


def test_measurement_periods_never_overlap_or_fill_gaps() -> None:
    close = walk.measurement_periods(points_on([0, 3, 6], holdout=7))
    assert [days_from(p.start, p.end) for p in close] == [3, 3]
    far = walk.measurement_periods(points_on([0, 30], holdout=7))
    assert far == (MeasurementPeriod(later(FIRST, 23), later(FIRST, 30), live_as_of=FIRST),)


def test_simulate_policy_with_simple_policies() -> None:
    assert live_days(walk.simulate_policy(WEEKLY, walk.deploy_every_date)) == [
        (0, 7), (7, 14), (14, 21), (21, 28), (28, 35), (35, None),
    ]  # fmt: skip
    assert live_days(walk.simulate_policy(WEEKLY, walk.deploy_monthly)) == [(0, 28), (28, None)]
    assert live_days(walk.simulate_policy(WEEKLY, walk.deploy_first_only)) == [(0, None)]


def test_label_delay_measures_where_labels_are_complete() -> None:
    points = [BacktestPoint(point.as_of, later(point.as_of, -17), later(point.as_of, -10)) for point in WEEKLY]
    periods = walk.measurement_periods(points)
    # The holdout of the date after 14 days is the first that begins after the first date, on day -3 + 7.
    assert [(days_from(FIRST, p.start), days_from(FIRST, p.end), days_from(FIRST, p.live_as_of)) for p in periods] == [
        (4, 11, 0),
        (11, 18, 7),
        (18, 25, 14),
    ]
    deployments = walk.simulate_policy(points, walk.deploy_every_date)
    assert [walk.find_live_point(deployments, period) for period in periods] == points[:3]

    tests = []

    def describe_loss(live: BacktestPoint, latest: MeasurementPeriod) -> str | None:
        tests.append((days_from(FIRST, live.as_of), days_from(FIRST, latest.end)))
        return "loss" if len(tests) == 1 else None

    walk.simulate_policy(points, walk.deploy_on_loss(points, describe_loss))
    # After the deployment on day 21, nothing is known of the days since.
    assert tests == [(0, 11)]


def test_deploy_on_loss_tests_live_model_on_last_period() -> None:
    tests = []

    def describe_loss(live: BacktestPoint, latest: MeasurementPeriod) -> str | None:
        tests.append((days_from(FIRST, live.as_of), days_from(FIRST, latest.start), days_from(FIRST, latest.end)))
        return "loss" if latest.end == later(FIRST, 21) else None

    deployments = walk.simulate_policy(WEEKLY, walk.deploy_on_loss(WEEKLY, describe_loss))
    assert live_days(deployments) == [(0, 21), (21, None)]
    assert deployments[1].reason == "loss"
    assert tests == [(0, 0, 7), (0, 7, 14), (0, 14, 21), (21, 21, 28), (21, 28, 35)]


def test_find_live_point_returns_the_last_deployment() -> None:
    passing = {later(FIRST, 7), later(FIRST, 28)}
    champions = []

    def gates(candidate: BacktestPoint, champion: BacktestPoint | None) -> str | None:
        champions.append(champion and days_from(FIRST, champion.as_of))
        return "passed" if candidate.as_of in passing else None

    deployments = walk.simulate_policy(WEEKLY, gates)
    assert live_days(deployments) == [(7, 28), (28, None)]
    assert champions == [None, None, 7, 7, 7, 28]
    first, second, *_ = walk.measurement_periods(WEEKLY)
    assert walk.find_live_point(deployments, first) is None
    assert walk.find_live_point(deployments, second) == WEEKLY[1]


def test_sort_points_refuses_two_candidates_for_one_date() -> None:
    with pytest.raises(ValueError, match="two candidates as of 2013-03-01"):
        walk.sort_points([BacktestPoint(FIRST, later(FIRST, -7), FIRST), BacktestPoint(FIRST, later(FIRST, -3), FIRST)])
    with pytest.raises(ValueError, match="is empty"):
        BacktestPoint(FIRST, FIRST, FIRST)


@settings(max_examples=40)
@given(uneven, st.randoms(use_true_random=False))
def test_order_of_candidates_does_not_matter(points: list[BacktestPoint], random: Random) -> None:
    shuffled = random.sample(points, len(points))
    assert walk.measurement_periods(shuffled) == walk.measurement_periods(points)
    for rule in (walk.deploy_every_date, walk.deploy_monthly, walk.deploy_first_only):
        assert walk.simulate_policy(shuffled, rule) == walk.simulate_policy(points, rule)


@settings(max_examples=40)
@given(uneven, st.sets(st.integers(0, 24)))
def test_no_model_is_measured_before_its_own_date(points: list[BacktestPoint], chosen: set[int]) -> None:
    ordered = sorted(points)
    chosen_dates = {point.as_of for number, point in enumerate(ordered) if number in chosen}
    deployments = walk.simulate_policy(
        points, lambda candidate, _: "chosen" if candidate.as_of in chosen_dates else None
    )
    measured = set()
    for period in walk.measurement_periods(points):
        days = set(DAYS.periods_between(period.start, period.end))
        assert days
        assert not days & measured
        measured |= days
        # The oracle: the newest of those deployed on or before the date.
        live = max((day for day in chosen_dates if day <= period.live_as_of), default=None)
        point = walk.find_live_point(deployments, period)
        assert (point and point.as_of) == live
        assert live is None or min(days) >= live
        # Their labels are those of the holdout of the date that ends the period.
        assert min(days) >= next(p.holdout_start for p in points if p.as_of == period.end)


def test_find_live_point_refuses_to_look_ahead() -> None:
    deployments = walk.simulate_policy(WEEKLY, walk.deploy_every_date)
    with pytest.raises(AssertionError, match="may have seen"):
        walk.find_live_point(deployments, MeasurementPeriod(FIRST, later(FIRST, 14), live_as_of=later(FIRST, 7)))


def sample(signal: float, rows: int = 3000, seed: int = 1) -> ScoredSample:
    random = np.random.default_rng(seed)
    label = (random.random(rows) < 0.25).astype(float)
    score = 1 / (1 + np.exp(-(signal * label + random.normal(size=rows))))
    return ScoredSample(label, score, np.arange(rows) % 20)


def test_run_loss_test_is_significant_for_large_falls_only() -> None:
    large = run_loss_test(AUC, sample(1.0), sample(0.3, seed=2))
    assert large is not None
    assert large.is_significant
    assert large.change == pytest.approx(large.recent_value - large.holdout_value)
    chance = run_loss_test(AUC, sample(1.0, rows=300), sample(0.98, rows=300, seed=8))
    assert chance is not None
    assert not chance.is_significant
    improved = run_loss_test(LOG_LOSS, sample(0.3), sample(1.0, seed=2))
    assert improved is not None
    assert not improved.is_significant
    assert improved.change > 0


def test_run_loss_test_rarely_flags_a_stable_model() -> None:
    tests = [run_loss_test(AUC, sample(1.0, 400, seed), sample(1.0, 400, 1000 + seed)) for seed in range(40)]
    assert 0 < sum(test is not None and test.is_significant for test in tests) <= 6


def test_backtest_metric_is_none_if_undefined() -> None:
    full, nothing = sample(1.0), ScoredSample(np.empty(0), np.empty(0), np.empty(0))
    assert backtest_metric(AUC, nothing) is None
    assert backtest_metric(AUC, full._replace(label=np.ones(full.label.size))) is None
    assert run_loss_test(AUC, full, nothing) is None


def test_weights_of_a_sample_are_repeated_rows() -> None:
    plain = sample(0.5, rows=600)
    weights = np.random.default_rng(3).integers(0, 4, plain.label.size)
    repeated = ScoredSample(*(np.repeat(np.asarray(column), weights) for column in plain[:3]))
    weighted = plain._replace(weights=weights.astype(float))
    for gate in (AUC, LOG_LOSS, ThresholdGate(metric="calibration_error", at_most=0.5)):
        assert backtest_metric(gate, weighted) == pytest.approx(backtest_metric(gate, repeated), rel=1e-9)
    assert backtest_metric(LOG_LOSS, weighted) != pytest.approx(backtest_metric(LOG_LOSS, plain), rel=1e-6)
    better, worse = (sample(signal, seed=4)._replace(weights=np.ones(3000)) for signal in (1.0, 0.3))
    tested, plainly = run_loss_test(AUC, better, worse), run_loss_test(AUC, sample(1.0, seed=4), sample(0.3, seed=4))
    assert tested
    assert plainly
    assert tested.upper_bound == pytest.approx(plainly.upper_bound)


def test_mean_with_bounds_equals_normal_bounds() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.05, 200)
    mean, low, high = mean_with_bounds(values)
    error = 1.645 * values.std() / np.sqrt(200)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == (pytest.approx(mean - error, abs=0.002), pytest.approx(mean + error, abs=0.002))


def test_a_metric_of_the_model_folder_that_raises_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other dates of the backtest are; the verdict of this one says what it raised."""

    def measure(label: np.ndarray, score: np.ndarray) -> float:
        if label.size < 3000:
            raise ValueError("too few rows")
        return float(np.abs(label - score).mean())

    module = ModuleType("metrics_of_a_test")
    module.measure = measure  # type: ignore[attr-defined]  # a module of a model folder
    monkeypatch.setitem(sys.modules, "metrics_of_a_test", module)
    gate = ThresholdGate(metric="metrics_of_a_test:measure", at_most=1, higher_is_better=False)
    full, few = sample(1.0), sample(1.0, rows=100)
    assert backtest_metric(gate, full) is not None
    assert backtest_metric(gate, few) is None
    assert backtest_metric(gate, full._replace(weights=np.full(full.label.size, 0.5))) is None
    assert run_loss_test(gate, full, few) is None
    # It exists for all days, and not for most draws of them.
    uneven = sample(0.3, seed=2)._replace(days=np.repeat([0, 1, 1, 1], 750))
    test = run_loss_test(gate, full, uneven)
    assert test is not None
    assert test.upper_bound is None
    assert test.change < 0
