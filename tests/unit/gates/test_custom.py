"""A function of the model folder as a gate: what it says is taken, what it does wrong is named."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.verdict import CustomGateResult, evaluate_gate
from evergreen.spec.gates import CustomGate

pytestmark = pytest.mark.unit

LABEL, SCORE = np.array([0, 1, 1]), np.array([0.1, 0.8, 0.4])


@pytest.fixture
def record(monkeypatch):
    def given(function):
        module = ModuleType("models_of_a_test")
        module.check = function
        monkeypatch.setitem(sys.modules, "models_of_a_test", module)
        return evaluate_gate(CustomGate(function="models_of_a_test:check"), Evidence(LABEL, SCORE, NoChampion()))

    return given


@pytest.mark.parametrize(("threshold", "outcome"), [(0.4, "passed"), (0.5, "failed")])
def test_what_it_finds_is_the_record(record, threshold, outcome):
    def check(evidence):
        mean = np.mean(evidence.candidate)  # 0.4333…
        return CustomGateResult(mean >= threshold, mean, threshold, f" mean {mean:.2f} ")

    found = record(check)
    assert (found.outcome, found.threshold, found.rows) == (outcome, threshold, 3)
    assert found.candidate == pytest.approx(1.3 / 3)
    assert found.reason == "mean 0.43"
    assert found.gate == CustomGate(function="models_of_a_test:check").name


def test_what_it_changes_in_the_evidence_nobody_else_sees(record):
    def check(evidence):
        evidence.candidate.sort()
        evidence.groups["mine"] = ["a"] * 3
        return CustomGateResult(True, 1, 0, "sorted")

    before = SCORE.copy()
    assert record(check).outcome == "passed"
    assert (before == SCORE).all()


def test_it_gets_the_columns_that_it_asks_for(record, monkeypatch):
    def check(evidence):
        early = np.asarray(evidence.candidate)[np.asarray(evidence.columns["hour"]) < 12]
        return CustomGateResult(True, early.mean(), 0, f"{early.size} early rows")

    assert "KeyError" in record(check).reason, "nothing was asked for"
    gate = CustomGate(function="models_of_a_test:check", columns=["hour", "carrier"])
    evidence = Evidence(LABEL, SCORE, NoChampion(), columns={"hour": [9, 13, 11], "carrier": ["AA", None, "B6"]})
    found = evaluate_gate(gate, evidence)
    assert (found.outcome, found.candidate, found.reason) == ("passed", 0.25, "2 early rows")
    lost = replace(evidence, columns={"hour": MissingEvidence("'hour' is no column of the holdout")})
    found = evaluate_gate(gate, lost)
    assert found.outcome == "not_computed"
    assert "the column hour is not known: 'hour' is no column" in found.reason
    assert "the column carrier is not known: it was not collected" in found.reason


def fail(evidence):
    raise KeyError("tail number")


@pytest.mark.parametrize(
    ("function", "reasons"),
    [
        (fail, ["models_of_a_test:check raised KeyError: 'tail number'"]),
        (lambda: None, ["raised TypeError"]),
        ("not a function", ["raised TypeError"]),
        (lambda evidence: None, ["returned NoneType, not an evergreen.gates.CustomGateResult"]),
        (lambda evidence: True, ["returned bool"]),
        (lambda evidence: CustomGateResult(True, np.nan, 0.0, "x"), ["value is nan"]),
        (lambda evidence: CustomGateResult(True, 1.0, np.inf, "x"), ["threshold is inf"]),
        (
            lambda evidence: CustomGateResult(1, "1.0", None, " "),
            ["passed is 1", "value is '1.0'", "threshold is None", "no reason"],
        ),
        (lambda evidence: CustomGateResult("no", 1.0, 0.0, "x"), ["passed is 'no'"]),
    ],
)
def test_what_it_does_wrong_blocks_and_is_named(record, function, reasons):
    found = record(function)
    assert (found.outcome, found.candidate) == ("not_computed", None)
    for reason in reasons:
        assert reason in found.reason


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("no_such_module_anywhere:check", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("evergreen.gates.verdict:no_such_function", "AttributeError"),
    ],
)
def test_a_function_that_is_not_there_blocks(function, reason):
    found = evaluate_gate(CustomGate(function=function), Evidence(None, None, NoChampion()))
    assert (found.outcome, found.rows) == ("not_computed", 0)
    assert f"{function} raised {reason}" in found.reason
