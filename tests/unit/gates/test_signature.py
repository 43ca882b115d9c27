"""The columns that the model takes, against those that serving gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.gates.evidence import Evidence, InputSignature, MissingEvidence, NoChampion
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import SignatureGate

pytestmark = pytest.mark.unit

MODEL = (("carrier", "string"), ("distance", "double"), ("hour", "long"), ("wind", "double"))


def record(signature):
    return evaluate_gate(SignatureGate(), Evidence([], [], NoChampion(), input_signature=signature))


def against(*serving):
    return record(InputSignature(MODEL, serving))


def test_the_same_columns_pass():
    found = against(*MODEL)
    assert (found.outcome, found.candidate, found.rows) == ("passed", 0, 4)
    assert found.reason == "serving gives what the model takes, in order and type: 4 columns"


def test_each_column_that_differs_is_named_with_how():
    found = against(("wind", "float"), ("carrier", "string"), ("distance", "double"), ("gust", "double"))
    assert (found.outcome, found.candidate) == ("failed", 3)
    assert set(found.reason.split("; ")) == {
        "hour (long) is missing from serving",
        "gust (double) is extra in serving",
        "wind is double for the model and float in serving, and column 4 for the model and 1 in serving",
    }


def test_a_column_left_out_does_not_accuse_those_behind_it():
    found = against(*MODEL[1:])
    assert found.reason == "carrier (string) is missing from serving"
    found = against(("gust", "double"), *MODEL)
    assert found.reason == "gust (double) is extra in serving"


def test_one_column_moved_is_one_column_named():
    found = against(*MODEL[1:], MODEL[0])
    assert found.candidate == 1
    assert found.reason == "carrier is column 1 for the model and 4 in serving"


columns = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(["long", "double"])),
    min_size=1,
    unique_by=lambda column: column[0],
).map(tuple)


@given(columns, columns)
def test_it_passes_only_what_is_equal(model, serving):
    found = record(InputSignature(model, serving))
    assert (found.outcome == "passed") == (model == serving)
    assert (found.candidate == 0) == (model == serving)


@pytest.mark.parametrize(
    ("signature", "reasons"),
    [
        (MissingEvidence("the feature service is gone"), ["not known: the feature service is gone"]),
        (InputSignature((), ()), ["the model lists no columns", "serving lists no columns"]),
        (InputSignature(MODEL + MODEL[:1], MODEL), ["the model lists carrier 2 times"]),
        (InputSignature(("carrier",), MODEL), ["the inputs of the model are not names and types"]),
        (InputSignature(MODEL, (("carrier", None),)), ["the inputs of serving are not names and types"]),
        (InputSignature(None, MODEL), ["the inputs of the model are not names and types"]),
        (MODEL, ["are not a signature"]),
    ],
)
def test_what_is_no_signature_blocks(signature, reasons):
    found = record(signature)
    assert (found.outcome, found.candidate) == ("not_computed", None)
    for reason in reasons:
        assert reason in found.reason
