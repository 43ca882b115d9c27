"""Gate specs: what cannot be meant is refused, and JSON gives back what went in."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evergreen.gates import Gate, NotWorseThanChampion, Threshold

pytestmark = pytest.mark.unit

GATE = TypeAdapter(Gate)


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        (Threshold, {"metric": "auc"}, "give at_least"),
        (Threshold, {"metric": "auc", "at_most": 0.6}, "give at_least"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "at_most": 0.9}, "give at_least"),
        (Threshold, {"metric": "brier"}, "give at_most"),
        (Threshold, {"metric": "brier", "at_least": 0.1}, "give at_most"),
        (Threshold, {"metric": "auc", "at_least": 0.0}, "leaves nothing to decide"),
        (Threshold, {"metric": "auc", "at_least": 1.1}, "auc goes from 0 to 1"),
        (Threshold, {"metric": "auc", "at_least": -0.1}, "leaves nothing to decide"),
        (Threshold, {"metric": "brier", "at_most": 1.0}, "leaves nothing to decide"),
        (Threshold, {"metric": "brier", "at_most": -0.1}, "leaves nothing to decide"),
        (Threshold, {"metric": "log_loss", "at_most": 40.0}, "log_loss goes from 0 to 36.0437"),
        (Threshold, {"metric": "auc", "at_least": float("nan")}, "finite"),
        (Threshold, {"metric": "log_loss", "at_most": float("inf")}, "finite"),
        (Threshold, {"metric": "auc", "at_least": "0.6"}, "valid number"),
        (Threshold, {"metric": "auc", "at_least": True}, "valid number"),
        (Threshold, {"metric": "accuracy", "at_least": 0.6}, "'auc'"),
        (Threshold, {"at_least": 0.6}, "required"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "minimum": 3}, "not permitted"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "min_rows": 3}, "greater than or equal to 4"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "name": "two words"}, "pattern"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "kind": "not_worse_than_champion"}, "'threshold'"),
        (NotWorseThanChampion, {"metric": "auc", "margin": -0.01}, "greater than or equal to 0"),
        (NotWorseThanChampion, {"metric": "auc", "margin": 1.0}, "forgives everything"),
        (NotWorseThanChampion, {"metric": "auc", "margin": float("nan")}, "finite"),
        (NotWorseThanChampion, {"metric": "auc", "confidence": 1.0}, "less than 1"),
        (NotWorseThanChampion, {"metric": "auc", "confidence": 0.4}, "greater than or equal to 0.5"),
        (NotWorseThanChampion, {"metric": "auc", "resamples": 199}, "at least 10"),
        (NotWorseThanChampion, {"metric": "auc", "confidence": 0.999}, "2 lie beyond the bound"),
        (NotWorseThanChampion, {"metric": "auc", "resamples": 10**6}, "less than or equal to 100000"),
        (NotWorseThanChampion, {"metric": "auc", "resamples": 2000.5}, "valid integer"),
        (NotWorseThanChampion, {"metric": "calibration_error"}, "'auc', 'log_loss' or 'brier'"),
    ],
)
def test_refused(kind, fields, says):
    with pytest.raises(ValidationError, match=says):
        kind(**fields)


def test_edges_that_are_fine():
    assert Threshold(metric="auc", at_least=1).limit == 1.0
    assert Threshold(metric="calibration_error", at_most=0.0).limit == 0.0
    assert NotWorseThanChampion(metric="auc", margin=0.0).limit == 0.0
    assert NotWorseThanChampion(metric="auc", resamples=200).limit == -0.01
    assert NotWorseThanChampion(metric="brier", confidence=0.99, resamples=1000).confidence == 0.99


def test_names_come_from_metric_and_kind_unless_given():
    assert Threshold(metric="auc", at_least=0.6).name == "auc_threshold"
    assert NotWorseThanChampion(metric="brier").name == "brier_not_worse_than_champion"
    assert Threshold(metric="auc", at_least=0.6, name="ranks_at_all").name == "ranks_at_all"


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Threshold(metric="auc", at_least=0.6).at_least = 0.1


lower_is_better = st.sampled_from(["log_loss", "brier", "calibration_error"])
names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
gates = st.one_of(
    st.builds(Threshold, metric=st.just("auc"), at_least=st.floats(0, 1, exclude_min=True), name=names),
    st.builds(Threshold, metric=lower_is_better, at_most=st.floats(0, 1, exclude_max=True)),
    st.builds(
        NotWorseThanChampion,
        metric=st.sampled_from(["auc", "log_loss", "brier"]),
        margin=st.floats(0, 1, exclude_max=True),
        confidence=st.floats(0.5, 0.99),
        min_rows=st.integers(4, 10**6),
    ),
)


@given(gates)
def test_json_gives_back_the_same_gate(gate):
    assert GATE.validate_json(GATE.dump_json(gate)) == gate
    assert GATE.validate_python(json.loads(gate.model_dump_json())) == gate


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValidationError, match="'threshold', 'not_worse_than_champion'"):
        GATE.validate_json('{"kind": "vibes", "metric": "auc"}')


def test_importing_the_package_loads_no_engine():
    """A model's spec lists gates, and Airflow imports specs again and again."""
    code = "import sys, evergreen.gates; print([m for m in ('numpy', 'scipy', 'pandas') if m in sys.modules])"
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
