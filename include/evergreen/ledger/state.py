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
from evergreen.gates.alpha_spending import Comparison
from evergreen.ledger.entries import (
    Backtested,
    Entry,
    Frozen,
    Held,
    Judged,
    Promoted,
    Rejected,
    Released,
    RolledBack,
    Unfrozen,
    digest,
)


@dataclass(frozen=True)
class Reign:
    """A version became champion, by a promotion or a rollback, with the entry `number`."""

    version: str
    as_of: date
    number: int


@dataclass(frozen=True)
class State:
    """Of a model, after `entries`.

    Attributes:
        head_hash: of the last entry's bytes; empty when there is none.
        reigns: every champion in order. Neighbours differ.
        last_promoted_as_of: of the last promotion, also if it was rolled back since.
        challenger: the newest version that was held back, unless it or a newer one was promoted since.
        barred: versions that were rolled back from and not released since.
    """

    entries: tuple[Entry, ...] = ()
    head_hash: str = ""
    reigns: tuple[Reign, ...] = ()
    last_promoted_as_of: date | None = None
    challenger: str | None = None
    challenger_as_of: date | None = None
    barred: frozenset[str] = frozenset()
    frozen: bool = False

    @property
    def head(self) -> int:
        """Number of the last entry; 0 when there is none."""
        return len(self.entries)

    @property
    def champion(self) -> str | None:
        return self.reigns[-1].version if self.reigns else None

    @property
    def champion_as_of(self) -> date | None:
        """The champion knows no data of this day or later."""
        return self.reigns[-1].as_of if self.reigns else None

    @property
    def previous(self) -> str | None:
        """The champion before this one, in the ledger's order: after a rollback, the version that was left."""
        return self.reigns[-2].version if len(self.reigns) > 1 else None

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every verdict that spent confidence, in order: what is left of the model's budget follows from it."""
        spent = []
        for entry in self.entries:
            if isinstance(entry.act, Judged):
                gates = tuple(
                    (record.gate, record.level, record.outcome == "passed")
                    for record in entry.act.verdict.records
                    if record.level is not None
                )
                if gates:
                    spent.append(Comparison(days=entry.act.holdout, gates=gates))
        return tuple(spent)

    def judged(self, number: int) -> Judged | None:
        """What entry `number` says, if it holds a verdict."""
        act = self.entries[number - 1].act if 1 <= number <= self.head else None
        return act if isinstance(act, Judged) else None

    def reign_of(self, version: str) -> Reign | None:
        """The last time that `version` became champion."""
        return next((reign for reign in reversed(self.reigns) if reign.version == version), None)


EMPTY = State()


def history(entries: Sequence[Entry]) -> Iterator[State]:
    """The state after each of `entries`, which begin with the first.

    Raises:
        LedgerError: one cannot follow from those before it.
    """
    # What a later field would add to an entry's JSON must not change its hash: the next entry knows it.
    hashes = [entry.before for entry in entries[1:]] + [digest(entry.to_bytes()) for entry in entries[-1:]]
    state = EMPTY
    for entry, entry_hash in zip(entries, hashes, strict=True):
        state = after(state, entry, entry_hash)
        yield state


def fold(entries: Sequence[Entry]) -> State:
    """The state after all of them.

    Raises:
        LedgerError: as `history`.
    """
    return reduce(lambda _, state: state, history(entries), EMPTY)


def at(entries: Sequence[Entry], instant: datetime) -> State:
    """The state at `instant`: who was champion then, and all that was known.

    Raises:
        LedgerError: the instant has no time zone, or an entry cannot follow from those before it.
    """
    if instant.tzinfo is None:
        raise LedgerError(f"{instant} has no time zone, so it names no instant: add one, such as Z for UTC")
    return fold([entry for entry in entries if entry.at <= instant])


