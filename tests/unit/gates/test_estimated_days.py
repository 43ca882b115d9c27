"""What an estimate knows about its days: the same for a mean as for plain numbers per day."""

import numpy as np
import pytest
from scipy.stats import t as student

from evergreen.gates import AgainstChampionGate
from evergreen.gates.clusters import RowClusters
from evergreen.gates.comparisons import measure_gain
from evergreen.gates.day_correlation import day_autocorrelation
from support.clusters import day_clusters

pytestmark = pytest.mark.unit

MAE = AgainstChampionGate(metric="mae", must_be="better")
AUC = AgainstChampionGate(metric="auc", must_be="better")


def test_a_mean_over_equal_days_is_the_paired_t_of_its_days():
    random = np.random.default_rng(4)
    label, one, other = random.normal(size=(3, 20 * 30))
    clusters = RowClusters.from_columns(day_clusters(label.size, 20))
    estimate = measure_gain(MAE, label, one, other, clusters)
    daily = (np.abs(label - other) - np.abs(label - one)).reshape(20, 30).mean(axis=1)
    assert estimate.gain == pytest.approx(daily.mean())
    assert estimate.day_variance == pytest.approx(daily.var(ddof=1) / 20) == estimate.standard_error**2
    assert estimate.days == 20
    assert estimate.day_correlation == pytest.approx(float(day_autocorrelation(daily)))
    p = student.sf(daily.mean() / estimate.standard_error, 19)
    assert estimate.significance(0.0) == pytest.approx(p)
    assert estimate.significance(0.0, 0.5) > p or daily.mean() < 0


def test_auc_over_equal_days_correlates_as_its_daily_values():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(5)
    days, rows = 30, 400
    label = np.tile(np.arange(rows) < 100, days).astype(float)
    wave = np.repeat(np.sin(np.arange(days) / 2), rows)
    shared, one, other = random.normal(size=(3, label.size))
    candidate = shared + 0.5 * one + label * (1 + 0.5 * wave)
    champion = shared + 0.5 * other + label
    clusters = RowClusters.from_columns(day_clusters(label.size, days))
    estimate = measure_gain(AUC, label, candidate, champion, clusters)
    daily = np.array(
        [
            roc_auc_score(label[at], candidate[at]) - roc_auc_score(label[at], champion[at])
            for at in np.arange(label.size).reshape(days, rows)
        ]
    )
    assert estimate.gain == pytest.approx(daily.mean(), abs=0.002)
    assert estimate.standard_error == pytest.approx(daily.std(ddof=1) / np.sqrt(days), rel=0.05)
    assert estimate.day_correlation == pytest.approx(float(day_autocorrelation(daily)), abs=0.05)
    assert estimate.day_correlation > 0.5


def test_two_ways_add_only_the_part_of_days():
    random = np.random.default_rng(6)
    label, one, other = random.normal(size=(3, 600))
    planes = {"plane": [str(number) for number in random.integers(40, size=600)]}
    days = day_clusters(600, 20)
    both = measure_gain(MAE, label, one, other, RowClusters.from_columns({**days, **planes}))
    alone = measure_gain(MAE, label, one, other, RowClusters.from_columns(days))
    only_planes = measure_gain(MAE, label, one, other, RowClusters.from_columns(planes))
    assert (both.day_variance, both.day_correlation) == (alone.day_variance, alone.day_correlation)
    assert (only_planes.days, only_planes.day_correlation) == (0, None)
    assert only_planes.bounds(0.01, 9.0, 0.8) == only_planes.bounds(0.01, 9.0)
