"""Curves and bins agree with scikit-learn and do not depend on the order of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from evergreen.gates import AgainstChampionGate, Evidence
from evergreen.gates.clusters import NO_CLUSTERS, RowClusters
from evergreen.reports import curves
from evergreen.reports.curves import ScoredRows
from support.clusters import day_clusters, row_clusters

pytestmark = pytest.mark.unit


def _rows(n: int, *, digits: int | None = None) -> ScoredRows:
    random = np.random.default_rng(n)
    label = (random.random(n) < 0.3).astype(float)
    score = 1 / (1 + np.exp(-random.normal(1.2 * label, 1)))
    clusters = RowClusters.from_columns(day_clusters(n, 14))
    return ScoredRows("candidate", label, score if digits is None else score.round(digits), clusters)


@pytest.mark.parametrize("rows", [_rows(50), _rows(3_000), _rows(50_000), _rows(50_000, digits=1)])
def test_roc_curve_keeps_area_when_thinned(rows: ScoredRows) -> None:
    curve = curves.roc_curve(rows)
    assert curve is not None
    assert curve.false_positive_rate.size <= 1024
    assert curve.auc == pytest.approx(roc_auc_score(rows.label, rows.score), abs=1e-12)
    assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(curve.auc, abs=1e-3)


def test_roc_curve_keeps_area_of_one_sided_stairs() -> None:
    # Steps a little shorter than those of the thinning, each first up and then right.
    blocks = 530
    label = np.tile(np.repeat([1.0, 0.0], 50), blocks)
    curve = curves.roc_curve(ScoredRows("candidate", label, -np.arange(label.size, dtype=float)))
    assert curve is not None
    assert curve.false_positive_rate.size <= 1024
    assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(curve.auc, abs=1e-3)


def test_roc_curve_keeps_corners_before_long_steps() -> None:
    # Class 0 shares one score: up, a step across the whole plot, and up again.
    for above in range(400, 410):
        label = np.repeat([1.0, 0.0, 1.0], [above, 1_000, 1_000 - above])
        score = np.concatenate(
            [np.linspace(0.6, 0.9, above), np.full(1_000, 0.5), np.linspace(0.1, 0.4, 1_000 - above)]
        )
        curve = curves.roc_curve(ScoredRows("candidate", label, score))
        assert curve is not None
        assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(
            above / 1_000, abs=1e-4
        )


def test_roc_curve_of_one_class_is_none() -> None:
    assert curves.roc_curve(ScoredRows("candidate", np.ones(5), np.arange(5.0))) is None


def test_calibration_bins_equal_scikit_learn() -> None:
    rows = _rows(5_000)
    share, predicted = calibration_curve(rows.label, rows.score, n_bins=10, strategy="quantile")
    bins = curves.calibration_bins(rows)
    assert [bin_.rows for bin_ in bins] == [500] * 10
    assert [bin_.mean_prediction for bin_ in bins] == pytest.approx(predicted)
    assert [bin_.mean_label for bin_ in bins] == pytest.approx(share)
    assert all(bin_.low < bin_.mean_label < bin_.high for bin_ in bins)


def test_calibration_bounds_of_independent_rows_are_those_of_wilson() -> None:
    rows = replace(_rows(5_000), clusters=RowClusters.from_columns(row_clusters(np.zeros(5_000))))
    for bin_ in curves.calibration_bins(rows, 4):
        wilson = binomtest(round(bin_.mean_label * bin_.rows), bin_.rows).proportion_ci(0.95, "wilson")
        assert (bin_.low, bin_.high) == pytest.approx((wilson.low, wilson.high), abs=2e-4)


def test_calibration_bounds_hold_where_days_differ() -> None:
    """The share of label 1 differs between days: bounds by days miss the true 30 % in about 5 of 100, bounds by rows
    in most."""
    random = np.random.default_rng(5)
    missed = []
    for _ in range(400):
        share = np.repeat(0.3 + 0.1 * random.uniform(-1.7, 1.7, 14), 100)
        label, score = (random.random(1_400) < share).astype(float), np.zeros(1_400)
        for columns in (day_clusters(1_400, 14), row_clusters(score)):
            [bin_] = curves.calibration_bins(
                ScoredRows("candidate", label, score, RowClusters.from_columns(columns)), 1
            )
            missed.append(not bin_.low <= 0.3 <= bin_.high)
    by_days, by_rows = missed[::2], missed[1::2]
    assert 0.02 <= np.mean(by_days) <= 0.09
    assert np.mean(by_rows) > 0.3


def test_calibration_bounds_of_too_few_days_are_all_there_is() -> None:
    rows = _rows(300)
    for clusters in (NO_CLUSTERS, RowClusters.from_columns(day_clusters(300, 3))):
        bins = curves.calibration_bins(replace(rows, clusters=clusters))
        assert {(bin_.low, bin_.high) for bin_ in bins} == {(0.0, 1.0)}


def test_cluster_gains_are_those_of_scikit_learn_by_day() -> None:
    rows, other = _rows(1_400), _rows(1_400, digits=1).score
    days = day_clusters(1_400, 14)["day"]
    label = rows.label.copy()
    label[:100] = 0  # a day without late flights has no AUC
    evidence = Evidence(label, rows.score, other, clusters={"plane": ["x"] * 1_400, "day": days})
    way, gains, hidden = curves.cluster_gains(AgainstChampionGate(metric="auc", must_be="better"), evidence)
    assert (way, hidden, [part.rows for part in gains]) == ("day", 0, [100] * 14)
    assert gains[0] == ("2013-03-01", 100, None)
    at = slice(500, 600)
    expected = roc_auc_score(label[at], rows.score[at]) - roc_auc_score(label[at], other[at])
    assert gains[5] == ("2013-03-06", 100, pytest.approx(expected))


def test_cluster_gains_of_many_planes_are_of_those_with_most_rows() -> None:
    planes = [f"N{number:03}" for number in range(100) for _ in range(1 + number)]
    label = np.arange(len(planes)) / len(planes)
    evidence = Evidence(label, label + 0.1, label + 0.3, clusters={"plane": planes})
    way, gains, hidden = curves.cluster_gains(AgainstChampionGate(metric="mae", must_be="better"), evidence)
    assert (way, hidden, len(gains), gains[0].name) == ("plane", 40, 60, "N040")
    assert all(part.gain == pytest.approx(0.2) for part in gains)


def test_calibration_bins_keep_equal_scores_together() -> None:
    bins = curves.calibration_bins(_rows(5_000, digits=1))
    assert len({bin_.mean_prediction for bin_ in bins}) == len(bins) < 10
    assert sum(bin_.rows for bin_ in bins) == 5_000


def test_continuous_bins_cover_the_labels() -> None:
    random = np.random.default_rng(3)
    score = random.normal(size=4_000)
    bins = curves.continuous_bins(ScoredRows("candidate", score + random.normal(size=4_000), score))
    assert len(bins) == 20
    # 10 % and 90 % of a normal distribution lie 1.28 from its mean.
    assert np.mean([bin_.high - bin_.mean_label for bin_ in bins[5:15]]) == pytest.approx(1.28, abs=0.1)


def test_curves_do_not_depend_on_row_order() -> None:
    rows = _rows(2_000)
    order = np.random.default_rng(0).permutation(2_000)
    other = ScoredRows("candidate", rows.label[order], rows.score[order])
    for one, two in zip(curves.sample_evenly(rows), curves.sample_evenly(other), strict=True):
        np.testing.assert_array_equal(one, two)
    one, two = curves.roc_curve(rows), curves.roc_curve(other)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.false_positive_rate, two.false_positive_rate)


def test_empirical_distribution_ends_at_all_rows() -> None:
    values, share = curves.empirical_distribution(np.random.default_rng(1).random(10_000))
    assert values.size == 300
    assert share[-1] == 100
    assert np.abs(share / 100 - values).max() < 0.02  # of the uniform distribution


@pytest.mark.parametrize(
    ("label", "score", "problem"),
    [
        (
            [0, 1, 2, 1],
            [0.1, 0.2, 0.3, np.nan],
            "1 of 4 labels are neither 0 nor 1 and 1 of 4 scores of the candidate",
        ),
        ([0, 1], [0.1], "the candidate has 1 scores for 2 labels"),
        ([0, 1], ["a", "b"], "the candidate's scores are not one row of numbers"),
        ([[0], [1]], [0.1, 0.2], "the labels are not one row of numbers"),
        ([0, [1]], [0.1, 0.2], "the labels are not one row of numbers"),
        ([], [], "there are no labels"),
        (np.ma.masked_array([0, 1], [True, False]), [0.1, 0.2], "the labels are not one row of numbers"),
        ([0, 1], [np.inf, 1e300], "2 of 2 scores of the candidate are NaN"),
    ],
)
def test_select_scored_rows_names_rows_left_out(label: object, score: object, problem: str) -> None:
    _, message = curves.select_scored_rows("candidate", label, score, NO_CLUSTERS, is_binary=True)
    assert message.startswith(problem)
