"""`evergreen init` and `evergreen new`: files are written, and people at a terminal are asked what flags do not say."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import available_timezones

import typer
from rich.console import Console

from evergreen.errors import Fault, SettingsError
from evergreen.periods import Calendar, Duration
from evergreen.settings import REPOSITORY, is_outside_of_checkout, settings, variable_name
from evergreen.spec import NAME_PATTERN

if TYPE_CHECKING:
    from evergreen.scaffold import rendering
    from evergreen.scaffold.delivery import DeliveredPeriods
    from evergreen.scaffold.events import EventsProfile
    from evergreen.scaffold.guesses import Choices, SampleProfile
    from evergreen.scaffold.samples import Sample


def create_project(folder: Path, console: Console) -> None:
    """Write what is missing of a project's skeleton, and say what was there."""
    from evergreen.scaffold.files import write_new_files
    from evergreen.scaffold.projects import KEPT_ADVICE, project_files

    project = folder.expanduser().absolute()
    files = project_files(project)
    written = write_new_files(project, files)
    for path in written.created:
        console.print(f"✓ {path}", style="green")
    for path in written.existing:
        is_same = (project / path).is_file() and (project / path).read_bytes() == files[path].encode()
        advice = "" if is_same or path not in KEPT_ADVICE else f": {KEPT_ADVICE[path]}"
        console.print(f"  {path} is there, and stays{advice}")
    console.print(f"next: evergreen new MODEL --from FILE, in {project}")


@dataclass(frozen=True)
class ModelRequest:
    """The arguments of `evergreen new`."""

    name: str
    place: str
    sql: str | None
    choices: Choices
    events: tuple[str, ...]
    owner: str | None
    is_delivered: bool
    is_interactive: bool

    @property
    def event_times(self) -> dict[str, str | None]:
        """The files of events, as the person wrote them: what names the column of their times, of `FILE::COLUMN`."""
        parts = [text.partition("::") for text in self.events]
        return {file: column or None for file, _, column in parts}


def create_model(request: ModelRequest, console: Console) -> None:
    """Write a model from a sample and events beside it, and deliver these if that was asked for.

    Raises:
        ScaffoldError: a file cannot be read, or no model can be made of it; or other files are there.
    """
    from evergreen.scaffold.delivery import check_delivery, deliver_events, deliver_sample, delivered_periods
    from evergreen.scaffold.events import add_events
    from evergreen.scaffold.files import ScaffoldError, find_other_files, write_new_files
    from evergreen.scaffold.guesses import draft_model, resolve_leak_class
    from evergreen.scaffold.rendering import render_model
    from evergreen.scaffold.samples import FILE_FORMATS, locate_sample, open_sample

    if not re.fullmatch(NAME_PATTERN, request.name):
        fix = "write a–z, 0–9 and _, with a letter first"
        raise ScaffoldError("model", [Fault(repr(request.name), "cannot be the name of a model", fix)])
    project = _find_project()
    place = _name_connection(request) if request.sql is not None else request.place
    with ExitStack() as stack:
        sample = stack.enter_context(open_sample(locate_sample(place, request.sql)))
        if request.is_delivered:
            check_delivery(sample)
        event_files = _open_events(request, sample, stack)
        profile = sample.profile()
        choices = _complete(request, profile, console)
        calendar = _calendar(sample, choices)
        time = choices.time
        assert time
        periods = sample.periods(time, calendar)
        if request.is_interactive and choices.kind == "forecast":
            choices = _ask_about_forecast(choices, sample, profile, calendar, periods)
        elif choices.kind == "forecast" and choices.keys is None and periods:
            choices = replace(choices, keys=_guess_series(choices, sample, profile, calendar))
        draft = draft_model(
            profile,
            choices,
            sample.relations(choices.label, resolve_leak_class(profile.column(choices.label), choices)),
            calendar,
            periods,
            sample.deviation(choices.label),
            sample.constant_inputs(time, calendar),
            lambda key: sample.is_panel(key, time, calendar),
        )
        if event_files:
            profiles = _profile_events(request, event_files, choices, calendar)
            draft = add_events(draft, profiles, periods, is_delivered=request.is_delivered)
        owner = request.owner or getpass.getuser()
        folders = _model_folders(project)
        files = render_model(request.name, owner, draft, sample.origin, folders, ends_with_sample=request.is_delivered)
        if faults := find_other_files(project, files):
            raise ScaffoldError(f"model {request.name}", faults)
        for path in write_new_files(project, files).created:
            console.print(f"✓ {path}", style="green")
        for note in draft.notes:
            console.print(f"  {note}")
        if request.is_delivered:
            _report(deliver_sample(sample, draft), sample.origin.name, calendar, console)
            for events, drafted in zip(event_files.values(), draft.events, strict=True):
                delivered = deliver_events(events, drafted, calendar, delivered_periods(sample, draft))
                _report(delivered, drafted.source, calendar, console)
        elif sample.origin.format in FILE_FORMATS:
            names = " and of ".join([sample.origin.name, *(events.source for events in draft.events)])
            console.print(f"  raw data: deliver a Parquet file of {names} per {calendar.unit}, or --deliver")
        elif sample.origin.format == "query":
            variable = variable_name("connections", sample.origin.location)
            console.print(f"  set {variable} to the address of the database, for all processes of Airflow")
    trial = f" --period {periods[-1]}" if request.is_delivered else ""  # its raw data is there
    console.print(f"next: evergreen check {request.name}{trial}, then evergreen retrain {request.name}")


