"""What several kinds of gates share: checks of evidence that name all faults at once, and numbers in sentences."""

from __future__ import annotations

import operator
from math import inf, isfinite
from typing import Any, NamedTuple, Self

import numpy as np

from evergreen.gates.evidence import Evidence, NoChampion, StreamedColumn
from evergreen.gates.metric_rows import RowDetails
from evergreen.gates.metrics import FloatArray, compute_metric, resolve_metric, sort_order
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import CustomGate, Gate, LabelType, MetricGate
from evergreen.spec.prediction_type import Classes, PredictionType


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


def to_predictions(values: object, prediction: PredictionType | None) -> FloatArray | None:
    """Return the predictions as (n,) float64, or (n, outputs) of a kind with several numbers per row.

    None if they are not that.
    """
    if prediction is None or not prediction.outputs:
        return to_float_array(values)
    if isinstance(values, np.ma.MaskedArray):
        return None
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        return None
    if array.ndim != 2 or array.shape[1] != len(prediction.outputs) or array.dtype.kind not in "biuf":
        return None
    with np.errstate(over="ignore"):  # as above
        return array.astype(np.float64) + 0.0


def prediction_shape_fault(scorer: str, prediction: PredictionType | None) -> str:
    """Return the fault of predictions that are not of the shape of their kind."""
    if prediction and prediction.outputs:
        return f"the {scorer}'s predictions are not {prediction.describe_outputs()}, for each row"
    return f"the {scorer}'s scores are not one row of numbers"


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
    fractions: int
    """Values that are no whole number."""
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
            int(np.count_nonzero(values != np.floor(values))),
            float(np.fmin.reduce(values, initial=inf)),
            float(np.fmax.reduce(values, initial=-inf)),
        )

    def __or__(self, following: ColumnStats) -> ColumnStats:
        """Return those of these values and of the following ones."""
        counts = {
            name: getattr(self, name) + getattr(following, name)
            for name in ("size", "infinite", "outside", "negative", "zeros", "ones", "fractions")
        }
        return ColumnStats(low=min(self.low, following.low), high=max(self.high, following.high), **counts)


NO_VALUES = ColumnStats(0, 0, 0, 0, 0, 0, 0, inf, -inf)


class OutputStats(NamedTuple):
    """What is checked of predictions with several numbers per row."""

    columns: tuple[ColumnStats, ...]
    rows_off_one: int
    """Rows whose numbers do not add up to 1, by more than float32 may be off."""

    @classmethod
    def from_array(cls, values: FloatArray) -> Self:
        """Return those of values (n, outputs)."""
        is_off = np.abs(values.sum(axis=1) - 1) > _SUM_TOLERANCE
        return cls(tuple(map(ColumnStats.from_array, values.T)), int(np.count_nonzero(is_off)))

    def __or__(self, following: OutputStats) -> OutputStats:
        """Return those of these values and of the following ones."""
        columns = map(operator.or_, self.columns, following.columns)
        return OutputStats(tuple(columns), self.rows_off_one + following.rows_off_one)

    @property
    def size(self) -> int:
        """The number of rows."""
        return self.columns[0].size

    @property
    def is_constant(self) -> bool:
        """Return whether all rows are the same."""
        return all(column.low == column.high for column in self.columns)


_SUM_TOLERANCE = 1e-3

PredictionStats = ColumnStats | OutputStats


def prediction_stats(predictions: FloatArray) -> PredictionStats:
    """Return what is checked of predictions (n,) or (n, outputs)."""
    return OutputStats.from_array(predictions) if predictions.ndim == 2 else ColumnStats.from_array(predictions)


def merge_stats(stats: PredictionStats, following: PredictionStats) -> PredictionStats:
    """Return those of all values; of `NO_VALUES` and others, those of the others."""
    return following if stats is NO_VALUES else stats | following  # type: ignore[operator]  # both are of one kind


def label_type(gate: MetricGate, prediction: PredictionType | None) -> LabelType:
    """Return what labels and predictions the gate's metric takes, of a model of this kind."""
    if prediction is None:
        return gate.scale.label_type
    if prediction.kind in ("binary", "multiclass"):
        return "binary" if prediction.kind == "binary" else "class"
    return "count" if gate.scale.label_type == "count" else "continuous"


def label_faults(gate: MetricGate, label: ColumnStats | None, prediction: PredictionType | None) -> list[str]:
    """Return all faults of the labels; None are labels that are not one row of numbers."""
    if label is None:
        return ["the labels are not one row of numbers"]
    labels = label_type(gate, prediction)
    # A rate of predictions needs no labels of both classes.
    if gate.metric == "positive_rate":
        labels = "continuous"
    faults = []
    if label.size < gate.min_rows:
        faults.append(f"{label.size:,} rows are too few, at least {gate.min_rows:,} are needed")
    if labels != "binary":
        if label.infinite:
            faults.append(f"{label.infinite:,} of {label.size:,} labels are NaN or infinite")
        elif prediction and labels == "class":
            faults += _class_faults(label, prediction.classes)
        if labels == "count" and label.negative:
            faults.append(f"{label.negative:,} of {label.size:,} labels are below 0, down to {label.low:g}")
        return faults
    if invalid := label.size - label.zeros - label.ones:
        faults.append(f"{invalid:,} of {label.size:,} labels are neither 0 nor 1")
    for number, rows in ((0, label.zeros), (1, label.ones)):
        if rows < 2:
            faults.append(f"{rows} of {label.size:,} labels are {number}, at least 2 are needed")
    return faults


