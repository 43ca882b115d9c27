"""Groups treated alike: the largest difference, between whom, and who is too few to tell."""

import sys
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import FairnessGate

pytestmark = pytest.mark.unit

RATE = FairnessGate(group_by="sex", cut=0.5, at_most=0.1, min_rows=4)
RECALL = FairnessGate(metric="recall", group_by="sex", cut=0.5, at_most=0.1, min_rows=4)
AUC = FairnessGate(metric="auc", group_by="sex", at_most=0.1, min_rows=4)

# By hand. Rate of positives at 0.5: a 3/5, b 1/4, c 2/4. Recall: a 2/3, b 1/2, c 2/2.
GROUPS = [*"aaaaabbbbcccc", "d", None]
LABEL = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1])
SCORE = np.array([0.9, 0.5, 0.4, 0.7, 0.2, 0.8, 0.3, 0.1, 0.2, 0.6, 0.7, 0.3, 0.4, 0.0, 0.0])


def evidence(label=LABEL, score=SCORE, groups=GROUPS):
    return Evidence(label, score, NoChampion(), groups={"sex": groups})


def test_the_rate_of_positives_by_hand():
    found = evaluate_gate(RATE, evidence())
    assert (found.outcome, found.threshold, found.rows) == ("failed", 0.1, 15)
    assert found.candidate == pytest.approx(3 / 5 - 1 / 4)
    assert found.gate == "positive_rate_sex_fairness"
    assert found.reason == (
        "positive_rate differs by 0.35 between sex a (0.6 on 5 rows) and b (0.25 on 4 rows), at most 0.1 is allowed; "
        "1 with too few rows is reported only"
    )
    assert [(part.name, part.rows, part.candidate, part.is_judged) for part in found.slices] == [
        ("a", 5, 0.6, True),
        ("b", 4, 0.25, True),
        ("c", 4, 0.5, True),
        ("d", 1, 0.0, False),
    ]


@pytest.mark.parametrize(
    ("gate", "reference"), [(RECALL, lambda y, s: recall_score(y, s >= 0.5)), (AUC, roc_auc_score)]
)
def test_metrics_are_those_of_scikit_learn(gate, reference):
    found = evaluate_gate(gate, evidence())
    groups = np.array(GROUPS, dtype=object)
    by_hand = {name: reference(LABEL[groups == name], SCORE[groups == name]) for name in "abc"}
    assert found.candidate == pytest.approx(max(by_hand.values()) - min(by_hand.values()))
    assert {part.name: part.candidate for part in found.slices if part.is_judged} == pytest.approx(by_hand)


def test_the_limit_itself_passes():
    exact = evaluate_gate(RATE, evidence()).candidate
    at, below = (RATE.model_copy(update={"at_most": float(x)}) for x in (exact, np.nextafter(exact, 0)))
    assert evaluate_gate(at, evidence()).outcome == "passed"
    missed = evaluate_gate(below, evidence())
    assert missed.outcome == "failed"
    assert float(missed.reason.split("by ")[1].split()[0]) > below.at_most


def test_groups_all_equal_pass_with_a_reason_that_fits():
    found = evaluate_gate(RATE, evidence(np.tile(LABEL[:5], 2), np.tile(SCORE[:5], 2), [*"aaaaabbbbb"]))
    assert (found.outcome, found.candidate) == ("passed", 0.0)
    assert found.reason == "positive_rate is 0.6 in all 2 groups by sex, at most 0.1 is allowed"


def test_binary_metrics_need_both_classes_and_rates_do_not():
    label = np.zeros(15)
    assert evaluate_gate(RATE, evidence(label)).candidate == pytest.approx(0.35)
    assert evaluate_gate(RECALL, evidence(label)).outcome == "not_computed"
    label = np.where(np.array(GROUPS) == "c", 0, LABEL)
    found = evaluate_gate(RECALL, evidence(label))
    assert [part.is_judged for part in found.slices] == [True, True, False, False]
    assert found.candidate == pytest.approx(2 / 3 - 1 / 2)


