"""The `evergreen` command: operate models, the ledger and the deployment.

Other packages add commands by the entry-point group `evergreen.commands`: each entry names a Typer app.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer
from rich.console import Console
from typer.core import TyperGroup

from evergreen.cli import check, doctor, migrate, tables
from evergreen.cli.check.period import check_period, preview_features
from evergreen.cli.options import (
    JsonOption,
    ModelArgument,
    ModelsArgument,
    OptionalModelArgument,
    ReasonOption,
    VersionArgument,
    date_option,
)
from evergreen.errors import EvergreenError, Fault, RawDataError, first_line
from evergreen.ingest.raw_files import RawFile
from evergreen.local_services import local_service_urls
from evergreen.settings import settings, use_project_of_folder, variable_name
from evergreen.spec.loader import feature_spec, load_spec, model_names
from evergreen.spec.model import ModelSpec

# Clients of servers: the first line of their errors is useful to users, a traceback is not.
_CLIENT_PACKAGES = {"aiohttp", "botocore", "grpc", "mlflow", "pyspark", "redis", "sqlalchemy"}
_LOG_WIDTH = 160  # columns: a log has no width, and 80 columns would break tables


def create_console(stderr: bool = False) -> Console:
    """Return a console that prints text as it is: no markup, no highlighting, no wrapping."""
    console = Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


class ReportingGroup(TyperGroup):
    """Commands that find their console in `ctx.obj`; their errors are printed without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        ctx.obj, code = create_console(), 1
        try:
            return super().invoke(ctx)
        except EvergreenError as error:
            message = str(error)
        except httpx.HTTPError as error:
            message = f"unexpected response from a service: {error}. `evergreen doctor` finds the cause"
        except KeyboardInterrupt:
            message, code = "interrupted. Services stay up, and running DAGs continue", 130
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENT_PACKAGES:
                raise
            message = f"{type(error).__name__}: {first_line(error)}: `evergreen doctor` finds the cause"
        create_console(stderr=True).print(f"evergreen: {message}", style="red")
        raise typer.Exit(code)


