"""A function of the model folder as a gate."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module

import numpy as np

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence
from evergreen.gates.kinds.shared import finite_or_none, not_computed_result
from evergreen.gates.verdict import CustomGateResult, GateResult
from evergreen.spec.gates import CustomGate


def compute(gate: CustomGate, evidence: Evidence) -> GateResult:
    """What `gate.function` found. Not computed when it cannot be imported, raises, or returns no sound `Finding`.

    The function is given a copy of the evidence: what it changes there, no other gate sees. That it gives the same
    answer to the same rows in any order is for its author to see to.
    """
    label = validation.to_float_array(evidence.label)
    rows = 0 if label is None else label.size
    try:
        module, _, name = gate.function.partition(":")
        found = getattr(import_module(module), name)(deepcopy(evidence))
    except Exception as error:  # anything may be wrong with code that is not ours; all of it blocks
        return not_computed_result(gate, rows, [f"{gate.function} raised {type(error).__name__}: {error}"])
    if not isinstance(found, CustomGateResult):
        text = f"{gate.function} returned {type(found).__name__}, not an evergreen.gates.Finding"
        return not_computed_result(gate, rows, [text])

    value, threshold = finite_or_none(found.value), finite_or_none(found.threshold)
    faults = []
    if not isinstance(found.passed, bool | np.bool_):
        faults.append(f"passed is {found.passed!r}, neither True nor False")
    if value is None:
        faults.append(f"value is {found.value!r}, not a finite number")
    if threshold is None:
        faults.append(f"threshold is {found.threshold!r}, not a finite number")
    if not isinstance(found.reason, str) or not found.reason.strip():
        faults.append("there is no reason")
    if faults or threshold is None:
        text = f"{gate.function} returned a Finding that cannot be used: {', '.join(faults)}"
        return not_computed_result(gate, rows, [text])
    return GateResult(
        gate=gate.name,
        outcome="passed" if found.passed else "failed",
        candidate=value,
        threshold=threshold,
        rows=rows,
        reason=found.reason.strip(),
    )
