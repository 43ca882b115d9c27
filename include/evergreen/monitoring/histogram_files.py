"""Histograms of periods in a file, and their bins in JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.monitoring.histograms import ColumnBins, Histogram

Counted = Mapping[str, Histogram]
"""Histograms of a period by `ColumnBins.name`; of the rows of a table by its name, without counts."""


def dump_bins(bins: Iterable[ColumnBins]) -> list[dict[str, Any]]:
    """Return bins as JSON has them."""
    return [vars(column) for column in bins]


def load_bins(stored: Iterable[Mapping[str, Any]]) -> tuple[ColumnBins, ...]:
    """Return bins that `dump_bins` has made, read from JSON, whose lists are tuples here."""
    return tuple(ColumnBins(**{**column, "bounds": tuple(column["bounds"])}) for column in stored)


def write_histograms(file: Path, counted: Mapping[str, Counted]) -> None:
    """Write the histograms of some periods."""
    rows = [
        {
            "period": period,
            "column": name,
            "rows": histogram.rows,
            "missing": histogram.missing,
            "counts": histogram.counts.tolist(),
        }
        for period, histograms in sorted(counted.items())
        for name, histogram in sorted(histograms.items())
    ]
    schema = pa.schema(
        [
            ("period", pa.string()),
            ("column", pa.string()),
            ("rows", pa.int64()),
            ("missing", pa.int64()),
            ("counts", pa.list_(pa.int64())),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), file)


def read_histograms(file: Path) -> Mapping[str, Counted]:
    """Return the histograms that a file has, by period."""
    periods: dict[str, dict[str, Histogram]] = {}
    for row in pq.read_table(file).to_pylist():
        histogram = Histogram(row["rows"], row["missing"], np.array(row["counts"], np.int64))
        periods.setdefault(row["period"], {})[row["column"]] = histogram
    return periods
