"""Deliveries of every shape: what is read, with its value, and what is refused, with file, row, column and example.

docs/data.md counts the inputs of these tables.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import zstandard

from evergreen.ingest import declared_files, raw_files
from evergreen.ingest.announcements import AnnouncementStore
from evergreen.ingest.declared_files import DeclaredFile, read_as_declared
from evergreen.ingest.raw_files import RawFile, hash_raw_files
from evergreen.ingest.watcher import RawDataWatcher, WatchedSource, list_complete_periods
from evergreen.lake.datasets import Dataset
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen.spec.model import FeatureSpec, RawSource
from support.documents import DOCS, ROOT

pytestmark = pytest.mark.unit

PERIOD, DAY = "2013-03-01", date(2013, 3, 1)
CALENDAR, ZONE = Calendar("1d", "UTC"), "America/New_York"
INSTANT, CLOCK = "timestamp[us, tz=UTC]", "timestamp[us]"
NOON = datetime(2013, 3, 1, 12)
FOLDER = "orders/dt=%Y-%m-%d/"
Parts = Mapping[str, bytes]


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def orc(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pa.orc.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def csv(text: str) -> dict[str, bytes]:
    return {"a.csv": text.encode()}


def lines(*rows: Any) -> dict[str, bytes]:
    return {"a.jsonl": b"".join((row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows)}


ONE = {"x": "int64"}
TWO = {"x": "int64", "y": "string"}

# What is read: format and options, parts, columns, values.
READ: dict[str, tuple[dict[str, Any], Parts, dict[str, Any], dict[str, list[Any]]]] = {
    # Parts
    "two parts": ({}, {"b": parquet(x=[2]), "a": parquet(x=[1])}, ONE, {"x": [1, 2]}),
    "parts in folders": ({}, {"h=1/a": parquet(x=[2]), "h=0/b": parquet(x=[1])}, ONE, {"x": [1, 2]}),
    "parts of several types": (
        {},
        {"a": parquet(x=pa.array([1], pa.int8())), "b": parquet(x=[2.0]), "c": parquet(x=pa.nulls(1))},
        ONE,
        {"x": [1, 2, None]},
    ),
    "parts with columns in another order": (
        {},
        {"a": parquet(x=[1], y=["a"]), "b": parquet(y=["b"], x=[2], z=[0])},
        TWO,
        {"x": [1, 2], "y": ["a", "b"]},
    ),
    "an empty part among others": (
        {},
        {"a": parquet(x=pa.array([], pa.int64())), "b": parquet(x=[1])},
        ONE,
        {"x": [1]},
    ),
    "hidden and underscored files": (
        {},
        {"a": parquet(x=[1]), ".a.crc": b"?", "_SUCCESS": b"", "_temporary/0/b": b"half", ".tmp/c": b"half"},
        ONE,
        {"x": [1]},
    ),
    "a marker and no part": ({"marker": "_SUCCESS"}, {"_SUCCESS": b""}, ONE, {"x": []}),
    "a marker that is not hidden": ({"marker": "DONE"}, {"a": parquet(x=[1]), "DONE": b""}, ONE, {"x": [1]}),
    "as many parts as declared": ({"part_count": 2}, {"a": parquet(x=[1]), "b": parquet(x=[2])}, ONE, {"x": [1, 2]}),
    "hostile names of parts": (
        {},
        {"a\nb": parquet(x=[1]), "b'; DROP TABLE x; --": parquet(x=[2]), "ä é": parquet(x=[3])},
        ONE,
        {"x": [1, 2, 3]},
    ),
    # ORC
    "orc": ({"format": "orc"}, {"a.orc": orc(x=[1, None])}, ONE, {"x": [1, None]}),
    "orc with int8": ({"format": "orc"}, {"a.orc": orc(x=pa.array([1, -128], pa.int8()))}, ONE, {"x": [1, -128]}),
    "orc instants": (
        {"format": "orc"},
        {"a.orc": orc(x=pa.array([NOON], pa.timestamp("ns", "UTC")))},
        {"x": INSTANT},
        {"x": [NOON.replace(tzinfo=UTC)]},
    ),
    "orc decimals and lists": (
        {"format": "orc"},
        {"a.orc": orc(x=[Decimal("1.5")], y=[[1, None]])},
        {"x": "decimal128(10, 2)", "y": "list<int64>"},
        {"x": [Decimal("1.50")], "y": [[1, None]]},
    ),
    # CSV
    "csv": ({"format": "csv"}, csv("x,y\n1,a\n2,b\n"), TWO, {"x": [1, 2], "y": ["a", "b"]}),
    "csv in another order, with other columns": ({"format": "csv"}, csv("z,y,x\n0,a,1\n"), TWO, {"x": [1], "y": ["a"]}),
    "csv with a quoted newline": (
        {"format": "csv"},
        csv('x,y\n1,"a\nb"\n2,c\n'),
        TWO,
        {"x": [1, 2], "y": ["a\nb", "c"]},
    ),
    "csv with quotes in quotes": ({"format": "csv"}, csv('x,y\n1,"a ""b"", c"\n'), TWO, {"x": [1], "y": ['a "b", c']}),
    "csv with a byte order mark": ({"format": "csv"}, {"a": b"\xef\xbb\xbfx,y\n1,a\n"}, TWO, {"x": [1], "y": ["a"]}),
    "csv of windows": ({"format": "csv"}, csv("x,y\r\n1,a\r\n"), TWO, {"x": [1], "y": ["a"]}),
    "csv without a last newline": ({"format": "csv"}, csv("x,y\n1,a"), TWO, {"x": [1], "y": ["a"]}),
    "csv with blank lines": ({"format": "csv"}, csv("x,y\n\n1,a\n\n"), TWO, {"x": [1], "y": ["a"]}),
    "csv of one column with nulls": ({"format": "csv"}, csv("x\n1\n\n3\n"), ONE, {"x": [1, None, 3]}),
    "csv nulls and empty texts": ({"format": "csv"}, csv('x,y\n,\n1,""\n'), TWO, {"x": [None, 1], "y": [None, ""]}),
    "csv with other nulls": (
        {"format": "csv", "nulls": ["NA", ""]},
        csv('x,y\nNA,NA\n1,"NA"\n'),
        TWO,
        {"x": [None, 1], "y": [None, "NA"]},
    ),
    "csv with tabs": ({"format": "csv", "delimiter": "\t"}, csv("x\ty\n1\ta,b\n"), TWO, {"x": [1], "y": ["a,b"]}),
    "csv without a header": (
        {"format": "csv", "header": False},
        csv("1,a\n2,b\n"),
        TWO,
        {"x": [1, 2], "y": ["a", "b"]},
    ),
    "csv with quotes as letters": (
        {"format": "csv", "quotes": False},
        csv('x,y\n1,5" disk\n'),
        TWO,
        {"x": [1], "y": ['5" disk']},
    ),
    "csv with a header only": ({"format": "csv"}, csv("x,y\n"), TWO, {"x": [], "y": []}),
    "csv with a header and no newline": ({"format": "csv"}, csv("x,y"), TWO, {"x": [], "y": []}),
    "csv without header or rows": ({"format": "csv", "header": False}, csv(""), TWO, {"x": [], "y": []}),
    "csv integers": (
        {"format": "csv"},
        csv("x\n007\n+5\n-9223372036854775808\n3.0\n"),
        ONE,
        {"x": [7, 5, -(2**63), 3]},
    ),
    "csv floats": (
        {"format": "csv"},
        csv("x\n0.1\n1e3\n.5\n+2.\nNaN\n-inf\n9007199254740992\n"),
        {"x": "float64"},
        {"x": [0.1, 1000.0, 0.5, 2.0, float("nan"), float("-inf"), 2.0**53]},
    ),
    "csv decimals": (
        {"format": "csv"},
        csv("x\n1.5\n-0.10\n+3\n2.500\n"),
        {"x": "decimal128(10, 2)"},
        {"x": [Decimal("1.50"), Decimal("-0.10"), Decimal("3.00"), Decimal("2.50")]},
    ),
    "csv booleans": (
        {"format": "csv"},
        csv("x\ntrue\nFALSE\nt\n0\n\n"),
        {"x": "bool"},
        {"x": [True, False, True, False, None]},
    ),
    "csv dates": ({"format": "csv"}, csv("x\n2013-03-01\n\n"), {"x": "date32"}, {"x": [DAY, None]}),
    "csv instants": (
        {"format": "csv"},
        csv("x\n2013-03-01T12:00:00Z\n2013-03-01 13:30:00.000000000+01:30\n2013-03-01T07:00-05\n"),
        {"x": INSTANT},
        {"x": [NOON.replace(tzinfo=UTC)] * 3},
    ),
    "csv times on a clock": (
        {"format": "csv"},
        csv("x\n2013-03-01T12:00\n2013-03-01 12:00:00.000001\n2013-03-01\n"),
        {"x": CLOCK},
        {"x": [NOON, NOON.replace(microsecond=1), datetime(2013, 3, 1)]},
    ),
    "csv text that looks like a number": (
        {"format": "csv"},
        csv("x\n007\n1e5\n"),
        {"x": "string"},
        {"x": ["007", "1e5"]},
    ),
    "csv as gzip": ({"format": "csv"}, {"a.csv.gz": gzip.compress(b"x\n1\n")}, ONE, {"x": [1]}),
    "csv as gzip of two members": (
        {"format": "csv"},
        {"a.csv.gz": gzip.compress(b"x\n1\n") + gzip.compress(b"2\n")},
        ONE,
        {"x": [1, 2]},
    ),
    "csv as zstd, whatever its name": ({"format": "csv"}, {"a": zstandard.compress(b"x\n1\n")}, ONE, {"x": [1]}),
    "csv parts with other orders": (
        {"format": "csv"},
        {"a": b"x,y\n1,a\n", "b": b"y,x\nb,2\n"},
        TWO,
        {"x": [1, 2], "y": ["a", "b"]},
    ),
    # JSON lines
    "json": (
        {"format": "jsonl"},
        lines({"x": 1, "y": "a"}, {"y": None, "x": None}),
        TWO,
        {"x": [1, None], "y": ["a", None]},
    ),
    "json with keys that some rows lack": (
        {"format": "jsonl"},
        lines({"x": 1}, {"y": "b"}),
        TWO,
        {"x": [1, None], "y": [None, "b"]},
    ),
    "json keys that one part lacks": (
        {"format": "jsonl"},
        {"a": b'{"x": 1}\n', "b": b'{"x": 2, "y": "b"}\n'},
        TWO,
        {"x": [1, 2], "y": [None, "b"]},
    ),
    "json with blank lines and a mark": (
        {"format": "jsonl"},
        {"a": b'\xef\xbb\xbf{"x": 1}\n\n{"x": 2}'},
        ONE,
        {"x": [1, 2]},
    ),
    "json of windows": ({"format": "jsonl"}, {"a": b'{"x": 1}\r\n{"x": 2}\r\n'}, ONE, {"x": [1, 2]}),
    "json numbers": (
        {"format": "jsonl"},
        lines({"x": 3.0, "y": 1}, {"x": 2**62, "y": 0.1}),
        {"x": "int64", "y": "float64"},
        {"x": [3, 2**62], "y": [1.0, 0.1]},
    ),
    "json decimals": (
        {"format": "jsonl"},
        lines('{"x": 0.10}', '{"x": "1.5"}', '{"x": 2}'),
        {"x": "decimal128(10, 2)"},
        {"x": [Decimal("0.10"), Decimal("1.50"), Decimal("2.00")]},
    ),
    "json dates and instants": (
        {"format": "jsonl"},
        lines({"x": "2013-03-01", "y": "2013-03-01T12:00:00Z"}),
        {"x": "date32", "y": INSTANT},
        {"x": [DAY], "y": [NOON.replace(tzinfo=UTC)]},
    ),
    "json lists": (
        {"format": "jsonl"},
        lines({"x": [1, None]}, {"x": []}, {"x": None}),
        {"x": "list<int64>"},
        {"x": [[1, None], [], None]},
    ),
    "json objects that are not declared": ({"format": "jsonl"}, lines({"x": 1, "meta": {"a": [1]}}), ONE, {"x": [1]}),
    "json as gzip": ({"format": "jsonl"}, {"a": gzip.compress(b'{"x": 1}\n')}, ONE, {"x": [1]}),
    "json of no rows": ({"format": "jsonl"}, {"a": b""}, ONE, {"x": []}),
}

# What is refused: format and options, parts, columns, problems.
REFUSED: dict[str, tuple[dict[str, Any], Parts, dict[str, Any], list[str]]] = {
    # Parts
    "a zero-byte part": ({}, {"a": parquet(x=[1]), "b": b""}, ONE, ["/b: is not a readable Parquet file"]),
    "a part of another format": (
        {},
        {"a": parquet(x=[1]), "b.csv": b"x\n1\n"},
        ONE,
        ["/b.csv: is not a readable Parquet"],
    ),
    "a part cut off": ({}, {"a": parquet(x=[1]), "b": parquet(x=[2])[:-10]}, ONE, ["/b: is not a readable Parquet"]),
    "a part without a column": (
        {},
        {"a": parquet(x=[1]), "b": parquet(X=[1])},
        ONE,
        ["/b: 1 declared columns are missing: x; it has undeclared X"],
    ),
    "faults of several parts": (
        {},
        {"a": parquet(x=[0.5]), "b": parquet(x=[1, 0.7]), "c": parquet(x=[1])},
        ONE,
        [
            "/a: x: 1 values of 1 rows",
            "/b: x: 1 values of 2 rows cannot be read as int64 without loss, such as 0.7 in row 2",
        ],
    ),
    "too many parts": (
        {"part_count": 1},
        {"a": parquet(x=[1]), "b": parquet(x=[2])},
        ONE,
        ["has 2 parts instead of 1"],
    ),
    "a hostile name of a faulty part": (
        {},
        {"a\n2026 INFO all is well": b"?"},
        ONE,
        [r"a\n2026 INFO all is well: is not"],
    ),
    "many faulty parts": (
        {},
        {f"{number:02}": b"?" for number in range(12)},
        ONE,
        [*(f"/{number:02}: is not" for number in range(10)), "12 of 12 parts have faults"],
    ),
    "only empty parts": ({"empty": "refused"}, {"a": parquet(x=pa.array([], pa.int64()))}, ONE, ["has no rows"]),
    "a marker, no part and no leave": (
        {"empty": "refused", "marker": "_SUCCESS"},
        {"_SUCCESS": b""},
        ONE,
        ["has no rows"],
    ),
    # ORC
    "orc cut off": ({"format": "orc"}, {"a": orc(x=[1])[:-5]}, ONE, ["/a: is not a readable ORC file"]),
    "orc with fractions": ({"format": "orc"}, {"a": orc(x=[1.0, 0.7])}, ONE, ["x: 1 values of 2 rows", "0.7 in row 2"]),
    "orc that is Parquet": ({"format": "orc"}, {"a": parquet(x=[1])}, ONE, ["is not a readable ORC file"]),
    # CSV
    "csv of zero bytes": ({"format": "csv"}, csv(""), ONE, ["is not a readable CSV file: it has no header"]),
    "csv with too few values": (
        {"format": "csv"},
        csv("x,y\n1,a\n2\n3\n4,b\n"),
        TWO,
        ["2 rows cannot be read, such as row 2: 1 values instead of 2"],
    ),
    "csv with too many values": (
        {"format": "csv"},
        csv("x,y\n1,a,b\n"),
        TWO,
        ["1 rows cannot be read, such as row 1: 3 values instead of 2"],
    ),
    "csv with a doubled header": ({"format": "csv"}, csv("x,x\n1,2\n"), ONE, ["has columns twice: x"]),
    "csv without a column": ({"format": "csv"}, csv("y\na\n"), TWO, ["1 declared columns are missing: x"]),
    "csv with refused columns": (
        {"format": "csv", "extra": "refuse"},
        csv("x,z\n1,2\n"),
        ONE,
        ["has 1 undeclared columns: z"],
    ),
    "csv with a decimal comma": (
        {"format": "csv", "delimiter": ";"},
        csv("x\n1,5\n2.5\n"),
        {"x": "float64"},
        ["x: 1 values of 2 rows cannot be read as float64 without loss, such as 1,5 in row 1: the file has text"],
    ),
    "csv integers out of range": (
        {"format": "csv"},
        csv("x\n1\n9223372036854775808\n-9223372036854775809\n"),
        ONE,
        ["x: 2 values of 3 rows", "such as 9223372036854775808 in row 2"],
    ),
    "csv small integers out of range": (
        {"format": "csv"},
        csv("x\n127\n128\n"),
        {"x": "int8"},
        ["1 values of 2 rows", "128 in row 2"],
    ),
    "csv fractions for integers": ({"format": "csv"}, csv("x\n1.0\n0.7\n"), ONE, ["such as 0.7 in row 2"]),
    "csv text for integers": (
        {"format": "csv"},
        csv("x\nNaN\n0x1f\n1_000\n١\n 5\n"),
        ONE,
        ["x: 5 values of 5 rows", "NaN in row 1"],
    ),
    "csv integers that a float rounds": (
        {"format": "csv"},
        csv("x\n9007199254740993\n"),
        {"x": "float64"},
        ["9007199254740993 in row 1"],
    ),
    "csv numbers beyond a float": ({"format": "csv"}, csv("x\n1\n1e39\n"), {"x": "float32"}, ["such as 1e39 in row 2"]),
    "csv decimals of other scale": (
        {"format": "csv"},
        csv("x\n1.50\n1.505\n"),
        {"x": "decimal128(10, 2)"},
        ["1.505 in row 2"],
    ),
    "csv decimals that are NaN": (
        {"format": "csv"},
        csv("x\nNaN\n"),
        {"x": "decimal128(10, 2)"},
        ["such as NaN in row 1"],
    ),
    "csv impossible dates": (
        {"format": "csv"},
        csv("x\n2013-02-30\n01/03/2013\n"),
        {"x": "date32"},
        ["2 values of 2 rows", "2013-02-30 in row 1"],
    ),
    "csv instants without a zone": (
        {"format": "csv"},
        csv("x\n2013-03-01T12:00:00\n"),
        {"x": INSTANT},
        ["2013-03-01T12:00:00 in row 1"],
    ),
    "csv clock times with a zone": (
        {"format": "csv"},
        csv("x\n2013-03-01T12:00:00Z\n"),
        {"x": CLOCK},
        ["2013-03-01T12:00:00Z in row 1"],
    ),
    "csv with nanoseconds": (
        {"format": "csv"},
        csv("x\n2013-03-01T12:00:00.000000001Z\n"),
        {"x": INSTANT},
        ["000000001Z in row 1"],
    ),
    "csv yes and no": ({"format": "csv"}, csv("x\nyes\n"), {"x": "bool"}, ["such as yes in row 1"]),
    "csv in latin-1": (
        {"format": "csv"},
        {"a": b"x,y\n1,a\n2,\xe4\n"},
        TWO,
        ["y: 1 values of 2 rows", r"b'\xe4' in row 2"],
    ),
    "csv nulls that are required": (
        {"format": "csv"},
        csv("x,y\n,a\n2,b\n"),
        {"x": dict(type="int64", nullable=False), "y": "string"},
        ["x: 1 of 2 rows have no value"],
    ),
    "csv with an open quote": ({"format": "csv"}, csv('x,y\n1,"a\n2,b\n3,c\n'), TWO, ['it has an odd number of "']),
    "csv with two open quotes": (
        {"format": "csv"},
        csv('x,y\n1,"a\n2,b"c\n3,d\n4,"e\n'),
        TWO,
        ['it has an odd number of "'],
    ),
    "csv as gzip cut off": (
        {"format": "csv"},
        {"a": gzip.compress(b"x\n" + b"1\n" * 9999)[:-9]},
        ONE,
        ["Truncated compressed stream"],
    ),
    "csv as gzip with a wrong sum": (
        {"format": "csv"},
        {"a": gzip.compress(b"x\n1\n")[:-8] + b"\0" * 8},
        ONE,
        ["is not a readable CSV file: zlib inflate failed"],
    ),
    "csv as zstd cut off": (
        {"format": "csv"},
        {"a": zstandard.compress(b"x\n" + b"1\n" * 9999)[:-3]},
        ONE,
        ["Truncated compressed stream"],
    ),
    "csv that is Parquet": ({"format": "csv"}, {"a": parquet(x=[1])}, ONE, ["is not a readable CSV file"]),
    # JSON lines
    "json with a nested object": (
        {"format": "jsonl"},
        lines({"x": 1}, {"x": {"a": 1}}),
        ONE,
        ['such as {"a": 1} in row 2: the file has an object'],
    ),
    "json of mixed types": (
        {"format": "jsonl"},
        lines({"x": 1}, {"x": "1"}, {"x": True}),
        ONE,
        ["x: 2 values of 3 rows", "such as 1 in row 2: the file has text"],
    ),
    "json fractions for integers": ({"format": "jsonl"}, lines({"x": 0.7}), ONE, ["such as 0.7 in row 1"]),
    "json integers out of range": ({"format": "jsonl"}, lines({"x": 2**63}), ONE, ["such as 9223372036854775808"]),
    "json integers that a float rounds": (
        {"format": "jsonl"},
        lines({"x": 2**53 + 1}),
        {"x": "float64"},
        ["such as 9007199254740993"],
    ),
    "json NaN for integers": ({"format": "jsonl"}, lines('{"x": NaN}'), ONE, ["such as nan in row 1"]),
    "json numbers for text": (
        {"format": "jsonl"},
        lines({"x": 7}),
        {"x": "string"},
        ["such as 7 in row 1: the file has a number"],
    ),
    "json seconds for instants": (
        {"format": "jsonl"},
        lines({"x": 1362139200}),
        {"x": INSTANT},
        ["such as 1362139200"],
    ),
    "json half a surrogate": ({"format": "jsonl"}, lines('{"x": "\\ud800"}'), {"x": "string"}, [r"such as \ud800"]),
    "json decimals of other scale": (
        {"format": "jsonl"},
        lines('{"x": 0.105}'),
        {"x": "decimal128(10, 2)"},
        ["such as 0.105"],
    ),
    "json lists of mixed types": (
        {"format": "jsonl"},
        lines({"x": [1, "a"]}),
        {"x": "list<int64>"},
        ['such as [1, "a"] in row 1'],
    ),
    "json that ends in a row": (
        {"format": "jsonl"},
        {"a": b'{"x": 1}\n{"x": '},
        ONE,
        ["1 rows cannot be read, such as row 2: is no JSON object"],
    ),
    "json with a key twice": ({"format": "jsonl"}, lines('{"x": 1, "x": 2}'), ONE, ["it has a key twice"]),
    "json that is one array": ({"format": "jsonl"}, {"a": b'[{"x": 1}]\n'}, ONE, ["it is no object"]),
    "json without a column": (
        {"format": "jsonl"},
        lines({"X": 1}),
        ONE,
        ["1 declared columns are missing: x; it has undeclared X"],
    ),
    "json with refused keys": (
        {"format": "jsonl", "extra": "refuse"},
        lines({"x": 1}, {"x": 1, "z": 2}),
        ONE,
        ["has 1 undeclared columns: z"],
    ),
    "json in latin-1": (
        {"format": "jsonl"},
        {"a": b'{"x": "\xe4"}\n'},
        {"x": "string"},
        ["'utf-8' codec can't decode"],
    ),
    "json of great depth": (
        {"format": "jsonl"},
        {"a": b'{"x": ' + b"[" * 100_000 + b"\n"},
        ONE,
        ["1 rows cannot be read"],
    ),
    "json as gzip cut off": ({"format": "jsonl"}, {"a": gzip.compress(b'{"x": 1}\n' * 9999)[:-9]}, ONE, ["Truncated"]),
}


@pytest.fixture(params=["local", "memory"])
def raw(request: pytest.FixtureRequest, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of raw data, here and in an object store."""
    place = str(tmp_path / "raw") if request.param == "local" else f"memory://{tmp_path.name}/raw"
    monkeypatch.setenv("EVERGREEN_RAW", place)
    settings.cache_clear()
    yield place
    fsspec.filesystem("memory").store.clear()


