"""Curves and bins agree with scikit-learn and do not depend on the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from evergreen.reports import curves
from evergreen.reports.curves import ScoredRows

pytestmark = pytest.mark.unit


def _rows(n: int, *, digits: int | None = None) -> ScoredRows:
    random = np.random.default_rng(n)
    label = (random.random(n) < 0.3).astype(float)
    score = 1 / (1 + np.exp(-random.normal(1.2 * label, 1)))
    return ScoredRows("candidate", label, score if digits is None else score.round(digits))


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
    _, message = curves.select_scored_rows("candidate", label, score, is_binary=True)
    assert message.startswith(problem)
