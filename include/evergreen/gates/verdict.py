"""What the gates found, and what follows from it. A verdict is a pure function of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Outcome = Literal["passed", "failed", "not_computed"]


@dataclass(frozen=True)
class Finding:
    """What one function of the model folder found out about a candidate.

    Taken as it comes: a value or threshold that is not a number, or an empty reason, does not raise here. The gate
    is then not computed, says which, and blocks.

    Attributes:
        passed: whether the candidate may be promoted, as far as this gate is concerned.
        value: what was measured, in the function's own unit.
        threshold: what it was held against.
        reason: one sentence, with the numbers, for people.
    """

    passed: bool
    value: float
    threshold: float
    reason: str


class _Stored(BaseModel):
    # JSON knows neither NaN nor infinity: a value that is not a number is left out, never written.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Part(_Stored):
    """What a gate found in one slice or group of the rows."""

    name: str
    rows: int = Field(ge=0)
    candidate: float | None = None
    champion: float | None = None
    interval: tuple[float, float] | None = Field(None, description="as in `Record`")
    judged: bool = Field(description="False: reported only, because the rows are too few")


class Record(_Stored):
    """What one gate found.

    `passed` and `failed` mean that the gate was computed. `not_computed` blocks like `failed` does, and
    `reason` names all that stood in the way.
    """

    gate: str = Field(min_length=1, description="the gate's name")
    outcome: Outcome
    candidate: float | None = Field(None, description="the candidate's metric")
    champion: float | None = Field(None, description="the champion's metric on the same rows")
    interval: tuple[float, float] | None = Field(
        None, description="one-sided lower and upper confidence bounds of the difference; positive is better"
    )
    threshold: float = Field(description="what the metric, or the interval's lower bound, was held against")
    level: float | None = Field(
        None, gt=0, lt=1, description="the chance of a false promotion that this comparison spent"
    )
    rows: int = Field(ge=0, description="rows of evidence")
    parts: tuple[Part, ...] = Field((), description="by slice or group, where the gate looks at them")
    reason: str = Field(min_length=1, description="one sentence, with the numbers, for people")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.outcome != "not_computed" and self.candidate is None:
            raise ValueError(f"gate {self.gate} {self.outcome} without a value of the candidate")
        if self.interval and self.interval[0] > self.interval[1]:
            raise ValueError(f"gate {self.gate}: the interval {self.interval} is upside down")
        return self


class Verdict(_Stored):
    """Whether to promote, why, and every record behind it."""

    records: tuple[Record, ...]
    promote: bool
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _promotes_only_what_passed(self) -> Self:
        # Guards stored verdicts too: an edited one is not believed.
        if self.promote and (problem := _what_blocks(self.records)):
            raise ValueError(f"this verdict cannot promote: {problem}")
        return self


def decide(records: Sequence[Record]) -> Verdict:
    """Promote when there are records, each of another gate, and all passed; anything else blocks."""
    if problem := _what_blocks(records):
        return Verdict(records=tuple(records), promote=False, reason=problem)
    passed = f"all {len(records)} gates passed" if len(records) > 1 else "the only gate passed"
    reason = f"{passed}: {', '.join(record.gate for record in records)}"
    return Verdict(records=tuple(records), promote=True, reason=reason)


def _what_blocks(records: Sequence[Record]) -> str:
    """All that stands against promotion, in words; empty when nothing does."""
    if not records:
        return "no gates: nothing speaks for the candidate"
    counts = Counter(record.gate for record in records)
    twice = [f"two gates are named {name}: give each its own name" for name, n in counts.items() if n > 1]
    return "; ".join(twice + [f"{r.gate}: {r.reason}" for r in records if r.outcome != "passed"])
