"""The types of features and keys: one table, from Spark to the scorer. A type that is not in it is refused.

A value is never rounded, cut or turned into another kind on its way: a column becomes another type only if each of its
values stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evergreen.errors import Fault


class FeatureType(NamedTuple):
    """What a type of Feast is in each step."""

    arrow: str
    """In the lake and in training sets, as Parquet."""
    spark: str
    online: str
    """The field of Feast's message `Value`, in the online store."""
    xgboost: str
    onnx: str
    may_be_key: bool


_MISSING = "a number; null and NaN are missing"
_TENSOR = "`float`, null is NaN; or `int64`, if whole and without nulls"

SUPPORTED_TYPES: Mapping[str, FeatureType] = {
    "Bool": FeatureType("bool", "BOOLEAN", "bool_val", "0 or 1; null is missing", _TENSOR, may_be_key=False),
    "Int32": FeatureType("int32", "INT", "int32_val", _MISSING, _TENSOR, may_be_key=True),
    "Int64": FeatureType("int64", "BIGINT", "int64_val", _MISSING, _TENSOR, may_be_key=True),
    "Float32": FeatureType("float", "FLOAT", "float_val", _MISSING, _TENSOR, may_be_key=False),
    "Float64": FeatureType("double", "DOUBLE", "double_val", _MISSING, _TENSOR, may_be_key=False),
    "String": FeatureType("string", "STRING", "string_val", "refused", "`string`, null is empty", may_be_key=True),
}
"""By the name of the type in `feast.types`."""

_ONE_VALUE = "an input of a model is one value"
_SECONDS = "Feast's online store drops fractions of a second"
_BYTES = ("no model takes bytes", "declare String, or numbers")
_UUID = ("Feast returns another type than it was given", "declare String")

REFUSED_TYPES: Mapping[str, tuple[str, str]] = {
    "Array": (_ONE_VALUE, "declare a feature for each element"),
    "Set": (_ONE_VALUE, "declare a Bool for each element"),
    "Map": (_ONE_VALUE, "declare a feature for each key"),
    "ScalarMap": (_ONE_VALUE, "declare a feature for each key"),
    "Struct": (_ONE_VALUE, "declare a feature for each field"),
    "Json": (_ONE_VALUE, "declare a feature for each field"),
    "Decimal": ("Feast stores it as text", "declare Float64, or Int64 of the smallest unit"),
    "UnixTimestamp": (_SECONDS, "declare Int64 or Float64, such as an age in seconds"),
    "ZonedTimestamp": (_SECONDS, "declare Int64 or Float64, such as an age in seconds"),
    "Bytes": _BYTES,
    "PdfBytes": _BYTES,
    "ImageBytes": _BYTES,
    "Uuid": _UUID,
    "TimeUuid": _UUID,
    "Invalid": ("it is no type", "declare one: an Entity has it as value_type"),
}
"""Why, and what to declare, by the name of the type in `feast.types`."""

