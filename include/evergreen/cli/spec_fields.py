"""The fields of `model.py` in the terminal, for who has no docs at hand: `evergreen fields`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evergreen.cli.options import print_json
from evergreen.errors import EvergreenError
from evergreen.spec.parts import GATE_CLASSES, PARTS

_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")  # of the page of the docs that has the same text


def spec_parts() -> Mapping[str, type[BaseModel]]:
    """Return the class of each part of a spec by its path, such as `features.sources`; that of the spec is empty."""
    return {".".join(path): part for path, part in PARTS.items()} | {
        f"gates.{kind}": gate for kind, gate in GATE_CLASSES.items()
    }


def show_fields(place: str, console: Console, as_json: bool = False) -> None:
    """Print the fields of a part of the spec: their defaults, and what they mean.

    Raises:
        EvergreenError: there is no such part.
    """
    parts = spec_parts()
    if place not in parts:
        similar = get_close_matches(place, parts, n=1)
        fix = f"did you mean {similar[0]!r}?" if similar else f"there are {', '.join(filter(None, parts))}"
        raise EvergreenError(f"a spec has no part {place!r}: {fix}")
    fields = parts[place].model_fields
    if as_json:
        print_json(
            console,
            [
                {"field": name, "default": _default_text(field), "description": _description(field)}
                for name, field in fields.items()
            ],
        )
        return
    title = place or "ModelSpec"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("field", "default", "description"):
        table.add_column(column, overflow="fold", no_wrap=column == "field")
    for name, field in fields.items():
        table.add_row(name, Text(_default_text(field)), Text(_description(field)))
    console.print(table, soft_wrap=False)
    below = [name for name in parts if name and name.rpartition(".")[0] == place]
    if below or not place:
        listed = below if place else [name for name in parts if name]
        console.print(f"parts: {', '.join(listed)}; evergreen fields PART shows one", soft_wrap=True)


def _description(field: FieldInfo) -> str:
    return _LINK.sub(r"\1", field.description or "")


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "its defaults"
    return "" if default in (None, (), {}, "") else str(default)
