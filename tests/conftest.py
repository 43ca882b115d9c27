"""A home of its own for each test that asks for one; settings of the test run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import invalidate_caches
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evergreen.settings import settings

if TYPE_CHECKING:
    from support.ledgers import Book

_ROOT = Path(__file__).parents[1]
_MODEL_NUMBERS = count()
# What a developer has set for a deployment is not for tests: they would write to its lake and its registry.
for _name in [name for name in os.environ if name.startswith("EVERGREEN_") and not name.startswith("EVERGREEN_TEST_")]:
    del os.environ[_name]
# Those that ship, and those of the tests; processes that a test starts have them, too.
os.environ["EVERGREEN_MODELS"] = f"{_ROOT}/include/evergreen_models:{_ROOT}/tests/evergreen_models"

with suppress(ModuleNotFoundError):  # the trainer's environment has no Hypothesis
    import hypothesis

    # A deadline in wall-clock time fails on a machine that other work shares.
    hypothesis.settings.register_profile("evergreen", deadline=None)
    hypothesis.settings.load_profile("evergreen")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write tests/**/snapshots again")


class FailuresAtOnce:
    """Names a test when it fails, not only at the end: a run of tens of minutes may be cut before that."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            crash = getattr(report.longrepr, "reprcrash", None)
            terminal.write_line(f"FAILED {report.nodeid} ({report.when}): {crash or report.longreprtext[-500:]}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # one of xdist's processes; its failures are reported by the one here
        config.pluginmanager.register(FailuresAtOnce(config))


def _forget() -> None:
    settings.cache_clear()
    if repository := sys.modules.get("evergreen.feature_store.repository"):
        repository.open_feature_store.cache_clear()


@pytest.fixture
def use_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Add folders of model folders to this process and to those that it starts, until the test ends."""

    def use(*folders: Path, only: bool = False) -> None:
        import evergreen_models

        places = [*([] if only else evergreen_models.__path__), *map(str, folders)]
        monkeypatch.setenv("EVERGREEN_MODELS", os.pathsep.join(places))
        monkeypatch.setattr(evergreen_models, "__path__", places)
        # Python tells bytecode of before by seconds and size: "1d" that becomes "2d" within a second would be missed.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        invalidate_caches()
        _forget()

    before = {name for name in sys.modules if name.startswith("evergreen_models.")}
    yield use
    for name in [name for name in sys.modules if name.startswith("evergreen_models.") and name not in before]:
        del sys.modules[name]
    monkeypatch.undo()
    _forget()


@pytest.fixture
def use_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Path]]:
    """Point the settings of this process at a folder, until the test ends."""

    def use(home: Path) -> Path:
        monkeypatch.setenv("EVERGREEN_HOME", str(home))
        _forget()
        return home

    yield use
    monkeypatch.undo()
    _forget()


@pytest.fixture
def home(use_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    """An empty home."""
    return use_home(tmp_path / "home")


@pytest.fixture(scope="session")
def model_registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a registry; creating one takes seconds, so tests share it and use different models."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def new_book(model_registry: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> Callable[[], Book]:
    """Return a function that makes a model of its own in that registry, without versions or entries."""
    from support.ledgers import Book  # here: it loads MLflow

    monkeypatch.setenv("EVERGREEN_MLFLOW", model_registry)
    settings.cache_clear()
    return lambda: Book(f"model_{next(_MODEL_NUMBERS)}", home)
