"""Rows in tables of one size, however they come: what a file or a model gets does not depend on how they were read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

ROW_GROUP_ROWS = 2**16
"""Rows of each row group of a file but the last: what a trainer reads at a time, and what several trainers share."""


def regroup_rows(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of `tables`, of which there is at least one, in tables of `rows`, the last one of fewer.

    Without any rows, an empty one. Each column is in one piece: the bytes of a file depend on the pieces.
    """
    pieces: list[pa.Table] = []
    missing, is_empty = rows, True
    for table in tables:
        while len(table) >= missing:
            yield pa.concat_tables([*pieces, table.slice(0, missing)]).combine_chunks()
            table, pieces, missing, is_empty = table.slice(missing), [], rows, False
        pieces.append(table)
        missing -= len(table)
    if missing < rows or is_empty:
        yield pa.concat_tables(pieces).combine_chunks()
