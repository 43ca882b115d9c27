"""Is the candidate better than a model that anybody could write down?"""

from __future__ import annotations

from collections.abc import Mapping

from evergreen.gates import validation
from evergreen.gates.comparisons import NotComparableError, estimate_gain
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.kinds.against_champion import MIN_DIFFERING_ROWS
from evergreen.gates.kinds.shared import (
    compute_gate_metric,
    count_differences,
    metric_error_message,
    not_computed_result,
    validate_label_and_scores,
)
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, SliceResult
from evergreen.spec.gates import BaselineGate


def compute(gate: BaselineGate, evidence: Evidence) -> GateResult:
    """Passed when the lower bound of the gain over the baseline lies above 0, at `gate.confidence`.

    The only part is the baseline: its name and, as `candidate`, the value that it has in the candidate's place. Unlike
    a candidate it may predict the same for every row.
    """
    label, candidate, faults = validate_label_and_scores(gate, evidence)
    trivial = None
    made = evidence.baselines if isinstance(evidence.baselines, Mapping) else {}
    predictions = made.get(gate.baseline, MissingEvidence("nobody made its predictions"))
    if isinstance(predictions, MissingEvidence):
        faults.append(f"there is no baseline {gate.baseline}: {predictions.problem}")
    else:
        trivial = validation.to_float_array(predictions)
        faults += validation.score_faults(
            f"baseline {gate.baseline}", trivial, label, gate.scale.label_type, allow_constant=True
        )
    if faults or label is None or candidate is None or trivial is None:
        return not_computed_result(gate, 0 if label is None else label.size, faults)
    try:
        return _compare_with_baseline(gate, label, candidate, trivial)
    except NotComparableError as problem:
        return not_computed_result(gate, label.size, [str(problem)])
    except Exception as error:  # a metric may be the user's own code
        return not_computed_result(gate, label.size, [metric_error_message(gate, error)])


def _compare_with_baseline(
    gate: BaselineGate, label: FloatArray, candidate: FloatArray, baseline: FloatArray
) -> GateResult:
    ours, theirs = (compute_gate_metric(gate, label, scores) for scores in (candidate, baseline))
    if ours is None or theirs is None:
        raise NotComparableError(f"{gate.metric} does not exist for both on these {label.size:,} rows")
    telling = count_differences(gate, candidate, baseline)
    if gate.chosen_test == "bootstrap" and 0 < telling < MIN_DIFFERING_ROWS:
        differ = f"the candidate and {gate.baseline} differ in {telling:,} of {label.size:,} rows"
        raise NotComparableError(
            f"{differ}: too few to tell how sure the gain is, at least {MIN_DIFFERING_ROWS} are needed"
        )
    found = estimate_gain(gate, label, candidate, baseline, 1 - gate.confidence, gate.chosen_test)
    passed = found.low > 0
    compared = f"{gate.metric} {ours:.4g} against {theirs:.4g} of {gate.baseline} on {label.size:,} rows"
    finding = f"it is at least {found.low:.4g} better" if passed else "it is not shown to be better"
    return GateResult(
        gate=gate.name,
        outcome="passed" if passed else "failed",
        candidate=ours,
        interval=(found.low, found.high),
        threshold=gate.limit,
        rows=label.size,
        slices=(SliceResult(name=gate.baseline, rows=label.size, candidate=theirs, is_judged=True),),
        reason=f"{compared}: at {100 * gate.confidence:g} % confidence {finding}",
    )
