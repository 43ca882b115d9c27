"""Arguments and options that several commands share, and their output as JSON.

Each option says its name: some versions of Typer make one of capitals from a `metavar` that is like its parameter.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model's folder.")]
OptionalModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Name of the model's folder. Default: all models.")
]
ModelsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names of models' folders. Default: all models.")
]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Number of the version in MLflow.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason, stored in the ledger.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def date_option(name: str, help_text: str) -> Any:
    """Return the option of a day; commands receive it as midnight."""
    return typer.Option(name, formats=["%Y-%m-%d"], metavar="DATE", help=help_text)


def print_json(console: Console, value: Any) -> None:
    """Print `value` for programs. Dates and paths are strings, in ISO 8601."""
    console.out(json.dumps(value, indent=2, default=str, ensure_ascii=False), highlight=False)