def _open_events(request: ModelRequest, sample: Sample, stack: ExitStack) -> dict[str, Sample]:
    """Return the rows of each file of events, by its path as the person wrote it.

    Raises:
        ScaffoldError: a file cannot be read, or cannot be a source beside the sample.
    """
    from evergreen.scaffold.events import check_event_names
    from evergreen.scaffold.files import ScaffoldError
    from evergreen.scaffold.samples import FILE_FORMATS, locate_sample, open_sample

    origins = {path: locate_sample(path) for path in request.event_times}
    fix = "name a Parquet, CSV or JSON lines file, or add the table to model.py and features.py as a second source"
    if tables := [path for path, origin in origins.items() if origin.format not in FILE_FORMATS]:
        raise ScaffoldError("events", [Fault(f"--events {path}", "is a table", fix) for path in tables])
    sources = {path: origin.name for path, origin in origins.items()}
    check_event_names(sample.origin.name, sources, request.choices)
    return {path: stack.enter_context(open_sample(origin)) for path, origin in origins.items()}


def _profile_events(
    request: ModelRequest, files: Mapping[str, Sample], choices: Choices, calendar: Calendar
) -> list[EventsProfile]:
    """Return what files of events show, by their paths.

    Raises:
        ScaffoldError: it cannot be said when events happened; has the faults of all files.
    """
    from evergreen.scaffold.events import EventsProfile, find_event_time
    from evergreen.scaffold.files import ScaffoldError

    faults, profiles = list[Fault](), list[EventsProfile]()
    for path, events in files.items():
        columns = events.profile()
        try:
            time = find_event_time(path, columns, choices, calendar, request.event_times[path])
        except ScaffoldError as error:
            faults += error.faults
            continue
        profiles.append(EventsProfile(events.origin.name, path, columns, time, events.periods(time, calendar)))
    if faults:
        raise ScaffoldError("events", faults)
    return profiles


def _report(delivered: DeliveredPeriods, source: str, calendar: Calendar, console: Console) -> None:
    """Say how many raw files of a source were written."""
    from evergreen.ingest.raw_files import raw_folder

    rest = f"; {delivered.existing} were there, and stay" if delivered.existing else ""
    if delivered.existing and not delivered.created:
        rest += f": remove {raw_folder() / source} first, if other options have made them"
    console.print(f"✓ delivered {delivered.created} {calendar.unit}s of {source}{rest}", style="green")


def _find_project() -> Path:
    from evergreen.scaffold.files import ScaffoldError

    try:
        folder = settings().feature_repo
    except SettingsError as error:
        if variable_name("project") not in {fault.location for fault in error.faults}:
            raise
        problem, fix = "is in no project of Evergreen", "run `evergreen init` in an empty folder, or go to a project"
        raise ScaffoldError("project", [Fault(str(Path.cwd()), problem, fix)]) from None
    if is_outside_of_checkout(Path.cwd()):
        problem = f"is in no project of Evergreen, and the model would be written to the checkout {REPOSITORY}"
        fix = f"run `evergreen init` in an empty folder, go to a project, or set {variable_name('project')}"
        raise ScaffoldError("project", [Fault(str(Path.cwd()), problem, fix)])
    if not (folder / "feature_store.yaml").is_file():
        fix = f"run `evergreen init {settings().project}`"
        raise ScaffoldError("project", [Fault(str(settings().project), "is no project of Evergreen yet", fix)])
    return settings().project.resolve()


def _model_folders(project: Path) -> rendering.ModelFolders:
    from evergreen.scaffold.projects import dags_folder
    from evergreen.scaffold.rendering import ModelFolders

    places = (settings().models[0], settings().feature_repo.absolute())
    models, feature_repo = (str(p.relative_to(project) if p.is_relative_to(project) else p) for p in places)
    return ModelFolders(models, feature_repo, dags_folder(project))


def _name_connection(request: ModelRequest) -> str:
    """Return the name of the connection that the model queries; an address gets one, for this process."""
    if "://" not in request.place:
        return request.place
    name = re.sub(r"[^a-z0-9_]+", "_", request.place.rpartition("/")[2].partition("?")[0].partition(".")[0].lower())
    name = name.strip("_0123456789") or "database"
    os.environ[variable_name("connections", name)] = request.place
    settings.cache_clear()
    return name


