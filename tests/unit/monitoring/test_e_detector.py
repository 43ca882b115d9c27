"""Bets on ranks win nothing on average, exactly; so false alarms are bounded, whatever hangs together."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from evergreen.monitoring.e_detector import Bet, EDetector, rank_bets

pytestmark = pytest.mark.unit

NOTHING = np.zeros(1, bool)


@pytest.mark.parametrize("shift", [1.0, -1.0, 2.0])
@pytest.mark.parametrize("days", [[-2.0, 0.1, 0.5, 3.0, 40.0], [0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0, 5.0]])
def test_the_expected_return_is_one_exactly(days: list[float], shift: float) -> None:
    """Every order of the same days is equally likely: over all orders, the mean of any product of returns is 1."""
    products = []
    for order in permutations(days):
        product, values = 1.0, np.array(order)[:, None]
        for number in range(2, 5):
            returned = rank_bets(values[number], values[:number], np.array([0]), np.array([shift]))[0]
            product *= 1 if np.isnan(returned) else returned
        products.append(product)
    assert np.mean(products) == pytest.approx(1, abs=1e-12)


def test_nothing_is_staked_where_nothing_can_be_ranked() -> None:
    earlier = np.array([[0.0, np.nan, 1.0, 0.0], [0.0, np.nan, 2.0, 0.0]])
    day = np.array([0.0, 1.0, np.nan, 5.0])
    returns = rank_bets(day, earlier, np.arange(4), np.ones(4))
    assert np.isnan(returns[:3]).all(), "all tied, no earlier day, no value"
    assert returns[3] > 1
    detector = EDetector([Bet(0, 1.0, 1.0)], np.zeros((50, 1)))
    for _ in range(5000):
        detector.add_day(np.zeros(1), NOTHING)
    assert detector.evidence.sum() == 0, "a constant never alarms"


def test_false_alarms_are_bounded_with_any_dependence() -> None:
    """Ten series that are one and the same, with heavy tails: at most days / c alarms in expectation."""
    threshold, alarms, years, length = 50.0, 0, 40, 300
    rng = np.random.default_rng(1)
    for _ in range(years):
        values = np.repeat(rng.standard_cauchy((60 + length, 1)), 10, axis=1)
        detector = EDetector([Bet(n, s, 0.05) for n in range(10) for s in (1.0, -1.0)], values[:60])
        for day in values[60:]:
            detector.add_day(day, np.zeros(10, bool))
            if detector.evidence.sum() >= threshold:
                alarms += 1
                detector.restart()
    assert 0 < alarms <= years * length / threshold


def test_a_shift_of_one_series_among_many_is_found() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((400, 50))
    values[200:, 7] += 2
    detector = EDetector([Bet(n, 1.0, 0.02) for n in range(50)], values[:150])
    found = None
    for number, day in enumerate(values[150:], 150):
        detector.add_day(day, np.zeros(50, bool))
        if found is None and detector.evidence.sum() >= 1000:
            found = number
            assert detector.series[np.argmax(detector.processes)] == 7
    assert found is not None
    assert 200 <= found <= 220


def test_a_part_of_the_series_begins_again() -> None:
    detector = EDetector([Bet(0, 1.0, 0.2), Bet(1, 1.0, 0.3), Bet(0, -1.0, 0.2)], np.arange(20.0).reshape(10, 2))
    detector.add_day(np.array([99.0, 99.0]), np.zeros(2, bool))
    before = detector.evidence
    assert before == pytest.approx(
        [0.2 * detector.processes[0] + 0.2 * detector.processes[2], 0.3 * detector.processes[1]]
    )
    detector.restart(np.array([True, False]))
    assert detector.evidence.tolist() == [0, before[1]]
    detector.restart()
    assert detector.evidence.tolist() == [0, 0]


def test_weights_above_one_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 1.2"):
        EDetector([Bet(0, 1.0, 0.6), Bet(0, -1.0, 0.6)], np.zeros((3, 1)))
