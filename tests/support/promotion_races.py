"""Processes that each promote another version of one model at the same moment, round after round.

The same race is run by several ways to promote: Evergreen's, and two that a user of bare MLflow would write.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date, timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.gates import GateResult
from evergreen.gates import decide_verdict as verdict
from evergreen.ledger import LedgerEntry, LedgerEvent, LedgerState, VerdictRecorded, VersionPromoted
from evergreen.promotion import rules
from evergreen.registry import versions
from evergreen.settings import settings
from evergreen.window import RunReason

RACERS = 16
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
AGAINST_ANOTHER, NOT_NEWER = "was judged against", "not newer"  # parts of what refusals say

_EPOCH = date(2013, 1, 1)
_PATIENCE = 300.0  # seconds; a round takes a few
# The last is what MLflow imports for its first request; with it comes Feast, which adds a header to each.
_IMPORTED = [
    "evergreen.registry.versions",
    "evergreen.promotion.rules",
    "mlflow.tracking.request_header.registry",
]

VERDICT = verdict(
    [GateResult(gate="auc", outcome="passed", candidate=0.7, threshold=0.6, rows=1000, reason="0.7, at least 0.6")]
)


@dataclass(frozen=True)
class Place:
    """Where a model lives: its registry and its ledger."""

    mlflow: str
    ledger: Path
    model: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {"EVERGREEN_MLFLOW": self.mlflow, "EVERGREEN_LEDGER": str(self.ledger)}

    def enter(self) -> None:
        """Let the settings of this process point here."""
        os.environ.update(self.environment)
        settings.cache_clear()

    def another(self) -> Place:
        """A model beside this one, that nobody knows yet."""
        return replace(self, model=f"m{uuid.uuid4().hex}")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.mlflow)

    def aliases(self) -> Mapping[str, str]:
        """Alias → version, as MLflow tells it."""
        return {name: str(v) for name, v in self.client.get_registered_model(self.model).aliases.items()}

    def register(self, versions: int) -> list[str]:
        """Make the model with as many versions. They have no files: what is tested is who points at them."""
        client = self.client
        client.create_registered_model(self.model)
        run = client.create_run(client.create_experiment(self.model)).info
        # It says of each version that it waits for it, and never has to.
        logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)
        return [
            str(client.create_model_version(self.model, f"{run.artifact_uri}/model", run.run_id).version)
            for _ in range(versions)
        ]


@dataclass(frozen=True)
class Told:
    """What a racer was told when it was done."""

    version: str
    replaced: str | None
    """the champion that it took the place of, as far as it knows"""
    promoted: bool
    reason: str = ""
    decisions: int = 1
    """how often it has decided: once more for each entry that another wrote before it could"""


@dataclass(frozen=True)
class Round:
    before: str | None
    """the champion"""
    told: tuple[Told, ...]
    aliases: Mapping[str, str]
    """afterwards"""

    @property
    def promoted(self) -> list[Told]:
        return [told for told in self.told if told.promoted]

    @property
    def unseen(self) -> int:
        """Promotions that went by unseen: nobody replaced them, and they are not champion either."""
        replaced = {told.replaced for told in self.promoted}
        return sum(told.version not in {*replaced, self.aliases.get(CHAMPION)} for told in self.promoted)

    @property
    def contradicts(self) -> bool:
        """Whether alias `previous` is not what the holder of alias `champion` has replaced."""
        champion = self.aliases.get(CHAMPION)
        return [self.aliases.get(PREVIOUS)] != [t.replaced for t in self.promoted if t.version == champion]

    @property
    def serial(self) -> bool:
        """Whether promotions one after the other, in some order, explain all that was told and what is left."""
        after = {told.replaced: told.version for told in self.promoted}
        history = [self.before]
        while (last := history[-1]) in after:
            history.append(after.pop(last))
        # What is left replaced a champion that another had replaced before.
        return len(history) == len(self.promoted) + 1 and not self.contradicts


def by_ledger(state: LedgerState) -> Mapping[str, str]:
    """The aliases that follow from the ledger."""
    aliases = {CHAMPION: state.champion, PREVIOUS: state.previous_champion, CHALLENGER: state.challenger}
    return {alias: version for alias, version in aliases.items() if version}


def processes() -> ForkServerContext:
    """How processes are made here.

    A fork of a process with threads may hang, and pytest's has some by now. These are forked from a process that has
    done nothing but import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


Way = Callable[[Place, str, date], Callable[[], Told]]
"""Prepares the promotion of a version that knows the data before a day; what it gives promotes it."""


