"""How days correlate, and what that adds to an error: against exact covariances and against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.stats import binom
from scipy.stats import t as student

from evergreen.gates.alpha_spending import DayCorrelation
from evergreen.gates.day_correlation import (
    _CORRELATION,
    _PRIOR_WEIGHT,
    ErrorCase,
    chance_beyond,
    correlated_weight,
    day_autocorrelation,
    distance_at,
    measure_day_correlation,
    possible_errors,
    weigh_correlated_days,
)

pytestmark = pytest.mark.unit


def autoregression(random, shape, lag):
    days = random.standard_normal(shape)
    for day in range(1, shape[1]):
        days[:, day] = lag * days[:, day - 1] + np.sqrt(1 - lag**2) * days[:, day]
    return days


@pytest.mark.parametrize("lag", [0.0, 0.3])
@pytest.mark.parametrize("days", [14, 28])
def test_the_autocorrelation_has_no_bias(lag, days):
    drawn = autoregression(np.random.default_rng(days), (40_000, days), lag)
    assert day_autocorrelation(drawn).mean() == pytest.approx(lag, abs=0.015)
    one = drawn[0] - drawn[0].mean()
    raw = (one[1:] * one[:-1]).sum() / (one**2).sum()
    assert measure_day_correlation(drawn[0]) == pytest.approx((raw + 1 / days) / (1 - 4 / days))
    assert measure_day_correlation(3 * drawn[0] + 7) == pytest.approx(measure_day_correlation(drawn[0]))


@pytest.mark.parametrize("daily", [[], [1.0, 2.0, 1.0, 2.0], [0.5] * 20])
def test_too_few_or_equal_days_have_no_correlation(daily):
    assert measure_day_correlation(np.array(daily)) is None


@pytest.mark.parametrize("days", [5, 14, 49])
def test_correlated_days_have_the_exact_variance_of_an_autoregression(days):
    covariance = toeplitz(_CORRELATION ** np.arange(days))
    of_mean = covariance.mean()
    centred = np.eye(days) - 1 / days
    spread = np.trace(centred @ covariance) / (days - 1)  # what the estimate expects of the squared daily spread
    independent, correlated = possible_errors(np.sqrt(spread / days), days - 1, days, spread / days, 0.4)
    assert (independent.weight, correlated.weight) == pytest.approx((0.6, 0.4))
    assert correlated.standard_error**2 == pytest.approx(of_mean)
    # Satterthwaite's degrees of freedom of the estimate; the closed form is that of many days.
    exact = np.trace(centred @ covariance) ** 2 / np.trace(centred @ covariance @ centred @ covariance)
    assert 0.85 * exact < correlated.degrees_of_freedom < 1.02 * exact


def test_only_the_part_of_days_grows():
    _, correlated = possible_errors(2.0, 13.0, 14, 1.0, 0.4)
    _, by_days_alone = possible_errors(1.0, 13.0, 14, 1.0, 0.4)
    assert correlated.standard_error**2 - 4 == pytest.approx(by_days_alone.standard_error**2 - 1)


@given(st.floats(1e-12, 0.4), st.floats(0, 1), st.floats(4, 200), st.integers(5, 60))
def test_a_distance_has_its_chance(alpha, weight, freedom, days):
    cases = possible_errors(0.3, freedom, days, 0.05, weight)
    distance = distance_at(alpha, cases)
    assert chance_beyond(distance, cases) == pytest.approx(alpha, rel=1e-6)
    alone = [student.isf(alpha, case.degrees_of_freedom) * case.standard_error for case in cases]
    assert min(alone) * (1 - 1e-9) <= distance <= max(alone) * (1 + 1e-9)


def test_one_case_is_students_t():
    assert distance_at(1e-5, [ErrorCase(1.0, 2.0, 13)]) == pytest.approx(2 * student.isf(1e-5, 13))


def test_days_are_taken_as_correlated_until_they_tell():
    def learned(value, comparisons):
        return weigh_correlated_days([DayCorrelation("g", 14, value)] * comparisons)

    assert learned(0.0, 0) == pytest.approx(_PRIOR_WEIGHT)
    assert _PRIOR_WEIGHT > learned(0.0, 1) > learned(0.0, 5) > learned(0.0, 20)
    assert learned(0.0, 20) < 1e-5
    assert learned(0.3, 20) > 0.9999
    assert weigh_correlated_days([DayCorrelation("g", 4, 0.9)]) == pytest.approx(_PRIOR_WEIGHT)


def test_the_weight_is_that_of_two_normal_densities():
    from scipy.stats import norm

    likelihood = norm.pdf(0.15, _CORRELATION, np.sqrt((1 - _CORRELATION**2) / 50)), norm.pdf(0.15, 0, np.sqrt(1 / 50))
    odds = _PRIOR_WEIGHT / (1 - _PRIOR_WEIGHT) * likelihood[0] / likelihood[1]
    assert correlated_weight(50, 0.15) == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("lag", [0.0, 0.3])
def test_correlated_days_err_no_more_often_than_their_level(lag):
    """One comparison on 14 days, the model's first: as it is judged, and as if days were independent."""
    samples, days, alpha = 40_000, 14, 0.02
    drawn = autoregression(np.random.default_rng(7), (samples, days), lag)
    mean, by_days = drawn.mean(axis=1), drawn.var(axis=1, ddof=1) / days
    weight = correlated_weight(days - 4, day_autocorrelation(drawn))
    chance = chance_beyond(mean, possible_errors(np.sqrt(by_days), days - 1, days, by_days, weight))
    assert (chance <= alpha).sum() <= binom.ppf(0.999, samples, 1.2 * alpha)
    if lag:
        assert (student.sf(mean / np.sqrt(by_days), days - 1) <= alpha).mean() > 2.2 * alpha
