"""What is written in a ledger: entries, each of which records one act. JSON, and the same after a trip through it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from evergreen.gates.verdict import Verdict
from evergreen.spec.model import Name
from evergreen.window import Origin

Text = Annotated[str, StringConstraints(min_length=1)]
Number = Annotated[int, Field(ge=1)]
Instant = Annotated[AwareDatetime, AfterValidator(lambda instant: instant.astimezone(UTC))]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Judged(_Stored):
    """The gates have judged a candidate. Nothing acts on a verdict that is not written here."""

    kind: Literal["judged"] = "judged"
    run: Text
    origin: Origin
    as_of: date
    holdout: tuple[date, date] = Field(description="first ≤ day < end")
    candidate: Text = Field(description="fingerprint")
    champion: str | None = Field(description="the version it was judged against; None: there was none yet")
    verdict: Verdict
    evidence: dict[str, str] = Field(default_factory=dict, description="name → URI")
    fingerprints: dict[str, str] = Field(default_factory=dict, description="of data, code, environment")


class Promoted(_Stored):
    """A version has become champion because its verdict, and the rules of promotion, allowed it."""

    kind: Literal["promoted"] = "promoted"
    version: Text
    replaced: str | None = Field(description="the champion until now")
    as_of: date
    judged: Number = Field(description="number of the entry with the verdict")
    approved_by: str | None = None


class Held(_Stored):
    """A version passed its gates, but a rule held it back: it is the challenger."""

    kind: Literal["held"] = "held"
    version: Text
    as_of: date
    judged: Number
    reason: Text


class RolledBack(_Stored):
    """An earlier champion is champion again. The version that was left is barred until it is released."""

    kind: Literal["rolled_back"] = "rolled_back"
    to: Text
    barred: Text
    reason: Text


class Released(_Stored):
    """A barred version may be promoted again, if it passes."""

    kind: Literal["released"] = "released"
    version: Text
    reason: Text


class Frozen(_Stored):
    """No promotions until the model is unfrozen. Rolling back stays possible."""

    kind: Literal["frozen"] = "frozen"
    reason: Text


class Unfrozen(_Stored):
    """Promotions are possible again."""

    kind: Literal["unfrozen"] = "unfrozen"
    reason: Text


class Rejected(_Stored):
    """Nobody approved of a promotion: somebody refused, or the time ran out."""

    kind: Literal["rejected"] = "rejected"
    version: Text
    judged: Number
    by_whom: Text
    reason: Text


class Backtested(_Stored):
    """A backfill has left evidence of what the gates would have decided as of a day of the past."""

    kind: Literal["backtested"] = "backtested"
    as_of: date
    candidate: Text = Field(description="fingerprint")
    report: Text = Field(description="URI")


Act = Judged | Promoted | Held | RolledBack | Released | Frozen | Unfrozen | Rejected | Backtested


class Entry(_Stored):
    """One act, when it was recorded, who or what asked for it, and the hash of the entry before."""

    number: Number
    model: Name
    before: str = Field(description="SHA-256 of the bytes of the entry before; empty for the first")
    at: Instant
    by: Text = Field(description="the run, or the person, that asked")
    act: Act = Field(discriminator="kind")

    def to_bytes(self) -> bytes:
        """As it is stored, and hashed."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def digest(stored: bytes) -> str:
    """What the next entry holds as `before`."""
    return sha256(stored).hexdigest()


def now() -> datetime:
    return datetime.now(UTC)
