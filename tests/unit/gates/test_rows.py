"""Gates on the holdout's rows: labels by day, and answers that change against the champion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evergreen.gates import ChurnGate, Evidence, LabelledGate, MissingEvidence, NoChampion, judge_evidence
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import Gate

pytestmark = pytest.mark.unit

LABELLED = LabelledGate(at_least=0.9)
FLIPS = ChurnGate(cut=0.5, at_most=0.1)
MOVES = ChurnGate(at_most=0.1)
COUNTS = {"2013-03-06": (100, 100), "2013-03-07": (200, 181)}


def evidence(candidate: Any = (), champion: Any = None, counts: Any = None) -> Evidence:
    return Evidence([], candidate, NoChampion() if champion is None else champion, label_counts=counts or {})


def test_labelled_is_about_the_worst_day() -> None:
    result = evaluate_gate(LABELLED, evidence(counts=COUNTS))
    assert (result.outcome, result.candidate, result.rows) == ("passed", 0.905, 300)
    assert result.reason == (
        "on 2013-03-07 181 of 200 rows have a label, a share of 0.905, the lowest of 2 days (at least 0.9 is "
        "required); in all 6.3 % have none"
    )
    # 299 of 300 rows in all would pass: one day of the evidence is made of a tenth of its rows.
    late = {"2013-03-06": (290, 290), "2013-03-07": (10, 1)}
    assert evaluate_gate(LABELLED, evidence(counts=late)).outcome == "failed"


@pytest.mark.parametrize(
    "counts",
    [{}, None, {"2013-03-07": (0, 0)}, {"2013-03-07": (5, 6)}, {"2013-03-07": (5, -1)}, {"2013-03-07": 5}, [(3, 3)], 7],
)
def test_labelled_needs_counts(counts: Any) -> None:
    assert evaluate_gate(LABELLED, Evidence([], [], NoChampion(), label_counts=counts)).outcome == "not_computed"
    verdict = judge_evidence([LABELLED], Evidence([], [], NoChampion(), label_counts=counts))
    assert not verdict.promote


def test_every_verdict_has_the_unlabelled_share() -> None:
    assert judge_evidence([MOVES], evidence(counts=COUNTS)).unlabelled_share == pytest.approx(19 / 300)
    assert judge_evidence([MOVES], evidence()).unlabelled_share is None


def test_churn_counts_answers_on_both_sides_of_the_cut() -> None:
    champion = np.tile([0.2, 0.5, 0.7, 0.4], 50)
    candidate = champion.copy()
    candidate[:12] = [0.6, 0.4, 0.9, 0.3] * 3  # two of four cross 0.5, one in each direction
    result = evaluate_gate(FLIPS, evidence(candidate, champion))
    assert (result.outcome, result.candidate, result.rows) == ("passed", 6 / 200, 200)
    assert (
        result.reason
        == "6 answers differ from the champion's at 0.5, a share of 0.03, on 200 rows, at most 0.1 is allowed"
    )
    candidate[:48] = [0.6, 0.4, 0.9, 0.3] * 12
    assert evaluate_gate(FLIPS, evidence(candidate, champion)).outcome == "failed"


def test_churn_without_a_cut_is_the_mean_move() -> None:
    champion = np.arange(100.0)
    candidate = champion + np.tile([0.2, -0.2], 50)
    result = evaluate_gate(MOVES, evidence(candidate, champion))
    assert result.outcome == "failed"
    assert result.candidate == pytest.approx(0.2)
    assert "predictions differ from the champion's by 0.2 on average on 100 rows" in result.reason
    assert evaluate_gate(MOVES, evidence(champion, champion)).candidate == 0


@pytest.mark.parametrize("gate", [FLIPS, MOVES])
def test_churn_without_a_champion_passes_with_the_reason(gate: Gate) -> None:
    scores = np.linspace(0, 1, 100)
    for champion in (NoChampion(), NoChampion("inputs of version 3 are gone; ada accepted the change")):
        result = evaluate_gate(gate, evidence(scores, champion))
        assert (result.outcome, result.reason) == ("passed", champion.reason)
    result = evaluate_gate(gate, evidence(scores, MissingEvidence("its artifact is gone")))
    assert (result.outcome, result.reason) == ("not_computed", "the champion cannot be compared: its artifact is gone")


@pytest.mark.parametrize(
    ("candidate", "champion", "reason"),
    [
        (np.zeros(99), np.zeros(99), "99 rows are too few, at least 100 are needed"),
        (np.zeros(100), np.zeros(101), "the champion has 101 scores, the candidate 100"),
        (np.full(100, np.nan), np.zeros(100), "100 of the candidate's 100 scores are NaN or infinite"),
        (np.zeros(100), "scores", "the champion's scores are not one row of numbers"),
        (np.full(100, 1e308), np.full(100, -1e308), "not a finite number"),
    ],
)
def test_churn_names_faults(candidate: Any, champion: Any, reason: str) -> None:
    result = evaluate_gate(MOVES, evidence(candidate, champion))
    assert result.outcome == "not_computed"
    assert reason in result.reason


def test_a_share_of_all_answers_is_no_limit() -> None:
    with pytest.raises(ValueError, match="leaves nothing to decide"):
        ChurnGate(cut=0.5, at_most=1.0)
    assert ChurnGate(at_most=1.0).name == "churn"
