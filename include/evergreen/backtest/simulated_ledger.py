"""The ledger that runs of the past would have left, had they come on schedule: in memory, by the real rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256

from evergreen.backtest.walk_forward import BacktestPoint
from evergreen.errors import PromotionRefusedError
from evergreen.gates import EarlierComparison, GateResult, Verdict, decide_verdict
from evergreen.ledger.entries import (
    AlarmRaised,
    LedgerEntry,
    LedgerEvent,
    PromotionDeferred,
    RetrainRequested,
    VerdictRecorded,
    VersionPromoted,
    hash_entry,
)
from evergreen.ledger.state import LedgerState, apply_entry
from evergreen.monitoring.record import MonitoringRecord
from evergreen.promotion import retraining, rules
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason


class SimulatedLedger:
    """A walk through the dates of one model, oldest first. A version is named by its date."""

    def __init__(self, model: ModelSpec):
        self._model, self._state = model, LedgerState()
        self._calendar = feature_spec(model).calendar

    @property
    def state(self) -> LedgerState:
        """Return what its entries add up to so far."""
        return self._state

    @property
    def comparisons(self) -> tuple[EarlierComparison, ...]:
        """What has been spent so far."""
        return self._state.comparisons

    def find_pause(self, candidate: BacktestPoint) -> str | None:
        """Return why no candidate is trained at this date, as a run on schedule finds; None if one is."""
        if self._model.keep_candidates_ready:
            return None
        return rules.promotion_pause(self._state, candidate.as_of, self._model.cooldown, self._calendar)

    def propose(
        self, candidate: BacktestPoint, fingerprint: str, verdict: Verdict, holdout: tuple[str, str]
    ) -> tuple[bool, str]:
        """Whether the candidate becomes champion, and why or why not. Where approval is asked for, it is given.

        `holdout` are the periods first ≤ period < end that it was judged on.
        """
        version = self._record_verdict(candidate, fingerprint, verdict, holdout)
        request = rules.PromotionRequest(self._state.head_number, version, RunReason.SCHEDULE)
        try:
            act = rules.decide_promotion(self._state, request, self._model.cooldown, self._calendar)
        except PromotionRefusedError as refused:
            return False, str(refused) if verdict.promote else verdict.reason
        assert not isinstance(act, LedgerEntry)  # nothing was recorded twice
        self._append(candidate.as_of, act)
        return (False, act.reason) if isinstance(act, PromotionDeferred) else (True, verdict.reason)

    def deploy(self, candidate: BacktestPoint, fingerprint: str, inputs: tuple[str, ...], reason: str) -> None:
        """Make the candidate, which takes the columns `inputs`, champion without gates."""
        deployed = GateResult(gate="policy", outcome="passed", candidate=0, threshold=0, rows=0, reason=reason)
        holdout = candidate.holdout_start, candidate.holdout_end
        version = self._record_verdict(candidate, fingerprint, decide_verdict([deployed]), holdout, inputs)
        promotion = VersionPromoted(
            version=version,
            previous_champion=self._state.champion,
            as_of=candidate.as_of,
            verdict_entry=self._state.head_number,
        )
        self._append(candidate.as_of, promotion)

    def request_retrain(
        self, record: MonitoringRecord, alarms: Sequence[AlarmRaised], end: str
    ) -> RetrainRequested | None:
        """Raise the alarms of `record` that are new, and ask for a retrain as of `end` if the real rules allow it."""
        for alarm in alarms:
            if self._state.entries.find_last(AlarmRaised, **alarm.model_dump()) is None:
                self._append(end, alarm)
        decision = retraining.decide_request(self._state, self._model, record, end, ())
        if decision is None or isinstance(decision, LedgerEntry):
            return None
        self._append(end, decision)
        return decision if isinstance(decision, RetrainRequested) else None

    def _record_verdict(
        self,
        candidate: BacktestPoint,
        fingerprint: str,
        verdict: Verdict,
        holdout: tuple[str, str],
        inputs: tuple[str, ...] = ("window",),
    ) -> str:
        """Append the verdict, and return the version that it is about."""
        version = f"of {candidate.as_of}"
        judged = VerdictRecorded(
            run=version,
            run_reason=RunReason.SCHEDULE,
            as_of=candidate.as_of,
            holdout=holdout,
            days=self._calendar.dates(*holdout),
            candidate_fingerprint=fingerprint,
            # Named by what it was made of: a walk compares dates, and registers nothing.
            candidate_files={"model": sha256(f"{version} {fingerprint}".encode()).hexdigest()},
            candidate_inputs=inputs,
            champion_version=self._state.champion,
            champion_content=self._state.champion_content,
            verdict=verdict,
        )
        self._append(candidate.as_of, judged)
        return version

    def _append(self, as_of: str, act: LedgerEvent) -> None:
        entry = LedgerEntry(
            number=self._state.head_number + 1,
            model=self._model.name,
            previous_hash=self._state.head_hash,
            recorded_at=_recorded_at(as_of),
            actor="backtest",
            event=act,
        )
        self._state = apply_entry(self._state, entry, hash_entry(entry.to_bytes()))


def _recorded_at(as_of: str) -> datetime:
    """Return the instant of a period, or the first one of its date in UTC."""
    instant = datetime.fromisoformat(as_of)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
