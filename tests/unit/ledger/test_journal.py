"""Where a ledger lies: one wins each number, and what was written cannot be changed unnoticed."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from evergreen import ledger
from evergreen.errors import LedgerError, PromotionRefusedError
from evergreen.ledger import LedgerEntry, LedgerEvent, LedgerState, PromotionsFrozen, PromotionsUnfrozen
from evergreen.ledger.entries import hash_entry
from evergreen.ledger.journal import Journal, LedgerConflictError
from evergreen.promotion import rules
from evergreen.settings import settings
from support.ledger_events import MODEL, REIGN, judged

pytestmark = pytest.mark.unit

FROZEN = PromotionsFrozen(reason="stocktaking")


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a ledger may lie; nothing is there yet."""
    return str(tmp_path / "ledger") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/ledger"


def write(place: str, *acts: LedgerEvent) -> Journal:
    journal = Journal(MODEL, place)
    for act in acts:
        journal.append(journal.read(), "ada", act)
    return journal


def stored(place: str, number: int) -> str:
    return f"{place}/{MODEL}/{number:06d}.json"


def overwrite(path: str, change: Callable[[bytes], bytes]) -> None:
    files, name = fsspec.core.url_to_fs(path)
    files.pipe_file(name, change(files.cat_file(name)))


def test_what_is_written_is_read(place: str) -> None:
    assert Journal(MODEL, place).read().entries == ()
    write(place, *REIGN)
    state = Journal(MODEL, place).read()
    assert [entry.event for entry in state.entries] == list(REIGN)
    assert [entry.number for entry in state.entries] == [1, 2, 3, 4, 5, 6]
    assert state.champion == "3"
    before = ""
    for entry in state.entries:
        assert entry.previous_hash == before
        before = hash_entry(fsspec.open(stored(place, entry.number)).open().read())
    assert state.head_hash == before


def test_a_number_is_given_once(place: str) -> None:
    one, other = Journal(MODEL, place), Journal(MODEL, place)
    seen = other.read()
    first = one.append(one.read(), "ada", FROZEN)
    with pytest.raises(LedgerConflictError):
        other.append(seen, "grace", FROZEN)
    assert other.read().entries == (first,)


def test_what_cannot_follow_is_not_written(place: str) -> None:
    journal = write(place, judged(10, passed=False))
    with pytest.raises(LedgerError, match="was not barred"):
        journal.append(journal.read(), "ada", ledger.VersionReleased(version="1", reason="why not"))
    assert Journal(MODEL, place).read().head_number == 1


