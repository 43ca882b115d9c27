"""What several kinds of gates share: checks of evidence that name all faults at once, and numbers in sentences."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any, NamedTuple, Self

import numpy as np

from evergreen.gates.evidence import Evidence, NoChampion, StreamedColumn
from evergreen.gates.metrics import FloatArray, compute_metric, resolve_metric, sort_rows
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import CustomGate, Gate, MetricGate


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
    if not isinstance(gate, MetricGate | CustomGate):
        return 0
    if isinstance(evidence.label, StreamedColumn):
        return evidence.label.rows.count
    label = to_float_array(evidence.label)
    return 0 if label is None else label.size


class ColumnStats(NamedTuple):
    """What is checked of a column of labels or scores, before anything is computed of it."""

    size: int
    infinite: int
    """Values that are NaN or infinite."""
    outside: int
    """Values below 0 or above 1."""
    negative: int
    zeros: int
    ones: int
    low: float
    high: float
    """Smallest and largest value that is a number."""

    @classmethod
    def from_array(cls, values: FloatArray) -> Self:
        """Return those of values (n,)."""
        is_negative = values < 0
        return cls(
            values.size,
            int(np.count_nonzero(~np.isfinite(values))),
            int(np.count_nonzero(is_negative | (values > 1))),
            int(np.count_nonzero(is_negative)),
            int(np.count_nonzero(values == 0)),
            int(np.count_nonzero(values == 1)),
            float(np.fmin.reduce(values, initial=inf)),
            float(np.fmax.reduce(values, initial=-inf)),
        )

    def __or__(self, following: ColumnStats) -> ColumnStats:
        """Return those of these values and of the following ones."""
        counts = {
            name: getattr(self, name) + getattr(following, name)
            for name in ("size", "infinite", "outside", "negative", "zeros", "ones")
        }
        return ColumnStats(low=min(self.low, following.low), high=max(self.high, following.high), **counts)


NO_VALUES = ColumnStats(0, 0, 0, 0, 0, 0, inf, -inf)


def label_faults(gate: MetricGate, label: ColumnStats | None) -> list[str]:
    """Return all faults of the labels; None are labels that are not one row of numbers."""
    if label is None:
        return ["the labels are not one row of numbers"]
    # A rate of predictions needs no labels of both classes.
    label_type = "continuous" if gate.metric == "positive_rate" else gate.scale.label_type
    faults = []
    if label.size < gate.min_rows:
        faults.append(f"{label.size:,} rows are too few, at least {gate.min_rows:,} are needed")
    if label_type != "binary":
        if label.infinite:
            faults.append(f"{label.infinite:,} of {label.size:,} labels are NaN or infinite")
        if label_type == "count" and label.negative:
            faults.append(f"{label.negative:,} of {label.size:,} labels are below 0, down to {label.low:g}")
        return faults
    if invalid := label.size - label.zeros - label.ones:
        faults.append(f"{invalid:,} of {label.size:,} labels are neither 0 nor 1")
    for number, rows in ((0, label.zeros), (1, label.ones)):
        if rows < 2:
            faults.append(f"{rows} of {label.size:,} labels are {number}, at least 2 are needed")
    return faults


def score_faults(
    gate: MetricGate, scorer: str, score: ColumnStats | None, label: ColumnStats | None, allow_constant: bool
) -> list[str]:
    """Return all faults of a scorer's predictions.

    A constant score is a fault for every metric: it ranks nothing, it is the sign of a broken model more often than of
    a simple one, and at the base rate it would even count as perfectly calibrated. With `allow_constant` it is none:
    trivial models are constant.
    """
    label_type = gate.scale.label_type
    if score is None:
        return [f"the {scorer}'s scores are not one row of numbers"]
    faults = []
    if label is not None and score.size != label.size:
        faults.append(f"the {scorer} has {score.size:,} scores for {label.size:,} labels")
    if score.infinite:
        faults.append(f"{score.infinite:,} of the {scorer}'s {score.size:,} scores are NaN or infinite")
    elif label_type == "binary" and score.outside:
        text = f"{score.outside:,} of the {scorer}'s {score.size:,} scores are outside [0, 1]"
        faults.append(f"{text}: they go from {score.low:g} to {score.high:g}")
    elif label_type == "count" and score.negative:
        faults.append(f"{score.negative:,} of the {scorer}'s {score.size:,} scores are below 0, down to {score.low:g}")
    elif not allow_constant and score.size and score.low == score.high:
        faults.append(f"the {scorer} scores every row {score.low:g}: a constant ranks nothing")
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
