"""The online store serves the features that the model was trained and judged on."""

from __future__ import annotations

from evergreen.gates.computation import format_against_limit, gate_result
from evergreen.gates.evidence import Evidence, MissingEvidence, OnlineSample
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import OnlineEqualsOfflineGate


def compute(gate: OnlineEqualsOfflineGate, evidence: Evidence) -> GateResult:
    """Pass when at most the share `gate.at_most` of the compared feature values differ. Rows are values compared."""
    sample = evidence.online_sample
    if isinstance(sample, MissingEvidence):
        raise NotComputedError(f"the online store was not compared with the offline one: {sample.problem}")
    if not isinstance(sample, OnlineSample) or not (_is_count(sample.value_count) and _is_count(sample.mismatch_count)):
        raise NotComputedError("the comparison of the online store with the offline one has no counts")
    values, mismatches = int(sample.value_count), int(sample.mismatch_count)
    if not values:
        raise NotComputedError("no feature value was compared: nothing is known of the online store")
    if mismatches > values:
        fault = f"{mismatches:,} of {values:,} compared feature values differ, more than were compared"
        raise NotComputedError(fault, rows=values)
    share = mismatches / values
    reason = f"{mismatches:,} of {values:,} feature values differ online from offline"
    if mismatches:
        reason += f", a share of {format_against_limit(share, gate.at_most)}"
    reason += f" (at most {gate.at_most:g} is allowed)"
    if mismatches and sample.first_mismatch:
        reason += f"; the first: {sample.first_mismatch}"
    return gate_result(gate, passed=share <= gate.at_most, candidate=share, rows=values, reason=reason)


def _is_count(number: object) -> bool:
    return hasattr(number, "__index__") and not isinstance(number, bool) and int(number) >= 0
