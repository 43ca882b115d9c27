"""Convert values to a declared type where nothing is lost, and find those that would lose something."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from evergreen.spec.columns import DECIMAL_TYPE, LIST_TYPE

_TYPES = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date32": pa.date32(),
    "timestamp[us]": pa.timestamp("us"),
    "timestamp[us, tz=UTC]": pa.timestamp("us", "UTC"),
}
MAX_PRECISION = 38  # of the decimals that can be declared
_WIDE_PRECISION = 76  # holds every integer and every decimal of 38 digits at any scale
_DECIMAL_CONTEXT_DIGITS = 200


def arrow_type(name: str) -> pa.DataType:
    """Return the type that `spec.columns` names."""
    if decimal := DECIMAL_TYPE.fullmatch(name):
        return pa.decimal128(int(decimal["precision"]), int(decimal["scale"]))
    if element := LIST_TYPE.fullmatch(name):
        return pa.list_(arrow_type(element["element"]))
    return _TYPES[name]


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a Parquet file of `kind` has for readers that do not know Arrow.

    What only Arrow tells apart is one type there: dictionaries and large strings, the names of time zones.
    """
    if pat.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pat.is_large_string(kind) or pat.is_string_view(kind):
        return pa.string()
    if pat.is_large_binary(kind) or pat.is_binary_view(kind):
        return pa.binary()
    if pat.is_decimal(kind) and kind.precision <= MAX_PRECISION:
        return pa.decimal128(kind.precision, kind.scale)
    if pat.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    if _is_list(kind):
        return pa.list_(stored_type(kind.value_type))
    return kind


def is_convertible(stored: pa.DataType, declared: pa.DataType) -> bool:
    """Whether values of a stored type can mean what the declared type says, if each of them fits."""
    if pat.is_null(stored):
        return True
    if _is_list(declared):
        return _is_list(stored) and is_convertible(stored.value_type, declared.value_type)
    if _is_number(stored) and _is_number(declared):
        # A decimal and a float differ in nearly every value.
        return not {pat.is_decimal, pat.is_floating} <= {k for k in _NUMBERS if k(stored) or k(declared)}
    if pat.is_date(declared):
        return pat.is_date(stored) or _is_clock_time(stored)
    if pat.is_timestamp(declared) and declared.tz is None:
        return pat.is_date(stored) or _is_clock_time(stored)
    if pat.is_timestamp(declared):
        return pat.is_timestamp(stored) and stored.tz is not None
    if pat.is_string(declared):
        return pat.is_string(stored) or pat.is_binary(stored)  # some writers call text binary
    if pat.is_binary(declared):
        return pat.is_binary(stored) or pat.is_fixed_size_binary(stored)
    return stored == declared


def convert_values(values: pa.Array, declared: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """Return `values` with the declared type, and those of them that it cannot hold.

    If there are any of these, the converted values mean nothing.
    """
    if pat.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.null_count == len(values):
        return pa.nulls(len(values), declared), values.slice(0, 0)
    stored = stored_type(values.type)
    if not is_convertible(stored, declared):
        return pa.nulls(len(values), declared), values.drop_null()
    if _is_list(declared):
        return _convert_lists(values, declared)
    if pat.is_float16(stored):
        stored = pa.float32()
    if pat.is_fixed_size_binary(stored):
        stored = pa.binary()
    values = values.cast(stored)
    if stored == declared:
        return values, values.slice(0, 0)
    if pat.is_decimal(stored) or pat.is_decimal(declared) or pat.is_binary(stored):
        return _convert_checked(values, declared)
    converted = values.cast(declared, safe=False)
    lossy = pc.invert(pc.fill_null(_is_exact(values, converted), True))
    return converted, values.filter(lossy)


_NUMBERS = (pat.is_integer, pat.is_floating, pat.is_decimal)


def _is_number(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _NUMBERS)


def _is_list(kind: pa.DataType) -> bool:
    return pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind)


def _is_clock_time(kind: pa.DataType) -> bool:
    return bool(pat.is_timestamp(kind) and kind.tz is None)


def _convert_lists(values: pa.Array, declared: pa.DataType) -> tuple[pa.Array, pa.Array]:
    elements, lost = convert_values(pc.list_flatten(values), declared.value_type)
    lengths = pc.fill_null(pc.list_value_length(values), 0).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    return pa.ListArray.from_arrays(offsets, elements, type=declared, mask=values.is_null()), lost


def _is_exact(values: pa.Array, converted: pa.Array) -> pa.Array:
    """For each value, whether the conversion has kept it; null for nulls."""
    stored, declared = values.type, converted.type
    if pat.is_floating(stored) and pat.is_integer(declared):
        # Compared as floats: beyond the range of the integers, the result of the conversion is arbitrary.
        wide, limit = values.cast(pa.float64()), 2.0 ** (declared.bit_width - 1)
        inside = pc.and_(pc.greater_equal(wide, -limit), pc.less(wide, limit))
        return pc.and_(inside, pc.equal(pc.floor(wide), wide))
    if pat.is_integer(stored) and pat.is_floating(declared):
        limit = 2.0 ** (stored.bit_width - pat.is_signed_integer(stored))
        wide = converted.cast(pa.float64())
        inside = pc.less(wide, limit)
        back = pc.if_else(inside, wide, pa.scalar(0.0)).cast(stored, safe=False)
        return pc.and_(inside, pc.equal(back, values))
    exact = pc.equal(converted.cast(stored, safe=False), values)
    if pat.is_unsigned_integer(stored):
        return pc.and_(exact, pc.greater_equal(converted, pa.scalar(0, declared)))
    return pc.or_(exact, pc.is_nan(values)) if pat.is_floating(stored) else exact


def _convert_checked(values: pa.Array, declared: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """Convert decimals and text, whose conversion Arrow checks itself; it does not say which values it refuses."""
    try:
        wide = values
        if pat.is_decimal(declared):
            scale = max(declared.scale, values.type.scale if pat.is_decimal(values.type) else 0)
            wide = values.cast(pa.decimal256(_WIDE_PRECISION, scale))
        return wide.cast(declared), values.slice(0, 0)
    except pa.ArrowInvalid:
        lost = pa.array([value.is_valid and not _is_held(value.as_py(), declared) for value in values])
        return pa.nulls(len(values), declared), values.filter(lost)


def _is_held(value: Any, declared: pa.DataType) -> bool:
    if pat.is_string(declared):
        try:
            return bool(value.decode() is not None)
        except UnicodeDecodeError:
            return False
    with localcontext(prec=_DECIMAL_CONTEXT_DIGITS):
        number = Decimal(value)
        if pat.is_decimal(declared):
            return number == round(number, declared.scale) and abs(number) < Decimal(10) ** (
                declared.precision - declared.scale
            )
        limit = 2 ** (declared.bit_width - 1)
        return number == number.to_integral_value() and -limit <= number < limit
