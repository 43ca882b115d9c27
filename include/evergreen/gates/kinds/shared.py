"""What several kinds of gates do alike: records of what was not computed, numbers in sentences, groups of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.metrics import FloatArray, compute_metric, resolve_metric
from evergreen.gates.verdict import GateResult, SliceResult
from evergreen.spec.gates import Gate, MetricGate

RowIndices = NDArray[np.intp]


def not_computed_result(gate: Gate, rows: int, faults: Sequence[str], slices: Sequence[SliceResult] = ()) -> GateResult:
    """A record that blocks and names all that stood in the way."""
    return GateResult(
        gate=gate.name,
        outcome="not_computed",
        threshold=gate.limit,
        rows=rows,
        slices=tuple(slices),
        reason="; ".join(faults),
    )


def no_champion_result(gate: Gate, candidate: float, rows: int) -> GateResult:
    """The record of a gate that compares with the champion, while there is none."""
    return GateResult(
        gate=gate.name,
        outcome="passed",
        candidate=candidate,
        threshold=gate.limit,
        rows=rows,
        reason="no champion yet: nothing to compare with",
    )


def validate_label_and_scores(
    gate: MetricGate, evidence: Evidence
) -> tuple[FloatArray | None, FloatArray | None, list[str]]:
    """Labels and the candidate's predictions, (n,) each, and all that is wrong with them."""
    label, scores = validation.to_float_array(evidence.label), validation.to_float_array(evidence.candidate)
    faults = validation.label_faults(label, gate.min_rows, gate.scale.label_type)
    return label, scores, faults + validation.score_faults("candidate", scores, label, gate.scale.label_type)


def finite_or_none(number: object) -> float | None:
    """The number as a float, or None when it is not one, or NaN or infinite. True and False are not numbers."""
    if isinstance(number, bool | np.bool_ | str | bytes):
        return None
    try:
        value = float(number)  # type: ignore[arg-type]  # whatever has no __float__ is refused here
    except (TypeError, ValueError, OverflowError):
        return None
    return value if isfinite(value) else None


def shown(number: float | None) -> float | None:
    """The number if there is one: records hold neither NaN nor infinity."""
    return number if number is not None and isfinite(number) else None


def format_against_limit(number: float, limit: float) -> str:
    """Short, but never rounded onto or over the limit: "0.6 is below 0.6" helps nobody."""
    for digits in (4, 8):
        text = f"{number:.{digits}g}"
        if np.sign(float(text) - limit) == np.sign(number - limit):
            return text
    return repr(float(number))


def metric_error_message(gate: MetricGate, error: Exception) -> str:
    """What to say when a metric of the user's raised, or is not there."""
    return f"{gate.metric} raised {type(error).__name__}: {error}"


def group_rows(evidence: Evidence, group_by: str, rows: int) -> dict[str, RowIndices] | str:
    """The rows (k,) of each group, by its name and in order of names; or, in a sentence, why there are none.

    A row whose group is None belongs to none.
    """
    if not isinstance(evidence.groups, Mapping):
        return f"the groups by {group_by} are not known: there are none at all"
    if group_by not in evidence.groups:
        return f"the groups by {group_by} are not known: there are those by {', '.join(sorted(evidence.groups)) or 'nothing'}"
    names = evidence.groups[group_by]
    if isinstance(names, MissingEvidence):
        return f"the groups by {group_by} are not known: {names.problem}"
    if isinstance(names, str) or not hasattr(names, "__len__"):
        return f"the groups by {group_by} are not one row of names"
    if len(names) != rows:
        return f"there are {len(names):,} groups by {group_by} for {rows:,} labels"
    strange = sorted({repr(name) for name in names if not (name is None or isinstance(name, str))})
    if strange:
        return f"groups by {group_by} are names or None, not {', '.join(strange[:3])}"
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None:
            found.setdefault(str(name), []).append(row)
    if not found:
        return f"no row has a group by {group_by}"
    return {name: np.asarray(found[name], dtype=np.intp) for name in sorted(found)}


def has_enough_rows(gate: MetricGate, label: FloatArray) -> bool:
    """Whether a group with these labels (k,) can be judged: it has the rows and, where they matter, both classes."""
    if label.size < gate.min_rows:
        return False
    ones = int(np.count_nonzero(label == 1))
    return gate.scale.label_type == "continuous" or gate.metric == "positive_rate" or min(ones, label.size - ones) >= 2


def count_differences(gate: MetricGate, candidate: FloatArray, reference: FloatArray) -> int:
    """The rows in which two scorers (n,) differ; with a cut, those that they put into different classes."""
    if gate.cut is None:
        return int(np.count_nonzero(candidate != reference))
    return int(np.count_nonzero((candidate >= gate.cut) != (reference >= gate.cut)))


def compute_gate_metric(gate: MetricGate, label: FloatArray, scores: FloatArray) -> float | None:
    """The gate's metric of these rows (n,), in whatever order they come; None where it does not exist."""
    return finite_or_none(compute_metric(resolve_metric(gate), *validation.sort_rows([label, scores])))


def try_gate_metric(gate: MetricGate, label: FloatArray, scores: FloatArray) -> float | None:
    """As `measured`, of a group that is not judged: what the user's metric raises on so few rows blocks nothing."""
    try:
        return compute_gate_metric(gate, label, scores)
    except Exception:
        return None


def describe_unjudged_slices(slices: Sequence[SliceResult]) -> str:
    """What to say of the parts that were not judged; empty when all were."""
    small = sum(not part.is_judged for part in slices)
    return f"; {small:,} with too few rows {'is' if small == 1 else 'are'} reported only" if small else ""
