"""A ledger opens from a snapshot that its entries name, and never from one that they do not."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from evergreen import ledger, storage
from evergreen.errors import LedgerError
from evergreen.ledger import LedgerEntry, LedgerEvent, LedgerState, PromotionsFrozen, PromotionsUnfrozen, journal
from evergreen.ledger.entries import SnapshotReference, hash_entry
from evergreen.ledger.journal import Journal, LedgerConflictError
from evergreen.ledger.snapshots import write_snapshot
from evergreen.ledger.state import apply_entry
from support.ledger_events import (
    MODEL,
    build_entries,
    build_state,
    content,
    deferral,
    loss,
    promotion,
    registration,
    release,
    rollback,
    verdict_event,
)
from support.ledger_events import THREE_CHAMPIONS as CHAMPIONS

pytestmark = pytest.mark.unit

PAGE = 4
FROZEN, UNFROZEN = PromotionsFrozen(reason="stocktaking"), PromotionsUnfrozen(reason="done")
LIFE: tuple[LedgerEvent, ...] = (
    *CHAMPIONS,
    verdict_event(40, "3", level=0.02, passed=False),
    rollback("2", "3"),
    FROZEN,
    verdict_event(41, "2", level=0.01),
    deferral("5", 41, 10),
    UNFROZEN,
    release("3"),
    verdict_event(42, "2", level=0.005),
    promotion("6", 42, 14, "2"),
    rollback("3", "6"),
    verdict_event(50, "3"),
    deferral("7", 50, 17),
    FROZEN,
    registration("7", 17),
    verdict_event(55, "3"),
    registration("3", 5, "another"),
    loss("3", "2"),
    registration("4", 5, "a third"),
    loss("2", None),
)


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("journal", "snapshots"):
        monkeypatch.setattr(f"evergreen.ledger.{module}.PAGE_LENGTH", PAGE)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the name of each file that is read."""
    names: list[str] = []
    read = storage.read_files

    def read_files(files: Sequence[UPath]) -> list[bytes]:
        names.extend(f"{file.parent.name}/{file.name}" for file in files)
        return read(files)

    monkeypatch.setattr(storage, "read_files", read_files)
    return names


def write(place: str, events: Sequence[LedgerEvent]) -> LedgerState:
    writer = Journal(MODEL, place)
    for event in events:
        writer.append(writer.read(), "ada", event)
    return writer.read()


def page_file(place: str, page: int, name: str = "snapshot.json") -> Path:
    return Path(place, MODEL, f"{page:04d}", name)


def rewrite_from(place: str, number: int, change: Callable[[LedgerEntry], LedgerEntry]) -> None:
    """Change an entry, and each after it, so that the chain of hashes holds."""
    previous_hash = None
    while (file := page_file(place, number // PAGE, f"{number:06d}.json")).exists():
        entry = LedgerEntry.model_validate_json(file.read_bytes())
        entry = entry.model_copy(update={"previous_hash": previous_hash}) if previous_hash else change(entry)
        file.write_bytes(entry.to_bytes())
        previous_hash, number = hash_entry(entry.to_bytes()), number + 1


@pytest.mark.parametrize("length", range(len(LIFE) + 1))
def test_state_from_snapshots_equals_replay(place: str, length: int) -> None:
    written = write(place, LIFE[:length])
    opened = Journal(MODEL, place).read()
    assert opened == written == Journal(MODEL, place).verify()
    assert opened.entries == tuple(written.entries)
    assert [entry.event for entry in opened.entries] == list(LIFE[:length])
    # Snapshots aside, as the pure functions have it.
    expected = build_state(*LIFE[:length])
    assert (opened.tenures, opened.comparisons, opened.barred_versions, opened.challenger, opened.is_frozen) == (
        expected.tenures,
        expected.comparisons,
        expected.barred_versions,
        expected.challenger,
        expected.is_frozen,
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["judge", "promote", "rollback", "release", "freeze"]), max_size=60))
def test_snapshots_of_any_sequence(kinds: list[str]) -> None:
    place = f"memory://{uuid.uuid4().hex}"
    writer = Journal(MODEL, place)
    for n, kind in enumerate(kinds, 1):
        state = writer.read()
        events: dict[str, LedgerEvent | None] = {
            "judge": verdict_event(
                n, state.champion, level=0.1 / n, passed=n % 3 > 0, champion_content=state.champion_content
            ),
            "promote": promotion(str(n), n, state.head_number or 1, state.champion),
            "rollback": rollback(state.previous_champion or "0", state.champion or "0"),
            "release": release(min(state.barred_versions, default="0")),
            "freeze": UNFROZEN if state.is_frozen else FROZEN,
        }
        try:
            writer.append(state, "ada", events[kind])
        except LedgerError:
            continue  # what cannot follow is not written
    assert Journal(MODEL, place).read() == writer.read() == Journal(MODEL, place).verify()


