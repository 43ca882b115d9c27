"""What is written in a ledger: entries, each of which records one act. JSON, and the same after a trip through it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from evergreen.gates.verdict import Verdict
from evergreen.spec.model import Name
from evergreen.window import RunReason

NonEmptyStr = Annotated[str, StringConstraints(min_length=1)]
EntryNumber = Annotated[int, Field(ge=1)]
UtcDatetime = Annotated[AwareDatetime, AfterValidator(lambda instant: instant.astimezone(UTC))]


class _LedgerModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VerdictRecorded(_LedgerModel):
    """The gates have judged a candidate. Nothing acts on a verdict that is not written here."""

    kind: Literal["judged"] = "judged"
    run: NonEmptyStr
    run_reason: RunReason
    as_of: date
    holdout: tuple[date, date] = Field(description="first ≤ day < end")
    candidate_fingerprint: NonEmptyStr = Field(description="fingerprint")
    champion_version: str | None = Field(description="the version it was judged against; None: there was none yet")
    verdict: Verdict
    evidence: dict[str, str] = Field(default_factory=dict, description="name → URI")
    fingerprints: dict[str, str] = Field(default_factory=dict, description="of data, code, environment")


class VersionPromoted(_LedgerModel):
    """A version has become champion because its verdict, and the rules of promotion, allowed it."""

    kind: Literal["promoted"] = "promoted"
    version: NonEmptyStr
    previous_champion: str | None = Field(description="the champion until now")
    as_of: date
    verdict_entry: EntryNumber = Field(description="number of the entry with the verdict")
    approved_by: str | None = None


class PromotionDeferred(_LedgerModel):
    """A version passed its gates, but a rule held it back: it is the challenger."""

    kind: Literal["held"] = "held"
    version: NonEmptyStr
    as_of: date
    verdict_entry: EntryNumber
    reason: NonEmptyStr


class ChampionRolledBack(_LedgerModel):
    """An earlier champion is champion again. The version that was left is barred until it is released."""

    kind: Literal["rolled_back"] = "rolled_back"
    restored_version: NonEmptyStr
    barred_version: NonEmptyStr
    reason: NonEmptyStr


class VersionReleased(_LedgerModel):
    """A barred version may be promoted again, if it passes."""

    kind: Literal["released"] = "released"
    version: NonEmptyStr
    reason: NonEmptyStr


class PromotionsFrozen(_LedgerModel):
    """No promotions until the model is unfrozen. Rolling back stays possible."""

    kind: Literal["frozen"] = "frozen"
    reason: NonEmptyStr


class PromotionsUnfrozen(_LedgerModel):
    """Promotions are possible again."""

    kind: Literal["unfrozen"] = "unfrozen"
    reason: NonEmptyStr


class PromotionRejected(_LedgerModel):
    """Nobody approved of a promotion: somebody refused, or the time ran out."""

    kind: Literal["rejected"] = "rejected"
    version: NonEmptyStr
    verdict_entry: EntryNumber
    rejected_by: NonEmptyStr
    reason: NonEmptyStr


class BacktestRecorded(_LedgerModel):
    """A backfill has left evidence of what the gates would have decided as of a day of the past."""

    kind: Literal["backtested"] = "backtested"
    as_of: date
    candidate_fingerprint: NonEmptyStr = Field(description="fingerprint")
    report_uri: NonEmptyStr = Field(description="URI")


LedgerEvent = (
    VerdictRecorded
    | VersionPromoted
    | PromotionDeferred
    | ChampionRolledBack
    | VersionReleased
    | PromotionsFrozen
    | PromotionsUnfrozen
    | PromotionRejected
    | BacktestRecorded
)


class LedgerEntry(_LedgerModel):
    """One act, when it was recorded, who or what asked for it, and the hash of the entry before."""

    number: EntryNumber
    model: Name
    previous_hash: str = Field(description="SHA-256 of the bytes of the entry before; empty for the first")
    recorded_at: UtcDatetime
    actor: NonEmptyStr = Field(description="the run, or the person, that asked")
    event: LedgerEvent = Field(discriminator="kind")

    def to_bytes(self) -> bytes:
        """As it is stored, and hashed."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def hash_entry(data: bytes) -> str:
    """What the next entry holds as `before`."""
    return sha256(data).hexdigest()


def utc_now() -> datetime:
    return datetime.now(UTC)
