"""Read text and Python values as declared types. What they cannot say exactly is returned, and never guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from evergreen.ingest.conversions import convert_values

# Python types of which Arrow itself refuses each value that a type cannot hold.
_PLAIN_KINDS: tuple[tuple[Callable[[pa.DataType], bool], set[type]], ...] = (
    (pat.is_boolean, {bool}),
    (pat.is_integer, {int}),
    (pat.is_float64, {float}),
    (pat.is_decimal, {Decimal, int}),
    (pat.is_string, {str}),
)

Rejections = list[tuple[int, Any]]
"""Values that the declared type cannot hold, each with its place among the values."""

_DATE = r"\d{4}-\d{2}-\d{2}"
_TIME = r"\d{2}:\d{2}(:\d{2}(\.\d{1,6}0*)?)?"
_ZONE = r"(Z|[+-]\d{2}(:?\d{2})?)"
_TRUE = ("true", "t", "1")
_FALSE = ("false", "f", "0")
_EXACT_INTEGER = {32: 2**24, 64: 2**53}  # up to which a float of so many bits holds all integers


def _pattern(declared: pa.DataType) -> str:
    """Return what text of a type looks like."""
    if pat.is_boolean(declared):
        return f"(?i:{'|'.join((*_TRUE, *_FALSE))})"
    if pat.is_integer(declared):
        return r"[+-]?\d+(\.0*)?"  # pandas writes 3.0 where other rows have no value
    if pat.is_floating(declared):
        return r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|(?i:nan|inf|infinity))"
    if pat.is_decimal(declared):
        return r"[+-]?(\d+(\.\d*)?|\.\d+)"
    if pat.is_date(declared):
        return _DATE
    return f"{_DATE}[T ]{_TIME}{_ZONE}" if declared.tz else f"{_DATE}([T ]{_TIME})?"


def parse_text(values: pa.Array, declared: pa.DataType) -> tuple[pa.Array, Rejections]:
    """Return text, as strings or bytes, as the declared type, and what is no text of this type.

    If there is any of it, the converted values mean nothing.
    """
    if not pat.is_string(values.type):
        text, lost = convert_values(values, pa.string())
        if len(lost):
            return pa.nulls(len(values), declared), _place(values, _is_unreadable)
        values = text
    if pat.is_string(declared):
        return values, []
    matches = pc.match_substring_regex(values, rf"\A(?:{_pattern(declared)})\z")
    rejections = [(int(place), values[int(place)].as_py()) for place in pc.indices_nonzero(pc.invert(matches))]
    candidates = pc.if_else(matches, values, pa.scalar(None, pa.string()))
    converted = _convert_pieces(candidates, lambda piece: _cast_text(piece, declared), declared)
    return converted[0], sorted(rejections + converted[1], key=lambda rejection: rejection[0])


def _cast_text(values: pa.Array, declared: pa.DataType) -> pa.Array:
    """Convert text of the right form.

    Raises:
        ValueError: values are beyond the type.
    """
    if pat.is_boolean(declared):
        is_true = pc.is_in(pc.utf8_lower(values), pa.array(_TRUE))
        return pc.if_else(values.is_valid(), is_true, pa.scalar(None, pa.bool_()))
    if pat.is_integer(declared):
        return pc.replace_substring_regex(values, r"^\+|\.0*$", "").cast(declared)
    if pat.is_decimal(declared):
        return pc.replace_substring_regex(values, r"^\+|\.$", "").cast(declared)
    if pat.is_floating(declared):
        return _cast_floats(pc.replace_substring_regex(values, r"^\+", ""), declared)
    if pat.is_timestamp(declared):
        values = pc.replace_substring_regex(values, r"(\.\d{6})0+", r"\1")
    return values.cast(declared)


def _cast_floats(values: pa.Array, declared: pa.DataType) -> pa.Array:
    wide = values.cast(pa.float64())
    floats = wide.cast(declared, safe=False)
    said_infinite = pc.match_substring_regex(values, "(?i)inf")
    if pc.any(pc.and_(pc.is_inf(floats), pc.invert(said_infinite))).as_py():
        raise ValueError("beyond the range")
    # A fraction has a nearest float, which is what its text means. An integer that is rounded is another one.
    large = pc.and_(
        pc.match_substring_regex(values, r"^-?\d+$"), pc.greater_equal(pc.abs(wide), _EXACT_INTEGER[declared.bit_width])
    )
    pairs = zip(floats.filter(large).to_pylist(), values.filter(large).to_pylist(), strict=True)
    if any(int(number) != int(text) for number, text in pairs):
        raise ValueError("rounded")
    return floats


def _convert_pieces(
    values: pa.Array, convert: Callable[[pa.Array], pa.Array], declared: pa.DataType
) -> tuple[pa.Array, Rejections]:
    """Convert values; if that fails, in halves, down to those that fail alone."""
    try:
        return convert(values), []
    except ValueError:
        pass
    rejections: Rejections = []
    pending = [(0, len(values))]
    while pending:
        start, end = pending.pop()
        try:
            convert(values.slice(start, end - start))
        except ValueError:
            if end - start == 1:
                rejections.append((start, values[start].as_py()))
            else:
                middle = (start + end) // 2
                pending += [(middle, end), (start, middle)]
    return pa.nulls(len(values), declared), rejections


def convert_objects(values: Sequence[Any], declared: pa.DataType, *, are_text: bool) -> tuple[pa.Array, Rejections]:
    """Return Python values as the declared type, and those that it cannot hold.

    With `are_text` they were parsed from JSON: a number with a fraction means the nearest float, and text may be a
    date, an instant or a decimal.
    """
    if are_text and (pat.is_date(declared) or pat.is_timestamp(declared)):
        rejections = [(place, value) for place, value in enumerate(values) if not isinstance(value, str | None)]
        if rejections:
            return pa.nulls(len(values), declared), rejections
        return parse_text(pa.array(values, pa.string()), declared)
    kinds = set(map(type, values)) - {type(None)}
    if any(is_kind(declared) and kinds <= python for is_kind, python in _PLAIN_KINDS):
        with suppress(ValueError, OverflowError):  # one of them does not fit
            return pa.array(values, declared), []
    accepted, rejections = [], []
    for place, value in enumerate(values):
        try:
            accepted.append(None if value is None else _accept(value, declared, are_text))
        except (ValueError, OverflowError, ArithmeticError):
            rejections.append((place, value))
    return (pa.nulls(len(values), declared) if rejections else pa.array(accepted, declared)), rejections


def _accept(value: Any, declared: pa.DataType, are_text: bool) -> Any:
    """Return a value that Arrow takes for this type without a loss.

    Raises:
        ValueError: there is none.
    """
    if pat.is_list(declared) and isinstance(value, list | tuple):
        array, rejections = convert_objects(value, declared.value_type, are_text=are_text)
        if not rejections:
            return array.to_pylist()
    elif pat.is_boolean(declared) and isinstance(value, bool):
        return value
    elif pat.is_integer(declared) and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        limit = 2 ** (declared.bit_width - 1)
        if math.isfinite(value) and value == int(value) and -limit <= value < limit:
            return int(value)
    elif pat.is_floating(declared) and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _accept_float(value, declared.bit_width, are_text)
    elif pat.is_decimal(declared) and not isinstance(value, bool | float):
        if isinstance(value, int | Decimal) or (
            are_text and isinstance(value, str) and re.fullmatch(_pattern(declared), value)
        ):
            number = Decimal(value)
            return pa.scalar(format(number, "f") if number.is_finite() else "", pa.string()).cast(declared).as_py()
    elif pat.is_string(declared) and isinstance(value, str | UUID):
        return str(value).encode().decode()  # half of a surrogate pair is no text
    elif pat.is_binary(declared) and isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    elif pat.is_date(declared) and isinstance(value, date) and not isinstance(value, datetime):
        return value
    elif pat.is_timestamp(declared):
        if isinstance(value, datetime) and (value.tzinfo is None) == (declared.tz is None):
            return value
        if isinstance(value, date) and not isinstance(value, datetime) and declared.tz is None:
            return datetime.combine(value, time())
    raise ValueError


def _accept_float(value: float | Decimal, bits: int, are_text: bool) -> float:
    if isinstance(value, Decimal) and not are_text:
        raise ValueError  # a decimal and a float differ in nearly every value
    number = float(value)
    if bits == 32:
        narrow: float = pa.scalar(number, pa.float64()).cast(pa.float32(), safe=False).as_py()
        if math.isinf(narrow) and not math.isinf(number):
            raise ValueError
        if not are_text and narrow != number and not math.isnan(number):
            raise ValueError
        number = narrow
    if math.isinf(number) and math.isfinite(value):
        raise ValueError
    if isinstance(value, int) and int(number) != value:
        raise ValueError
    return number


def _is_unreadable(value: Any) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _place(values: pa.Array, is_rejected: Callable[[Any], bool]) -> Rejections:
    return [
        (place, value) for place, value in enumerate(values.to_pylist()) if value is not None and is_rejected(value)
    ]
