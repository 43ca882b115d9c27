"""A function of the model folder as a gate."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module

import numpy as np

from evergreen.gates import validation
from evergreen.gates.computation import finite_or_none, gate_result, not_computed_result
from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import CustomGateResult, GateResult
from evergreen.spec.gates import CustomGate


def compute(gate: CustomGate, evidence: Evidence) -> GateResult:
    """Return the result of `gate.function`; not computed if it cannot be imported, raises, or returns no valid result.

    The function receives a copy of the evidence: no other gate sees what it changes there. Its author is responsible
    for an answer that does not depend on the order of rows.
    """
    label = validation.to_float_array(evidence.label)
    rows = 0 if label is None else label.size
    try:
        module, _, name = gate.function.partition(":")
        result = getattr(import_module(module), name)(deepcopy(evidence))
    except Exception as error:  # of any class: it is the user's code
        return not_computed_result(gate, rows, [f"{gate.function} raised {type(error).__name__}: {error}"])
    if not isinstance(result, CustomGateResult):
        text = f"{gate.function} returned {type(result).__name__}, not an evergreen.gates.CustomGateResult"
        return not_computed_result(gate, rows, [text])

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
        text = f"{gate.function} returned an invalid CustomGateResult: {', '.join(faults)}"
        return not_computed_result(gate, rows, [text])
    return gate_result(
        gate, passed=result.passed, candidate=value, threshold=threshold, rows=rows, reason=result.reason.strip()
    )
