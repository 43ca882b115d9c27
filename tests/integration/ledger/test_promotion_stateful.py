"""Whatever is asked for, killed, and moved by hand, in any order: the rules hold, and repair makes it whole.

Real MLflow on SQLite. Every rule may be killed before or after any of its writes: of an entry, or of an alias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow import MlflowClient

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.ledger import ChampionRolledBack, LedgerEntry, VersionPromoted, VersionReleased
from evergreen.ledger.journal import _FolderStore
from evergreen.promotion import rules
from evergreen.registry import versions
from support.ledger_events import day
from support.ledgers import FOLLOWING, Book, Candidate

pytestmark = pytest.mark.integration

_NUMBERS = count()


class Killed(BaseException):
    """The process is gone: nothing catches it, nothing after it happens."""


class Fuse:
    """Kills at the boundary that it is set to: each write has one before and one after it."""

    left: int | None = None

    def burn(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    @contextmanager
    def set_to(self, boundary: int | None) -> Iterator[None]:
        self.left = boundary
        try:
            yield
        finally:
            self.left = None

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*arguments: Any, **named: Any) -> Any:
            self.burn()
            result = write(*arguments, **named)
            self.burn()
            return result

        return written


FUSE = Fuse()

# Where to kill, if at all. A promotion makes at most four writes: its entry, and three aliases.
KILLS = strategies.sampled_from([None, 0, 1, 2, 3, None, 4, 5, 6, 7])


class Ledger(RuleBasedStateMachine):
    folder: Path

    candidates = Bundle("candidates")

    def __init__(self) -> None:
        super().__init__()
        self.book = Book(f"model_{next(_NUMBERS)}", self.folder)
        self.known: tuple[LedgerEntry, ...] = ()
        self.by_hand: set[str] = set()

    def ask(self, kill: int | None, change: Callable[[], object]) -> None:
        """Do as a task does; when it is over, and was not killed, the aliases are right."""
        try:
            with FUSE.set_to(kill):
                change()
        except Killed:
            return
        except PromotionRefusedError:
            assert self.book.state.entries == self.known  # nothing was recorded
            return
        self.are_right()

    def are_right(self) -> None:
        state = self.book.state
        # Until the first promotion nothing is deleted.
        left = {} if state.tenures else self.book.aliases
        assert self.book.aliases == {**left, **self.book.right}
        if state.tenures:
            self.by_hand.clear()

    def commit(self, kill: int | None, decide: Callable[[ledger.LedgerState], Any]) -> None:
        def change() -> None:
            ledger.append_decision(self.book.model, "somebody", decide)
            versions.sync_aliases(self.book.model)

        self.ask(kill, change)

    @initialize(target=candidates, champions=strategies.integers(1, 3))
    def begin(self, champions: int) -> Any:
        return multiple(*(self.retrain(1, None) for _ in range(champions)), self.book.judge(20))

    @rule(
        target=candidates,
        days=strategies.integers(-5, 20),
        passed=strategies.sampled_from([True, True, False]),
    )
    def judge(self, days: int, passed: bool) -> Candidate:
        state = self.book.state
        newest = max((e.event.as_of for e in state.entries if e.event.kind == "judged"), default=None)
        start = (newest - day(0)).days if newest else 10
        return self.book.judge(max(start + days, 8), passed=passed)

    @rule(candidate=candidates, cooldown=strategies.sampled_from([0, 0, 10]), kill=KILLS)
    def promote(self, candidate: Candidate, cooldown: int, kill: int | None) -> None:
        self.ask(kill, lambda: self.book.promote(candidate, cooldown))

    @rule(target=candidates, days=strategies.integers(1, 20), kill=KILLS)
    def retrain(self, days: int, kill: int | None) -> Candidate:
        """A candidate that passed is promoted at once, so that there are champions to go back to."""
        known = self.book.state.champion_as_of
        candidate = self.book.judge((known - day(0)).days + days if known else 10)
        self.known = self.book.state.entries
        self.ask(kill, lambda: self.book.promote(candidate))
        return candidate

    @rule(candidate=candidates, kill=KILLS)
    def reject(self, candidate: Candidate, kill: int | None) -> None:
        judged, version = candidate.judged, candidate.version
        self.commit(kill, lambda state: rules.decide_rejection(state, version, judged, "grace", "no"))

    @precondition(lambda self: self.book.state.reigns)
    @rule(named=strategies.one_of(strategies.none(), strategies.integers(0, 9)), kill=KILLS)
    def rollback(self, named: int | None, kill: int | None) -> None:
        """To the version before, or one of the champions that there have been."""
        reigns = self.book.state.tenures
        to = None if named is None else reigns[named % len(reigns)].version
        leaving = reigns[-1].version
        self.commit(kill, lambda state: rules.decide_rollback(state, to, "late", expected_champion=leaving))

    @precondition(lambda self: self.book.state.barred)
    @rule(which=strategies.integers(0, 9), kill=KILLS)
    def release(self, which: int, kill: int | None) -> None:
        barred = sorted(self.book.state.barred_versions)
        self.commit(kill, lambda state: rules.decide_release(state, barred[which % len(barred)], "weather"))

    @precondition(lambda self: self.book.state.reigns and not self.book.state.frozen)
    @rule(kill=KILLS)
    def freeze(self, kill: int | None) -> None:
        self.commit(kill, lambda state: rules.decide_freeze(state, "cold"))

    @precondition(lambda self: self.book.state.frozen)
    @rule(kill=KILLS)
    def unfreeze(self, kill: int | None) -> None:
        self.commit(kill, lambda state: rules.decide_unfreeze(state, "warm"))

    @rule(candidate=candidates, alias=strategies.sampled_from(FOLLOWING))
    def move_by_hand(self, candidate: Candidate, alias: str) -> None:
        self.book.client.set_registered_model_alias(self.book.model, alias, candidate.version)
        self.by_hand.add(alias)

    @rule(alias=strategies.sampled_from(FOLLOWING))
    def delete_by_hand(self, alias: str) -> None:
        self.book.client.delete_registered_model_alias(self.book.model, alias)
        self.by_hand.add(alias)

    @rule(kill=KILLS)
    def repair(self, kill: int | None) -> None:
        found, by_hand = self.book.aliases, set(self.by_hand)
        told: list[versions.AliasRepair] = []
        self.ask(kill, lambda: told.append(versions.repair_aliases(self.book.model)))
        for alias in told[0].aliases if told else ():
            assert (alias.actual_version, alias.expected_version) == (
                found.get(alias.alias),
                self.book.right.get(alias.alias),
            )
            assert (alias.status == "right") == (alias.actual_version == alias.expected_version)
            # Nobody is accused of what a crash has done.
            assert alias.status != "moved by hand" or alias.alias in by_hand
        if told and self.book.state.tenures:
            assert versions.repair_aliases(self.book.model).was_consistent

    @invariant()
    def history_is_only_added_to(self) -> None:
        entries = self.book.state.entries
        assert entries[: len(self.known)] == self.known
        self.known = entries

    @invariant()
    def the_champion_changes_by_entries_that_allow_it(self) -> None:
        """Told from the entries alone, not by the fold that is under test."""
        champion, known, barred = None, {}, set()
        for entry in self.known:
            match entry.event:
                case VersionPromoted() as act:
                    assert act.version not in barred
                    assert act.previous_champion == champion
                    assert champion is None or known[champion] < act.as_of
                    champion = act.version
                    known[champion] = act.as_of
                case ChampionRolledBack() as act:
                    assert act.barred_version == champion
                    assert act.restored_version in known
                    assert act.restored_version not in barred
                    barred.add(champion)
                    champion = act.restored_version
                case VersionReleased() as act:
                    barred.remove(act.version)
        state = self.book.state
        assert (state.champion, state.barred_versions) == (champion, barred)
        assert state.champion_as_of == (known[champion] if champion else None)
        assert all(one.recorded_at <= other.recorded_at for one, other in pairwise(self.known))

    def teardown(self) -> None:
        """However it ended, one repair makes it whole."""
        self.ask(None, lambda: versions.repair_aliases(self.book.model))


def test_rules_and_repair(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    use_home: Callable[[Path], Path],
) -> None:
    home = use_home(tmp_path_factory.mktemp("home"))
    monkeypatch.setattr(_FolderStore, "create_if_absent", FUSE.around(_FolderStore.create_if_absent))
    for name in ("set_registered_model_alias", "delete_registered_model_alias"):
        monkeypatch.setattr(MlflowClient, name, FUSE.around(getattr(MlflowClient, name)))
    Ledger.folder = home
    run_state_machine_as_test(
        Ledger,
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],  # to explain a failure takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
