"""Models that a test writes: no other model is there, and their definitions are the whole feature repository."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.settings import REPOSITORY
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec

UseModels = Callable[..., None]
"""The fixture `use_models`."""


def write_small_model(
    name: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_models: UseModels,
    definitions: str | None = None,
    **modules: str,
) -> ModelSpec:
    """Write modules of a model folder, and definitions of its features, below `root`; return the spec as it is now.

    What is not given stays, if it was written before.
    """
    folder, feature_repo = root / "evergreen_models" / name, root / "feature_repo"
    for place in (folder, feature_repo):
        place.mkdir(parents=True, exist_ok=True)
    for module, text in {"__init__": "", **modules}.items():
        (folder / f"{module}.py").write_text(text)
    shutil.copy(REPOSITORY / "feature_repo/feature_store.yaml", feature_repo)
    if definitions is not None:
        (feature_repo / f"{name}.py").write_text(definitions)
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(feature_repo))
    use_models(folder.parent, only=True)
    return reload_spec(name)


def expect_not_null(column: str) -> str:
    """Return an `expectations.py` that asks of raw data and of features for a value in this column."""
    return f"""
import great_expectations.expectations as gxe


def raw_expectations(source, period):
    return [gxe.ExpectColumnValuesToNotBeNull(column={column!r})]


def feature_expectations(table):
    return [gxe.ExpectColumnValuesToNotBeNull(column={column!r})]
"""


def reload_spec(name: str) -> ModelSpec:
    """Return the spec of a model, read again."""
    forget_model(name)
    return loader.load_spec(name)


def forget_model(name: str) -> None:
    """Let this process read the files of a model again, which may have become invalid."""
    loader.load_spec.cache_clear()
    for module in [module for module in sys.modules if module.startswith(f"evergreen_models.{name}")]:
        del sys.modules[module]