def _class_faults(label: ColumnStats, classes: Classes) -> list[str]:
    """Return the faults of labels that are numbers of classes."""
    if not label.size:
        return []
    if label.fractions or label.low < 0 or label.high >= len(classes):
        return [f"the labels are not all numbers of the {len(classes)} classes, from 0 on"]
    if label.low == label.high:
        return [f"all {label.size:,} labels are of the class {classes[int(label.low)]}: nothing tells classes apart"]
    return []


def score_faults(
    gate: MetricGate,
    scorer: str,
    score: PredictionStats | None,
    label: ColumnStats | None,
    prediction: PredictionType | None,
    allow_constant: bool,
) -> list[str]:
    """Return all faults of a scorer's predictions.

    A constant score is a fault for every metric: it ranks nothing, it is the sign of a broken model more often than of
    a simple one, and at the base rate it would even count as perfectly calibrated. With `allow_constant` it is none:
    trivial models are constant.
    """
    labels = label_type(gate, prediction)
    if score is None:
        return [prediction_shape_fault(scorer, prediction)]
    faults = []
    if label is not None and score.size != label.size:
        faults.append(f"the {scorer} has {score.size:,} scores for {label.size:,} labels")
    if isinstance(score, OutputStats):
        return faults + _output_faults(scorer, score, prediction, allow_constant)
    if score.infinite:
        faults.append(f"{score.infinite:,} of the {scorer}'s {score.size:,} scores are NaN or infinite")
    elif labels == "binary" and score.outside:
        text = f"{score.outside:,} of the {scorer}'s {score.size:,} scores are outside [0, 1]"
        faults.append(f"{text}: they go from {score.low:g} to {score.high:g}")
    elif labels == "count" and score.negative and not (prediction and prediction.kind == "ranking"):
        faults.append(f"{score.negative:,} of the {scorer}'s {score.size:,} scores are below 0, down to {score.low:g}")
    elif not allow_constant and score.size and score.low == score.high:
        faults.append(f"the {scorer} scores every row {score.low:g}: a constant ranks nothing")
    return faults


def _output_faults(
    scorer: str, score: OutputStats, prediction: PredictionType | None, allow_constant: bool
) -> list[str]:
    """Return the faults of predictions with several numbers per row, besides their number."""
    assert prediction  # else there is one number per row
    faults = []
    for name, column in zip(prediction.outputs, score.columns, strict=True):
        if column.infinite:
            text = f"{column.infinite:,} of the {scorer}'s {score.size:,} predictions for {name}"
            faults.append(f"{text} are NaN or infinite")
        elif prediction.kind == "multiclass" and column.outside:
            text = f"{column.outside:,} of the {scorer}'s {score.size:,} probabilities of {name} are outside [0, 1]"
            faults.append(f"{text}: they go from {column.low:g} to {column.high:g}")
    if faults or not score.size:
        return faults
    if prediction.kind == "multiclass" and score.rows_off_one:
        text = f"the {scorer}'s probabilities do not add up to 1 in {score.rows_off_one:,} of {score.size:,} rows"
        return [f"{text}: return those of all classes, not scores or only some"]
    if not allow_constant and score.is_constant:
        return [f"the {scorer} predicts the same for every row: a constant ranks nothing"]
    return []


def weight_faults(weights: ColumnStats | None, rows: int) -> list[str]:
    """Return all faults of the weights of so many rows; None are weights that are not one row of numbers."""
    if weights is None:
        return ["the weights are not one row of numbers"]
    if weights.size != rows:
        return [f"there are {weights.size:,} weights for {rows:,} labels"]
    fix = "fill the column with numbers from 0 on"
    faults = []
    if weights.infinite:
        faults.append(f"{weights.infinite:,} of {rows:,} weights are missing, NaN or infinite: {fix}")
    if weights.negative:
        faults.append(f"{weights.negative:,} of {rows:,} weights are below 0, down to {weights.low:g}: {fix}")
    if rows and not faults and weights.high == 0:
        faults.append(f"all {rows:,} weights are 0: no row counts")
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
    gate: MetricGate,
    label: FloatArray,
    scores: FloatArray,
    prediction: PredictionType | None = None,
    *,
    weights: FloatArray | None = None,
    details: RowDetails | None = None,
    ignore_errors: bool = False,
) -> float | None:
    """Return the gate's metric of these rows, independent of their order; None if it does not exist.

    Each row counts as often as its weight (n,) says. A metric of the model folder may ask for their `details`.

    With `ignore_errors`, for groups that are not judged: an error of a custom metric on so few rows blocks nothing.
    """
    # AUC counts pairs, and so is exact in any order.
    columns = [label, scores] if weights is None else [label, scores, weights]
    if gate.metric != "auc" or weights is not None:
        order = sort_order(columns)
        columns, details = [values[order] for values in columns], details and details.take(order)
    try:
        return finite_or_none(compute_metric(resolve_metric(gate, prediction, details), *columns))
    except Exception:
        if ignore_errors:
            return None
        raise
