"""The `evergreen` command: the engines of this machine up and down, and a model renewed from raw days."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import httpx
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
    """Start Airflow, MLflow and Spark, or what of them is not up."""
    with _speaking() as progress:
        report.where(progress, stack.up(progress))


@app.command("stop")
def stop_command() -> None:
    """Stop everything that `up` started, whatever state it is in."""
    with _speaking() as progress:
        stack.stop(progress)


@app.command("status")
def status_command() -> None:
    """Say what is up, and where."""
    with _speaking() as progress:
        stack.status(progress)


@app.command("retrain")
def retrain_command(
    model: Annotated[str, typer.Argument(help="name of the model's folder")] = "flight_delay",
) -> None:
    """Go a week further: features, candidate, verdict, champion."""
    with _speaking() as progress:
        retrain.retrain(model, progress)


def main() -> None:
    app()


@contextmanager
def _speaking() -> Iterator[Progress]:
    """What goes wrong is said in words, on the error stream, after the terminal was put in order."""
    problem, code = "", 1
    try:
        with Progress() as progress:
            yield progress
    except EvergreenError as error:
        problem = str(error)
    except httpx.HTTPError as error:
        problem = f"an engine does not answer as it should: {error}. `evergreen status` tells what is up"
    except KeyboardInterrupt:
        problem, code = "interrupted. The engines stay up, and what runs in Airflow goes on", 130
    if problem:
        console = Console(stderr=True, highlight=False)
        console.print(f"evergreen: {problem}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(code)


if __name__ == "__main__":
    main()
