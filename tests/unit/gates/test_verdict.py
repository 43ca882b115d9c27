"""Decisions on records alone."""

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evergreen.gates import GateResult, Look, Verdict, decide_verdict

pytestmark = pytest.mark.unit


def record(gate="auc_threshold", outcome="passed", **fields):
    defaults = {"candidate": 0.7, "threshold": 0.6, "rows": 500, "reason": f"{gate} was {outcome}"}
    return GateResult(gate=gate, outcome=outcome, **defaults | fields)


def test_all_passed_promotes():
    verdict = decide_verdict([record("a"), record("b")])
    assert verdict.promote
    assert verdict.reason == "all 2 gates passed: a, b"
    assert decide_verdict([record("a")]).reason == "the only gate passed: a"


@pytest.mark.parametrize("outcome", ["failed", "not_computed"])
def test_one_that_did_not_pass_blocks_and_is_named(outcome):
    verdict = decide_verdict([record("a"), record("b", outcome, reason="b is bad"), record("c", outcome)])
    assert not verdict.promote
    assert verdict.reason == f"b: b is bad; c: c was {outcome}"


LOOK = Look(end=date(2013, 3, 15), days=14, level=0.001, gain=0.01, low=-0.01)
WAITING = {"outcome": "inconclusive", "alpha": 0.02, "looks": (LOOK,)}


@pytest.mark.parametrize(
    ("others", "is_inconclusive"),
    [([], True), (["passed"], True), (["failed"], False), (["passed", "not_computed"], False)],
)
def test_inconclusive_waits_only_while_no_gate_rejects(others, is_inconclusive):
    waiting = record("w", **WAITING, reason="it goes on")
    verdict = decide_verdict([waiting, *(record(f"g{n}", outcome) for n, outcome in enumerate(others))])
    assert not verdict.promote
    assert verdict.is_inconclusive is is_inconclusive
    assert "w: it goes on" in verdict.reason
    assert not decide_verdict([record("a")]).is_inconclusive
    with pytest.raises(ValidationError, match="cannot promote"):
        Verdict(results=verdict.results, promote=True, reason="trust me")


def test_no_gates_block():
    assert decide_verdict([]) == Verdict(results=(), promote=False, reason="no gates: nothing speaks for the candidate")


def test_two_of_one_name_block():
    verdict = decide_verdict([record("a"), record("a")])
    assert not verdict.promote
    assert verdict.reason == "two gates are named a: give each its own name"


@pytest.mark.parametrize(
    "fields",
    [
        {"candidate": float("nan")},
        {"champion": float("inf")},
        {"threshold": float("-inf")},
        {"interval": (float("nan"), 0.1)},
        {"interval": (0.2, 0.1)},
        {"candidate": None},
        {"outcome": "maybe"},
        {"outcome": "inconclusive"},
        {"rows": -1},
        {"reason": ""},
        {"gate": ""},
        {"mood": "good"},
    ],
)
def test_impossible_records_are_refused(fields):
    with pytest.raises(ValidationError):
        record(**fields)


@pytest.mark.parametrize(
    "records",
    [[], [record("a"), record("a")], [record("a"), record("b", "failed")], [record("a", "not_computed")]],
)
def test_a_verdict_cannot_be_forged(records):
    with pytest.raises(ValidationError, match="cannot promote"):
        Verdict(results=tuple(records), promote=True, reason="trust me")
    stored = json.loads(decide_verdict(records).model_dump_json()) | {"promote": True}
    with pytest.raises(ValidationError, match="cannot promote"):
        Verdict.model_validate(stored)


finite = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    GateResult,
    gate=st.text(min_size=1, max_size=8),
    outcome=st.sampled_from(["passed", "passed", "passed", "failed", "not_computed"]),
    candidate=finite,
    champion=st.none() | finite,
    interval=st.none() | st.tuples(finite, finite).map(sorted).map(tuple),
    threshold=finite,
    rows=st.integers(0, 10**9),
    reason=st.text(min_size=1, max_size=20),
)


@given(st.lists(records, max_size=4))
def test_promotes_exactly_when_it_may_and_survives_json(some):
    verdict = decide_verdict(some)
    names = [r.gate for r in some]
    may = bool(some) and len(set(names)) == len(names) and all(r.outcome == "passed" for r in some)
    assert verdict.promote is may
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert Verdict.model_validate(json.loads(verdict.model_dump_json())) == verdict
    assert decide_verdict(verdict.results) == verdict  # again, from what was stored
