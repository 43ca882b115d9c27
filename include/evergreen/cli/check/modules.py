"""Faults of `features.py` and `expectations.py`: they are imported, and called where that needs no data."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from evergreen.cli.check.locations import (
    NO_SESSION,
    ModelFault,
    called_name,
    describe_code_error,
    join_names,
    locate_function,
    locate_text,
    missing_file_fault,
    suggest,
)
from evergreen.spec.loader import model_folder
from evergreen.spec.model import FeatureSpec

_FEATURES = "features.py"
_EXPECTATIONS = "expectations.py"
_TABLES = "FeatureTables"
_BUILD = ("spark", "raw", "periods", "calendar")
_GRAMMAR = "rfc3987_syntax"
_COLUMN_ARGUMENTS = ("column", "column_A", "column_B")
_COLUMN_LISTS = ("column_list", "column_set")


@dataclass(frozen=True)
class BuiltTables:
    """The tables that `build` returns, as far as its source says which columns they have."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_complete: bool = False
    """Whether these are all tables that it returns."""


def check_features_module(name: str) -> tuple[BuiltTables, list[ModelFault]]:
    """Import `features.py` of a model; return the tables that it builds, and its faults."""
    file = model_folder(name) / _FEATURES
    module, faults = _import_file(file, "builds the features: build(spark, raw, periods, calendar)")
    if module is None:
        # A build imports it when it has a session. Nothing else knows one: whatever imports this module has the fault.
        return BuiltTables(), [fault for fault in faults if NO_SESSION not in fault.problem]
    faults = list(_function_faults(module, file, "build", _BUILD))
    return (BuiltTables() if faults else _read_built_tables(module, file)), faults


def check_expectations(
    name: str, spec: FeatureSpec | None, columns: Mapping[str, Iterable[str] | None]
) -> Iterator[ModelFault]:
    """Yield faults of `expectations.py` of a model, whose functions are called for each source and table.

    `columns` has the tables, each with its columns if they are known. Without a spec, the file is only imported.
    """
    _import_great_expectations()
    file = model_folder(name) / _EXPECTATIONS
    module, faults = _import_file(file, "says what must hold: raw_expectations and feature_expectations")
    yield from faults
    if module is None:
        return
    signatures = {"raw_expectations": ("source", "period"), "feature_expectations": ("table",)}
    faulty = set()
    for function, arguments in signatures.items():
        for fault in _function_faults(module, file, function, arguments):
            faulty.add(function)
            yield fault
    if spec is None:
        return
    calls: list[tuple[str, tuple[str | None, ...], Iterable[str] | None]] = [
        ("raw_expectations", (source.name, None if source.is_register else spec.first_period), source.columns)
        for source in spec.sources
    ]
    calls += [("feature_expectations", (table,), names) for table, names in columns.items()]
    for function, parameters, known_columns in calls:
        if function not in faulty:
            yield from _rule_faults(module, file, function, parameters, known_columns)


def _import_great_expectations() -> None:
    """Import it without a grammar of IRIs, of which nothing here makes use: compiling it takes 2 s.

    jsonschema, which Great Expectations imports by way of altair, does without a grammar that is not installed.
    """
    if _GRAMMAR in sys.modules:
        return
    sys.modules[_GRAMMAR] = None  # type: ignore[assignment]
    try:
        import_module("great_expectations.expectations")
    finally:
        del sys.modules[_GRAMMAR]


def _import_file(file: Path, purpose: str) -> tuple[Any, list[ModelFault]]:
    if not file.is_file():
        return None, [missing_file_fault(file, purpose)]
    try:
        return import_module(f"evergreen_models.{file.parent.name}.{file.stem}"), []
    except (Exception, SystemExit) as error:
        return None, [describe_code_error(error, file)]


def _function_faults(module: Any, file: Path, name: str, arguments: Sequence[str]) -> Iterator[ModelFault]:
    """Yield why a function of a module cannot be called with these positional arguments."""
    call = f"{name}({', '.join(arguments)})"
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        fix = suggest(name, names, f"define {call}")
        yield ModelFault(file, None, name, f"there is no such function; there are {join_names(names)}", fix)
        return
    try:
        signature = inspect.signature(function)
        signature.bind(*arguments)
    except TypeError as error:
        problem = f"is defined as {name}{signature}, and called as {call}: {error}"
        yield ModelFault(file, locate_function(file, name), name, problem, f"define {call}")
    except ValueError:  # a callable without a signature that Python could tell
        return