app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ledger_app = typer.Typer(no_args_is_help=True, help="Maintain the record of verdicts and champions.")
online_app = typer.Typer(no_args_is_help=True, help="Maintain the online store.")
tables_app = typer.Typer(no_args_is_help=True, help="Maintain tables that other programs read.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(online_app, name="online")
app.add_typer(tables_app, name="tables")


def run_command_line() -> None:
    use_project_of_folder(Path.cwd())
    load_commands()
    app()


def load_commands() -> None:
    """Add the commands of other packages."""
    for entry_point in entry_points(group="evergreen.commands"):
        app.registered_commands += entry_point.load().registered_commands


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(version("evergreen"))
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Operate models, the ledger and the deployment."""


@app.command("history")
def history_command(
    ctx: typer.Context,
    model: ModelArgument,
    date: Annotated[datetime | None, date_option("--date", "Only the champion at the end of this day (UTC).")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the champions of a model, with reasons and evidence."""
    tables.show_history(model, date.date() if date else None, ctx.obj, as_json)


@app.command("lineage")
def lineage_command(
    ctx: typer.Context,
    model: ModelArgument,
    version: Annotated[
        str | None,
        typer.Argument(metavar="VERSION", help="Number or alias in MLflow. Default: champion."),
    ] = None,
    with_files: Annotated[bool, typer.Option("--files", help="List every raw file with its hash.")] = False,
    predictions: Annotated[
        str | None,
        typer.Option("--predictions", metavar="PERIOD", help="Of the batch predictions of a period, not of a version."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a version was made from, back to the raw files."""
    from evergreen.cli.lineage import show_lineage, show_prediction_lineage

    if predictions:
        if version:
            raise EvergreenError("--predictions and VERSION are two questions: the predictions name their version")
        show_prediction_lineage(model, predictions, ctx.obj, with_files, as_json)
    else:
        show_lineage(model, version, ctx.obj, with_files, as_json)


@app.command("explain")
def explain_command(
    ctx: typer.Context,
    model: ModelArgument,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of features, and request columns.")
    ] = None,
    time: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Features of then. Default: of the newest row.")
    ] = None,
    alias: Annotated[
        Literal["champion", "challenger", "candidate", "previous"], typer.Option("--alias", help="Which version.")
    ] = "champion",
    version: Annotated[
        str | None, typer.Option("--version", metavar="VERSION", help="Number of the version in MLflow, instead.")
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Features of the online store.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", metavar="NAME", help="Class or quantile to explain.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain one prediction: values, origins, contributions."""
    from evergreen.cli.explain import show_explanation

    show_explanation(
        model,
        values or (),
        ctx.obj,
        alias=alias,
        version=version,
        time=time,
        online=online,
        output=output,
        as_json=as_json,
    )


@app.command("report")
def report_command(
    ctx: typer.Context,
    model: ModelArgument,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="PERIOD", help="Gate report of then. Default: the newest.")
    ] = None,
    opens: Annotated[bool, typer.Option("--open", help="Open them in a browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where the newest reports are: gates and monitoring."""
    from evergreen.cli.reports import show_reports

    show_reports(model, as_of, ctx.obj, opens=opens, as_json=as_json)


@app.command("rollback")
def rollback_command(
    ctx: typer.Context,
    model: ModelArgument,
    reason: ReasonOption,
    to_version: Annotated[
        str | None, typer.Option("--to-version", metavar="VERSION", help="Version to restore. Default: the previous.")
    ] = None,
) -> None:
    """Restore the previous champion and bar the current one."""
    _use_local_mlflow()
    from evergreen.promotion import service  # imports MLflow

    event = service.roll_back_champion(load_spec(model), to_version, reason, actor=_actor())
    ctx.obj.print(f"{model}: version {event.restored_version} is champion again", style="green")
    barred = event.barred_version
    ctx.obj.print(f"version {barred} is barred until `evergreen release {model} {barred} --reason …`")


@app.command("withdraw")
def withdraw_command(ctx: typer.Context, model: ModelArgument, reason: ReasonOption) -> None:
    """Withdraw the challenger: it is not promoted any more."""
    _use_local_mlflow()
    from evergreen.promotion import looks

    version = looks.withdraw_challenger(load_spec(model), reason, actor=_actor())
    ctx.obj.print(f"{model}: version {version} is withdrawn, and what its comparison has spent of the budget is gone")


@app.command("release")
def release_command(ctx: typer.Context, model: ModelArgument, version: VersionArgument, reason: ReasonOption) -> None:
    """Allow a barred version to be promoted again."""
    _use_local_mlflow()
    from evergreen.promotion import service

    service.release_version(load_spec(model), version, reason, actor=_actor())
    ctx.obj.print(f"{model}: version {version} may be promoted again")


@app.command("accept")
def accept_change_command(
    ctx: typer.Context, model: ModelArgument, version: VersionArgument, reason: ReasonOption
) -> None:
    """Judge candidates without a champion whose inputs are gone."""
    _use_local_mlflow()
    from evergreen.promotion import service

    service.accept_change(load_spec(model), version, reason, actor=_actor())
    ctx.obj.print(f"{model}: where inputs of version {version} can no longer be made, the other gates decide")
    ctx.obj.print("the next run does so; clear the last one from its plan task on to judge its candidate again")


@app.command("freeze")
def freeze_command(ctx: typer.Context, model: ModelArgument, reason: ReasonOption) -> None:
    """Promote, and by default train, nothing until `unfreeze`."""
    _use_local_mlflow()
    from evergreen.promotion import service

    service.freeze_promotions(load_spec(model), reason, actor=_actor())
    ctx.obj.print(f"{model} is frozen: candidates are trained and evaluated, none is promoted")


@app.command("unfreeze")
def unfreeze_command(ctx: typer.Context, model: ModelArgument, reason: ReasonOption) -> None:
    """End a freeze."""
    _use_local_mlflow()
    from evergreen.promotion import service

    service.unfreeze_promotions(load_spec(model), reason, actor=_actor())
    ctx.obj.print(f"{model}: versions that pass their gates are promoted again")


@app.command("sign")
def sign_command(ctx: typer.Context, model: ModelArgument, version: VersionArgument) -> None:
    """Sign an existing version, such as after rotating the key."""
    _use_local_mlflow()
    from evergreen.registry import versions

    load_spec(model)
    versions.sign_version(model, version)
    ctx.obj.print(f"{model}: version {version} is signed")


@app.command("costs")
def costs_command(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show the cost of training by team and model."""
    tables.show_training_costs(ctx.obj, as_json)


@app.command("maintenance")
def maintenance_command(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing: list what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what the retention settings let go."""
    tables.show_cleanup(ctx.obj, is_dry_run=dry_run, as_json=as_json)


@app.command("doctor")
def doctor_command(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Check settings, models, servers, permissions and clocks."""
    doctor.run_doctor(ctx.obj, as_json)


@app.command("check")
def check_command(
    ctx: typer.Context,
    models: ModelsArgument = None,
    period: Annotated[
        str | None,
        typer.Option("--period", metavar="PERIOD", help="Also try one model on this period of raw data."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find everything wrong with models that needs no data."""
    if period is None:
        return check.run_model_checks(models or (), ctx.obj, as_json)
    if not models or len(models) > 1:
        raise typer.BadParameter("name one model", param_hint="--period")
    check.run_model_checks(models, create_console(stderr=True) if as_json else ctx.obj)
    check_period(models[0], period, ctx.obj, as_json)


@app.command("preview")
def preview_command(
    ctx: typer.Context,
    model: ModelArgument,
    period: Annotated[
        str | None, typer.Option("--period", metavar="PERIOD", help="Default: the first period of the model.")
    ] = None,
    table: Annotated[str | None, typer.Option("--table", metavar="TABLE", help="Default: all tables.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of each table.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show the features of one period, without storing them."""
    preview_features(model, period, table, rows, ctx.obj, as_json)


@app.command("init")
def init_command(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The project. Default: this folder.")] = Path(),
) -> None:
    """Write what is missing of a project's skeleton."""
    from evergreen.cli.scaffold import create_project

    create_project(folder, ctx.obj)


@app.command("tutorial-data")
def tutorial_data_command(ctx: typer.Context) -> None:
    """Write weather.parquet, the table of the tutorial, here."""
    from evergreen.scaffold.tutorial import write_tutorial_data

    ctx.obj.print(f"✓ {write_tutorial_data(Path.cwd())}", style="green")


@app.command("new")
def new_command(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the new model.")],
    sample: Annotated[str, typer.Option("--from", metavar="PLACE", help="File, Delta table or database.")],
    sql: Annotated[str | None, typer.Option("--query", metavar="SQL", help="Query on that database.")] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="COLUMN", help="Column to predict.")] = None,
    positive: Annotated[str | None, typer.Option("--positive", metavar="VALUE", help="Value of class 1.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Kind of model, such as multiclass.")
    ] = None,
    quantile: Annotated[
        list[float] | None, typer.Option("--quantile", metavar="NUMBER", help="Such as 0.9. Repeatable.")
    ] = None,
    query_column: Annotated[
        str | None, typer.Option("--query-column", metavar="COLUMN", help="Rows ranked together.")
    ] = None,
    horizon: Annotated[
        int | None, typer.Option("--horizon", metavar="NUMBER", help="Periods ahead, of a forecast.")
    ] = None,
    season: Annotated[
        int | None, typer.Option("--season", metavar="NUMBER", help="Periods after which values are alike; 1: none.")
    ] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="COLUMN", help="When the row happened.")] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", metavar="ZONE", help="Such as Europe/Berlin.")] = None,
    key: Annotated[list[str] | None, typer.Option("--key", metavar="COLUMN", help="Has a history. Repeatable.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="COLUMN", help="Not declared. Repeatable.")
    ] = None,
    period: Annotated[str | None, typer.Option("--period", metavar="LENGTH", help="Such as 1d, 1w, 1h.")] = None,
    label_delay: Annotated[
        str | None, typer.Option("--label-delay", metavar="LENGTH", help="Until labels are known.")
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", metavar="TEXT", help="The team. Default: you.")] = None,
    events: Annotated[
        list[str] | None,
        typer.Option("--events", metavar="FILE", help="Events of a key; FILE::COLUMN names their time."),
    ] = None,
    deliver: Annotated[bool, typer.Option("--deliver", help="Split the sample into raw files.")] = False,
    no_input: Annotated[bool, typer.Option("--no-input", help="Ask nothing: guess.")] = False,
) -> None:
    """Write a model from a sample of its data."""
    from evergreen.cli import scaffold
    from evergreen.scaffold.guesses import Choices

    choices = Choices(
        label=label or "",
        time=time,
        timezone=timezone,
        kind=kind,
        positive=positive,
        keys=tuple(key) if key else None,
        ignored=tuple(ignore or ()),
        period=period,
        label_delay=label_delay,
        quantiles=tuple(quantile or ()),
        query=query_column,
        horizon=horizon,
        season=season,
    )
    is_interactive = scaffold.is_terminal() and not no_input
    request = scaffold.ModelRequest(model, sample, sql, choices, tuple(events or ()), owner, deliver, is_interactive)
    scaffold.create_model(request, ctx.obj)


@app.command("fields")
def fields_command(
    ctx: typer.Context,
    part: Annotated[str, typer.Argument(metavar="[PART]", help="Such as features.sources or gates.threshold.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show the fields that a spec has, or a part of it."""
    from evergreen.cli.spec_fields import show_fields

    show_fields(part, ctx.obj, as_json)


@app.command("migrate")
def migrate_command(
    ctx: typer.Context,
    wait: Annotated[bool, typer.Option("--wait", help="Change nothing: wait until they are upgraded.")] = False,
) -> None:
    """Upgrade all databases to this version, and create buckets."""
    (migrate.wait_for_migration if wait else migrate.migrate)(ctx.obj)


@app.command("draft-source")
def draft_source_command(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Parquet files of one source.")],
) -> None:
    """Draft the declaration of a source from files."""
    from evergreen.ingest.drafts import draft_source  # imports pyarrow

    ctx.obj.print(draft_source(files))


@app.command("reread")
def reread_command(
    ctx: typer.Context,
    model: ModelArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of a source with a query.")],
    start: Annotated[str, typer.Option("--start", metavar="PERIOD", help="First period, such as 2013-03-01.")],
    end: Annotated[str | None, typer.Option("--end", metavar="PERIOD", help="Last period. Default: the first.")] = None,
) -> None:
    """Read a query again for periods that were read already."""
    from evergreen.ingest.extracts import reread_query  # imports what talks to databases

    spec, faults = feature_spec(load_spec(model)), list[Fault]()
    if source not in {named.name for named in spec.sources if named.query and not named.is_register}:
        raise EvergreenError(f"{model} has no source {source!r} with a query by period: name one of its `sources`")
    for period in spec.calendar.periods_between(start, spec.calendar.shift(end or start, 1)):
        problems = reread_query(spec, RawFile.from_source(spec.source(source), period))
        faults += problems
        ctx.obj.print(f"{source}: {period} {'stays as it was' if problems else 'is read again'}")
    if faults:
        raise RawDataError(f"raw data of {model}", faults)
    ctx.obj.print(f"run {load_spec(model).feature_model}.features for these periods: it builds those that have changed")


@app.command("pin")
def pin_command(
    ctx: typer.Context,
    model: ModelArgument,
    fingerprint: Annotated[
        str, typer.Argument(metavar="HASH", help="Fingerprint or content of the training set, 8 digits or more.")
    ],
    folder: Annotated[
        Path, typer.Option("--to", metavar="FOLDER", help="Folder of the .dvc file, in your repository.")
    ],
    remote: Annotated[
        str, typer.Option("--remote", metavar="PLACE", help="The DVC remote: a folder or URI, as DVC shows it.")
    ],
) -> None:
    """Pin a training set for DVC: a .dvc file and its objects."""
    from evergreen.pins import pin_training_set

    pin = pin_training_set(model, fingerprint, folder, remote)
    manifest, megabytes = pin.manifest, f"{pin.size / 1e6:,.1f} MB"
    ctx.obj.print(f"{pin.file}: {model} as of {manifest.inputs['as_of']}, {len(manifest.files)} files, {megabytes}")
    ctx.obj.print(f"fingerprint {manifest.fingerprint}")
    ctx.obj.print(f"`dvc pull {pin.file}` gets it from {remote}")


# Options after the model are those of the feast command.
@app.command("feast", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def feast_command(
    model: ModelArgument,
    arguments: Annotated[list[str], typer.Argument(metavar="ARGUMENTS", help="Arguments of the feast command.")],
) -> None:
    """Run Feast's command in the project of a model's features."""
    from evergreen.feature_store.repository import feast_variables

    if changing := {"apply", "delete", "init", "teardown"} & set(arguments):
        raise EvergreenError(
            f"`feast {changing.pop()}` would change the registry for the files of all models: Evergreen applies the "
            "file of each model when its definitions change"
        )
    variables = feast_variables(load_spec(model).feature_model)
    command = [str(Path(sys.executable).parent / "feast"), "--chdir", str(settings().feature_repo), *arguments]
    os.execve(command[0], command, os.environ | variables)  # noqa: S606 - no shell is wanted


@online_app.command("rebuild")
def rebuild_command(ctx: typer.Context, model: OptionalModelArgument = None) -> None:
    """Rewrite the online store from the published features."""
    from evergreen.feature_store.online_store import rebuild_online_store

    def rebuild(spec: ModelSpec) -> None:
        features = spec.feature_model
        if days := rebuild_online_store(spec):
            ctx.obj.print(f"✓ {features}: online store has the days {days['start']} up to {days['end']}")
        else:
            ctx.obj.print(f"{features}: nothing to write yet; a run of {spec.name}.retrain fills the online store")

    _for_each_feature_model(model, rebuild)


@tables_app.command("sync")
def sync_tables_command(ctx: typer.Context, model: OptionalModelArgument = None) -> None:
    """Make tables of all that is published complete."""
    from evergreen.features.inputs import features_dataset
    from evergreen.lake.datasets import open_dataset
    from evergreen.lake.tables import SyncedTable, configured_table_format, sync_tables
    from evergreen.promotion.verdict_tables import publish_verdicts

    table_format = configured_table_format()
    if table_format is None:
        raise EvergreenError(f"{variable_name('tables')} names no format, so there are no tables: set it to delta")

    def report(place: str, synced_tables: Sequence[SyncedTable], advice: str) -> None:
        for synced in synced_tables:
            ctx.obj.print(f"✓ {place}/{synced.table}: {synced.partitions} partitions")
            if synced.left_out:
                partition, reason = next(iter(synced.left_out.items()))
                ctx.obj.print(f"  without {len(synced.left_out)}, such as {partition}: {reason}")
                ctx.obj.print(f"  {advice}")

    def sync_features(spec: ModelSpec) -> None:
        features = spec.feature_model
        synced_tables = sync_tables(features_dataset(spec), table_format)
        advice = f"run {features}.features for them: it builds them again, all with the same types"
        report(features, synced_tables, advice)
        if not synced_tables:
            ctx.obj.print(f"{features}: no features are published yet")

    def sync_training(spec: ModelSpec) -> None:
        advice = f"read them by their hash: `evergreen pin {spec.name} HASH`"
        training_sets = open_dataset(f"training_sets/{spec.name}")
        report(f"training_sets/{spec.name}", sync_tables(training_sets, table_format), advice)
        verdicts = publish_verdicts(spec.name, all_pages=True)
        report(f"verdict_tables/{spec.name}", sync_tables(verdicts, table_format), "run this command again")
        place = f"predictions/{spec.name}"
        report(place, sync_tables(open_dataset(place), table_format), f"run {spec.name}.score for them with `rescore`")

    problems = []
    for act, action in ((_for_each_feature_model, sync_features), (_for_each_model, sync_training)):
        try:
            act(model, action)
        except EvergreenError as error:
            problems += str(error).split("\n")
    if problems:
        raise EvergreenError("\n".join(dict.fromkeys(problems)))


@ledger_app.command("repair")
def repair_command(ctx: typer.Context, model: OptionalModelArgument = None) -> None:
    """Restore MLflow's aliases from the ledger."""
    _use_local_mlflow()
    from evergreen.registry import aliases

    def repair(spec: ModelSpec) -> None:
        for alias in aliases.repair_aliases(spec.name):
            ctx.obj.print(f"{spec.name}: {alias.message}")

    _for_each_model(model, repair)


@ledger_app.command("verify")
def verify_command(ctx: typer.Context, model: OptionalModelArgument = None) -> None:
    """Replay every entry; compare the last with MLflow's anchor."""
    _use_local_mlflow()
    from evergreen import ledger
    from evergreen.registry import anchors

    def verify(spec: ModelSpec) -> None:
        state = ledger.verify_ledger(spec.name)
        anchors.check_anchor(spec.name)
        ctx.obj.print(f"{spec.name}: {len(state.entries)} entries, each follows from those before it")

    _for_each_model(model, verify)


@ledger_app.command("anchor")
def anchor_command(ctx: typer.Context, model: ModelArgument) -> None:
    """Accept the ledger as it is, as after restoring a copy."""
    _use_local_mlflow()
    from evergreen.registry import anchors

    number = anchors.replace_anchor(load_spec(model).name)
    ctx.obj.print(f"{model}: MLflow's anchor is entry {number}, the last of the ledger")


@app.command("declare-lost")
def declare_lost_command(
    ctx: typer.Context,
    model: ModelArgument,
    reason: ReasonOption,
    first: Annotated[
        bool, typer.Option("--first", help="Restore no earlier champion: the next candidate is the first.")
    ] = False,
) -> None:
    """Record that the champion's files are gone for good."""
    _use_local_mlflow()
    from evergreen.promotion import service

    event = service.declare_champion_lost(load_spec(model), reason, actor=_actor(), is_restoring=not first)
    ctx.obj.print(f"{model}: version {event.lost_version} is recorded as lost")
    if event.restored_version:
        ctx.obj.print(f"version {event.restored_version} is champion again", style="green")
    else:
        ctx.obj.print("there is no champion: the next candidate is judged as the first one")


def _for_each_model(model: str | None, action: Callable[[ModelSpec], None]) -> None:
    """Call `action` for one model, or for all: an error of one does not keep the others from it.

    Raises:
        EvergreenError: it failed for at least one.
    """
    problems = []
    for name in [model] if model else model_names():
        try:
            action(load_spec(name))
        except EvergreenError as error:
            problems.append(str(error) if name in str(error) else f"{name}: {error}")
    if problems:
        raise EvergreenError("\n".join(problems))


def _for_each_feature_model(model: str | None, action: Callable[[ModelSpec], None]) -> None:
    """The same, once for all models that share features."""
    feature_models = set()

    def act_once(spec: ModelSpec) -> None:
        if spec.feature_model not in feature_models:
            feature_models.add(spec.feature_model)
            action(spec)

    _for_each_model(model, act_once)


def _use_local_mlflow() -> None:
    """Use the MLflow server of the local stack, which stores the files that tasks have registered."""
    if "mlflow" in settings().model_fields_set:
        return
    url = local_service_urls().get("mlflow")
    if url is None:
        raise EvergreenError(
            "MLflow is not running, and it has the versions and their aliases: start it by `evergreen up`, "
            "or set EVERGREEN_MLFLOW to its address"
        )
    os.environ[variable_name("mlflow")] = url
    settings.cache_clear()


def _actor() -> str:
    return f"{getpass.getuser()}, at a terminal"
