"""The command line itself: help, version, and commands of other packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from typer.models import OptionInfo
from typer.testing import CliRunner

from evergreen.cli import app, load_commands
from evergreen.settings import settings

pytestmark = pytest.mark.unit

COLUMNS = 80


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)


load_commands()
COMMANDS = dict(commands(typer.main.get_command(app)))


def test_every_option_says_its_name() -> None:
    """Typer 0.27 makes `--PERIOD` of `period` with `metavar="PERIOD"`: a constraints file may bring any version."""
    apps = [app, *(group.typer_instance for group in app.registered_groups)]
    unnamed = [
        f"{command.name} {name}"
        for group in apps
        for command in group.registered_commands
        for name, parameter in get_type_hints(command.callback, include_extras=True).items()
        for option in getattr(parameter, "__metadata__", ())
        if isinstance(option, OptionInfo)
        # Typer keeps the first name of an annotated option as its default, until it builds the command.
        if not any(str(text).startswith("--") for text in (option.default, *(option.param_decls or ())))
    ]
    assert unnamed == []
    names = [name for command in COMMANDS.values() for parameter in command.params for name in parameter.opts]
    assert "--period" in names
    assert [name for name in names if name.startswith("-") and name != name.lower()] == []


@pytest.mark.parametrize(("path", "command"), COMMANDS.items(), ids=map(" ".join, COMMANDS))
def test_help_fits_one_line_of_80_columns(path: tuple[str, ...], command: Any) -> None:
    longest = max(len(name) for *_, name in COMMANDS)
    assert command.get_short_help_str(limit=COLUMNS - 2 - 6 - longest) == command.help
    context = typer.Context(command, info_name="evergreen")
    context.max_content_width = context.terminal_width = COLUMNS
    lines = command.get_help(context).splitlines()
    for parameter in command.params:
        if text := getattr(parameter, "help", None):
            assert any(text in line for line in lines), lines
    assert max(map(len, lines)) <= COLUMNS


def test_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == version("evergreen")


def test_help_before_the_model_is_not_that_of_feast() -> None:
    command = COMMANDS["feast",]
    result = CliRunner().invoke(app, ["feast", "--help"])
    assert result.exit_code == 0
    assert "Arguments of the feast command." in result.output
    context = command.make_context("feast", ["flight_delay", "--help"])
    assert context.params == {"model": "flight_delay", "arguments": ["--help"]}


def test_commands_of_the_local_stack_are_added_by_entry_point() -> None:
    command = [Path(sys.executable).parent / "evergreen", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("up", "down", "status", "retrain", "history", "doctor"):
        assert f"\n  {name} " in text


def test_an_error_is_one_line_on_stderr(home: Path) -> None:
    result = CliRunner().invoke(app, ["history", "no_such_model"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("evergreen: model no_such_model: 1 fault")


def test_an_unexpected_error_keeps_its_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evergreen.cli.tables.show_history", lambda *_: 1 / 0)
    assert isinstance(CliRunner().invoke(app, ["history", "flight_delay"]).exception, ZeroDivisionError)


def test_interruption_exits_with_130(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evergreen.cli.tables.show_history", interrupt)
    result = CliRunner().invoke(app, ["history", "flight_delay"])
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "freeze flight_delay --reason test",
        "unfreeze flight_delay --reason test",
        "rollback flight_delay --reason test",
        "release flight_delay 1 --reason test",
        "accept flight_delay 1 --reason test",
        "sign flight_delay 1",
        "ledger repair",
    ],
)
def test_commands_that_move_aliases_need_the_local_mlflow(
    home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("EVERGREEN_MLFLOW", raising=False)
    settings.cache_clear()
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1
    assert "MLflow is not running" in result.stderr


def test_an_error_of_one_model_leaves_the_others_repaired(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use_models: Callable[..., None]
) -> None:
    (tmp_path / "a_torn_one").mkdir()
    (tmp_path / "a_torn_one/model.py").write_text("MODEL = (\n")
    use_models(tmp_path)
    monkeypatch.setenv("EVERGREEN_MLFLOW", f"sqlite:///{home}/mlflow.db")
    settings.cache_clear()
    home.mkdir()
    result = CliRunner().invoke(app, ["ledger", "repair"])
    assert result.exit_code == 1
    assert "model a_torn_one: 1 fault" in result.stderr
    assert "flight_delay: " in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", ["apply", "--log-level debug teardown", "delete levels"])
def test_feast_commands_that_change_the_registry_are_refused(home: Path, arguments: str) -> None:
    result = CliRunner().invoke(app, ["feast", "flight_delay", *arguments.split()])
    assert result.exit_code == 1
    assert "Evergreen applies the file of each model" in result.stderr


def test_commands_load_no_engine_before_they_need_one() -> None:
    engines = {"duckdb", "feast", "pandas", "pyarrow", "sqlalchemy"}
    script = f"import sys, evergreen.cli; print(*{engines} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
