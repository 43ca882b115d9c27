"""Commands of the local stack, and those that follow runs of Airflow, which the entry point adds to `evergreen`."""

from __future__ import annotations

from typing import Annotated

import typer

from evergreen.cli import create_console
from evergreen.cli.options import JsonOption, ModelArgument, print_json
from evergreen_local import backfilling, model_status, results, retraining, stack
from evergreen_local.progress import Progress

local_commands = typer.Typer()


@local_commands.command("up")
def up_command(ctx: typer.Context) -> None:
    """Start Airflow, MLflow and Spark; running services are kept."""
    with Progress(ctx.obj) as progress:
        results.show_addresses(progress, stack.bring_up_stack(progress))


@local_commands.command("down")
def down_command(ctx: typer.Context) -> None:
    """Stop all services that `up` has started; data stays."""
    with Progress(ctx.obj) as progress:
        stack.stop_stack(progress)


@local_commands.command("status")
def status_command(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Name of the model's folder. Default: the services.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how fresh a model is, or the services and addresses."""
    if model:
        model_status.show_model_status(model, ctx.obj, as_json)
    else:
        stack.show_stack_status(ctx.obj, as_json)


@local_commands.command("backfill")
def backfill_command(
    ctx: typer.Context,
    model: ModelArgument,
    start: Annotated[str, typer.Option("--from", metavar="PERIOD", help="First day or period.")],
    end: Annotated[str, typer.Option("--to", metavar="PERIOD", help="Last day or period, included.")],
) -> None:
    """Build missing or stale features through Airflow."""
    with Progress(ctx.obj) as progress:
        backfilling.backfill_model(model, start, end, progress)


@local_commands.command("retrain")
def retrain_command(
    ctx: typer.Context,
    model: ModelArgument,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="PERIOD", help="Use only data before this day or period. Default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Retrain a model in Airflow, from raw days to a verdict."""
    # Progress is for people, also beside output for programs.
    with Progress(create_console(stderr=True) if as_json else ctx.obj) as progress:
        outcomes = retraining.retrain_model(model, as_of, progress)
    if as_json:
        print_json(ctx.obj, outcomes)
