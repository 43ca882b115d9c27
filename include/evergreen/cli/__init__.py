"""The `evergreen` command: the engines of this machine up and down, and a model renewed from raw days."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from evergreen.cli import costs, ledger, online
from evergreen.cli.progress import Progress
from evergreen.errors import EvergreenError
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen_local import report, retrain, stack

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
    with _handle_errors() as progress:
        report.show_addresses(progress, stack.bring_up_stack(progress))


@app.command("down")
def down_command() -> None:
    """Stop everything that `up` started, whatever state it is in."""
    with _handle_errors() as progress:
        stack.stop_stack(progress)


@app.command("status")
def status_command() -> None:
    """Say what is up, and where."""
    with _handle_errors() as progress:
        stack.show_stack_status(progress)


@app.command("doctor")
def doctor_command() -> None:
    """Look at every server, right, bucket, version and clock, and say what is wrong and how to mend it."""
    with _handle_errors() as progress:
        from evergreen.cli import doctor

        doctor.run_doctor(progress)


@app.command("migrate")
def migrate_command(
    wait: Annotated[bool, typer.Option("--wait", help="change nothing: wait until somebody else has done it")] = False,
) -> None:
    """Bring databases and buckets to what this version needs; before it starts, and at any time."""
    with _handle_errors() as progress:
        from evergreen.cli import migrate

        if wait:
            migrate.wait_for_migration()
        else:
            migrate.migrate(progress)


@app.command("feast", context_settings={"ignore_unknown_options": True, "help_option_names": []})
def feast_command(arguments: Annotated[list[str], typer.Argument(help="as of the feast command")]) -> None:
    """Feast's own command, on this feature repository with these settings."""
    with _handle_errors():
        from evergreen.feature_store.repository import feast_variables

        command = [
            str(Path(sys.executable).parent / "feast"),
            "--chdir",
            str(settings().feature_repo),
            *arguments,
        ]
        os.execve(command[0], command, os.environ | feast_variables())  # noqa: S606 - no shell is wanted


@app.command("retrain")
def retrain_command(
    model: Annotated[str, typer.Argument(help="name of the model's folder")] = "flight_delay",
) -> None:
    """Go a week further: features, candidate, verdict, champion."""
    with _handle_errors() as progress:
        retrain.advance_demo(model, progress)


_ModelArgument = Annotated[str, typer.Argument(help="name of the model's folder")]
_ReasonOption = Annotated[str, typer.Option(help="why: it is kept in the ledger for whoever asks later")]


@app.command("history")
def history_command(
    model: _ModelArgument,
    date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="the champion of that day")
    ] = None,
) -> None:
    """Which version was champion when, why, on what evidence."""
    with _handle_errors() as progress:
        ledger.show_history(model, date.date() if date else None, progress)


@app.command("rollback")
def rollback_command(
    model: _ModelArgument,
    reason: _ReasonOption,
    to_version: Annotated[str | None, typer.Option(metavar="VERSION", help="not the one before, but this one")] = None,
) -> None:
    """Make the champion before champion again; the version that is left is barred."""
    with _handle_errors() as progress:
        ledger.run_rollback(model, to_version, reason, progress)


@app.command("release")
def release_command(
    model: _ModelArgument,
    version: Annotated[str, typer.Argument(help="the barred version")],
    reason: _ReasonOption,
) -> None:
    """Let a version that was rolled back from be promoted again."""
    with _handle_errors() as progress:
        ledger.run_release(model, version, reason, progress)


@app.command("freeze")
def freeze_command(model: _ModelArgument, reason: _ReasonOption) -> None:
    """Keep the champion, whatever the gates say."""
    with _handle_errors() as progress:
        ledger.run_freeze(model, reason, progress)


@app.command("unfreeze")
def unfreeze_command(model: _ModelArgument, reason: _ReasonOption) -> None:
    """End a freeze."""
    with _handle_errors() as progress:
        ledger.run_unfreeze(model, reason, progress)


@app.command("sign")
def sign_command(model: _ModelArgument, version: Annotated[str, typer.Argument(help="a registered version")]) -> None:
    """Sign a version from before signing was on, or with a new key: you vouch for its files."""
    with _handle_errors() as progress:
        ledger.run_signing(model, version, progress)


@app.command("costs")
def costs_command() -> None:
    """What training has cost, by team and model."""
    with _handle_errors() as progress:
        costs.show_training_costs(progress)


_online_app = typer.Typer(no_args_is_help=True, help="The store that serves features.")
app.add_typer(_online_app, name="online")


@_online_app.callback()
def _online_group() -> None:
    pass


@_online_app.command("rebuild")
def rebuild_command(
    model: Annotated[str | None, typer.Argument(help="name of the model's folder; all, if left out")] = None,
) -> None:
    """Write all that can be served anew: the store was emptied, or something in it is wrong."""
    with _handle_errors() as progress:
        online.run_online_rebuild([model] if model else loader.model_names(), progress)


_ledger_app = typer.Typer(no_args_is_help=True, help="The record of verdicts and champions.")
app.add_typer(_ledger_app, name="ledger")


@_ledger_app.callback()
def _ledger_group() -> None:
    pass


@_ledger_app.command("repair")
def repair_command(
    model: Annotated[str | None, typer.Argument(help="name of the model's folder; all, if left out")] = None,
) -> None:
    """Make MLflow's aliases say what the ledger says, and tell of any that was moved by hand."""
    with _handle_errors() as progress:
        ledger.run_alias_repair([model] if model else loader.model_names(), progress)


# Packages that speak to servers: what they raise is about those, and nobody is helped by where in them.
_CLIENT_PACKAGES = {"aiohttp", "botocore", "grpc", "mlflow", "pyspark", "redis", "sqlalchemy"}


def main() -> None:
    app()


@contextmanager
def _handle_errors() -> Iterator[Progress]:
    """What goes wrong is said in words, on the error stream, after the terminal was put in order."""
    problem, code = "", 1
    try:
        with Progress() as progress:
            yield progress
    except EvergreenError as error:
        problem = str(error)
    except httpx.HTTPError as error:
        problem = f"an engine does not answer as it should: {error}. `evergreen status` tells what is up"
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENT_PACKAGES:
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        problem = f"{type(error).__name__}: {first}: `evergreen doctor` looks for the reason"
    except KeyboardInterrupt:
        problem, code = "interrupted. The engines stay up, and what runs in Airflow goes on", 130
    if problem:
        console = Console(stderr=True, highlight=False)
        console.print(f"evergreen: {problem}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(code)


if __name__ == "__main__":
    main()
