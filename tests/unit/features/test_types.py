"""A column becomes another type only if each of its values stays what it is; no type of Feast is left open."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import feast.types
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evergreen.features.types import (
    REFUSED_TYPES,
    SUPPORTED_TYPES,
    cast_column,
    cast_columns,
    common_type_problem,
    find_cast_problems,
    is_model_input,
    type_fault,
)

pytestmark = pytest.mark.unit

WHOLE = {
    pa_type(): st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for pa_type, bits in ((pa.int8, 8), (pa.int16, 16), (pa.int32, 32), (pa.int64, 64))
} | {
    pa_type(): st.integers(0, 2**bits - 1)
    for pa_type, bits in ((pa.uint8, 8), (pa.uint16, 16), (pa.uint32, 32), (pa.uint64, 64))
}
EDGES = st.sampled_from(
    [float(sign * (2**power + step)) for sign in (1, -1) for power in (24, 31, 53, 63) for step in (0, 1)]
)
NUMBERS = WHOLE | {
    pa.float32(): st.floats(width=32) | st.integers(-(2**24), 2**24).map(float),
    pa.float64(): st.floats() | EDGES | st.integers(-(2**53), 2**53).map(float),
    pa.decimal128(12, 3): st.decimals(-(10**8), 10**8, places=3),
    pa.decimal128(30, 12): st.decimals(-(10**8), 10**8, places=12),
}
TARGETS = [pa.type_for_alias(supported.arrow) for supported in SUPPORTED_TYPES.values()]
KINDS = {"text": {pa.string(), pa.large_string()}, "boolean": {pa.bool_()}, "number": set(NUMBERS)}
SAMPLES: dict[pa.DataType, Any] = {
    **{number: [1, None] for number in WHOLE},
    pa.float32(): [0.5, None],
    pa.float64(): [0.5, None],
    pa.decimal128(12, 3): [Decimal("0.500"), None],
    pa.decimal128(30, 12): [Decimal("0.500000000000"), None],
    pa.bool_(): [True, None],
    pa.string(): ["1", None],
    pa.large_string(): ["1", None],
    pa.timestamp("us", "UTC"): [0, None],
    pa.date32(): [0, None],
    pa.list_(pa.int64()): [[1], None],
    pa.binary(): [b"1", None],
}


def chunked(values: list[Any], arrow_type: pa.DataType) -> pa.ChunkedArray:
    """Return the values in two chunks."""
    middle = len(values) // 2
    return pa.chunked_array([values[:middle], values[middle:]], arrow_type)


def is_exact(value: Any, target: pa.DataType) -> bool:
    """Return whether a number is one of `target`'s, by the arithmetic of fractions."""
    if value is None:
        return True
    if not math.isfinite(value):
        return pa.types.is_floating(target)
    if pa.types.is_integer(target):
        return Fraction(value).denominator == 1 and -(2 ** (target.bit_width - 1)) <= value < 2 ** (
            target.bit_width - 1
        )
    number = pa.scalar(float(value), pa.float64()).cast(target, safe=False).as_py()
    return math.isfinite(number) and Fraction(number) == Fraction(value)


def same(left: Any, right: Any) -> bool:
    return left == right or (left != left and right != right)


@settings(max_examples=30)  # of each pair of types
@given(data=st.data())
@pytest.mark.parametrize("target", [target for target in TARGETS if target in NUMBERS], ids=str)
@pytest.mark.parametrize("source", [source for source in NUMBERS if not pa.types.is_decimal(source)], ids=str)
def test_numbers_are_cast_exactly_or_refused(source: pa.DataType, target: pa.DataType, data: st.DataObject) -> None:
    column = chunked(data.draw(st.lists(st.none() | NUMBERS[source], max_size=8)), source)
    result, problem = cast_column(column, target)
    lost = [value for value in column.to_pylist() if not is_exact(value, target)]
    if lost:
        assert problem is not None
        assert f"{len(lost)} of {len(column)} values would change, such as {lost[0]}" in problem
    else:
        assert problem is None
        assert result.type == target
        assert all(map(same, result.to_pylist(), column.to_pylist()))


@given(values=st.lists(st.none() | NUMBERS[pa.decimal128(12, 3)], max_size=8))
def test_decimals_of_fifteen_digits_are_floats(values: list[Decimal | None]) -> None:
    result, problem = cast_column(chunked(values, pa.decimal128(12, 3)), pa.float64())
    assert problem is None
    written = [None if value is None else Decimal(repr(value)) for value in result.to_pylist()]
    assert written == values


@given(values=st.lists(st.none() | st.decimals(-(10**17), 10**17, places=12), max_size=8))
@example(values=[Decimal("12345678901234567.890000000000"), None])
def test_longer_decimals_are_refused_where_they_change(values: list[Decimal | None]) -> None:
    column = chunked(values, pa.decimal128(30, 12))
    _, problem = cast_column(column, pa.float64())
    changed = [value for value in values if value is not None and Decimal(repr(float(value))) != value]
    assert (problem is None) == (not changed)
    assert not changed or f"{len(changed)} of {len(values)} values would change, such as {changed[0]}" in str(problem)


