"""Races of processes that promote different versions of one model at the same moment, round after round.

The same race is run with Evergreen's promotion and with two that a user of MLflow alone would write.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
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
from evergreen.ledger import LedgerEntry, LedgerEvent, LedgerState, VerdictRecorded, VersionPromoted, VersionRegistered
from evergreen.promotion import rules
from evergreen.registry import aliases
from evergreen.settings import settings
from evergreen.window import RunReason
from support.calendars import cooldown, later
from support.ledger_events import INPUTS, model_files
from support.model_folders import model_manifest_sha256, write_model_folder

RACERS = 16
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
AGAINST_ANOTHER, NOT_NEWER = "was judged against", "not newer"  # parts of what refusals say

_EPOCH = "2013-01-01"
_PATIENCE = 300.0  # seconds; a round takes a few
# The last is what MLflow imports for its first request; with it comes Feast, which adds a header to each.
_IMPORTED = [
    "evergreen.registry.aliases",
    "evergreen.promotion.rules",
    "mlflow.tracking.request_header.registry",
]

VERDICT = verdict(
    [GateResult(gate="auc", outcome="passed", candidate=0.7, threshold=0.6, rows=1000, reason="0.7, at least 0.6")]
)


@dataclass(frozen=True)
class Place:
    """A model in a registry and a ledger."""

    mlflow: str
    ledger: Path
    model: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {"EVERGREEN_MLFLOW": self.mlflow, "EVERGREEN_LEDGER": str(self.ledger)}

    def enter(self) -> None:
        """Set the settings of this process to this registry and ledger."""
        os.environ.update(self.environment)
        settings.cache_clear()

    def new_model(self) -> Place:
        """Return a new model in the same registry and ledger."""
        return replace(self, model=f"m{uuid.uuid4().hex}")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.mlflow)

    def aliases(self) -> Mapping[str, str]:
        """Return alias → version, as MLflow reports it."""
        return {name: str(v) for name, v in self.client.get_registered_model(self.model).aliases.items()}

    def register(self, versions: int) -> list[str]:
        """Create the model with as many versions, the n-th with the files of the model of day n."""
        client = self.client
        client.create_registered_model(self.model)
        run = client.create_run(client.create_experiment(self.model)).info
        # It logs for each version that it waits for it, and never has to.
        logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory() as scratch:
            for number in range(1, versions + 1):
                write_model_folder(Path(scratch, f"model-{number}"), self.model, f"candidate {number}", number)
            client.log_artifacts(run.run_id, scratch)
        return [
            str(client.create_model_version(self.model, f"{run.artifact_uri}/model-{number}", run.run_id).version)
            for number in range(1, versions + 1)
        ]


@dataclass(frozen=True)
class RaceResult:
    """The result of one racer.

    Attributes:
        previous_champion: the champion that it replaced, as far as it knows.
        decisions: how often it decided: once more for each entry that another racer wrote first.
    """

    version: str
    previous_champion: str | None
    promoted: bool
    reason: str = ""
    decisions: int = 1


@dataclass(frozen=True)
class Round:
    """One round of a race: the champion before it, the racers' results, and the aliases after it."""

    champion_before: str | None
    results: tuple[RaceResult, ...]
    aliases: Mapping[str, str]

    @property
    def promoted(self) -> list[RaceResult]:
        return [result for result in self.results if result.promoted]

    @property
    def lost_promotions(self) -> int:
        """Return the number of promoted versions that nobody replaced and that are not champion either."""
        previous_champions = {result.previous_champion for result in self.promoted}
        return sum(result.version not in {*previous_champions, self.aliases.get(CHAMPION)} for result in self.promoted)

    @property
    def has_mixed_aliases(self) -> bool:
        """Return whether alias `previous` is not the version that the holder of alias `champion` replaced."""
        champion = self.aliases.get(CHAMPION)
        return [self.aliases.get(PREVIOUS)] != [t.previous_champion for t in self.promoted if t.version == champion]

    @property
    def is_serial(self) -> bool:
        """Return whether promotions one after the other, in some order, explain all results and the aliases."""
        successors = {result.previous_champion: result.version for result in self.promoted}
        history = [self.champion_before]
        while (last := history[-1]) in successors:
            history.append(successors.pop(last))
        # Other promotions replaced a champion that had been replaced before.
        return len(history) == len(self.promoted) + 1 and not self.has_mixed_aliases


def by_ledger(state: LedgerState) -> Mapping[str, str]:
    """Return the aliases that the ledger requires."""
    aliases = {CHAMPION: state.champion, PREVIOUS: state.previous_champion, CHALLENGER: state.challenger}
    return {alias: version for alias, version in aliases.items() if version}


