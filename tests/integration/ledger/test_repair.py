"""MLflow's aliases follow the ledger, and are repaired from it. Real MLflow on SQLite."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from evergreen import ledger
from evergreen.errors import RegistryError
from evergreen.promotion import rules
from evergreen.registry import aliases, versions
from support.ledgers import Book, ledger_model, was_consistent

pytestmark = pytest.mark.integration


@pytest.fixture
def book(new_book: Callable[[], Book]) -> Book:
    return new_book()


def alias_statuses(repair: Iterable[aliases.AliasStatus]) -> dict[str, tuple[str, str | None, str | None]]:
    return {alias.alias: (alias.status, alias.actual_version, alias.expected_version) for alias in repair}


def test_sync_aliases_follows_every_change(book: Book) -> None:
    first, second = book.judge(10), None
    book.promote(first)
    assert book.aliases == {"champion": "1"}
    second = book.judge(20)
    book.promote(second)
    assert book.aliases == {"champion": "2", "previous": "1"}
    third = book.judge(21)
    book.promote(third, cooldown_days=7)
    assert book.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
    ledger.append_decision(book.model, "ada", lambda state: rules.decide_rollback(state, None, "late"))
    aliases.sync_aliases(book.model)
    assert book.aliases == {"champion": "1", "previous": "2", "challenger": "3"}
    book.promote(book.judge(30))
    assert book.aliases == {"champion": "4", "previous": "1"}
    assert was_consistent(aliases.repair_aliases(book.model))


def test_get_champion_version_follows_the_ledger(book: Book) -> None:
    model = ledger_model(book.model)
    assert versions.get_champion_version(model) is None
    book.promote(book.judge(10))
    book.client.set_registered_model_alias(book.model, "champion", book.register())
    champion = versions.get_champion_version(model)
    assert champion is not None
    assert str(champion.version) == "1"


def test_repair_aliases_after_crash(book: Book) -> None:
    book.record(book.judge(10))
    repair = aliases.repair_aliases(book.model)
    assert alias_statuses(repair)["champion"] == ("missing", None, "1")
    assert book.aliases == book.expected_aliases == {"champion": "1"}
    book.record(book.judge(20))
    book.record(book.judge(30))
    repair = aliases.repair_aliases(book.model)
    assert alias_statuses(repair) == {
        "champion": ("stale", "1", "3"),
        "previous": ("missing", None, "2"),
        "challenger": ("consistent", None, None),
    }
    assert not was_consistent(repair)
    assert repair[0].message == (
        "champion was version 1, which was correct until entry 6; an update was interrupted, or the alias was moved by "
        "hand: set to version 3 (entry 9)"
    )
    assert book.aliases == book.expected_aliases == {"champion": "3", "previous": "2"}
    assert was_consistent(aliases.repair_aliases(book.model))


def test_repair_aliases_moved_by_hand(book: Book) -> None:
    book.promote(book.judge(10))
    other_version = book.register()
    for alias in ("champion", "challenger"):
        book.client.set_registered_model_alias(book.model, alias, other_version)
    repair = aliases.repair_aliases(book.model)
    assert alias_statuses(repair) == {
        "champion": ("moved_by_hand", "2", "1"),
        "previous": ("consistent", None, None),
        "challenger": ("moved_by_hand", "2", None),
    }
    assert repair[0].message == ("champion was version 2, moved by hand outside the ledger: set to version 1 (entry 3)")
    assert repair[2].message == "challenger was version 2, moved by hand outside the ledger: deleted"
    assert book.aliases == {"champion": "1"}


def test_repair_aliases_deleted_by_hand(book: Book) -> None:
    book.promote(book.judge(10))
    book.promote(book.judge(20))
    book.client.delete_registered_model_alias(book.model, "champion")
    repair = aliases.repair_aliases(book.model)
    assert alias_statuses(repair)["champion"] == ("missing", None, "2")
    assert repair[0].message == (
        "champion was missing, after an interruption or a manual deletion: set to version 2 (entry 6)"
    )
    assert book.aliases == {"champion": "2", "previous": "1"}


def test_repair_aliases_keeps_alias_older_than_ledger(book: Book) -> None:
    book.client.set_registered_model_alias(book.model, "champion", book.register())
    for _ in range(2):
        repair = aliases.repair_aliases(book.model)
        assert alias_statuses(repair)["champion"] == ("moved_by_hand", "1", None)
        assert "the ledger has no promotion: left as it is" in repair[0].message
        assert book.aliases == {"champion": "1"}
        book.judge(10, passed=False)  # nor is it touched when all that the ledger knows is a verdict
    book.promote(book.judge(10))
    assert book.aliases == book.expected_aliases == {"champion": "4"}


def test_repair_aliases_ignores_other_aliases(book: Book) -> None:
    book.promote(book.judge(10))
    book.client.set_registered_model_alias(book.model, "canary", "1")
    aliases.repair_aliases(book.model)
    assert book.client.get_registered_model(book.model).aliases["canary"] is not None


def test_deleted_champion_version_is_reported(book: Book) -> None:
    book.record(book.judge(10))
    book.client.delete_model_version(book.model, "1")
    for read in (
        aliases.sync_aliases,
        aliases.repair_aliases,
        lambda name: versions.get_champion_version(ledger_model(name)),
    ):
        with pytest.raises(RegistryError, match=r"champion of \w+ is version 1 by the ledger, but MLflow has no"):
            read(book.model)


def test_repair_aliases_reports_unknown_model(book: Book) -> None:
    book.record(book.judge(10))
    book.client.delete_registered_model(book.model)
    with pytest.raises(RegistryError, match="is not the registry that the ledger is about"):
        aliases.repair_aliases(book.model)


def test_sync_aliases_concurrently(book: Book) -> None:
    """MLflow refuses all but one of several concurrent requests that create an alias."""
    book.record(book.judge(10))
    book.record(book.judge(20))
    together = threading.Barrier(6)

    def follow(_: int) -> int:
        together.wait()
        return aliases.sync_aliases(book.model).head_number

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(follow, range(6))) == {6}
    assert book.aliases == book.expected_aliases


def test_repair_aliases_during_promotions(book: Book) -> None:
    """A repair neither reports concurrent promotions as manual changes nor reverts them."""
    candidates = []
    stop = threading.Event()

    def repair() -> list[str]:
        statuses = []
        while not stop.is_set():
            statuses += [alias.status for alias in aliases.repair_aliases(book.model)]
        return statuses

    with ThreadPoolExecutor(2) as pool:
        repairs = [pool.submit(repair) for _ in range(2)]
        try:
            for as_of in range(10, 25):
                candidates.append(book.judge(as_of))
                book.promote(candidates[-1])
        finally:
            stop.set()
        statuses = {status for future in repairs for status in future.result()}
    assert statuses <= {"consistent", "stale", "missing"}
    assert book.aliases == book.expected_aliases == {"champion": "15", "previous": "14"}
