"""Every metric against another library's, or against its definition written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from evergreen.gates import AgainstChampionGate, FairnessGate, ThresholdGate
from evergreen.gates.metrics import (
    METRICS,
    auc,
    brier,
    calibration_error,
    compute_metric,
    log_loss,
    resolve_metric,
)
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import METRIC_SCALES

pytestmark = pytest.mark.unit


def rows(n=400, *, tied=False, seed=0):
    random = np.random.default_rng(seed)
    score = random.beta(2, 5, size=n)
    if tied:
        score = np.round(score, 1)
    label = (random.random(n) < score).astype(float)
    return label, score, random.integers(0, 4, size=(3, n)).astype(float)


def amounts(n=400, seed=0):
    random = np.random.default_rng(seed)
    label = random.gamma(2, 20, size=n)
    return label, label + random.normal(scale=15, size=n), random.integers(0, 4, size=(3, n)).astype(float)


def counts(n=400, seed=0):
    random = np.random.default_rng(seed)
    mean = random.gamma(2, 2, size=n)
    return random.poisson(mean).astype(float), mean + 0.1, random.integers(0, 4, size=(3, n)).astype(float)


COSTS = [[0, 1], [4, 0.5]]
OTHER_KINDS = [name for name, scale in METRIC_SCALES.items() if not {"binary", "regression"} & set(scale.kinds)]


def asked(name, **fields):
    """A gate that names the metric, with whatever else it needs."""
    if name in ("accuracy", "precision", "recall"):
        fields["cut"] = 0.3
    if name == "expected_cost":
        fields["costs"] = COSTS
    if name == "precision_at_recall":
        fields["recall"] = 0.6
    if name == "quantile_loss":
        fields["quantile"] = 0.8
    if name == "positive_rate":
        return FairnessGate(group_by="group", at_most=0.1, cut=0.3)
    limit = "at_least" if METRIC_SCALES[name].higher_is_better else "at_most"
    return ThresholdGate(metric=name, **{limit: 0.5}, **fields)


def data(name, **options):
    if name == "poisson_deviance":
        return counts()
    return amounts() if name != "positive_rate" and METRIC_SCALES[name].label_type == "continuous" else rows(**options)


def best_precision(y, s, recall=0.6, **weights):
    precision, reached, _ = sklearn_metrics.precision_recall_curve(y, s, **weights)
    return precision[reached >= recall].max()


REFERENCES = {
    "average_precision": sklearn_metrics.average_precision_score,
    "precision_at_recall": best_precision,
    "r2": sklearn_metrics.r2_score,
    "smape": lambda y, s, sample_weight=None: np.average(
        [2 * abs(a - b) / (abs(a) + abs(b)) if a or b else 0 for a, b in zip(y, s, strict=True)], weights=sample_weight
    ),
    "auc": sklearn_metrics.roc_auc_score,
    "brier": sklearn_metrics.brier_score_loss,
    "log_loss": sklearn_metrics.log_loss,
    "accuracy": lambda y, s, **w: sklearn_metrics.accuracy_score(y, s >= 0.3, **w),
    "precision": lambda y, s, **w: sklearn_metrics.precision_score(y, s >= 0.3, **w),
    "recall": lambda y, s, **w: sklearn_metrics.recall_score(y, s >= 0.3, **w),
    "positive_rate": lambda y, s, sample_weight=None: np.average(s >= 0.3, weights=sample_weight),
    # Deciding for 1 costs (1 - s) + 0.5 s, against it 4 s: it pays from s = 1 / 4.5 on.
    "expected_cost": lambda y, s, sample_weight=None: np.average(
        np.array(COSTS)[y.astype(int), (s > 1 / 4.5).astype(int)], weights=sample_weight
    ),
    "rmse": sklearn_metrics.root_mean_squared_error,
    "mae": sklearn_metrics.mean_absolute_error,
    "quantile_loss": lambda y, s, **w: sklearn_metrics.mean_pinball_loss(y, s, alpha=0.8, **w),
    "poisson_deviance": sklearn_metrics.mean_poisson_deviance,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_equals_scikit_learn_for_every_weighting(name, tied):
    label, score, weight = data(name, tied=tied)
    if tied:
        score = score.round(1)  # 0.3, the cut, is among them
    metric, reference = resolve_metric(asked(name)), REFERENCES[name]
    expected = [reference(label, score, sample_weight=w) for w in weight]
    assert metric(label, score, weight) == pytest.approx(expected, rel=1e-12)
    assert compute_metric(metric, label, score) == pytest.approx(reference(label, score), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in OTHER_KINDS])
def test_a_weight_is_a_count(name):
    """A row of weight 3 counts as that row three times; of weight 0, not at all."""
    label, score, weight = data(name, tied=True)
    times = weight[0].astype(int)
    if name == "calibration_error":
        times[:] = 3  # its bins are those of the unweighted rows
    metric = resolve_metric(asked(name))
    repeated = compute_metric(metric, np.repeat(label, times), np.repeat(score, times))
    assert metric(label, score, times[None].astype(float))[0] == pytest.approx(repeated, rel=1e-12)


@pytest.mark.parametrize("name", ["precision", "recall"])
def test_a_share_of_nothing_is_nan(name):
    """Precision where no row reaches the cut, recall where no row is of class 1; scikit-learn says 0."""
    label = np.array([0.0, 0, 1, 1]) if name == "precision" else np.zeros(4)
    score = np.array([0.1, 0.2, 0.1, 0.2]) if name == "precision" else np.array([0.1, 0.9, 0.4, 0.5])
    assert np.isnan(compute_metric(resolve_metric(asked(name)), label, score))


def test_the_cut_and_the_quantile_are_the_gates_own():
    label, score = np.array([0.0, 0, 1, 1]), np.array([0.2, 0.4, 0.4, 0.6])
    for cut, expected in ((0.2, 0.5), (0.4, 0.75), (0.5, 0.75), (0.7, 0.5)):
        gate = AgainstChampionGate(metric="accuracy", cut=cut, must_be="better")
        assert compute_metric(resolve_metric(gate), label, score) == expected
    for quantile, expected in ((0.5, 5.0), (0.9, 9.0), (0.1, 1.0)):
        gate = ThresholdGate(metric="quantile_loss", quantile=quantile, at_most=1.0)
        assert compute_metric(resolve_metric(gate), np.full(3, 30.0), np.full(3, 20.0)) == pytest.approx(expected)


def test_a_count_of_nothing_costs_a_bounded_sum():
    deviance = resolve_metric(ThresholdGate(metric="poisson_deviance", at_most=1.0))
    assert compute_metric(deviance, np.array([0.0, 0]), np.array([0.0, 1])) == pytest.approx(1.0)
    assert 68 < compute_metric(deviance, np.array([1.0]), np.array([0.0])) < 72


def test_a_function_of_the_users_gets_the_rows_as_often_as_they_count():
    gate = ThresholdGate(metric="sklearn.metrics:max_error", higher_is_better=False, at_most=9.0)
    label, score, weight = amounts()
    expected = [np.abs(label - score)[w > 0].max() for w in weight]
    assert resolve_metric(gate)(label, score, weight) == pytest.approx(expected)

    mean = ThresholdGate(metric="sklearn.metrics:mean_absolute_error", higher_is_better=False, at_most=9.0)
    assert resolve_metric(mean)(label, score, weight) == pytest.approx(METRICS["mae"](label, score, weight))


@pytest.mark.parametrize(
    ("name", "error"), [("no.such:thing", "ModuleNotFoundError"), ("sklearn.metrics:vibes", "AttributeError")]
)
def test_a_function_that_is_not_there_is_an_error_at_once(name, error):
    with pytest.raises(NotComputedError, match=f"{name} raised {error}"):
        resolve_metric(ThresholdGate(metric=name, higher_is_better=False, at_most=9.0))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auc_counts_the_pairs_won_with_ties_half(pairs):
    label = np.array([float(y) for y, _ in pairs])
    score = np.array([s / 5 for _, s in pairs])
    ones, zeros = score[label == 1], score[label == 0]
    if not (ones.size and zeros.size):
        assert np.isnan(compute_metric(auc, label, score))
        return
    won = (ones[:, None] > zeros).sum() + (ones[:, None] == zeros).sum() / 2
    assert compute_metric(auc, label, score) == won / (ones.size * zeros.size)  # to the last bit
    assert compute_metric(auc, label, score) == mannwhitneyu(ones, zeros).statistic / (ones.size * zeros.size)


def test_auc_is_nan_only_for_weightings_without_a_class():
    label, score = np.array([0.0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9])
    weight = np.array([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    assert auc(label, score, weight) == pytest.approx([0.75, np.nan, np.nan], nan_ok=True)


def test_log_loss_of_certain_and_wrong_is_large_not_infinite():
    certain = compute_metric(log_loss, np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert certain == pytest.approx(METRIC_SCALES["log_loss"].maximum)
    assert certain == pytest.approx(sklearn_metrics.log_loss([1, 0], [0.0, 1.0]))


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_scikit_learns_curve(seed):
    """Without ties and with a multiple of ten rows its quantile bins are ours, each a tenth of the rows."""
    label, score, _ = rows(n=1000, seed=seed)
    share, mean = calibration_curve(label, score, n_bins=10, strategy="quantile")
    assert compute_metric(calibration_error, label, score) == pytest.approx(np.abs(share - mean).mean(), rel=1e-12)


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
        errors.append(compute_metric(calibration_error, (random.random(n) < score).astype(float), score))
    assert np.mean(errors) == pytest.approx(0.8 * np.sqrt(10 * p * (1 - p) / n), rel=0.05)


def test_brier_of_a_coin_is_a_quarter():
    assert compute_metric(brier, np.array([0.0, 1, 1]), np.full(3, 0.5)) == 0.25


def test_every_metric_of_the_spec_has_a_function():
    assert set(METRICS) == {*METRIC_SCALES, "positive_rate"}
    assert {*REFERENCES, "calibration_error", *OTHER_KINDS} == set(METRICS)


@given(st.integers(0, 2**32 - 1), st.sampled_from([name for name in METRIC_SCALES if name not in OTHER_KINDS]))
def test_values_stay_on_their_scale(seed, name):
    random = np.random.default_rng(seed)
    label = np.r_[0.0, 1.0, random.integers(0, 2, size=20)]
    score = random.choice([0.0, 1e-300, 0.3, 0.5, 1.0], size=22)
    measured = compute_metric(resolve_metric(asked(name)), label, score)
    if not (name == "precision" and (score < 0.3).all()) and name != "r2":
        assert 0 <= measured <= asked(name).scale.maximum * (1 + 1e-12)


def test_every_row_is_found_at_a_recall_of_one():
    """Sums of weights that are no powers of two, in another order, still reach it."""
    label, score, weight = rows(seed=4)
    gate = ThresholdGate(metric="precision_at_recall", recall=1.0, at_least=0.1)
    measured = resolve_metric(gate)(label, score, weight / 3 + 0.1)
    expected = [best_precision(label, score, 1.0 - 1e-9, sample_weight=w / 3 + 0.1) for w in weight]
    assert measured == pytest.approx(expected, rel=1e-9)


def test_r2_is_known_or_nothing():
    """Labels far from 0 cost digits, and at some distance all: then it does not exist, and the gate blocks."""
    r2 = resolve_metric(ThresholdGate(metric="r2", at_least=0.1))
    label, score, _ = amounts()
    for far in (0.0, 1e3, 1e5):
        assert compute_metric(r2, label + far, score + far) == pytest.approx(
            sklearn_metrics.r2_score(label, score), rel=1e-5
        )
    assert np.isnan(compute_metric(r2, label + 1e9, score + 1e9))
    assert np.isnan(compute_metric(r2, np.zeros(5), np.arange(5.0)))
    assert np.isnan(compute_metric(r2, np.full(5, 0.1), np.arange(5.0)))
    assert compute_metric(r2, label, -label) < 0


@pytest.mark.parametrize("name", ["average_precision", "precision_at_recall"])
def test_precision_without_a_row_of_class_1_is_nan(name):
    assert np.isnan(compute_metric(resolve_metric(asked(name)), np.zeros(5), np.arange(5) / 5))
