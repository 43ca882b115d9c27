"""Requests, kills and changes by hand in any order: the rules hold, and a repair restores the aliases.

Real MLflow on SQLite. Every operation may be killed before or after any write of an entry, a version or an alias.
Whoever changes MLflow by hand deletes versions and the whole model, registers versions, moves aliases, edits tags, and
replaces artifacts. Whatever is served is what the gates have judged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
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
from mlflow.exceptions import MlflowException

from evergreen import ledger, storage
from evergreen.errors import LedgerError, PromotionRefusedError, RegistryError, ScoringError
from evergreen.ledger import (
    ChallengerWithdrawn,
    ChampionLost,
    ChampionRolledBack,
    LedgerEntry,
    VerdictRecorded,
    VersionPromoted,
    VersionRegistered,
    VersionReleased,
)
from evergreen.promotion import looks, rules, service
from evergreen.promotion.service import PromotionRequest
from evergreen.registry import aliases, signing, versions
from evergreen.window import RunReason
from support.calendars import DAYS
from support.ledger_events import content as content_of_model
from support.ledger_events import day, look_event, model_bytes
from support.ledgers import COMPARISON, LEDGER_ALIASES, Book, Candidate, ledger_model

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
        self.numbers: dict[str, int] = {}  # by content

    def execute(self, kill: int | None, change: Callable[[], object], target: str | None = None) -> None:
        """Run `change` as a task does; unless it is killed, the aliases are consistent afterwards.

        It may fail if MLflow does not have the files of `target`, a content that it uses, or of the champion.
        """
        try:
            with FUSE.set_to(kill):
                change()
        except Killed:
            return
        except PromotionRefusedError:
            assert self.book.state.entries == self.known  # nothing was recorded
            return
        except (RegistryError, ScoringError):
            champion = self.book.state.champion_content
            assert (target and not self.is_intact(target)) or (champion and not self.is_intact(champion))
            return
        self.check_aliases()

    def check_aliases(self) -> None:
        state, aliases_ = self.book.state, self.book.aliases
        if not state.tenures:  # until the first promotion nothing is deleted
            return
        for alias, content in self.alias_contents().items():
            expected = self.book.expected_aliases.get(alias)
            if content is None or self.is_intact(content):
                assert aliases_.get(alias) == expected
            else:  # without the files of the ledger it is not set, and nothing else is
                assert aliases_.get(alias) in (None, expected)
        self.by_hand.clear()

    def alias_contents(self) -> dict[str, str | None]:
        state = self.book.state
        previous = state.previous_tenure.content if state.previous_tenure else None
        return dict(zip(LEDGER_ALIASES, (state.champion_content, previous, state.challenger_content), strict=True))

    def is_intact(self, content: str) -> bool:
        """Return whether MLflow has the files of a content. Derived from the entries, not by the code under test."""
        latest, manifest, names = None, None, {}
        for entry in self.book.state.entries:
            if isinstance(entry.event, VersionRegistered):
                judged = self.book.state.entries[entry.event.verdict_entry - 1].event
                names[entry.event.version] = judged.candidate_content
                if judged.candidate_content == content:
                    latest, manifest = entry.event.version, entry.event.manifest_sha256
        if latest is None or names[latest] != content:
            return False
        try:
            source = self.book.client.get_model_version(self.book.model, latest).source
        except MlflowException:
            return False
        folder, number = Path(source.removeprefix("file://")), self.numbers[content]
        actual = {file.name: file.read_bytes() for file in folder.glob("*")}
        return (
            actual.get("model.ubj") == model_bytes(number)
            and sha256(actual.get(signing.MANIFEST_FILE, b"")).hexdigest() == manifest
        )

    def remember(self, candidate: Candidate) -> Candidate:
        self.numbers[content_of_model(candidate.number)] = candidate.number
        return candidate

    def commit(self, kill: int | None, decide: Callable[[ledger.LedgerState], Any]) -> None:
        def change() -> None:
            ledger.append_decision(self.book.model, "somebody", decide)
            aliases.sync_aliases(self.book.model)

        self.execute(kill, change)

    @initialize(target=candidates, champions=strategies.integers(1, 3))
    def begin(self, champions: int) -> Any:
        return multiple(*(self.retrain(1, None) for _ in range(champions)), self.remember(self.book.judge(20)))

    @rule(
        target=candidates,
        days=strategies.integers(-5, 20),
        passed=strategies.sampled_from([True, True, False]),
    )
    def judge(self, days: int, passed: bool) -> Candidate:
        state = self.book.state
        newest = max((e.event.as_of for e in state.entries if e.event.kind == "judged"), default=None)
        start = DAYS.count(day(0), newest) if newest else 10
        return self.remember(self.book.judge(max(start + days, 8), passed=passed))

    @rule(target=candidates, candidate=candidates, days=strategies.integers(1, 20))
    def judge_again(self, candidate: Candidate, days: int) -> Candidate:
        """Judge the same model on newer data, as of a run whose training ends in the same bytes."""
        newest = max(e.event.as_of for e in self.book.state.entries if e.event.kind == "judged")
        return self.book.judge(DAYS.count(day(0), newest) + days, number=candidate.number)

    @rule(candidate=candidates, cooldown=strategies.sampled_from([0, 0, 10]), kill=KILLS)
    def promote(self, candidate: Candidate, cooldown: int, kill: int | None) -> None:
        model = ledger_model(self.book.model, cooldown)
        version = self.book.state.name_of(content_of_model(candidate.number), candidate.version)
        request = PromotionRequest(candidate.verdict_entry, version, RunReason.SCHEDULE)
        self.execute(
            kill,
            lambda: service.promote_version(model, request, actor="retrain"),
            content_of_model(candidate.number),
        )

    @rule(candidate=candidates, other=candidates)
    def promote_another(self, candidate: Candidate, other: Candidate) -> None:
        """Ask for the version of one candidate by the verdict on another."""
        if candidate.number == other.number:
            return
        request = PromotionRequest(candidate.verdict_entry, other.version, RunReason.SCHEDULE)
        with suppress(RegistryError, ScoringError, PromotionRefusedError):
            service.promote_version(ledger_model(self.book.model), request, actor="retrain")
        # A number may have been given again to the candidate itself.
        names = {
            e.event.version: self.book.state.entries[e.event.verdict_entry - 1].event.candidate_content
            for e in self.book.state.entries
            if isinstance(e.event, VersionRegistered)
        }
        if names[other.version] != content_of_model(candidate.number):
            assert self.book.state.entries == self.known

    @rule(target=candidates, days=strategies.integers(1, 20), kill=KILLS)
    def retrain(self, days: int, kill: int | None) -> Candidate:
        """Promote a candidate that passed at once, so that there are champions to restore."""
        champion_as_of = self.book.state.champion_as_of
        candidate = self.remember(self.book.judge(DAYS.count(day(0), champion_as_of) + days if champion_as_of else 10))
        self.known = self.book.state.entries
        self.execute(kill, lambda: self.book.promote(candidate))
        return candidate

    @precondition(lambda self: self.book.state.tenures)
    @rule(target=candidates, days=strategies.integers(1, 20))
    def judge_inconclusive(self, days: int) -> Any:
        """A candidate becomes the challenger, if there is none."""
        state = self.book.state
        newest = max(e.event.as_of for e in state.entries if e.event.kind == "judged")
        try:
            candidate = self.book.judge(DAYS.count(day(0), newest) + days, is_inconclusive=True)
        except LedgerError:
            assert state.challenger or not state.champion, "one at a time, against the champion"
            return multiple()
        assert not state.challenger
        return self.remember(candidate)

    @precondition(lambda self: self.book.state.open_comparison)
    @rule(outcome=strategies.sampled_from(["inconclusive", "passed", "failed"]), kill=KILLS)
    def look(self, outcome: Any, kill: int | None) -> None:
        """Look at the challenger once more, whoever is champion now."""
        before = self.book.state

        def decide(state: ledger.LedgerState) -> VerdictRecorded:
            number, newest = state.open_comparison, state.challenger_event
            first = state.find_verdict_event(number)
            return look_event(first, outcome, 1 + len(newest.verdict.results[0].looks), number)

        if before.challenger_event.champion_content == before.champion_content:
            self.commit(kill, decide)
            return
        with pytest.raises(LedgerError, match="it compares with another champion"):
            self.commit(None, decide)

    @precondition(lambda self: self.book.state.challenger)
    @rule(is_obsolete=strategies.booleans(), kill=KILLS)
    def withdraw(self, is_obsolete: bool, kill: int | None) -> None:
        """A person withdraws the challenger, or the monitor DAG does if it can become champion no more."""
        model, state = ledger_model(self.book.model, gates=[COMPARISON]), self.book.state
        if not is_obsolete:
            self.execute(kill, lambda: looks.withdraw_challenger(model, "no use", actor="ada"))
            return
        self.execute(kill, lambda: looks.withdraw_obsolete_challenger(model, day(0), actor="monitor"))
        if state.challenger_event.champion_content == state.champion_content and state.open_comparison:
            assert self.book.state.entries == self.known, "it may still prove itself"
        elif kill is None and state.open_comparison:
            assert not self.book.state.challenger

    @precondition(lambda self: self.book.state.challenger and not self.book.state.open_comparison)
    @rule(cooldown=strategies.sampled_from([0, 0, 10]), kill=KILLS)
    def promote_challenger(self, cooldown: int, kill: int | None) -> None:
        """As the monitor DAG, once the challenger has passed."""
        state, model = self.book.state, ledger_model(self.book.model, cooldown, [COMPARISON])
        request = PromotionRequest(state.challenger_verdict, state.challenger, RunReason.SCHEDULE)
        self.execute(kill, lambda: service.promote_version(model, request, actor="monitor"), state.challenger_content)

    @rule(candidate=candidates, kill=KILLS)
    def reject(self, candidate: Candidate, kill: int | None) -> None:
        verdict_entry, version = candidate.verdict_entry, candidate.version
        self.commit(kill, lambda state: rules.decide_rejection(state, version, verdict_entry, "grace", "no"))

    @precondition(lambda self: self.book.state.tenures)
    @rule(named=strategies.one_of(strategies.none(), strategies.integers(0, 9)), kill=KILLS)
    def rollback(self, named: int | None, kill: int | None) -> None:
        """Restore the previous champion, or any earlier one."""
        state = self.book.state
        tenure = None if named is None else state.tenures[named % len(state.tenures)]
        version = (
            state.name_of(tenure.content, tenure.version) if tenure else next(rules.restorable_versions(state), "")
        )
        model, content = ledger_model(self.book.model), state.content_of(version)
        self.execute(
            kill,
            lambda: service.roll_back_champion(
                model, version if tenure else None, "late", actor="ada", expected_champion=state.champion
            ),
            content,
        )

    @precondition(lambda self: self.book.state.champion)
    @rule(is_restoring=strategies.booleans(), kill=KILLS)
    def declare_lost(self, is_restoring: bool, kill: int | None) -> None:
        state = self.book.state
        is_intact = self.is_intact(state.champion_content)
        model = ledger_model(self.book.model)
        self.execute(kill, lambda: service.declare_champion_lost(model, "gone", actor="ada", is_restoring=is_restoring))
        if is_intact:
            assert self.book.state.entries == self.known, "what is there cannot be lost"

    @rule(candidate=candidates, kill=KILLS)
    def register_again(self, candidate: Candidate, kill: int | None) -> None:
        """Register a judged model, as a run that is cleared: after a deletion, or although it is registered."""
        with suppress(Killed), FUSE.set_to(kill):
            self.book.register_again(candidate)

    @rule(candidate=candidates)
    def delete_version(self, candidate: Candidate) -> None:
        with suppress(MlflowException):
            self.book.client.delete_model_version(self.book.model, candidate.version)

    @rule()
    def delete_model(self) -> None:
        with suppress(MlflowException):
            self.book.client.delete_registered_model(self.book.model)

    @rule()
    def register_by_hand(self) -> None:
        """Register a version that nobody has judged; after a deletion it may have the champion's number."""
        self.book.register()

    @rule(candidate=candidates, name=strategies.sampled_from(["holdout", "fingerprint", "manifest"]))
    def edit_tag(self, candidate: Candidate, name: str) -> None:
        with suppress(MlflowException):
            self.book.client.set_model_version_tag(
                self.book.model, candidate.version, f"evergreen.{name}", "2030-01-01"
            )

    @rule(candidate=candidates, other=candidates)
    def replace_files(self, candidate: Candidate, other: Candidate) -> None:
        """Put the files of one candidate in the place of those of another."""
        if candidate.number != other.number:
            for file in self.book.files(other).iterdir():
                shutil.copy(file, self.book.files(candidate))

    @rule()
    def serve(self) -> None:
        """Load the champion as a server does: it is the model that was judged, or there is an error."""
        content = self.book.state.champion_content
        try:
            with versions.open_champion(self.book.model) as (folder, _):
                assert (folder / "model.ubj").read_bytes() == model_bytes(self.numbers[content])
        except (RegistryError, ScoringError):
            assert content is None or not self.is_intact(content)
        else:
            assert content
            assert self.is_intact(content)

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
        with suppress(MlflowException):  # it was deleted
            self.book.client.set_registered_model_alias(self.book.model, alias, candidate.version)
            self.by_hand.add(alias)

    @rule(alias=strategies.sampled_from(LEDGER_ALIASES))
    def delete_by_hand(self, alias: str) -> None:
        with suppress(MlflowException):
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
            if alias.status == "unavailable":
                content = self.alias_contents()[alias.alias]
                assert content
                assert not self.is_intact(content)
                continue
            assert (alias.status == "consistent") == (alias.actual_version == alias.expected_version)
            # A crash is not reported as a manual change.
            assert alias.status != "moved_by_hand" or alias.alias in by_hand
        if repairs and self.book.state.tenures:
            statuses = {alias.status for alias in aliases.repair_aliases(self.book.model)}
            assert statuses <= {"consistent", "unavailable"}

    @invariant()
    def history_is_only_added_to(self) -> None:
        entries = self.book.state.entries
        assert entries[: len(self.known)] == self.known
        self.known = entries

    @invariant()
    def the_champion_changes_by_entries_that_allow_it(self) -> None:
        """Derived from the entries alone, not by the code under test."""
        champion, as_of_by_content, barred = None, {}, set()
        names: dict[str, str] = {}
        faults: dict[str, int] = {}  # the last entry by which a content was barred, released or lost
        used: set[int] = set()
        for entry in self.known:
            match entry.event:
                case VersionRegistered() as event:
                    names[event.version] = self.known[event.verdict_entry - 1].event.candidate_content
                case VersionPromoted() as event:
                    judged = self.known[event.verdict_entry - 1].event
                    content = judged.candidate_content
                    assert names[event.version] == content
                    assert judged.verdict.promote
                    assert judged.as_of == event.as_of
                    assert judged.champion_content == champion
                    assert content not in barred
                    assert event.verdict_entry > faults.get(content, 0)
                    assert event.verdict_entry not in used
                    assert champion is None or as_of_by_content[champion] < event.as_of
                    used.add(event.verdict_entry)
                    champion = content
                    as_of_by_content[champion] = event.as_of
                case ChampionRolledBack() as event:
                    barred.add(champion)
                    faults[champion] = entry.number
                    champion = self.named(names, event.restored_version)
                    assert champion in as_of_by_content
                    assert champion not in barred
                case ChampionLost() as event:
                    faults[champion] = entry.number
                    champion = event.restored_version and self.named(names, event.restored_version)
                    assert champion is None or (champion in as_of_by_content and champion not in barred)
                case VersionReleased() as event:
                    content = self.named(names, event.version)
                    barred.remove(content)
                    faults[content] = entry.number
        state = self.book.state
        assert (state.champion_content, state.barred_contents.keys()) == (champion, barred)
        assert state.champion_as_of == (as_of_by_content[champion] if champion else None)
        assert all(entry_.recorded_at <= next_entry.recorded_at for entry_, next_entry in pairwise(self.known))

    @invariant()
    def every_comparison_is_counted_once_it_has_ended(self) -> None:
        """Derived from the entries alone: the first looks, and by which verdicts nothing is promoted any more."""
        begun, ended = [], set()
        for entry in self.book.state.entries:
            match entry.event:
                case VerdictRecorded(later_look=None) as event if event.spends_alpha:
                    begun.append(entry.number)
                case ChallengerWithdrawn() as event:
                    ended.add(event.verdict_entry)
                case VersionPromoted() as event:
                    assert event.verdict_entry not in ended
        state = self.book.state
        assert len(state.comparisons) + (state.open_comparison is not None) == len(begun)
        assert state.open_comparison in (None, *begun[-1:])
        assert state.challenger_event is None or state.challenger_event.candidate_content == state.challenger_content

    def named(self, names: dict[str, str], version: str) -> str:
        """Return the content that a version, or the beginning of its hash, stands for."""
        return names.get(version) or next(content for content in self.numbers if content.startswith(version))

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
    for name in ("set_registered_model_alias", "delete_registered_model_alias", "create_model_version"):
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
