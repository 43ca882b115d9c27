"""Finds and loads the specs in the model folders."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from evergreen.errors import Fault, SpecError
from evergreen.spec.model import FeatureSpec, ModelSpec


def feature_spec(model: ModelSpec) -> FeatureSpec:
    """Return the features that `model` uses: its own, or those of the model that it names."""
    if isinstance(model.features, FeatureSpec):
        return model.features
    features = load_spec(model.features).features
    if not isinstance(features, FeatureSpec):
        problem = f"{model.features} builds none, it uses those of {features}"
        raise SpecError(f"model {model.name}", [Fault("features", problem, f"name {features} instead")])
    return features


@cache
def load_spec(name: str) -> ModelSpec:
    """Load the spec in the folder `evergreen_models/<name>`.

    Raises:
        SpecError: the folder does not exist, its model.py has no `MODEL`, or the spec is invalid (with all faults).
    """
    folder = f"evergreen_models/{name}"

    def error(location: str, problem: str, fix: str) -> SpecError:
        return SpecError(f"model {name}", [Fault(location, problem, fix)])

    if find_spec(f"evergreen_models.{name}") is None:
        raise error(folder, "no such folder", f"known models: {', '.join(model_names()) or 'none'}")
    spec = getattr(import_module(f"evergreen_models.{name}.model"), "MODEL", None)
    if not isinstance(spec, ModelSpec):
        raise error(f"{folder}/model.py", "defines no MODEL", "add MODEL = ModelSpec(...)")
    if spec.name != name:
        raise error(f"{folder}/model.py: name", f"is {spec.name!r}", f"name it like its folder: {name!r}")
    return spec


def model_names() -> list[str]:
    """Return the names of all model folders."""
    models = import_module("evergreen_models")
    return sorted(entry.name for entry in pkgutil.iter_modules(models.__path__) if entry.ispkg)
