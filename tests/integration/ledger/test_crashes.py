"""A process dies at any write of a promotion or a rollback: a repair finds a state that a serial order explains."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from evergreen import ledger
from evergreen.ledger import (
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    VersionPromoted,
)
from evergreen.ledger.journal import Journal
from evergreen.promotion import rules
from evergreen.registry import aliases
from support import promotion_races
from support.calendars import cooldown, later
from support.ledgers import was_consistent
from support.promotion_races import CHALLENGER, CHAMPION, PREVIOUS, Place

pytestmark = pytest.mark.integration

KILLS = 15
CRASHED = 86
_FIRST = "2013-01-06"


@dataclass(frozen=True)
class Operation:
    """The work of a task or a command: record what a rule decides, and set the aliases."""

    rule: Callable[[LedgerState], LedgerEvent | LedgerEntry]
    actor: str = "test"

    def run(self, model: str) -> LedgerEvent:
        entry = ledger.append_decision(model, self.actor, self.rule)
        aliases.sync_aliases(model)
        return entry.event


@dataclass
class Book:
    """A model whose changes happen one after the other, each with data a week newer than before."""

    place: Place
    versions: Sequence[str]
    week: int = 0

    def promotion(self, version: str, cooldown_days: int = 0) -> Operation:
        """Return the promotion of a version that has just been judged against the current champion."""
        request = promotion_races.request_promotion(self.place.model, version, later(_FIRST, 7 * self.week))
        self.week += 1
        return Operation(partial(rules.decide_promotion, request=request, **cooldown(cooldown_days)))

    def rollback(self, target_version: str | None = None) -> Operation:
        champion = ledger.read_state(self.place.model).champion
        return Operation(
            partial(
                rules.decide_rollback,
                target_version=target_version,
                reason="worse in the shop",
                expected_champion=champion,
            )
        )

    def promote(self, *versions: str) -> None:
        for version in versions:
            ledger.append_decision(self.place.model, "test", self.promotion(version).rule)
        aliases.sync_aliases(self.place.model)

    def hold(self, version: str) -> None:
        self.promotion(version, cooldown_days=365).run(self.place.model)


def first_promotion(book: Book) -> Operation:
    return book.promotion("1")


def second_promotion(book: Book) -> Operation:
    book.promote("1")
    return book.promotion("2")


def promotion_past_a_challenger(book: Book) -> Operation:
    book.promote("1", "2")
    book.hold("3")
    return book.promotion("4")


def promotion_that_is_held_back(book: Book) -> Operation:
    book.promote("1", "2")
    return book.promotion("3", cooldown_days=365)


def rollback_to_the_one_before(book: Book) -> Operation:
    book.promote("1", "2", "3")
    return book.rollback()


def rollback_to_one_that_is_named(book: Book) -> Operation:
    book.promote("1", "2", "3", "4")
    return book.rollback(target_version="1")


@pytest.mark.parametrize("mlflow_server", ["sqlite"], indirect=True)  # who dies is its client
@pytest.mark.parametrize(
    ("prepare", "event", "aliases"),
    [
        (first_promotion, VersionPromoted, {"champion": "1"}),
        pytest.param(second_promotion, VersionPromoted, {"champion": "2", "previous": "1"}, marks=pytest.mark.slow),
        pytest.param(
            promotion_past_a_challenger,
            VersionPromoted,
            {"champion": "4", "previous": "2"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            promotion_that_is_held_back,
            PromotionDeferred,
            {"champion": "2", "previous": "1", "challenger": "3"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            rollback_to_the_one_before, ChampionRolledBack, {"champion": "2", "previous": "3"}, marks=pytest.mark.slow
        ),
        (rollback_to_one_that_is_named, ChampionRolledBack, {"champion": "1", "previous": "4"}),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else "",
)
def test_crash_at_any_write_is_repaired_and_retried(
    place: Place, prepare: Callable[[Book], Operation], event: type[LedgerEvent], aliases: dict[str, str]
) -> None:
    fatal_writes: list[str] = []
    happened: list[bool] = []
    for fuse in map(Fuse, count(1)):
        book = Book(place.new_model(), [])
        book.place.register(4)
        operation = prepare(book)
        earlier = ledger.read_state(book.place.model)
        code, write = in_a_child(book.place, operation, fuse)
        survived = code == 0
        assert survived or code == CRASHED
        fatal_writes.append(write)
        happened.append(check_crash(book.place, earlier, operation.rule(earlier)).happened)
        assert isinstance(operation.run(book.place.model), event)
        assert ledger.read_state(book.place.model).head_number == earlier.head_number + 1, "the retry repeated it"
        assert book.place.aliases() == aliases
        if survived:
            break
    # The process died before each write, first before those that make the entry, then before those after it.
    changed = sum(
        promotion_races.by_ledger(earlier).get(name) != aliases.get(name) for name in (CHAMPION, PREVIOUS, CHALLENGER)
    )
    writes = fatal_writes[:-1]
    assert writes.count("link") == writes.count("set_registered_model_tag") == 1
    assert len([write for write in writes if write.endswith("alias")]) == changed
    assert happened == sorted(happened)
    assert not happened[0]
    assert happened[-1]


def test_kill_at_any_moment_is_repaired_and_retried(place: Place) -> None:
    """Also between the writes, and while a server processes a request whose sender is gone."""
    rng = random.Random(20130101)
    book = Book(place, place.register(KILLS + 3))
    book.promote("1", "2")
    patience = 0.0
    states: list[CrashState] = []
    for number in range(KILLS + 1):
        rollback = number % 3 == 2
        operation = book.rollback() if rollback else book.promotion(book.versions[number + 2])
        earlier = ledger.read_state(place.model)
        child = Child(place, operation)
        started = child.go()
        if number == 0:  # how long it takes without a kill
            child.died_at()
            patience = time.monotonic() - started
            child.process.join()
        else:
            time.sleep(1.1 * patience * rng.random() ** 3)  # often early: the entry is quick, a request slow
            child.process.kill()
            child.process.join()
            time.sleep(0.5)  # a request that was sent is still processed
        assert child.process.exitcode in (0, -signal.SIGKILL)
        states.append(check_crash(place, earlier, operation.rule(earlier)))
        operation.run(place.model)
        assert ledger.read_state(place.model).head_number == earlier.head_number + 1
        assert place.aliases() == promotion_races.by_ledger(ledger.read_state(place.model))
    Journal(place.model, str(place.ledger)).read()  # the whole chain, read again
    assert CrashState(happened=False, stale=False) in states, "no kill came before the entry"
    assert CrashState(happened=True, stale=True) in states, "no kill came between the entry and the last alias"


@dataclass(frozen=True)
class CrashState:
    """The state after a crash: whether the event was recorded, and whether an alias was stale."""

    happened: bool
    stale: bool


def check_crash(place: Place, earlier: LedgerState, event: LedgerEvent | LedgerEntry) -> CrashState:
    """Check that the event was recorded or nothing was, and the report and the result of a repair."""
    state = Journal(place.model, str(place.ledger)).read()
    assert state.entries[: earlier.head_number] == earlier.entries
    assert [entry.event for entry in state.entries[earlier.head_number :]] in ([], [event])
    repair = aliases.repair_aliases(place.model)
    # No alias was moved by hand, and the repair does not report one.
    assert {alias.status for alias in repair} <= {"consistent", "stale", "missing"}, repair
    assert place.aliases() == promotion_races.by_ledger(state)
    assert was_consistent(aliases.repair_aliases(place.model))
    return CrashState(state.head_number > earlier.head_number, not was_consistent(repair))


@dataclass
class Fuse:
    """Ends this process before its n-th write, as a kill does: no handler runs, nothing is flushed."""

    number: int
    writes: int = 0

    def lay(self, report: Connection) -> None:
        """Guard every write of this process: of files, of links, and to the registry."""
        for owner, name in (
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (os, "fsync"),
            (os, "link"),
            (Path, "unlink"),
            (MlflowClient, "set_registered_model_alias"),
            (MlflowClient, "set_registered_model_tag"),
            (MlflowClient, "delete_registered_model_alias"),
        ):
            setattr(owner, name, self._guarded(getattr(owner, name), name, report))

    def _guarded(self, write: Callable[..., Any], name: str, report: Connection) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self.writes += 1
            if self.writes == self.number:
                report.send(name)
                os._exit(CRASHED)
            return write(*arguments, **options)

        return guarded


class Child:
    """A process that runs an operation on request."""

    def __init__(self, place: Place, operation: Operation, fuse: Fuse | None = None):
        self._line, child_end = promotion_races.processes().Pipe()
        self.process: BaseProcess = promotion_races.processes().Process(
            target=_child, args=(place, operation, fuse, child_end), daemon=True
        )
        self.process.start()
        child_end.close()
        assert self._line.recv() == "ready"

    def go(self) -> float:
        self._line.send("go")
        return time.monotonic()

    def died_at(self) -> str:
        """Return the write that ended the process, or an empty string."""
        try:
            return self._line.recv()
        except EOFError:
            return ""


def in_a_child(place: Place, operation: Operation, fuse: Fuse) -> tuple[int | None, str]:
    """Return the exit code, and the write that ended the process."""
    child = Child(place, operation, fuse)
    child.go()
    write = child.died_at()
    child.process.join()
    return child.process.exitcode, write


def _child(place: Place, operation: Operation, fuse: Fuse | None, line: Connection) -> None:
    place.enter()
    line.send("ready")
    line.recv()
    if fuse:
        fuse.lay(line)
    operation.run(place.model)
    line.send("")
