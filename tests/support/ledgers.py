"""A model with versions in a real MLflow registry, and its ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from mlflow import MlflowClient

from evergreen import ledger
from evergreen.ledger import LedgerEntry, LedgerState
from evergreen.promotion import rules
from evergreen.registry import versions
from evergreen.settings import settings
from support.ledger_events import judged, request

FOLLOWING = ("champion", "previous", "challenger")


@dataclass(frozen=True)
class Candidate:
    """A registered version whose verdict is in the ledger."""

    version: str
    judged: int
    as_of: date


@dataclass(frozen=True)
class Book:
    """One model. The settings of this process say where its registry and its ledger are."""

    model: str
    folder: Path
    client: MlflowClient = field(default_factory=lambda: MlflowClient(settings().mlflow))

    def __post_init__(self) -> None:
        self.client.create_registered_model(self.model)

    @property
    def state(self) -> LedgerState:
        return ledger.read_state(self.model)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Those that follow the ledger."""
        found = self.client.get_registered_model(self.model).aliases
        return {alias: str(version) for alias, version in found.items() if alias in FOLLOWING}

    @property
    def right(self) -> Mapping[str, str]:
        """What they should be."""
        state = self.state
        shown = zip(FOLLOWING, (state.champion, state.previous_champion, state.challenger), strict=True)
        return {alias: version for alias, version in shown if version is not None}

    def register(self) -> str:
        made = self.client.create_model_version(self.model, source=(self.folder / "model").as_uri())
        return str(made.version)

    def judge(self, as_of: int, *, passed: bool = True) -> Candidate:
        """Register a version that knows the data before a day, and judge it against the champion."""
        entry = ledger.append_decision(
            self.model, "retrain", lambda state: judged(as_of, state.champion, passed=passed)
        )
        return Candidate(self.register(), entry.number, judged(as_of).as_of)

    def promote(self, candidate: Candidate, cooldown_days: int = 0) -> LedgerEntry:
        """As a run does it: the entry, and then the aliases."""
        entry = self.record(candidate, cooldown_days)
        versions.sync_aliases(self.model)
        return entry

    def record(self, candidate: Candidate, cooldown_days: int = 0) -> LedgerEntry:
        """As far as a run comes that is killed before it has touched the aliases."""
        asked = request(self.state, candidate.version, candidate.judged)
        return ledger.append_decision(
            self.model,
            "retrain",
            lambda state: rules.decide_promotion(state, asked, cooldown_days=cooldown_days),
        )
