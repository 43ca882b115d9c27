"""A process dies at any write of a promotion or a rollback: repair finds a state that some serial order explains."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
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
from evergreen.registry import versions
from support import promotion_races
from support.promotion_races import CHALLENGER, CHAMPION, PREVIOUS, Place

pytestmark = pytest.mark.integration

KILLS = 30
CRASHED = 86
_FIRST = date(2013, 1, 6)


@dataclass(frozen=True)
class Operation:
    """What a task or a command does: record what a rule decides, and let the aliases follow."""

    rule: Callable[[LedgerState], LedgerEvent | LedgerEntry]
    by: str = "test"

    def run(self, model: str) -> LedgerEvent:
        entry = ledger.append_decision(model, self.by, self.rule)
        versions.sync_aliases(model)
        return entry.event


@dataclass
class Book:
    """A model whose changes happen one after the other, each with data a week newer than the one before."""

    place: Place
    versions: Sequence[str]
    week: int = 0

    def promotion(self, version: str, cooldown_days: int = 0) -> Operation:
        """Of a version that has just been judged against who is champion now."""
        request = promotion_races.judged(self.place.model, version, _FIRST + timedelta(weeks=self.week))
        self.week += 1
        return Operation(partial(rules.decide_promotion, request=request, cooldown_days=cooldown_days))

    def rollback(self, to: str | None = None) -> Operation:
        leaving = ledger.read_state(self.place.model).champion
        return Operation(
            partial(
                rules.decide_rollback,
                target_version=to,
                reason="worse in the shop",
                expected_champion=leaving,
            )
        )

    def promote(self, *versions: str) -> None:
        for version in versions:
            self.promotion(version).run(self.place.model)

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
    return book.rollback(to="1")


@pytest.mark.parametrize("mlflow_server", ["sqlite"], indirect=True)  # who dies is its client
@pytest.mark.parametrize(
    ("prepared", "act", "aliases"),
    [
        (first_promotion, VersionPromoted, {"champion": "1"}),
        (second_promotion, VersionPromoted, {"champion": "2", "previous": "1"}),
        (promotion_past_a_challenger, VersionPromoted, {"champion": "4", "previous": "2"}),
        (
            promotion_that_is_held_back,
            PromotionDeferred,
            {"champion": "2", "previous": "1", "challenger": "3"},
        ),
        (rollback_to_the_one_before, ChampionRolledBack, {"champion": "2", "previous": "3"}),
        (rollback_to_one_that_is_named, ChampionRolledBack, {"champion": "1", "previous": "4"}),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else "",
)
def test_whatever_write_it_dies_at_repair_gives_a_serial_state_and_a_retry_ends_it(
    place: Place, prepared: Callable[[Book], Operation], act: type[LedgerEvent], aliases: dict[str, str]
) -> None:
    died: list[str] = []
    happened: list[bool] = []
    for fuse in (Fuse(n, after) for n in count(1) for after in (False, True)):
        book = Book(place.another(), [])
        book.place.register(4)
        operation = prepared(book)
        before = ledger.read_state(book.place.model)
        code, write = in_a_child(book.place, operation, fuse)
        survived = code == 0
        assert survived or code == CRASHED
        died.append(write)
        happened.append(explained(book.place, before, operation.rule(before)).happened)
        assert isinstance(operation.run(book.place.model), act)
        assert ledger.read_state(book.place.model).head_number == before.head_number + 1, "a retry did it a second time"
        assert book.place.aliases() == aliases
        if survived:
            break
    # Each write was a place to die at, those before the entry was there and those after it; in this order.
    changed = sum(
        promotion_races.by_ledger(before).get(name) != aliases.get(name) for name in (CHAMPION, PREVIOUS, CHALLENGER)
    )
    written = died[:-1:2]
    assert written.count("link") == 1
    assert len([write for write in written if write.endswith("alias")]) == changed
    assert happened == sorted(happened)
    assert not happened[0]
    assert happened[-1]


def test_killed_at_any_moment_repair_gives_a_serial_state_and_a_retry_ends_it(place: Place) -> None:
    """Also between the writes, and while a server works on a request whose sender is gone."""
    dice = random.Random(20130101)
    book = Book(place, place.register(KILLS + 3))
    book.promote("1", "2")
    patience = 0.0
    left: list[Left] = []
    for number in range(KILLS + 1):
        rollback = number % 3 == 2
        operation = book.rollback() if rollback else book.promotion(book.versions[number + 2])
        before = ledger.read_state(place.model)
        child = Child(place, operation)
        began = child.go()
        if number == 0:  # how long it takes when it is left alone
            child.died_at()
            patience = time.monotonic() - began
            child.process.join()
        else:
            time.sleep(1.1 * patience * dice.random() ** 3)  # often early: the entry is quick, a request slow
            child.process.kill()
            child.process.join()
            time.sleep(0.5)  # a request that it has sent is still done
        assert child.process.exitcode in (0, -signal.SIGKILL)
        left.append(explained(place, before, operation.rule(before)))
        operation.run(place.model)
        assert ledger.read_state(place.model).head_number == before.head_number + 1
        assert place.aliases() == promotion_races.by_ledger(ledger.read_state(place.model))
    Journal(place.model, str(place.ledger)).read()  # the whole chain, afresh
    assert Left(happened=False, behind=False) in left, "no kill came before the entry"
    assert Left(happened=True, behind=True) in left, "no kill came between the entry and the last alias"


@dataclass(frozen=True)
class Left:
    """What a crash has left."""

    happened: bool
    behind: bool
    """whether an alias was not the ledger's"""


