"""What sums of a metric depend on: they are never taken for those of another metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evergreen.monitoring.matured import describe_metrics, metrics_code
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import load_spec

pytestmark = pytest.mark.unit


def gate(**fields: Any) -> AgainstChampionGate:
    return AgainstChampionGate(**{"name": "loss", "metric": "accuracy", "cut": 0.5, "must_be": "better", **fields})


def describe(fields: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return describe_metrics(load_spec("flight_delay").model_copy(update={"gates": (gate(**fields or {}),), **changes}))


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"cut": 0.4}, {}),
        ({"metric": "log_loss", "cut": None}, {}),
        ({}, {"label": "other"}),
        ({}, {"weight": "seats"}),
        ({}, {"query": "carrier"}),
        ({}, {"kind": "regression"}),
    ],
)
def test_another_metric_has_another_description(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    assert describe(fields, **changes)["loss"] != describe()["loss"]


def test_what_a_gate_decides_by_is_not_described() -> None:
    assert describe({"margin": 0.1, "min_rows": 7, "confidence": 0.9}) == describe()
    assert describe({"name": "other"})["other"] == describe()["loss"]


def test_code_of_a_metric_of_the_user_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "metrics_of_a_user.py"
    fields = {"metric": "metrics_of_a_user:error", "higher_is_better": False, "cut": None}
    described = []
    for value in (1.0, 2.0, 1.0):
        module.write_text(f"def error(label, prediction):\n    return {value}\n")
        described.append(describe(fields))
    assert described[0] == described[2] != described[1]
    module.write_text("def error(")
    assert "problem" in describe(fields)["loss"]["code"]
    assert "problem" in describe({**fields, "metric": "no_such_module:error"})["loss"]["code"]


def test_sums_do_not_follow_from_what_decides_gates() -> None:
    assert "evergreen.gates.metrics" in metrics_code()
    assert not [name for name in metrics_code() if "comparisons" in name or "alpha" in name or "kinds" in name]
