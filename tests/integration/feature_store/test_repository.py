"""Definitions are applied to Feast's registry once, by the first process. Real registry in SQLite."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path

import pytest
from feast import FeatureStore

from evergreen.feature_store import repository
from evergreen.settings import REPOSITORY, settings

pytestmark = pytest.mark.integration

DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

pond = Entity(name="pond", join_keys=["pond"], value_type=ValueType.STRING)
levels = FeatureView(name="levels", entities=[pond], ttl=timedelta(days=1), source=feature_source("ponds", "levels"),
                     schema=[Field(name="level", dtype=Float64)])
"""
ANOTHER = """
depths = FeatureView(name="depths", entities=[pond], ttl=timedelta(days=1), source=feature_source("ponds", "depths"),
                     schema=[Field(name="depth", dtype=Float64)])
both = FeatureService(name="both", features=[levels, depths])
"""


@pytest.fixture
def repo(monkeypatch: pytest.MonkeyPatch, use_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A Feast repository with a registry that does not exist yet."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    shutil.copy(REPOSITORY / "feature_repo/feature_store.yaml", folder)
    (folder / "ponds.py").write_text(DEFINITIONS + ANOTHER)
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(folder))
    use_home(tmp_path / "home")
    return folder


@pytest.fixture
def applications(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """Counts how often this process and its children have applied definitions since the last call."""
    log, apply = tmp_path / "applications", FeatureStore.apply

    def counted(*arguments: object, **named: object) -> None:
        with log.open("a") as file:
            file.write(".")
        apply(*arguments, **named)

    def count() -> int:
        total = log.stat().st_size if log.exists() else 0
        log.unlink(missing_ok=True)
        return total

    monkeypatch.setattr(FeatureStore, "apply", counted)
    return count


def open_anew() -> FeatureStore:
    """Open the store as a new process would."""
    repository.open_feature_store.cache_clear()
    return repository.open_feature_store()


def names(store: FeatureStore) -> list[str]:
    definitions = [*store.list_all_feature_views(), *store.list_feature_services()]
    return sorted(item.name for item in definitions)


def wait(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fork(action: Callable[[], object]) -> int:
    """Start a child process that exits with 0 if `action` returns; return its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


def test_concurrent_processes_apply_definitions_once(repo: Path, applications: Callable[[], int]) -> None:
    start_read, start_write = os.pipe()

    def open_together() -> None:
        os.read(start_read, 1)
        assert names(open_anew()) == ["both", "depths", "levels"]

    children = [fork(open_together) for _ in range(8)]
    os.write(start_write, b"." * 8)
    assert wait(children) == [0] * 8
    assert applications() == 1
    assert names(open_anew()) == ["both", "depths", "levels"]
    assert applications() == 0


def test_changed_definitions_are_applied(repo: Path, applications: Callable[[], int]) -> None:
    open_anew()
    (repo / "ponds.py").write_text((DEFINITIONS + ANOTHER).replace('"depth",', '"depth_m",'))
    assert [field.name for field in open_anew().get_feature_view("depths").features] == ["depth_m"]
    open_anew()
    assert applications() == 2


def test_sources_of_definitions_are_part_of_the_fingerprint(
    repo: Path, applications: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "evergreen_models/ponds"
    folder.mkdir(parents=True)
    (folder / "features.py").write_text("COLUMNS = ['level']")
    monkeypatch.setattr(import_module("evergreen_models"), "__path__", [str(folder.parent)])
    open_anew()
    (folder / "features.py").write_text("COLUMNS = ['level', 'murk']")
    open_anew()
    monkeypatch.setenv("EVERGREEN_LAKE", str(tmp_path / "elsewhere"))
    settings.cache_clear()
    assert str(tmp_path / "elsewhere") in open_anew().get_feature_view("levels").batch_source.path
    assert applications() == 3


@pytest.mark.parametrize("lost", ["feast-registry.db", "online.db", "every row"])
def test_lost_registry_or_online_store_is_applied_again(repo: Path, applications: Callable[[], int], lost: str) -> None:
    open_anew()
    if lost == "every row":
        with closing(sqlite3.connect(settings().home / "feast-registry.db")) as con, con:
            for (table,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                con.execute(f"DELETE FROM {table}")
    else:
        (settings().home / lost).unlink()
    rows = open_anew().get_online_features(["levels:level"], [{"pond": "a"}])
    assert rows.to_dict()["level"] == [None]
    assert names(open_anew()) == ["both", "depths", "levels"]
    assert applications() == 2


@pytest.mark.parametrize("function", ["delete_feature_service", "delete_feature_view", "write_online_marker"])
def test_killed_application_is_repeated(repo: Path, applications: Callable[[], int], function: str) -> None:
    open_anew()
    (repo / "ponds.py").write_text(DEFINITIONS)

    def open_and_die() -> None:
        owner = FeatureStore if hasattr(FeatureStore, function) else repository
        setattr(owner, function, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        open_anew()

    assert wait([fork(open_and_die)]) == [-signal.SIGKILL]
    assert names(open_anew()) == ["levels"]
    open_anew()
    assert applications() == 3


def test_removed_definitions_leave_this_project_only(
    repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_anew()
    other_repo = tmp_path / "other_repo"
    shutil.copytree(repo, other_repo)
    configuration = other_repo / "feature_store.yaml"
    configuration.write_text(configuration.read_text().replace("project: evergreen", "project: other"))
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(other_repo))
    settings.cache_clear()
    other_store = open_anew()
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(repo))
    settings.cache_clear()
    (repo / "ponds.py").write_text(DEFINITIONS)
    assert names(open_anew()) == ["levels"]
    assert names(other_store) == ["both", "depths", "levels"]


def test_opening_does_not_wait_for_materialization(repo: Path) -> None:
    open_anew()
    with repository.feast_lock():
        child = fork(open_anew)
        assert wait([child]) == [0]