def test_open_reads_last_page_and_few_snapshots(place: str, read_names: list[str]) -> None:
    write(place, [verdict_event(n) for n in range(1, 15 * PAGE + 2)])
    read_names.clear()
    assert Journal(MODEL, place).read().head_number == 15 * PAGE + 1
    assert {name for name in read_names if "snapshot" in name} == {
        f"{page:04d}/snapshot.json" for page in (0b1111, 0b1110, 0b1100, 0b1000)
    }
    assert {int(name[5:11]) for name in read_names if "snapshot" not in name} == {59, 60, 61}


def test_known_state_catches_up_from_snapshot(place: str, read_names: list[str]) -> None:
    reader = Journal(MODEL, place)
    write(place, LIFE[:2])
    reader.read()
    write(place, LIFE[2:])
    read_names.clear()
    assert reader.read() == Journal(MODEL, place).verify()
    assert "0000/000003.json" not in read_names[: read_names.index("0004/snapshot.json") + 1]


def test_known_state_that_snapshot_contradicts_is_reported(place: str) -> None:
    reader = Journal(MODEL, place)
    write(place, LIFE[:2])
    reader.read()
    for page in range(5):
        for file in page_file(place, page).parent.glob("*"):
            file.unlink()
    write(place, [FROZEN, UNFROZEN] * 9)
    with pytest.raises(LedgerError, match="000002.json: was changed"):
        reader.read()


@pytest.mark.parametrize("page", [2, 3, 4])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(file.read_bytes().replace(b'"rest":{"', b'"rest":{"is_frozen":true,"')),
        lambda file: file.write_bytes(page_file(str(file.parents[2]), 1).read_bytes()),
    ],
    ids=["missing", "empty", "torn", "forged", "another's"],
)
def test_damaged_snapshot_is_replayed_and_written_again(place: str, damage: Callable[[Path], None], page: int) -> None:
    expected = write(place, LIFE)
    content = page_file(place, page).read_bytes()
    damage(page_file(place, page))
    assert Journal(MODEL, place).read() == expected
    assert Journal(MODEL, place).verify() == expected
    assert page_file(place, page).read_bytes() == content


def test_reader_without_right_to_write_opens(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write(place, LIFE)
    for page in range(1, 5):
        page_file(place, page).unlink()

    def refuse(*_: object) -> bool:
        raise PermissionError("this user may only read")

    monkeypatch.setattr(storage, "create_if_absent", refuse)
    assert Journal(MODEL, place).read() == expected
    assert not page_file(place, 1).exists()


def test_append_survives_failure_to_store_snapshot(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.create_if_absent

    def fail(file: UPath, data: bytes) -> bool:
        if file.name == "snapshot.json":
            raise OSError("the disk is full")
        return create(file, data)

    monkeypatch.setattr(storage, "create_if_absent", fail)
    expected = write(place, LIFE)
    assert not page_file(place, 1).exists()
    assert Journal(MODEL, place).read() == expected


class Killed(BaseException):
    """What a kill looks like to the code that it interrupts."""


@pytest.mark.parametrize("completes_write", [False, True])
def test_kill_at_any_write_of_a_page_leaves_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, completes_write: bool
) -> None:
    for fatal_write in range(1, 100):
        place = str(tmp_path / str(fatal_write))
        earlier = write(place, LIFE[: 2 * PAGE - 1])
        writes = 0

        def guard(function: Callable[..., object], fatal_write: int = fatal_write) -> Callable[..., object]:
            def guarded(*arguments: object, **options: object) -> object:
                nonlocal writes
                writes += 1
                if writes == fatal_write and not completes_write:
                    raise Killed
                result = function(*arguments, **options)
                if writes == fatal_write:
                    raise Killed
                return result

            return guarded

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "mkdir"), (Path, "write_bytes"), (os, "fsync"), (os, "link"), (os, "replace")):
                patch.setattr(owner, name, guard(getattr(owner, name)))
            try:
                Journal(MODEL, place).append(earlier, "ada", LIFE[2 * PAGE - 1])
                killed = False
            except Killed:
                killed = True
        state = Journal(MODEL, place).read()
        assert state.head_number - earlier.head_number in ((0, 1) if killed else (1,))
        rest = write(place, LIFE[state.head_number :])
        assert Journal(MODEL, place).read() == rest == Journal(MODEL, place).verify()
        assert page_file(place, 2).exists()
        if not killed:
            break
    assert fatal_write > 10


def test_entry_that_names_another_state_is_refused(place: str) -> None:
    """Also by a chain of hashes that holds: whoever replays notices it."""
    write(place, LIFE)
    reference = SnapshotReference(sha256="0" * 64)
    rewrite_from(place, 2 * PAGE, lambda entry: entry.model_copy(update={"snapshot": reference}))
    with pytest.raises(LedgerError, match="000008.json: names another state than the entries before it add up to"):
        Journal(MODEL, place).verify()
    rewrite_from(place, 2 * PAGE, lambda entry: entry.model_copy(update={"snapshot": None}))
    with pytest.raises(LedgerError, match="000008.json: names another state"):
        Journal(MODEL, place).verify()