def test_a_metric_that_the_candidate_leaves_undefined_blocks():
    score = np.where(np.array(GROUPS) == "b", SCORE.clip(0, 0.4), SCORE)  # nobody of b is told to be of class 1
    precision = FairnessGate(metric="precision", group_by="sex", cut=0.5, at_most=0.9, min_rows=4)
    found = evaluate_gate(precision, evidence(score=score))
    assert (found.outcome, found.reason) == ("not_computed", "precision does not exist for sex b")
    assert len(found.slices) == 4


def test_the_order_of_rows_does_not_matter():
    random = np.random.default_rng(3)
    label, score = random.integers(0, 2, 500), random.random(500).round(2)
    groups = [f"g{i}" for i in random.integers(0, 5, 500)]
    order = random.permutation(500)
    for gate in (RATE, AUC, FairnessGate(metric="log_loss", group_by="sex", at_most=0.1)):
        shuffled = evaluate_gate(gate, evidence(label[order], score[order], [groups[row] for row in order]))
        assert evaluate_gate(gate, evidence(label, score, groups)) == shuffled


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (evidence(groups=["a"] * 15), ["1 of 1 groups by sex has enough rows (at least 4), it takes 2"]),
        (evidence(groups=[str(row) for row in range(15)]), ["0 of 15 groups by sex have enough rows"]),
        (evidence(groups=GROUPS[1:]), ["there are 14 groups by sex for 15 labels"]),
        (evidence(groups=[None] * 15), ["no row has a group by sex"]),
        (evidence(groups=MissingEvidence("the column is gone")), ["the column is gone"]),
        (evidence(groups=[1, *GROUPS[1:]]), ["groups by sex are names or None, not 1"]),
        (Evidence(LABEL, SCORE, NoChampion()), ["the groups by sex are not known"]),
        (evidence(score=np.full(15, np.nan)), ["15 of the candidate's 15 scores are NaN"]),
        (evidence(score=np.full(15, 0.5)), ["the candidate scores every row 0.5"]),
        (evidence(score=SCORE * 2), ["outside [0, 1]"]),
        (evidence(LABEL[:3], SCORE[:3], GROUPS[:3]), ["3 rows are too few, at least 4 are needed"]),
        (evidence(None, None, None), ["labels are not", "scores are not"]),
        (evidence(score=SCORE[1:], groups=MissingEvidence("gone")), ["14 scores for 15 labels", "gone"]),
    ],
)
def test_bad_evidence_blocks_and_all_that_is_wrong_is_named(data, reasons):
    for gate in (RATE, RECALL, AUC):
        found = evaluate_gate(gate, data)
        assert (found.outcome, found.candidate) == ("not_computed", None)
        for reason in reasons:
            assert reason in found.reason


def test_a_metric_of_ones_own(monkeypatch):
    module = ModuleType("metrics_of_a_fairness_test")
    module.mean_score = lambda label, score: score.mean()
    module.of_many = lambda label, score: label[3] * 0 + score.mean()  # raises on the only row of d
    module.broken = lambda label, score: 1 / 0
    module.endless = lambda label, score: np.inf
    monkeypatch.setitem(sys.modules, "metrics_of_a_fairness_test", module)

    def by(name):
        metric = f"metrics_of_a_fairness_test:{name}"
        return evaluate_gate(
            FairnessGate(metric=metric, higher_is_better=True, group_by="sex", at_most=0.1, min_rows=4),
            evidence(),
        )

    assert by("mean_score").candidate == pytest.approx(2.7 / 5 - 1.4 / 4)
    assert by("of_many").candidate == by("mean_score").candidate
    assert "broken raised ZeroDivisionError: division by zero" in by("broken").reason
    assert "does not exist for sex a; " in by("endless").reason
    assert {by(name).outcome for name in ("broken", "endless", "missing")} == {"not_computed"}
