"""An environment that had only Airflow, and then got Evergreen's wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
AIRFLOW = "apache-airflow==3.3.2"
CONSTRAINTS = os.environ.get("AIRFLOW_CONSTRAINTS") or str(Path(__file__).with_name("constraints-3.3.2.txt"))
"""Path or URL; `AIRFLOW_CONSTRAINTS` names another, such as the one that Airflow publishes for this version."""
FEAST = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("feast=="))


@dataclass(frozen=True)
class Installation:
    """An environment before and after Evergreen was installed into it."""

    python: Path
    before: dict[str, str]
    """Version of each package that Airflow brought."""
    after: dict[str, str]


def uv(*arguments: str | Path) -> str:
    command = [Path(sys.executable).with_name("uv"), "--no-progress", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed_packages(python: Path) -> dict[str, str]:
    lines = uv("pip", "list", "--format", "freeze", "--python", python).splitlines()
    return dict(line.split("==") for line in lines)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("existing") / "airflow"
    python = folder / "bin" / "python"
    uv("venv", "--python", sys.executable, folder)
    uv("pip", "install", "--python", python, AIRFLOW, "--constraint", CONSTRAINTS)
    before = installed_packages(python)
    uv("pip", "install", "--python", python, wheel, "--constraint", CONSTRAINTS)
    uv("pip", "install", "--python", python, "--no-deps", FEAST)  # see the extra feast in pyproject.toml
    return Installation(python, before, installed_packages(python))


@pytest.fixture(scope="session")
def installed(installation: Installation) -> Path:
    """Python of an environment with Airflow, its constraints, and Evergreen's wheel."""
    return installation.python
