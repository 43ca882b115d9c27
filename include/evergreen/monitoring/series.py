"""The daily series that a column's histograms give: what is watched of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evergreen.monitoring.effect_sizes import FloatValues, log_spread, mean_rank, rank_variance, root_psi
from evergreen.monitoring.histograms import ColumnBins, Counts

Measure = Literal["level", "shape", "spread", "missing", "unseen", "rows", "performance", "skew"]

# The share of a column's bets on each measure. A number has a level, and most of what goes wrong shows there; of
# categories, the shape has what there is to see.
_NUMERIC_SHARES: Mapping[Measure, float] = {"level": 0.55, "shape": 0.15, "spread": 0.15, "missing": 0.15}
_CATEGORICAL_SHARES: Mapping[Measure, float] = {"shape": 0.55, "spread": 0.15, "missing": 0.15, "unseen": 0.15}

# A change of a measure that is worth a name, in its own unit. In `shape` it is a major one, by PSI.
MAJOR_EFFECTS: Mapping[Measure, float] = {
    "level": 0.15,
    "shape": float(np.sqrt(0.25)),
    "spread": float(np.log(2)),
    "missing": 0.1,
    "unseen": 0.1,
    "rows": float(np.log(1.5)),
    "performance": float("inf"),  # a single day says nothing
    "skew": 0.1,
}

ONE_SIDED: frozenset[Measure] = frozenset({"shape", "unseen", "performance", "skew"})
"""Less of it than in the reference is no change for the worse."""

BREAKS_DOWNWARDS: frozenset[Measure] = frozenset({"spread"})
"""Only less of it can be a break: of a column that is nearly constant, a few other values are much more."""


@dataclass(frozen=True)
class ColumnCounts:
    """The histograms of a column on all days.

    Attributes:
        rows, missing: of shape (days,).
        counts: of shape (days, bins).
        reference: of shape (bins,), with which they are compared; None: the sum of the days of the reference.
    """

    rows: NDArray[np.int64]
    missing: NDArray[np.int64]
    counts: Counts
    reference: Counts | None = None


@dataclass(frozen=True)
class SeriesName:
    """A measure of a column; `column` is the table of rows, or the gate of a performance, of which more is worse."""

    column: str
    measure: Measure

    def __str__(self) -> str:
        return f"{self.column} {self.measure}"


@dataclass(frozen=True)
class DailySeries:
    """What is watched of a model's columns.

    Attributes:
        days: in order; the first `reference_days` are those of the reference.
        names: of n series.
        weights: of shape (n,), the share of all bets; they add up to 1.
        values: of shape (days, n); NaN where a day has no rows, or no values.
        sampling_variances: of the values, of the same shape: what they would vary by if a day's rows were drawn from
            the reference. What days differ by comes on top of it. None: as if there were no end of rows.
    """

    days: tuple[date, ...]
    reference_days: int
    names: tuple[SeriesName, ...]
    weights: FloatValues
    values: FloatValues
    sampling_variances: FloatValues | None = None


def build_series(
    days: Sequence[date],
    reference_days: int,
    rows: Mapping[str, NDArray[np.int64]],
    columns: Mapping[str, tuple[ColumnBins, ColumnCounts]],
) -> DailySeries:
    """Return the series of the columns, and of the number of rows of each table.

    Args:
        days: in order.
        reference_days: how many of them, from the first on, are those of the reference.
        rows: of shape (days,), by table.
        columns: by name.
    """
    names, weights = list[SeriesName](), list[float]()
    values, variances = list[FloatValues](), list[FloatValues]()
    share = 1 / max(len(rows) + len(columns), 1)
    for table, row_counts in rows.items():
        names.append(SeriesName(table, "rows"))
        weights.append(share)
        values.append(np.log1p(row_counts))
        variances.append(np.zeros(len(days)))
    for name, (bins, counts) in columns.items():
        shares = _CATEGORICAL_SHARES if bins.kind == "categorical" else _NUMERIC_SHARES
        measured = _measure(bins, counts, reference_days)
        for measure, part in shares.items():
            names.append(SeriesName(name, measure))
            weights.append(share * part)
            values.append(measured[measure][0])
            variances.append(measured[measure][1])
    stacked, sampling = (
        np.stack(columns_of_days, axis=1) if columns_of_days else np.zeros((len(days), 0))
        for columns_of_days in (values, variances)
    )
    return DailySeries(tuple(days), reference_days, tuple(names), np.array(weights), stacked, sampling)


def _measure(
    bins: ColumnBins, column: ColumnCounts, reference_days: int
) -> dict[Measure, tuple[FloatValues, FloatValues]]:
    """Return the values of each measure, and their sampling variances."""
    reference = column.counts[:reference_days].sum(axis=0) if column.reference is None else column.reference
    present = column.counts.sum(axis=1)
    usual = present[:reference_days]
    usual_rows = float(np.median(usual[usual > 0])) if usual.any() else 0.0
    measured: dict[Measure, tuple[FloatValues, FloatValues]] = {
        "shape": root_psi(column.counts, reference, usual_rows),
        "spread": log_spread(column.counts, reference),
        "missing": _share(column.missing, column.rows, reference_days),
    }
    if bins.kind != "categorical":
        level = mean_rank(column.counts, reference)
        return measured | {"level": (level, rank_variance(reference) / np.maximum(present, 1))}
    return measured | {"unseen": _share(column.counts[:, -1], present, reference_days)}


def _share(part: NDArray[np.int64], rows: NDArray[np.int64], reference_days: int) -> tuple[FloatValues, FloatValues]:
    """Return a share of rows, and its variance: of a binomial, and of one row, for no share is known better."""
    size = np.maximum(rows, 1)
    expected = part[:reference_days].sum() / max(rows[:reference_days].sum(), 1)
    return np.where(rows > 0, part / size, np.nan), expected * (1 - expected) / size + 1 / size**2
