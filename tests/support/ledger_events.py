"""Events and entries of ledgers for tests, recorded one minute apart."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from evergreen.gates.verdict import GateOutcome, GateResult, Look, Verdict, decide_verdict
from evergreen.ledger import (
    ChallengerWithdrawn,
    ChampionLost,
    ChampionRolledBack,
    LaterLook,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    VerdictRecorded,
    VersionPromoted,
    VersionRegistered,
    VersionReleased,
    hash_model,
    replay,
)
from evergreen.ledger.entries import hash_entry
from evergreen.promotion.rules import PromotionRequest
from evergreen.window import RunReason
from support.calendars import DAYS, later

START = datetime(2013, 3, 1, tzinfo=UTC)
MODEL = "flight_delay"
INPUTS = ("distance", "temperature")


def day(number: int) -> str:
    return later("2013-01-01", number)


def model_bytes(number: int | str) -> bytes:
    """Return the file of the model of a day: a linear model of XGBoost, whose weights are 0."""
    parameters = {"num_class": "0", "num_feature": str(len(INPUTS)), "num_target": "1", "base_score": "5E-1"}
    return _ubjson(
        {
            "learner": {
                "attributes": {"model of day": str(number)},
                "feature_names": list(INPUTS),
                "feature_types": ["float"] * len(INPUTS),
                "gradient_booster": {"model": {"weights": [0.0] * (len(INPUTS) + 1)}, "name": "gblinear"},
                "learner_model_param": parameters,
                "objective": {"name": "binary:logistic"},
            }
        }
    )


def _ubjson(value: object) -> bytes:
    if isinstance(value, dict):
        return b"{" + b"".join(_ubjson(name)[1:] + _ubjson(item) for name, item in value.items()) + b"}"
    if isinstance(value, list):
        return b"[#L" + len(value).to_bytes(8) + b"".join(map(_ubjson, value))
    if isinstance(value, float):
        return b"d" + struct.pack(">f", value)
    text = str(value).encode()
    return b"SL" + len(text).to_bytes(8) + text


def model_files(number: int | str) -> dict[str, str]:
    """Return the hash of the file of the model of a day, by its name."""
    return {"model.ubj": sha256(model_bytes(number)).hexdigest()}


def content(number: int | str) -> str:
    """Return the content of the model of a day."""
    return hash_model(model_files(number), INPUTS)


def _usual_content(version: str) -> str:
    return content(int(version) * 10 if version.isdigit() else version)


def verdict(passed: bool = True, level: float | None = None) -> Verdict:
    """Return a verdict of one gate; with `level`, of a comparison that spent this significance level."""
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


def verdict_event(
    as_of: int,
    champion: str | None = None,
    *,
    passed: bool = True,
    level: float | None = None,
    run_reason: RunReason = RunReason.SCHEDULE,
    model: int | None = None,
    files: Mapping[str, str] | None = None,
    champion_content: str | None = None,
) -> VerdictRecorded:
    """Return the verdict on a candidate with data until a day. The model is that of this day, or of day `model`.

    The content of version 1, 2 … is that of day 10, 20 …, as in `THREE_CHAMPIONS`, if it is not given; `build_entries`
    replaces it by what the version really was.
    """
    files = files or model_files(as_of if model is None else model)
    return VerdictRecorded(
        run="flight_delay.retrain manual__1",
        run_reason=run_reason,
        as_of=day(as_of),
        holdout=(day(as_of - 7), day(as_of)),
        days=(day(as_of - 7), day(as_of)),
        candidate_fingerprint=f"candidate of day {as_of}",
        candidate_files=dict(files),
        candidate_inputs=INPUTS,
        champion_version=champion,
        champion_content=(champion_content or _usual_content(champion)) if champion else None,
        verdict=verdict(passed, level),
    )


def look_event(
    base: VerdictRecorded, outcome: GateOutcome, looks: int = 1, first_entry: int | None = None, level: float = 0.02
) -> VerdictRecorded:
    """Return a verdict of one gate with this outcome, after so many weekly looks at the candidate of `base`.

    With `first_entry`, the entry of its first look, it is of a later one.
    """
    start, end = base.holdout
    ends = [later(end, 7 * n) for n in range(looks)]
    result = GateResult(
        gate="auc_against_champion",
        outcome=outcome,
        candidate=0.7,
        champion=0.69,
        threshold=0.0,
        alpha=level,
        rows=1000 * looks,
        looks=tuple(
            Look(end=day_, days=DAYS.count(start, day_), level=level / 10, gain=0.01, low=-0.01) for day_ in ends
        ),
        reason="auc 0.7",
    )
    later_look = LaterLook(first_entry=first_entry, as_of=ends[-1]) if first_entry else None
    return base.model_copy(
        update={
            "verdict": decide_verdict([result]),
            "holdout": (start, ends[-1]),
            "days": DAYS.dates(start, ends[-1]),
            "later_look": later_look,
        }
    )


def withdrawal(version: str, verdict_entry: int) -> ChallengerWithdrawn:
    return ChallengerWithdrawn(version=version, verdict_entry=verdict_entry, reason="hopeless")


def promotion(version: str, as_of: int, verdict_entry: int, previous: str | None = None) -> VersionPromoted:
    return VersionPromoted(version=version, previous_champion=previous, as_of=day(as_of), verdict_entry=verdict_entry)


def deferral(version: str, as_of: int, verdict_entry: int) -> PromotionDeferred:
    return PromotionDeferred(version=version, as_of=day(as_of), verdict_entry=verdict_entry, reason="frozen")


def rollback(restored: str, barred: str) -> ChampionRolledBack:
    return ChampionRolledBack(restored_version=restored, barred_version=barred, reason="late flights")


def registration(version: str, verdict_entry: int, manifest: str = "manifest") -> VersionRegistered:
    sha = sha256(manifest.encode()).hexdigest()
    return VersionRegistered(version=version, verdict_entry=verdict_entry, manifest_sha256=sha)


def loss(lost: str, restored: str | None) -> ChampionLost:
    return ChampionLost(lost_version=lost, restored_version=restored, reason="the bucket was emptied")


def release(version: str) -> VersionReleased:
    return VersionReleased(version=version, reason="it was the weather")


def build_entries(events: Sequence[LedgerEvent], model: str = MODEL) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    previous_hash = ""
    contents: dict[str, str] = {}  # by version, as promoted or registered
    for number, event in enumerate(events, 1):
        if isinstance(event, VersionPromoted | VersionRegistered) and 0 < event.verdict_entry < number:
            basis = entries[event.verdict_entry - 1].event
            if isinstance(basis, VerdictRecorded):
                contents[event.version] = basis.candidate_content
        if isinstance(event, VerdictRecorded) and event.champion_version:
            usual = _usual_content(event.champion_version)
            if event.champion_content == usual:
                actual = contents.get(event.champion_version, usual)
                event = event.model_copy(update={"champion_content": actual})
        instant = START + timedelta(minutes=number)
        entries.append(
            LedgerEntry(
                number=number, model=model, previous_hash=previous_hash, recorded_at=instant, actor="ada", event=event
            )
        )
        previous_hash = hash_entry(entries[-1].to_bytes())
    return entries


def build_state(*events: LedgerEvent) -> LedgerState:
    return replay(build_entries(events))


def append_event(state: LedgerState, event: LedgerEvent) -> LedgerState:
    """Return the state after one more event."""
    return replay(build_entries([*(entry.event for entry in state.entries), event]))


def request(state: LedgerState, version: str, number: int, **changes: Any) -> PromotionRequest:
    """Return the request to promote `version` by the verdict in entry `number`, as a run sends it."""
    event = state.entries[number - 1].event
    assert isinstance(event, VerdictRecorded)
    return replace(PromotionRequest(number, version, event.run_reason), **changes)


THREE_CHAMPIONS: tuple[LedgerEvent, ...] = (
    verdict_event(10),
    promotion("1", 10, 1),
    verdict_event(20, "1"),
    promotion("2", 20, 3, "1"),
    verdict_event(30, "2"),
    promotion("3", 30, 5, "2"),
)
"""Versions 1, 2 and 3, one after the other."""

Decision = Callable[[LedgerState], LedgerEvent | LedgerEntry]