def a_source(columns: Mapping[str, Any], options: Mapping[str, Any] = {}, path: str = FOLDER) -> RawSource:
    files = {"path": path, **{name: value for name, value in options.items() if name not in ("empty", "extra")}}
    return RawSource(
        name="orders",
        columns=columns,
        files=files,
        empty_periods=options.get("empty", "delivered"),
        extra_columns=options.get("extra", "ignore"),
    )


def write(raw: str, parts: Parts, folder: str = "orders/dt=2013-03-01") -> None:
    fs, root = fsspec.core.url_to_fs(raw)
    for name, content in parts.items():
        path = "/".join(filter(None, (root, folder, name)))
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, content)


def read(source: RawSource, tmp_path: Path, period: str = PERIOD) -> DeclaredFile:
    delivery = RawFile.from_source(source, period)
    return read_as_declared(source, delivery, hash_raw_files([delivery])[delivery], Dataset(tmp_path / "copies"))


def rows_of(declared: DeclaredFile) -> dict[str, list[Any]]:
    return pq.read_table(declared.path).to_pydict()


@pytest.mark.parametrize("name", READ)
def test_what_is_declared_is_read(raw: str, tmp_path: Path, name: str) -> None:
    options, parts, columns, expected = READ[name]
    write(raw, parts)
    source = a_source(columns, options)
    declared = read(source, tmp_path)
    assert declared.faults == ()
    assert pq.read_schema(declared.path).equals(declared_files.declared_schema(source)) or len(parts) == 1
    assert str(rows_of(declared)).replace("zoneinfo.ZoneInfo(key='UTC')", "datetime.timezone.utc") == str(expected)
    assert declared.rows == len(next(iter(expected.values())))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_declared_is_refused(raw: str, tmp_path: Path, name: str) -> None:
    options, parts, columns, problems = REFUSED[name]
    write(raw, parts)
    write(raw, parts, "orders/dt=2013-03-02")
    declared = read(a_source(columns, options), tmp_path)
    text = "\n".join(map(str, declared.faults))
    assert all(problem in text for problem in problems), text
    assert all("\n" not in str(fault) and "2013-03-01" in fault.location for fault in declared.faults)
    assert not list((tmp_path / "copies").rglob("*.parquet")), "nothing of a refused delivery is kept"


