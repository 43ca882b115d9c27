"""What follows from a ledger's entries: who is champion, what is barred. A pure fold, one entry at a time.

The fold believes nothing: an entry that cannot follow from those before it is refused, when it is read and
before it is written. So no code that appends, however wrong, can make a barred version champion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import reduce
from typing import assert_never

from evergreen.errors import LedgerError
from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.ledger.entries import (
    BacktestRecorded,
    ChampionRolledBack,
    LedgerEntry,
    PromotionDeferred,
    PromotionRejected,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VerdictRecorded,
    VersionPromoted,
    VersionReleased,
    hash_entry,
)


@dataclass(frozen=True)
class ChampionTenure:
    """A version became champion, by a promotion or a rollback, with the entry `number`."""

    version: str
    as_of: date
    entry_number: int


@dataclass(frozen=True)
class LedgerState:
    """Of a model, after `entries`.

    Attributes:
        head_hash: of the last entry's bytes; empty when there is none.
        reigns: every champion in order. Neighbours differ.
        last_promoted_as_of: of the last promotion, also if it was rolled back since.
        challenger: the newest version that was held back, unless it or a newer one was promoted since.
        barred: versions that were rolled back from and not released since.
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
        """Number of the last entry; 0 when there is none."""
        return len(self.entries)

    @property
    def champion(self) -> str | None:
        return self.tenures[-1].version if self.tenures else None

    @property
    def champion_as_of(self) -> date | None:
        """The champion knows no data of this day or later."""
        return self.tenures[-1].as_of if self.tenures else None

    @property
    def previous_champion(self) -> str | None:
        """The champion before this one, in the ledger's order: after a rollback, the version that was left."""
        return self.tenures[-2].version if len(self.tenures) > 1 else None

    @property
    def comparisons(self) -> tuple[EarlierComparison, ...]:
        """Every verdict that spent confidence, in order: what is left of the model's budget follows from it."""
        spent = []
        for entry in self.entries:
            if isinstance(entry.event, VerdictRecorded):
                gates = tuple(
                    (record.gate, record.alpha, record.outcome == "passed")
                    for record in entry.event.verdict.results
                    if record.alpha is not None
                )
                if gates:
                    spent.append(EarlierComparison(days=entry.event.holdout, spending=gates))
        return tuple(spent)

    def find_verdict_event(self, entry_number: int) -> VerdictRecorded | None:
        """What entry `number` says, if it holds a verdict."""
        act = self.entries[entry_number - 1].event if 1 <= entry_number <= self.head_number else None
        return act if isinstance(act, VerdictRecorded) else None

    def last_tenure(self, version: str) -> ChampionTenure | None:
        """The last time that `version` became champion."""
        return next((reign for reign in reversed(self.tenures) if reign.version == version), None)


EMPTY_STATE = LedgerState()


def iter_states(entries: Sequence[LedgerEntry]) -> Iterator[LedgerState]:
    """The state after each of `entries`, which begin with the first.

    Raises:
        LedgerError: one cannot follow from those before it.
    """
    # What a later field would add to an entry's JSON must not change its hash: the next entry knows it.
    hashes = [entry.previous_hash for entry in entries[1:]] + [hash_entry(entry.to_bytes()) for entry in entries[-1:]]
    state = EMPTY_STATE
    for entry, entry_hash in zip(entries, hashes, strict=True):
        state = apply_entry(state, entry, entry_hash)
        yield state


def replay(entries: Sequence[LedgerEntry]) -> LedgerState:
    """The state after all of them.

    Raises:
        LedgerError: as `history`.
    """
    return reduce(lambda _, state: state, iter_states(entries), EMPTY_STATE)


def state_at(entries: Sequence[LedgerEntry], instant: datetime) -> LedgerState:
    """The state at `instant`: who was champion then, and all that was known.

    Raises:
        LedgerError: the instant has no time zone, or an entry cannot follow from those before it.
    """
    if instant.tzinfo is None:
        raise LedgerError(f"{instant} has no time zone, so it names no instant: add one, such as Z for UTC")
    return replay([entry for entry in entries if entry.recorded_at <= instant])