def processes() -> ForkServerContext:
    """Return the context that starts processes.

    A fork of a process with threads, such as pytest's, may hang. These are forked from a process that has only imported
    modules.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


Promoter = Callable[[Place, str, date], Callable[[], RaceResult]]
"""Prepares the promotion of a version with data until a day, and returns a function that promotes it."""


def evergreen(place: Place, version: str, as_of: date) -> Callable[[], RaceResult]:
    request = request_promotion(place.model, version, as_of)
    expected_champion = ledger.read_verdict_event(place.model, request.verdict_entry).champion_version

    def promote() -> RaceResult:
        decisions = 0

        def decide(state: LedgerState) -> LedgerEvent | LedgerEntry:
            nonlocal decisions
            decisions += 1
            return rules.decide_promotion(state, request, **cooldown(0))

        try:
            entry = ledger.append_decision(place.model, version, decide)
        except PromotionRefusedError as error:
            return RaceResult(version, expected_champion, False, str(error), decisions)
        assert isinstance(entry.event, VersionPromoted), entry.event
        aliases.sync_aliases(place.model)
        return RaceResult(version, entry.event.previous_champion, True, decisions=decisions)

    return promote


def evergreen_with_retry(place: Place, version: str, as_of: date) -> Callable[[], RaceResult]:
    """Promote by runs that are cleared when they are too late: several promote in a round."""

    def promote() -> RaceResult:
        while True:
            result = evergreen(place, version, as_of)()
            if result.promoted or AGAINST_ANOTHER not in result.reason:
                return result

    return promote


def set_aliases(place: Place, version: str, as_of: date) -> Callable[[], RaceResult]:
    """Promote with MLflow only: read the champion, then set both aliases."""
    client = place.client

    def promote() -> RaceResult:
        champion = _champion(client, place.model)
        if champion:
            client.set_registered_model_alias(place.model, PREVIOUS, champion)
        client.set_registered_model_alias(place.model, CHAMPION, version)
        return RaceResult(version, champion, True)

    return promote


def check_then_set_aliases(place: Place, version: str, as_of: date) -> Callable[[], RaceResult]:
    """Promote with MLflow only, unless the champion has changed since this version was judged."""
    expected_champion = _champion(place.client, place.model)
    promote_unchecked = set_aliases(place, version, as_of)

    def promote() -> RaceResult:
        if _champion(place.client, place.model) != expected_champion:
            return RaceResult(version, expected_champion, False, AGAINST_ANOTHER)
        return promote_unchecked()

    return promote


def request_promotion(model: str, version: str, as_of: date) -> rules.PromotionRequest:
    """Record a verdict for `version` against the current champion, and return the request that refers to it."""
    state = ledger.read_state(model)
    entry = ledger.append_decision(
        model,
        version,
        lambda state: VerdictRecorded(
            run=f"retrain {as_of}",
            run_reason=RunReason.SCHEDULE.value,
            as_of=as_of,
            holdout=(as_of - timedelta(days=7), as_of),
            candidate_fingerprint=f"candidate {version}",
            candidate_files=model_files(version),
            candidate_inputs=INPUTS,
            champion_version=state.champion,
            champion_content=state.champion_content,
            verdict=VERDICT,
            evidence={},
            fingerprints={},
        ),
    )
    if state.find_version(version) is None:
        manifest = model_manifest_sha256(model, f"candidate {version}", version)
        registered = VersionRegistered(version=version, verdict_entry=entry.number, manifest_sha256=manifest)
        ledger.append_decision(model, version, lambda _: registered)
    return rules.PromotionRequest(entry.number, version, RunReason.SCHEDULE)


def race(
    place: Place, promoter: Promoter, versions: Sequence[str], rounds: int, racers: int = RACERS
) -> Iterator[Round]:
    """Yield the rounds. The racers are processes that run all rounds.

    In each round the versions have newer data than in the round before, and the last racer's has the newest.

    Args:
        versions: registered versions, two for each racer, who alternates them: one of them may be champion.
    """
    context = processes()
    start = context.Barrier(racers)
    with ExitStack() as stack:
        lines = []
        for _ in range(racers):
            parent_end, child_end = context.Pipe()
            racer = context.Process(target=_racer, args=(place, promoter, start, child_end), daemon=True)
            racer.start()
            child_end.close()
            stack.callback(racer.join)
            lines.append(stack.enter_context(parent_end))
        for number in range(rounds):
            champion_before = place.aliases().get(CHAMPION)
            for k, line in enumerate(lines):
                version = versions[k + number % 2 * racers]
                line.send((version, later(_EPOCH, number * racers + k)))
            results = tuple(_answer(line) for line in lines)
            yield Round(champion_before, results, place.aliases())


def _racer(place: Place, promoter: Promoter, start: Barrier, line: Connection) -> None:
    place.enter()
    try:
        while True:
            version, as_of = line.recv()
            promote = promoter(place, version, as_of)
            start.wait(_PATIENCE)
            line.send(promote())
    except EOFError:
        return  # the race is over
    except Exception:
        start.abort()
        line.send(traceback.format_exc())


def _answer(line: Connection) -> RaceResult:
    assert line.poll(_PATIENCE), "a racer hangs"
    result = line.recv()
    assert isinstance(result, RaceResult), result
    return result


def _champion(client: MlflowClient, model: str) -> str | None:
    try:
        return str(client.get_model_version_by_alias(model, CHAMPION).version)
    except MlflowException:
        return None
