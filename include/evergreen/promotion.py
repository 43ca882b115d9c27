"""Whether a candidate becomes champion: a pure decision over what is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from evergreen.gates import Verdict
from evergreen.window import Origin


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str


def decide(verdict: Verdict, as_of: date, champion_as_of: date | None, origin: Origin) -> Decision:
    """Promote a candidate that passed its gates, never backwards in data time, never from a backfill."""
    if not verdict.promote:
        return Decision(False, verdict.reason)
    if origin is Origin.BACKFILL:
        return Decision(False, "a backfill leaves evidence, it does not promote")
    if champion_as_of and as_of <= champion_as_of:
        return Decision(
            False, f"not newer: the champion knows data until {champion_as_of}, this one until {as_of}"
        )
    return Decision(True, verdict.reason)
