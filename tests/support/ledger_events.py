"""Ledgers for tests: acts in, entries out, as if they had been written one minute after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta

from evergreen.gates.verdict import Record, Verdict, decide
from evergreen.ledger import Act, Entry, Held, Judged, Promoted, Released, RolledBack, State, fold
from evergreen.ledger.entries import digest
from evergreen.promotion.rules import Request
from evergreen.window import Origin

START = datetime(2013, 3, 1, tzinfo=UTC)
MODEL = "flight_delay"


def day(number: int) -> date:
    return date(2013, 1, 1) + timedelta(number)


def verdict(passed: bool = True, level: float | None = None) -> Verdict:
    """Of one gate that compared the candidate with a champion, if it spent a level."""
    return decide(
        [
            Record(
                gate="auc",
                outcome="passed" if passed else "failed",
                candidate=0.7,
                threshold=0.6,
                level=level,
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
    origin: Origin = Origin.SCHEDULE,
) -> Judged:
    return Judged(
        run="flight_delay.retrain manual__1",
        origin=origin,
        as_of=day(as_of),
        holdout=(day(as_of - 7), day(as_of)),
        candidate=f"candidate of day {as_of}",
        champion=champion,
        verdict=verdict(passed, level),
    )


def promoted(version: str, as_of: int, judged: int, replaced: str | None = None) -> Promoted:
    return Promoted(version=version, replaced=replaced, as_of=day(as_of), judged=judged)


def held(version: str, as_of: int, judged: int) -> Held:
    return Held(version=version, as_of=day(as_of), judged=judged, reason="frozen")


def rolled_back(to: str, barred: str) -> RolledBack:
    return RolledBack(to=to, barred=barred, reason="late flights")


def released(version: str) -> Released:
    return Released(version=version, reason="it was the weather")


def written(acts: Sequence[Act], model: str = MODEL) -> list[Entry]:
    entries: list[Entry] = []
    before = ""
    for number, act in enumerate(acts, 1):
        at = START + timedelta(minutes=number)
        entries.append(Entry(number=number, model=model, before=before, at=at, by="ada", act=act))
        before = digest(entries[-1].to_bytes())
    return entries


def state_of(*acts: Act) -> State:
    return fold(written(acts))


def grown(state: State, act: Act) -> State:
    """The state with one more act."""
    return fold(written([*(entry.act for entry in state.entries), act]))


def request(state: State, version: str, number: int, **changed: object) -> Request:
    """To promote `version` by the verdict in entry `number`, as a run does."""
    act = state.entries[number - 1].act
    assert isinstance(act, Judged)
    fields: dict[str, object] = dict(
        version=version,
        as_of=act.as_of,
        origin=act.origin,
        verdict=act.verdict,
        judged=number,
        judged_against=act.champion,
    )
    return Request(**{**fields, **changed})  # type: ignore[arg-type]


REIGN: tuple[Act, ...] = (
    judged(10),
    promoted("1", 10, 1),
    judged(20, "1"),
    promoted("2", 20, 3, "1"),
    judged(30, "2"),
    promoted("3", 30, 5, "2"),
)
"""Versions 1, 2 and 3, one after the other."""

Decision = Callable[[State], Act | Entry]
