"""MLflow's aliases follow the ledger, and are brought back to it. Real MLflow on SQLite."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from evergreen import ledger
from evergreen.errors import RegistryError
from evergreen.promotion import rules
from evergreen.registry import versions
from evergreen.settings import settings
from evergreen.spec.model import FeatureSpec, ModelSpec, RawSource
from support.ledgers import Book

pytestmark = pytest.mark.integration

_NUMBERS = count()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a registry; making one takes seconds, so every test has a model of its own in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def book(mlflow: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> Book:
    monkeypatch.setenv("EVERGREEN_MLFLOW", mlflow)
    settings.cache_clear()
    return Book(f"model_{next(_NUMBERS)}", home)


def findings(repair: versions.AliasRepair) -> dict[str, tuple[str, str | None, str | None]]:
    return {alias.alias: (alias.status, alias.actual_version, alias.expected_version) for alias in repair.aliases}


def test_aliases_follow_each_change_of_champion(book: Book) -> None:
    one, two = book.judge(10), None
    book.promote(one)
    assert book.aliases == {"champion": "1"}
    two = book.judge(20)
    book.promote(two)
    assert book.aliases == {"champion": "2", "previous": "1"}
    three = book.judge(21)
    book.promote(three, cooldown_days=7)
    assert book.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
    ledger.append_decision(book.model, "ada", lambda state: rules.decide_rollback(state, None, "late"))
    versions.sync_aliases(book.model)
    assert book.aliases == {"champion": "1", "previous": "2", "challenger": "3"}
    book.promote(book.judge(30))
    assert book.aliases == {"champion": "4", "previous": "1"}
    assert versions.repair_aliases(book.model).was_consistent


def test_the_champion_is_the_ledgers(book: Book, spec: Callable[[str], ModelSpec]) -> None:
    model = spec(book.model)
    assert versions.get_champion_version(model) is None
    book.promote(book.judge(10))
    book.client.set_registered_model_alias(book.model, "champion", book.register())
    champion = versions.get_champion_version(model)
    assert champion is not None
    assert str(champion.version) == "1"


def test_what_a_crash_left_is_finished(book: Book) -> None:
    book.record(book.judge(10))
    repair = versions.repair_aliases(book.model)
    assert findings(repair)["champion"] == ("missing", None, "1")
    assert book.aliases == book.right == {"champion": "1"}
    book.record(book.judge(20))
    book.record(book.judge(30))
    repair = versions.repair_aliases(book.model)
    assert findings(repair) == {
        "champion": ("behind", "1", "3"),
        "previous": ("missing", None, "2"),
        "challenger": ("right", None, None),
    }
    assert not repair.was_consistent
    assert repair.messages[0] == (
        "champion was version 1, which was right until entry 4, and is version 3 (entry 6) now: somebody was "
        "interrupted, or has moved it by hand"
    )
    assert book.aliases == book.right == {"champion": "3", "previous": "2"}
    assert versions.repair_aliases(book.model).was_consistent


def test_what_was_moved_by_hand_is_told_and_put_right(book: Book) -> None:
    book.promote(book.judge(10))
    stranger = book.register()
    for alias in ("champion", "challenger"):
        book.client.set_registered_model_alias(book.model, alias, stranger)
    repair = versions.repair_aliases(book.model)
    assert findings(repair) == {
        "champion": ("moved by hand", "2", "1"),
        "previous": ("right", None, None),
        "challenger": ("moved by hand", "2", None),
    }
    assert (
        "champion was version 2, moved by hand outside the ledger, which says version 1 (entry 2)"
        in (repair.messages[0])
    )
    assert book.aliases == {"champion": "1"}


def test_what_was_deleted_by_hand_is_told_and_set_again(book: Book) -> None:
    book.promote(book.judge(10))
    book.promote(book.judge(20))
    book.client.delete_registered_model_alias(book.model, "champion")
    repair = versions.repair_aliases(book.model)
    assert findings(repair)["champion"] == ("missing", None, "2")
    assert repair.messages[0] == (
        "champion was missing, and is version 2 (entry 4) now: somebody was interrupted before it was set, or it was "
        "deleted by hand"
    )
    assert book.aliases == {"champion": "2", "previous": "1"}


def test_an_alias_from_before_the_ledger_is_told_and_left(book: Book) -> None:
    book.client.set_registered_model_alias(book.model, "champion", book.register())
    for _ in range(2):
        repair = versions.repair_aliases(book.model)
        assert findings(repair)["champion"] == ("moved by hand", "1", None)
        assert "the ledger knows of no promotion: left as it is" in repair.messages[0]
        assert book.aliases == {"champion": "1"}
        book.judge(10, passed=False)  # nor is it touched when all that the ledger knows is a verdict
    book.promote(book.judge(10))
    assert book.aliases == book.right == {"champion": "4"}


def test_other_aliases_are_nobodys_business(book: Book) -> None:
    book.promote(book.judge(10))
    book.client.set_registered_model_alias(book.model, "canary", "1")
    versions.repair_aliases(book.model)
    assert book.client.get_registered_model(book.model).aliases["canary"] is not None


def test_a_champion_that_was_deleted_is_told(book: Book, spec: Callable[[str], ModelSpec]) -> None:
    book.record(book.judge(10))
    book.client.delete_model_version(book.model, "1")
    for ask in (
        versions.sync_aliases,
        versions.repair_aliases,
        lambda name: versions.get_champion_version(spec(name)),
    ):
        with pytest.raises(RegistryError, match=r"champion of \w+ is version 1 by the ledger, but MLflow has no"):
            ask(book.model)


def test_a_registry_that_never_heard_of_the_model_is_told(book: Book) -> None:
    book.record(book.judge(10))
    book.client.delete_registered_model(book.model)
    with pytest.raises(RegistryError, match="is not the registry that the ledger is about"):
        versions.repair_aliases(book.model)


def test_several_that_set_a_new_alias_at_once(book: Book) -> None:
    """MLflow refuses all but one of those who set an alias that was not there."""
    book.record(book.judge(10))
    book.record(book.judge(20))
    together = threading.Barrier(6)

    def follow(_: int) -> int:
        together.wait()
        return versions.sync_aliases(book.model).head_number

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(follow, range(6))) == {4}
    assert book.aliases == book.right


def test_repair_beside_promotions(book: Book) -> None:
    """It neither takes them for moves by hand nor takes them back."""
    candidates = []
    done = threading.Event()

    def repair() -> list[str]:
        told = []
        while not done.is_set():
            told += [alias.status for alias in versions.repair_aliases(book.model).aliases]
        return told

    with ThreadPoolExecutor(2) as pool:
        repairs = [pool.submit(repair) for _ in range(2)]
        try:
            for as_of in range(10, 25):
                candidates.append(book.judge(as_of))
                book.promote(candidates[-1])
        finally:
            done.set()
        told = {finding for future in repairs for finding in future.result()}
    assert told <= {"right", "behind", "missing"}
    assert book.aliases == book.right == {"champion": "15", "previous": "14"}


@pytest.fixture
def spec() -> Callable[[str], ModelSpec]:
    def named(name: str) -> ModelSpec:
        features = FeatureSpec(
            timezone="UTC",
            first_day="2013-01-01",
            sources=(RawSource(name="flights"),),
            views=("delays",),
            spine="examples",
        )
        gate = {"kind": "threshold", "metric": "auc", "at_least": 0.6}
        return ModelSpec(
            name=name,
            owner="ada",
            features=features,
            feature_service="delays",
            schedule="0 0 * * *",
            gates=(gate,),
        )

    return named
