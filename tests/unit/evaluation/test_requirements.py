"""Each gate asks for its evidence, and for no other."""

from __future__ import annotations

import pytest

from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.feature_store.model_inputs import coarse_type
from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    CustomGate,
    FairnessGate,
    OnlineEqualsOfflineGate,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
    ThresholdGate,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("gate", "asked"),
    [
        (ThresholdGate(metric="auc", at_least=0.6), EvidenceRequirements()),
        (AgainstChampionGate(metric="auc", must_be="better"), EvidenceRequirements()),
        (CustomGate(function="evergreen_models.flight_delay.gate:check"), EvidenceRequirements()),
        (BySliceGate(metric="auc", group_by="carrier"), EvidenceRequirements(groups=("carrier",))),
        (FairnessGate(group_by="origin", cut=0.5, at_most=0.1), EvidenceRequirements(groups=("origin",))),
        (BaselineGate(metric="brier", baseline="last"), EvidenceRequirements(baselines=("last",))),
        (ServingGate(quantity="size_mib", at_most=5), EvidenceRequirements(serving_costs=True)),
        (SignatureGate(), EvidenceRequirements(input_signature=True)),
        (OnlineEqualsOfflineGate(sample_size=7), EvidenceRequirements(online_sample_size=7)),
        (PredictionDriftGate(at_most=0.2), EvidenceRequirements(recent_predictions=True)),
    ],
)
def test_what_a_gate_asks_for(gate: object, asked: EvidenceRequirements) -> None:
    assert EvidenceRequirements.from_gates([gate], ()) == asked


def test_several_gates_share_their_evidence() -> None:
    gates = [
        BySliceGate(metric="auc", group_by="origin"),
        BySliceGate(metric="brier", group_by="origin"),
        FairnessGate(group_by="carrier", cut=0.5, at_most=0.1),
        OnlineEqualsOfflineGate(sample_size=7, name="few"),
        OnlineEqualsOfflineGate(sample_size=70, name="many"),
    ]
    assert EvidenceRequirements.from_gates(gates, ["day"]) == EvidenceRequirements(
        clusters=("day",), groups=("carrier", "origin"), online_sample_size=70
    )


@pytest.mark.parametrize(
    ("types", "kind"),
    [
        (("int32", "int64", "uint8", "float", "double", "halffloat", "decimal128(9, 2)"), "number"),
        (("timestamp[us, tz=UTC]", "date32[day]"), "time"),
        (("string", "large_string"), "text"),
        (("bool",), "boolean"),
        (("list<item: double>",), "list<item: double>"),
    ],
)
def test_types_that_a_model_cannot_tell_apart_are_one(types: tuple[str, ...], kind: str) -> None:
    assert {coarse_type(name) for name in types} == {kind}
