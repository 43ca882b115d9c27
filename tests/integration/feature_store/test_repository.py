"""Definitions reach Feast's registry once, from whichever process comes first. Real registry in SQLite."""

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
from evergreen.feature_store.data_source import published

pond = Entity(name="pond", join_keys=["pond"], value_type=ValueType.STRING)
levels = FeatureView(name="levels", entities=[pond], ttl=timedelta(days=1), source=published("ponds", "levels"),
                     schema=[Field(name="level", dtype=Float64)])
"""
ANOTHER = """
depths = FeatureView(name="depths", entities=[pond], ttl=timedelta(days=1), source=published("ponds", "depths"),
                     schema=[Field(name="depth", dtype=Float64)])
both = FeatureService(name="both", features=[levels, depths])
"""


@pytest.fixture
def repo(monkeypatch: pytest.MonkeyPatch, use_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A Feast repository of the test's own, with a registry that does not exist yet."""
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    shutil.copy(REPOSITORY / "feature_repo/feature_store.yaml", folder)
    (folder / "ponds.py").write_text(DEFINITIONS + ANOTHER)
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(folder))
    use_home(tmp_path / "home")
    return folder


@pytest.fixture
def applications(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How often definitions were applied since the last time this was asked, by this process and its children."""
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


def opened() -> FeatureStore:
    """As a new process gets it."""
    repository.open_feature_store.cache_clear()
    return repository.open_feature_store()


def names(store: FeatureStore) -> list[str]:
    found = [*store.list_all_feature_views(), *store.list_feature_services()]
    return sorted(item.name for item in found)


def ended(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def forked(action: Callable[[], object]) -> int:
    """A child process that exits with 0 if `action` comes to its end; gives its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


def test_many_processes_on_a_new_registry_apply_once(repo: Path, applications: Callable[[], int]) -> None:
    go, gone = os.pipe()

    def open_together() -> None:
        os.read(go, 1)
        assert names(opened()) == ["both", "depths", "levels"]

    children = [forked(open_together) for _ in range(8)]
    os.write(gone, b"." * 8)
    assert ended(children) == [0] * 8
    assert applications() == 1
    assert names(opened()) == ["both", "depths", "levels"]
    assert applications() == 0


def test_changed_definitions_are_applied(repo: Path, applications: Callable[[], int]) -> None:
    opened()
    (repo / "ponds.py").write_text((DEFINITIONS + ANOTHER).replace('"depth",', '"depth_m",'))
    assert [field.name for field in opened().get_feature_view("depths").features] == ["depth_m"]
    opened()
    assert applications() == 2


def test_what_definitions_are_made_from_is_part_of_them(
    repo: Path, applications: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "evergreen_models/ponds"
    folder.mkdir(parents=True)
    (folder / "features.py").write_text("COLUMNS = ['level']")
    monkeypatch.setattr(import_module("evergreen_models"), "__path__", [str(folder.parent)])
    opened()
    (folder / "features.py").write_text("COLUMNS = ['level', 'murk']")
    opened()
    monkeypatch.setenv("EVERGREEN_LAKE", str(tmp_path / "elsewhere"))
    settings.cache_clear()
    assert str(tmp_path / "elsewhere") in opened().get_feature_view("levels").batch_source.path
    assert applications() == 3


@pytest.mark.parametrize("lost", ["feast-registry.db", "online.db", "every row"])
def test_what_was_lost_is_applied_again(repo: Path, applications: Callable[[], int], lost: str) -> None:
    opened()
    if lost == "every row":
        with closing(sqlite3.connect(settings().home / "feast-registry.db")) as con, con:
            for (table,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                con.execute(f"DELETE FROM {table}")
    else:
        (settings().home / lost).unlink()
    rows = opened().get_online_features(["levels:level"], [{"pond": "a"}])
    assert rows.to_dict()["level"] == [None]
    assert names(opened()) == ["both", "depths", "levels"]
    assert applications() == 2


@pytest.mark.parametrize("moment", ["delete_feature_service", "delete_feature_view", "mark_online"])
def test_an_application_that_was_killed_is_repeated(repo: Path, applications: Callable[[], int], moment: str) -> None:
    opened()
    (repo / "ponds.py").write_text(DEFINITIONS)

    def killed() -> None:
        where = FeatureStore if hasattr(FeatureStore, moment) else repository
        setattr(where, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        opened()

    assert ended([forked(killed)]) == [-signal.SIGKILL]
    assert names(opened()) == ["levels"]
    opened()
    assert applications() == 3


def test_what_is_no_longer_defined_is_taken_out_of_this_project_only(
    repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened()
    other = tmp_path / "other_repo"
    shutil.copytree(repo, other)
    configuration = other / "feature_store.yaml"
    configuration.write_text(configuration.read_text().replace("project: evergreen", "project: other"))
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(other))
    settings.cache_clear()
    theirs = opened()
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(repo))
    settings.cache_clear()
    (repo / "ponds.py").write_text(DEFINITIONS)
    assert names(opened()) == ["levels"]
    assert names(theirs) == ["both", "depths", "levels"]


def test_opening_waits_for_nobody_who_materializes(repo: Path) -> None:
    opened()
    with repository.feast_lock():
        child = forked(opened)
        assert ended([child]) == [0]
