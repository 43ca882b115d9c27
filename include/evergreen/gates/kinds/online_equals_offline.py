"""Does the online store give what the model was trained and judged on?"""

from __future__ import annotations

from evergreen.gates.evidence import Evidence, MissingEvidence, OnlineSample
from evergreen.gates.kinds.shared import format_against_limit, not_computed_result
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import OnlineEqualsOfflineGate


def compute(gate: OnlineEqualsOfflineGate, evidence: Evidence) -> GateResult:
    """Passed when at most the share `gate.at_most` of the compared feature values differ. Rows are values compared."""
    sample = evidence.online_sample
    if isinstance(sample, MissingEvidence):
        return not_computed_result(
            gate, 0, [f"the online store was not compared with the offline one: {sample.problem}"]
        )
    if not isinstance(sample, OnlineSample) or not (_is_count(sample.value_count) and _is_count(sample.mismatch_count)):
        return not_computed_result(gate, 0, ["the comparison of the online store with the offline one has no counts"])
    compared, different = int(sample.value_count), int(sample.mismatch_count)
    if not compared:
        return not_computed_result(gate, 0, ["no feature value was compared: nothing is known of the online store"])
    if different > compared:
        text = f"{different:,} of {compared:,} compared feature values differ, more than were compared"
        return not_computed_result(gate, compared, [text])
    share = different / compared
    finding = f"{different:,} of {compared:,} feature values differ online from offline"
    if different:
        finding += f", a share of {format_against_limit(share, gate.at_most)}"
    finding += f" (at most {gate.at_most:g} is allowed)"
    if different and sample.first_mismatch:
        finding += f"; the first: {sample.first_mismatch}"
    return GateResult(
        gate=gate.name,
        outcome="passed" if share <= gate.at_most else "failed",
        candidate=share,
        threshold=gate.limit,
        rows=compared,
        reason=finding,
    )


def _is_count(number: object) -> bool:
    return hasattr(number, "__index__") and not isinstance(number, bool) and int(number) >= 0
