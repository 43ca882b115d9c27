"""The candidate is better than a trivial model."""

from __future__ import annotations

from collections.abc import Mapping

from evergreen.gates.comparisons import check_differing_rows, estimate_gain
from evergreen.gates.computation import compute_gate_metric, gate_result, validate_rows
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.verdict import GateResult, NotComputedError, SliceResult
from evergreen.spec.gates import BaselineGate


def compute(gate: BaselineGate, evidence: Evidence) -> GateResult:
    """Pass when the lower bound of the gain over the baseline is above 0, at `gate.confidence`.

    The only slice is the baseline: its name and, as `candidate`, the value that it has in the candidate's place.
    Unlike a candidate it may predict the same for every row.
    """
    baselines = evidence.baselines if isinstance(evidence.baselines, Mapping) else {}
    predictions = baselines.get(gate.baseline, MissingEvidence("its predictions were not computed"))
    if isinstance(predictions, MissingEvidence):
        _, faults = validate_rows(gate, evidence, {})
        raise NotComputedError(*faults, f"there is no baseline {gate.baseline}: {predictions.problem}")
    references = {f"baseline {gate.baseline}": predictions}
    (label, candidate, baseline), faults = validate_rows(gate, evidence, references, allow_constant=True)
    if faults:
        raise NotComputedError(*faults)
    value, baseline_value = (compute_gate_metric(gate, label, scores) for scores in (candidate, baseline))
    if value is None or baseline_value is None:
        raise NotComputedError(f"{gate.metric} does not exist for both on these {label.size:,} rows")
    check_differing_rows(gate, candidate, baseline, f"the candidate and {gate.baseline}")
    gain = estimate_gain(gate, label, candidate, baseline, 1 - gate.confidence, gate.chosen_test)
    passed = gain.low > 0
    values = f"{gate.metric} {value:.4g} against {baseline_value:.4g} of {gate.baseline} on {label.size:,} rows"
    finding = f"it is at least {gain.low:.4g} better" if passed else "it is not shown to be better"
    return gate_result(
        gate,
        passed=passed,
        candidate=value,
        interval=(gain.low, gain.high),
        rows=label.size,
        slices=(SliceResult(name=gate.baseline, rows=label.size, candidate=baseline_value, is_judged=True),),
        reason=f"{values}: at {100 * gate.confidence:g} % confidence {finding}",
    )
