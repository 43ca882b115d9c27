"""Gates on the holdout's rows, whichever model is better: how many have labels, how many answers change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evergreen.gates.computation import (
    NO_VALUES,
    OutputStats,
    PredictionStats,
    finite_or_none,
    format_against_limit,
    gate_result,
    merge_stats,
    no_champion_result,
    prediction_shape_fault,
    prediction_stats,
    to_predictions,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, StreamedColumn, unlabelled_share
from evergreen.gates.metrics import FloatArray
from evergreen.gates.streams import iter_numbers
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import ChurnGate, LabelledGate, gate_kind_problem
from evergreen.spec.prediction_type import PredictionType


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
    is_known = not isinstance(evidence.champion, NoChampion | MissingEvidence)
    scorers: dict[str, object] = {"candidate": evidence.candidate}
    if is_known:
        scorers["champion"] = evidence.champion
    prediction = evidence.prediction_type
    if problem := gate_kind_problem(gate, prediction):
        raise NotComputedError(problem)
    stats, total = _sum_changes(gate, list(scorers.values()), prediction)
    faults = [
        fault
        for name, score in zip(scorers, stats, strict=True)
        for fault in _score_faults(gate, name, score, prediction)
    ]
    rows = stats[0].size if stats[0] else 0
    if isinstance(evidence.champion, NoChampion):
        if faults:
            raise NotComputedError(*faults)
        return no_champion_result(gate, evidence.champion, 0.0, rows)
    if isinstance(evidence.champion, MissingEvidence):
        raise NotComputedError(*faults, f"the champion cannot be compared: {evidence.champion.problem}")
    if not faults and stats[1] and rows != stats[1].size:
        faults = [f"the champion has {stats[1].size:,} scores, the candidate {rows:,}"]
    if faults:
        raise NotComputedError(*faults, rows=rows)
    value = finite_or_none(total / rows)
    if value is None:
        raise NotComputedError("the mean difference is not a finite number", rows=rows)
    text = format_against_limit(value, gate.at_most)
    if prediction and prediction.kind == "multiclass":
        finding = f"the most probable class differs from the champion's in {int(total):,} rows, a share of {text},"
    elif gate.cut is None:
        finding = f"predictions differ from the champion's by {text} on average"
    else:
        finding = f"{int(total):,} answers differ from the champion's at {gate.cut:g}, a share of {text},"
    return gate_result(
        gate,
        passed=value <= gate.at_most,
        candidate=value,
        rows=rows,
        reason=f"{finding} on {rows:,} rows, at most {gate.at_most:g} is allowed",
    )


def _sum_changes(
    gate: ChurnGate, columns: Sequence[object], prediction: PredictionType | None
) -> tuple[list[PredictionStats | None], float]:
    """Return what is checked of each column, and of two the sum of changes: of answers, or of predictions."""
    batches: Iterable[list[FloatArray | None]] = [[to_predictions(column, prediction) for column in columns]]
    if any(isinstance(column, StreamedColumn) for column in columns):
        batches = map(list[FloatArray | None], iter_numbers(*columns, prediction=prediction))
    stats: list[PredictionStats | None] = [NO_VALUES] * len(columns)
    total = 0.0
    for arrays in batches:
        stats = [
            None if score is None or array is None else merge_stats(score, prediction_stats(array))
            for score, array in zip(stats, arrays, strict=True)
        ]
        candidate, champion = arrays[0], arrays[-1]
        if candidate is None or champion is None or candidate.size != champion.size:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            if prediction and prediction.kind == "multiclass":
                total += int(np.count_nonzero(candidate.argmax(axis=1) != champion.argmax(axis=1)))
            elif candidate.ndim == 2:
                total += float(np.abs(candidate - champion).mean(axis=1).sum())
            elif gate.cut is None:
                total += float(np.abs(candidate - champion).sum())
            else:
                total += int(np.count_nonzero((candidate >= gate.cut) != (champion >= gate.cut)))
    return stats, total


def _score_faults(
    gate: ChurnGate, scorer: str, score: PredictionStats | None, prediction: PredictionType | None
) -> list[str]:
    if score is None:
        return [prediction_shape_fault(scorer, prediction)]
    faults = []
    if score.size < gate.min_rows:
        faults.append(f"{score.size:,} rows are too few, at least {gate.min_rows:,} are needed")
    columns = score.columns if isinstance(score, OutputStats) else [score]
    if infinite := max(column.infinite for column in columns):
        faults.append(f"{infinite:,} of the {scorer}'s {score.size:,} scores are NaN or infinite")
    return faults
