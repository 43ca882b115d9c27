"""The wheel installs into an existing Airflow and leaves what is there as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.distributions import Installation, run_outside_a_checkout, run_uv

pytestmark = pytest.mark.integration

IMPORT_ALL = """
import importlib, pkgutil
import evergreen, evergreen_local
for package in (evergreen, evergreen_local):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # an extra, which is not installed
            if not (module.name.startswith("evergreen.lineage_events.") and error.name.startswith("openlineage")):
                raise
print(evergreen.__file__)
"""
PLUGINS = """
from airflow import plugins_manager
plugins, errors = plugins_manager._get_plugins()
assert not errors, errors
print(*sorted(plugin.name for plugin in plugins))
"""
OPTIONS = """
import typer.main
from evergreen import cli

def visit(command, name):
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
    print(name, *sorted(options))
    for part, child in sorted(getattr(command, "commands", {}).items()):
        visit(child, f"{name} {part}")

cli.load_commands()
visit(typer.main.get_command(cli.app), "evergreen")
"""


def test_no_package_of_airflow_changes(installation: Installation) -> None:
    after = installation.after
    assert len(installation.before) > 100
    assert {name: after.get(name) for name in installation.before} == installation.before
    assert "evergreen" in after


def test_only_the_bounds_of_feast_are_unmet(installation: Installation) -> None:
    """Nothing else is at a version that another package refuses."""
    problems = run_uv("pip", "check", "--python", installation.python).stderr.splitlines()
    unmet = [line for line in problems if "requires" in line]
    assert unmet
    assert all("`feast` requires" in line for line in unmet), unmet


def test_every_module_of_the_wheel_imports(installed: Path, tmp_path: Path) -> None:
    out = run_outside_a_checkout(installed, tmp_path, "-c", IMPORT_ALL)
    assert str(installed.parents[1]) in out


def test_airflow_loads_the_plugins(installed: Path, tmp_path: Path) -> None:
    assert run_outside_a_checkout(installed, tmp_path, "-c", PLUGINS).split() == [
        "evergreen_lineage",
        "evergreen_preload",
        "evergreen_verdicts",
    ]


def test_the_command_starts_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    command = installed.with_name("evergreen")
    assert "retrain" in run_outside_a_checkout(command, tmp_path, "--help")


def test_commands_have_the_options_that_they_have_here(installed: Path, tmp_path: Path) -> None:
    """Airflow's constraints bring another Typer than the lock."""
    there = run_outside_a_checkout(installed, tmp_path, "-c", OPTIONS)
    here = subprocess.run([sys.executable, "-c", OPTIONS], capture_output=True, text=True, check=True).stdout
    assert "evergreen check --json --period" in there
    assert there.splitlines() == here.splitlines()
