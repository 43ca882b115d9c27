"""Each comparison against its definition written out or another library's, and against what its level promises."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, mannwhitneyu, norm, permutation_test, rankdata
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from evergreen.gates import AgainstChampionGate, BySliceGate
from evergreen.gates.comparisons import MetricGain, delong, estimate_gain, mcnemar
from evergreen.gates.metrics import METRICS
from evergreen.gates.verdict import NotComputedError

pytestmark = pytest.mark.unit

AUC = AgainstChampionGate(metric="auc", must_be="better", resamples=1000)
ACCURACY = AgainstChampionGate(metric="accuracy", cut=0.5, must_be="better", resamples=1000)
RMSE = AgainstChampionGate(metric="rmse", must_be="better", resamples=1000)


def scorers(random, n, *, d_one=1.0, d_other=1.0, share=0.3):
    """Two binormal scorers of the same rows, with AUC Φ(d/√2) each, and correlated like two real models."""
    label = (random.random(n) < share).astype(float)
    label[:4] = [0, 0, 1, 1]
    shared, one, other = random.normal(size=(3, n))
    return (
        label,
        norm.cdf(d_one * label + 0.8 * shared + 0.6 * one),
        norm.cdf(d_other * label + 0.8 * shared + 0.6 * other),
    )


def written_out(label, one, other):
    """Gain and error by the formula of DeLong et al. 1988: every pair of rows, O(n m)."""
    ones, zeros = label == 1, label == 0

    def won(score):
        above, below = score[ones][:, None], score[zeros][None, :]
        return (above > below) + (above == below) / 2

    matrix = won(one) - won(other)
    m, n = matrix.shape
    s10, s01 = matrix.mean(axis=1).var(ddof=1), matrix.mean(axis=0).var(ddof=1)
    return matrix.mean(), np.sqrt(s10 / m + s01 / n), s10 / m, s01 / n


rows_of_few_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=60)


@settings(max_examples=200)
@given(rows_of_few_scores)
def test_delong_is_its_formula_with_ties(rows):
    label, one, other = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    positives = int(label.sum())
    if min(positives, label.size - positives) < 2:
        with pytest.raises(NotComputedError, match="needs 2 of each"):
            delong(label, one, other)
        return
    difference, error, *_ = written_out(label, one, other)
    if error < 1e-12:
        if abs(difference) > 1e-12:
            with pytest.raises(NotComputedError, match="gain the same"):
                delong(label, one, other)
        else:
            assert delong(label, one, other).standard_error == 0
        return
    found = delong(label, one, other)
    assert (found.gain, found.standard_error) == (pytest.approx(difference, abs=1e-12), pytest.approx(error))


@pytest.mark.parametrize("decimals", [1, 3, 17])
@pytest.mark.parametrize("n", [60, 1500])
def test_delong_is_its_formula_and_its_gain_that_of_scikit_learn(n, decimals):
    label, one, other = (column.round(decimals) for column in scorers(np.random.default_rng(n), n))
    found = delong(label, one, other)
    difference, error, v10, v01 = written_out(label, one, other)
    assert found.gain == pytest.approx(roc_auc_score(label, one) - roc_auc_score(label, other), abs=1e-12)
    assert (found.gain, found.standard_error) == (pytest.approx(difference, abs=1e-12), pytest.approx(error))
    m, n = int(label.sum()), int((1 - label).sum())
    assert found.degrees_of_freedom == pytest.approx((v10 + v01) ** 2 / (v10**2 / (m - 1) + v01**2 / (n - 1)))


def test_delong_gains_by_mann_whitney():
    label, one, other = scorers(np.random.default_rng(5), 300)
    u = [mannwhitneyu(s[label == 1], s[label == 0]).statistic for s in (one, other)]
    pairs = label.sum() * (1 - label).sum()
    assert delong(label, one, other).gain == pytest.approx((u[0] - u[1]) / pairs, abs=1e-14)


def test_delong_sums_are_exact_where_64_bits_are_not_enough():
    """Spreads of five million rows of each class: squares of placements add up to more than 2⁶³."""
    from evergreen.gates.comparisons import _total_and_spread

    numbers = np.tile(np.array([10_000_000, -10_000_000, 9_999_999, 3], dtype=np.int64), 50_000)
    total = 50_000 * (9_999_999 + 3)
    squares = 50_000 * (2 * 10**14 + 9_999_999**2 + 9)
    assert squares > 2**63
    assert _total_and_spread(numbers) == (total, numbers.size * squares - total**2)


def test_the_bounds_of_auc_are_the_errors_student_quantile():
    label, one, other = scorers(np.random.default_rng(1), 400, d_one=1.2)
    found = delong(label, one, other)
    for level in (0.4, 0.05, 1e-3, 1e-9):
        bounds = estimate_gain(AUC, label, one, other, level, "delong")
        width = student.isf(level, found.degrees_of_freedom) * found.standard_error
        assert bounds.low == pytest.approx(found.gain - width)
        assert bounds.high == pytest.approx(found.gain + width)
    extreme = estimate_gain(AUC, label, one, other, 1e-300, "delong")
    assert (extreme.low, extreme.high) == (-1.0, 1.0)  # no gain in AUC is larger


def test_the_order_of_rows_changes_no_bit():
    label, one, other = (column.round(2) for column in scorers(np.random.default_rng(2), 500))
    order = np.random.default_rng(3).permutation(500)
    for gate, test in ((AUC, "delong"), (AUC, "bootstrap"), (ACCURACY, "mcnemar"), (RMSE, "bootstrap")):
        assert estimate_gain(gate, label, one, other, 0.01, test) == estimate_gain(
            gate, label[order], one[order], other[order], 0.01, test
        )


@pytest.mark.parametrize("test", ["delong", "bootstrap"])
def test_the_one_gains_what_the_other_loses(test):
    label, one, other = scorers(np.random.default_rng(4), 300, d_one=1.3)
    there, back = (estimate_gain(AUC, label, *pair, 0.01, test) for pair in ((one, other), (other, one)))
    assert (back.value, back.low) == (pytest.approx(-there.value), pytest.approx(-there.high, rel=0.15))
    assert there.low < there.value < there.high


def test_the_same_scores_are_a_gain_of_nothing_for_sure():
    label, one, _ = scorers(np.random.default_rng(6), 200)
    for gate, test in ((AUC, "delong"), (ACCURACY, "mcnemar"), (RMSE, "bootstrap")):
        assert estimate_gain(gate, label, one, one.copy(), 1e-6, test) == MetricGain(0.0, 0.0, 0.0)
    # The same order, of other numbers: nothing that AUC can see.
    assert estimate_gain(AUC, label, one, one**3, 1e-6, "delong") == MetricGain(0.0, 0.0, 0.0)


def test_a_sure_gain_with_no_spread_is_no_certainty():
    """All of class 1 first, against all last: no row tells how far off the whole may be."""
    label = np.repeat([0.0, 1.0], 50)
    with pytest.raises(NotComputedError, match="all 50 rows of class 1 gain the same"):
        estimate_gain(AUC, label, label, 1 - label, 0.05, "delong")


# --- McNemar


def told(wins, losses, both=40, neither=7):
    one = np.repeat([True, False, True, False], [wins, losses, both, neither])
    other = np.repeat([False, True, True, False], [wins, losses, both, neither])
    return one, other


@given(st.integers(0, 60), st.integers(0, 60), st.floats(1e-8, 0.5))
def test_mcnemar_excludes_zero_when_the_binomial_test_rejects(wins, losses, level):
    found = mcnemar(*told(wins, losses), level, has_margin=False)
    assert found.low <= found.value <= found.high
    p_better = binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
    p_worse = binomtest(wins, wins + losses, alternative="less").pvalue if wins + losses else 1.0
    assume(min(abs(p_better - level), abs(p_worse - level)) > 1e-12)  # equal up to rounding: either may be right
    assert (found.low > 0) == (p_better < level)
    assert (found.high < 0) == (p_worse < level)


@given(st.integers(0, 60), st.integers(0, 60), st.floats(1e-6, 0.5))
def test_mcnemar_bounds_are_clopper_and_pearsons_by_scipy(wins, losses, level):
    if not wins + losses:
        return
    rows = wins + losses + 47
    exact = binomtest(wins, wins + losses).proportion_ci(1 - 2 * level, "exact")  # two-sided: twice the level
    found = mcnemar(*told(wins, losses), level, has_margin=False)
    scale = (wins + losses) / rows
    assert found.value == pytest.approx((wins - losses) / rows)
    # To the accuracy of scipy's interval, which comes from a root search.
    assert found.low == pytest.approx((2 * exact.low - 1) * scale, abs=1e-7)
    assert found.high == pytest.approx((2 * exact.high - 1) * scale, abs=1e-7)


@given(st.integers(0, 60), st.integers(0, 60), st.floats(1e-6, 0.5))
def test_mcnemar_bounds_with_a_margin_are_wider_with_equal_sign(wins, losses, level):
    wide = mcnemar(*told(wins, losses), level, has_margin=True)
    narrow = mcnemar(*told(wins, losses), 0.9 * level, has_margin=False)
    assert wide.low <= narrow.low + 1e-15 or narrow.low > 0
    assert wide.high >= narrow.high - 1e-15 or narrow.high < 0
    assert np.sign(wide.low) == np.sign(narrow.low) or wins + losses == 0
    assert -1 <= wide.low <= wide.value <= wide.high <= 1


@pytest.mark.parametrize("rows", [40, 400])
@pytest.mark.parametrize(("p_win", "p_loss"), [(0.05, 0.05), (0.02, 0.08), (0.01, 0.0), (0.3, 0.1)])
def test_mcnemar_with_a_margin_is_wrong_no_more_often_than_its_level(rows, p_win, p_loss):
    """Over all that 20,000 draws of rows give; an exact method is never above its level but by luck."""
    draws = np.random.default_rng(rows).multinomial(rows, [p_win, p_loss, 1 - p_win - p_loss], size=20_000)
    seen, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    wrong_low = wrong_high = 0
    for (wins, losses), count in zip(seen, counts, strict=True):
        found = mcnemar(*told(wins, losses, rows - wins - losses, 0), 0.05, has_margin=True)
        wrong_low += count * (found.low > p_win - p_loss + 1e-12)
        wrong_high += count * (found.high < p_win - p_loss - 1e-12)
    noise = 4 * np.sqrt(0.05 * 0.95 / 20_000)
    assert max(wrong_low, wrong_high) / 20_000 <= 0.05 + noise


def test_accuracy_is_compared_at_the_gates_own_cut():
    label = np.array([0.0, 0, 1, 1] * 10)
    one, other = np.tile([0.1, 0.55, 0.8, 0.9], 10), np.tile([0.1, 0.2, 0.55, 0.9], 10)
    at_half = estimate_gain(ACCURACY, label, one, other, 0.05, "mcnemar")
    assert at_half.value == -0.25
    at_sixty = estimate_gain(ACCURACY.model_copy(update={"cut": 0.6}), label, one, other, 0.05, "mcnemar")
    assert at_sixty.value == 0.25
    assert at_sixty.low > 0


def test_whether_accuracy_has_a_margin_is_read_from_the_gate():
    label, one, other = scorers(np.random.default_rng(8), 300)
    strict, slices = ACCURACY, BySliceGate(metric="accuracy", cut=0.5, group_by="carrier")
    lenient = AgainstChampionGate(metric="accuracy", cut=0.5, must_be="not_worse", margin=0.02)
    narrow, same, wide = (estimate_gain(gate, label, one, other, 0.05, "mcnemar") for gate in (strict, slices, lenient))
    assert same == narrow
    assert wide.low < narrow.low


# --- bootstrap


@pytest.mark.parametrize("name", ["auc", "log_loss", "brier", "rmse", "mae"])
def test_the_bootstraps_bounds_agree_with_scipys_error(name):
    """Scipy draws other resamples: the two agree to the noise of 2,000, a few percent of the width."""
    label, one, other = scorers(np.random.default_rng(1), 300, d_one=1.3)
    metric = METRICS[name]
    sign = 1 if name == "auc" else -1

    def difference(rows, axis):
        rows = rows.astype(int)
        counts = np.stack([np.bincount(r, minlength=300) for r in np.atleast_2d(rows)]).astype(float)
        found = sign * (metric(label, one, counts) - metric(label, other, counts))
        return found.reshape(rows.shape[:-1])

    theirs = bootstrap((np.arange(300),), difference, n_resamples=2000, method="basic", rng=np.random.default_rng(2))
    gate = AgainstChampionGate(metric=name, must_be="better")
    found = estimate_gain(gate, label, one, other, 0.05, "bootstrap")
    width = student.isf(0.05, 299) * theirs.standard_error
    assert found.value == pytest.approx(
        sign * (metric(label, one, np.ones((1, 300))) - metric(label, other, np.ones((1, 300))))[0]
    )
    assert (found.value - found.low, found.high - found.value) == pytest.approx((width, width), rel=0.08)


def test_the_bootstrap_of_a_mean_is_the_paired_t_test():
    """Mean absolute errors are means over rows: their bounds are those of a paired t-test (Student 1908)."""
    random = np.random.default_rng(9)
    label = random.normal(50, 9, size=800)
    one, other = label + random.normal(0, 3, 800), label + random.normal(0, 3.2, 800)
    gains = np.abs(other - label) - np.abs(one - label)
    gate = AgainstChampionGate(metric="mae", must_be="better", resamples=4000)
    for level in (0.05, 1e-5):
        found = estimate_gain(gate, label, one, other, level, "bootstrap")
        width = student.isf(level, 799) * gains.std(ddof=1) / np.sqrt(800)
        assert found.value == pytest.approx(gains.mean())
        assert found.value - found.low == pytest.approx(width, rel=0.05)


def test_small_levels_are_not_cut_off_by_the_number_of_resamples():
    label, one, other = scorers(np.random.default_rng(10), 300)
    gate = AgainstChampionGate(metric="brier", must_be="better", resamples=200)
    lows = [estimate_gain(gate, label, one, other, level, "bootstrap").low for level in (1e-2, 1e-4, 1e-6, 1e-8)]
    steps = -np.diff(lows)
    assert (steps > 0.1 * (lows[0] - lows[-1])).all()


def test_resamples_without_a_class_are_named():
    label, one, other = scorers(np.random.default_rng(11), 200, share=0.0)
    with pytest.raises(NotComputedError, match=r"of 1,000 resamples drew .* 200 rows, 2 of them of the rarer class"):
        estimate_gain(AUC, label, one, other, 0.05, "bootstrap")


def test_a_function_of_the_users_is_compared_too():
    random = np.random.default_rng(12)
    label = random.normal(50, 9, size=200)
    one, other = label + random.normal(0, 2, 200), label + random.normal(0, 6, 200)
    own = AgainstChampionGate(
        metric="sklearn.metrics:median_absolute_error",
        higher_is_better=False,
        must_be="better",
        resamples=300,
    )
    found = estimate_gain(own, label, one, other, 0.01, "bootstrap")
    assert 0 < found.low < found.value < found.high


# --- what a level promises


@pytest.mark.parametrize(
    ("n", "share", "d_other", "level"),
    [(1000, 0.2, 1.0, 0.05), (200, 0.3, 1.3, 0.05), (100, 0.12, 1.0, 0.02), (300, 0.3, 1.0, 0.005)],
)
def test_bounds_of_auc_are_wrong_about_as_rarely_as_their_level(n, share, d_other, level):
    random = np.random.default_rng(4)
    gate = AUC
    true = norm.cdf(1 / np.sqrt(2)) - norm.cdf(d_other / np.sqrt(2))
    samples = 2000
    found = [
        estimate_gain(gate, *scorers(random, n, d_other=d_other, share=share), level, "delong") for _ in range(samples)
    ]
    noise = 4 * np.sqrt(level / samples)
    for wrong in (np.mean([g.low > true for g in found]), np.mean([g.high < true for g in found])):
        assert 0.5 * level - noise <= wrong <= 1.3 * level + noise


@pytest.mark.parametrize("level", [0.05, 0.01])
def test_bootstrap_bounds_are_wrong_about_as_often_as_alpha(level):
    random = np.random.default_rng(13)
    gate = AgainstChampionGate(metric="mae", must_be="better", resamples=200)
    wrong = []
    for _ in range(1500):
        label = random.normal(size=150)
        one, other = label + random.standard_t(6, size=(2, 150))
        found = estimate_gain(gate, label, one, other, level, "bootstrap")
        wrong.append((found.low > 0, found.high < 0))
    noise = 4 * np.sqrt(level / 1500)
    assert (np.abs(np.mean(wrong, axis=0) - level) <= 0.3 * level + noise).all()


def test_delong_agrees_with_a_test_that_assumes_nothing():
    """Scores of each row swapped at random (Venkatraman and Begg 1996): where the two are alike, p-values agree."""
    label, one, other = scorers(np.random.default_rng(15), 250, d_one=1.25)

    def auc(score):
        """By the sum of ranks (Wilcoxon 1945), of many scorers at once."""
        ones = int(label.sum())
        ranks = rankdata(score, axis=-1)[..., label == 1].sum(axis=-1)
        return (ranks - ones * (ones + 1) / 2) / (ones * (label.size - ones))

    def difference(x, y, axis=-1):
        return auc(np.moveaxis(x, axis, -1)) - auc(np.moveaxis(y, axis, -1))

    p = permutation_test(
        (one, other),
        difference,
        permutation_type="samples",
        n_resamples=4000,
        alternative="greater",
        vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue
    found = delong(label, one, other)
    assert student.sf(found.gain / found.standard_error, found.degrees_of_freedom) == pytest.approx(p, abs=0.02)
