"""Real days of flights with real features, made once and copied for each test that changes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
from xdist.scheduler import LoadFileScheduling

from evergreen.explanations import verdict_importance
from evergreen.explanations.importance import Limits
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.settings import settings
from evergreen.spec import loader
from support.calendars import later

DAYS = [later("2013-01-01", n) for n in range(17)]


class StacksInOneProcess(LoadFileScheduling):
    """Sends the tests of a file to one process, and all that start Airflow to one: a stack at a time."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "stacks" if file.startswith(("tests/integration/airflow/", "tests/integration/release/")) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> StacksInOneProcess | None:
    return StacksInOneProcess(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def january(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose lake holds 17 raw days and their published features. Not to be changed."""
    from evergreen_models.flight_delay.raw import deliver

    home = tmp_path_factory.mktemp("january") / "home"
    before = os.environ.get("EVERGREEN_HOME")
    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()
    deliver(DAYS)
    run_feature_pipeline(loader.load_spec("flight_delay"), DAYS)
    yield home
    if before is None:
        del os.environ["EVERGREEN_HOME"]
    else:
        os.environ["EVERGREEN_HOME"] = before
    settings.cache_clear()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: to create them takes most of the time of many a test."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def own_january(january: Path, empty_database: Path, use_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of january, with a registry, that the test may change; the settings point at it."""
    shutil.copytree(january, tmp_path / "home")
    shutil.copy(empty_database, tmp_path / "home")
    return use_home(tmp_path / "home")


@pytest.fixture(autouse=True)
def _few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring what each input is worth takes most of a verdict, and its unit tests measure it in full."""
    monkeypatch.setattr(verdict_importance, "Limits", partial(Limits, permutations=1, explained_rows=100))
