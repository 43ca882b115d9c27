"""A model with versions in a real MLflow registry, and its ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from mlflow import MlflowClient

from evergreen import ledger
from evergreen.ledger import LedgerEntry, LedgerState
from evergreen.promotion import rules
from evergreen.registry import aliases
from evergreen.settings import settings
from support.ledger_events import request, verdict_event

LEDGER_ALIASES = ("champion", "previous", "challenger")


def was_consistent(statuses: Iterable[aliases.AliasStatus]) -> bool:
    """Return whether `aliases.repair_aliases` had nothing to repair."""
    return all(alias.status == "consistent" for alias in statuses)


@dataclass(frozen=True)
class Candidate:
    """A registered version whose verdict is in the ledger."""

    version: str
    verdict_entry: int
    as_of: date


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
        aliases_ = self.client.get_registered_model(self.model).aliases
        return {alias: str(version) for alias, version in aliases_.items() if alias in LEDGER_ALIASES}

    @property
    def expected_aliases(self) -> Mapping[str, str]:
        """Return the aliases that the ledger requires."""
        state = self.state
        pairs = zip(LEDGER_ALIASES, (state.champion, state.previous_champion, state.challenger), strict=True)
        return {alias: version for alias, version in pairs if version is not None}

    def register(self) -> str:
        version = self.client.create_model_version(self.model, source=(self.folder / "model").as_uri())
        return str(version.version)

    def judge(self, as_of: int, *, passed: bool = True) -> Candidate:
        """Register a version with data until a day, and record its verdict against the champion."""
        entry = ledger.append_decision(
            self.model, "retrain", lambda state: verdict_event(as_of, state.champion, passed=passed)
        )
        return Candidate(self.register(), entry.number, verdict_event(as_of).as_of)

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
            lambda state: rules.decide_promotion(state, promotion_request, cooldown_days=cooldown_days),
        )
