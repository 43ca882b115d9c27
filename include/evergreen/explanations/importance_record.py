"""The importance of inputs, as it is stored beside a gate report."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from evergreen.spec import Frozen


class InputImportance(Frozen):
    """How much an input matters to a model; None is what was not measured."""

    name: str = Field(description="of a column, or of a group of the spec")
    gain: float | None = Field(None, description="share of the gain of all splits, from 0 to 1")
    permutation: float | None = Field(None, description="mean drop of the metric, in its unit; positive is worse")
    deviation: float | None = Field(None, description="standard deviation of the drops of one permutation each")
    contribution: float | None = Field(None, description="mean |SHAP value|, in the unit of the model's raw score")


class ModelImportance(Frozen):
    """How much each input of one model matters."""

    inputs: tuple[InputImportance, ...] = Field(description="in the model's order")
    metric: float | None = Field(None, description="the metric on the rows as they are")
    permutations: int = Field(0, description="how often each input was permuted")
    explained_rows: int = Field(0, description="rows whose contributions were computed")
    problems: tuple[str, ...] = ()


class VerdictImportance(Frozen):
    """How much each input matters to the models of a verdict, by `candidate` and `champion`."""

    gate: str | None = Field(description="the gate whose metric gets worse; None: no gate has a metric")
    rows: int = Field(description="of the holdout, all measured on the same ones")
    models: Mapping[str, ModelImportance]
