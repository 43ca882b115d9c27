"""Rows that are the same give a file that is the same, whatever their types and the order and pieces they come in."""

from __future__ import annotations

import io
import math
import struct
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.features import row_order
from evergreen.features.row_order import order_rows, read_batches, write_ordered

pytestmark = pytest.mark.unit


def file_of(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def written_file(tables: list[pa.Table], folder: Path, run_bytes: int = 2**25, group_rows: int = 2**16) -> bytes:
    """Return the file that is written if runs have `run_bytes`, and row groups `group_rows`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_order, "_RUN_BYTES", run_bytes)
        patch.setattr(row_order, "ROW_GROUP_ROWS", group_rows)
        patch.setattr(row_order, "_MERGED_BYTES", run_bytes)
        write_ordered(folder / "rows.parquet", tables, folder)
    assert [path.name for path in folder.iterdir()] == ["rows.parquet"], "nothing else is left"
    return (folder / "rows.parquet").read_bytes()


def bits(pattern: int) -> float:
    return struct.unpack(">d", struct.pack(">Q", pattern))[0]  # type: ignore[no-any-return]


QUIET_NAN, OTHER_NAN, NEGATIVE_NAN = (bits(n) for n in (0x7FF8 << 48, (0x7FF8 << 48) + 7, 0xFFF8 << 48))

NUMBERS = st.none() | st.floats() | st.sampled_from([0.0, -0.0, QUIET_NAN, OTHER_NAN, NEGATIVE_NAN])
# Few values, so that rows share them and the last column decides.
FEW_INTEGERS = st.none() | st.integers(-2, 2)
FEW_TEXTS = st.none() | st.sampled_from(["", "a", "b", "é", "a\x00"])
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "null": (pa.null(), st.none()),
    "bool": (pa.bool_(), st.none() | st.booleans()),
    "int8": (pa.int8(), FEW_INTEGERS),
    "int64": (pa.int64(), st.none() | st.sampled_from([2**63 - 1, 2**63 - 2, -(2**63), 0])),
    "uint64": (pa.uint64(), st.none() | st.sampled_from([2**64 - 1, 2**63, 0])),
    "half": (pa.float16(), st.none() | st.sampled_from([np.float16(x) for x in (0.0, -0.0, 1.5, math.inf, math.nan)])),
    "float": (pa.float32(), st.none() | st.floats(width=32) | st.sampled_from([0.0, -0.0])),
    "double": (pa.float64(), NUMBERS),
    "decimal": (pa.decimal128(38, 2), st.none() | st.sampled_from([Decimal("1.10"), Decimal("-1.10"), Decimal(0)])),
    "text": (pa.string(), FEW_TEXTS),
    "large text": (pa.large_string(), FEW_TEXTS),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), FEW_TEXTS),
    "bytes": (pa.binary(), st.none() | st.sampled_from([b"", b"\x00", b"\xff", b"a"])),
    "fixed bytes": (pa.binary(2), st.none() | st.sampled_from([b"\x00\x00", b"ab"])),
    "date": (pa.date32(), st.none() | st.sampled_from([date(2013, 1, 1), date(1913, 1, 1)])),
    "instant": (pa.timestamp("us", "UTC"), st.none() | st.sampled_from([datetime(2013, 1, n) for n in (1, 2)])),
    "duration": (pa.duration("us"), st.none() | st.sampled_from([timedelta(1), timedelta(-1)])),
    "list of doubles": (pa.list_(pa.float64()), st.none() | st.lists(NUMBERS, max_size=3)),
    "large list": (pa.large_list(pa.int8()), st.none() | st.lists(FEW_INTEGERS, max_size=3)),
    "fixed list": (pa.list_(pa.int8(), 2), st.none() | st.tuples(FEW_INTEGERS, FEW_INTEGERS).map(list)),
    "list of lists": (
        pa.list_(pa.list_(pa.string())),
        st.none() | st.lists(st.none() | st.lists(FEW_TEXTS, max_size=2), max_size=2),
    ),
    "struct": (
        pa.struct([("a", pa.float64()), ("b", pa.list_(pa.int8()))]),
        st.none() | st.fixed_dictionaries({"a": NUMBERS, "b": st.none() | st.lists(FEW_INTEGERS, max_size=2)}),
    ),
    "map": (
        pa.map_(pa.string(), pa.int8()),
        st.none() | st.lists(st.tuples(st.sampled_from(["a", "b"]), FEW_INTEGERS), max_size=2),
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    names = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=4))
    rows = draw(st.integers(0, 8))
    arrays = []
    for name in names:
        kind, values = TYPES[name]
        arrays.append(pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), kind))
    return pa.table(arrays, [f"{number} {name}" for number, name in enumerate(names)])


@settings(max_examples=400, deadline=None)
@given(tables(), st.randoms(use_true_random=False), st.data())
def test_same_rows_give_same_bytes(table: pa.Table, luck: Any, data: st.DataObject) -> None:
    order = list(range(table.num_rows))
    luck.shuffle(order)
    cut = data.draw(st.integers(0, table.num_rows))
    shuffled = table.take(pa.array(order, pa.int64()))
    pieces = pa.concat_tables([shuffled.slice(0, cut), shuffled.slice(cut)])
    result = order_rows(pieces)
    assert file_of(result) == file_of(order_rows(table))
    assert sorted(map(repr, result.to_pylist())) == sorted(map(repr, table.to_pylist())), "the same rows"
    plain = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in table.schema]
    assert (result.schema.names, result.schema.types) == (table.schema.names, plain)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=200, deadline=None)
@given(tables(), st.randoms(use_true_random=False), st.data())
def test_rows_are_in_the_same_order_on_disk_as_in_memory(
    scratch: Path, table: pa.Table, luck: Any, data: st.DataObject
) -> None:
    order = list(range(table.num_rows))
    luck.shuffle(order)
    shuffled = table.take(pa.array(order, pa.int64()))
    cuts = [0, *sorted(data.draw(st.sets(st.integers(0, table.num_rows)))), table.num_rows]
    pieces = [shuffled.slice(start, end - start) for start, end in pairwise(cuts)]
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, order_rows(table).schema) as writer:
        for start in range(0, max(1, table.num_rows), 4):
            writer.write_table(order_rows(table).slice(start, 4).combine_chunks())
    assert written_file([table], scratch, group_rows=4) == sink.getvalue()
    assert written_file(pieces, scratch, run_bytes=1, group_rows=4) == sink.getvalue()


@pytest.mark.parametrize("name", TYPES)
def test_a_column_of_each_type_decides(name: str) -> None:
    """Every type takes part in the order: rows that differ there alone are not left as they come."""
    kind, values = TYPES[name]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(values, max_size=6), st.randoms(use_true_random=False))
    def check(items: list[Any], luck: Any) -> None:
        table = pa.table({"same": [1] * len(items), "decides": pa.array(items, kind)})
        luck.shuffle(items)
        other = pa.table({"same": [1] * len(items), "decides": pa.array(items, kind)})
        assert file_of(order_rows(other)) == file_of(order_rows(table))

    check()


@pytest.mark.parametrize(
    "ordered",
    [
        pa.array([NEGATIVE_NAN, -math.inf, -1.0, -0.0, 0.0, 5e-324, 1.0, math.inf, QUIET_NAN, OTHER_NAN, None]),
        pa.array([-math.inf, -1.5, -0.0, 0.0, 1.5, math.inf, math.nan, None], pa.float32()),
        pa.array([False, True, None]),
        pa.array(["", "B", "a", "aa", "é", None]),
        pa.array([b"", b"\x00", b"a", b"\xff", None]),
        pa.array([-(2**63), -1, 0, 2**63 - 1, None]),
        pa.array([[], [-1.0], [-1.0, 2.0], [-0.0], [0.0], [None], None], pa.list_(pa.float64())),
        pa.array([{"a": 1, "b": 2}, {"a": 1, "b": None}, {"a": 2, "b": 0}, {"a": None, "b": None}, None]),
        pa.array([[], [("a", 1)], [("a", 2)], [("b", 0)], None], pa.map_(pa.string(), pa.int8())),
    ],
    ids=lambda array: str(array.type),
)
def test_values_are_in_the_order_of_the_definition(ordered: pa.Array) -> None:
    table = pa.table({"x": ordered})
    result = order_rows(table.take(list(reversed(range(len(ordered))))))
    assert file_of(result) == file_of(table.combine_chunks())


def test_the_first_columns_decide_first() -> None:
    table = pa.table({"key": [2, 1, 1], "at": ["a", "b", "a"], "value": [0.1, 0.2, 0.3]})
    assert order_rows(table).to_pydict() == {"key": [1, 1, 2], "at": ["a", "b", "a"], "value": [0.3, 0.2, 0.1]}


def test_a_table_without_rows_or_columns_stays() -> None:
    empty = pa.table({"a": pa.array([], pa.list_(pa.int8())), "b": pa.array([], pa.float16())})
    assert order_rows(empty) == empty
    assert order_rows(pa.table({})) == pa.table({})


def test_files_are_the_same_however_their_rows_are_divided(tmp_path: Path) -> None:
    """With many runs of many blocks, most of them of one key, and names that are hard to tell apart."""
    rows, numbers = 20_001, np.random.default_rng(2013)
    key = np.where(numbers.random(rows) < 0.9, 7, numbers.integers(0, 1000, rows))
    table = pa.table(
        {
            "key": pa.array(key, mask=numbers.random(rows) < 0.01),
            "Key": np.char.add("text ", numbers.integers(0, 5, rows).astype(str)),
            "a.b": numbers.integers(-2, 3, rows) * 0.0,  # of two signs
            "a": numbers.random(rows).round(2),
            'a"\n': numbers.integers(0, 2, rows),
        }
    )
    contents = set()
    for parts, run_bytes in ((1, 2**25), (1, 2**17), (7, 2**15)):
        shuffled = table.take(numbers.permutation(rows))
        ends = [number * rows // parts for number in range(parts + 1)]
        files = [tmp_path / f"{start}-{end}.parquet" for start, end in pairwise(ends)]
        for file, (start, end) in zip(files, pairwise(ends), strict=True):
            pq.write_table(shuffled.slice(start, end - start), file)
        (tmp_path / "out").mkdir(exist_ok=True)
        contents.add(written_file([*read_batches(files, table.column_names)], tmp_path / "out", run_bytes, 6_000))
    assert len(contents) == 1
    with pq.ParquetFile(io.BytesIO(contents.pop())) as ordered:
        groups = [ordered.metadata.row_group(number).num_rows for number in range(ordered.num_row_groups)]
        assert groups == [6_000] * 3 + [2_001]
        assert ordered.read().equals(order_rows(table))


def test_columns_are_read_by_their_whole_names(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.b": [1], "a": [2], "A": [3]}), tmp_path / "rows.parquet")
    for columns in (["a"], ["A", "a.b"], ["a.b"]):
        assert [table.column_names for table in read_batches([tmp_path / "rows.parquet"], columns)] == [columns] * 2
