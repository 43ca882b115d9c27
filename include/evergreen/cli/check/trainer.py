"""Faults of `train.py`, by its syntax tree: its packages may be in the trainer's environment only."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from evergreen.cli.check.locations import (
    ModelFault,
    describe_code_error,
    imported_file,
    join_names,
    missing_file_fault,
    suggest,
)
from evergreen.settings import settings
from evergreen.spec.loader import model_folder

_TRAINER = "train.py"
_FIT = "fit"
_ARGUMENT_COUNT = 3
_CALL = "fit(job, output, checkpoints)"
_EXPORT = "save_pipeline"
_EXPORTERS = {"sklearn": "scikit-learn", "skl2onnx": "skl2onnx"}  # what it imports, by the name of its distribution
_PYTHON_TIMEOUT_S = 30
_MAX_IMPORTS = 10  # modules that hand on another's `fit`


def find_trainer_faults(name: str) -> Iterator[ModelFault]:
    """Yield the faults of a model's `train.py`, and of modules of model folders that it imports."""
    file = model_folder(name) / _TRAINER
    if not file.is_file():
        yield missing_file_fault(file, f"trains a candidate: {_CALL}")
        return
    sources: dict[Path, ast.Module] = {}
    pending = [file]
    while pending:
        path = pending.pop()
        if path in sources:
            continue
        try:
            sources[path] = ast.parse(path.read_text(), str(path))
        except SyntaxError as error:
            yield describe_code_error(error, path)
            continue
        for statement in (node for node in ast.walk(sources[path]) if isinstance(node, ast.ImportFrom)):
            if target := imported_file(path, statement):
                if target.is_file():
                    pending.append(target)
                elif not target.with_suffix("").is_dir():
                    yield _missing_import(path, statement, target)
    for path, tree in sources.items():
        yield from _imported_name_faults(path, tree, sources)
    yield from _exporter_faults(sources)
    if file in sources:
        yield from _fit_faults(file, sources)


def _exporter_faults(sources: Mapping[Path, ast.Module]) -> Iterator[ModelFault]:
    """Yield the import of `save_pipeline`, if the Python that trains on this machine lacks what it calls."""
    statements = ((path, node) for path, tree in sources.items() for node in ast.walk(tree))
    imports = [
        (path, node)
        for path, node in statements
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evergreen.training")
        if any(alias.name == _EXPORT for alias in node.names)
    ]
    if not imports or settings().training_backend != "process":  # an image has packages of its own
        return
    trainer = settings().trainer
    command = [
        str(trainer),
        "-c",
        f"from importlib.util import find_spec; print(*map(find_spec, {[*_EXPORTERS]}), sep='\\n')",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PYTHON_TIMEOUT_S, check=True)
        missing = [name for name, spec in zip(_EXPORTERS, answer.stdout.splitlines(), strict=True) if spec == "None"]
    except (OSError, subprocess.SubprocessError, ValueError):  # `evergreen doctor` says what is wrong with it
        return
    if missing:
        path, statement = imports[0]
        problem = f"{_EXPORT} needs {' and '.join(_EXPORTERS[name] for name in missing)}, which {trainer} does not have"
        fix = f"{trainer} -m pip install {' '.join(_EXPORTERS[name] for name in missing)}"
        yield ModelFault(path, statement.lineno, "", problem, fix)


def _missing_import(path: Path, statement: ast.ImportFrom, target: Path) -> ModelFault:
    names = sorted(file.stem for file in target.parent.glob("*.py"))
    problem = f"imports {target.stem}, and {target} does not exist; in its folder are {join_names(names)}"
    return ModelFault(path, statement.lineno, "", problem, suggest(target.stem, names, "add the file, or correct it"))


def _imported_name_faults(path: Path, tree: ast.Module, sources: dict[Path, ast.Module]) -> Iterator[ModelFault]:
    for statement in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        target = imported_file(path, statement)
        if target not in sources or _has_star_import(sources[target]):
            continue
        for alias in statement.names:
            if alias.name != "*" and _find_definition(sources[target], alias.name) is None:
                names = list(_public_functions(sources[target]))
                problem = f"imports {alias.name}, which {target} does not define; it has {join_names(names)}"
                fix = suggest(alias.name, names, "define it there, or correct the import")
                yield ModelFault(path, statement.lineno, "", problem, fix)


def _has_star_import(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body)


def _public_functions(tree: ast.Module) -> Iterator[str]:
    yield from (node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_")


def _fit_faults(trainer: Path, sources: dict[Path, ast.Module]) -> Iterator[ModelFault]:
    """Yield why the module has no function `fit` that can be called, wherever it is imported from."""
    file, name = trainer, _FIT
    for _ in range(_MAX_IMPORTS):
        tree = sources[file]
        definition = _find_definition(tree, name)
        if definition is None:
            if _has_star_import(tree) or file != trainer:
                return
            names = list(_public_functions(tree))
            problem = f"there is no such function; there are {join_names(names)}"
            yield ModelFault(file, None, name, problem, suggest(name, names, f"define {_CALL}"))
            return
        if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _signature_faults(file, definition)
            return
        if not isinstance(definition, ast.ImportFrom):
            return
        alias = next(alias for alias in definition.names if (alias.asname or alias.name) == name)
        target = imported_file(file, definition)
        if target not in sources:  # of another package, or a fault already
            return
        file, name = target, alias.name


def _find_definition(tree: ast.Module, name: str) -> ast.stmt | None:
    """Return the last statement that gives a module the name: a function, an import or an assignment."""
    result = None
    for node in _module_statements(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names = [node.name]
            case ast.ImportFrom() | ast.Import():
                names = [alias.asname or alias.name for alias in node.names]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=target_name)):
                names = [target_name]
            case _:
                continue
        if name in names:
            result = node
    return result


def _module_statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements that give a module its names, also those below `if` and `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _module_statements(child)


def _signature_faults(file: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ModelFault]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    keywords = [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    is_callable = required <= _ARGUMENT_COUNT and (len(positional) >= _ARGUMENT_COUNT or arguments.vararg)
    if isinstance(function, ast.AsyncFunctionDef) or keywords or not is_callable:
        prefix = "async " if isinstance(function, ast.AsyncFunctionDef) else ""
        problem = f"is defined as {prefix}{function.name}({ast.unparse(arguments)}), and called as {_CALL}"
        yield ModelFault(file, function.lineno, function.name, problem, f"define {_CALL}")