def evergreen(place: Place, version: str, as_of: date) -> Callable[[], Told]:
    request = judged(place.model, version, as_of)

    def promote() -> Told:
        decisions = 0

        def decide(state: LedgerState) -> LedgerEvent | LedgerEntry:
            nonlocal decisions
            decisions += 1
            return rules.decide_promotion(state, request, cooldown_days=0)

        try:
            entry = ledger.append_decision(place.model, version, decide)
        except PromotionRefusedError as refused:
            return Told(version, request.champion_version, False, str(refused), decisions)
        assert isinstance(entry.event, VersionPromoted), entry.event
        versions.sync_aliases(place.model)
        return Told(version, entry.event.previous_champion, True, decisions=decisions)

    return promote


def judging_again(place: Place, version: str, as_of: date) -> Callable[[], Told]:
    """Evergreen's, by runs that are cleared when they came too late: several promote in a round, and all follow."""

    def promote() -> Told:
        while True:
            told = evergreen(place, version, as_of)()
            if told.promoted or AGAINST_ANOTHER not in told.reason:
                return told

    return promote


def by_hand(place: Place, version: str, as_of: date) -> Callable[[], Told]:
    """As it is done where MLflow is the only book: note who is champion, then set both aliases."""
    client = place.client

    def promote() -> Told:
        before = _champion(client, place.model)
        if before:
            client.set_registered_model_alias(place.model, PREVIOUS, before)
        client.set_registered_model_alias(place.model, CHAMPION, version)
        return Told(version, before, True)

    return promote


def looking_first(place: Place, version: str, as_of: date) -> Callable[[], Told]:
    """More careful: give up if the champion is not the one any more that this version was judged against."""
    against = _champion(place.client, place.model)
    careless = by_hand(place, version, as_of)

    def promote() -> Told:
        if _champion(place.client, place.model) != against:
            return Told(version, against, False, AGAINST_ANOTHER)
        return careless()

    return promote


def judged(model: str, version: str, as_of: date) -> rules.ResolvedPromotionRequest:
    """A verdict for `version` in the ledger, against who is champion now, and the request that rests on it."""
    champion = ledger.read_state(model).champion
    entry = ledger.append_decision(
        model,
        version,
        lambda state: VerdictRecorded(
            run=f"retrain {as_of}",
            run_reason=RunReason.SCHEDULE.value,
            as_of=as_of,
            holdout=(as_of - timedelta(days=7), as_of),
            candidate_fingerprint=f"candidate {version}",
            champion_version=champion,
            verdict=VERDICT,
            evidence={},
            fingerprints={},
        ),
    )
    return rules.ResolvedPromotionRequest(
        version=version,
        as_of=as_of,
        run_reason=RunReason.SCHEDULE,
        verdict=VERDICT,
        verdict_entry=entry.number,
        champion_version=champion,
        approved_by=None,
        promote_backfill=False,
    )


def race(place: Place, way: Way, versions: Sequence[str], rounds: int, racers: int = RACERS) -> Iterator[Round]:
    """The rounds, one by one. The racers are processes that live through all of them.

    In each round the versions know newer data than in the one before, and the last racer's is the newest.

    Args:
        versions: registered, two for each racer, who takes them in turns: one of them may be champion.
    """
    context = processes()
    start = context.Barrier(racers)
    with ExitStack() as stack:
        lines = []
        for _ in range(racers):
            ours, theirs = context.Pipe()
            racer = context.Process(target=_racer, args=(place, way, start, theirs), daemon=True)
            racer.start()
            theirs.close()
            stack.callback(racer.join)
            lines.append(stack.enter_context(ours))
        for number in range(rounds):
            before = place.aliases().get(CHAMPION)
            for k, line in enumerate(lines):
                version = versions[k + number % 2 * racers]
                line.send((version, _EPOCH + timedelta(days=number * racers + k)))
            told = tuple(_answer(line) for line in lines)
            yield Round(before, told, place.aliases())


def _racer(place: Place, way: Way, start: Barrier, line: Connection) -> None:
    place.enter()
    try:
        while True:
            version, as_of = line.recv()
            promote = way(place, version, as_of)
            start.wait(_PATIENCE)
            line.send(promote())
    except EOFError:
        return  # the race is over
    except Exception:
        start.abort()
        line.send(traceback.format_exc())


def _answer(line: Connection) -> Told:
    assert line.poll(_PATIENCE), "a racer hangs"
    told = line.recv()
    assert isinstance(told, Told), told
    return told


def _champion(client: MlflowClient, model: str) -> str | None:
    try:
        return str(client.get_model_version_by_alias(model, CHAMPION).version)
    except MlflowException:
        return None
