"""The model costs at most its limit to serve."""

from __future__ import annotations

from collections.abc import Mapping

from evergreen.gates.computation import finite_or_none, format_against_limit, gate_result
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import ServingGate


def compute(gate: ServingGate, evidence: Evidence) -> GateResult:
    """Pass when the quantity was measured and is at most `gate.at_most`, in the unit that its name ends with."""
    costs = evidence.serving_costs
    if isinstance(costs, MissingEvidence):
        raise NotComputedError(f"the cost of serving is not known: {costs.problem}")
    if not isinstance(costs, Mapping):
        raise NotComputedError("the costs of serving are not a mapping of quantities")
    if gate.quantity not in costs:
        measured = ", ".join(sorted(map(str, costs))) or "nothing"
        raise NotComputedError(f"{gate.quantity} was not measured, but {measured}")
    value = finite_or_none(costs[gate.quantity])
    if value is None or value < 0:
        raise NotComputedError(f"{gate.quantity} was measured as {costs[gate.quantity]!r}")
    reason = f"{gate.quantity} is {format_against_limit(value, gate.at_most)}, at most {gate.at_most:g} is required"
    return gate_result(gate, passed=value <= gate.at_most, candidate=value, rows=0, reason=reason)
