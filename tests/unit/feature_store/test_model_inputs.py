"""Which of a model's inputs a later training set still has: by definition and by type, not by name alone."""

from __future__ import annotations

from typing import Any

import pytest

from evergreen.feature_store.model_inputs import ModelInputs, ViewDefinition
from evergreen.features.served_after import ServedAfter
from evergreen.lake.datasets import Manifest, PublishedFile
from evergreen.spec.prediction_type import PredictionType

pytestmark = pytest.mark.unit

WEATHER = ViewDefinition(
    table="weather", keys={"station": "STRING"}, key_columns={}, ttl_seconds=3600, features={"rain": "DOUBLE"}
)
SCHEMA = {"hour": "int32", "is_holiday": "bool", "weather__rain": "double", "tides__level": "double"}
SERVED_AFTER = ServedAfter(delay="6h", period="1d", timezone="UTC")
TIDES = WEATHER.model_copy(update={"table": "tides", "features": {"level": "DOUBLE"}})
COLUMNS = ("hour", "is_holiday", "weather__rain")


def training_set(
    schema: dict[str, str] | None = None, feature_model: str = "harbour", **views: ViewDefinition
) -> Manifest:
    file = PublishedFile("x", "0" * 64, 0, 0, SCHEMA if schema is None else schema)
    definitions = {name: view.model_dump() for name, view in (views or {"weather": WEATHER, "tides": TIDES}).items()}
    inputs = {"definitions": definitions, "feature_model": feature_model}
    return Manifest("as_of=2013-03-01", "f", inputs, {"train": file, "holdout": file})


INPUTS = ModelInputs.from_training_set(training_set(), COLUMNS)


def test_a_model_records_only_the_views_that_it_uses() -> None:
    assert INPUTS.column_names == COLUMNS
    assert INPUTS.views == {"weather": WEATHER}
    assert ModelInputs.model_validate(INPUTS.model_dump(mode="json")) == INPUTS
    assert INPUTS.find_feature("weather__rain") == ("weather", "rain")
    assert INPUTS.find_feature("hour") is None


def test_a_definition_says_when_rows_are_served_if_declared() -> None:
    """So fingerprints and recorded inputs of views that declare nothing stay as they are."""
    assert "served_after" not in WEATHER.model_dump()
    declared = WEATHER.model_copy(update={"served_after": SERVED_AFTER})
    recorded = declared.model_dump(mode="json")
    assert recorded["served_after"] == {"delay": "6h", "period": "1d", "timezone": "UTC"}
    assert ViewDefinition.model_validate(recorded) == declared


@pytest.mark.parametrize(
    ("later", "changed"),
    [
        (training_set(), []),
        (training_set(weather=WEATHER), []),
        # Features that came since are no change for this model.
        (training_set(weather=WEATHER.model_copy(update={"features": {"rain": "DOUBLE", "snow": "DOUBLE"}})), []),
        (training_set({**SCHEMA, "hour": "double", "weather__rain": "float"}), []),
        (training_set({**SCHEMA, "hour": "string"}), ["hour"]),
        (training_set({**SCHEMA, "is_holiday": "int64"}), ["is_holiday"]),
        (training_set({name: type_ for name, type_ in SCHEMA.items() if name != "hour"}), ["hour"]),
        (training_set(tides=TIDES), ["weather__rain"]),
        (training_set(feature_model="port"), ["weather__rain"]),
        *(
            (training_set(weather=WEATHER.model_copy(update=change)), ["weather__rain"])
            for change in (
                {"table": "forecasts"},
                {"ttl_seconds": 7200},
                {"keys": {"station": "INT64"}},
                {"key_columns": {"station": "origin"}},
                {"features": {"rain": "INT64"}},
                {"features": {"snow": "DOUBLE"}},
                {"served_after": SERVED_AFTER},
            )
        ),
    ],
)
def test_changed_columns(later: Manifest, changed: list[str]) -> None:
    assert INPUTS.changed_columns(later) == changed


def test_a_request_column_may_look_like_a_feature() -> None:
    inputs: Any = ModelInputs.from_training_set(
        training_set({"weather__rain": "int64"}, tides=TIDES), ["weather__rain"]
    )
    assert inputs.find_feature("weather__rain") is None
    assert inputs.changed_columns(training_set({"weather__rain": "int64"}, tides=TIDES)) == []


def test_other_classes_or_quantiles_are_another_prediction() -> None:
    def classes(*names: str) -> PredictionType:
        return PredictionType(kind="multiclass", classes=names)

    def problem(own: PredictionType | None, declared: PredictionType | None) -> str | None:
        return INPUTS.model_copy(update={"prediction": own}).prediction_problem(declared)

    assert problem(None, None) is None
    assert problem(PredictionType(kind="binary"), None) is None
    assert problem(None, PredictionType(kind="regression")) is None
    assert problem(classes("a", "b"), classes("a", "b")) is None
    assert problem(classes("a", "b"), classes("b", "a")) == (
        "it predicts 2 numbers, one for each of the classes a, b, and the spec declares 2 numbers, one for each of the "
        "classes b, a"
    )
    assert problem(classes("a", "b"), None)
    assert problem(None, classes("a", "b"))
    assert problem(classes("0.1", "0.9"), PredictionType(kind="quantile", quantiles=[0.1, 0.9]))
    assert "prediction" not in INPUTS.model_dump()
