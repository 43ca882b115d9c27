"""A raw file is read as declared: widened where nothing is lost, else refused by file, column, count and example.

docs/data.md counts the inputs of these tables.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.ingest import declared_files
from evergreen.ingest.declared_files import DeclaredFile, read_as_declared
from evergreen.ingest.raw_files import RawFile, hash_raw_files
from evergreen.lake.datasets import Dataset
from evergreen.settings import settings
from evergreen.spec.model import RawSource
from support.documents import DOCS

pytestmark = pytest.mark.unit

D = Decimal
NOON = datetime(2013, 3, 1, 12)
NOON_UTC = NOON.replace(tzinfo=UTC)
INSTANT = "timestamp[us, tz=UTC]"
CLOCK = "timestamp[us]"


def seconds(*values: int | None, unit: str = "ns", zone: str | None = None) -> pa.Array:
    """Return instants, in units after noon."""
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    start = int(NOON_UTC.timestamp()) * per_second
    return pa.array([None if v is None else start + v for v in values], pa.timestamp(unit, zone))


WIDENED: dict[str, tuple[pa.Array, str, list[Any]]] = {
    "int32 to int64": (pa.array([1, -(2**31), None], pa.int32()), "int64", [1, -(2**31), None]),
    "int8 to int16": (pa.array([1, -128], pa.int8()), "int16", [1, -128]),
    "small int64 to int32": (pa.array([1, None], pa.int64()), "int32", [1, None]),
    "uint8 to int16": (pa.array([255], pa.uint8()), "int16", [255]),
    "uint32 to int64": (pa.array([2**32 - 1, None], pa.uint32()), "int64", [2**32 - 1, None]),
    "uint64 to int64": (pa.array([2**63 - 1], pa.uint64()), "int64", [2**63 - 1]),
    "int to double": (pa.array([2**53, 2**60, None]), "float64", [2.0**53, 2.0**60, None]),
    "int to float": (pa.array([2**24, -3]), "float32", [2.0**24, -3.0]),
    "whole double to int": (pa.array([3.0, -(2.0**63), None]), "int64", [3, -(2**63), None]),
    "float to double": (pa.array([0.5, None], pa.float32()), "float64", [0.5, None]),
    "half to float": (pa.array(np.array([1.5], np.float16)), "float32", [1.5]),
    "half to int": (pa.array(np.array([2.0], np.float16)), "int8", [2]),
    "exact double to float": (pa.array([0.5, float("inf")]), "float32", [0.5, float("inf")]),
    "decimal to more scale": (pa.array([D("1.2"), None]), "decimal128(10, 2)", [D("1.20"), None]),
    "decimal to less scale": (pa.array([D("1.20")]), "decimal128(10, 1)", [D("1.2")]),
    "decimal of 38 digits": (pa.array([D(10) ** 37]), "decimal128(38, 0)", [D(10) ** 37]),
    "int to decimal": (pa.array([12, None]), "decimal128(4, 2)", [D("12.00"), None]),
    "whole decimal to int": (pa.array([D("12.0")]), "int64", [12]),
    "decimal256": (pa.array([D("1.5")], pa.decimal256(50, 2)), "decimal128(10, 2)", [D("1.50")]),
    "large_string": (pa.array(["ä", None], pa.large_string()), "string", ["ä", None]),
    "string_view": (pa.array(["ä"], pa.string_view()), "string", ["ä"]),
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), "string", ["a", None, "a"]),
    "dictionary of ints": (pa.array([7, None], pa.int32()).dictionary_encode(), "int64", [7, None]),
    "text written as binary": (pa.array(["ä".encode(), None]), "string", ["ä", None]),
    "large_binary": (pa.array([b"\xff"], pa.large_binary()), "binary", [b"\xff"]),
    "fixed_size_binary": (pa.array([b"ab"], pa.binary(2)), "binary", [b"ab"]),
    "null to int": (pa.nulls(2), "int64", [None, None]),
    "null to text": (pa.nulls(1), "string", [None]),
    "null to instants": (pa.nulls(1), INSTANT, [None]),
    "null to decimals": (pa.nulls(1), "decimal128(5, 1)", [None]),
    "null to lists": (pa.nulls(1), "list<string>", [None]),
    "text that is null in every row": (pa.array([None, None], pa.string()), "int64", [None, None]),
    "ns in UTC": (seconds(1000, None, zone="UTC"), INSTANT, [NOON_UTC.replace(microsecond=1), None]),
    "ns without zone": (seconds(2000), CLOCK, [NOON.replace(microsecond=2)]),
    "ms in another zone": (seconds(0, unit="ms", zone="America/New_York"), INSTANT, [NOON_UTC]),
    "s without zone": (seconds(5, unit="s"), CLOCK, [NOON.replace(second=5)]),
    "midnights to dates": (
        pa.array([datetime(2013, 3, 1), None], pa.timestamp("ns")),
        "date32",
        [date(2013, 3, 1), None],
    ),
    "date64 to date32": (pa.array([date(2013, 3, 1)], pa.date64()), "date32", [date(2013, 3, 1)]),
    "dates to midnights": (pa.array([date(2013, 3, 1)]), CLOCK, [datetime(2013, 3, 1)]),
    "lists of ints": (pa.array([[1, None], None, []], pa.list_(pa.int32())), "list<int64>", [[1, None], None, []]),
    "large lists of text": (pa.array([["a"]], pa.large_list(pa.large_string())), "list<string>", [["a"]]),
    "lists of fixed size": (pa.array([[1, 2]], pa.list_(pa.int32(), 2)), "list<int64>", [[1, 2]]),
    "lists of decimals": (pa.array([[1], None]), "list<decimal128(4, 2)>", [[D("1.00")], None]),
    "lists of nothing": (pa.array([[None], []], pa.list_(pa.null())), "list<string>", [[None], []]),
    "no rows, no type": (pa.nulls(0), "int64", []),
    "no rows, another type": (pa.array([], pa.string()), "decimal128(4, 2)", []),
}
REFUSED: dict[str, tuple[pa.Array, str, int, str]] = {
    "int64 beyond int32": (pa.array([1, 2**31, -(2**31) - 1]), "int32", 2, "2147483648"),
    "uint64 beyond int64": (pa.array([1, 2**63], pa.uint64()), "int64", 1, "9223372036854775808"),
    "uint8 beyond int8": (pa.array([127, 128], pa.uint8()), "int8", 1, "128"),
    "int beyond double": (pa.array([2**53 + 1, 2**63 - 1, 5]), "float64", 2, "9007199254740993"),
    "uint64 beyond double": (pa.array([2**64 - 1], pa.uint64()), "float64", 1, "18446744073709551615"),
    "int beyond float": (pa.array([2**24 + 1]), "float32", 1, "16777217"),
    "fractions to int": (pa.array([0.7, 1.0, None]), "int64", 1, "0.7"),
    "nan to int": (pa.array([float("nan")], pa.float64()), "int64", 1, "nan"),
    "infinity to int": (pa.array([float("-inf")], pa.float64()), "int64", 1, "-inf"),
    "double beyond int64": (pa.array([2.0**63]), "int64", 1, "9.2"),
    "double to float": (pa.array([0.1, 1e300, 0.5]), "float32", 2, "0.1"),
    "decimal to less scale": (pa.array([D("1.23"), D("1.20"), None]), "decimal128(10, 1)", 1, "1.23"),
    "decimal of too many digits": (pa.array([D("1234.5"), D("1.5")]), "decimal128(4, 1)", 1, "1234.5"),
    "int of too many digits": (pa.array([1200, 12]), "decimal128(4, 2)", 1, "1200"),
    "fractional decimal to int": (pa.array([D("12.5")]), "int64", 1, "12.5"),
    "decimal beyond int8": (pa.array([D(1200)]), "int8", 1, "1200"),
    "double to decimal": (pa.array([1.5]), "decimal128(4, 2)", 1, "1.5"),
    "decimal to double": (pa.array([D("0.1")]), "float64", 1, "0.1"),
    "text to int": (pa.array(["12", None]), "int64", 1, "12"),
    "int to text": (pa.array([12]), "string", 1, "12"),
    "int to bool": (pa.array([1], pa.int8()), "bool", 1, "1"),
    "bool to int": (pa.array([True]), "int8", 1, "True"),
    "binary that is no text": (pa.array([b"\xff", b"a"]), "string", 1, r"b'\xff'"),
    "text to binary": (pa.array(["a"]), "binary", 1, "a"),
    "odd nanoseconds": (seconds(1001, 1000, None, zone="UTC"), INSTANT, 1, "12:00:00.000001001"),
    "instants without a zone": (
        seconds(0, 0),
        INSTANT,
        2,
        "deliver instants with a time zone, or declare timestamp[us]",
    ),
    "clock times with a zone": (
        seconds(0, zone="UTC"),
        CLOCK,
        1,
        "deliver times without a zone, or declare timestamp[us, tz",
    ),
    "seconds beyond microseconds": (pa.array([2**60], pa.timestamp("ms")), CLOCK, 1, "1152921504606846976"),
    "times to dates": (seconds(0), "date32", 1, "2013-03-01 12:00:00"),
    "dates to instants": (pa.array([date(2013, 3, 1)]), INSTANT, 1, "2013-03-01"),
    "times of day": (pa.array([1], pa.time64("us")), "int64", 1, "00:00:00.000001"),
    "structs": (pa.array([{"a": 1}]), "int64", 1, "{'a': 1}"),
    "fractions in lists": (pa.array([[1.5, 2.0], [2.5]]), "list<int64>", 2, "1.5"),
    "a list for a number": (pa.array([[1]]), "int64", 1, "[1]"),
    "a number for a list": (pa.array([1]), "list<int64>", 1, "1"),
}


KINDS = {
    "bool": "booleans",
    "string": "text",
    "binary": "bytes",
    "date32": "days",
    "timestamp": "timestamps",
    "decimal128": "decimals",
    "list": "lists",
    "float": "floats",
    "int": "integers",
}


def test_the_page_counts_these_inputs() -> None:
    rows = re.findall(r"^\| (\w+) \|.*\| (\d+) \| (\d+) \|$", (DOCS / "data.md").read_text(), re.MULTILINE)
    counted = [
        Counter(kind for _, declared, *_ in table.values() for name, kind in KINDS.items() if declared.startswith(name))
        for table in (WIDENED, REFUSED)
    ]
    assert {kind: (int(read), int(refused)) for kind, read, refused in rows} == {
        kind: (counted[0][kind], counted[1][kind]) for kind in KINDS.values()
    }


@pytest.fixture
def read(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DeclaredFile]:
    """Write a table as the file of a source, and read it as declared."""
    monkeypatch.setenv("EVERGREEN_RAW", str(tmp_path / "raw"))
    settings.cache_clear()

    def read_table(table: pa.Table | bytes, columns: dict[str, Any], **fields: Any) -> DeclaredFile:
        options = {
            name: fields.pop(name) for name in ("use_deprecated_int96_timestamps", "row_group_size") if name in fields
        }
        source = RawSource(name="orders", columns=columns, **{"empty_periods": "delivered", **fields})
        delivery = RawFile.from_source(source, "2013-03-01")
        delivery.path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(table, bytes):
            delivery.path.write_bytes(table)
        else:
            pq.write_table(table, delivery.path, **options)
        return read_as_declared(source, delivery, hash_raw_files([delivery])[delivery], Dataset(tmp_path / "declared"))

    return read_table


@pytest.mark.parametrize("name", WIDENED)
def test_what_loses_nothing_is_widened(read: Callable[..., DeclaredFile], name: str) -> None:
    values, declared, expected = WIDENED[name]
    result = read(pa.table({"x": values}), {"x": declared})
    assert result.faults == ()
    assert result.rows == len(expected)
    stored = pq.ParquetFile(result.path)
    assert declared_files.stored_type(stored.schema_arrow.field("x").type) == declared_files.arrow_type(declared)
    assert stored.read()["x"].to_pylist() == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_something_is_refused(read: Callable[..., DeclaredFile], name: str) -> None:
    values, declared, count, text = REFUSED[name]
    result = read(pa.table({"x": values}), {"x": declared})
    (fault,) = result.faults
    assert fault.location.endswith("orders.parquet: x")
    assert fault.problem.startswith(f"{count} values of {len(values)} rows cannot be read as {declared} without loss")
    assert text in str(fault)


EXACT = {
    "int64": pa.array([1, None]),
    "bool": pa.array([True, None]),
    "float32": pa.array([0.1, None], pa.float32()),
    "string": pa.array(["ä", None]),
    "binary": pa.array([b"\xff", None]),
    "date32": pa.array([date(2013, 3, 1), None]),
    CLOCK: seconds(1, None, unit="us"),
    INSTANT: seconds(1, None, unit="us", zone="UTC"),
    "decimal128(5, 2)": pa.array([D("123.45"), None]),
    "list<int64>": pa.array([[1, None], None]),
    "list<string>": pa.array([["a"], []]),
}


@pytest.mark.parametrize("declared", EXACT)
def test_a_file_of_declared_types_is_used_where_it_lies(read: Callable[..., DeclaredFile], declared: str) -> None:
    result = read(pa.table({"x": EXACT[declared], "other": pa.array([1, 2], pa.uint8())}), {"x": declared})
    assert (result.path.name, result.rows, result.faults) == ("orders.parquet", 2, ())


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"x": ["a", None]}),
        pd.DataFrame({"x": pd.array(["a", None], "string")}),
        pd.DataFrame({"x": pd.Series(["a", None], dtype="string[pyarrow]")}),
        pd.DataFrame({"x": pd.Categorical(["a", None])}),
    ],
    ids=["object", "string", "arrow", "category"],
)
def test_text_of_pandas_needs_no_copy(read: Callable[..., DeclaredFile], frame: pd.DataFrame) -> None:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    assert read(buffer.getvalue(), {"x": "string"}).path.name == "orders.parquet"


def test_pandas_default_timestamps_are_copied_once(read: Callable[..., DeclaredFile]) -> None:
    frame = pd.DataFrame({"at": pd.to_datetime(["2013-03-01 12:00:00"], utc=True).as_unit("ns")})
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    assert pq.read_schema(buffer).field("at").type == pa.timestamp("ns", "UTC")
    first, second = (read(buffer.getvalue(), {"at": INSTANT}) for _ in range(2))
    assert first == second
    assert first.path.parent.name == "orders-2013-03-01"
    assert pq.read_table(first.path)["at"].to_pylist() == [NOON_UTC]


def test_a_declaration_of_other_types_is_another_copy(read: Callable[..., DeclaredFile]) -> None:
    table = pa.table({"x": pa.array([1], pa.int16())})
    assert read(table, {"x": "int32"}).path != read(table, {"x": "int64"}).path
    described = {"x": dict(type="int64", unit="km", description="how far")}
    assert read(table, described).path == read(table, {"x": "int64"}).path


def test_columns_are_in_the_order_of_the_declaration(read: Callable[..., DeclaredFile]) -> None:
    table = pa.table({"b": pa.array([1], pa.int32()), "c": [2], "a": ["x"]})
    result = read(table, {"a": "string", "b": "int64"})
    assert pq.read_table(result.path).to_pydict() == {"a": ["x"], "b": [1]}


INT96 = dict(use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize(("declared", "expected"), [(INSTANT, NOON_UTC), (CLOCK, NOON)])
def test_timestamps_of_96_bits_are_instants(
    read: Callable[..., DeclaredFile], declared: str, expected: datetime
) -> None:
    result = read(pa.table({"at": seconds(0, unit="us")}), {"at": declared}, **INT96)
    assert result.faults == ()
    assert pq.read_table(result.path)["at"].to_pylist() == [expected]


def test_a_far_timestamp_of_96_bits_does_not_wrap(read: Callable[..., DeclaredFile]) -> None:
    end = datetime(9999, 12, 31)
    result = read(pa.table({"at": pa.array([end], pa.timestamp("us"))}), {"at": CLOCK}, **INT96)
    assert pq.read_table(result.path)["at"].to_pylist() == [end]


def test_a_missing_column_is_compared_with_those_that_nobody_declared(read: Callable[..., DeclaredFile]) -> None:
    table = pa.table({"order_date": [1], "z": [2], "amount": [3]})
    declared = {"oder_date": "int64", "amout": "int64", "price": "int64", "z": "int64"}
    [fault] = read(table, declared).faults
    assert fault.fix.startswith("did you mean 'order_date' for 'oder_date', 'amount' for 'amout'? If not, deliver them")
    [fault] = read(table, {"price": "int64"}).faults
    assert fault.fix.startswith("deliver them")


FILES: dict[str, tuple[pa.Table | bytes, dict[str, Any], dict[str, Any], list[str]]] = {
    "missing columns": (
        pa.table({"y": [1]}),
        {"x": "int64", "z": "int64"},
        {},
        ["2 declared columns are missing: x, z; it has undeclared y"],
    ),
    "refused extra columns": (
        pa.table({"x": [1], "y": [1]}),
        {"x": "int64"},
        {"extra_columns": "refuse"},
        ["has 1 undeclared columns: y"],
    ),
    "a column twice": (
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]),
        {"x": "int64"},
        {},
        ["has columns twice: x"],
    ),
    "no rows": (
        pa.table({"x": pa.array([], pa.int64())}),
        {"x": "int64"},
        {"empty_periods": "refused"},
        ["has no rows"],
    ),
    "no rows and a missing column": (
        pa.table({"y": pa.nulls(0)}),
        {"x": "int64"},
        {"empty_periods": "refused"},
        ["1 declared columns are missing: x; it has undeclared y", "has no rows"],
    ),
    "nulls": (
        pa.table({"x": [1, None, None]}),
        {"x": dict(type="int64", nullable=False)},
        {},
        ["x: 2 of 3 rows have no value"],
    ),
    "nulls in a copy": (
        pa.table({"x": pa.array([1, None], pa.int32())}),
        {"x": dict(type="int64", nullable=False)},
        {},
        ["x: 1 of 2 rows have no value"],
    ),
    "nulls only": (
        pa.table({"x": pa.nulls(3)}),
        {"x": dict(type="int64", nullable=False)},
        {},
        ["x: 3 of 3 rows have no value"],
    ),
    "null lists": (
        pa.table({"x": [[None], None]}, schema=pa.schema({"x": pa.list_(pa.int64())})),
        {"x": dict(type="list<int64>", nullable=False)},
        {},
        ["x: 1 of 2 rows have no value"],
    ),
    "several columns": (
        pa.table({"x": [0.5, None], "y": ["a", "b"]}),
        {"x": dict(type="int64", nullable=False), "y": "int64"},
        {},
        ["x: 1 values of 2 rows", "x: 1 of 2 rows have no value", "y: 2 values of 2 rows"],
    ),
    "nothing": (b"", {"x": "int64"}, {}, ["is not a readable Parquet file"]),
    "text": (b"x\n1\n", {"x": "int64"}, {}, ["is not a readable Parquet file"]),
    "magic only": (b"PAR1" * 3, {"x": "int64"}, {}, ["is not a readable Parquet file"]),
}


@pytest.mark.parametrize("name", FILES)
def test_faults_of_a_file_are_told_together(read: Callable[..., DeclaredFile], name: str) -> None:
    table, columns, fields, problems = FILES[name]
    faults = read(table, columns, **fields).faults
    assert len(faults) == len(problems), faults
    for fault, problem in zip(faults, problems, strict=True):
        assert "orders.parquet" in fault.location
        assert problem in str(fault)
        assert fault.fix


def test_a_page_that_is_damaged_is_a_fault_of_its_file(read: Callable[..., DeclaredFile]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": pa.array(range(10_000), pa.int32())}), buffer, use_dictionary=False)
    content = bytearray(buffer.getvalue())
    content[4:40] = b"\xff" * 36
    (fault,) = read(bytes(content), {"x": "int64"}).faults
    assert "is not a readable Parquet file" in fault.problem


def test_losses_are_counted_over_all_batches(read: Callable[..., DeclaredFile], tmp_path: Path) -> None:
    values = np.arange(200_000, dtype="float64")
    values[[70_000, 150_000, 199_999]] += 0.5
    (fault,) = read(pa.table({"x": values}), {"x": "int64"}, row_group_size=30_000).faults
    assert "3 values of 200000 rows" in fault.problem
    assert "such as 70000.5" in fault.problem
    assert not list((tmp_path / "declared").rglob("*.parquet")), "nothing of a refused file is kept"


def test_names_that_differ_in_case_are_told_apart(read: Callable[..., DeclaredFile]) -> None:
    result = read(pa.table({"X": [1], "x": [2]}), {"x": "int64"})
    assert pq.read_table(result.path).to_pydict() == {"x": [2]}, "Spark would find two columns"


def test_nulls_are_counted_where_the_footer_is_silent(read: Callable[..., DeclaredFile]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": [1, None]}), buffer, write_statistics=False)
    (fault,) = read(buffer.getvalue(), {"x": dict(type="int64", nullable=False)}).faults
    assert "1 of 2 rows have no value" in fault.problem


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    code = """
import os
import sys
import pyarrow
from pathlib import Path
os.environ["EVERGREEN_RAW"], os.environ["EVERGREEN_HOME"] = sys.argv[1:]
from evergreen.ingest.declared_files import read_as_declared
from evergreen.ingest.raw_files import RawFile, hash_raw_files
from evergreen.lake.datasets import Dataset
from evergreen.spec.model import RawSource
source = RawSource(name="orders", columns=dict(x="int64"), is_register=True)
file = RawFile.from_source(source, None)
result = read_as_declared(source, file, hash_raw_files([file])[file], Dataset(Path(sys.argv[2])))
assert not result.faults
print(pyarrow.default_memory_pool().max_memory() // 2**20)
"""
    peaks = []
    for rows in (100_000, 4_000_000):
        file = tmp_path / f"{rows}/orders/orders.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(
            pa.table({"x": pa.array(np.arange(rows) * 7919 % 2**31, pa.int32())}), file, row_group_size=100_000
        )
        command = [sys.executable, "-c", code, str(tmp_path / str(rows)), str(tmp_path / f"home-{rows}")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 10, f"{peaks} MiB for files of 0.4 and 16 MB; the copy has 32 MB"
