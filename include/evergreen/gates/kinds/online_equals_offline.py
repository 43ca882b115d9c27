"""Does the online store give what the model was trained and judged on?"""

from __future__ import annotations

from evergreen.gates.evidence import Evidence, Missing, OnlineSample
from evergreen.gates.kinds.shared import beside, not_computed
from evergreen.gates.verdict import Record
from evergreen.spec.gates import OnlineEqualsOffline


def compute(gate: OnlineEqualsOffline, evidence: Evidence) -> Record:
    """Passed when at most the share `gate.at_most` of the compared feature values differ. Rows are values compared."""
    sample = evidence.online
    if isinstance(sample, Missing):
        return not_computed(
            gate, 0, [f"the online store was not compared with the offline one: {sample.problem}"]
        )
    if not isinstance(sample, OnlineSample) or not (_count(sample.compared) and _count(sample.different)):
        return not_computed(
            gate, 0, ["the comparison of the online store with the offline one has no counts"]
        )
    compared, different = int(sample.compared), int(sample.different)
    if not compared:
        return not_computed(gate, 0, ["no feature value was compared: nothing is known of the online store"])
    if different > compared:
        text = f"{different:,} of {compared:,} compared feature values differ, more than were compared"
        return not_computed(gate, compared, [text])
    share = different / compared
    finding = f"{different:,} of {compared:,} feature values differ online from offline"
    if different:
        finding += f", a share of {beside(share, gate.at_most)}"
    finding += f" (at most {gate.at_most:g} is allowed)"
    if different and sample.example:
        finding += f"; the first: {sample.example}"
    return Record(
        gate=gate.name,
        outcome="passed" if share <= gate.at_most else "failed",
        candidate=share,
        threshold=gate.limit,
        rows=compared,
        reason=finding,
    )


def _count(number: object) -> bool:
    return hasattr(number, "__index__") and not isinstance(number, bool) and int(number) >= 0
