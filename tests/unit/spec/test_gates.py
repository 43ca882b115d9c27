"""Gate specs: what cannot be meant is refused, and JSON gives back what went in."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    CustomGate,
    FairnessGate,
    Gate,
    OnlineEqualsOfflineGate,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
    ThresholdGate,
)

pytestmark = pytest.mark.unit

GATE = TypeAdapter(Gate)
BETTER = {"metric": "auc", "must_be": "better"}


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        (ThresholdGate, {"metric": "auc"}, "give at_least"),
        (ThresholdGate, {"metric": "auc", "at_most": 0.6}, "give at_least"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.6, "at_most": 0.9}, "give at_least"),
        (ThresholdGate, {"metric": "brier"}, "give at_most"),
        (ThresholdGate, {"metric": "brier", "at_least": 0.1}, "give at_most"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.0}, "leaves nothing to decide"),
        (ThresholdGate, {"metric": "auc", "at_least": 1.1}, "auc goes from 0 to 1"),
        (ThresholdGate, {"metric": "auc", "at_least": -0.1}, "leaves nothing to decide"),
        (ThresholdGate, {"metric": "brier", "at_most": 1.0}, "leaves nothing to decide"),
        (ThresholdGate, {"metric": "brier", "at_most": -0.1}, "leaves nothing to decide"),
        (ThresholdGate, {"metric": "log_loss", "at_most": 40.0}, "log_loss goes from 0 to 36.0437"),
        (ThresholdGate, {"metric": "auc", "at_least": float("nan")}, "finite"),
        (ThresholdGate, {"metric": "log_loss", "at_most": float("inf")}, "finite"),
        (ThresholdGate, {"metric": "auc", "at_least": "0.6"}, "valid number"),
        (ThresholdGate, {"metric": "auc", "at_least": True}, "valid number"),
        (ThresholdGate, {"metric": "gini", "at_least": 0.6}, "'gini' is none of auc, log_loss"),
        (ThresholdGate, {"metric": "positive_rate", "at_least": 0.6}, "is none of auc"),
        (ThresholdGate, {"metric": "a:b:c", "at_least": 0.6}, "nor 'package.module:function'"),
        (ThresholdGate, {"metric": "shop.metrics:profit", "at_least": 9.0}, "is yours: set higher_is_better"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.6, "higher_is_better": True}, "is known: leave it out"),
        (ThresholdGate, {"metric": "recall", "at_least": 0.6}, "recall needs a cut"),
        (ThresholdGate, {"metric": "accuracy", "at_least": 0.6, "cut": 0.0}, "greater than 0"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.6, "cut": 0.5}, "auc has no cut"),
        (ThresholdGate, {"metric": "expected_cost", "at_most": 2.0}, "needs costs"),
        (ThresholdGate, {"metric": "precision_at_recall", "at_least": 0.5}, "needs the recall"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.5, "recall": 0.5}, "auc has no recall"),
        (ThresholdGate, {"metric": "r2", "at_least": 1.5}, "r2 is at most 1"),
        (ThresholdGate, {"metric": "rmse", "at_most": 2.0, "costs": [[0, 1], [1, 0]]}, "rmse has no costs"),
        (ThresholdGate, {"metric": "expected_cost", "at_most": 2.0, "costs": [[0, 1], [1]]}, "rows of 2, 1 numbers"),
        (ThresholdGate, {"metric": "expected_cost", "at_most": 2.0, "costs": [[0, 0], [0, 0]]}, "are all 0"),
        (ThresholdGate, {"metric": "expected_cost", "at_most": 5.0, "costs": [[0, 1], [5, 0]]}, "leaves nothing"),
        (ThresholdGate, {"metric": "expected_cost", "at_most": 0.5, "costs": [[0, -1], [5, 0]]}, "greater than"),
        (ThresholdGate, {"metric": "quantile_loss", "at_most": 2.0, "quantile": 1.0}, "less than 1"),
        (ThresholdGate, {"metric": "rmse", "at_most": 2.0, "quantile": 0.5}, "rmse has no quantile"),
        (ThresholdGate, {"metric": "rmse", "at_most": -2.0}, "leaves nothing to decide"),
        (ThresholdGate, {"at_least": 0.6}, "required"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.6, "minimum": 3}, "not permitted"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.6, "min_rows": 3}, "greater than or equal to 4"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.6, "name": "two words"}, "pattern"),
        (ThresholdGate, {"metric": "auc", "at_least": 0.6, "kind": "against_champion"}, "'threshold'"),
        (AgainstChampionGate, {"metric": "auc"}, "must_be"),
        (AgainstChampionGate, {"metric": "auc", "must_be": "not_worse"}, "not_worse needs a margin"),
        (AgainstChampionGate, BETTER | {"margin": -0.01}, "greater than or equal to 0"),
        (AgainstChampionGate, BETTER | {"margin": 1.0}, "leaves nothing to decide"),
        (AgainstChampionGate, BETTER | {"margin": float("nan")}, "finite"),
        (AgainstChampionGate, BETTER | {"confidence": 1.0}, "less than 1"),
        (AgainstChampionGate, BETTER | {"confidence": 0.4}, "greater than or equal to 0.5"),
        (AgainstChampionGate, BETTER | {"metric": "calibration_error"}, "cannot be compared fairly"),
        (BySliceGate, {"metric": "auc"}, "by"),
        (BySliceGate, {"metric": "auc", "group_by": ""}, "at least 1 character"),
        (BySliceGate, {"metric": "auc", "group_by": "carrier", "margin": 1.0}, "leaves nothing to decide"),
        (BySliceGate, {"metric": "calibration_error", "group_by": "carrier"}, "cannot be compared fairly"),
        (FairnessGate, {"group_by": "carrier", "at_most": 0.1}, "positive_rate needs a cut"),
        (FairnessGate, {"group_by": "carrier", "at_most": 1.0, "cut": 0.5}, "leaves nothing to decide"),
        (
            FairnessGate,
            {"group_by": "carrier", "at_most": 0.1, "metric": "gini"},
            "crossing_rate, positive_rate, nor",
        ),
        (BaselineGate, {"metric": "auc"}, "does not exist for a constant"),
        (BaselineGate, {"metric": "calibration_error"}, "cannot be compared fairly"),
        (ServingGate, {"quantity": "single_p50_ms", "at_most": 0.0}, "greater than 0"),
        (ServingGate, {"quantity": "joy", "at_most": 1.0}, "'single_p50_ms'"),
        (OnlineEqualsOfflineGate, {"at_most": 1.0}, "less than 1"),
        (PredictionDriftGate, {"at_most": 0.0}, "greater than 0"),
        (CustomGate, {"function": "no_module"}, "pattern"),
    ],
)
def test_refused(kind, fields, says):
    with pytest.raises(ValidationError, match=says):
        kind(**fields)


def test_edges_that_are_fine():
    assert ThresholdGate(metric="auc", at_least=1).limit == 1.0
    assert ThresholdGate(metric="calibration_error", at_most=0.0).limit == 0.0
    assert ThresholdGate(metric="rmse", at_most=1e9).limit == 1e9
    assert ThresholdGate(metric="shop.metrics:profit", higher_is_better=True, at_least=-5.0).limit == -5.0
    assert AgainstChampionGate(**BETTER).limit == 0.0
    assert AgainstChampionGate(**BETTER, margin=0.01).limit == 0.01
    assert AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.01).limit == -0.01
    assert AgainstChampionGate(metric="rmse", must_be="not_worse", margin=70.0).limit == -70.0
    assert str(BySliceGate(metric="auc", group_by="carrier").limit) == "0.0"  # not -0.0
    assert FairnessGate(group_by="carrier", metric="rmse", at_most=3.0).scale.label_type == "continuous"
    assert FairnessGate(group_by="carrier", at_most=0.1, cut=0.5).scale.label_type == "binary"


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (ThresholdGate(metric="auc", at_least=0.6), "auc_threshold"),
        (AgainstChampionGate(metric="auc", must_be="better"), "auc_against_champion"),
        (ThresholdGate(metric="auc", at_least=0.6, name="ranks_at_all"), "ranks_at_all"),
        (
            ThresholdGate(metric="shop.metrics:Profit", higher_is_better=True, at_least=1.0),
            "profit_threshold",
        ),
        (BySliceGate(metric="auc", group_by="carrier"), "auc_carrier_by_slice"),
        (
            BySliceGate(
                metric="auc",
                group_by="case when extract(hour from event_timestamp) < 12 then 'am' else 'pm' end",
            ),
            "auc_case_when_extract_hour_from_event_timest_by_slice",
        ),
        (FairnessGate(group_by="origin", at_most=0.1, cut=0.5), "positive_rate_origin_fairness"),
        (BaselineGate(metric="brier"), "brier_prior_baseline"),
        (ServingGate(quantity="single_p99_ms", at_most=5.0), "single_p99_ms_serving"),
        (SignatureGate(), "signature"),
        (OnlineEqualsOfflineGate(), "online_equals_offline"),
        (PredictionDriftGate(at_most=0.2), "psi_prediction_drift"),
        (CustomGate(function="evergreen_models.flight_delay.gates:_hubs_are_fine"), "hubs_are_fine_custom"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_come_from_what_the_gate_is_about_unless_given(gate, name):
    assert gate.name == name
    assert GATE.validate_json(GATE.dump_json(gate)) == gate


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        ThresholdGate(metric="auc", at_least=0.6).at_least = 0.1


lower_is_better = st.sampled_from(["log_loss", "brier", "calibration_error"])
names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
gates = st.one_of(
    st.builds(ThresholdGate, metric=st.just("auc"), at_least=st.floats(0, 1, exclude_min=True), name=names),
    st.builds(ThresholdGate, metric=lower_is_better, at_most=st.floats(0, 1, exclude_max=True)),
    st.builds(
        AgainstChampionGate,
        metric=st.sampled_from(["auc", "log_loss", "brier"]),
        must_be=st.just("not_worse"),
        margin=st.floats(0, 1, exclude_min=True, exclude_max=True),
        confidence=st.floats(0.5, 0.99),
        min_rows=st.integers(4, 10**6),
    ),
    st.builds(
        FairnessGate,
        group_by=st.text(min_size=1, max_size=90),
        at_most=st.floats(0, 1, exclude_min=True, exclude_max=True),
        cut=st.floats(0, 1, exclude_min=True),
    ),
    st.builds(PredictionDriftGate, statistic=st.sampled_from(["psi", "ks"]), at_most=st.floats(0.01, 9.0)),
)


@given(gates)
def test_json_gives_back_the_same_gate(gate):
    assert GATE.validate_json(GATE.dump_json(gate)) == gate
    assert GATE.validate_python(json.loads(gate.model_dump_json())) == gate


def test_a_gate_whose_spec_has_a_new_field_unset_is_what_it_was():
    """A challenger's evidence is by the gates of its first look, which may be that of an earlier release."""
    assert OnlineEqualsOfflineGate().model_dump(mode="json") == {
        "kind": "online_equals_offline",
        "name": "online_equals_offline",
        "at_most": 0.0,
        "sample_size": 200,
    }
    assert OnlineEqualsOfflineGate(expired="missing").model_dump(mode="json")["expired"] == "missing"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValidationError, match="'threshold', 'against_champion', 'by_slice'"):
        GATE.validate_json('{"kind": "vibes", "metric": "auc"}')


def test_importing_the_package_loads_no_engine():
    """A model's spec lists gates, and Airflow imports specs again and again."""
    code = "import sys, evergreen.gates; print([m for m in ('numpy', 'scipy', 'pandas') if m in sys.modules])"
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
