"""The entries of a ledger as a sequence that is small in memory: an index of all, each read when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Generic, NamedTuple, TypeVar, overload

from evergreen.gates.alpha_spending import AlphaSpend, DayCorrelation, EarlierComparison
from evergreen.ledger.entries import SNAPSHOT_FORMAT, LedgerEntry, LedgerEvent, VerdictRecorded

_Item = TypeVar("_Item")

_CHUNK_LENGTH = 256
# Fields by which decisions look entries up.
_INDEXED_FIELDS = (
    "version",
    "restored_version",
    "barred_version",
    "lost_version",
    "verdict_entry",
    "candidate_fingerprint",
)
_MAX_KEY_LENGTH = 16  # of a text in the index: a filter, since the entry itself is compared too


class Log(Sequence[_Item], Generic[_Item]):
    """An immutable sequence that is cheap to extend: the longer one shares its parts with the shorter."""

    __slots__ = ("_chunks", "_tail")

    def __init__(self, items: Iterable[_Item] = ()):
        everything = tuple(items)
        full = len(everything) // _CHUNK_LENGTH * _CHUNK_LENGTH
        self._chunks = tuple(everything[i : i + _CHUNK_LENGTH] for i in range(0, full, _CHUNK_LENGTH))
        self._tail = everything[full:]

    def append(self, item: _Item) -> Log[_Item]:
        """Return a log that has `item` too."""
        longer: Log[_Item] = Log()
        longer._chunks, longer._tail = self._chunks, (*self._tail, item)
        if len(longer._tail) == _CHUNK_LENGTH:
            longer._chunks, longer._tail = (*self._chunks, longer._tail), ()
        return longer

    def __len__(self) -> int:
        return len(self._chunks) * _CHUNK_LENGTH + len(self._tail)

    def __iter__(self) -> Iterator[_Item]:
        return chain(chain.from_iterable(self._chunks), self._tail)

    def __reversed__(self) -> Iterator[_Item]:
        return chain.from_iterable(map(reversed, (self._tail, *reversed(self._chunks))))

    @overload
    def __getitem__(self, position: int) -> _Item: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[_Item, ...]: ...
    def __getitem__(self, position: int | slice) -> _Item | tuple[_Item, ...]:
        if isinstance(position, slice):
            return tuple(self[n] for n in range(*position.indices(len(self))))
        chunk, offset = divmod(range(len(self))[position], _CHUNK_LENGTH)
        return self._chunks[chunk][offset] if chunk < len(self._chunks) else self._tail[offset]

    def __eq__(self, value: object) -> bool:
        return tuple(self) == tuple(value) if isinstance(value, Log | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Log({tuple(self)!r})"


class IndexRecord(NamedTuple):
    """What is kept in memory of an entry.

    Attributes:
        hash: of the entry's bytes: an entry that is read later is compared with it.
        kind: of its event.
        keys: the event's indexed fields, texts cut short.
        comparison: what the verdict spent of the model's budget, if it spent any, with all looks so far.
        first_look: number of the entry with the first look of the comparison, if this verdict is of a later one.
        snapshot: hash of the snapshot that the entry names, if it names one of this format.
    """

    hash: str
    kind: str
    keys: Mapping[str, str | int]
    comparison: EarlierComparison | None = None
    snapshot: str | None = None
    first_look: int | None = None


class EntryArchive:
    """Finds entries by their hashes. This one keeps all in memory; that of a journal reads them again."""

    def __init__(self) -> None:
        self._entries: dict[str, LedgerEntry] = {}

    def add(self, entry: LedgerEntry, entry_hash: str) -> None:
        self._entries[entry_hash] = entry

    def read(self, hashes: Mapping[int, str]) -> list[LedgerEntry]:
        """Return the entries with these numbers, whose bytes have these hashes.

        Raises:
            LedgerError: one is missing or was changed.
        """
        return [self._entries[entry_hash] for entry_hash in hashes.values()]


class EntryHistory(Sequence[LedgerEntry]):
    """All entries up to one, the first with number 1. The index is in memory; an entry is read, and verified, on use.

    Looking an entry up (`find_last`) reads it alone; iterating reads everything.
    """

    _BATCH_LENGTH = 100

    def __init__(self, records: Iterable[IndexRecord] = (), archive: EntryArchive | None = None):
        self.records = records if isinstance(records, Log) else Log(records)
        self._archive = archive or EntryArchive()

    def append(self, entry: LedgerEntry, entry_hash: str) -> EntryHistory:
        """Return a history that has `entry` too, whose stored bytes have the hash `entry_hash`."""
        self._archive.add(entry, entry_hash)
        return EntryHistory(self.records.append(_index_record(entry, entry_hash)), self._archive)

    @property
    def head_hash(self) -> str:
        """Return the hash of the last entry; empty without entries."""
        return self.records[-1].hash if self.records else ""

    def find_last(
        self, kind: type[LedgerEvent], before_entry: int | None = None, /, **fields: object
    ) -> LedgerEntry | None:
        """Return the newest entry with an event of `kind` that has these values of its fields.

        With `before_entry`, only of those before that.
        """
        kind_name = kind.model_fields["kind"].default
        keys = {name: _index_key(value) for name, value in fields.items() if name in _INDEXED_FIELDS}
        count = len(self) if before_entry is None else before_entry - 1
        records = islice(reversed(self.records), len(self) - count, None)
        for number, record in zip(range(count, 0, -1), records, strict=True):
            if record.kind == kind_name and keys.items() <= record.keys.items():
                entry = self[number - 1]
                if all(getattr(entry.event, name) == value for name, value in fields.items()):
                    return entry
        return None

    def count_kind(self, kind: type[LedgerEvent]) -> int:
        """Return how many entries have an event of `kind`."""
        kind_name = kind.model_fields["kind"].default
        return sum(record.kind == kind_name for record in self.records)

    def comparisons(self, before_entry: int | None = None) -> tuple[EarlierComparison, ...]:
        """Return every comparison that spent a significance level, as of its last look, in order.

        With `before_entry`, only what is in entries before that.
        """
        records = islice(self.records, None if before_entry is None else before_entry - 1)
        latest: dict[int, EarlierComparison] = {}
        for number, record in enumerate(records, 1):
            if record.comparison:
                latest[record.first_look or number] = record.comparison
        return tuple(latest.values())

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[LedgerEntry]:
        hashes = dict(enumerate((record.hash for record in self.records), 1))
        numbers = iter(hashes)
        while batch := {number: hashes[number] for number in islice(numbers, self._BATCH_LENGTH)}:
            yield from self._archive.read(batch)

    @overload
    def __getitem__(self, position: int) -> LedgerEntry: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[LedgerEntry, ...]: ...
    def __getitem__(self, position: int | slice) -> LedgerEntry | tuple[LedgerEntry, ...]:
        positions = range(len(self))[position]
        if isinstance(positions, range):
            return tuple(self._archive.read({n + 1: self.records[n].hash for n in positions}))
        return self._archive.read({positions + 1: self.records[positions].hash})[0]

    def __eq__(self, value: object) -> bool:
        if isinstance(value, EntryHistory):
            return self.records == value.records
        return tuple(self) == value if isinstance(value, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.head_hash)

    def __repr__(self) -> str:
        return f"<{len(self)} entries, the last {self.head_hash[:12] or 'none'}>"


def _index_record(entry: LedgerEntry, entry_hash: str) -> IndexRecord:
    event = entry.event
    fields = {name: getattr(event, name, None) for name in _INDEXED_FIELDS}
    keys = {name: _index_key(value) for name, value in fields.items() if value is not None}
    comparison, first_look = None, None
    if isinstance(event, VerdictRecorded):
        comparison = _find_comparison(event)
        first_look = event.later_look.first_entry if event.later_look else None
    snapshot = entry.snapshot.sha256 if entry.snapshot and entry.snapshot.format == SNAPSHOT_FORMAT else None
    return IndexRecord(entry_hash, event.kind, keys, comparison, snapshot, first_look)


def _index_key(value: object) -> str | int:
    return value if isinstance(value, int) else str(value)[:_MAX_KEY_LENGTH]


def _find_comparison(event: VerdictRecorded) -> EarlierComparison | None:
    results = event.verdict.results
    spending = tuple(AlphaSpend(r.gate, r.alpha, r.outcome == "passed") for r in results if r.alpha is not None)
    correlations = tuple(
        DayCorrelation(r.gate, r.days, r.day_correlation)
        for r in results
        if r.days is not None and r.day_correlation is not None
    )
    if not spending:
        return None
    look_ends = {look.end for result in results for look in result.looks}
    return EarlierComparison(
        days=event.days,
        spending=spending,
        promoted=event.verdict.promote,
        look_ends=tuple(sorted(look_ends)),
        is_decided=not event.verdict.is_inconclusive,
        day_correlations=correlations,
    )