def _complete(request: ModelRequest, profile: SampleProfile, console: Console) -> Choices:
    """Return the choices, with those that people at the terminal make, and with guesses of the others."""
    from evergreen.scaffold import guesses

    choices = request.choices
    if request.is_interactive and profile.row_count:
        choices = _ask(choices, profile, console)
    if not choices.label:
        from evergreen.scaffold.files import ScaffoldError

        fault = Fault("--label", "names no column to predict", f"name one of {', '.join(map(repr, profile.names))}")
        raise ScaffoldError("sample", [fault])
    guesses.check_choices(profile, choices)
    return replace(choices, time=choices.time or guesses.guess_time(profile, (choices.label, *choices.ignored)))


def _ask(choices: Choices, profile: SampleProfile, console: Console) -> Choices:
    """Ask for what decides most, with a guess to accept."""
    from evergreen.scaffold import guesses

    console.print(f"{profile.row_count:,} rows with {', '.join(profile.names)}")
    if not choices.label:
        choices = replace(choices, label=typer.prompt("Column to predict"))
    if choices.time is None and (guess := guesses.guess_time(profile, (choices.label, *choices.ignored))):
        choices = replace(choices, time=typer.prompt("Column with the time of a row", default=guess))
    is_clock = any(c.name == choices.time and c.declared == "timestamp[us]" for c in profile.columns)
    if is_clock and choices.timezone is None:
        choices = replace(choices, timezone=typer.prompt("Time zone of these times, such as Europe/Berlin"))
    if choices.keys is None and choices.kind != "forecast":  # series are asked for when periods are known
        guess = ", ".join(guesses.guess_keys(profile, {choices.label, choices.time or "", *choices.ignored}))
        choices = replace(choices, keys=_ask_keys("Keys: columns by which rows have a history", guess))
    if choices.label_delay is None:
        guess = "0d" if choices.kind == "forecast" else choices.period or "1d"
        answer = typer.prompt("Time until a label is known, such as 0d or 7d", default=guess)
        choices = replace(choices, label_delay=answer)
    return choices


def _guess_series(choices: Choices, sample: Sample, profile: SampleProfile, calendar: Calendar) -> tuple[str, ...]:
    """Return the columns that name the series of a forecast.

    Raises:
        ScaffoldError: it cannot be said which do.
    """
    from evergreen.scaffold import guesses

    time = choices.time
    assert time
    candidates = guesses.series_candidates(profile, {choices.label, time, *choices.ignored})
    return guesses.guess_series(
        candidates,
        {name: sample.coverage(name, time, calendar) for name in candidates},
        lambda names: sample.unique_share(time, names),
        is_one_per_period=sample.is_one_per_period(time, calendar),
    )


def _ask_keys(question: str, guess: str) -> tuple[str, ...]:
    answer = typer.prompt(question, default=guess)
    return tuple(filter(None, (name.strip() for name in answer.split(","))))


def _ask_about_forecast(
    choices: Choices, sample: Sample, profile: SampleProfile, calendar: Calendar, periods: Sequence[str]
) -> Choices:
    """Ask which columns name a series, how far ahead, and after how many periods values are alike.

    There are guesses to accept.
    """
    from evergreen.scaffold import guesses
    from evergreen.scaffold.files import ScaffoldError

    if choices.keys is None:
        try:
            guess = ", ".join(_guess_series(choices, sample, profile, calendar))
        except ScaffoldError as error:
            typer.echo(error)  # the person may know
            guess = ""
        choices = replace(choices, keys=_ask_keys("Columns that name a series, none if all rows are one", guess))
        guesses.check_choices(profile, choices)
    if choices.horizon is None:
        question = f"Number of {calendar.unit}s to predict"
        choices = replace(choices, horizon=typer.prompt(question, default=guesses.guess_horizon(calendar), type=int))
    if choices.season is None and periods:
        delay = Duration.parse(choices.label_delay or "0d")
        season = guesses.guess_season(calendar, calendar.count(periods[0], periods[-1]) + 1, delay)
        question = f"Number of {calendar.unit}s after which values are alike; 1 if they are not"
        choices = replace(choices, season=typer.prompt(question, default=season, type=int))
    return choices


def _calendar(sample: Sample, choices: Choices) -> Calendar:
    """Return the periods of the model.

    Raises:
        ScaffoldError: a period, a time zone or the delay of labels is invalid.
    """
    from evergreen.scaffold.files import ScaffoldError
    from evergreen.scaffold.guesses import guess_period

    assert choices.time
    faults = []
    timezone = choices.timezone or sample.timezone(choices.time) or "UTC"
    if timezone not in available_timezones():
        faults.append(Fault(f"--timezone {timezone!r}", "is no IANA time zone", "write one like Europe/Berlin"))
    period = choices.period or guess_period(sample.weekdays(choices.time), sample.row_count)
    checks: list[tuple[str, str | None, Callable[[str], object]]] = [
        ("--period", period, lambda text: Calendar(text, "UTC")),
        ("--label-delay", choices.label_delay, Duration.parse),
    ]
    for option, text, parse in checks:
        try:
            _ = text is not None and parse(text)
        except ValueError as error:
            faults.append(Fault(option, str(error)))
    if faults:
        raise ScaffoldError("sample", faults)
    return Calendar(period, timezone)


def is_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()
