"""Storage of a ledger: one file per entry, numbered; of racing writers exactly one creates each.

::

    <ledger>/flight_delay/0000/000001.json
    <ledger>/flight_delay/0000/000002.json     holds the SHA-256 of the bytes of 000001.json
    <ledger>/flight_delay/0001/000100.json     holds that of snapshot.json too
    <ledger>/flight_delay/0001/snapshot.json   the state before entry 100 (`evergreen.ledger.snapshots`)

An entry is durable before `Journal.append` returns (`storage.create_if_absent`). A snapshot may be missing: whoever has
replayed the entries before it writes it.

The chain of hashes shows every change, gap and partial entry except at the end: whoever removes or rewrites the last
entry leaves a valid ledger. A process that has read more entries reports the loss, and so does one that finds a later
head in the registry (`evergreen.registry.anchors`). What a snapshot covers is not read again: `Journal.verify` does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock

from pydantic import ValidationError

from evergreen import storage
from evergreen.errors import LedgerError, validation_problem
from evergreen.ledger.entries import SNAPSHOT_FORMAT, LedgerEntry, LedgerEvent, hash_entry, utc_now
from evergreen.ledger.history import EntryArchive, EntryHistory
from evergreen.ledger.snapshots import PAGE_LENGTH, needs_snapshot, page_of, refer_to, restore_state, write_snapshot
from evergreen.ledger.state import LedgerState, apply_entry
from evergreen.storage import UPath

_ENTRY_FILE_PATTERN = re.compile(r"(\d{6,})\.json")
_PAGE_PATTERN = re.compile(r"\d{4,}")
_SNAPSHOT_FILE = "snapshot.json"
_CACHED_ENTRIES = 2 * PAGE_LENGTH
_FIX = "restore it from a copy; until then nothing is promoted"

log = logging.getLogger(__name__)


class LedgerConflictError(Exception):
    """Another writer has created the entry with this number: read it, and decide again."""


class Journal:
    """The entries of one model. Threads may share a journal; every process has its own."""

    def __init__(self, model: str, ledger: str):
        """Open the journal of a model in a subfolder of `ledger`, a path or URI.

        Raises:
            LedgerError: the store cannot create a file on condition that there is none, so writers would lose entries.
        """
        self._files = _EntryFiles(model, storage.storage_path(f"{ledger.rstrip('/')}/{model}"))
        self._folder = self._files.folder
        self._cached_state = self._empty_state()
        self._stored_snapshots: set[int] = set()  # pages
        if not storage.supports_create_if_absent(self._folder):
            raise LedgerError(
                f"{self._folder}: {type(self._folder.fs).__name__} cannot create a file on condition that there is "
                "none, so racing promotions would overwrite each other: use a folder, or an object store with "
                "conditional writes"
            )

    def read(self) -> LedgerState:
        """Return the state after all entries. Known entries are not read again, except for the last one.

        Raises:
            LedgerError: an entry is missing, damaged, or does not follow from the entries before it.
        """
        cached = self._cached_state  # before the listing, which can only show more
        last = self._last_number()
        if last < cached.head_number:
            raise LedgerError(f"{self._folder}: ends with entry {last}, and had {cached.head_number}: {_FIX}")
        earlier = cached
        if last - cached.head_number > PAGE_LENGTH:
            earlier = self._restore_newest(page_of(last), cached)
        self._cached_state = state = self._replay(earlier, last)
        return state

    def verify(self) -> LedgerState:
        """Replay every entry, without snapshots, and return the state after all; missing snapshots are written.

        Raises:
            LedgerError: as `read`, also for entries that a snapshot covers.
        """
        self._stored_snapshots.clear()
        state = self._replay(self._empty_state(), self._last_number())
        self._cached_state = max(self._cached_state, state, key=lambda state: state.head_number)
        return state

    def append(self, state: LedgerState, actor: str, event: LedgerEvent) -> LedgerEntry:
        """Store `event`, decided on `state`, as the next entry.

        Raises:
            LedgerConflictError: another writer has added an entry since `state` was read.
            LedgerError: the event cannot follow from the entries; nothing is written.
        """
        instant = utc_now()
        if state.entries:
            instant = max(instant, state.entries[-1].recorded_at)  # clocks of several machines differ
        number = state.head_number + 1
        snapshot = write_snapshot(state) if needs_snapshot(number) else None
        entry = LedgerEntry(
            number=number,
            model=self._files.model,
            previous_hash=state.head_hash,
            recorded_at=instant,
            actor=actor,
            snapshot=snapshot and refer_to(snapshot),
            event=event,
        )
        data = entry.to_bytes()
        new_state = apply_entry(state, entry, hash_entry(data))
        if not storage.create_if_absent(self._files.path(number), data):
            raise LedgerConflictError(number)
        if snapshot:
            self._store_snapshot(page_of(number), snapshot)
        self._cached_state = new_state
        return entry

    def _empty_state(self) -> LedgerState:
        return LedgerState(entries=EntryHistory(archive=self._files))

    def _last_number(self) -> int:
        """Return the number of the last entry, 0 without entries."""
        pages = sorted(filter(_PAGE_PATTERN.fullmatch, storage.list_names(self._folder)), key=int)
        for page in reversed(pages):  # the last is empty if its writer was killed
            matches = map(_ENTRY_FILE_PATTERN.fullmatch, storage.list_names(self._folder / page))
            if numbers := [int(match[1]) for match in matches if match]:
                return max(numbers)
        return 0

    def _replay(self, state: LedgerState, last: int) -> LedgerState:
        """Return the state after entry `last`. The last entry of `state` is compared with what is stored."""
        # By number, not as listed: a listing may miss files that are written during it.
        number = max(state.head_number, 1)
        while number <= last:
            end = min((page_of(number) + 1) * PAGE_LENGTH, last + 1)
            for data in self._files.read_bytes(range(number, end)):
                if number > state.head_number:
                    state = self._apply(state, number, data)
                elif hash_entry(data) != state.head_hash:
                    raise LedgerError(f"{self._files.path(number)}: was changed after it was written: {_FIX}")
                number += 1
        return state

    def _apply(self, state: LedgerState, number: int, data: bytes) -> LedgerState:
        entry = self._files.parse(number, data)
        following = apply_entry(state, entry, hash_entry(data))
        page = page_of(number)
        if needs_snapshot(number) and page not in self._stored_snapshots:
            snapshot = write_snapshot(state)
            if entry.snapshot is None or entry.snapshot.format == SNAPSHOT_FORMAT:
                if entry.snapshot != refer_to(snapshot):
                    raise LedgerError(
                        f"{self._files.path(number)}: names another state than the entries before it add up to: {_FIX}"
                    )
                self._store_snapshot(page, snapshot)
        return following

    def _restore_newest(self, page: int, earlier: LedgerState) -> LedgerState:
        """Return the state at the start of the newest page that has its snapshots; `earlier` if none after it has."""
        for candidate in range(page, page_of(earlier.head_number), -1):
            number = candidate * PAGE_LENGTH
            if self._read_snapshot(candidate) is None:
                continue
            [data] = self._files.read_bytes(range(number, number + 1))
            state = restore_state(self._files.parse(number, data), self._read_snapshot, self._files)
            if state is None:
                log.warning(
                    "%s is not the snapshot that entry %s names: not used", self._snapshot_file(candidate), number
                )
                continue
            if earlier.entries and state.entries.records[earlier.head_number - 1].hash != earlier.head_hash:
                path = self._files.path(earlier.head_number)
                raise LedgerError(f"{path}: was changed after it was written: {_FIX}")
            self._stored_snapshots.add(candidate)
            return state
        return earlier

    def _snapshot_file(self, page: int) -> UPath:
        return self._folder / f"{page:04d}" / _SNAPSHOT_FILE

    def _read_snapshot(self, page: int) -> bytes | None:
        try:
            return storage.read_files([self._snapshot_file(page)])[0]
        except FileNotFoundError:
            return None

    def _store_snapshot(self, page: int, data: bytes) -> None:
        """Write a snapshot, unless it is stored. A reader may lack the right to, and needs none."""
        file = self._snapshot_file(page)
        with suppress(OSError):
            if not storage.create_if_absent(file, data) and self._read_snapshot(page) != data:
                storage.put(file, data)
        self._stored_snapshots.add(page)


class _EntryFiles(EntryArchive):
    """The files of the entries; the latest entries that were used are kept in memory."""

    def __init__(self, model: str, folder: UPath):
        super().__init__()
        self.model, self.folder, self._lock = model, folder, Lock()

    def path(self, number: int) -> UPath:
        return self.folder / f"{page_of(number):04d}" / f"{number:06d}.json"

    def add(self, entry: LedgerEntry, entry_hash: str) -> None:
        with self._lock:
            self._entries[entry_hash] = entry
            while len(self._entries) > _CACHED_ENTRIES:
                del self._entries[next(iter(self._entries))]

    def read(self, hashes: Mapping[int, str]) -> list[LedgerEntry]:
        with self._lock:
            cached = {number: self._entries.get(entry_hash) for number, entry_hash in hashes.items()}
        missing = [number for number, entry in cached.items() if entry is None]
        for number, data in zip(missing, self.read_bytes(missing), strict=True):
            if hash_entry(data) != hashes[number]:
                raise LedgerError(f"{self.path(number)}: was changed after it was written: {_FIX}")
            cached[number] = self.parse(number, data)
        return [entry for entry in cached.values() if entry]

    def read_bytes(self, numbers: Sequence[int]) -> list[bytes]:
        paths = [self.path(number) for number in numbers]
        try:
            return storage.read_files(paths)
        except FileNotFoundError:
            missing = next((path for path in paths if not path.exists()), paths[-1])
            raise LedgerError(f"{missing}: is missing, and later entries are not: {_FIX}") from None

    def parse(self, number: int, data: bytes) -> LedgerEntry:
        try:
            entry = LedgerEntry.model_validate_json(data)
        except ValidationError as error:
            problem = validation_problem(error)
            raise LedgerError(f"{self.path(number)}: cannot be read: {problem}: {_FIX}") from None
        if entry.model != self.model:
            raise LedgerError(f"{self.path(number)}: is about {entry.model}: {_FIX}")
        return entry
