"""Registers with history: faults in when rows are valid, and hashes of what can be seen of them.

A row is valid from a day or instant on, and until before another. Of the rows with the same keys at most one is valid
at any time.
"""
# ruff: noqa: S608 - names and paths are quoted

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from pathlib import Path

import duckdb
import numpy as np

from evergreen.errors import Fault
from evergreen.ingest.databases import QUERY_ERRORS, open_database, parquet_rows, quote_name, quote_text
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.model import HistoryColumns, RawSource

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = 2**63 - 1


def find_history_faults(
    database: duckdb.DuckDBPyConnection, source: RawSource, rows: Path, location: str
) -> tuple[Fault, ...]:
    """Return what is wrong with the times at which rows are valid, with counts and examples.

    `rows` is where the rows of the raw file at `location` are, as declared.
    """
    history = _history_of(source)
    is_valid = "(ends IS NULL OR begins < ends)"
    problems = (
        {
            "ends < begins": ("end before they begin", "correct when they are valid"),
            f"ends IS NULL AND earlier_end = {_NEVER}": (
                "are open, and so is an earlier row of their keys",
                f"give all but the last row of its keys a {history.valid_to}",
            ),
            f"{is_valid} AND begins < earlier_end AND NOT (ends IS NULL AND earlier_end = {_NEVER})": (
                "begin before an earlier row of their keys has ended",
                "end each row where the next one of its keys begins, at the latest",
            ),
        }
        if history.valid_to
        else {"begins = ends": ("begin when another row of their keys does", "deliver one of them")}
    )
    named = ((name, quote_text(name)) for name in (*history.keys, *history.validity))
    example = " || ', ' || ".join(f"{label} || ' ' || coalesce({_text(name)}, 'null')" for name, label in named)
    counts = ", ".join(f"count(*) FILTER ({rule}), min(text) FILTER ({rule})" for rule in problems)
    query = f"""
        SELECT {counts} FROM (
            SELECT *, max(CASE WHEN {is_valid} THEN coalesce(ends, {_NEVER}) END) OVER (
                PARTITION BY keys ORDER BY begins, coalesce(ends, {_NEVER})
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS earlier_end
            FROM ({_versions_query(source, rows, example)})
        )
    """
    row = database.execute(query).fetchone()
    assert row
    return tuple(
        Fault(f"{location}: {', '.join(history.validity)}", f"{count} rows {problem}, such as {value}", fix)
        for count, value, (problem, fix) in zip(row[::2], row[1::2], problems.values(), strict=True)
        if count
    )


def hash_visible(source: RawSource, rows: Path, spans: Sequence[tuple[date, date]]) -> list[str] | None:
    """Return, for each span of days or instants, the hash of what is valid when in it: the end is not included.

    None if the file is damaged.

    Two registers have the same hash exactly if all keys have the same values at all times of the span. So it does not
    matter what was or will be valid at other times, whether what is valid throughout has ended since, in which order
    the rows are, or whether two rows say what one could.

    That is a sum over the rows that are valid when the span begins, and one over its changes: rows that begin are added
    and rows that end are subtracted. One pass computes both for all spans, as sums up to each bound.
    """
    limits = [(_number(start), _number(end) - 1) for start, end in spans]
    bounds = sorted({bound for span in limits for bound in span})
    columns = sorted(source.columns.keys() - set(_history_of(source).validity))
    row_text = " || ".join(f"coalesce(strlen({_text(name)}) || ':' || {_text(name)}, '-')" for name in columns)
    halves = ("({} >> 64)", f"({{}} & {2**64 - 1}::UHUGEINT)")  # whose sums stay below 127 bits
    sums = ", ".join(f"sum(sign * {half.format(hash_)}::HUGEINT)" for hash_ in ("row_hash", "hash") for half in halves)
    query = f"""
        WITH versions AS (SELECT begins, ends, md5(text) AS row FROM ({_versions_query(source, rows, row_text)})),
        changes AS (
            SELECT begins AS moment, 1 AS sign, row FROM versions
            UNION ALL SELECT ends, -1, row FROM versions WHERE ends IS NOT NULL
        ),
        hashes AS (SELECT *, md5_number(row) AS row_hash, md5_number(row || ' ' || moment) AS hash FROM changes)
        SELECT bound, {sums}
        FROM hashes ASOF JOIN (SELECT unnest(?::BIGINT[]) AS bound) ON moment <= bound
        GROUP BY bound
    """
    try:
        with open_database() as database:
            sums_by_bound = database.execute(query, [bounds]).fetchall()
    except QUERY_ERRORS:
        raise
    except duckdb.Error:
        return None
    by_bound = {bound: np.array(halves, object) for bound, *halves in sums_by_bound}
    nothing = np.zeros(4, object)  # Python's integers, which have any size
    totals = dict(zip(bounds, accumulate(by_bound.get(bound, nothing) for bound in bounds), strict=True))
    return [compute_fingerprint([*totals[first][:2], *(totals[last] - totals[first])[2:]]) for first, last in limits]


def _versions_query(source: RawSource, rows: Path, text: str) -> str:
    """Return the query for the keys and a text of all rows, and the day or microsecond when each begins and ends."""
    history = _history_of(source)
    number = "datediff('day', DATE '1970-01-01', {})" if source.has_dates_of_validity else "epoch_us({})"
    keys = f"row({', '.join(map(quote_name, history.keys))})"
    begins = number.format(quote_name(history.valid_from))
    next_begin = f"lead({begins}) OVER (PARTITION BY {keys} ORDER BY {begins})"
    ends = number.format(quote_name(history.valid_to)) if history.valid_to else next_begin
    return f"SELECT {keys} AS keys, {text} AS text, {begins} AS begins, {ends} AS ends FROM {parquet_rows(rows)}"


def _history_of(source: RawSource) -> HistoryColumns:
    assert source.history
    return source.history


def _text(column: str) -> str:
    return f"{quote_name(column)}::VARCHAR"


def _number(moment: date) -> int:
    if isinstance(moment, datetime):
        return (moment - _EPOCH) // timedelta(microseconds=1)
    return (moment - _EPOCH.date()).days
