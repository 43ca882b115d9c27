"""Evidence in, verdict out."""

from __future__ import annotations

from collections.abc import Sequence

from evergreen.gates.evidence import Evidence
from evergreen.gates.spec import Gate
from evergreen.gates.verdict import Verdict, decide


def judge(gates: Sequence[Gate], evidence: Evidence) -> Verdict:
    """Hold the evidence against every gate, then decide on the records.

    The same gates and the same rows, in whatever order, give the same verdict. Evidence that cannot be used
    does not raise: its gates come back `not_computed`, with the reason, and block.
    """
    from evergreen.gates.evaluate import evaluate  # loads numpy, which a spec must not

    return decide([evaluate(gate, evidence) for gate in gates])
