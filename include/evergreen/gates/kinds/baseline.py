"""Is the candidate better than a model that anybody could write down?"""

from __future__ import annotations

from collections.abc import Mapping

from evergreen.gates import validation
from evergreen.gates.comparisons import NotComparable, gain
from evergreen.gates.evidence import Evidence, Missing
from evergreen.gates.kinds.against_champion import TELLING_ROWS
from evergreen.gates.kinds.shared import differing, labelled, measured, not_computed, raised
from evergreen.gates.metrics import Floats
from evergreen.gates.verdict import Part, Record
from evergreen.spec.gates import Baseline


def compute(gate: Baseline, evidence: Evidence) -> Record:
    """Passed when the lower bound of the gain over the baseline lies above 0, at `gate.confidence`.

    The only part is the baseline: its name and, as `candidate`, the value that it has in the candidate's place. Unlike
    a candidate it may predict the same for every row.
    """
    label, candidate, faults = labelled(gate, evidence)
    trivial = None
    made = evidence.baselines if isinstance(evidence.baselines, Mapping) else {}
    predictions = made.get(gate.against, Missing("nobody made its predictions"))
    if isinstance(predictions, Missing):
        faults.append(f"there is no baseline {gate.against}: {predictions.problem}")
    else:
        trivial = validation.column(predictions)
        faults += validation.score_faults(
            f"baseline {gate.against}", trivial, label, gate.scale.of, may_be_constant=True
        )
    if faults or label is None or candidate is None or trivial is None:
        return not_computed(gate, 0 if label is None else label.size, faults)
    try:
        return _compared(gate, label, candidate, trivial)
    except NotComparable as problem:
        return not_computed(gate, label.size, [str(problem)])
    except Exception as error:  # a metric may be the user's own code
        return not_computed(gate, label.size, [raised(gate, error)])


def _compared(gate: Baseline, label: Floats, candidate: Floats, trivial: Floats) -> Record:
    ours, theirs = (measured(gate, label, scores) for scores in (candidate, trivial))
    if ours is None or theirs is None:
        raise NotComparable(f"{gate.metric} does not exist for both on these {label.size:,} rows")
    telling = differing(gate, candidate, trivial)
    if gate.chosen_test == "bootstrap" and 0 < telling < TELLING_ROWS:
        differ = f"the candidate and {gate.against} differ in {telling:,} of {label.size:,} rows"
        raise NotComparable(
            f"{differ}: too few to tell how sure the gain is, at least {TELLING_ROWS} are needed"
        )
    found = gain(gate, label, candidate, trivial, 1 - gate.confidence, gate.chosen_test)
    passed = found.low > 0
    compared = f"{gate.metric} {ours:.4g} against {theirs:.4g} of {gate.against} on {label.size:,} rows"
    finding = f"it is at least {found.low:.4g} better" if passed else "it is not shown to be better"
    return Record(
        gate=gate.name,
        outcome="passed" if passed else "failed",
        candidate=ours,
        interval=(found.low, found.high),
        threshold=gate.limit,
        rows=label.size,
        parts=(Part(name=gate.against, rows=label.size, candidate=theirs, judged=True),),
        reason=f"{compared}: at {100 * gate.confidence:g} % confidence {finding}",
    )
