"""A model with versions in a real MLflow registry, and its ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from evergreen import ledger
from evergreen.ledger import LedgerEntry, LedgerState, VersionRegistered
from evergreen.promotion import challengers, rules
from evergreen.registry import aliases
from evergreen.settings import settings
from evergreen.spec.model import FeatureSpec, ModelSpec, RawSource
from support.calendars import cooldown
from support.ledger_events import look_event, request, verdict_event
from support.model_folders import write_model_folder

LEDGER_ALIASES = ("champion", "previous", "challenger")


_THRESHOLD = {"kind": "threshold", "metric": "auc", "at_least": 0.6}
COMPARISON = {"kind": "against_champion", "metric": "auc", "must_be": "better"}
"""The gate of verdicts that are inconclusive."""


def ledger_model(name: str, cooldown_days: int = 0, gates: Sequence[Mapping[str, object]] = (_THRESHOLD,)) -> ModelSpec:
    """Return the spec of a model that is only judged and promoted."""
    features = FeatureSpec(
        timezone="UTC",
        first_day="2013-01-01",
        sources=(RawSource(name="flights", columns={"carrier": "string"}),),
        views=("delays",),
        spine="examples",
    )
    return ModelSpec(
        name=name,
        owner="ada",
        features=features,
        feature_service="delays",
        schedule="0 0 * * *",
        gates=tuple(gates),
        cooldown=f"{cooldown_days}d",
    )


def was_consistent(statuses: Iterable[aliases.AliasStatus]) -> bool:
    """Return whether `aliases.repair_aliases` had nothing to repair."""
    return all(alias.status == "consistent" for alias in statuses)


@dataclass(frozen=True)
class Candidate:
    """A registered version whose verdict is in the ledger."""

    version: str
    verdict_entry: int
    as_of: str
    number: int
    """Which model it is, of `support.ledger_events.model_bytes`."""


@dataclass(frozen=True)
class Book:
    """One model in the registry and the ledger of the current settings."""

    model: str
    folder: Path
    client: MlflowClient = field(default_factory=lambda: MlflowClient(settings().mlflow.get_secret_value()))

    def __post_init__(self) -> None:
        self.client.create_registered_model(self.model)

    @property
    def state(self) -> LedgerState:
        return ledger.read_state(self.model)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Return the aliases that follow the ledger."""
        try:
            aliases_ = self.client.get_registered_model(self.model).aliases
        except MlflowException:  # it was deleted
            return {}
        return {alias: str(version) for alias, version in aliases_.items() if alias in LEDGER_ALIASES}

    @property
    def expected_aliases(self) -> Mapping[str, str]:
        """Return the aliases that the ledger requires."""
        state = self.state
        pairs = zip(LEDGER_ALIASES, (state.champion, state.previous_champion, state.challenger), strict=True)
        return {alias: version for alias, version in pairs if version is not None}

    def register(self) -> str:
        """Register a version that the ledger does not know, as somebody else does."""
        return self._create_version(self.folder / "model")

    def judge(
        self, as_of: int, *, passed: bool = True, number: int | None = None, is_inconclusive: bool = False
    ) -> Candidate:
        """Register a model with data until a day, and record its verdict against the champion.

        It is a new model, or with `number` the one with this number.
        """

        def decide(state: LedgerState) -> ledger.VerdictRecorded:
            content = state.champion_content
            event = verdict_event(as_of, state.champion, passed=passed, model=number, champion_content=content)
            if not is_inconclusive:
                return event
            gates = challengers.gates_fingerprint(ledger_model(self.model, gates=[COMPARISON]))
            return look_event(event.model_copy(update={"fingerprints": {"gates": gates}}), "inconclusive")

        number = ledger.read_state(self.model).head_number if number is None else number
        entry = ledger.append_decision(self.model, "retrain", decide)
        candidate = Candidate("", entry.number, verdict_event(as_of).as_of, number)
        return replace(candidate, version=self.register_again(candidate))

    def register_again(self, candidate: Candidate, die: Callable[[], None] = lambda: None) -> str:
        """Register a judged model, as a run does that is cleared; `die` is called before the ledger knows of it."""
        entry = candidate.verdict_entry
        fingerprint = ledger.read_verdict_event(self.model, entry).candidate_fingerprint
        folder = self.files(candidate)
        manifest = write_model_folder(folder, self.model, fingerprint, candidate.number)
        version = self._create_version(folder)
        die()
        registered = VersionRegistered(version=version, verdict_entry=entry, manifest_sha256=manifest)
        ledger.append_decision(self.model, "retrain", lambda _: registered)
        return version

    def files(self, candidate: Candidate) -> Path:
        """Return the folder with the files of a candidate in MLflow."""
        return self.folder / self.model / f"model-{candidate.number}"

    def _create_version(self, folder: Path) -> str:
        with suppress(MlflowException):  # there is one
            self.client.create_registered_model(self.model)
        return str(self.client.create_model_version(self.model, source=folder.as_uri()).version)

    def promote(self, candidate: Candidate, cooldown_days: int = 0) -> LedgerEntry:
        """Promote as a run does: append the entry, then set the aliases."""
        entry = self.record(candidate, cooldown_days)
        aliases.sync_aliases(self.model)
        return entry

    def record(self, candidate: Candidate, cooldown_days: int = 0) -> LedgerEntry:
        """Append the entry only, as a run that is killed before it sets the aliases."""
        promotion_request = request(self.state, candidate.version, candidate.verdict_entry)
        return ledger.append_decision(
            self.model,
            "retrain",
            lambda state: rules.decide_promotion(state, promotion_request, **cooldown(cooldown_days)),
        )
