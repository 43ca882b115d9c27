"""What the gates found, and what follows from it. A verdict is a pure function of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GateOutcome = Literal["passed", "failed", "not_computed"]


@dataclass(frozen=True)
class CustomGateResult:
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


class _FrozenModel(BaseModel):
    # JSON knows neither NaN nor infinity: a value that is not a number is left out, never written.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SliceResult(_FrozenModel):
    """What a gate found in one slice or group of the rows."""

    name: str
    rows: int = Field(ge=0)
    candidate: float | None = None
    champion: float | None = None
    interval: tuple[float, float] | None = Field(None, description="as in `Record`")
    is_judged: bool = Field(description="False: reported only, because the rows are too few")


class GateResult(_FrozenModel):
    """What one gate found.

    `passed` and `failed` mean that the gate was computed. `not_computed` blocks like `failed` does, and
    `reason` names all that stood in the way.
    """

    gate: str = Field(min_length=1, description="the gate's name")
    outcome: GateOutcome
    candidate: float | None = Field(None, description="the candidate's metric")
    champion: float | None = Field(None, description="the champion's metric on the same rows")
    interval: tuple[float, float] | None = Field(
        None, description="one-sided lower and upper confidence bounds of the difference; positive is better"
    )
    threshold: float = Field(description="what the metric, or the interval's lower bound, was held against")
    alpha: float | None = Field(
        None, gt=0, lt=1, description="the chance of a false promotion that this comparison spent"
    )
    rows: int = Field(ge=0, description="rows of evidence")
    slices: tuple[SliceResult, ...] = Field((), description="by slice or group, where the gate looks at them")
    reason: str = Field(min_length=1, description="one sentence, with the numbers, for people")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.outcome != "not_computed" and self.candidate is None:
            raise ValueError(f"gate {self.gate} {self.outcome} without a value of the candidate")
        if self.interval and self.interval[0] > self.interval[1]:
            raise ValueError(f"gate {self.gate}: the interval {self.interval} is upside down")
        return self


class Verdict(_FrozenModel):
    """Whether to promote, why, and every record behind it."""

    results: tuple[GateResult, ...]
    promote: bool
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check_promotion(self) -> Self:
        # Guards stored verdicts too: an edited one is not believed.
        if self.promote and (problem := _blocking_reasons(self.results)):
            raise ValueError(f"this verdict cannot promote: {problem}")
        return self


def decide_verdict(results: Sequence[GateResult]) -> Verdict:
    """Promote when there are records, each of another gate, and all passed; anything else blocks."""
    if problem := _blocking_reasons(results):
        return Verdict(results=tuple(results), promote=False, reason=problem)
    passed = f"all {len(results)} gates passed" if len(results) > 1 else "the only gate passed"
    reason = f"{passed}: {', '.join(record.gate for record in results)}"
    return Verdict(results=tuple(results), promote=True, reason=reason)


def _blocking_reasons(results: Sequence[GateResult]) -> str:
    """All that stands against promotion, in words; empty when nothing does."""
    if not results:
        return "no gates: nothing speaks for the candidate"
    counts = Counter(record.gate for record in results)
    twice = [f"two gates are named {name}: give each its own name" for name, n in counts.items() if n > 1]
    return "; ".join(twice + [f"{r.gate}: {r.reason}" for r in results if r.outcome != "passed"])
