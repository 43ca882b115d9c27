"""Where a fault of a model folder is: file and line, from the source, which is read for it and not run."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any, Self

from evergreen.errors import Fault, first_line
from evergreen.settings import settings

_MAX_NAMES = 12  # of those that there are, in a message
_BUILTIN_CUTOFF = 0.8
_MAX_REFERENCES = 10  # names that lead from one to another, before a value is reached
NO_SESSION = "SESSION_OR_CONTEXT_NOT_EXISTS"
"""Spark's condition of a module that needs a session to be imported, such as one with a `Window`."""
_IMPORTED_NAME = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")


@dataclass(frozen=True)
class ModelFault:
    """One fault of a model folder; file and line are None where they cannot be known."""

    file: Path | None
    line: int | None
    subject: str
    problem: str
    fix: str

    def to_fault(self) -> Fault:
        place = ", line ".join(str(part) for part in (self.file, self.line) if part)
        return Fault(": ".join(filter(None, (place, self.subject))), self.problem, self.fix)

    @classmethod
    def from_fault(cls, fault: Fault) -> Self:
        """Return a fault of a step that runs do, too: it says where it is in its own words."""
        return cls(None, None, fault.location, fault.problem, fault.fix)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{**record, "file": Path(record["file"]) if record["file"] else None})

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file) if self.file else None,
            "line": self.line,
            "subject": self.subject,
            "problem": self.problem,
            "fix": self.fix,
        }


def suggest(name: str, names: Iterable[str], otherwise: str) -> str:
    """Return the fix for a name that does not exist: the one of `names` that is like it, or `otherwise`."""
    similar = get_close_matches(name, list(names), n=1)
    return f"did you mean {similar[0]!r}?" if similar else otherwise


def join_names(names: Iterable[str]) -> str:
    """Return names for a message: `a, b`, or `none`."""
    ordered = list(dict.fromkeys(names))
    rest = f" and {len(ordered) - _MAX_NAMES} more" if len(ordered) > _MAX_NAMES else ""
    return ", ".join(ordered[:_MAX_NAMES]) + rest or "none"


def describe_code_error(error: BaseException, file: Path) -> ModelFault:
    """Return the fault of user code that raised `error` when `file` was run: at its deepest line in user code."""
    if isinstance(error, SyntaxError) and error.filename:
        return ModelFault(Path(error.filename), error.lineno, "", f"{type(error).__name__}: {error.msg}", "correct it")
    frames = [
        (Path(frame.f_code.co_filename), line, frame)
        for frame, line in walk_tb(error.__traceback__)
        if any(Path(frame.f_code.co_filename).is_relative_to(folder) for folder in _user_folders())
    ]
    place, line, frame = frames[-1] if frames else (file, None, None)
    message = " ".join(str(error).split()) if type(error).__name__ == "ValidationError" else first_line(error)
    name, fix = "", "correct it"
    names: Iterable[str] = ()
    if isinstance(error, ModuleNotFoundError):
        name, names, fix = _missing_module(error, place)
    elif isinstance(error, ImportError) and (match := _IMPORTED_NAME.search(str(error))):
        name, names, fix = match[1], dir(sys.modules.get(match[2])), "correct the import"
        message = f"cannot import name {name!r} from {match[2]!r}"
    elif NO_SESSION in str(error):
        fix = "put it into a function: only a build has a session of Spark"
    elif isinstance(error, AttributeError) and error.name:
        name, names, fix = error.name, dir(error.obj), "correct it"
    elif isinstance(error, NameError) and error.name and frame:
        own_names = [key for key in {**frame.f_locals, **frame.f_globals} if key.isidentifier() and key[:2] != "__"]
        message += f"; there are {join_names(own_names)}"
        # A builtin that is only a little like it, such as `str`, is hardly meant.
        builtin_names = get_close_matches(error.name, dir(builtins), cutoff=_BUILTIN_CUTOFF)
        name, names, fix = error.name, [*own_names, *builtin_names], "import or define it"
    return ModelFault(place, line, "", f"{type(error).__name__}: {message}", suggest(name, names, fix) if name else fix)


def _missing_module(error: ModuleNotFoundError, place: Path) -> tuple[str, list[str], str]:
    module = error.name or ""
    parent, _, name = module.rpartition(".")
    if parent.startswith("evergreen_models."):
        return name, [path.stem for path in place.parent.glob("*.py")], f"there is no such file beside {place.name}"
    return "", [], f"install {module.partition('.')[0]} where Airflow's tasks run, or correct the import"


def _user_folders() -> tuple[Path, ...]:
    return (*map(Path, import_module("evergreen_models").__path__), settings().feature_repo)


def locate_field(file: Path, path: str) -> tuple[Path, int | None]:
    """Return where the field `path` of a spec is written, such as `gates.0.metric`.

    That is the deepest part of the path that can be followed through calls, dicts, lists and names of the source; of
    a field that is not written at all, the call or dict that lacks it.
    """
    steps = _follow(file, path)
    return (steps[-1].source.file, steps[-1].line) if steps else (file, None)


def find_field(file: Path, path: str, words: Collection[str]) -> str | None:
    """Return the field of the part `path` of a spec that is called like one of `words`, or has it as its value."""
    parts = path.split(".") if path else []
    steps = _follow(file, path)
    if len(steps) != len(parts) + 1:
        return None
    fields = {name: _dereference(value.source, value.node)[1] for name, value in _fields(steps[-1]).items()}
    valued = (name for name, node in fields.items() if isinstance(node, ast.Constant) and node.value in words)
    return next((name for name in fields if name in words), None) or next(valued, None)