def apply_entry(state: LedgerState, entry: LedgerEntry, entry_hash: str) -> LedgerState:
    """The state once `entry`, whose stored bytes have the hash `entry_hash`, is added to it.

    Raises:
        LedgerError: it cannot follow.
    """
    problem = _sequence_problem(state, entry) or _event_problem(state, entry)
    if problem:
        raise LedgerError(
            f"ledger of {entry.model}, entry {entry.number} ({entry.event.kind}, by {entry.actor}): {problem}. "
            "An entry is never right again once it is wrong: restore the ledger from a copy"
        )
    return replace(_apply_event(state, entry), entries=(*state.entries, entry), head_hash=entry_hash)


def _apply_event(state: LedgerState, entry: LedgerEntry) -> LedgerState:
    match entry.event:
        case VersionPromoted() as act:
            state = _start_tenure(state, ChampionTenure(act.version, act.as_of, entry.number))
            return replace(state, last_promoted_as_of=act.as_of)
        case ChampionRolledBack() as act:
            restored = state.last_tenure(act.restored_version)
            assert restored  # or it would have been impossible
            state = _start_tenure(state, ChampionTenure(act.restored_version, restored.as_of, entry.number))
            return replace(state, barred_versions=state.barred_versions | {act.barred_version})
        case VersionReleased() as act:
            return replace(state, barred_versions=state.barred_versions - {act.version})
        case PromotionDeferred() as act:
            if state.challenger_as_of and act.as_of < state.challenger_as_of:
                return state
            return replace(state, challenger=act.version, challenger_as_of=act.as_of)
        case PromotionRejected() as act:
            return _clear_challenger(state) if act.version == state.challenger else state
        case PromotionsFrozen():
            return replace(state, is_frozen=True)
        case PromotionsUnfrozen():
            return replace(state, is_frozen=False)
        case VerdictRecorded() | BacktestRecorded():
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
        return f"it stands where entry {state.head_number + 1} should"
    if entry.previous_hash != state.head_hash:
        return f"entry {state.head_number} is not the one that it was written after: one of the two was changed"
    if last and entry.model != last.model:
        return f"the entries before it are about {last.model}"
    if last and entry.recorded_at < last.recorded_at:
        return f"it is older than entry {last.number}"
    return None


def _event_problem(state: LedgerState, entry: LedgerEntry) -> str | None:
    act = entry.event
    if (
        isinstance(act, VersionPromoted | PromotionDeferred | PromotionRejected)
        and state.find_verdict_event(act.verdict_entry) is None
    ):
        return f"it rests on the verdict in entry {act.verdict_entry}, which holds none"
    match act:
        case VersionPromoted():
            return _promotion_problem(state, act)
        case ChampionRolledBack(restored_version=to):
            if act.barred_version != state.champion:
                return f"it leaves version {act.barred_version}, but the champion was {state.champion or 'nobody'}"
            if to == state.champion or to in state.barred_versions or state.last_tenure(to) is None:
                return f"version {to} is champion, barred, or has never been champion"
        case VersionReleased(version=version) if version not in state.barred_versions:
            return f"version {version} was not barred"
        case PromotionDeferred(version=version) if version == state.champion or version in state.barred_versions:
            return f"version {version} is champion or barred, it cannot be the challenger"
    return None


def _promotion_problem(state: LedgerState, event: VersionPromoted) -> str | None:
    judged = state.find_verdict_event(event.verdict_entry)
    if judged is None or not judged.verdict.promote or judged.champion_version != event.previous_champion:
        return f"the verdict in entry {event.verdict_entry} does not let it replace version {event.previous_champion}"
    if event.previous_champion != state.champion:
        return f"it replaces version {event.previous_champion}, but the champion was {state.champion or 'nobody'}"
    if event.version in state.barred_versions:
        return f"version {event.version} was barred"
    if state.is_frozen:
        return "the model was frozen"
    if event.version == state.champion or (state.champion_as_of and event.as_of <= state.champion_as_of):
        return f"version {event.version} as of {event.as_of} is not newer than the champion"
    return None
