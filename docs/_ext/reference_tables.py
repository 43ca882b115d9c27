"""Markdown of the generated reference: fields of pydantic models, and commands of the command line.

It needs no Sphinx, so the tests read the same text as the site.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evergreen.features.types import REFUSED_TYPES, SUPPORTED_TYPES
from evergreen.periods import Duration
from evergreen.settings import ENV_PREFIX, REPOSITORY, SecretUrl, Settings
from evergreen.spec import Name, NonEmptyStr
from evergreen.spec.gates import FunctionPath, RowGroups
from evergreen.spec.model import Cron, ModulePath

PROJECT, HOME = "<project>", "<home>"

_BASIC_TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    Duration: "length of time",
    SecretUrl: "text",
    Any: "any value",
}
_TEXT_TYPES = {
    Name: "name",
    Cron: "cron expression",
    ModulePath: "module, as `package.module`",
    FunctionPath: "function, as `package.module:function`",
    NonEmptyStr: "text, not empty",
    RowGroups: "column or SQL expression",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def load_class(path: str) -> type[BaseModel]:
    """Return the class at a path such as `evergreen.spec.model:ModelSpec`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def render_settings() -> str:
    """Return one table of all settings, and one for each group of them."""
    groups = ("pods", "retention", "notifications")
    pods, retention, notifications = (Settings.model_fields[name].annotation for name in groups)
    tables = [
        ("Variables", Settings, ""),
        ("Training in pods", pods, "PODS__"),
        ("Retention", retention, "RETENTION__"),
        ("Notifications", notifications, "NOTIFICATIONS__"),
    ]
    parts = []
    for title, model, prefix in tables:
        rows = [
            (f"`{ENV_PREFIX}{prefix}{name.upper()}`", _type_text(field), _default_text(field), _description(field))
            for name, field in model.model_fields.items()
            if not _is_model(field.annotation)
        ]
        parts += [f"## {title}", "", *_table(("variable", "type", "default", "description"), rows), ""]
    return "\n".join(parts)


def render_model(model: type[BaseModel], *, title: str = "", level: int = 2) -> str:
    """Return a section about a model: its docstring, and a table of its fields."""
    # What is special about a gate comes before what all have.
    fields = sorted(model.model_fields.items(), key=lambda item: item[0] not in model.__annotations__)
    rows = [
        (f"`{name}`", _type_text(field), _default_text(field), _description(field))
        for name, field in fields
        if not (name == "kind" and get_origin(field.annotation) is Literal)
    ]
    heading = ["#" * level + f" {title or model.__name__}", ""]
    return "\n".join([*heading, _docstring(model), "", *_table(("field", "type", "default", "description"), rows), ""])


def render_gates(gate_union: Any) -> str:
    """Return a section for each kind of gate, in the order of their declaration."""
    members = get_args(get_args(gate_union)[0])
    return "\n".join(render_model(gate, title=str(gate.model_fields["kind"].default), level=3) for gate in members)


def render_commands(app: typer.Typer) -> str:
    """Return a section for each command: usage, help, and a table of arguments and options."""
    sections = []
    for path, command in _walk_commands(typer.main.get_command(app), ("evergreen",)):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        parameters = arguments + options
        usage = [_syntax(p) if p.required else f"[{_syntax(p)}]" for p in parameters]
        rows = [(f"`{_syntax(p)}`", _parameter_default(p), p.help or "") for p in parameters]
        sections += [f"## {' '.join(path)}", "", inspect.cleandoc(command.help or ""), ""]
        sections += ["```text", " ".join((*path, *usage)), "```", ""]
        if rows:
            sections += [*_table(("argument or option", "default", "description"), rows), ""]
    return "\n".join(sections)


def render_feature_types() -> str:
    """Return one table of the types of Feast that are supported, and one of those that are refused."""
    head = ("type of Feast", "as a key", "Spark", "lake and training sets", "online", "XGBoost", "ONNX")
    rows = [
        (
            f"`{name}`",
            "yes" if supported.may_be_key else "no",
            f"`{supported.spark}`",
            f"`{supported.arrow}`",
            f"`{supported.online}`",
            supported.xgboost,
            supported.onnx,
        )
        for name, supported in SUPPORTED_TYPES.items()
    ]
    refused = [(f"`{name}`", problem, fix) for name, (problem, fix) in REFUSED_TYPES.items()]
    return "\n".join(
        [
            "## Supported",
            "",
            *_table(head, rows),
            "",
            "## Refused",
            "",
            *_table(("type of Feast", "why", "instead"), refused),
            "",
        ]
    )


