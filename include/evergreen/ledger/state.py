"""The state that a ledger's entries add up to: champion, challenger, barred versions. Pure functions.

An entry that cannot follow from the entries before it raises LedgerError, both when it is read and before it is
written. So no caller, however wrong, can make a barred version champion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import reduce
from typing import assert_never

from evergreen.errors import LedgerError
from evergreen.gates.alpha_spending import AlphaSpend, DayCorrelation, EarlierComparison
from evergreen.ledger import entries as events
from evergreen.ledger.entries import LedgerEntry, hash_entry


@dataclass(frozen=True)
class ChampionTenure:
    """A version became champion by a promotion or a rollback, in entry `entry_number`."""

    version: str
    as_of: date
    entry_number: int


@dataclass(frozen=True)
class LedgerState:
    """The state of a model after `entries`.

    Attributes:
        head_hash: hash of the last entry's bytes; empty without entries.
        tenures: every champion in order. Neighbours differ.
        last_promoted_as_of: `as_of` of the last promotion, even if it was rolled back since.
        challenger: the newest version whose promotion was deferred, unless it or a newer one was promoted since.
        barred_versions: versions that a rollback replaced and that were not released since.
    """

    entries: tuple[LedgerEntry, ...] = ()
    head_hash: str = ""
    tenures: tuple[ChampionTenure, ...] = ()
    last_promoted_as_of: date | None = None
    challenger: str | None = None
    challenger_as_of: date | None = None
    barred_versions: frozenset[str] = frozenset()
    is_frozen: bool = False

    @property
    def head_number(self) -> int:
        return len(self.entries)

    @property
    def champion(self) -> str | None:
        return self.tenures[-1].version if self.tenures else None

    @property
    def champion_as_of(self) -> date | None:
        """Return the day until which, exclusively, the champion has data."""
        return self.tenures[-1].as_of if self.tenures else None

    @property
    def previous_champion(self) -> str | None:
        """Return the champion before the current one; after a rollback, the version that was barred."""
        return self.tenures[-2].version if len(self.tenures) > 1 else None

    @property
    def comparisons(self) -> tuple[EarlierComparison, ...]:
        """Return every verdict that spent a significance level, in order: the remaining budget follows from them."""
        comparisons = []
        for entry in self.entries:
            if isinstance(entry.event, events.VerdictRecorded):
                results = entry.event.verdict.results
                spending = tuple(
                    AlphaSpend(r.gate, r.alpha, r.outcome == "passed") for r in results if r.alpha is not None
                )
                correlations = tuple(
                    DayCorrelation(r.gate, r.days, r.day_correlation)
                    for r in results
                    if r.days is not None and r.day_correlation is not None
                )
                if spending:
                    comparisons.append(
                        EarlierComparison(
                            days=entry.event.holdout,
                            spending=spending,
                            promoted=entry.event.verdict.promote,
                            day_correlations=correlations,
                        )
                    )
        return tuple(comparisons)

    def find_verdict_event(self, entry_number: int) -> events.VerdictRecorded | None:
        """Return the verdict in entry `entry_number`, or None if it holds none."""
        event = self.entries[entry_number - 1].event if 1 <= entry_number <= self.head_number else None
        return event if isinstance(event, events.VerdictRecorded) else None

    def last_tenure(self, version: str) -> ChampionTenure | None:
        """Return the last tenure of `version`, or None if it has never been champion."""
        return next((tenure for tenure in reversed(self.tenures) if tenure.version == version), None)


def iter_states(entries: Sequence[LedgerEntry]) -> Iterator[LedgerState]:
    """Yield the state after each of `entries`, which begin with the first."""
    # Hashes as stored in the next entry: a field added later would change the JSON of an old entry.
    hashes = [entry.previous_hash for entry in entries[1:]] + [hash_entry(entry.to_bytes()) for entry in entries[-1:]]
    state = LedgerState()
    for entry, entry_hash in zip(entries, hashes, strict=True):
        state = apply_entry(state, entry, entry_hash)
        yield state


def replay(entries: Sequence[LedgerEntry]) -> LedgerState:
    """Return the state after all `entries`."""
    return reduce(lambda _, state: state, iter_states(entries), LedgerState())


def state_at(entries: Sequence[LedgerEntry], instant: datetime) -> LedgerState:
    """Return the state at `instant`.

    Raises:
        LedgerError: the instant has no time zone.
    """
    if instant.tzinfo is None:
        raise LedgerError(f"{instant} has no time zone: add one, such as Z for UTC")
    return replay([entry for entry in entries if entry.recorded_at <= instant])


def apply_entry(state: LedgerState, entry: LedgerEntry, entry_hash: str) -> LedgerState:
    """Return the state after `entry`, whose stored bytes have the hash `entry_hash`."""
    if problem := _sequence_problem(state, entry) or _event_problem(state, entry):
        raise LedgerError(
            f"ledger of {entry.model}, entry {entry.number} ({entry.event.kind}, by {entry.actor}): {problem}. "
            "Entries are never changed: restore the ledger from a copy"
        )
    return replace(_apply_event(state, entry), entries=(*state.entries, entry), head_hash=entry_hash)


def _apply_event(state: LedgerState, entry: LedgerEntry) -> LedgerState:
    match entry.event:
        case events.VersionPromoted() as event:
            state = _start_tenure(state, ChampionTenure(event.version, event.as_of, entry.number))
            return replace(state, last_promoted_as_of=event.as_of)
        case events.ChampionRolledBack() as event:
            restored = state.last_tenure(event.restored_version)
            assert restored  # _event_problem has checked it
            state = _start_tenure(state, ChampionTenure(event.restored_version, restored.as_of, entry.number))
            return replace(state, barred_versions=state.barred_versions | {event.barred_version})
        case events.VersionReleased() as event:
            return replace(state, barred_versions=state.barred_versions - {event.version})
        case events.PromotionDeferred() as event:
            if state.challenger_as_of and event.as_of < state.challenger_as_of:
                return state
            return replace(state, challenger=event.version, challenger_as_of=event.as_of)
        case events.PromotionRejected() as event:
            return _clear_challenger(state) if event.version == state.challenger else state
        case events.PromotionsFrozen():
            return replace(state, is_frozen=True)
        case events.PromotionsUnfrozen():
            return replace(state, is_frozen=False)
        case events.VerdictRecorded() | events.BacktestRecorded():
            return state
        case _ as never:
            assert_never(never)


def _start_tenure(state: LedgerState, tenure: ChampionTenure) -> LedgerState:
    state = replace(state, tenures=(*state.tenures, tenure))
    if state.challenger_as_of and (state.challenger == tenure.version or state.challenger_as_of <= tenure.as_of):
        return _clear_challenger(state)
    return state


def _clear_challenger(state: LedgerState) -> LedgerState:
    return replace(state, challenger=None, challenger_as_of=None)


def _sequence_problem(state: LedgerState, entry: LedgerEntry) -> str | None:
    last = state.entries[-1] if state.entries else None
    if entry.number != state.head_number + 1:
        return f"it is in the place of entry {state.head_number + 1}"
    if entry.previous_hash != state.head_hash:
        return f"entry {state.head_number} is not the entry it was written after: one of the two was changed"
    if last and entry.model != last.model:
        return f"the entries before it are about {last.model}"
    if last and entry.recorded_at < last.recorded_at:
        return f"it is older than entry {last.number}"
    return None


def _event_problem(state: LedgerState, entry: LedgerEntry) -> str | None:
    event = entry.event
    if (
        isinstance(event, events.VersionPromoted | events.PromotionDeferred | events.PromotionRejected)
        and state.find_verdict_event(event.verdict_entry) is None
    ):
        return f"it refers to the verdict in entry {event.verdict_entry}, which holds none"
    match event:
        case events.VersionPromoted():
            return _promotion_problem(state, event)
        case events.ChampionRolledBack(restored_version=version):
            if event.barred_version != state.champion:
                return f"it bars version {event.barred_version}, but the champion was {state.champion or 'none'}"
            if version == state.champion or version in state.barred_versions or state.last_tenure(version) is None:
                return f"version {version} is champion, barred, or has never been champion"
        case events.VersionReleased(version=version) if version not in state.barred_versions:
            return f"version {version} was not barred"
        case events.PromotionDeferred(version=version) if version == state.champion or version in state.barred_versions:
            return f"version {version} is champion or barred, it cannot be the challenger"
    return None


def _promotion_problem(state: LedgerState, event: events.VersionPromoted) -> str | None:
    basis = state.find_verdict_event(event.verdict_entry)
    if basis is None or not basis.verdict.promote or basis.champion_version != event.previous_champion:
        return f"the verdict in entry {event.verdict_entry} does not let it replace version {event.previous_champion}"
    if event.previous_champion != state.champion:
        return f"it replaces version {event.previous_champion}, but the champion was {state.champion or 'none'}"
    if event.version in state.barred_versions:
        return f"version {event.version} was barred"
    if state.is_frozen:
        return "the model was frozen"
    if event.version == state.champion or (state.champion_as_of and event.as_of <= state.champion_as_of):
        return f"version {event.version} as of {event.as_of} is not newer than the champion"
    return None
