"""The `evergreen` command: the engines of one machine up and down, and a model renewed from raw days."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from evergreen.cli import report, retrain, stack
from evergreen.cli.progress import Progress
from evergreen.errors import EvergreenError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
    rich_markup_mode=None,
)


@app.command("up")
def up_command() -> None:
    """Start Airflow, MLflow and Spark; does nothing for what is up already."""
    with Progress() as progress:
        addresses = stack.up(progress)
        report.where(progress, addresses)


@app.command("stop")
def stop_command() -> None:
    """Stop everything that `up` started, whatever state it is in."""
    with Progress() as progress:
        stack.stop(progress)


@app.command("status")
def status_command() -> None:
    """Say what is up, and where."""
    with Progress() as progress:
        stack.status(progress)


@app.command("retrain")
def retrain_command(
    model: Annotated[str, typer.Argument(help="name of the model's folder")] = "flight_delay",
) -> None:
    """Bring features up to the next week, train, judge against the champion, promote if the gates allow it."""
    with Progress() as progress:
        retrain.retrain(model, progress)


def main() -> None:
    try:
        app()
    except EvergreenError as error:
        Console(stderr=True, highlight=False).print(
            f"evergreen: {error}", markup=False, soft_wrap=True, style="red"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
