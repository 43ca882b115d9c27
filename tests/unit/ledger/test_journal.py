"""Storage of a ledger: one writer wins each number, and changes of entries are detected."""

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
from support.ledger_events import MODEL, THREE_CHAMPIONS, verdict_event

pytestmark = pytest.mark.unit

FROZEN = PromotionsFrozen(reason="stocktaking")


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty place for a ledger."""
    return str(tmp_path / "ledger") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/ledger"


def write(place: str, *events: LedgerEvent) -> Journal:
    journal = Journal(MODEL, place)
    for event in events:
        journal.append(journal.read(), "ada", event)
    return journal


def stored(place: str, number: int) -> str:
    return f"{place}/{MODEL}/{number // 100:04d}/{number:06d}.json"


def overwrite(path: str, change: Callable[[bytes], bytes]) -> None:
    files, name = fsspec.core.url_to_fs(path)
    files.pipe_file(name, change(files.cat_file(name)))


def test_read_returns_appended_entries(place: str) -> None:
    assert Journal(MODEL, place).read().entries == ()
    write(place, *THREE_CHAMPIONS)
    state = Journal(MODEL, place).read()
    assert [entry.event for entry in state.entries] == list(THREE_CHAMPIONS)
    assert [entry.number for entry in state.entries] == [1, 2, 3, 4, 5, 6]
    assert state.champion == "3"
    previous_hash = ""
    for entry in state.entries:
        assert entry.previous_hash == previous_hash
        previous_hash = hash_entry(fsspec.open(stored(place, entry.number)).open().read())
    assert state.head_hash == previous_hash


def test_append_creates_each_number_once(place: str) -> None:
    journal, stale_journal = Journal(MODEL, place), Journal(MODEL, place)
    stale_state = stale_journal.read()
    first = journal.append(journal.read(), "ada", FROZEN)
    with pytest.raises(LedgerConflictError):
        stale_journal.append(stale_state, "grace", FROZEN)
    assert stale_journal.read().entries == (first,)


def test_append_refuses_impossible_event(place: str) -> None:
    journal = write(place, verdict_event(10, passed=False))
    with pytest.raises(LedgerError, match="was not barred"):
        journal.append(journal.read(), "ada", ledger.VersionReleased(version="1", reason="why not"))
    assert Journal(MODEL, place).read().head_number == 1


def test_append_never_records_an_earlier_time(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = write(place, FROZEN)
    ahead = journal.read().entries[0].recorded_at
    monkeypatch.setattr("evergreen.ledger.journal.utc_now", lambda: ahead.replace(year=2001))
    assert journal.append(journal.read(), "grace", PromotionsUnfrozen(reason="done")).recorded_at == ahead


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.replace(b'"ada"', b'"eve"'), "entry 3 .*: entry 2 is not the entry"),
        (lambda data: data + b" ", "entry 3 .*: entry 2 is not the entry"),
        (lambda data: data[: len(data) // 2], "000002.json: cannot be read"),
        (lambda data: b"", "000002.json: cannot be read"),
        (lambda data: data.replace(b'"promoted"', b'"crowned"'), "000002.json: cannot be read"),
        (lambda data: data.replace(b'"flight_delay"', b'"coin"'), "000002.json: is about coin"),
        (lambda data: data.replace(b'"number": 2', b'"number": 7'), "entry 7 .*: it is in the place of entry 2"),
        (lambda data: data.replace(b'"verdict_entry": 1', b'"verdict_entry": 2'), "entry 2 .*: .*holds none"),
        (lambda data: json.dumps(json.loads(data) | {"eve": 1}).encode(), "000002.json: cannot be read: eve"),
    ],
)
def test_read_detects_changed_entry(place: str, change: Callable[[bytes], bytes], problem: str) -> None:
    write(place, *THREE_CHAMPIONS)
    overwrite(stored(place, 2), change)
    with pytest.raises(LedgerError, match=problem):
        Journal(MODEL, place).read()


@pytest.mark.parametrize("number", [1, 2, 5])
def test_read_detects_missing_entry(place: str, number: int) -> None:
    write(place, *THREE_CHAMPIONS)
    files, name = fsspec.core.url_to_fs(stored(place, number))
    files.rm(name)
    with pytest.raises(LedgerError, match=f"{number:06d}.json: is missing"):
        Journal(MODEL, place).read()


def test_read_detects_swapped_entries(place: str) -> None:
    write(place, verdict_event(10), verdict_event(11), verdict_event(12))
    files, two = fsspec.core.url_to_fs(stored(place, 2))
    three = fsspec.core.url_to_fs(stored(place, 3))[1]
    second, third = files.cat_file(two), files.cat_file(three)
    files.pipe_file(two, third)
    files.pipe_file(three, second)
    with pytest.raises(LedgerError, match="is in the place of entry 2"):
        Journal(MODEL, place).read()


def test_read_detects_change_of_known_last_entry(place: str) -> None:
    journal = write(place, *THREE_CHAMPIONS)
    overwrite(stored(place, 6), lambda data: data.replace(b'"ada"', b'"eve"'))
    with pytest.raises(LedgerError, match="000006.json: was changed"):
        journal.read()
    files, name = fsspec.core.url_to_fs(stored(place, 6))
    files.rm(name)
    with pytest.raises(LedgerError, match="ends with entry 5, and had 6"):
        journal.read()


def test_read_skips_known_entries(place: str) -> None:
    journal = write(place, *THREE_CHAMPIONS)
    overwrite(stored(place, 2), lambda data: b"")
    assert journal.read().champion == "3"


def test_read_ignores_other_files(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(place, FROZEN)
    (tmp_path / MODEL / "0000" / ".000002.json.0123").write_text("{half")
    (tmp_path / MODEL / "notes.txt").write_text("mine")
    assert Journal(MODEL, place).read().head_number == 1
    write(place, PromotionsUnfrozen(reason="done"))
    assert Journal(MODEL, place).read().head_number == 2


def test_append_leaves_no_scratch_file(tmp_path: Path) -> None:
    journal = write(str(tmp_path), FROZEN)
    stale = LedgerState()
    with pytest.raises(LedgerConflictError):
        journal.append(stale, "grace", FROZEN)
    assert os.listdir(tmp_path / MODEL / "0000") == ["000001.json"]


def test_append_accepts_own_link_reported_as_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network file system does when the response to the first request was lost."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert write(str(tmp_path), FROZEN).read().head_number == 1


def test_append_accepts_own_object_reported_as_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = MemoryFileSystem.pipe_file

    def twice(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        pipe(self, path, value, mode=mode)
        pipe(self, path, value, mode=mode)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", twice)
    assert write(f"memory://{uuid.uuid4().hex}", FROZEN).read().head_number == 1


def test_journal_refuses_store_without_conditional_writes() -> None:
    with pytest.raises(LedgerError, match="cannot create a file on condition"):
        Journal(MODEL, "data:,ledger")


@pytest.fixture
def configured_place(place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Configure the place as the ledger."""
    monkeypatch.setenv("EVERGREEN_LEDGER", place)
    settings.cache_clear()
    yield place
    monkeypatch.undo()
    settings.cache_clear()


