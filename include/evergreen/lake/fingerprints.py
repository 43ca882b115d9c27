"""Fingerprints: hashes of everything that a step's result depends on, equal in every process.

A step passes the packages that compute its result to `code_of`. Their code is

- every module of these packages, and the modules that they import, wherever the import statement is. Imports are
  followed into Evergreen's packages and the model folders, but not into those of `CARRIERS`: these declare, locate
  and transport what a step reads, and the step's inputs hold that by value or by content hash. Those of
  `TRAINER_LIBRARY` compute, and are followed. A step that computes with another module of a carrier passes it as well;
- all of a package that the spec names in `code_packages`, if one of these modules imports it;
- the other files beside these modules: templates, lookup tables.

Comments and formatting do not count. Of Evergreen's own packages `__init__.py` counts only where a name is imported
from it: it re-exports, and computes nothing. Nothing is imported to find out; what code imports by a computed name is
not seen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from evergreen.lake.syntax import parse_code
from evergreen.storage import file_sha256

CARRIERS = frozenset(
    {"errors", "lake", "object_store", "registry", "settings", "spec", "storage", "training", "window"}
)

TRAINER_LIBRARY = frozenset(f"evergreen.training.{name}" for name in ("categories", "sklearn_onnx", "xgboost_rows"))
"""What the `train.py` of a model computes with: its model changes with them."""

_FOLLOWED = ("evergreen.", "evergreen_models.")


def compute_fingerprint(value: Any) -> str:
    """Hash of a JSON-like value; equal values give equal fingerprints in any process."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def code_of(
    packages: Iterable[str], libraries: Iterable[str] = (), code_packages: Iterable[str] = ()
) -> dict[str, str]:
    """Return hashes of the code that `packages` (or modules) run, by module or file, and the versions of `libraries`.

    `code_packages` are the user's own packages, as the spec of the model names them.

    Raises:
        ModuleNotFoundError: a package or module has no source here.
    """
    user_modules = {package: _modules(package) for package in code_packages}
    modules = [module for package in packages for module in _modules(package)]
    return {library: version(library) for library in libraries} | _hash_modules(modules, user_modules)


def code_of_file(file: Path, code_packages: Iterable[str] = ()) -> dict[str, str]:
    """Return the hash of a Python file that is no module, and of the code that it imports, as `code_of` does.

    Raises:
        SyntaxError: it is no Python; names the file.
    """
    code = file.read_bytes()
    compile(code, str(file), "exec")
    user_modules = {package: _modules(package) for package in code_packages}
    modules = list(_followed_modules(_imports(code, ""), user_modules))
    return {file.name: parse_code(code).hash} | _hash_modules(modules, user_modules)


def _hash_modules(pending: list[str], user_modules: Mapping[str, list[str]]) -> dict[str, str]:
    hashes: dict[str, str] = {}
    while pending:
        module = pending.pop()
        if module in hashes:
            continue
        source = _source_file(module)
        assert source is not None
        package = module if source.name == "__init__.py" else module.rpartition(".")[0]
        code = source.read_bytes()
        imports = _imports(code, package)
        hashes[module] = parse_code(code).hash
        if "." in package or package in user_modules:
            hashes |= {
                f"{package}/{file.relative_to(source.parent)}": file_sha256(file) for file in _data_files(source)
            }
        if "." in package and not package.startswith("evergreen.") and _source_file(package):
            pending.append(package)  # runs before its modules do
        pending += _followed_modules(imports, user_modules)
    return hashes


def _followed_modules(imports: Iterable[str], user_modules: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the modules among `imports` whose code counts: of a package of the user's, all of its modules."""
    for name in imports:
        if home := next((root for root in user_modules if f"{name}.".startswith(f"{root}.")), None):
            yield from user_modules[home]
        elif target := _followed_module(name):
            yield target


def _modules(package: str) -> list[str]:
    """Return every module of the package, or the module itself."""
    source = _source_file(package)
    if source is None:
        raise ModuleNotFoundError(f"no source found for {package}: correct its name, or install it where this runs")
    if source.name != "__init__.py":
        return [package]
    files = (file.relative_to(source.parent).with_suffix("") for file in sorted(source.parent.rglob("*.py")))
    return [".".join((package, *file.parts)).removesuffix(".__init__") for file in files]


def _followed_module(name: str) -> str | None:
    """Return the module that has the imported name, if its code counts."""
    package = name.rpartition(".")[0]
    if not name.startswith(_FOLLOWED):
        return None
    if name.startswith("evergreen.") and name.split(".")[1] in CARRIERS and not {name, package} & TRAINER_LIBRARY:
        return None
    return next((module for module in (name, package) if "." in module and _source_file(module)), None)


def _imports(code: bytes, package: str) -> set[str]:
    """Return what a module of `package` imports: modules, and names in modules."""
    names = set()
    for module, imported in parse_code(code).imports:
        prefix = f"{resolve_name(module, package)}." if module else ""
        names |= {prefix + name for name in imported}
    return names


def _data_files(source: Path) -> Iterator[Path]:
    """Yield the files beside a module, and in folders beside it that are not packages."""
    for folder, subfolders, names in os.walk(source.parent):
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith((".", "__")) and not Path(folder, name, "__init__.py").exists()
        ]
        yield from (Path(folder, name) for name in names if name[0] != "." and not name.endswith((".py", ".pyc")))


def _source_file(module: str) -> Path | None:
    """Return the file of a module without importing it, or None."""
    top, *names = module.split(".")
    spec = find_spec(top)
    # Several folders may hold models: importing the package, which is empty, finds all.
    folders = import_module(top).__path__ if module.startswith(_FOLLOWED) else spec and spec.submodule_search_locations
    if spec and spec.origin and not folders and not names:
        return Path(spec.origin)
    for folder in folders or ():
        place = Path(folder, *names)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None
