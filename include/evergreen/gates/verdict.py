"""Judges evidence by the gates of a model. A verdict is a pure function of the results of its gates.

NumPy is loaded by the first call: reading verdicts stays light.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evergreen.errors import EvergreenError
from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.gates.evidence import Evidence
from evergreen.spec import Frozen
from evergreen.spec.gates import AgainstChampionGate, Gate

MAX_LISTED = 10
"""Faults or slices that a reason lists."""

GateOutcome = Literal["passed", "failed", "not_computed"]


@dataclass(frozen=True)
class CustomGateResult:
    """The result of a function of the model folder.

    Nothing is checked here: with a value or threshold that is not a number, or an empty reason, the gate is not
    computed, names the fault, and blocks.

    Attributes:
        passed: whether the candidate may be promoted, as far as this gate is concerned.
        value: the measurement, in the function's own unit.
        threshold: the limit of the value.
        reason: one sentence, with the numbers, for people.
    """

    passed: bool
    value: float
    threshold: float
    reason: str


class SliceResult(Frozen, allow_inf_nan=False):
    """The result of a gate in one slice or group of the rows."""

    name: str
    rows: int = Field(ge=0)
    candidate: float | None = None
    champion: float | None = None
    interval: tuple[float, float] | None = Field(None, description="as in `GateResult`")
    is_judged: bool = Field(description="False: reported only, because the rows are too few")


class GateResult(Frozen, allow_inf_nan=False):
    """The result of one gate.

    `passed` and `failed` mean that the gate was computed. `not_computed` blocks like `failed` does, and `reason` names
    all faults.
    """

    gate: str = Field(min_length=1, description="the gate's name")
    outcome: GateOutcome
    candidate: float | None = Field(None, description="the candidate's metric")
    champion: float | None = Field(None, description="the champion's metric on the same rows")
    interval: tuple[float, float] | None = Field(
        None, description="one-sided lower and upper confidence bounds of the difference; positive is better"
    )
    threshold: float = Field(description="the limit of the metric, or of the interval's lower bound")
    alpha: float | None = Field(
        None, gt=0, lt=1, description="the chance of a false promotion that this comparison spent"
    )
    rows: int = Field(ge=0, description="rows of evidence")
    slices: tuple[SliceResult, ...] = Field((), description="by slice or group, if the gate has them")
    stored_slices: int = Field(
        0, ge=0, description="slices that are in the lake instead (`evergreen.promotion.slices`)"
    )
    reason: str = Field(min_length=1, description="one sentence, with the numbers, for people")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.outcome != "not_computed" and self.candidate is None:
            raise ValueError(f"gate {self.gate} {self.outcome} without a value of the candidate")
        if self.interval and self.interval[0] > self.interval[1]:
            raise ValueError(f"gate {self.gate}: the interval {self.interval} is upside down")
        return self


class NotComputedError(EvergreenError):
    """A gate cannot be computed, and blocks; `fields` are those of its result that are known nevertheless."""

    def __init__(self, *faults: str, **fields: Any):
        super().__init__(join_first(faults, "; "))
        self.fields = fields


class Verdict(Frozen, allow_inf_nan=False):
    """Whether to promote, why, and the results of all gates."""

    results: tuple[GateResult, ...]
    promote: bool
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check_promotion(self) -> Self:
        # Also of stored verdicts: an edited one is invalid.
        if self.promote and (problem := _blocking_reasons(self.results)):
            raise ValueError(f"this verdict cannot promote: {problem}")
        return self


def judge_evidence(
    gates: Sequence[Gate], evidence: Evidence, earlier_comparisons: Sequence[EarlierComparison] = ()
) -> Verdict:
    """Evaluate every gate, then decide on the results.

    `earlier_comparisons` are those of the model with a champion, oldest first: what they spent of its lifetime budget
    is gone.

    The same gates, rows (in any order) and earlier comparisons give the same verdict. Invalid evidence does not raise:
    its gates are `not_computed`, with the reason, and block.
    """
    return decide_verdict([evaluate_gate(gate, evidence, earlier_comparisons) for gate in gates])


def evaluate_gate(gate: Gate, evidence: Evidence, earlier_comparisons: Sequence[EarlierComparison] = ()) -> GateResult:
    """Return the result of `gate`: passed, failed, or not_computed with all faults.

    Never raises: a gate may run code of the model's folder, and evidence may have faults that no check foresees. Any
    exception blocks, and is named.
    """
    from evergreen.gates.computation import count_rows
    from evergreen.gates.kinds import COMPUTE

    try:
        if isinstance(gate, AgainstChampionGate):  # the only kind with a budget for the model's whole life
            return COMPUTE[gate.kind](gate, evidence, earlier_comparisons)
        return COMPUTE[gate.kind](gate, evidence)
    except NotComputedError as error:
        problem, fields = str(error), error.fields
    except Exception as error:
        problem, fields = f"the gate broke with {describe_error(error)}", {}
    fields = {"rows": count_rows(gate, evidence), **fields}
    return GateResult(gate=gate.name, outcome="not_computed", threshold=gate.limit, reason=problem, **fields)


def join_first(texts: Sequence[str], separator: str) -> str:
    """Join texts, of many the first only: there may be one for each of thousands of slices."""
    rest = len(texts) - MAX_LISTED
    return separator.join([*texts[:MAX_LISTED], *([f"and {rest:,} more"] if rest > 0 else [])])


def describe_error(error: Exception) -> str:
    """Return the class and the message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def decide_verdict(results: Sequence[GateResult]) -> Verdict:
    """Promote when there are results, each of another gate, and all passed; anything else blocks."""
    if problem := _blocking_reasons(results):
        return Verdict(results=tuple(results), promote=False, reason=problem)
    passed = f"all {len(results)} gates passed" if len(results) > 1 else "the only gate passed"
    reason = f"{passed}: {', '.join(result.gate for result in results)}"
    return Verdict(results=tuple(results), promote=True, reason=reason)


def _blocking_reasons(results: Sequence[GateResult]) -> str:
    """Return every reason against promotion, in a sentence; empty if there is none."""
    if not results:
        return "no gates: nothing speaks for the candidate"
    counts = Counter(result.gate for result in results)
    twice = [f"two gates are named {name}: give each its own name" for name, n in counts.items() if n > 1]
    return "; ".join(twice + [f"{r.gate}: {r.reason}" for r in results if r.outcome != "passed"])
