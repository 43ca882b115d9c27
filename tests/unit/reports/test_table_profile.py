"""Tables as a notebook shows them: counts equal those of plain Python, of any type, and names are never markup."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.reports.table_plots import plot_columns, plot_label
from evergreen.reports.table_profile import (
    BIN_COUNT,
    MAX_FREQUENT_VALUES,
    MAX_SHOWN_CLASSES,
    TableProfile,
    profile_table,
)

pytestmark = pytest.mark.unit

START = datetime(2026, 3, 2, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script> \"$a_b$\""


def profile(tmp_path: Path, columns: dict[str, pa.Array], label: str | None = None) -> TableProfile:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    return profile_table("t", tmp_path / "t.parquet", label)


def times(count: int) -> pa.Array:
    return pa.array([START + timedelta(minutes=n) for n in range(count)], pa.timestamp("us", "UTC"))


def test_counts_of_numbers_are_those_of_their_bins(tmp_path: Path) -> None:
    values = [None, math.nan, math.inf, -math.inf, *(n * 0.37 - 3 for n in range(1000))]
    [column] = profile(tmp_path, {"x": pa.array(values)}).columns
    assert column.null_count == 1
    assert (len(column.edges), len(column.counts), sum(column.counts)) == (BIN_COUNT + 1, BIN_COUNT, 1000)
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(finite), max(finite)
    expected = Counter(min(int((value - low) / ((high - low) / BIN_COUNT)), BIN_COUNT - 1) for value in finite)
    assert list(column.counts) == [expected[n] for n in range(BIN_COUNT)]
    assert column.edges[0] == low
    assert column.edges[-1] == pytest.approx(high)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([], pa.int64()),
        pa.array([None, None], pa.float64()),
        pa.array([math.nan], pa.float32()),
        pa.array([3, 3, 3], pa.int8()),
        pa.array([-1.7e308, 1.7e308]),
        pa.array([Decimal("1.10"), None]),
        pa.array([True, None, False]),
        pa.array(["", None, HOSTILE]),
        pa.array([[1], None]),
        pa.array([b"\xff", None]),
        pa.array([START, None]),
    ],
)
def test_values_of_every_type_have_a_profile(tmp_path: Path, values: pa.Array) -> None:
    table = profile(tmp_path, {"x": values})
    assert table.columns[0].null_count == values.null_count
    assert sum(table.columns[0].counts) <= len(values) - values.null_count
    plot_columns(table)


def test_the_most_frequent_texts_are_counted(tmp_path: Path) -> None:
    values = [f"v{n:02}" for n in range(15) for _ in range(n + 1)]
    [column] = profile(tmp_path, {"x": pa.array(values)}).columns
    assert list(zip(column.values, column.counts, strict=True)) == Counter(values).most_common(MAX_FREQUENT_VALUES)


def test_a_label_is_shown_over_time(tmp_path: Path) -> None:
    columns = {"event_timestamp": times(240), "y": pa.array([None if n < 10 else n // 120 for n in range(240)])}
    [series] = profile(tmp_path, columns, "y").label
    assert (series.name, series.values[0], series.values[-1]) == ("mean of y", 0.0, 1.0)
    assert series.times[0] == START + timedelta(minutes=10)


def test_classes_are_shown_by_their_share(tmp_path: Path) -> None:
    columns = {"event_timestamp": times(80), "y": pa.array([HOSTILE if n % 4 else f"it's {n}" for n in range(80)])}
    series = profile(tmp_path, columns, "y").label
    assert len(series) == MAX_SHOWN_CLASSES
    assert series[0].name == f"share of {HOSTILE}"
    assert all(value is not None and 0 <= value <= 1 for value in series[0].values)


def test_an_empty_table_has_no_plots(tmp_path: Path) -> None:
    table = profile(tmp_path, {"event_timestamp": times(0), "y": pa.array([], pa.int64())}, "y")
    assert (table.label, plot_columns(table), plot_label(table)) == ((), None, None)


def test_names_and_values_are_text_in_plots(tmp_path: Path) -> None:
    columns = {"event_timestamp": times(20), HOSTILE: pa.array([HOSTILE, "a"] * 10)}
    table = profile(tmp_path, columns, HOSTILE)
    for plot in (plot_columns(table), plot_label(table)):
        assert plot
        assert "<script" not in plot
        assert "&lt;script" in plot