def test_time_does_not_run_backwards(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = write(place, FROZEN)
    ahead = journal.read().entries[0].recorded_at
    monkeypatch.setattr("evergreen.ledger.journal.utc_now", lambda: ahead.replace(year=2001))
    assert journal.append(journal.read(), "grace", PromotionsUnfrozen(reason="done")).recorded_at == ahead


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (lambda data: data.replace(b'"ada"', b'"eve"'), "entry 3 .*: entry 2 is not the one"),
        (lambda data: data + b" ", "entry 3 .*: entry 2 is not the one"),
        (lambda data: data[: len(data) // 2], "000002.json: cannot be read"),
        (lambda data: b"", "000002.json: cannot be read"),
        (lambda data: data.replace(b'"promoted"', b'"crowned"'), "000002.json: cannot be read"),
        (lambda data: data.replace(b'"flight_delay"', b'"coin"'), "000002.json: is about coin"),
        (lambda data: data.replace(b'"number": 2', b'"number": 7'), "entry 7 .*: it stands where entry 2"),
        (lambda data: data.replace(b'"verdict_entry": 1', b'"verdict_entry": 2'), "entry 2 .*: .*holds none"),
        (lambda data: json.dumps(json.loads(data) | {"eve": 1}).encode(), "000002.json: cannot be read: eve"),
    ],
)
def test_a_changed_entry_is_noticed(place: str, change: Callable[[bytes], bytes], because: str) -> None:
    write(place, *REIGN)
    overwrite(stored(place, 2), change)
    with pytest.raises(LedgerError, match=because):
        Journal(MODEL, place).read()


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_missing_entry_is_noticed(place: str, number: int) -> None:
    write(place, *REIGN)
    files, name = fsspec.core.url_to_fs(stored(place, number))
    files.rm(name)
    with pytest.raises(LedgerError, match=f"{number:06d}.json: is missing"):
        Journal(MODEL, place).read()


def test_two_entries_that_changed_places_are_noticed(place: str) -> None:
    write(place, judged(10), judged(11), judged(12))
    files, two = fsspec.core.url_to_fs(stored(place, 2))
    three = fsspec.core.url_to_fs(stored(place, 3))[1]
    one, other = files.cat_file(two), files.cat_file(three)
    files.pipe_file(two, other)
    files.pipe_file(three, one)
    with pytest.raises(LedgerError, match="stands where entry 2 should"):
        Journal(MODEL, place).read()


def test_a_process_that_has_seen_the_end_notices_when_it_changes(place: str) -> None:
    journal = write(place, *REIGN)
    overwrite(stored(place, 6), lambda data: data.replace(b'"ada"', b'"eve"'))
    with pytest.raises(LedgerError, match="000006.json: was changed"):
        journal.read()
    files, name = fsspec.core.url_to_fs(stored(place, 6))
    files.rm(name)
    with pytest.raises(LedgerError, match="ends with entry 5, and had 6"):
        journal.read()


def test_entries_that_are_known_are_not_read_again(place: str) -> None:
    journal = write(place, *REIGN)
    overwrite(stored(place, 2), lambda data: b"")
    assert journal.read().champion == "3"


def test_what_a_crash_left_is_not_an_entry(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(place, FROZEN)
    (tmp_path / MODEL / ".000002.json.0123").write_text("{half")
    (tmp_path / MODEL / "notes.txt").write_text("mine")
    assert Journal(MODEL, place).read().head_number == 1
    write(place, PromotionsUnfrozen(reason="done"))
    assert Journal(MODEL, place).read().head_number == 2


def test_nothing_is_left_beside_the_entries(tmp_path: Path) -> None:
    journal = write(str(tmp_path), FROZEN)
    stale = LedgerState()
    with pytest.raises(LedgerConflictError):
        journal.append(stale, "grace", FROZEN)
    assert os.listdir(tmp_path / MODEL) == ["000001.json"]


def test_a_link_that_was_made_and_reported_as_taken_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network file system does when the answer to the first request got lost."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert write(str(tmp_path), FROZEN).read().head_number == 1


def test_a_put_that_was_done_and_reported_as_taken_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = MemoryFileSystem.pipe_file

    def twice(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        pipe(self, path, value, mode=mode)
        pipe(self, path, value, mode=mode)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", twice)
    assert write(f"memory://{uuid.uuid4().hex}", FROZEN).read().head_number == 1


def test_a_store_without_conditional_writes_is_refused() -> None:
    with pytest.raises(LedgerError, match="cannot create a file on condition"):
        Journal(MODEL, "data:,ledger")


@pytest.fixture
def here(place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The settings name the place."""
    monkeypatch.setenv("EVERGREEN_LEDGER", place)
    settings.cache_clear()
    yield place
    monkeypatch.undo()
    settings.cache_clear()


def test_of_racing_writers_each_is_recorded_once(here: str) -> None:
    threads, each = 8, 5
    together = threading.Barrier(threads)

    def ask(thread: int) -> list[LedgerEntry]:
        together.wait()
        return [
            ledger.append_decision(MODEL, f"thread {thread}.{turn}", lambda state: judged(state.head_number + 1))
            for turn in range(each)
        ]

    with ThreadPoolExecutor(threads) as pool:
        told = [entry for entries in pool.map(ask, range(threads)) for entry in entries]
    entries = ledger.read_entries(MODEL)
    assert sorted(told, key=lambda entry: entry.number) == list(entries)
    # Each was decided on the entry right before it.
    assert [entry.event for entry in entries] == [judged(number) for number in range(1, threads * each + 1)]
    assert Journal(MODEL, here).read().entries == entries


def test_of_racing_wishes_one_is_granted(here: str) -> None:
    """Eight go back at once from the champion that each has seen: it is left once."""
    for act in REIGN:
        ledger.append_decision(MODEL, "ada", lambda _, act=act: act)
    together = threading.Barrier(8)

    def leave(_: int) -> LedgerEntry:
        together.wait()
        return ledger.append_decision(
            MODEL, "monitor", lambda s: rules.decide_rollback(s, None, "late", expected_champion="3")
        )

    with ThreadPoolExecutor(8) as pool:
        assert {entry.number for entry in pool.map(leave, range(8))} == {7}
    assert ledger.read_state(MODEL).champion == "2"


def test_what_a_decision_raises_goes_up_and_nothing_is_written(here: str) -> None:
    with pytest.raises(PromotionRefusedError, match="nothing to unfreeze"):
        ledger.append_decision(MODEL, "ada", lambda state: rules.decide_unfreeze(state, "warm"))
    assert ledger.read_entries(MODEL) == ()


def test_a_verdict_by_its_number(here: str) -> None:
    verdict = judged(10)
    for act in (verdict, FROZEN):
        ledger.append_decision(MODEL, "ada", lambda state, act=act: act)
    assert ledger.read_verdict_event(MODEL, 1) == verdict
    for number in (0, 2, 3):
        with pytest.raises(LedgerError, match=f"entry {number} in the ledger of {MODEL} holds no verdict"):
            ledger.read_verdict_event(MODEL, number)


def test_a_name_that_is_no_models_is_refused(here: str) -> None:
    with pytest.raises(LedgerError, match="'../coin' is no name of a model"):
        ledger.read_entries("../coin")
