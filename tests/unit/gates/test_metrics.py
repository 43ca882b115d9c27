"""Every metric against another library's, or against its definition written out."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from evergreen.gates.metrics import METRICS, auc, brier, calibration_error, log_loss, value
from evergreen.gates.spec import SCALES, MetricName

pytestmark = pytest.mark.unit


def rows(n=400, *, tied=False, seed=0):
    random = np.random.default_rng(seed)
    score = random.beta(2, 5, size=n)
    if tied:
        score = np.round(score, 1)
    label = (random.random(n) < score).astype(float)
    return label, score, random.integers(0, 4, size=(3, n)).astype(float)


def sklearn_reference(name, label, score, weight):
    if name == "auc":
        return sklearn_metrics.roc_auc_score(label, score, sample_weight=weight)
    if name == "brier":
        return sklearn_metrics.brier_score_loss(label, score, sample_weight=weight)
    return sklearn_metrics.log_loss(label, score, sample_weight=weight)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["auc", "brier", "log_loss"])
def test_equals_scikit_learn_for_every_weighting(name, tied):
    label, score, weight = rows(tied=tied)
    expected = [sklearn_reference(name, label, score, w) for w in weight]
    assert METRICS[name](label, score, weight) == pytest.approx(expected, rel=1e-12)
    assert value(METRICS[name], label, score) == pytest.approx(sklearn_reference(name, label, score, None))


@pytest.mark.parametrize("name", get_args(MetricName))
def test_a_weight_is_a_count(name):
    """A row of weight 3 counts as that row three times; of weight 0, not at all."""
    label, score, weight = rows(tied=True)
    times = weight[0].astype(int)
    if name == "calibration_error":
        times[:] = 3  # its bins are those of the unweighted rows
    repeated = value(METRICS[name], np.repeat(label, times), np.repeat(score, times))
    assert METRICS[name](label, score, times[None].astype(float))[0] == pytest.approx(repeated, rel=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auc_counts_the_pairs_won_with_ties_half(pairs):
    label = np.array([float(y) for y, _ in pairs])
    score = np.array([s / 5 for _, s in pairs])
    ones, zeros = score[label == 1], score[label == 0]
    if not (ones.size and zeros.size):
        assert np.isnan(value(auc, label, score))
        return
    won = (ones[:, None] > zeros).sum() + (ones[:, None] == zeros).sum() / 2
    assert value(auc, label, score) == won / (ones.size * zeros.size)  # to the last bit
    assert value(auc, label, score) == mannwhitneyu(ones, zeros).statistic / (ones.size * zeros.size)


def test_auc_is_nan_only_for_weightings_without_a_class():
    label, score = np.array([0.0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9])
    weight = np.array([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    assert auc(label, score, weight) == pytest.approx([0.75, np.nan, np.nan], nan_ok=True)


def test_log_loss_of_certain_and_wrong_is_large_not_infinite():
    certain = value(log_loss, np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert certain == pytest.approx(SCALES["log_loss"].largest)
    assert certain == pytest.approx(sklearn_metrics.log_loss([1, 0], [0.0, 1.0]))


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_scikit_learns_curve(seed):
    """Without ties and with a multiple of ten rows its quantile bins are ours, each a tenth of the rows."""
    label, score, _ = rows(n=1000, seed=seed)
    share, mean = calibration_curve(label, score, n_bins=10, strategy="quantile")
    assert value(calibration_error, label, score) == pytest.approx(np.abs(share - mean).mean(), rel=1e-12)


def test_calibration_error_with_ties_and_weights_by_definition():
    label, score, weight = rows(n=237, tied=True)
    bins = [int((score < s).sum() * 10 / score.size) for s in score]
    for w in weight:
        expected = 0.0
        for b in set(bins):
            member = np.array(bins) == b
            if mass := w[member].sum():
                share = (w * label)[member].sum() / mass
                mean = (w * score)[member].sum() / mass
                expected += mass / w.sum() * abs(share - mean)
        assert calibration_error(label, score, w[None])[0] == pytest.approx(expected, rel=1e-12)


def test_calibration_error_of_a_calibrated_scorer_is_its_stated_noise():
    random = np.random.default_rng(0)
    n, p = 1000, 0.2
    errors = []
    for _ in range(200):
        score = p + random.uniform(-1e-6, 1e-6, size=n)
        errors.append(value(calibration_error, (random.random(n) < score).astype(float), score))
    assert np.mean(errors) == pytest.approx(0.8 * np.sqrt(10 * p * (1 - p) / n), rel=0.05)


def test_brier_of_a_coin_is_a_quarter():
    assert value(brier, np.array([0.0, 1, 1]), np.full(3, 0.5)) == 0.25


def test_every_named_metric_has_a_function_and_a_scale():
    assert set(METRICS) == set(SCALES) == set(get_args(MetricName))


@given(st.integers(0, 2**32 - 1), st.sampled_from(get_args(MetricName)))
def test_values_stay_on_their_scale(seed, name):
    random = np.random.default_rng(seed)
    label = np.r_[0.0, 1.0, random.integers(0, 2, size=20)]
    score = random.choice([0.0, 1e-300, 0.3, 0.5, 1.0], size=22)
    assert 0 <= value(METRICS[name], label, score) <= SCALES[name].largest * (1 + 1e-12)
