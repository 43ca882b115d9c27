"""What several kinds of gates share: results that are not computed, numbers in sentences, groups of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.metrics import FloatArray, compute_metric, resolve_metric
from evergreen.gates.verdict import GateResult, SliceResult
from evergreen.spec.gates import Gate, MetricGate

RowIndices = NDArray[np.intp]


def gate_result(gate: Gate, *, passed: bool, **fields: Any) -> GateResult:
    """Return the result of a gate that was computed."""
    return GateResult(gate=gate.name, outcome="passed" if passed else "failed", **{"threshold": gate.limit, **fields})


def not_computed_result(gate: Gate, rows: int, faults: Sequence[str], slices: Sequence[SliceResult] = ()) -> GateResult:
    """Return a result that blocks and names all faults."""
    return GateResult(
        gate=gate.name,
        outcome="not_computed",
        threshold=gate.limit,
        rows=rows,
        slices=tuple(slices),
        reason="; ".join(faults),
    )


def no_champion_result(gate: Gate, candidate: float, rows: int) -> GateResult:
    """Return the result of a gate that compares with the champion, while there is none."""
    reason = "no champion yet: nothing to compare with"
    return gate_result(gate, passed=True, candidate=candidate, rows=rows, reason=reason)


def validate_label_and_scores(
    gate: MetricGate, evidence: Evidence
) -> tuple[FloatArray | None, FloatArray | None, list[str]]:
    """Return labels and the candidate's predictions, (n,) each, and all of their faults."""
    label, scores = validation.to_float_array(evidence.label), validation.to_float_array(evidence.candidate)
    # A rate of predictions needs no labels of both classes.
    label_type = "continuous" if gate.metric == "positive_rate" else gate.scale.label_type
    faults = validation.label_faults(label, gate.min_rows, label_type)
    return label, scores, faults + validation.score_faults("candidate", scores, label, gate.scale.label_type)


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


def metric_error_message(gate: MetricGate, error: Exception) -> str:
    """Describe an error of a custom metric."""
    return f"{gate.metric} raised {type(error).__name__}: {error}"


def group_rows(evidence: Evidence, group_by: str, rows: int) -> dict[str, RowIndices] | str:
    """Return the rows (k,) of each group, by its name and in order of names; or, in a sentence, why there are none.

    A row whose group is None is in no group.
    """
    groups = evidence.groups if isinstance(evidence.groups, Mapping) else {}
    if group_by not in groups:
        available = ", ".join(sorted(groups)) or "nothing"
        return f"the groups by {group_by} are not known: there are those by {available}"
    names = groups[group_by]
    if isinstance(names, MissingEvidence):
        return f"the groups by {group_by} are not known: {names.problem}"
    if isinstance(names, str) or not hasattr(names, "__len__"):
        return f"the groups by {group_by} are not one row of names"
    if len(names) != rows:
        return f"there are {len(names):,} groups by {group_by} for {rows:,} labels"
    if invalid := sorted({repr(name) for name in names if not (name is None or isinstance(name, str))}):
        return f"groups by {group_by} are names or None, not {', '.join(invalid[:3])}"
    indices: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None:
            indices.setdefault(str(name), []).append(row)
    if not indices:
        return f"no row has a group by {group_by}"
    return {name: np.asarray(indices[name], dtype=np.intp) for name in sorted(indices)}


def has_enough_rows(gate: MetricGate, label: FloatArray) -> bool:
    """Return whether a group with these labels (k,) can be judged: it has the rows and, if needed, both classes."""
    if label.size < gate.min_rows:
        return False
    ones = int(np.count_nonzero(label == 1))
    return gate.scale.label_type == "continuous" or gate.metric == "positive_rate" or min(ones, label.size - ones) >= 2


def compute_gate_metric(
    gate: MetricGate, label: FloatArray, scores: FloatArray, *, ignore_errors: bool = False
) -> float | None:
    """Return the gate's metric of these rows (n,), independent of their order; None if it does not exist.

    With `ignore_errors`, for groups that are not judged: an error of a custom metric on so few rows blocks nothing.
    """
    # AUC counts pairs, and so is exact in any order.
    columns = [label, scores] if gate.metric == "auc" else validation.sort_rows([label, scores])
    try:
        return finite_or_none(compute_metric(resolve_metric(gate), *columns))
    except Exception:
        if ignore_errors:
            return None
        raise


def describe_unjudged_slices(slices: Sequence[SliceResult]) -> str:
    """Return the part of a sentence about slices that were not judged; empty if all were."""
    small = sum(not part.is_judged for part in slices)
    return f"; {small:,} with too few rows {'is' if small == 1 else 'are'} reported only" if small else ""
