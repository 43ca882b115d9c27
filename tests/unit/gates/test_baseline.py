"""Better than a model that anybody could write down, or not shown to be."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error

from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import BaselineGate
from support.clusters import day_clusters, row_clusters

pytestmark = pytest.mark.unit

LOG_LOSS = BaselineGate(metric="log_loss")
BRIER = BaselineGate(metric="brier")
ACCURACY = BaselineGate(metric="accuracy", cut=0.5)
LAST = BaselineGate(metric="mae", baseline="last_value")


def rows(n=800, seed=0):
    random = np.random.default_rng(seed)
    truth = random.beta(1, 2, size=n)
    label = (random.random(n) < truth).astype(float)
    return label, truth, np.full(n, 1 / 3)


def evidence(label, candidate, trivial, against="prior"):
    return Evidence(label, candidate, NoChampion(), clusters=row_clusters(label), baselines={against: trivial})


@pytest.mark.parametrize(("gate", "by_sklearn"), [(LOG_LOSS, log_loss), (BRIER, brier_score_loss)])
def test_a_model_that_knows_something_beats_the_prior(gate, by_sklearn):
    label, candidate, prior = rows()
    found = evaluate_gate(gate, evidence(label, candidate, prior))
    assert (found.outcome, found.threshold, found.rows, found.champion) == ("passed", 0.0, 800, None)
    assert found.candidate == pytest.approx(by_sklearn(label, candidate))
    theirs = by_sklearn(label, prior)
    assert [(part.name, part.candidate) for part in found.slices] == [("prior", pytest.approx(theirs))]
    assert 0 < found.interval[0] < theirs - found.candidate < found.interval[1]
    assert f"{gate.metric} {found.candidate:.4g} against {theirs:.4g} of prior on 800 rows" in found.reason
    assert "at 95 % confidence it is at least" in found.reason


@pytest.mark.parametrize("gate", [LOG_LOSS, BRIER])
def test_the_bounds_of_a_mean_are_those_of_the_paired_t_test(gate):
    label, candidate, prior = rows()
    if gate is BRIER:
        losses = [(scores - label) ** 2 for scores in (prior, candidate)]
    else:
        losses = [-np.log(np.where(label == 1, scores, 1 - scores)) for scores in (prior, candidate)]
    low, high = stats.ttest_rel(*losses).confidence_interval(0.90)
    found = evaluate_gate(gate, evidence(label, candidate, prior))
    assert found.interval == pytest.approx((low, high))


def test_accuracy_passes_exactly_when_the_t_test_rejects():
    label = np.tile([0.0, 1.0], 100)
    for wins in range(25, 60):
        trivial = np.where(np.arange(200) < 100, label, 1 - label)
        candidate = trivial.copy()
        candidate[100 : 100 + wins] = label[100 : 100 + wins]
        candidate[:20] = 1 - label[:20]
        found = evaluate_gate(ACCURACY, evidence(label, candidate, trivial))
        p = stats.ttest_rel(*(1.0 * (scores == label) for scores in (candidate, trivial)), alternative="greater").pvalue
        assert (found.outcome == "passed") == (p <= 0.05)
        assert found.candidate == pytest.approx(np.mean(candidate == label))


@pytest.mark.parametrize("gate", [LOG_LOSS, BRIER, ACCURACY])
def test_what_knows_nothing_does_not_pass(gate):
    label, candidate, prior = rows()
    random = np.random.default_rng(1)
    for unknowing in (random.permutation(candidate), prior + 0.1 * random.random(800)):
        found = evaluate_gate(gate, evidence(label, unknowing, prior))
        assert found.outcome == "failed"
        assert found.interval[0] <= 0
        assert "it is not shown to be better" in found.reason


def test_the_baseline_itself_is_not_better_than_itself():
    label, candidate, _ = rows()
    found = evaluate_gate(BRIER, evidence(label, candidate, candidate))
    assert (found.outcome, found.interval) == ("failed", (0.0, 0.0))


def test_amounts_against_the_last_value():
    random = np.random.default_rng(2)
    label = random.normal(100, 20, size=300)
    good, last = label + random.normal(size=300), label + random.normal(scale=9, size=300)
    found = evaluate_gate(LAST, evidence(label, good, last, "last_value"))
    assert found.outcome == "passed"
    assert found.gate == "mae_last_value_baseline"
    assert found.candidate == pytest.approx(mean_absolute_error(label, good))
    assert "of last_value on 300 rows" in found.reason
    assert evaluate_gate(LAST, evidence(label, last, good, "last_value")).outcome == "failed"
    assert evaluate_gate(LAST, evidence(label, good, np.full(300, 100.0), "last_value")).outcome == "passed"


def test_a_model_no_better_passes_no_oftener_than_stated():
    gate = BRIER.model_copy(update={"confidence": 0.8})
    passed = 0
    for history in range(300):
        label, truth, _ = rows(300, seed=history)
        one, other = np.random.default_rng(history + 1000).normal(scale=0.1, size=(2, 300))
        data = evidence(label, np.clip(truth + one, 0, 1), np.clip(truth + other, 0, 1))
        passed += evaluate_gate(gate, data).outcome == "passed"
    assert 0 < passed <= stats.binom.ppf(0.999, 300, 0.2)


@pytest.mark.parametrize("gate", [LOG_LOSS, ACCURACY])
def test_the_order_of_rows_does_not_matter(gate):
    label, candidate, prior = rows()
    order = np.random.default_rng(3).permutation(800)
    data = evidence(label[order], candidate[order], prior[order])
    shuffled = evaluate_gate(gate, replace(data, clusters={"row": [str(row) for row in order]}))
    assert evaluate_gate(gate, evidence(label, candidate, prior)) == shuffled


def bad(label, candidate, prior):
    """Evidence that cannot be judged, and what the reason must name."""
    nan = prior.copy()
    nan[3:5] = np.nan
    yield evidence(label, candidate, nan), ["2 of the baseline prior's 800 scores are NaN"]
    yield evidence(label, nan, prior), ["2 of the candidate's 800 scores are NaN"]
    yield (
        evidence(label, prior, prior),
        ["the candidate scores every row 0.3333"],
    )  # a constant candidate is a fault
    yield evidence(label, candidate, prior[1:]), ["the baseline prior has 799 scores for 800 labels"]
    yield evidence(label, candidate, prior + 1), ["outside [0, 1]"]
    yield (
        evidence(label, candidate, MissingEvidence("no training rows")),
        ["no baseline prior: no training rows"],
    )
    yield evidence(label, candidate, prior, "last_value"), ["no baseline prior: its predictions were not computed"]
    yield evidence(label * 0, candidate, prior), ["0 of 800 labels are 1"]
    yield evidence(label[:3], candidate[:3], prior[:3]), ["3 rows are too few"]
    yield (
        evidence(None, None, None),
        ["labels are not", "candidate's scores are not", "prior's scores are not"],
    )
    yield Evidence(label, candidate, NoChampion(), baselines=None), ["no baseline prior"]
    yield evidence(label, nan, MissingEvidence("gone")), ["candidate's 800 scores are NaN", "gone"]


def test_bad_evidence_blocks_and_all_that_is_wrong_is_named():
    for data, reasons in bad(*rows()):
        for gate in (LOG_LOSS, ACCURACY):
            found = evaluate_gate(gate, data)
            assert (found.outcome, found.candidate) == ("not_computed", None)
            for reason in reasons:
                assert reason in found.reason


def test_rows_for_which_the_metric_does_not_exist_block():
    label, candidate, prior = rows()
    found = evaluate_gate(BaselineGate(metric="precision", cut=0.5), evidence(label, candidate, prior))
    assert found.outcome == "not_computed"  # the prior tells no row to be of class 1
    assert "precision does not exist for both" in found.reason


@pytest.mark.parametrize(("better", "outcome"), [(29, "not_computed"), (30, "passed")])
def test_a_few_rows_do_not_tell_how_sure_a_gain_is(better, outcome):
    label, last = np.random.default_rng(4).normal(size=(2, 300))
    candidate = last.copy()
    candidate[:better] = label[:better]
    found = evaluate_gate(LAST, evidence(label, candidate, last, "last_value"))
    assert found.outcome == outcome
    assert ("differ in 29 of 300 rows: too few" in found.reason) == (outcome == "not_computed")


def test_a_metric_of_ones_own(monkeypatch):
    module = ModuleType("metrics_of_a_baseline_test")
    module.squares = lambda label, score: np.mean((label - score) ** 2)
    module.broken = lambda label, score: {}["carrier"]
    monkeypatch.setitem(sys.modules, "metrics_of_a_baseline_test", module)

    def by(name):
        metric = f"metrics_of_a_baseline_test:{name}"
        gate = BaselineGate(metric=metric, higher_is_better=False)
        return evaluate_gate(gate, data)

    data = replace(evidence(*rows()), clusters=day_clusters(800, 14))
    brier = evaluate_gate(BRIER, data)
    assert by("squares").outcome == "passed"
    assert by("squares").interval == pytest.approx(brier.interval)
    assert "broken raised KeyError: 'carrier'" in by("broken").reason
    assert {by(name).outcome for name in ("broken", "missing")} == {"not_computed"}
