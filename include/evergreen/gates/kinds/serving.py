"""Does the model cost more to serve than it may?"""

from __future__ import annotations

from collections.abc import Mapping

from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.kinds.shared import finite_or_none, format_against_limit, not_computed_result
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import ServingGate


def compute(gate: ServingGate, evidence: Evidence) -> GateResult:
    """Passed when the quantity was measured and is at most `gate.at_most`, in the unit that its name tells."""
    measured = evidence.serving_costs
    if isinstance(measured, MissingEvidence):
        return not_computed_result(gate, 0, [f"the cost of serving is not known: {measured.problem}"])
    if not isinstance(measured, Mapping):
        return not_computed_result(gate, 0, ["what was measured of serving is not a mapping of quantities"])
    if gate.quantity not in measured:
        others = ", ".join(sorted(map(str, measured))) or "nothing"
        return not_computed_result(gate, 0, [f"{gate.quantity} was not measured, but {others}"])
    value = finite_or_none(measured[gate.quantity])
    if value is None or value < 0:
        return not_computed_result(gate, 0, [f"{gate.quantity} was measured as {measured[gate.quantity]!r}"])
    return GateResult(
        gate=gate.name,
        outcome="passed" if value <= gate.at_most else "failed",
        candidate=value,
        threshold=gate.limit,
        rows=0,
        reason=f"{gate.quantity} is {format_against_limit(value, gate.at_most)}, at most {gate.at_most:g} is required",
    )
