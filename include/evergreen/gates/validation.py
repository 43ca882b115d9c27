"""Checks of evidence: all faults are named at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evergreen.gates.metrics import FloatArray
from evergreen.spec.gates import LabelType


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


def label_faults(label: FloatArray | None, min_rows: int, label_type: LabelType = "binary") -> list[str]:
    """Return the faults of the labels (n,), in sentences; `label_type` is that of the metric's scale."""
    if label is None:
        return ["the labels are not one row of numbers"]
    faults = []
    if label.size < min_rows:
        faults.append(f"{label.size:,} rows are too few, at least {min_rows:,} are needed")
    if label_type == "continuous":
        if invalid := int(np.count_nonzero(~np.isfinite(label))):
            faults.append(f"{invalid:,} of {label.size:,} labels are NaN or infinite")
        return faults
    if invalid := int(np.count_nonzero((label != 0) & (label != 1))):
        faults.append(f"{invalid:,} of {label.size:,} labels are neither 0 nor 1")
    for number in (0, 1):
        if (rows := int(np.count_nonzero(label == number))) < 2:
            faults.append(f"{rows} of {label.size:,} labels are {number}, at least 2 are needed")
    return faults


def score_faults(
    scorer: str,
    score: FloatArray | None,
    label: FloatArray | None,
    label_type: LabelType = "binary",
    *,
    allow_constant: bool = False,
) -> list[str]:
    """Return the faults of the scores (n,), in sentences; `scorer` is, for example, "candidate".

    A constant score is a fault for every metric: it ranks nothing, it is the sign of a broken model more often than of
    a simple one, and at the base rate it would even count as perfectly calibrated. Trivial models may be constant.
    """
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
    elif not allow_constant and score.size and score.min() == score.max():
        faults.append(f"the {scorer} scores every row {score[0]:g}: a constant ranks nothing")
    return faults


def sort_rows(columns: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the same rows, sorted, so that evidence in another order gives the same bits."""
    order = np.lexsort(columns[::-1])
    return [values[order] for values in columns]
