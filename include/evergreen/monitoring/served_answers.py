"""What servers have answered, kept of each period in a few columns: labels may come by id after the log is gone.

Of any model, not of the champion only: a label belongs to what was served.
"""
# ruff: noqa: S608 - names and literals are quoted, and all others are made here

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from evergreen.errors import DatasetError, first_line
from evergreen.ingest.databases import quote_name, quote_text
from evergreen.monitoring.serving_logs import (
    CONTENT,
    ID,
    MAX_ID_LENGTH,
    MAX_LOGGED_TEXT,
    TIME,
    VERSION,
    LogColumn,
    LogSchema,
    is_damaged_file,
    logged_rows,
    schema_faults,
    shorten,
)

ANSWER_ROWS = 200_000
"""Of a period, at most: those whose ids have the smallest MD5."""
KEY_PREFIX = "key__"
"""Of the columns of keys: a key may be named as anything else."""

_MAX_VERSION, _MAX_CONTENT = 120, 64  # characters


def write_answers(
    database: duckdb.DuckDBPyConnection,
    files: Mapping[str, Path],
    schema: LogSchema,
    bounds: tuple[datetime, datetime],
    target: Path,
    max_rows: int = ANSWER_ROWS,
) -> tuple[bool, list[str]]:
    """Write the answers of a period to a Parquet file, each id once, in order of ids.

    Return whether these are all, and which files are damaged in these columns: they are left out.

    Its columns are the id, the time, the version and the content of the model, keys with `KEY_PREFIX`, and predictions.
    What a file lacks of keys and predictions is null, such as in a log of a model of another kind.

    Args:
        database: it gets a table.
        files: of the log, by name; those that are left out are not among them. Of an id the first row counts.
        schema: of the champion.
        bounds: of the period, the second one exclusively.
        target: the file.
        max_rows: those with the smallest hash of the id are written, so the same ones however rows come in files.

    Raises:
        OSError, duckdb.Error: a file cannot be read for a reason that is not its own.
    """
    keys, outputs = schema.keys, schema.predictions
    names = [f"key_{number}" for number in range(len(keys))] + [f"output_{number}" for number in range(len(outputs))]
    declared = "".join(f", {name} {column.sql_type}" for name, column in zip(names, (*keys, *outputs), strict=True))
    database.execute(
        "CREATE OR REPLACE TEMP TABLE answers (file INTEGER, number BIGINT, id VARCHAR, moment TIMESTAMPTZ, "
        f"version VARCHAR, content VARCHAR{declared})"
    )
    is_complete, waiting, problems = True, 0, list[str]()
    for number, (file_name, file) in enumerate(files.items()):
        try:
            database.execute(f"INSERT INTO answers {_select(number, file, keys, outputs, bounds)}")
        except Exception as error:  # of any class: the file comes from others
            if not is_damaged_file(error, file):
                raise
            problems.append(f"{shorten(file_name)}: its answers cannot be read: {shorten(first_line(error))}")
            continue
        waiting += pq.read_metadata(file).num_rows
        if waiting > max_rows:
            is_complete, waiting = _prune(database, max_rows) and is_complete, 0
    is_complete = _prune(database, max_rows) and is_complete
    columns = [
        f"id AS {ID}", f"moment AS {TIME}", f"version AS {VERSION}", f"content AS {CONTENT}",
        *(f"{name} AS {quote_name(KEY_PREFIX + key.name)}" for name, key in zip(names, keys, strict=False)),
        *(f"output_{number} AS {quote_name(column.name)}" for number, column in enumerate(outputs)),
    ]  # fmt: skip
    database.execute(
        f"COPY (SELECT {', '.join(columns)} FROM answers ORDER BY id) TO {quote_text(str(target))} "
        "(FORMAT parquet, COMPRESSION zstd)"
    )
    return is_complete, problems


def answer_columns(file: Path) -> tuple[dict[str, str], list[str]]:
    """Return the columns of keys in a file of answers, by the name of the key, and those of predictions, in order."""
    names = pq.read_schema(file).names
    if names[:4] != [ID, TIME, VERSION, CONTENT]:
        raise DatasetError(f"{file} has no answers: find out who can write to the lake")
    keys = {name.removeprefix(KEY_PREFIX): name for name in names[4:] if name.startswith(KEY_PREFIX)}
    return keys, [name for name in names[4:] if not name.startswith(KEY_PREFIX)]


def _select(
    number: int, file: Path, keys: Sequence[LogColumn], outputs: Sequence[LogColumn], bounds: tuple[datetime, datetime]
) -> str:
    existing, terms = pq.read_schema(file), list[str]()
    has_outputs = not schema_faults(existing, outputs)
    for column in keys:
        name = quote_name(column.name)
        if schema_faults(existing, [column]):
            terms.append("NULL")
        elif column.kind == "text":
            terms.append(
                f"CASE WHEN length(CAST({name} AS VARCHAR)) <= {MAX_LOGGED_TEXT} THEN CAST({name} AS VARCHAR) END"
            )
        else:
            terms.append(f"TRY_CAST({name} AS {column.sql_type})")
    terms += [f"TRY_CAST({quote_name(column.name)} AS DOUBLE)" if has_outputs else "NULL" for column in outputs]
    start, end = (f"TIMESTAMPTZ {quote_text(moment.isoformat())}" for moment in bounds)
    instant = f"TRY_CAST({TIME} AS TIMESTAMPTZ)"
    return (
        f"SELECT {number}, file_row_number, CAST({ID} AS VARCHAR), {instant}, left(CAST({VERSION} AS VARCHAR), "
        f"{_MAX_VERSION}), left(CAST({CONTENT} AS VARCHAR), {_MAX_CONTENT}){''.join(f', {term}' for term in terms)} "
        f"FROM {logged_rows(file)} WHERE length({ID}) BETWEEN 1 AND {MAX_ID_LENGTH} "
        f"AND {instant} >= {start} AND {instant} < {end}"
    )


def _prune(database: duckdb.DuckDBPyConnection, max_rows: int) -> bool:
    """Drop the further rows of an id, and the ids with the largest hashes; return whether none of these is dropped."""
    database.execute(
        "CREATE OR REPLACE TEMP TABLE answers AS SELECT * FROM answers "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY file, number) = 1 "
        f"ORDER BY md5(id), id LIMIT {max_rows + 1}"
    )
    rows: int = database.execute("SELECT count(*) FROM answers").fetchall()[0][0]
    if rows > max_rows:
        database.execute(
            f"CREATE OR REPLACE TEMP TABLE answers AS SELECT * FROM answers ORDER BY md5(id), id LIMIT {max_rows}"
        )
    return rows <= max_rows
