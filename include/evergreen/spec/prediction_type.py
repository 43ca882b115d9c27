"""The kinds of models: what one predicts for a row, and what each of its numbers means."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, StrictInt, StringConstraints, model_validator

from evergreen.spec import Frozen, Name

ModelKind = Literal["binary", "multiclass", "regression", "quantile", "forecast", "ranking"]

MAX_CLASSES = 100
"""Sums by class are kept for each cluster."""

_Value = TypeVar("_Value")


def _check_unique(values: tuple[_Value, ...]) -> tuple[_Value, ...]:
    if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(repeated)} occurs twice: drop one")
    return values


def _check_same_type(values: tuple[str | int, ...]) -> tuple[str | int, ...]:
    if len({type(value) for value in values}) > 1:
        raise ValueError("some are texts and some are numbers: write each as it is in the label column")
    return values


def _check_order(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(values):
        raise ValueError("they are not in order: write them from the lowest to the highest, as the model returns them")
    return values


_Text = Annotated[str, StringConstraints(strict=True, min_length=1)]
Classes = Annotated[
    tuple[_Text | StrictInt, ...],
    Field(max_length=MAX_CLASSES),
    AfterValidator(_check_unique),
    AfterValidator(_check_same_type),
]
Quantiles = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...],
    Field(max_length=MAX_CLASSES),
    AfterValidator(_check_unique),
    AfterValidator(_check_order),
]


class ForecastSeries(Frozen):
    """Whose values a forecast predicts, and how far ahead.

    Each row of the spine is for a series, an origin and a horizon: the label is the value of the series so many periods
    after the origin. The row's period is the origin, or with `row_period="target"` the one that the value is of.
    """

    series: tuple[Name, ...] = Field(
        min_length=1, description="columns of the spine whose values together name a series"
    )
    horizon: Name = Field(
        description="column of the spine with whole numbers from 0 on: of how many periods after the origin the label "
        "is the value"
    )
    season: int = Field(
        ge=1,
        description="number of periods after which values are alike, such as 7 of days; 1: no season, and the naive "
        "forecast is the last value",
    )
    row_period: Literal["origin", "target"] = Field(
        "origin",
        exclude_if=lambda value: value == "origin",
        description="which period a row of the spine is of: `origin`, so many periods before that of its label, or "
        "`target`, that of its label, whose raw data has the value",
    )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if repeated := sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)} has two roles: drop one")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the spine that tell a row from others of the same period."""
        return (*self.series, self.horizon)


class PredictionType(Frozen):
    """What a model predicts for each row.

    A `binary` model predicts the probability of label 1, one of `regression` a number, `multiclass` a probability for
    each of `classes`, in their order, and `quantile` a number for each of `quantiles`. A `forecast` is a number: the
    value that a series will have, some periods later. A `ranking` model puts the rows of each query in order by a
    number, the highest first.
    """

    kind: ModelKind
    classes: Classes = ()
    quantiles: Quantiles = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the numbers that it predicts for a row; empty if that is a single one."""
        return tuple(map(str, self.classes)) or tuple(f"{quantile:g}" for quantile in self.quantiles)

    def describe_outputs(self) -> str:
        """Return in words what a row's prediction is."""
        if not self.outputs:
            return "one number"
        noun = "classes" if self.classes else "quantiles"
        return f"{len(self.outputs)} numbers, one for each of the {noun} {', '.join(self.outputs)}"


def missing_field(prediction: PredictionType, query: str | None, forecast: ForecastSeries | None = None) -> str | None:
    """Return the field of the spec that the kind needs, and that is missing or too short; None if nothing is."""
    if prediction.kind == "multiclass" and len(prediction.classes) < 2:
        return "classes"
    if prediction.kind == "quantile" and len(prediction.quantiles) < 2:
        return "quantiles"
    if prediction.kind == "forecast" and forecast is None:
        return "forecast"
    return "query" if prediction.kind == "ranking" and query is None else None
