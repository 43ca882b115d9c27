"""The budget: what each comparison may spend, and that neither a life nor a rate spends more."""

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from evergreen.gates import AgainstChampionGate, EarlierComparison, Evidence, judge_evidence
from evergreen.gates.alpha_spending import DayCorrelation, earlier_day_correlations, next_alpha
from support.clusters import day_clusters, row_clusters

pytestmark = pytest.mark.unit

FIRST = date(2013, 1, 1)
# ζ(1.6): ten thousand terms, the integral of the rest, and half a term (Euler and Maclaurin).
ZETA = sum(k**-1.6 for k in range(1, 10_001)) + 10_000**-0.6 / 0.6 - 10_000**-1.6 / 2


def week(number, days=7, step=7):
    start = FIRST + timedelta(step * number)
    return start, start + timedelta(days)


def live(outcomes, *, error=0.05, days=None):
    """The levels of a life: at each comparison whether it passed, and on which days it was."""
    past, levels = [], []
    for number, passed in enumerate(outcomes):
        on = days[number] if days else week(number)
        levels.append(next_alpha(error, "gate", on, past))
        past.append(EarlierComparison(on, (("gate", levels[-1], passed),)))
    return levels


def test_the_series_of_a_model_that_never_passes():
    levels = live([False] * 100)
    assert levels[0] == pytest.approx(0.05 / ZETA, rel=1e-9)
    assert levels[0] == pytest.approx(0.0219, abs=5e-5)
    assert levels[99] == pytest.approx(0.05 / ZETA * 100**-1.6, rel=1e-9)
    assert sum(levels) < 0.05


def test_a_pass_hands_its_level_on_and_a_failure_loses_it():
    base = live([False] * 5)
    assert live([True, True, False, False, True]) == pytest.approx(
        [base[0], base[0] + base[1], base[0] + base[1] + base[2], base[3], base[4]]
    )


def test_each_earlier_comparison_on_the_same_days_halves_alpha():
    base = live([False] * 4)
    same = live([False] * 4, days=[week(0)] * 4)
    assert same == pytest.approx([b / 2**j for j, b in enumerate(base)])
    # A holdout of 14 days, each week: shares a day with the one before, not with the one before that.
    rolling = live([False] * 4, days=[week(number, days=14) for number in range(4)])
    assert rolling == pytest.approx([base[0], base[1] / 2, base[2] / 2, base[3] / 2])


def test_one_day_is_enough_to_overlap_and_none_is_not():
    start, end = week(0)
    base = live([False] * 2)[1]
    past = [EarlierComparison((start, end), (("gate", 0.01, False),))]
    one_shared = next_alpha(0.05, "gate", (end - timedelta(1), end + timedelta(6)), past)
    before_it = next_alpha(0.05, "gate", (start - timedelta(7), start), past)
    assert (one_shared, before_it) == (pytest.approx(base / 2), pytest.approx(base))


def test_nothing_is_carried_into_or_out_of_a_comparison_on_used_days():
    base = live([False] * 3)
    # The second uses the first's days: gets half of its own; though it passes, the third gets its own only.
    assert live([True, True, False], days=[week(0), week(0), week(9)]) == pytest.approx([base[0], base[1] / 2, base[2]])


def test_each_gate_has_a_budget_of_its_own():
    base = live([False] * 3)
    past = [EarlierComparison(week(0), (("other", 0.02, True), ("gate", 0.01, False)))]
    assert next_alpha(0.05, "gate", week(1), past) == pytest.approx(base[1])
    assert next_alpha(0.05, "other", week(1), past) == pytest.approx(base[1] + 0.02)
    # A gate that is new, or could not be computed then: its share of that time is gone, nothing is carried.
    past = [
        EarlierComparison(week(0), (("gate", 0.01, True),)),
        EarlierComparison(week(1), (("other", 0.01, True),)),
    ]
    assert next_alpha(0.05, "gate", week(2), past) == pytest.approx(base[2])


def test_carried_alpha_never_exceeds_a_reduced_budget():
    past = [EarlierComparison(week(0), (("gate", 0.2, True),))]
    assert next_alpha(0.01, "gate", week(1), past) == 0.01


errors = st.floats(1e-6, 0.5)
any_days = st.builds(week, st.integers(0, 30), st.integers(1, 30), st.integers(1, 7))


@given(errors, st.lists(any_days, max_size=60))
def test_comparisons_that_fail_never_spend_more_than_the_budget(error, days):
    levels = live([False] * len(days), error=error, days=days)
    assert all(0 < spent < 1 for spent in levels)
    assert sum(levels) <= error * (1 + 1e-12)


def test_not_even_thousands_of_times_on_the_same_days():
    levels = live([False] * 3000, days=[week(0)] * 3000)
    assert all(0 < spent < 1 for spent in levels)
    assert sum(levels) <= 0.05


@settings(max_examples=300)
@given(errors, st.lists(st.tuples(any_days, st.booleans(), st.booleans()), max_size=60))
def test_comparisons_before_a_false_pass_spend_at_most_the_budget(error, life):
    """Bonferroni over the comparisons in which the candidate falls short: whatever the others do, and on whichever
    days, the chance that one of those is the first to slip through is at most the sum of their levels."""
    outcomes = [truly_better and passes for _, truly_better, passes in life]  # none that falls short passes: not yet
    levels = live(outcomes, error=error, days=[on for on, _, _ in life])
    assert all(0 < spent <= error for spent in levels)
    of_null = [spent for spent, (_, truly_better, _) in zip(levels, life, strict=True) if not truly_better]
    assert sum(of_null) <= error * (1 + 1e-12)


