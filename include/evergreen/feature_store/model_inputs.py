"""Which inputs a model has learned from, recorded with it: a later spec may have other features.

Importing this module loads no engine.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
from pydantic import Field

from evergreen.features.served_after import ServedAfter
from evergreen.lake import datasets
from evergreen.spec import Frozen, Name
from evergreen.spec.prediction_type import PredictionType
from evergreen.storage import FileName


class ViewDefinition(Frozen):
    """What the values of a feature view depend on, besides the rows of its table."""

    table: FileName = Field(description="table of the published features")
    keys: Mapping[str, str] = Field(description="Feast's type of each join key")
    key_columns: Mapping[str, str] = Field(description="column of the examples, for a join key of another name")
    ttl_seconds: float = Field(ge=0, description="how long a row holds; 0 for ever")
    features: Mapping[str, str] = Field(description="Feast's type of each feature")
    served_after: ServedAfter | None = Field(
        None,
        exclude_if=operator.not_,
        description="when its rows are in the online store; None: they count from their timestamp on",
    )

    def defines_equally(self, definition: ViewDefinition, feature: str) -> bool:
        """Return whether `feature` has the same values by another definition."""
        is_same_view = self.model_copy(update={"features": {}}) == definition.model_copy(update={"features": {}})
        return is_same_view and self.features[feature] == definition.features.get(feature)


class ModelInputs(Frozen):
    """The columns that a model takes, and where their values come from."""

    feature_model: Name
    columns: tuple[tuple[str, str], ...] = Field(description="name and Arrow type, in the model's order")
    views: Mapping[str, ViewDefinition] = Field(description="by the first part of the names `view__feature`")
    prediction: PredictionType | None = Field(
        None, exclude_if=operator.not_, description="what it predicts; None: a single number"
    )

    @classmethod
    def from_training_set(
        cls, training_set: datasets.Manifest, columns: Sequence[str], prediction: PredictionType | None = None
    ) -> Self:
        """Return these columns as the model that learns from `training_set` knows them."""
        definitions = training_set.inputs["definitions"]
        schema = training_set.files["train"].schema or {}
        inputs = cls(
            feature_model=training_set.inputs["feature_model"],
            columns=tuple((name, schema.get(name, "none")) for name in columns),
            views=definitions,
            prediction=prediction,
        )
        used = {feature[0] for name in columns if (feature := inputs.find_feature(name))}
        return inputs.model_copy(update={"views": {name: inputs.views[name] for name in sorted(used)}})

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    def find_feature(self, column: str) -> tuple[str, str] | None:
        """Return view and feature of a column, or None if it comes with the request."""
        for view, definition in self.views.items():
            feature = column.removeprefix(f"{view}__")
            if feature != column and feature in definition.features:
                return view, feature
        return None

    def prediction_problem(self, declared: PredictionType | None) -> str | None:
        """Return why its predictions are not `declared`, or None. All kinds with a single number are alike."""
        types = [item if item and item.outputs else None for item in (self.prediction, declared)]
        if types[0] == types[1]:
            return None
        texts = (item.describe_outputs() if item else "one number" for item in types)
        return "it predicts {}, and the spec declares {}".format(*texts)

    def changed_columns(self, training_set: datasets.Manifest) -> list[str]:
        """Return the columns that `training_set` lacks, or has in another type or by another definition."""
        return [name for name, type_ in self.columns if not self._is_column_of(training_set, name, type_)]

    def _is_column_of(self, training_set: datasets.Manifest, name: str, arrow_type: str) -> bool:
        schema = training_set.files["holdout"].schema or {}
        if coarse_type(schema.get(name, "none")) != coarse_type(arrow_type):
            return False
        feature = self.find_feature(name)
        if feature is None:
            return True
        view, feature_name = feature
        definitions: dict[str, Any] = training_set.inputs["definitions"]
        if view not in definitions or training_set.inputs["feature_model"] != self.feature_model:
            return False
        return self.views[view].defines_equally(ViewDefinition.model_validate(definitions[view]), feature_name)


def coarse_type(arrow_type: str) -> str:
    """Return `number`, `boolean`, `text`, `time`, or the type itself, for the name of an Arrow type.

    All numbers are one type: a column of integers becomes floating when one of its values is missing, and models take
    every number as floating.
    """
    if arrow_type.startswith(("int", "uint", "float", "halffloat", "double", "decimal")):
        return "number"
    if arrow_type.startswith(("timestamp", "date")):
        return "time"
    return {"bool": "boolean", str(pa.string()): "text", str(pa.large_string()): "text"}.get(arrow_type, arrow_type)
