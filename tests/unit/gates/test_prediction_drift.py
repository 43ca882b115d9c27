"""Drift of predictions: the numbers against other people's, and what cannot be measured."""

import re

import numpy as np
import pytest
from scipy import special, stats

from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.kinds.serving import psi, stability_index
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import PredictionDriftGate

pytestmark = pytest.mark.unit

PSI = PredictionDriftGate(statistic="psi", at_most=0.2)
KS = PredictionDriftGate(statistic="ks", at_most=0.1)


def record(gate, holdout, recent):
    return evaluate_gate(gate, Evidence([], holdout, NoChampion(), recent_predictions=recent))


def test_the_index_of_a_published_example():
    # Seven credit grades, from the documentation of psi-inference on PyPI: PSI 0.0677, 5 % critical value 0.0252.
    before = np.array([253, 302, 204, 134, 72, 26, 8])
    now = np.array([177, 262, 285, 158, 88, 25, 6])
    assert stability_index(before, now) == pytest.approx(0.0677, abs=5e-5)
    # The same rows as predictions of seven values: each grade is a bin of its own only while tenths tell them apart.
    holdout, recent = (np.repeat(np.arange(3.0), rows[:3]) for rows in (before, now))
    assert psi(holdout, recent) == pytest.approx(stability_index(before[:3], now[:3]))


def test_the_index_is_the_divergence_of_jeffreys():
    random = np.random.default_rng(1)
    holdout, recent = random.random(1000), random.beta(2, 2, 700)
    edges = np.concatenate([[-np.inf], np.sort(holdout)[99:900:100], [np.inf]])  # 100 rows up to and with each
    p, q = (
        np.histogram(-values, bins=-edges[::-1])[0] / values.size for values in (recent, holdout)
    )  # mirrored, because numpy's bins hold their lower edge and ours their upper one
    assert set(q) == {0.1}
    expected = special.rel_entr(p, q).sum() + special.rel_entr(q, p).sum()
    assert psi(holdout, recent) == pytest.approx(expected, rel=1e-12)


def test_a_tenth_without_recent_rows_counts_as_half_a_row():
    holdout = np.arange(1000) / 1000
    recent = holdout[holdout < 0.9][:900]
    p, half = 100 / 900, 0.5 / 900
    by_hand = 9 * (p - 0.1) * np.log(p / 0.1) + (half - 0.1) * np.log(half / 0.1)
    assert psi(holdout, recent) == pytest.approx(by_hand, rel=1e-12)


def test_equal_predictions_share_a_tenth():
    holdout = np.repeat([0.0, 0.5, 1.0], [900, 60, 40])
    assert psi(holdout, holdout) == 0.0
    by_hand = (0.5 - 0.9) * np.log(0.5 / 0.9) + (0.5 - 0.1) * np.log(0.5 / 0.1)
    assert psi(holdout, np.repeat([0.0, 1.0], 100)) == pytest.approx(by_hand)


@pytest.mark.parametrize("gate", [PSI, KS])
def test_what_days_without_drift_show_is_told_rightly(gate):
    """Days move together, each by a weather of its own, and the newest is one more of them: it exceeds the largest of
    the other seven in about one of eight histories. A bound for independent rows would be exceeded in most."""
    random = np.random.default_rng(2)
    above = []
    for _ in range(800):
        days = random.normal(size=(8, 150)) + random.normal(size=(8, 1))
        clusters = {"day": np.repeat([f"2013-03-0{day}" for day in range(1, 8)], 150).tolist()}
        evidence = Evidence([], days[:7].ravel(), NoChampion(), clusters=clusters, recent_predictions=days[7])
        found = evaluate_gate(gate, evidence)
        limit = re.search(r"of the holdout's own 7 days .* by up to (.*), and .* about once in 8$", found.reason)
        above.append(found.candidate > float(limit[1]))
    assert 0.07 <= np.mean(above) <= 0.17  # each differs from six others, the newest from seven


def test_the_distance_is_that_of_scipy():
    random = np.random.default_rng(3)
    holdout, recent = random.random(500), random.beta(2, 3, 300)
    found = record(KS, holdout, recent)
    assert found.candidate == pytest.approx(stats.ks_2samp(holdout, recent).statistic)
    assert found.outcome == "failed"


def test_the_same_day_passes_and_a_moved_one_fails():
    random = np.random.default_rng(4)
    holdout, recent = random.beta(2, 5, 5000), random.beta(2, 5, 1000)
    for gate in (PSI, KS):
        same, moved = record(gate, holdout, recent), record(gate, holdout, recent + 0.3)
        assert (same.outcome, moved.outcome) == ("passed", "failed")
        assert same.rows == moved.rows == 1000
        assert f"at most {gate.at_most} is allowed" in moved.reason


@pytest.mark.parametrize("gate", [PSI, KS])
def test_the_limit_itself_passes(gate):
    random = np.random.default_rng(5)
    holdout, recent = random.random(300), random.random(200)
    exact = record(gate, holdout, recent).candidate
    at, below = (gate.model_copy(update={"at_most": float(x)}) for x in (exact, np.nextafter(exact, 0)))
    assert record(at, holdout, recent).outcome == "passed"
    assert record(below, holdout, recent).outcome == "failed"


@pytest.mark.parametrize("gate", [PSI, KS])
def test_the_order_of_rows_does_not_matter(gate):
    random = np.random.default_rng(6)
    holdout, recent = random.random(500).round(2), random.random(300).round(2)
    shuffled = record(gate, random.permutation(holdout), random.permutation(recent))
    assert record(gate, holdout, recent) == shuffled


FINE = np.linspace(0, 1, 200)


@pytest.mark.parametrize(
    ("holdout", "recent", "reasons"),
    [
        (
            FINE,
            MissingEvidence("no day is unlabelled"),
            ["no predictions for the most recent day: no day is unlabelled"],
        ),
        (FINE, FINE[:3], ["3 predictions for the most recent day are too few, at least 100 are needed"]),
        (FINE, [], ["0 predictions for the most recent day are too few"]),
        (FINE[:99], FINE, ["99 predictions for the holdout are too few"]),
        (
            np.full(200, np.nan),
            np.r_[FINE, np.inf],
            ["200 of the 200 predictions for the holdout", "1 of the 201"],
        ),
        (
            np.full(200, 0.5),
            FINE * 0,
            ["all 200 predictions for the holdout are 0.5", "most recent day are 0"],
        ),
        (FINE, FINE.reshape(2, 100), ["most recent day are not one row of numbers"]),
        (["a"] * 200, FINE, ["holdout are not one row of numbers"]),
        (FINE, None, ["most recent day are not one row of numbers"]),
    ],
)
def test_what_cannot_be_measured_blocks(holdout, recent, reasons):
    for gate in (PSI, KS):
        found = record(gate, holdout, recent)
        assert (found.outcome, found.candidate) == ("not_computed", None)
        for reason in reasons:
            assert reason in found.reason
