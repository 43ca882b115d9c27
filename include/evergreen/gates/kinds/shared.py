"""What several kinds of gates do alike: records of what was not computed, numbers in sentences, groups of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from evergreen.gates import validation
from evergreen.gates.evidence import Evidence, Missing
from evergreen.gates.metrics import Floats, measure, value
from evergreen.gates.verdict import Part, Record
from evergreen.spec.gates import Gate, Measured

Rows = NDArray[np.intp]


def not_computed(gate: Gate, rows: int, faults: Sequence[str], parts: Sequence[Part] = ()) -> Record:
    """A record that blocks and names all that stood in the way."""
    return Record(
        gate=gate.name,
        outcome="not_computed",
        threshold=gate.limit,
        rows=rows,
        parts=tuple(parts),
        reason="; ".join(faults),
    )


def unopposed(gate: Gate, candidate: float, rows: int) -> Record:
    """The record of a gate that compares with the champion, while there is none."""
    return Record(
        gate=gate.name,
        outcome="passed",
        candidate=candidate,
        threshold=gate.limit,
        rows=rows,
        reason="no champion yet: nothing to compare with",
    )


def labelled(gate: Measured, evidence: Evidence) -> tuple[Floats | None, Floats | None, list[str]]:
    """Labels and the candidate's predictions, (n,) each, and all that is wrong with them."""
    label, scores = validation.column(evidence.label), validation.column(evidence.candidate)
    faults = validation.label_faults(label, gate.min_rows, gate.scale.of)
    return label, scores, faults + validation.score_faults("candidate", scores, label, gate.scale.of)


def finite(number: object) -> float | None:
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


def beside(number: float, limit: float) -> str:
    """Short, but never rounded onto or over the limit: "0.6 is below 0.6" helps nobody."""
    for digits in (4, 8):
        text = f"{number:.{digits}g}"
        if np.sign(float(text) - limit) == np.sign(number - limit):
            return text
    return repr(float(number))


def raised(gate: Measured, error: Exception) -> str:
    """What to say when a metric of the user's raised, or is not there."""
    return f"{gate.metric} raised {type(error).__name__}: {error}"


def grouped(evidence: Evidence, by: str, rows: int) -> dict[str, Rows] | str:
    """The rows (k,) of each group, by its name and in order of names; or, in a sentence, why there are none.

    A row whose group is None belongs to none.
    """
    if not isinstance(evidence.groups, Mapping):
        return f"the groups by {by} are not known: there are none at all"
    if by not in evidence.groups:
        return f"the groups by {by} are not known: there are those by {', '.join(sorted(evidence.groups)) or 'nothing'}"
    names = evidence.groups[by]
    if isinstance(names, Missing):
        return f"the groups by {by} are not known: {names.problem}"
    if isinstance(names, str) or not hasattr(names, "__len__"):
        return f"the groups by {by} are not one row of names"
    if len(names) != rows:
        return f"there are {len(names):,} groups by {by} for {rows:,} labels"
    strange = sorted({repr(name) for name in names if not (name is None or isinstance(name, str))})
    if strange:
        return f"groups by {by} are names or None, not {', '.join(strange[:3])}"
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None:
            found.setdefault(str(name), []).append(row)
    if not found:
        return f"no row has a group by {by}"
    return {name: np.asarray(found[name], dtype=np.intp) for name in sorted(found)}


def enough(gate: Measured, label: Floats) -> bool:
    """Whether a group with these labels (k,) can be judged: it has the rows and, where they matter, both classes."""
    if label.size < gate.min_rows:
        return False
    ones = int(np.count_nonzero(label == 1))
    return gate.scale.of == "amounts" or gate.metric == "positive_rate" or min(ones, label.size - ones) >= 2


def differing(gate: Measured, one: Floats, other: Floats) -> int:
    """The rows in which two scorers (n,) differ; with a cut, those that they put into different classes."""
    if gate.cut is None:
        return int(np.count_nonzero(one != other))
    return int(np.count_nonzero((one >= gate.cut) != (other >= gate.cut)))


def measured(gate: Measured, label: Floats, scores: Floats) -> float | None:
    """The gate's metric of these rows (n,), in whatever order they come; None where it does not exist."""
    return finite(value(measure(gate), *validation.in_canonical_order([label, scores])))


def reported(gate: Measured, label: Floats, scores: Floats) -> float | None:
    """As `measured`, of a group that is not judged: what the user's metric raises on so few rows blocks nothing."""
    try:
        return measured(gate, label, scores)
    except Exception:
        return None


def left_out(parts: Sequence[Part]) -> str:
    """What to say of the parts that were not judged; empty when all were."""
    small = sum(not part.judged for part in parts)
    return f"; {small:,} with too few rows {'is' if small == 1 else 'are'} reported only" if small else ""
