"""Finds and loads the specs in the model folders."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from evergreen.errors import Fault, SpecError
from evergreen.spec.model import FeatureSpec, ModelSpec


def feature_spec(model: ModelSpec) -> FeatureSpec:
    """The features that `model` uses: its own, or those of the model that it names."""
    if isinstance(model.features, FeatureSpec):
        return model.features
    other = load_spec(model.features)
    if not isinstance(other.features, FeatureSpec):
        way_out = f"name {other.features} instead"
        fault = Fault("features", f"{model.features} builds none, it uses those of {other.features}", way_out)
        raise SpecError(f"model {model.name}", [fault])
    return other.features


@cache
def load_spec(name: str) -> ModelSpec:
    """The spec in the folder `models/<name>`.

    Raises:
        SpecError: no such folder, no `MODEL` in its model.py, or the spec has faults (all are listed).
    """
    if find_spec(f"evergreen_models.{name}") is None:
        known = ", ".join(model_names()) or "none"
        raise SpecError(
            f"model {name}", [Fault(f"evergreen_models/{name}", "no such folder", f"known models: {known}")]
        )
    spec = getattr(import_module(f"evergreen_models.{name}.model"), "MODEL", None)
    where = f"evergreen_models/{name}/model.py"
    if not isinstance(spec, ModelSpec):
        raise SpecError(f"model {name}", [Fault(where, "defines no MODEL", "add MODEL = Model(...)")])
    if spec.name != name:
        fault = Fault(f"{where}: name", f"is {spec.name!r}", f"name it like its folder: {name!r}")
        raise SpecError(f"model {name}", [fault])
    return spec


def model_names() -> list[str]:
    """The model folders there are."""
    models = import_module("evergreen_models")
    return sorted(entry.name for entry in pkgutil.iter_modules(models.__path__) if entry.ispkg)
