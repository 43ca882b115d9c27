"""What several kinds of gates share: checks of evidence that name all faults at once, and numbers in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from evergreen.gates.evidence import Evidence, NoChampion
from evergreen.gates.metrics import FloatArray, compute_metric, resolve_metric, sort_rows
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import CustomGate, Gate, LabelType, MetricGate


def gate_result(gate: Gate, *, passed: bool, **fields: Any) -> GateResult:
    """Return the result of a gate that was computed."""
    outcome = "passed" if passed else "failed"
    return GateResult(gate=gate.name, **{"outcome": outcome, "threshold": gate.limit, **fields})


def no_champion_result(gate: Gate, champion: NoChampion, candidate: float, rows: int) -> GateResult:
    """Return the result of a gate that compares with the champion, while there is nothing to compare with."""
    return gate_result(gate, passed=True, candidate=candidate, rows=rows, reason=champion.reason)


def to_float_array(values: object) -> FloatArray | None:
    """Return the values as (n,) float64, or None if they are not one plain row of numbers."""
    if isinstance(values, np.ma.MaskedArray):
        return None  # numpy would silently unmask it
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        return None
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return None
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which is a fault
        return array.astype(np.float64) + 0.0  # + 0.0 turns -0.0 into 0.0: equal scores, equal bytes


def count_rows(gate: Gate, evidence: Evidence) -> int:
    """Return the number of labels, for a gate that judges labelled rows; else 0."""
    label = to_float_array(evidence.label) if isinstance(gate, MetricGate | CustomGate) else None
    return 0 if label is None else label.size


def validate_rows(
    gate: MetricGate, evidence: Evidence, references: Mapping[str, object], *, allow_constant: bool = False
) -> tuple[list[FloatArray], list[str]]:
    """Return labels, the candidate's scores and those of `references`, by name, (n,) each, and all of their faults.

    What is not one row of numbers is returned empty. A constant score is a fault for every metric: it ranks nothing,
    it is the sign of a broken model more often than of a simple one, and at the base rate it would even count as
    perfectly calibrated. With `allow_constant`, references may be constant: trivial models are.
    """
    # A rate of predictions needs no labels of both classes.
    label_type = "continuous" if gate.metric == "positive_rate" else gate.scale.label_type
    label = to_float_array(evidence.label)
    columns, faults = [label], _label_faults(label, gate.min_rows, label_type)
    for scorer, scores in {"candidate": evidence.candidate, **references}.items():
        score = to_float_array(scores)
        constant_allowed = allow_constant and scorer in references
        columns.append(score)
        faults += _score_faults(scorer, score, label, gate.scale.label_type, constant_allowed)
    return [np.empty(0) if column is None else column for column in columns], faults


def _label_faults(label: FloatArray | None, min_rows: int, label_type: LabelType) -> list[str]:
    if label is None:
        return ["the labels are not one row of numbers"]
    faults = []
    if label.size < min_rows:
        faults.append(f"{label.size:,} rows are too few, at least {min_rows:,} are needed")
    if label_type != "binary":
        if invalid := int(np.count_nonzero(~np.isfinite(label))):
            faults.append(f"{invalid:,} of {label.size:,} labels are NaN or infinite")
        if label_type == "count" and (negative := int(np.count_nonzero(label < 0))):
            faults.append(f"{negative:,} of {label.size:,} labels are below 0, down to {np.nanmin(label):g}")
        return faults
    if invalid := int(np.count_nonzero((label != 0) & (label != 1))):
        faults.append(f"{invalid:,} of {label.size:,} labels are neither 0 nor 1")
    for number in (0, 1):
        if (rows := int(np.count_nonzero(label == number))) < 2:
            faults.append(f"{rows} of {label.size:,} labels are {number}, at least 2 are needed")
    return faults


def _score_faults(
    scorer: str, score: FloatArray | None, label: FloatArray | None, label_type: LabelType, allow_constant: bool
) -> list[str]:
    if score is None:
        return [f"the {scorer}'s scores are not one row of numbers"]
    faults = []
    if label is not None and score.size != label.size:
        faults.append(f"the {scorer} has {score.size:,} scores for {label.size:,} labels")
    if invalid := int(np.count_nonzero(~np.isfinite(score))):
        faults.append(f"{invalid:,} of the {scorer}'s {score.size:,} scores are NaN or infinite")
    elif label_type == "binary" and (outside := int(np.count_nonzero((score < 0) | (score > 1)))):
        text = f"{outside:,} of the {scorer}'s {score.size:,} scores are outside [0, 1]"
        faults.append(f"{text}: they go from {score.min():g} to {score.max():g}")
    elif label_type == "count" and (negative := int(np.count_nonzero(score < 0))):
        faults.append(f"{negative:,} of the {scorer}'s {score.size:,} scores are below 0, down to {score.min():g}")
    elif not allow_constant and score.size and score.min() == score.max():
        faults.append(f"the {scorer} scores every row {score[0]:g}: a constant ranks nothing")
    return faults


def finite_or_none(number: object) -> float | None:
    """Return the number as a float, or None if it is NaN, infinite or no number. True and False are not numbers."""
    if isinstance(number, bool | np.bool_ | str | bytes):
        return None
    try:
        value = float(number)  # type: ignore[arg-type]  # an object without __float__ raises
    except (TypeError, ValueError, OverflowError):
        return None
    return value if isfinite(value) else None


def format_against_limit(number: float, limit: float) -> str:
    """Format a number briefly, but never rounded onto or over the limit: "0.6 is below 0.6" helps nobody."""
    for digits in (4, 8):
        text = f"{number:.{digits}g}"
        if np.sign(float(text) - limit) == np.sign(number - limit):
            return text
    return repr(float(number))


def compute_gate_metric(
    gate: MetricGate, label: FloatArray, scores: FloatArray, *, ignore_errors: bool = False
) -> float | None:
    """Return the gate's metric of these rows (n,), independent of their order; None if it does not exist.

    With `ignore_errors`, for groups that are not judged: an error of a custom metric on so few rows blocks nothing.
    """
    # AUC counts pairs, and so is exact in any order.
    columns = [label, scores] if gate.metric == "auc" else sort_rows([label, scores])
    try:
        return finite_or_none(compute_metric(resolve_metric(gate), *columns))
    except Exception:
        if ignore_errors:
            return None
        raise
