"""Levels of looks: against published boundaries, and against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from scipy.stats import t as student

from evergreen.gates.group_sequential import (
    MAX_DAYS,
    MAX_DAYS_OF_SMALL_ALPHA,
    chance_to_suffice,
    is_hopeless,
    look_levels,
    max_days,
    spent_alpha,
)

pytestmark = pytest.mark.unit

WEEKS = (14, 21, 28)


def test_levels_are_the_published_boundaries():
    """Of the O'Brien-Fleming-like spending function at a one-sided 0.025 (Reboussin, DeMets, Kim and Lan 2000,
    Controlled Clinical Trials 21:190-207)."""
    z = -norm.ppf(look_levels(0.025, (1, 2, 3, 4, 5), 5))
    assert z == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)


def test_two_looks_by_the_bivariate_normal_distribution():
    from scipy.stats import multivariate_normal

    first, second = look_levels(0.03, (14, 28), 28)
    assert first == pytest.approx(spent_alpha(0.03, 0.5))
    both = multivariate_normal([0, 0], [[1, np.sqrt(0.5)], [np.sqrt(0.5), 1]])
    assert 1 - both.cdf(-norm.ppf([first, second])) == pytest.approx(0.03, abs=1e-6)


def test_one_look_has_the_whole_alpha():
    assert look_levels(0.02, (30,), 28) == (0.02,)
    assert spent_alpha(0.02, 1.0) == 0.02


@pytest.mark.parametrize("alpha", [0.5, 0.02, 1e-5, 1e-30, 1e-300])
def test_levels_of_any_alpha_grow_up_to_it(alpha):
    levels = look_levels(alpha, WEEKS, 28)
    assert 0 < levels[0] <= levels[1] < levels[2] <= alpha * (1 + 1e-9)


look_times = st.sets(st.integers(5, 48), min_size=1, max_size=7).map(lambda days: tuple(sorted(days)))


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-9, 0.2), look_times)
def test_a_later_look_changes_no_earlier_level(alpha, days):
    levels = look_levels(alpha, (*days, 49), 49)
    assert look_levels(alpha, days, 49) == pytest.approx(levels[:-1], rel=1e-5)
    # A look may always spend its own part, and together they spend no more than alpha by Bonferroni's inequality.
    spent = [0.0, *(spent_alpha(alpha, day / 49) for day in (*days, 49))]
    assert all(level >= part * (1 - 1e-6) - 1e-14 for level, part in zip(levels, np.diff(spent), strict=True))


@pytest.mark.parametrize("looks", [(14, 21, 28), (14, 15, 16, 28), (9, 24, 28), tuple(range(14, 29))])
def test_looks_at_any_time_keep_alpha_with_few_days(looks):
    """Student's t of all days so far, at unplanned looks: wrong in at most alpha of comparisons."""
    random, samples, alpha = np.random.default_rng(len(looks)), 60_000, 0.02
    daily, wrong = random.standard_normal((samples, 28)), np.zeros(samples, bool)
    for days, level in zip(looks, look_levels(alpha, looks, 28), strict=True):
        part = daily[:, :days]
        t = part.mean(axis=1) / part.std(axis=1, ddof=1) * np.sqrt(days)
        wrong |= t > student.isf(level, days - 1)
    assert binom.ppf(0.0005, samples, 0.9 * alpha) <= wrong.sum() <= binom.ppf(0.9995, samples, alpha)


def test_small_alpha_gets_more_days_and_a_long_holdout_one_look():
    assert max_days(0.01, 14) == MAX_DAYS == 28
    assert max_days(1e-5, 14) == MAX_DAYS_OF_SMALL_ALPHA == 49
    assert max_days(0.01, 60) == 60


def test_the_chance_to_suffice_is_that_of_a_simulation():
    """The true gain is drawn from what 14 days leave possible, then the other 14 days are drawn."""
    random, samples, z = np.random.default_rng(1), 200_000, 1.4
    last_z = -norm.ppf(look_levels(0.02, (14, 28), 28)[-1])
    truth = z / np.sqrt(14) + random.standard_normal(samples) / np.sqrt(14)  # a day's gain, in daily spreads
    total = (z * np.sqrt(14) + truth * 14 + random.standard_normal(samples) * np.sqrt(14)) / np.sqrt(28)
    assert chance_to_suffice(0.02, (14,), 28, norm.sf(z)) == pytest.approx((total > last_z).mean(), abs=0.004)


def test_hopeless_is_what_would_hardly_suffice():
    assert is_hopeless(0.02, (14,), 28, 0.6)
    assert not is_hopeless(0.02, (14,), 28, 0.02)
    assert is_hopeless(1e-4, (14, 21), 28, 0.2)
    assert is_hopeless(0.02, (14,), 28, np.array([0.999999, 1.0, 0.0])).tolist() == [True, True, False]
