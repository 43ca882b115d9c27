"""What the feature repository declares for a model: entities, views and services, and so the types of its columns."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.errors import Fault, SpecError
from evergreen.features.served_after import ServedAfter, find_serving_faults
from evergreen.lake import fingerprints
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec, locate_errors

DeclaredTypes = Mapping[str, Mapping[str, str]]
"""The Arrow type of each key and feature, by table and column."""


def declared_types(feature_model: str) -> DeclaredTypes:
    """Return the types that Feast declares for the tables that `feature_model` publishes; none without definitions.

    In the spine they are those of the keys. They are read from a cache, until the definitions change:
    running these imports Feast, which takes seconds.

    Raises:
        SpecError: see `load_definitions`.
    """
    file = _definitions_path(feature_model)
    if not file.is_file():
        return {}
    model = load_spec(feature_model)
    with locate_errors(feature_model, file, "correct it"):
        code = fingerprints.code_of_file(file, model.code_packages)
    code |= fingerprints.code_of((__name__, "evergreen.features.types"), ("feast",))
    fingerprint = fingerprints.compute_fingerprint({"code": code, "tables": feature_spec(model).tables})
    cache = settings().cache / "feature_types" / f"{feature_model}.json"
    cached = json.loads(cache.read_text()) if cache.exists() else {}
    if cached.get("fingerprint") == fingerprint:
        types: DeclaredTypes = cached["types"]
        return types
    types = column_types(feature_model, load_definitions(feature_model))
    cache.parent.mkdir(parents=True, exist_ok=True)
    storage.put(cache, json.dumps({"fingerprint": fingerprint, "types": types}, indent=1, sort_keys=True).encode())
    return types


def definitions_file(feature_model: str) -> Path:
    """Return the model's file in the feature repository.

    Raises:
        SpecError: there is none.
    """
    file = _definitions_path(feature_model)
    if not file.is_file():
        fix = "define its entities, feature views and feature service there"
        raise SpecError(f"model {feature_model}", [Fault(str(file), "no such file", fix)])
    return file


def load_definitions(feature_model: str) -> list[Any]:
    """Run the model's file in the feature repository, and return its entities, views and services.

    Raises:
        SpecError: there is no such file, it cannot be run, or it declares something that training and serving would not
            treat alike; all of that is named.
    """
    definitions = run_definitions(feature_model)
    if faults := find_definition_faults(definitions):
        raise SpecError(f"features of {feature_model} in {definitions_file(feature_model)}", faults)
    return definitions


def run_definitions(feature_model: str) -> list[Any]:
    """Return the entities, views and services of the model's file, whatever they declare.

    Raises:
        SpecError: there is no such file, or it cannot be run.
    """
    from feast import Entity, FeatureService
    from feast.base_feature_view import BaseFeatureView

    file = definitions_file(feature_model)
    with locate_errors(feature_model, file, "correct it"):
        values = runpy.run_path(str(file)).values()
    items = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    definitions = list({id(item): item for item in items}.values())
    return [item for item in definitions if isinstance(item, Entity | BaseFeatureView | FeatureService)]


def find_definition_faults(definitions: Sequence[Any]) -> list[Fault]:
    """Return what training and serving would not treat alike, by `view` or `view.column`."""
    from feast import FeatureView
    from feast.base_feature_view import BaseFeatureView

    from evergreen.features.types import type_fault

    faults: list[Fault | None] = []
    for item in definitions:
        if isinstance(item, BaseFeatureView) and type(item) is not FeatureView:
            problem = (
                f"has the class {type(item).__name__}, which Feast computes by other code in training than in serving"
            )
            fix = "compute it in features.py, or in the model, and declare a FeatureView"
            faults.append(Fault(f"view {item.name}", problem, fix))
        elif isinstance(item, FeatureView):
            faults += [type_fault(f"{item.name}.{column.name}", str(column.dtype)) for column in item.features]
            keys = key_types(item, definitions)
            faults += [type_fault(f"{item.name}.{key}", feast_type, is_key=True) for key, feast_type in keys.items()]
    faults += find_serving_faults([item for item in definitions if type(item) is FeatureView])
    return [fault for fault in dict.fromkeys(faults) if fault]


def declared_serving(feature_model: str) -> dict[str, ServedAfter]:
    """Return what the sources of views declare about when they are served, by table; none without definitions.

    Raises:
        SpecError: see `load_definitions`.
    """
    if not _definitions_path(feature_model).is_file():
        return {}
    sources = (getattr(item, "batch_source", None) for item in load_definitions(feature_model))
    declared = {source.name: ServedAfter.from_tags(source.tags) for source in sources if source}
    return {table: served_after for table, served_after in declared.items() if served_after}


def _definitions_path(feature_model: str) -> Path:
    return settings().feature_repo / f"{feature_model}.py"


def column_types(feature_model: str, definitions: Sequence[Any]) -> dict[str, dict[str, str]]:
    """Return the types of `declared_types` from definitions without faults of their own.

    Raises:
        SpecError: two views declare a column differently.
    """
    from feast import FeatureService, FeatureView

    from evergreen.features.types import SUPPORTED_TYPES

    spec = feature_spec(load_spec(feature_model))
    types: dict[str, dict[str, str]] = {}
    faults = []

    def declare(table: str, column: str, feast_type: str) -> None:
        arrow = SUPPORTED_TYPES[feast_type].arrow
        if (first := types.setdefault(table, {}).setdefault(column, arrow)) != arrow:
            faults.append(Fault(f"{table}.{column}", f"is declared {first} and {arrow}", "declare one type"))

    views = {item.name: item for item in definitions if isinstance(item, FeatureView)}
    for view in views.values():
        keys = key_types(view, definitions)
        for key, feast_type in keys.items():
            declare(spec.spine, key, feast_type)
        if view.batch_source and view.batch_source.name in spec.views:
            features = {column.name: str(column.dtype) for column in view.features}
            for column, feast_type in {**keys, **features}.items():
                declare(view.batch_source.name, column, feast_type)
    for service in (item for item in definitions if isinstance(item, FeatureService)):
        for projection in service.feature_view_projections:
            keys = key_types(views[projection.name], definitions) if projection.name in views else {}
            for key, column in projection.join_key_map.items():
                if key in keys:
                    declare(spec.spine, column, keys[key])
    if faults:
        raise SpecError(f"features of {feature_model} in the feature repository", list(dict.fromkeys(faults)))
    return types


def key_types(view: Any, definitions: Sequence[Any]) -> dict[str, str]:
    """Return Feast's type of each join key of a view that was not applied yet."""
    from feast import Entity
    from feast.types import from_value_type

    entities = {item.name: item for item in definitions if isinstance(item, Entity)}
    types = {
        entity.join_key: str(from_value_type(entity.value_type))
        for name in view.entities
        if (entity := entities.get(name))
    }
    return types | {column.name: str(column.dtype) for column in view.entity_columns}