def keys_of(file: str, name: str) -> list[str]:
    """The keys of a table in a module of tests."""
    for node in ast.parse((ROOT / "tests" / file).read_text()).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if name in [target.id for target in targets if isinstance(target, ast.Name)]:
            return [ast.unparse(key) for key in node.value.keys]
    raise AssertionError(f"{file} has no table {name}")


def test_the_page_counts_these_shapes() -> None:
    words = {"parts of any number": None, "ORC": "orc", "CSV": "csv", "JSON lines": "json"}
    counted = {
        label: tuple(sum(kind_of_name(name) == word for name in table) for table in (READ, REFUSED))
        for label, word in words.items()
    }
    postgres = "integration/ingest/test_postgres.py"
    counted |= {
        "templates of paths": (len(TEMPLATES), len(WRONG_TEMPLATES)),
        "queries on DuckDB": (None, len(keys_of("unit/ingest/test_extracts.py", "QUERY_FAULTS"))),
        "values of Postgres": (len(keys_of(postgres, "READ")), len(keys_of(postgres, "REFUSED"))),
        "tables, of Delta and of Iceberg": (None, len(keys_of("unit/ingest/test_extracts.py", "TABLE_FAULTS"))),
    }
    rows = re.findall(r"^\| ([^|]+) \| (\d+|–) \| (\d+) \|$", (DOCS / "data.md").read_text(), re.MULTILINE)
    assert {label: (None if read == "–" else int(read), int(refused)) for label, read, refused in rows} == counted


