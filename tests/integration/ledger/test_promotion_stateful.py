"""Requests, kills and manual changes of aliases in any order: the rules hold, and a repair restores the aliases.

Real MLflow on SQLite. Every operation may be killed before or after any write of an entry or an alias.
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

from evergreen import ledger, storage
from evergreen.errors import PromotionRefusedError
from evergreen.ledger import ChampionRolledBack, LedgerEntry, VersionPromoted, VersionReleased
from evergreen.promotion import rules
from evergreen.registry import aliases
from support.ledger_events import day
from support.ledgers import LEDGER_ALIASES, Book, Candidate, was_consistent

pytestmark = pytest.mark.integration

_NUMBERS = count()


class Killed(BaseException):
    """Ends the operation as a kill would: nothing catches it."""


class Fuse:
    """Kills before or after the n-th write: each write has a boundary on both sides."""

    remaining: int | None = None

    def burn(self) -> None:
        if self.remaining is not None:
            self.remaining -= 1
            if self.remaining < 0:
                raise Killed

    @contextmanager
    def set_to(self, boundary: int | None) -> Iterator[None]:
        self.remaining = boundary
        try:
            yield
        finally:
            self.remaining = None

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

    def execute(self, kill: int | None, change: Callable[[], object]) -> None:
        """Run `change` as a task does; unless it is killed, the aliases are consistent afterwards."""
        try:
            with FUSE.set_to(kill):
                change()
        except Killed:
            return
        except PromotionRefusedError:
            assert self.book.state.entries == self.known  # nothing was recorded
            return
        self.check_aliases()

    def check_aliases(self) -> None:
        state = self.book.state
        # Until the first promotion nothing is deleted.
        kept_aliases = {} if state.tenures else self.book.aliases
        assert self.book.aliases == {**kept_aliases, **self.book.expected_aliases}
        if state.tenures:
            self.by_hand.clear()

    def commit(self, kill: int | None, decide: Callable[[ledger.LedgerState], Any]) -> None:
        def change() -> None:
            ledger.append_decision(self.book.model, "somebody", decide)
            aliases.sync_aliases(self.book.model)

        self.execute(kill, change)

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
        self.execute(kill, lambda: self.book.promote(candidate, cooldown))

    @rule(target=candidates, days=strategies.integers(1, 20), kill=KILLS)
    def retrain(self, days: int, kill: int | None) -> Candidate:
        """Promote a candidate that passed at once, so that there are champions to restore."""
        champion_as_of = self.book.state.champion_as_of
        candidate = self.book.judge((champion_as_of - day(0)).days + days if champion_as_of else 10)
        self.known = self.book.state.entries
        self.execute(kill, lambda: self.book.promote(candidate))
        return candidate

    @rule(candidate=candidates, kill=KILLS)
    def reject(self, candidate: Candidate, kill: int | None) -> None:
        verdict_entry, version = candidate.verdict_entry, candidate.version
        self.commit(kill, lambda state: rules.decide_rejection(state, version, verdict_entry, "grace", "no"))

    @precondition(lambda self: self.book.state.tenures)
    @rule(named=strategies.one_of(strategies.none(), strategies.integers(0, 9)), kill=KILLS)
    def rollback(self, named: int | None, kill: int | None) -> None:
        """Restore the previous champion, or any earlier one."""
        tenures = self.book.state.tenures
        target = None if named is None else tenures[named % len(tenures)].version
        champion = tenures[-1].version
        self.commit(kill, lambda state: rules.decide_rollback(state, target, "late", expected_champion=champion))

    @precondition(lambda self: self.book.state.barred_versions)
    @rule(index=strategies.integers(0, 9), kill=KILLS)
    def release(self, index: int, kill: int | None) -> None:
        barred = sorted(self.book.state.barred_versions)
        self.commit(kill, lambda state: rules.decide_release(state, barred[index % len(barred)], "weather"))

    @precondition(lambda self: self.book.state.tenures and not self.book.state.is_frozen)
    @rule(kill=KILLS)
    def freeze(self, kill: int | None) -> None:
        self.commit(kill, lambda state: rules.decide_freeze(state, "cold"))

    @precondition(lambda self: self.book.state.is_frozen)
    @rule(kill=KILLS)
    def unfreeze(self, kill: int | None) -> None:
        self.commit(kill, lambda state: rules.decide_unfreeze(state, "warm"))

    @rule(candidate=candidates, alias=strategies.sampled_from(LEDGER_ALIASES))
    def move_by_hand(self, candidate: Candidate, alias: str) -> None:
        self.book.client.set_registered_model_alias(self.book.model, alias, candidate.version)
        self.by_hand.add(alias)

    @rule(alias=strategies.sampled_from(LEDGER_ALIASES))
    def delete_by_hand(self, alias: str) -> None:
        self.book.client.delete_registered_model_alias(self.book.model, alias)
        self.by_hand.add(alias)

    @rule(kill=KILLS)
    def repair(self, kill: int | None) -> None:
        aliases_before, by_hand = self.book.aliases, set(self.by_hand)
        repairs: list[tuple[aliases.AliasStatus, ...]] = []
        self.execute(kill, lambda: repairs.append(aliases.repair_aliases(self.book.model)))
        for alias in repairs[0] if repairs else ():
            assert (alias.actual_version, alias.expected_version) == (
                aliases_before.get(alias.alias),
                self.book.expected_aliases.get(alias.alias),
            )
            assert (alias.status == "consistent") == (alias.actual_version == alias.expected_version)
            # A crash is not reported as a manual change.
            assert alias.status != "moved_by_hand" or alias.alias in by_hand
        if repairs and self.book.state.tenures:
            assert was_consistent(aliases.repair_aliases(self.book.model))

    @invariant()
    def history_is_only_added_to(self) -> None:
        entries = self.book.state.entries
        assert entries[: len(self.known)] == self.known
        self.known = entries

    @invariant()
    def the_champion_changes_by_entries_that_allow_it(self) -> None:
        """Derived from the entries alone, not by the code under test."""
        champion, as_of_by_version, barred = None, {}, set()
        for entry in self.known:
            match entry.event:
                case VersionPromoted() as event:
                    assert event.version not in barred
                    assert event.previous_champion == champion
                    assert champion is None or as_of_by_version[champion] < event.as_of
                    champion = event.version
                    as_of_by_version[champion] = event.as_of
                case ChampionRolledBack() as event:
                    assert event.barred_version == champion
                    assert event.restored_version in as_of_by_version
                    assert event.restored_version not in barred
                    barred.add(champion)
                    champion = event.restored_version
                case VersionReleased() as event:
                    barred.remove(event.version)
        state = self.book.state
        assert (state.champion, state.barred_versions) == (champion, barred)
        assert state.champion_as_of == (as_of_by_version[champion] if champion else None)
        assert all(entry_.recorded_at <= next_entry.recorded_at for entry_, next_entry in pairwise(self.known))

    def teardown(self) -> None:
        """One repair is enough after any sequence."""
        self.execute(None, lambda: aliases.repair_aliases(self.book.model))


def test_rules_and_repair_for_any_sequence(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    use_home: Callable[[Path], Path],
) -> None:
    home = use_home(tmp_path_factory.mktemp("home"))
    monkeypatch.setattr(storage, "create_if_absent", FUSE.around(storage.create_if_absent))
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
