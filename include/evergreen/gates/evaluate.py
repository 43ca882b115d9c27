"""One gate and the evidence, to one record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from evergreen.gates import usable
from evergreen.gates.comparisons import NotComparable
from evergreen.gates.evidence import Evidence
from evergreen.gates.kinds.shared import not_computed
from evergreen.gates.spec import AgainstChampion, Gate
from evergreen.gates.spending import Comparison
from evergreen.gates.verdict import Record


def evaluate(gate: Gate, evidence: Evidence, past: Sequence[Comparison] = ()) -> Record:
    """The record of `gate`: passed, failed, or not_computed with all that is wrong; never an exception.

    A gate may run code of the model's folder, and evidence may be wrong in ways that nobody thought of: whatever a gate
    raises blocks, and is named.
    """
    try:
        compute: Callable[..., Record] = import_module(f"evergreen.gates.kinds.{gate.kind}").compute
        if isinstance(gate, AgainstChampion):  # the only kind with a budget for the model's whole life
            compute = partial(compute, past=past)
        return compute(gate, evidence)
    except NotComparable as error:
        problem = str(error)
    except Exception as error:
        problem = (
            f"the gate broke with {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        )
    label = usable.column(evidence.label)
    return not_computed(gate, 0 if label is None else label.size, [problem])