@given(values=st.lists(st.none() | st.decimals(-(10**11), 10**11, places=1), max_size=8))
def test_decimals_are_integers_if_they_are_whole(values: list[Decimal | None]) -> None:
    column = chunked(values, pa.decimal128(14, 1))
    for target in (pa.int32(), pa.int64()):
        result, problem = cast_column(column, target)
        assert (problem is None) == all(is_exact(value, target) for value in values)
        assert problem or result.to_pylist() == values


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("source", SAMPLES, ids=str)
def test_no_kind_becomes_another(source: pa.DataType, target: pa.DataType) -> None:
    column = chunked(SAMPLES[source], source)
    result, problem = cast_column(column, target)
    if any(source in kind and target in kind for kind in KINDS.values()):
        assert problem is None or "values would change" in problem
    else:
        assert problem == f"is {source}, declared {target}"
        assert result.equals(column)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_column_without_values_has_any_type(target: pa.DataType) -> None:
    for column in (pa.chunked_array([pa.nulls(3)]), pa.chunked_array([], target), chunked([], pa.null())):
        result, problem = cast_column(column, target)
        assert (result.type, len(result), problem) == (target, len(column), None)


def test_dictionaries_become_their_values() -> None:
    column = pa.chunked_array([pa.array(["b", None, "a", "b"]).dictionary_encode()])
    result, problem = cast_column(column, pa.string())
    assert (result.to_pylist(), problem) == (["b", None, "a", "b"], None)


def test_columns_that_would_change_stay_as_they_are() -> None:
    table = pa.table({"age": [1.0, None], "share": [0.7, None], "note": ["a", "b"]})
    result, problems = cast_columns(table, {"age": "int32", "share": "int32", "absent": "int64"})
    assert [str(type_) for type_ in result.schema.types] == ["int32", "double", "string"]
    assert problems == {"share": "is double, declared int32, and 1 of 2 values would change, such as 0.7"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_problems_are_the_same_in_pieces_as_in_the_whole(data: st.DataObject) -> None:
    sources = data.draw(st.lists(st.sampled_from(list(NUMBERS)), min_size=1, max_size=3))
    rows = data.draw(st.integers(0, 6))
    columns = [data.draw(st.lists(st.none() | NUMBERS[kind], min_size=rows, max_size=rows)) for kind in sources]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, sources, strict=True)]
    table = pa.table(arrays, [str(number) for number in range(len(sources))])
    types = {name: data.draw(st.sampled_from(["int32", "int64", "float", "double", "string"])) for name in ("0", "1")}
    cut = data.draw(st.integers(0, rows))
    pieces = [table.slice(0, 0), table.slice(0, cut), table.slice(cut)]
    assert find_cast_problems(iter(pieces), types) == cast_columns(table, types)[1]


FILE_COLUMNS = {
    "null": pa.nulls(2),
    "bool": pa.array([True, None]),
    "int8": pa.array([-128, None], pa.int8()),
    "int32": pa.array([2**31 - 1, None], pa.int32()),
    "int64": pa.array([2**53 + 1, None], pa.int64()),
    "uint32": pa.array([2**32 - 1, None], pa.uint32()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "float": pa.array([0.1, None], pa.float32()),
    "double": pa.array([0.7, None], pa.float64()),
    "decimal128(12, 3)": pa.array([Decimal("0.125"), None], pa.decimal128(12, 3)),
    "decimal128(12, 1)": pa.array([Decimal("0.5"), None], pa.decimal128(12, 1)),
    "string": pa.array(["1", None]),
    "large_string": pa.array(["1", None], pa.large_string()),
}
MIXES = [mix for size in (1, 2, 3) for mix in combinations(FILE_COLUMNS, size)]


def test_files_of_several_types_are_read_exactly_or_refused(tmp_path: Path) -> None:
    accepted = 0
    for name, column in FILE_COLUMNS.items():
        pq.write_table(pa.table({"value": column}), tmp_path / f"{name}.parquet")
    with duckdb.connect() as con:
        for mix in MIXES:
            if problem := common_type_problem(mix):
                assert all(name in problem for name in mix if name != "null")
                continue
            accepted += 1
            files = ", ".join(f"'{tmp_path}/{name}.parquet'" for name in mix)
            rows = (
                f"FROM read_parquet([{files}], union_by_name = true) SELECT value ORDER BY file_index, file_row_number"
            )
            values = con.sql(rows).to_arrow_table()["value"].to_pylist()
            assert values == [value for name in mix for value in FILE_COLUMNS[name].to_pylist()], mix
    assert accepted > len(FILE_COLUMNS) * 2


def test_every_type_of_feast_is_supported_or_refused() -> None:
    primitive = set(feast.types.PRIMITIVE_FEAST_TYPES_TO_STRING.values())
    assert primitive | {"Array", "Set", "Struct"} == {*SUPPORTED_TYPES, *REFUSED_TYPES}
    for name, supported in SUPPORTED_TYPES.items():
        arrow = feast.types.from_feast_to_pyarrow_type(getattr(feast.types, name))
        assert str(arrow) == supported.arrow
        assert type_fault("a", name) is None
        assert (type_fault("a", name, is_key=True) is None) == supported.may_be_key
        assert is_model_input(arrow)
    for name in REFUSED_TYPES:
        fault = type_fault("view.column", f"{name}(Int64)" if name in ("Array", "Set") else name)
        assert fault is not None
        assert fault.location == "view.column"
        assert fault.problem.startswith(f"has type {name}")
        assert fault.fix.startswith("declare")
    assert not any(map(is_model_input, (pa.decimal128(9, 2), pa.timestamp("us"), pa.list_(pa.int64()), pa.date32())))
