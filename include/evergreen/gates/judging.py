"""Evidence in, verdict out."""

from __future__ import annotations

from collections.abc import Sequence

from evergreen.gates.evidence import Evidence
from evergreen.gates.spec import Gate
from evergreen.gates.spending import Comparison
from evergreen.gates.verdict import Verdict, decide


def judge(gates: Sequence[Gate], evidence: Evidence, past: Sequence[Comparison] = ()) -> Verdict:
    """Hold the evidence against every gate, then decide on the records.

    `past` are the model's earlier comparisons with a champion, oldest first: what they spent of its lifetime budget
    is not there any more.

    The same gates, the same rows in whatever order and the same past give the same verdict. Evidence that cannot be
    used does not raise: its gates come back `not_computed`, with the reason, and block.
    """
    from evergreen.gates.evaluate import evaluate  # loads numpy, which a spec must not

    return decide([evaluate(gate, evidence, past) for gate in gates])
