"""Forecasts: which rows a metric counts, by horizon, and the scale of each series' errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.computation import to_float_array
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.judged_rows import LoadedRows
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import MetricGate

SCALED_METRIC = "mase"
"""The mean of |score - label| in units of the row's scale: the mean absolute scaled error.

Rows are divided by their scale before, so it is the mean absolute error of what is left (Hyndman and Koehler 2006,
International Journal of Forecasting 22:679-688). Where the scale is 0 or not known there is no such error: these rows
do not count.
"""


def required_columns(gate: MetricGate) -> tuple[str, ...]:
    """Return the fields of the evidence of a forecast that say which rows the gate counts, and how."""
    fields = {"horizons": gate.horizon is not None, "scales": gate.metric == SCALED_METRIC}
    return tuple(name for name, is_required in fields.items() if is_required)


def is_counted(gate: MetricGate, columns: Mapping[str, FloatArray]) -> NDArray[np.bool_]:
    """Return which rows (n,) the gate counts, of its `required_columns`, and of `weights` if there are some, (n,) each.

    A row of weight 0 is no evidence: it is not one of the rows that a gate takes at least, nor a cluster or a group.
    """
    masks = [columns["weights"] > 0] if "weights" in columns else []
    if "horizons" in columns:
        masks.append(columns["horizons"] == gate.horizon)
    if "scales" in columns:
        masks.append(np.isfinite(columns["scales"]) & (columns["scales"] > 0))
    counted: NDArray[np.bool_] = np.logical_and.reduce(masks)
    return counted


def missing_rows_fault(gate: MetricGate, rows: int, *, has_weights: bool) -> str:
    """Return the fault of `rows` of a forecast of which the gate counts none."""
    conditions = [] if gate.horizon is None else [f"the horizon {gate.horizon}"]
    conditions += ["a scale"] if gate.metric == SCALED_METRIC else []
    conditions += ["a weight above 0"] if has_weights else []
    text = f"none of {rows:,} rows has {' and '.join(conditions)}"
    if gate.metric == SCALED_METRIC:
        return f"{text}: it takes a series that was known for more than a season before the holdout, and not constant"
    return f"{text}: correct it, or leave it out"


def check_columns(gate: MetricGate, evidence: Evidence) -> None:
    """Refuse a gate whose columns are missing; raises a NotComputedError."""
    columns = {name: getattr(evidence, name) for name in required_columns(gate)}
    if faults := [
        f"the {name} of the rows are not known: {column.problem}"
        for name, column in columns.items()
        if isinstance(column, MissingEvidence)
    ]:
        raise NotComputedError(*faults)


def select_rows(rows: LoadedRows) -> LoadedRows:
    """Return the rows in memory that the gate counts, divided by their scale where the metric is of scaled errors.

    Raises:
        NotComputedError: horizons or scales are missing, or no row counts.
    """
    gate, evidence, size = rows.gate, rows.evidence, rows.size
    names = required_columns(gate)
    if not names or rows.has_size_fault:
        return rows  # what is wrong is a fault of the rows
    check_columns(gate, evidence)
    columns = {name: to_float_array(getattr(evidence, name)) for name in names}
    if faults := [
        f"the {name} are not one row of numbers, one for each label"
        for name, column in columns.items()
        if column is None or column.size != size
    ]:
        raise NotComputedError(*faults)
    values = {name: column for name, column in columns.items() if column is not None}
    weights = {} if rows.weights is None else {"weights": rows.weights}
    counted = is_counted(gate, {**values, **weights})
    if not counted.any():
        raise NotComputedError(missing_rows_fault(gate, size, has_weights=bool(weights)))
    chosen = rows.select(counted)
    if "scales" not in values:
        return chosen
    scale = values["scales"][counted]
    assert chosen.label_column is not None  # else there is no row to count
    scores = {name: column / scale for name, column in chosen.score_columns.items() if column is not None}
    return replace(chosen, label_column=chosen.label_column / scale, score_columns=scores)
