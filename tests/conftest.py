"""A home of its own for each test that asks for one; settings of the test run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from evergreen.settings import settings

with suppress(ModuleNotFoundError):  # the trainer's environment has no Hypothesis
    import hypothesis

    # A deadline in wall-clock time fails on a machine that other work shares.
    hypothesis.settings.register_profile("evergreen", deadline=None)
    hypothesis.settings.load_profile("evergreen")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write tests/**/snapshots again")


def _forget() -> None:
    settings.cache_clear()
    import sys

    if repository := sys.modules.get("evergreen.feature_store.repository"):
        repository.open_feature_store.cache_clear()


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
