"""The ledger that runs of the past would have left, had they come on schedule: in memory, by the real rules."""

from __future__ import annotations

from datetime import UTC, datetime, time

from evergreen.backtest.walk_forward import Point
from evergreen.errors import PromotionRefused
from evergreen.gates import Comparison, Verdict
from evergreen.ledger.entries import Act, Entry, Held, Judged, digest
from evergreen.ledger.state import EMPTY, after
from evergreen.promotion import rules
from evergreen.spec.model import Model
from evergreen.window import Origin


class PastLedger:
    """A walk through the dates of one model, oldest first. A version is named by its date."""

    def __init__(self, model: Model):
        self._model, self._state = model, EMPTY

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """What has been spent so far."""
        return self._state.comparisons

    def propose(self, candidate: Point, fingerprint: str, verdict: Verdict) -> tuple[bool, str]:
        """Whether the candidate becomes champion, and why or why not. Where approval is asked for, it is given."""
        version, against = f"of {candidate.as_of}", self._state.champion
        judged = Judged(
            run=version,
            origin=Origin.SCHEDULE,
            as_of=candidate.as_of,
            holdout=(candidate.holdout, candidate.as_of),
            candidate=fingerprint,
            champion=against,
            verdict=verdict,
        )
        self._record(candidate, judged)
        request = rules.Request(
            version=version,
            as_of=candidate.as_of,
            origin=Origin.SCHEDULE,
            verdict=verdict,
            judged=self._state.head,
            judged_against=against,
        )
        try:
            act = rules.decide(self._state, request, cooldown_days=self._model.cooldown_days)
        except PromotionRefused as refused:
            return False, str(refused) if verdict.promote else verdict.reason
        assert not isinstance(act, Entry)  # nothing was recorded twice
        self._record(candidate, act)
        return (False, act.reason) if isinstance(act, Held) else (True, verdict.reason)

    def _record(self, candidate: Point, act: Act) -> None:
        entry = Entry(
            number=self._state.head + 1,
            model=self._model.name,
            before=self._state.head_hash,
            at=datetime.combine(candidate.as_of, time(), UTC),
            by="backtest",
            act=act,
        )
        self._state = after(self._state, entry, digest(entry.to_bytes()))
