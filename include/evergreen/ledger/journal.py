"""Where a ledger lies: one file per entry, numbered, written once by exactly one of those who try.

::

    <ledger>/flight_delay/000001.json
    <ledger>/flight_delay/000002.json      holds the SHA-256 of the bytes of 000001.json

On a file system an entry is written under another name, flushed, and linked to its number: the link is made
for one, and the file is whole when it is seen. On an object store it is a conditional put. Either way an
entry that was recorded is on the disk before the call comes back.

The chain of hashes shows every change, gap and half entry but those at the very end: whoever removes the last
entry, or writes it anew, leaves a shorter or another ledger that is whole. A process that has seen more says so.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from threading import Lock
from typing import Protocol

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from evergreen import storage
from evergreen.errors import LedgerError
from evergreen.ledger.entries import LedgerEntry, LedgerEvent, hash_entry, utc_now
from evergreen.ledger.state import EMPTY_STATE, LedgerState, apply_entry

_ENTRY_FILE_PATTERN = re.compile(r"(\d{6,})\.json")


class LedgerConflictError(Exception):
    """Somebody else has written the entry with this number: read what it says, and decide again."""


class Journal:
    """The entries of one model. Safe to share between threads; several processes have one each."""

    def __init__(self, model: str, ledger: str):
        """Args:
            model: its name.
            ledger: a folder or the URI of one; the model's entries lie in a folder of it.

        Raises:
            LedgerError: the store cannot create a file only if there is none, so writers would lose entries.
        """
        self._model = model
        self._uri = f"{ledger.rstrip('/')}/{model}"
        self._store = _open_store(self._uri)
        self._cached_state = EMPTY_STATE

    def read(self) -> LedgerState:
        """What all entries come to. Entries that this process knows are not read again, but for the last.

        Raises:
            LedgerError: an entry is missing, damaged, or not the one that the next was written after.
        """
        known = self._cached_state  # before looking: what is known now can only have grown when it is listed
        listed = {int(match[1]) for match in map(_ENTRY_FILE_PATTERN.fullmatch, self._store.list_names()) if match}
        last = max(listed, default=0)
        if last < known.head_number:
            raise LedgerError(f"{self._uri}: ends with entry {last}, and had {known.head_number}: {_FIX}")
        # By number, not by what was listed: a listing may miss what is written while it is made.
        first = max(known.head_number, 1)
        state = known
        try:
            stored = self._store.read([_entry_file_name(number) for number in range(first, last + 1)])
        except FileNotFoundError:
            missing = min(set(range(first, last + 1)) - listed, default=last)
            raise LedgerError(f"{self._entry_path(missing)}: is missing, and later entries are not: {_FIX}") from None
        for number, data in enumerate(stored, first):
            if number > known.head_number:
                state = apply_entry(state, self._parse_entry(number, data), hash_entry(data))
            elif hash_entry(data) != known.head_hash:
                raise LedgerError(f"{self._entry_path(number)}: was changed after it was written: {_FIX}")
        self._cached_state = state
        return state

    def append(self, state: LedgerState, actor: str, event: LedgerEvent) -> LedgerEntry:
        """Record `act`, decided on `state`, as the next entry.

        Raises:
            Lost: somebody else has written an entry since.
            LedgerError: the act cannot follow from the entries; nothing is written.
        """
        instant = utc_now()
        if state.entries:
            instant = max(instant, state.entries[-1].recorded_at)  # clocks of several machines differ
        entry = LedgerEntry(
            number=state.head_number + 1,
            model=self._model,
            previous_hash=state.head_hash,
            recorded_at=instant,
            actor=actor,
            event=event,
        )
        data = entry.to_bytes()
        grown = apply_entry(state, entry, hash_entry(data))
        if not self._store.create_if_absent(_entry_file_name(entry.number), data):
            raise LedgerConflictError(entry.number)
        self._cached_state = grown
        return entry

    def _parse_entry(self, number: int, data: bytes) -> LedgerEntry:
        try:
            entry = LedgerEntry.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = ".".join(str(part) for part in first["loc"]) or "the file"
            raise LedgerError(f"{self._entry_path(number)}: cannot be read: {what}: {first['msg']}: {_FIX}") from None
        if entry.model != self._model:
            raise LedgerError(f"{self._entry_path(number)}: is about {entry.model}: {_FIX}")
        return entry

    def _entry_path(self, number: int) -> str:
        return f"{self._uri}/{_entry_file_name(number)}"


_FIX = "restore it from a copy; until then nothing is promoted"


def _entry_file_name(number: int) -> str:
    return f"{number:06d}.json"


class _EntryStore(Protocol):
    def list_names(self) -> Sequence[str]: ...

    def read(self, names: Sequence[str]) -> list[bytes]: ...

    def create_if_absent(self, name: str, data: bytes) -> bool:
        """Whether this call has made the file, all of it. Never changes one that is there."""
        ...


def _open_store(uri: str) -> _EntryStore:
    # Stores remember what they listed, and deny what others have written since.
    files, path = url_to_fs(uri, use_listings_cache=False)
    if isinstance(files, LocalFileSystem):
        return _FolderStore(Path(path))
    write = getattr(type(files), "_pipe_file", None) or type(files).pipe_file
    if write is AbstractFileSystem.pipe_file or "mode" not in signature(write).parameters:
        raise LedgerError(
            f"{uri}: {type(files).__name__} cannot create a file on condition that there is none, so racing "
            "promotions would overwrite each other: use a folder, or an object store with conditional writes"
        )
    return _ObjectStore(files, path)


class _FolderStore:
    """A file system with hard links."""

    def __init__(self, folder: Path):
        self._folder = folder

    def list_names(self) -> Sequence[str]:
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            return ()

    def read(self, names: Sequence[str]) -> list[bytes]:
        return [(self._folder / name).read_bytes() for name in names]

    def create_if_absent(self, name: str, data: bytes) -> bool:
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            storage.fsync_path(self._folder.parent)
        target, scratch = self._folder / name, self._folder / f".{name}.{uuid.uuid4().hex}"
        try:
            scratch.write_bytes(data)
            storage.fsync_path(scratch)
            try:
                os.link(scratch, target)
            except FileExistsError:
                # A network file system may send a request again that was done, and report that it was.
                if not target.samefile(scratch):
                    return False
            storage.fsync_path(self._folder)
            return True
        finally:
            scratch.unlink(missing_ok=True)


_CREATE_LOCK = Lock()


class _ObjectStore:
    """An object store with conditional puts."""

    def __init__(self, filesystem: AbstractFileSystem, folder: str):
        self._filesystem, self._folder = filesystem, folder

    def list_names(self) -> Sequence[str]:
        try:
            return [name.rpartition("/")[2] for name in self._filesystem.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return ()

    def read(self, names: Sequence[str]) -> list[bytes]:
        if not names:
            return []
        paths = [f"{self._folder}/{name}" for name in names]
        contents = self._filesystem.cat(paths)  # many at once, where the store can
        return [contents[path] for path in paths]

    def create_if_absent(self, name: str, data: bytes) -> bool:
        with _CREATE_LOCK:  # fsspec's memory:// looks first and writes then: its threads must take turns
            return create_object_if_absent(self._filesystem, f"{self._folder}/{name}", data)


def create_object_if_absent(filesystem: AbstractFileSystem, path: str, data: bytes) -> bool:
    """Whether this call has put `data` at `path` of an object store, where there was nothing.

    What lies there decides, not how the store says no: S3 says that the object exists, MinIO only that a condition does
    not hold, and either may say that somebody else is writing just now. And a put that was done may have been sent
    again, and found itself.
    """
    try:
        filesystem.pipe_file(path, data, mode="create")
    except Exception:
        try:
            there = filesystem.cat_file(path)
        except FileNotFoundError:
            there = None
        if there is None:
            raise
        return bool(there == data)
    return True
