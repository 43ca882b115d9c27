"""The declared columns of raw data, and the types that they may have.

These are the types that Arrow, Parquet and Spark all hold exactly, under the names that Arrow has for them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from evergreen.spec import Frozen

COLUMN_TYPES = (
    "bool",
    *("int8", "int16", "int32", "int64"),
    *("float32", "float64"),
    *("string", "binary"),
    "date32",
    *("timestamp[us]", "timestamp[us, tz=UTC]"),
)
"""Besides these: `decimal128(10, 2)`, and lists of any of them, such as `list<string>`."""

DECIMAL_TYPE = re.compile(r"decimal128\((?P<precision>\d+), (?P<scale>\d+)\)")
LIST_TYPE = re.compile(r"list<(?P<element>.+)>")

_MAX_PRECISION = 38
_INSTANT = "timestamp[us, tz=UTC] for instants, timestamp[us] for the time on a clock"
_REPLACEMENTS = {
    **dict.fromkeys(("uint8", "uint16", "uint32", "uint64"), "Spark has only signed integers: {wider}"),
    **dict.fromkeys(("int", "integer", "long"), "int64"),
    **dict.fromkeys(("double", "float", "number"), "float64"),
    **dict.fromkeys(("str", "text", "object", "large_string", "category"), "string"),
    **dict.fromkeys(("date", "date32[day]", "date64"), "date32"),
    **dict.fromkeys(("timestamp", "datetime", "datetime64[ns]", "datetime64[us]"), _INSTANT),
    **dict.fromkeys(("decimal", "numeric"), "decimal128(10, 2), of up to 38 digits, two of them after the point"),
}
_WIDER = {"uint8": "int16", "uint16": "int32", "uint32": "int64", "uint64": "int64, or decimal128(20, 0)"}


def _check_column_type(name: str) -> str:
    if name in COLUMN_TYPES:
        return name
    if decimal := DECIMAL_TYPE.fullmatch(name):
        precision, scale = int(decimal["precision"]), int(decimal["scale"])
        if not 1 <= precision <= _MAX_PRECISION or scale > precision:
            raise ValueError(f"{name}: a decimal has 1 to {_MAX_PRECISION} digits, at most all of them after the point")
        return name
    if (element := LIST_TYPE.fullmatch(name)) and not LIST_TYPE.fullmatch(element["element"]):
        _check_column_type(element["element"])
        return name
    if name.startswith("timestamp["):
        raise ValueError(f"{name!r}: Spark has only microseconds, without a zone or in UTC: write {_INSTANT}")
    if replacement := _REPLACEMENTS.get(name):
        raise ValueError(f"{name!r} is no type of a column: write {replacement.format(wider=_WIDER.get(name))}")
    types = ", ".join((*COLUMN_TYPES, "decimal128(10, 2)", "list<string>"))
    raise ValueError(f"{name!r} is no type of a column: write one of {types}")


ColumnType = Annotated[str, AfterValidator(_check_column_type)]


class RawColumn(Frozen):
    """One column of a source. `"int64"` is short for `dict(type="int64")`."""

    type: ColumnType = Field(description="an Arrow type, such as `int64`, `string` or `timestamp[us, tz=UTC]`")
    nullable: bool = Field(True, description="whether values may be missing; otherwise a null is refused")
    unit: str = Field("", description="unit of its values, such as `minutes`; for readers")
    description: str = Field("", description="what it says; for readers")

    @model_validator(mode="before")
    @classmethod
    def _expand_type(cls, declaration: Any) -> Any:
        return {"type": declaration} if isinstance(declaration, str) else declaration