def explained(place: Place, before: LedgerState, act: LedgerEvent | LedgerEntry) -> Left:
    """Checks that the act happened, or nothing did, and what repair says of it and makes of it."""
    now = Journal(place.model, str(place.ledger)).read()
    assert now.entries[: before.head_number] == before.entries
    assert [entry.event for entry in now.entries[before.head_number :]] in ([], [act])
    repair = versions.repair_aliases(place.model)
    # Nobody has moved an alias by hand, and repair does not say so.
    assert {alias.status for alias in repair.aliases} <= {"right", "behind", "missing"}, repair.messages
    assert place.aliases() == promotion_races.by_ledger(now)
    assert versions.repair_aliases(place.model).was_consistent
    return Left(now.head_number > before.head_number, not repair.was_consistent)


@dataclass
class Fuse:
    """Ends this process at its n-th write, as a kill would: no handler runs, nothing is flushed."""

    at: int
    after: bool
    """whether the write is done first"""
    writes: int = 0

    def lay(self, report: Connection) -> None:
        """Let every write of this process go through the fuse: of files, of links, and to the registry."""
        for owner, name in (
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (os, "fsync"),
            (os, "link"),
            (Path, "unlink"),
            (MlflowClient, "set_registered_model_alias"),
            (MlflowClient, "delete_registered_model_alias"),
        ):
            setattr(owner, name, self._guarded(getattr(owner, name), name, report))

    def _guarded(self, write: Callable[..., Any], name: str, report: Connection) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self.writes += 1
            mine = self.writes == self.at
            if mine:
                report.send(name)
                if not self.after:
                    os._exit(CRASHED)
            done = write(*arguments, **options)
            if mine:
                os._exit(CRASHED)
            return done

        return guarded


class Child:
    """A process that does an operation when it is told to."""

    def __init__(self, place: Place, operation: Operation, fuse: Fuse | None = None):
        self._line, theirs = promotion_races.processes().Pipe()
        self.process: BaseProcess = promotion_races.processes().Process(
            target=_child, args=(place, operation, fuse, theirs), daemon=True
        )
        self.process.start()
        theirs.close()
        assert self._line.recv() == "ready"

    def go(self) -> float:
        self._line.send("go")
        return time.monotonic()

    def died_at(self) -> str:
        """The write that ended it, or nothing."""
        try:
            return self._line.recv()
        except EOFError:
            return ""


def in_a_child(place: Place, operation: Operation, fuse: Fuse) -> tuple[int | None, str]:
    """The exit code, and the write that it died at."""
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
