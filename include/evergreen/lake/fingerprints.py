"""Fingerprints: hashes of what a step's result depends on, which are equal in every process."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from importlib import import_module, util
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evergreen.storage import file_sha256

_MODELS = "evergreen_models"  # the package of the model folders


def compute_fingerprint(value: Any) -> str:
    """Hash of a JSON-like value; equal values give equal fingerprints in any process."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def code_versions(modules: Iterable[str], libraries: Iterable[str]) -> dict[str, str]:
    """What a step's result depends on besides data: source of `modules`, versions of `libraries`.

    Of a model's modules, those of the models' folders that they import count too, wherever the import stands.
    """
    parts = {library: version(library) for library in libraries}
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in parts:
            continue
        source = _source_file(module)
        if source is None:
            raise ModuleNotFoundError(f"no source found for module {module}")
        parts[module] = file_sha256(source)
        if module.startswith(f"{_MODELS}."):
            package = module if source.name == "__init__.py" else module.rpartition(".")[0]
            todo += _imported_modules(ast.parse(source.read_bytes()), package)
    return parts


def _imported_modules(tree: ast.AST, package: str) -> list[str]:
    """The modules in the models' folders that a module of `package` imports; nothing is imported to find out."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = util.resolve_name("." * node.level + (node.module or ""), package)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.startswith(f"{_MODELS}.") and _source_file(name)]


def _source_file(module: str) -> Path | None:
    """The file of a module, found without importing anything below its top package; None if there is none."""
    top, *names = module.split(".")
    for folder in import_module(top).__path__:
        place = Path(folder, *names)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None