def test_changed_entry_below_snapshot_is_named_on_use(place: str) -> None:
    write(place, LIFE[:19])
    file = page_file(place, 0, "000002.json")
    file.write_bytes(file.read_bytes().replace(b'"ada"', b'"eve"'))
    state = Journal(MODEL, place).read()
    assert state.champion == "3"
    with pytest.raises(LedgerError, match="000002.json: was changed"):
        state.entries[1]
    with pytest.raises(LedgerError, match="entry 3 .*: entry 2 is not the entry"):
        Journal(MODEL, place).verify()
    file.unlink()
    with pytest.raises(LedgerError, match="000002.json: is missing"):
        list(Journal(MODEL, place).read().entries)


def test_snapshots_of_another_format_are_not_used(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade: the first page of the new format is reached by a replay, later ones are not."""
    modules = [f"evergreen.ledger.{name}.SNAPSHOT_FORMAT" for name in ("journal", "snapshots", "history")]
    write(place, LIFE[:9])
    for name in modules:
        monkeypatch.setattr(name, 2)
    monkeypatch.setattr(SnapshotReference.model_fields["format"], "default", 2)
    SnapshotReference.model_rebuild(force=True)
    try:
        older = page_file(place, 2).read_bytes()
        expected = write(place, LIFE[9:])
        assert Journal(MODEL, place).read() == expected == Journal(MODEL, place).verify()
        assert b'"page":4,"since":0' in page_file(place, 4).read_bytes()
        assert page_file(place, 2).read_bytes() == older
    finally:
        monkeypatch.undo()
        SnapshotReference.model_rebuild(force=True)


def test_snapshot_bytes_are_those_of_the_format() -> None:
    """Where this fails, raise SNAPSHOT_FORMAT: ledgers name hashes of the bytes as they were."""
    state = LedgerState()
    for entry in build_entries([verdict_event(10), promotion("1", 10, 1), verdict_event(20, "1", level=0.02)]):
        chained = entry.model_copy(update={"previous_hash": f"hash {entry.number - 1}" if state.entries else ""})
        state = apply_entry(state, chained, f"hash {entry.number}")
    assert write_snapshot(state).decode() == (
        '{"page":1,"since":0,"since_sha256":"","index":['
        '["hash 1","judged",{"candidate_fingerprint":"candidate of day"},null,null,null],'
        '["hash 2","promoted",{"version":"1","verdict_entry":1},null,null,null],'
        '["hash 3","judged",{"candidate_fingerprint":"candidate of day"},'
        '{"days":["2013-01-14","2013-01-21"],"spending":[["auc",0.02,true]],"promoted":true,"look_ends":[],'
        '"is_decided":true,"day_correlations":[]},null,null]],'
        f'"tenures":[{{"version":"1","as_of":"2013-01-11","entry_number":2,"content":"{content(10)}",'
        '"labels_until":"2013-01-04"}],"registrations":[],'
        '"rest":{"last_promoted_as_of":"2013-01-11","challenger_version":null,"challenger_content":null,'
        '"challenger_as_of":null,"challenger_verdict":null,"open_comparison":null,"barred_contents":{},"suspect_contents":{},"lost_contents":[],'
        '"closed_verdicts":[1],"vacant_since":null,"is_frozen":false,"accepted_change":null}}\n'
    )


def test_racing_writers_cross_pages(place: str) -> None:
    journals = [Journal(MODEL, place) for _ in range(4)]

    def append(writer: Journal) -> None:
        for n in range(10):
            while True:
                try:
                    writer.append(writer.read(), "ada", verdict_event(n + 1))
                    break
                except LedgerConflictError:
                    continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, journals))
    states = [writer.read() for writer in journals]
    assert states[0].head_number == 40
    assert all(state == Journal(MODEL, place).verify() for state in states)


def test_empty_page_of_a_killed_writer_is_passed_over(place: str) -> None:
    expected = write(place, LIFE[: PAGE - 1])
    page_file(place, 1).parent.mkdir()
    assert Journal(MODEL, place).read() == expected
    assert write(place, LIFE[PAGE - 1 : PAGE]).head_number == PAGE


def test_find_last_compares_whole_values(place: str) -> None:
    """The index holds the first characters only."""
    names = [f"{'candidate ' * 3}{n}" for n in range(3)]
    state = write(
        place, [verdict_event(n + 1).model_copy(update={"candidate_fingerprint": name}) for n, name in enumerate(names)]
    )
    entries = [state.entries.find_last(ledger.VerdictRecorded, candidate_fingerprint=name) for name in names]
    assert [entry and entry.number for entry in entries] == [1, 2, 3]
    assert state.entries.find_last(ledger.VerdictRecorded, candidate_fingerprint=names[0][:-1]) is None
    assert state.entries.find_last(ledger.VersionPromoted, version="1") is None


def test_archive_keeps_few_entries_in_memory(place: str) -> None:
    state = write(place, [verdict_event(n) for n in range(1, 450)])
    archive = state.entries._archive
    assert len(archive._entries) <= journal._CACHED_ENTRIES
    assert sum(1 for _ in state.entries) == 449
    assert len(archive._entries) <= journal._CACHED_ENTRIES
