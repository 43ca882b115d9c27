"""A project with one model, for a benchmark that brings its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write_project(folder: Path, name: str, modules: Mapping[str, str], definitions: str) -> dict[str, str]:
    """Write the modules of the model `name` and its Feast definitions; return the variables that select the project."""
    model = folder / "models" / name
    model.mkdir(parents=True)
    (folder / "feature_repo").mkdir()
    shutil.copy(ROOT / "feature_repo/feature_store.yaml", folder / "feature_repo")
    (folder / "feature_repo" / f"{name}.py").write_text(definitions)
    for module, text in ({"__init__": ""} | dict(modules)).items():
        (model / f"{module}.py").write_text(text)
    return {
        "EVERGREEN_PROJECT": str(folder),
        "EVERGREEN_MODELS": str(folder / "models"),
        "EVERGREEN_FEATURE_REPO": str(folder / "feature_repo"),
    }
