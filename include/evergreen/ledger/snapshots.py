"""Snapshots: the state of a ledger as JSON, stored beside the entries, so that opening does not replay all of them.

The entries of a ledger are on pages of 100, and the first entry of each page but the first names the hash of the state
before it. So the chain of entries verifies a snapshot, whoever wrote it, and whenever: a reader takes the newest one
that has the hash, and replays what follows. One that is missing, torn or forged is not used.

A snapshot holds what the state has gained since an earlier snapshot, and names that one's hash. The one of page k
continues that of page k with its lowest one-bit cleared (Fenwick 1994, Software: Practice and Experience 24:327-336):
n pages are opened by reading at most log₂ n snapshots, and all of them hold n · log₂ n pages together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from hashlib import sha256
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from evergreen.ledger.entries import SNAPSHOT_FORMAT, LedgerEntry, SnapshotReference
from evergreen.ledger.history import EntryArchive, EntryHistory, IndexRecord, Log
from evergreen.ledger.state import ChampionTenure, LedgerState, Registration
from evergreen.spec import Frozen

PAGE_LENGTH = 100


class Snapshot(Frozen):
    """The state before the first entry of `page`: what it has gained since the snapshot of page `since`."""

    page: int
    since: int
    since_sha256: str
    index: tuple[IndexRecord, ...]
    tenures: tuple[ChampionTenure, ...]
    registrations: tuple[Registration, ...]
    rest: dict[str, Any]
    """Every other field of the state, whole: they are small."""

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


_REST_TYPES = {
    field.name: TypeAdapter(get_type_hints(LedgerState)[field.name])
    for field in fields(LedgerState)
    if field.name not in ("entries", "tenures", "registrations")
}


def page_of(entry_number: int) -> int:
    """Return the page that the entry is on."""
    return entry_number // PAGE_LENGTH


def needs_snapshot(entry_number: int) -> bool:
    """Return whether the entry names the state before it."""
    return entry_number % PAGE_LENGTH == 0


def refer_to(snapshot: bytes) -> SnapshotReference:
    return SnapshotReference(sha256=sha256(snapshot).hexdigest())


def write_snapshot(state: LedgerState) -> bytes:
    """Return the snapshot of a state whose next entry is the first of a page. Equal entries give equal bytes."""
    page = page_of(state.head_number + 1)
    since, since_hash = page & (page - 1), ""
    # The snapshots of an older version have another format: continue none of these.
    while since and not (since_hash := state.entries.records[since * PAGE_LENGTH - 1].snapshot or ""):
        since &= since - 1
    first_entry = max(since * PAGE_LENGTH, 1)
    return Snapshot(
        page=page,
        since=since,
        since_sha256=since_hash,
        index=state.entries.records[first_entry - 1 :],
        tenures=tuple(tenure for tenure in state.tenures if tenure.entry_number >= first_entry),
        registrations=tuple(item for item in state.registrations if item.entry_number >= first_entry),
        rest={name: _to_json(adapter, getattr(state, name)) for name, adapter in _REST_TYPES.items()},
    ).to_bytes()


def restore_state(
    entry: LedgerEntry, read_snapshot: Callable[[int], bytes | None], archive: EntryArchive
) -> LedgerState | None:
    """Return the state before `entry`, the first of a page; None if its snapshots are not those that it names.

    `read_snapshot` returns the stored snapshot of a page, of which nothing is believed, or None.
    """
    if entry.snapshot is None or entry.snapshot.format != SNAPSHOT_FORMAT:
        return None
    page, expected = page_of(entry.number), entry.snapshot.sha256
    parts: list[Snapshot] = []
    while page:
        data = read_snapshot(page)
        if data is None or sha256(data).hexdigest() != expected:
            return None
        parts.append(Snapshot.model_validate_json(data))
        page, expected = parts[-1].since, parts[-1].since_sha256
    parts.reverse()
    return LedgerState(
        entries=EntryHistory((record for part in parts for record in part.index), archive),
        tenures=Log(tenure for part in parts for tenure in part.tenures),
        registrations=Log(item for part in parts for item in part.registrations),
        **{name: adapter.validate_json(json.dumps(parts[-1].rest[name])) for name, adapter in _REST_TYPES.items()},
    )


def _to_json(adapter: TypeAdapter[Any], value: object) -> Any:
    content = adapter.dump_python(value, mode="json")
    return sorted(content) if isinstance(value, frozenset) else content  # of sets equal bytes too
