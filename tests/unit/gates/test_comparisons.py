"""Each comparison against its definition written out or another library's, and against what its level promises."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm, permutation_test, rankdata, ttest_1samp, ttest_rel
from scipy.stats import t as student
from sklearn.metrics import median_absolute_error, precision_score, recall_score, roc_auc_score

from evergreen.gates import AgainstChampionGate
from evergreen.gates.clusters import RowClusters, degrees_of_freedom
from evergreen.gates.comparisons import EstimatedGain, MetricGain, delong, jackknife
from evergreen.gates.metrics import compute_metric, resolve_metric
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import MIN_CLUSTERS
from support.clusters import day_clusters, row_clusters
from support.gains import estimate_gain

pytestmark = pytest.mark.unit

AUC, MAE, RMSE, BRIER, LOG_LOSS = (
    AgainstChampionGate(metric=metric, must_be="better") for metric in ("auc", "mae", "rmse", "brier", "log_loss")
)
ACCURACY, PRECISION, RECALL = (
    AgainstChampionGate(metric=metric, cut=0.5, must_be="better") for metric in ("accuracy", "precision", "recall")
)
MEDIAN = AgainstChampionGate(metric="sklearn.metrics:median_absolute_error", higher_is_better=False, must_be="better")
GATES = (AUC, MAE, RMSE, BRIER, LOG_LOSS, ACCURACY, PRECISION, RECALL, MEDIAN)


def rows_alone(label):
    return RowClusters.from_columns(row_clusters(label))


def blocks(rows, days):
    return RowClusters.from_columns(day_clusters(rows, days))


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


def gains_of_pairs(label, one, other):
    """By every pair of a row of class 1 and one of class 0, (m, n): how much more of it `one` wins, ties half."""
    ones, zeros = label == 1, label == 0

    def won(score):
        above, below = score[ones][:, None], score[zeros][None, :]
        return (above > below) + (above == below) / 2

    return won(one) - won(other)


def written_out(label, one, other):
    """Gain and error by the formula of DeLong et al. 1988: every pair of rows, O(n m)."""
    matrix = gains_of_pairs(label, one, other)
    m, n = matrix.shape
    s10, s01 = matrix.mean(axis=1).var(ddof=1), matrix.mean(axis=0).var(ddof=1)
    return matrix.mean(), np.sqrt(s10 / m + s01 / n), s10 / m, s01 / n


def welch(label, v10, v01):
    """Degrees of freedom of the sum of two variances, each from the rows of a class."""
    return (v10 + v01) ** 2 / (v10**2 / (label.sum() - 1) + v01**2 / ((1 - label).sum() - 1))


rows_of_few_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=90)


@settings(max_examples=200)
@given(rows_of_few_scores)
def test_delong_is_its_formula_with_ties(rows):
    label, one, other = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    positives = int(label.sum())
    if min(positives, label.size - positives) < 2:
        with pytest.raises(NotComputedError, match="needs 2 of each"):
            delong(label, one, other, rows_alone(label))
        return
    difference, error, v10, v01 = written_out(label, one, other)
    share = 1 / np.where(label == 1, positives, label.size - positives)
    freedom = welch(label, v10, v01) if error else degrees_of_freedom(share)
    if freedom + 1 < MIN_CLUSTERS - 1e-9:  # as exact as rounding is
        with pytest.raises(NotComputedError, match="too few to know the error"):
            delong(label, one, other, rows_alone(label))
        return
    if error < 1e-12:
        if abs(difference) > 1e-12:
            with pytest.raises(NotComputedError, match="gain is the same in all of"):
                delong(label, one, other, rows_alone(label))
        else:
            assert delong(label, one, other, rows_alone(label)).standard_error == 0
        return
    found = delong(label, one, other, rows_alone(label))
    assert (found.gain, found.standard_error) == (pytest.approx(difference, abs=1e-12), pytest.approx(error))


@pytest.mark.parametrize("decimals", [1, 3, 17])
@pytest.mark.parametrize("n", [60, 1500])
def test_delong_is_its_formula_and_its_gain_that_of_scikit_learn(n, decimals):
    label, one, other = (column.round(decimals) for column in scorers(np.random.default_rng(n), n))
    found = delong(label, one, other, rows_alone(label))
    difference, error, v10, v01 = written_out(label, one, other)
    assert found.gain == pytest.approx(roc_auc_score(label, one) - roc_auc_score(label, other), abs=1e-12)
    assert (found.gain, found.standard_error) == (pytest.approx(difference, abs=1e-12), pytest.approx(error))
    assert found.degrees_of_freedom == pytest.approx(welch(label, v10, v01))


def test_delong_gains_by_mann_whitney():
    label, one, other = scorers(np.random.default_rng(5), 300)
    u = [mannwhitneyu(s[label == 1], s[label == 0]).statistic for s in (one, other)]
    pairs = label.sum() * (1 - label).sum()
    assert delong(label, one, other, rows_alone(label)).gain == pytest.approx((u[0] - u[1]) / pairs, abs=1e-14)


def test_the_bounds_of_auc_are_the_errors_student_quantile():
    label, one, other = scorers(np.random.default_rng(1), 400, d_one=1.2)
    found = delong(label, one, other, rows_alone(label))
    for level in (0.4, 0.05, 1e-3, 1e-9):
        bounds = estimate_gain(AUC, label, one, other, rows_alone(label), level)
        width = student.isf(level, found.degrees_of_freedom) * found.standard_error
        assert bounds.low == pytest.approx(found.gain - width)
        assert bounds.high == pytest.approx(found.gain + width)
    extreme = estimate_gain(AUC, label, one, other, rows_alone(label), 1e-300)
    assert (extreme.low, extreme.high) == (-1.0, 1.0)  # no gain in AUC is larger


def test_what_is_not_known_of_a_gain_counts_against_it():
    for error in (0.0, 0.01):
        sure = EstimatedGain(0.05, error, 9.0)
        unsure = replace(sure, resolution=0.02)
        assert unsure.bounds(0.1, 1.0).low == pytest.approx(sure.bounds(0.1, 1.0).low - 0.02)
        assert unsure.bounds(0.1, 1.0).high == pytest.approx(sure.bounds(0.1, 1.0).high + 0.02)
        assert unsure.significance(0.02) == pytest.approx(sure.significance(0.04))
        assert unsure.significance(0.04) == pytest.approx(sure.significance(0.06))


@pytest.mark.parametrize("ways", [("day",), ("plane",), ("day", "plane")])
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.metric)
def test_the_order_of_rows_changes_no_bit(gate, ways):
    random = np.random.default_rng(3)
    label, one, other = (column.round(2) for column in scorers(np.random.default_rng(2), 500))
    columns = {"day": random.integers(12, size=500).astype(str), "plane": random.integers(90, size=500).astype(str)}
    order = random.permutation(500)
    there, back = (
        estimate_gain(
            gate,
            label[rows],
            one[rows],
            other[rows],
            RowClusters.from_columns({way: columns[way][rows] for way in ways}),
            0.01,
        )
        for rows in (np.arange(500), order)
    )
    assert there == back


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.metric)
def test_the_one_gains_what_the_other_loses(gate):
    label, one, other = scorers(np.random.default_rng(4), 300, d_one=1.3)
    there, back = (estimate_gain(gate, label, *pair, blocks(300, 10), 0.01) for pair in ((one, other), (other, one)))
    assert (back.value, back.low) == (pytest.approx(-there.value), pytest.approx(-there.high))
    assert there.low < there.value < there.high


def test_the_same_scores_are_a_gain_of_nothing_for_sure():
    label, one, _ = scorers(np.random.default_rng(6), 200)
    for gate in GATES:
        assert estimate_gain(gate, label, one, one.copy(), blocks(200, 1), 1e-6) == MetricGain(0.0, 0.0, 0.0)
    # The same order, of other numbers: nothing that AUC can see.
    assert estimate_gain(AUC, label, one, one**3, rows_alone(label), 1e-6) == MetricGain(0.0, 0.0, 0.0)


def test_a_sure_gain_with_no_spread_is_no_certainty():
    """All of class 1 first, against all last: no row tells how far off the whole may be."""
    label = np.tile([0.0, 1.0], 50)
    for gate, ours, theirs in ((AUC, label, 1 - label), (MAE, label, label + 0.5)):
        with pytest.raises(NotComputedError, match="in all of 10 days: its error is not known"):
            estimate_gain(gate, label, ours, theirs, blocks(100, 10), 0.05)


# --- clusters


def obuchowski(label, one, other, codes):
    """Gain and variance by the formulas of Obuchowski 1997, cluster by cluster and pair by pair."""
    ones, zeros = label == 1, label == 0
    matrix = gains_of_pairs(label, one, other)
    m, n = matrix.shape
    gain, placements, others = matrix.mean(), matrix.mean(axis=1), matrix.mean(axis=0)
    names = sorted(set(codes))
    of_ones, of_zeros = ([(codes[rows] == name) for name in names] for rows in (ones, zeros))
    v10 = np.array([placements[at].sum() - at.sum() * gain for at in of_ones])
    v01 = np.array([others[at].sum() - at.sum() * gain for at in of_zeros])
    i10, i01 = (sum(at.any() for at in found) for found in (of_ones, of_zeros))
    i = len(names)
    s10 = i10 / ((i10 - 1) * m) * (v10**2).sum()
    s01 = i01 / ((i01 - 1) * n) * (v01**2).sum()
    s11 = i / (i - 1) * (v10 * v01).sum()
    return gain, s10 / m + s01 / n + 2 * s11 / (m * n)


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(14, 30), st.sampled_from([1, 2, 17]))
def test_auc_by_clusters_is_the_formula_of_obuchowski(seed, clusters, decimals):
    random = np.random.default_rng(seed)
    label, one, other = (column.round(decimals) for column in scorers(random, 240))
    codes = random.integers(clusters, size=240)
    found = delong(label, one, other, RowClusters.from_columns({"day": codes.astype(str)}))
    gain, variance = obuchowski(label, one, other, codes)
    assert found.gain == pytest.approx(gain, abs=1e-12)
    assert found.standard_error == pytest.approx(np.sqrt(variance))
    assert 4 <= found.degrees_of_freedom < clusters


def test_a_cluster_of_each_row_makes_means_the_paired_t_test():
    """Mean absolute errors are means over rows: their bounds are those of a paired t-test (Student 1908)."""
    random = np.random.default_rng(9)
    label = random.normal(50, 9, size=800)
    one, other = label + random.normal(0, 3, 800), label + random.normal(0, 3.2, 800)
    errors = np.abs(other - label), np.abs(one - label)
    for level in (0.05, 1e-5):
        found = estimate_gain(MAE, label, one, other, rows_alone(label), level)
        theirs = ttest_rel(*errors).confidence_interval(1 - 2 * level)
        assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


@pytest.mark.parametrize("gate", [MAE, BRIER, ACCURACY, LOG_LOSS], ids=lambda gate: gate.metric)
def test_equal_clusters_make_means_the_t_test_of_their_means(gate):
    label, one, other = scorers(np.random.default_rng(10), 420)
    metric, sign = resolve_metric(gate), 1 if gate.scale.higher_is_better else -1
    days = np.repeat(np.arange(14), 30)
    gains = [
        sign * (compute_metric(metric, label[at], one[at]) - compute_metric(metric, label[at], other[at]))
        for at in (days == day for day in range(14))
    ]
    for level in (0.05, 1e-6):
        found = estimate_gain(gate, label, one, other, blocks(420, 14), level)
        theirs = ttest_1samp(gains, 0).confidence_interval(1 - 2 * level)
        top = gate.scale.maximum
        assert found.value == pytest.approx(np.mean(gains))
        assert (found.low, found.high) == (
            pytest.approx(max(theirs.low, -top)),
            pytest.approx(min(theirs.high, top)),
        )


def by_leaving_out(gate, label, one, other, codes):
    """Gain and error of the jackknife, written out with scikit-learn."""
    functions = {
        "rmse": lambda y, s: -np.sqrt(np.mean((y - s) ** 2)),
        "precision": lambda y, s: precision_score(y, s >= gate.cut),
        "recall": lambda y, s: recall_score(y, s >= gate.cut),
        "sklearn.metrics:median_absolute_error": lambda y, s: -median_absolute_error(y, s),
    }

    def gain(at):
        return functions[gate.metric](label[at], one[at]) - functions[gate.metric](label[at], other[at])

    names = sorted(set(codes))
    whole = gain(codes >= 0)
    changes = [gain(codes != name) - whole for name in names]
    return whole, np.sqrt((len(names) - 1) / len(names) * np.sum(np.square(changes)))


@pytest.mark.parametrize("gate", [RMSE, PRECISION, RECALL, MEDIAN], ids=lambda gate: gate.metric.split(":")[-1])
def test_other_metrics_leave_out_one_cluster_at_a_time(gate):
    random = np.random.default_rng(11)
    label, one, other = scorers(random, 600)
    codes = random.integers(12, size=600)
    found = jackknife(gate, label, one, other, RowClusters.from_columns({"day": codes.astype(str)}))
    assert (found.gain, found.standard_error) == pytest.approx(by_leaving_out(gate, label, one, other, codes))


def test_users_functions_are_called_for_groups_of_clusters():
    label, one, other = scorers(np.random.default_rng(12), 3000)
    whole = RowClusters.from_columns({"plane": (np.arange(3000) % 1000).astype(str)})
    own = AgainstChampionGate(metric="sklearn.metrics:mean_absolute_error", higher_is_better=False, must_be="better")
    grouped, exact = (jackknife(gate, label, one, other, whole) for gate in (own, MAE))
    assert (grouped.degrees_of_freedom, exact.degrees_of_freedom) == (pytest.approx(199), pytest.approx(999))
    # The error of 200 groups is known to 1/√400.
    assert grouped.standard_error == pytest.approx(exact.standard_error, rel=0.15)


# Gains of six days (rows) and nine planes (columns), and their variances by statsmodels 0.14: `cov_cluster_2groups` of
# a mean, with its correction for the number of clusters.
TWO_WAY = np.array(
    [
        -1.557,
        1.835,
        0.848,
        -0.128,
        -1.726,
        2.05,
        -1.479,
        -1.017,
        -0.75,
        -0.986,
        2.346,
        0.991,
        0.823,
        1.542,
        0.94,
        1.011,
        1.149,
        -0.282,
        0.668,
        0.839,
        1.972,
        0.904,
        0.531,
        1.938,
        -0.204,
        -0.926,
        2.273,
        0.586,
        -1.596,
        -0.064,
        -0.66,
        -1.602,
        2.041,
        -0.864,
        -2.767,
        -0.379,
        -2.425,
        1.371,
        -0.866,
        1.555,
        -1.168,
        1.042,
        -0.186,
        0.445,
        0.312,
        1.634,
        3.67,
        2.396,
        1.182,
        0.838,
        3.442,
        0.676,
        -2.004,
        0.301,
    ]
)
TWO_WAY_VARIANCES = {
    ("day",): 0.0945046925240054,
    ("plane",): 0.09018020919067206,
    ("day", "plane"): 0.14548710767657927,
}


@pytest.mark.parametrize("ways", TWO_WAY_VARIANCES)
def test_means_by_clusters_have_the_variance_of_statsmodels(ways):
    days, planes = np.divmod(np.arange(54), 9)
    clusters = RowClusters.from_columns({way: {"day": days, "plane": planes}[way].astype(str) for way in ways})
    label = np.zeros(54)
    found = jackknife(MAE, label, label + 10, label + 10 + TWO_WAY, clusters)
    assert found.gain == pytest.approx(TWO_WAY.mean())
    assert found.standard_error**2 == pytest.approx(TWO_WAY_VARIANCES[ways])
    assert found.degrees_of_freedom == pytest.approx({"day": 5, "plane": 8}[ways[0]])


def test_two_ways_are_never_surer_than_one():
    """Where pairs differ more than days and planes do, the formula would be less than either, or even negative."""
    random = np.random.default_rng(14)
    days, planes = np.divmod(np.arange(400), 20)
    columns = {"day": days.astype(str), "plane": planes.astype(str)}
    for _ in range(20):
        label, one, other = scorers(random, 400)
        for gate in (AUC, MAE, MEDIAN):
            both, *ways = (
                estimate_gain(gate, label, one, other, RowClusters.from_columns(kinds), 0.01)
                for kinds in (columns, {"day": columns["day"]}, {"plane": columns["plane"]})
            )
            assert both.low <= min(way.low for way in ways) + 1e-12


def test_fewer_degrees_of_freedom_where_few_clusters_have_most_rows():
    """With one day of half of the rows, the 14 days weigh like one or two of equal size."""
    sizes = np.array([390, *[30] * 13], dtype=float)
    shares = sizes / sizes.sum()
    expected = (shares**2).sum() ** 2 / (shares**4).sum() * 13 / 14
    assert degrees_of_freedom(sizes) == pytest.approx(expected)
    assert degrees_of_freedom(np.full(14, 30.0)) == pytest.approx(13)
    label, one, other = scorers(np.random.default_rng(15), 780)
    days = RowClusters.from_columns({"day": np.repeat(np.arange(14), sizes.astype(int)).astype(str)})
    with pytest.raises(
        NotComputedError, match=r"14 days, which weigh like [12]\.\d of equal size, are too few .* would do"
    ):
        estimate_gain(MAE, label, one, other, days, 0.05)


def test_a_metric_that_one_cluster_alone_has_is_named():
    label, one, other = scorers(np.random.default_rng(16), 300)
    label[30:] = 0
    with pytest.raises(NotComputedError, match="without 1 of 10 clusters recall does not exist|too few"):
        estimate_gain(RECALL, label, one, other, blocks(300, 10), 0.05)
    with pytest.raises(NotComputedError, match="10 days.* too few to know the error of the gain"):
        estimate_gain(AUC, label, one, other, blocks(300, 10), 0.05)


def days_that_differ(random, spread, days=14, rows=60, gain=0.0):
    """Two scorers; the gain of one in AUC differs between days, with this standard deviation."""
    label = np.tile(np.repeat([1.0, 0.0], [rows // 5, rows - rows // 5]), days)
    own = gain + spread * random.normal(size=days)
    distance = np.sqrt(2) * norm.ppf(np.repeat(0.7 + own, rows))
    shared, one, other = random.normal(size=(3, label.size))
    ours = norm.cdf(distance * label + 0.95 * shared + 0.31 * one)
    return label, ours, norm.cdf(np.sqrt(2) * norm.ppf(0.7) * label + 0.95 * shared + 0.31 * other)


@pytest.mark.parametrize("gate", [AUC, BRIER], ids=lambda gate: gate.metric)
def test_the_error_by_days_is_the_spread_of_the_gain_over_many_worlds(gate):
    """Of AUC and Brier score where days differ: the standard deviation of the gain, known by drawing it 1,500 times."""
    random = np.random.default_rng(17)
    drawn = [days_that_differ(random, 0.03) for _ in range(1500)]
    days, rows = blocks(840, 14), rows_alone(drawn[0][0])
    estimate = delong if gate is AUC else partial(jackknife, gate)
    found = [estimate(*data, days) for data in drawn]
    true = np.std([estimated.gain for estimated in found])
    assert np.sqrt(np.mean([estimated.standard_error**2 for estimated in found])) == pytest.approx(true, rel=0.06)
    if gate is AUC:  # rows alone tell far too little
        alone = [estimate(*data, rows).standard_error ** 2 for data in drawn[:200]]
        assert np.sqrt(np.mean(alone)) < 0.85 * true


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_bounds_by_days_are_wrong_as_rarely_as_their_level(level):
    random = np.random.default_rng(18)
    samples = 3000
    found = [estimate_gain(AUC, *days_that_differ(random, 0.03), blocks(840, 14), level) for _ in range(samples)]
    true = np.mean([gain.value for gain in found])
    noise = 4 * np.sqrt(level / samples)
    for wrong in (np.mean([gain.low > true for gain in found]), np.mean([gain.high < true for gain in found])):
        assert 0.5 * level - noise <= wrong <= 1.2 * level + noise


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
    rows = rows_alone(np.empty(n))
    found = [
        estimate_gain(gate, *scorers(random, n, d_other=d_other, share=share), rows, level) for _ in range(samples)
    ]
    noise = 4 * np.sqrt(level / samples)
    for wrong in (np.mean([g.low > true for g in found]), np.mean([g.high < true for g in found])):
        assert 0.5 * level - noise <= wrong <= 1.3 * level + noise


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
    found = delong(label, one, other, rows_alone(label))
    assert student.sf(found.gain / found.standard_error, found.degrees_of_freedom) == pytest.approx(p, abs=0.02)
