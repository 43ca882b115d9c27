"""Gate specs: what cannot be meant is refused, and JSON gives back what went in."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evergreen.gates import (
    AgainstChampion,
    Baseline,
    BySlice,
    Fairness,
    Gate,
    OnlineEqualsOffline,
    Own,
    PredictionDrift,
    SameSignature,
    Serving,
    Threshold,
)

pytestmark = pytest.mark.unit

GATE = TypeAdapter(Gate)
BETTER = {"metric": "auc", "must_be": "better"}


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
        (Threshold, {"metric": "gini", "at_least": 0.6}, "'gini' is none of auc, log_loss"),
        (Threshold, {"metric": "positive_rate", "at_least": 0.6}, "is none of auc"),
        (Threshold, {"metric": "a:b:c", "at_least": 0.6}, "nor 'package.module:function'"),
        (Threshold, {"metric": "shop.metrics:profit", "at_least": 9.0}, "say whether higher_is_better"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "higher_is_better": True}, "is known: leave"),
        (Threshold, {"metric": "accuracy", "at_least": 0.6}, "accuracy needs a cut"),
        (Threshold, {"metric": "accuracy", "at_least": 0.6, "cut": 0.0}, "greater than 0"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "cut": 0.5}, "auc has no cut"),
        (Threshold, {"metric": "quantile_loss", "at_most": 2.0}, "needs the quantile"),
        (Threshold, {"metric": "quantile_loss", "at_most": 2.0, "quantile": 1.0}, "less than 1"),
        (Threshold, {"metric": "rmse", "at_most": 2.0, "quantile": 0.5}, "rmse has no quantile"),
        (Threshold, {"metric": "rmse", "at_most": -2.0}, "leaves nothing to decide"),
        (Threshold, {"at_least": 0.6}, "required"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "minimum": 3}, "not permitted"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "min_rows": 3}, "greater than or equal to 4"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "name": "two words"}, "pattern"),
        (Threshold, {"metric": "auc", "at_least": 0.6, "kind": "against_champion"}, "'threshold'"),
        (AgainstChampion, {"metric": "auc"}, "must_be"),
        (AgainstChampion, {"metric": "auc", "must_be": "not_worse"}, "needs a margin that is still fine"),
        (AgainstChampion, BETTER | {"margin": -0.01}, "greater than or equal to 0"),
        (AgainstChampion, BETTER | {"margin": 1.0}, "leaves nothing to decide"),
        (AgainstChampion, BETTER | {"margin": float("nan")}, "finite"),
        (AgainstChampion, BETTER | {"confidence": 1.0}, "less than 1"),
        (AgainstChampion, BETTER | {"confidence": 0.4}, "greater than or equal to 0.5"),
        (AgainstChampion, BETTER | {"resamples": 199}, "greater than or equal to 200"),
        (AgainstChampion, BETTER | {"resamples": 10**6}, "less than or equal to 100000"),
        (AgainstChampion, BETTER | {"resamples": 2000.5}, "valid integer"),
        (AgainstChampion, BETTER | {"metric": "calibration_error"}, "cannot be compared fairly"),
        (AgainstChampion, BETTER | {"metric": "brier", "test": "delong"}, "delong is a test of auc"),
        (AgainstChampion, BETTER | {"test": "mcnemar"}, "mcnemar is a test of accuracy, not of auc"),
        (BySlice, {"metric": "auc"}, "by"),
        (BySlice, {"metric": "auc", "by": ""}, "at least 1 character"),
        (BySlice, {"metric": "auc", "by": "carrier", "margin": 1.0}, "leaves nothing to decide"),
        (BySlice, {"metric": "calibration_error", "by": "carrier"}, "cannot be compared fairly"),
        (Fairness, {"by": "carrier", "at_most": 0.1}, "positive_rate needs a cut"),
        (Fairness, {"by": "carrier", "at_most": 1.0, "cut": 0.5}, "leaves nothing to decide"),
        (Fairness, {"by": "carrier", "at_most": 0.1, "metric": "gini"}, "quantile_loss, positive_rate, nor"),
        (Baseline, {"metric": "auc"}, "says nothing of a constant"),
        (Baseline, {"metric": "calibration_error"}, "cannot be compared fairly"),
        (Serving, {"quantity": "single_p50_ms", "at_most": 0.0}, "greater than 0"),
        (Serving, {"quantity": "joy", "at_most": 1.0}, "'single_p50_ms'"),
        (OnlineEqualsOffline, {"at_most": 1.0}, "less than 1"),
        (PredictionDrift, {"at_most": 0.0}, "greater than 0"),
        (Own, {"function": "no_module"}, "pattern"),
    ],
)
def test_refused(kind, fields, says):
    with pytest.raises(ValidationError, match=says):
        kind(**fields)


def test_edges_that_are_fine():
    assert Threshold(metric="auc", at_least=1).limit == 1.0
    assert Threshold(metric="calibration_error", at_most=0.0).limit == 0.0
    assert Threshold(metric="rmse", at_most=1e9).limit == 1e9
    assert Threshold(metric="shop.metrics:profit", higher_is_better=True, at_least=-5.0).limit == -5.0
    assert AgainstChampion(**BETTER).limit == 0.0
    assert AgainstChampion(**BETTER, margin=0.01, resamples=200).limit == 0.01
    assert AgainstChampion(metric="auc", must_be="not_worse", margin=0.01).limit == -0.01
    assert AgainstChampion(metric="rmse", must_be="not_worse", margin=70.0).limit == -70.0
    assert str(BySlice(metric="auc", by="carrier").limit) == "0.0"  # not -0.0
    assert Fairness(by="carrier", metric="rmse", at_most=3.0).scale.of == "amounts"
    assert Fairness(by="carrier", at_most=0.1, cut=0.5).scale.of == "classes"


def test_the_test_follows_from_the_metric_unless_it_is_named():
    assert AgainstChampion(**BETTER).chosen_test == "delong"
    assert AgainstChampion(**BETTER, test="bootstrap").chosen_test == "bootstrap"
    assert AgainstChampion(metric="accuracy", cut=0.5, must_be="better").chosen_test == "mcnemar"
    assert AgainstChampion(metric="brier", must_be="better").chosen_test == "bootstrap"


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (Threshold(metric="auc", at_least=0.6), "auc_threshold"),
        (AgainstChampion(metric="auc", must_be="better"), "auc_against_champion"),
        (Threshold(metric="auc", at_least=0.6, name="ranks_at_all"), "ranks_at_all"),
        (
            Threshold(metric="shop.metrics:Profit", higher_is_better=True, at_least=1.0),
            "profit_threshold",
        ),
        (BySlice(metric="auc", by="carrier"), "auc_carrier_by_slice"),
        (
            BySlice(
                metric="auc", by="case when extract(hour from event_timestamp) < 12 then 'am' else 'pm' end"
            ),
            "auc_case_when_extract_hour_from_event_timest_by_slice",
        ),
        (Fairness(by="origin", at_most=0.1, cut=0.5), "positive_rate_origin_fairness"),
        (Baseline(metric="brier"), "brier_prior_baseline"),
        (Serving(quantity="single_p99_ms", at_most=5.0), "single_p99_ms_serving"),
        (SameSignature(), "signature"),
        (OnlineEqualsOffline(), "online_equals_offline"),
        (PredictionDrift(at_most=0.2), "psi_prediction_drift"),
        (Own(function="evergreen_models.flight_delay.gates:_hubs_are_fine"), "hubs_are_fine_own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_come_from_what_the_gate_is_about_unless_given(gate, name):
    assert gate.name == name
    assert GATE.validate_json(GATE.dump_json(gate)) == gate


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Threshold(metric="auc", at_least=0.6).at_least = 0.1


lower_is_better = st.sampled_from(["log_loss", "brier", "calibration_error"])
names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
gates = st.one_of(
    st.builds(Threshold, metric=st.just("auc"), at_least=st.floats(0, 1, exclude_min=True), name=names),
    st.builds(Threshold, metric=lower_is_better, at_most=st.floats(0, 1, exclude_max=True)),
    st.builds(
        AgainstChampion,
        metric=st.sampled_from(["auc", "log_loss", "brier"]),
        must_be=st.just("not_worse"),
        margin=st.floats(0, 1, exclude_min=True, exclude_max=True),
        confidence=st.floats(0.5, 0.99),
        test=st.sampled_from([None, "bootstrap"]),
        min_rows=st.integers(4, 10**6),
    ),
    st.builds(
        Fairness,
        by=st.text(min_size=1, max_size=90),
        at_most=st.floats(0, 1, exclude_min=True, exclude_max=True),
        cut=st.floats(0, 1, exclude_min=True),
    ),
    st.builds(PredictionDrift, measure=st.sampled_from(["psi", "ks"]), at_most=st.floats(0.01, 9.0)),
)


@given(gates)
def test_json_gives_back_the_same_gate(gate):
    assert GATE.validate_json(GATE.dump_json(gate)) == gate
    assert GATE.validate_python(json.loads(gate.model_dump_json())) == gate


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValidationError, match="'threshold', 'against_champion', 'by_slice'"):
        GATE.validate_json('{"kind": "vibes", "metric": "auc"}')


def test_importing_the_package_loads_no_engine():
    """A model's spec lists gates, and Airflow imports specs again and again."""
    code = "import sys, evergreen.gates; print([m for m in ('numpy', 'scipy', 'pandas') if m in sys.modules])"
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
