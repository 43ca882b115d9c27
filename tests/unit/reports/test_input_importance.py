"""The importance of inputs, as the gate report compares it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from evergreen.explanations.importance_record import InputImportance, ModelImportance, VerdictImportance
from evergreen.reports import plots
from evergreen.reports.input_importance import MAX_INPUTS, ComparedImportance, compare_importance

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore:Glyph")]

LABELS = {"permutation": "drop of auc", "contribution": "mean |SHAP value|", "gain": "share of the gain"}
HOSTILE = '<script>$x$ & "ü"\n𝔘' + "n" * 90


def of_model(values: Mapping[str, float | None], **measures: Mapping[str, float]) -> ModelImportance:
    return ModelImportance(
        inputs=tuple(
            InputImportance(
                name=name,
                permutation=value,
                deviation=None if value is None else 0.01,
                **{measure: numbers.get(name) for measure, numbers in measures.items()},
            )
            for name, value in values.items()
        )
    )


def compared(**models: ModelImportance) -> ComparedImportance:
    result = compare_importance(VerdictImportance(gate="auc_threshold", rows=100, models=models))
    assert result
    return result


def test_ranks_are_by_what_chance_does_not_explain() -> None:
    candidate = of_model({"a": 0.1, "noise": 0.019, "b": 0.3, "worse": -0.2})
    result = compared(candidate=candidate)
    assert result.measures == ("permutation",)
    assert [(item.name, item.rank) for item in result.inputs] == [("b", 1), ("a", 2), ("noise", None), ("worse", None)]
    assert result.changes == ()


def test_what_changed_is_said() -> None:
    champion = of_model({"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.2, "old": 0.1, "silent": 0.3})
    candidate = of_model({"d": 0.5, "a": 0.4, "b": 0.35, "c": 0.3, "new": 0.2, "silent": 0.0})
    result = compared(candidate=candidate, champion=champion)
    assert [item.name for item in result.inputs] == ["d", "a", "b", "c", "new", "old", "silent"]
    assert result.changes == (
        "Only the candidate has new.",
        "Only the champion has old.",
        "Ranks that moved by 3 or more: d from 5 to 1.",
        "Measurable for the champion, and not for the candidate: silent.",
    )
    same = compared(candidate=candidate, champion=candidate)
    assert same.changes == ("Both have the same inputs, and no rank moved by more than two.",)


def test_without_a_metric_contributions_rank() -> None:
    values = {"a": None, "b": None}
    result = compared(candidate=of_model(values, contribution={"a": 0.1, "b": 0.2}, gain={"a": 0.9, "b": 0.1}))
    assert result.measures == ("contribution", "gain")
    assert [item.name for item in result.inputs] == ["b", "a"]
    nothing = VerdictImportance(gate=None, rows=0, models={"candidate": ModelImportance(inputs=())})
    assert compare_importance(nothing) is None


@pytest.mark.parametrize("roles", [("candidate",), ("candidate", "champion")])
def test_the_picture_has_every_input_and_its_rank(roles: tuple[str, ...]) -> None:
    names = ["a", HOSTILE, *(f"input {number}" for number in range(MAX_INPUTS + 3))]
    values = {name: 1 - number / 100 for number, name in enumerate(names)}
    measures: dict[str, Any] = {"gain": dict.fromkeys(names, 0.1), "contribution": {"a": 2.0}}
    models = {
        "candidate": of_model(values, **measures),
        "champion": of_model({"gone": 2.0} | {name: values[name] for name in names[1:]}),
    }
    result = compared(**{role: models[role] for role in roles})
    assert result.hidden == len({*names, *(["gone"] if len(roles) > 1 else [])}) - MAX_INPUTS
    svg = str(plots.plot_importance(result, LABELS))
    assert svg == str(plots.plot_importance(result, LABELS))
    assert "<script>" not in svg
    assert all(label in svg.replace("&#124;", "|") for label in LABELS.values())
    ranks = ("1  new", "gone, was 1") if len(roles) > 1 else ("1", "2")
    assert all(f">{rank}<" in svg for rank in ranks)