@dataclass(frozen=True)
class _Source:
    file: Path
    tree: ast.Module


@dataclass(frozen=True)
class _Value:
    """A value of a spec, and where it is written."""

    source: _Source
    node: ast.expr
    line: int


def _follow(file: Path, path: str) -> list[_Value]:
    """Return the call of `ModelSpec`, and the value of each part of `path` that is found in it."""
    steps: list[_Value] = []
    with suppress(OSError, SyntaxError):
        source = _Source(file, ast.parse(file.read_text()))
        calls = (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))
        if call := next((call for call in calls if called_name(call) == "ModelSpec"), None):
            steps.append(_Value(source, call, call.lineno))
            for part in path.split("."):
                if (step := _fields(steps[-1]).get(part)) is None:
                    break
                steps.append(step)
    return steps


def _fields(value: _Value) -> dict[str, _Value]:
    """Return the fields or items of a value by name or number."""
    source, node = _dereference(value.source, value.node)
    match node:
        case ast.Call(keywords=keywords):
            return {word.arg: _Value(source, word.value, word.lineno) for word in keywords if word.arg}
        case ast.Dict(keys=keys, values=values):
            return {
                str(key.value): _Value(source, item, key.lineno)
                for key, item in zip(keys, values, strict=True)
                if isinstance(key, ast.Constant)
            }
        case ast.List(elts=items) | ast.Tuple(elts=items) if not any(isinstance(i, ast.Starred) for i in items):
            return {str(number): _Value(source, item, item.lineno) for number, item in enumerate(items)}
    return {}


def _dereference(source: _Source, node: ast.expr) -> tuple[_Source, ast.expr]:
    """Follow names to the values that a module of the model folder assigns to them."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(node, ast.Name):
            break
        for statement in source.tree.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == node.id:
                    node = value
                    break
                case ast.ImportFrom(names=names):
                    alias = next((alias for alias in names if (alias.asname or alias.name) == node.id), None)
                    file = imported_file(source.file, statement)
                    if alias and file and file.is_file():
                        source, node = _Source(file, ast.parse(file.read_text())), ast.Name(id=alias.name)
                        break
        else:
            break
    return source, node


def imported_file(file: Path, statement: ast.ImportFrom) -> Path | None:
    """Return the file of a module of a model folder from which a statement in `file` imports; None of other modules."""
    parts = (statement.module or "").split(".")
    if statement.level == 1 and statement.module:
        return file.parent.joinpath(*parts).with_suffix(".py")
    if statement.level == 0 and parts[0] == "evergreen_models" and len(parts) > 2:
        places = [Path(place) for place in import_module("evergreen_models").__path__]
        folder = next((place / parts[1] for place in places if (place / parts[1]).is_dir()), places[0] / parts[1])
        return folder.joinpath(*parts[2:]).with_suffix(".py")
    return None


def locate_text(file: Path, text: str, function: str | None = None) -> int | None:
    """Return the line of the string `text` in a source, if it is there once: in `function`, else anywhere."""
    with suppress(OSError, SyntaxError):
        tree = ast.parse(file.read_text())
        scopes: list[ast.AST] = [node for node in tree.body if getattr(node, "name", "") == function]
        for scope in (*scopes, tree):
            lines = {node.lineno for node in ast.walk(scope) if isinstance(node, ast.Constant) and node.value == text}
            if len(lines) == 1:
                return lines.pop()
    return None


def locate_alias(file: Path, column: str) -> int | None:
    """Return the line at which a source gives a column of Spark its name, if there is one: `….alias(column)`."""
    with suppress(OSError, SyntaxError):
        calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
        named = (node for node in calls if called_name(node) in ("alias", "withColumn"))
        lines = {node.end_lineno or node.lineno for node in named if column in _constants(node.args)}
        if len(lines) == 1:
            return lines.pop()
    return None


def locate_definition(file: Path, kind: str, name: str) -> int | None:
    """Return the line of the call that makes the entity, view or service `name` in a feature repository's file.

    Without such a call, that of the name.
    """
    with suppress(OSError, SyntaxError):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and called_name(node) == kind and name in _constants(_name_arguments(node)):
                return node.lineno
    return locate_text(file, name)


def _name_arguments(call: ast.Call) -> Iterator[ast.expr]:
    yield from call.args[:1]
    yield from (keyword.value for keyword in call.keywords if keyword.arg == "name")


def _constants(nodes: Iterable[ast.expr]) -> Sequence[object]:
    return [node.value for node in nodes if isinstance(node, ast.Constant)]


def called_name(call: ast.Call) -> str:
    """Return the name of a function that is called, without its module."""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def locate_function(file: Path, name: str) -> int | None:
    """Return the line at which a module defines a function."""
    with suppress(OSError, SyntaxError):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return node.lineno
    return None


def missing_file_fault(file: Path, purpose: str) -> ModelFault:
    """Return the fault of a file that a model folder or the feature repository lacks."""
    names = [path.name for path in file.parent.glob("*") if path.is_file()] if file.parent.is_dir() else []
    similar = get_close_matches(file.name, names, n=1, cutoff=0.8)
    fix = f"rename {similar[0]}" if similar else f"write it: it {purpose}"
    return ModelFault(file, None, "", f"no such file; in this folder are {join_names(sorted(names))}", fix)
