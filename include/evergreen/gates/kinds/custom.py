"""A function of the model folder as a gate."""

from __future__ import annotations

from copy import deepcopy
from pkgutil import resolve_name

import numpy as np

from evergreen.gates.computation import count_rows, finite_or_none, gate_result
from evergreen.gates.evidence import Evidence
from evergreen.gates.metrics import user_code
from evergreen.gates.verdict import CustomGateResult, GateResult, NotComputedError
from evergreen.spec.gates import CustomGate


def compute(gate: CustomGate, evidence: Evidence) -> GateResult:
    """Return the result of `gate.function`; not computed if it cannot be imported, raises, or returns no valid result.

    The function receives a copy of the evidence: no other gate sees what it changes there. Its author is responsible
    for an answer that does not depend on the order of rows.
    """
    with user_code(gate.function):
        result = resolve_name(gate.function)(deepcopy(evidence))
    if not isinstance(result, CustomGateResult):
        raise NotComputedError(
            f"{gate.function} returned {type(result).__name__}, not an evergreen.gates.CustomGateResult"
        )
    value, threshold = finite_or_none(result.value), finite_or_none(result.threshold)
    faults = []
    if not isinstance(result.passed, bool | np.bool_):
        faults.append(f"passed is {result.passed!r}, neither True nor False")
    if value is None:
        faults.append(f"value is {result.value!r}, not a finite number")
    if threshold is None:
        faults.append(f"threshold is {result.threshold!r}, not a finite number")
    if not isinstance(result.reason, str) or not result.reason.strip():
        faults.append("there is no reason")
    if faults or threshold is None:
        raise NotComputedError(f"{gate.function} returned an invalid CustomGateResult: {', '.join(faults)}")
    return gate_result(
        gate,
        passed=result.passed,
        candidate=value,
        threshold=threshold,
        rows=count_rows(gate, evidence),
        reason=result.reason.strip(),
    )