def render_metrics() -> str:
    """Return one table of all metrics that Prometheus reads."""
    from evergreen.plugin.model_metrics import MODEL_METRICS

    rows = [
        (
            f"`{metric.name}{'_total' if metric.is_counter else ''}`",
            "counter" if metric.is_counter else "gauge",
            ", ".join(f"`{label}`" for label in (metric.labels if metric.has_team else metric.label_names)),
            metric.description,
        )
        for metric in MODEL_METRICS
    ]
    return "\n".join(_table(("metric", "type", "labels of its own", "meaning"), rows))


def _walk_commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
    for name, child in sorted((children or {}).items()):
        yield from _walk_commands(child, (*path, name))


def _syntax(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return (parameter.metavar or parameter.name.upper()) + ("…" if parameter.nargs == -1 else "")
    names = "/".join((*parameter.opts, *parameter.secondary_opts))
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'TEXT'}"


def _parameter_default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    has_default = isinstance(parameter.default, str | int | float) and parameter.default is not False
    return f"`{parameter.default}`" if has_default else ""


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _docstring(model: type[BaseModel]) -> str:
    text = inspect.cleandoc(model.__doc__ or "")
    return re.sub(r"docs/([\w/-]+\.md)", r"[docs/\1](../\1)", text)


def _description(field: FieldInfo) -> str:
    return (field.description or "").strip()


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is None:
        value = field.default
    elif field.default_factory_takes_validated_data:
        folders = {"project": Path(PROJECT), "home": Path(HOME), "lake": Path(HOME) / "lake"}
        value = field.default_factory({**folders, "spark": Settings.model_fields["spark"].default})
    else:
        value = field.default_factory()
    if value == Path(sys.executable):
        return "this Python"
    if value == REPOSITORY:
        return "in a checkout, the checkout"
    text = _value_text(value)
    if Path(text).is_absolute():  # of this machine
        relative = Path(text).is_relative_to(REPOSITORY)
        return f"`{PROJECT}/{Path(text).relative_to(REPOSITORY)}`" if relative else "see there"
    return f"`{text}`" if text else ""


def _value_text(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, tuple | list | Mapping) and not value):
        return ""
    if isinstance(value, tuple | list):
        return ":".join(map(_value_text, value))
    if isinstance(value, BaseModel):
        return ""  # the defaults of its own fields
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_text(field: FieldInfo) -> str:
    text = _annotation_text(field.annotation, field.metadata)
    bounds = [f"{_BOUNDS[name]} {_value_text(value)}" for item in field.metadata for name, value in _bounds_of(item)]
    return " ".join([text, ", ".join(bounds)]).strip()


def _bounds_of(item: Any) -> Iterator[tuple[str, Any]]:
    for name in _BOUNDS:
        value = getattr(item, name, None)
        if value is not None:
            yield name, value


def _annotation_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    for alias, text in _TEXT_TYPES.items():
        base, *constraints = get_args(alias)
        if annotation is base and metadata and _constraints(metadata) == _constraints(constraints):
            return text
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *constraints = arguments
        return _annotation_text(base, constraints)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        if len(members) > 3:
            return "gate"
        return " or ".join(map(_annotation_text, members))
    if origin in (tuple, list):
        return f"list of {_plural(_annotation_text(arguments[0]))}"
    if origin is not None and issubclass(origin, Mapping):
        return "mapping"
    if _is_model(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    return _BASIC_TYPES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(text: str) -> str:
    if text.startswith("list of "):
        return f"lists{text.removeprefix('list')}"
    word, *rest = text.split(", ", 1)
    return ", ".join([word if word.endswith(")") else word + "s", *rest])


def _constraints(metadata: Sequence[Any]) -> list[str]:
    """Return what pydantic keeps of constraints, whether they are still one object or have been taken apart."""
    patterns = [getattr(item, "pattern", None) or getattr(item, "min_length", None) for item in metadata]
    return sorted(map(str, filter(None, patterns)))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table without the columns that are empty in all rows."""
    kept = [i for i in range(len(columns)) if i in (0, len(columns) - 1) or any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _render_evergreen_commands() -> str:
    from evergreen.cli import app, load_commands

    if not any(command.name == "up" for command in app.registered_commands):
        load_commands()
    return render_commands(app)


DIRECTIVES = {
    "evergreen-settings": render_settings,
    "evergreen-model": lambda path: render_model(load_class(path)),
    "evergreen-gates": lambda: render_gates(import_module("evergreen.spec.gates").Gate),
    "evergreen-feature-types": render_feature_types,
    "evergreen-metrics": render_metrics,
    "evergreen-commands": _render_evergreen_commands,
}


def render_directive(name: str, *arguments: str) -> str:
    """Return the Markdown that stands for a directive."""
    return DIRECTIVES[name](*arguments)
