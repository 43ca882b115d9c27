"""Entries of a ledger, each of which records one event. They are stored as JSON and are equal after a round trip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from evergreen.gates.verdict import Look, Verdict
from evergreen.spec import Frozen, Name, NonEmptyStr, Period
from evergreen.storage import FileName, RelativePath, Sha256
from evergreen.window import RunReason

EntryNumber = Annotated[int, Field(ge=1)]
SNAPSHOT_FORMAT = 2
"""To be raised when equal entries give another snapshot: snapshots of another format are not used."""
UtcDatetime = Annotated[AwareDatetime, AfterValidator(lambda instant: instant.astimezone(UTC))]


class LaterLook(Frozen):
    """What continues a comparison: its evidence has grown, and is judged again."""

    first_entry: EntryNumber = Field(description="number of the entry with the verdict of the first look")
    as_of: Period = Field(description="labels that were known when this period began were used")


class VerdictRecorded(Frozen):
    """The gates have judged a candidate. Nothing acts on a verdict before it is recorded.

    One that is inconclusive makes its candidate the challenger: the comparison goes on, look by look, until a verdict
    is not inconclusive any more, or the challenger is withdrawn.
    """

    kind: Literal["judged"] = "judged"
    run: NonEmptyStr
    run_reason: RunReason
    as_of: Period = Field(description="the candidate has data until this period, exclusively")
    holdout: tuple[Period, Period] = Field(
        description="first ≤ period < end; the last day of it has a labelled row. At a later look, of all days so far"
    )
    days: tuple[date, date] = Field(description="the days of the holdout, the unit of evidence: first ≤ day < end")
    candidate_fingerprint: NonEmptyStr
    candidate_files: dict[FileName, Sha256] = Field(min_length=1, description="SHA-256 of each file of the model")
    candidate_inputs: tuple[NonEmptyStr, ...] = Field(min_length=1, description="the columns it takes, in this order")
    champion_version: str | None = Field(description="version that the candidate was compared with, if any")
    champion_content: Sha256 | None = Field(description="`candidate_content` of that version's own verdict")
    verdict: Verdict
    cause: NonEmptyStr | None = Field(None, description="of a run that alarms have asked for: what they say")
    later_look: LaterLook | None = Field(None, description="None: the first look")
    evidence: dict[str, RelativePath] = Field(
        default_factory=dict, description="evaluation and report, relative to the lake"
    )
    fingerprints: dict[str, str] = Field(default_factory=dict, description="fingerprints of data, gates and code")

    @model_validator(mode="after")
    def _check_champion(self) -> Self:
        if (self.champion_version is None) != (self.champion_content is None):
            raise ValueError("champion_version and champion_content are given together, or not at all")
        return self

    @property
    def judged_as_of(self) -> str:
        """Return the period until which, exclusively, the verdict knows what happened."""
        return self.later_look.as_of if self.later_look else self.as_of

    @property
    def spends_alpha(self) -> bool:
        """Return whether something was compared with the champion."""
        return any(result.alpha is not None for result in self.verdict.results)

    @property
    def candidate_content(self) -> str:
        """Return the identity of the model that was judged: what has other files, or other inputs, is another."""
        return hash_model(self.candidate_files, self.candidate_inputs)


class VersionRegistered(Frozen):
    """A judged candidate is in MLflow. Its files there are those of this manifest, whatever MLflow says later."""

    kind: Literal["registered"] = "registered"
    version: NonEmptyStr = Field(description="a name: after a deletion MLflow gives the number again")
    verdict_entry: EntryNumber
    manifest_sha256: Sha256 = Field(description="of the manifest that lists the SHA-256 of every registered file")


class VersionPromoted(Frozen):
    """A version became champion because its verdict and the promotion rules allowed it."""

    kind: Literal["promoted"] = "promoted"
    version: NonEmptyStr
    previous_champion: str | None
    as_of: Period
    verdict_entry: EntryNumber = Field(description="number of the entry that holds the verdict")
    approved_by: str | None = None


class PromotionDeferred(Frozen):
    """A version passed its gates, but a rule defers its promotion: it is the challenger, and waits for that to end."""

    kind: Literal["deferred"] = "deferred"
    version: NonEmptyStr
    as_of: Period
    verdict_entry: EntryNumber
    reason: NonEmptyStr


class ChallengerWithdrawn(Frozen):
    """The challenger is none any more, and its comparison has ended without a promotion, if it had not before."""

    kind: Literal["withdrawn"] = "withdrawn"
    version: NonEmptyStr
    verdict_entry: EntryNumber = Field(description="number of the entry with its last verdict")
    reason: NonEmptyStr


class ChampionRolledBack(Frozen):
    """An earlier champion is champion again. The replaced version is barred until it is released."""

    kind: Literal["rolled_back"] = "rolled_back"
    restored_version: NonEmptyStr
    barred_version: NonEmptyStr
    reason: NonEmptyStr
    request_entry: EntryNumber | None = Field(
        None,
        description="of an automatic rollback, number of the entry that asked for it; None: a person did",
        exclude_if=lambda value: value is None,
    )
    approved_by: str | None = Field(
        None, description="of an automatic rollback, if it needs approval", exclude_if=lambda value: value is None
    )


class ChampionLost(Frozen):
    """A person has declared that the champion's files are gone. An earlier champion is restored, or there is none."""

    kind: Literal["lost"] = "lost"
    lost_version: NonEmptyStr
    restored_version: str | None = Field(description="None: the next candidate is judged as the model's first")
    reason: NonEmptyStr