def test_append_decision_records_every_racing_writer_once(configured_place: str) -> None:
    threads, turns = 8, 5
    barrier = threading.Barrier(threads)

    def append(thread: int) -> list[LedgerEntry]:
        barrier.wait()
        return [
            ledger.append_decision(MODEL, f"thread {thread}.{turn}", lambda state: verdict_event(state.head_number + 1))
            for turn in range(turns)
        ]

    with ThreadPoolExecutor(threads) as pool:
        results = [entry for entries in pool.map(append, range(threads)) for entry in entries]
    entries = ledger.read_state(MODEL).entries
    assert sorted(results, key=lambda entry: entry.number) == list(entries)
    # Each was decided on the state right before it.
    assert [entry.event for entry in entries] == [verdict_event(number) for number in range(1, threads * turns + 1)]
    assert Journal(MODEL, configured_place).read().entries == entries


def test_append_decision_records_one_of_racing_rollbacks(configured_place: str) -> None:
    """Eight threads roll back the same champion at once: it is rolled back once."""
    for event in THREE_CHAMPIONS:
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)
    barrier = threading.Barrier(8)

    def roll_back(_: int) -> LedgerEntry:
        barrier.wait()
        return ledger.append_decision(
            MODEL, "monitor", lambda s: rules.decide_rollback(s, None, "late", expected_champion="3")
        )

    with ThreadPoolExecutor(8) as pool:
        assert {entry.number for entry in pool.map(roll_back, range(8))} == {7}
    assert ledger.read_state(MODEL).champion == "2"


def test_append_decision_writes_nothing_on_error(configured_place: str) -> None:
    with pytest.raises(PromotionRefusedError, match="nothing to unfreeze"):
        ledger.append_decision(MODEL, "ada", lambda state: rules.decide_unfreeze(state, "warm"))
    assert ledger.read_state(MODEL).entries == ()


def test_read_verdict_event_by_entry_number(configured_place: str) -> None:
    verdict = verdict_event(10)
    for event in (verdict, FROZEN):
        ledger.append_decision(MODEL, "ada", lambda state, event=event: event)
    assert ledger.read_verdict_event(MODEL, 1) == verdict
    for number in (0, 2, 3):
        with pytest.raises(LedgerError, match=f"entry {number} in the ledger of {MODEL} holds no verdict"):
            ledger.read_verdict_event(MODEL, number)


def test_read_state_refuses_invalid_model_name(configured_place: str) -> None:
    with pytest.raises(LedgerError, match="'../coin' is not a model name"):
        ledger.read_state("../coin")
