"""Whether gates hold back a damaged model: of every kind, and what is said where they do not or cannot."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from evergreen.cli.check.mutations import damage_predictions, find_mutation_faults
from evergreen.cli.check.steps import SkippedStepError
from evergreen.gates import Evidence, NoChampion
from evergreen.spec.gates import (
    AgainstChampionGate,
    BaselineGate,
    LabelledGate,
    OnlineEqualsOfflineGate,
    ThresholdGate,
)
from evergreen.spec.prediction_type import PredictionType

pytestmark = pytest.mark.unit

ROWS = 600
RANDOM = np.random.default_rng(7)
HELPFUL = RANDOM.random(ROWS)
HOSTILE = 'it\'s "lost"; <b>ü'
CLASSES = ("a", HOSTILE, "c")


def binary() -> tuple[str, Evidence, Any]:
    label = (HELPFUL + RANDOM.normal(scale=0.2, size=ROWS) > 0.5).astype(float)
    return "binary", Evidence(label, HELPFUL, NoChampion()), ThresholdGate(metric="auc", at_least=0.7)


def regression() -> tuple[str, Evidence, Any]:
    label = 100 * HELPFUL + RANDOM.normal(size=ROWS)
    return "regression", Evidence(label, 100 * HELPFUL, NoChampion()), ThresholdGate(metric="mae", at_most=5)


def multiclass() -> tuple[str, Evidence, Any]:
    label = RANDOM.integers(0, 3, ROWS)
    predictions = np.full((ROWS, 3), 0.1)
    predictions[np.arange(ROWS), label] = 0.8
    kind = PredictionType(kind="multiclass", classes=CLASSES)
    evidence = Evidence(label.astype(float), predictions, NoChampion(), prediction_type=kind)
    return "multiclass", evidence, ThresholdGate(metric="accuracy", at_least=0.7)


def quantile() -> tuple[str, Evidence, Any]:
    label = 100 * HELPFUL
    predictions = np.stack([label - 5, label, label + 5], axis=1)
    kind = PredictionType(kind="quantile", quantiles=(0.1, 0.5, 0.9))
    evidence = Evidence(label, predictions, NoChampion(), prediction_type=kind)
    return "quantile", evidence, ThresholdGate(metric="quantile_loss", at_most=3)


def ranking() -> tuple[str, Evidence, Any]:
    label = np.tile([0.0, 1.0, 2.0, 0.0], ROWS // 4)
    queries = [f"{HOSTILE} {row // 4}" for row in range(ROWS)]
    kind = PredictionType(kind="ranking")
    predictions = label + RANDOM.normal(scale=0.1, size=ROWS)
    evidence = Evidence(label, predictions, NoChampion(), queries=queries, prediction_type=kind)
    return "ranking", evidence, ThresholdGate(metric="ndcg", at_least=0.9)


@pytest.mark.parametrize("make", [binary, regression, multiclass, quantile, ranking])
def test_gates_of_every_kind_hold_damaged_models_back_or_are_named(make: Any) -> None:
    kind, evidence, gate = make()
    faults, text = find_mutation_faults(kind, (gate,), evidence)
    assert faults == []
    assert text.count(f"by {gate.name}") == 2
    limit = {"at_least": -1e9} if gate.at_least is not None else {"at_most": 1e9}
    loose = gate.model_copy(update=limit)
    faults, _ = find_mutation_faults(kind, (loose, OnlineEqualsOfflineGate()), evidence)
    assert [fault.location for fault in faults] == ["gates", "gates"]
    assert all(f"would pass {gate.name}" in fault.problem for fault in faults)


def test_the_damaged_model_is_compared_with_the_undamaged_one() -> None:
    _, evidence, _ = binary()
    days = [f"2024-01-{1 + row % 20:02}" for row in range(ROWS)]
    evidence = replace(evidence, clusters={"day": days}, days=(date(2024, 1, 1), date(2024, 1, 21)))
    gate = AgainstChampionGate(metric="log_loss", must_be="not_worse", margin=0.01)
    faults, text = find_mutation_faults("binary", (gate,), evidence)
    assert faults == []
    assert text.count(f"by {gate.name}") == 2


@pytest.mark.parametrize(
    ("gates", "change", "reason"),
    [
        ((LabelledGate(at_least=0.1), OnlineEqualsOfflineGate()), {}, "there is none"),
        ((ThresholdGate(metric="auc", at_least=0.999999),), {}, "auc_threshold: auc 0"),
        ((BaselineGate(metric="log_loss", baseline="prior"),), {}, "baseline: "),
        ((ThresholdGate(metric="auc", at_least=0.1),), {"candidate": np.full(ROWS, 0.5)}, "constant|are equal|same"),
    ],
)
def test_what_shows_nothing_is_skipped_with_the_reason(gates: Any, change: Any, reason: str) -> None:
    _, evidence, _ = binary()
    with pytest.raises(SkippedStepError, match=reason):
        find_mutation_faults("binary", gates, replace(evidence, **change))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ranking", "regression", "quantile", None])
def test_damaged_predictions_differ_and_keep_their_shape(kind: str | None) -> None:
    predictions = RANDOM.random((50, 3)) if kind in ("multiclass", "quantile") else RANDOM.random(50)
    for label in (np.zeros(50), RANDOM.random(50), np.full(50, np.nan)):
        for damaged in damage_predictions(kind, predictions, label).values():
            assert damaged.shape == predictions.shape
            assert not np.array_equal(damaged, predictions)
