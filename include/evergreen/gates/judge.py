"""Judges evidence by the gates of a model. NumPy is loaded by the first call: reading verdicts stays light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import GateResult, Verdict, decide_verdict
from evergreen.spec.gates import AgainstChampionGate, Gate


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
    from evergreen.gates import validation
    from evergreen.gates.comparisons import NotComparableError
    from evergreen.gates.computation import not_computed_result

    try:
        compute: Callable[..., GateResult] = import_module(f"evergreen.gates.kinds.{gate.kind}").compute
        if isinstance(gate, AgainstChampionGate):  # the only kind with a budget for the model's whole life
            compute = partial(compute, earlier_comparisons=earlier_comparisons)
        return compute(gate, evidence)
    except NotComparableError as error:
        problem = str(error)
    except Exception as error:
        problem = f"the gate broke with {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
    label = validation.to_float_array(evidence.label)
    return not_computed_result(gate, 0 if label is None else label.size, [problem])
