"""Judges evidence by the gates of a model. A verdict is a pure function of the results of its gates.

NumPy is loaded by the first call: reading verdicts stays light.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evergreen.errors import EvergreenError
from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, unlabelled_share
from evergreen.spec import Frozen
from evergreen.spec.gates import AgainstChampionGate, CustomGate, Gate, MetricGate

MAX_LISTED = 10
"""Faults or slices that a reason lists."""

GateOutcome = Literal["passed", "failed", "inconclusive", "not_computed"]


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


class Look(Frozen, allow_inf_nan=False):
    """One look at a comparison whose evidence grows."""

    end: date = Field(description="the day after its last day of evidence")
    days: int = Field(gt=0, description="days of evidence so far")
    level: float = Field(ge=0, lt=1, description="one-sided significance level of this look")
    gain: float = Field(description="estimated gain so far; positive is better")
    low: float = Field(description="lower confidence bound of the gain, at that level")


class GateResult(Frozen, allow_inf_nan=False):
    """The result of one gate.

    `passed`, `failed` and `inconclusive` mean that the gate was computed. `inconclusive` neither allows a promotion nor
    rejects the candidate: the evidence does not suffice yet, and may with more days. `not_computed` blocks like
    `failed` does, and `reason` names all faults.
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
    days: int | None = Field(None, ge=0, description="days of evidence, where days are clusters")
    day_correlation: float | None = Field(
        None, description="of the gains of neighbouring days, its bias removed; later comparisons learn from it"
    )
    looks: tuple[Look, ...] = Field((), description="all looks so far, in order, if the evidence of the gate grows")
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
        if self.outcome == "inconclusive" and not (self.looks and self.alpha):
            raise ValueError(f"gate {self.gate} is inconclusive without a look and its alpha")
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
    unlabelled_share: float | None = Field(
        None, ge=0, le=1, description="share of the holdout's rows whose label is not known; None if not counted"
    )

    @model_validator(mode="after")
    def _check_promotion(self) -> Self:
        # Also of stored verdicts: an edited one is invalid.
        if self.promote and (problem := _blocking_reasons(self.results)):
            raise ValueError(f"this verdict cannot promote: {problem}")
        return self

    @property
    def is_inconclusive(self) -> bool:
        """Whether no gate rejects the candidate, and at least one waits for more days of evidence."""
        outcomes = {result.outcome for result in self.results}
        return "inconclusive" in outcomes and outcomes <= {"inconclusive", "passed"}


def judge_evidence(
    gates: Sequence[Gate],
    evidence: Evidence,
    earlier_comparisons: Sequence[EarlierComparison] = (),
    *,
    accumulates: bool = False,
) -> Verdict:
    """Evaluate every gate, then decide on the results.

    `earlier_comparisons` are those of the model with a champion that have ended, oldest first: what they spent of its
    budget is gone. With `accumulates` this is the first of several looks: a comparison with the champion may be
    inconclusive, and go on with `judge_next_look`. Without, this look decides.

    Comparisons with the champion come last, and are not made where they would be spent in vain: where another gate
    blocks whatever the labels are, or cannot be computed.

    The same gates, rows (in any order) and earlier comparisons give the same verdict. Invalid evidence does not raise:
    its gates are `not_computed`, with the reason, and block.
    """
    comparisons = [n for n, gate in enumerate(gates) if isinstance(gate, AgainstChampionGate)]
    results = {n: evaluate_gate(gate, evidence) for n, gate in enumerate(gates) if n not in comparisons}
    blockers = [result.gate for n, result in results.items() if _blocks_for_any_labels(gates[n], result)]
    is_free = isinstance(evidence.champion, NoChampion | MissingEvidence)
    if is_free or not blockers:
        results |= {n: evaluate_gate(gates[n], evidence, earlier_comparisons, accumulates) for n in comparisons}
        blockers = [] if is_free else [results[n].gate for n in comparisons if results[n].outcome == "not_computed"]
    for n in comparisons:
        if blockers and (n not in results or results[n].outcome != "not_computed"):
            results[n] = _withhold_comparison(gates[n], evidence, blockers)
    verdict = decide_verdict([results[n] for n in range(len(gates))])
    return verdict.model_copy(update={"unlabelled_share": unlabelled_share(evidence)})


def _blocks_for_any_labels(gate: Gate, result: GateResult) -> bool:
    """Return whether the result blocks, and would with other labels of the same rows.

    A gate that has judged the same labels must not decide whether they are compared: comparisons would be made where
    the candidate was lucky, and at most the budget would no longer be spent (docs/decisions/0025-nothing-in-vain.md).
    """
    if isinstance(gate, MetricGate):
        return result.outcome == "not_computed"
    return result.outcome != "passed" and not isinstance(gate, CustomGate)


def _withhold_comparison(gate: Gate, evidence: Evidence, blockers: Sequence[str]) -> GateResult:
    from evergreen.gates.computation import count_rows

    reason = f"nothing was compared, and nothing is spent: {', '.join(blockers)} did not pass"
    rows = count_rows(gate, evidence)
    return GateResult(gate=gate.name, outcome="not_computed", threshold=gate.limit, rows=rows, reason=reason)


def judge_next_look(
    gates: Sequence[Gate], evidence: Evidence, earlier_comparisons: Sequence[EarlierComparison], previous: Verdict
) -> Verdict:
    """Judge an inconclusive candidate again, when more days have their labels.

    Only gates that were inconclusive are evaluated; the others keep their result, and `previous` is all that is
    carried from look to look. `evidence` is that of all days since the beginning of the holdout. `earlier_comparisons`
    are those that had ended before the first look. Looks may come at any time, as long as the gain that was seen does
    not choose it.
    """
    by_name = {gate.name: gate for gate in gates}

    def evaluate(result: GateResult) -> GateResult:
        gate = by_name.get(result.gate)
        if result.outcome != "inconclusive" or not isinstance(gate, AgainstChampionGate):
            return result
        judged = evaluate_gate(gate, evidence, earlier_comparisons, True, result)
        if judged.outcome != "not_computed":
            return judged
        # A week without evidence rejects nobody.
        return result.model_copy(update={"reason": f"this look could not be computed: {judged.reason}"})

    return decide_verdict([evaluate(result) for result in previous.results])


def evaluate_gate(
    gate: Gate,
    evidence: Evidence,
    earlier_comparisons: Sequence[EarlierComparison] = (),
    accumulates: bool = False,
    previous: GateResult | None = None,
) -> GateResult:
    """Return the result of `gate`, or not_computed with all faults. `previous` is that of the look before, if any.

    Never raises: a gate may run code of the model's folder, and evidence may have faults that no check foresees. Any
    exception blocks, and is named.
    """
    from evergreen.gates.computation import count_rows
    from evergreen.gates.kinds import COMPUTE

    try:
        if isinstance(gate, AgainstChampionGate):  # the only kind with a budget for the model's whole life
            return COMPUTE[gate.kind](gate, evidence, earlier_comparisons, accumulates, previous)
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
