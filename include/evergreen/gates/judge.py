"""Evidence in, verdict out. NumPy is loaded by the first call: whoever only reads verdicts stays light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from evergreen.gates.alpha_spending import Comparison
from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import Record, Verdict, decide
from evergreen.spec.gates import AgainstChampion, Gate


def judge(gates: Sequence[Gate], evidence: Evidence, past: Sequence[Comparison] = ()) -> Verdict:
    """Hold the evidence against every gate, then decide on the records.

    `past` are the model's earlier comparisons with a champion, oldest first: what they spent of its lifetime budget
    is not there any more.

    The same gates, the same rows in whatever order and the same past give the same verdict. Evidence that cannot be
    used does not raise: its gates come back `not_computed`, with the reason, and block.
    """
    return decide([evaluate(gate, evidence, past) for gate in gates])


def evaluate(gate: Gate, evidence: Evidence, past: Sequence[Comparison] = ()) -> Record:
    """The record of `gate`: passed, failed, or not_computed with all that is wrong; never an exception.

    A gate may run code of the model's folder, and evidence may be wrong in ways that nobody thought of: whatever a gate
    raises blocks, and is named.
    """
    from evergreen.gates import validation
    from evergreen.gates.comparisons import NotComparable
    from evergreen.gates.kinds.shared import not_computed

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
    label = validation.column(evidence.label)
    return not_computed(gate, 0 if label is None else label.size, [problem])
