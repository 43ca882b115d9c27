"""An environment that had only Airflow, and then got Evergreen's wheel."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.distributions import ROOT, Installation, build_distributions, install, list_packages, run_uv

AIRFLOW = "apache-airflow[pandas]==3.3.2"
"""With pandas 3, as in Airflow's image; the lock has pandas 2."""
CONSTRAINTS = os.environ.get("AIRFLOW_CONSTRAINTS") or str(Path(__file__).with_name("constraints-3.3.2.txt"))
"""Path or URL. `AIRFLOW_CONSTRAINTS` names another, such as the one that Airflow publishes."""


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build_distributions(ROOT, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("existing") / "airflow"
    python = folder / "bin" / "python"
    made = run_uv("venv", "--python", sys.executable, folder)
    assert made.returncode == 0, made.stderr
    install(python, AIRFLOW, "--constraint", CONSTRAINTS)
    before = list_packages(python)
    install(python, wheel, "--constraint", CONSTRAINTS)
    lock = (ROOT / "requirements.txt").read_text().splitlines()
    install(python, "--no-deps", next(line for line in lock if line.startswith("feast==")))  # see pyproject.toml
    yield Installation(python, before, list_packages(python))
    shutil.rmtree(folder)  # gigabytes, which pytest would keep


@pytest.fixture(scope="session")
def installed(installation: Installation) -> Path:
    """Python of an environment with Airflow, its constraints, and Evergreen's wheel."""
    return installation.python
