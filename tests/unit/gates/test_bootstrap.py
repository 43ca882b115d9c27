"""The paired bootstrap against a plain loop, against scipy, and against what its confidence promises."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from evergreen.gates import comparisons
from evergreen.gates.comparisons import bootstrap_differences, draw_resample_counts, resampling_seed
from evergreen.gates.metrics import METRICS, auc

pytestmark = pytest.mark.unit


def scorers(random, n, *, d_one=1.0, d_other=1.0):
    """Two binormal scorers of the same rows, with AUC Φ(d/√2) each, and correlated like two real models."""
    label = (random.random(n) < 0.3).astype(float)
    shared, one, other = random.normal(size=(3, n))
    return (
        label,
        norm.cdf(d_one * label + 0.8 * shared + 0.6 * one),
        norm.cdf(d_other * label + 0.8 * shared + 0.6 * other),
    )


@pytest.mark.parametrize("decimals", [1, 12])
def test_equals_a_plain_loop_over_the_same_draws(decimals):
    label, one, other = scorers(np.random.default_rng(0), 150)
    one, other = one.round(decimals), other.round(decimals)
    expected = []
    for counts in np.concatenate(list(draw_resample_counts(150, 40, resampling_seed(label, one, other)))):
        drawn = np.repeat(np.arange(150), counts.astype(int))
        expected.append(roc_auc_score(label[drawn], one[drawn]) - roc_auc_score(label[drawn], other[drawn]))
    assert bootstrap_differences(auc, label, one, other, 40) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["auc", "brier", "log_loss"])
def test_interval_agrees_with_scipy(name):
    """Scipy draws other resamples: the two agree to the noise of 2,000, a few percent of the width."""
    label, one, other = scorers(np.random.default_rng(1), 300, d_one=1.2)
    metric = METRICS[name]

    def difference(rows, axis):
        rows = rows.astype(int)
        counts = np.stack([np.bincount(r, minlength=300) for r in np.atleast_2d(rows)]).astype(float)
        return (metric(label, one, counts) - metric(label, other, counts)).reshape(rows.shape[:-1])

    theirs = scipy_bootstrap(
        (np.arange(300),),
        difference,
        n_resamples=2000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    ours = np.quantile(bootstrap_differences(metric, label, one, other, 2000), [0.05, 0.95])
    assert ours == pytest.approx(theirs, abs=0.06 * (theirs.high - theirs.low))


def test_draws_are_with_replacement_and_uniform():
    counts = np.concatenate(list(draw_resample_counts(20, 5000, 7)))
    assert counts.shape == (5000, 20)
    assert (counts.sum(axis=1) == 20).all()
    # A multinomial: mean 1, variance 1 - 1/n, covariance -1/n.
    covariance = np.cov(counts.T)
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.06)
    assert np.diag(covariance) == pytest.approx(0.95, abs=0.1)
    assert covariance[~np.eye(20, dtype=bool)] == pytest.approx(-0.05, abs=0.07)


def test_chunks_bound_memory_and_change_nothing(monkeypatch):
    whole = np.concatenate(list(draw_resample_counts(30, 101, 7)))
    monkeypatch.setattr(comparisons, "_CHUNK_SIZE", 100)
    chunks = list(draw_resample_counts(30, 101, 7))
    assert max(chunk.size for chunk in chunks) <= 100
    assert np.array_equal(np.concatenate(chunks), whole)
    monkeypatch.setattr(comparisons, "_CHUNK_SIZE", 1)  # more rows than fit: one resample at a time
    assert np.array_equal(np.concatenate(list(draw_resample_counts(30, 101, 7))), whole)


def test_the_seed_is_the_evidence():
    label, one, other = scorers(np.random.default_rng(3), 50)
    assert resampling_seed(label, one, other) == resampling_seed(label.copy(), one.copy(), other.copy())
    nudged = one.copy()
    nudged[17] = np.nextafter(nudged[17], 1)
    assert (
        len(
            {
                resampling_seed(label, one, other),
                resampling_seed(label, nudged, other),
                resampling_seed(label, other, one),
            }
        )
        == 3
    )


def test_a_lower_bound_is_too_high_as_rarely_as_it_promises():
    """At 95 %, the lower bound exceeds the true difference in about 5 % of samples, and so does the upper
    fall short. 600 samples tell 5 % from 2 % and from 9 %."""
    random = np.random.default_rng(4)
    true = norm.cdf(1.0 / np.sqrt(2)) - norm.cdf(1.3 / np.sqrt(2))
    bounds = []
    for _ in range(600):
        label, one, other = scorers(random, 200, d_one=1.0, d_other=1.3)
        bounds.append(np.quantile(bootstrap_differences(auc, label, one, other, 200), [0.05, 0.95]))
    low, high = np.transpose(bounds)
    assert 0.025 <= np.mean(low > true) <= 0.085
    assert 0.025 <= np.mean(high < true) <= 0.085