_WHOLE = frozenset(["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
_WHOLE_IN_DOUBLE = _WHOLE - {"int64"}
_TEXT = frozenset(["string", "large_string"])


def type_fault(location: str, feast_type: str, is_key: bool = False) -> Fault | None:
    """Return why a column cannot have a type of Feast, or None. `feast_type` is its text, such as `Array(Int64)`."""
    name = feast_type.partition("(")[0]
    if column_type := SUPPORTED_TYPES.get(feast_type):
        if is_key and not column_type.may_be_key:
            names = ", ".join(name for name, supported in SUPPORTED_TYPES.items() if supported.may_be_key)
            return Fault(location, f"is a key of type {feast_type}", f"declare one of {names}")
        return None
    unknown = ("Evergreen does not know it", f"declare one of {', '.join(SUPPORTED_TYPES)}")
    problem, fix = REFUSED_TYPES.get(name, unknown)
    return Fault(location, f"has type {feast_type}: {problem}", fix)


def common_type_problem(types: Iterable[str]) -> str | None:
    """Return why a column of several files, with these Arrow types, cannot be read as one column, or None.

    DuckDB reads it as the smallest type that holds all of them. Only where it does is there none.
    """
    names = {"string" if name.startswith("dictionary<values=string") else name for name in types} - {"null"}
    is_exact = (
        len(names) < 2
        or names <= _TEXT
        or names <= _WHOLE
        or ("double" in names and names <= _WHOLE_IN_DOUBLE | {"float", "double"})
    )
    return None if is_exact else f"has the types {', '.join(sorted(names))} in its files"


def cast_columns(table: pa.Table, types: Mapping[str, str]) -> tuple[pa.Table, dict[str, str]]:
    """Return the table with the Arrow types that `types` names, and the problem of each column that cannot have its.

    Such a column is unchanged.
    """
    problems = {}
    for position, name in enumerate(table.column_names):
        if name in types:
            column, problem = cast_column(table.column(position), pa.type_for_alias(types[name]))
            if problem:
                problems[name] = problem
            else:
                table = table.set_column(position, name, column)
    return table, problems


def find_cast_problems(tables: Iterable[pa.Table], types: Mapping[str, str]) -> dict[str, str]:
    """Return the problems that `cast_columns` has with the rows of all `tables`, which are read one by one."""
    casts: dict[str, ColumnCast] = {}
    for table in tables:
        for name in table.column_names:
            if name in types:
                casts.setdefault(name, ColumnCast(pa.type_for_alias(types[name]))).add(table[name])
    return {name: cast.problem for name, cast in casts.items() if cast.problem}


def cast_column(column: pa.ChunkedArray, target: pa.DataType) -> tuple[pa.ChunkedArray, str | None]:
    """Return the column as `target`, and what is wrong if one of its values would not stay what it is.

    `target` is a type of the table. Text, booleans and numbers are three kinds, and none becomes another. NaN is no
    whole number.
    """
    cast = ColumnCast(target)
    return cast.add(column), cast.problem


class ColumnCast:
    """`cast_column` of a column whose rows come in parts, of one type."""

    def __init__(self, target: pa.DataType):
        self._target = target
        self._rows = self._lost_rows = 0
        self._mismatch, self._example = "", ""

    def add(self, part: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the next rows as the target, or as they are if it is of another kind."""
        if pa.types.is_dictionary(part.type):
            part = part.cast(part.type.value_type)
        source, target = part.type, self._target
        self._rows += len(part)
        if source == target or pa.types.is_null(source):
            return part.cast(target)
        if _kind(source) != _kind(target) or _kind(source) is None:
            self._mismatch = f"is {source}, declared {target}"
            return part
        if _kind(source) == "text":
            return part.cast(target)
        cast_values = _cast_decimals if pa.types.is_decimal(source) else _cast_numbers
        result, is_kept = cast_values(part, target)
        if lost := pc.sum(pc.invert(is_kept).fill_null(False)).as_py():
            self._mismatch = f"is {source}, declared {target}"
            self._example = self._example or str(part.filter(pc.invert(is_kept))[0].as_py())
            self._lost_rows += lost
        return result

    @property
    def problem(self) -> str | None:
        """What is wrong if one of the values so far would not stay what it is."""
        change = f", and {self._lost_rows:,} of {self._rows:,} values would change, such as {self._example}"
        return f"{self._mismatch}{change if self._lost_rows else ''}" if self._mismatch else None


def is_model_input(arrow_type: pa.DataType) -> bool:
    """Return whether trainer and scorer read a column of this type alike: a boolean, an integer, a float or text."""
    return _kind(arrow_type) is not None and not pa.types.is_decimal(arrow_type)


def _kind(arrow_type: pa.DataType) -> str | None:
    if pa.types.is_boolean(arrow_type):
        return "boolean"
    if pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type):
        return "number"
    return "text" if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) else None


def _cast_numbers(column: pa.ChunkedArray, target: pa.DataType) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return the column as `target`, and which values are kept: those that come back from it as they were."""
    source = column.type
    result = column.cast(target, safe=False)
    is_kept = pc.equal(result.cast(source, safe=False), column)
    if pa.types.is_floating(source) and pa.types.is_floating(target):
        return result, pc.or_(is_kept, pc.is_nan(column))
    if pa.types.is_unsigned_integer(source):
        is_kept = pc.and_(is_kept, pc.greater_equal(result, 0))  # half of them wrap to negative numbers, and back
    for whole, floats in ((target, column), (source, result)):
        # A float beyond an integer's range has no defined cast, and may come back as it was.
        if pa.types.is_integer(whole) and pa.types.is_floating(floats.type):
            limit = 2.0 ** (whole.bit_width - pa.types.is_signed_integer(whole))
            is_kept = pc.and_(is_kept, pc.less(floats.cast(pa.float64()), limit))
    return result, is_kept


def _cast_decimals(column: pa.ChunkedArray, target: pa.DataType) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return the column as `target`, and which values are kept: by a float, if it is written as the decimal is."""
    distinct = column.unique().drop_null()
    numbers = [_as_number(value, target) for value in distinct.to_pylist()]
    exact = distinct.filter(pa.array([number is not None for number in numbers], pa.bool_()))
    result = pa.array(numbers, target).take(pc.index_in(column, value_set=distinct))
    return result, pc.or_(pc.is_in(column, value_set=exact), pc.is_null(column))


def _as_number(value: Decimal, target: pa.DataType) -> float | int | None:
    """Return a decimal as `target`, or None if it would change."""
    if pa.types.is_integer(target):
        limit = 2 ** (target.bit_width - 1)
        return int(value) if value == int(value) and -limit <= value < limit else None
    number = np.float32(value) if pa.types.is_float32(target) else np.float64(value)
    return float(number) if Decimal(str(number)) == value else None
