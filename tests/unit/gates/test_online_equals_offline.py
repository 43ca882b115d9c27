"""The online store's features against the offline ones."""

from dataclasses import replace

import pytest

from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, OnlineSample
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import OnlineEqualsOfflineGate

pytestmark = pytest.mark.unit

NONE = OnlineEqualsOfflineGate()
FEW = OnlineEqualsOfflineGate(at_most=0.01)


def record(gate, online):
    return evaluate_gate(gate, Evidence([], [], NoChampion(), online_sample=online))


@pytest.mark.parametrize(
    ("gate", "different", "outcome"),
    [(NONE, 0, "passed"), (NONE, 1, "failed"), (FEW, 20, "passed"), (FEW, 21, "failed")],
)
def test_at_most_the_share_may_differ(gate, different, outcome):
    found = record(gate, OnlineSample(2000, different))
    assert (found.outcome, found.candidate, found.rows) == (outcome, different / 2000, 2000)
    assert found.threshold == gate.at_most


def test_the_reason_has_the_counts_and_the_first_that_differs():
    found = record(NONE, OnlineSample(2000, 3, "wind of JFK is 3.1 online, 4.0 offline"))
    assert found.reason == (
        "3 of 2,000 feature values differ online from offline, a share of 0.0015 (at most 0 is allowed); "
        "the first: wind of JFK is 3.1 online, 4.0 offline"
    )
    assert "first" not in record(NONE, OnlineSample(2000, 0)).reason


@pytest.mark.parametrize(
    ("online", "reason"),
    [
        (
            MissingEvidence("no online store is configured"),
            "not compared with the offline one: no online store",
        ),
        (OnlineSample(0, 0), "no feature value was compared"),
        (OnlineSample(10, 11), "more than were compared"),
        (OnlineSample(-1, 0), "no counts"),
        (OnlineSample(10, -1), "no counts"),
        (OnlineSample(float("nan"), 0), "no counts"),
        (OnlineSample(10, None), "no counts"),
        (OnlineSample(True, False), "no counts"),
        (OnlineSample(10, 0, expired_count=-1), "no counts"),
        (OnlineSample(10, 0, changed_count=None), "no counts"),
        (OnlineSample(10, 5, expired_count=6), "more than were compared"),
        (OnlineSample(10, 0, expired_count=1, changed_count=2), "more than were compared"),
        ((10, 0), "no counts"),
    ],
)
def test_what_was_not_compared_blocks(online, reason):
    for gate in (NONE, FEW):
        found = record(gate, online)
        assert (found.outcome, found.candidate) == ("not_computed", None)
        assert reason in found.reason


LEFT = OnlineSample(
    2000,
    1,
    "wind is 1 online",
    expired_count=4,
    first_expired="rain has left",
    changed_count=2,
    first_changed="rain is 3",
)


@pytest.mark.parametrize(("expired", "count"), [("differ", 5), ("missing", 1), ("last_value", 3)])
def test_what_counts_of_keys_that_have_left_is_declared(expired, count):
    found = record(OnlineEqualsOfflineGate(expired=expired), LEFT)
    assert (found.outcome, found.candidate) == ("failed", count / 2000)
    assert f"{count} of 2,000 feature values differ" in found.reason
    assert "4 older than the ttl of their view" in found.reason
    assert found.reason.endswith("the first: wind is 1 online")


@pytest.mark.parametrize(
    ("expired", "outcome", "reason"),
    [
        ("differ", "failed", "the first: rain has left; say by `expired` of this gate whether"),
        ("missing", "passed", "the server leaves out"),
        ("last_value", "failed", "the first: rain is 3"),
    ],
)
def test_the_first_of_the_expired_values_is_named_if_they_count(expired, outcome, reason):
    found = record(OnlineEqualsOfflineGate(expired=expired), replace(LEFT, mismatch_count=0, first_mismatch=""))
    assert found.outcome == outcome
    assert reason in found.reason
    assert "wind" not in found.reason


def test_the_reason_says_as_of_when_the_stores_were_compared():
    moment = "keys of 2013-01-17 as of noon; the online store holds values until midnight"
    assert f"(at most 0 is allowed), for {moment}" in record(NONE, OnlineSample(10, 0, moment=moment)).reason
