"""Without weekday, year and memory, days are alike, and a shift stays what it was."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest

from evergreen.monitoring.baseline import remove_patterns

pytestmark = pytest.mark.unit

START = date(2013, 1, 1)


def days(count: int, step: int = 1) -> list[date]:
    return [START + timedelta(step * n) for n in range(count)]


def autoregression(rng: np.random.Generator, count: int, memory: float, series: int = 1) -> np.ndarray:
    values = np.zeros((count, series))
    for n in range(1, count):
        values[n] = memory * values[n - 1] + np.sqrt(1 - memory**2) * rng.standard_normal(series)
    return values


def correlation(values: np.ndarray, lag: int) -> float:
    return float(np.mean([np.corrcoef(v[:-lag], v[lag:])[0, 1] for v in values.T]))


def test_weekdays_and_the_year_are_removed() -> None:
    rng, calendar = np.random.default_rng(1), days(800)
    week = rng.normal(0, 5, 7)[[day.weekday() for day in calendar]]
    year = 8 * np.sin(2 * np.pi * np.arange(800) / 365.25 + 1)
    noise = rng.standard_normal((800, 1))
    baseline = remove_patterns(calendar, noise + (week + year)[:, None], 500)
    assert baseline.scales[0] == pytest.approx(1, abs=0.1)
    assert np.std(baseline.residuals[500:]) == pytest.approx(1, abs=0.15)
    short = remove_patterns(calendar, noise + (week + year)[:, None], 200)
    assert np.std(short.residuals[200:]) > 3, "a year that the reference does not have is not known"


def test_memory_is_removed_and_a_shift_stays() -> None:
    rng = np.random.default_rng(2)
    values = autoregression(rng, 600, 0.6, series=40)
    values[400:] += 3
    baseline = remove_patterns(days(600), values, 300)
    assert correlation(baseline.residuals[:300], 1) > 0.5
    assert abs(correlation(baseline.innovations[:300], 1)) < 0.05
    assert baseline.residuals[400:].mean() == pytest.approx(3, abs=0.3)
    assert baseline.innovations[401:].mean() == pytest.approx(3 * (1 - 0.6), abs=0.2)


def test_memory_of_a_short_reference_is_not_underestimated() -> None:
    values = autoregression(np.random.default_rng(3), 2060, 0.5, series=300)
    baseline = remove_patterns(days(2060), values, 60)
    assert -0.04 < correlation(baseline.innovations[60:], 1) < 0.01


def test_days_without_values_are_left_out() -> None:
    values = autoregression(np.random.default_rng(4), 100, 0.3, series=2)
    values[10:20, 0], values[80, 1] = np.nan, np.nan
    calendar = days(103)
    calendar = [*calendar[:50], *calendar[53:]]  # days that nobody published
    baseline = remove_patterns(calendar, values, 70)
    assert np.isnan(baseline.innovations[10:20, 0]).all()
    assert not np.isnan(baseline.innovations[20:, 0]).any()
    assert np.isnan(baseline.residuals[:, 1]).sum() == 1
    values[:60, 0] = np.nan
    assert np.isnan(remove_patterns(calendar, values, 70).residuals[:, 0]).all(), "10 days are no reference"


def test_a_constant_has_no_scale() -> None:
    values = np.full((60, 1), 0.1)
    values[50:] = 0.4
    baseline = remove_patterns(days(60), values, 40)
    assert baseline.scales[0] == 0
    assert baseline.residuals[50:, 0] == pytest.approx(0.3)


def test_weeks_have_no_weekdays() -> None:
    values = autoregression(np.random.default_rng(5), 150, 0.0)
    baseline = remove_patterns(days(150, step=7), values, 40)
    assert baseline.scales[0] == pytest.approx(values[:40].std(ddof=1), rel=1e-6)


@pytest.mark.parametrize("reference_days", [28, 60, 400])
@pytest.mark.parametrize("constant", [0.1, 1 / 3, 0.7, np.log1p(1000), 1e12, 1e-12])
def test_rounding_of_a_constant_is_nothing(reference_days: int, constant: float) -> None:
    values = np.full((reference_days + 30, 1), constant)
    values[-1] *= 1.001
    baseline = remove_patterns(days(len(values)), values, reference_days)
    assert (baseline.residuals[:-1] == 0).all()
    assert (baseline.innovations[:-1] == 0).all()
    assert (baseline.deviations[:-1] == 0).all()
    assert baseline.deviations[-1] == np.inf
    assert baseline.residuals[-1] == pytest.approx(constant / 1000)


def test_days_of_few_rows_deviate_less() -> None:
    rng = np.random.default_rng(6)
    errors = np.where(np.arange(300) < 200, 0.5, 2.0)[:, None]
    values = rng.standard_normal((300, 60)) + errors * rng.standard_normal((300, 60))
    baseline = remove_patterns(days(300), values, 200, np.broadcast_to(errors**2, values.shape))
    assert baseline.residuals[200:].std() == pytest.approx(np.sqrt(1 + 4), rel=0.1)
    assert baseline.deviations[200:].std() == pytest.approx(1, rel=0.1)
    assert baseline.innovations[200:].std() == pytest.approx(baseline.innovations[:200].std(), rel=0.1)
    more = remove_patterns(days(300), values, 200, np.broadcast_to(1 / errors, values.shape))
    np.testing.assert_array_equal(more.deviations[200:], more.residuals[200:] / more.scales)