def _read_built_tables(module: Any, file: Path) -> BuiltTables:
    columns: dict[str, tuple[str, ...]] = {}
    is_complete = True
    tree = ast.parse(file.read_text())
    for scope in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in ast.walk(scope):
            if isinstance(call, ast.Call) and called_name(call) == _TABLES:
                tables = _evaluate_columns(call, scope, module)
                is_complete &= tables is not None
                columns |= tables or {}
    return BuiltTables(columns, is_complete and bool(columns))


def _evaluate_columns(call: ast.Call, scope: ast.FunctionDef, module: Any) -> dict[str, tuple[str, ...]] | None:
    """Return the tables and columns of a call of `FeatureTables`; None if they depend on more than the module."""
    node = next((keyword.value for keyword in call.keywords if keyword.arg == "columns"), None)
    node = call.args[0] if call.args else node
    if node is None:
        return None
    own_names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and _is_stored(child)}
    local_names = {child.id for child in ast.walk(scope) if isinstance(child, ast.Name) and _is_stored(child)}
    local_names |= {child.arg for child in ast.walk(scope) if isinstance(child, ast.arg)}
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    if names & (local_names - own_names):
        return None
    with suppress(Exception):
        # The module's own expression, which has run all of its other code: no call of `build` without Spark.
        tables = eval(compile(ast.Expression(node), "columns", "eval"), vars(module))  # noqa: S307
        return {str(table): tuple(map(str, columns)) for table, columns in tables.items()}
    return None


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _rule_faults(
    module: Any, file: Path, function: str, parameters: Sequence[str | None], known_columns: Iterable[str] | None
) -> Iterator[ModelFault]:
    """Call one of the functions, and yield what is wrong with the expectations that it returns."""
    from great_expectations.expectations.expectation import Expectation

    call = f"{function}({', '.join(map(repr, parameters))})"
    line = locate_function(file, function)
    try:
        rules = getattr(module, function)(*parameters)
    except Exception as error:
        fault = describe_code_error(error, file)
        yield ModelFault(fault.file, fault.line, call, fault.problem, fault.fix)
        return
    if not isinstance(rules, list | tuple) or not all(isinstance(rule, Expectation) for rule in rules):
        wrong = [rule for rule in rules if not isinstance(rule, Expectation)] if isinstance(rules, list | tuple) else []
        problem = f"returns {f'a list with {_describe(wrong[0])}' if wrong else _describe(rules)}"
        yield ModelFault(file, line, call, problem, "let it return a list of expectations of Great Expectations")
        return
    if not rules:
        problem = "returns no expectations, so anything would pass"
        yield ModelFault(file, line, call, problem, "return at least one, such as gxe.ExpectTableRowCountToBeBetween")
    if known_columns is None:
        return
    names = list(known_columns)
    existing = {name.casefold() for name in names}  # Great Expectations ignores case
    subject = {"raw_expectations": f"the source {parameters[0]!r}"}.get(function, f"the table {parameters[0]!r}")
    for rule in rules:
        for column in dict.fromkeys(_columns_of(rule)):
            if column.casefold() not in existing:
                problem = f"{type(rule).__name__}: {subject} has no column {column!r}; it has {join_names(names)}"
                place = locate_text(file, column, function) or line
                yield ModelFault(
                    file, place, call, problem, suggest(column, names, "correct it, or declare the column")
                )


def _columns_of(rule: Any) -> Iterator[str]:
    arguments = rule.configuration.kwargs
    yield from (arguments[key] for key in _COLUMN_ARGUMENTS if isinstance(arguments.get(key), str))
    for key in _COLUMN_LISTS:
        value = arguments.get(key)
        yield from (name for name in (value if isinstance(value, list | tuple | set) else ()) if isinstance(name, str))


def _describe(value: object) -> str:
    return f"the class {value.__name__}, not an instance" if isinstance(value, type) else repr(value)[:80]