def kind_of_name(name: str) -> str | None:
    word = name.split()[0]
    return word if word in ("orc", "csv", "json") else None


TEMPLATES = {
    "hive": ("rides/dt=%Y-%m-%d/", "rides/dt=2013-03-01/a/b.parquet"),
    "hive of three": ("rides/year=%Y/month=%m/day=%d/", "rides/year=2013/month=03/day=01/a.parquet"),
    "a file": ("rides/%Y/%m-%d.csv", "rides/2013/03-01.csv"),
    "files by name": ("rides_%Y%m%d_*.csv", "rides_20130301_7.csv"),
    "a date twice": ("rides/%Y/%Y-%m-%d/", "rides/2013/2013-03-01/a"),
    "letters of expressions": ("r+(x)/%Y.%m.%d/", "r+(x)/2013.03.01/a"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_finds_its_files(raw: str, tmp_path: Path, name: str) -> None:
    path, file = TEMPLATES[name]
    others = [file.replace("2013", "2014"), file.replace("2013", "20x3", 1), f"{file.replace('2013', '2015')}.x", "a"]
    for place in (file, *others):
        write(raw, {place: parquet(x=[1])}, "")
    source = a_source(ONE, path=path)
    assert rows_of(read(source, tmp_path)) == {"x": [1]}
    sources = {"x": WatchedSource.from_source(source)}
    listed = list_complete_periods(raw_files.raw_folder(), sources, datetime.now(UTC), CALENDAR)
    # What has letters after it is another file; in a folder, another part.
    assert listed.keys() - {"2015-03-01"} == {"2013-03-01", "2014-03-01"}
    assert ("2015-03-01" in listed) == source.files.is_folder


WRONG_TEMPLATES = {
    "rides/": "does not say which day",
    "rides/%Y-%m/": "does not say which day",
    "rides/%y-%m-%d/": "has %y: write one of %Y",
    "rides/%Y-%m-%d%": "write one of %Y",
    "../rides/%Y-%m-%d/": "leaves the folder of raw data",
    "/rides/%Y-%m-%d/": "leaves the folder of raw data",
    "s3://bucket/%Y-%m-%d/": "leaves the folder of raw data",
    "rides//%Y-%m-%d/": "leaves the folder of raw data",
    "rides/_%Y-%m-%d/": "those of unfinished files",
    "*/%Y-%m-%d/": "has * in a folder",
    "rides/%Y-%m-%d\n/": "cannot be printed",
}


@pytest.mark.parametrize("path", WRONG_TEMPLATES)
def test_a_wrong_template_is_refused_with_its_spec(path: str) -> None:
    with pytest.raises(ValueError, match=re.escape(WRONG_TEMPLATES[path])):
        a_source(ONE, path=path)


HOURS = {
    "hive": ("rides/dt=%Y-%m-%d/hour=%H/", "rides/dt=2013-03-01/hour=07/a"),
    "a file": ("rides/%Y%m%d%H.csv", "rides/2013030107.csv"),
    "by default": ("", "orders/period=2013-03-01T0700Z/orders.parquet"),
    "minutes": ("rides/%Y%m%d/%H%M/", "rides/20130301/0700/a"),
}


@pytest.mark.parametrize("name", HOURS)
def test_a_template_may_have_hours(raw: str, tmp_path: Path, name: str) -> None:
    path, file = HOURS[name]
    for place in (file, file.replace("07", "99"), file.replace("00", "30", 1)):
        write(raw, {place: parquet(x=[1])}, "")
    source, hour = a_source(ONE, path=path), "2013-03-01T07:00Z"
    assert rows_of(read(source, tmp_path, hour)) == {"x": [1]}
    sources = {"orders": WatchedSource.from_source(source)}
    listed = list_complete_periods(raw_files.raw_folder(), sources, datetime.now(UTC), Calendar("1h", ZONE))
    assert list(listed) == [hour], "an hour is one of UTC, and half past is none"


@pytest.mark.parametrize(
    ("period", "path", "problem"),
    [
        ("1d", "rides/%Y-%m-%d/%H/", "has %H, and a period is 1d: leave it out"),
        ("1w", "rides/%Y-%m-%d/%H/", "has %H, and a period is 1w: leave it out"),
        ("1h", "rides/%Y-%m-%d/", "has no %H, and a period is 1h"),
        ("15min", "rides/%Y-%m-%d/%H/", "has no %M, and a period is 15min"),
    ],
)
def test_a_template_tells_periods_apart(period: str, path: str, problem: str) -> None:
    sources = (a_source(ONE, path=path),)
    with pytest.raises(ValueError, match=problem):
        FeatureSpec(period=period, timezone=ZONE, first_day=DAY, sources=sources, views=("v",), spine="s")


def identity(source: RawSource) -> str | None:
    delivery = RawFile.from_source(source, PERIOD)
    return hash_raw_files([delivery]).get(delivery)


def test_a_delivery_is_its_parts_and_their_names(raw: str) -> None:
    source = a_source(ONE)
    fs, root = fsspec.core.url_to_fs(raw)
    assert identity(source) is None
    write(raw, {"a": b"1", "b": b"2"})
    first = identity(source)
    assert first == identity(source)
    write(raw, {"_SUCCESS": b"", ".a.crc": b"?"})
    assert identity(source) == first, "they are no data"
    write(raw, {"c": b""})
    added = identity(source)
    fs.rm(f"{root}/orders/dt=2013-03-01/c")
    assert identity(source) == first
    write(raw, {"a": b"3"})
    changed = identity(source)
    write(raw, {"a": b"2", "b": b"1"})
    assert len({first, added, changed, identity(source)}) == 4


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"marker": "_SUCCESS"}, [({"a": b"1"}, "1 parts, and no _SUCCESS"), ({"_SUCCESS": b""}, "")]),
        ({"part_count": 2}, [({"a": b"1", "_SUCCESS": b""}, "1 of 2 parts"), ({"b": b"1"}, "")]),
        ({}, [({".a": b"1"}, "missing"), ({"a": b"1"}, "")]),
    ],
)
def test_what_is_incomplete_is_missing(raw: str, options: dict[str, Any], steps: list[tuple[Parts, str]]) -> None:
    source = a_source(ONE, options)
    delivery = RawFile.from_source(source, PERIOD)
    assert raw_files.missing_fault(delivery).problem == "missing"
    for parts, problem in steps:
        write(raw, parts)
        assert raw_files.is_delivered(delivery) == (not problem)
        assert not problem or problem in str(raw_files.missing_fault(delivery))


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def steps_to_announce(raw: str, tmp_path: Path, source: RawSource, *writes: Parts) -> list[int]:
    """Write parts, one set a second; return the seconds at which the day was announced."""
    clock, announced = Clock(), []
    watcher = RawDataWatcher(
        raw, {"orders": WatchedSource.from_source(source)}, AnnouncementStore(tmp_path / "records"), clock=clock
    )
    for second in range(30):
        if second < len(writes):
            write(raw, writes[second])
        if watcher.poll():
            announced.append(second)
        clock.now += timedelta(seconds=1)
    return announced


