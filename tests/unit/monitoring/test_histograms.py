"""Histograms are what numpy counts on the same bins, add up over periods, and survive columns unlike the reference."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.ingest.databases import open_database
from evergreen.monitoring.histograms import (
    BIN_SAMPLE_ROWS,
    BINS,
    MAX_CATEGORY_BINS,
    ColumnBins,
    count_by_bin,
    find_bins,
)

pytestmark = pytest.mark.unit

HOSTILE = 'dis"tance; DROP TABLE x --'


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with open_database() as opened:
        yield opened


def write(folder: Path, file_name: str, /, **columns: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{file_name}.parquet"
    pq.write_table(pa.table(columns), file)
    return file


def test_numbers_are_counted_as_numpy_counts_them(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    rng = np.random.default_rng(1)
    reference = rng.gamma(2.0, size=50_000)
    values = np.concatenate([rng.gamma(3.0, size=10_000), [np.inf, -np.inf, -5.0]])
    folder = tmp_path / "day=2013-01-01 [x]*"  # a folder's name is no pattern, and no column
    files = {
        "reference": write(folder, "a'b", **{HOSTILE: reference}),
        "day": write(folder, "b", **{HOSTILE: np.concatenate([values, [np.nan]])}),
        "empty": write(folder, "c", **{HOSTILE: pa.array([], pa.float64())}),
    }
    (bins,) = find_bins(database, "flights", [files["reference"]], [HOSTILE], 50_000)
    assert len(bins.bounds) == BINS + 2
    counted = count_by_bin(database, [bins], files)

    rows, histograms = counted["day"]
    histogram = histograms[f"flights.{HOSTILE}"]
    # numpy's bins are closed on the left, ours on the right.
    negative = np.histogram(-values, [-np.inf, *(-np.array(bins.bounds)[::-1]), np.inf])[0][::-1]
    assert (rows, histogram.rows, histogram.missing) == (10_004, 10_004, 1)
    assert histogram.counts.tolist() == negative.tolist()
    assert histogram.counts[0] == 2, "what is below the reference has a bin of its own"
    reference_counts = counted["reference"][1][bins.name].counts
    assert reference_counts[1:-1].sum() == 50_000
    assert np.ptp(reference_counts[2:-1]) <= 1, "bins of the reference are quantiles"
    assert counted["empty"][0] == 0
    assert counted["empty"][1][bins.name].counts.sum() == 0


def test_histograms_of_periods_add_up(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    rng = np.random.default_rng(2)
    parts = [
        {"x": rng.normal(size=n), "name": rng.choice(["a", "b", "c"], n).astype(object), "late": rng.random(n) < 0.2}
        for n in (1000, 1, 3000)
    ]
    parts[0]["name"][:7] = None
    files = {str(n): write(tmp_path, f"{n}", **part) for n, part in enumerate(parts)}
    whole = write(tmp_path, "whole", **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    bins = find_bins(database, "t", list(files.values()), ["x", "name", "late"], 4001)
    assert [(column.column, column.kind) for column in bins] == [
        ("x", "numeric"),
        ("name", "categorical"),
        ("late", "categorical"),
    ]
    split, at_once = count_by_bin(database, bins, files), count_by_bin(database, bins, {"whole": whole})["whole"][1]
    for column in bins:
        total = sum((split[key][1][column.name] for key in "12"), split["0"][1][column.name])
        assert (total.rows, total.missing) == (4001, at_once[column.name].missing)
        assert total.counts.tolist() == at_once[column.name].counts.tolist()
    assert at_once["t.name"].missing == 7
    assert at_once["t.late"].counts.tolist() == [
        sum((~part["late"]).sum() for part in parts),
        sum(part["late"].sum() for part in parts),
        0,
    ]


def test_unseen_categories_share_a_bin(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    file = write(tmp_path, "a", name=["", "it's", "b", "b"])
    (bins,) = find_bins(database, "t", [file], ["name"], 4)
    assert bins.bounds == ("", "b", "it's")
    day = write(tmp_path, "b", name=["b", "new", "newer", None, "it's", ""])
    histogram = count_by_bin(database, [bins], {"day": day})["day"][1]["t.name"]
    assert histogram.counts.tolist() == [1, 1, 1, 2]
    assert histogram.missing == 1

    many = write(tmp_path, "c", name=[f"{n % 500:03}" for n in range(1000)] + ["often"] * 9)
    (bins,) = find_bins(database, "t", [many], ["name"], 1009)
    assert len(bins.bounds) == MAX_CATEGORY_BINS
    assert "often" in bins.bounds


def test_a_column_that_is_gone_or_of_another_type_is_missing(
    tmp_path: Path, database: duckdb.DuckDBPyConnection
) -> None:
    reference = write(tmp_path, "a", x=[1.0, 2.0], y=[1, 2], z=["a", "b"])
    bins = find_bins(database, "t", [reference], ["x", "y", "z"], 2)
    day = write(tmp_path, "b", x=["1.5", "broken", None], z=[1, 2, 3])
    rows, histograms = count_by_bin(database, bins, {"day": day})["day"]
    assert rows == 3
    assert histograms["t.x"].missing == 2, "the text 1.5 is a number"
    assert histograms["t.y"].missing == 3
    assert histograms["t.z"].counts.tolist() == [0, 0, 3]


NAMES = (
    "value",
    "sample",
    "source",
    "c0",
    "c1",
    "file_row_number",
    "file_index",
    "filename",
    "evergreen_file",
    "count",
)


def test_columns_may_have_the_names_that_queries_use(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    rows = 40
    columns = {name: np.arange(rows) + 100.0 * number for number, name in enumerate(NAMES)}
    texts = {f"{name} text": np.array(["a", "b"] * (rows // 2), object) for name in NAMES}
    texts |= {"Value": np.array(["x", "y", "y", "y"] * (rows // 4), object)}  # differs from `value` by its case only
    file = write(tmp_path, "a", **columns, **texts)
    bins = find_bins(database, "t", [file], [*columns, *texts], rows)
    assert [column.column for column in bins] == [*columns, *texts]
    for number, column in enumerate(bins[: len(NAMES)]):
        assert (column.bounds[1], column.bounds[-1]) == (100.0 * number, 100.0 * number + rows - 1)
    assert bins[-1].bounds == ("x", "y")
    counted, histograms = count_by_bin(database, bins, {"a": file})["a"]
    assert counted == rows
    assert {name: int(histogram.counts.sum()) for name, histogram in histograms.items()} == {
        column.name: rows for column in bins
    }
    assert histograms["t.Value"].counts.tolist() == [rows // 4, rows // 4 * 3, 0]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([date(2013, 1, 1)] * 3),
        pa.array([datetime(2013, 1, 1)] * 3),
        pa.array([[1.0]] * 3),
        pa.array([[Decimal("1.5")]] * 3, pa.list_(pa.decimal128(5, 2))),
        pa.array([{"a": 1}] * 3),
        pa.array([b"1"] * 3),
        pa.nulls(3),
    ],
    ids=lambda values: str(values.type),
)
def test_files_of_other_types_are_counted_together(
    tmp_path: Path, database: duckdb.DuckDBPyConnection, values: pa.Array
) -> None:
    reference = write(tmp_path, "a", x=[1.0, 2.0, 3.0], name=["a", "b", "b"])
    other = write(tmp_path, "b", name=values, x=values)
    bins = find_bins(database, "t", [reference], ["x", "name"], 3)
    for files in ({"a": reference, "b": other}, {"b": other, "a": reference}):
        counted = count_by_bin(database, bins, files)
        assert {key: [item.missing for item in counted[key][1].values()] for key in files} == {"a": [0, 0], "b": [3, 3]}
        assert counted["a"][1]["t.x"].counts.tolist() == [0, 1, 1, 1, 0]

    newest_is_other = find_bins(database, "t", [reference, other], ["x", "name"], 6)
    assert newest_is_other == (bins if pa.types.is_null(values.type) else [])
    assert find_bins(database, "t", [other, reference], ["x", "name"], 6) == bins


def test_a_reference_may_have_files_without_a_column(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    files = [write(tmp_path, "a", y=[1, 2]), write(tmp_path, "b", y=["3"], x=[1.0]), write(tmp_path, "c", x=[2.0])]
    bins = {column.column: column for column in find_bins(database, "t", files, ["x", "y"], 4)}
    assert bins["x"].bounds[1:] == (1.0, 2.0)
    assert bins["y"].bounds == ("1", "2", "3")


def test_the_sample_has_rows_of_all_hours(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    steps, hours = 24, np.arange(24.0)  # rows of a day are in the order of its hours
    days = BIN_SAMPLE_ROWS // 10
    files = [write(tmp_path, f"{number}", hour=np.tile(hours, days)) for number in range(10)]
    (bins,) = find_bins(database, "t", files, ["hour"], steps * BIN_SAMPLE_ROWS)
    assert (bins.bounds[1], bins.bounds[-1]) == (0.0, 23.0)
    assert len(bins.bounds) == BINS + 2

    # The rows of one file are not those of another.
    files = [write(tmp_path, f"x{number}", x=np.arange(300.0)) for number in range(2000)]
    (bins,) = find_bins(database, "t", files, ["x"], 3 * BIN_SAMPLE_ROWS)
    assert np.allclose(bins.bounds[1:], np.linspace(0, 299, BINS + 1), atol=3)


def test_only_numbers_texts_and_booleans_have_bins(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    file = write(
        tmp_path,
        "a",
        at=[datetime(2013, 1, 1, tzinfo=UTC)],
        items=[[1]],
        prices=pa.array([[Decimal("1.50")]], pa.list_(pa.decimal128(5, 2))),
        price=[Decimal("1.50")],
        nothing=pa.array([None], pa.float64()),
        infinite=[np.inf],
        constant=[3],
    )
    columns = ["at", "items", "prices", "price", "nothing", "infinite", "constant"]
    bins = {column.column: column for column in find_bins(database, "t", [file], columns, 1)}
    assert list(bins) == ["price", "constant"]
    low, high = bins["constant"].bounds
    assert low < 3 == high
    counts = count_by_bin(database, list(bins.values()), {"a": file})["a"][1]["t.constant"].counts
    assert counts.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", [pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.timestamp("ns")], ids=str)
def test_instants_are_counted_by_the_time_that_clocks_show(
    tmp_path: Path, database: duckdb.DuckDBPyConnection, kind: pa.DataType
) -> None:
    """Also where clocks change: rows of 9 and of 17 o'clock in New York are so in winter and in summer."""
    instants = {
        "winter": [datetime(2013, 1, 1, 14), datetime(2013, 1, 1, 22), datetime(2013, 1, 2, 4, 59)],
        "summer": [datetime(2013, 7, 1, 13), datetime(2013, 7, 1, 21), datetime(2013, 7, 2, 3, 59)],
    }
    files = {
        name: write(tmp_path, name, x=[1, 2, 3], at=pa.array(times).cast(kind)) for name, times in instants.items()
    }
    files["number"] = write(tmp_path, "number", x=[1], at=[50_000.0])
    zone = {"at": "America/New_York", "x": "UTC", "gone": "UTC"}
    number, time = find_bins(database, "t", [files["winter"], files["summer"]], ["x"], 6, times=zone)
    assert (number.kind, time.kind, time.timezone) == ("numeric", "time", "America/New_York")
    hour = 3600.0
    assert time.bounds[1:] == (9 * hour, 17 * hour, 24 * hour - 60)
    counted = count_by_bin(database, [number, time], files)
    for name in instants:
        assert counted[name][1]["t.at"].counts.tolist() == [0, 1, 1, 1, 0]
    assert counted["number"][1]["t.at"].missing == 1


def test_bins_do_not_depend_on_threads(tmp_path: Path, database: duckdb.DuckDBPyConnection) -> None:
    rng = np.random.default_rng(3)
    files = [write(tmp_path, f"{n}", x=rng.normal(size=150_000), name=rng.choice(list("abc"), 150_000)) for n in (1, 2)]
    expected: list[ColumnBins] | None = None
    for threads in (1, 2, 4):
        database.execute(f"SET threads = {threads}")
        bins = find_bins(database, "t", files, ["x", "name"], 300_000)
        assert expected in (None, bins)
        expected = bins
