"""What a model costs to serve, against what it may cost."""

import numpy as np
import pytest

from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import ServingGate

pytestmark = pytest.mark.unit

P99 = ServingGate(quantity="single_p99_ms", at_most=5.0)


def record(serving, gate=P99):
    return evaluate_gate(gate, Evidence([], [], NoChampion(), serving_costs=serving))


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(5.0, "passed"), (np.nextafter(5, 9), "failed"), (4, "passed"), (np.float32(6), "failed")],
)
def test_the_limit_itself_still_passes(value, outcome):
    found = record({"single_p99_ms": value, "size_mib": 1e6})
    assert (found.outcome, found.candidate, found.threshold) == (outcome, float(value), 5.0)
    assert found.gate == "single_p99_ms_serving"


def test_the_reason_has_unit_value_and_limit_without_rounding():
    assert record({"single_p99_ms": 7.25}).reason == "single_p99_ms is 7.25, at most 5 is required"
    assert float(record({"single_p99_ms": 5.000001}).reason.split()[2].rstrip(",")) > 5


@pytest.mark.parametrize(
    ("serving", "reason"),
    [
        (MissingEvidence("the model did not load"), "not known: the model did not load"),
        ({}, "single_p99_ms was not measured, but nothing"),
        ({"size_mib": 3.0, "load_ms": 1.0}, "not measured, but load_ms, size_mib"),
        ({"single_p99_ms": float("nan")}, "measured as nan"),
        ({"single_p99_ms": float("inf")}, "measured as inf"),
        ({"single_p99_ms": -1.0}, "measured as -1.0"),
        ({"single_p99_ms": None}, "measured as None"),
        ({"single_p99_ms": "3.0"}, "measured as '3.0'"),
        ({"single_p99_ms": True}, "measured as True"),
        ([3.0], "not a mapping"),
    ],
)
def test_what_was_not_measured_blocks(serving, reason):
    found = record(serving)
    assert (found.outcome, found.candidate) == ("not_computed", None)
    assert reason in found.reason
