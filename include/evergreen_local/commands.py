"""Commands of the local stack and of the demo, which the entry point adds to `evergreen`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from evergreen.cli import ModelArgument
from evergreen_local import results, retraining, stack
from evergreen_local.progress import Progress

local_commands = typer.Typer()


@local_commands.command("up")
def up_command(ctx: typer.Context) -> None:
    """Start Airflow, MLflow and Spark; running services are kept."""
    with Progress(ctx.obj) as progress:
        results.show_addresses(progress, stack.bring_up_stack(progress))


@local_commands.command("down")
def down_command(ctx: typer.Context) -> None:
    """Stop all services that `up` has started."""
    with Progress(ctx.obj) as progress:
        stack.stop_stack(progress)


@local_commands.command("status")
def status_command(ctx: typer.Context) -> None:
    """Show the services, their state and addresses."""
    with Progress(ctx.obj) as progress:
        stack.show_stack_status(progress)


@local_commands.command("retrain")
def retrain_command(
    ctx: typer.Context,
    model: ModelArgument,
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Use what was known then. Default: the newest data."),
    ] = None,
) -> None:
    """Retrain a model, from raw days to a verdict."""
    with Progress(ctx.obj) as progress:
        retraining.retrain_model(model, as_of.date() if as_of else None, progress)