def after(state: State, entry: Entry, entry_hash: str) -> State:
    """The state once `entry`, whose stored bytes have the hash `entry_hash`, is added to it.

    Raises:
        LedgerError: it cannot follow.
    """
    problem = _misplaced(state, entry) or _impossible(state, entry)
    if problem:
        raise LedgerError(
            f"ledger of {entry.model}, entry {entry.number} ({entry.act.kind}, by {entry.by}): {problem}. "
            "An entry is never right again once it is wrong: restore the ledger from a copy"
        )
    return replace(_acted(state, entry), entries=(*state.entries, entry), head_hash=entry_hash)


def _acted(state: State, entry: Entry) -> State:
    match entry.act:
        case Promoted() as act:
            state = _crowned(state, Reign(act.version, act.as_of, entry.number))
            return replace(state, last_promoted_as_of=act.as_of)
        case RolledBack() as act:
            restored = state.reign_of(act.to)
            assert restored  # or it would have been impossible
            state = _crowned(state, Reign(act.to, restored.as_of, entry.number))
            return replace(state, barred=state.barred | {act.barred})
        case Released() as act:
            return replace(state, barred=state.barred - {act.version})
        case Held() as act:
            if state.challenger_as_of and act.as_of < state.challenger_as_of:
                return state
            return replace(state, challenger=act.version, challenger_as_of=act.as_of)
        case Rejected() as act:
            return _without_challenger(state) if act.version == state.challenger else state
        case Frozen():
            return replace(state, frozen=True)
        case Unfrozen():
            return replace(state, frozen=False)
        case Judged() | Backtested():
            return state
        case _ as never:
            assert_never(never)


def _crowned(state: State, reign: Reign) -> State:
    state = replace(state, reigns=(*state.reigns, reign))
    if state.challenger_as_of and (
        state.challenger == reign.version or state.challenger_as_of <= reign.as_of
    ):
        return _without_challenger(state)
    return state


def _without_challenger(state: State) -> State:
    return replace(state, challenger=None, challenger_as_of=None)


def _misplaced(state: State, entry: Entry) -> str | None:
    last = state.entries[-1] if state.entries else None
    if entry.number != state.head + 1:
        return f"it stands where entry {state.head + 1} should"
    if entry.before != state.head_hash:
        return f"entry {state.head} is not the one that it was written after: one of the two was changed"
    if last and entry.model != last.model:
        return f"the entries before it are about {last.model}"
    if last and entry.at < last.at:
        return f"it is older than entry {last.number}"
    return None


def _impossible(state: State, entry: Entry) -> str | None:
    act = entry.act
    if isinstance(act, Promoted | Held | Rejected) and state.judged(act.judged) is None:
        return f"it rests on the verdict in entry {act.judged}, which holds none"
    match act:
        case Promoted():
            return _cannot_promote(state, act)
        case RolledBack(to=to):
            if act.barred != state.champion:
                return f"it leaves version {act.barred}, but the champion was {state.champion or 'nobody'}"
            if to == state.champion or to in state.barred or state.reign_of(to) is None:
                return f"version {to} is champion, barred, or has never been champion"
        case Released(version=version) if version not in state.barred:
            return f"version {version} was not barred"
        case Held(version=version) if version == state.champion or version in state.barred:
            return f"version {version} is champion or barred, it cannot be the challenger"
    return None


def _cannot_promote(state: State, act: Promoted) -> str | None:
    judged = state.judged(act.judged)
    if judged is None or not judged.verdict.promote or judged.champion != act.replaced:
        return f"the verdict in entry {act.judged} does not let it replace version {act.replaced}"
    if act.replaced != state.champion:
        return f"it replaces version {act.replaced}, but the champion was {state.champion or 'nobody'}"
    if act.version in state.barred:
        return f"version {act.version} was barred"
    if state.frozen:
        return "the model was frozen"
    if act.version == state.champion or (state.champion_as_of and act.as_of <= state.champion_as_of):
        return f"version {act.version} as of {act.as_of} is not newer than the champion"
    return None
