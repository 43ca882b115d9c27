"""The views that a model reads and the columns that it takes, as its definitions declare them now.

Nothing is applied: whoever only compares does not write to Feast's registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evergreen.errors import Fault, SpecError
from evergreen.feature_store.model_inputs import ViewDefinition
from evergreen.features.definitions import definitions_file, key_types, load_definitions
from evergreen.features.served_after import ServedAfter
from evergreen.spec.model import ModelSpec


@dataclass(frozen=True)
class DeclaredInputs:
    """What a model reads.

    Attributes:
        columns: the inputs of the model in its order, as `training_sets.model_input_columns` returns them.
        views: the JSON of each `ViewDefinition`, by the first part of the names of its columns, as training sets have
            it.
    """

    columns: tuple[str, ...]
    views: Mapping[str, Mapping[str, Any]]


def read_declared_inputs(model: ModelSpec) -> DeclaredInputs:
    """Return what the definitions of the model declare.

    Raises:
        SpecError: there are no such definitions, they are faulty, or they have no feature service of that name.
    """
    from feast import FeatureService, FeatureView

    definitions = load_definitions(model.feature_model)
    views = {item.name: item for item in definitions if isinstance(item, FeatureView)}
    services = {item.name: item for item in definitions if isinstance(item, FeatureService)}
    if model.feature_service not in services:
        fix = f"define it in {definitions_file(model.feature_model)}, or correct feature_service in the spec"
        raise SpecError(
            f"model {model.name}", [Fault(f"feature service {model.feature_service}", "is not defined", fix)]
        )
    projections = services[model.feature_service].feature_view_projections
    columns = [f"{item.name_to_use()}__{feature.name}" for item in projections for feature in item.features]
    return DeclaredInputs(
        columns=(*model.request_columns, *columns),
        views={
            item.name_to_use(): _view_definition(views[item.name], item, definitions)
            for item in projections
            if item.name in views
        },
    )


def _view_definition(view: Any, projection: Any, definitions: list[Any]) -> dict[str, Any]:
    from feast import types

    declared = key_types(view, definitions)  # of supported types, which are not nested
    keys = {name: getattr(types, declared[name]).to_value_type().name for name in sorted(declared)}
    return ViewDefinition(
        table=view.batch_source.name if view.batch_source else view.name,
        keys=keys,
        key_columns=dict(projection.join_key_map),
        ttl_seconds=view.ttl.total_seconds() if view.ttl else 0,
        features={feature.name: feature.dtype.to_value_type().name for feature in projection.features},
        served_after=ServedAfter.from_tags(view.batch_source.tags if view.batch_source else None),
    ).model_dump(mode="json")
