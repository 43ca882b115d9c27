"""The first draft of a source's declaration, from files of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from evergreen.errors import Fault, RawDataError
from evergreen.ingest.conversions import MAX_PRECISION, stored_type
from evergreen.ingest.declared_files import count_nulls, unreadable_fault

_NAMES = {
    pa.bool_(): "bool",
    pa.int8(): "int8",
    **dict.fromkeys((pa.int16(), pa.uint8()), "int16"),
    **dict.fromkeys((pa.int32(), pa.uint16()), "int32"),
    **dict.fromkeys((pa.int64(), pa.uint32(), pa.uint64()), "int64"),
    **dict.fromkeys((pa.float16(), pa.float32()), "float32"),
    pa.float64(): "float64",
    pa.string(): "string",
    pa.binary(): "binary",
    pa.date32(): "date32",
}
_WIDER = ("int8", "int16", "int32", "int64", "float32", "float64")


@dataclass
class _DraftColumn:
    types: list[pa.DataType]
    nulls: int = 0


def draft_source(files: Sequence[Path]) -> str:
    """Return a declaration, as Python, that all of `files` of one source can be read with.

    Raises:
        RawDataError: a file cannot be read.
    """
    columns: dict[str, _DraftColumn] = {}
    rows, presence = 0, dict[str, int]()
    for file in files:
        try:
            with pq.ParquetFile(file, pre_buffer=False) as parquet:
                rows += parquet.metadata.num_rows
                for field in parquet.schema_arrow:
                    column = columns.setdefault(field.name, _DraftColumn([]))
                    column.types.append(stored_type(field.type))
                    column.nulls += count_nulls(parquet, field.name)
                    presence[field.name] = presence.get(field.name, 0) + 1
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RawDataError("draft of a source", [unreadable_fault(file, error)]) from None
    if not columns:
        raise RawDataError(
            "draft of a source", [Fault(", ".join(map(str, files)), "has no columns", "name other files")]
        )
    lines = [_draft_line(name, column, presence[name], len(files)) for name, column in columns.items()]
    name = re.sub(r"[^a-z0-9_]+", "_", files[0].stem.lower()).strip("_0123456789") or "source"
    head = [f"# from {len(files)} files with {rows} rows; add units, and correct what these files do not show", "dict("]
    return "\n".join([*head, f'    name="{name}",', "    columns={", *lines, "    },", ")"])


def _draft_line(name: str, column: _DraftColumn, presence: int, file_count: int) -> str:
    if presence < file_count:
        return f"        # {name!r} is missing in {file_count - presence} of {file_count} files"
    known_types = list(dict.fromkeys(kind for kind in column.types if not pat.is_null(kind)))
    if not known_types:
        return f'        {name!r}: "string",  # without a value in these files: correct the type'
    declared = common_type(known_types)
    if declared is None:
        kinds = ", ".join(map(str, known_types))
        return f"        # {name!r} has types that no declaration holds: {kinds}"
    comment = f"  # {', '.join(map(str, known_types))} in these files" if len(known_types) > 1 else ""
    if column.nulls:
        return f'        {name!r}: "{declared}",{comment}'
    return f'        {name!r}: dict(type="{declared}", nullable=False),{comment}'


def common_type(kinds: Sequence[pa.DataType]) -> str | None:
    """Return the declared type that holds values of all of `kinds`, None if there is none."""
    if all(map(pat.is_decimal, kinds)):
        scale = max(kind.scale for kind in kinds)
        precision = max(kind.precision - kind.scale for kind in kinds) + scale
        return f"decimal128({precision}, {scale})" if precision <= MAX_PRECISION else None
    if all(map(pat.is_list, kinds)):
        elements = [kind.value_type for kind in kinds if not pat.is_null(kind.value_type)]
        element = common_type(elements) if elements else "string"
        return f"list<{element}>" if element and not element.startswith("list") else None
    if all(map(pat.is_timestamp, kinds)):
        zones = {kind.tz is not None for kind in kinds}
        return None if len(zones) > 1 else "timestamp[us, tz=UTC]" if zones.pop() else "timestamp[us]"
    names = {_NAMES.get(kind) for kind in kinds}
    if len(names) == 1:
        return names.pop()
    if not names <= set(_WIDER):
        return None
    widest = max((name for name in names if name), key=_WIDER.index)
    # A float holds the integers of half its size.
    return "float64" if widest == "float32" and names & {"int32", "int64"} else widest
