"""Ledgers for tests: acts in, entries out, as if they had been written one minute after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta

from evergreen.gates.verdict import GateResult, Verdict, decide_verdict
from evergreen.ledger import (
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    VerdictRecorded,
    VersionPromoted,
    VersionReleased,
    replay,
)
from evergreen.ledger.entries import hash_entry
from evergreen.promotion.rules import ResolvedPromotionRequest
from evergreen.window import RunReason

START = datetime(2013, 3, 1, tzinfo=UTC)
MODEL = "flight_delay"


def day(number: int) -> date:
    return date(2013, 1, 1) + timedelta(number)


def verdict(passed: bool = True, level: float | None = None) -> Verdict:
    """Of one gate that compared the candidate with a champion, if it spent a level."""
    return decide_verdict(
        [
            GateResult(
                gate="auc",
                outcome="passed" if passed else "failed",
                candidate=0.7,
                threshold=0.6,
                alpha=level,
                rows=1000,
                reason="auc 0.7",
            )
        ]
    )


def judged(
    as_of: int,
    champion: str | None = None,
    *,
    passed: bool = True,
    level: float | None = None,
    run_reason: RunReason = RunReason.SCHEDULE,
) -> VerdictRecorded:
    return VerdictRecorded(
        run="flight_delay.retrain manual__1",
        run_reason=run_reason,
        as_of=day(as_of),
        holdout=(day(as_of - 7), day(as_of)),
        candidate_fingerprint=f"candidate of day {as_of}",
        champion_version=champion,
        verdict=verdict(passed, level),
    )


def promoted(version: str, as_of: int, judged: int, replaced: str | None = None) -> VersionPromoted:
    return VersionPromoted(version=version, previous_champion=replaced, as_of=day(as_of), verdict_entry=judged)


def held(version: str, as_of: int, judged: int) -> PromotionDeferred:
    return PromotionDeferred(version=version, as_of=day(as_of), verdict_entry=judged, reason="frozen")


def rolled_back(to: str, barred: str) -> ChampionRolledBack:
    return ChampionRolledBack(restored_version=to, barred_version=barred, reason="late flights")


def released(version: str) -> VersionReleased:
    return VersionReleased(version=version, reason="it was the weather")


def written(acts: Sequence[LedgerEvent], model: str = MODEL) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    before = ""
    for number, act in enumerate(acts, 1):
        at = START + timedelta(minutes=number)
        entries.append(
            LedgerEntry(number=number, model=model, previous_hash=before, recorded_at=at, actor="ada", event=act)
        )
        before = hash_entry(entries[-1].to_bytes())
    return entries


def state_of(*acts: LedgerEvent) -> LedgerState:
    return replay(written(acts))


def grown(state: LedgerState, act: LedgerEvent) -> LedgerState:
    """The state with one more act."""
    return replay(written([*(entry.event for entry in state.entries), act]))


def request(state: LedgerState, version: str, number: int, **changed: object) -> ResolvedPromotionRequest:
    """To promote `version` by the verdict in entry `number`, as a run does."""
    act = state.entries[number - 1].event
    assert isinstance(act, VerdictRecorded)
    fields: dict[str, object] = dict(
        version=version,
        as_of=act.as_of,
        run_reason=act.run_reason,
        verdict=act.verdict,
        verdict_entry=number,
        champion_version=act.champion_version,
    )
    return ResolvedPromotionRequest(**{**fields, **changed})  # type: ignore[arg-type]


REIGN: tuple[LedgerEvent, ...] = (
    judged(10),
    promoted("1", 10, 1),
    judged(20, "1"),
    promoted("2", 20, 3, "1"),
    judged(30, "2"),
    promoted("3", 30, 5, "2"),
)
"""Versions 1, 2 and 3, one after the other."""

Decision = Callable[[LedgerState], LedgerEvent | LedgerEntry]
