"""Gates on the holdout's rows, whichever model is better: how many have labels, how many answers change."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evergreen.gates.computation import (
    finite_or_none,
    format_against_limit,
    gate_result,
    no_champion_result,
    to_float_array,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, unlabelled_share
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import ChurnGate, LabelledGate


def compute_labelled(gate: LabelledGate, evidence: Evidence) -> GateResult:
    """Pass when each day has at least the share `gate.at_least` of labels. The value is the lowest; rows are all."""
    counts = evidence.label_counts
    if not isinstance(counts, Mapping) or not counts:
        raise NotComputedError("the rows of the holdout, with labels and without, were not counted")
    missing = unlabelled_share(evidence)
    if missing is None or any(not 0 <= labelled <= rows or not rows for rows, labelled in counts.values()):
        raise NotComputedError("the counts of rows and labels are no counts")
    shares = {day: labelled / rows for day, (rows, labelled) in counts.items()}
    day = min(shares, key=lambda day: (shares[day], day))
    rows, labelled = counts[day]
    text = format_against_limit(shares[day], gate.at_least)
    return gate_result(
        gate,
        passed=shares[day] >= gate.at_least,
        candidate=shares[day],
        rows=sum(rows for rows, _ in counts.values()),
        reason=f"on {day} {labelled:,} of {rows:,} rows have a label, a share of {text}, the lowest of {len(counts):,} "
        f"days (at least {gate.at_least:g} is required); in all {100 * missing:.2g} % have none",
    )


def compute_churn(gate: ChurnGate, evidence: Evidence) -> GateResult:
    """Pass when at most `gate.at_most` of the answers, or of the predictions, changes; pass while there is no champion.

    The value is as measured. A bound by clusters would only widen a tolerance that somebody has chosen; and nothing is
    accumulated over the model's life: another candidate with the same value meets the same limit.
    """
    candidate, faults = _predictions(gate, "candidate", evidence.candidate)
    if isinstance(evidence.champion, NoChampion):
        if faults:
            raise NotComputedError(*faults)
        return no_champion_result(gate, evidence.champion, 0.0, candidate.size)
    if isinstance(evidence.champion, MissingEvidence):
        raise NotComputedError(*faults, f"the champion cannot be compared: {evidence.champion.problem}")
    champion, champion_faults = _predictions(gate, "champion", evidence.champion)
    faults += champion_faults
    if not faults and candidate.size != champion.size:
        faults = [f"the champion has {champion.size:,} scores, the candidate {candidate.size:,}"]
    if faults:
        raise NotComputedError(*faults, rows=candidate.size)
    if gate.cut is None:
        with np.errstate(over="ignore"):
            value = finite_or_none(np.abs(candidate - champion).mean())
        if value is None:
            raise NotComputedError("the mean difference is not a finite number", rows=candidate.size)
        finding = f"predictions differ from the champion's by {format_against_limit(value, gate.at_most)} on average"
    else:
        is_flipped = (candidate >= gate.cut) != (champion >= gate.cut)
        value = float(is_flipped.mean())
        text = format_against_limit(value, gate.at_most)
        finding = f"{int(is_flipped.sum()):,} answers differ from the champion's at {gate.cut:g}, a share of {text},"
    return gate_result(
        gate,
        passed=value <= gate.at_most,
        candidate=value,
        rows=candidate.size,
        reason=f"{finding} on {candidate.size:,} rows, at most {gate.at_most:g} is allowed",
    )


def _predictions(gate: ChurnGate, scorer: str, values: object) -> tuple[FloatArray, list[str]]:
    scores = to_float_array(values)
    if scores is None:
        return np.empty(0), [f"the {scorer}'s scores are not one row of numbers"]
    faults = []
    if scores.size < gate.min_rows:
        faults.append(f"{scores.size:,} rows are too few, at least {gate.min_rows:,} are needed")
    if invalid := int(np.count_nonzero(~np.isfinite(scores))):
        faults.append(f"{invalid:,} of the {scorer}'s {scores.size:,} scores are NaN or infinite")
    return scores, faults
