"""Effect sizes, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evergreen.monitoring.effect_sizes import (
    log_spread,
    mean_rank,
    population_stability_index,
    rank_variance,
    root_psi,
)
from monitoring import wasserstein_distance

pytestmark = pytest.mark.unit


def test_psi_is_the_symmetric_divergence() -> None:
    p, q = np.array([30_000, 50_000, 20_000]), np.array([40_000, 40_000, 20_000])
    expected = stats.entropy(p, q) + stats.entropy(q, p)
    assert population_stability_index(p, q) == pytest.approx(expected, rel=1e-3)
    assert population_stability_index(q, p) == pytest.approx(population_stability_index(p, q), rel=1e-4)
    stacked = population_stability_index(np.stack([p, q, np.zeros(3, int)]), q)
    assert stacked[0] == population_stability_index(p, q)
    assert stacked[1] == pytest.approx(0, abs=1e-9)
    assert np.isnan(stacked[2]), "nothing is known of a day without values"
    assert 1 < population_stability_index(np.array([0, 0, 1000]), np.array([500, 500, 0])) < 50, "finite"


def test_w1_is_that_of_scipy_up_to_the_width_of_a_bin() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=20_000), rng.normal(0.3, 1.4, size=20_000)
    bounds = np.linspace(-5, 6, 221)
    counts, reference = (np.histogram(v, [-np.inf, *bounds, np.inf])[0] for v in (y, x))
    expected = stats.wasserstein_distance(x, y) / x.std()
    assert wasserstein_distance(counts, reference, bounds.tolist()) == pytest.approx(expected, rel=0.02)
    assert wasserstein_distance(reference, reference, bounds.tolist()) == 0
    assert wasserstein_distance(np.array([9, 0, 0, 9]), np.array([0, 0, 0, 0]), [1.0, 2.0, 3.0]) == 0, "no reference"
    shifted = wasserstein_distance(np.array([0, 0, 9, 0]), np.array([0, 9, 9, 0]), [0.0, 1.0, 2.0])
    assert shifted == pytest.approx(1), "half of the rows move by one, and one deviation is a half"


def test_mean_rank_is_the_chance_to_be_above_the_reference() -> None:
    rng = np.random.default_rng(2)
    counts, reference = rng.integers(1, 50, 6), rng.integers(1, 50, 6)
    x, y = np.repeat(np.arange(6), counts), np.repeat(np.arange(6), reference)
    chance = (x[:, None] > y).mean() + (x[:, None] == y).mean() / 2
    assert mean_rank(counts, reference) == pytest.approx(chance)
    assert mean_rank(reference, reference) == pytest.approx(0.5)
    assert np.isnan(mean_rank(np.zeros(6, int), reference))


@pytest.mark.parametrize("shares", [np.full(20, 0.05), 0.8 ** np.arange(40), np.array([0.9, 0.09, 0.01, 0.0])])
def test_root_psi_is_zero_in_the_mean_whatever_the_number_of_rows(shares: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    shares = shares / shares.sum()
    reference = rng.multinomial(90_000, shares)
    for rows in (250, 500, 5000):
        values, variances = root_psi(rng.multinomial(rows, shares, 1500), reference, 500)
        assert abs(values.mean()) < 0.25 * np.sqrt(variances[0])
        assert 0.6 < values.std() / np.sqrt(variances[0]) < 1.2


def test_root_psi_needs_five_rows_a_bin() -> None:
    reference = np.array([1000, 1000, 1000, 0, 1])
    values, variances = root_psi(np.array([[5, 5, 9, 0, 0], [7, 7, 6, 0, 0], [0, 0, 0, 0, 0]]), reference, 100)
    assert np.isnan(values).tolist() == np.isnan(variances).tolist() == [True, False, True]
    large, _ = root_psi(np.array([[30_000, 50_000, 20_000]]), np.array([40_000, 40_000, 20_000]), 100_000)
    assert large[0] == pytest.approx(np.sqrt(0.05108), rel=1e-2), "of many rows, it is √PSI"


@pytest.mark.parametrize("shares", [np.full(20, 0.05), 0.8 ** np.arange(40), np.array([0.9, 0.09, 0.01, 0.0])])
def test_spread_is_the_entropy_whatever_the_number_of_rows(shares: np.ndarray) -> None:
    rng, shares = np.random.default_rng(3), shares / shares.sum()
    expected = np.log(stats.entropy(shares) / np.log(len(shares)) + 0.05)
    for rows in (50, 250, 5000):
        values, variances = log_spread(rng.multinomial(rows, shares, 1500), rng.multinomial(90_000, shares))
        assert abs(values.mean() - expected) < 0.3 * np.sqrt(variances[0])
        assert 0.8 < values.std() / np.sqrt(variances[0]) < 1.7


def test_spread_of_a_constant_is_finite_wherever_it_is() -> None:
    reference = np.full(20, 1000)
    days = np.zeros((5, 20), int)
    days[0, 3], days[1, 19], days[2, :2], days[3] = 500, 20, 250, 25
    values, variances = log_spread(days, reference)
    assert values[0] == values[1] == pytest.approx(np.log(0.05))
    assert values[2] == pytest.approx(np.log(np.log(2) / np.log(20) + 0.05), abs=0.01), "two values, however far apart"
    assert values[3] == pytest.approx(np.log(1.05), abs=0.02)
    assert np.isnan(values[4])
    assert np.isnan(variances[4]), "nothing is known of a day without rows"
    constant = np.array([0, 1000, 0])
    assert np.array(log_spread(np.array([[0, 9, 0]]), constant)).ravel() == pytest.approx([np.log(0.05), 0])


def test_a_bin_that_both_do_not_have_adds_nothing() -> None:
    reference, few = np.array([50_000, 50_000]), np.array([3, 2])
    index = population_stability_index(few, reference)
    assert population_stability_index(np.append(few, 0), np.append(reference, 0)) == pytest.approx(index, abs=0.02)


def test_rank_variance_is_that_of_ranks() -> None:
    reference = np.array([5, 3, 2])
    ranks = stats.rankdata(np.repeat(np.arange(3), reference)) / 10 - 0.05
    assert rank_variance(reference) == pytest.approx(ranks.var())
