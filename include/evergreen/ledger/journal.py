"""Storage of a ledger: one file per entry, numbered; of racing writers exactly one creates each.

::

    <ledger>/flight_delay/000001.json
    <ledger>/flight_delay/000002.json      holds the SHA-256 of the bytes of 000001.json

An entry is durable before `Journal.append` returns (`storage.create_if_absent`).

The chain of hashes shows every change, gap and partial entry except at the end: whoever removes or rewrites the last
entry leaves a valid ledger. A process that has read more entries reports the loss.
"""

from __future__ import annotations

import re

from pydantic import ValidationError

from evergreen import storage
from evergreen.errors import LedgerError, validation_problem
from evergreen.ledger.entries import LedgerEntry, LedgerEvent, hash_entry, utc_now
from evergreen.ledger.state import LedgerState, apply_entry
from evergreen.storage import UPath

_ENTRY_FILE_PATTERN = re.compile(r"(\d{6,})\.json")
_FIX = "restore it from a copy; until then nothing is promoted"


class LedgerConflictError(Exception):
    """Another writer has created the entry with this number: read it, and decide again."""


class Journal:
    """The entries of one model. Threads may share a journal; every process has its own."""

    def __init__(self, model: str, ledger: str):
        """Open the journal of a model in a subfolder of `ledger`, a path or URI.

        Raises:
            LedgerError: the store cannot create a file on condition that there is none, so writers would lose entries.
        """
        self._model = model
        self._folder = storage.storage_path(f"{ledger.rstrip('/')}/{model}")
        self._cached_state = LedgerState()
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
        names = storage.list_names(self._folder)
        numbers = {int(match[1]) for match in map(_ENTRY_FILE_PATTERN.fullmatch, names) if match}
        last = max(numbers, default=0)
        if last < cached.head_number:
            raise LedgerError(f"{self._folder}: ends with entry {last}, and had {cached.head_number}: {_FIX}")
        # By number, not as listed: a listing may miss files that are written during it.
        first = max(cached.head_number, 1)
        try:
            contents = storage.read_files([self._entry_file(n) for n in range(first, last + 1)])
        except FileNotFoundError:
            missing = min(set(range(first, last + 1)) - numbers, default=last)
            raise LedgerError(f"{self._entry_file(missing)}: is missing, and later entries are not: {_FIX}") from None
        state = cached
        for number, data in enumerate(contents, first):
            if number > cached.head_number:
                state = apply_entry(state, self._parse_entry(number, data), hash_entry(data))
            elif hash_entry(data) != cached.head_hash:
                raise LedgerError(f"{self._entry_file(number)}: was changed after it was written: {_FIX}")
        self._cached_state = state
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
        entry = LedgerEntry(
            number=state.head_number + 1,
            model=self._model,
            previous_hash=state.head_hash,
            recorded_at=instant,
            actor=actor,
            event=event,
        )
        data = entry.to_bytes()
        new_state = apply_entry(state, entry, hash_entry(data))
        if not storage.create_if_absent(self._entry_file(entry.number), data):
            raise LedgerConflictError(entry.number)
        self._cached_state = new_state
        return entry

    def _parse_entry(self, number: int, data: bytes) -> LedgerEntry:
        try:
            entry = LedgerEntry.model_validate_json(data)
        except ValidationError as error:
            problem = validation_problem(error)
            raise LedgerError(f"{self._entry_file(number)}: cannot be read: {problem}: {_FIX}") from None
        if entry.model != self._model:
            raise LedgerError(f"{self._entry_file(number)}: is about {entry.model}: {_FIX}")
        return entry

    def _entry_file(self, number: int) -> UPath:
        return self._folder / f"{number:06d}.json"