def test_a_model_that_improves_keeps_what_it_did_not_lose():
    """The tenth comparison of a model whose nine before passed has nearly all of the budget."""
    assert live([True] * 10)[9] > 0.8 * 0.05 > 10 * live([False] * 10)[9]


def rate(outcomes, error=0.05, days=None):
    """The levels of a life with the guarantee `rate`."""
    past, levels = [], []
    for number, passed in enumerate(outcomes):
        on = days[number] if days else week(number)
        levels.append(next_alpha(error, "gate", on, past, "rate"))
        past.append(EarlierComparison(on, (("gate", levels[-1], passed),), promoted=passed))
    return levels


def test_a_rate_pays_each_promotion_with_one_more_share():
    base = live([False] * 4)
    assert rate([False] * 4) == pytest.approx(base)
    assert rate([True, False, True, False]) == pytest.approx([base[0], 2 * base[1], 2 * base[2], 3 * base[3]])


def test_only_promotions_count_for_a_rate():
    """A gate that passed where another one failed promoted nothing."""
    past = [EarlierComparison(week(0), (("gate", 0.01, True),), promoted=False)]
    assert next_alpha(0.05, "gate", week(1), past, "rate") == pytest.approx(live([False] * 2)[1])


@settings(max_examples=300)
@given(errors, st.lists(st.tuples(any_days, st.booleans(), st.booleans()), max_size=60))
def test_the_expected_rate_is_at_most_the_budget(error, life):
    """Xu and Ramdas 2024: a comparison of a candidate that falls short adds at most its alpha over the promotions
    including it to the expected share, whatever the others do."""
    levels = rate([passes for *_, passes in life], error=error, days=[on for on, *_ in life])
    promotions, added = 0, 0.0
    for spent, (_, truly_better, passes) in zip(levels, life, strict=True):
        assert 0 < spent <= error
        added += 0.0 if truly_better else spent / (promotions + 1)
        promotions += passes
    assert added <= error * (1 + 1e-12)


def looks_discount(day, look_days=(14, 21, 28), is_decided=True):
    """What remains of alpha on two weeks from `day` on, after a comparison with looks on days that began at day 0."""
    start = FIRST
    looks = tuple(start + timedelta(days) for days in look_days)
    past = [EarlierComparison((start, looks[-1]), (("gate", 0.01, False),), look_ends=looks, is_decided=is_decided)]
    on = start + timedelta(day), start + timedelta(day + 14)
    return next_alpha(0.05, "gate", on, past) / live([False] * 2)[1]


@pytest.mark.parametrize(
    ("day", "is_decided", "share"),
    [
        (28, True, 1),
        (27, True, 1 / 3),  # the last look used these days
        (21, True, 1 / 3),
        (14, True, 1 / 12),
        (13, True, 1 / 48),
        (0, True, 1 / 48),
        (21, False, 1 / 12),
        (0, False, 1 / 192),
        (28, False, 1),
    ],
)
def test_looks_on_the_same_days_cost_by_what_they_may_have_told(day, is_decided, share):
    assert looks_discount(day, is_decided=is_decided) == pytest.approx(share)


def test_shares_of_all_that_looks_may_tell_add_up_to_one():
    """Passed or failed at the n-th look, or withdrawn after it: the union bound over all candidates that follow."""
    shares = 0.0
    for looks in range(1, 20):
        look_days = tuple(range(14, 14 + looks))
        decided, withdrawn = (looks_discount(0, look_days, is_decided) for is_decided in (True, False))
        shares += 2 * decided + withdrawn
    assert shares == pytest.approx(1, abs=1e-9)
    assert shares <= 1


def test_what_the_days_told_is_kept_by_gate():
    measured = DayCorrelation("gate", 14, 0.2)
    past = [EarlierComparison(week(0), (), day_correlations=(measured, DayCorrelation("other", 14, 0.1)))]
    assert earlier_day_correlations("gate", past) == (measured,)


def life(random, spread, retrains=25, days=14, rows=100):
    """Whether a model as good as the champion is ever promoted: by days, and were rows independent."""
    label = np.tile(np.repeat([1.0, 0.0], [rows // 5, rows - rows // 5]), days)
    gate = AgainstChampionGate(metric="auc", must_be="better")
    promoted = []
    for clusters in (day_clusters(label.size, days), row_clusters(label)):
        past = []
        for number in range(retrains):
            gain = np.repeat(spread * random.normal(size=days), rows)
            shared, one, other = random.normal(size=(3, label.size))
            candidate, champion = (
                norm.cdf(np.sqrt(2) * norm.ppf(auc) * label + 0.97 * shared + 0.24 * own)
                for auc, own in ((0.7 + gain, one), (0.7, other))
            )
            start = date(2013, 1, 1) + timedelta(days * number)
            period = (start, start + timedelta(days))
            [result] = judge_evidence([gate], Evidence(label, candidate, champion, period, clusters), past).results
            past.append(EarlierComparison(period, ((gate.name, result.alpha, result.outcome == "passed"),)))
        promoted.append(any(comparison.spending[0][2] for comparison in past))
    return promoted


def test_days_that_differ_never_break_the_budget_of_a_life():
    random = np.random.default_rng(20)
    by_days, by_rows = np.sum([life(random, spread=0.03) for _ in range(60)], axis=0)
    assert by_days <= binom.ppf(0.999, 60, 0.05)
    assert by_rows > 12  # as if rows were independent