class VersionReleased(Frozen):
    """A barred version may be promoted again, if its gates pass on newer data."""

    kind: Literal["released"] = "released"
    version: NonEmptyStr
    reason: NonEmptyStr


class PromotionsFrozen(Frozen):
    """No version is promoted until the model is unfrozen. Rollbacks stay possible."""

    kind: Literal["frozen"] = "frozen"
    reason: NonEmptyStr


class PromotionsUnfrozen(Frozen):
    """Versions can be promoted again."""

    kind: Literal["unfrozen"] = "unfrozen"
    reason: NonEmptyStr


class PromotionRejected(Frozen):
    """A promotion was not approved: a person rejected it, or the approval timed out."""

    kind: Literal["rejected"] = "rejected"
    version: NonEmptyStr
    verdict_entry: EntryNumber
    rejected_by: NonEmptyStr
    reason: NonEmptyStr


class ChangeAccepted(Frozen):
    """A person accepts that inputs of the champion can no longer be made: candidates are not compared with it."""

    kind: Literal["change_accepted"] = "change_accepted"
    champion: NonEmptyStr = Field(description="the version that this is about, and no other")
    reason: NonEmptyStr


class BacktestRecorded(Frozen):
    """A backfill recorded what the gates would have decided as of a past period."""

    kind: Literal["backtested"] = "backtested"
    as_of: Period
    candidate_fingerprint: NonEmptyStr
    report: RelativePath = Field(description="relative to the lake")


class AlarmRaised(Frozen):
    """Monitoring has found a change in the data of the champion, or a loss of its performance.

    Whether it goes on says the record of monitoring.

    Late or corrected data may change the past, and raise an alarm again for another day: what was raised stays.
    """

    kind: Literal["alarm"] = "alarm"
    champion: NonEmptyStr = Field(description="its version at that time")
    champion_content: Sha256
    rule: Literal["break", "drift", "performance", "skew"] = Field(
        description="`break` and `drift` of data; `performance`: worse on matured labels than when it was judged; "
        "`skew`: servers used other features than it learned from"
    )
    day: date = Field(description="the day, or the first day of the week, whose data raised it")
    changes: tuple[NonEmptyStr, ...] = Field(
        min_length=1, description="`table.column measure` of each change; of a performance, `gate performance`"
    )
    metric: NonEmptyStr | None = Field(
        None,
        description="of a performance, a digest of what the gate's metric is",
        exclude_if=lambda value: value is None,
    )


