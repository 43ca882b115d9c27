"""Commands of the local stack and of the demo, which the entry point adds to `evergreen`."""

from __future__ import annotations

import typer

from evergreen.cli import ModelArgument
from evergreen_local import demo, results, stack
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
def retrain_command(ctx: typer.Context, model: ModelArgument = "flight_delay") -> None:
    """Advance a model by one week, from raw days to a verdict."""
    with Progress(ctx.obj) as progress:
        demo.advance_demo(model, progress)
