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
from evergreen.ledger.entries import Act, Entry, digest, now
from evergreen.ledger.state import EMPTY, State, after

_NAME = re.compile(r"(\d{6,})\.json")


class Lost(Exception):
    """Somebody else has written the entry with this number: read what it says, and decide again."""


class Journal:
    """The entries of one model. Safe to share between threads; several processes have one each."""

    def __init__(self, model: str, ledger: str):
        """
        Args:
            model: its name.
            ledger: a folder or the URI of one; the model's entries lie in a folder of it.

        Raises:
            LedgerError: the store cannot create a file only if there is none, so writers would lose entries.
        """
        self._model = model
        self._where = f"{ledger.rstrip('/')}/{model}"
        self._store = _store(self._where)
        self._known = EMPTY

    def read(self) -> State:
        """What all entries come to. Entries that this process knows are not read again, but for the last.

        Raises:
            LedgerError: an entry is missing, damaged, or not the one that the next was written after.
        """
        known = self._known  # before looking: what is known now can only have grown when it is listed
        listed = {int(match[1]) for match in map(_NAME.fullmatch, self._store.names()) if match}
        last = max(listed, default=0)
        if last < known.head:
            raise LedgerError(f"{self._where}: ends with entry {last}, and had {known.head}: {_WAY_OUT}")
        # By number, not by what was listed: a listing may miss what is written while it is made.
        first = max(known.head, 1)
        state = known
        try:
            stored = self._store.read([_name(number) for number in range(first, last + 1)])
        except FileNotFoundError:
            missing = min(set(range(first, last + 1)) - listed, default=last)
            raise LedgerError(
                f"{self._path(missing)}: is missing, and later entries are not: {_WAY_OUT}"
            ) from None
        for number, data in enumerate(stored, first):
            if number > known.head:
                state = after(state, self._entry(number, data), digest(data))
            elif digest(data) != known.head_hash:
                raise LedgerError(f"{self._path(number)}: was changed after it was written: {_WAY_OUT}")
        self._known = state
        return state

    def append(self, state: State, by: str, act: Act) -> Entry:
        """Record `act`, decided on `state`, as the next entry.

        Raises:
            Lost: somebody else has written an entry since.
            LedgerError: the act cannot follow from the entries; nothing is written.
        """
        instant = now()
        if state.entries:
            instant = max(instant, state.entries[-1].at)  # clocks of several machines differ
        entry = Entry(
            number=state.head + 1, model=self._model, before=state.head_hash, at=instant, by=by, act=act
        )
        data = entry.to_bytes()
        grown = after(state, entry, digest(data))
        if not self._store.create(_name(entry.number), data):
            raise Lost(entry.number)
        self._known = grown
        return entry

    def _entry(self, number: int, data: bytes) -> Entry:
        try:
            entry = Entry.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = ".".join(str(part) for part in first["loc"]) or "the file"
            raise LedgerError(
                f"{self._path(number)}: cannot be read: {what}: {first['msg']}: {_WAY_OUT}"
            ) from None
        if entry.model != self._model:
            raise LedgerError(f"{self._path(number)}: is about {entry.model}: {_WAY_OUT}")
        return entry

    def _path(self, number: int) -> str:
        return f"{self._where}/{_name(number)}"


_WAY_OUT = "restore it from a copy; until then nothing is promoted"


def _name(number: int) -> str:
    return f"{number:06d}.json"


class _Store(Protocol):
    def names(self) -> Sequence[str]: ...

    def read(self, names: Sequence[str]) -> list[bytes]: ...

    def create(self, name: str, data: bytes) -> bool:
        """Whether this call has made the file, all of it. Never changes one that is there."""
        ...


def _store(uri: str) -> _Store:
    # Stores remember what they listed, and deny what others have written since.
    files, path = url_to_fs(uri, use_listings_cache=False)
    if isinstance(files, LocalFileSystem):
        return _Folder(Path(path))
    write = getattr(type(files), "_pipe_file", None) or type(files).pipe_file
    if write is AbstractFileSystem.pipe_file or "mode" not in signature(write).parameters:
        raise LedgerError(
            f"{uri}: {type(files).__name__} cannot create a file on condition that there is none, so racing "
            "promotions would overwrite each other: use a folder, or an object store with conditional writes"
        )
    return _Bucket(files, path)


class _Folder:
    """A file system with hard links."""

    def __init__(self, folder: Path):
        self._folder = folder

    def names(self) -> Sequence[str]:
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            return ()

    def read(self, names: Sequence[str]) -> list[bytes]:
        return [(self._folder / name).read_bytes() for name in names]

    def create(self, name: str, data: bytes) -> bool:
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            storage.sync(self._folder.parent)
        target, scratch = self._folder / name, self._folder / f".{name}.{uuid.uuid4().hex}"
        try:
            scratch.write_bytes(data)
            storage.sync(scratch)
            try:
                os.link(scratch, target)
            except FileExistsError:
                # A network file system may send a request again that was done, and report that it was.
                if not target.samefile(scratch):
                    return False
            storage.sync(self._folder)
            return True
        finally:
            scratch.unlink(missing_ok=True)


_TURNS = Lock()


class _Bucket:
    """An object store with conditional puts."""

    def __init__(self, files: AbstractFileSystem, folder: str):
        self._files, self._folder = files, folder

    def names(self) -> Sequence[str]:
        try:
            return [name.rpartition("/")[2] for name in self._files.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return ()

    def read(self, names: Sequence[str]) -> list[bytes]:
        if not names:
            return []
        paths = [f"{self._folder}/{name}" for name in names]
        contents = self._files.cat(paths)  # many at once, where the store can
        return [contents[path] for path in paths]

    def create(self, name: str, data: bytes) -> bool:
        with _TURNS:  # fsspec's memory:// looks first and writes then: its threads must take turns
            return created(self._files, f"{self._folder}/{name}", data)


def created(files: AbstractFileSystem, path: str, data: bytes) -> bool:
    """Whether this call has put `data` at `path` of an object store, where there was nothing.

    What lies there decides, not how the store says no: S3 says that the object exists, MinIO only that a condition does
    not hold, and either may say that somebody else is writing just now. And a put that was done may have been sent
    again, and found itself.
    """
    try:
        files.pipe_file(path, data, mode="create")
    except Exception:
        try:
            there = files.cat_file(path)
        except FileNotFoundError:
            there = None
        if there is None:
            raise
        return bool(there == data)
    return True