class RetrainRequested(Frozen):
    """Open alarms ask for a retrain. The run follows from this entry, so that it is started once."""

    kind: Literal["retrain_requested"] = "retrain_requested"
    alarm_entries: tuple[EntryNumber, ...] = Field(min_length=1, description="numbers of the entries with the alarms")
    as_of: Period = Field(description="the run uses only what was known when this period began")
    cause: NonEmptyStr = Field(description="what the alarms say")


class RetrainRefused(Frozen):
    """Open alarms would ask for a retrain, and may not for now."""

    kind: Literal["retrain_refused"] = "retrain_refused"
    alarm_entries: tuple[EntryNumber, ...] = Field(min_length=1, description="numbers of the entries with the alarms")
    as_of: Period
    obstacle: Literal["cooldown", "budget", "pause", "data"]
    reason: NonEmptyStr


class RollbackRequested(Frozen, allow_inf_nan=False):
    """On matured labels the champion is worse than the one that it replaced: it may be rolled back automatically.

    It is recorded before anything acts on it. Equal evidence is recorded once.
    """

    kind: Literal["rollback_requested"] = "rollback_requested"
    champion: NonEmptyStr = Field(description="its version at that time")
    champion_entry: EntryNumber = Field(description="number of the entry that promoted it")
    previous: NonEmptyStr = Field(description="the version that it replaced, and that would be champion again")
    previous_content: Sha256
    as_of: Period = Field(description="labels that were known when this period began were used")
    days: tuple[date, date] = Field(description="of the comparison: first ≤ day < end")
    look: Look = Field(description="the gain of the version before over the champion, and its bound")
    alpha: float = Field(gt=0, lt=1, description="chance of a rollback by chance after the promotion, at most")
    metric: NonEmptyStr = Field(description="a digest of what the metric is")
    rows: int = Field(ge=1, description="that both were compared on")
    reason: NonEmptyStr


class RollbackRejected(Frozen):
    """An automatic rollback was not approved: a person rejected it, or the approval timed out.

    Nobody is asked again about this champion.
    """

    kind: Literal["rollback_rejected"] = "rollback_rejected"
    request_entry: EntryNumber = Field(description="number of the entry that asked for it")
    rejected_by: NonEmptyStr
    reason: NonEmptyStr


LedgerEvent = (
    VerdictRecorded
    | VersionRegistered
    | VersionPromoted
    | PromotionDeferred
    | ChallengerWithdrawn
    | ChampionRolledBack
    | ChampionLost
    | VersionReleased
    | PromotionsFrozen
    | PromotionsUnfrozen
    | PromotionRejected
    | ChangeAccepted
    | BacktestRecorded
    | AlarmRaised
    | RetrainRequested
    | RetrainRefused
    | RollbackRequested
    | RollbackRejected
)


class SnapshotReference(Frozen):
    """Names the state before an entry, so that a copy of it is verified by the chain (`evergreen.ledger.snapshots`)."""

    format: int = SNAPSHOT_FORMAT
    sha256: Sha256


class LedgerEntry(Frozen):
    """One event, when it was recorded and by whom, and the hash of the entry before."""

    number: EntryNumber
    model: Name
    previous_hash: str = Field(description="SHA-256 of the bytes of the entry before; empty for the first")
    recorded_at: UtcDatetime
    actor: NonEmptyStr = Field(description="the run or the person")
    snapshot: SnapshotReference | None = Field(None, description="in the first entry of each page but the first page")
    event: LedgerEvent = Field(discriminator="kind")

    def to_bytes(self) -> bytes:
        """Return the bytes that are stored and hashed."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def hash_model(files: Mapping[str, str], inputs: Sequence[str]) -> str:
    """Return the content hash of a model: of the SHA-256 of its files, and its input columns."""
    return sha256(json.dumps([files, list(inputs)], sort_keys=True).encode()).hexdigest()


def hash_entry(data: bytes) -> str:
    """Return the `previous_hash` of the next entry."""
    return sha256(data).hexdigest()


def utc_now() -> datetime:
    return datetime.now(UTC)
