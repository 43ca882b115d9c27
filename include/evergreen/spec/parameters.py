"""Parameters of `train.fit`: values that reach the trainer, in another process, exactly as the spec has them.

They travel as JSON. What JSON lacks would arrive as something else without a word: a tuple as a list, NaN as None, the
key 1 as "1".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from datetime import date, time, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError, from_json, to_json

from evergreen.errors import Fault

MAX_DEPTH = 100
"""Of lists and dicts in one another. Readers of JSON stop at 200, and records have the parameters some levels down."""

PARAMETERS_ERROR = "unportable_parameters"  # its context has the faults

_FIXES: Mapping[type, str] = {
    int: "write int(…)",
    float: "write float(…)",
    str: "write str(…)",
    Mapping: "write dict(…)",
    list: "write list(…)",
    tuple: "write a list",
    Set: "write a sorted list",
    bytes: "write text, such as value.hex()",
    date: "write text, such as value.isoformat()",
    time: "write text, such as value.isoformat()",
    timedelta: "write a number, such as value.total_seconds()",
}
_NUMBER_FIX = "leave it out, or write None and let train.fit decide"
_OTHER_FIX = "write text, numbers, True, False, None, or lists and dicts of these"


def check_parameters(value: Any) -> Any:
    """Return `value` if it reaches the trainer as it is.

    Raises:
        PydanticCustomError: it does not; its context has one fault for each place.
    """
    if not isinstance(value, Mapping):
        return value  # which the type of the field refuses
    if faults := list(find_unportable_values(value, "")):
        raise PydanticCustomError(PARAMETERS_ERROR, "do not reach train.fit as they are", {"faults": faults})
    return value


Parameters = Annotated[Mapping[str, Any], BeforeValidator(check_parameters)]


def find_unportable_values(value: Any, path: str, depth: int = 0) -> Iterator[Fault]:
    """Yield a fault for each place in `value` that would not be equal, type included, after a way through JSON."""
    if depth > MAX_DEPTH:
        yield Fault(path, f"is nested more than {MAX_DEPTH} levels deep", "flatten it")
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                yield Fault(path, f"has the key {ascii(key)[:40]}, and keys must be text", f"write {str(key)[:40]!a}")
            elif not _survives(key):
                yield Fault(path, f"has the key {ascii(key)[:40]}, which is no text in UTF-8", "write another key")
            yield from find_unportable_values(item, f"{path}.{str(key)[:40]}".removeprefix("."), depth + 1)
    elif type(value) is list:
        for number, item in enumerate(value):
            yield from find_unportable_values(item, f"{path}.{number}", depth + 1)
    elif type(value) is float:
        if not math.isfinite(value):
            yield Fault(path, f"is {value}, which JSON does not have", _NUMBER_FIX)
    elif type(value) in (int, str):
        if not _survives(value):
            problem = "has too many digits for JSON" if type(value) is int else "is no text in UTF-8"
            yield Fault(path, problem, "write another value")
    elif value is not None and type(value) is not bool:
        name = type(value).__name__
        if type(value).__module__ == "numpy":
            name, fix = f"numpy {name}", "write value.tolist(), which is plain Python"
        else:
            fix = next((fix for type_, fix in _FIXES.items() if isinstance(value, type_)), _OTHER_FIX)
        yield Fault(path, f"is of type {name}, and would reach train.fit as something else", fix)


def _survives(value: int | str) -> bool:
    """Return whether text or a whole number is equal after a way through JSON."""
    try:
        return bool(from_json(to_json(value)) == value)
    except ValueError:
        return False
