"""Ranks from bins against ranks of all rows: never further off than the error that is stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.gates import score_bins
from evergreen.gates.kinds.serving import ks, psi
from evergreen.gates.metrics import auc, calibration_error, compute_metric
from evergreen.gates.score_bins import ScoreBins
from evergreen.gates.verdict import NotComputedError

pytestmark = pytest.mark.unit

ROUNDING = 1e-12


def binned(scores: np.ndarray, bins: ScoreBins) -> np.ndarray:
    return np.bincount(bins.find(scores), minlength=bins.count).astype(np.int64)


@st.composite
def scored_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, ScoreBins]:
    """Labels and scores, with ties or without, and bins that need not suit them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, decimals = draw(st.integers(20, 400)), draw(st.sampled_from([1, 2, 15]))
    label = (rng.random(count) < draw(st.sampled_from([0.1, 0.5]))).astype(float)
    label[:4] = (0, 0, 1, 1)
    scores = rng.beta(*draw(st.sampled_from([(1, 1), (0.2, 3), (40, 2)])), count).round(decimals)
    sample = draw(st.sampled_from([scores, scores[:10], np.array([0.5]), np.array([0.0, 1.0])]))
    return label, scores, ScoreBins.from_sample(sample, draw(st.integers(2, 60)))


@given(scored_rows())
@settings(max_examples=300)
def test_metrics_from_bins_are_within_their_error(rows: tuple[np.ndarray, np.ndarray, ScoreBins]) -> None:
    label, scores, bins = rows
    ones, zeros = binned(scores[label == 1], bins), binned(scores[label == 0], bins)
    pairs = 2 * int(ones.sum()) * int(zeros.sum())
    found = score_bins.doubled_wins(ones, zeros) / pairs
    assert abs(found - compute_metric(auc, label, scores)) <= score_bins.auc_error(ones, zeros) + ROUNDING
    gaps = np.bincount(bins.find(scores), label - scores, bins.count)
    value, error = score_bins.binned_calibration_error(ones + zeros, gaps)
    assert abs(value - compute_metric(calibration_error, label, scores)) <= error + ROUNDING


@given(scored_rows())
@settings(max_examples=200)
def test_bins_of_every_score_are_exact(rows: tuple[np.ndarray, np.ndarray, ScoreBins]) -> None:
    label, scores, _ = rows
    bins = ScoreBins.from_sample(scores, scores.size)
    ones, zeros = binned(scores[label == 1], bins), binned(scores[label == 0], bins)
    assert score_bins.auc_error(ones, zeros) == 0
    wins = sum(2 * (one > zero) + (one == zero) for one in scores[label == 1] for zero in scores[label == 0])
    assert score_bins.doubled_wins(ones, zeros) == wins
    placements = score_bins.binned_placements(ones, zeros)[label.astype(int), bins.find(scores)]
    assert placements[label == 1].sum() == placements[label == 0].sum() == wins
    recent = np.random.default_rng(1).random(50)
    counts = binned(scores, bins), binned(recent, bins)
    assert score_bins.binned_stability_index(*counts) == (pytest.approx(psi(scores, recent)), 0)


@given(st.integers(0, 2**32 - 1), st.integers(150, 400), st.sampled_from([0.0, 0.1, 0.6]))
@settings(max_examples=150)
def test_drift_from_bins_is_never_understated(seed: int, edges: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    holdout, recent = rng.beta(2, 5, 20_000), (rng.beta(2, 5, 3_000) + shift).clip(0, 1)
    bins = ScoreBins.from_sample(holdout, edges)
    counts = binned(holdout, bins), binned(recent, bins)
    for found, exact in (
        (score_bins.binned_stability_index(*counts), psi(holdout, recent)),
        (score_bins.binned_distance(*counts), ks(holdout, recent)),
    ):
        assert exact <= found.value + found.error + ROUNDING
        assert found.value <= exact + found.error + ROUNDING


def test_tenths_that_a_sample_has_missed_are_refused() -> None:
    scores = np.linspace(0, 1, 1_000)
    bins = ScoreBins.from_sample(np.array([0.0, 0.5, 1.0]))
    with pytest.raises(NotComputedError, match="lie between two neighbours in an even sample"):
        score_bins.binned_stability_index(binned(scores, bins), binned(scores, bins))


def test_the_error_of_auc_is_small_for_dense_and_for_narrow_scores() -> None:
    """The promise of the settings, for scores that lie within a millionth of 0 or of 1 as well."""
    rng = np.random.default_rng(0)
    label = rng.random(400_000) < 0.1
    for scores in (rng.random(400_000), 1e-6 * rng.random(400_000), 1 - 1e-6 * rng.random(400_000)):
        bins = ScoreBins.from_sample(scores[::4])
        error = score_bins.auc_error(binned(scores[label], bins), binned(scores[~label], bins))
        assert error < 2e-5
