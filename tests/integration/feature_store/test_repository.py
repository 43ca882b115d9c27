"""Definitions are applied to Feast's registry once, by the first process. Real registry in SQLite."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from feast import FeatureStore

from evergreen.errors import SpecError
from evergreen.feature_store import repository
from evergreen.settings import REPOSITORY, settings
from evergreen.spec import loader
from support.forks import fork, wait

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
SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="{name}", feature_service="both", owner="tests", label="full", schedule="0 0 * * 1",
    features=dict(
        timezone="UTC", first_day="2013-01-01", spine="visits", views=["levels"],
        sources=[dict(name="x", columns=dict(x="int64"))],
    ),
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
ANOTHER = """
depths = FeatureView(name="depths", entities=[pond], ttl=timedelta(days=1), source=feature_source("ponds", "depths"),
                     schema=[Field(name="depth", dtype=Float64)])
both = FeatureService(name="both", features=[levels, depths])
"""


@pytest.fixture
def repo(
    monkeypatch: pytest.MonkeyPatch,
    use_home: Callable[[Path], Path],
    use_models: Callable[..., None],
    tmp_path: Path,
) -> Path:
    """A Feast repository for two models, with a registry that does not exist yet."""
    for name in ("ponds", "lakes"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.py").write_text(SPEC.format(name=name))
    use_models(tmp_path / "models", only=True)
    loader.load_spec.cache_clear()
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
    return repository.open_feature_store("ponds")


def names(store: FeatureStore) -> list[str]:
    definitions = [*store.list_all_feature_views(), *store.list_feature_services()]
    return sorted(item.name for item in definitions)


def test_concurrent_processes_apply_definitions_once(repo: Path, applications: Callable[[], int]) -> None:
    start_read, start_write = os.pipe()

    def open_together() -> None:
        os.read(start_read, 1)
        assert names(open_anew()) == ["both", "depths", "levels"]

    children = [fork(open_together) for _ in range(8)]
    os.write(start_write, b"." * 8)
    assert [wait(child) for child in children] == [0] * 8
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
    columns = tmp_path / "models/ponds/columns.py"
    columns.write_text("COLUMNS = ['level']")
    (repo / "ponds.py").write_text("from evergreen_models.ponds import columns\n" + DEFINITIONS)
    open_anew()
    columns.write_text("COLUMNS = ['level', 'murk']")
    open_anew()
    (tmp_path / "models/ponds/train.py").write_text("the definitions do not import it")
    open_anew()
    assert applications() == 2
    monkeypatch.setenv("EVERGREEN_LAKE", str(tmp_path / "elsewhere"))
    settings.cache_clear()
    assert str(tmp_path / "elsewhere") in open_anew().get_feature_view("levels").batch_source.path
    assert applications() == 1


@pytest.mark.parametrize("lost", ["feast-registry.db", "online/ponds.db", "every row"])
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

    assert wait(fork(open_and_die)) == -signal.SIGKILL
    assert names(open_anew()) == ["levels"]
    open_anew()
    assert applications() == 3


def test_projects_of_two_models_do_not_touch_each_other(repo: Path) -> None:
    (repo / "lakes.py").write_text((DEFINITIONS + ANOTHER).replace('"ponds"', '"lakes"'))
    open_anew()
    lakes = repository.open_feature_store("lakes")
    assert lakes.get_feature_view("levels").batch_source.path.endswith("features/lakes/levels")
    (repo / "ponds.py").write_text(DEFINITIONS)
    ponds = open_anew()
    assert names(ponds) == ["levels"]
    assert names(lakes) == ["both", "depths", "levels"]
    assert ponds.get_feature_view("levels").batch_source.path.endswith("features/ponds/levels")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 / 0\n", "ponds.py, line 1: ZeroDivisionError: division by zero → correct it"),
        ("def f(:\n", "ponds.py, line 1: SyntaxError"),
        ("import sys\nsys.exit()\n", "ponds.py, line 2: SystemExit"),
        (None, "ponds.py: no such file → define its entities, feature views and feature service there"),
    ],
)
def test_broken_definitions_are_named_and_stay_with_their_model(repo: Path, text: str | None, problem: str) -> None:
    (repo / "lakes.py").write_text(DEFINITIONS)
    (repo / "ponds.py").unlink() if text is None else (repo / "ponds.py").write_text(text)
    with pytest.raises(SpecError) as refused:
        open_anew()
    assert problem in str(refused.value)
    assert names(repository.open_feature_store("lakes")) == ["levels"]


def test_opening_does_not_wait_for_materialization(repo: Path) -> None:
    open_anew()
    with repository.feast_lock("ponds"):
        child = fork(open_anew)
        assert wait(child) == 0
