"""Each gate asks for its evidence, and for no other."""

from __future__ import annotations

import pytest

from evergreen.evaluation.requirements import Asked
from evergreen.evaluation.signature import type_of
from evergreen.gates import (
    AgainstChampion,
    Baseline,
    BySlice,
    Fairness,
    OnlineEqualsOffline,
    Own,
    PredictionDrift,
    SameSignature,
    Serving,
    Threshold,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("gate", "asked"),
    [
        (Threshold(metric="auc", at_least=0.6), Asked()),
        (AgainstChampion(metric="auc", must_be="better"), Asked()),
        (Own(function="evergreen_models.flight_delay.gate:check"), Asked()),
        (BySlice(metric="auc", by="carrier"), Asked(groups=("carrier",))),
        (Fairness(by="origin", cut=0.5, at_most=0.1), Asked(groups=("origin",))),
        (Baseline(metric="brier", against="last"), Asked(baselines=("last",))),
        (Serving(quantity="size_mib", at_most=5), Asked(serving=True)),
        (SameSignature(), Asked(signature=True)),
        (OnlineEqualsOffline(entities=7), Asked(online=7)),
        (PredictionDrift(at_most=0.2), Asked(recent=True)),
    ],
)
def test_what_a_gate_asks_for(gate: object, asked: Asked) -> None:
    assert Asked.by([gate]) == asked


def test_several_gates_share_their_evidence() -> None:
    gates = [
        BySlice(metric="auc", by="origin"),
        BySlice(metric="brier", by="origin"),
        Fairness(by="carrier", cut=0.5, at_most=0.1),
        OnlineEqualsOffline(entities=7, name="few"),
        OnlineEqualsOffline(entities=70, name="many"),
    ]
    assert Asked.by(gates) == Asked(groups=("carrier", "origin"), online=70)


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
    assert {type_of(name) for name in types} == {kind}