WAITS: dict[str, tuple[dict[str, Any], list[Parts], list[int]]] = {
    "a quiet folder": ({"format": "csv"}, [{"a": b"1"}, {}, {"b": b"2"}, {"a": b"12"}], [13]),
    "a quiet folder, declared": ({"format": "csv", "quiet_seconds": 4}, [{"a": b"1"}, {"b": b"2"}], [5]),
    "a part that comes later": ({"format": "csv", "quiet_seconds": 1}, [{"a": b"1"}, {}, {}, {"b": b"2"}], [1, 4]),
    "a marker": ({"format": "csv", "marker": "_SUCCESS"}, [{"a": b"1"}, {"b": b"2"}, {"_SUCCESS": b""}], [2]),
    "a marker without parts": ({"marker": "_SUCCESS"}, [{}, {"_SUCCESS": b""}], [1]),
    "a part after the marker": (
        {"format": "csv", "marker": "_SUCCESS"},
        [{"a": b"1", "_SUCCESS": b""}, {"b": b"2"}],
        [0, 1],
    ),
    "a number of parts": ({"format": "csv", "part_count": 2}, [{"a": b"1"}] + [{}] * 5 + [{"b": b"2"}], [8]),
    "a part of Parquet that is cut off": (
        {"marker": "_SUCCESS"},
        [{"a": parquet(x=[1]), "b": b"PAR1 half", "_SUCCESS": b""}, {}, {"b": parquet(x=[1])}],
        [2],
    ),
    "a temporary file": ({"format": "csv", "quiet_seconds": 1}, [{".a.tmp": b"1"}, {"_tmp/a": b"1"}], []),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_delivery_is_announced_when_it_is_complete(raw: str, tmp_path: Path, name: str) -> None:
    options, writes, seconds = WAITS[name]
    assert steps_to_announce(raw, tmp_path, a_source(ONE, options), *writes) == seconds


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder link", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, home: Path, kind: str) -> None:
    folder = settings().lake / "raw/orders/dt=2013-03-01"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(parquet(x=[1]))
    if kind == "pipe":
        os.mkfifo(folder / "b")
    else:
        targets = {"link": folder / "a", "dangling link": tmp_path / "gone", "folder link": folder}
        (folder / "b").symlink_to(targets[kind])
    (fault,) = read(a_source(ONE), tmp_path).faults
    assert fault.location.endswith("dt=2013-03-01/b")
    assert "it is a link, a pipe or a device" in fault.problem


@pytest.mark.parametrize("change", ["gone", "replaced", "added"])
def test_a_delivery_that_changes_while_it_is_read(
    raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Nothing of it is kept, and no fault is recorded of what is not there any more."""
    write(raw, {"a": b"x\n1\n", "b": b"x\n2\n"})
    fs, root = fsspec.core.url_to_fs(raw)
    source, open_part = a_source(ONE, {"format": "csv"}), declared_files.open_part

    def open_and_change(*args: Any) -> Any:
        if args[2].name == "a":
            if change == "gone":
                fs.rm(f"{root}/orders/dt=2013-03-01/b")
            else:
                write(raw, {"b" if change == "replaced" else "c": b"x\n0.7\n"})
        return open_part(*args)

    monkeypatch.setattr(declared_files, "open_part", open_and_change)
    declared = read(source, tmp_path)
    assert declared.has_changed
    assert "changed while it was read" in declared.faults[0].problem
    assert not list((tmp_path / "copies").rglob("*.parquet"))


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_memory_does_not_grow_with_compressed_rows(tmp_path: Path, name: str) -> None:
    code = """
import resource, sys
from pathlib import Path
from evergreen.ingest.declared_files import read_as_declared
from evergreen.ingest.raw_files import RawFile, hash_raw_files
from evergreen.ingest.watcher import RawDataWatcher, WatchedSource, list_complete_periods
from evergreen.lake.datasets import Dataset
from evergreen.spec.model import RawSource
files = dict(path="%Y-%m-%d.gz", format=sys.argv[1])
source = RawSource(name="orders", columns=dict(x="int64", y="string"), files=files)
for day in (1, 2):
    file = RawFile.from_source(source, f"2013-03-0{day}")
    declared = read_as_declared(source, file, hash_raw_files([file])[file], Dataset(Path("copies")))
    print(declared.rows, len(declared.faults), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    row, head = ("{0},text {0}\n", "x,y\n") if name == "csv" else ('{{"x": {0}, "y": "text {0}"}}\n', "")
    for day, rows in ((1, 130_000), (2, 600_000)):
        with gzip.open(tmp_path / f"2013-03-0{day}.gz", "wt", compresslevel=1) as file:
            file.write(head)
            file.writelines(row.format(number) for number in range(rows))
    environment = os.environ | {"EVERGREEN_RAW": str(tmp_path), "EVERGREEN_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, name]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    (few, _, small), (many, _, large) = (map(int, line.split()) for line in output.splitlines())
    assert (few, many) == (130_000, 600_000)
    assert large - small < 30, f"{small} and {large} MiB"
